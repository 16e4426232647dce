"""The gate of a norm, a: (1 - a) x + a N(x). At 1 the norm is alone, as it was and as fast; at 0 it is not there.

gate(model.blocks[0].norm1, 0.5)

With `keep_affine` the norm's gamma and beta stay whatever a is, gamma ((1 - a) x + a n(x)) + beta with n(x) what only
norms: at 0 a linear map is left, which `ticks.models.changes.fold_norms` makes part of the next one.
"""

from typing import Any

import torch
from torch import Tensor, nn

from ticks.models.changes.task_norm import is_norm, unit_of


class Gate:
    """In the place of a norm's forward, while its gate is not wholly open."""

    def __init__(self, norm: nn.Module, before: Any, a: float, *, keep_affine: bool = False) -> None:
        self.norm, self.before, self.a, self.keep_affine = norm, before, a, keep_affine
        self.unit = unit_of(norm) if keep_affine else 1.0

    def __call__(self, x: Tensor, *inputs: Any, **named: Any) -> Tensor:
        around = self._affine(x) if self.keep_affine else x
        trains = torch.is_grad_enabled() and any(p.requires_grad for p in self.norm.parameters(recurse=False))
        if self.a == 0.0 and (self.keep_affine or not trains):  # else gamma and beta have a gradient, which is zero
            return around
        if self.before:
            plain = self.before(x, *inputs, **named)
        else:
            plain = type(self.norm).forward(self.norm, x, *inputs, **named)
        return around.lerp(plain.to(x.dtype), self.a)

    def _affine(self, x: Tensor) -> Tensor:
        gamma: Any = self.norm.weight
        beta: Any = getattr(self.norm, "bias", None)
        y = x * (gamma + (1.0 - self.unit)).to(x.dtype)
        return y if beta is None else y + beta.to(x.dtype)


def gate(norm: nn.Module, a: float, *, keep_affine: bool = False) -> None:
    """Open a norm's gate so far, in place."""
    there = vars(norm).get("forward")
    before = there.before if isinstance(there, Gate) else there
    if isinstance(there, Gate) and a < 1.0 and there.keep_affine == keep_affine:
        there.a = a
    elif a < 1.0:
        norm.forward = Gate(norm, before, a, keep_affine=keep_affine)
    elif isinstance(there, Gate):
        del norm.forward
        if before is not None:
            norm.forward = before


def gate_of(norm: nn.Module) -> tuple[float, bool]:
    """How far it is open, and whether gamma and beta stay."""
    there = vars(norm).get("forward")
    return (there.a, there.keep_affine) if isinstance(there, Gate) else (1.0, True)


def gated_norms(model: nn.Module) -> dict[str, nn.Module]:
    """By name, the norms of a model that can have a gate."""
    return {name: module for name, module in model.named_modules() if is_norm(module)}
