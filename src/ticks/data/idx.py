"""Images in IDX files, the format of MNIST, Fashion-MNIST, KMNIST and their likes: four files in a folder."""

import gzip
import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ticks.arguments import ArgumentError, is_number
from ticks.data.images import Images, LabelledImages, image_shape

NAMES = {"train": "train", "test": "t10k"}  # how the files of a split begin
KINDS = {"images": 3, "labels": 1}  # dimensions
UNSIGNED_BYTES = 8  # in IDX's numbering of types


class IdxFiles(Images):
    """Batches of images (B, 1, H, W) and labels (B,) from the folder `path`, in which lie train-images-idx3-ubyte,
    train-labels-idx1-ubyte, t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte, each as it is or with .gz.

    The last `val_share` of the train files is for validation. Takes what `Images` takes. ArgumentError if a file is
    missing or no IDX file of bytes, or if they do not belong together.
    """

    def __init__(self, *, path: str | None, val_share: float = 0.1, **arguments: Any) -> None:
        super().__init__(**arguments)
        if not path:
            raise ArgumentError("path", path, "is not set: give the folder with the four IDX files")
        if not is_number(val_share) or not 0 < val_share < 1:
            raise ArgumentError("val_share", val_share, "must be above 0 and below 1")
        self.path = path
        self.val_share = val_share
        self.files = {(split, kind): self._file(split, kind) for split in NAMES for kind in KINDS}
        sizes = {key: self._sizes(*key) for key in self.files}  # a mistake is an error now, not after workers started
        for split in NAMES:
            (n, *size), (n_labels,) = sizes[split, "images"], sizes[split, "labels"]
            if n != n_labels:
                raise ArgumentError("path", str(path), f": {n} {split} images, but {n_labels} {split} labels")
            if size != sizes["train", "images"][1:]:
                first, other = sizes["train", "images"][1:], size
                raise ArgumentError(
                    "path",
                    str(path),
                    f": train images of {first[0]} x {first[1]} pixels, {split} images of {other[0]} x {other[1]}",
                )
        highest = max(int(self._numbers(split, "labels").max(initial=0)) for split in NAMES)
        _, height, width = sizes["train", "images"]
        self.shape = image_shape((height, width), n_channels=1, n_classes=highest + 1)

    def load(self) -> dict[str, Dataset]:
        (x_NxCxHxW, y_N), test = self._split("train"), self._split("test")
        first = len(y_N) - round(len(y_N) * self.val_share)
        parts = {"train": (x_NxCxHxW[:first], y_N[:first]), "val": (x_NxCxHxW[first:], y_N[first:]), "test": test}
        return {split: LabelledImages(*part) for split, part in parts.items()}

    def _split(self, split: str) -> tuple[Tensor, Tensor]:
        pixels_NxHxW, labels_N = (torch.from_numpy(self._numbers(split, kind)) for kind in KINDS)
        return pixels_NxHxW.unsqueeze(1), labels_N.long()

    def _file(self, split: str, kind: str) -> Path:
        """Its place. Some have a dot where others have a hyphen."""
        folder = Path(self.path).expanduser()
        name = f"{NAMES[split]}-{kind}-idx{KINDS[kind]}-ubyte"
        for there in (name, name.replace("-idx", ".idx")):
            for ending in ("", ".gz"):
                if (file := folder / f"{there}{ending}").is_file():
                    return file
        what = f"has no {name} or {name}.gz" if folder.is_dir() else "is no folder"
        raise ArgumentError("path", self.path, f"{what}: give the folder with the four IDX files")

    def _sizes(self, split: str, kind: str) -> list[int]:
        """What the file says of itself."""
        with self._open(split, kind) as stream:
            return self._header(stream, split, kind)

    def _numbers(self, split: str, kind: str) -> np.ndarray:
        with self._open(split, kind) as stream:
            sizes = self._header(stream, split, kind)
            numbers = np.frombuffer(bytearray(stream.read()), dtype=np.uint8)
        if len(numbers) != math.prod(sizes):
            shape = " x ".join(map(str, sizes))
            raise ArgumentError(
                "path", self.path, f": {self.files[split, kind].name} is to have {shape} bytes and has {len(numbers)}"
            )
        return numbers.reshape(sizes)

    def _header(self, stream: BinaryIO, split: str, kind: str) -> list[int]:
        """Two zero bytes, the type, the number of dimensions, and each one's size in four bytes, the highest first."""
        magic = bytes([0, 0, UNSIGNED_BYTES, KINDS[kind]])
        head = stream.read(4 + 4 * KINDS[kind])
        if len(head) < 4 + 4 * KINDS[kind] or not head.startswith(magic):
            raise ArgumentError(
                "path",
                self.path,
                f": {self.files[split, kind].name} is no IDX file of {kind} in bytes: it begins with"
                f" {head[:4].hex(' ') or 'nothing'}, not with {magic.hex(' ')}",
            )
        return np.frombuffer(head, dtype=">u4", offset=4).tolist()

    @contextmanager
    def _open(self, split: str, kind: str) -> Iterator[BinaryIO]:
        """The file's bytes, unpacked. ArgumentError for what cannot be."""
        file = self.files[split, kind]
        with file.open("rb") as stream:
            packed = stream.read(2) == b"\x1f\x8b"
            stream.seek(0)
            try:
                with gzip.open(stream) if packed else stream as numbers:
                    yield numbers  # type: ignore[misc]
            except (EOFError, gzip.BadGzipFile, zlib.error) as error:
                raise ArgumentError("path", self.path, f": {file.name} cannot be unpacked: {error}") from None
