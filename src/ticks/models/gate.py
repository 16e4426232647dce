"""The gate of a norm, a: (1 - a) x + a N(x). At 1 the norm is alone, as it was and as fast; at 0 it is not there.

gate(model.blocks[0].norm1, 0.5)
"""

from typing import Any

from torch import Tensor, nn

from ticks.models.changes.task_norm import is_norm


class Gate:
    """In the place of a norm's forward, while its gate is not wholly open."""

    def __init__(self, norm: nn.Module, before: Any, a: float) -> None:
        self.norm, self.before, self.a = norm, before, a

    def __call__(self, x: Tensor, *inputs: Any, **named: Any) -> Tensor:
        if self.a == 0.0:
            return x
        plain = (
            self.before(x, *inputs, **named) if self.before else type(self.norm).forward(self.norm, x, *inputs, **named)
        )
        return x.lerp(plain.to(x.dtype), self.a)


def gate(norm: nn.Module, a: float) -> None:
    """Open a norm's gate so far, in place."""
    there = vars(norm).get("forward")
    before = there.before if isinstance(there, Gate) else there
    if a < 1.0:
        norm.forward = Gate(norm, before, a)
    elif isinstance(there, Gate):
        del norm.forward
        if before is not None:
            norm.forward = before


def gated_norms(model: nn.Module) -> dict[str, nn.Module]:
    """By name, the norms of a model that can have a gate."""
    return {name: module for name, module in model.named_modules() if is_norm(module)}
