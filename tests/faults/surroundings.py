"""What a run stands on, taken away: the disk, the text, the cache, W&B's process."""

import contextlib
import os
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.faults import signals
from tests.faults.kept import Kept, checkpoints, difference, final_checkpoint, run_directory, summary
from tests.faults.outcome import Outcome, errors, last_line
from tests.faults.plan import Trial
from tests.faults.runs import Run

TO_NOTICE = 20.0  # seconds until something has to be written
MEGABYTES = 32  # room for three checkpoints of three workers: a run keeps two and writes one


def run(trial: Trial, directory: Path, kept: Kept) -> Outcome:
    """Take it away, see how the run ends, give it back, resume and compare."""
    outcome = Outcome(trial)
    if trial.fault == "disk full":
        _disk_full(trial, directory, kept, outcome)
    elif trial.fault == "wandb killed":
        _wandb_killed(trial, directory, kept, outcome)
    elif trial.fault.endswith("during"):
        _text_during(trial, directory, kept, outcome)
    else:
        _text_between(trial, directory, kept, outcome)
    return outcome


# ---- disk


def _disk_full(trial: Trial, directory: Path, kept: Kept, outcome: Outcome) -> None:
    kept.reference(trial.preset, trial.workers)
    with small_disk(directory) as mounted:
        outcome.note = f"{MEGABYTES} MB file system" if mounted else "RLIMIT_FSIZE"
        limits = {} if mounted else {resource.RLIMIT_FSIZE: trial.draw().randrange(20_000, 200_000)}
        outputs = directory.with_name(f"{directory.name}-outputs")  # on another disk
        it = Run(directory, kept.arguments(trial.preset, trial.workers), env=kept.env, limits=limits, outputs=outputs)
        try:
            in_time = it.until(trial.moment, 0.0)
            began, there = it.seconds, len(checkpoints(directory))
            if mounted and in_time:
                fill(directory)
            outcome.expect(it.wait(TO_NOTICE), f"alive {TO_NOTICE:g} s after the disk was full")
            outcome.seconds = it.seconds - began
        finally:
            outcome.left = it.clear()
        (directory / "filler").unlink(missing_ok=True)
        _failed_or_finished(it, outcome)
        outcome.expect(len(checkpoints(directory)) >= min(there, 1), "the earlier checkpoints are gone")
        signals.resume(trial, directory, kept, outcome)


@contextmanager
def small_disk(directory: Path) -> Iterator[bool]:
    """`directory` as a file system of its own of a few megabytes; False where that is not allowed."""
    directory.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={MEGABYTES}m", "faults", str(directory)]
    mounted = shutil.which("mount") is not None and subprocess.run(mount, capture_output=True).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(directory)], capture_output=True)


def fill(directory: Path) -> None:
    """Leave no byte free."""
    with (directory / "filler").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        for size in (1 << 16, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(b"\0" * size)


def _failed_or_finished(it: Run, outcome: Outcome) -> None:
    """Exit code 1 with one line, or a finished run."""
    outcome.expect("Traceback" not in it.output, f"a stack trace ({last_line(it.output)})")
    status = summary(run_directory(it.directory)).get("status")
    if it.code == 0:
        outcome.expect(status == "finished", "exit code 0 of a run that did not finish")
    else:
        outcome.expect(status != "finished", "summary.json says finished, the exit code does not")
        outcome.expect(len(errors(it.output)) == 1, f"{len(errors(it.output))} messages: {last_line(it.output)}")


# ---- W&B


def _wandb_killed(trial: Trial, directory: Path, kept: Kept, outcome: Outcome) -> None:
    arguments = [*kept.arguments(trial.preset, trial.workers), "logger=wandb"]
    it = Run(directory, arguments, env=kept.env)
    try:
        if it.until(trial.moment, 0.0):
            began, services = it.seconds, _services(it)
            outcome.note = f"{len(services)} process(es) killed"
            it.send(signal.SIGKILL, services)
            outcome.expect(it.wait(signals.TO_RESUME), "did not end")
            outcome.seconds = it.seconds - began
        else:
            it.wait(signals.TO_LEAVE)
    finally:
        outcome.left = it.clear()
    outcome.expect(not outcome.left, f"left behind: {outcome.left}")
    _failed_or_finished(it, outcome)
    if it.code == 0:
        reference, _ = kept.reference(trial.preset, trial.workers)
        outcome.seconds = None  # it did not leave
        where = difference(final_checkpoint(directory), reference)
        outcome.exact = outcome.expect(where is None, f"it ended elsewhere: {where}")
    else:
        signals.resume(trial, directory, kept, outcome)


def _services(it: Run) -> list[int]:
    """W&B's own processes."""
    found = []
    for pid in it.processes():
        with contextlib.suppress(OSError):
            if b"wandb-core" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
    return found


# ---- text


def _text_during(trial: Trial, directory: Path, kept: Kept, outcome: Outcome) -> None:
    """A run has its own copy of the text: it does not mind."""
    directory.mkdir(parents=True)
    text = directory / "text.txt"
    text.write_bytes(kept.text())
    it = Run(directory, kept.arguments(trial.preset, trial.workers, text=True), env=kept.env)
    try:
        if it.until(trial.moment, 0.0):
            _take(text, trial)
        outcome.expect(it.wait(signals.TO_RESUME), "did not end")
    finally:
        outcome.left = it.clear()
    _failed_or_finished(it, outcome)
    if outcome.expect(it.code == 0, f"exit code {it.code} ({last_line(it.output)})"):
        where = difference(final_checkpoint(directory), kept.reference(trial.preset, trial.workers, text=True)[0])
        outcome.exact = outcome.expect(where is None, f"it ended elsewhere: {where}")


def _text_between(trial: Trial, directory: Path, kept: Kept, outcome: Outcome) -> None:
    """Resumed with another text or none, a run refuses; with its own again it ends as if nothing had been."""
    if trial.fault == "cache shrunk":
        _damage_cache(trial, directory, kept, outcome)
        return
    shutil.copytree(kept.stopped(trial.preset, trial.workers, text=True), directory)
    text = directory / "text.txt"
    content, times = text.read_bytes(), text.stat()
    _take(text, trial)
    (found,) = (config.parent for config in directory.glob("logs/runs/*/config.yaml"))
    again = Run(directory, [f"resume={found.relative_to(directory)}"], env=kept.env)
    began = time.monotonic()
    try:
        outcome.expect(again.wait(signals.TO_RESUME), "did not end")
        outcome.seconds = time.monotonic() - began
    finally:
        outcome.left = again.clear()
    outcome.expect("Traceback" not in again.output, f"a stack trace ({last_line(again.output)})")
    if outcome.expect(again.code == 2, f"exit code {again.code}: it went on with another text"):
        outcome.expect(
            len(errors(again.output)) == 1, f"{len(errors(again.output))} messages: {last_line(again.output)}"
        )
    text.write_bytes(content)
    os.utime(text, ns=(times.st_atime_ns, times.st_mtime_ns))
    if again.code:
        signals.resume(trial, directory, kept, outcome, text=True)


def _take(text: Path, trial: Trial) -> None:
    if "gone" in trial.fault:
        text.unlink()
    else:
        os.truncate(text, int(text.stat().st_size * trial.draw().uniform(0.3, 0.9)))


def _damage_cache(trial: Trial, directory: Path, kept: Kept, outcome: Outcome) -> None:
    """What was prepared from the text is cut short: it is noticed, or prepared again."""
    shutil.copytree(kept.stopped(trial.preset, trial.workers), directory)
    cache = directory / "cache"
    shutil.copytree(kept.root / "cache", cache)
    for file in cache.glob("*/train.bin"):
        os.truncate(file, int(file.stat().st_size * trial.draw().uniform(0.1, 0.9)))
    own = Kept(kept.root)
    own.env = kept.env | {"TICKS_CACHE": str(cache)}
    output = signals.resume(trial, directory, own, outcome)
    outcome.expect("Traceback" not in output, f"a stack trace ({last_line(output)})")
