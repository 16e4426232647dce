"""AdamW's two groups and the learning rate over a run."""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn

from ticks.models import DecoderTransformer
from ticks.tasks.optimizer import adamw, schedule, warmup_cosine

SETTINGS: dict[str, Any] = {"lr": 0.1, "weight_decay": 0.5, "betas": (0.9, 0.95), "eps": 1e-8}
RATE: dict[str, Any] = {"warmup_steps": 10, "total_steps": 110, "min_ratio": 0.1}


def decoder() -> DecoderTransformer:
    return DecoderTransformer(vocab_size=11, block_size=4, d_model=8, n_layers=1, n_heads=2)


def test_vectors_do_not_decay_and_matrices_do() -> None:
    model = decoder()
    decay, no_decay = adamw(model, **SETTINGS).param_groups
    assert (decay["weight_decay"], no_decay["weight_decay"]) == (0.5, 0.0)
    names = {parameter: name for name, parameter in model.named_parameters()}
    assert all(p.ndim == 2 for p in decay["params"])
    assert {names[p] for p in no_decay["params"]} == {n for n in names.values() if "norm" in n or n.endswith("bias")}
    assert len(decay["params"]) + len(no_decay["params"]) == len(names)


def test_without_gradient_only_decay_moves_a_parameter() -> None:
    layer = nn.Linear(3, 3)
    nn.init.ones_(layer.bias)
    before = layer.weight.detach().clone()
    for parameter in layer.parameters():
        parameter.grad = torch.zeros_like(parameter)
    adamw(layer, **SETTINGS).step()
    assert torch.allclose(layer.weight, before * (1 - 0.1 * 0.5))
    assert torch.equal(layer.bias, torch.ones(3))


def test_frozen_parameters_are_left_out() -> None:
    model = decoder()
    model.embedding.requires_grad_(False)
    in_groups = {p for group in adamw(model, **SETTINGS).param_groups for p in group["params"]}
    assert model.embedding.weight not in in_groups
    assert in_groups == {p for p in model.parameters() if p.requires_grad}


def test_a_group_without_parameters_is_left_out() -> None:
    (group,) = adamw(nn.Linear(3, 3, bias=False), **SETTINGS).param_groups
    assert group["weight_decay"] == 0.5


def test_the_first_step_equals_torchs_adamw_by_hand() -> None:
    layer = nn.Linear(2, 2, bias=False)
    before = layer.weight.detach().clone()
    layer.weight.grad = torch.tensor([[1.0, -2.0], [3.0, -4.0]])
    adamw(layer, **SETTINGS).step()
    assert torch.allclose(layer.weight, before * 0.95 - 0.1 * layer.weight.grad.sign(), atol=1e-6)


@pytest.mark.parametrize(
    ("step", "factor"),
    [
        (0, 0.1),  # the first of 10 warm-up steps: not 0, so that no step is wasted
        (4, 0.5),
        (9, 1.0),  # the end of the warm-up
        (59, 0.55),  # halfway down
        (109, 0.1),  # the end
        (500, 0.1),
    ],
)
def test_the_rate_warms_up_and_follows_a_cosine(step: int, factor: float) -> None:
    assert warmup_cosine(step, **RATE) == pytest.approx(factor)


def test_the_rate_never_jumps() -> None:
    rates = [warmup_cosine(step, **RATE) for step in range(110)]
    assert max(abs(a - b) for a, b in pairwise(rates)) <= 0.1 + 1e-9
    assert rates[9:] == sorted(rates[9:], reverse=True)


def test_without_warm_up_the_rate_starts_at_its_peak() -> None:
    assert warmup_cosine(0, warmup_steps=0, total_steps=1000, min_ratio=0.1) == pytest.approx(1.0, abs=1e-4)


def test_a_run_without_end_keeps_its_rate() -> None:
    assert warmup_cosine(10**6, warmup_steps=10, total_steps=math.inf, min_ratio=0.1) == 1.0


def test_a_run_that_ends_in_its_warm_up_is_no_division_by_zero() -> None:
    assert warmup_cosine(9, warmup_steps=10, total_steps=10, min_ratio=0.1) == 1.0
    assert warmup_cosine(10, warmup_steps=10, total_steps=10, min_ratio=0.1) == pytest.approx(0.1)


def test_the_schedule_sets_the_rate_of_every_group() -> None:
    optimizer = adamw(nn.Linear(3, 3), **SETTINGS)
    scheduler = schedule(optimizer, **RATE)
    rates = []
    for _ in range(111):
        rates.append({group["lr"] for group in optimizer.param_groups})
        optimizer.step()
        scheduler.step()
    assert all(len(rate) == 1 for rate in rates)
    assert [rates[step].pop() for step in (0, 9, 59, 109)] == pytest.approx([0.01, 0.1, 0.055, 0.01])


def test_a_schedules_state_is_plain_numbers() -> None:
    state = schedule(adamw(nn.Linear(3, 3), **SETTINGS), **RATE).state_dict()
    assert state["lr_lambdas"] == [None, None]  # a checkpoint with weights_only=True holds no function
