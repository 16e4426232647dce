"""IDX files: four in a folder, packed or not, and one line for what is wrong with them."""

import gzip
import re
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from ticks.data import IdxFiles

NAMES = ["train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"]


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def pictures(n: int, height: int = 3, width: int = 2) -> np.ndarray:
    return np.arange(n * height * width).reshape(n, height, width) % 256


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """20 images of 3 x 2 pixels to train on, 5 to test on, 4 classes."""
    arrays = [pictures(20), np.arange(20) % 4, pictures(5), np.arange(5) % 4]
    for name, array in zip(NAMES, arrays, strict=True):
        (tmp_path / name).write_bytes(idx(array))
    return tmp_path


def load(folder: Path | str | None, **arguments: object) -> IdxFiles:
    data = IdxFiles(path=None if folder is None else str(folder), global_batch_size=4, **arguments)
    data.prepare_data()
    return data


def test_the_last_of_the_train_files_are_for_validation_the_others_for_the_test(folder: Path) -> None:
    data = load(folder, val_share=0.2)
    assert data.shape == {"image_size": (3, 2), "n_channels": 1, "n_features": 6, "n_classes": 4}
    assert {split: len(d) for split, d in data.datasets.items()} == {"train": 16, "val": 4, "test": 5}
    image, label = data.datasets["val"][1]
    assert torch.equal(image, torch.arange(102, 108).reshape(1, 3, 2) / 255)
    assert int(label) == 17 % 4
    assert torch.equal(data.datasets["test"][1][0], torch.arange(6, 12).reshape(1, 3, 2) / 255)


@pytest.mark.parametrize("dot", [False, True])
def test_packed_files_are_the_same_and_so_are_other_names(folder: Path, tmp_path: Path, dot: bool) -> None:
    plain = load(folder)
    for name in NAMES:
        file = folder / name
        (folder / (f"{name.replace('-idx', '.idx') if dot else name}.gz")).write_bytes(gzip.compress(file.read_bytes()))
        file.unlink()
    packed = load(folder)
    for split, dataset in plain.datasets.items():
        assert torch.equal(dataset.pixels_NxCxHxW, packed.datasets[split].pixels_NxCxHxW)
        assert torch.equal(dataset.labels_N, packed.datasets[split].labels_N)


def test_what_is_unpacked_though_it_is_named_gz_is_read_as_well(folder: Path) -> None:
    (folder / NAMES[0]).rename(folder / f"{NAMES[0]}.gz")
    assert len(load(folder).datasets["train"]) == 18


def damaged(folder: Path, what: str) -> Path:
    """The folder, with one thing wrong."""
    images, labels, test_images, test_labels = (folder / name for name in NAMES)
    match what:
        case "no folder":
            return folder / "elsewhere"
        case "missing":
            test_labels.unlink()
        case "magic":
            labels.write_bytes(images.read_bytes())
        case "text":
            images.write_text("<html>404</html>")
        case "empty":
            images.write_bytes(b"")
        case "short":
            images.write_bytes(images.read_bytes()[:-7])
        case "long":
            test_images.write_bytes(test_images.read_bytes() + b"\0")
        case "counts":
            labels.write_bytes(idx(np.zeros(19)))
        case "sizes":
            test_images.write_bytes(idx(pictures(5, 4, 4)))
        case "torn":
            images.write_bytes(gzip.compress(images.read_bytes())[:-9])
        case "bits":
            packed = bytearray(gzip.compress(images.read_bytes()))
            packed[-6] ^= 255  # of its checksum
            images.write_bytes(packed)
        case "no images":
            images.write_bytes(idx(pictures(0)))
            labels.write_bytes(idx(np.zeros(0)))
    return folder


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("no folder", "is no folder: give the folder with the four IDX files"),
        ("missing", "has no t10k-labels-idx1-ubyte or t10k-labels-idx1-ubyte.gz"),
        ("magic", "train-labels-idx1-ubyte is no IDX file of labels in bytes: it begins with 00 00 08 03, not with 00"),
        ("text", "train-images-idx3-ubyte is no IDX file of images in bytes: it begins with 3c 68 74 6d, not with 00"),
        ("empty", "train-images-idx3-ubyte is no IDX file of images in bytes: it begins with nothing, not with 00 00"),
        ("short", "train-images-idx3-ubyte is to have 20 x 3 x 2 bytes and has 113"),
        ("long", "t10k-images-idx3-ubyte is to have 5 x 3 x 2 bytes and has 31"),
        ("counts", "20 train images, but 19 train labels"),
        ("sizes", "train images of 3 x 2 pixels, test images of 4 x 4"),
        ("torn", "train-images-idx3-ubyte cannot be unpacked: "),
        ("bits", "train-images-idx3-ubyte cannot be unpacked: "),
        ("no images", "train: the dataset is empty"),
    ],
)
def test_what_is_wrong_is_said_in_a_line_that_names_the_file(folder: Path, what: str, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)) as error:
        load(damaged(folder, what))
    assert "\n" not in str(error.value)
    assert str(error.value).startswith("path=" if what != "no images" else "train: ")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"folder": None}, "path=None is not set: give the folder with the four IDX files"),
        ({"val_share": 1}, "val_share=1 must be above 0 and below 1"),
        ({"val_share": 0.0}, "val_share=0.0 must be above 0 and below 1"),
        ({"val_share": 0.01}, "val: the dataset is empty"),
    ],
)
def test_arguments_that_cannot_be_are_refused(folder: Path, arguments: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        load(**({"folder": folder} | arguments))
