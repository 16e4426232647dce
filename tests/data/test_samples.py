"""Any dataset: batches are a pure function of (seed, step, worker), and every sample is measured once."""

import os
import random
import signal
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, OnExceptionCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from tests.conftest import run_workers
from tests.strategy.toys import flat, trainer_for
from ticks.data import Images, LabelledImages, MapData
from ticks.data.base import TrainBatches
from ticks.data.pairs import ByLength, Pairs, Sample
from ticks.data.samples import TrainSamples
from ticks.strategy import Parameters, TickStrategy
from ticks.strategy.shutdown import Stopped


class Numbers(Dataset):
    """0 .. n - 1, each with something drawn at random."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> Any:
        if not 0 <= index < self.n:
            raise IndexError(index)
        return torch.tensor(index), torch.rand(())


def data(n: int = 10, **arguments: Any) -> MapData:
    settings = {"global_batch_size": 4, "eval_batch_size": 3} | arguments
    return MapData(train=Numbers(n), val=Numbers(n), **settings)


def taken(n: int, workers: int, steps: int, **arguments: Any) -> list[list[int]]:
    """The samples of each step, over all workers."""
    source = data(n, **arguments)
    batches = [source.train_batches(workers, worker, 4 // workers) for worker in range(workers)]
    return [sorted(int(i) for b in batches for i in b.batch(step)[0]) for step in range(steps)]


@pytest.mark.parametrize("n", [4, 7, 10])
def test_no_sample_is_lost_or_doubled_in_an_epoch_over_any_number_of_workers(n: int) -> None:
    one, two, four = (taken(n, workers, 3 * n) for workers in (1, 2, 4))
    assert one == two == four
    samples = [sample for step in one for sample in step]
    assert sorted(samples) == sorted(list(range(n)) * 12)


def test_another_seed_is_another_order_and_another_epoch_too() -> None:
    assert taken(8, 1, 2, seed=0) != taken(8, 1, 2, seed=1)
    epochs = taken(8, 1, 8)
    assert len({tuple(map(tuple, epochs[i : i + 2])) for i in (0, 2, 4, 6)}) > 1


def test_a_batch_is_the_same_whenever_it_is_made_random_draws_included() -> None:
    source = data()
    torch.manual_seed(5)
    first = source.train_batches(2, 1, 2)
    one = [first.batch(i) for i in range(6)]
    drawn = torch.rand(3)
    torch.manual_seed(6)
    again = source.train_batches(2, 1, 2)
    for index in (5, 0, 3):
        assert all(torch.equal(a, b) for a, b in zip(again.batch(index), one[index], strict=True))
    torch.manual_seed(5)
    assert torch.equal(torch.rand(3), drawn)  # and nobody else's draws are moved
    assert len({float(x) for batch in one for x in batch[1]}) == 12


def test_started_in_the_middle_it_goes_on_with_what_comes_next() -> None:
    whole = data().train_batches(1, 0, 4)
    begun = data().train_batches(1, 0, 4)
    begun.start = 3
    for later, batch in zip(range(3, 6), begun, strict=False):
        assert torch.equal(whole.batch(later)[0], batch[0])


def test_the_first_batches_alone_come_again_and_again() -> None:
    batches = data().train_batches(1, 0, 4)
    batches.only = 2
    seen = [batch[0].tolist() for batch, _ in zip(batches, range(6), strict=False)]
    assert seen == [seen[0], seen[1]] * 3


@pytest.mark.parametrize("workers", [1, 2, 3, 5])
@pytest.mark.parametrize("size", [1, 3, 4, 100])
@pytest.mark.parametrize("n", [5, 7, 12, 13])
def test_every_sample_is_measured_once_in_equally_many_batches(n: int, size: int, workers: int) -> None:
    source = data(n, eval_batch_size=size)
    shares = [source.eval_batches("val", workers, worker) for worker in range(workers)]
    batches = [share[i] for share in shares for i in range(len(share))]
    assert sorted(int(i) for batch in batches for i in batch[0]) == list(range(n))
    assert len({len(share) for share in shares}) == 1
    assert len(shares[0]) > 0
    assert max(len(batch[0]) for batch in batches) <= max(size, -(-n // (n // workers * workers)))


def test_the_first_evaluated_batches_are_of_the_whole_dataset() -> None:
    source = data(1000, eval_batch_size=10)
    shares = [source.eval_batches("val", 2, worker) for worker in range(2)]
    first = [int(i) for share in shares for number in range(5) for i in share[number][0]]
    assert 300 < sum(first) / len(first) < 700
    assert max(first) > 900


def test_fewer_samples_than_workers_are_refused() -> None:
    with pytest.raises(ValueError, match="2 val samples cannot be measured by 3 workers"):
        data(2).check_splits(["val"], 3)


def test_what_is_no_dataset_is_named() -> None:
    for arguments, message in (
        ({"train": Numbers(3)}, "there is no val dataset"),
        ({"train": Numbers(0), "val": Numbers(1)}, "train: the dataset is empty"),
        ({"train": iter([1]), "val": Numbers(1)}, "has no length"),
    ):
        with pytest.raises(ValueError, match=message):
            MapData(global_batch_size=2, **arguments).prepare_data()


def test_a_dataset_that_fetches_several_at_once_is_asked_so() -> None:
    class Many(TensorDataset):
        def __getitems__(self, indices: list[int]) -> list[Any]:
            return [(torch.tensor(i),) for i in indices]

        def __getitem__(self, index: int) -> Any:
            raise AssertionError("one by one")

    many = Many(torch.zeros(6))
    batches = TrainSamples(many, lambda samples: samples, batch_size=2, seed=0, worker=0, world_size=1)
    assert len(batches.batch(0)) == 2


def test_more_than_there_are_in_a_step_is_told() -> None:
    assert data(10, global_batch_size=10).notes() == []
    assert data(1000, global_batch_size=2000).notes() == [
        "global_batch_size=2000: more than the 1,000 samples there are to learn from,"
        " a step sees some of them more than once"
    ]


# ---- made by other processes


class Turned(Images):
    """Images that every source of random numbers changes, each time."""

    def load(self) -> Any:
        whole = LabelledImages(torch.randint(256, (21, 1, 3, 3), dtype=torch.uint8), torch.arange(21))
        return {"train": whole, "val": whole}

    @staticmethod
    def changed(images: Tensor) -> Tensor:
        return images * torch.rand(len(images), 1, 1, 1) + random.random() + float(np.random.rand())


def of_turned_images() -> TrainBatches:
    torch.manual_seed(0)
    return Turned(global_batch_size=8, augment=Turned.changed).train_batches(2, 1, 4)


def of_numbers() -> TrainBatches:
    return data(21).train_batches(2, 1, 2)


def by_length() -> TrainBatches:
    pairs = Pairs([Sample([i] * (i * 7 % 13 + 1), [i], str(i), ()) for i in range(101)])
    return ByLength(pairs, list, batch_size=3, global_batch_size=6, seed=3, worker=1, world_size=2)


@pytest.mark.parametrize("make", [of_turned_images, of_numbers, by_length])
def test_processes_beside_make_the_batches_that_one_alone_makes(make: Callable[[], TrainBatches]) -> None:
    def taken(n: int, processes: int, start: int = 0) -> list[Any]:
        batches = make()
        batches.start = start
        return list(islice(DataLoader(batches, batch_size=None, num_workers=processes), n))

    def same(some: list[Any], others: list[Any]) -> bool:
        each = [pair for batches in zip(some, others, strict=True) for pair in zip(*batches, strict=True)]
        return all(torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in each)

    whole = taken(11, 0)
    assert same(taken(11, 2), whole)
    assert same(taken(6, 2, start=5), whole[5:])
    assert not same(whole[:5], whole[5:10])


# ---- resuming


class Learns(pl.LightningModule):
    """What was drawn for each sample, from its number, with one optimizer or with two that it steps by itself; in batch
    number `asks` it is told to stop, or fails."""

    def __init__(self, *, by_itself: bool, asks: int | None = None, fails: bool = False) -> None:
        super().__init__()
        self.automatic_optimization = not by_itself
        self.net = nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1))
        self.asks, self.fails = asks, fails
        self.n_batches = 0
        self.numbers: list[list[int]] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        if self.n_batches == self.asks:
            if self.fails:
                raise RuntimeError("in the middle of a batch")
            os.kill(os.getpid(), signal.SIGTERM)
        if self.asks is not None and self.n_batches >= self.asks:
            time.sleep(0.1)  # until the other worker has heard of it
        self.n_batches += 1
        self.numbers.append(x.tolist())
        if self.automatic_optimization:
            return self.loss(x, y)
        for optimizer in self.optimizers():  # type: ignore[union-attr]
            optimizer.zero_grad()
            self.manual_backward(self.loss(x, y))
            optimizer.step()
        return None

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        return (self.net(x[:, None] / 10).squeeze(1) - y).square().mean()

    def configure_optimizers(self) -> Any:
        parts = [self.net] if self.automatic_optimization else [self.net[0], self.net[2]]
        return [torch.optim.SGD(part.parameters(), lr=0.3, momentum=0.9) for part in parts]


BATCHES = 13


def trained(
    directory: Path, *, strategy: Any = "auto", n: int = 1, by_itself: bool = False, accumulate: int = 1,
    resume: str | None = None, saves_after: int = 0, **options: Any,
) -> tuple[Tensor, list[list[int]]]:  # fmt: skip
    """The parameters after 13 batches, and the samples of each of them."""
    pl.seed_everything(0, verbose=False)
    steps_per_batch = 2 if by_itself else 1 / accumulate
    callbacks: list[Any] = [OnExceptionCheckpoint(directory, filename="failed")]
    if saves_after:
        every = int(saves_after * steps_per_batch)
        callbacks.append(ModelCheckpoint(directory, filename="mid", every_n_train_steps=every, save_top_k=-1))
    module = Learns(by_itself=by_itself, **options)
    trainer = trainer_for(
        strategy, n, steps=int(BATCHES * steps_per_batch), callbacks=callbacks, enable_checkpointing=True,
        accumulate_grad_batches=accumulate, default_root_dir=str(directory),
    )  # fmt: skip
    trainer.fit(module, datamodule=data(21), ckpt_path=resume)
    return flat(module), module.numbers


@pytest.mark.parametrize("by_itself", [True, False])
def test_what_optimizes_by_itself_is_resumed_exactly_too(by_itself: bool, tmp_path: Path) -> None:
    whole, numbers = trained(tmp_path, by_itself=by_itself, saves_after=7)
    again, later = trained(tmp_path / "again", by_itself=by_itself, resume=str(tmp_path / "mid.ckpt"))
    assert later == numbers[7:]
    assert torch.equal(again, whole)
    with pytest.raises(RuntimeError, match="in the middle of a batch"):
        trained(tmp_path, by_itself=by_itself, asks=5, fails=True)
    again, later = trained(tmp_path / "again", by_itself=by_itself, resume=str(tmp_path / "failed.ckpt"))
    assert later == numbers[5:]
    assert torch.equal(again, whole)


def test_accumulated_batches_are_resumed_exactly_however_many_they_are_then(tmp_path: Path) -> None:
    whole, numbers = trained(tmp_path, accumulate=2, saves_after=8)
    again, later = trained(tmp_path / "again", accumulate=2, resume=str(tmp_path / "mid.ckpt"))
    assert later == numbers[8:]
    assert torch.equal(again, whole)
    _, later = trained(tmp_path / "again", accumulate=1, resume=str(tmp_path / "mid.ckpt"))
    assert later[:2] == [[*numbers[i], *numbers[i + 1]] for i in (8, 10)]


def test_two_workers_that_optimize_by_themselves_are_stopped_and_resumed_exactly(tmp_path: Path) -> None:
    def job(resume: str | None = None, asks: int | None = None) -> Any:
        place, strategy = tmp_path / str(asks), TickStrategy(interval=4, sync=Parameters())
        strategy.heartbeat_seconds = 0.05
        place.mkdir(exist_ok=True)
        try:
            return trained(place, strategy=strategy, n=2, by_itself=True, asks=asks, resume=resume)
        except Stopped as stop:
            return stop.checkpoint

    whole = run_workers(2, job)
    path, _ = run_workers(2, job, None, 4)
    assert Path(path).name == "stopped.ckpt"
    for (mine, later), (theirs, numbers) in zip(run_workers(2, job, path), whole, strict=True):
        assert 0 < len(later) < BATCHES - 4
        assert later == numbers[-len(later) :]
        assert torch.equal(mine, theirs)
