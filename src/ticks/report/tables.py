"""Groups of runs as a table, for a terminal, Markdown or LaTeX: what each came to, and how it differs."""

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table as Drawn

from ticks.config import ConfigError
from ticks.report.groups import Group, baseline_of, is_, shown

MEGABYTE = 1e6
LATEX = {
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "_": r"\_",
    "#": r"\#",
    "±": r"$\pm$",
    "<": "$<$",
}


@dataclass
class Table:
    """Titles, cells by row, and lines that a reader has to know."""

    titles: list[str]
    rows: list[list[str]]
    notes: list[str] = field(default_factory=list)
    words: int = 0  # so many columns, from the left, are words

    def markdown(self) -> str:
        """As GitHub reads it, notes below."""
        align = ["---" if i < self.words else "---:" for i in range(len(self.titles))]
        lines = [self.titles, align, *self.rows]
        text = "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines)
        return text + "\n" + "".join(f"\n{note}\n" for note in self.notes)

    def latex(self) -> str:
        """A tabular with booktabs' rules, notes as comments."""
        columns = "l" * self.words + "r" * (len(self.titles) - self.words)
        lines = [" & ".join(map(_latex, line)) + r" \\" for line in (self.titles, *self.rows)]
        body = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule"]
        return "\n".join([*(f"% {note}" for note in self.notes), *body, r"\end{tabular}"]) + "\n"

    def show(self) -> None:
        """Print it. On a narrow terminal titles are broken, keys called by their last word, and what is still too wide
        is left out from the right, with a note: the table in a file has it."""
        console = Console(highlight=False, markup=False)
        if not console.is_terminal and "COLUMNS" not in os.environ:
            console.width = 140
        titles = self.titles
        if self._width(titles) > console.width:
            short = [re.split(r"[./]", title)[-1] for title in titles[: self.words]]
            titles = [*(short if len(set(short)) == len(short) else titles[: self.words]), *titles[self.words :]]
            titles = ["\n".join(title.split()) for title in titles]
        while self._width(titles) > console.width and len(titles) > self.words + 1:
            titles = titles[:-1]
        fits = self._width(titles) <= console.width
        drawn = Drawn(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for i, title in enumerate(titles):
            drawn.add_column(title, justify="left" if i < self.words else "right", no_wrap=fits, overflow="fold")
        for row in self.rows:
            drawn.add_row(*row[: len(titles)])
        console.print(drawn)
        if left_out := self.titles[len(titles) :]:
            console.print(f"not shown for want of width: {', '.join(left_out)}", soft_wrap=True)
        for note in self.notes:
            console.print(note, soft_wrap=True)

    def _width(self, titles: Sequence[str]) -> int:
        """Of as many columns as there are titles."""
        lines = [max(map(len, title.split("\n"))) for title in titles]
        return 1 + sum(2 + max(line, *(len(row[i]) for row in self.rows)) for i, line in enumerate(lines))


def _latex(cell: str) -> str:
    return "".join(LATEX.get(character, character) for character in cell)


def number(value: float | None, half: float | None = None) -> str:
    """To two digits of half its interval; four digits where there is none."""
    if value is None:
        return "-"
    if half:
        return f"{value:.{_decimals(half, 2)}f}"
    return f"{value:.{min(max(_decimals(value, 4), 0), 6)}f}" if value else "0"


def _decimals(value: float, digits: int) -> int:
    """So many behind the point show so many digits of the value."""
    return min(max(digits - 1 - math.floor(math.log10(abs(value))), 0), 8) if value else digits


def probability(p: float | None) -> str:
    return "-" if p is None else "<0.001" if p < 0.001 else f"{p:.3f}"


def words(measure: str) -> str:
    return measure.replace("_", " ")


def table_of(groups: Sequence[Group], measure: str, *, against: str | None = None) -> Table:
    """One row per group: mean of the measure with half its 95% interval, n, runs without a result; `against` KEY=VALUE
    the paired difference, its interval and p. ConfigError without scipy, where it is needed."""
    several = any(len(found.of(measure)) > 1 for found in groups)
    columns = _told(groups)
    if not several:
        columns.append(("run", [", ".join(run.directory.name for run in found.runs) for found in groups]))
    n_words = len(columns)
    notes = []
    title = words(measure)
    columns.append((f"{title} ± 95%" if several else title, [mean_of(found.of(measure)) for found in groups]))
    if several:
        columns.append(("n", [str(len(found.of(measure))) for found in groups]))
        if alone := [found.name for found in groups if len(found.of(measure)) == 1]:
            notes.append(f"one run only, so no interval: {'; '.join(alone)}")
    elif any(found.of(measure) for found in groups):
        notes.append("one run each: how much another seed would change it is not known")
    for status in dict.fromkeys(status for found in groups for status in found.failures(measure)):
        columns.append((status, [str(found.failures(measure).get(status, 0)) for found in groups]))
    if against is not None:
        find = baseline_of(groups, against)
        pairs = [(found, base, found.of(measure), base.of(measure)) for found in groups if (base := find(found))]
        key, _, value = against.partition("=")
        for found in groups:
            if not is_(found.values.get(key), value) and not any(found is one for one, *_ in pairs):
                notes.append(f"{found.name}: there is no {against} that is alike in all but {key}")
        more, said = _differences(groups, pairs, against)
        columns += more
        notes += said
    sent = [_mean(found, "bytes_sent_per_worker") for found in groups]
    if any(sent):
        columns.append(("MB sent", ["-" if mean is None else f"{mean / MEGABYTE:,.1f}" for mean in sent]))
    columns.append(("steps/s", [number(_mean(found, "steps_per_second")) for found in groups]))
    if n := sum(found.repeated() for found in groups):
        notes.append(f"{n} runs are the same as others, seed and all: of each the last one counts")
    rows = [list(cells) for cells in zip(*(cells for _, cells in columns), strict=True)]
    return Table([title for title, _ in columns], rows, notes, n_words)


def _told(groups: Sequence[Group]) -> list[tuple[str, list[str]]]:
    """The columns that say which group it is, and what was chosen for it."""
    columns = [(key, [shown(found.values[key]) for found in groups]) for key in groups[0].values]
    return columns + [(key, [shown(found.chosen[key]) for found in groups]) for key in groups[0].chosen]


def table_of_changes(groups: Sequence[Group], measure: str, first: str, second: str) -> Table:
    """How much the difference to `first` KEY=VALUE differs from what it is at `second` KEY=VALUE, paired by seed."""
    find, across = baseline_of(groups, first), baseline_of(groups, second)
    differences = {found.name: _by_seed(found, base, measure) for found in groups if (base := find(found))}
    pairs = [
        (found, there, differences[found.name], differences[there.name])
        for found in groups
        if (there := across(found)) and found.name in differences and there.name in differences
    ]
    if not pairs:
        raise ConfigError(f"against={first} against={second}: no group has a difference to the one at the other")
    rest = [found for found, *_ in pairs]
    columns = _told(rest)
    n_words = len(columns)
    more, notes = _differences(rest, pairs, second)
    notes[0] = f"how much the difference to {first} is larger than where {second}, seed by seed; {P_SAYS}"
    columns += [("difference of differences" if i == 0 else title, cells) for i, (title, cells) in enumerate(more)]
    rows = [list(cells) for cells in zip(*(cells for _, cells in columns), strict=True)]
    return Table([title for title, _ in columns], rows, notes, n_words)


def _by_seed(found: Group, base: Group, measure: str) -> dict[Any, float]:
    values, bases = found.of(measure), base.of(measure)
    return {seed: values[seed] - bases[seed] for seed in values if seed in bases}


def mean_of(values: dict[Any, float]) -> str:
    """Mean and half the interval of values by seed, in words."""
    if not values:
        return "-"
    if len(values) == 1:
        return number(next(iter(values.values())))
    found = statistics().estimate(list(values.values()))
    return f"{number(found.mean, found.half)} ± {number(found.half, found.half)}"


def _mean(found: Group, key: str) -> float | None:
    values = list(found.of(key).values())
    return sum(values) / len(values) if values else None


Pair = tuple[Group, Group, dict[Any, float], dict[Any, float]]  # a group, its baseline, and the values of both by seed
P_SAYS = "p is of the paired t test, Holm-corrected over the table"


def _differences(
    groups: Sequence[Group], pairs: Sequence[Pair], against: str
) -> tuple[list[tuple[str, list[str]]], list[str]]:
    """The columns, and what is to be known of them."""
    test = statistics()
    found = {group.name: test.paired(values, base) for group, _, values, base in pairs}
    in_order = [found.get(group.name) for group in groups]
    p_values = test.holm([None if one is None else one.p for one in in_order])
    notes = [f"differences are to {against}, seed by seed; {P_SAYS}"]
    for group, base, values, _ in pairs:
        one = found[group.name]
        if one is None and values:
            notes.append(f"{group.name}: no seed is in it and in {base.name}, so there is no difference")
        elif one is not None and one.alone:
            notes.append(
                f"{group.name} and {base.name}: {one.alone} runs of one have no partner of the same seed in the other,"
                " left out of the difference"
            )
    columns = [
        ("difference", [_signed(one) for one in in_order]),
        ("p", [probability(p) for p in p_values]),
        ("pairs", ["-" if one is None else str(one.estimate.n) for one in in_order]),
    ]
    return columns, notes


def _signed(one: Any) -> str:
    """A difference and half its interval."""
    if one is None:
        return "-"
    if one.estimate.half is None:
        return f"{one.estimate.mean:+.3g}"
    digits = _decimals(one.estimate.half, 2) if one.estimate.half > 1e-9 else 4
    return f"{one.estimate.mean:+.{digits}f} ± {one.estimate.half:.{digits}f}"


def statistics() -> Any:
    """The module, or what to do about that it cannot be imported. ConfigError without scipy."""
    from ticks.report import statistics as module

    try:
        import scipy  # noqa: F401
    except ImportError:
        raise ConfigError('means with intervals need scipy: pip install -e ".[report]"') from None
    return module
