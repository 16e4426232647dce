"""What every source of data shares: batches that depend on (seed, step, worker) alone.

Sample p of a run (p = 0, 1, 2, ...) is item permute(p mod n) of epoch p // n; step s takes samples s G .. (s + 1) G - 1
of the global batch size G, and worker w of W takes its own G / W of them. So workers never overlap, no sample is lost
or doubled within an epoch, the number of workers does not change what is learnt from, and resuming at step s is
starting at step s, in the middle of an epoch too.
"""

import os
import signal
from abc import abstractmethod
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import numpy as np
import torch
from lightning import LightningDataModule
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from ticks.arguments import ArgumentError, at_least
from ticks.data.order import permute


class StepData(LightningDataModule):
    """A source: `global_batch_size` is what one step takes over all workers and accumulated batches; what one worker
    takes is derived, and ArgumentError says which numbers would divide. `seed` chooses the order. With
    `overfit_batches` n, set before training, the first n come again and again.
    """

    tokens_per_step: Any = None

    def __init__(
        self,
        *,
        global_batch_size: int,
        eval_batch_size: int = 32,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        at_least(1, global_batch_size=global_batch_size, eval_batch_size=eval_batch_size)
        at_least(0, seed=seed, num_workers=num_workers)
        if num_workers > (most := 8 * (os.cpu_count() or 1)):
            raise ArgumentError(
                "num_workers", num_workers, f"must be at most {most}, eight processes for each CPU core"
            )
        self.global_batch_size = global_batch_size
        self.eval_batch_size = eval_batch_size
        self.seed = seed
        self.num_workers = num_workers
        self.overfit_batches: int | None = None
        self.batch_sizes: BatchSizes | None = None  # of each step, where they are not all the same
        self.steps_before = 0  # of the run, before these data were learnt from

    @abstractmethod
    def step_label(self) -> str:
        """What a step takes, for people."""

    @abstractmethod
    def train_batches(self, world_size: int, worker: int, batch_size: int) -> "TrainBatches":
        """One worker's endless batches."""

    @abstractmethod
    def eval_batches(self, split: str, world_size: int, worker: int) -> Dataset:
        """One worker's share of "val" or "test", in as many batches as every worker has."""

    def vary_batch_size(self, of_step: Callable[[int], int]) -> None:
        """From now on a step takes what `of_step`, a pure function of its number from 1, says."""
        self.batch_sizes = BatchSizes(of_step)

    def samples_before(self, step: int) -> int:
        """How many samples all workers have taken within so many steps."""
        return step * self.global_batch_size if self.batch_sizes is None else self.batch_sizes.before(step)

    def baselines(self) -> dict[str, dict[str, float]]:
        """By measure, what a far simpler method reaches."""
        return {}

    def notes(self) -> list[str]:
        """What a person should know about the data before training, one line each, each beginning with an argument
        or with what there is of something."""
        return []

    def worker_batch_size(self, world_size: int, accumulate: int = 1) -> int:
        """Samples per worker and batch. ArgumentError if they do not divide."""
        parts = world_size * accumulate
        if parts < 1:
            raise ArgumentError(
                "global_batch_size",
                self.global_batch_size,
                f"cannot be cut into {parts} batches:"
                f" world_size={world_size} and accumulate_grad_batches={accumulate} must be at least 1",
            )
        if self.global_batch_size % parts:
            near = self.global_batch_size // parts * parts
            raise ArgumentError(
                "global_batch_size",
                self.global_batch_size,
                f"must be divisible by {world_size} workers"
                + (f" x {accumulate} accumulated batches" if accumulate > 1 else "")
                + f"; the nearest that do: {', '.join(str(n) for n in (near, near + parts) if n)}",
            )
        return self.global_batch_size // parts

    def _loader(self, dataset: Dataset) -> DataLoader:
        generator = torch.Generator().manual_seed(0)  # its own: making an iterator must not move the global one
        return DataLoader(
            dataset,
            batch_size=None,
            num_workers=self.num_workers,
            generator=generator,
            worker_init_fn=_leave_signals_to_training,
        )

    def train_dataloader(self) -> DataLoader:
        assert self.trainer is not None
        trainer = self.trainer
        batch_size = self.worker_batch_size(trainer.world_size, trainer.accumulate_grad_batches)
        batches = self.train_batches(trainer.world_size, trainer.global_rank, batch_size)
        batches.start = batches_done(trainer) - self.steps_before * trainer.accumulate_grad_batches
        batches.only = self.overfit_batches
        batches.sizes, batches.accumulated = self.batch_sizes, trainer.accumulate_grad_batches
        return self._loader(batches)

    def val_dataloader(self) -> DataLoader:
        return self._eval_loader("val")

    def test_dataloader(self) -> DataLoader:
        return self._eval_loader("test")

    def split_dataloader(self, split: str) -> DataLoader:
        """A whole split as it is measured: "train", "val" or "test"."""
        return self._eval_loader(split)

    def _eval_loader(self, split: str) -> DataLoader:
        assert self.trainer is not None
        return self._loader(self.eval_batches(split, self.trainer.world_size, self.trainer.global_rank))


class BatchSizes:
    """Global batch sizes that a function gives of each step, counted from 1, and so how many samples come before it."""

    def __init__(self, of_step: Callable[[int], int]) -> None:
        self._of_step = of_step
        self._before = [0]

    def of(self, step: int) -> int:
        """Of the step behind so many."""
        return self._of_step(step + 1)

    def before(self, step: int) -> int:
        """Samples of the first so many steps."""
        while len(self._before) <= step:
            self._before.append(self._before[-1] + self._of_step(len(self._before)))
        return self._before[step]


class TrainBatches(IterableDataset):
    """Endless batches of one worker, from batch `start` on; with `only` n, the first n again and again; with `sizes`
    steps, of `accumulated` batches each, differ in size. `batch(i)` is a pure function."""

    def __init__(self, n: int, *, batch_size: int, seed: int, worker: int, world_size: int, start: int = 0) -> None:
        self.n = n
        self.batch_size = batch_size
        self.seed = seed
        self.worker = worker
        self.world_size = world_size
        self.start = start
        self.only: int | None = None
        self.sizes: BatchSizes | None = None
        self.accumulated = 1

    def samples(self, index: int) -> np.ndarray:
        """The samples (batch_size,) of this worker's batch number `index`."""
        if self.sizes is None:
            size, first = self.batch_size, (index * self.world_size + self.worker) * self.batch_size
        else:
            step, part = divmod(index, self.accumulated)
            size = self.sizes.of(step) // (self.world_size * self.accumulated)
            first = self.sizes.before(step) + (part * self.world_size + self.worker) * size
        return self.order(np.arange(first, first + size))

    def order(self, places: np.ndarray) -> np.ndarray:
        """The samples at these places of the endless stream that all workers share."""
        epoch, position = np.divmod(places, self.n)
        images = np.empty_like(position)
        for e in np.unique(epoch):
            images[epoch == e] = permute(position[epoch == e], self.n, seed=mixed(self.seed, int(e)))
        return images

    @abstractmethod
    def batch(self, index: int) -> Any:
        """This worker's batch number `index`."""

    def __iter__(self) -> Iterator[Any]:
        info = get_worker_info()
        offset, stride = (info.id, info.num_workers) if info else (0, 1)
        numbers = count(self.start + offset, stride)
        return (self.batch(number % self.only if self.only else number) for number in numbers)


def batches_done(trainer: Any) -> int:
    """This worker's batches so far. A task that optimizes by itself takes any number of steps with a batch, and
    `global_step` counts those of all its optimizers."""
    if trainer.lightning_module.automatic_optimization:
        return trainer.global_step * trainer.accumulate_grad_batches  # which may be others than before
    return trainer.fit_loop.epoch_loop.batch_progress.total.processed


def _leave_signals_to_training(_: int) -> None:
    """A loader's process that died of Ctrl-C would take training down before it could stop with a checkpoint."""
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)


def mixed(*numbers: int) -> int:
    """One seed made of several."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])
