"""A SLURM job that is taken away and queued again goes on where it was: the same script, its variables faked."""

import json
import time
from pathlib import Path

import torch

from tests.conftest import Command, free_port
from ticks.record.metrics import MetricsFile

JOB = ("debug=fast", "strategy=local_sgd", "trainer.devices=2", "test=false", "task.sample_bytes=0",
       "run_dir=place/77", "resume=auto", "trainer.max_steps=80", "trainer.val_check_interval=80",
       "trainer.log_every_n_steps=1")  # fmt: skip


def srun(directory: Path, *more: str) -> list[Command]:
    """Both tasks of a step, as srun starts them on one node."""
    step = {
        "SLURM_STEP_ID": "0", "SLURM_NODEID": "0", "SLURM_NTASKS": "2", "SLURM_JOB_ID": "77", "SLURM_JOB_NAME": "train",
        "SLURM_NTASKS_PER_NODE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()),
    }  # fmt: skip
    return [
        Command(directory, *JOB, *more, env=step | {"SLURM_PROCID": rank, "SLURM_LOCALID": rank}) for rank in ("0", "1")
    ]


def status(directory: Path) -> str:
    return json.loads((directory / "place" / "77" / "summary.json").read_text())["status"]


def final(directory: Path) -> dict[str, torch.Tensor]:
    return torch.load(directory / "place" / "77" / "checkpoints" / "final.ckpt", weights_only=True)["state_dict"]


def test_a_job_that_was_taken_away_goes_on_when_it_is_queued_again(tmp_path: Path) -> None:
    whole, taken = tmp_path / "whole", tmp_path / "taken"
    for directory in (whole, taken):
        directory.mkdir()
    commands = srun(taken)
    record = MetricsFile(taken / "place" / "77" / "metrics.csv")
    deadline = time.monotonic() + 60
    while len(record.rows()) < 3:
        assert time.monotonic() < deadline, commands[0].output
        time.sleep(0.01)
    for command in commands:
        command.process.terminate()  # what SLURM sends every task
    assert [command.end(30) for command in commands] == [143, 143], commands[0].output
    assert status(taken) == "stopped"
    again = srun(taken)
    assert [command.end(60) for command in again] == [0, 0], again[0].output
    assert "resuming place/77 from place/77/checkpoints/stopped.ckpt" in again[0].output
    assert status(taken) == "finished"
    assert [command.end(60) for command in srun(whole)] == [0, 0]
    assert all(torch.equal(value, final(taken)[name]) for name, value in final(whole).items())


def test_what_cannot_go_on_is_one_line(tmp_path: Path) -> None:
    (command, _) = commands = srun(tmp_path, "run_dir=null")
    assert [c.end(60) for c in commands] == [2, 2]
    assert command.output == "error: resume=auto: every worker was started by itself; name a place, run_dir=PLACE\n"
    assert [c.end(60) for c in srun(tmp_path, "trainer.max_steps=2")] == [0, 0]
    (command, _) = commands = srun(tmp_path, "trainer.max_steps=3")
    assert [c.end(60) for c in commands] == [2, 2]
    assert "run_dir=place/77 holds a run of another configuration" in command.output
