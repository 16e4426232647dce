"""Seconds of training, and what all workers take for them."""

import math
import time
from typing import Any

import torch


class TrainingTime:
    """How long a worker has trained, `before` it was resumed as well."""

    def __init__(self, before: float = 0.0) -> None:
        self._before = before
        self._since: float | None = None
        self._agreed: tuple[int, float] | None = None  # the step and the seconds, last
        self._next_look = 0.0  # after so many steps

    def go_on(self) -> None:
        self._since = time.perf_counter()

    def pause(self) -> None:
        self._before, self._since = self.seconds(), None

    def seconds(self) -> float:
        """So far, on this worker."""
        return self._before + (0.0 if self._since is None else time.perf_counter() - self._since)

    def agreed(self, trainer: Any) -> float:
        """The slowest worker's; where no tick has brought it, all ask each other."""
        strategy = trainer.strategy
        if trainer.world_size == 1:
            return self.seconds()
        if hasattr(strategy, "agreed_seconds"):
            return strategy.agreed_seconds
        mine = torch.tensor(self.seconds(), dtype=torch.float64, device=strategy.root_device)
        return float(strategy.reduce(mine, reduce_op="max"))

    def looks(self, step: int) -> bool:
        """Whether this is a step after which to look at the clock where there are no ticks."""
        return step >= self._next_look

    def plan_look(self, step: int, now: float, moment: float, *, alone: bool) -> None:
        """All agreed on `now` after this step. The next look is a quarter of the way to the `moment`, at the speed of
        the steps since they agreed last: some dozens of looks, however long the way is. One worker looks every step."""
        before, self._agreed = self._agreed, (step, now)
        self._next_look = step + 1
        if not alone and before is not None and now > before[1]:
            left = (moment - now) * (step - before[0]) / (now - before[1]) / 4
            self._next_look = step + max(1.0, left // 1 if math.isfinite(left) else math.inf)
