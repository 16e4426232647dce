"""A report's figures of groups of runs: learning curves, a measure against a setting, a frontier, a heat map."""

import math
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from ticks.config import ConfigError
from ticks.report.groups import Group, baseline_of, known, setting, shown
from ticks.report.runs import Run
from ticks.report.style import BAND, DARK, GREY, MARKERS, colours, label_ends, log_scale, picture, pyplot, say_how_many
from ticks.report.tables import MEGABYTE, number, statistics, words

TRAINING = {
    "step": "optimizer steps",
    "seconds": "seconds of training",
    "tokens": "tokens",
    "bytes_sent": "MB sent per worker",
}
SENT = "bytes_sent_per_worker"
TIMELINE, PHASE = "timeline/", "phase: "
STATES = ("ramps", "holds", "rests")  # of a setting
MOST_OFTEN = 3  # how often the name of what happens stands there


class Points(NamedTuple):
    """Means over seeds with their intervals, in the order of x."""

    x: list[float]
    y: list[float]
    low: list[float]
    high: list[float]


def draw(
    groups: Sequence[Group], measure: str, out: Path, *, x: Sequence[str] = (), better: str = "lower",
    against: str | None = None,
) -> None:  # fmt: skip
    """The figure that x asks for: without it the curves against MB sent and steps; a column of metrics.csv, the curves
    against it; a setting, the measure against it, and with `against` (KEY=VALUE) the differences to it beside; two of
    them, a heat map; bytes_sent_per_worker, a frontier.

    ConfigError for what cannot be drawn.
    """
    pyplot()
    check_x(x, [run for found in groups for run in found.runs])
    if against and (len(x) != 1 or x[0] in (*TRAINING, SENT)):
        print(
            f"note: {out} shows values; differences are drawn against one setting, x=KEY", file=sys.stderr, flush=True
        )
    if not x or (len(x) == 1 and x[0] in TRAINING):
        curves(groups, measure, out, list(x) or ["bytes_sent", "step"])
    elif len(x) == 1 and x[0] == SENT:
        frontier(groups, measure, out, better)
    elif len(x) == 1:
        lines(groups, measure, out, x[0], against)
    else:
        heat_map(groups, measure, out, x[0], x[1], better)


def check_x(x: Sequence[str], runs: Sequence[Run]) -> None:
    """ConfigError for what no figure of these runs can have as its x."""
    for key in x:
        if key not in TRAINING:
            known(key, runs)
    if len(x) > 2:
        raise ConfigError(f"x={','.join(x)}: one key, or two for a heat map")


def sizes(groups: Sequence[Group], measure: str) -> list[int]:
    """How many seeds the mean of each is of; what has none is not drawn."""
    return [n for found in groups if (n := len(found.of(measure)))]


# ---- curves ----------------------------------------------------------------------------------------------------------


def evaluations(run: Run, measure: str) -> dict[int, tuple[dict[str, float], float]]:
    """By step, where each evaluation during training stands and what it found; none from a damaged record."""
    key = measure.replace("val_", "val/", 1)
    found: dict[int, tuple[dict[str, float], float]] = {}
    for row in run.rows:
        try:
            if row.get(key) and row["step"] != "0":
                there = {name: float(row[name]) for name in TRAINING if row.get(name)}
                found.setdefault(int(row["step"]), (there, float(row[key])))  # before what the next phase begins with
        except (ValueError, TypeError, KeyError):
            return {}
    return found


def curve(found: Group, measure: str, x: str) -> Points:
    """The measure at each step that every seed's record has."""
    records = [evaluations(run, measure) for run in drawn_of(found)]
    records = [record for record in records if len(record) > 1]
    shared = sorted(set.intersection(*map(set, records))) if records else []
    xs, estimates = [], []
    for step in shared:
        places = [record[step][0].get(x) for record in records]
        if any(place is None for place in places):
            continue
        xs.append(sum(filter(None, places)) / len(places) / (MEGABYTE if x == "bytes_sent" else 1))
        if x == "bytes_sent" and not xs[-1]:
            xs.pop()  # nothing was sent: it has no place on a logarithm's scale
            continue
        estimates.append(_estimate([record[step][1] for record in records]))
    return Points(xs, *([getattr(e, name) for e in estimates] for name in ("mean", "low", "high")))


def drawn_of(found: Group) -> list[Run]:
    """Those of its runs that a curve is of, as the table's row is: finished ones, one per seed; where none is, all."""
    finished = {run.summary.get("seed"): run for run in found.runs if run.summary["status"] == "finished"}
    return list(finished.values()) or found.runs


class Single(NamedTuple):
    mean: float
    low: float
    high: float


def _estimate(values: Sequence[float]) -> Any:
    """With an interval, or of no width where one value has none."""
    if len(values) == 1:
        return Single(values[0], values[0], values[0])
    return statistics().estimate(values)


def curves(groups: Sequence[Group], measure: str, out: Path, xs: Sequence[str]) -> None:
    """The measure during training, a line per group with its 95% interval, against each of `xs`."""
    lines = [{x: curve(found, measure, x) for x in xs} for found in groups]
    if len(xs) > 1 and not any(line["bytes_sent"].x for line in lines if "bytes_sent" in line):
        xs = [x for x in xs if x != "bytes_sent"]  # one worker sends nothing
    drawn = [i for i, line in enumerate(lines) if any(len(points.x) > 1 for points in line.values())]
    if not drawn:
        raise ConfigError(
            "nothing to draw: no run has two evaluations during training (trainer.val_check_interval says after"
            " how many steps they come; those of runs.csv are in runs.curves.csv, beside it)"
        )
    if left := [name_of(found) for i, found in enumerate(groups) if i not in drawn]:
        print(f"warning: fewer than two evaluations, not drawn: {'; '.join(left)}", file=sys.stderr, flush=True)
    shades = dict(zip(drawn, colours([label_of(groups[i]) for i in drawn]), strict=True))
    with picture(out, columns=len(xs), size=(5.2, 3.8)) as axes:
        for place, x in zip([axes] if len(xs) == 1 else axes, xs, strict=True):
            ends: list[tuple[float, float, str, str]] = []
            for i in drawn:
                points = lines[i][x]
                if not points.x:
                    continue
                marker = MARKERS[len(ends) % len(MARKERS)]
                for part in _parts(points, borders(drawn_of(groups[i]), x)):
                    place.plot(part.x, part.y, marker=marker, color=shades[i])
                    place.fill_between(part.x, part.low, part.high, color=shades[i], alpha=BAND, linewidth=0)
                ends.append((points.x[-1], points.y[-1], label_of(groups[i]), shades[i]))
            happenings(place, [run for i in drawn for run in drawn_of(groups[i])], x)
            if x == "bytes_sent":
                log_scale(place)
            else:
                place.xaxis.get_major_locator().set_params(integer=True)
            place.set_xlabel(TRAINING[x] + (" (log scale)" if x == "bytes_sent" else ""))
            place.set_ylabel(_axis(measure))
            say_how_many(place, [len(drawn_of(groups[i])) for i in drawn])
            label_ends(place, ends)


def happenings(axes: Any, runs: Sequence[Run], x: str) -> None:
    """What a timeline did, as lines with their names, and phases as shades: of runs in which the same happened."""
    found = {tuple((step, name) for step, name, _ in happened(run, x)) for run in runs}
    if len(found) != 1:
        return
    marks = [mark for mark in happened(runs[0], x) if mark[2] > 0 or x != "bytes_sent"]
    often = {name for _, name, _ in marks if sum(name == other for _, other, _ in marks) > MOST_OFTEN}
    last = axes.dataLim.x1
    phases = [(at, name) for _, name, at in marks if name.startswith(PHASE)]
    for i, (at, name) in enumerate(phases):
        end = phases[i + 1][0] if i + 1 < len(phases) else last
        axes.axvspan(at, end, color=GREY, alpha=0.12 if i % 2 else 0.04, linewidth=0, zorder=0)
        _at_top(axes, at, name.removeprefix(PHASE))
    told: list[float] = []  # where a name stands
    for _, name, at in marks:
        if not name.startswith(PHASE):
            axes.axvline(at, color=GREY, linestyle="--", linewidth=0.8, zorder=0)
            if name not in often:
                _at_bottom(axes, at, name, told)
    for name in sorted(often):
        _at_bottom(axes, next(at for _, other, at in marks if other == name), name, told)


def borders(runs: Sequence[Run], x: str) -> list[float]:
    """Where another phase begins, on an axis of `x`: the first run's, which stands for all of its group."""
    return [at for _, name, at in happened(runs[0], x) if name.startswith(PHASE)][1:] if runs else []


def _parts(points: Points, cuts: Sequence[float]) -> list[Points]:
    """A curve's, each of one phase: between two there is another task."""
    parts = []
    for low, high in pairwise([-math.inf, *cuts, math.inf]):
        inside = [i for i, at in enumerate(points.x) if low < at <= high]
        if inside:
            parts.append(Points(*([values[i] for i in inside] for values in points)))
    return parts


def _at_top(axes: Any, at: float, text: str) -> None:
    axes.annotate(
        text, (at, 1.0), (3, -3), xycoords=axes.get_xaxis_transform(), textcoords="offset points", ha="left", va="top",
        fontsize=7, color=DARK,
    )  # fmt: skip


def _at_bottom(axes: Any, at: float, text: str, told: list[float]) -> None:
    """Upright, and further up where one stands there already."""
    near = 0.04 * (axes.dataLim.x1 - axes.dataLim.x0)
    height = 0.35 * sum(abs(at - other) < near for other in told)
    told.append(at)
    axes.annotate(
        text, (at, height), (3, 3), xycoords=axes.get_xaxis_transform(), textcoords="offset points", rotation=90,
        ha="left", va="bottom", fontsize=7, color=DARK,
    )  # fmt: skip


def happened(run: Run, x: str) -> list[tuple[int, str, float]]:
    """By their steps, what a timeline did in a run, and where that is on an axis of `x`."""
    found = []
    for row in run.rows:
        for key, value in row.items():
            if not key.startswith(TIMELINE) or not value:
                continue
            name = key.removeprefix(TIMELINE)
            if name == "phase":
                name = f"{PHASE}{value}"
            elif value in STATES:
                name = f"{name} {value}"
            try:
                found.append((int(row["step"]), name, float(row[x]) / (MEGABYTE if x == "bytes_sent" else 1)))
            except (ValueError, KeyError, TypeError):
                continue
    return found


def name_of(found: Group) -> str:
    return found.name if found.values else str(found.runs[0].directory)


def label_of(found: Group) -> str:
    """What tells a group from the others, without the names of the keys where the values speak for themselves."""
    parts = []
    for key, value in found.values.items():
        last = key.rpartition(".")[2].rpartition("/")[2]
        if value is None:
            continue
        parts.append(f"{last} {shown(value)}" if isinstance(value, int | float) else shown(value))
    if not parts and found.values:  # what others say, and these do not
        parts = [f"no {key.rpartition('.')[2].rpartition('/')[2]}" for key in found.values]
    alone = found.runs[0].directory.name if len(found.runs) == 1 else "all runs"
    return ", ".join(parts) or alone


# ---- a measure against a setting -------------------------------------------------------------------------------------


def lines(groups: Sequence[Group], measure: str, out: Path, x: str, against: str | None = None) -> None:
    """The measure against a setting: a line per group of everything else, with its interval at each point; beside it,
    with `against`, the difference to what has KEY=VALUE, paired by seed, with the interval of the difference."""
    for one in groups:
        if len({shown(setting(run, x)) for run in one.runs}) > 1:
            raise ConfigError(f"x={x}: it differs between the runs of {one.name}, so they have no one place")
    values = [setting(run, x) for found in groups for run in found.runs]
    numeric = all(isinstance(value, int | float) for value in values)
    ticks: list[Any] = sorted(set(values)) if numeric else list(dict.fromkeys(map(shown, values)))
    is_log = numeric and len(ticks) > 2 and min(ticks) > 0 and max(ticks) / min(ticks) >= 8
    if crowded := numeric and not is_log and _crowded(ticks):
        numeric, ticks = False, [shown(tick) for tick in ticks]
    means = {id(group): _estimate(list(of.values())) for group in groups if (of := group.of(measure))}
    panels = [(_axis(measure), _lines(groups, x, ticks, numeric, means), sizes(groups, measure))]
    if against is not None:
        differences = _differences(groups, measure, against)
        title = f"difference to {_baseline(against)}, seed by seed"
        pairs = [n for _, n in differences.values() if n]
        drawn = {group: single for group, (single, _) in differences.items()}
        panels += [(title, _lines(groups, x, ticks, numeric, drawn), pairs)] if pairs else []
    if not means:
        raise ConfigError(f"nothing to draw: no run has finished with {measure}")
    names = list(panels[0][1])
    for lost in [label_of(group) for group in groups if id(group) not in means]:
        print(f"warning: no run has finished, not drawn: {lost}", file=sys.stderr, flush=True)
    shades, marks = dict(zip(names, colours(names), strict=True)), dict(zip(names, MARKERS * len(names), strict=False))
    note = " (log scale)" if is_log else " (not to scale)" if crowded else ""
    with picture(out, columns=len(panels), size=(6.0 if len(panels) == 1 else 5.2, 4.0)) as axes:
        for place, (label, found, of_runs) in zip([axes] if len(panels) == 1 else axes, panels, strict=True):
            ends: list[tuple[float, float, str, str]] = []
            rightmost: dict[float, float] = {}  # by where lines end, where the last of them is drawn
            for i, (name, points) in enumerate(found.items()):
                apart = _apart(points.x, i - (len(found) - 1) / 2, ticks if numeric else range(len(ticks)), log=is_log)
                style = "-" if len(points.x) > 1 else "none"
                _with_errors(place, points._replace(x=apart), shades[name], line=style, marker=marks[name])
                ends.append((points.x[-1], points.y[-1], name if len(found) > 1 else "", shades[name]))
                rightmost[points.x[-1]] = max(apart[-1], rightmost.get(points.x[-1], apart[-1]))
            if is_log:
                place.set_xscale("log", base=2)
                place.minorticks_off()
            place.set_xticks(ticks if numeric else range(len(ticks)), [shown(tick) for tick in ticks])
            place.set_xlabel(_last(x) + note)
            place.set_ylabel(label)
            if found is not panels[0][1]:
                place.axhline(0.0, color=GREY, linestyle=":", linewidth=1)
            say_how_many(place, of_runs)
            label_ends(place, [(rightmost[at], y, name, colour) for at, y, name, colour in ends])


def _lines(
    groups: Sequence[Group], x: str, ticks: Sequence[Any], numeric: bool, drawn: dict[int, Any]
) -> dict[str, Points]:
    """Where each line goes, by its name: a line is of groups that differ in x alone, and goes through those `drawn`."""
    found: dict[tuple[Any, ...], list[tuple[Any, ...]]] = {}
    for group in groups:
        if id(group) in drawn:
            where, estimate = setting(group.runs[0], x), drawn[id(group)]
            point = where if numeric else ticks.index(shown(where)), estimate.mean, estimate.low, estimate.high
            rest = tuple((key, value) for key, value in group.values.items() if key != x)
            found.setdefault(rest, []).append(point)
    return {
        label_of(Group(dict(rest), [])): Points(*([point[i] for point in sorted(points)] for i in range(4)))
        for rest, points in found.items()
    }


def _differences(groups: Sequence[Group], measure: str, against: str) -> dict[int, tuple[Single, int]]:
    """By group, the mean difference to its baseline with its interval, and of how many pairs it is; of a baseline
    itself nothing, 0 pairs."""
    base_of, found = baseline_of(groups, against), {}
    for group in groups:
        base = base_of(group)
        if base is None or (one := statistics().paired(group.of(measure), base.of(measure))) is None:
            continue  # a baseline, or one that has none
        mean, half = one.estimate.mean, one.estimate.half or 0.0
        found[id(group)] = Single(mean, mean - half, mean + half), one.estimate.n
        found[id(base)] = Single(0.0, 0.0, 0.0), 0
    return found


def _crowded(ticks: Sequence[float]) -> bool:
    """Whether some would lie on each other, as 0, 0.001 and 0.1 do."""
    return len(ticks) > 2 and 15 * min(b - a for a, b in pairwise(ticks)) < ticks[-1] - ticks[0]


def _apart(x: Sequence[float], place: float, ticks: Sequence[float], *, log: bool) -> list[float]:
    """A little beside where they are, so that the intervals of several lines do not lie on each other."""
    if log:
        return [value * 1.025**place for value in x]
    gaps = [b - a for a, b in pairwise(ticks)]
    return [value + 0.02 * place * min(gaps, default=0) for value in x]


def _baseline(against: str) -> str:
    key, _, value = against.partition("=")
    return f"{_last(key)} {value}" if value.replace(".", "").isdigit() else value


def _axis(measure: str) -> str:
    return words(measure).replace("val ", "validation ", 1)


def _last(key: str) -> str:
    """A key as a person calls it."""
    return key.rpartition(".")[2].rpartition("/")[2].replace("_", " ")


def _with_errors(axes: Any, points: Points, colour: str, *, line: str = "none", marker: str = "o") -> None:
    errors = [
        [y - low for y, low in zip(points.y, points.low, strict=True)],
        [high - y for y, high in zip(points.y, points.high, strict=True)],
    ]
    axes.errorbar(points.x, points.y, errors, fmt=marker, linestyle=line, color=colour, capsize=2.5)


# ---- a frontier ------------------------------------------------------------------------------------------------------


def frontier(groups: Sequence[Group], measure: str, out: Path, better: str) -> None:
    """What each group came to for how many MB; the dotted line joins those that no other beats in both.

    Groups that differ in a number have one colour, and each its number beside it.
    """
    series: dict[str, list[tuple[float, Any, str]]] = {}
    for found in groups:
        values, sent = list(found.of(measure).values()), list(found.of(SENT).values())
        if values and sent and sum(sent) > 0:
            names = {key: value for key, value in found.values.items() if not _is_number(value)}
            numbers = {key: value for key, value in found.values.items() if key not in names}
            point = (
                sum(sent) / len(sent) / MEGABYTE,
                _estimate(values),
                label_of(Group(numbers, [])) if numbers else "",
            )
            series.setdefault(label_of(Group(names, [])) if names else "", []).append(point)
        else:
            print(f"warning: left out: {found.name}: no run has finished and sent anything", file=sys.stderr)
    if not series:
        raise ConfigError(f"nothing to draw: no run has finished with {measure} and sent anything")
    best = pareto([(x, estimate.mean) for points in series.values() for x, estimate, _ in points], better)
    with picture(out, size=(6.5, 4.2)) as axes:
        axes.step(*zip(*best, strict=True), where="post", color=GREY, linestyle=":", zorder=0)
        ends = []
        for (name, points), colour in zip(series.items(), colours(list(series)), strict=True):
            points.sort(key=lambda point: point[0])
            estimates = [estimate for _, estimate, _ in points]
            means, low, high = ([getattr(e, which) for e in estimates] for which in ("mean", "low", "high"))
            _with_errors(axes, Points([x for x, _, _ in points], means, low, high), colour)
            for x, estimate, said in points[:-1]:
                axes.annotate(said, (x, estimate.mean), (4, 4), textcoords="offset points", fontsize=8, color=colour)
            ends.append((points[-1][0], means[-1], ", ".join(filter(None, (name, points[-1][2]))), colour))
        log_scale(axes)
        axes.set_xlabel("MB sent per worker (log scale)")
        axes.set_ylabel(_axis(measure))
        say_how_many(axes, sizes(groups, measure))
        label_ends(axes, ends)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def pareto(points: Sequence[tuple[float, float]], better: str) -> list[tuple[float, float]]:
    """The points (cost, value) that no other is at most as dear as and at least as good as; cheapest first."""
    sign = 1 if better == "lower" else -1
    best: list[tuple[float, float]] = []
    for x, y in sorted(points, key=lambda point: (point[0], sign * point[1])):
        if not best or sign * y < sign * best[-1][1]:
            best.append((x, y))
    return best


# ---- a heat map ------------------------------------------------------------------------------------------------------


def heat_map(groups: Sequence[Group], measure: str, out: Path, x: str, y: str, better: str) -> None:
    """The measure over two settings, each cell with its mean and half its interval. ConfigError where a cell would hold
    several groups."""
    cells: dict[tuple[str, str], Group] = {}
    for found in groups:
        place = shown(setting(found.runs[0], x)), shown(setting(found.runs[0], y))
        if place in cells:
            raise ConfigError(
                f"x={x},{y}: {found.name} and {cells[place].name} are one cell;"
                f" choose runs that differ in {x} and {y} alone"
            )
        cells[place] = found
    columns, rows = (list(dict.fromkeys(place[i] for place in _sorted(cells, key))) for i, key in ((0, x), (1, y)))
    means = [[_mean(cells.get((column, row)), measure) for column in columns] for row in rows]
    known_means = [mean for row in means for mean in row if mean == mean]
    if not known_means:
        raise ConfigError(f"nothing to draw: no run has finished with {measure}")
    low, high = min(known_means), max(known_means)
    with picture(out, size=(1.6 + 1.1 * len(columns), 1.4 + 0.62 * len(rows))) as axes:
        shade = "cividis_r" if better == "lower" else "cividis"
        image = axes.imshow(means, cmap=shade, aspect="auto", vmin=low, vmax=high)
        axes.grid(False)
        axes.set_xticks(range(len(columns)), columns)
        axes.set_yticks(range(len(rows)), rows)
        axes.set_xlabel(_last(x))
        axes.set_ylabel(_last(y))
        for i, row in enumerate(rows):
            for j, column in enumerate(columns):
                text = _cell(cells.get((column, row)), measure)
                share = 0.0 if high == low or means[i][j] != means[i][j] else (means[i][j] - low) / (high - low)
                dark = (share > 0.5) == (better == "lower")
                axes.text(j, i, text, ha="center", va="center", fontsize=8, color="white" if dark else "black")
        say_how_many(axes, sizes(list(cells.values()), measure))
        axes.figure.colorbar(image, ax=axes, label=_axis(measure))


def _sorted(cells: dict[tuple[str, str], Group], key: str) -> list[tuple[str, str]]:
    """Places by the size of what is there, if it is a number."""
    values = {place: setting(found.runs[0], key) for place, found in cells.items()}
    if not all(_is_number(value) for value in values.values()):
        return list(cells)
    return sorted(cells, key=lambda place: float(values[place] or 0))


def _mean(found: Group | None, measure: str) -> float:
    values = list(found.of(measure).values()) if found is not None else []
    return sum(values) / len(values) if values else float("nan")


def _cell(found: Group | None, measure: str) -> str:
    if found is None:
        return "-"
    values = list(found.of(measure).values())
    if not values:
        return "\n".join(f"{n} {status}" for status, n in found.failures().items()) or "-"
    estimate = _estimate(values)
    half = (estimate.high - estimate.low) / 2
    failed = sum(found.failures().values())
    lost = f"\n{failed} of {failed + len(values)} lost" if failed else ""
    return number(estimate.mean, half) + (f"\n± {number(half, half)}" if half else "") + lost
