"""What does not train: frozen by name, and proven to be bit-identical afterwards."""

import hashlib
import re
from collections.abc import Iterable

import torch
from torch import Tensor, nn

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
    """By name, every parameter that training must not change."""
    return {name: p.detach() for name, p in model.named_parameters() if not p.requires_grad}


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
