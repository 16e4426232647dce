"""One worker trains as without ticks."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from tests.strategy.cases import Cases
from tests.strategy.rules import INTERVAL, RULES, STEPS, train
from ticks.strategy import (
    Hierarchical,
    Outer,
    Parameters,
    Reset,
    Streaming,
    TickStrategy,
)


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
