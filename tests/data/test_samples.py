"""Any dataset: batches are a pure function of (seed, step, worker), and every sample is measured once."""

from typing import Any

import pytest
import torch
from torch.utils.data import Dataset, TensorDataset

from ticks.data import MapData
from ticks.data.samples import TrainSamples


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
