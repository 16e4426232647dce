"""1,797 handwritten digits of 8 x 8 pixels, from scikit-learn (the test set of UCI's optical digits)."""

import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from ticks.data.samples import MapData

SPLITS = {"train": (0, 1297), "val": (1297, 1547), "test": (1547, 1797)}


class Digits(MapData):
    """Batches of pixels (B, 64) from 0 to 1 and labels (B,). Takes what `MapData` takes but datasets and a shape.

    The split is always the same. ModuleNotFoundError without scikit-learn.
    """

    samples_are = "images"

    def __init__(
        self, *, global_batch_size: int, eval_batch_size: int = 256, seed: int = 0, num_workers: int = 0
    ) -> None:
        super().__init__(
            global_batch_size=global_batch_size, eval_batch_size=eval_batch_size, seed=seed, num_workers=num_workers,
            shape={"n_features": 64, "n_classes": 10},
        )  # fmt: skip

    def load(self) -> dict[str, Dataset]:
        try:
            from sklearn.datasets import load_digits
        except ImportError:
            raise ModuleNotFoundError('data=digits needs scikit-learn: pip install -e ".[vision]"') from None
        pixels, labels = load_digits(return_X_y=True)
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
        x_NxF, y_N = torch.tensor(pixels / 16, dtype=torch.float32)[order], torch.tensor(labels)[order]
        return {split: TensorDataset(x_NxF[first:last], y_N[first:last]) for split, (first, last) in SPLITS.items()}

    def baselines(self) -> dict[str, dict[str, float]]:
        """What the nearest training image and the commonest digit say of the validation images."""
        (x_NxF, y_N), (x_MxF, y_M) = (self._tensors(split) for split in ("train", "val"))
        nearest = y_N[torch.cdist(x_MxF, x_NxF).argmin(1)]
        guesses = {"nearest neighbour": nearest, "commonest digit": y_N.mode().values}
        return {"accuracy": {name: float((guess == y_M).float().mean()) for name, guess in guesses.items()}}

    def _tensors(self, split: str) -> tuple[Tensor, Tensor]:
        dataset = self.datasets[split]
        assert isinstance(dataset, TensorDataset)
        x, y = dataset.tensors
        return x, y
