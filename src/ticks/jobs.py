"""Many runs: each in a process of its own, so that none can end another; a table at the end says what became of all.

`train.py -m` and `ticks sweep` start their jobs with `run_job`, which passes signals on and waits. A job's process
tells the one that waits for it what cannot be read off an exit code: where the run lies, and why it failed.
"""

import json
import math
import os
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from ticks.config import ConfigError
from ticks.record import summary
from ticks.signals import acting_on_signals, exit_by_signal, leave_on_signals
from ticks.strategy.exits import STOPS, exit_in_words
from ticks.strategy.identity import who_am_i
from ticks.strategy.parent import JOB, end_with_parent, ended_with_parent

TOLD = "TICKS_TOLD"  # the file in which a job's process tells what it came to
OUTCOMES = "TICKS_OUTCOMES"  # the folder in which a multirun's jobs, in whatever process, leave their outcomes


@dataclass
class Outcome:
    """What became of one job. `code` is its exit code, 128 + signal if it was stopped."""

    overrides: list[str]
    status: str = "not started"  # finished, failed, stopped
    measure: float | None = None
    measured: str | None = None  # the measure's name
    better: str | None = None  # lower or higher
    message: str | None = None
    run_dir: str | None = None
    code: int = 0
    asked: int | None = None  # the signal by which the process that waits for it, and so all, was asked to stop


# ---- in the process of a job -------------------------------------------------------------------------------------


def tell(**facts: str) -> None:
    """Let the process that waits for this one know `run_dir` or `message`. Nothing if none waits."""
    if file := os.environ.get(TOLD):
        with suppress(OSError):  # it waits no longer
            Path(file).write_text(json.dumps(_told(Path(file)) | facts))


def _told(file: Path) -> dict[str, str]:
    return json.loads(file.read_text()) if file.exists() else {}


@contextmanager
def told() -> Iterator[None]:
    """Whatever ends this process by an exception is told."""
    try:
        yield
    except SystemExit as left:
        if left.__cause__ is not None:  # already explained to people
            tell(message=_one_line(left.__cause__))
        elif left.code and left.__context__ is not None:
            tell(message=f"{type(left.__context__).__name__}: {_one_line(left.__context__)}")
        raise
    except Exception as error:
        tell(message=f"{type(error).__name__}: {_one_line(error)}")
        raise


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


@contextmanager
def scratch_directory(files: Mapping[str, str] | None = None) -> Iterator[Path]:
    """A temporary directory with `files` (name: text) in it. ConfigError where there can be none."""
    with ExitStack() as stack:
        try:
            name = stack.enter_context(tempfile.TemporaryDirectory(prefix="ticks-job-", ignore_cleanup_errors=True))
            for file, text in (files or {}).items():
                (Path(name) / file).write_text(text)
        except OSError as error:
            place = os.environ.get("TMPDIR") or "/tmp"
            raise ConfigError(f"the temporary directory TMPDIR={place} cannot be used: {error.strerror}") from None
        yield Path(name)


# ---- in the process that waits -----------------------------------------------------------------------------------


_came: list[int] = []  # signals that a block of `signals_afterwards` has put off


class Started:
    """A job's process, until it is known what it came to.

    It has a session of its own: a terminal's Ctrl-C reaches it through this process alone. It has its own W&B run as
    well: an id in the environment can only be meant for one. A `deaf` one starts with signals blocked, and unblocks
    them once it can take them. What it prints goes to `output`, if that is given. ConfigError where it cannot start.
    """

    def __init__(
        self,
        command: Sequence[str],
        overrides: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        directory: str | None = None,
        deaf: bool = False,
        output: Path | None = None,
    ) -> None:
        self.overrides = list(overrides)
        with ExitStack() as stack:
            self._told = stack.enter_context(scratch_directory()) / "told.json"
            own = {name: value for name, value in os.environ.items() if name != "WANDB_RUN_ID"}
            own |= {TOLD: str(self._told), JOB: str(os.getpid()), **(env or {})}
            options: dict[str, Any] = {"env": own, "cwd": directory, "start_new_session": True}
            if output is not None:
                file = stack.enter_context(output.open("ab"))
                options |= {"stdout": file, "stderr": subprocess.STDOUT, "stdin": subprocess.DEVNULL}
            behind = ended_with_parent(command, deaf=deaf)
            before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPS if deaf or behind != command else ())
            try:
                self._process = subprocess.Popen(behind, **options)
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
            self._stack = stack.pop_all()

    def send(self, signum: int) -> None:
        self._process.send_signal(signum)

    def has_ended(self, seconds: float = 0.0) -> bool:
        """Whether it has, within so many seconds."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def outcome(self, asked: int | None = None) -> Outcome:
        """What became of it, now that it has ended; `asked` is the signal by which all was asked to stop."""
        code = self._process.wait()
        about = _told(self._told)
        self._stack.close()
        outcome = Outcome(self.overrides, "failed", message=about.get("message"), asked=asked)
        there = "run_dir" in about and Path(about["run_dir"]).is_dir()  # a refused one has none
        outcome.run_dir = about["run_dir"] if there else None
        outcome.code = code if code >= 0 else 128 - code
        if asked is not None and code != 0:  # it may have been through
            outcome.code = 128 + asked
        if outcome.code - 128 in STOPS:
            outcome.status = "stopped"
            _measure(outcome)
        elif outcome.code == 0:
            outcome.status = "finished"
            _measure(outcome)
        elif outcome.message is None:
            outcome.message = f"the process {exit_in_words(code)} without a word"
        return outcome


def run_job(command: Sequence[str], overrides: Sequence[str], **how: Any) -> Outcome:
    """Run `command` and wait for it, however it ends; a signal that comes meanwhile is passed on, once. Takes what
    `Started` takes."""
    asked: int | None = None
    to_pass_on: list[int] = []
    started: Started | None = None

    def pass_on() -> None:
        while started is not None and to_pass_on:
            started.send(to_pass_on.pop())

    def came(signum: int, frame: Any) -> None:
        nonlocal asked
        asked = signum
        to_pass_on.append(signum)
        pass_on()

    with acting_on_signals(came):
        if _came:  # between two jobs: this one need not begin
            return Outcome(list(overrides), asked=_came[0])
        started = Started(command, overrides, **how)
        pass_on()  # what came while the process started
        while not started.has_ended(0.5):
            pass  # back to where handlers run: C may have told another thread of a signal
        return started.outcome(asked)


def _measure(outcome: Outcome) -> None:
    """What the job's run came to by its headline."""
    try:
        about = summary.read(Path(outcome.run_dir or ""))
    except (OSError, ValueError):
        return
    outcome.measured, outcome.measure = summary.headline(about)
    outcome.better = about.get("better")


def for_sweeper(outcome: Outcome) -> float | None:
    """What a sweeper is to learn of a job: its measure; the worst there is if it failed or was stopped by itself, so
    that the sweep goes on; None if it measured nothing. SystemExit if all was asked to stop."""
    if outcome.asked is not None:
        raise SystemExit(128 + outcome.asked)
    if outcome.status == "finished":
        return outcome.measure
    higher = any(other.better == "higher" for other in [outcome, *_outcomes().values()])
    return -math.inf if higher else math.inf


# ---- all of them -------------------------------------------------------------------------------------------------


def record(number: int, outcome: Outcome) -> None:
    """Keep the outcome of a multirun's job for the table at its end."""
    if folder := os.environ.get(OUTCOMES):
        with suppress(OSError):  # the job runs on another machine
            scratch = Path(folder) / f"{number}.partial"
            scratch.write_text(json.dumps(asdict(outcome)))
            scratch.replace(scratch.with_suffix(".json"))


def _outcomes() -> dict[int, Outcome]:
    """What became of the multirun's jobs so far, by their numbers."""
    folder = os.environ.get(OUTCOMES)
    files = Path(folder).glob("*.json") if folder else ()
    return {int(file.stem): Outcome(**json.loads(file.read_text())) for file in files}


@contextmanager
def signals_afterwards() -> Iterator[None]:
    """A signal that comes in the block ends this process behind it, with 128 + signal."""
    try:
        with acting_on_signals(lambda signum, frame: _came.append(signum)):
            yield
        if _came:
            sys.exit(128 + _came[0])
    finally:
        _came.clear()


@contextmanager
def multirun(jobs: Sequence[Sequence[str]]) -> Iterator[None]:
    """Around Hydra's multirun: at its end a table, and SystemExit 1 if a job failed or was stopped.

    `jobs` are the overrides of each as far as they are known before, so that one that never started is named too.
    """
    with scratch_directory() as folder, acting_on_signals(exit_by_signal):
        os.environ[OUTCOMES] = str(folder)
        try:
            yield
        finally:
            known = _outcomes()
            del os.environ[OUTCOMES]
            outcomes = dict(enumerate(Outcome(list(job)) for job in jobs)) | known
            if who_am_i().rank == 0:  # under torchrun every worker counts for itself
                show(dict(sorted(outcomes.items())))
    if not all_finished(outcomes.values()):
        sys.exit(1)


def all_finished(outcomes: Iterable[Outcome]) -> bool:
    """Whether every job that was started finished."""
    return all(outcome.status in ("finished", "not started") for outcome in outcomes)


def show(outcomes: dict[int, Outcome], *, again: str | None = None) -> None:
    """Print what became of the jobs, by their numbers: a table, then a line for each that did not finish. Of a sweep,
    which goes on by typing `again`, runs are called by what was swept, so that a line per job is enough.
    """
    if not outcomes:
        return
    console = Console(highlight=False, markup=False)
    shared: list[str] = []  # overrides that say nothing about one job
    if len(outcomes) > 1:
        first, *others = (job.overrides for job in outcomes.values())
        shared = [override for override in first if all(override in other for other in others)]
    print()
    if shared:
        console.print(f"all jobs: {' '.join(shared)}")
    if len(folders := {str(Path(job.run_dir).parent) for job in outcomes.values() if job.run_dir}) == 1:
        console.print(f"runs in {_shown(folders.pop())}", soft_wrap=True)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("job", justify="right", no_wrap=True)
    table.add_column("overrides", overflow="fold")
    table.add_column("status", no_wrap=True)
    names = {f"val_{job.measured}" for job in outcomes.values() if job.measured}
    table.add_column(names.pop() if len(names) == 1 else "measure", justify="right", no_wrap=True)
    if again is None:
        table.add_column("run", overflow="fold")
    for number, job in outcomes.items():
        if again is not None and job.status == "not started":
            continue
        own = (" " if again else "\n").join(override for override in job.overrides if override not in shared)
        measure = "-" if job.measure is None else f"{job.measure:.4f}"
        run = [] if again is not None else [Path(job.run_dir).name if job.run_dir else "-"]
        table.add_row(str(number), own, job.status, measure, *run)
    if table.row_count:
        console.print(table)
    for number, job in outcomes.items():
        if job.status in ("failed", "diverged") and job.message:
            console.print(f"job {number} {job.status}: {job.message}", soft_wrap=True)
        if job.status == "stopped" and job.run_dir and again is None:
            resume = shlex.join(["train.py", f"resume={_shown(job.run_dir)}"])
            console.print(f"job {number} was stopped; go on with it: python {resume}", soft_wrap=True)
    left = [str(number) for number, job in outcomes.items() if job.status == "not started"]
    if left and again is None:
        console.print(f"never started: job {', '.join(left)}; start each with its overrides", soft_wrap=True)
    if again is not None and (left or any(job.status in ("stopped", "failed") for job in outcomes.values())):
        never = f"{len(left)} of {len(outcomes)} jobs never started; " if left else ""
        console.print(f"{never}to go on with what is not finished: {again}", soft_wrap=True)


def _shown(run_dir: str) -> str:
    path, here = Path(run_dir), Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


if __name__ == "__main__":
    end_with_parent()
    leave_on_signals()
    from ticks.terminal import forgive
    from ticks.train import planned

    forgive()
    with told():
        planned(Path(sys.argv[1]))
