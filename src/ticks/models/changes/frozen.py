"""What does not train: frozen by name, and proven to be bit-identical afterwards."""

import hashlib
import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from ticks.arguments import ArgumentError
from ticks.models.changes.tasks import task_modules


def train_only(model: nn.Module, patterns: Iterable[str]) -> list[str]:
    """Freeze every parameter but those whose name a pattern (a regular expression) is found in; their names.
    ArgumentError for a pattern that matches nothing."""
    every = dict(model.named_parameters())
    trained: set[str] = set()
    for pattern in patterns:
        hits = {name for name in every if re.search(pattern, name)}
        if not hits:
            raise ArgumentError("train", pattern, f"matches no parameter; there are {', '.join(list(every)[:20])}, ...")
        trained |= hits
    for name, parameter in every.items():
        parameter.requires_grad_(name in trained)
    return [name for name in every if name in trained]


def frozen(model: nn.Module) -> dict[str, Tensor]:
    """By name, every tensor that training must not change: parameters that do not train, under each of their names, and
    what a module none of whose parameters trains keeps besides (running statistics). Those are left out of which a
    timeline says when they train: they are `timed`."""
    found: dict[str, Tensor] = {}
    for place, module in model.named_modules(remove_duplicate=False):
        own = [p for p in module._parameters.values() if p is not None]
        kept: dict[str, Any] = {
            name: p
            for name, p in module._parameters.items()
            if p is not None and not p.requires_grad and not getattr(p, "timed", False)
        }
        if own and len(kept) == len(own):
            temporary = module._non_persistent_buffers_set
            kept |= {name: b for name, b in module._buffers.items() if b is not None and name not in temporary}
        found |= {f"{place}.{name}".lstrip("."): value.detach() for name, value in kept.items()}
    return found


def quiet_statistics(model: nn.Module) -> None:
    """Batch norms that do not train use and keep the statistics that they have."""
    for module in model.modules():
        if isinstance(module, _NormBase) and not _trains(module):
            module.eval()


def statistics_that_follow(model: nn.Module) -> dict[str, nn.Module]:
    """By name, the batch norms that take statistics when they train: all but those that train and are in eval mode,
    where somebody has put them."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _NormBase) and (module.training or not _trains(module))
    }


def _trains(module: nn.Module) -> bool:
    return any(p.requires_grad for p in module.parameters())


def base(model: nn.Module) -> dict[str, Tensor]:
    """By name, a model's tensors without what belongs to tasks: what it was before anything was put beside it."""
    ours = tuple(f"{place}." for place, _ in task_modules(model))
    return {name: value for name, value in model.state_dict().items() if not name.startswith(ours or ("\0",))}


def digest(tensors: dict[str, Tensor]) -> str:
    """Of names, shapes, types and every bit: 64 hexadecimal digits."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        found.update(f"{name} {tuple(value.shape)} {value.dtype}\n".encode())
        found.update(value.flatten().view(torch.uint8).numpy().data if value.numel() else b"")
    return found.hexdigest()
