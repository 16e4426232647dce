"""Norms that are switched off little by little, and folded into what comes behind them."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from tests.models.changes.made import made, output
from ticks.arguments import ArgumentError
from ticks.models import LayerNorm, RMSNorm
from ticks.models.changes import fold_norms, task_norms
from ticks.models.changes.gate import gate, gate_of, gated_norms

NORMS: dict[str, Any] = {"layer": LayerNorm, "rms": RMSNorm, "torch's": nn.LayerNorm}


def drawn(module: Any) -> Any:
    """With gammas and betas that are neither 1 nor 0."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, norm in gated_norms(module).items():
            del name
            for p in norm.parameters(recurse=False):
                p.add_(torch.randn(p.shape, generator=generator) * 0.2)
    return module


@pytest.mark.parametrize("kind", list(NORMS))
def test_a_gate_is_between_nothing_and_the_norm(kind: str) -> None:
    norm, x = drawn(NORMS[kind](6)), torch.randn(2, 3, 6)
    whole, gamma, beta = norm(x), norm.weight, getattr(norm, "bias", None)
    assert torch.equal(norm(x), whole)
    for a in (0.0, 0.25, 0.75):
        gate(norm, a)
        assert gate_of(norm) == (a, False)
        torch.testing.assert_close(norm(x), (1 - a) * x + a * whole)
        gate(norm, a, keep_affine=True)
        plain = (whole - (0 if beta is None else beta)) / gamma
        expected = gamma * ((1 - a) * x + a * plain) + (0 if beta is None else beta)
        torch.testing.assert_close(norm(x), expected, atol=1e-5, rtol=1e-5)
    gate(norm, 1.0)
    assert torch.equal(norm(x), whole)
    assert "forward" not in vars(norm), "and as fast"


def test_a_closed_gate_gives_gamma_and_beta_a_gradient_of_zero() -> None:
    norm, x = drawn(LayerNorm(6)), torch.randn(2, 3, 6, requires_grad=True)
    gate(norm, 0.0)
    y = norm(x)
    assert torch.equal(y, x)
    y.square().sum().backward()
    assert not norm.weight.grad.any()
    torch.testing.assert_close(x.grad, 2 * x)


EXACT = {
    "decoder": {"blocks.0.norm1", "blocks.0.norm2", "blocks.1.norm1", "blocks.1.norm2"},
    "gpt2": {"h.0.ln_1", "h.0.ln_2", "h.1.ln_1", "h.1.ln_2"},
    "llama": {"layers.0.input_layernorm", "layers.0.post_attention_layernorm", "layers.1.input_layernorm",
              "layers.1.post_attention_layernorm"},
    "bert": set(),
}  # fmt: skip


@pytest.mark.parametrize("family", list(EXACT))
def test_what_is_exact_is_folded_and_the_rest_named(family: str) -> None:
    model = drawn(made(family)).eval()
    before, norms = output(model), set(gated_norms(model))
    reasons = fold_norms(model)
    folded = norms - set(reasons)
    assert {name for name in folded if any(name.endswith(end) for end in EXACT[family])} == folded
    assert len(folded) == len(EXACT[family])
    torch.testing.assert_close(output(model), before, atol=2e-5, rtol=1e-4)
    for name in folded:
        norm = model.get_submodule(name)
        assert bool((norm.weight == 1).all())
        assert not norm.weight.requires_grad
    for name, reason in reasons.items():
        assert reason in ("no linear map takes its output as it is",
                          "something else than linear maps takes its output, too"), name  # fmt: skip


def test_a_norm_whose_gate_is_closed_is_gone() -> None:
    model = drawn(made("decoder")).eval()
    for name, norm in gated_norms(model).items():
        gate(norm, 0.0, keep_affine=not name.startswith("final"))
    before = output(model)
    assert fold_norms(model) == {}
    assert not gated_norms(model)
    torch.testing.assert_close(output(model), before, atol=2e-5, rtol=1e-4)


def test_what_cannot_be_folded_says_why() -> None:
    model = drawn(made("decoder"))
    gate(model.get_submodule("blocks.0.norm1"), 0.5)
    reasons = fold_norms(model)
    assert reasons["blocks.0.norm1"] == "its gate is open to 0.5, and its gamma counts for that share alone"
    assert fold_norms(task_norms(made("decoder")))["blocks.0.norm1"].startswith("it has gammas of several tasks")
    plain = nn.Sequential(LayerNorm(4), nn.Linear(4, 3, bias=False))
    assert fold_norms(plain, torch.randn(2, 4)) == {"0": "a map behind it has no bias, which its beta needs"}
    assert fold_norms(nn.Sequential(RMSNorm(4), nn.Linear(4, 3, bias=False)), torch.randn(2, 4)) == {}
    with pytest.raises(ArgumentError, match="has no layer norm or RMS norm"):
        fold_norms(nn.Linear(3, 3))
    with pytest.raises(ArgumentError, match="must be an input of Sequential, which takes no tokens"):
        fold_norms(copy.deepcopy(plain))
    with pytest.raises(ArgumentError, match="example='given' is no input of Sequential"):
        fold_norms(plain, torch.randn(2, 5))
