"""Any map-style datasets, with the promises of `ticks.data.base`: exact resuming and measuring, for any task.

class Digits(MapData):
    def load(self): return {"train": ..., "val": ..., "test": ...}  # torch.utils.data.Dataset with a length, each
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.utils.data import Dataset, default_collate

from ticks.data.base import StepData, TrainBatches, mixed
from ticks.data.order import permute

SPLITS = ("train", "val", "test")
ORDER = 0  # the seed of the order of evaluated batches: the same for every run, so that runs compare


class MapData(StepData):
    """Batches of `collate([dataset[i], ...])`. Takes what `StepData` takes.

    Either `load` is overridden, or datasets are given: `train`, `val` and, if there is one, `test`. `shape` is what a
    model is built for. What a dataset draws at random (an augmentation, say) is drawn for each batch from a seed of its
    own, so that a resumed run draws the same. ValueError for a split that is empty.
    """

    samples_are = "samples"

    def __init__(
        self,
        *,
        train: Dataset | None = None,
        val: Dataset | None = None,
        test: Dataset | None = None,
        shape: Mapping[str, Any] | None = None,
        **arguments: Any,
    ) -> None:
        super().__init__(**arguments)
        self._given = {"train": train, "val": val, "test": test}
        self._loaded: dict[str, Dataset] | None = None
        self._shape = dict(shape or {})

    @property
    def shape(self) -> dict[str, Any]:
        """What a model is built for."""
        return self._shape

    @shape.setter
    def shape(self, shape: Mapping[str, Any]) -> None:
        self._shape = dict(shape)

    def load(self) -> dict[str, Dataset]:
        """The datasets by split, {"train": ..., "val": ..., "test": ...}."""
        return {split: dataset for split, dataset in self._given.items() if dataset is not None}

    def collate(self, samples: Sequence[Any]) -> Any:
        """A batch of several samples."""
        return default_collate(list(samples))

    def step_label(self) -> str:
        return f"{self.global_batch_size} {self.samples_are}"

    @property
    def datasets(self) -> dict[str, Dataset]:
        """The datasets by split, loaded once. ValueError for what cannot be trained on and measured with."""
        if self._loaded is None:
            loaded = self.load()
            if not isinstance(loaded, Mapping):
                raise ValueError(f"load() must give datasets by split, not a {type(loaded).__name__}")
            for split in SPLITS:
                if split not in loaded and split != "test":
                    raise ValueError(f"there is no {split} dataset: load() or the arguments must give one")
                if split in loaded and not self._size(loaded[split]):
                    raise ValueError(f"{split}: the dataset is empty")
            self._loaded = loaded
        return self._loaded

    @staticmethod
    def _size(dataset: Any) -> int:
        try:
            return len(dataset)
        except TypeError:
            raise ValueError(f"{type(dataset).__name__} has no length: it must be a map-style dataset") from None

    def prepare_data(self) -> None:
        _ = self.datasets

    def check_splits(self, splits: Sequence[str], world_size: int) -> None:
        """ValueError for one that so many workers cannot be measured on."""
        for split in splits:
            self.eval_batches(split, world_size, 0)

    def setup(self, stage: str | None = None) -> None:
        _ = self.datasets

    def train_batches(self, world_size: int, worker: int, batch_size: int) -> "TrainSamples":
        return TrainSamples(
            self.datasets["train"], self.collate, batch_size=batch_size, seed=self.seed, worker=worker,
            world_size=world_size,
        )  # fmt: skip

    def eval_batches(self, split: str, world_size: int, worker: int) -> "EvalSamples":
        if split not in self.datasets:
            raise ValueError(f"there is no {split} dataset")
        if (n := self._size(self.datasets[split])) < world_size:
            raise ValueError(f"{n} {split} samples cannot be measured by {world_size} workers")
        return EvalSamples(
            self.datasets[split], self.collate, batch_size=self.eval_batch_size, seed=self.seed, worker=worker,
            world_size=world_size,
        )  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        """By what a resumed run knows its data again."""
        return {"samples": self._identity()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """MisconfigurationException if training would go on with other data."""
        wanted, training = state_dict.get("samples"), self.trainer is not None and self.trainer.state.fn == "fit"
        if not training or not wanted:  # checkpoints once said less
            return
        now = self._identity()
        if any(now.get(name) != value for name, value in wanted.items()):
            raise MisconfigurationException(
                f"data: these are not the samples that this run has learnt from ({now}, it had {wanted}):"
                " give them back, or start a new run"
            )

    def _identity(self) -> dict[str, Any]:
        return {split: self._size(dataset) for split, dataset in self.datasets.items()}

    def notes(self) -> list[str]:
        n = self._size(self.datasets["train"])
        if self.global_batch_size <= n:
            return []
        there = f"more than the {n:,} {self.samples_are} there are to learn from"
        return [f"global_batch_size={self.global_batch_size}: {there}, a step sees some of them more than once"]


class TrainSamples(TrainBatches):
    """Endless batches of a dataset's samples."""

    def __init__(self, dataset: Any, collate: Any, **arguments: Any) -> None:
        super().__init__(len(dataset), **arguments)
        self.dataset = dataset
        self.collate = collate

    def batch(self, index: int) -> Any:
        with drawing_from(mixed(self.seed, 0, index, self.worker)):
            return self.collated(_fetched(self.dataset, self.samples(index)), index)

    def collated(self, samples: list[Any], index: int) -> Any:
        """Batch number `index` of these samples; what it draws at random is its own."""
        return self.collate(samples)


class EvalSamples(Dataset):
    """Every sample once, in equally many batches on each worker, of at most `batch_size` where that can be: nothing is
    padded, nothing left out. There are at least as many samples as workers.

    Neighbours share a batch, but the batches come in an order of their own: the first few of them are no worse a sample
    of a dataset that is sorted, by length or by class.
    """

    def __init__(self, dataset: Any, collate: Any, *, batch_size: int, seed: int, worker: int, world_size: int) -> None:
        self.n = len(dataset)
        self.dataset = dataset
        self.collate = collate
        self.seed = seed
        self.worker = worker
        self.world_size = world_size
        rounds = -(-self.n // (batch_size * world_size))
        self.n_batches = min(rounds, self.n // world_size) * world_size

    def __len__(self) -> int:
        return self.n_batches // self.world_size

    def samples(self, index: int) -> range:
        """The samples of this worker's batch number `index`."""
        (number,) = permute(np.array([index * self.world_size + self.worker]), self.n_batches, seed=ORDER).tolist()
        return range(self.n * number // self.n_batches, self.n * (number + 1) // self.n_batches)

    def __getitem__(self, index: int) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(index)
        with drawing_from(mixed(self.seed, 1, index, self.worker)):
            return self.collate(_fetched(self.dataset, self.samples(index)))


def _fetched(dataset: Any, indices: Sequence[int] | np.ndarray) -> list[Any]:
    numbers = [int(i) for i in indices]
    many = getattr(dataset, "__getitems__", None)  # torch's own name for "several at once"
    return many(numbers) if callable(many) else [dataset[i] for i in numbers]


@contextmanager
def drawing_from(seed: int) -> Iterator[None]:
    """In the block everything random comes from `seed`, and behind it from where it came before."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.random.default_generator.manual_seed(seed % 2**63)
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
