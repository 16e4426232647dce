"""Phases: one run that learns one thing after another, as if each were a run, and resumes anywhere."""

import json
import os
import shutil
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from lightning.pytorch import LightningModule, Trainer
from torch import nn

from tests.conftest import REPOSITORY, Command, only_run, run_command, run_forked
from ticks.config import compose_phases, compose_strictly, digest
from ticks.config.phases import _text
from ticks.job import resumed_job
from ticks.phases import TakeOver
from ticks.record.metrics import MetricsFile

TINY = ("data.block_size=16", "data.global_batch_size=8", "model.d_model=32", "model.n_layers=2", "model.n_heads=2",
        "optimizer=adamw", "trainer.val_check_interval=4", "trainer.limit_val_batches=2",
        "test=false", "task.sample_bytes=0", "schedule.warmup_steps=2", "strategy.clock.interval=3",
        "callbacks.checkpoint.save_top_k=-1",
        "model.dropout=0.1")  # fmt: skip
FIRST = "first:{trainer:{max_steps:10}}"
SECOND = "second:{model:rms,optimizer.lr:0.001,trainer.max_steps:7,timeline:norm_warmup,timeline.norm_warmup.ramp:4}"


def learnt(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "checkpoints" / "final.ckpt", weights_only=True)["state_dict"]


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("phases")
    code, output = run_forked(2, home, *TINY, f"phases={{{FIRST},{SECOND}}}")
    assert code == 0, output
    assert "phase first: steps 1 to 10" in output
    assert "phase second goes on with all of the model" in output
    assert "phase second: steps 11 to 17" in output
    return only_run(home)


@pytest.mark.workers
def test_it_is_one_run_with_a_row_for_each_phase(whole: Path) -> None:
    about = json.loads((whole / "summary.json").read_text())
    assert (about["status"], about["steps"]) == ("finished", 17)
    first, second = about["phases"]
    assert (first["name"], first["begin"], first["steps"], first["tokens"]) == ("first", 0, 10, 10 * 8 * 16)
    assert (second["name"], second["begin"], second["steps"], second["tokens"]) == ("second", 10, 7, 7 * 8 * 16)
    for key in ("ticks", "bytes_sent_per_worker", "messages", "tokens"):
        assert first[key] + second[key] == about[key], key
    assert first["ticks"] == 4, "after steps 3, 6, 9 and at the end"
    assert second["val_loss"] == about["val_loss"] != first["val_loss"]
    rows = MetricsFile(whole / "metrics.csv").rows()
    assert [(row["step"], row["timeline/phase"]) for row in rows if row["timeline/phase"]] == [
        ("0", "first"), ("10", "second"),
    ]  # fmt: skip
    marks = [(row["step"], row["timeline/norm_warmup"]) for row in rows if row["timeline/norm_warmup"]]
    assert marks == [("10", "ramps"), ("13", "holds")], "its timeline counts from where the phase begins"
    assert [row["step"] for row in rows if row["tick/loss"]] == ["3", "6", "9", "10", "12", "15", "17"]
    assert not [step for step in map(int, (row["step"] for row in rows)) if step > 17]


@pytest.mark.workers
def test_a_phase_that_is_over_is_a_run_like_one_of_its_own(whole: Path, tmp_path: Path) -> None:
    code, output = run_forked(2, tmp_path, *TINY, "trainer.max_steps=10")
    assert code == 0, output
    assert same(learnt(whole / "phases" / "first"), learnt(only_run(tmp_path)))
    code, output = run_command(whole.parents[2], "eval", f"run={whole}/phases/first", program="ticks")
    assert code == 0, output
    about = json.loads((whole / "phases" / "first" / "summary.json").read_text())
    assert f"val_loss             {about['val_loss']}" in output
    code, output = run_command(whole.parents[2], "report", str(whole), program="ticks")
    assert code == 0, output
    assert "first" not in output, "the run is reported, not what it consists of"
    code, output = run_command(whole.parents[2], "timeline", f"run={whole}", program="ticks")
    assert (code, output.splitlines()) == (0, [
        "phase first: steps 1 to 10, counted from 1 here:",
        "phase second: steps 11 to 17, counted from 1 here:",
        "  norm_warmup: from step 1, over 4 steps: NormGate(start=0.0, end=1.0, sites=['*'])",
    ])  # fmt: skip


@pytest.mark.workers
@pytest.mark.parametrize("last", ["step-00000008", "border", "step-00000012"])
def test_a_run_that_was_stopped_anywhere_goes_on_to_the_same_bits(last: str, whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    number = 10 if last == "border" else int(last.rpartition("-")[2])
    for file in run.glob("checkpoints/*.ckpt"):
        if file.stem == "final" or int(file.stem.rpartition("-")[2]) > number:
            file.unlink()
    if number < 10:
        shutil.rmtree(run / "phases")
    code, output = run_forked(2, tmp_path, f"resume={run}")
    assert code == 0, output
    assert_equal(run, whole)


def assert_equal(run: Path, whole: Path) -> None:
    assert same(learnt(whole), learnt(run))
    before, after = (json.loads((at / "summary.json").read_text())["phases"] for at in (whole, run))
    for one, other in zip(before, after, strict=True):
        timed = {"train_seconds"}
        assert {k: v for k, v in one.items() if k not in timed} == {k: v for k, v in other.items() if k not in timed}
    marks = [row["timeline/phase"] for row in MetricsFile(run / "metrics.csv").rows() if row["timeline/phase"]]
    assert marks == ["first", "second"]


@pytest.mark.workers
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL], ids=["SIGTERM", "SIGKILL"])
def test_a_signal_between_two_phases_stops_a_run_that_goes_on_to_the_same_bits(
    signum: signal.Signals, whole: Path, tmp_path: Path
) -> None:
    command = Command(tmp_path, *TINY, f"phases={{{FIRST},{SECOND}}}", "trainer.devices=2")
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("logs/runs/*/phases/first/checkpoints/final.ckpt")):
        assert time.monotonic() < deadline, command.output
        time.sleep(0.002)
    os.kill(command.process.pid, signum)  # what comes next takes half a second to be built
    assert command.end(30) == {signal.SIGTERM: 143, signal.SIGKILL: -9}[signum], command.output
    assert "Traceback" not in command.output, command.output
    run = only_run(tmp_path)
    code, output = run_forked(2, tmp_path, f"resume={run}")
    assert code == 0, output
    assert_equal(run, whole)


@pytest.mark.workers
def test_with_ddp_too(tmp_path: Path) -> None:
    options = [o for o in TINY if not o.startswith("strategy")]
    code, output = run_forked(2, tmp_path, *options, "strategy=ddp", f"phases={{{FIRST},{SECOND}}}")
    assert code == 0, output
    assert json.loads((only_run(tmp_path) / "summary.json").read_text())["steps"] == 17


@pytest.mark.workers
def test_pretrained_then_tuned_is_what_two_commands_do(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    small = ("data.block_size=16", "data.global_batch_size=8", "test=false", "trainer.val_check_interval=3",
             "trainer.limit_val_batches=2", "schedule.warmup_steps=2", "strategy.clock.interval=3")  # fmt: skip
    tiny = ("model.d_model=32", "model.n_layers=2", "model.n_heads=2")
    code, output = run_forked(2, tmp_path, "experiment=pretrain_then_finetune", *small, *tiny, "trainer.max_steps=9",
                              "+phases.pretrain.data.tokenizer.vocab_size=300",
                              "+phases.finetune.data.n_per_class=4")  # fmt: skip
    assert code == 0, output
    one = only_run(tmp_path)
    assert "phase finetune goes on with the model; new: body.blocks.0." in output
    code, output = run_forked(2, tmp_path, "experiment=finetune_bbc", *small, "trainer.max_steps=9", "run_dir=three",
                              "data.n_per_class=4", f"pretrained={one}/phases/pretrain")  # fmt: skip
    assert code == 0, output
    assert same(learnt(one), learnt(tmp_path / "three"))


@pytest.mark.parametrize(
    ("phases", "message"),
    [
        ("{second:{strategy.clock.interval:2}}", "phases.second: strategy.clock.interval=2 is the whole run's"),
        ("{second:{trainer.devices:2}}", "phases.second: trainer.devices=2 is the whole run's"),
        ("{second:{optimizer.ls:2}}", "phases.second: unknown key 'optimizer.ls'"),
        ("{second:{model:lm}}", "phases.second: model=lm is unknown; valid: encoder"),
        ("{second:3}", "phases.second=3 must be what is another there"),
        ("{first:null}", "phases: all of them are null"),
        ("[a,b]", "phases=['a', 'b'] must be names"),
        ("{first:{seed:3}}", "phases.first: seed=3 is the whole run's"),
        ("{first:{},second:{trainer.max_steps:-1}}", "phases.second: trainer.max_steps=-1 must be a whole number"),
    ],
)
def test_a_mistake_is_one_line_before_anything_begins(phases: str, message: str, tmp_path: Path) -> None:
    code, output = run_command(tmp_path, f"phases={phases}")
    assert code == 2, output
    assert message in output
    assert "Traceback" not in output
    assert not [*tmp_path.glob("logs/runs/*")]


@pytest.mark.workers
@pytest.mark.parametrize(
    ("second", "message"),
    [
        ("{model.n_heads:3}", "phases.second: model.n_heads=3 must divide d_model=32"),
        ("{data:text,data.path:/nowhere}", "phases.second: data.path='/nowhere' matches no file"),
        ("{timeline:{it:{do:{_target_:ticks.timeline.Freeze,match:'.'}}}}",
         "phases.second: timeline: from step 1 on, by it: nothing trains"),
        ("{timeline:lr_steps,timeline.tenth.until:80%}", "sets the learning rate's factor while tenth does"),
        ("{model:pretrained,task:classification,data:topics}", "phases.second: pretrained=None is not set"),
    ],
)  # fmt: skip
def test_a_later_phase_is_tried_before_the_first_begins(second: str, message: str, tmp_path: Path) -> None:
    typed = [option for option in TINY if not option.startswith(("model.n_heads", "task"))]
    code, output = run_command(tmp_path, *typed, f"phases={{first:{{model.n_heads:2}},second:{second}}}")
    assert code == 2, output
    assert message in output
    assert "Traceback" not in output
    assert "steps 1 to" not in output


@pytest.mark.workers
def test_a_run_goes_on_with_another_value_of_one_phase(whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    for file in [*run.glob("checkpoints/final.ckpt"), run / "checkpoints/step-00000016.ckpt"]:
        file.unlink()
    for wrong, message in (
        ("phases.second.optimizer.lr=1", "keeps it, the checkpoint holds it; start a new run"),
        ("phases.third.trainer.max_steps=9", "its phases are first, second"),
        ("trainer.max_steps=9", "say of which phase, phases.first.trainer.max_steps=9"),
        ("phases.second.trainer.steps=9", "unknown key 'trainer.steps'"),
        ("phases.first.trainer.max_steps=9", "phase first is over"),
    ):
        code, output = run_command(tmp_path, f"resume={run}", wrong)
        assert (code, message in output) == (2, True), output
    code, output = run_forked(2, tmp_path, f"resume={run}", "phases.second.trainer.max_steps=9")
    assert code == 0, output
    assert json.loads((run / "summary.json").read_text())["steps"] == 19


@pytest.mark.workers
def test_a_copy_is_the_same_run_whatever_its_files_times(whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    os.utime(run / "phases/first/checkpoints/final.ckpt")
    assert resumed_job(run, [], mode="eval").checkpoint == str(run / "checkpoints/final.ckpt")


@pytest.mark.workers
def test_phases_build_on_each_other_wherever_they_lie_and_end_early_for_good(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    labels = "data:topics,data/tokenizer:pretrained,model:pretrained,task:classification,tuning:ticks,optimizer:adamw"
    typed = [o for o in TINY if not o.startswith(("model", "task", "callbacks"))]
    stop = "timeline:{end:{at:5,do:{_target_:ticks.timeline.Stop}}}"
    small = "model.d_model:32,model.n_layers:1,model.n_heads:2"
    one = f"a:{{data/tokenizer:bpe,data.tokenizer.vocab_size:300,{small},{stop}}}"
    two = f"b:{{{labels},tuning.task:b,pretrained:${{run_dir}}/phases/a}}"
    three = f"c:{{{labels},tuning.task:c,pretrained:${{run_dir}}/phases/b}}"
    code, output = run_forked(2, tmp_path, *typed, "trainer.max_steps=8", f"phases={{{one},{two},{three}}}")
    assert code == 0, output
    run = only_run(tmp_path)
    about = json.loads((run / "summary.json").read_text())
    assert [(row["name"], row["begin"], row["steps"]) for row in about["phases"]] == [
        ("a", 0, 5), ("b", 5, 8), ("c", 13, 8),
    ]  # fmt: skip
    moved = tmp_path / "elsewhere"
    shutil.move(run, moved)
    code, output = run_command(tmp_path, "eval", f"run={moved}/phases/b", program="ticks")
    assert code == 0, output
    final = learnt(moved)
    shutil.rmtree(moved / "checkpoints")
    shutil.rmtree(moved / "phases" / "b")
    code, output = run_forked(2, tmp_path, f"resume={moved}")
    assert code == 0, output
    assert same(learnt(moved), final)


def test_what_a_phase_says_arrives_as_it_was_said() -> None:
    said = [r"\bblocks\.2\.", "true", "10", "null", "it's", "a\\", "x: [y]", "${run_dir}/phases/a", "~/x"]
    for text in said:
        (override,) = OverridesParser.create().parse_overrides([f"a={_text(text)}"])
        assert override.value() == text, text
    for value in (None, True, 3, 1.5, ["a b", 2], {"k": "v w"}):
        (override,) = OverridesParser.create().parse_overrides([f"a={_text(value)}"])
        assert override.value() == value


def test_the_runs_own_is_taken_from_outside_and_phases_have_an_order(tmp_path: Path) -> None:
    configs = REPOSITORY / "configs"
    typed = ["strategy=local_sgd", "strategy.clock.interval=16", "phases={a:{experiment:pretrain_bbc},b:{model:rms}}"]
    config = compose_strictly(typed, configs)
    for config_of_phase, _ in compose_phases(config, typed, configs).values():
        assert config_of_phase.strategy == config.strategy
        assert config_of_phase.callbacks == config.callbacks
    typed += ["debug=fast", "+phases.b.trainer.max_steps=77", "trainer.max_steps=9"]
    config = compose_strictly(typed, configs)
    found = compose_phases(config, typed, configs)
    assert [of_phase.trainer.max_steps for of_phase, _ in found.values()] == [9, 77], "of one phase alone counts first"
    typed = typed[:3]
    config = compose_strictly(typed, configs)
    other = compose_strictly([*typed[:2], "phases={b:{model:rms},a:{experiment:pretrain_bbc}}"], configs)
    assert digest(config) != digest(other)


class Small(LightningModule):
    def __init__(self, width: int, make: Any) -> None:
        super().__init__()
        self.kept, self.other, self.make = nn.Linear(4, 3), nn.Linear(3, width), make

    def training_step(self, x: torch.Tensor, index: int) -> torch.Tensor:
        return self.other(self.kept(x)).square().mean()

    def configure_optimizers(self) -> Any:
        return self.make(self.parameters())


@pytest.mark.workers
def test_optimizers_know_what_goes_on_training(tmp_path: Path) -> None:
    given: dict[str, Any] = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "max_steps": 3,
                             "enable_progress_bar": False, "enable_model_summary": False}  # fmt: skip
    data = torch.utils.data.DataLoader(torch.randn(8, 4), batch_size=2)  # type: ignore[arg-type]
    adam = partial(torch.optim.Adam, lr=0.1)
    first, trainer = Small(2, adam), Trainer(**given)
    trainer.fit(first, data)
    moments = {name: first.trainer.optimizers[0].state[p] for name, p in first.named_parameters()}
    for make, kept in ((adam, {"kept.weight", "kept.bias"}), (partial(torch.optim.SGD, lr=0.1), set())):
        second, over = Small(5, make), TakeOver(first, trainer)
        assert over.give_values(second) == "goes on with the model; new: other.weight, other.bias"
        assert torch.equal(first.kept.weight, second.kept.weight)
        again = Trainer(**(given | {"max_steps": 0}), callbacks=[over])
        again.fit(second, data)
        state = second.trainer.optimizers[0].state
        assert {name for name, p in second.named_parameters() if p in state} == kept
        for name in kept:
            at = state[second.get_parameter(name)]
            assert torch.equal(at["exp_avg"], moments[name]["exp_avg"])
            assert at["step"] == 3
