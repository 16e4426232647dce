"""Runs that differ in nothing but their seed belong together: which keys tell groups apart, and what each came to."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ticks.config import ConfigError, did_you_mean
from ticks.report.runs import Run

# what does not make a run another experiment: where it lies, how it is called, what is shown of it, how fast it is
NEVER = ("seed", "run_dir", "resume", "name", "test", "task.sample_prompt", "task.sample_bytes")
NEVER_BELOW = ("logger.", "callbacks.checkpoint.")
FAILURES = ("diverged", "failed", "stopped", "running")  # runs that count, but have no result


@dataclass(frozen=True)
class Group:
    """Runs with the same `values` of the keys that tell groups apart."""

    values: dict[str, Any]
    runs: list[Run]
    chosen: dict[str, Any] = field(default_factory=dict)  # what else they have in common, the best of several

    @property
    def name(self) -> str:
        return ", ".join(f"{key}={shown(value)}" for key, value in self.values.items()) or "all runs"

    def of(self, measure: str) -> dict[Any, float]:
        """The measure by seed, of the runs that finished and have it. Of equal runs the last one counts: what is the
        same in everything is no second observation."""
        return {
            run.summary.get("seed"): float(run.summary[measure])
            for run in self.runs
            if run.summary["status"] == "finished" and isinstance(run.summary.get(measure), int | float)
        }

    def failures(self, measure: str | None = None) -> dict[str, int]:
        """How many runs came to no result, by what became of them; or finished without this measure."""
        counts = {status: sum(run.summary["status"] == status for run in self.runs) for status in FAILURES}
        if measure is not None:
            finished = [run for run in self.runs if run.summary["status"] == "finished"]
            counts["no value"] = sum(not isinstance(run.summary.get(measure), int | float) for run in finished)
        return {status: n for status, n in counts.items() if n}

    def repeated(self) -> int:
        """Runs that are the same as another one in seed and all."""
        finished = [run.summary.get("seed") for run in self.runs if run.summary["status"] == "finished"]
        return len(finished) - len(set(finished))


def shown(value: Any) -> str:
    """A setting's value as a person writes it."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def group(
    runs: Sequence[Run], by: Sequence[str] = (), also: Sequence[str] = (), best: Sequence[str] = ()
) -> list[Group]:
    """Runs by the values of `by`, in order; without any, by every key that differs but the seed, and by `also`; and by
    `best`, keys of which one value is to be chosen.

    ConfigError for a key that no run has, and if runs in one group are different experiments.
    """
    for key in (*by, *also):
        known(key, runs)
    for key in best:
        check_best(key, runs)
    keys = list(by) or differing(runs, best)
    keys += [key for key in (*also, *best) if key not in keys]
    groups: dict[tuple[str, ...], Group] = {}
    for run in runs:
        values = {key: setting(run, key) for key in keys}
        groups.setdefault(tuple(map(shown, values.values())), Group(values, [])).runs.append(run)
    for found in groups.values():
        if by and (inner := differing(found.runs)):
            raise ConfigError(
                f"by={','.join(by)}: runs of {found.name} differ in {', '.join(inner)} as well; add it, or choose fewer"
            )
    return [found for _, found in sorted(groups.items(), key=lambda item: _order(item[1]))]


def choose(groups: Sequence[Group], keys: Sequence[str], measure: str, better: str) -> tuple[list[Group], list[str]]:
    """Of groups that are alike in all but `keys` the best by the mean of `measure`, without these keys; and what a
    reader has to know. First come those with a result for most seeds: what diverges with some is not the best.

    ConfigError for groups that differ in more than `keys`.
    """
    alike: dict[tuple[str, ...], list[Group]] = {}
    for found in groups:
        rest = tuple(shown(value) for key, value in found.values.items() if key not in keys)
        alike.setdefault(rest, []).append(found)
    title = measure.replace("_", " ")
    notes = [f"{', '.join(keys)}: the best by {title}, chosen by these runs; no interval and no p knows of the choice"]
    chosen = []
    for several in alike.values():
        of_all = [run for found in several for run in found.runs]
        if inner := [key for key in differing(of_all, keys) if key not in keys]:
            raise ConfigError(
                f"best={','.join(keys)}: {several[0].name} and {several[-1].name} differ in {', '.join(inner)} as well"
            )
        seeds = {run.summary.get("seed") for run in of_all}
        best = min(several, key=lambda found: (len(seeds - found.of(measure).keys()), _worth(found, measure, better)))
        others = {key: value for key, value in best.values.items() if key not in keys}
        own = Group(others, best.runs, {key: best.values[key] for key in keys})
        chosen.append(own)
        notes.append(f"{own.name}: {_tried(best, several, keys, measure, better, seeds)}")
    return chosen, notes


def _worth(found: Group, measure: str, better: str) -> float:
    """Less is better."""
    values = list(found.of(measure).values())
    mean = sum(values) / len(values) if values else float("inf")
    return -mean if better == "higher" and values else mean


def _tried(
    best: Group, several: Sequence[Group], keys: Sequence[str], measure: str, better: str, seeds: set[Any]
) -> str:
    """Of how many values the best was chosen, and what makes that doubtful."""
    if not best.of(measure):
        return f"no run of {len(several)} values came to a result"
    said = [f"the best of {len(several)}"]
    said += [edge for key in keys if (edge := _at_the_edge(key, best, several))]
    for found in several:
        if _worth(found, measure, better) < _worth(best, measure, better):
            value = ", ".join(f"{key}={shown(found.values[key])}" for key in keys)
            said.append(f"{value} was better where it has a result, for {len(found.of(measure))} of {len(seeds)} seeds")
    return "; ".join(said)


def check_best(key: str, runs: Sequence[Run]) -> None:
    """ConfigError unless one of its values can be the best: not a seed, nor what a run came to."""
    known(key, runs)
    if key in NEVER or key.startswith(NEVER_BELOW) or not any(key in run.settings for run in runs):
        raise ConfigError(f"best={key} must be a setting by which runs are other experiments, as best=optimizer.lr")


def _at_the_edge(key: str, best: Group, several: Sequence[Group]) -> str:
    """What to know of a number that is the smallest or largest of at least three."""
    values = [found.values[key] for found in several]
    numbers = sorted({v for v in values if isinstance(v, int | float) and not isinstance(v, bool)})
    if len(numbers) < 3 or best.values[key] not in (numbers[0], numbers[-1]):
        return ""
    which = "smallest" if best.values[key] == numbers[0] else "largest"
    return f"{key}={shown(best.values[key])} is the {which} that was tried"


def setting(run: Run, key: str) -> Any:
    """A run's setting; or what its summary says under that name."""
    return run.settings[key] if key in run.settings else run.summary.get(key)


def known(key: str, runs: Sequence[Run]) -> None:
    """ConfigError if no run has such a setting, nor such a key in its summary."""
    keys = {name: None for run in runs for name in [*run.settings, *run.summary]}
    if key not in keys:
        raise ConfigError(f"no run has '{key}'{did_you_mean(key, keys)}")


def differing(runs: Sequence[Run], last: Sequence[str] = ()) -> list[str]:
    """The keys by which runs are told apart: of those that differ, the fewest that do, what was typed before all else,
    and `last` keys only where no other does.

    A strategy of another name has other values below it as well: where the name says enough, they are left out.
    """
    candidates = dict.fromkeys(key for run in runs for key in run.settings if _counts(key, runs))
    kept: list[str] = []
    cells: list[tuple[str, ...]] = [()] * len(runs)
    for key in sorted(candidates, key=lambda key: (key in last, _typed_first(key, runs))):
        finer = [(*cell, shown(run.settings.get(key))) for cell, run in zip(cells, runs, strict=True)]
        if len(set(finer)) > len(set(cells)):
            kept.append(key)
            cells = finer
    return kept


def _counts(key: str, runs: Sequence[Run]) -> bool:
    """Whether the key can tell groups apart: it differs, and not because the seed or the place does."""
    if key in NEVER or key.startswith(NEVER_BELOW):
        return False
    values = [run.settings.get(key) for run in runs]
    pairs = list(zip(values, (run.settings for run in runs), strict=True))
    if len(set(map(shown, values))) < 2 or all(value in (None, told.get("seed")) for value, told in pairs):
        return False
    return not any(_within(value, told.get("run_dir")) for value, told in pairs)


def _within(value: Any, run_dir: Any) -> bool:
    """Whether it is a place in the run's own directory."""
    return bool(run_dir) and isinstance(value, str) and (value == str(run_dir) or value.startswith(f"{run_dir}/"))


def _typed_first(key: str, runs: Sequence[Run]) -> tuple[int, int]:
    """What was typed for any run, in that order; then as configurations have it, names of groups before values."""
    typed = [run.typed.index(key) for run in runs if key in run.typed]
    places = [list(run.settings).index(key) for run in runs if key in run.settings]
    return (0, min(typed)) if typed else (1, min(places))


def _order(found: Group) -> tuple[tuple[int, float, str], ...]:
    """Numbers by size, everything else by name."""
    return tuple(
        (0, float(value), "")
        if isinstance(value, int | float) and not isinstance(value, bool)
        else (1, 0.0, str(value))
        for value in found.values.values()
    )


def baseline_of(groups: Sequence[Group], against: str) -> Callable[[Group], Group | None]:
    """Which group each is compared with: the one that has KEY=VALUE and everything else as it has, as far as it has it:
    what a strategy does not know, as DDP no interval, cannot differ. ConfigError if nothing has KEY=VALUE."""
    key, _, value = against.partition("=")
    there = [found for found in groups if key in found.values and is_(found.values[key], value)]
    if not there:
        keys = dict.fromkeys(key for found in groups for key in found.values)
        if key not in keys:
            said = ", ".join(keys) or "nothing"
            raise ConfigError(f"against={against}: groups are told apart by {said}, not by {key}")
        values = dict.fromkeys(shown(found.values[key]) for found in groups)
        raise ConfigError(f"against={against}: no group has it; {key} is {', '.join(values)}")

    def find(one: Group) -> Group | None:
        if one in there:
            return None
        rest = [name for name in one.values if name != key]
        alike = [found for found in there if all(found.values[name] in (one.values[name], None) for name in rest)]
        return max(alike, key=lambda found: sum(found.values[name] is not None for name in rest), default=None)

    return find


def is_(value: Any, said: str) -> bool:
    """Whether a setting has the value that was typed."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return float(said) == float(value)
        except ValueError:
            return False
    return shown(value) == said
