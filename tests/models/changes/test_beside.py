"""Ticks beside the FFNs of every family: nothing changes at the start, and then exactly what the formula says."""

import copy

import pytest
import torch
from torch import Tensor, nn

from tests.models.changes.made import FAMILIES, OURS, made, output, stir
from ticks.arguments import ArgumentError
from ticks.models.changes import (
    Family,
    attach_ticks,
    find_ffns,
    freeze,
    parameters_of,
    set_task,
    task_norms,
    train_only,
    tuning,
)

every = pytest.mark.parametrize("name", list(FAMILIES))


@every
def test_nothing_changes_at_the_start_bit_for_bit(name: str) -> None:
    model = freeze(made(name))  # for what trains, torch folds a product without a bias another way
    before = output(model)
    task_norms(attach_ticks(model, 3, scale=4.0))
    assert torch.equal(output(model), before)
    stir(model)
    assert not torch.allclose(output(model), before)
    set_task(model, None)
    with torch.no_grad():
        assert torch.equal(output(model), before), "without a task it is the base"


@every
def test_each_ffn_gets_what_the_formula_says_of_its_own_input(name: str) -> None:
    """Whatever stands before and behind the FFN: its input and output are read off its maps."""
    model = made(name)
    (first, *_) = find_ffns(model)
    seen: dict[str, Tensor] = {}
    attach_ticks(model, {0: 3}, scale=2.0)
    stir(model)
    p = dict(parameters_of(model, "task"))
    at = next(iter(p)).partition(".tasks.")[0]
    q, r, up = (p[f"{at}.tasks.task.{end}"] for end in ("down.weight", "down.bias", "up.weight"))
    first.first.register_forward_pre_hook(lambda _, inputs: seen.update(x=inputs[0]))
    first.down.register_forward_pre_hook(lambda _, inputs: seen.update(h=inputs[0]))
    first.down.register_forward_hook(lambda _, __, y: seen.update(y=y))
    output(model)
    assert first.activation is not None
    x, h, y = seen["x"], seen["h"], seen["y"]
    set_task(model, None)
    expected = first.down(h) + 2.0 * first.activation(x @ q.T + r) @ up.T
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-6)


def test_gradients_are_those_of_the_formula() -> None:
    """facts.md: dP = G s(Qx+r)^T, dQ = (P^T G * s'(Qx+r)) x^T, dr = P^T G * s'(Qx+r)."""
    from ticks.models.ffn import FeedForward

    torch.manual_seed(0)
    ffn = nn.ModuleDict({"ffn": FeedForward(5, 7)}).double()
    attach_ticks(ffn, 3, scale=1.5)
    stir(ffn)
    ticks = ffn["ffn"].fc2.ticks.tasks["task"]
    x, g = torch.randn(4, 5, dtype=torch.double), torch.randn(4, 5, dtype=torch.double)
    ffn["ffn"](x).backward(g)
    z = (x @ ticks.down.weight.T + ticks.down.bias).detach().requires_grad_()
    s = nn.functional.gelu(z)
    (slope,) = torch.autograd.grad(s.sum(), z)
    back = 1.5 * g @ ticks.up.weight * slope
    torch.testing.assert_close(ticks.up.weight.grad, 1.5 * g.T @ s.detach())
    torch.testing.assert_close(ticks.down.weight.grad, back.T @ x)
    torch.testing.assert_close(ticks.down.bias.grad, back.sum(0))
    parameters = [p for _, p in parameters_of(ffn, "task")]
    assert torch.autograd.gradcheck(lambda x, *_: ffn["ffn"](x), (x.requires_grad_(), *parameters))


@pytest.mark.parametrize("name", ["bert", "decoder"])
def test_parameters_are_as_many_as_the_formula_says(name: str) -> None:
    """L (2dk + k + 4d) + 2d: two norms in each layer, and one at the end or at the embedding."""
    model = made(name)
    task_norms(attach_ticks(model, 3))
    d, k, n_layers = 16, 3, 2
    assert sum(p.numel() for _, p in parameters_of(model, "task")) == n_layers * (2 * d * k + k + 4 * d) + 2 * d
    trained = train_only(model, [r"\.tasks\.task\."])
    assert len(trained) == len(list(parameters_of(model, "task")))
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 2 * (2 * d * k + k + 4 * d) + 2 * d


def test_an_activation_of_ones_own_and_layers_of_ones_choice() -> None:
    model = made("bert")
    before = output(model)
    attach_ticks(model, {1: 5}, activation="relu")
    assert torch.equal(output(model), before)
    assert {name.split(".")[2] for name, _ in parameters_of(model, "task")} == {"1"}
    stir(model)
    assert not torch.equal(output(model), before)


def test_dropout_is_for_training_alone() -> None:
    model = attach_ticks(made("decoder"), 4, dropout=0.5)
    stir(model)
    assert torch.equal(output(model), output(model))
    model.train()
    torch.manual_seed(1)
    assert not torch.equal(output(model), output(model))


def test_a_copy_of_a_model_is_a_model_of_its_own() -> None:
    model = attach_ticks(made("bert"), 4)
    stir(model)
    other, before = copy.deepcopy(model), output(model)
    assert torch.equal(output(other), before)
    with torch.no_grad():
        for _, parameter in parameters_of(other, "task"):
            parameter.zero_()
    set_task(other, None)
    assert torch.equal(output(model), before)
    assert not torch.equal(output(other), before)


def test_a_model_that_nobody_listed_is_refused_with_what_was_seen_and_named_by_three_strings() -> None:
    class Strange(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(
                nn.ModuleDict({"wide": nn.Linear(4, 9), "narrow": nn.Linear(9, 4)}) for _ in range(3)
            )

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = x + layer["narrow"](torch.relu(layer["wide"](x)))  # type: ignore[index]
            return x

    model, x = Strange(), torch.randn(2, 4)
    with pytest.raises(
        ArgumentError, match=r"has no FFN of a known family; .*layers\.\*\.wide \(3\), layers\.\*\.narrow"
    ):
        attach_ticks(model)
    mine = [Family("mine", "wide", "narrow")]
    with pytest.raises(ArgumentError, match=r"activation=None was not found at layers\.0.*say which"):
        attach_ticks(model, families=mine)
    before = model(x)
    attach_ticks(model, 2, families=mine, activation="relu")
    assert torch.equal(model(x), before)
    stir(model)
    assert not torch.equal(model(x), before)
    with pytest.raises(ArgumentError, match="it has no linear maps at all"):
        attach_ticks(nn.Sequential(nn.ReLU()))


def test_beside_updates_of_lora_there_is_no_place() -> None:
    pytest.importorskip("peft")
    model = made("bert")
    tuning.lora(model, rank=2)
    with pytest.raises(ArgumentError, match="holds LoRA's updates, beside which ticks have no place: merge them first"):
        attach_ticks(model)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"width": 0}, "must be at least 1 somewhere"),
        ({"width": [1, 2, 3]}, "must be one number, or one for each of the 2 FFNs"),
        ({"width": {7: 2}}, "has no layer 7: they count from 0 to 1"),
        ({"scale": 0.0}, "scale=0.0 must be a finite number above 0"),
        ({"dropout": 2.0}, "dropout=2.0 must be from 0 to 1"),
        ({"activation": "swish"}, "activation='swish' is unknown; known: gelu"),
    ],
)
def test_what_cannot_be_put_there_is_named(arguments: dict[str, object], message: str) -> None:
    model = made("decoder")
    before = [name for name, _ in model.named_modules()]
    with pytest.raises(ArgumentError, match=message):
        attach_ticks(model, **arguments)  # type: ignore[arg-type]
    assert [name for name, _ in model.named_modules()] == before
    attach_ticks(model)
    with pytest.raises(ArgumentError, match=r"task='task' has ticks at blocks\.0.ffn already"):
        attach_ticks(model)
    with pytest.raises(ArgumentError, match="must be that of the other tasks"):
        attach_ticks(model, task="other", activation="relu")


@pytest.mark.parametrize("name", list(OURS))
def test_it_trains_with_the_base_frozen(name: str) -> None:
    model = task_norms(attach_ticks(made(name), 4))
    train_only(model, [r"\.tasks\."])
    before = output(model).detach()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):  # P is zero at first, and so is what reaches Q
        optimizer.zero_grad()
        output(model).square().mean().backward()
        optimizer.step()
    assert output(model).square().mean() < before.square().mean()
    assert all(p.grad is not None for _, p in parameters_of(model, "task"))
