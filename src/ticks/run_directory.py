"""Where a run lies: a new directory, or the one that `resume` names, locked while a process works in it."""

import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ticks.config import ConfigError, digest
from ticks.record import summary
from ticks.signals import put_off

SCHEDULE = {"warmup_steps": "warmup_steps", "min_ratio": "min_lr_ratio"}  # what a task once said of it
RUNS, MULTIRUNS = Path("logs/runs"), Path("logs/multiruns")
made: set[Path] = set()  # by this process, or for it


def new_run_directory(name: str) -> Path:
    """Create logs/runs/DATE_TIME_NAME, with -2, -3, ... behind it if another run started in the same second."""
    stem = f"{time.strftime('%Y-%m-%d_%H-%M-%S')}_{name}"
    with _says_what_to_set(RUNS):
        RUNS.mkdir(parents=True, exist_ok=True)
        for attempt in range(1, 1000):
            directory = RUNS / (stem if attempt == 1 else f"{stem}-{attempt}")
            with suppress(FileExistsError), put_off():
                directory.mkdir()
                made.add(directory)
                return directory
    raise ConfigError(f"cannot create a run directory: {RUNS / stem} and its successors exist")


def chosen_run_directory(place: str) -> Path:
    """Create the directory that the user named with run_dir. ConfigError if it holds a run."""
    directory = Path(os.path.expanduser(place))
    if any((directory / file).exists() for file in ("config.yaml", "summary.json")):
        raise ConfigError(f"run_dir={place} holds a run already: resume={place} continues it, or name another")
    with _says_what_to_set(directory), put_off():
        directory.mkdir(parents=True, exist_ok=True)
        made.add(directory)
    return directory


@contextmanager
def _says_what_to_set(place: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"nothing can be written to {place} ({error.strerror}): start in a directory that can be written,"
            " or name a place with run_dir=DIRECTORY"
        ) from None


def check_here() -> None:
    """ConfigError if the directory that the user stands in was removed."""
    try:
        Path.cwd()
    except OSError:
        raise ConfigError("the directory you are in does not exist any more: cd to one that does") from None


def discard_if_empty(run_dir: Path, *, is_mine: bool = False) -> None:
    """Remove a run directory in which no run began, and none is about to, unless in this process (`is_mine`)."""
    with suppress(OSError):
        begun = {file.name for file in run_dir.iterdir()} - {".lock", "wandb_id.json"}
        if not begun and (is_mine or not is_locked(run_dir)):
            shutil.rmtree(run_dir)


def discard_made() -> None:
    """Remove what this process made for a run that did not begin."""
    while made:
        discard_if_empty(made.pop())


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
    if older := [str(file.parent) for file in candidates if _is_older(file)]:
        print(f"resume=auto: runs of an earlier version are not compared; name one: resume={older[-1]}", flush=True)
    return None


def begun_in(place: str, config: DictConfig) -> Path | None:
    """The directory, if a run of this configuration has begun in it, finished or not. ConfigError if it is another's.

    While worker 0 begins one, others may find it begun or not: with no checkpoint in it both mean the same.
    """
    directory = Path(os.path.expanduser(place))
    if not (directory / "config.yaml").exists():
        return None
    has, wanted = load_config(directory).get("config_digest"), digest(config)
    if has != wanted:
        raise ConfigError(
            f"resume=auto: run_dir={place} holds a run of another configuration ({has}, this is {wanted})"
        )
    return directory


def _is_older(file: Path) -> bool:
    """Whether an unfinished run was begun when configurations were written in another way."""
    try:
        unfinished = summary.read(file.parent).get("status") in summary.UNFINISHED
        return unfinished and "\noptimizer:" not in (file.parent / "config.yaml").read_text()
    except (OSError, ValueError):
        return False


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
    return modernised(config)


def modernised(config: DictConfig) -> DictConfig:
    """The configuration of a run that began with an earlier version, as it is said now."""
    if "sample_bytes" in config:  # once at the top, though they are the task's
        prompt = config.pop("sample_prompt", "The ")
        config.task.update({"sample_bytes": config.pop("sample_bytes"), "sample_prompt": prompt})
    for logger in (config.get("logger") or {}).values():
        if logger is not None and str(logger.get("_target_")).endswith(".report.wandb.wandb_logger"):
            logger["_target_"] = str(logger["_target_"]).replace(".report.", ".record.")
    if "optimizer" not in config:  # once they were the task's
        task = config.task
        optimizer = {key: task.pop(key) for key in ("lr", "weight_decay", "betas", "eps") if key in task}
        schedule = {new: task.pop(old) for new, old in SCHEDULE.items() if old in task}
        config.optimizer = {"_target_": "ticks.optim.adamw", "_partial_": True, **optimizer}
        config.schedule = {"_target_": "ticks.optim.WarmupCosine", **schedule}
        config.parameter_groups = []
    if "model" in config:
        config.model.setdefault("compile", False)
    return config


@contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Hold the run's lock. ConfigError if another process works in the same directory, or none can."""
    with ExitStack() as stack:
        try:
            file = stack.enter_context((run_dir / ".lock").open("w"))
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            file.write(str(os.getpid()))
            file.flush()
        except BlockingIOError:
            raise ConfigError(f"another process is working in {run_dir}: wait for it, or stop it first") from None
        except OSError as error:
            raise ConfigError(
                f"the run directory {run_dir} cannot be written ({error.strerror}): make it writable, or copy it"
                " to where it can be and resume it there"
            ) from None
        yield


def is_locked(run_dir: Path) -> bool:
    try:
        with locked(run_dir):
            return False
    except ConfigError:
        return True
