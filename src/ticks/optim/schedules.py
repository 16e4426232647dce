"""Schedules: factors of the learning rate.

Each is called with the optimizer steps that are done (0 before the first) and the steps there will be in all, math.inf
where nobody knows. To add one: a class here with `warmup_steps` and `__call__`, and a YAML in configs/schedule/.
"""

import math

from ticks.arguments import ArgumentError, not_negative, share


class Constant:
    """Linear up to 1 within `warmup_steps`, then 1."""

    def __init__(self, *, warmup_steps: int = 0) -> None:
        not_negative(warmup_steps=warmup_steps)
        self.warmup_steps = warmup_steps

    def __call__(self, step: int, total_steps: float) -> float:
        step += 1
        return step / self.warmup_steps if step <= self.warmup_steps else self.after(step, total_steps)

    def after(self, step: int, total_steps: float) -> float:
        """The factor of a `step`, counted from 1, behind the warm-up."""
        return 1.0

    def progress(self, step: int, total_steps: float) -> float:
        """From 0 at the end of the warm-up to 1 at the end of training."""
        return min(1.0, (step - self.warmup_steps) / max(1.0, total_steps - self.warmup_steps))


class _Falling(Constant):
    def __init__(self, *, warmup_steps: int = 0, min_ratio: float = 0.0) -> None:
        super().__init__(warmup_steps=warmup_steps)
        share(min_ratio=min_ratio)
        self.min_ratio = min_ratio


class WarmupCosine(_Falling):
    """Half a cosine from 1 down to `min_ratio` at the end of training (arXiv 1608.03983, without restarts)."""

    def after(self, step: int, total_steps: float) -> float:
        if math.isinf(total_steps):
            return 1.0
        wave = 0.5 * (1.0 + math.cos(math.pi * self.progress(step, total_steps)))
        return self.min_ratio + (1.0 - self.min_ratio) * wave


class WarmupLinear(_Falling):
    """A straight line from 1 down to `min_ratio` at the end of training."""

    def after(self, step: int, total_steps: float) -> float:
        if math.isinf(total_steps):
            return 1.0
        return 1.0 - (1.0 - self.min_ratio) * self.progress(step, total_steps)


class WarmupStableDecay(_Falling):
    """1 until the last `decay_share` of training, then a straight line down to `min_ratio` (arXiv 2404.06395)."""

    def __init__(self, *, warmup_steps: int = 0, decay_share: float = 0.2, min_ratio: float = 0.0) -> None:
        super().__init__(warmup_steps=warmup_steps, min_ratio=min_ratio)
        share(decay_share=decay_share)
        self.decay_share = decay_share

    def after(self, step: int, total_steps: float) -> float:
        if math.isinf(total_steps) or not self.decay_share:
            return 1.0
        done = min(1.0, max(0.0, 1.0 - (total_steps - step) / (self.decay_share * total_steps)))
        return 1.0 - (1.0 - self.min_ratio) * done


class InverseSqrt(Constant):
    """sqrt(warmup_steps / step) behind the warm-up, whenever training may end (arXiv 1706.03762)."""

    def __init__(self, *, warmup_steps: int = 100) -> None:
        super().__init__(warmup_steps=warmup_steps)
        if warmup_steps < 1:
            raise ArgumentError("warmup_steps", warmup_steps, "must be at least 1: the root counts from there")

    def after(self, step: int, total_steps: float) -> float:
        return math.sqrt(self.warmup_steps / step)
