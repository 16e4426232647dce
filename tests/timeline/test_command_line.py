"""`timeline=` from the command line."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch

from tests.conftest import REPOSITORY, Command, only_run, run_command, run_forked
from ticks.assemble import restored
from ticks.job import resumed_job
from ticks.models.changes import fold_norms
from ticks.models.changes.gate import gate_of, gated_norms
from ticks.record.metrics import MetricsFile

SMALL = ("debug=fast", "optimizer=adamw", "model.n_layers=4", "trainer.max_steps=20", "test=false",
         "task.sample_bytes=0", "strategy.clock.interval=4")  # fmt: skip


def marks(run: Path) -> dict[str, list[tuple[int, str]]]:
    found: dict[str, list[tuple[int, str]]] = {}
    for row in MetricsFile(run / "metrics.csv").rows():
        for key, value in row.items():
            if key.startswith("timeline/") and value:
                found.setdefault(key.removeprefix("timeline/"), []).append((int(row["step"]), value))
    return found


def test_several_files_compose_and_one_value_of_one_is_changed(tmp_path: Path) -> None:
    code, output = run_forked(
        2, tmp_path, *SMALL, "timeline=[norm_warmup,checkpoint_and_evaluate,interval_growth]", "timeline.save.every=8",
        "timeline.evaluate=null",
    )  # fmt: skip
    assert code == 0, output
    assert "timeline: norm_warmup: from step 1, over 4 steps: NormGate(start=0.0, end=1.0, sites=['*'])" in output
    run = only_run(tmp_path)
    assert sorted(file.name for file in (run / "checkpoints").glob("kept*.ckpt")) == [
        "kept-00000008.ckpt", "kept-00000016.ckpt",
    ]  # fmt: skip
    found = marks(run)
    assert found["norm_warmup"] == [(0, "ramps"), (3, "holds")]
    assert [step for step, _ in found["save"]] == [8, 16]
    assert found["four"] == [(5, "holds"), (10, "rests")]
    rows = MetricsFile(run / "metrics.csv").rows()
    assert [int(row["step"]) for row in rows if row.get("tick/loss")] == [2, 4, 5, 8, 10, 12, 16, 20]
    assert json.loads((run / "summary.json").read_text())["status"] == "finished"


def test_a_resumed_run_with_everything_at_once_is_exact(tmp_path: Path) -> None:
    options = (*SMALL, "timeline=[norm_warmup,lr_steps,freeze_then_thaw]", "trainer.val_check_interval=7")
    code, output = run_forked(2, tmp_path, *options)
    assert code == 0, output
    run = only_run(tmp_path)
    final = run / "checkpoints" / "final.ckpt"
    whole = torch.load(final, weights_only=True)["state_dict"]
    for file in run.glob("checkpoints/*.ckpt"):
        if "step-00000007" not in file.name:
            file.unlink()
    code, output = run_forked(2, tmp_path, f"resume={run}")
    assert code == 0, output
    again = torch.load(final, weights_only=True)["state_dict"]
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_a_run_that_is_stopped_in_a_ramp_misses_nothing_and_does_nothing_twice(tmp_path: Path) -> None:
    options = (*SMALL, "trainer.devices=2", "trainer.max_steps=60", "timeline=[norm_warmup,checkpoint_and_evaluate]",
               "timeline.norm_warmup.ramp=50", "timeline.evaluate.every=7", "timeline.save.every=7",
               "trainer.val_check_interval=10")  # fmt: skip
    runs = []
    for signals in ((), (signal.SIGTERM, signal.SIGKILL)):
        place = tmp_path / str(len(signals))
        place.mkdir()
        command = Command(place, *options)
        for step, signum in zip((14, 28), signals, strict=False):
            command.wait_for_step(step)
            os.kill(command.process.pid, signum)
            assert command.end() != 0
            command = Command(place, f"resume={only_run(place)}")
        assert command.end() == 0, command.output
        runs.append(only_run(place))
    whole, other = [torch.load(run / "checkpoints/final.ckpt", weights_only=True)["state_dict"] for run in runs]
    assert all(torch.equal(whole[name], other[name]) for name in whole)
    for run in runs:
        assert [step for step, _ in marks(run)["save"]] == list(range(7, 60, 7))
    for name in ("norm_warmup", "evaluate"):
        assert marks(runs[1])[name] == marks(runs[0])[name]


def test_a_run_without_norms_is_measured_as_it_was_trained(tmp_path: Path) -> None:
    code, output = run_forked(2, tmp_path, *SMALL, "timeline=[remove_norms,batch_growth]", "data.global_batch_size=8",
                              "timeline.small_batch.do.end=4", "trainer.val_check_interval=10")  # fmt: skip
    assert code == 0, output
    run = only_run(tmp_path)
    about = json.loads((run / "summary.json").read_text())
    assert about["tokens"] == (10 * 4 + 10 * 8) * 32
    rows = MetricsFile(run / "metrics.csv").rows()
    assert next(row["tokens"] for row in rows if row["step"] == "10") == str(10 * 4 * 32)
    code, output = run_command(tmp_path, "eval", f"run={run}", program="ticks")
    assert code == 0, output
    assert f"val_loss             {about['val_loss']}" in output
    task = restored(resumed_job(run, [], mode="eval")).task
    assert {gate_of(norm) for norm in gated_norms(task).values()} == {(0.0, True)}
    left = fold_norms(task.model)
    assert list(left) == ["final_norm"], "which leads into the embedding"
    assert list(gated_norms(task)) == ["model.final_norm"]
    trained_on, output = run_command(tmp_path, f"resume={run}", "trainer.max_steps=24", "trainer.devices=1")
    assert trained_on == 0, output


def test_what_a_strategy_cannot_take_later_is_found_now(tmp_path: Path) -> None:
    it = "+timeline.it={from:15,do:{_target_:ticks.timeline.TrainOnly,match:final_norm.bias}}"
    arguments = (
        "debug=fast",
        "strategy=streaming_diloco",
        "trainer.devices=2",
        "strategy.sync.fragments=[['*blocks*'],['*']]",
        it,
    )
    code, output = run_command(tmp_path, *arguments)
    assert code == 2, output
    assert "error: timeline: from step 16 on, by it: strategy.sync.fragments=[['*blocks*'], ['*']]: pattern" in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("timeline=norm_warmup", "timeline.norm_warmup.ramp=fast"),
            "timeline.norm_warmup.ramp='fast' must be a number",
        ),
        (
            ("timeline=norm_warmup", "timeline.norm_warmup.do.sites=nothing"),
            "timeline.norm_warmup.do.sites='nothing' fits",
        ),
        (("timeline=lr_steps", "timeline.tenth.until=80%"), "sets the learning rate's factor while tenth does"),
        (("timeline=lr_step",), "timeline=lr_step is unknown; did you mean 'lr_steps'"),
        (("timeline=lr_steps", "timeline.tenth.do.ends=3"), "unknown key 'timeline.tenth.do.ends'"),
        (("timeline=lr_steps", "+timeline.tenth.do.ends=3"), "takes no 'ends'; did you mean 'end'"),
        (("timeline=checkpoint_and_evaluate", "timeline.save.every=0"), "timeline.save.every=0 must be above 0"),
        (("+timeline.phase={at: 3, do: {_target_: ticks.timeline.Evaluate}}",), "timeline.phase: the record calls"),
        (("timeline=freeze_then_thaw", "model.n_layers=2"), r"timeline.layer_2.do.match='\\bblocks\\.2\\.' matches no"),
    ],
)
def test_a_mistake_is_one_line_before_anything_begins(arguments: tuple[str, ...], message: str, tmp_path: Path) -> None:
    code, output = run_command(tmp_path, "debug=fast", *arguments)
    assert code == 2, output
    assert message in output
    assert "Traceback" not in output
    assert not [*tmp_path.glob("logs/runs/*")]


def test_the_list_is_printed_without_training(tmp_path: Path) -> None:
    here = tmp_path / "here"
    here.mkdir()
    (here / "configs").symlink_to(REPOSITORY / "configs")
    code, output = run_command(
        here, "timeline", "timeline=[lr_steps,checkpoint_and_evaluate]", "trainer.max_steps=200", program="ticks"
    )
    assert code == 0, output
    assert output.splitlines()[-4:] == [
        "evaluate: every 12.5%: Evaluate()",
        "save: every 25%: Save(name=kept, directory=RUN_DIR/checkpoints)",
        "tenth: from step 101 to 150: LrFactor(start=1.0, end=0.1)",
        "hundredth: from step 151: LrFactor(start=1.0, end=0.01)",
    ]
    code, output = run_command(here, "timeline", "experiment=pretrain_then_finetune", "timeline=lr_steps",
                               "phases.pretrain.trainer.max_steps=200", program="ticks")  # fmt: skip
    assert code == 0, output
    assert output.splitlines()[-6:] == [
        "phase pretrain: steps 1 to 200, counted from 1 here:",
        "  tenth: from step 101 to 150: LrFactor(start=1.0, end=0.1)",
        "  hundredth: from step 151: LrFactor(start=1.0, end=0.01)",
        "phase finetune: steps 201 to 350, counted from 1 here:",
        "  tenth: from step 76 to 112: LrFactor(start=1.0, end=0.1)",
        "  hundredth: from step 113: LrFactor(start=1.0, end=0.01)",
    ]
    for arguments, message in (
        ((), "there is no configs/train.yaml here"),
        (("run=nowhere",), "'nowhere' is no run directory"),
        (("run=nowhere", "model=rms"), "model=rms: run= has a configuration of its own"),
    ):
        code, output = run_command(tmp_path, "timeline", *arguments, program="ticks")
        assert code == 2
        assert message in output
