"""LowRank against NumPy: what arrives, what is owed, in how many bytes."""

import io
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from tests.conftest import run_workers
from tests.strategy.test_wire import counted, facts, join
from ticks.strategy import FP32, Int8, LowRank
from ticks.strategy.flat import FlatBuffer
from ticks.strategy.wire import Matrix, ring_bytes

RANK, EXACT, N = 8, 3, 3
SHAPES = ((40, 30), (7,), (6, 9), (24, 2, 16))  # two that travel as factors, between them what does not
BUFFER = FlatBuffer([torch.zeros(shape) for shape in SHAPES])
LENGTH = BUFFER.all.numel()
MATRICES = BUFFER.matrices(slice(0, LENGTH))
THIN = [m for m in MATRICES if RANK * (m.rows + m.columns) < m.rows * m.columns]


def numbers(rank: int, seed: int = 0) -> Tensor:
    return torch.randn(LENGTH + EXACT, generator=torch.Generator().manual_seed(1000 * seed + rank))


def sent(wire: LowRank, x: Tensor, row: Tensor) -> tuple[Tensor, int]:
    received = wire.mean(x, row, exact=EXACT, channel="c", matrices=MATRICES)
    return x, received.n_bytes


class Reference:
    """Matrices of all workers: U spans mean_i M_i V; D = U U^T mean_i M_i; e_i = M_i - U U^T M_i; V spans D^T."""

    def __init__(self) -> None:
        random = torch.randn(RANK * sum(m.columns for m in THIN), generator=torch.Generator().manual_seed(0)).double()
        parts = random.split([RANK * m.columns for m in THIN])
        self.rights = [p.view(RANK, m.columns).T.numpy() for p, m in zip(parts, THIN, strict=True)]
        self.owed = [np.zeros((N, m.rows, m.columns)) for m in THIN]

    def mean(self, x_NxP: np.ndarray, healthy: list[int]) -> np.ndarray:
        y = x_NxP[healthy].mean(0)
        for k, m in enumerate(THIN):
            place = slice(m.start, m.start + m.rows * m.columns)
            whole = x_NxP[:, place].reshape(N, m.rows, m.columns) + self.owed[k]
            total = whole[healthy].mean(0)
            u = np.linalg.qr(total @ np.linalg.qr(self.rights[k])[0])[0]
            self.owed[k] = whole - u @ (u.T @ whole)
            for sick in set(range(N)) - set(healthy):
                self.owed[k][sick] = 0
            self.rights[k] = total.T @ u
            y[place] = (u @ self.rights[k].T).ravel()
        return y


# ---- what arrives ----------------------------------------------------------------------------------------------------


def exchanges() -> dict[str, Any]:
    rank, n = join()
    wire, x = LowRank(RANK, wire=FP32()), []
    for k in range(4):
        sick = (k, rank) == (2, 1)
        x.append(
            sent(wire, torch.full_like(numbers(0), torch.nan) if sick else numbers(rank, k), facts(rank, 1.0 - sick))[0]
        )
    nobody = sent(wire, numbers(rank, 9), facts(rank, 0.0))[0]
    with counted() as left:
        n_bytes = sent(LowRank(RANK), numbers(rank), facts(rank))[1]
    with counted() as left_fp32:
        n_bytes_fp32 = sent(LowRank(RANK, wire=FP32()), numbers(rank), facts(rank))[1]
    flat = numbers(rank)
    LowRank(RANK, wire=FP32()).mean(flat, facts(rank))
    double = numbers(rank).double()
    LowRank(RANK, wire=FP32()).mean(double, facts(rank), exact=EXACT, matrices=MATRICES)
    alone = numbers(rank)
    group = [dist.new_group([r]) for r in range(n)][rank]
    alone_bytes = LowRank(RANK).mean(alone, facts(rank), matrices=MATRICES, group=group).n_bytes
    low = numbers(rank)
    for m in THIN:  # of a rank that the factors can carry, and nothing where a basis of zeros would look
        m.view(low).zero_()
        tall = numbers(rank, 5)[: m.rows * RANK].view(m.rows, RANK)
        m.view(low)[RANK:, RANK:] = tall[RANK:] @ numbers(9)[: RANK * m.columns].view(RANK, m.columns)[:, RANK:]
    exact_low = low.clone()
    sent(wire := LowRank(RANK, wire=FP32()), low, facts(rank))
    zero = torch.zeros_like(low)
    waking = LowRank(RANK, wire=FP32())
    sent(waking, zero, facts(rank))
    sent(waking, awake := exact_low.clone(), facts(rank))
    results = {"x": x, "nobody": nobody, "flat": flat, "double": double, "alone": alone, "low": low, "awake": awake}
    return {name: [t.numpy() for t in value] if name == "x" else value.numpy() for name, value in results.items()} | {
        "alone_bytes": alone_bytes, "bytes": (n_bytes, int(sum(left))), "low before": exact_low.numpy(),
        "bytes fp32": (n_bytes_fp32, int(sum(left_fp32))),
    }  # fmt: skip


@pytest.fixture(scope="module")
def results() -> list[dict[str, Any]]:
    return run_workers(N, exchanges)


def means(seed: int = 0) -> np.ndarray:
    return np.mean([numbers(rank, seed).double().numpy() for rank in range(N)], axis=0)


def test_matrices_are_found_in_the_flat_buffer() -> None:
    assert [Matrix(0, 40, 30), Matrix(1216, 6, 9), Matrix(1280, 24, 32)] == MATRICES
    assert [m.rows for m in THIN] == [40, 24]
    assert BUFFER.matrices(slice(1216, 1280)) == [Matrix(0, 6, 9)]
    x = torch.arange(LENGTH)
    assert torch.equal(MATRICES[2].view(x).flatten(), x[1280 : 1280 + 24 * 32])


def test_the_mean_is_that_of_the_formula_exchange_by_exchange(results: list[dict]) -> None:
    reference = Reference()
    for k in range(4):
        x_NxP = np.stack([numbers(rank, k).double().numpy() for rank in range(N)])
        expected = reference.mean(x_NxP, [0, 2] if k == 2 else [0, 1, 2])
        for result in results:
            assert result["x"][k] == pytest.approx(expected, abs=2e-4), f"exchange {k}"


def test_all_workers_get_the_same_bits(results: list[dict]) -> None:
    for result in results[1:]:
        for k in range(4):
            assert result["x"][k].tobytes() == results[0]["x"][k].tobytes()


def test_vectors_small_matrices_and_exact_numbers_are_averaged_as_they_are(results: list[dict]) -> None:
    x, mean = results[0]["x"][0], means()
    between = slice(THIN[0].rows * THIN[0].columns, THIN[1].start)
    assert x[between] == pytest.approx(mean[between], abs=1e-6)
    assert x[-EXACT:] == pytest.approx(mean[-EXACT:], abs=1e-6)
    assert np.abs(x - mean).max() > 0.1  # the others are not
    assert results[0]["flat"] == pytest.approx(mean, abs=1e-6)  # where nobody says what is a matrix


def test_a_mean_of_low_rank_arrives_whole(results: list[dict]) -> None:
    expected = np.mean([result["low before"] for result in results], axis=0)
    assert results[0]["low"] == pytest.approx(expected, abs=1e-4)


def test_a_matrix_of_zeros_does_not_end_what_comes_after_it(results: list[dict]) -> None:
    expected = np.mean([result["low before"] for result in results], axis=0)
    assert results[0]["awake"] == pytest.approx(expected, abs=1e-4)


def test_float64_numbers_keep_their_type(results: list[dict]) -> None:
    assert results[0]["double"].dtype == np.float64
    assert results[0]["double"][-EXACT:] == pytest.approx(means()[-EXACT:], abs=1e-15)
    assert results[0]["double"] == pytest.approx(results[0]["x"][0], abs=1e-4)


def test_numbers_stay_where_nobody_has_a_weight_or_nobody_else_is_there(results: list[dict]) -> None:
    for rank, result in enumerate(results):
        assert np.array_equal(result["nobody"], numbers(rank, 9).numpy())
        assert np.array_equal(result["alone"], numbers(rank).numpy())
        assert result["alone_bytes"] == 0


def test_bytes_are_those_that_left_and_those_of_the_factors(results: list[dict]) -> None:
    rest = LENGTH - sum(m.rows * m.columns for m in THIN)
    left, right = RANK * sum(m.rows for m in THIN), RANK * sum(m.columns for m in THIN)
    row = (N - 1) * (8 + facts(0).nbytes)
    for result in results:
        for key in ("bytes", "bytes fp32"):
            assert result[key][0] == result[key][1]
        factors = ring_bytes(4 * (left + rest + EXACT), N) + ring_bytes(4 * right, N) + 2 * row
        assert result["bytes fp32"][0] == pytest.approx(factors, abs=1)
        assert result["bytes"][0] < 0.5 * result["bytes fp32"][0]


# ---- what is owed ----------------------------------------------------------------------------------------------------


def distances(wires: list[LowRank], of_low_rank: bool) -> list[list[float]]:
    """Per wire: |sum of results - sum of true means| after 20 and after 200 exchanges."""
    rank, _ = join()

    def own(r: int, k: int) -> Tensor:
        x = numbers(r, k)
        for m in THIN if of_low_rank else ():
            m.view(x).copy_(x[: m.rows, None] * numbers(0)[None, : m.columns])
        return x

    everyones = []
    for wire in wires:
        lost, mine = torch.zeros(LENGTH + EXACT, dtype=torch.float64), []
        for k in range(1, 201):
            x, _ = sent(wire, own(rank, k), facts(rank))
            lost += x - torch.stack([own(r, k).double() for r in range(2)]).mean(0)
            if k in (20, 200):
                mine.append(lost.norm().item())
        everyones.append(mine)
    return everyones


def test_what_the_factors_lose_comes_later() -> None:
    for early, late in run_workers(2, distances, [LowRank(RANK, wire=FP32()), LowRank(RANK)], False)[0]:
        assert 1 < late < 1.3 * early


def test_what_the_wire_loses_of_the_factors_comes_later_too() -> None:
    """Matrices of rank 1: all that is lost is rounding, a random walk without error feedback."""
    wires = [LowRank(RANK), LowRank(RANK, wire=Int8(error_feedback=False))]
    (early, late), (early_without, late_without) = run_workers(2, distances, wires, True)[0]
    assert 0 < late < 1.3 * early
    assert late_without > 2 * early_without


def resumed() -> list[np.ndarray]:
    rank, _ = join()
    first, second, forgetful = LowRank(RANK), LowRank(RANK), LowRank(RANK)
    for k in range(3):
        sent(first, numbers(rank, k), facts(rank))
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    second.load_state_dict(state)
    forgetful.load_state_dict(state)
    assert state["wire"] == {}  # all that is owed is in the residuals
    forgetful.reset()
    assert forgetful.state_dict()["residuals"] == {}
    assert torch.equal(forgetful.state_dict()["rights"]["c"], state["rights"]["c"])  # what all workers know
    return [torch.cat([sent(w, numbers(rank, k), facts(rank))[0] for k in range(3, 6)]).numpy()
            for w in (first, second, forgetful)]  # fmt: skip


def test_a_resumed_wire_goes_on_bit_by_bit_and_a_reset_one_does_not() -> None:
    for first, second, forgetful in run_workers(2, resumed):
        assert np.array_equal(first, second)
        assert not np.array_equal(first, forgetful)


@pytest.mark.parametrize(("rank", "wire"), [(0, None), (1.5, None), (True, None), (4, LowRank(2))])
def test_a_rank_or_a_wire_for_factors_that_cannot_be_is_refused(rank: Any, wire: Any) -> None:
    with pytest.raises(ValueError, match=r"rank=(0|1\.5|True) must be|wire='LowRank'"):
        LowRank(rank, wire=wire)
    assert LowRank(4, wire=Int8()).lossy
