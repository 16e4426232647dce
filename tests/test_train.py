"""Whole runs, as a user starts them."""

import csv
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from tests.conftest import REPOSITORY, Command, only_run, run_command
from ticks.record import summary as summary_file

FAST = ("debug=fast", "trainer.log_every_n_steps=5")
QUIET = ("test=false", "task.sample_bytes=0")


def summary_of(run_dir: Path) -> dict[str, Any]:
    return json.loads((run_dir / "summary.json").read_text())


def final_state(run_dir: Path) -> dict[str, torch.Tensor]:
    return torch.load(run_dir / "checkpoints" / "final.ckpt", weights_only=True)["state_dict"]


def same_model(a: Path, b: Path) -> bool:
    first, second = final_state(a), final_state(b)
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A finished run of two workers, and what it printed."""
    directory = tmp_path_factory.mktemp("two")
    code, output = run_command(directory, *FAST, "model=ln_ticks", "trainer.devices=2")
    assert code == 0, output
    return only_run(directory), output


@pytest.fixture(scope="module")
def one_worker(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    directory = tmp_path_factory.mktemp("one")
    code, output = run_command(directory, *FAST, "model=ln_ticks")
    assert code == 0, output
    return only_run(directory), output


def test_a_run_leaves_its_configuration_metrics_checkpoints_and_summary(two_workers: tuple[Path, str]) -> None:
    run_dir, _ = two_workers
    about = summary_of(run_dir)
    assert list(about)[: len(summary_file.KEYS)] == list(summary_file.KEYS)
    assert {"test_loss", "test_bits_per_byte"} <= about.keys()
    expected = {
        "status": "finished", "strategy": "ticks", "interval": 8, "sync": "gradients", "wire": "fp32",
        "norm": "layer_norm", "adapter": "ticks", "seed": 0, "world_size": 2, "steps": 20, "ticks": 3,
        "tokens": 20 * 8 * 32, "messages": 6, "device": "cpu",
    }  # fmt: skip
    assert {key: about[key] for key in expected} == expected
    assert about["val_bits_per_byte"] == pytest.approx(about["val_loss"] / 0.6931471805599453)
    config = OmegaConf.load(run_dir / "config.yaml")
    assert config.trainer.devices == 2
    assert config.strategy.clock.interval == 8
    rows = (run_dir / "metrics.csv").read_text().splitlines()
    assert rows[0].startswith("step,tokens,seconds,bytes_sent,")
    assert [row.split(",")[0] for row in rows[1:]].count("20") >= 2  # a tick and a validation
    assert sorted(p.name for p in (run_dir / "checkpoints").glob("*.ckpt")) == [
        "final.ckpt", "step-00000010.ckpt", "step-00000020.ckpt",
    ]  # fmt: skip


def test_the_result_table_tells_losses_floors_traffic_and_where_things_lie(two_workers: tuple[Path, str]) -> None:
    _, output = two_workers
    for text in (
        "validation bits per byte", "bigram model", "sent per worker", "DDP would have sent", "sample",
        "checkpoint", "4 per worker and batch", "256 tokens per step", "2,048 per round of 8 steps",
    ):  # fmt: skip
        assert text in output


def test_checkpoints_load_with_weights_only(two_workers: tuple[Path, str]) -> None:
    for path in (two_workers[0] / "checkpoints").glob("*.ckpt"):
        assert "state_dict" in torch.load(path, weights_only=True)


def evaluated(run_dir: Path, *more: str) -> float:
    code, output = run_command(run_dir.parents[2], "eval", f"run={run_dir}", "test=false", *more, program="ticks")
    assert code == 0, output
    return float(next(line.split()[1] for line in output.splitlines() if line.startswith("val_loss")))


def test_eval_reproduces_the_summarys_validation_loss(two_workers: tuple[Path, str]) -> None:
    run_dir, _ = two_workers
    assert evaluated(run_dir) == pytest.approx(summary_of(run_dir)["val_loss"], rel=1e-9)


def test_eval_gives_the_same_number_on_1_and_on_2_workers(two_workers: tuple[Path, str]) -> None:
    everything = "trainer.limit_val_batches=null"
    one, two = (evaluated(two_workers[0], everything, f"trainer.devices={n}") for n in (1, 2))
    assert one == pytest.approx(two, rel=1e-12)


def test_evaluating_leaves_the_run_as_it_was(two_workers: tuple[Path, str]) -> None:
    assert summary_of(two_workers[0])["status"] == "finished"
    assert not (two_workers[0] / "wandb").exists()


def test_the_same_command_gives_the_same_model(one_worker: tuple[Path, str], tmp_path: Path) -> None:
    code, output = run_command(tmp_path, *FAST, "model=ln_ticks")
    assert code == 0, output
    assert same_model(one_worker[0], only_run(tmp_path))


def test_seed_0_is_a_seed(one_worker: tuple[Path, str], tmp_path: Path) -> None:
    code, output = run_command(tmp_path, *FAST, "model=ln_ticks", "seed=1")
    assert code == 0, output
    assert not same_model(one_worker[0], only_run(tmp_path))


def test_ddp_runs_and_counts_its_traffic(tmp_path: Path) -> None:
    code, output = run_command(tmp_path, *FAST, "strategy=ddp", "trainer.devices=2")
    assert code == 0, output
    about = summary_of(only_run(tmp_path))
    assert about["bytes_sent_per_worker"] == 20 * 4 * about["n_trainable"]
    assert (about["strategy"], about["interval"], about["sync"]) == ("ddp", None, None)


def test_a_sweep_does_what_it_says_one_clean_directory_per_job(tmp_path: Path) -> None:
    code, output = run_command(
        tmp_path, *FAST, "-m", "trainer.devices=2,1", "test=false", "task.sample_bytes=0", seconds=150
    )
    assert code == 0, output
    (sweep,) = (tmp_path / "logs" / "multiruns").iterdir()
    assert sorted(p.name for p in sweep.iterdir() if p.is_dir()) == ["0", "1"]
    jobs = [summary_of(sweep / str(i)) for i in range(2)]
    assert [(j["status"], j["world_size"]) for j in jobs] == [("finished", 2), ("finished", 1)]
    assert not (tmp_path / "logs" / "runs").exists()


@pytest.mark.workers
def test_torchrun_works(tmp_path: Path) -> None:
    arguments = [*FAST, "test=false", "task.sample_bytes=0"]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
         str(REPOSITORY / "train.py"), *arguments],
        cwd=tmp_path, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    about = summary_of(only_run(tmp_path))
    assert (about["world_size"], about["status"]) == (2, "finished")


def test_resume_continues_in_the_same_directory_and_ends_with_the_same_model(
    one_worker: tuple[Path, str], tmp_path: Path
) -> None:
    code, output = run_command(tmp_path, *FAST, "model=ln_ticks", "trainer.max_steps=20", "callbacks.checkpoint=null")
    assert code == 0, output
    run_dir = only_run(tmp_path)
    for path in (one_worker[0] / "checkpoints").glob("step-00000010*"):
        target = run_dir / "checkpoints" / path.name
        target.mkdir() if path.is_dir() else target.write_bytes(path.read_bytes())
        for file in path.iterdir() if path.is_dir() else ():
            (target / file.name).write_bytes(file.read_bytes())
    (run_dir / "checkpoints" / "final.ckpt").unlink()
    code, output = run_command(tmp_path, f"resume={run_dir}")
    assert code == 0, output
    assert "step-00000010.ckpt" in output
    assert only_run(tmp_path) == run_dir
    assert same_model(one_worker[0], run_dir)
    steps = [int(row.split(",")[0]) for row in (run_dir / "metrics.csv").read_text().splitlines()[1:]]
    assert steps == sorted(steps)
    assert steps.count(15) == 1


def test_a_finished_run_can_be_made_longer(one_worker: tuple[Path, str], tmp_path: Path) -> None:
    code, output = run_command(tmp_path, *FAST)
    assert code == 0, output
    run_dir = only_run(tmp_path)
    code, output = run_command(tmp_path, f"resume={run_dir}", "trainer.max_steps=30")
    assert code == 0, output
    assert summary_of(run_dir)["steps"] == 30


BAD_INPUT = {
    "strategy.clock.interval=0": ("interval=0", "at least 1"),
    "strategy.clock.interval=1.5": ("strategy.clock.interval=1.5 must be a whole number",),
    "strategy.clock.interval=abc": ("strategy.clock.interval=abc must be a whole number",),
    "trainer.devices=0": ("trainer.devices=0", "at least 1"),
    "data.global_batch_size=7 trainer.devices=2": ("global_batch_size=7", "must be divisible by 2 workers"),
    "model.n_heads=3": ("n_heads=3", "must divide d_model=128"),
    "data=text data.path=no/such/file.txt": ("no/such/file.txt", "matches no file"),
    "data=text data.path=empty.txt": ("empty.txt", "no text"),
    "data=text": ("path", "not set"),
    "model/norm=layernorm": ("model/norm=layernorm", "layer_norm, none, rms_norm"),
    "strategy=tick": ("strategy=tick", "did you mean 'ticks'"),
    "trainer.max_stepss=5": ("trainer.max_stepss", "did you mean 'max_steps'"),
    "+task.learning_rate=1": ("task.learning_rate", "takes no 'learning_rate'"),
    "optimizer.lr=-1": ("lr=-1", "negative"),
    "resume=nowhere": ("nowhere", "no run directory"),
    "trainer.precision=7": ("precision", "7"),
    "trainer.precision=8bit": ("trainer.precision=8bit: ", "Allowed"),
    "trainer.max_steps=-5": ("trainer.max_steps=-5: ", "-1 (infinite steps)"),
    "trainer.accelerator=tpu": ("trainer.accelerator=tpu: there is none here; auto, cpu",),
    "trainer.gradient_clip_val=-1": ("trainer.gradient_clip_val=-1 must be at least 0",),
    "optimizer=torch optimizer._target_=torch.optim.LBFGS": ("optimizer: LBFGS", "parameter groups"),
    "trainer.val_check_interval=0": ("trainer.val_check_interval=0", "above 0"),
    "-m foo": ("foo", "cannot read"),
    "+trainer.max_time=00:01:00:00": ("max_time", "give max_steps"),
    "+trainer.limit_train_batches=4": ("limit_train_batches", "use max_steps"),
    "optimizer.betas=[2,3]": ("optimizer.betas=[2, 3]", "from 0 to below 1"),
    "optimizer.lr=nan": ("optimizer.lr=nan", "must be a number"),
    "model.d_ff=0": ("model.d_ff=0", "at least 1"),
    "strategy=hierarchical strategy.sync.group_size=3 trainer.devices=2": (
        "error: strategy.sync.group_size=3 must divide the number of workers, 2; valid: 1, 2",
    ),
}


@pytest.mark.parametrize("arguments", list(BAD_INPUT))
def test_bad_input_gets_one_clear_message_before_any_worker_starts(arguments: str, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("")
    code, output = run_command(tmp_path, *arguments.split())
    assert code == 2, output
    assert "Traceback" not in output
    assert len([line for line in output.splitlines() if line.strip()]) == 1, output
    for text in BAD_INPUT[arguments]:
        assert text in output
    assert not list(tmp_path.glob("logs/runs/*"))  # and leaves no empty run behind


def test_a_running_run_cannot_be_resumed_by_another_process(tmp_path: Path) -> None:
    running = Command(tmp_path, *FAST, "trainer.max_steps=100000", "trainer.val_check_interval=100000")
    running.wait_for("tokens per step")
    code, output = run_command(tmp_path, f"resume={only_run(tmp_path)}")
    running.process.terminate()
    assert running.end() == 143
    assert code == 2
    assert "another process is working in" in output


def test_resuming_with_more_workers_in_a_moved_directory_says_what_was_dropped(
    one_worker: tuple[Path, str], tmp_path: Path
) -> None:
    moved = tmp_path / "elsewhere"
    shutil.copytree(one_worker[0], moved)
    code, output = run_command(tmp_path, f"resume={moved}", "trainer.devices=2", "trainer.max_steps=30")
    assert code == 0, output
    assert "written by 1 workers, now there are 2" in output
    assert summary_of(moved)["world_size"] == 2
    assert torch.load(moved / "checkpoints" / "final.ckpt", weights_only=True)["global_step"] == 30
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_dir()) == ["elsewhere"]


def wandb_records(file: Path) -> Iterator[Any]:
    """What W&B has written into its own file: records in blocks of 32 KiB, each piece behind 4 bytes of checksum, 2 of
    length and 1 that says whether it is whole (1), a beginning (2), a middle (3) or an end (4)."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, record = file.read_bytes(), 7, b""
    while place + 7 <= len(data):
        if (left := 32768 - place % 32768) < 7:
            place += left
            continue
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        record += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            yield Record.FromString(record)
            record = b""


def test_wandb_without_a_key_logs_offline_says_so_once_and_finishes(tmp_path: Path) -> None:
    code, output = run_command(
        tmp_path, *FAST, "trainer.devices=2", "logger=wandb", "test=false", "task.sample_bytes=0"
    )
    assert code == 0, output
    assert output.count("logged offline") == 1  # worker 1 says and writes nothing
    (file,) = only_run(tmp_path).glob("wandb/offline-run-*/*.wandb")
    rows = list(csv.DictReader((only_run(tmp_path) / "metrics.csv").open()))
    logged = [
        {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
        for record in wandb_records(file)
        if record.WhichOneof("record_type") == "history"
    ]
    for name in ("val/loss", "train/loss"):  # at the same steps as there
        there = {int(row["step"]): float(row[name]) for row in rows if row.get(name)}
        assert {row["trainer/global_step"]: row[name] for row in logged if name in row} == pytest.approx(there), name
    assert json.loads((only_run(tmp_path) / "wandb_id.json").read_text())["id"] in file.name


def test_callbacks_find_the_logger_on_every_worker_and_worker_0_alone_writes(tmp_path: Path) -> None:
    monitor = "+callbacks.rates._target_=lightning.pytorch.callbacks.LearningRateMonitor"  # refuses without a logger
    run = (*FAST, "trainer.devices=2", "trainer.max_steps=4", "test=false", "task.sample_bytes=0")
    code, output = run_command(tmp_path, *run, "logger=tensorboard", monitor)
    assert code == 0, output
    files = only_run(tmp_path).glob("tensorboard/events.out.tfevents.*")
    assert len({file.name.split(".")[-2] for file in files}) == 1  # of one process


def test_tensorboard_gets_metrics_at_the_steps_of_metrics_csv(tmp_path: Path) -> None:
    code, output = run_command(tmp_path, *FAST, "logger=tensorboard", "test=false", "task.sample_bytes=0")
    assert code == 0, output
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(only_run(tmp_path) / "tensorboard")).Reload()
    rows = list(csv.DictReader((only_run(tmp_path) / "metrics.csv").open()))
    for metric in ("val/loss", "train/loss", "tick/loss"):
        recorded = [int(row["step"]) for row in rows if row[metric]]
        assert [event.step for event in events.Scalars(metric)] == recorded


def test_what_the_strategy_refuses_when_training_starts_is_named_by_its_path(tmp_path: Path) -> None:
    code, output = run_command(tmp_path, *FAST, "strategy=desloc", "optimizer=lion")
    assert code == 2, output
    assert "error: strategy.optimizer_state.every={'exp_avg': 3, 'exp_avg_sq': 6}: the optimizer has no" in output
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("trainer.max_stepss=30", "did you mean 'max_steps'?"),
        ("seed=1", "keeps its seed"),
        ("task.sample_bytes=abc", "whole number"),
        ("model=rms", "chosen groups cannot"),
        ("model.d_model=64", "keeps its model"),
        ("optimizer.lr=0.1", "keeps its optimizer"),
        ("trainer.max_steps=2.5", "must be a whole number"),
    ],
)
def test_mistakes_on_resuming_get_one_clear_message(one_worker: tuple[Path, str], override: str, words: str) -> None:
    code, output = run_command(one_worker[0].parents[2], f"resume={one_worker[0]}", override)
    assert code == 2, output
    assert words in output
    assert "Traceback" not in output
    assert summary_of(one_worker[0])["status"] == "finished"


def test_the_second_job_of_a_sweep_beats_and_stops_as_the_first_does(tmp_path: Path) -> None:
    """Heartbeats of a sweep's later jobs must find each other: worker 0 has lived through more fits than the others."""
    command = Command(
        tmp_path, "-m", *FAST, "trainer.devices=2", "trainer.max_steps=20,100000,30", "strategy.hang_seconds=2",
        "trainer.val_check_interval=10000", "callbacks=none", "test=false", "task.sample_bytes=0",
    )  # fmt: skip
    second = "logs/multiruns/*/1/metrics.csv"
    deadline = time.monotonic() + 90
    while not [f for f in tmp_path.glob(second) if f.stat().st_size > 500]:
        assert time.monotonic() < deadline, command.output
        assert command.process.is_alive(), command.output
        time.sleep(0.1)
    time.sleep(3)  # longer than hang_seconds
    assert command.process.is_alive(), command.output
    command.process.terminate()
    assert command.end(20) == 143, command.output
    assert [summary_of(d)["status"] for d in sorted(tmp_path.glob("logs/multiruns/*/[012]"))] == ["finished", "stopped"]
    assert "job 1 was stopped; go on with it: python train.py resume=logs/multiruns/" in command.output
    assert "never started: job 2" in command.output
    assert "Traceback" not in command.output


def test_lightnings_profiler_reports(tmp_path: Path) -> None:
    code, output = run_command(tmp_path, *FAST, "+trainer.profiler=simple", "trainer.max_steps=2", "test=false",
                               "schedule.warmup_steps=3")  # fmt: skip
    assert code == 0, output
    assert output.count("FIT Profiler Report") == 1
    assert "run_training_batch" in output
    assert "note: schedule.warmup_steps=3: the run of 2 steps ends before" in output


def test_mixed_precision_runs_with_the_default_configuration(tmp_path: Path) -> None:
    code, output = run_command(tmp_path, *FAST, "trainer.precision=bf16-mixed", "test=false", "task.sample_bytes=0")
    assert code == 0, output


def test_accumulated_batches_are_recorded_once_a_step_with_the_whole_loss(tmp_path: Path) -> None:
    code, output = run_command(tmp_path, *FAST, "trainer.accumulate_grad_batches=4", "trainer.val_check_interval=80")
    assert code == 0, output
    rows = list(csv.DictReader((only_run(tmp_path) / "metrics.csv").open()))
    losses = [(int(row["step"]), float(row["train/loss"])) for row in rows if row["train/loss"]]
    assert [step for step, _ in losses] == [5, 10, 15, 20]
    assert losses[0][1] > 4  # near ln 256 = 5.5, not a quarter of it


def test_evaluation_can_be_switched_off(tmp_path: Path) -> None:
    code, output = run_command(
        tmp_path, *FAST, "trainer.limit_val_batches=0", "trainer.limit_test_batches=0", "~callbacks", "~logger"
    )
    assert code == 0, output
    assert summary_of(only_run(tmp_path))["val_loss"] is None


def test_traffic_goes_on_counting_when_the_number_of_workers_changes(
    two_workers: tuple[Path, str], tmp_path: Path
) -> None:
    shutil.copytree(two_workers[0], tmp_path / "run")
    code, output = run_command(tmp_path, "resume=run", "trainer.devices=1", "trainer.max_steps=24")
    assert code == 0, output
    before, after = summary_of(two_workers[0]), summary_of(tmp_path / "run")
    assert after["bytes_sent_per_worker"] == before["bytes_sent_per_worker"]
    assert after["ticks"] > before["ticks"]


def test_a_model_whose_final_loss_is_not_finite_has_failed(tmp_path: Path) -> None:
    """Its parameters are finite, only far too large: no tick notices."""
    code, output = run_command(tmp_path, *FAST, "strategy=ddp", "optimizer.lr=1000000", "trainer.max_steps=4",
                               "trainer.val_check_interval=2")  # fmt: skip
    assert code == 1, output
    assert "Traceback" not in output
    assert [line for line in output.splitlines() if line.startswith("error: val/loss is nan after step 4: lower")]
    assert summary_of(only_run(tmp_path))["status"] == "diverged"


def test_checkpoints_from_before_a_value_was_changed_are_still_the_runs_own(tmp_path: Path) -> None:
    short = ("test=false", "task.sample_bytes=0", "trainer.max_steps=4", "trainer.val_check_interval=2")
    code, output = run_command(tmp_path, *FAST, *short)
    assert code == 0, output
    run = only_run(tmp_path)
    code, output = run_command(tmp_path, f"resume={run.relative_to(tmp_path)}", "trainer.max_steps=6")
    assert code == 0, output
    for file in (run / "checkpoints").glob("*.ckpt"):
        if file.name != "step-00000004.ckpt":  # the first part of the run wrote this one
            file.unlink()
    code, output = run_command(tmp_path, f"resume={run.relative_to(tmp_path)}")
    assert code == 0, output
    assert "from logs/runs" in output.replace(str(tmp_path), "")
    assert "step-00000004.ckpt" in output
    assert "warning" not in output
    code, other = run_command(tmp_path, *FAST, *short, "seed=7", "name=other")
    assert code == 0, other
    (another,) = (r for r in run.parent.iterdir() if r != run)
    shutil.copy(another / "checkpoints" / "final.ckpt", run / "checkpoints" / "final.ckpt")
    shutil.copytree(
        another / "checkpoints" / "final.workers", run / "checkpoints" / "final.workers", dirs_exist_ok=True
    )
    code, output = run_command(tmp_path, f"resume={run.relative_to(tmp_path)}")
    assert code == 0, output
    assert "final.ckpt cannot be used (another run wrote it); using the one before it" in output
