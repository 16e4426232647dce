"""What came of a trial: every promise that did not hold, by name."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.faults.plan import Trial


@dataclass
class Outcome:
    """`broken` is empty if everything held. `exact` is None where nothing was to be resumed."""

    trial: Trial
    broken: list[str] = field(default_factory=list)
    seconds: float | None = None  # from the fault until nothing of the run was alive
    left: list[str] = field(default_factory=list)  # processes that had to be killed
    exact: bool | None = None
    note: str = ""

    @property
    def held(self) -> bool:
        return not self.broken

    def expect(self, holds: bool, otherwise: str) -> bool:
        """Note `otherwise` unless `holds`."""
        if not holds:
            self.broken.append(" ".join(otherwise.split())[:300])
        return holds


class Ledger:
    """Outcomes in a file, a line each, so that a measurement of hours can go on where it was ended."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def write(self, outcome: Outcome) -> None:
        about = {key: value for key, value in asdict(outcome).items() if key != "trial"}
        planned = outcome.trial
        about |= {"number": planned.number, "seed": planned.seed, "system": planned.system}
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("a") as file:
            file.write(json.dumps(about) + "\n")

    def read(self, planned: Iterable[Trial]) -> dict[Trial, Outcome]:
        """What is known of these trials."""
        known: dict[tuple[Any, ...], dict[str, Any]] = {}
        for line in self.file.read_text().splitlines() if self.file.exists() else ():
            about = json.loads(line)
            known[about.pop("number"), about.pop("seed"), about.pop("system")] = about
        return {t: Outcome(t, **known[key]) for t in planned if (key := (t.number, t.seed, t.system)) in known}


def errors(output: str) -> list[str]:
    """The lines by which a run tells of a failure."""
    return [line for line in output.splitlines() if line.startswith(("error:", "ticks:"))]


def last_line(output: str) -> str:
    """The last line that is not empty: of a stack trace its message."""
    return next((line.strip() for line in reversed(output.splitlines()) if line.strip()), "no output")
