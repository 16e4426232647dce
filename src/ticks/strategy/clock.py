"""Clocks: how many steps the round that starts now will take.

A clock is a pure function of what all workers share at a tick, so every worker computes the same answer without a
message. To add one: a class here with `next_interval`, and a YAML in configs/strategy/clock/.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass


@dataclass(frozen=True)
class Facts:
    """What every worker knows when a round starts, identical on all of them.

    `step` steps are done; `lr` is the largest learning rate of the optimizers; `mean_loss` the mean training loss of
    the last round over workers and steps; `seconds_per_step` the slowest worker's; the last two are nan before the
    first tick. `total_steps` is infinite where the end of training is not known.
    """

    step: int
    lr: float
    mean_loss: float
    seconds_per_step: float
    total_steps: float


class Clock(ABC):
    """Decides the interval: the number of steps between two ticks."""

    @abstractmethod
    def next_interval(self, facts: Facts) -> int:
        """Length in steps, at least 1, of the round that starts now. The strategy cuts it at the end of training."""


class EverySteps(Clock):
    """A tick after steps H, 2H, 3H, ... of the run, H = `interval` (arXiv 1805.09767).

    ValueError unless `interval` is a whole number of at least 1.
    """

    def __init__(self, interval: int = 8) -> None:
        if isinstance(interval, bool) or not isinstance(interval, int) or interval < 1:
            raise ValueError(f"interval={interval!r} must be a whole number of steps, at least 1")
        self.interval = interval

    def next_interval(self, facts: Facts) -> int:
        return self.interval - facts.step % self.interval
