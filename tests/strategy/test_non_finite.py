"""Losses and parameters that are not finite are named with worker and step, or left out of the mean."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from tests.conftest import WorkerError, run_workers
from tests.strategy.cases import Cases
from tests.strategy.rules import (
    INTERVAL,
    RULES,
    STEPS,
    Adversaries,
    Probe,
    train,
)
from ticks.strategy import (
    Average,
    Outer,
    Reset,
    Streaming,
    TickStrategy,
)

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
    assert "non_finite=exclude goes on without it" in str(error.value)


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
