"""Batches of samples of about the same length."""

from typing import Any

import numpy as np

from ticks.data.base import mixed
from ticks.data.order import permute
from ticks.data.samples import TrainSamples

WINDOW = 32  # steps whose samples are sorted by length together


class ByLength(TrainSamples):
    """Batches of samples of about the same length, so that little is padding.

    The samples of `WINDOW` steps (of as many as an epoch has, if those are fewer) are sorted by length and dealt out to
    the steps, which come in an order of their own. Each worker takes every n-th sample of its step.
    """

    def __init__(self, dataset: Any, collate: Any, *, global_batch_size: int, **arguments: Any) -> None:
        super().__init__(dataset, collate, **arguments)
        self.step_size = global_batch_size
        self.parts = global_batch_size // self.batch_size  # of a step, over workers and accumulated batches
        self.steps = max(1, min(WINDOW, self.n // global_batch_size))
        self._window: tuple[int, np.ndarray] = (-1, np.empty(0))

    def samples(self, index: int) -> np.ndarray:
        step, part = divmod(index * self.world_size + self.worker, self.parts)
        window, place = divmod(step, self.steps)
        if self._window[0] != window:
            self._window = window, self._sorted(window)
        return self._window[1][place][part :: self.parts]

    def _sorted(self, window: int) -> np.ndarray:
        """The samples of each of a window's steps (steps, step_size)."""
        size = self.steps * self.step_size
        samples = self.order(np.arange(window * size, (window + 1) * size))
        by_length = samples[np.argsort(self.dataset.lengths[samples], kind="stable")]
        steps = permute(np.arange(self.steps), self.steps, seed=mixed(self.seed, 2, window))
        return by_length.reshape(self.steps, self.step_size)[steps]
