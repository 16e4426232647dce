"""Hydra's own multirun with launchers of other packages: several jobs at once, several workers each."""

import json
from pathlib import Path

from tests.conftest import run_command

SMALL = ("debug=fast", "trainer.max_steps=8", "test=false", "task.sample_bytes=0", "trainer.limit_val_batches=1")


def summaries(directory: Path) -> list[dict]:
    files = sorted(directory.glob("logs/multiruns/*/*/summary.json"))
    return [json.loads(file.read_text()) for file in files]


def test_joblib_runs_jobs_side_by_side(tmp_path: Path) -> None:
    code, output = run_command(tmp_path, "-m", *SMALL, "trainer.devices=1", "seed=1,2", "hydra/launcher=joblib",
                               "hydra.launcher.n_jobs=2", fresh=True)  # fmt: skip
    assert code == 0, output
    assert [(about["status"], about["seed"]) for about in summaries(tmp_path)] == [("finished", 1), ("finished", 2)]
    assert [line.split()[:3] for line in output.splitlines() if "seed=" in line and "finished" in line] == [
        ["0", "seed=1", "finished"], ["1", "seed=2", "finished"]
    ]  # fmt: skip


def test_submitit_runs_jobs_of_several_workers_which_exchange_what_they_should(tmp_path: Path) -> None:
    code, output = run_command(tmp_path, "-m", *SMALL, "trainer.devices=2", "seed=3", "hydra/launcher=submitit_local",
                               fresh=True)  # fmt: skip
    assert code == 0, output
    (about,) = summaries(tmp_path)
    assert (about["status"], about["world_size"], about["ticks"]) == ("finished", 2, 1)
