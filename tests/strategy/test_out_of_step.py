"""Messages that do not belong together never meet: what workers mean is compared before numbers leave, and data that
end after different steps are told."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

from tests.conftest import REPOSITORY, WorkerError, run_workers
from tests.strategy.test_wire import facts, join, numbers
from tests.strategy.toys import Stream, Toy, flat, trainer_for
from ticks.strategy import (
    DDP,
    FP32,
    Average,
    Gradients,
    Hierarchical,
    Int4,
    Int8,
    LowRank,
    Parameters,
    Streaming,
    TickStrategy,
    Wire,
)
from ticks.strategy import wire as wires
from ticks.strategy.wire import BF16, OutOfStep

# ---- messages --------------------------------------------------------------------------------------------------------

MESSAGES: list[tuple[Callable[[], Wire], dict[str, Any]]] = [
    (FP32, {"channel": "parameters/0", "step": 8}),
    (FP32, {"channel": "gradients", "step": 8}),
    (FP32, {"channel": "parameters/0", "step": 9}),
    (FP32, {"channel": "parameters/0", "step": 8, "length": 900}),
    (FP32, {"channel": "parameters/0", "step": 8, "exact": 7}),
    (FP32, {"channel": "parameters/0", "step": 8, "dtype": torch.float64}),
    (Int8, {"channel": "parameters/1", "step": 8}),
    (Int4, {"channel": "parameters/1", "step": 8, "length": 900}),
    (BF16, {"channel": "parameters/1", "step": 9}),
    (LowRank, {"channel": "parameters/2", "step": 8}),
]


def meet_in_every_pair() -> list[str]:
    """Worker 0 sends one message while worker 1 sends another, in every order; then both the same."""
    rank, _ = join()
    said = []
    for mine in MESSAGES:
        for theirs in MESSAGES:
            if mine is theirs:
                continue
            kind, how = (mine, theirs)[rank]
            length, dtype = how.get("length", 1000), how.get("dtype", torch.float32)
            x = numbers(rank, length=length, dtype=dtype)
            before = x.clone()
            with pytest.raises(OutOfStep) as error:
                kind().mean(x, facts(rank), exact=how.get("exact", 0), channel=how["channel"], step=how["step"])
            assert torch.equal(x, before)
            said.append(str(error.value))
    x = numbers(rank)
    FP32().mean(x, facts(rank), channel="parameters/0", step=10)  # nothing of all that is still on its way
    assert torch.allclose(x, (numbers(0) + numbers(1)) / 2)
    return said


def test_no_two_messages_of_different_meaning_or_size_are_averaged_and_both_are_named() -> None:
    first, second = run_workers(2, meet_in_every_pair)
    assert first == second
    assert len(first) == len(MESSAGES) * (len(MESSAGES) - 1)
    assert "worker 0: parameters/0 after step 8, 1000 numbers, float32; worker 1: gradients after step 8" in first[0]


class Strays(pl.Callback):
    """Sets a worker's parameters behind everybody's back."""

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_rank == 1 and batch_idx == 0:
            with torch.no_grad():
                module.net[0].weight.add_(1.0)


class Thaws(pl.Callback):
    def on_train_start(self, trainer: pl.Trainer, module: Any) -> None:
        module.net[0].requires_grad_(False)

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, *_: Any) -> None:
        module.net[0].requires_grad_(True)


VALIDATES = {"val_check_interval": 3, "limit_val_batches": 1.0}
KINDS: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "parameters/0": (lambda: TickStrategy(2, sync=Parameters()), {}),
    "parameters/1": (lambda: TickStrategy(4, sync=Streaming(fragments=2, delay=1)), {}),
    "gradients": (lambda: TickStrategy(2, sync=Gradients()), {}),
    "group": (lambda: TickStrategy(4, sync=Hierarchical(inner_interval=2, group_size=2)), {}),
    "measuring": (lambda: TickStrategy(4, sync=Parameters()), VALIDATES),
    "a validation": (lambda: TickStrategy(4, sync=Parameters()), VALIDATES),
    "layout": (lambda: TickStrategy(2, sync=Parameters()), {"callbacks": [Thaws()]}),
    "optimizer/exp_avg": (lambda: TickStrategy(2, sync=Parameters(), optimizer_state=Average()), {}),
    "repair": (lambda: TickStrategy(1), {"callbacks": [Strays()]}),
}


def one_means_something_else(kind: str) -> str:
    """Worker 1 has another meaning for messages of this kind: what both then are told."""
    strategy, options = KINDS[kind]
    real = wires.Told.__init__

    def told(self: Any, facts_F: Any, meaning: str, **kwargs: Any) -> None:
        if dist.get_rank() == 1 and re.match(rf"{kind}\b", meaning):
            meaning = "something else"
        real(self, facts_F, meaning, **kwargs)

    wires.Told.__init__ = told
    with pytest.raises(OutOfStep) as error:
        trainer_for(strategy(), 2, steps=8, **options).fit(Toy())
    return str(error.value)


@pytest.mark.parametrize("kind", list(KINDS))
def test_every_message_of_training_says_what_it_means(kind: str) -> None:
    first, second = run_workers(2, one_means_something_else, kind)
    assert first == second
    assert re.search(rf"worker 0: {kind} after step \d.*; worker 1: something else", first)


def test_numbers_leave_through_wires_alone() -> None:
    for path in (REPOSITORY / "src" / "ticks").rglob("*.py"):
        sends = re.search(
            r"\.(all_reduce|isend|reduce_scatter\w*|all_to_all\w*|all_gather_into_tensor)\b", path.read_text()
        )
        assert (sends is not None) == (path.name == "wire.py"), path


# ---- data ------------------------------------------------------------------------------------------------------------


class Finite(Stream):
    """So many batches of 4; nobody is told how many."""

    def __init__(self, worker: int, batches: int) -> None:
        super().__init__(worker, batch=4)
        self.batches = batches

    def __iter__(self) -> Any:
        endless = super().__iter__()
        for _ in range(self.batches):
            yield next(endless)


class FewBatches(Toy):
    """20 and 27 samples, or 20 and 20."""

    def __init__(self, batches: tuple[int, int] = (5, 7)) -> None:
        super().__init__()
        self.batches = batches

    def train_dataloader(self) -> DataLoader:
        return DataLoader(Finite(self.global_rank, self.batches[self.global_rank]), batch_size=None)


def unequal(strategy: Callable[[], Any], options: dict[str, Any]) -> str:
    with pytest.raises(RuntimeError) as error:
        trainer_for(strategy(), 2, steps=-1, max_epochs=2, **options).fit(FewBatches())
    return str(error.value)


UNEQUAL = {
    "a tick is after it": lambda: TickStrategy(3, sync=Parameters()),
    "no tick is after it": lambda: TickStrategy(16, sync=Parameters()),
    "interval 1": lambda: TickStrategy(1),
    "int8": lambda: TickStrategy(3, sync=Parameters(), wire=Int8()),
    "messages under way": lambda: TickStrategy(4, sync=Streaming(fragments=2, delay=1)),
    "groups": lambda: TickStrategy(8, sync=Hierarchical(inner_interval=2, group_size=2)),
}
AT_EPOCHS = {"check_val_every_n_epoch": 1, "limit_val_batches": 1.0}


@pytest.mark.parametrize("options", [{}, AT_EPOCHS], ids=["", "validation"])
@pytest.mark.parametrize("name", list(UNEQUAL))
def test_data_that_end_after_different_steps_are_told_on_every_worker(name: str, options: dict[str, Any]) -> None:
    first, second = run_workers(2, unequal, UNEQUAL[name], options, timeout=20)
    assert first == second
    assert f"after step {5 if options else 10}, where its data ended" in first
    assert "max_steps to the Trainer" in first


def test_ddp_does_not_wait_for_ever_for_data_that_go_on(tmp_path: Path) -> None:
    """Who goes on is inside a collective, which ends as the other worker's process does."""

    def job() -> None:
        said = unequal(lambda: DDP(hang_seconds=3, heartbeat_seconds=0.2), {})
        (tmp_path / os.environ["LOCAL_RANK"]).write_text(said)
        os._exit(0)

    with pytest.raises(WorkerError):
        run_workers(2, job, timeout=20)
    first = (tmp_path / "0").read_text()
    assert "worker 0: the end of an epoch after step 10, where its data ended, for 3 s; worker 1: elsewhere" in first


def ends(options: dict[str, Any], batches: tuple[int, int]) -> tuple[int, torch.Tensor]:
    trainer = trainer_for(TickStrategy(3, sync=Parameters()), 2, **({"steps": -1} | options))
    trainer.fit(module := FewBatches(batches))
    return trainer.global_step, flat(module)


def test_epochs_of_any_length_do_where_nothing_is_said_at_their_end() -> None:
    (steps, first), (also, second) = run_workers(2, ends, {"steps": 20}, (5, 7))
    assert steps == also == 20
    assert torch.equal(first, second)


def test_data_of_unknown_but_equal_length_end_with_their_epochs(tmp_path: Path) -> None:
    def job() -> tuple[int, torch.Tensor]:
        saver = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
        return ends({"max_epochs": 2, "callbacks": [saver], "enable_checkpointing": True} | AT_EPOCHS, (5, 5))

    (steps, first), (also, second) = run_workers(2, job)
    assert steps == also == 10
    assert torch.equal(first, second)
    assert {path.name for path in tmp_path.glob("*.ckpt")} == {"epoch=0.ckpt", "epoch=1.ckpt"}


def test_a_save_that_one_worker_alone_decides_on_is_told() -> None:
    def job(directory: Path) -> None:
        class Saves(pl.Callback):
            def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
                if trainer.global_rank == 1 and trainer.global_step == 2:
                    trainer.save_checkpoint(directory / "mine.ckpt")

        trainer_for(TickStrategy(4), 2, steps=8, callbacks=[Saves()]).fit(Toy())

    with pytest.raises(WorkerError) as error:
        run_workers(2, job, Path("nowhere"), timeout=20)
    assert str(error.value).count("worker 0: gradients after step 3, 144 numbers, float32; worker 1: a checkpoint") >= 2
