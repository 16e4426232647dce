"""A timeline in somebody else's project: settings at every step, events at their moments, exact resuming."""

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, StepLR
from torch.utils.data import DataLoader, TensorDataset

from tests.conftest import run_workers
from tests.strategy.toys import CountInTraining, Traffic, flat, trainer_for
from ticks.arguments import ArgumentError
from ticks.data import MapData
from ticks.data.images import Images, LabelledImages
from ticks.models.changes.gate import gate_of
from ticks.strategy import LowRank, Outer, Parameters, Streaming, TickStrategy
from ticks.timeline import (
    Augmentation,
    BatchSize,
    Dropout,
    Evaluate,
    Freeze,
    Interval,
    LrFactor,
    NormGate,
    Number,
    Prune,
    Run,
    Save,
    Stage,
    Stop,
    Thaw,
    Timeline,
    TrainOnly,
    WeightDecay,
)  # fmt: skip

STEPS = 8


class Small(LightningModule):
    """Two layers with a norm between them."""

    def __init__(self, scheduler: Any = None) -> None:
        super().__init__()
        self.first, self.norm, self.drop, self.last = (
            nn.Linear(4, 6),
            nn.LayerNorm(6),
            nn.Dropout(0.25),
            nn.Linear(6, 2),
        )
        self.scheduler, self.weight = scheduler, 0.5

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.drop(self.norm(self.first(x))))

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        return self(batch).square().mean() + self.weight * 0

    def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        self.log("val/loss", self(batch).square().mean())

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.1, weight_decay=0.2)
        if self.scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self.scheduler(optimizer), "interval": "step"}}


class Watch(Callback):
    """What is used in each step, and which parameters have moved by it."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []
        self.evaluated: list[int] = []

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.optimizers[0].register_step_pre_hook(self.look)
        self.module: Any = pl_module

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.before = {name: p.detach().clone() for name, p in pl_module.named_parameters()}

    def look(self, optimizer: Any, *_: Any) -> None:
        (group,) = optimizer.param_groups
        norm = self.module.norm
        gate = vars(norm)["forward"].a if "forward" in vars(norm) else 1.0
        self.seen.append({"lr": round(group["lr"], 6), "decay": group["weight_decay"], "gate": gate,
                          "dropout": self.module.drop.p, "weight": self.module.weight})  # fmt: skip

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        moved = {n.split(".")[0] for n, p in pl_module.named_parameters() if not torch.equal(p, self.before[n])}
        self.seen[-1]["moved"] = moved

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.evaluated.append(trainer.global_step)


def data(rank: int = 0) -> DataLoader:
    x = torch.randn(2, 4, generator=torch.Generator().manual_seed(rank))  # Lightning begins an epoch's anew on resuming
    return DataLoader(x.repeat(64, 1), batch_size=2)  # type: ignore[arg-type]


def train(
    entries: Any, home: Path, *, steps: int = STEPS, module: Any = None, resume: Any = None, **arguments: Any
) -> tuple[Watch, Any, Trainer]:
    seed_everything(0, verbose=False)
    module = (module or Small)()  # from the seed
    watch, timeline = Watch(), Timeline(entries)
    given = {"accelerator": "cpu", "devices": 1, "logger": False, "enable_progress_bar": False,
             "enable_model_summary": False, "enable_checkpointing": False, "default_root_dir": home,
             "max_steps": steps, "num_sanity_val_steps": 0, "limit_val_batches": 1, "val_check_interval": 1000,
             "check_val_every_n_epoch": None, "use_distributed_sampler": False}  # fmt: skip
    trainer = Trainer(callbacks=[timeline, watch, *arguments.pop("callbacks", [])], **(given | arguments))  # type: ignore[arg-type]
    loaders: Any = (arguments.get("strategy") and data(trainer.global_rank)) or data()
    trainer.fit(module, loaders, data(), ckpt_path=resume)
    return watch, module, trainer


def column(watch: Watch, name: str) -> list[Any]:
    return [row[name] for row in watch.seen]


SETTINGS: dict[str, tuple[dict[str, Any], str, list[Any]]] = {
    "lr": ({"from": 2, "ramp": 2, "do": LrFactor(end=0.5)}, "lr", [0.1, 0.1, 0.075, 0.05, 0.05, 0.05, 0.05, 0.05]),
    "lr back": ({"from": 2, "until": 4, "do": LrFactor(end=0.0)}, "lr", [0.1, 0.1, 0.0, 0.0, 0.1, 0.1, 0.1, 0.1]),
    "decay": ({"from": "50%", "do": WeightDecay(start=0.2, end=0.0)}, "decay", [0.2] * 4 + [0.0] * 4),
    "decay back": ({"from": 1, "until": 3, "do": WeightDecay(start=0.2, end=0.0)}, "decay", [0.2, 0, 0] + [0.2] * 5),
    "gate": ({"from": 2, "ramp": 4, "do": NormGate()}, "gate", [0, 0, 0.25, 0.5, 0.75, 1, 1, 1]),
    "gate falls": ({"ramp": 2, "do": NormGate(start=1, end=0)}, "gate", [0.5, 0, 0, 0, 0, 0, 0, 0]),
    "dropout": ({"from": 6, "do": Dropout(end=0.0)}, "dropout", [0.25] * 6 + [0.0] * 2),
    "weight": ({"from": 6, "ramp": 4, "do": Number(of="weight", end=1.5)}, "weight", [0.5] * 6 + [0.75, 1.0]),
    "freeze": ({"from": 2, "until": 5, "do": Freeze("^first")}, "moved",
               [{"first", "norm", "last"}] * 2 + [{"norm", "last"}] * 3 + [{"first", "norm", "last"}] * 3),
    "thaw": ({"from": 3, "do": Thaw(["^first", "^norm"])}, "moved", [{"last"}] * 3 + [{"first", "norm", "last"}] * 5),
    "train only": ({"from": 6, "do": TrainOnly("^last")}, "moved", [{"first", "norm", "last"}] * 6 + [{"last"}] * 2),
}  # fmt: skip


@pytest.mark.parametrize("name", list(SETTINGS))
def test_a_setting_is_what_the_table_says_in_every_step(name: str, tmp_path: Path) -> None:
    said, key, expected = SETTINGS[name]
    watch, _, _ = train({"it": said}, tmp_path)
    assert column(watch, key) == expected


def stopped(stop: int, home: Path) -> None:
    """Each of the settings: 8 steps, and 8 of which so many lie before a checkpoint."""
    small = partial(Small, partial(LambdaLR, lr_lambda=lambda step: 0.9**step))

    def run(entries: dict[str, Any], **more: Any) -> tuple[Watch, Any, Trainer]:
        strategy = TickStrategy(interval=1)  # which keeps the states of random generators
        return train(entries, home, module=small, strategy=strategy, devices=1, **more)

    for name, (said, key, expected) in SETTINGS.items():
        _, whole, _ = run({"it": said})
        run({"it": said, "keep": {"at": stop, "do": Save(directory=str(home / name))}})
        (file,) = (home / name).glob("*.ckpt")
        if name == "dropout":  # and was measuring when it was stopped
            checkpoint = torch.load(file, weights_only=True)
            checkpoint["callbacks"]["Timeline"]["asked"] = True
            torch.save(checkpoint, file)
        watch, resumed, _ = run({"it": said}, resume=file)
        assert watch.evaluated == ([stop] if name == "dropout" else [])
        assert key == "lr" or column(watch, key) == expected[stop:], name
        assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True)), name


@pytest.mark.workers
@pytest.mark.parametrize("stop", [2, 3, 5])
def test_a_run_that_is_resumed_anywhere_is_the_run_that_was_not(stop: int, tmp_path: Path) -> None:
    run_workers(1, stopped, stop, tmp_path)


@pytest.mark.parametrize("scheduler", [None, partial(StepLR, step_size=2, gamma=0.5), LambdaLR])
def test_a_factor_multiplies_what_any_schedule_says(scheduler: Any, tmp_path: Path) -> None:
    scheduler = partial(LambdaLR, lr_lambda=lambda step: 0.5 ** (step // 2)) if scheduler is LambdaLR else scheduler
    rates = [0.1] * 8 if scheduler is None else [0.1, 0.1, 0.05, 0.05, 0.025, 0.025, 0.0125, 0.0125]
    watch, _, trainer = train({"it": {"from": 3, "do": LrFactor(end=0.1)}}, tmp_path, module=partial(Small, scheduler))
    assert column(watch, "lr") == pytest.approx([r if i < 3 else r / 10 for i, r in enumerate(rates)])
    plain, _, _ = train({}, tmp_path, module=partial(Small, scheduler))
    assert column(plain, "lr") == pytest.approx(rates)
    if isinstance(trainer.lr_scheduler_configs and trainer.lr_scheduler_configs[0].scheduler, StepLR):
        assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.00625), "lent for a step only"


def test_a_factor_of_a_schedule_that_moves_with_epochs_is_of_steps(tmp_path: Path) -> None:
    class Epochs(Small):
        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
            return [optimizer], [LambdaLR(optimizer, lambda epoch: 1.0)]

    watch, _, _ = train({"it": {"from": 3, "do": LrFactor(end=0.1)}}, tmp_path, module=Epochs)
    assert column(watch, "lr") == pytest.approx([0.1] * 3 + [0.01] * 5)


def test_of_two_entries_each_sets_its_own(tmp_path: Path) -> None:
    entries = {"one": {"until": 3, "do": NormGate(start=1, end=0)},
               "other": {"from": 4, "do": NormGate(start=1, end=0, keep_affine=True)}}  # fmt: skip
    _, module, _ = train(entries, tmp_path)
    assert gate_of(module.norm) == (0.0, True)


def test_an_empty_timeline_is_none(tmp_path: Path) -> None:
    _, one, _ = train({}, tmp_path)
    seed_everything(0, verbose=False)
    other = Small()
    given: Any = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "max_steps": STEPS,
                  "enable_checkpointing": False, "enable_model_summary": False, "limit_val_batches": 0}  # fmt: skip
    Trainer(**given, default_root_dir=tmp_path).fit(other, data())
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_events_happen_once_after_their_steps(tmp_path: Path) -> None:
    calls: list[int] = []

    def call(trainer: Trainer, module: Any) -> None:
        calls.append(trainer.global_step)

    train({"a": {"at": [0, 3], "do": Run(call)}, "b": {"every": 4, "do": Run(call)}}, tmp_path)
    assert calls == [0, 3, 4, 8]
    calls.clear()
    keep = {"at": 4, "do": Save(directory=str(tmp_path / "kept"))}
    train({"keep": keep, "b": {"every": 2, "do": Run(call)}}, tmp_path)
    assert calls == [2, 4, 6, 8]
    calls.clear()
    (file,) = (tmp_path / "kept").iterdir()
    train({"keep": keep, "b": {"every": 2, "do": Run(call)}}, tmp_path, resume=file)
    assert calls == [6, 8], "what happened before the checkpoint does not again"


def test_evaluations_and_the_end(tmp_path: Path) -> None:
    watch, _, trainer = train({"look": {"at": [2, 5], "do": Evaluate()}, "end": {"at": 6, "do": Stop()}}, tmp_path)
    assert watch.evaluated[:2] == [2, 5]
    assert trainer.global_step == 6
    watch, _, _ = train({"look": {"at": 2, "do": Evaluate()}}, tmp_path, val_check_interval=4)
    assert watch.evaluated == [2, 4, 8], "and as often as without"


def test_seconds_are_of_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("ticks.timeline.seconds.time.perf_counter", lambda: now[0])
    calls: list[int] = []

    class Slow(Callback):
        def on_train_batch_start(self, *_: Any) -> None:
            now[0] += 40.0

    entries = {"a": {"every": "2min", "do": Run(lambda trainer, module: calls.append(trainer.global_step))}}
    train(entries, tmp_path, callbacks=[Slow()])
    assert calls == [3, 6]


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"do": Freeze("nothing")}, r"it\.do\.match='nothing' matches no parameter; there are first.weight"),
    ({"do": Freeze("[")}, r"it\.do\.match='\[' is no regular expression"),
    ({"do": NormGate(sites="blocks.*")}, r"it\.do\.sites='blocks\.\*' fits no norm; there are norm"),
    ({"do": Dropout(end=0.0, match="x")}, r"it\.do\.match='x' fits no dropout; there are drop"),
    ({"do": Number(of="regulariser.weight", end=1.0)}, r"it\.do\.of='regulariser\.weight' is no number of Small"),
    ({"do": Interval(end=4)}, r"it\.do\.end=4 is of no use: SingleDeviceStrategy has no clock"),
    ({"every": "30s", "from": 3, "do": Save()}, r"it\.from=3 is for what happens every so many steps, not every 30s"),
    ({"at": "tick 3", "do": Save()}, r"it='ticks' are not there: SingleDeviceStrategy has none"),
]  # fmt: skip


@pytest.mark.parametrize(("said", "message"), WRONG)
def test_what_cannot_be_is_told_before_the_first_step(said: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=message):
        train({"it": said}, tmp_path)


def test_what_is_kept_lies_behind_an_evaluation_of_the_same_step(tmp_path: Path) -> None:
    order: list[str] = []

    class Looks(Callback):
        def on_validation_end(self, trainer: Trainer, *_: Any) -> None:
            order.append(f"evaluated {trainer.global_step}")

    call = Run(lambda trainer, module: order.append(f"called {trainer.global_step}"))
    entries = {"end": {"at": 6, "do": Stop()}, "keep": {"at": [3, 6], "do": Save(directory=str(tmp_path / "kept"))},
               "call": {"at": 3, "do": call}, "look": {"every": 3, "do": Evaluate()}}  # fmt: skip
    _, _, trainer = train(entries, tmp_path, callbacks=[Looks()])
    assert order == ["called 3", "evaluated 3", "evaluated 6"]
    assert trainer.global_step == 6
    first, second = sorted((tmp_path / "kept").glob("*.ckpt"))
    assert "val" not in str(first)
    state = torch.load(second, weights_only=True)["callbacks"]["Timeline"]
    assert state["waiting"] == []
    state = torch.load(first, weights_only=True)["callbacks"]["Timeline"]
    assert (state["done"]["steps"], state["waiting"]) == (3, [])


def checkpoint_of(entries: dict[str, Any], home: Path, step: int, **changed: Any) -> Path:
    """What a run with these entries keeps behind a step, and `changed` in what its timeline knows."""
    train(entries | {"keep": {"at": step, "do": Save(directory=str(home / f"at-{step}"))}}, home)
    (file,) = (home / f"at-{step}").glob("*.ckpt")
    checkpoint = torch.load(file, weights_only=True)
    checkpoint["callbacks"]["Timeline"] |= changed
    torch.save(checkpoint, file)
    return file


def test_what_ended_a_run_ends_it_again(tmp_path: Path) -> None:
    end = {"end": {"at": 4, "do": Stop()}}
    for file in (checkpoint_of({}, tmp_path, 4, waiting=["end"], asked=True), checkpoint_of(end, tmp_path / "b", 4)):
        watch, _, trainer = train(end, tmp_path, resume=file)
        assert (trainer.global_step, watch.seen) == (4, [])


def test_an_evaluation_that_did_not_end_comes_when_the_run_goes_on(tmp_path: Path) -> None:
    look = {"look": {"at": [0, 4], "do": Evaluate()}}
    watch, _, _ = train(look, tmp_path)
    assert watch.evaluated == [0, 4]
    order: list[str] = []
    keep = {"kept": {"at": 4, "do": Run(lambda trainer, module: order.append("kept"))}}
    file = checkpoint_of(look, tmp_path, 4, asked=True)
    watch, _, _ = train(look | keep, tmp_path, resume=file)
    assert watch.evaluated == [4]
    assert order == [], "it has happened"


def test_a_timeline_that_is_new_does_nothing_of_what_is_over(tmp_path: Path) -> None:
    file = checkpoint_of({}, tmp_path, 5)
    checkpoint = torch.load(file, weights_only=True)
    del checkpoint["callbacks"]["Timeline"]
    torch.save(checkpoint, file)
    calls: list[int] = []
    call = Run(lambda trainer, module: calls.append(trainer.global_step))
    entries = {
        "a": {"at": [2, 7], "do": call},
        "end": {"at": 3, "do": Stop()},
        "cut": {"at": 3, "do": Prune(share=0.5)},
    }
    _, module, _ = train(entries, tmp_path, resume=file)
    assert calls == [7]
    assert bool(module.last.weight.all()), "nothing was pruned"
    train({"a": {"at": [2, 7], "do": call}, **entries}, tmp_path, resume=checkpoint_of({}, tmp_path / "b", 5))
    assert calls == [7, 7], "nor where there was a timeline without it"


def test_what_never_came_is_said_at_the_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    entries = {"late": {"at": ["1h", 3], "do": Evaluate()}, "slow": {"from": 4, "ramp": 8, "do": LrFactor(end=0.0)},
               "done": {"ramp": 8, "do": Dropout(end=0.0)}}  # fmt: skip
    train(entries, tmp_path)
    assert capsys.readouterr().out.splitlines()[-2:] == [
        "note: timeline: late never came: the end was before 1h",
        "note: timeline: slow ended at 50% of its ramp",
    ]


def test_a_clock_does_not_go_backwards(tmp_path: Path) -> None:
    timeline = Timeline({})
    timeline.load_state_dict({"done": {"steps": 4.0, "seconds": 60.5}, "seconds": 59.4, "ticks_before": 0, "step": 4,
                              "waiting": [], "asked": False, "events": {}})  # fmt: skip
    assert timeline.seconds() == 60.5
    assert timeline._now(SimpleNamespace(strategy=None), 3)["steps"] == 4.0


def test_what_is_told_once_is_not_told_again(tmp_path: Path) -> None:
    entries = {"it": {"from": 2, "until": 6, "do": LrFactor(end=0.5)}}
    told: list[tuple[int, str]] = []

    def run(**more: Any) -> None:
        timeline = Timeline(entries)
        timeline.listeners.append(lambda trainer, name, said: told.append((trainer.global_step, said)))
        seed_everything(0, verbose=False)
        given: Any = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "max_steps": 8,
                      "enable_checkpointing": False, "enable_model_summary": False, "limit_val_batches": 0}  # fmt: skip
        Trainer(callbacks=[timeline], **given, default_root_dir=tmp_path).fit(Small(), data(), **more)

    run()
    assert told == [(2, "holds"), (6, "rests")]
    told.clear()
    run(ckpt_path=checkpoint_of(entries, tmp_path, 4))
    assert told == [(6, "rests")]
    told.clear()
    run(ckpt_path=checkpoint_of(entries, tmp_path, 6))
    assert told == [], "what was kept at a border lies behind what was told there"


def test_a_list_of_entries_does_as_well(tmp_path: Path) -> None:
    watch, _, _ = train([{"from": 6, "do": Dropout(end=0.0)}, {"every": 4, "do": Evaluate()}], tmp_path)
    assert column(watch, "dropout") == [0.25] * 6 + [0.0] * 2
    assert watch.evaluated == [4, 8]


# ---- several workers


STRATEGIES = {
    "ticks": lambda: TickStrategy(interval=3),
    "parameters": lambda: TickStrategy(interval=3, sync=Parameters()),
    "diloco": lambda: TickStrategy(
        interval=3, sync=Outer(partial(torch.optim.SGD, lr=0.7, momentum=0.5, nesterov=True))
    ),
    "streaming": lambda: TickStrategy(interval=4, sync=Streaming(fragments=2)),
    "low rank": lambda: TickStrategy(interval=3, wire=LowRank(rank=2)),
}


def thawed(strategy: str, home: Path) -> dict[str, Any]:
    entries = {"thaw": {"from": 4, "do": Thaw("^first")}, "gate": {"from": 1, "ramp": 5, "do": NormGate()}}
    watch, module, _ = train(entries, home, steps=9, strategy=STRATEGIES[strategy](), devices=2)
    return {"moved": column(watch, "moved"), "end": [p.detach().clone() for p in module.parameters()],
            "gate": column(watch, "gate")}  # fmt: skip


@pytest.mark.workers
@pytest.mark.parametrize("strategy", list(STRATEGIES))
def test_workers_agree_though_what_trains_changes(strategy: str, tmp_path: Path) -> None:
    one, other = run_workers(2, thawed, strategy, tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(one["end"], other["end"], strict=True))
    assert one["gate"] == [0, 0.2, 0.4, 0.6, 0.8, 1, 1, 1, 1]
    assert all("first" not in moved for moved in one["moved"][:4])
    assert all("first" in moved for moved in one["moved"][5:])


CHANGES = {
    "thaw": {"change": {"from": 4, "do": Thaw("^first")}},
    "freeze": {"change": {"from": 4, "do": Freeze("^first")}},
    "others": {"one": {"until": 4, "do": TrainOnly("^first")}, "other": {"from": 4, "do": TrainOnly("^last")}},
}


def changed(strategy: str, home: Path) -> list[tuple[str, int, bool]]:
    found = []
    for name, entries in CHANGES.items():
        for step in (4, 5, 6):
            keep = {"keep": {"at": step, "do": Save(directory=str(home / f"{name}-{step}"))}}
            arguments: dict[str, Any] = {"steps": 9, "devices": 2}
            whole = train(entries | keep, home, strategy=STRATEGIES[strategy](), **arguments)[1]
            (file,) = (home / f"{name}-{step}").glob("*.ckpt")
            again = train(entries | keep, home, strategy=STRATEGIES[strategy](), resume=file, **arguments)[1]
            same = all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))
            found.append((name, step, same))
    return found


@pytest.mark.workers
@pytest.mark.parametrize("strategy", list(STRATEGIES))
def test_a_run_goes_on_exactly_from_where_what_trains_changes(strategy: str, tmp_path: Path) -> None:
    for found in run_workers(2, changed, strategy, tmp_path):
        assert [(name, step) for name, step, same in found if not same] == []


def timed(home: Path) -> dict[str, Any]:
    """Worker 1 is twice as slow; a tick every 4 steps."""
    import time as clock

    calls: list[int] = []

    class Slow(Callback):
        def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
            clock.sleep(0.01 * (1 + 2 * trainer.global_rank))

    entries = {
        "a": {"every": "0.2s", "do": Run(lambda trainer, module: calls.append(trainer.strategy.step))},
        "b": {"every": "2 ticks", "do": Run(lambda trainer, module: calls.append(-trainer.strategy.step))},
    }
    counted = counting()
    train(entries, home, steps=24, strategy=TickStrategy(interval=4), devices=2, callbacks=[Slow(), counted])
    return {"calls": calls, "collectives": counted.per_step}


def plain() -> list[dict[str, Any]]:
    """Without a timeline, and with an empty one."""
    runs = []
    for callbacks in ([], [Timeline({})]):
        counted = counting()
        seed_everything(0, verbose=False)
        module = Small()
        trainer = trainer_for(TickStrategy(interval=4), 2, steps=24, callbacks=[*callbacks, counted])
        trainer.fit(module, data(trainer.global_rank))
        runs.append({"collectives": counted.per_step, "final": flat(module)})
    return runs


def counting() -> CountInTraining:
    traffic = Traffic()
    traffic.install()
    return CountInTraining(traffic)


@pytest.mark.workers
def test_a_moment_on_the_clock_is_the_same_tick_for_workers_of_different_speed(tmp_path: Path) -> None:
    one, other = run_workers(2, timed, tmp_path)
    assert one["calls"] == other["calls"]
    assert [-step for step in one["calls"] if step < 0] == [8, 16, 24]
    seconds = [step for step in one["calls"] if step > 0]
    assert len(seconds) >= 2
    assert all(step % 4 == 0 for step in seconds)
    without, empty = run_workers(2, plain)[0]
    assert one["collectives"] == without["collectives"] == empty["collectives"], "and no message is added"
    assert any(one["collectives"].values())
    assert torch.equal(without["final"], empty["final"])


def stretched(home: Path) -> list[int]:
    lengths: list[int] = []
    strategy = TickStrategy(interval=2)

    class Ticks(Callback):
        def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
            strategy.on_tick.append(lambda metrics: lengths.append(int(metrics["tick/interval"])))

    train({"grow": {"from": 5, "until": 13, "do": Interval(end=4)}}, home, steps=16, strategy=strategy, devices=2,
          callbacks=[Ticks()])  # fmt: skip
    return lengths


@pytest.mark.workers
def test_the_interval_is_a_setting(tmp_path: Path) -> None:
    one, other = run_workers(2, stretched, tmp_path)
    assert one == other == [2, 2, 1, 3, 4, 1, 1, 2]


# ---- how much a step takes


class Numbers(MapData):
    """The number of each of 40 samples."""

    def load(self) -> dict[str, Any]:
        return {"train": TensorDataset(torch.arange(40.0)), "val": TensorDataset(torch.arange(4.0))}


class Seen(LightningModule):
    """Which samples a worker was given, by step."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.seen: list[list[int]] = []

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        self.seen.append([int(x) for x in batch[0]])
        return (self.weight * batch[0]).mean() * 0

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


GROWTH = {"grow": {"from": 3, "ramp": 2, "do": BatchSize(end=12)}}


def grown(home: Path, entries: Any = None, *, accumulate: int = 1, resume: Any = None) -> Any:
    seed_everything(0, verbose=False)
    module = Seen()
    trainer = Trainer(
        callbacks=[Timeline(GROWTH if entries is None else entries)], accelerator="cpu", devices=2, logger=False,
        strategy=TickStrategy(interval=2), max_steps=8, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, accumulate_grad_batches=accumulate, default_root_dir=home, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(module, datamodule=Numbers(global_batch_size=4, seed=3), ckpt_path=resume)
    return module.seen


@pytest.mark.workers
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_growing_batch_sees_each_sample_once_in_an_epoch(accumulate: int, tmp_path: Path) -> None:
    one, other = run_workers(2, partial(grown, accumulate=accumulate), tmp_path)
    sizes = [sum(len(seen[i]) for seen in (one, other) for i in range(at, at + accumulate))
             for at in range(0, len(one), accumulate)]  # fmt: skip
    assert sizes == [4, 4, 4, 8, 12, 12, 12, 12]
    taken = [sample for at in range(0, len(one), accumulate) for i in range(at, at + accumulate)
             for seen in (one, other) for sample in seen[i]]  # fmt: skip
    assert sorted(taken[:40]) == list(range(40)), "none twice and none left out"
    if accumulate == 1:
        plain = run_workers(2, partial(grown, entries={}), tmp_path)
        whole = [sample for i in range(8) for seen in plain for sample in seen[i]]
        assert taken[: len(whole)] == whole, "in the order in which they would have come"


def stopped_growth(home: Path) -> tuple[Any, Any]:
    keep = {"keep": {"at": 4, "do": Save(directory=str(home / "kept"))}}
    whole = grown(home, GROWTH | keep)
    (file,) = (home / "kept").glob("*.ckpt")
    return whole, grown(home, GROWTH | keep, resume=file)


@pytest.mark.workers
def test_a_run_stopped_while_the_batch_grows_goes_on_where_it_was(tmp_path: Path) -> None:
    for whole, resumed in run_workers(2, stopped_growth, tmp_path):
        assert resumed == whole[4:]


def test_augmentation_is_of_a_share_of_the_images(tmp_path: Path) -> None:
    class Pictures(Images):
        def load(self) -> dict[str, Any]:
            made = LabelledImages(torch.zeros(64, 1, 2, 2, dtype=torch.uint8), torch.zeros(64, dtype=torch.long))
            return {"train": made, "val": made}

    class Counts(Seen):
        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            self.seen.append([int(batch[0].flatten(1).any(1).sum())])
            return self.weight.sum()

    def counted(entries: Any) -> list[int]:
        module, data = Counts(), Pictures(global_batch_size=32, augment=lambda images: images + 1.0)
        given: Any = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "max_steps": 6,
                      "enable_checkpointing": False, "enable_model_summary": False, "limit_val_batches": 0}  # fmt: skip
        Trainer(callbacks=[Timeline(entries)], **given, default_root_dir=tmp_path).fit(module, datamodule=data)
        return [n for (n,) in module.seen]

    assert counted({}) == [32] * 6
    entry = {"from": 2, "until": 4, "do": Augmentation(start=0.0, end=0.5)}
    found = counted({"some": entry})
    assert (found[:2], found[4:]) == ([0, 0], [0, 0])
    assert all(4 < n < 28 for n in found[2:4])
    assert counted({"some": entry}) == found
    with pytest.raises(ArgumentError, match=r"some\.do\.end=0.5 is of no use: NoneType augments nothing"):
        train({"some": entry}, tmp_path)


def test_what_does_not_divide_or_says_nothing_of_its_samples_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"it\.do\.end=12 cannot be: NoneType does not say which samples"):
        train({"it": {"do": BatchSize(end=12)}}, tmp_path)
    data = Numbers(global_batch_size=4)
    stage = Stage(SimpleNamespace(world_size=4, accumulate_grad_batches=2), None, given=data)
    with pytest.raises(ArgumentError, match=r"end=12 must be divisible by 8, .*; the nearest that are: 8, 16"):
        BatchSize(end=12).targets(stage)
    with pytest.raises(ArgumentError, match="start=4 must be divisible by 8"):
        BatchSize(end=16).targets(stage)
    data.sizes_can_change = False
    with pytest.raises(ArgumentError, match="sort many steps' samples by length"):
        BatchSize(end=16).targets(stage)


# ---- pruning


def pruned(strategy: str, home: Path) -> dict[str, Any]:
    entries = {"half": {"at": 3, "do": Prune(share=0.5)}, "more": {"at": 6, "do": Prune(share=0.75)},
               "keep": {"at": 5, "do": Save(directory=str(home / "kept"))}}  # fmt: skip
    zeros: list[int] = []
    counts = Run(
        lambda trainer, module: zeros.append(int((module.first.weight == 0).sum() + (module.last.weight == 0).sum()))
    )
    entries["count"] = {"every": 1, "do": counts}
    _, module, _ = train(entries, home, steps=9, strategy=STRATEGIES[strategy](), devices=2)
    (file,) = (home / "kept").glob("*.ckpt")
    _, again, end = train(entries, home, steps=9, strategy=STRATEGIES[strategy](), devices=2, resume=file)
    return {"zeros": zeros, "end": [p.detach().clone() for p in module.parameters()],
            "again": [p.detach().clone() for p in again.parameters()],
            "known": next(c for c in end.callbacks if isinstance(c, Timeline)).state_dict()["events"]}  # fmt: skip


@pytest.mark.workers
@pytest.mark.parametrize("strategy", list(STRATEGIES))
def test_all_workers_prune_the_same_and_it_stays(strategy: str, tmp_path: Path) -> None:
    one, other = run_workers(2, pruned, strategy, tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(one["end"], other["end"], strict=True))
    for worker in (one, other):
        half, more = 18, 27  # of 36
        assert set(worker["known"]) == {"half", "more"}, "for a checkpoint of the trained model"
        assert worker["zeros"][:9] == [0, 0, *[half] * 3, *[more] * 4]
        assert sum(int((p == 0).sum()) for p in (worker["end"][0], worker["end"][4])) == more, "to the end"
        assert all(torch.equal(a, b) for a, b in zip(worker["end"], worker["again"], strict=True))
