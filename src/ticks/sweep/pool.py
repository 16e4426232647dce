"""Several jobs at once: who starts when, with how many threads, and what is shown meanwhile."""

import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from ticks.jobs import Outcome, Started
from ticks.signals import acting_on_signals
from ticks.strategy.exits import STOPS
from ticks.sweep.folder import DONE, Planned, claimed

GPUS = Path("/proc/driver/nvidia/gpus")  # an entry for each of this machine's
Heard = Callable[[int, Planned, Outcome], None]
PATIENCE = 0.5  # seconds between two looks at what another sweep has


@dataclass
class Running:
    """A job that runs, in one of the pool's slots."""

    number: int
    job: Planned
    started: Started
    claim: ExitStack
    slot: int
    since: float
    whole: bool  # from its first step on
    told: bool = False  # that it is to stop

    def pass_on(self, signum: int) -> None:
        """Once: a second signal would have it leave without a checkpoint."""
        if not self.told:
            self.told = True
            self.started.send(signum)


class Pool:
    """Runs jobs, `at_once` of them side by side, each in a process of its own that writes to a file beside its run.

    A job that is done is skipped, one that was interrupted is resumed, one that another sweep has is left to it. A job
    that fails ends nothing but itself. A signal is passed on to every running job and waited for, and nothing more is
    started: `asked` says which it was. `outcomes` are by the jobs' numbers, from 1.
    """

    def __init__(self, program: Path, *, at_once: int = 1, group: str | None = None) -> None:
        self.program = program
        self.at_once = at_once
        self.group = group
        self.asked: int | None = None
        self.outcomes: dict[int, Outcome] = {}
        self._running: list[Running] = []
        self._elsewhere: dict[int, Planned] = {}
        self._seconds: list[float] = []  # that whole jobs took

    def run(self, jobs: Iterable[Planned], total: int, heard: Heard | None = None) -> None:
        """All of them; `heard` is told of each as it ends, before the next one is asked for."""
        with acting_on_signals(self._came), _bar(total) as bar:
            at_once = f", {self.at_once} at once" if self.at_once > 1 else ""
            bar.console.print(f"{total} jobs{at_once}; a line as each of them ends", soft_wrap=True)
            self._go(enumerate(jobs, start=1), total, bar, heard)
            if self._elsewhere and self.asked is None:
                names = ", ".join(str(number) for number in self._elsewhere)
                bar.console.print(f"job {names}: another sweep has them; waiting for what they come to", soft_wrap=True)
            while self._elsewhere and self.asked is None:
                time.sleep(PATIENCE)
                of_others, self._elsewhere = self._elsewhere, {}
                self._go(iter(of_others.items()), total, bar, heard)  # who had them may be through, or gone

    def _go(self, jobs: Any, total: int, bar: Progress, heard: Heard | None) -> None:
        exhausted = False
        while True:
            while not exhausted and self.asked is None and len(self._running) < self.at_once:
                number, job = next(jobs, (0, None))
                exhausted = job is None
                if job is not None and not self._begin(number, job) and number not in self._elsewhere:
                    self._say(bar, total, number, job, heard)
            for running in [running for running in self._running if running.started.has_ended()]:
                self._end(running)
                self._say(bar, total, running.number, running.job, heard)
            if not self._running and (exhausted or self.asked is not None):
                return
            time.sleep(0.05)

    def _came(self, signum: int, frame: Any) -> None:
        self.asked = signum
        for running in self._running:
            running.pass_on(signum)

    # ---- one job

    def _begin(self, number: int, job: Planned) -> bool:
        """Start it, unless it is done or somebody else's."""
        outcome = self.outcomes[number] = Outcome(list(job.overrides))
        with ExitStack() as stack:
            if not stack.enter_context(claimed(job)):
                outcome.status = "elsewhere"
                self._elsewhere[number] = job
                return False
            if (state := job.state) in DONE:
                about = job.about
                outcome.status, outcome.run_dir = state, str(job.directory)
                outcome.measured, outcome.better = about.get("measure"), about.get("better")
                outcome.measure = about.get(f"val_{outcome.measured}") if state == "finished" else None
                return False
            slot = min(set(range(self.at_once)) - {running.slot for running in self._running})
            again = state == "interrupted"
            arguments = [f"resume={job.directory}"] if again else [*job.overrides, f"run_dir={_quoted(job.directory)}"]
            started = Started(
                [sys.executable, str(self.program), *arguments], job.overrides,
                env=self._environment(job, slot), output=job.directory.with_name(f"{job.directory.name}.txt"),
            )  # fmt: skip
            since = time.monotonic()
            running = Running(number, job, started, stack.pop_all(), slot, since, not again)
        before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
        try:
            self._running.append(running)
            if self.asked is not None:  # it came while the process started
                running.pass_on(self.asked)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return True

    def _environment(self, job: Planned, slot: int) -> dict[str, str]:
        """Its share of this machine, and what W&B calls it."""
        env = {} if "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": str(threads(self.at_once, job.devices))}
        if self.at_once > 1 and (share := gpus_of(slot, self.at_once, job.devices)) is not None:
            env["CUDA_VISIBLE_DEVICES"] = share
        if self.group and "WANDB_RUN_GROUP" not in os.environ:
            env |= {"WANDB_RUN_GROUP": self.group}
        if self.group:
            tags = [f"{key.rpartition('.')[2]}={v}".replace(",", ";")[:64] for key, v in job.labels.items()]
            env |= {"WANDB_TAGS": ",".join([*filter(None, [os.environ.get("WANDB_TAGS")]), *tags])}
        return env

    def _end(self, running: Running) -> None:
        self._running.remove(running)
        outcome = self.outcomes[running.number] = running.started.outcome(self.asked)
        if outcome.status == "failed" and running.job.state == "diverged":
            outcome.status, outcome.measure = "diverged", None
        if running.whole and outcome.status in DONE:
            self._seconds.append(time.monotonic() - running.since)
        running.claim.close()

    # ---- what is shown

    def left(self, total: int) -> float | None:
        """Seconds until the end, by those that jobs took; None before one has ended."""
        open_ = total - sum(
            1 for outcome in self.outcomes.values() if outcome.status not in ("not started", "elsewhere")
        )
        mean = sum(self._seconds) / len(self._seconds) if self._seconds else None
        return None if mean is None else mean * open_ / self.at_once

    def _say(self, bar: Progress, total: int, number: int, job: Planned, heard: Heard | None) -> None:
        """A line for a job that has ended, or that need not begin."""
        outcome = self.outcomes[number]
        if heard is not None:
            heard(number, job, outcome)
        measure = f", val_{outcome.measured} {outcome.measure:.4f}" if outcome.measure is not None else ""
        left = self.left(total)
        rest = f"about {in_words(left)} left" if left else ""
        line = f"[{number}/{total}] {job.directory.name}: {outcome.status}{measure}"
        bar.console.print(line + (f"; {rest}" if rest and not bar.console.is_terminal else ""), soft_wrap=True)
        ended = sum(outcome.status not in ("not started", "elsewhere") for outcome in self.outcomes.values())
        bar.update(bar.task_ids[0], completed=ended, rest=rest)


def _quoted(place: Path) -> str:
    """As Hydra reads it, whatever characters it has."""
    text = str(place)
    return text if re.fullmatch(r"[\w./+-]+", text) else "'" + text.replace("'", r"\'") + "'"


def _bar(total: int) -> Progress:
    """A progress bar over all jobs on a terminal, nothing elsewhere."""
    console = Console(highlight=False, markup=False)
    bar = Progress(
        TextColumn("jobs {task.completed:.0f}/{task.total:.0f}"), BarColumn(), TimeElapsedColumn(),
        TextColumn("{task.fields[rest]}"), console=console, transient=True, disable=not console.is_terminal,
    )  # fmt: skip
    bar.add_task("jobs", total=total, rest="")
    return bar


def threads(at_once: int, workers: int | None) -> int:
    """Threads of each worker, so that all of those that run at once share the processors."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // (at_once * (workers or 1)))


def gpus_of(slot: int, at_once: int, workers: int | None = None) -> str | None:
    """A slot's share of the GPUs, as CUDA_VISIBLE_DEVICES; None where there are none, or too few for so many `workers`
    in each: then jobs use the same ones."""
    said = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [name for name in said.split(",") if name] if said is not None else []
    if said is None and GPUS.is_dir():
        names = [str(i) for i in range(len(list(GPUS.iterdir())))]
    each = len(names) // at_once
    return ",".join(names[slot * each : (slot + 1) * each]) if each >= (workers or 1) else None


def in_words(seconds: float) -> str:
    """Hours and minutes, or seconds where there are no more."""
    minutes = round(seconds / 60)
    if minutes < 2:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"
