"""The table of faults, in Markdown, and each trial that did not hold with what makes it again."""

from collections.abc import Iterable, Sequence
from itertools import groupby
from statistics import median

from tests.faults.outcome import Outcome

HEAD = ("fault", "target", "trials", "held", "seconds to leave, median", "largest", "left processes", "resumed exactly")


def markdown(outcomes: Iterable[Outcome], command: str) -> str:
    """The table by fault and target, its sum, and the failures."""
    outcomes = sorted(outcomes, key=lambda o: (o.trial.fault, o.trial.target, o.trial.number))
    rows = [_row((fault, target), list(some)) for (fault, target), some in groupby(outcomes, key=_kind)]
    rows.append(_row(("**all**", ""), outcomes))
    lines = [f"`{command}`", "", _line(HEAD), "|---|---|" + "---:|" * (len(HEAD) - 2), *map(_line, rows)]
    if failures := [outcome for outcome in outcomes if not outcome.held]:
        lines += ["", f"Not held: {len(failures)} of {len(outcomes)}.", ""]
        lines += [f"- {failure(outcome)}" for outcome in failures]
    return "\n".join(lines) + "\n"


def failure(outcome: Outcome) -> str:
    """One line: what did not hold, and how to do it again."""
    trial = outcome.trial
    system = "" if trial.system == "ticks" else f" --system {trial.system}"
    note = f" [{outcome.note}]" if outcome.note else ""
    return f"`--seed {trial.seed} --trial {trial.number}{system}` {trial}{note}: {'; '.join(outcome.broken)}"


def _kind(outcome: Outcome) -> tuple[str, str]:
    return outcome.trial.fault, outcome.trial.target


def _row(name: tuple[str, str], some: Sequence[Outcome]) -> list[str]:
    seconds = [o.seconds for o in some if o.seconds is not None]
    resumed = [o.exact for o in some if o.exact is not None]
    return [
        *name,
        str(len(some)),
        str(sum(o.held for o in some)),
        f"{median(seconds):.1f}" if seconds else "",
        f"{max(seconds):.1f}" if seconds else "",
        str(sum(len(o.left) for o in some)),
        f"{sum(resumed)} of {len(resumed)}" if resumed else "",
    ]


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
