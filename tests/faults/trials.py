"""Running one trial, whatever it is."""

import shutil
import traceback
from pathlib import Path

from tests.faults import damage, mutations, signals, surroundings
from tests.faults.kept import Kept
from tests.faults.outcome import Outcome
from tests.faults.plan import SIGNALS, Trial


def run_trial(trial: Trial, root: Path, *, show: bool = False) -> Outcome:
    """What came of it. A failure of this program is one of the trial as well: nothing is left out of the table."""
    directory = root.resolve() / f"{trial.system}-{trial.seed}-{trial.number}"
    shutil.rmtree(directory, ignore_errors=True)
    kept = Kept(root / "kept")
    what = _kind(trial)
    try:
        outcome = what.run(trial, directory, kept)
    except Exception as error:
        traceback.print_exc()
        outcome = Outcome(trial, broken=[f"the trial itself failed: {type(error).__name__}: {error}"[:1000]])
    if show:
        for file in sorted([*directory.glob("output-*"), *directory.with_name(f"{directory.name}-outputs").glob("*")]):
            print(f"---- {file.name}\n{file.read_text(errors='replace')}", flush=True)
    if outcome.held:
        for used in (directory, directory.with_name(f"{directory.name}-outputs")):
            shutil.rmtree(used, ignore_errors=True)
    return outcome


def _kind(trial: Trial) -> "object":
    if trial.fault in SIGNALS:
        return signals
    if trial.fault == "mutation":
        return mutations
    return damage if trial.fault.startswith("checkpoint") else surroundings
