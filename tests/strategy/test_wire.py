"""Wires against a float64 reference: what arrives, on whom, in how many bytes, and what encoding loses for good."""

import io
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from tests.conftest import run_workers
from ticks.strategy import wire as wires
from ticks.strategy.wire import BF16, FP16, FP32, Encoded, Int4, Int8, Received, ring_bytes

RATIO = {FP32: 1.0, BF16: 0.5, FP16: 0.5, Int8: 0.254, Int4: 0.141}  # of fp32's bytes
ERROR = {FP32: 1e-7, BF16: 0.003, FP16: 4e-4, Int8: 0.012, Int4: 0.15}  # root mean square, of numbers of size 1
LOSSY = (BF16, FP16, Int8, Int4)
LENGTH, EXACT = 70_001, 5


class Plain(Encoded):
    """A user's own wire: fp32 numbers as they are."""

    def size(self, n: int) -> int:
        return 4 * n

    def encode(self, numbers_P: Tensor, bytes_B: Tensor) -> None:
        bytes_B.view(torch.float32).copy_(numbers_P)

    def decode(self, bytes_B: Tensor, numbers_P: Tensor) -> None:
        numbers_P.copy_(bytes_B.view(torch.float32))


def join() -> tuple[int, int]:
    """This worker's rank and the number of workers; pieces are small, so that chunks have several."""
    rank, n = int(os.environ["LOCAL_RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo", rank=rank, world_size=n)
    wires.PIECE = 1 << 14
    return rank, n


def numbers(rank: int, seed: int = 0, length: int = LENGTH, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(length, generator=torch.Generator().manual_seed(1000 * seed + rank), dtype=dtype)


def facts(rank: int, weight: float = 1.0) -> Tensor:
    return torch.tensor([weight, 1 / 3 + rank, 1e300], dtype=torch.float64)


def reference(ranks: list[int], **kwargs: Any) -> np.ndarray:
    return np.mean([numbers(rank, **kwargs).double().numpy() for rank in ranks], axis=0)


@contextmanager
def counted() -> Iterator[list[Fraction]]:
    """What goes out through torch.distributed; the collectives as a ring would send them."""
    sent: list[Fraction] = []
    originals = {name: getattr(dist, name) for name in ("batch_isend_irecv", "all_reduce", "all_gather")}

    def point_to_point(operations: list[dist.P2POp]) -> Any:
        sent.extend(Fraction(o.tensor.nbytes) for o in operations if o.op is dist.isend)
        return originals["batch_isend_irecv"](operations)

    def all_reduce(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        n = dist.get_world_size()
        sent.append(Fraction(2 * (n - 1) * tensor.nbytes, n))
        return originals["all_reduce"](tensor, *args, **kwargs)

    def all_gather(tensors: list[Tensor], tensor: Tensor, **kwargs: Any) -> Any:
        sent.append(Fraction((len(tensors) - 1) * tensor.nbytes))
        return originals["all_gather"](tensors, tensor, **kwargs)

    dist.batch_isend_irecv, dist.all_reduce, dist.all_gather = point_to_point, all_reduce, all_gather
    try:
        yield sent
    finally:
        for name, function in originals.items():
            setattr(dist, name, function)


# ---- what arrives ----------------------------------------------------------------------------------------------------


def all_cases() -> dict[tuple[str, str], tuple[np.ndarray, np.ndarray, int, int]]:
    rank, _ = join()
    results = {}

    def case(name: str, kind: type, x: Tensor, *, weight: float = 1.0, exact: int = 0) -> None:
        with counted() as sent:
            received = kind().mean(x, facts(rank, weight), exact=exact)
        results[kind.__name__, name] = (x.numpy(), received.rows_NxF.numpy(), received.n_bytes, int(sum(sent)))

    for kind in (*RATIO, Plain):
        case("all", kind, numbers(rank), exact=EXACT)
        case("one", kind, numbers(rank, length=1))
        case("exact only", kind, numbers(rank, length=3), exact=3)
        case("float64", kind, numbers(rank, length=1000, dtype=torch.float64), exact=2)
        skipped = rank == 1
        x = torch.full((LENGTH,), torch.nan) if skipped else numbers(rank)
        case("nan skipped", kind, x, weight=float(not skipped), exact=EXACT)
        case("nobody", kind, numbers(rank), weight=0.0, exact=EXACT)
    return results


@pytest.fixture(scope="module", params=[2, 3, 4])
def results(request: pytest.FixtureRequest) -> list[dict]:
    return run_workers(request.param, all_cases)


def test_the_mean_is_that_of_float64(results: list[dict]) -> None:
    everyone = list(range(len(results)))
    for kind, allowed in ERROR.items():
        error = results[0][kind.__name__, "all"][0] - reference(everyone)
        assert np.sqrt(np.mean(error**2)) < allowed, kind
        assert results[0][kind.__name__, "one"][0] == pytest.approx(reference(everyone, length=1), abs=20 * allowed)


def test_a_wire_that_rounds_nothing_adds_up_in_the_order_of_the_ranks(results: list[dict]) -> None:
    total = numbers(0)
    for rank in range(1, len(results)):
        total += numbers(rank)
    assert np.array_equal(results[0]["Plain", "all"][0], (total / len(results)).numpy())


def test_all_workers_get_the_same_bits(results: list[dict]) -> None:
    for key in results[0]:
        if key[1] != "nobody":
            for result in results[1:]:
                assert result[key][0].tobytes() == results[0][key][0].tobytes(), key


def test_exact_numbers_are_not_encoded(results: list[dict]) -> None:
    everyone = list(range(len(results)))
    for kind in RATIO:
        exact = results[0][kind.__name__, "all"][0][-EXACT:]
        assert exact == pytest.approx(reference(everyone)[-EXACT:], abs=2e-7), kind
        exact = results[0][kind.__name__, "exact only"][0]
        assert exact == pytest.approx(reference(everyone, length=3), abs=2e-7), kind


def test_float64_stays_float64_where_it_is_not_encoded(results: list[dict]) -> None:
    mean = reference(list(range(len(results))), length=1000, dtype=torch.float64)
    assert results[0]["FP32", "float64"][0] == pytest.approx(mean, abs=1e-15)
    for kind in LOSSY:
        x = results[0][kind.__name__, "float64"][0]
        assert x[-2:] == pytest.approx(mean[-2:], abs=1e-15)
        assert 1e-9 < np.sqrt(np.mean((x - mean) ** 2)) < ERROR[kind]


def test_everyone_learns_everyones_facts(results: list[dict]) -> None:
    for result in results:
        for (_, name), (_, rows, _, _) in result.items():
            weights = [float(name != "nobody" and (name != "nan skipped" or r != 1)) for r in range(len(results))]
            assert np.array_equal(rows, [facts(rank, weight).tolist() for rank, weight in enumerate(weights)])


def test_a_skipped_workers_nan_reaches_nobody_and_it_gets_the_mean(results: list[dict]) -> None:
    healthy = [rank for rank in range(len(results)) if rank != 1]
    for kind, allowed in ERROR.items():
        for result in results:
            error = result[kind.__name__, "nan skipped"][0] - reference(healthy)
            assert np.sqrt(np.mean(error**2)) < allowed, kind


def test_numbers_stay_where_nobody_has_a_weight(results: list[dict]) -> None:
    for rank, result in enumerate(results):
        for kind in RATIO:
            assert np.array_equal(result[kind.__name__, "nobody"][0], numbers(rank).numpy()), kind


def test_bytes_are_those_that_left(results: list[dict]) -> None:
    for result in results:
        for key, (_, _, n_bytes, sent) in result.items():
            assert n_bytes == sent > 0, key


def test_a_wire_sends_the_documented_share_of_what_fp32_sends(results: list[dict]) -> None:
    for kind, ratio in RATIO.items():
        for result in results:
            fp32 = ring_bytes(4 * LENGTH, len(results))
            assert result[kind.__name__, "all"][2] / fp32 == pytest.approx(ratio, rel=0.01), kind
    assert RATIO[Int8] < 0.27
    assert RATIO[Int4] < 0.15


def test_ring_bytes() -> None:
    assert [ring_bytes(1000, n) for n in (1, 2, 4)] == [0, 1000, 1500]


# ---- groups and threads ----------------------------------------------------------------------------------------------


def in_groups() -> list[tuple[np.ndarray, np.ndarray]]:
    rank, _ = join()
    groups = [dist.new_group([0, 2]), dist.new_group([1, 3])]
    alone = [dist.new_group([r]) for r in range(4)][rank]
    results = []
    for kind in RATIO:
        x = numbers(rank, length=2000)
        rows = kind().mean(x, facts(rank), exact=2, group=groups[rank % 2]).rows_NxF
        results.append((x.numpy(), rows.numpy()))
        x = numbers(rank)
        received = kind().mean(x, facts(rank), group=alone)
        assert torch.equal(x, numbers(rank))
        assert received.n_bytes == 0
        assert torch.equal(received.rows_NxF, facts(rank)[None])
    return results


def test_a_group_agrees_by_itself_and_one_worker_alone_sends_nothing() -> None:
    results = run_workers(4, in_groups)
    for i, kind in enumerate(RATIO):
        for ranks in ([0, 2], [1, 3]):
            for rank in ranks:
                mean, rows = results[rank][i]
                error = mean - reference(ranks, length=2000)
                assert np.sqrt(np.mean(error**2)) < ERROR[kind], kind
                assert np.array_equal(rows, [facts(r).tolist() for r in ranks])
                assert mean.tobytes() == results[ranks[0]][i][0].tobytes()


def main_thread_and_another(kind: Callable[[], wires.Wire]) -> bool:
    rank, _ = join()
    group = dist.new_group()

    def exchanges(wire: wires.Wire, channel: str, seed: int, group: Any, out: list[Tensor]) -> None:
        for k in range(12):
            x = numbers(rank, seed + k, 30_000)
            rows = wire.mean(x, facts(rank + k), exact=3, channel=channel, group=group).rows_NxF
            assert torch.equal(rows, torch.stack([facts(r + k) for r in range(len(rows))]))
            out.append(x)

    here, there, after = [], [], []
    wire = kind()
    thread = threading.Thread(target=exchanges, args=(wire, "b", 50, group, there))
    thread.start()
    exchanges(wire, "a", 0, None, here)
    thread.join()
    alone = kind()
    exchanges(alone, "a", 0, None, after)
    exchanges(alone, "b", 50, None, after)
    return len(after) == 24 and all(torch.equal(a, b) for a, b in zip(here + there, after, strict=True))


@pytest.mark.parametrize("kind", [FP32, Int4])
def test_a_background_thread_may_exchange_at_the_same_time(kind: type) -> None:
    assert run_workers(2, main_thread_and_another, kind) == [True, True]


# ---- error feedback --------------------------------------------------------------------------------------------------

CHECKPOINTS = (10, 100)


def distances(those: list[wires.Wire]) -> list[list[float]]:
    """Per wire: |sum of results - sum of true means| after 10 and after 100 exchanges."""
    rank, _ = join()
    lost = [torch.zeros(1000, dtype=torch.float64) for _ in those]
    everyones: list[list[float]] = [[] for _ in those]
    for k in range(1, 1 + max(CHECKPOINTS)):
        own, mean = numbers(rank, k, 1000), torch.from_numpy(reference([0, 1], seed=k, length=1000))
        for wire, so_far, mine in zip(those, lost, everyones, strict=True):
            wire.mean(x := own.clone(), facts(rank))
            so_far += x - mean
            if k in CHECKPOINTS:
                mine.append(so_far.norm().item())
    return everyones


def test_with_error_feedback_nothing_is_lost_for_good() -> None:
    """Without it rounding is a random walk: sqrt(10) times as far after 100 exchanges as after 10."""
    without = [kind(error_feedback=False) for kind in (BF16, Int4)]
    results = run_workers(2, distances, [*(kind() for kind in LOSSY), *without])[0]
    for kind, (early, late) in zip(LOSSY, results[: len(LOSSY)], strict=True):
        assert 0 < late < 1.3 * early, kind
    for early, late in results[len(LOSSY) :]:
        assert late > 2 * early


def saturated() -> list[tuple[float, float]]:
    rank, _ = join()
    wire, seen = FP16(), []
    for k in range(4):
        x = torch.full((100,), 1e5 * (k == 0))
        wire.mean(x, facts(rank))
        seen.append((x.min().item(), x.max().item()))
    return seen


def test_fp16_saturates_and_the_rest_comes_later() -> None:
    (seen, _) = run_workers(2, saturated)
    assert seen[0] == (65504, 65504)
    assert np.sum(seen, axis=0) == pytest.approx([1e5, 1e5], rel=1e-6)


def resumed(kind: type) -> list[Tensor]:
    rank, _ = join()

    def exchange(wire: wires.Wire, k: int) -> Tensor:
        x = numbers(rank, k, 3000)
        wire.mean(x, facts(rank), channel="parameters/0")
        wire.mean(numbers(rank, k + 100, 500), facts(rank), channel="gradients")
        return x

    first, second, forgetful = kind(), kind(), kind()
    for k in range(3):
        exchange(first, k)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    second.load_state_dict(state)
    forgetful.load_state_dict(state)
    forgetful.reset()
    return [torch.cat([exchange(w, k) for k in range(3, 6)]).numpy() for w in (first, second, forgetful)]


@pytest.mark.parametrize("kind", [BF16, Int4])
def test_a_resumed_wire_goes_on_bit_by_bit_and_a_reset_one_does_not(kind: type) -> None:
    for first, second, forgetful in run_workers(2, resumed, kind):
        assert np.array_equal(first, second)
        assert not np.array_equal(first, forgetful)


def skipped_in_the_middle() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Residuals before and after an exchange that skips worker 1, and the mean of the next."""
    rank, _ = join()
    wire, states = Int8(), []
    for k in range(2):
        x = torch.full((512,), torch.nan) if k == 1 == rank else numbers(rank, k, 512)
        wire.mean(x, facts(rank, float(not k == 1 == rank)), channel="c")
        states.append(wire.state_dict()["c"].numpy())
    x = numbers(rank, 2, 512)
    wire.mean(x, facts(rank), channel="c")
    return states[0], states[1], x.numpy()


def test_a_skipped_worker_forgets_what_it_owes_of_its_own_numbers_and_not_what_it_owes_of_the_mean() -> None:
    _, (before, after, mean) = run_workers(2, skipped_in_the_middle)
    assert np.abs(before[:256]).max() > 0
    assert np.array_equal(after[:256], np.zeros(256))
    assert np.abs(after[256:]).max() > 0
    error = mean - reference([0, 1], seed=2, length=512)
    assert np.sqrt(np.mean(error**2)) < 2 * ERROR[Int8]


# ---- encodings -------------------------------------------------------------------------------------------------------


def through(wire: Encoded, x: Tensor) -> Tensor:
    code, y = torch.full((wire.size(len(x)),), 255, dtype=torch.uint8), torch.full_like(x, torch.nan)
    wire.encode(x, code)
    wire.decode(code, y)
    return y


LEVELS = {Int8: torch.arange(128.0), Int4: torch.tensor([0.0, 1, 2, 3, 4, 6, 8, 12])}


@pytest.mark.parametrize("kind", LEVELS)
def test_a_number_becomes_the_nearest_level_of_its_block(kind: type) -> None:
    levels = torch.cat([-LEVELS[kind].flip(0), LEVELS[kind]])
    wire = kind(block=64)
    blocks = torch.randn(500, 64, generator=torch.Generator().manual_seed(0)) * torch.logspace(-12, 12, 500)[:, None]
    scales = blocks.abs().amax(1, keepdim=True) / levels.max()
    nearest = (blocks[..., None] - scales[..., None] * levels).abs().amin(-1)
    error = (through(wire, blocks.view(-1)).view_as(blocks) - blocks).abs()
    assert torch.allclose(error / scales, nearest / scales, atol=1e-4)


@pytest.mark.parametrize("kind", LEVELS)
def test_a_block_of_zeros_is_divided_by_something(kind: type) -> None:
    wire, code = kind(block=64), torch.zeros(kind(block=64).size(64), dtype=torch.uint8)
    wire.encode(torch.zeros(64), code)
    assert code[:4].view(torch.float32).item() > 0
    assert torch.equal(through(wire, torch.zeros(64)), torch.zeros(64))


@pytest.mark.parametrize("kind", LEVELS)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_stays_so_and_stays_in_its_block(kind: type, bad: float) -> None:
    x = torch.ones(256)
    x[70] = bad
    y = through(kind(block=64), x)
    assert not y[70].isfinite()
    assert torch.equal(y[:64], torch.ones(64))
    assert torch.equal(y[128:], torch.ones(128))


def test_four_bits_take_heavy_tails_better_than_whole_numbers_would() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 1 << 17, generator=generator).prod(0)
    scales = x.view(-1, 64).abs().amax(1, keepdim=True) / 7
    whole = ((x.view(-1, 64) / scales).round() * scales).view(-1)
    assert (through(Int4(), x) - x).square().mean() < 0.7 * (whole - x).square().mean()


@pytest.mark.parametrize("kind", [Int8, Int4])
@pytest.mark.parametrize("block", [0, 48, 1 << 20])
def test_a_block_that_does_not_fit_is_refused(kind: type, block: int) -> None:
    with pytest.raises(ValueError, match=f"block={block} must be a power of 2"):
        kind(block=block)


def test_only_wires_that_round_are_lossy() -> None:
    assert [kind().lossy for kind in RATIO] == [False, True, True, True, True]
    assert FP32().state_dict() == {}
    assert Received(torch.zeros(1, 1), 0).n_bytes == 0


# ---- in which order --------------------------------------------------------------------------------------------------


def orders_of(backend: str) -> tuple[list[list[str]], Tensor]:
    """What is posted together, one batch after the other, and the mean, on a backend called so."""
    rank, _ = join()
    batches: list[list[str]] = []
    batch, name = dist.batch_isend_irecv, dist.get_backend

    def posted(operations: list[dist.P2POp]) -> Any:
        batches.append(["send" if o.op is dist.isend else "receive" for o in operations])
        return batch(operations)

    dist.batch_isend_irecv, dist.get_backend = posted, lambda group: backend
    try:
        x = numbers(rank)
        Int8().mean(x, facts(rank))
    finally:
        dist.batch_isend_irecv, dist.get_backend = batch, name
    return batches, x


def test_what_will_be_received_is_asked_for_before_anything_is_sent() -> None:
    """Else gloo fills one direction of a connection at a time; other backends get each half as one batch."""
    gloo, nccl = (run_workers(3, orders_of, backend) for backend in ("gloo", "nccl"))
    for (one_by_one, mine), (at_once, theirs) in zip(gloo, nccl, strict=True):
        assert one_by_one == 2 * (2 * [["receive"]] + 2 * [["send"]])
        assert at_once == 2 * [["receive", "receive", "send", "send"]]
        assert torch.equal(mine, theirs)
