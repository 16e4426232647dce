"""A sweep of the real program: stopped by Ctrl-C or killed, and gone on with by the same command."""

import os
import signal
import time
from pathlib import Path

import pytest
import torch

from tests.conftest import REPOSITORY, Command, run_command
from ticks.config import ConfigError
from ticks.record import summary
from ticks.record.metrics import MetricsFile
from ticks.sweep.folder import plan

SMALL = ("debug=fast", "model.dropout=0.1", "trainer.max_steps=90", "trainer.val_check_interval=90", "test=false",
         "task.sample_bytes=0", "trainer.limit_val_batches=1", "trainer.log_every_n_steps=1",
         "callbacks.checkpoint.every_n_train_steps=10")  # fmt: skip


@pytest.fixture
def home(tmp_path: Path) -> Path:
    for name in ("train.py", "configs"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    (tmp_path / "seeds.yaml").write_text("method: grid\nparameters: {seed: {values: [0, 1]}}\n")
    return tmp_path


def learnt(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "checkpoints" / "final.ckpt", weights_only=True)["state_dict"]


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGKILL], ids=["SIGINT", "SIGKILL"])
def test_a_sweep_that_was_ended_goes_on_to_the_same_bits(signum: signal.Signals, home: Path) -> None:
    command = Command(home, "sweep", "seeds.yaml", *SMALL, program="ticks")
    deadline = time.monotonic() + 60
    while not any(int(row["step"]) >= 15 for file in home.glob("logs/sweeps/seeds/seed-0_*/metrics.csv")
                  for row in MetricsFile(file).rows()):  # fmt: skip
        assert time.monotonic() < deadline, command.output
        time.sleep(0.01)
    os.kill(command.process.pid, signum)
    assert command.end(40) == (130 if signum == signal.SIGINT else -9), command.output
    (first,) = home.glob("logs/sweeps/seeds/seed-0_*/")
    if signum == signal.SIGINT:
        assert summary.read(first)["status"] == "stopped"
        assert (first / "checkpoints" / "stopped.ckpt").is_file()
    code, output = run_command(home, "sweep", "seeds.yaml", *SMALL, program="ticks")
    assert code == 0, output
    assert "resuming logs/sweeps/seeds/seed-0_" in first.with_name(f"{first.name}.txt").read_text()
    runs = sorted(home.glob("logs/sweeps/seeds/seed-?_*/"))
    assert [summary.read(run)["status"] for run in runs] == ["finished"] * 2
    code, output = run_command(home, *SMALL, "seed=0", "run_dir=whole")
    assert code == 0, output
    whole, again = learnt(home / "whole"), learnt(first)
    assert whole.keys() == again.keys()
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_a_place_that_is_anothers_by_chance_is_not_taken(home: Path) -> None:
    (job,) = plan([["debug=fast", "seed=3"]], ["seed"], home / "sweep", home / "train.py")
    job.directory.mkdir(parents=True)
    (job.directory / "config.yaml").write_text(f"config_digest: {job.digest}\n")
    assert plan([["debug=fast", "seed=3"]], ["seed"], home / "sweep", home / "train.py") == [job]
    (job.directory / "config.yaml").write_text(f"config_digest: {job.digest[:6]}abcdef\n")
    with pytest.raises(ConfigError, match=f"{job.directory} holds a run of another configuration"):
        plan([["debug=fast", "seed=3"]], ["seed"], home / "sweep", home / "train.py")
    (job.directory / "config.yaml").write_text(f"config_digest: abc\nearlier_digests: [{job.digest}]\n")
    assert plan([["debug=fast", "seed=3"]], ["seed"], home / "sweep", home / "train.py") == [job]
