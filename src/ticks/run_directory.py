"""Where a run lies: a new directory, or the one that `resume` names, locked while a process works in it."""

import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ticks.config import ConfigError, digest
from ticks.report import summary

RUNS, MULTIRUNS = Path("logs/runs"), Path("logs/multiruns")


def new_run_directory(name: str) -> Path:
    """Create logs/runs/DATE_TIME_NAME, with -2, -3, ... behind it if another run started in the same second."""
    stem = f"{time.strftime('%Y-%m-%d_%H-%M-%S')}_{name}"
    for attempt in range(1, 1000):
        directory = RUNS / (stem if attempt == 1 else f"{stem}-{attempt}")
        try:
            directory.mkdir(parents=True)
            return directory
        except FileExistsError:
            continue
    raise ConfigError(f"cannot create a run directory: {RUNS / stem} and its successors exist")


def discard_if_empty(run_dir: Path) -> None:
    """Remove a run directory in which no run began."""
    if run_dir.is_dir() and {file.name for file in run_dir.iterdir()} <= {".lock", "wandb_id.json"}:
        shutil.rmtree(run_dir)


def find_unfinished(config: DictConfig) -> Path | None:
    """The newest run of the same configuration that has not finished and is not running right now."""
    wanted = digest(config)
    candidates = [*RUNS.glob("*/summary.json"), *MULTIRUNS.glob("*/*/summary.json")]
    for file in sorted(candidates, key=lambda f: f.stat().st_mtime_ns, reverse=True):
        try:
            about = summary.read(file.parent)
        except ValueError:  # damaged, or another program's
            continue
        if (
            about.get("status") in summary.UNFINISHED
            and about.get("config_digest") == wanted
            and not is_locked(file.parent)
        ):
            return file.parent
    return None


def load_config(run_dir: Path) -> DictConfig:
    """The resolved configuration of a run. ConfigError if `run_dir` holds none."""
    file = run_dir / "config.yaml"
    if not file.is_file():
        known = sorted(RUNS.glob("*/config.yaml"))[-3:]
        hint = f"; the newest runs: {', '.join(str(k.parent) for k in known)}" if known else ""
        raise ConfigError(f"'{run_dir}' is no run directory: it has no config.yaml{hint}")
    try:
        config = OmegaConf.load(file)
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{file} cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(config, DictConfig) or not config:
        raise ConfigError(f"{file} holds no configuration")
    return config


@contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Hold the run's lock. ConfigError if another process works in the same directory."""
    with (run_dir / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(f"another process is working in {run_dir}: wait for it, or stop it first") from None
        file.write(str(os.getpid()))
        file.flush()
        yield


def is_locked(run_dir: Path) -> bool:
    try:
        with locked(run_dir):
            return False
    except ConfigError:
        return True
