"""Who sees which window when: a function of (seed, step, worker) alone."""

from itertools import islice
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from ticks.data.bytes import IGNORE, ByteData, EvalWindows, TrainWindows
from ticks.data.corpus import Corpus, prepare

TOKENS = np.random.default_rng(0).integers(0, 256, 1000).astype(np.uint8)
BLOCK = 7
N_WINDOWS = 142  # (1000 - 1) // 7, no multiple of any batch below


def train_batches(
    world_size: int = 1, worker: int = 0, *, total: int = 12, seed: int = 0, start: int = 0, **other: Any
):
    settings = {"block_size": BLOCK, "batch_size": total // world_size, "seed": seed, "start": start}
    return TrainWindows(TOKENS, worker=worker, world_size=world_size, **settings | other)


def windows_of_step(step: int, world_size: int) -> list[np.ndarray]:
    return [train_batches(world_size, worker).samples(step) for worker in range(world_size)]


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_every_window_is_visited_exactly_once_per_epoch(world_size: int) -> None:
    steps = range(-(-3 * N_WINDOWS // 12))
    visited = np.concatenate([np.concatenate(windows_of_step(step, world_size)) for step in steps])
    for epoch in range(3):
        of_epoch = visited[epoch * N_WINDOWS : (epoch + 1) * N_WINDOWS]
        assert sorted(of_epoch) == list(range(N_WINDOWS))


def test_each_epoch_has_an_order_of_its_own() -> None:
    visited = np.concatenate([train_batches().samples(step) for step in range(24)])
    assert visited[:N_WINDOWS].tolist() != visited[N_WINDOWS : 2 * N_WINDOWS].tolist()


def test_workers_never_overlap() -> None:
    for step in range(11):  # the first epoch holds 11 whole steps
        first, second, third = windows_of_step(step, 3)
        assert not set(first) & set(second)
        assert not set(second) & set(third)
        assert not set(first) & set(third)


@pytest.mark.parametrize("step", [0, 5, 11, 30])
def test_a_step_learns_from_the_same_windows_whatever_the_number_of_workers(step: int) -> None:
    for world_size in (2, 4):
        assert np.concatenate(windows_of_step(step, world_size)).tolist() == train_batches().samples(step).tolist()


@pytest.mark.parametrize("start", [1, 9, 11, 40])
def test_starting_at_a_batch_equals_skipping_those_before(start: int) -> None:
    skipped = islice(train_batches(2, 1), start, start + 5)
    for a, b in zip(skipped, train_batches(2, 1, start=start), strict=False):
        assert torch.equal(a["x"], b["x"])
        assert torch.equal(a["y"], b["y"])


def test_another_seed_is_another_order() -> None:
    assert train_batches(seed=0).samples(0).tolist() != train_batches(seed=1).samples(0).tolist()
    assert train_batches(seed=1).samples(0).tolist() == train_batches(seed=1).samples(0).tolist()


def test_two_loader_processes_give_the_same_batches_in_the_same_order() -> None:
    here = islice(train_batches(2, 1, start=3), 7)
    loader = iter(DataLoader(train_batches(2, 1, start=3), batch_size=None, num_workers=2))
    for a, b in zip(here, islice(loader, 7), strict=True):
        assert torch.equal(a["x"], b["x"])


def test_y_is_x_one_byte_ahead_in_the_text() -> None:
    batches = train_batches()
    batch = batches.batch(4)
    assert batch["x"].shape == batch["y"].shape == (12, BLOCK)
    assert batch["x"].dtype == batch["y"].dtype == torch.int64
    assert torch.equal(batch["x"][:, 1:], batch["y"][:, :-1])
    for row, window in enumerate(batches.samples(4)):
        place = int(window) * BLOCK
        assert batch["x"][row].tolist() == TOKENS[place : place + BLOCK].tolist()
        assert batch["y"][row].tolist() == TOKENS[place + 1 : place + BLOCK + 1].tolist()


def test_training_has_no_padding() -> None:
    assert all(int(batch["y"].min()) >= 0 for batch in islice(train_batches(), 24))


# ---- evaluation ---------------------------------------------------------------------------------------------------


def eval_batches(world_size: int, worker: int, *, length: int = 1000, batch_size: int = 5) -> EvalWindows:
    return EvalWindows(TOKENS[:length], block_size=BLOCK, batch_size=batch_size, worker=worker, world_size=world_size)


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("length", [2, 8, 36, 37, 995, 1000])
def test_evaluation_covers_every_byte_exactly_once(world_size: int, length: int) -> None:
    rows = []
    for worker in range(world_size):
        batches = eval_batches(world_size, worker, length=length)
        for i in range(len(batches)):
            first = (i * world_size + worker) * 5
            rows += [(first + row, x, y) for row, (x, y) in enumerate(zip(*batches[i].values(), strict=True))]
    rows.sort(key=lambda row: row[0])
    targets, inputs = torch.cat([y for _, _, y in rows]), torch.cat([x for _, x, _ in rows])
    counted = targets != IGNORE
    assert targets[counted].tolist() == TOKENS[1:length].tolist()
    assert inputs[counted].tolist() == TOKENS[: length - 1].tolist()


@pytest.mark.parametrize("world_size", [2, 3])
def test_evaluation_batches_do_not_depend_on_the_number_of_workers(world_size: int) -> None:
    alone = eval_batches(1, 0)
    for worker in range(world_size):
        mine = eval_batches(world_size, worker)
        for i in range(len(mine)):
            if (number := i * world_size + worker) < len(alone):
                assert torch.equal(mine[i]["x"], alone[number]["x"])
                assert torch.equal(mine[i]["y"], alone[number]["y"])
            else:
                assert (mine[i]["y"] == IGNORE).all()


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_every_worker_has_the_same_number_of_evaluation_batches(world_size: int) -> None:
    lengths = {len(eval_batches(world_size, worker)) for worker in range(world_size)}
    assert len(lengths) == 1
    assert len(list(DataLoader(eval_batches(world_size, 0), batch_size=None))) == lengths.pop()


def test_an_evaluation_batch_past_the_end_does_not_exist() -> None:
    batches = eval_batches(2, 0)
    with pytest.raises(IndexError):
        batches[len(batches)]


# ---- the data module ----------------------------------------------------------------------------------------------


class Words(ByteData):
    def load(self) -> Corpus:
        return prepare((f"document {i} {'word ' * (i % 9)}".encode() for i in range(400)), identity="words")


def words(**options: Any) -> Words:
    return Words(**{"block_size": 16, "global_batch_size": 8, "eval_batch_size": 4} | options)


def attached(data: Words, *, step: int = 0, rank: int = 0, world_size: int = 2, accumulate: int = 1) -> Words:
    data.prepare_data()
    data.setup()
    data.trainer = SimpleNamespace(  # type: ignore[assignment]
        world_size=world_size, global_rank=rank, global_step=step, accumulate_grad_batches=accumulate,
        lightning_module=SimpleNamespace(automatic_optimization=True),
    )  # fmt: skip
    return data


def test_loaders_give_each_worker_its_share_from_the_step_on() -> None:
    batches = next(iter(attached(words(), step=0, rank=1).train_dataloader()))
    assert batches["x"].shape == (4, 16)
    resumed = next(iter(attached(words(), step=6, rank=1).train_dataloader()))
    straight = next(islice(attached(words(), step=0, rank=1).train_dataloader(), 6, None))
    assert torch.equal(resumed["x"], straight["x"])


def test_accumulated_batches_make_up_the_same_step() -> None:
    whole = attached(words(), world_size=1).train_dataloader()
    halves = islice(attached(words(), world_size=1, accumulate=2).train_dataloader(), 2, 4)
    second_step = next(islice(whole, 1, None))["x"]
    assert torch.equal(torch.cat([batch["x"] for batch in halves]), second_step)
    resumed = next(iter(attached(words(), world_size=1, accumulate=2, step=1).train_dataloader()))
    assert torch.equal(resumed["x"], second_step[:4])


def test_making_a_loader_draws_no_random_number() -> None:
    data = attached(words())
    torch.manual_seed(0)
    before = torch.get_rng_state()
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        next(iter(loader))
    assert torch.equal(torch.get_rng_state(), before)


def test_text_comes_back_from_its_bytes() -> None:
    data = words()
    assert data.decode(data.encode("Zeitgefühl, 時間")) == "Zeitgefühl, 時間"
    assert data.decode(torch.tensor([255, 65, 0, 66])) == "\ufffdA\n\nB"


@pytest.mark.parametrize(
    ("workers", "accumulate", "message"),
    [
        (3, 1, "global_batch_size=8 must be divisible by 3 workers; the nearest that do: 6, 9"),
        (3, 4, "by 3 workers x 4 accumulated batches; the nearest that do: 12"),
        (2, 0, "accumulate_grad_batches=0 must be at least 1"),
    ],
)
def test_a_batch_that_does_not_divide_is_refused_with_sizes_that_do(
    workers: int, accumulate: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        words().worker_batch_size(workers, accumulate)


@pytest.mark.parametrize(
    "wrong",
    [{"block_size": 0}, {"global_batch_size": -1}, {"eval_batch_size": 0}, {"seed": -1}, {"num_workers": -1}],
)
def test_sizes_that_cannot_be_are_refused(wrong: dict[str, int]) -> None:
    ((name, value),) = wrong.items()
    with pytest.raises(ValueError, match=f"{name}={value} must be at least"):
        words(**wrong)


def test_more_loader_processes_than_a_machine_has_use_for_are_refused() -> None:
    with pytest.raises(ValueError, match=r"num_workers=100000 must be at most \d+, eight processes for each CPU core"):
        words(num_workers=100_000)


def test_a_corpus_too_small_for_one_window_is_refused() -> None:
    with pytest.raises(ValueError, match=r"too little text: the val split has \d+ bytes .*block_size=5000 needs 5001"):
        words(block_size=5000).prepare_data()


def test_padding_of_targets_leaves_the_inputs_alone_in_batches_of_one() -> None:
    """A batch of one is contiguous as it is: x and y must not share memory."""
    batches = EvalWindows(np.arange(1, 11, dtype=np.uint8), block_size=4, batch_size=1, worker=1, world_size=2)
    for i in range(len(batches)):
        assert (batches[i]["x"] >= 0).all()
