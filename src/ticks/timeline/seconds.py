"""Seconds of training, and what all workers take for them."""

import math
import time
from typing import Any

import torch

AT_MOST = 10.0  # seconds between two looks


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
        """All agreed on `now` after this step. The next look is an eighth of the way to the `moment`, ten seconds at
        most, at the speed of the steps since they agreed last; not much farther than that is long, as a few steps may
        have been quick. One worker looks at every step."""
        before, self._agreed = self._agreed, (step, now)
        self._next_look = step + 1 if moment < math.inf else math.inf
        if moment < math.inf and not alone and before is not None and now > before[1] and step > before[0]:
            steps = step - before[0]
            wanted = min((moment - now) / 8, AT_MOST) * steps / (now - before[1])
            self._next_look = step + max(1, min(int(wanted), 2 * steps))
