"""Images with a label each, as every source of them serves them; training batches may be augmented."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ticks.data.samples import MapData, TrainSamples

Augment = Callable[[Tensor], Tensor]  # images (B, C, H, W) -> images of the same shape
NEIGHBOURS = 10_000  # training images that the nearest is looked for among, and of validation images half as many


class LabelledImages(Dataset):
    """Pairs of an image (C, H, W) from 0 to 1 and its label, from pixels (N, C, H, W) in bytes and labels (N,).

    `white` is the largest pixel.
    """

    def __init__(self, pixels_NxCxHxW: Tensor, labels_N: Tensor, *, white: int = 255) -> None:
        self.pixels_NxCxHxW = pixels_NxCxHxW
        self.labels_N = labels_N
        self.white = white

    def __len__(self) -> int:
        return len(self.labels_N)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.images([index])[0], self.labels_N[index]

    def __getitems__(self, indices: list[int]) -> list[tuple[Tensor, Tensor]]:
        return list(zip(self.images(indices), self.labels_N[indices], strict=True))

    def images(self, indices: Sequence[int] | slice) -> Tensor:
        """Some of the images (n, C, H, W)."""
        return self.pixels_NxCxHxW[indices].float() / self.white


class Images(MapData):
    """Batches of images (B, C, H, W) from 0 to 1 and labels (B,). A source overrides `load`, which gives
    `LabelledImages`, and sets `shape` with `image_shape`.

    `augment` changes the images of training batches alone. What it draws from torch's global generator is a pure
    function of seed, batch and worker, as the batch is.
    """

    samples_are = "images"

    def __init__(
        self,
        *,
        global_batch_size: int,
        eval_batch_size: int = 256,
        seed: int = 0,
        num_workers: int = 0,
        augment: Augment | None = None,
    ) -> None:
        super().__init__(
            global_batch_size=global_batch_size, eval_batch_size=eval_batch_size, seed=seed, num_workers=num_workers
        )
        self.augment = augment
        self.augmented: Callable[[int], float] | None = None  # the share of a step's images, by its number from 1

    def vary_augmentation(self, of_step: Callable[[int], float]) -> None:
        """From now on so large a share of a step's images is augmented, a pure function of its number from 1."""
        self.augmented = of_step

    def train_batches(self, world_size: int, worker: int, batch_size: int) -> TrainSamples:
        return AugmentedSamples(
            self.datasets["train"], self.collate, augment=self.augment, augmented=self.augmented,
            batch_size=batch_size, seed=self.seed, worker=worker, world_size=world_size,
        )  # fmt: skip

    def baselines(self) -> dict[str, dict[str, float]]:
        """What the nearest training image and the commonest label say of the validation images."""
        train, val = (self._evenly(split, most) for split, most in (("train", NEIGHBOURS), ("val", NEIGHBOURS // 2)))
        (x_NxF, y_N), (x_MxF, y_M) = train, val
        nearest = torch.cat([y_N[torch.cdist(part, x_NxF).argmin(1)] for part in x_MxF.split(500)])
        whole = len(y_N) == len(self.datasets["train"])  # type: ignore[arg-type]
        neighbour = "nearest neighbour" if whole else f"nearest of {len(y_N):,} images"
        guesses = {neighbour: nearest, "majority": y_N.mode().values}
        return {"accuracy": {name: float((guess == y_M).float().mean()) for name, guess in guesses.items()}}

    def _evenly(self, split: str, most: int) -> tuple[Tensor, Tensor]:
        """Images (n, features) and labels (n,), evenly from the whole split if it has more than `most`."""
        dataset = self.datasets[split]
        assert isinstance(dataset, LabelledImages)
        every = slice(None, None, -(-len(dataset) // most))
        return dataset.images(every).flatten(1), dataset.labels_N[every]


class AugmentedSamples(TrainSamples):
    """Endless batches of images, all of them augmented or so many as `augmented` says of a step."""

    def __init__(
        self, dataset: Any, collate: Any, *, augment: Augment | None, augmented: Callable[[int], float] | None,
        **arguments: Any,
    ) -> None:  # fmt: skip
        super().__init__(dataset, collate, **arguments)
        self.augment, self.augmented = augment, augmented

    def collated(self, samples: list[Any], index: int) -> Any:
        images_BxCxHxW, labels_B = self.collate(samples)
        if self.augment is None:
            return images_BxCxHxW, labels_B
        changed_BxCxHxW = self.augment(images_BxCxHxW)
        if self.augmented is not None:
            share = self.augmented(index // self.accumulated + 1)
            drawn_B = torch.rand(len(labels_B)) < share
            changed_BxCxHxW = torch.where(drawn_B[:, None, None, None], changed_BxCxHxW, images_BxCxHxW)
        return changed_BxCxHxW, labels_B


def image_shape(image_size: tuple[int, int], *, n_channels: int, n_classes: int) -> dict[str, Any]:
    """What a model is built for: `n_features` where it takes images flattened."""
    height, width = image_size
    sizes = {"image_size": image_size, "n_channels": n_channels, "n_features": n_channels * height * width}
    return sizes | {"n_classes": n_classes}


def stratified(labels_N: Tensor, shares: dict[str, float], *, seed: int = 0) -> dict[str, Tensor]:
    """Indices by split, the same always: each split has its share of every label; the last one has what is left."""
    generator = torch.Generator().manual_seed(seed)
    parts: dict[str, list[Tensor]] = {split: [] for split in shares}
    for label in labels_N.unique():
        indices = (labels_N == label).nonzero().flatten()
        indices = indices[torch.randperm(len(indices), generator=generator)]
        first, *_, last = 0, *shares
        for split, share in shares.items():
            n = len(indices) - first if split == last else round(len(indices) * share)
            parts[split].append(indices[first : first + n])
            first += n
    return {split: torch.cat(found).sort().values for split, found in parts.items()}
