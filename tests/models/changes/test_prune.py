"""Pruning: the smallest weights are zero, wherever they are, and stay so."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from tests.models.changes.made import made, output
from ticks.arguments import ArgumentError
from ticks.models.changes import attach_ticks, n_nonzero, prune, stay_pruned, train_only
from ticks.optim import Muon


@pytest.mark.parametrize("name", ["decoder", "bert", "gpt2", "encoder"])
def test_the_share_nearest_to_zero_is_zero(name: str) -> None:
    model = made(name)
    before, n = n_nonzero(model), sum(p.numel() for p in model.parameters())
    maps = [m for m in model.modules() if isinstance(m, nn.Linear) or type(m).__name__ == "Conv1D"]
    head = [m for name_, m in model.named_modules() if name_.startswith("head") and isinstance(m, nn.Linear)]
    weights = torch.cat([m.weight.detach().abs().flatten() for m in maps if m not in head])
    assert prune(model, share=0.5) is model
    kept = torch.cat([m.weight.detach().flatten() for m in maps if m not in head])
    assert int((kept == 0).sum()) == round(len(weights) / 2)
    assert weights[kept == 0].max() <= weights[kept != 0].min()
    assert n_nonzero(model) == before - round(len(weights) / 2) <= n
    assert all((m.weight != 0).all() for m in head)
    assert not [key for key in model.state_dict() if "mask" in key or "orig" in key]


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, Muon])
def test_what_is_zero_stays_zero_while_it_trains(optimizer: Any) -> None:
    """Whatever an optimizer makes of a matrix: Muon mixes its entries."""
    model = copy.deepcopy(prune(made("decoder"), share=0.9))
    zeros = n_nonzero(model)
    groups = [{"params": list(model.parameters())}]
    if optimizer is Muon:
        groups = [{"params": [p for p in model.parameters() if p.dim() == 2], "matrices": 1}]  # type: ignore[dict-item]
    optimizer = stay_pruned(model, optimizer(groups, lr=0.1))
    before = output(model).detach()
    for _ in range(3):
        optimizer.zero_grad()
        output(model).square().mean().backward()
        optimizer.step()
    assert n_nonzero(model) == zeros
    assert not torch.allclose(output(model), before)


def test_what_is_an_embedding_as_well_is_left_alone() -> None:
    import transformers

    config = transformers.GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=30, n_positions=8)
    model = transformers.GPT2LMHeadModel(config)
    assert model.lm_head.weight is model.transformer.wte.weight
    prune(model, share=0.9)
    assert (model.lm_head.weight != 0).all()
    assert (model.transformer.h[0].mlp.c_fc.weight == 0).any()


def test_ticks_learn_beside_a_pruned_base() -> None:
    model = attach_ticks(prune(made("bert"), share=0.5), 3)
    train_only(model, [r"\.tasks\."])
    output(model).sum().backward()
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)


def test_nothing_is_pruned_of_what_has_nothing_to_prune() -> None:
    model = made("decoder")
    before = output(model)
    assert torch.equal(output(prune(model, share=0.0)), before)
    with pytest.raises(ArgumentError, match="has no linear maps to prune"):
        prune(nn.LayerNorm(3), share=0.5)
    with pytest.raises(ArgumentError, match=r"share=1\.5 must be from 0 to 1"):
        prune(model, share=1.5)
