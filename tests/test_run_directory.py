"""Where runs lie: a directory of their own, one process at a time."""

import multiprocessing as mp
import os
import re
import time
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from tests.conftest import REPOSITORY
from ticks.config import ConfigError, compose_strictly, digest
from ticks.job import resumed_job
from ticks.record import summary
from ticks.run_directory import (
    begun_in,
    chosen_run_directory,
    find_unfinished,
    is_locked,
    load_config,
    locked,
    new_run_directory,
)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def left(directory: Path, status: str, config_digest: str, *, age: float) -> Path:
    directory.mkdir(parents=True)
    summary.write(directory, {"status": status, "config_digest": config_digest})
    os.utime(directory / "summary.json", (time.time() - age,) * 2)
    return directory


def test_runs_that_start_in_the_same_second_get_directories_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "strftime", lambda form: "2026-01-02_03-04-05")
    names = [new_run_directory("trial").name for _ in range(3)]
    assert names == [f"2026-01-02_03-04-05_trial{suffix}" for suffix in ("", "-2", "-3")]


def test_a_run_directory_says_when_and_what() -> None:
    directory = new_run_directory("trial")
    assert directory.is_dir()
    assert re.fullmatch(r"logs/runs/\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d_trial", str(directory))


def test_the_newest_unfinished_run_of_the_same_experiment_is_found() -> None:
    config = compose_strictly([], REPOSITORY / "configs")
    mine = digest(config)
    left(Path("logs/runs/old"), "stopped", mine, age=50)
    newest = left(Path("logs/multiruns/sweep/0"), "failed", mine, age=40)
    left(Path("logs/runs/finished"), "finished", mine, age=30)
    left(Path("logs/runs/other"), "stopped", "0" * 12, age=20)
    assert find_unfinished(config) == newest
    with locked(left(Path("logs/runs/busy"), "running", mine, age=10)):
        assert find_unfinished(config) == newest
    assert find_unfinished(config) == Path("logs/runs/busy")  # its process is gone: it did not finish


def _try(directory: Path, pipe) -> None:
    try:
        with locked(directory):
            pipe.send("got it")
    except ConfigError as error:
        pipe.send(str(error))


def test_two_processes_cannot_work_in_one_run(tmp_path: Path) -> None:
    receiver, sender = mp.get_context("fork").Pipe(duplex=False)
    with locked(tmp_path):
        assert is_locked(tmp_path)
        process = mp.get_context("fork").Process(target=_try, args=(tmp_path, sender))
        process.start()
        process.join(30)
        assert receiver.recv() == f"another process is working in {tmp_path}: wait for it, or stop it first"
    assert not is_locked(tmp_path)


def test_a_directory_that_holds_no_run_is_named() -> None:
    with pytest.raises(ConfigError, match=r"'nowhere' is no run directory: it has no config\.yaml"):
        load_config(Path("nowhere"))


def below_a_file(tmp_path: Path) -> str:
    (tmp_path / "file").write_text("")
    return str(tmp_path / "file" / "runs")


@pytest.mark.parametrize("name", ["logs", "logs/runs"])
@pytest.mark.parametrize("kind", ["file", "dangling link"])
def test_a_place_where_no_run_can_lie_is_named_with_what_to_set(tmp_path: Path, name: str, kind: str) -> None:
    place = tmp_path / name
    place.parent.mkdir(exist_ok=True)
    place.write_text("") if kind == "file" else place.symlink_to("nowhere/at/all")
    with pytest.raises(ConfigError, match=r"nothing can be written to logs/runs \(.*\): start in .*run_dir=DIRECTORY"):
        new_run_directory("trial")


def test_a_chosen_directory_is_made_unless_it_holds_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert chosen_run_directory("~/a/b") == tmp_path / "a" / "b"
    assert chosen_run_directory("a/b").is_dir()  # it is still empty
    summary.write(Path("a/b"), {})
    with pytest.raises(ConfigError, match="run_dir=a/b holds a run already: resume=a/b continues it"):
        chosen_run_directory("a/b")
    with pytest.raises(ConfigError, match=r"nothing can be written to .*file/runs \(Not a directory\)"):
        chosen_run_directory(below_a_file(tmp_path))


def test_a_run_directory_that_cannot_be_written_is_not_taken_for_a_busy_one(tmp_path: Path) -> None:
    (tmp_path / ".lock").mkdir()
    with pytest.raises(ConfigError, match=r"cannot be written \(Is a directory\): make it writable, or copy it"), \
            locked(tmp_path):  # fmt: skip
        pass


def test_a_run_of_before_optimizers_were_choices_is_understood(tmp_path: Path) -> None:
    config = compose_strictly(["logger=wandb"], REPOSITORY / "configs")
    config.task.update({"lr": 0.25, "warmup_steps": 7, "min_lr_ratio": 0.5, "betas": [0.8, 0.9]})
    config.logger.wandb._target_ = "ticks.report.wandb.wandb_logger"
    for key in ("optimizer", "schedule", "parameter_groups"):
        del config[key]
    OmegaConf.save(config, tmp_path / "config.yaml")
    now = load_config(tmp_path)
    assert (now.optimizer.lr, now.optimizer.betas, now.schedule.warmup_steps, now.schedule.min_ratio) == (
        0.25,
        [0.8, 0.9],
        7,
        0.5,
    )
    assert "lr" not in now.task
    assert now.logger.wandb._target_ == "ticks.record.wandb.wandb_logger"


def test_a_run_of_before_sample_prompt_can_be_resumed_and_found(tmp_path: Path) -> None:
    config = compose_strictly([], REPOSITORY / "configs")
    mine = digest(config)
    config.sample_bytes = config.task.pop("sample_bytes")
    del config.task["sample_prompt"]
    OmegaConf.save(config, tmp_path / "config.yaml")
    now = load_config(tmp_path)
    assert now.task.sample_prompt == "The "
    assert digest(now) == mine == digest(compose_strictly(["task.sample_prompt=Das"], REPOSITORY / "configs"))


def test_who_reads_what_worker_0_has_written_already_comes_to_the_same_job() -> None:
    """Under torchrun each worker decides by itself, while worker 0 writes down the values that were changed."""
    run_dir = Path("run")
    run_dir.mkdir()
    config = compose_strictly(["model=ln_ticks", "run_dir=run"], REPOSITORY / "configs")
    OmegaConf.save(OmegaConf.create(OmegaConf.to_container(config, resolve=True)), run_dir / "config.yaml")
    changes = ["trainer.max_steps=2000", "strategy.clock.interval=4"]
    first = resumed_job(run_dir, changes)
    extra = {"choices": first.choices, "config_digest": first.config_digest, "earlier_digests": first.earlier_digests}
    OmegaConf.save(OmegaConf.create(first.config | extra), run_dir / "config.yaml")
    assert resumed_job(run_dir, changes).config_digest == first.config_digest
    assert resumed_job(run_dir, []).config_digest == first.config_digest
    assert resumed_job(run_dir, ["trainer.max_steps=1999"]).config_digest != first.config_digest


def test_a_run_that_began_in_run_dir_is_found_there_whatever_became_of_it(tmp_path: Path) -> None:
    config, other = (compose_strictly([f"seed={seed}"], REPOSITORY / "configs") for seed in (5, 6))
    assert begun_in(f"{tmp_path}/mine", config) is None
    (tmp_path / "mine").mkdir()
    assert begun_in(f"{tmp_path}/mine", config) is None
    OmegaConf.save({"config_digest": digest(config), "optimizer": {}}, tmp_path / "mine" / "config.yaml")
    assert begun_in(f"{tmp_path}/mine", config) == tmp_path / "mine"
    with pytest.raises(ConfigError, match="mine holds a run of another configuration"):
        begun_in(f"{tmp_path}/mine", other)
