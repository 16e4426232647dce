"""Checkpoints of a stopped run, damaged: the earlier one is used, nothing in a file is ever executed."""

import os
import pickle
import random
import shutil
import zipfile
from pathlib import Path
from typing import Any

from tests.faults import signals
from tests.faults.kept import Kept, checkpoints
from tests.faults.outcome import Outcome, errors, last_line
from tests.faults.plan import Trial
from tests.faults.runs import Run


class Payload:
    """Unpickled by an unsafe loader, it creates a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mknod, (str(self.marker),)


def run(trial: Trial, directory: Path, kept: Kept) -> Outcome:
    """Damage a copy of a stopped run and resume it."""
    outcome = Outcome(trial)
    shutil.copytree(kept.stopped(trial.preset, trial.workers), directory)
    marker = directory / "executed"
    newest = checkpoints(directory)[-1]
    what = trial.fault.removeprefix("checkpoint ")
    draw = trial.draw()
    if what == "all truncated":
        for file in checkpoints(directory):
            truncate(file, draw)
        _expect_refusal(trial, directory, kept, outcome)
    else:
        before = newest.stat()
        outcome.note = harm(what, newest, draw, kept, trial, marker)
        if newest.exists():  # as a copy that keeps times would: it still is the newest
            os.utime(newest, ns=(before.st_atime_ns, before.st_mtime_ns))
        output = signals.resume(trial, directory, kept, outcome)
        complaints = [line for line in output.splitlines() if "Traceback" in line]
        outcome.expect(not complaints, f"a stack trace ({last_line(output)})")
    outcome.expect(not marker.exists(), "the payload was executed")
    return outcome


def harm(what: str, checkpoint: Path, draw: random.Random, kept: Kept, trial: Trial, marker: Path) -> str:
    """Do `what` to a checkpoint or to one of its workers' files; the file it was done to."""
    if what.startswith("side file"):
        file = draw.choice(sorted(checkpoint.with_suffix(".workers").glob("*.pt")))
        what = what.removeprefix("side file ")
    else:
        file = checkpoint
    if what == "truncated":
        truncate(file, draw)
    elif what == "emptied":
        file.write_bytes(b"")
    elif what == "missing":
        file.unlink()
    elif what == "bit flipped":
        flip(file, draw)
    elif what == "payload":
        plant(file, marker, raw=draw.random() < 0.5)
    elif what == "plain Lightning's":
        shutil.copy(final_lightning(kept), file)
    else:
        another = ("slowmo" if trial.preset != "slowmo" else "diloco") if "strategy" in what else trial.preset
        other = kept.reference(another, trial.workers, text="run" in what)[0]
        _replace(checkpoint, other)
    return str(file.name)


def truncate(file: Path, draw: random.Random) -> None:
    os.truncate(file, draw.randrange(1, file.stat().st_size))


def flip(file: Path, draw: random.Random) -> None:
    """One bit, anywhere."""
    content = bytearray(file.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    file.write_bytes(content)


def plant(file: Path, marker: Path, *, raw: bool) -> None:
    """A pickle with a payload in the file's place: bare, or inside a well-formed archive of torch's."""
    payload = pickle.dumps(Payload(marker), protocol=2)
    if raw:
        file.write_bytes(payload)
        return
    scratch = file.with_name(f"{file.name}.planted")
    with zipfile.ZipFile(file) as archive, zipfile.ZipFile(scratch, "w") as planted:
        for entry in archive.infolist():
            planted.writestr(entry, payload if entry.filename.endswith("data.pkl") else archive.read(entry))
    os.replace(scratch, file)


def final_lightning(kept: Kept) -> Path:
    """A checkpoint that plain Lightning wrote of the same model."""
    return kept.reference("ddp", 1, system="lightning")[0]


def _replace(checkpoint: Path, other: Path) -> None:
    """Another run's checkpoint, its workers' files included, under this one's name."""
    shutil.copy(other, checkpoint)
    shutil.rmtree(checkpoint.with_suffix(".workers"))
    shutil.copytree(other.with_suffix(".workers"), checkpoint.with_suffix(".workers"))


def _expect_refusal(trial: Trial, directory: Path, kept: Kept, outcome: Outcome) -> None:
    """Where no checkpoint is left, resuming is refused in one line and deletes nothing."""
    before = [(file, file.read_bytes()) for file in checkpoints(directory)]
    (found,) = directory.glob("logs/runs/*/")
    again = Run(directory, [f"resume={found.relative_to(directory)}"], env=kept.env)
    in_time = again.wait(signals.TO_RESUME)
    outcome.left = again.clear()
    outcome.expect(in_time, "did not end")
    outcome.expect(again.code == 2, f"exit code {again.code} without any usable checkpoint")
    outcome.expect(len(errors(again.output)) == 1, f"{len(errors(again.output))} messages: {last_line(again.output)}")
    outcome.expect("Traceback" not in again.output, f"a stack trace ({last_line(again.output)})")
    outcome.expect(all(file.read_bytes() == content for file, content in before), "a checkpoint was changed")
