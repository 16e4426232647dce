"""What is evaluated and saved is the model that all agree on, and looking at it changes nothing."""

from functools import cache, partial
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor

from tests.strategy.cases import Cases
from tests.strategy.rules import RULES, STEPS, TICKS, Probe, case, train
from tests.strategy.toys import Traffic, flat


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
        for message in trainer.strategy._rounds.exchange.in_flight:
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
               | {f"plain, {rule}": case(rule) for rule in RULES}
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
    plain = AGREED[f"plain, {rule}"]
    for mine, theirs in zip(AGREED[f"looked, {rule}"], plain, strict=True):
        assert all(torch.equal(mine["after"][step], theirs["after"][step]) for step in range(1, STEPS + 1))
    for mine, theirs in zip(AGREED[f"measured, {rule}"], AGREED[f"dropout, {rule}"], strict=True):
        assert len(mine["seen"]) == STEPS // 3
        assert all(torch.equal(mine["after"][step], theirs["after"][step]) for step in range(1, STEPS + 1))
        assert all(torch.equal(a, b) for a, b in zip(mine["buffers"], theirs["buffers"], strict=True))
        assert mine["ledger"].bytes_sent == theirs["ledger"].bytes_sent
    measured = AGREED[f"measured, {rule}"]
    assert all(torch.equal(a, b) for a, b in zip(measured[0]["seen"], measured[1]["seen"], strict=True))
