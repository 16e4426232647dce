"""1,797 handwritten digits of 8 x 8 pixels, from scikit-learn (the test set of UCI's optical digits)."""

from typing import Any

import torch
from torch.utils.data import Dataset

from ticks.data.images import Images, LabelledImages, image_shape

SPLITS = {"train": slice(0, 1297), "val": slice(1297, 1547), "test": slice(1547, 1797)}


class Digits(Images):
    """Batches of images (B, 1, 8, 8) and labels (B,). Takes what `Images` takes.

    The split is always the same. ModuleNotFoundError without scikit-learn.
    """

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.shape = image_shape((8, 8), n_channels=1, n_classes=10)

    def load(self) -> dict[str, Dataset]:
        try:
            from sklearn.datasets import load_digits
        except ImportError:
            raise ModuleNotFoundError('these data need scikit-learn: pip install -e ".[vision]"') from None
        pixels, labels = load_digits(return_X_y=True)
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
        x_NxCxHxW = torch.tensor(pixels, dtype=torch.uint8).reshape(-1, 1, 8, 8)[order]
        y_N = torch.tensor(labels)[order]
        return {split: LabelledImages(x_NxCxHxW[part], y_N[part], white=16) for split, part in SPLITS.items()}
