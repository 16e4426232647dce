"""What TickStrategy promises about parameters, traffic and measuring."""

import itertools
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from tests.conftest import NAME, WorkerError, run_workers
from tests.strategy.toys import CountInTraining, Snapshots, Stream, Toy, Traffic, flat, trainer_for
from ticks.arguments import ArgumentError
from ticks.strategy import (
    DDP,
    FP32,
    Accumulate,
    EverySeconds,
    EverySteps,
    Gradients,
    Hierarchical,
    Parameters,
    Streaming,
    TickStrategy,
)
from ticks.strategy.facts import FIELDS
from ticks.strategy.flat import digest
from ticks.strategy.wire import ring_bytes


def train(strategy: Any, n: int, steps: int, module: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    pl.seed_everything(0, verbose=False)
    toy, snapshots = Toy(**module), Snapshots()
    trainer = trainer_for(strategy(), n, steps=steps, callbacks=[snapshots], **options)
    trainer.fit(toy)
    ledger = getattr(trainer.strategy, "ledger", None)
    return {
        "after": snapshots.after,
        "losses": toy.losses,
        "final": flat(toy),
        "seen": toy.seen,
        "ledger": ledger,
        "buffers": [b.clone() for b in toy.buffers()],
    }


def workers(
    strategy: Any, n: int = 2, steps: int = 20, *, options: dict[str, Any] | None = None, **module: Any
) -> list:
    return run_workers(n, train, strategy, n, steps, module, options or {})


@pytest.mark.parametrize("sync", [Gradients, Parameters])
def test_workers_differ_between_ticks_and_agree_bit_for_bit_after_each(sync: type) -> None:
    first, second = workers(lambda: TickStrategy(interval=5, sync=sync()), steps=17)
    for step in range(1, 18):
        same = torch.equal(first["after"][step], second["after"][step])
        assert same == (step in (5, 10, 15, 17)), f"step {step}"


def test_three_workers_agree_bit_for_bit_too() -> None:
    results = workers(lambda: TickStrategy(interval=3), n=3, steps=7)
    for step in (3, 6, 7):
        assert all(torch.equal(results[0]["after"][step], r["after"][step]) for r in results)
    assert not torch.equal(results[0]["after"][5], results[2]["after"][5])


def count(sync: Any, steps: int, interval: int) -> dict[int, list[str]]:
    traffic = Traffic()
    traffic.install()
    counter = CountInTraining(traffic)
    pl.seed_everything(0, verbose=False)
    trainer_for(TickStrategy(interval=interval, sync=sync()), 2, steps=steps, callbacks=[counter]).fit(Toy())
    return counter.per_step


@pytest.mark.parametrize(("sync", "messages"), [(Parameters, 1), (Gradients, 2)])
def test_exactly_the_ticks_collectives_and_none_in_between(sync: type, messages: int) -> None:
    for per_step in run_workers(2, count, sync, 20, 5):
        facts_and_numbers = ["all_gather", "all_reduce"]
        expected = {step: sorted(facts_and_numbers * (messages if step % 5 == 0 else 0)) for step in range(1, 21)}
        expected[1] = ["all_gather_object"]  # the start of training: how many steps there will be
        assert {step: sorted(calls) for step, calls in per_step.items()} == expected | {-1: []}


def start(strategy: Any, seeds: tuple[int, int]) -> tuple[list[str], str]:
    """What is said before training, and what this worker's model is then."""
    pl.seed_everything(seeds[int(os.environ["LOCAL_RANK"])], verbose=False)
    traffic, module = Traffic(), Toy(norm=True)
    traffic.install()
    traffic.counting = True

    class Look(Callback):
        def on_train_start(self, *_: Any) -> None:
            self.seen = list(traffic.calls), digest([*module.parameters(), *module.buffers()])

    trainer_for(strategy, 2, steps=1, callbacks=[look := Look()]).fit(module)
    return look.seen


def test_workers_start_from_worker_0s_model_which_travels_only_where_it_differs() -> None:
    strategy = TickStrategy(interval=1, sync=Parameters())
    same, different = (run_workers(2, start, strategy, seeds) for seeds in ((1, 1), (1, 2)))
    assert ["broadcast" in calls for calls, _ in (*same, *different)] == [False, False, True, True]
    assert len({model for _, model in (*same, *different)}) == 1


def test_the_counter_sees_what_lightning_says_at_every_step() -> None:
    """The same counter on Lightning's own DDP: a counter that sees nothing would prove nothing."""

    def lightnings() -> dict[int, list[str]]:
        traffic = Traffic()
        traffic.install()
        counter = CountInTraining(traffic)
        trainer_for(DDPStrategy(), 2, steps=3, callbacks=[counter]).fit(Toy())
        return counter.per_step

    assert all("broadcast" in calls for step, calls in run_workers(2, lightnings)[0].items() if step > 0)


@pytest.mark.parametrize(
    ("strategy", "module"),
    [
        (lambda: TickStrategy(interval=1), {"optimizer": "adamw"}),
        (lambda: TickStrategy(interval=1), {"optimizer": "sgd"}),
        (lambda: TickStrategy(interval=1, sync=Parameters()), {"optimizer": "sgd"}),
        (lambda: DDP(), {"optimizer": "adamw"}),
    ],
    ids=["gradients-adamw", "gradients-sgd", "parameters-sgd", "our-ddp"],
)
def test_interval_1_is_lightnings_ddp(strategy: Any, module: dict[str, Any]) -> None:
    ours, theirs = workers(strategy, **module), workers(lambda: DDPStrategy(), **module)
    for rank in range(2):
        torch.testing.assert_close(ours[rank]["losses"], theirs[rank]["losses"], rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(ours[rank]["final"], theirs[rank]["final"], rtol=1e-6, atol=1e-7)


def test_interval_1_is_ddp_with_clipping_and_accumulation() -> None:
    options = {"gradient_clip_val": 0.1, "accumulate_grad_batches": 2}
    ours = workers(lambda: TickStrategy(interval=1), steps=6, options=options)
    theirs = workers(lambda: DDPStrategy(), steps=6, options=options)
    torch.testing.assert_close(ours[0]["final"], theirs[0]["final"], rtol=1e-6, atol=1e-7)


def test_with_sgd_gradients_and_parameters_give_the_same_parameters_after_every_tick() -> None:
    options = {"optimizer": "sgd", "lr": 0.1}
    gradients = workers(lambda: TickStrategy(interval=4, sync=Gradients()), steps=12, **options)
    parameters = workers(lambda: TickStrategy(interval=4, sync=Parameters()), steps=12, **options)
    for step in (4, 8, 12):
        torch.testing.assert_close(gradients[0]["after"][step], parameters[0]["after"][step], rtol=1e-6, atol=1e-7)


class WorkedExample(pl.LightningModule):
    """facts.md 1: theta_1 = [1, 2, 3], theta_2 = [4, 5, 6], both gradients [-1, -1, -1], f = 1."""

    def __init__(self) -> None:
        super().__init__()
        self.theta = torch.nn.Parameter(torch.zeros(3))

    def on_train_start(self) -> None:
        start = torch.tensor([1.0, 2.0, 3.0]) + 3.0 * self.global_rank
        self.theta.data.copy_(start)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return -self.theta.sum()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=1.0)

    def train_dataloader(self) -> Any:
        return torch.utils.data.DataLoader(Stream(0), batch_size=None)


def worked_example(sync: Any) -> Tensor:
    module = WorkedExample()
    trainer_for(TickStrategy(interval=1, sync=sync()), 2, steps=1).fit(module)
    return module.theta.detach().clone()


@pytest.mark.parametrize("sync", [Gradients, Parameters])
def test_the_worked_example(sync: type) -> None:
    for theta in run_workers(2, worked_example, sync):
        assert theta.tolist() == [3.5, 4.5, 5.5]


@pytest.mark.parametrize(("sync", "parts"), [(Parameters, 1), (Gradients, 2)])
def test_ledger_bytes_are_the_rings_formula_times_the_payload(sync: type, parts: int) -> None:
    n, steps, interval = 4, 6, 3
    ledgers = [r["ledger"] for r in workers(lambda: TickStrategy(interval=interval, sync=sync()), n=n, steps=steps)]
    parameters = sum(p.numel() for p in Toy().parameters())
    placed = sum(-(-p.numel() // 16) * 16 for p in Toy().parameters())  # each tensor begins at a multiple of 64 bytes
    numbers = parts * 2 * (n - 1) * 4 * placed  # of all workers: whose chunk is smaller sends less
    facts = parts * n * (n - 1) * 8 * (1 + len(FIELDS))
    assert sum(ledger.bytes_sent for ledger in ledgers) == 2 * (numbers + facts)
    for ledger in ledgers:
        assert (ledger.ticks, ledger.messages) == (2, 2 * parts)
        assert ledger.bytes_sent == pytest.approx(2 * (numbers + facts) / n, rel=0.1)
        assert ledger.ddp_bytes == steps * (2 * (n - 1) * 4 * parameters // n)
        assert ledger.seconds > 0


def test_ddps_ledger_counts_one_gradient_exchange_a_step() -> None:
    parameters = sum(p.numel() for p in Toy().parameters())
    ledger = workers(lambda: DDP(), steps=5)[0]["ledger"]
    assert ledger.bytes_sent == 5 * ring_bytes(4 * parameters, 2)


def test_batchnorm_statistics_are_averaged_at_ticks() -> None:
    first, second = workers(lambda: TickStrategy(interval=4), steps=8, norm=True)
    assert all(torch.equal(a, b) for a, b in zip(first["buffers"], second["buffers"], strict=True))
    alone, other = workers(lambda: TickStrategy(interval=4), steps=8, norm=True, options={"max_steps": 7})
    assert torch.equal(alone["final"], other["final"])  # the final tick, after step 7


def test_frozen_parameters_start_equal_and_do_not_travel() -> None:
    def freeze() -> tuple[Tensor, int]:
        pl.seed_everything(torch.distributed.is_initialized() or int(__import__("os").environ["LOCAL_RANK"]))
        toy = Toy()
        toy.net[0].requires_grad_(False)
        trainer = trainer_for(TickStrategy(interval=2, sync=Parameters()), 2, steps=4)
        trainer.fit(toy)
        return flat(toy.net[0]), trainer.strategy.ledger.bytes_sent

    (first, sent), (second, _) = run_workers(2, freeze)
    assert torch.equal(first, second)
    assert sent == 2 * ring_bytes(4 * (16 + 16 + (1 + len(FIELDS)) * 2), 2)  # 16 weights, 1 bias with its padding


def validate_in_the_middle(rank_losses: bool = False) -> dict[str, Any]:
    return train(
        lambda: TickStrategy(interval=4), 2, 11, {"dropout": 0.2}, {"val_check_interval": 3, "limit_val_batches": 1.0}
    )


def test_validation_sees_the_mean_of_the_workers_and_does_not_change_the_trajectory() -> None:
    measured = run_workers(2, validate_in_the_middle)
    unmeasured = workers(lambda: TickStrategy(interval=4), steps=11, dropout=0.2)
    for rank in range(2):
        assert torch.equal(measured[rank]["final"], unmeasured[rank]["final"])
        assert all(torch.equal(measured[rank]["after"][s], unmeasured[rank]["after"][s]) for s in range(1, 12))
    for i, step in enumerate((3, 6, 9)):
        mean = (measured[0]["after"][step] + measured[1]["after"][step]) / 2
        assert torch.allclose(measured[0]["seen"][i], mean, atol=1e-7)
        assert torch.equal(measured[0]["seen"][i], measured[1]["seen"][i])
    assert measured[0]["ledger"].bytes_sent == unmeasured[0]["ledger"].bytes_sent
    assert measured[0]["ledger"].measuring_bytes > 0


def stop_early(who: int) -> int:
    class WantsToStop(pl.Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if trainer.global_rank == who and trainer.global_step == 5:
                trainer.should_stop = True

    trainer = trainer_for(TickStrategy(interval=4), 2, steps=100, callbacks=[WantsToStop()])
    trainer.fit(Toy())
    return trainer.global_step


@pytest.mark.parametrize("who", [0, 1])
def test_one_workers_wish_to_stop_is_agreed_at_the_next_tick(who: int) -> None:
    assert run_workers(2, stop_early, who) == [8, 8]


class TalksInStep(Toy):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        self.log("loss", loss, sync_dist=True)
        return loss


class TalksAfterBackward(Toy):
    def on_after_backward(self) -> None:
        self.log("norm", self.net[0].weight.grad.norm(), sync_dist=True)


class TalksBeforeOptimizer(Toy):
    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.log("norm", self.net[0].weight.grad.norm(), sync_dist=True)


class Gathers(Toy):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.all_gather(torch.ones(1))
        return super().training_step(batch, batch_idx)


class Broadcasts(Toy):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.trainer.strategy.broadcast(batch_idx)
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize("sync", [Parameters, Accumulate])
@pytest.mark.parametrize(
    ("module", "message"),
    [
        (TalksInStep, "sync_dist=True"),
        (TalksAfterBackward, "sync_dist=True"),
        (TalksBeforeOptimizer, "sync_dist=True"),
        (Gathers, "all_gather in a training step"),
        (Broadcasts, "broadcast in a training step"),
    ],
)
def test_what_a_step_would_say_to_other_workers_is_refused(sync: type, module: type, message: str) -> None:
    with pytest.raises(WorkerError, match=message):
        run_workers(2, lambda: trainer_for(TickStrategy(4, sync=sync()), 2, steps=4).fit(module()))


class Unequal(Toy):
    """Worker 1 has one batch more."""

    def train_dataloader(self) -> DataLoader:
        batches = list(itertools.islice(Stream(self.global_rank), 5 + self.global_rank))
        return DataLoader(batches, batch_size=None)


class Complex(Toy):
    def __init__(self) -> None:
        super().__init__()
        self.rotation = torch.nn.Parameter(torch.ones(2, dtype=torch.complex64))


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Unequal, r"different numbers of batches, \[5.0, 6.0\].*the Trainer limit_train_batches=5"),
        (Complex, "parameter rotation is complex"),
    ],
)
def test_what_cannot_be_agreed_on_is_refused(module: type, message: str) -> None:
    with pytest.raises(WorkerError, match=message):
        run_workers(2, lambda: trainer_for(TickStrategy(4), 2, steps=8).fit(module()))


class SlowData(Toy):
    """Worker 1 waits for each of its batches."""

    def train_dataloader(self) -> DataLoader:
        def batches() -> Iterator[Any]:
            for batch in Stream(self.global_rank):
                time.sleep(0.05 * self.global_rank)
                yield batch

        return DataLoader(Endless(batches), batch_size=None)


class Endless(IterableDataset):
    def __init__(self, batches: Callable[[], Iterator[Any]]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Any]:
        return self.batches()


def by_the_wall_clock() -> list[dict[str, float]]:
    strategy, told = TickStrategy(clock=EverySeconds(0.5), sync=Parameters()), []
    strategy.on_tick.append(told.append)
    trainer_for(strategy, 2, steps=30).fit(SlowData())
    return told


def test_a_round_by_the_wall_clock_counts_loading_and_the_slowest_worker() -> None:
    fast, slow = run_workers(2, by_the_wall_clock)
    lengths = [metrics["tick/interval"] for metrics in fast]
    assert lengths == [metrics["tick/interval"] for metrics in slow]
    assert all(2 <= length <= 10 for length in lengths[1:-1]), lengths  # the first step is a round
    assert len(lengths) > 3
    for mine, theirs in zip(fast[1:], slow[1:], strict=True):
        assert mine["tick/waiting"] > 0.03 * mine["tick/interval"] > theirs["tick/waiting"]


class Hangs(Toy):
    """The workers `ranks` sleep for 5 seconds in their sixth step."""

    def __init__(self, *ranks: int) -> None:
        super().__init__()
        self.ranks = ranks

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if batch_idx == 5 and self.global_rank in self.ranks:
            time.sleep(5.0)
        return super().training_step(batch, batch_idx)


def may_hang(*ranks: int) -> int:
    strategy = TickStrategy(4, sync=Parameters(), heartbeat_seconds=0.1, hang_seconds=2.0)
    trainer_for(strategy, 2, steps=9).fit(Hangs(*ranks))
    return strategy.step


@pytest.mark.parametrize("rank", [0, 1])
def test_a_worker_that_hangs_in_a_step_while_another_waits_is_named(rank: int, capfd: Any) -> None:
    with pytest.raises(WorkerError):
        run_workers(2, may_hang, rank)
    message = f"ticks: worker {rank} has been in step 6 for 2 s while worker {1 - rank} waits for it; stopping"
    assert message in capfd.readouterr().err


def test_a_step_may_take_long_where_nobody_waits() -> None:
    assert run_workers(2, may_hang, 0, 1) == [9, 9]


class Unknown(Toy):
    """Data whose end nobody knows before it comes."""

    def train_dataloader(self) -> DataLoader:
        return DataLoader(Endless(lambda: itertools.islice(Stream(self.global_rank), 6)), batch_size=None)


def accumulate_unknown() -> list[str]:
    logged: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: logged.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger(NAME).addHandler(handler)
    trainer_for(TickStrategy(4, sync=Accumulate()), 2, steps=-1, max_epochs=1).fit(Unknown())
    return logged


def test_gradients_that_are_left_at_an_end_nobody_knew_are_told() -> None:
    zero, one = run_workers(2, accumulate_unknown)
    assert zero == ["the data ended 2 steps into a round: their gradients were not used"]
    assert one == []


class Awaited(FP32):
    """Its messages return only when the next step has begun."""

    def __init__(self) -> None:
        self.next_step = threading.Event()
        self.in_time: list[bool] = []

    def mean(self, *args: Any, **kwargs: Any) -> Any:
        self.next_step.clear()
        self.in_time.append(self.next_step.wait(4.0))
        return super().mean(*args, **kwargs)


class Begin(Callback):
    def __init__(self, wire: Awaited) -> None:
        self.wire = wire

    def on_train_batch_start(self, *_: Any) -> None:
        time.sleep(0.1)  # the message is on its way by now
        self.wire.next_step.set()


def overlapping() -> list[bool]:
    wire = Awaited()
    strategy = TickStrategy(3, sync=Streaming(fragments=1, delay=1), wire=wire)
    trainer_for(strategy, 2, steps=7, callbacks=[Begin(wire)]).fit(Toy())
    return wire.in_time


def test_workers_go_on_while_their_messages_travel() -> None:
    for in_time in run_workers(2, overlapping):
        assert in_time[:2] == [True, True]


def lose_a_worker_to_nan() -> None:
    class Sick(Toy):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            loss = super().training_step(batch, batch_idx)
            return loss * float("nan") if self.global_rank == 1 and batch_idx == 5 else loss

    trainer_for(TickStrategy(interval=4), 2, steps=12).fit(Sick())


def test_a_loss_that_is_not_finite_is_named_by_all_workers_at_the_tick() -> None:
    with pytest.raises(WorkerError) as error:
        run_workers(2, lose_a_worker_to_nan)
    assert str(error.value).count("worker 1's training loss was nan at step 6, found at the tick after step 8") >= 2


def start_differently() -> None:
    rank = __import__("os").environ["LOCAL_RANK"]
    trainer_for(TickStrategy(interval=4, fingerprint=f"configuration {rank}"), 2, steps=4).fit(Toy())


def test_workers_with_different_configurations_refuse_to_start() -> None:
    with pytest.raises(WorkerError, match=r"workers \[1\] were started with another configuration"):
        run_workers(2, start_differently)


def tick_metrics() -> list[dict[str, float]]:
    seen: list[dict[str, float]] = []
    toy, strategy = Toy(), TickStrategy(interval=4)
    strategy.on_tick.append(seen.append)
    trainer_for(strategy, 2, steps=10).fit(toy)
    return [*seen, {"own": sum(toy.losses[:4]) / 4}]


def test_tick_metrics_are_the_same_on_all_workers_and_hold_the_mean_loss() -> None:
    first, second = run_workers(2, tick_metrics)
    assert len(first) == 4
    for mine, theirs in zip(first[:-1], second[:-1], strict=True):
        assert mine["tick/loss"] == theirs["tick/loss"]
        assert mine.get("tick/drift") == theirs.get("tick/drift")
    assert first[0]["tick/loss"] == pytest.approx((first[-1]["own"] + second[-1]["own"]) / 2, rel=1e-5)
    assert "tick/drift" not in first[0]  # it comes one tick late
    assert first[1]["tick/drift"] > 0


def manual_with_two_optimizers() -> tuple[list[int], Tensor]:
    class Manual(Toy):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:
            for optimizer in self.optimizers():
                optimizer.zero_grad()
                self.manual_backward(self.loss(batch))
                optimizer.step()

        def configure_optimizers(self) -> Any:
            return [torch.optim.SGD(self.net[i].parameters(), lr=0.05) for i in (0, 4)]

    pl.seed_everything(0, verbose=False)
    ticks: list[int] = []
    strategy, module = TickStrategy(interval=3, sync=Parameters()), Manual()
    strategy.on_tick.append(lambda _: ticks.append(strategy.step))
    trainer_for(strategy, 2, steps=12).fit(module)  # Lightning counts both optimizers' steps: 6 of ours
    return ticks, flat(module)


def test_manual_optimization_with_two_optimizers_counts_a_step_once() -> None:
    (ticks, first), (_, second) = run_workers(2, manual_with_two_optimizers)
    assert ticks == [3, 6]
    assert torch.equal(first, second)


def epochs_of_a_finite_loader() -> tuple[int, list[int], Tensor]:
    class Finite(Toy):
        def train_dataloader(self) -> Any:
            stream = iter(Stream(self.trainer.global_rank))
            return torch.utils.data.DataLoader([next(stream) for _ in range(7)], batch_size=None)

    ticks: list[int] = []
    strategy, module = TickStrategy(interval=4), Finite()
    strategy.on_tick.append(lambda _: ticks.append(strategy.step))
    trainer_for(strategy, 2, steps=-1, max_epochs=2).fit(module)
    return strategy.step, ticks, flat(module)


def test_training_by_epochs_ends_with_a_tick() -> None:
    (steps, ticks, first), (_, _, second) = run_workers(2, epochs_of_a_finite_loader)
    assert (steps, ticks) == (14, [4, 8, 12, 14])
    assert torch.equal(first, second)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"interval": 4, "clock": EverySteps(8)}, "interval=4 cannot be given beside a clock"),
        ({"ddp_steps": -1}, "ddp_steps=-1 must be at least 0 steps"),
        ({"ddp_steps": True}, "ddp_steps=True must be a whole number of steps, at least 0"),
        ({"non_finite": "ignore"}, "non_finite='ignore' is unknown; known: error, exclude"),
        (
            {"hang_seconds": 1e9},
            "hang_seconds=1000000000.0 must be a finite number of seconds above 0",
        ),
    ],
)
def test_what_cannot_be_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        TickStrategy(**arguments)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sync_batchnorm": True}, "sync_batchnorm=True talks at every step"),
        ({"max_time": "00:01:00:00"}, "talks at every batch: give max_steps"),
        ({"val_check_interval": "00:00:00:05"}, "differs between workers"),
    ],
)
def test_trainer_options_that_talk_at_every_step_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(WorkerError, match=message):
        workers(lambda: TickStrategy(interval=4), steps=4, options=options, norm=True)


def accumulated_loss() -> tuple[float, float]:
    seen: list[dict[str, float]] = []
    toy, strategy = Toy(), TickStrategy(interval=2)
    strategy.on_tick.append(seen.append)
    trainer_for(strategy, 1, steps=2, accumulate_grad_batches=3).fit(toy)
    return seen[0]["tick/loss"], sum(toy.losses) / len(toy.losses)


def test_tick_loss_counts_every_accumulated_batch() -> None:
    ((told, own),) = run_workers(1, accumulated_loss)
    assert told == pytest.approx(own, rel=1e-5)


def freeze_one_and_train_another() -> tuple[Tensor, Tensor, Tensor]:
    class Phases(Toy):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = torch.nn.Linear(6, 6), torch.nn.Linear(6, 6)
            self.second.requires_grad_(False)

        def loss(self, batch: Any) -> Tensor:
            x, y = batch
            return super().loss((self.second(self.first(x)), y))

        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            if batch_idx == 4:  # after a tick: the same shapes, other tensors
                self.frozen = self.first.weight.detach().clone()
                self.first.requires_grad_(False)
                self.second.requires_grad_(True)

    pl.seed_everything(0, verbose=False)
    module = Phases()
    trainer_for(TickStrategy(interval=2, sync=Parameters()), 2, steps=8).fit(module)
    return module.frozen, module.first.weight.detach().clone(), module.second.weight.detach().clone()


def test_a_phase_may_freeze_some_parameters_and_train_others_of_the_same_shape() -> None:
    (frozen, first, second), (_, first_there, second_there) = run_workers(2, freeze_one_and_train_another)
    assert torch.equal(frozen, first)
    assert torch.equal(first, first_there)
    assert torch.equal(second, second_there)
    assert not torch.equal(first, second)


def end_of_data_in_a_round() -> tuple[Any, Tensor]:
    class Few(Toy):
        def train_dataloader(self) -> Any:
            batches = Stream(self.trainer.global_rank)
            seven = (batch for batch, _ in zip(batches, range(7), strict=False))
            return torch.utils.data.DataLoader(Finite(seven), batch_size=None)

    toy = Few()
    trainer = trainer_for(TickStrategy(interval=5), 2, steps=-1, max_epochs=1)
    trainer.fit(toy)
    return trainer.strategy.ledger, flat(toy)


class Finite(torch.utils.data.IterableDataset):
    """Batches whose number nobody knows beforehand."""

    def __init__(self, batches: Any) -> None:
        self.batches = batches

    def __iter__(self) -> Any:
        return self.batches


def test_data_that_end_within_a_round_are_followed_by_a_last_tick_that_counts() -> None:
    (first, mine), (_, theirs) = run_workers(2, end_of_data_in_a_round)
    assert torch.equal(mine, theirs)
    per_step = ring_bytes(4 * sum(p.numel() for p in Toy().parameters()), 2)
    assert (first.ticks, first.ddp_bytes) == (2, 7 * per_step)


@pytest.mark.parametrize("interval", [10**9])
def test_a_group_meets_in_a_round_without_end(interval: int) -> None:
    """What is planned for a round must not grow with its length."""
    assert 7 in Hierarchical(inner_interval=7).group_offsets(interval)
    assert len(workers(lambda: TickStrategy(interval, sync=Hierarchical(group_size=1)), steps=3)) == 2
