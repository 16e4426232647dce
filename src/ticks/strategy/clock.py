"""Clocks: how many steps the round that starts now will take.

A clock is a pure function of what all workers share at a tick, so every worker computes the same answer without a
message, and a resumed run too. To add one: a class here with `next_interval`, and a YAML in configs/strategy/clock/.

EverySteps    H                                                                       arXiv 1805.09767
EverySeconds  T / (seconds per step)
PostLocal     1 until step t', then another clock                                     arXiv 1808.07217
Quadratic     max(H_base, floor((coefficient / lr)^2)): longer as lr decays           arXiv 2310.14423 (QSR)
Adaptive      ceil(H_0 sqrt(F / F_0)), or half of the last: shorter as the loss falls arXiv 1810.08313 (AdaComm)
Schedule      whatever is listed, from which step on
"""

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from ticks.arguments import ArgumentError, above, at_least, is_whole

LONGEST = 10**9  # steps; longer than any run, so lr = 1e-300 makes a number of this size and not one of 600 digits


@dataclass(frozen=True)
class Facts:
    """What every worker knows when a round starts, identical on all of them.

    `step` steps are done; `lr` is the largest learning rate of the optimizers; `mean_loss` the mean training loss of
    the last round over workers and steps, `first_loss` that of the first round; `seconds_per_step` the slowest
    worker's; these three are nan before the first tick. `interval` is the length of the round that has just ended, 0
    where the clock has not chosen one yet. `total_steps` is infinite where the end of training is not known.
    """

    step: int
    lr: float
    mean_loss: float = math.nan
    first_loss: float = math.nan
    seconds_per_step: float = math.nan
    interval: int = 0
    total_steps: float = math.inf


class Clock(ABC):
    """Decides the interval: the number of steps between two ticks."""

    @abstractmethod
    def next_interval(self, facts: Facts) -> int:
        """Length in steps, at least 1, of the round that starts now; it may reach beyond the end of training."""

    def round_length(self, facts: Facts) -> int:
        """`next_interval`, cut at the end of training (and at `LONGEST`): at least 1. ValueError if the clock chose
        anything but a whole number of at least 1."""
        length = self.next_interval(facts)
        if not is_whole(length) or length < 1:
            raise ValueError(
                f"{type(self).__name__} chose an interval of {length} steps; it must be a whole number, at least 1"
            )
        return int(min(length, LONGEST, max(1, facts.total_steps - facts.step)))

    @property
    def label(self) -> str:
        """A few words for tables and figures."""
        words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(self).__name__).lower()
        settings = (f"{key}={value.label if isinstance(value, Clock) else value}" for key, value in vars(self).items())
        return f"{words} {', '.join(settings)}".strip()


class EverySteps(Clock):
    """A tick after steps H, 2H, 3H, ... of the run, H = `interval` (arXiv 1805.09767).

    ArgumentError unless `interval` is a whole number of at least 1.
    """

    def __init__(self, interval: int = 8) -> None:
        at_least(1, most=LONGEST, of=" steps", interval=interval)
        self.interval = int(interval)

    def next_interval(self, facts: Facts) -> int:
        return self.interval - facts.step % self.interval

    @property
    def label(self) -> str:
        return str(self.interval)


class EverySeconds(Clock):
    """A tick about every `seconds` of the slowest worker's computing, waiting for others not counted.

    At each tick the time becomes a number of steps, so workers need not look at their watches in between: they agree.
    The first round has one step, which measures how long a step takes. ArgumentError unless `seconds` is finite and
    above 0.
    """

    def __init__(self, seconds: float = 10.0) -> None:
        above(0, seconds=seconds)
        self.seconds = float(seconds)

    def next_interval(self, facts: Facts) -> int:
        if not facts.seconds_per_step > 0:  # nan: not measured yet; 0: too short to be measured
            return 1
        return max(1, round(min(LONGEST, self.seconds / facts.seconds_per_step)))

    @property
    def label(self) -> str:
        return f"{self.seconds:g} s"


class PostLocal(Clock):
    """A tick after every step until step `until`, then the clock `then`: post-local SGD (arXiv 1808.07217).

    The paper switches at the first decay of the learning rate; the end of warm-up is another good place. `then` starts
    anew at `until`: it is not told of the rounds of one step. ArgumentError unless `until` is a whole number from 0 on
    and `then` a clock.
    """

    def __init__(self, until: int, then: Clock) -> None:
        at_least(0, most=LONGEST, of=" steps", until=until)
        if not isinstance(then, Clock):
            raise ArgumentError("then", then, "must be a clock, for example EverySteps(8)")
        self.until = int(until)
        self.then = then

    def next_interval(self, facts: Facts) -> int:
        if facts.step < self.until:
            return 1
        began = facts.step - facts.interval  # the round that has just ended
        return self.then.next_interval(replace(facts, interval=0) if began < self.until else facts)

    @property
    def label(self) -> str:
        return f"1 until {self.until}, then {self.then.label}"


class Quadratic(Clock):
    """H = max(H_base, floor((coefficient / lr)^2)), the quadratic synchronisation rule (QSR, arXiv 2310.14423).

    H grows as the learning rate decays and changes only at a tick; `coefficient` (the paper's alpha) is in units of
    the learning rate. Published for ViT-B with local AdamW: H_base 4, coefficient 0.0175, peak lr 0.008, cosine.
    The rule is made for a falling learning rate, so it is H_base while step < `warmup_steps`, and where lr is 0: give
    the warm-up's length, or the tiny rates at its start ask for a round that never ends. ArgumentError unless
    `coefficient` is finite and above 0, `base_interval` a whole number of at least 1, `warmup_steps` one of at least 0.
    """

    def __init__(self, coefficient: float, base_interval: int = 4, warmup_steps: int = 0) -> None:
        above(0, coefficient=coefficient)
        at_least(1, most=LONGEST, of=" steps", base_interval=base_interval)
        at_least(0, most=LONGEST, of=" steps", warmup_steps=warmup_steps)
        self.coefficient = float(coefficient)
        self.base_interval = int(base_interval)
        self.warmup_steps = int(warmup_steps)

    def next_interval(self, facts: Facts) -> int:
        if facts.step < self.warmup_steps or not facts.lr > 0:
            return self.base_interval
        ratio = self.coefficient / facts.lr
        return max(self.base_interval, math.floor(min(LONGEST, ratio * ratio)))  # ratio**2 raises where this is inf

    @property
    def label(self) -> str:
        return f"QSR a={self.coefficient:g}, at least {self.base_interval}"


class Adaptive(Clock):
    """H = ceil(H_0 sqrt(F / F_0)), and half of the last H where that is not less: AdaComm (arXiv 1810.08313).

    Long rounds while the loss falls fast, short ones for a low final loss. H_0 = `interval`; F is the loss of the round
    that has just ended, F_0 that of the first. H changes after a round that reached or crossed a multiple of
    `block_steps`, and is kept where F or F_0 is not finite or F_0 not above 0. H never grows.

    The square root is the paper's. It counts blocks in seconds, not in steps, and where the learning rate decays it has
    lr_0 F / (lr F_0) under the root, which is left out here. That the fallback halves exactly was not checked against
    the paper. ArgumentError unless both arguments are whole numbers of at least 1.
    """

    def __init__(self, interval: int = 32, block_steps: int = 100) -> None:
        at_least(1, most=LONGEST, of=" steps", interval=interval, block_steps=block_steps)
        self.interval = int(interval)
        self.block_steps = int(block_steps)

    def next_interval(self, facts: Facts) -> int:
        last = facts.interval
        if last < 1:
            return self.interval
        same_block = (facts.step - last) // self.block_steps == facts.step // self.block_steps
        known = math.isfinite(facts.mean_loss) and math.isfinite(facts.first_loss) and facts.first_loss > 0
        if same_block or not known:
            return last
        wanted = self.interval * math.sqrt(max(0.0, facts.mean_loss) / facts.first_loss)  # may be infinite
        return max(1, math.ceil(wanted) if wanted <= last - 1 else last // 2)

    @property
    def label(self) -> str:
        return f"{self.interval} falling with the loss"


class Schedule(Clock):
    """Intervals by hand: `intervals` lists (from_step, interval), e.g. [(0, 1), (100, 8), (400, 32)].

    The last entry with from_step <= step counts; a round is cut where the next entry starts, so it starts exactly
    there. ArgumentError unless the steps are whole numbers that start at 0 and rise, the intervals at least 1.
    """

    def __init__(self, intervals: Sequence[Sequence[int]]) -> None:
        if (wrong := _what_is_wrong(intervals)) is not None:
            raise ArgumentError("intervals", intervals, f"must be a list of [from_step, interval]{wrong}")
        self.intervals = tuple((int(from_step), int(interval)) for from_step, interval in intervals)

    def next_interval(self, facts: Facts) -> int:
        interval = next(interval for from_step, interval in reversed(self.intervals) if from_step <= facts.step)
        later = [from_step for from_step, _ in self.intervals if from_step > facts.step]
        return min(interval, later[0] - facts.step) if later else interval

    @property
    def label(self) -> str:
        (_, first), *others = self.intervals
        return ", ".join([str(first), *(f"from {from_step}: {interval}" for from_step, interval in others)])


def _what_is_wrong(intervals: Any) -> str | None:
    """Of a schedule's list, in words."""
    if not isinstance(intervals, list | tuple) or not intervals:
        return ", for example [[0, 1], [100, 8]]"
    for entry in intervals:
        if not isinstance(entry, list | tuple) or len(entry) != 2:
            return f": {entry!r} is not a pair"
        for name, value, least in zip(("from_step", "interval"), entry, (0, 1), strict=True):
            if not is_whole(value) or value < least:
                return f": {name}={value!r} is not a whole number of steps, at least {least}"
    starts = [from_step for from_step, _ in intervals]
    if starts[0] != 0:
        return f": the first from_step is {starts[0]}, not 0"
    falls = ((earlier, later) for earlier, later in pairwise(starts) if later <= earlier)
    return next((f": from_step must rise, and {later} follows {earlier}" for earlier, later in falls), None)
