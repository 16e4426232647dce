"""Each optimizer against the formula, or against torch's own where it has it."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from ticks.optim import Lion, Muon, adamw, grouped
from ticks.optim.muon import multiplies_in_bfloat16, orthogonalised


def test_without_gradient_only_decay_moves_a_parameter() -> None:
    for make in (adamw, Muon, Lion):
        layer = nn.Linear(3, 3)
        nn.init.ones_(layer.bias)
        before = layer.weight.detach().clone()
        for parameter in layer.parameters():
            parameter.grad = torch.zeros_like(parameter)
        make(grouped(layer, matrices=make is Muon), lr=0.1, weight_decay=0.5).step()
        assert torch.allclose(layer.weight, before * (1 - 0.1 * 0.5))
        assert torch.equal(layer.bias, torch.ones(3))


def test_the_first_step_of_adamw_by_hand() -> None:
    layer = nn.Linear(2, 2, bias=False)
    before = layer.weight.detach().clone()
    layer.weight.grad = torch.tensor([[1.0, -2.0], [3.0, -4.0]])
    adamw(grouped(layer), lr=0.1, weight_decay=0.5).step()
    assert torch.allclose(layer.weight, before * 0.95 - 0.1 * layer.weight.grad.sign(), atol=1e-6)


def descend(optimizer: torch.optim.Optimizer, parameters: list[Any], steps: int = 6) -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        for p in parameters:
            p.grad = torch.randn(p.shape, generator=generator)
        optimizer.step()


def copies(*shapes: tuple[int, ...]) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    torch.manual_seed(0)
    first = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    return first, [nn.Parameter(p.detach().clone()) for p in first]


def test_what_is_no_matrix_muon_moves_as_torchs_adamw_does() -> None:
    mine, theirs = copies((4, 3), (5,))
    settings: dict[str, Any] = {"lr": 0.02, "weight_decay": 0.1, "betas": (0.9, 0.95), "eps": 1e-8}
    descend(Muon(mine, **settings), mine)
    descend(torch.optim.AdamW(theirs, **settings), theirs)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(mine, theirs, strict=True))


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch 2.9 has its own")
def test_matrices_move_as_torchs_muon_moves_them() -> None:
    """torch computes its Newton-Schulz steps in bfloat16."""
    mine, theirs = copies((16, 8), (8, 16), (8, 16), (12, 12))
    starts = [p.detach().clone() for p in mine]
    descend(Muon([{"params": mine, "matrices": 1}], lr=0.02, weight_decay=0.1), mine)
    descend(torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"), theirs)
    for a, b, start in zip(mine, theirs, starts, strict=True):
        assert torch.linalg.norm(a - b) < 0.03 * torch.linalg.norm(b - start)


def test_the_orthogonal_factor_is_nearly_that_of_the_singular_value_decomposition() -> None:
    torch.manual_seed(0)
    for shape in ((2, 16, 8), (1, 8, 16)):
        u = torch.randn(shape)
        left, _, right = torch.linalg.svd(u, full_matrices=False)
        found = orthogonalised(u)
        values = torch.linalg.svdvals(found)
        assert values.min() > 0.6
        assert values.max() < 1.3
        exact = left @ right
        assert (found * exact).sum() / found.norm() / exact.norm() > 0.97


def test_what_is_multiplied_in_is_decided_once_and_kept() -> None:
    """On another machine a resumed run goes on as it began."""
    for said in (True, False, None):
        (p,), (q,) = copies((8, 8))
        muon = Muon([{"params": [p], "matrices": 1}], bfloat16=said)
        descend(muon, [p], steps=1)
        decided = muon.state_dict()["param_groups"][0]["bfloat16"]
        assert decided is (multiplies_in_bfloat16("cpu") if said is None else said)
        other = Muon([{"params": [q], "matrices": 1}], bfloat16=not decided)
        other.load_state_dict(muon.state_dict())
        assert other.param_groups[0]["bfloat16"] is decided
    u = torch.randn(1, 16, 8)
    assert not torch.equal(orthogonalised(u, bfloat16=True), orthogonalised(u))


def test_three_matrices_in_one_weight_are_three() -> None:
    one, parts = copies((24, 8))
    apart = [nn.Parameter(part.detach().clone()) for part in parts[0].chunk(3)]
    fused = Muon([{"params": one, "matrices": 3}], lr=0.1)
    alone = Muon([{"params": apart, "matrices": 1}], lr=0.1)
    for _ in range(3):
        one[0].grad = torch.randn(24, 8, generator=torch.Generator().manual_seed(2))
        for p, g in zip(apart, one[0].grad.chunk(3), strict=True):
            p.grad = g
        fused.step()
        alone.step()
    assert torch.allclose(one[0], torch.cat(apart), atol=1e-5)


def test_lion_by_hand() -> None:
    p = nn.Parameter(torch.tensor([1.0, 2.0]))
    lion = Lion([p], lr=0.1, weight_decay=0.5, betas=(0.9, 0.99))
    p.grad = torch.tensor([3.0, -4.0])
    lion.step()
    assert torch.allclose(p, torch.tensor([0.95 - 0.1, 1.9 + 0.1]))
    p.grad = torch.tensor([-0.1, -0.1])  # 0.9 * 0.03 - 0.1 * 0.1 > 0: the first follows its mean, not its gradient
    before = p.detach().clone()
    lion.step()
    assert torch.allclose(p, before * 0.95 + 0.1 * torch.tensor([-1.0, 1.0]))


@pytest.mark.parametrize("make", [Muon, Lion, adamw])
def test_a_state_that_was_loaded_goes_on_as_if_nothing_had_happened(make: Any) -> None:
    layers = [nn.Linear(4, 4) for _ in range(2)]
    layers[1].load_state_dict(layers[0].state_dict())
    optimizers = [make(grouped(layer, matrices=make is Muon)) for layer in layers]
    descend(optimizers[0], list(layers[0].parameters()), 3)
    layers[1].load_state_dict(layers[0].state_dict())
    optimizers[1].load_state_dict(copy.deepcopy(optimizers[0].state_dict()))
    for layer, optimizer in zip(layers, optimizers, strict=True):
        descend(optimizer, list(layer.parameters()), 3)
    assert torch.equal(layers[0].weight, layers[1].weight)
    assert torch.equal(layers[0].bias, layers[1].bias)


@pytest.mark.parametrize(
    ("make", "wrong", "message"),
    [
        (adamw, {"lr": -1.0}, "lr=-1.0 must not be negative"),
        (adamw, {"weight_decay": -0.1}, "weight_decay=-0.1 must not be negative"),
        (adamw, {"betas": [0.9]}, r"betas=\[0.9\] must be two numbers"),
        (adamw, {"lr": float("inf")}, "lr=inf must be a finite number"),
        (Muon, {"betas": [0.9]}, r"betas=\[0.9\] must be two numbers"),
        (Muon, {"momentum": 1.0}, "momentum=1.0 must be from 0 to below 1"),
        (Muon, {"newton_schulz_steps": 0}, "newton_schulz_steps=0 must be at least 1"),
        (Lion, {"betas": (0.9, 2.0)}, r"betas=\[0.9, 2.0\] must be from 0 to below 1"),
    ],
)
def test_values_that_cannot_be_are_refused(make: Any, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make([nn.Parameter(torch.ones(2))], **wrong)
