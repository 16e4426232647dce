"""Every preset in configs/strategy: a stopped run resumes bit for bit, and workers say exactly what they should.

Presets are found in the directory, and shrunk to a model of four layers and a dozen steps. All of one kind train one
after the other in the same processes.
"""

import os
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from tests.conftest import REPOSITORY, run_workers
from tests.strategy.cases import Cases
from tests.strategy.toys import Snapshots, Toy, Traffic, trainer_for
from ticks.config import ConfigError, build, compose_strictly
from ticks.strategy import (
    BF16,
    FP32,
    Accumulate,
    Adaptive,
    Average,
    EverySeconds,
    Gradients,
    Hierarchical,
    Int4,
    Int8,
    LowRank,
    Outer,
    Parameters,
    Reset,
    Schedule,
    Streaming,
    TickStrategy,
    Wire,
)
from ticks.strategy.facts import FIELDS
from ticks.strategy.wire import ring_bytes
from ticks.timeline import Dropout, Freeze, LrFactor, NormGate, Number, Timeline, WeightDecay

CONFIGS = REPOSITORY / "configs"
PRESETS = sorted({file.stem for file in (CONFIGS / "strategy").glob("*.yaml")} - {"base"})
STEPS = 14
AT_MOST = {  # of what a preset has of these
    "ddp_steps": 3, "clock.interval": 4, "clock.block_steps": 5, "clock.base_interval": 2, "clock.warmup_steps": 3,
    "clock.until": 3, "wire.rank": 2, "wire.wire.block": 8,
}  # fmt: skip


@cache
def preset(name: str) -> DictConfig:
    """A preset's configuration, with intervals that fit a run of STEPS steps."""
    config = compose_strictly([f"strategy={name}"], CONFIGS).strategy
    for key, most in AT_MOST.items():
        if (value := OmegaConf.select(config, key)) is not None:
            OmegaConf.update(config, key, min(value, most))
    if OmegaConf.select(config, "clock.coefficient"):
        config.clock.coefficient = 0.04  # for the learning rate of the toy
    if intervals := OmegaConf.select(config, "clock.intervals"):
        config.clock.intervals = [[5 * i, min(4, interval)] for i, (_, interval) in enumerate(intervals)]
    return config


def built(name: str) -> Any:
    return build(preset(name), "strategy")


@pytest.fixture(scope="module", autouse=True)
def _composed() -> None:
    """Once, before workers are forked; a preset that does not compose fails its own tests."""
    for name in PRESETS:
        with suppress(ConfigError):
            preset(name)


class Layered(Toy):
    """Four layers in a list, dropout, two norms, and a learning rate that falls with every step.

    The loss of worker 1 is nan in step `sick_step`.
    """

    def __init__(self, *, sick_step: int = 0) -> None:
        super().__init__()
        self.net = nn.Module()
        self.net.layers = nn.ModuleList([nn.Linear(*shape) for shape in ((6, 12), (12, 12), (12, 12), (12, 1))])
        self.net.norm, self.net.gated = nn.BatchNorm1d(12), nn.LayerNorm(12)
        self.net.drop = nn.Dropout(0.2)
        self.sick_step = sick_step
        self.weight = 0.0  # of a regulariser

    def loss(self, batch: Any) -> Tensor:
        x, y = batch
        first, *middle, last = self.net.layers
        h = self.net.gated(self.net.norm(first(x)))
        for layer in middle:
            h = h + torch.tanh(layer(self.net.drop(h)))
        loss = nn.functional.mse_loss(last(h), y)
        if self.weight:
            loss = loss + self.weight * last.weight.square().mean()
        sick = self.trainer.global_step + 1 == self.sick_step and self.global_rank == 1
        return loss * float("nan") if sick else loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.lr)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: 1 / (1 + 0.2 * done))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


# ---- resuming -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """A strategy and after which steps it is stopped."""

    strategy: Callable[[], Any]
    stops: tuple[int, ...] = (6,)
    options: dict[str, Any] = field(default_factory=dict)
    sick_step: int = 0
    timeline: dict[str, Any] = field(default_factory=dict)


NESTEROV = partial(torch.optim.SGD, lr=0.7, momentum=0.9, nesterov=True)
ADAM = partial(torch.optim.Adam, lr=0.02)


def ticks(**options: Any) -> Callable[[], TickStrategy]:
    """At interval 4: a step that is no multiple of it is in the middle of a round."""
    return lambda: TickStrategy(**({} if "clock" in options else {"interval": 4}) | options)


# Every preset is stopped in the middle of its training; the others below where it is hard for them.
OF_PRESETS = {name: Run(partial(built, name), stops=(11,)) for name in PRESETS}

# ... and once more in a ramp, where what trains changes
SETTINGS: dict[str, Any] = {
    "slower": {"from": 9, "ramp": 4, "do": LrFactor(end=0.2)},
    "frozen": {"from": 4, "until": 11, "do": Freeze(r"layers\.1\.bias")},
    "decay": {"from": 6, "until": 12, "ramp": 3, "do": WeightDecay(start=0.01, end=0.1)},
    "gate": {"from": 2, "ramp": 10, "do": NormGate()},
    "dropout": {"from": 5, "until": 10, "do": Dropout(end=0.0)},
    "weight": {"from": 8, "ramp": 5, "do": Number(of="weight", end=0.5)},
}
FACTORS = [1.0] * 9 + [0.8, 0.6, 0.4, 0.2, 0.2]  # by hand, of each step
DECAYS = [0.01] * 6 + [0.04, 0.07, 0.1, 0.1, 0.1, 0.1] + [0.01] * 2
GATES = [0.0] * 2 + [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9] + [1.0] * 3
DROPOUTS = [0.2] * 5 + [0.0] * 5 + [0.2] * 4
WEIGHTS = [0.0] * 8 + [0.1, 0.2, 0.3, 0.4, 0.5, 0.5]
OF_DDP = {name: setting for name, setting in SETTINGS.items() if name != "frozen"}  # it refuses that another trains
TIMED = {
    f"{name}, a timeline": Run(partial(built, name), (11,), timeline=OF_DDP if name == "ddp" else SETTINGS)
    for name in PRESETS
}

OTHERS = {
    "error feedback of int4, outer": Run(ticks(sync=Outer(NESTEROV), wire=Int4())),
    "error feedback of bf16, gradients": Run(ticks(sync=Gradients(), wire=BF16())),
    "error feedback of int8, parameters": Run(ticks(sync=Parameters(), wire=Int8()), (6, 8)),
    "error feedback of int8, ddp_steps": Run(ticks(sync=Parameters(), wire=Int8(), ddp_steps=8)),
    "overlap": Run(ticks(sync=Streaming(NESTEROV, delay=2)), (5, 6, 8)),
    "overlap and error feedback of int4": Run(ticks(sync=Streaming(NESTEROV, delay=2), wire=Int4()), (5, 6)),
    "overlap and error feedback of bf16": Run(ticks(sync=Streaming(NESTEROV, delay=2), wire=BF16())),
    "low rank, parameters": Run(ticks(sync=Parameters(), wire=LowRank(2, wire=Int8(8)))),
    "low rank and overlap": Run(ticks(sync=Streaming(NESTEROV, delay=2), wire=LowRank(2)), (5, 6)),
    "low rank and a sick worker": Run(
        ticks(sync=Gradients(), wire=LowRank(2), non_finite="exclude"), (6, 7), sick_step=6
    ),
    "overlap of more than a round": Run(ticks(sync=Streaming(NESTEROV, fragments=2, delay=6)), (6, 9)),
    "an outer Adam": Run(ticks(sync=Outer(ADAM))),
    "an outer Adam of fragments": Run(ticks(sync=Streaming(ADAM, fragments=2, delay=1))),
    "accumulate, no wire feedback": Run(ticks(sync=Accumulate(), wire=Int8(error_feedback=False)), (6, 8)),
    "accumulate, batches too": Run(ticks(sync=Accumulate()), options={"accumulate_grad_batches": 2}),
    "gradients, batches too": Run(ticks(sync=Gradients()), options={"accumulate_grad_batches": 2}),
    "periods of the optimizer's state": Run(
        ticks(interval=2, optimizer_state=Average({"exp_avg": 3, "exp_avg_sq": 2})), (5, 8)
    ),
    "the optimizer's state forgotten": Run(ticks(interval=2, sync=Parameters(), optimizer_state=Reset(3)), (5, 9)),
    "groups of one": Run(ticks(sync=Hierarchical(Outer(NESTEROV), group_size=1, inner_interval=2))),
    "groups of two": Run(ticks(sync=Hierarchical(Parameters(), group_size=2, inner_interval=3)), (6, 7)),
    "ddp_steps on both sides of the stop": Run(ticks(sync=Outer(NESTEROV), ddp_steps=7), (6, 7)),
    "a clock that listens to the loss": Run(ticks(clock=Adaptive(interval=5, block_steps=6), sync=Parameters()), (6,)),
    "a worker that is sick when it stops": Run(
        ticks(sync=Outer(NESTEROV), non_finite="exclude"), (6, 7, 8), sick_step=6
    ),
    "a worker that is sick while messages fly": Run(
        ticks(sync=Streaming(NESTEROV, delay=2), wire=Int8(), non_finite="exclude"), (6, 7), sick_step=6
    ),
}

OF_FOUR = {
    "hierarchical": Run(ticks(sync=Hierarchical(Gradients(), group_size=2, inner_interval=2)), (7,)),
    "hierarchical, overlap, error feedback": Run(
        ticks(sync=Hierarchical(Streaming(NESTEROV, delay=2), group_size=2, inner_interval=2), wire=Int8()), (6,)
    ),
}
RUNS = {(2, name): run for name, run in {**OF_PRESETS, **TIMED, **OTHERS}.items()} | {
    (4, n): run for n, run in OF_FOUR.items()
}


class Used(pl.Callback):
    """What each step is made with: learning rate, weight decay, whether it moves what is frozen, the norm's gate,
    dropout, and a regulariser's weight."""

    def __init__(self) -> None:
        self.seen: dict[int, tuple[float, float, bool, float, float, float]] = {}

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, optimizer: Any) -> None:
        trains = pl_module.net.layers[1].bias.requires_grad
        gate = vars(pl_module.net.gated)["forward"].a if "forward" in vars(pl_module.net.gated) else 1.0
        (group,) = optimizer.param_groups
        self.seen[trainer.global_step + 1] = (
            group["lr"], group["weight_decay"], trains, gate, pl_module.net.drop.p, pl_module.weight
        )  # fmt: skip


class SaveAfter(pl.Callback):
    """A checkpoint after each of these steps."""

    def __init__(self, directory: Path, steps: tuple[int, ...]) -> None:
        self.directory, self.steps = directory, steps

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step in self.steps and not (path := self.path(trainer.global_step)).exists():
            trainer.save_checkpoint(path)

    def path(self, step: int) -> Path:
        return self.directory / f"{step}.ckpt"


def train(run: Run, n: int, *, saver: SaveAfter | None = None, resume: Path | None = None) -> dict[str, Any]:
    """All that a run leaves behind, on this worker."""
    pl.seed_everything(int(os.environ["LOCAL_RANK"]), verbose=False)
    toy, snapshots, strategy = Layered(sick_step=run.sick_step), Snapshots(), run.strategy()
    told: dict[int, dict[str, float]] = {}
    if isinstance(strategy, TickStrategy):
        strategy.on_tick.append(lambda metrics: told.update({strategy.step: metrics}))
    used = Used()
    callbacks: list[Any] = [
        snapshots,
        used,
        *([saver] if saver else []),
        *([Timeline(run.timeline)] if run.timeline else []),
    ]
    trainer = trainer_for(strategy, n, steps=STEPS, callbacks=callbacks, **run.options)
    trainer.fit(toy, ckpt_path=resume)
    ledger = strategy.ledger
    return {
        "after": snapshots.after,
        "used": used.seen,
        "buffers": [b.clone() for b in toy.buffers()],
        "told": {step: {k: v for k, v in of.items() if "second" not in k and "wait" not in k}
                 for step, of in told.items()},
        "optimizer": trainer.optimizers[0].state_dict(),
        "outer optimizer": strategy.sync.state_dict() if isinstance(strategy, TickStrategy) else {},
        "residuals": strategy.wire.state_dict() if isinstance(strategy, TickStrategy) else {},
        "ledger": (ledger.ticks, ledger.messages, ledger.bytes_sent, ledger.ddp_bytes),
    }  # fmt: skip


def train_and_resume(run: Run, n: int, directory: Path) -> dict[int, dict[str, Any]]:
    """What the whole run leaves behind (at 0), and what those resumed after each stop do."""
    saver = SaveAfter(directory, run.stops)
    whole = train(run, n, saver=saver)
    return {0: whole} | {stop: train(run, n, resume=saver.path(stop)) for stop in run.stops}


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Cases]:
    directory = tmp_path_factory.mktemp("checkpoints")
    return {
        n: Cases(n, {name: partial(train_and_resume, run, n, directory / str(n) / name.replace(" ", "-"))
                     for (workers, name), run in RUNS.items() if workers == n})
        for n in (2, 4)
    }  # fmt: skip


def assert_equal(mine: Any, theirs: Any, path: str = "") -> None:
    """Bit for bit, whatever is nested in whatever."""
    if isinstance(theirs, dict):
        assert mine.keys() == theirs.keys(), path
        for key in theirs:
            assert_equal(mine[key], theirs[key], f"{path}/{key}")
    elif isinstance(theirs, list | tuple):
        assert len(mine) == len(theirs), path
        for i, (a, b) in enumerate(zip(mine, theirs, strict=True)):
            assert_equal(a, b, f"{path}/{i}")
    elif isinstance(theirs, Tensor):
        assert mine.shape == theirs.shape, path
        assert ((mine == theirs) | (mine.isnan() & theirs.isnan())).all(), path
    else:
        assert mine == theirs, path


@pytest.mark.parametrize(("n", "name", "stop"), [(*key, stop) for key, run in RUNS.items() for stop in run.stops])
def test_resuming_is_bit_exact(n: int, name: str, stop: int, resumed: dict[int, Cases]) -> None:
    for worker, outcomes in enumerate(resumed[n][name]):
        whole, again = dict(outcomes[0]), dict(outcomes[stop])
        assert max(whole["after"]) == STEPS
        for run in (whole, again):
            for key in ("after", "told", "used"):
                run[key] = {step: value for step, value in run[key].items() if step > stop}
        assert torch.isfinite(again["after"][STEPS]).all()
        assert_equal(again, whole, f"worker {worker}")


@pytest.mark.parametrize("name", TIMED)
def test_settings_are_what_the_timeline_says_in_every_step(name: str, resumed: dict[int, Cases]) -> None:
    for outcomes in resumed[2][name]:
        for run in outcomes.values():
            assert run["used"]
            for step, (lr, decay, trains, *others) in run["used"].items():
                assert lr == pytest.approx(Layered().lr / (1 + 0.2 * (step - 1)) * FACTORS[step - 1])
                assert decay == pytest.approx(DECAYS[step - 1])
                assert trains == (not 4 < step <= 11 or "frozen" not in RUNS[2, name].timeline)
                assert others == pytest.approx([by_hand[step - 1] for by_hand in (GATES, DROPOUTS, WEIGHTS)])


def test_the_stops_are_where_it_is_hard(resumed: dict[int, Cases]) -> None:
    """Else resuming would prove little: workers differ, residuals and outer momentum are not 0, a worker was sick."""
    one, other = ([outcomes[0] for outcomes in resumed[2][name]] for name in ("overlap", "streaming_diloco"))
    assert not torch.equal(one[0]["after"][6], one[1]["after"][6])
    for run in (one, other):
        assert all(of["momentum_buffer"].any() for o in run[0]["outer optimizer"]["optimizers"]
                   for of in o["state"].values())  # fmt: skip
    for name in ("error feedback of int4, outer", "error feedback of bf16, gradients"):
        residuals = resumed[2][name][0][0]["residuals"]
        assert residuals
        assert all(residual.any() for residual in residuals.values())
    for name in ("low rank, parameters", "low rank and overlap", "low rank and a sick worker", "powersgd"):
        assert all(residual.any() for residual in resumed[2][name][0][0]["residuals"]["residuals"].values())
    for name in ("a worker that is sick when it stops", "a worker that is sick while messages fly",
                 "low rank and a sick worker"):  # fmt: skip
        assert sum(metrics["tick/excluded"] for metrics in resumed[2][name][0][0]["told"].values()) == 1


class Enough(Exception):
    """Training has gone on for long enough."""


class LookAtTheClock(pl.Callback):
    """Saves after step 3 and notes the round then, or notes the round of the first step and ends."""

    def __init__(self, path: Path, *, saves: bool) -> None:
        self.path, self.saves = path, saves
        self.seen: tuple[int, int] | None = None

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if self.saves and trainer.global_step < 3:
            return
        if self.saves:
            trainer.save_checkpoint(self.path)
        self.seen = (trainer.strategy.interval, trainer.strategy.next_tick)
        raise Enough


def rounds_by_the_wall_clock(path: Path, resume: bool) -> tuple[int, int] | None:
    look = LookAtTheClock(path, saves=not resume)
    trainer = trainer_for(TickStrategy(clock=EverySeconds(100.0)), 2, steps=10**6, callbacks=[look])
    with pytest.raises(Enough):
        trainer.fit(Layered(), ckpt_path=path if resume else None)
    return look.seen


def test_a_run_by_the_wall_clock_resumes_in_the_round_it_was_in(tmp_path: Path) -> None:
    path = tmp_path / "3.ckpt"
    first, second = run_workers(2, rounds_by_the_wall_clock, path, False)
    interval, next_tick = first
    assert interval > 3
    assert next_tick == 1 + interval
    assert first == second
    assert run_workers(2, rounds_by_the_wall_clock, path, True) == [first, first]


def messages_of_a_longer_run(path: Path) -> dict[int, int]:
    """By step, of a run that is stopped one step before its end, and goes on as a longer one."""
    seen: dict[int, int] = {}

    class Note(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
            seen[trainer.global_step] = trainer.strategy.ledger.messages

    strategy = ticks(sync=Streaming(NESTEROV, fragments=2, delay=0), clock=Schedule([(0, 4)]))
    saver = SaveAfter(path, (9,))
    trainer_for(strategy(), 2, steps=10, callbacks=[saver]).fit(Layered())
    trainer_for(strategy(), 2, steps=14, callbacks=[Note()]).fit(Layered(), ckpt_path=saver.path(9))
    return seen


def test_no_fragment_is_left_out_of_the_round_in_which_a_run_was_made_longer(tmp_path: Path) -> None:
    for seen in run_workers(2, messages_of_a_longer_run, tmp_path):
        assert seen == {10: 6, 11: 6, 12: 6, 13: 6, 14: 8}  # two a round; the last ones, at 10 and 14, at their end


# ---- constants ------------------------------------------------------------------------------------------------------

PUBLISHED = {
    "slowmo": {"clock.interval": 48, "sync.optimizer.lr": 1.0, "sync.optimizer.momentum": 0.5,
               "sync.relative_to_lr": True},
    "diloco": {"clock.interval": 500, "sync.optimizer.lr": 0.7, "sync.optimizer.momentum": 0.5,  # 0.9 for AdamW
               "sync.optimizer.nesterov": True},
    "streaming_diloco": {"clock.interval": 100, "sync.optimizer.lr": 0.7, "sync.optimizer.momentum": 0.9,
                         "sync.optimizer.nesterov": True, "sync.alpha": 0.5,
                         "wire._target_": "ticks.strategy.wire.Int4"},
    "desloc": {"optimizer_state.every.exp_avg": 3, "optimizer_state.every.exp_avg_sq": 6},
    "qsr": {"clock.base_interval": 4},
    "post_local_sgd": {"ddp_steps": 50},  # the warm-up
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_presets_have_the_published_constants(name: str) -> None:
    config = compose_strictly([f"strategy={name}"], CONFIGS)
    OmegaConf.resolve(config)
    for key, value in PUBLISHED[name].items():
        assert OmegaConf.select(config.strategy, key) == value, key


# ---- traffic --------------------------------------------------------------------------------------------------------


class CountPerStep(pl.Callback):
    """After each step: the collectives since the last, and the ledger's messages and bytes so far."""

    def __init__(self, traffic: Traffic) -> None:
        self.traffic = traffic
        self.rounds: dict[int, int] = {}  # by the step before its first: how many steps it has
        self.calls: dict[int, list[str]] = {}
        self.ledger: dict[int, tuple[int, int]] = {}

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        strategy = trainer.strategy
        if trainer.global_step == 0:
            self.traffic.calls.clear()  # of what started training
            self.traffic.counting = True
        if isinstance(strategy, TickStrategy):
            self.rounds[strategy.next_tick - strategy.interval] = strategy.interval

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        exchange = trainer.strategy._rounds.exchange if isinstance(trainer.strategy, TickStrategy) else None
        for message in exchange.in_flight if exchange is not None else ():
            if isinstance(message.received, Future):
                message.received.result()  # so that its calls fall into the step that made them
        self._note(trainer, trainer.global_step)

    def on_train_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self._note(trainer, trainer.global_step + 1)
        self.traffic.counting = False

    def _note(self, trainer: pl.Trainer, step: int) -> None:
        self.calls[step] = sorted(self.traffic.calls)
        self.ledger[step] = (trainer.strategy.ledger.messages, trainer.strategy.ledger.bytes_sent)
        self.traffic.calls.clear()


@cache
def traffic() -> Traffic:
    """One for each process: it replaces torch.distributed's functions."""
    counter = Traffic()
    counter.install()
    return counter


def count(strategy: Callable[[], Any], n: int) -> CountPerStep:
    counter = CountPerStep(traffic())
    pl.seed_everything(0, verbose=False)
    trainer_for(strategy(), n, steps=STEPS, callbacks=[counter]).fit(Layered())
    counter.traffic = Traffic()
    return counter


# of one message, on an exact or lossy wire
CALLS = {False: ["all_gather", "all_reduce"], True: ["all_gather", *["isend", "irecv"] * 2]}


@dataclass
class Expected:
    """What is expected of each step: calls when a message leaves, the ledger's entry when its mean is used."""

    calls: dict[int, list[str]] = field(default_factory=lambda: {step: [] for step in range(1, STEPS + 2)})
    messages: dict[int, int] = field(default_factory=lambda: dict.fromkeys(range(1, STEPS + 2), 0))
    n_bytes: dict[int, int] = field(default_factory=lambda: dict.fromkeys(range(1, STEPS + 2), 0))

    def message(self, step: int, wire: Wire, numbers: int, exact: int = 0, *, used: int = 0) -> None:
        """Of two workers, each sends its facts, half of the numbers, and the mean of its own half."""
        if isinstance(wire, LowRank):  # left factors and what is no matrix, then right factors, as one message
            thin = [(r, c) for r, c in LAYERED if wire.rank * (r + c) < r * c]
            left = numbers - sum(r * c for r, c in thin) + wire.rank * sum(r for r, _ in thin)
            self.message(step, wire.wire, left, exact, used=used)
            self.message(step, wire.wire, wire.rank * sum(c for _, c in thin), used=used)
            self.messages[used or step] -= 1
            return
        self.calls[step] = sorted(self.calls[step] + CALLS[wire.lossy])
        block = getattr(wire, "block", 1)
        body = wire.size(-(-numbers // block) * block) if wire.lossy else 4 * numbers
        self.messages[used or step] += 1
        self.n_bytes[used or step] += body + 4 * exact + 8 * (1 + len(FIELDS))


LAYERED = [(12, 6), (12, 12), (12, 12), (1, 12)]  # the toy's matrices


def placed(*tensors: Tensor) -> int:
    """Each tensor begins at a multiple of 16 numbers."""
    return sum(-(-t.numel() // 16) * 16 for t in tensors)


def expected_of(strategy: TickStrategy, rounds: dict[int, int]) -> Expected:
    """Of a run of two workers in these rounds."""
    toy, sync, wire, expected = Layered(), strategy.sync, strategy.wire, Expected()
    n_parameters, n_buffers = placed(*toy.parameters()), placed(*(b for b in toy.buffers() if b.is_floating_point()))
    outer = sync.outer if isinstance(sync, Hierarchical) else sync
    fragments = [n_parameters]
    if isinstance(outer, Streaming) and outer.fragments == 4:  # a layer each; norms are with the smallest, the last
        fragments = [placed(*layer.parameters()) for layer in toy.net.layers]
        fragments[-1] += placed(*toy.net.norm.parameters(), *toy.net.gated.parameters())
    lockstep, rounds_of_rule = True, 0
    for start, length in rounds.items():
        end, last = start + length, start + length == STEPS
        if start < strategy.ddp_steps:
            assert length == 1
            expected.message(end, wire, n_parameters, n_buffers)
            continue
        if isinstance(outer, Accumulate) or (isinstance(outer, Gradients) and length == 1 and lockstep):
            expected.message(end, wire, n_parameters, n_buffers)
            continue
        lockstep, rounds_of_rule = False, rounds_of_rule + 1
        if isinstance(sync, Hierarchical):
            for step in range(start + sync.inner_interval, end, sync.inner_interval):
                expected.message(step, FP32(), n_parameters + n_buffers)
        if isinstance(outer, Gradients):
            expected.message(end, wire, n_parameters)
        for k, numbers in enumerate(fragments):
            step = end if last else start + max(1, length * (k + 1) // len(fragments))
            used = step if last else min(step + outer.delay, end + (step - start), STEPS)  # the fragment's next turn
            buffers = n_buffers if k == len(fragments) - 1 else 0
            expected.message(step, wire, numbers, buffers, used=used)
        periods = getattr(strategy.state_rule, "every", {})
        for period in periods.values() if isinstance(periods, dict) else ():
            if rounds_of_rule % period == 0:
                expected.message(end, FP32(), n_parameters)
    return expected


COUNTED = {name: run.strategy for name, run in OF_PRESETS.items()} | {
    name: OTHERS[name].strategy
    for name in ("error feedback of int4, outer", "error feedback of bf16, gradients", "overlap",
                 "overlap and error feedback of int4", "error feedback of int8, ddp_steps", "low rank, parameters",
                 "periods of the optimizer's state", "groups of two")
}  # fmt: skip
COUNTS = Cases(2, {name: partial(count, strategy, 2) for name, strategy in COUNTED.items()})


@pytest.mark.parametrize("name", [name for name in COUNTED if name != "ddp"])
def test_exactly_the_expected_messages_calls_and_bytes_leave_after_each_step(name: str) -> None:
    for counted in COUNTS[name]:
        expected = expected_of(COUNTED[name](), counted.rounds)
        assert sum(counted.rounds.values()) == STEPS
        assert counted.calls == expected.calls
        messages = n_bytes = 0
        for step in range(1, STEPS + 2):
            messages, n_bytes = messages + expected.messages[step], n_bytes + expected.n_bytes[step]
            assert counted.ledger[step] == (messages, n_bytes), f"after step {step}"


def test_ddp_says_one_thing_a_step() -> None:
    numbers = sum(p.numel() for p in Layered().parameters())
    for counted in COUNTS["ddp"]:
        assert counted.calls == {step: ["all_reduce"] for step in range(1, STEPS + 1)} | {STEPS + 1: []}
        assert counted.ledger[STEPS] == (STEPS, STEPS * ring_bytes(4 * numbers, 2))


@pytest.mark.parametrize("name", [name for name in PRESETS if name not in ("ddp",)])
def test_between_ticks_nothing_is_said(name: str) -> None:
    """The same again without the formula: at most steps of a round there is no call at all."""
    strategy, counted = COUNTED[name](), COUNTS[name][0]
    said = {step for step, calls in counted.calls.items() if calls}
    ends = {start + length for start, length in counted.rounds.items()}
    if strategy.sync.fragments == 1 and not strategy.sync.meets_in_groups:
        assert said == ends
        assert (len(said) < STEPS) == any(length > 1 for length in counted.rounds.values())
    assert ends <= said <= set(range(1, STEPS + 1))
