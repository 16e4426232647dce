"""Magnitude pruning: the smallest weights of a model's linear maps are zero from now on (arXiv 1506.02626)."""

import torch
from torch import Tensor, nn
from torch.nn.utils import prune as torchs

from ticks.arguments import ArgumentError, share
from ticks.models.changes.families import is_transposed


def prune(model: nn.Module, *, share: float) -> nn.Module:
    """Set the `share` of the weights of all linear maps that are the nearest to zero to zero, in place, wherever they
    are; heads are left alone: the model itself. Gradients of those weights are zero too, so that they stay zero with
    any optimizer that does not mix the entries of a matrix. ArgumentError for a model without linear maps.
    """
    _check(share)
    maps = [
        module
        for name, module in model.named_modules()
        if (isinstance(module, nn.Linear) or is_transposed(module)) and not name.startswith("head")
    ]
    if not maps:
        raise ArgumentError("model", type(model).__name__, "has no linear maps to prune")
    if not share:
        return model
    parameters = [(module, "weight") for module in maps]
    torchs.global_unstructured(parameters, pruning_method=torchs.L1Unstructured, amount=share)
    for module in maps:
        torchs.remove(module, "weight")
        weight: Tensor = module.weight  # type: ignore[assignment]
        if weight.requires_grad:
            mask = weight.detach() != 0
            weight.register_hook(lambda gradient, mask=mask: gradient * mask)
    return model


def _check(amount: float) -> None:
    share(share=amount)


def n_nonzero(model: nn.Module) -> int:
    """How many of a model's parameters are not zero."""
    return sum(int(torch.count_nonzero(p.detach())) for p in model.parameters())
