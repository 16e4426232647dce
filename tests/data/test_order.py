"""The order of the windows is a permutation, computed item by item."""

import tracemalloc

import numpy as np
import pytest

from ticks.data.order import permute


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 7, 8, 13, 16, 17, 64, 97, 100, 255, 256, 257, 1000, 4096, 7919])
@pytest.mark.parametrize("seed", [0, 1, 2**63])
def test_the_order_is_a_permutation(n: int, seed: int) -> None:
    assert sorted(permute(np.arange(n), n, seed=seed)) == list(range(n))


def test_the_order_is_what_it_was_in_earlier_versions() -> None:
    """A resumed run must find its place again: these numbers may never change."""
    assert permute(np.arange(7), 7, seed=0).tolist() == [5, 3, 0, 1, 4, 2, 6]
    assert permute(np.arange(16), 16, seed=1).tolist() == [15, 2, 8, 0, 7, 11, 13, 4, 10, 6, 1, 9, 3, 14, 5, 12]
    assert permute(np.arange(5), 10**9, seed=0).tolist() == [477863473, 17109052, 755387923, 275765508, 559356862]


def test_the_order_differs_by_seed() -> None:
    orders = {tuple(permute(np.arange(100), 100, seed=seed)) for seed in range(20)}
    assert len(orders) == 20


def test_the_order_is_deterministic_and_each_item_is_computed_by_itself() -> None:
    order = permute(np.arange(1000), 1000, seed=3)
    assert np.array_equal(order, permute(np.arange(1000), 1000, seed=3))
    assert [int(permute(np.array([i]), 1000, seed=3)[0]) for i in range(0, 1000, 97)] == order[::97].tolist()


def test_the_order_looks_shuffled() -> None:
    order = permute(np.arange(10_000), 10_000, seed=0)
    assert abs(np.corrcoef(np.arange(10_000), order)[0, 1]) < 0.05
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.05
    assert (np.diff(order) == 1).mean() < 0.01


def test_a_billion_windows_cost_no_memory() -> None:
    tracemalloc.start()
    order = permute(np.arange(1000), 10**9, seed=0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_000_000
    assert len(set(order.tolist())) == 1000
    assert order.max() < 10**9


def test_the_argument_is_left_as_it_was_and_any_shape_is_taken() -> None:
    index = np.arange(12).reshape(3, 4)
    order = permute(index, 12, seed=0)
    assert order.shape == (3, 4)
    assert np.array_equal(index, np.arange(12).reshape(3, 4))
    assert order.flatten().tolist() == permute(np.arange(12), 12, seed=0).tolist()


def test_an_order_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="n=0 must be at least 1"):
        permute(np.arange(0), 0, seed=0)
