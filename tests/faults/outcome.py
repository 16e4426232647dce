"""What came of a trial: every promise that did not hold, by name."""

from dataclasses import dataclass, field

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


def errors(output: str) -> list[str]:
    """The lines by which a run tells of a failure."""
    return [line for line in output.splitlines() if line.startswith(("error:", "ticks:"))]


def last_line(output: str) -> str:
    """The last line that is not empty: of a stack trace its message."""
    return next((line.strip() for line in reversed(output.splitlines()) if line.strip()), "no output")
