"""Ticks with whatever else training is made of: each works with every rule, or is refused with a clear message."""

from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, StochasticWeightAveraging, WeightAveraging
from torch import Tensor, nn
from torch.utils.data import DataLoader

from tests.conftest import WorkerError, run_workers
from tests.strategy.cases import Cases
from tests.strategy.toys import Snapshots, Stream, Toy, Traffic, flat, trainer_for
from ticks.strategy import (
    FP32,
    Accumulate,
    Average,
    Gradients,
    Hierarchical,
    Int8,
    LowRank,
    Outer,
    Parameters,
    Reset,
    Streaming,
    TickStrategy,
)
from ticks.strategy.strategy import FIELDS

STEPS, INTERVAL = 14, 4
TICKS = (4, 8, 12, 14)
NESTEROV = partial(torch.optim.SGD, lr=0.7, momentum=0.5, nesterov=True)
RULES: dict[str, Callable[..., TickStrategy]] = {
    "parameters": partial(TickStrategy, INTERVAL, sync=Parameters()),
    "gradients": partial(TickStrategy, INTERVAL, sync=Gradients()),
    "accumulate": partial(TickStrategy, INTERVAL, sync=Accumulate()),
    "outer": lambda **options: TickStrategy(INTERVAL, sync=Outer(NESTEROV), **options),
    "streaming": lambda **options: TickStrategy(INTERVAL, sync=Streaming(NESTEROV, fragments=2, delay=1), **options),
    "int8": lambda **options: TickStrategy(INTERVAL, sync=Parameters(), wire=Int8(), **options),
    "low rank": lambda **options: TickStrategy(INTERVAL, sync=Parameters(), wire=LowRank(2, wire=FP32()), **options),
}
STEPPING_LOCALLY = [rule for rule in RULES if rule != "accumulate"]
MEETING_AT_TICKS = [rule for rule in RULES if rule != "streaming"]  # streaming mixes; it meets at the end only


class Probe(Toy):
    """A toy that writes down everything: gradients before and after ticks see them, parameters before and after."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.gradients: dict[int, Tensor] = {}  # by step: its own
        self.used: dict[int, Tensor] = {}  # what the optimizer got, before clipping
        self.stepped: dict[int, Tensor] = {}  # parameters after the optimizer's step, before workers meet
        self.buffers_of: dict[int, list[Tensor]] = {}  # after the forward pass
        self.lrs: dict[int, float] = {}

    def on_after_backward(self) -> None:
        step = self.trainer.global_step + 1
        self.gradients[step] = flat_gradients(self)
        self.buffers_of[step] = [b.clone() for b in self.buffers()]

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.used[self.trainer.global_step + 1] = flat_gradients(self)

    def optimizer_of(self) -> torch.optim.Optimizer:
        kind = torch.optim.SGD if self.optimizer == "sgd" else torch.optim.AdamW
        optimizer = kind(self.parameters(), lr=self.lr)
        optimizer.register_step_post_hook(lambda *_: self.note_step())
        return optimizer

    def note_step(self) -> None:
        self.stepped[self.trainer.global_step + 1] = flat(self)

    def configure_optimizers(self) -> Any:
        return self.optimizer_of()


class Buffers(pl.Callback):
    """The module's buffers after each step."""

    def __init__(self) -> None:
        self.after: dict[int, list[Tensor]] = {}

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        self.after[trainer.global_step] = [b.clone() for b in pl_module.buffers()]


def flat_gradients(module: nn.Module) -> Tensor:
    return torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten()
                      for p in module.parameters()])  # fmt: skip


def agreed_loss(module: Toy, batches: int = 8) -> float:
    """Of the module as it is now, on batches nobody trains on."""
    stream = iter(Stream(99))
    module.eval()
    with torch.no_grad():
        loss = sum(module.loss(next(stream)).item() for _ in range(batches)) / batches
    module.train()
    return loss


def train(
    strategy: Callable[[], Any], n: int, module: Callable[[], Any] = Probe, callbacks: Callable[[], list] = list,
    steps: int = STEPS, **options: Any,
) -> dict[str, Any]:  # fmt: skip
    """A short training and all that was seen, on this worker."""
    pl.seed_everything(0, verbose=False)
    toy, snapshots, buffers, made = module(), Snapshots(), Buffers(), strategy()
    before = agreed_loss(toy)
    told: dict[int, dict[str, float]] = {}
    if isinstance(made, TickStrategy):
        made.on_tick.append(lambda metrics: told.update({made.step: metrics}))
    trainer = trainer_for(made, n, steps=steps, callbacks=[*callbacks(), snapshots, buffers], **options)
    trainer.fit(toy)
    found = {"buffers_after": buffers.after} | {
        name: value for name, value in vars(toy).items() if isinstance(value, dict) and not name.startswith("_")
    }
    return found | {
        "after": snapshots.after,
        "losses": toy.losses,
        "loss": (before, agreed_loss(toy)),
        "final": flat(toy),
        "buffers": [b.clone() for b in toy.buffers()],
        "ledger": getattr(trainer.strategy, "ledger", None),
        "told": told,
        "dtypes": {p.dtype for p in toy.parameters()},
        "seen": toy.seen,
        "state": toy.state_dict(),
    }


def meet_at_ticks(results: Sequence[dict[str, Any]], rule: str) -> None:
    """Bit for bit after ticks (after training, for streaming), and only then; values that make sense."""
    for step in TICKS if rule != "streaming" else TICKS[-1:]:
        assert all(torch.equal(results[0]["after"][step], r["after"][step]) for r in results), f"step {step}"
    assert all(torch.equal(results[0]["final"], r["final"]) for r in results)
    assert all(torch.equal(a, b) for r in results for a, b in zip(results[0]["buffers"], r["buffers"], strict=True)
               if a.is_floating_point())  # fmt: skip
    assert torch.equal(results[0]["after"][10], results[1]["after"][10]) == (rule == "accumulate")
    before, after = results[0]["loss"]
    assert after < before


# ---- one feature after the other ------------------------------------------------------------------------------------

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


class Adversaries(Toy):
    """Two nets, each with its optimizer, that step by hand one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.generator, self.critic = nn.Linear(6, 6), nn.Linear(6, 1)
        self.net = None

    def loss(self, batch: Any) -> Tensor:
        x, _ = batch
        return (self.generator(x) - x).square().mean()

    def training_step(self, batch: Any, batch_idx: int) -> None:
        x, _ = batch
        of_generator, of_critic = self.optimizers()
        fake = self.generator(x)
        gap = self.critic(fake.detach()).mean() - self.critic(x).mean() + 0.1 * self.critic(x).square().mean()
        of_critic.zero_grad()
        self.manual_backward(gap)
        of_critic.step()
        loss = self.loss(batch) - 0.01 * self.critic(fake).mean()
        of_generator.zero_grad()
        self.manual_backward(loss)
        of_generator.step()
        self.losses.append(loss.item())

    def configure_optimizers(self) -> Any:
        return [torch.optim.AdamW(self.generator.parameters(), lr=0.05), torch.optim.SGD(self.critic.parameters(), 0.1)]


def case(rule: str, **options: Any) -> Callable[[], dict[str, Any]]:
    return partial(train, RULES[rule], 2, **options)


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


# ---- optimization by hand -------------------------------------------------------------------------------------------

BY_HAND = Cases(2, {rule: case(rule, module=Adversaries, steps=2 * STEPS) for rule in RULES} | {
    "ddp_steps": partial(train, partial(RULES["outer"], ddp_steps=3), 2, module=Adversaries),
})  # fmt: skip


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule not in ("gradients", "accumulate")])
def test_two_optimizers_by_hand_meet_at_ticks(rule: str) -> None:
    first, second = BY_HAND[rule]
    if rule != "streaming":
        assert sorted(first["told"]) == list(TICKS)
        for step in TICKS[:-1]:
            assert torch.equal(first["after"][2 * step], second["after"][2 * step])
    assert torch.equal(first["final"], second["final"])
    assert not torch.equal(first["after"][20], second["after"][20])
    assert first["loss"][1] < first["loss"][0]


@pytest.mark.parametrize(("rule", "who"), [("gradients", "sync rule Gradients"), ("accumulate", "sync rule Accumulate"),
                                           ("ddp_steps", "ddp_steps")])  # fmt: skip
def test_what_averages_gradients_refuses_optimization_by_hand(rule: str, who: str) -> None:
    with pytest.raises(WorkerError, match=f"{who} needs automatic optimization: use a rule that sends no gradients"):
        BY_HAND[rule]


# ---- numbers that are not finite ------------------------------------------------------------------------------------

SICK_STEP = 6


class Sick(Probe):
    """These workers' loss, or gradient alone, is nan in one step."""

    def __init__(self, ranks: Sequence[int], *, what: Literal["loss", "gradient"] = "loss", step: int = SICK_STEP,
                 **options: Any) -> None:  # fmt: skip
        super().__init__(**options)
        self.ranks, self.what, self.step = ranks, what, step

    @property
    def is_sick(self) -> bool:
        return self.global_rank in self.ranks and self.trainer.global_step + 1 == self.step

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        return loss * float("nan") if self.is_sick and self.what == "loss" else loss

    def on_after_backward(self) -> None:
        if self.is_sick and self.what == "gradient":
            for parameter in self.parameters():
                parameter.grad.fill_(float("nan"))
        super().on_after_backward()


def sick(rule: str, ranks: Sequence[int], n: int, **options: Any) -> Callable[[], dict[str, Any]]:
    keywords = {"what": options.pop("what", "loss"), "step": options.pop("step", SICK_STEP)}
    if "optimizer" in options:
        keywords |= {"optimizer": options.pop("optimizer"), "lr": 0.1}
    return partial(train, partial(RULES[rule], **options), n, module=partial(Sick, ranks, **keywords))


ERRORS = Cases(2, {f"{what}, {rule}": sick(rule, [1], 2, what=what, step=step) for rule in RULES
                   for what, step in {"loss": SICK_STEP, "gradient": 8}.items()}
                  | {f"both, {rule}": sick(rule, [0, 1], 2, non_finite="exclude") for rule in RULES})  # fmt: skip


@pytest.mark.parametrize("rule", RULES)
def test_a_loss_that_is_not_finite_is_named_with_worker_and_step(rule: str) -> None:
    found = 9 if rule == "streaming" else 8  # the facts travel with the message
    expected = f"worker 1's training loss was nan at step 6, found at the tick after step {found};"
    with pytest.raises(WorkerError) as error:
        ERRORS[f"loss, {rule}"]
    assert str(error.value).count(expected) >= 2  # on both
    assert "strategy.non_finite=exclude goes on without it" in str(error.value)


@pytest.mark.parametrize("rule", RULES)
def test_parameters_that_are_not_finite_are_named_with_worker_and_step(rule: str) -> None:
    found = 9 if rule == "streaming" else 8
    expected = f"worker 1's parameters were not finite at step 8, found at the tick after step {found};"
    with pytest.raises(WorkerError) as error:
        ERRORS[f"gradient, {rule}"]
    assert str(error.value).count(expected) >= 2


@pytest.mark.parametrize("rule", RULES)
def test_excluding_everybody_is_an_error(rule: str) -> None:
    with pytest.raises(WorkerError) as error:
        ERRORS[f"both, {rule}"]
    assert str(error.value).count("worker 0's training loss was nan at step 6") >= 2
    assert "goes on without" not in str(error.value)


class SickByHand(Adversaries):
    def loss(self, batch: Any) -> Tensor:
        loss = super().loss(batch)
        sick = self.training and self.trainer.strategy.step + 1 == SICK_STEP
        return loss * float("nan") if sick else loss


def test_the_step_is_right_too_where_a_step_has_two_backward_passes() -> None:
    with pytest.raises(WorkerError, match="worker 0's training loss was nan at step 6, found at the tick after step 8"):
        run_workers(2, partial(train, RULES["parameters"], 2, module=SickByHand, steps=2 * STEPS))


def test_the_step_is_right_too_where_batches_accumulate() -> None:
    job = partial(train, RULES["outer"], 2, module=partial(Sick, [1]), accumulate_grad_batches=3)
    with pytest.raises(WorkerError, match="worker 1's training loss was nan at step 6, found at the tick after step 8"):
        run_workers(2, job)


EXCLUDE = {"non_finite": "exclude"}
HALF = partial(torch.optim.SGD, lr=0.5)
IN_HALVES = partial(Streaming, HALF, fragments=2, delay=0, alpha=0)
EXCLUDING: dict[str, Callable[[], dict[str, Any]]] = {rule: sick(rule, [1], 3, **EXCLUDE) for rule in RULES} | {
    f"{rule}, ddp_steps": sick(rule, [1], 3, **EXCLUDE, ddp_steps=10) for rule in RULES
} | {
    f"{rule}, parameters": sick(rule, [1], 3, **EXCLUDE, what="gradient", step=8) for rule in RULES
} | {
    "parameters, state reset": sick("parameters", [1], 3, **EXCLUDE, optimizer_state=Reset()),
    "outer SGD": partial(train, lambda: TickStrategy(INTERVAL, sync=Outer(HALF), non_finite="exclude"), 3,
                         module=partial(Sick, [1])),
    "streaming SGD": partial(train, lambda: TickStrategy(INTERVAL, sync=IN_HALVES(), non_finite="exclude"), 3,
                             module=partial(Sick, [1])),
    "gradients at every step": partial(train, lambda: TickStrategy(1, non_finite="exclude"), 3,
                                       module=partial(Sick, [1])),
}  # fmt: skip
AVERAGING = {
    f"{rule}, state averaged": sick(rule, [1], 3, **EXCLUDE, optimizer_state=Average())
    for rule in ("parameters", "outer")
}
EXCLUDED = Cases(3, EXCLUDING)


@pytest.mark.parametrize("name", [*EXCLUDING, *AVERAGING])
def test_training_goes_on_without_the_sick_worker_and_then_with_it(name: str) -> None:
    results = EXCLUDED[name] if name in EXCLUDING else run_workers(3, AVERAGING[name])
    for result in results:
        told = result["told"].values()
        assert [metrics["tick/excluded"] for metrics in told].count(1) == 1
        assert sum(metrics["tick/excluded"] for metrics in told) == 1
        assert all(torch.isfinite(torch.tensor(list(metrics.values()))).all() for metrics in told)
        assert torch.isfinite(result["final"]).all()
        assert torch.equal(result["final"], results[0]["final"])
        assert torch.isfinite(torch.tensor(result["losses"][9:])).all()
        assert not torch.equal(result["after"][14], result["after"][9])
        assert result["loss"][1] < result["loss"][0]
    if "streaming" not in name:
        for step in (8, 12):
            assert all(torch.equal(results[0]["after"][step], r["after"][step]) for r in results)
    if "ddp_steps" in name or "every step" in name or name.startswith("accumulate"):
        for step in range(1, 11):
            assert all(torch.equal(results[0]["after"][step], r["after"][step]) for r in results), f"step {step}"


def healthy(results: Sequence[dict[str, Any]], what: str, step: int) -> Tensor:
    """The mean over workers 0 and 2 of something of a step."""
    return (results[0][what][step] + results[2][what][step]) / 2


@pytest.mark.parametrize("rule", ["parameters", "gradients"])
def test_parameters_become_the_mean_of_the_healthy_workers(rule: str) -> None:
    results = EXCLUDED[rule]
    assert torch.isnan(results[1]["stepped"][8]).any()
    for result in results:
        torch.testing.assert_close(result["after"][8], healthy(results, "stepped", 8), rtol=1e-6, atol=1e-7)
    assert not torch.equal(results[1]["after"][9], results[0]["after"][9])  # on its own way again


def test_gradients_become_the_mean_of_the_healthy_workers() -> None:
    results = EXCLUDED["gradients"]
    for result in results:
        torch.testing.assert_close(result["used"][8], healthy(results, "gradients", 8), rtol=1e-6, atol=1e-7)


def test_an_outer_optimizer_sees_the_mean_of_the_healthy_workers() -> None:
    results = EXCLUDED["outer SGD"]
    anchor = results[0]["after"][4]
    expected = anchor - 0.5 * (anchor - healthy(results, "stepped", 8))
    for result in results:
        torch.testing.assert_close(result["after"][8], expected, rtol=1e-5, atol=1e-7)


def test_fragments_become_the_mean_of_the_healthy_workers() -> None:
    """The first is sent in the sick step itself, the second with the end of the round; the sick worker restarts."""
    results, size = EXCLUDED["streaming SGD"], 6 * 16 + 16
    for part, agreed, step in ((slice(0, size), 2, 6), (slice(size, None), 4, 8)):
        anchor = results[0]["after"][agreed][part]
        expected = anchor - 0.5 * (anchor - healthy(results, "stepped", step)[part])
        for result in results:
            torch.testing.assert_close(result["after"][step][part], expected, rtol=1e-5, atol=1e-7)
    assert torch.equal(results[1]["after"][6][size:], results[0]["after"][4][size:])
    assert torch.isfinite(torch.tensor(results[1]["losses"])).all()


def test_accumulated_gradients_are_the_mean_of_the_healthy_workers() -> None:
    results = EXCLUDED["accumulate"]
    expected = torch.stack([healthy(results, "gradients", step) for step in (5, 6, 7, 8)]).mean(0)
    for result in results:
        torch.testing.assert_close(result["used"][8], expected, rtol=1e-5, atol=1e-7)


NEAR_THE_MEAN = [rule for rule in RULES if rule != "low rank"]  # that sends a part of it


@pytest.mark.parametrize("name", [*(f"{rule}, ddp_steps" for rule in NEAR_THE_MEAN), "gradients at every step"])
def test_ddp_steps_use_the_mean_of_the_healthy_workers(name: str) -> None:
    results = EXCLUDED[name]
    close = {"rtol": 0.02, "atol": 0.01} if name.startswith("int8") else {"rtol": 1e-5, "atol": 1e-7}
    for result in results:
        torch.testing.assert_close(result["used"][SICK_STEP], healthy(results, "gradients", SICK_STEP), **close)


# ---- the agreed model -----------------------------------------------------------------------------------------------


@cache
def traffic() -> Traffic:
    """One for each process."""
    counter = Traffic()
    counter.install()
    return counter


class LookAtTheAgreedModel(pl.Callback):
    """Its parameters after every step, what was said for it, and whether the worker's own came back."""

    def __init__(self) -> None:
        self.agreed: dict[int, Tensor] = {}
        self.calls: dict[int, int] = {}

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        own, step = flat(pl_module), trainer.global_step
        for message in trainer.strategy._exchange.in_flight:
            if hasattr(message.received, "result"):
                message.received.result()  # what it says is not said for the agreed model
        traffic().counting = True
        with trainer.strategy.agreed_model():
            self.agreed[step] = flat(pl_module)
        traffic().counting = False
        self.calls[step] = len(traffic().calls)
        traffic().calls.clear()
        assert torch.equal(flat(pl_module), own)


def look(rule: str) -> dict[str, Any]:
    callback = LookAtTheAgreedModel()
    result = train(RULES[rule], 2, callbacks=lambda: [callback])
    return result | {"agreed": callback.agreed, "calls": callback.calls}


DROPPING = partial(Probe, dropout=0.3, norm=True)
AGREED = Cases(2, {f"looked, {rule}": partial(look, rule) for rule in RULES}
               | {f"dropout, {rule}": case(rule, module=DROPPING) for rule in RULES}
               | {f"measured, {rule}": case(rule, module=DROPPING, val_check_interval=3, limit_val_batches=1.0)
                  for rule in RULES})  # fmt: skip


@pytest.mark.parametrize("rule", RULES)
def test_the_agreed_model_is_the_mean_or_the_anchor(rule: str) -> None:
    first, second = AGREED[f"looked, {rule}"]
    for step in range(1, STEPS + 1):
        assert torch.equal(first["agreed"][step], second["agreed"][step])
        if rule in ("outer", "streaming"):
            assert first["calls"][step] == 0
        if rule == "outer" and step > 4:
            assert torch.equal(first["agreed"][step], first["after"][max(t for t in TICKS if t <= step)])
        elif rule not in ("outer", "streaming"):
            mean = (first["after"][step] + second["after"][step]) / 2
            torch.testing.assert_close(first["agreed"][step], mean, rtol=1e-6, atol=1e-7)
            assert (first["calls"][step] > 0) == (step not in TICKS and rule != "accumulate")
    if rule in ("outer", "streaming"):
        assert first["ledger"].measuring_bytes == 0


@pytest.mark.parametrize("rule", RULES)
def test_looking_and_measuring_change_nothing(rule: str) -> None:
    plain = RESULTS[f"plain, {rule}"]
    for mine, theirs in zip(AGREED[f"looked, {rule}"], plain, strict=True):
        assert all(torch.equal(mine["after"][step], theirs["after"][step]) for step in range(1, STEPS + 1))
    for mine, theirs in zip(AGREED[f"measured, {rule}"], AGREED[f"dropout, {rule}"], strict=True):
        assert len(mine["seen"]) == STEPS // 3
        assert all(torch.equal(mine["after"][step], theirs["after"][step]) for step in range(1, STEPS + 1))
        assert all(torch.equal(a, b) for a, b in zip(mine["buffers"], theirs["buffers"], strict=True))
        assert mine["ledger"].bytes_sent == theirs["ledger"].bytes_sent
    measured = AGREED[f"measured, {rule}"]
    assert all(torch.equal(a, b) for a, b in zip(measured[0]["seen"], measured[1]["seen"], strict=True))


# ---- one worker -----------------------------------------------------------------------------------------------------


def alone(strategy: Callable[[], Any], **options: Any) -> Callable[[], dict[str, Any]]:
    return partial(train, strategy, 1, **options)


ONE = Cases(1, {
    "plain": alone(lambda: "auto"),
    "plain, batches of four steps": alone(lambda: "auto", steps=3, accumulate_grad_batches=4),
    "parameters": alone(RULES["parameters"]),
    "gradients": alone(RULES["gradients"]),
    "accumulate": alone(RULES["accumulate"], steps=12),
    "outer that takes the mean": alone(lambda: TickStrategy(INTERVAL, sync=Outer())),
    "outer": alone(RULES["outer"]),
    "streaming that stays": alone(lambda: TickStrategy(INTERVAL, sync=Streaming(fragments=2, delay=2, alpha=0.7))),
    "streaming": alone(RULES["streaming"]),
    "int8": alone(RULES["int8"]),
    "hierarchical": alone(lambda: TickStrategy(INTERVAL, sync=Hierarchical(inner_interval=2))),
    "hierarchical, outer": alone(
        lambda: TickStrategy(INTERVAL, sync=Hierarchical(Outer(), group_size=1, inner_interval=2))
    ),
    "parameters, state reset": alone(lambda: TickStrategy(INTERVAL, sync=Parameters(), optimizer_state=Reset())),
        "outer, state reset": alone(lambda: TickStrategy(INTERVAL, sync=Outer(), optimizer_state=Reset())),
        "ddp_steps": alone(lambda: TickStrategy(INTERVAL, sync=Outer(), ddp_steps=5)),
})  # fmt: skip


@pytest.mark.parametrize("rule", ["parameters", "gradients", "outer that takes the mean", "int8", "hierarchical",
                                  "hierarchical, outer", "ddp_steps"])  # fmt: skip
def test_one_worker_trains_as_without_ticks(rule: str) -> None:
    ((mine,), (theirs,)) = ONE[rule], ONE["plain"]
    for step in range(1, STEPS + 1):
        torch.testing.assert_close(mine["after"][step], theirs["after"][step], rtol=1e-5, atol=1e-6)
    assert mine["ledger"].bytes_sent == 0


def test_one_worker_forgets_its_optimizers_state_too() -> None:
    (mine,), (theirs,), (plain,) = ONE["parameters, state reset"], ONE["outer, state reset"], ONE["plain"]
    torch.testing.assert_close(mine["final"], theirs["final"], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(mine["final"], plain["final"], rtol=1e-5, atol=1e-6)


def test_one_worker_accumulates_as_lightning_does() -> None:
    ((mine,), (theirs,)) = ONE["accumulate"], ONE["plain, batches of four steps"]
    torch.testing.assert_close(mine["final"], theirs["final"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rule", ["outer", "streaming", "streaming that stays"])
def test_one_worker_with_an_outer_optimizer_learns(rule: str) -> None:
    ((mine,), (plain,)) = ONE[rule], ONE["plain"]
    assert mine["loss"][1] < mine["loss"][0]
    assert mine["ledger"].bytes_sent == 0
    if rule == "outer":
        torch.testing.assert_close(mine["after"][3], plain["after"][3])  # before the first tick nothing has happened
        assert not torch.equal(mine["after"][4], plain["after"][4])
