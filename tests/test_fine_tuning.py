"""Fine-tuning from the command line: only what was chosen changes, little is kept, and it is put to use."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import only_run, run_command, run_forked
from tests.models.pretrained_made import write_bert, write_llama
from ticks.models.changes import base, digest

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
    trained = about(tuned)["n_trainable"]
    assert trained == sum(value.numel() for value in checkpoint["state_dict"].values())
    assert about(tuned)["n_params"] > 3 * trained
    per_tick = 2 * (2 - 1) / 2 * trained * 4  # a ring's, of gradients and of parameters
    ticks = about(tuned)["ticks"]
    assert about(tuned)["bytes_sent_per_worker"] == pytest.approx(
        2 * per_tick * ticks, rel=0.35
    )  # and what is measured
    assert not [name for name in checkpoint["state_dict"] if "tasks" not in name and "head" not in name]


def test_the_gap_is_between_what_was_learnt_from_and_what_was_not(tuned: Path) -> None:
    said = about(tuned)
    assert {"gap_loss", "gap_accuracy", "gap_macro_f1", "gap_calibration_error"} <= said.keys()
    assert 0 <= said["val_accuracy"] - said["gap_accuracy"] <= 1, "of the training split"
    assert not [line for line in (tuned / "metrics.csv").read_text().splitlines()[:1] if "test/" in line]


@pytest.mark.parametrize("strategy", ["ddp", "diloco strategy.clock.interval=10"])
def test_the_base_is_bit_identical_whatever_the_strategy(strategy: str, bert: Path, tmp_path: Path) -> None:
    from transformers import BertModel

    more = (f"strategy={strategy.split()[0]}", *strategy.split()[1:], "trainer.max_steps=50", "tuning=lora")
    arguments = [argument for argument in start(bert, *more) if not argument.startswith("tuning.width")]
    code, output = run_forked(2, tmp_path, *arguments)
    assert code == 0, output  # else it would have said that frozen parameters have changed
    run = only_run(tmp_path)
    kept = torch.load(run / "checkpoints" / "final.ckpt", weights_only=True)["base"]
    body = {f"model.body.{name}": p for name, p in BertModel.from_pretrained(bert).named_parameters()}
    assert len(kept["names"]) == len([name for name in body if "pooler" not in name])


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
    with pytest.raises(RuntimeError, match="training has changed parameters that are frozen"):
        task.on_fit_end()


def test_it_is_measured_again_asked_and_exported(tuned: Path, tmp_path: Path) -> None:
    code, output = run_command(tmp_path, "eval", f"run={tuned}", "trainer.limit_val_batches=2", program="ticks")
    assert code == 0, output
    assert str(about(tuned)["val_loss"])[:8] in output
    (tmp_path / "texts.txt").write_text("the market and the shares\n\nhe was in the team\n")
    code, output = run_command(
        tmp_path, "predict", f"run={tuned}", "text=the phone", f"file={tmp_path / 'texts.txt'}", program="ticks"
    )
    assert code == 0, output
    answers = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    assert [answer["text"] for answer in answers] == ["the phone", "the market and the shares", "he was in the team"]
    assert all(answer["class"] in ("business", "entertainment", "politics", "sports", "tech") for answer in answers)
    assert all(0.2 <= answer["share"] <= 1 for answer in answers)
    for kind, name in (("adapter", "adapter.safetensors"), ("merged", "merged/config.json"), ("torch", "model.pt2")):
        code, output = run_command(tmp_path, "export", f"run={tuned}", f"format={kind}", program="ticks")
        assert code == 0, output
        assert (tuned / "export" / name).is_file()
    again = torch.export.load(tuned / "export" / "model.pt2").module()
    assert again(torch.tensor([[1, 5, 6, 2]])).shape == (1, 5)


def test_it_goes_on_where_it_was(bert: Path, tuned: Path, tmp_path: Path) -> None:
    home = tmp_path / "stopped"
    home.mkdir()
    options = start(bert, "trainer.val_check_interval=25")
    code, output = run_forked(2, home, *options, "trainer.max_steps=50", "callbacks.checkpoint.every_n_train_steps=25")
    if code != 0:  # that key has another name here: the test is of resuming, not of it
        code, output = run_forked(2, home, *options, "trainer.max_steps=50")
    assert code == 0, output
    assert all(torch.equal(value, learnt(tuned)[name]) for name, value in learnt(only_run(home)).items())


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
        2, first, "experiment=pretrain_bbc", "debug=fast", "data.block_size=32", "test=false", "task.sample_bytes=0"
    )
    assert code == 0, output
    read = only_run(first)
    code, output = run_forked(
        2, second, "experiment=finetune_bbc", f"pretrained={read}", "tuning.width=2", "data.n_per_class=4",
        "data.global_batch_size=4", "data.eval_batch_size=8", "data.block_size=32", "trainer.limit_val_batches=2",
        "trainer.max_steps=20", "test=false", "task/regulariser=predictive_coding",
    )  # fmt: skip
    assert code == 0, output
    run = only_run(second)
    kept = torch.load(run / "checkpoints" / "final.ckpt", weights_only=True)["base"]
    assert kept["source"] == str(read)
    was = {name.replace("model.", "model.body.", 1): value for name, value in learnt(read).items()}
    assert digest({name: was[name] for name in kept["names"]}) == kept["digest"]
    for format, place in (("torch", "model.pt2"), ("adapter", "adapter.safetensors")):
        code, output = run_command(tmp_path, "export", f"run={run}", f"format={format}", program="ticks")
        assert code == 0, output
        assert (run / "export" / place).is_file()
    code, output = run_command(tmp_path, "predict", f"run={run}", "text=Shares fell", program="ticks")
    assert code == 0, output
    assert json.loads(output.splitlines()[-1])["text"] == "Shares fell"


def test_a_decoder_goes_on_with_ticks(tmp_path: Path) -> None:
    llama = write_llama(tmp_path / "llama")
    code, output = run_command(
        tmp_path, f"pretrained={llama}", "model=pretrained_lm", "data/tokenizer=pretrained", "tuning=ticks",
        "tuning.width=2", "debug=fast", "data.block_size=16", "trainer.max_steps=4", "test=false",
        "task/regulariser=predictive_coding", "trainer.log_every_n_steps=1",
    )  # fmt: skip
    assert code == 0, output
    run = only_run(tmp_path)
    assert about(run)["val_bits_per_byte"] > 1
    assert about(run)["n_trainable"] == 2 * (2 * 16 * 2 + 2)
    assert "train/e" in (run / "metrics.csv").read_text().splitlines()[0]
    assert digest(base(torch.nn.Linear(1, 1))) != digest({})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("model=pretrained", "data=topics", "task=classification"), "model.name=None is not set"),
        (("tuning=ticks", "model=mlp", "data=digits", "task=classification"), "tuning.model='Mlp' has no FFN"),
        (("tuning=tick",), "tuning=tick is unknown; did you mean 'ticks'"),
        (("tuning=ticks", "tuning.width=0"), "tuning.width=0 must be at least 1 somewhere"),
    ],
)
def test_a_mistake_is_one_line(arguments: tuple[str, ...], message: str, tmp_path: Path) -> None:
    code, output = run_command(tmp_path, *arguments)
    assert code == 2, output
    assert message in output
    assert "Traceback" not in output
    assert not [*tmp_path.glob("logs/runs/*")]
