"""Signals: a run stops as a whole, quickly, with a checkpoint, and leaves no process behind."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from tests.conftest import Command, WorkerError, only_run, run_command, run_workers
from tests.strategy.toys import Toy, trainer_for
from ticks.strategy import TickStrategy, shutdown
from ticks.strategy.shutdown import Awake, Presence

# rounds far longer than the test: nobody may wait for a tick; dropout: random states must be right
LONG = ("debug=fast", "model.dropout=0.1", "strategy.clock.interval=100000", "trainer.val_check_interval=100000",
        "trainer.max_steps=100000", "callbacks.checkpoint.every_n_train_steps=20", "test=false",
        "task.sample_bytes=0")  # fmt: skip


def start(directory: Path, *more: str, workers: int = 2, fresh: bool = False) -> Command:
    command = Command(directory, *LONG, f"trainer.devices={workers}", *more, fresh=fresh)
    command.wait_for_step(25)  # a checkpoint is there
    return command


def gone(command: Command, started: float, within: float = 20.0) -> None:
    while command.group():
        assert time.monotonic() - started < within, f"left behind: {command.group()}\n{command.output}"
        time.sleep(0.05)


TARGETS: dict[str, Callable[[Command], None]] = {
    "main process": lambda c: os.kill(c.process.pid, signal.SIGTERM),
    "one worker": lambda c: os.kill(c.workers()[1], signal.SIGTERM),
    "whole group": lambda c: os.killpg(c.process.pid, signal.SIGTERM),
}


@pytest.mark.parametrize("target", list(TARGETS))
def test_sigterm_stops_everyone_with_a_checkpoint_and_code_143(target: str, tmp_path: Path) -> None:
    command = start(tmp_path, fresh=target == "one worker")
    began = time.monotonic()
    TARGETS[target](command)
    assert command.end(20) == 143, command.output
    gone(command, began)
    run_dir = only_run(tmp_path)
    about = json.loads((run_dir / "summary.json").read_text())
    stopped = torch.load(run_dir / "checkpoints" / "stopped.ckpt", weights_only=True)
    assert about["status"] == "stopped"
    assert about["checkpoint"] == f"{run_dir.relative_to(tmp_path)}/checkpoints/stopped.ckpt"
    assert about["steps"] == stopped["global_step"] == stopped["ticks"]["step"]
    files = [torch.load(f, weights_only=True) for f in (run_dir / "checkpoints" / "stopped.workers").iterdir()]
    assert [f["step"] for f in files] == [stopped["global_step"]] * 2  # all stopped after the same step
    assert not torch.equal(files[0]["parameters"][0], files[1]["parameters"][0])  # in the middle of a round
    assert "Traceback" not in command.output, command.output


def test_ctrl_c_stops_like_sigterm_with_code_130(tmp_path: Path) -> None:
    command = start(tmp_path)
    began = time.monotonic()
    os.killpg(command.process.pid, signal.SIGINT)
    assert command.end(20) == 130, command.output
    gone(command, began)
    assert (only_run(tmp_path) / "checkpoints" / "stopped.ckpt").exists()


def test_a_lost_terminal_stops_a_run_whose_loader_has_processes_of_its_own(tmp_path: Path) -> None:
    command = start(tmp_path, "data.num_workers=1")
    began = time.monotonic()
    os.killpg(command.process.pid, signal.SIGHUP)
    assert command.end(20) == 129, command.output
    gone(command, began)
    assert (only_run(tmp_path) / "checkpoints" / "stopped.ckpt").exists()
    assert "Traceback" not in command.output, command.output


@pytest.mark.parametrize("victim", ["worker 1", "worker 0"])
def test_sigkill_of_one_worker_ends_all_with_a_failure(victim: str, tmp_path: Path) -> None:
    command = start(tmp_path)
    began = time.monotonic()
    os.kill(command.workers()[1] if victim == "worker 1" else command.process.pid, signal.SIGKILL)
    assert command.end(20) != 0
    gone(command, began)
    if victim == "worker 1":
        assert "worker 1 was killed by SIGKILL" in command.output
    assert json.loads((only_run(tmp_path) / "summary.json").read_text())["status"] != "finished"


def test_of_three_workers_the_killed_one_is_named_and_none_that_lost_it(tmp_path: Path) -> None:
    command = start(tmp_path, "strategy.clock.interval=2", "data.global_batch_size=12", workers=3)
    os.kill(command.workers()[2], signal.SIGKILL)
    assert command.end(30) == 1
    assert "worker 2 was killed by SIGKILL" in command.output
    assert "Traceback" not in command.output, command.output


def test_a_worker_that_hangs_is_found(tmp_path: Path) -> None:
    command = start(tmp_path, "strategy.hang_seconds=3")
    began = time.monotonic()
    os.kill(command.workers()[1], signal.SIGSTOP)
    assert command.end(20) != 0
    gone(command, began)
    assert "worker 1 has not answered for 3 s" in command.output


def presence(stops: int | None) -> list[str]:
    """What is said of worker `stops`, which is stopped for 3 seconds; else worker 1 is through after half a second."""
    rank = int(os.environ["LOCAL_RANK"])
    dist.init_process_group("gloo", rank=rank, world_size=2)
    said: list[str] = []
    sign = Presence(rank, 2, name="it", seconds=0.1, hang_seconds=1.5, abort=said.append)
    time.sleep(0.5)
    if rank == stops:
        subprocess.Popen(["sh", "-c", f"sleep 3; kill -CONT {os.getpid()}"])
        os.kill(os.getpid(), signal.SIGSTOP)
    elif rank == 0 or stops is not None:
        time.sleep(2.5)
    sign.close()
    return said


def start_up(stops: int) -> list[str]:
    """What is said of worker `stops`, which is stopped for 3 seconds before there is a process group."""
    rank, said = int(os.environ["LOCAL_RANK"]), []
    strategy = TickStrategy(interval=2, hang_seconds=1.5, heartbeat_seconds=0.1)
    strategy._abort = said.append  # type: ignore[method-assign,assignment]
    init = dist.init_process_group

    def stopped_first(*arguments: Any, **options: Any) -> None:
        if rank == stops:
            subprocess.Popen(["sh", "-c", f"sleep 3; kill -CONT {os.getpid()}"])
            os.kill(os.getpid(), signal.SIGSTOP)
        init(*arguments, **options)

    dist.init_process_group = stopped_first
    trainer_for(strategy, 2, steps=2).fit(Toy())
    return said


@pytest.mark.parametrize(
    ("stops", "said"), [(0, "worker 0 is gone or hangs"), (1, "worker 1 has not answered for 1.5 s")]
)
def test_a_worker_that_is_stopped_before_there_is_a_process_group_is_found(stops: int, said: str) -> None:
    heard = run_workers(2, start_up, stops)
    assert heard[1 - stops][0] == said


def start_up_without_worker_0() -> None:
    """Worker 0 goes, as one that refuses something does, while worker 1 is about to connect to it a second time."""
    rank, connection = int(os.environ["LOCAL_RANK"]), shutdown.connection_of_threads

    def late(seconds: float) -> Any:
        if rank == 0:
            os._exit(1)
        time.sleep(0.1)
        return connection(seconds)

    shutdown.connection_of_threads = late
    trainer_for(TickStrategy(interval=2, heartbeat_seconds=0.2), 2, steps=2).fit(Toy())


def test_a_worker_0_that_goes_while_others_connect_to_it_again_is_missed(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(WorkerError, match="worker 1 died without a word"):
        run_workers(2, start_up_without_worker_0, timeout=20.0)
    assert "worker 0 is gone or hangs" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("stops", "said"),
    [(1, [["worker 1 has not answered for 1.5 s"], []]), (0, [[], ["worker 0 is gone or hangs"]]), (None, [[], []])],
    ids=["worker 1 is stopped", "worker 0 is stopped", "worker 1 is through"],
)
def test_a_worker_that_gives_no_sign_of_life_is_found_outside_training_too(
    stops: int | None, said: list[list[str]]
) -> None:
    assert [sorted(set(texts)) for texts in run_workers(2, presence, stops)] == said


def test_a_process_that_was_stopped_itself_does_not_take_others_for_hanging(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter((0.0, 1.0, 1001.0, 1002.0))  # Ctrl-Z, a coffee, fg
    monkeypatch.setattr(time, "monotonic", lambda: next(now))
    awake = Awake(1.0)
    assert [awake.seconds() for _ in range(3)] == [1.0, 3.0, 4.0]


# rounds of 16 steps, stopped in the middle of one
RESUMED = ("debug=fast", "model.dropout=0.1", "strategy.clock.interval=16", "test=false", "task.sample_bytes=0",
           "trainer.limit_val_batches=1", "trainer.val_check_interval=100",
           "callbacks.checkpoint.every_n_train_steps=20", "trainer.max_steps=100")  # fmt: skip


@pytest.fixture(scope="module", params=[1, 2])
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, Path]:
    """The number of workers, and the run directory of a run that was never stopped."""
    directory = tmp_path_factory.mktemp("whole")
    code, output = run_command(directory, *RESUMED, f"trainer.devices={request.param}")
    assert code == 0, output
    return request.param, only_run(directory)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=["SIGTERM", "SIGKILL"])
def test_resuming_after_a_signal_is_bit_exact(whole: tuple[int, Path], how: int, tmp_path: Path) -> None:
    workers, whole_dir = whole
    options = (*RESUMED, f"trainer.devices={workers}")
    command = Command(tmp_path, *options)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("logs/runs/*/checkpoints/step-*020.ckpt")):
        assert time.monotonic() < deadline, command.output
        time.sleep(0.002)
    os.killpg(command.process.pid, how)
    assert command.end(20) in (143, -9), command.output
    run_dir = only_run(tmp_path)
    code, output = run_command(tmp_path, *options, "resume=auto")
    assert code == 0, output
    assert f"resuming {run_dir.relative_to(tmp_path)} from" in output
    for rank in range(workers):
        states = []
        for directory in (whole_dir, run_dir):
            checkpoint = torch.load(directory / "checkpoints" / "final.ckpt", weights_only=True)
            token = checkpoint["ticks"]["token"]
            own = torch.load(directory / "checkpoints" / "final.workers" / f"{token}-rank{rank}.pt", weights_only=True)
            states.append((checkpoint["state_dict"], own["optimizers"], own["random"]["torch"]))
        (model, optimizers, random), (again, optimizers_again, random_again) = states
        assert all(torch.equal(model[k], again[k]) for k in model)
        assert torch.equal(random, random_again)
        for a, b in zip(optimizers, optimizers_again, strict=True):
            for key, values in a["state"].items():
                assert all(torch.equal(*map(torch.as_tensor, (v, b["state"][key][name]))) for name, v in values.items())


def test_sigterm_during_the_last_validation_still_stops_with_a_checkpoint(tmp_path: Path) -> None:
    command = Command(tmp_path, "debug=fast", "trainer.devices=2", "trainer.max_steps=40", "task.sample_bytes=0",
                      "trainer.val_check_interval=40", "trainer.limit_val_batches=400", "data.eval_batch_size=1",
                      "callbacks.checkpoint.every_n_train_steps=40")  # fmt: skip
    deadline = time.monotonic() + 90
    while not list(tmp_path.glob("logs/runs/*/checkpoints/step-00000040.ckpt")):
        assert time.monotonic() < deadline, command.output
        assert command.process.is_alive(), command.output
        time.sleep(0.005)
    os.kill(command.process.pid, signal.SIGTERM)  # the validation of step 40 comes after its checkpoint
    assert command.end(40) == 143, command.output
    assert "Traceback" not in command.output, command.output
    assert (only_run(tmp_path) / "checkpoints" / "stopped.ckpt").exists()


def test_sigterm_to_one_worker_outside_training_stops_all_without_a_stack_trace(tmp_path: Path) -> None:
    command = Command(tmp_path, "debug=fast", "trainer.devices=2", "trainer.limit_val_batches=null",
                      "data.eval_batch_size=1")  # fmt: skip
    command.wait_for("tokens per step")
    while not command.workers():
        time.sleep(0.05)
    time.sleep(1)  # in start-up or in the first validation
    began = time.monotonic()
    os.kill(command.workers()[1], signal.SIGTERM)
    assert command.end(20) == 143, command.output
    gone(command, began)
    assert "Traceback" not in command.output, command.output
    assert "stopped by SIGTERM" in command.output
    assert '"status": "stopped"' in (only_run(tmp_path) / "summary.json").read_text()


def test_a_stop_while_the_test_text_is_measured_names_the_checkpoint_there_is(tmp_path: Path) -> None:
    command = Command(tmp_path, "debug=fast", "trainer.limit_test_batches=null", "data.eval_batch_size=1",
                      "data.block_size=8", "task.sample_bytes=0")  # fmt: skip
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("logs/runs/*/checkpoints/final.ckpt")):
        assert time.monotonic() < deadline, command.output
        time.sleep(0.01)
    time.sleep(0.5)
    os.kill(command.process.pid or 0, signal.SIGTERM)
    assert command.end(20) == 143, command.output
    (run,) = (tmp_path / "logs" / "runs").iterdir()
    final = f"logs/runs/{run.name}/checkpoints/final.ckpt"
    assert f"checkpoint {final}; continue with: python train.py resume=logs/runs/{run.name}" in command.output
    assert f'"checkpoint": "{final}"' in (run / "summary.json").read_text()


def test_loader_processes_do_not_turn_a_stop_into_a_failure(tmp_path: Path) -> None:
    command = start(tmp_path, "data.num_workers=1")
    began = time.monotonic()
    os.killpg(command.process.pid, signal.SIGTERM)
    assert command.end(20) == 143, command.output
    gone(command, began)
    assert "Traceback" not in command.output, command.output
