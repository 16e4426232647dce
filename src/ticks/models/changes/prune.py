"""Magnitude pruning: the smallest weights of a model's linear maps are zero from now on (arXiv 1506.02626)."""

import re
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import prune as torchs
from torch.optim import Optimizer

from ticks.arguments import ArgumentError, share
from ticks.models.changes.families import is_transposed

HEADS = re.compile(r"(^|\.)(lm_)?heads?(\.|$)")
MASK = "kept_by_pruning"  # a buffer that goes where its weight goes, and into no checkpoint


def prune(model: nn.Module, *, share: float) -> nn.Module:
    """Set the `share` of the weights of all linear maps that are the nearest to zero to zero, in place, wherever they
    are: the model itself. Heads, and maps that share their weight with an embedding, are left alone. `stay_pruned`
    tells an optimizer of it. ArgumentError for a model without linear maps.
    """
    _check(share)
    maps = prunable(model)
    if share:
        kept = smallest(maps, share)
        mask(maps, kept)
        for module, stays in zip(maps, kept, strict=True):
            module.weight.detach().mul_(stays)  # one that does not train, too
    return model


def prunable(model: nn.Module) -> list[Any]:
    """The linear maps whose weights can be pruned. ArgumentError if there are none."""
    if not (maps := linear_maps(model)):
        raise ArgumentError("model", type(model).__name__, "has no linear maps to prune")
    return list(maps.values())


def linear_maps(model: nn.Module) -> dict[str, Any]:
    """By name, all but heads and those that share their weight with an embedding."""
    tied = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    return {
        name: module
        for name, module in model.named_modules()
        if (isinstance(module, nn.Linear) or is_transposed(module))
        and not HEADS.search(name)
        and id(module.weight) not in tied
    }


def smallest(maps: list[Any], share: float) -> list[Tensor]:
    """For each map, which of its weights stay: all but the `share` of all of them that is the nearest to zero."""
    weights = [module.weight.detach() for module in maps]
    flat = torch.cat([weight.abs().float().flatten() for weight in weights])
    kept = torchs.L1Unstructured(amount=share).compute_mask(flat, torch.ones_like(flat)) != 0
    parts = kept.split([weight.numel() for weight in weights])
    return [part.view(weight.shape) for part, weight in zip(parts, weights, strict=True)]


def mask(maps: list[Any], kept: list[Tensor]) -> None:
    """The rest of the weights is zero from now on."""
    for module, stays in zip(maps, kept, strict=True):
        module.register_buffer(MASK, stays.clone(), persistent=False)


def mask_of(module: nn.Module) -> Tensor:
    """Which of its weights stay."""
    return module._buffers[MASK]  # type: ignore[return-value]


def stay_pruned(model: nn.Module, optimizer: Optimizer) -> Optimizer:
    """What of a model was pruned is zero again behind each of the optimizer's steps, whatever that makes of it."""
    maps = [module for module in model.modules() if MASK in module._buffers]
    if maps:
        optimizer.register_step_post_hook(lambda *_: zero(maps))
    return optimizer


@torch.no_grad()
def zero(maps: list[Any]) -> None:
    """What is masked."""
    for module in maps:
        weight: Tensor = module.weight  # type: ignore[assignment]
        mask: Tensor = module._buffers[MASK]  # type: ignore[assignment]
        if weight.requires_grad and weight.shape == mask.shape:
            weight.mul_(mask)


def _check(amount: float) -> None:
    share(share=amount)


def n_nonzero(model: nn.Module) -> int:
    """How many of a model's parameters are not zero."""
    return sum(int(torch.count_nonzero(p.detach())) for p in model.parameters())
