"""Signals: a run leaves as a whole, soon, with the right code, and goes on where it was."""

import signal
from pathlib import Path

from tests.faults.kept import Kept, checkpoints, difference, final_checkpoint, run_directory, summary
from tests.faults.outcome import Outcome, last_line
from tests.faults.plan import Trial
from tests.faults.runs import Run

TO_LEAVE = 10.0  # seconds
TO_FIND_A_HANG = 60.0
HANG_SECONDS = 5
TO_RESUME = 180.0


def run(trial: Trial, directory: Path, kept: Kept) -> Outcome:
    """Start a run, send the signal at its moment, see what comes of it, resume it and compare the end."""
    outcome = Outcome(trial)
    _, length = kept.reference(trial.preset, trial.workers, system=trial.system)
    if trial.start == "real" and trial.system == "ticks":
        length += kept.import_seconds()
    it = Run(directory, _arguments(trial, kept), start=trial.start, system=trial.system, env=kept.env)
    try:
        _send(trial, it, length, outcome)
    finally:
        outcome.left += it.clear()
    outcome.expect(not outcome.left, f"left behind: {outcome.left}")
    if trial.system == "ticks":
        _check_record(trial, it, outcome)
    _check_code(trial, it, outcome)
    resume(trial, directory, kept, outcome)
    return outcome


def _arguments(trial: Trial, kept: Kept) -> list[str]:
    if trial.system == "lightning":
        return [str(trial.workers)]
    hang = [f"strategy.hang_seconds={HANG_SECONDS}"] if trial.fault == "SIGSTOP" else []
    return [*kept.arguments(trial.preset, trial.workers), *hang]


def _send(trial: Trial, it: Run, length: float, outcome: Outcome) -> None:
    if not it.until(trial.moment, length):
        outcome.note = "the run had ended before"
        it.wait(TO_LEAVE)
        return
    targets = _targets(trial, it)
    if not targets:
        outcome.note = "the run had ended before"
        it.wait(TO_LEAVE)
        return
    began, signum = it.seconds, signal.Signals[trial.fault]
    goes_on = _goes_on(trial, it)
    if trial.target == "group":
        it.send(signum, [-it.pid])
    else:
        it.send(signum, targets)
    if signum == signal.SIGSTOP:
        _after_stopping(trial, it, targets, outcome, goes_on=goes_on)
    else:
        in_time = it.wait(TO_LEAVE)
        outcome.expect(in_time, f"something was alive {TO_LEAVE:g} s after {trial.moment}")
    if signum == signal.SIGSTOP and goes_on:
        outcome.expect(it.ended_here or it.code == 0, f"exit code {it.code} after it went on ({last_line(it.output)})")
    else:
        outcome.seconds = it.seconds - began


def _targets(trial: Trial, it: Run) -> list[int]:
    if trial.target != "worker":
        return [it.pid]
    while it.poll() is None:  # it may not have been started yet
        if workers := it.workers():
            return [trial.draw().choice(workers)]
    return []


def _after_stopping(trial: Trial, it: Run, stopped: list[int], outcome: Outcome, *, goes_on: bool) -> None:
    """A stopped worker ends everything. What only the stopped main process could do, it does when it goes on; a group
    that was stopped as a whole (Ctrl-Z) just goes on."""
    if trial.target == "worker":
        outcome.expect(it.wait(TO_FIND_A_HANG), f"alive {TO_FIND_A_HANG:g} s after a worker was stopped")
        return
    if trial.target == "main":
        others_gone = it.wait_for_others(TO_FIND_A_HANG)
        outcome.expect(others_gone, f"other workers alive {TO_FIND_A_HANG:g} s after the main process was stopped")
        it.send(signal.SIGCONT, stopped)
        limit = TO_RESUME if goes_on else TO_LEAVE
    else:
        it.wait(2.0)
        it.send(signal.SIGCONT, [-it.pid])
        limit = TO_RESUME
    outcome.expect(it.wait(limit), f"alive {limit:g} s after it was told to go on")


def _goes_on(trial: Trial, it: Run) -> bool:
    """Whether nobody is there who could miss those that are about to be stopped."""
    return trial.target == "group" or (trial.target == "main" and not it.workers())


def _check_code(trial: Trial, it: Run, outcome: Outcome) -> None:
    signum, code = signal.Signals[trial.fault], it.code
    finished = _finished(trial, it)
    outcome.expect("Traceback" not in it.output, f"a stack trace ({last_line(it.output)})")
    if it.ended_here:
        return  # told already: it was alive too long
    if code == 0:
        outcome.expect(finished, "exit code 0 of a run that did not finish")
    elif signum in (signal.SIGTERM, signal.SIGINT):
        outcome.expect(code in (128 + signum, -signum), f"exit code {code} ({last_line(it.output)})")


def _finished(trial: Trial, it: Run) -> bool:
    if trial.system == "lightning":
        return "last lines" in it.output
    return summary(run_directory(it.directory)).get("status") == "finished"


def _check_record(trial: Trial, it: Run, outcome: Outcome) -> None:
    """summary.json says what happened."""
    about = summary(run_directory(it.directory))
    status = about.get("status")
    if status == "finished":
        final = it.directory / str(about.get("checkpoint"))
        outcome.expect(final.is_file(), f"summary.json says finished, but there is no {about.get('checkpoint')}")
    elif status == "running" and trial.fault in ("SIGTERM", "SIGINT") and it.code is not None and it.code > 0:
        outcome.expect(False, "summary.json says running of a run that was stopped")


def resume(trial: Trial, directory: Path, kept: Kept, outcome: Outcome, *, text: bool = False) -> str:
    """Continue the run (start it again if it left nothing) and compare its end with the uninterrupted run's; the
    output."""
    before = checkpoints(directory)
    found = run_directory(directory)
    arguments = _arguments(trial, kept) if not text else kept.arguments(trial.preset, trial.workers, text=True)
    if trial.system == "lightning":
        arguments += ["resume"]
    elif found is not None and (trial.resume == "RUN_DIR" or _over(found)):
        arguments = [f"resume={found.relative_to(directory.resolve())}"]
    else:
        arguments += ["resume=auto"]
    again = Run(directory, arguments, env=kept.env, system=trial.system, start=_start(trial))
    try:
        in_time = again.wait(TO_RESUME)
    finally:
        left = again.clear()
    outcome.exact = False
    fine = outcome.expect(in_time and not left, f"the resumed run left {left} behind") and outcome.expect(
        again.code == 0, f"the resumed run ended with {again.code} ({last_line(again.output)})"
    )
    if fine:
        if before:  # nothing that existed is lost
            outcome.expect("its start" not in again.output, "resumed from its start though there were checkpoints")
        reference, _ = kept.reference(trial.preset, trial.workers, text=text, system=trial.system)
        where = difference(final_checkpoint(directory), reference)
        outcome.exact = outcome.expect(where is None, f"resumed, it ended elsewhere: {where}")
    return again.output


def _start(trial: Trial) -> str:
    return "real" if trial.system == "lightning" else "forked"


def _over(run: Path) -> bool:
    return summary(run).get("status") == "finished"
