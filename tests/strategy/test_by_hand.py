"""Optimization by hand works with every rule that sends no gradients, and is refused by the others."""

from functools import partial

import pytest
import torch

from tests.conftest import WorkerError
from tests.strategy.cases import Cases
from tests.strategy.rules import RULES, STEPS, TICKS, Adversaries, case, train

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
