"""Ticks with whatever else training is made of: clipping, schedules, frozen parameters, buffers, averages."""

import logging
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, StochasticWeightAveraging, WeightAveraging
from torch import Tensor, nn
from torch.utils.data import DataLoader

from tests.conftest import NAME, WorkerError, run_workers
from tests.strategy.cases import Cases
from tests.strategy.rules import (
    INTERVAL,
    NESTEROV,
    RULES,
    STEPPING_LOCALLY,
    STEPS,
    TICKS,
    Probe,
    case,
    meet_at_ticks,
    train,
)
from tests.strategy.toys import Stream, flat, trainer_for
from ticks.strategy import Streaming, TickStrategy
from ticks.strategy.facts import FIELDS

CLIP = 0.05


class JoinedBatches(Stream):
    """Batches 0 and 1 as one, 2 and 3, ..."""

    def __iter__(self):
        batches = super().__iter__()
        for (x, y), (more_x, more_y) in zip(batches, batches, strict=False):
            yield torch.cat([x, more_x]), torch.cat([y, more_y])


class Joined(Probe):
    def train_dataloader(self) -> DataLoader:
        return DataLoader(JoinedBatches(self.trainer.global_rank), batch_size=None)


class Scheduled(Probe):
    """A learning rate of its own in every step."""

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer_of()
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: 1 / (1 + done))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.lrs[self.trainer.global_step + 1] = self.optimizers().param_groups[0]["lr"]
        return super().training_step(batch, batch_idx)


class Frozen(Probe):
    """The first layer is frozen; with `thaw_after` only until that step."""

    def __init__(self, thaw_after: int | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.net = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 1))
        self.net[0].requires_grad_(False)
        self.thaw_after = thaw_after

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if self.trainer.global_step == self.thaw_after:
            self.net[0].requires_grad_(True)


class Tied(Probe):
    """The first and the last matrix are one."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.net = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 1))
        self.net[2].weight = self.net[0].weight


class OwnAverage(pl.Callback):
    """Somebody's own moving average, of the agreed model, after every third step."""

    def __init__(self) -> None:
        self.average: Tensor | None = None

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        if trainer.global_step % 3 == 0:
            with trainer.strategy.agreed_model():
                now = flat(pl_module)
            self.average = now if self.average is None else 0.5 * self.average + 0.5 * now

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        pl_module.averages = {trainer.global_step: self.average}


FEATURES: dict[str, dict[str, Any]] = {
    "plain": {},
    "clipping by norm": {"module": partial(Probe, optimizer="sgd", lr=0.5), "gradient_clip_val": CLIP},
    "clipping by value": {"gradient_clip_val": CLIP, "gradient_clip_algorithm": "value"},
    "accumulated batches": {"accumulate_grad_batches": 2},
    "joined batches": {"module": Joined},
    "bf16-mixed": {"precision": "bf16-mixed"},
    "schedule": {"module": Scheduled},
    "frozen": {"module": Frozen},
    "thawed at a tick": {"module": partial(Frozen, thaw_after=4)},
    "thawed between ticks": {"module": partial(Frozen, thaw_after=6)},
    "tied": {"module": Tied},
    "BatchNorm": {"module": partial(Probe, norm=True)},
    "own average": {"callbacks": lambda: [OwnAverage()]},
}
RESULTS = Cases(2, {f"{feature}, {rule}": case(rule, **options) for feature, options in FEATURES.items()
                    for rule in RULES})  # fmt: skip


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("feature", FEATURES)
def test_workers_meet_at_ticks_and_learn(feature: str, rule: str) -> None:
    meet_at_ticks(RESULTS[f"{feature}, {rule}"], rule)


@pytest.mark.parametrize("rule", STEPPING_LOCALLY)
def test_every_step_between_ticks_is_clipped(rule: str) -> None:
    for result in RESULTS[f"clipping by norm, {rule}"]:
        for step in (6, 7, 11):
            assert result["used"][step].norm() > CLIP
            moved = (result["stepped"][step] - result["after"][step - 1]).norm()
            assert moved == pytest.approx(0.5 * CLIP, rel=1e-3)


@pytest.mark.parametrize("rule", ["accumulate", "gradients"])
def test_averaged_gradients_are_clipped_after_averaging(rule: str) -> None:
    first, second = RESULTS[f"clipping by norm, {rule}"]
    if rule == "gradients":
        torch.testing.assert_close(first["used"][8], (first["gradients"][8] + second["gradients"][8]) / 2)
    assert torch.equal(first["used"][8], second["used"][8])
    for result in (first, second):
        moved = (result["stepped"][8] - result["after"][7]).norm()
        assert moved == pytest.approx(0.5 * min(CLIP, float(first["used"][8].norm())), rel=1e-3)


@pytest.mark.parametrize("rule", RULES)
def test_accumulated_batches_are_one_larger_batch(rule: str) -> None:
    twice, joined = RESULTS[f"accumulated batches, {rule}"], RESULTS[f"joined batches, {rule}"]
    for mine, theirs in zip(twice, joined, strict=True):
        assert len(mine["losses"]) == 2 * len(theirs["losses"]) == 2 * STEPS
        for step in range(1, STEPS + 1):
            torch.testing.assert_close(mine["after"][step], theirs["after"][step], rtol=1e-3, atol=1e-4)
        assert mine["told"].keys() == theirs["told"].keys()


@pytest.mark.parametrize("rule", RULES)
def test_mixed_precision_keeps_parameters_in_full_precision(rule: str) -> None:
    mixed, full = RESULTS[f"bf16-mixed, {rule}"], RESULTS[f"plain, {rule}"]
    assert mixed[0]["dtypes"] == {torch.float32}
    assert not torch.equal(mixed[0]["final"], full[0]["final"])
    torch.testing.assert_close(mixed[0]["final"], full[0]["final"], rtol=0, atol=0.1)


@pytest.mark.parametrize("rule", RULES)
def test_a_schedule_goes_on_with_every_step_on_every_worker(rule: str) -> None:
    for result in RESULTS[f"schedule, {rule}"]:
        assert result["lrs"] == pytest.approx({step: 0.02 / step for step in range(1, STEPS + 1)})


@pytest.mark.parametrize("rule", RULES)
def test_frozen_parameters_neither_move_nor_travel(rule: str) -> None:
    frozen, n_frozen = RESULTS[f"frozen, {rule}"], 6 * 16 + 16
    for result in frozen:
        assert all(
            torch.equal(of_step[:n_frozen], result["after"][1][:n_frozen]) for of_step in result["after"].values()
        )
        assert not torch.equal(result["final"][n_frozen:], result["after"][1][n_frozen:])
    ledger, numbers = frozen[0]["ledger"], 256 + 16 + 16 + 16  # two layers, the last bias with its place
    rounds = {"gradients": 2}.get(rule, 1) * len(TICKS)
    factors = 4 * (2 * (16 + 16) + 48) + 8 * (1 + len(FIELDS))  # of one matrix, and facts twice
    n_bytes = {"int8": 2 * (256 + 4), "low rank": factors}.get(rule, 4 * numbers)
    assert ledger.bytes_sent == rounds * n_bytes + ledger.messages * 8 * (1 + len(FIELDS))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("when", ["at a tick", "between ticks"])
def test_parameters_that_thaw_are_trained_and_agreed_from_then_on(when: str, rule: str) -> None:
    first, second = RESULTS[f"thawed {when}, {rule}"]
    thawed = slice(0, 6 * 16 + 16)
    assert torch.equal(first["after"][4][thawed], first["after"][1][thawed])
    assert not torch.equal(first["after"][8][thawed], first["after"][4][thawed])
    for step in TICKS[1:] if rule != "streaming" else TICKS[-1:]:
        assert torch.equal(first["after"][step][thawed], second["after"][step][thawed])
    if rule != "accumulate":
        assert not torch.equal(first["after"][10][thawed], second["after"][10][thawed])


class ChangesLayers(Probe):
    """Three layers, of which the first trains until that step, or from it on."""

    def __init__(self, *, until: int | None = None, after: int | None = None) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 1))
        self.net[0].requires_grad_(after is None)
        self.at = until if after is None else after

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if self.trainer.global_step == self.at:
            self.net[0].requires_grad_(not self.net[0].weight.requires_grad)


def in_three(**options: Any) -> dict[str, Any]:
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger(NAME).addHandler(handler)
    strategy = partial(TickStrategy, INTERVAL, sync=Streaming(NESTEROV, fragments=3))
    result = train(strategy, 2, module=partial(ChangesLayers, **options))
    logging.getLogger(NAME).removeHandler(handler)
    return result | {"said": said}


CHANGES = {
    "two": {"after": 99},
    "three": {"until": 99},
    "two, then three": {"after": 6},
    "three, then two": {"until": 6},
}
IN_THREE = Cases(2, {name: partial(in_three, **options) for name, options in CHANGES.items()})


@pytest.mark.parametrize("name", CHANGES)
def test_there_are_never_more_fragments_than_layers_that_train(name: str) -> None:
    first, second = IN_THREE[name]
    assert torch.equal(first["final"], second["final"])
    assert first["loss"][1] < first["loss"][0]
    assert list(first["told"]) == [5, 9, 13, 14]  # every round ends, a step late
    fewer = ["sync.fragments=3, but 2 layer(s) to share out: as many fragments travel"]
    assert (first["said"], second["said"]) == (fewer if name.startswith("two") else [], [])
    if name in ("two", "three"):
        assert first["ledger"].messages == 4 * (2 if name == "two" else 3)


@pytest.mark.parametrize("when", ["at a tick", "between ticks"])
def test_no_gradient_of_a_round_is_lost_when_parameters_thaw_in_it(when: str) -> None:
    results = RESULTS[f"thawed {when}, accumulate"]
    mean = sum(result["gradients"][step] for result in results for step in (5, 6, 7, 8)) / (4 * len(results))
    thawed = {step: bool(of[:112].any()) for step, of in results[0]["gradients"].items()}
    assert [thawed[step] for step in (5, 6, 7, 8)] == ([True] * 4 if when == "at a tick" else [False] * 2 + [True] * 2)
    for result in results:
        torch.testing.assert_close(result["used"][8], mean)


def thaw_and_resume(path: Path) -> None:
    saver = SaveOnce(path, step=6)
    trainer_for(RULES["outer"](), 2, steps=STEPS, callbacks=[saver]).fit(Frozen(thaw_after=4))
    trainer_for(RULES["outer"](), 2, steps=STEPS).fit(Frozen(thaw_after=4), ckpt_path=path)


class SaveOnce(pl.Callback):
    def __init__(self, path: Path, step: int) -> None:
        self.path, self.step = path, step

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


def test_a_checkpoint_of_other_trained_parameters_is_refused(tmp_path: Path) -> None:
    message = "the checkpoint does not fit: 6 tensors trained and travelled when it was written, now 4: freeze and thaw"
    with pytest.raises(WorkerError, match=message):
        run_workers(2, thaw_and_resume, tmp_path / "6.ckpt")


@pytest.mark.parametrize("rule", RULES)
def test_tied_weights_stay_tied_and_travel_once(rule: str) -> None:
    result = RESULTS[f"tied, {rule}"][0]
    assert torch.equal(result["state"]["net.0.weight"], result["state"]["net.2.weight"])
    places = 48 + 16 + 16 + 16 + 16  # a matrix of 36, biases of 6 and 6, a matrix of 6, a bias
    if rule in ("parameters", "outer", "accumulate"):
        assert result["ledger"].bytes_sent == len(TICKS) * (4 * places + 8 * (1 + len(FIELDS)))


@pytest.mark.parametrize("rule", RULES)
def test_batchnorm_statistics_are_exactly_the_workers_mean(rule: str) -> None:
    """Whatever the wire does to parameters; streaming gets the mean of the tick a step later."""
    first, second = RESULTS[f"BatchNorm, {rule}"]
    late = int(rule == "streaming")
    for tick in (4, 8, 12):
        mine, theirs = first["buffers_of"][tick], second["buffers_of"][tick]
        for index, buffer in enumerate(first["buffers_after"][tick + late]):
            if buffer.is_floating_point():
                assert not torch.equal(mine[index], theirs[index])
                assert torch.equal(buffer, (mine[index] + theirs[index]) / 2)
                assert torch.equal(buffer, second["buffers_after"][tick + late][index])


@pytest.mark.parametrize("rule", RULES)
def test_a_moving_average_of_the_agreed_model_is_the_same_on_all_workers(rule: str) -> None:
    first, second = RESULTS[f"own average, {rule}"]
    assert torch.equal(first["averages"][STEPS], second["averages"][STEPS])
    assert not torch.equal(first["averages"][STEPS], first["final"])
    plain = RESULTS[f"plain, {rule}"][0]
    assert torch.equal(first["final"], plain["final"])
    if rule == "parameters":
        mean = {
            step: (plain["after"][step] + RESULTS["plain, parameters"][1]["after"][step]) / 2 for step in (3, 6, 9, 12)
        }
        average = mean[3]
        for step in (6, 9, 12):
            average = 0.5 * average + 0.5 * mean[step]
        torch.testing.assert_close(first["averages"][STEPS], average)


@pytest.mark.parametrize("callback", [EMAWeightAveraging(), WeightAveraging(), StochasticWeightAveraging(swa_lrs=0.1)])
def test_lightnings_averages_of_one_workers_own_weights_are_refused(callback: pl.Callback) -> None:
    name = type(callback).__name__
    with pytest.raises(WorkerError, match=f"Refused: {name} averages one worker's own weights, which differ between"):
        run_workers(2, case("parameters", callbacks=lambda: [callback]))
