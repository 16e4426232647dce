"""The command line of train.py: compose -> check -> Job -> run.

`main` is what train.py calls. It checks the configuration before torch is imported and leaves the rest to a `Job`:
plain data that says what to do, handed as it is to every worker, so that all of them do the same. Workers that this
process starts run `python -m ticks.train JOBFILE`; under torchrun each makes the same Job from the same command.
"""

import json
import os
import signal
import sys
from argparse import Namespace
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from ticks import jobs
from ticks.config import (
    ConfigError,
    check_keys,
    check_sweep,
    check_values,
    compose_strictly,
    leave_out,
    with_home_directory,
)
from ticks.config.hydra import as_hydra_would, config_folders, flags
from ticks.job import Job, planned_job, resumed_job
from ticks.run_directory import check_here, discard_made, made
from ticks.session import USER_MISTAKE, die, run
from ticks.signals import acting_on_signals, leave_on_signals
from ticks.strategy.identity import SIZES, WrongLauncher, unbelieved
from ticks.strategy.parent import end_with_parent
from ticks.terminal import forgive
from ticks.usage import usage

OTHER_CONFIGURATIONS = (
    "config_name",
    "config_path",
    "config_dir",
    "experimental_rerun",
    "shell_completion",
    "hydra_help",
)


def main(config_dir: Path) -> None:
    """The command line of train.py. Exit code 0; 2 for a mistake in it; 1 for a failure, also of one job of several;
    128 + signal if stopped."""
    end_with_parent()
    forgive()
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # no C++ stack traces when a worker ends
    with jobs.told():
        _forget_launchers()
        _main([with_home_directory(argument) for argument in sys.argv[1:]], config_dir)


def _main(arguments: list[str], config_dir: Path) -> None:
    asked, strange = flags().parse_known_intermixed_args(arguments)
    if strange:
        plain = strange[0].lstrip("-")
        hint = f"keys have no dashes: {plain}" if "=" in plain else "--help tells them"
        die(ConfigError(f"{strange[0]} is no flag; {hint}"))
    if asked.help:
        print(usage(config_dir))
        return
    sys.argv[1:] = asked.overrides + [a for a in arguments if a not in asked.overrides]  # Hydra wants them together
    many = asked.multirun or "hydra.mode=MULTIRUN" in asked.overrides
    known: list[list[str]] = []
    try:
        check_here()
        resume = {a.partition("=")[2] for a in arguments if a.startswith("resume=")} - {"auto", "null", ""}
        if resume and asked.overrides == arguments:  # the run's configuration counts, not this tree's
            _do(partial(resumed_job, Path(resume.pop()), arguments))
            return
        _check_flags(asked)
        if not any(getattr(asked, flag) for flag in OTHER_CONFIGURATIONS):
            if many:
                known = check_sweep(asked.overrides, config_dir)
            else:
                config = compose_strictly(asked.overrides, config_dir, place="hydra.run.dir", keep=True)
                if asked.overrides == arguments and (own := as_hydra_would(config)) is not None:
                    _do(partial(planned_job, own))
                    return
    except ConfigError as error:
        die(error)
    start = hydra.main(version_base="1.3", config_path=str(config_dir.resolve()), config_name="train")(_hydra_job)
    try:
        with jobs.multirun(known) if many else nullcontext():
            start()
    except (HydraException, OmegaConfBaseException, ValueError) as error:  # of Hydra's flags: jobs' own end in Hydra
        die(ConfigError(str(error).splitlines()[0]))


def _forget_launchers() -> None:
    """Variables that configs/trainer ask for count only if what set them is there."""
    try:
        left_behind = unbelieved(os.environ)
    except WrongLauncher as error:
        die(error)
    for name in set(SIZES).intersection(left_behind):
        del os.environ[name]


def _check_flags(asked: Namespace) -> None:
    """ConfigError for flags of Hydra's that it would answer with a stack trace."""
    one_of = {"--multirun": asked.multirun, "--cfg": asked.cfg, "--info": asked.info, "-sc": asked.shell_completion}
    if len(given := [flag for flag, value in one_of.items() if value]) > 1:
        raise ConfigError(f"{', '.join(given)}: only one of them can be given")
    if asked.config_dir and not Path(asked.config_dir).is_dir():
        raise ConfigError(f"--config-dir {asked.config_dir}: there is no such directory")
    if asked.shell_completion and not any(o.startswith(("install=", "uninstall=", "query=")) for o in asked.overrides):
        raise ConfigError("--shell-completion needs install=SHELL or uninstall=SHELL: bash, fish or zsh")


def _hydra_job(config: DictConfig) -> float | None:
    """One job of Hydra's: a single run here, or one of several in a process of its own; what a sweeper learns of it."""
    about = HydraConfig.get()
    many = about.mode == RunMode.MULTIRUN
    try:
        for place in config_folders()[:1]:
            leave_out(config, about.runtime.choices, place, about.overrides.task)
        check_keys(config, config)
        check_values(config)
        if not many:
            _do(partial(planned_job, config))
            return None
        job = planned_job(config)
        with jobs.signals_afterwards():  # an outcome is kept before one ends everything
            outcome = _in_a_process(job, list(about.overrides.task))
            jobs.record(about.job.num, outcome)
    except ConfigError as error:
        if not many:
            die(error)
        print(f"error: {error}", file=sys.stderr, flush=True)
        outcome = jobs.Outcome(list(about.overrides.task), "failed", message=str(error), code=USER_MISTAKE)
        jobs.record(about.job.num, outcome)
    return jobs.for_sweeper(outcome)


def _in_a_process(job: Job, overrides: list[str]) -> jobs.Outcome:
    with jobs.scratch_directory({"job.json": json.dumps(asdict(job))}) as folder:
        path = os.pathsep.join(entry for entry in sys.path if entry)
        command = [sys.executable, "-m", "ticks.jobs", str(folder / "job.json")]
        place = HydraConfig.get().runtime.cwd
        return jobs.run_job(command, overrides, env={"PYTHONPATH": path}, directory=place, deaf=True)


def planned(jobfile: Path) -> None:
    """The entry of a multirun's job."""
    _do(lambda: Job(**json.loads(jobfile.read_text())))


def _do(plan: Callable[[], Job]) -> None:
    """Run the job that `plan` comes to in this process. However it ends, no empty directory is left behind."""
    done = False

    def leave(signum: int, frame: Any) -> NoReturn:  # nothing has begun, what takes time is imported; or all is over
        discard_made()
        if not done:
            print(f"stopped by {signal.Signals(signum).name} before anything was done", flush=True)
        os._exit(128 + signum)

    try:
        with acting_on_signals(leave):
            job = plan()
            made.add(Path(job.run_dir))
            jobs.tell(run_dir=str(Path(job.run_dir).resolve()))
            run(job)
            done = True
    except ConfigError as error:
        die(error)
    finally:
        discard_made()


def worker(jobfile: str) -> None:
    """The entry of workers 1 .. n - 1."""
    end_with_parent()
    leave_on_signals()
    forgive()
    run(Job(**json.loads(Path(jobfile).read_text())), Path(jobfile))


if __name__ == "__main__":
    worker(sys.argv[1])
