"""A timeline where it is easily wrong: runs that go on by another one, clocks without ticks, other people's models."""

import math
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from torch.utils.data import DataLoader, IterableDataset

from tests.conftest import run_workers
from tests.strategy.toys import trainer_for
from tests.timeline.test_timeline import Small, Watch, checkpoint_of, data, train
from ticks.arguments import ArgumentError
from ticks.strategy import DDP
from ticks.timeline import Evaluate, Freeze, LrFactor, NormGate, Number, Prune, Run, Save, Show, Stop, Thaw, Timeline
from ticks.timeline.seconds import TrainingTime


def noting(calls: list[int]) -> Run:
    return Run(lambda trainer, module: calls.append(trainer.global_step))


# ---- runs that go on by another timeline


def test_an_event_that_is_moved_behind_a_checkpoint_does_not_happen_and_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = checkpoint_of({"cut": {"at": 6, "do": Prune(share=0.5)}}, tmp_path, 5)
    _, module, _ = train({"cut": {"at": 3, "do": Prune(share=0.5)}}, tmp_path, resume=file)
    assert bool(module.last.weight.all())
    assert "note: timeline: cut does not happen where it lies behind step 5" in capsys.readouterr().out


def test_an_event_that_is_moved_before_a_checkpoint_has_not_happened_late(tmp_path: Path) -> None:
    calls: list[int] = []
    file = checkpoint_of({"call": {"at": 8, "do": noting([])}}, tmp_path, 5)
    train({"call": {"at": 4, "do": noting(calls)}, "other": {"at": 7, "do": noting([])}}, tmp_path, resume=file)
    assert calls == []


def test_another_action_by_the_name_of_one_that_has_happened_has_not(tmp_path: Path) -> None:
    file = checkpoint_of({"it": {"at": 3, "do": noting([])}}, tmp_path, 5)
    _, module, _ = train({"it": {"at": 3, "do": Prune(share=0.5)}}, tmp_path, resume=file)
    assert bool(module.last.weight.all())


def test_a_run_without_entries_that_goes_on_with_some_does_nothing_of_what_is_over(tmp_path: Path) -> None:
    calls: list[int] = []
    trainer = train({}, tmp_path, steps=5)[2]
    trainer.save_checkpoint(tmp_path / "five.ckpt")
    entries = {"call": {"at": [3, 7], "do": noting(calls)}, "end": {"at": 4, "do": Stop()}}
    assert train(entries, tmp_path, resume=tmp_path / "five.ckpt")[2].global_step == 8
    assert calls == [7]


def test_the_state_of_another_action_by_that_name_is_not_given(tmp_path: Path) -> None:
    file = checkpoint_of({"it": {"at": 3, "do": Prune(share=0.5)}}, tmp_path, 5)
    assert train({"it": {"at": 7, "do": Stop()}}, tmp_path, resume=file)[2].global_step == 7


def test_a_checkpoint_that_does_not_say_what_has_happened_is_believed(tmp_path: Path, capsys: Any) -> None:
    calls: list[int] = []
    entries = {"call": {"at": [3, 7], "do": noting(calls)}, "end": {"at": 4, "do": Stop()}}
    file = checkpoint_of(entries, tmp_path, 4)
    checkpoint = torch.load(file, weights_only=True)
    kept = checkpoint["callbacks"]["Timeline"]
    for key in ("happened", "told", "step"):  # which came later
        del kept[key]
    kept["entries"] = ["call", "end"]
    torch.save(checkpoint, file)
    calls.clear()
    assert train(entries, tmp_path, resume=file)[2].global_step == 4
    assert calls == []
    assert "does not happen" not in capsys.readouterr().out


def test_what_is_pruned_stays_so_where_the_event_comes_again_and_an_end_that_is_put_off_is_no_end(
    tmp_path: Path,
) -> None:
    file = checkpoint_of({"cut": {"at": 3, "do": Prune(share=0.5)}}, tmp_path, 5)
    _, module, _ = train({"cut": {"at": 8, "do": Prune(share=0.25)}}, tmp_path, steps=8, resume=file)
    assert (module.last.weight == 0).float().mean() > 0.25
    file = checkpoint_of({"end": {"at": 4, "do": Stop()}}, tmp_path / "end", 4)
    assert train({"end": {"at": 6, "do": Stop()}}, tmp_path, resume=file)[2].global_step == 6


def test_an_event_of_a_step_that_somebody_kept_before_it_came_happens_when_the_run_goes_on(tmp_path: Path) -> None:
    class Keep(Callback):
        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            if trainer.global_step == 4 and not (tmp_path / "early.ckpt").exists():
                trainer.save_checkpoint(tmp_path / "early.ckpt")

    def fit(**more: Any) -> list[int]:
        calls: list[int] = []
        timeline = Timeline({"call": {"at": [4, 6], "do": noting(calls)}})
        seed_everything(0, verbose=False)
        trainer_for("auto", 1, steps=8, callbacks=[Keep(), timeline]).fit(Small(), data(), **more)
        return calls

    assert fit() == [4, 6]
    assert fit(ckpt_path=tmp_path / "early.ckpt") == [4, 6]


def test_a_timeline_that_served_one_fit_begins_anew_with_the_next(tmp_path: Path) -> None:
    calls: list[int] = []
    timeline = Timeline({"call": {"every": 3, "do": noting(calls)}})
    for _ in range(2):
        trainer_for("auto", 1, steps=8, callbacks=[timeline]).fit(Small(), data())
    assert calls == [3, 6, 3, 6]


# ---- seconds without ticks


def looks(speed: Callable[[int], float], moment: float) -> tuple[int, float]:
    """How many of several workers' steps look at the clock until a moment has come, and by how much it is then over."""
    clock, now, step, count = TrainingTime(), 0.0, 0, 0
    while now < moment or not clock.looks(step):
        step += 1
        now += speed(step)
        if now < moment and clock.looks(step):
            count += 1
            clock.plan_look(step, now, moment, alone=False)
    return count, now - moment


def test_where_there_are_no_ticks_workers_ask_each_other_for_the_time_now_and_then() -> None:
    count, late = looks(lambda step: 0.1, 3600.0)
    assert count < 440  # of 36,000 steps
    assert late < 0.21
    clock = TrainingTime()
    clock.plan_look(1, 0.1, math.inf, alone=False)
    assert not clock.looks(10**9), "nothing is to come"


@pytest.mark.parametrize(
    "speed",
    [
        lambda step: 0.1 if step < 10_000 else 0.8,
        lambda step: 0.1 if step <= 100 else 0.8,
        lambda step: {1: 1.0, 2: 0.005, 3: 0.005}.get(step, 0.1),
        lambda step: 0.4 if step % 4 == 1 else 0.01,
    ],
    ids=["slower late", "slower early", "quick steps", "bursts"],
)
def test_a_moment_is_not_missed_by_much_where_the_speed_changes(speed: Callable[[int], float]) -> None:
    count, late = looks(speed, 1200.0)
    assert count < 300
    assert late < 2.0


def under_ddp(home: Path) -> list[int]:
    calls: list[int] = []

    class Slow(Callback):
        def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
            time.sleep(0.005 * (1 + 3 * trainer.global_rank))

    train({"a": {"at": "0.8s", "do": noting(calls)}}, home, steps=60, strategy=DDP(), devices=2, callbacks=[Slow()])
    return calls


@pytest.mark.workers
def test_ddp_does_it_after_one_step_on_all_workers_by_the_slowest_ones_time(tmp_path: Path) -> None:
    one, other = run_workers(2, under_ddp, tmp_path)
    assert one == other
    assert len(one) == 1
    assert one[0] <= 42, "0.8 s are 40 steps of 0.02 s, which worker 1 takes at least"


# ---- other people's models and trainers


class Filtered(Small):
    def configure_optimizers(self) -> Any:
        self.first.requires_grad_(False)
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=0.1)


@pytest.mark.parametrize(
    ("entries", "module", "message"),
    [
        ({"all": {"from": 4, "do": Freeze(".")}}, Small, "all=.*leaves nothing that trains, from step 5 on"),
        (
            {"one": {"from": 2, "do": Freeze("^first")}, "rest": {"from": 4, "do": Freeze("^(norm|last)")}},
            Small, "one and rest=.*leaves nothing that trains, from step 5 on",
        ),
        ({"it": {"from": 4, "do": Thaw("^first")}}, Filtered, "cannot train first.weight, which no optimizer has"),
    ],
)  # fmt: skip
def test_what_could_not_train_later_is_refused_at_the_start(
    entries: Any, module: Any, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ArgumentError, match=message):
        train(entries, tmp_path, module=module)


@pytest.mark.parametrize("entries", [[3], {"a": None}, "x", 3])
def test_what_are_no_entries_is_refused(entries: Any) -> None:
    with pytest.raises(ArgumentError, match="must be"):
        Timeline(entries)


@pytest.mark.parametrize("least", [{"min_steps": 6}, {"min_epochs": 2}])
def test_an_end_that_lightning_would_take_back_is_refused(least: dict[str, int], tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"it\.do\._target_='Stop' cannot be: min_.* lets training go on"):
        train({"it": {"at": 3, "do": Stop()}}, tmp_path, **least)


def test_an_evaluation_comes_in_an_epoch_that_has_none(tmp_path: Path) -> None:
    given: Any = {"check_val_every_n_epoch": 2, "val_check_interval": 1.0, "limit_train_batches": 4}
    watch, _, _ = train({"look": {"at": [2, 5], "do": Evaluate()}}, tmp_path, **given)
    assert watch.evaluated == [2, 5, 8]


def test_two_evaluations_of_one_step_are_one(tmp_path: Path) -> None:
    entries = {"a": {"at": 4, "do": Evaluate()}, "b": {"every": 2, "do": Evaluate()}}
    assert train(entries, tmp_path)[0].evaluated == [2, 4, 6, 8]


def test_what_trains_may_change_in_a_run_without_an_end() -> None:
    class Stream(IterableDataset):
        def __iter__(self) -> Any:
            return iter(torch.randn(8, 4, generator=torch.Generator().manual_seed(0)))

    watch, timeline = Watch(), Timeline({"it": {"from": 2, "do": Freeze("^first")}})
    trainer = trainer_for("auto", 1, steps=-1, callbacks=[timeline, watch], max_epochs=1)
    trainer.fit(Small(), DataLoader(Stream(), batch_size=2))
    assert watch.seen[0]["moved"] == {"first", "norm", "last"}
    assert watch.seen[-1]["moved"] == {"norm", "last"}


def test_a_fit_that_is_refused_leaves_the_module_as_it_was(tmp_path: Path) -> None:
    module = Small()
    with pytest.raises(ArgumentError, match="leaves nothing that trains"):
        train({"it": {"from": 4, "do": Freeze(".")}}, tmp_path, module=lambda: module)
    assert all(p.requires_grad for p in module.parameters())


def test_an_evaluation_without_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="there are no validation data"):
        train({"look": {"at": 2, "do": Evaluate()}}, tmp_path, limit_val_batches=0)


def test_showing_leaves_each_part_as_it_was(tmp_path: Path) -> None:
    class Quiet(Small):
        def train(self, mode: bool = True) -> Any:
            super().train(mode)
            self.drop.eval()
            return self

        def show(self, data: Any) -> str:
            return f"{self.training} {self.drop.training}"

    said: list[Any] = []
    seen: list[bool] = []
    timeline = Timeline({"show": {"at": 2, "do": Show()}})
    timeline.listeners.append(lambda trainer, name, what: said.append(what))
    look = Run(lambda trainer, module: seen.extend((module.training, module.drop.training)))
    timeline.said["look"] = {"at": 3, "do": look}
    module = Quiet()
    module.drop.eval()
    trainer_for("auto", 1, steps=4, callbacks=[timeline]).fit(module, data())
    assert said[0] == "False False"
    assert seen == [True, False]


class Batched(Small):
    def __init__(self) -> None:
        super().__init__()
        self.norm: Any = torch.nn.BatchNorm1d(6)


class Fixed(Batched):
    def train(self, mode: bool = True) -> Any:
        super().train(mode)
        self.norm.eval()
        return self


@pytest.mark.parametrize("match", ["^norm", "^norm.weight"])
def test_a_batch_norm_that_somebody_has_put_in_eval_mode_stays_there(match: str, tmp_path: Path) -> None:
    modes: list[bool] = []
    entries = {"it": {"from": 2, "until": 4, "do": Freeze(match)},
               "see": {"every": 1, "do": Run(lambda trainer, module: modes.append(module.norm.training))}}  # fmt: skip
    train(entries, tmp_path, module=lambda: Fixed().train())
    assert modes == [False] * 8


def test_a_batch_norm_keeps_its_statistics_while_it_does_not_train(tmp_path: Path) -> None:
    means: list[torch.Tensor] = []
    entries = {"it": {"from": 2, "until": 5, "do": Freeze("^norm")},
               "see": {"every": 1, "do": Run(lambda trainer, module: means.append(module.norm.running_mean.clone()))},
               "look": {"at": 3, "do": Evaluate()}}  # fmt: skip
    train(entries, tmp_path, module=Batched)
    assert [torch.equal(one, other) for one, other in pairwise(means)] == [False, True, True, True, False, False, False]


class Counting(Small):
    def __init__(self) -> None:
        super().__init__()
        self.k, self.scale = 1, 0
        self.parts = torch.nn.ModuleList([torch.nn.Dropout(1)])

    @property
    def computed(self) -> float:
        return 1.0

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        return sum(self(batch).square().mean() for _ in range(self.k))  # type: ignore[return-value]


def test_a_whole_number_stays_one_where_it_does_not_ramp(tmp_path: Path) -> None:
    seen: list[Any] = []
    look = Run(lambda trainer, module: seen.append((module.k, module.scale)))
    entries = {"k": {"from": 2, "do": Number(of="k", end=3)}, "scale": {"ramp": 8, "do": Number(of="scale", end=1)},
               "see": {"every": 1, "do": look}}  # fmt: skip
    train(entries, tmp_path, module=Counting)
    assert [k for k, _ in seen] == [1, 1, 3, 3, 3, 3, 3, 3]
    assert all(isinstance(k, int) for k, _ in seen)
    assert [scale for _, scale in seen] == [i / 8 for i in range(1, 9)]


def test_two_numbers_of_one_target_may_be_whole_and_not(tmp_path: Path) -> None:
    entries = {"a": {"until": 3, "do": Number(of="parts.0.p", end=0)},
               "b": {"from": 3, "do": Number(of="parts.0.p", end=0.25, start=1.0)}}  # fmt: skip
    _, module, _ = train(entries, tmp_path, module=Counting)
    assert module.parts[0].p == 0.25


def test_a_number_that_is_computed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"it\.do\.of='computed' cannot be set: Counting computes it"):
        train({"it": {"do": Number(of="computed", end=3.0)}}, tmp_path, module=Counting)


WRONG: list[tuple[Callable[[], Any], str]] = [
    (partial(Number, of="k", end=float("nan")), "end=nan must be a finite number"),
    (partial(Number, of="k", end="x"), "end='x' must be a finite number"),
    (partial(Number, of=None, end=1.0), "of=None must be names with dots between them"),
    (partial(Freeze, []), "match=.. must name something"),
    (partial(NormGate, sites=[]), "sites=.. must name something"),
]


@pytest.mark.parametrize(("make", "message"), WRONG)
def test_arguments_that_cannot_be_are_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        make()


def look(trainer: Any, module: Any) -> None:
    """Of a user."""


def test_a_function_is_called_by_its_name() -> None:
    assert str(Run(look)) == "Run(call=look)"
    assert str(Run(partial(look))) == "Run(call=look)"
    assert str(LrFactor(end=0.5)) == "LrFactor(start=1.0, end=0.5)"
    assert str(Save()) == "Save(name=saved)"
