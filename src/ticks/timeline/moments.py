"""When: moments of a run as people write them, and the entries of a timeline that have them.

100         after 100 steps                    every: 100       after steps 100, 200, ...
"50%"       after half of them                 every: 10%
"tick 12"   after the 12th tick                every: 4 ticks
"20min"     after so much training             every: 30s       (also 2h; agreed by all workers at a tick)

Everything counts what is over: a setting that holds from 100 on is that of step 101 first.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from ticks.arguments import ArgumentError, is_whole
from ticks.timeline.action import Action, Event, Setting

Kind = Literal["steps", "ticks", "seconds"]
UNITS = {"s": 1.0, "min": 60.0, "h": 3600.0}
FORMS = "a number of steps, 50%, tick 12, 30s, 20min or 2h"
KEYS = ("at", "every", "from", "until", "ramp", "do")


@dataclass(frozen=True)
class Moment:
    """So many steps, ticks or seconds are over; `said` is how it was written."""

    kind: Kind
    n: float
    said: str

    def __str__(self) -> str:
        return f"step {self.n:.0f}" if self.kind == "steps" else self.said


def moment(argument: str, said: Any, total_steps: float, *, length: bool = False) -> Moment:
    """What was written, of a run of so many steps (infinite where nobody knows); a `length` is at least 1.
    ArgumentError for what is none."""
    text = str(said).strip()
    kind: Kind = "steps"
    if is_whole(said) or re.fullmatch(r"\d+( steps?)?", text):
        n = float(text.split()[0])
    elif found := re.fullmatch(r"(\d+(?:\.\d+)?) ?%", text):
        if not math.isfinite(total_steps):
            raise ArgumentError(argument, said, "is a share of a run without an end: give it a number of steps")
        n = float(round(float(found[1]) / 100 * total_steps))
    elif found := re.fullmatch(r"(\d+) ticks?" if length else r"ticks? (\d+)", text):
        kind, n = "ticks", float(found[1])
    elif found := re.fullmatch(r"(\d+(?:\.\d+)?) ?(s|min|h)", text):
        kind, n = "seconds", float(found[1]) * UNITS[found[2]]
    else:
        forms = FORMS.replace("tick 12", "12 ticks") if length else FORMS
        raise ArgumentError(argument, said, f"must be {forms}")
    if length and kind == "steps" and n < 1 and text.endswith("%") and float(text.removesuffix("%")) > 0:
        raise ArgumentError(argument, said, f"of {total_steps:.0f} steps is less than one")
    if n < 0 or (length and n < (1 if kind != "seconds" else 1e-3)):
        raise ArgumentError(argument, said, f"must be {'above' if length else 'at least'} 0")
    if kind != "steps" and not n:
        raise ArgumentError(argument, said, "must be above 0; before the first step it is 0")
    return Moment(kind, n, text)


@dataclass(frozen=True)
class Entry:
    """One of a timeline's: an event at its moments, or a setting over a span of steps."""

    name: str
    do: Action
    at: tuple[Moment, ...] = ()
    every: Moment | None = None
    begin: int = 0  # steps that are over before it holds
    until: float = math.inf  # and when it holds no more
    ramp: int = 0  # steps

    @property
    def first(self) -> float:
        """The step before its first, as far as that is known."""
        known = [m.n for m in (*self.at, *([self.every] if self.every else [])) if m.kind == "steps"]
        return min(known, default=0.0) if isinstance(self.do, Event) else float(self.begin)

    # ---- a setting

    def holds(self, step: int) -> bool:
        """Of the setting: whether it is in force in this step."""
        return self.begin < step <= self.until

    def share(self, step: int) -> float:
        """Of the way from its start to its end: 0 where it does not hold, 1 behind the ramp."""
        if not self.holds(step):
            return 0.0
        return 1.0 if not self.ramp else min(1.0, (step - self.begin) / self.ramp)

    def state(self, step: int) -> str:
        """A word for it in this step."""
        if not self.holds(step):
            return "rests"
        return "ramps" if self.share(step) < 1 else "holds"

    def next_change(self, step: int) -> float:
        """The first step behind this one in which its share may be another."""
        if step <= self.begin:
            return self.begin + 1
        if step < self.begin + self.ramp and step < self.until:
            return step + 1
        return self.until + 1 if step <= self.until else math.inf

    # ---- an event

    def kinds(self) -> set[Kind]:
        """What its moments count."""
        return {m.kind for m in (*self.at, *([self.every] if self.every else []))}

    def due(self, kind: Kind, before: float, now: float) -> bool:
        """Whether one of its moments lies behind `before` and up to `now`."""
        if any(m.kind == kind and before < m.n <= now for m in self.at):
            return True
        if self.every is None or self.every.kind != kind or (kind == "steps" and not self.begin < now <= self.until):
            return False
        return max(0.0, before) // self.every.n < now // self.every.n

    def next_moment(self, kind: Kind, after: float) -> float:
        """Its next of a kind behind so many steps, ticks or seconds; infinite where there is none."""
        found = [m.n for m in self.at if m.kind == kind and m.n > after]
        if self.every is not None and self.every.kind == kind:
            n = (max(after, float(self.begin)) // self.every.n + 1) * self.every.n
            found += [n] if n <= self.until else []
        return min(found, default=math.inf)

    def __str__(self) -> str:
        if isinstance(self.do, Event):
            when = (
                ", ".join(f"after {m}" for m in self.at)
                if self.at
                else f"every {self.every.said if self.every else ''}"
            )
            return f"{when}: {self.do}"
        span = f"from step {self.begin + 1}" + (f" to {self.until:.0f}" if math.isfinite(self.until) else "")
        return f"{span}{f', over {self.ramp} steps' * bool(self.ramp)}: {self.do}"


def entry(name: str, said: Mapping[str, Any], total_steps: float) -> Entry:
    """An entry as it was written, {"every": "5min", "do": Save()}. ArgumentError for what it cannot have."""

    def wrong(key: str, valid: str) -> ArgumentError:
        return ArgumentError(f"{name}.{key}", said.get(key), valid)

    for key in said:
        if key not in KEYS:
            raise wrong(str(key), f"is unknown; known: {', '.join(KEYS)}")
    do = said.get("do")
    if not isinstance(do, Action):
        raise wrong("do", "must be an action, a setting or an event of ticks.timeline")
    given = {key: value for key, value in said.items() if value is not None and key != "do"}
    if isinstance(do, Setting):
        for key in ("at", "every"):
            if key in given:
                raise wrong(key, f"is for events; {type(do).__name__} is a setting, which holds from: and until:")
        begin = _step(name, "from", given.get("from", 0), total_steps)
        until = _step(name, "until", given["until"], total_steps) if "until" in given else math.inf
        ramp = _step(name, "ramp", given.get("ramp", 0), total_steps)
        if until <= begin:
            raise wrong("until", f"must be behind from={given.get('from', 0)}")
        if begin and begin >= total_steps:
            raise wrong("from", f"is the end of the run, which has {total_steps:.0f} steps, or behind it")
        return Entry(name, do, begin=int(begin), until=until, ramp=int(ramp))
    if "ramp" in given:
        raise wrong("ramp", f"is for settings; {type(do).__name__} is an event, which happens")
    if ("at" in given) == ("every" in given):
        raise ArgumentError(name, sorted(given), "must have at: or every:, and not both")
    if "at" in given:
        if surplus := [key for key in ("from", "until") if key in given]:
            raise wrong(surplus[0], "is for what happens every so often, or for settings")
        several = given["at"] if isinstance(given["at"], list | tuple) else [given["at"]]
        at = tuple(moment(f"{name}.at", one, total_steps) for one in several)
        if late := [m for m in at if m.kind == "steps" and m.n > total_steps]:
            raise wrong("at", f"is behind the end: {late[0].said}, the run has {total_steps:.0f} steps")
        if not at:
            raise wrong("at", f"must be {FORMS}, or a list of such")
        return Entry(name, do, at=at)
    every = moment(f"{name}.every", given["every"], total_steps, length=True)
    if every.kind != "steps" and (surplus := [key for key in ("from", "until") if key in given]):
        raise wrong(surplus[0], f"is for what happens every so many steps, not every {every.said}")
    begin = _step(name, "from", given.get("from", 0), total_steps)
    until = _step(name, "until", given["until"], total_steps) if "until" in given else math.inf
    found = Entry(name, do, every=every, begin=int(begin), until=until)
    if every.kind == "steps" and found.next_moment("steps", 0) > total_steps:
        span = "".join(f" {key} {given[key]}" for key in ("from", "until") if key in given)
        raise wrong("every", f"never comes in the run's {total_steps:.0f} steps{span}")
    return found


def _step(name: str, key: str, said: Any, total_steps: float) -> float:
    """ArgumentError for a moment that is not known beforehand."""
    found = moment(f"{name}.{key}", said, total_steps)
    if found.kind != "steps":
        raise ArgumentError(
            f"{name}.{key}", said, "must be a number of steps or a share of them: it is known beforehand"
        )
    return found.n


def never(entries: Iterable[Entry], done: Mapping[str, float], step: int) -> list[str]:
    """What had not come when training ended behind this step, so much of each kind being `done`: moments that nobody
    could know beforehand, ends of ramps."""
    lines = []
    for one in entries:
        times = [m for m in (*one.at, *([one.every] if one.every else [])) if m.kind != "steps"]
        if late := [m.said for m in times if m.n > done.get(m.kind, 0.0)]:
            lines.append(f"{one.name} never came: the end was before {', '.join(late)}")
        if isinstance(one.do, Setting) and one.begin + one.ramp > step and one.holds(step):
            lines.append(f"{one.name} ended at {one.share(step):.0%} of its ramp")
    return lines


class Track:
    """One value over the steps of a run: what the settings of one target make of it."""

    def __init__(self, target: str, entries: list[Entry]) -> None:
        self.target, self.entries = target, sorted(entries, key=lambda e: e.begin)
        self._last: tuple[Entry, Any] | None = None  # by which, and as what, it was set

    def check(self) -> None:
        """ArgumentError for two settings that want it at once, or leave it at different values."""
        for one, other in pairwise(self.entries):
            if other.begin < one.until:
                until = "" if math.isfinite(one.until) else f"; give {one.name} an until:"
                raise ArgumentError(other.name, str(other), f"sets {self.target} while {one.name} does ({one}){until}")
        rests = {repr(self.setting(e).at_rest(self.target)): e for e in self.entries}
        if len(rests) > 1:
            one, other = list(rests.values())[:2]
            raise ArgumentError(other.name, str(other), f"has another start for {self.target} than {one.name} ({one})")

    @staticmethod
    def setting(entry: Entry) -> Setting:
        assert isinstance(entry.do, Setting)
        return entry.do

    def value(self, step: int) -> Any:
        """In this step."""
        entry = self._entry(step)
        return self.setting(entry).value(self.target, entry.share(step))

    def next_change(self, step: int) -> float:
        """The first step behind this one in which it may be another."""
        return min(e.next_change(step) for e in self.entries)

    def set(self, stage: Any, step: int) -> None:
        """Make it what it is in this step."""
        entry = self._entry(step)
        value = self.setting(entry).value(self.target, entry.share(step))
        self.setting(entry).set(stage, self.target, value)
        self._last = entry, value

    def update(self, stage: Any, step: int) -> None:
        """The same where it is another than it was made last."""
        if self._last is None or (self._entry(step), self.value(step)) != self._last:
            self.set(stage, step)

    def _entry(self, step: int) -> Entry:
        return next((e for e in self.entries if e.holds(step)), self.entries[0])
