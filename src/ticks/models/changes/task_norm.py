"""Task norms: gamma and beta of a task's own over the statistics that all share, from the pretrained values on.

Any layer norm or RMS norm whose class says so, with its own epsilon, precision and kind of gamma (Gemma's counts from
1). The base's values stay where they are, and are what a model without a chosen task uses.
"""

from collections.abc import Callable, Mapping
from copy import copy
from typing import Any

import torch
from torch import Tensor, nn

from ticks.arguments import ArgumentError
from ticks.models.changes.tasks import Chosen, TaskModule, check_new, chosen_of, freeze, set_task

KINDS = ("LayerNorm", "RMSNorm")


class Affine(nn.Module):
    """A task's gamma and, if the norm has one, beta: (D,) each, of a norm in 16 bits in 32."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        for name in ("weight", "bias"):
            value = getattr(norm, name, None)
            self.register_parameter(name, None if value is None else nn.Parameter(at_least_32_bits(value).clone()))


def at_least_32_bits(value: Tensor) -> Tensor:
    """What trains needs them: in 16, small steps are rounded away."""
    value = value.detach()
    return value.float() if value.element_size() < 4 or not value.is_floating_point() else value


class TaskNorm(TaskModule):
    """The gammas and betas of several tasks at one norm, which are put in the place of its own while it computes."""

    NAME = "task_norms"

    def __init__(self, chosen: Chosen, norm: nn.Module) -> None:
        super().__init__(chosen)
        self.unit = unit_of(norm)
        self._about = (norm,)
        self._before: Callable[..., Tensor] | None = None  # a forward that somebody else has put there
        self.enter()

    def enter(self) -> None:
        (norm,) = self._about
        norm.task_norms = self
        self._before = norm.__dict__.get("forward")
        norm.forward = self.compute

    def leave(self) -> None:
        (norm,) = self._about
        del norm.forward
        if self._before is not None:
            norm.forward = self._before
        super().leave()

    def compute(self, *inputs: Any, **named: Any) -> Tensor:
        """What the norm computes, in place of its own forward."""
        (norm,) = self._about
        if self.chosen.names is not None:
            return self._of_each(norm, inputs, named)
        if self.chosen.name in self.tasks:
            return self._with(norm, dict(self.tasks[self.chosen.name]._parameters), inputs, named)
        return self._plain(norm, inputs, named)

    def _plain(self, norm: nn.Module, inputs: Any, named: Any) -> Tensor:
        return self._before(*inputs, **named) if self._before else type(norm).forward(norm, *inputs, **named)

    def _with(self, norm: nn.Module, values: Mapping[str, Tensor | None], inputs: Any, named: Any) -> Tensor:
        """The norm with these in the place of its own, which are back whatever happens."""
        own: dict[str, Any] = {name: p for name, p in norm._parameters.items() if name in values and p is not None}
        given: dict[str, Any] = {name: values[name].to(p.dtype) for name, p in own.items()}  # type: ignore[union-attr]
        try:
            norm._parameters.update(given)
            return self._plain(norm, inputs, named)
        finally:
            norm._parameters.update(own)

    def _of_each(self, norm: nn.Module, inputs: Any, named: Any) -> Tensor:
        """The norm computes with gamma 1 and beta 0; each example's own come behind."""
        own: dict[str, Any] = {n: p for n, p in norm._parameters.items() if n in ("weight", "bias") and p is not None}
        index_B = self.chosen.indices(list(self.tasks), own["weight"].device)
        neutral = {name: torch.full_like(p, self.unit if name == "weight" else 0.0) for name, p in own.items()}
        y = self._with(norm, neutral, inputs, named)
        y_BxTxD = self.chosen.rows(y, "a norm")
        every = [*self.tasks.values(), norm]
        gamma_BxD = torch.stack([at.weight.to(y.dtype) for at in every])[index_B] + (1.0 - self.unit)
        if "bias" not in own:
            return (y_BxTxD * gamma_BxD.unsqueeze(1)).view_as(y)
        beta_BxD = torch.stack([at.bias.to(y.dtype) for at in every])[index_B]
        return torch.addcmul(beta_BxD.unsqueeze(1), y_BxTxD, gamma_BxD.unsqueeze(1)).view_as(y)


def is_norm(module: nn.Module) -> bool:
    """Whether it norms the features of a token, and has a gamma."""
    weight = module._parameters.get("weight")
    return type(module).__name__.endswith(KINDS) and weight is not None and weight.dim() == 1


def unit_of(norm: nn.Module) -> float:
    """The gamma with which the norm only norms: 1, or 0 where it counts from 1."""
    weight: Tensor = norm.weight  # type: ignore[assignment]
    x = torch.arange(1.0, weight.numel() + 1, device=weight.device, dtype=weight.dtype).unsqueeze(0)
    values = {name: torch.zeros_like(p) for name, p in norm._parameters.items() if p is not None}
    alone = copy(norm)
    vars(alone).pop("forward", None)  # what somebody has put there
    with torch.no_grad():
        zero: Tensor = torch.func.functional_call(alone, values, (x,))
    return 0.0 if bool(zero.abs().sum() > 0) else 1.0


def task_norms(model: nn.Module, *, task: str = "task", where: Callable[[str], bool] | None = None) -> nn.Module:
    """Give a task a gamma and a beta of its own at every norm of `model`, in place, and set the task: the model itself.

    `where` says of a norm's name whether it takes part. A task that is new finds all else frozen, as in `attach_ticks`.
    ArgumentError for a model without a norm, with what was seen.
    """
    new = check_new(model, task)
    found = [(name, module) for name, module in model.named_modules() if is_norm(module)]
    used = [(name, norm) for name, norm in found if where is None or where(name)]
    if not used:
        kinds = dict.fromkeys(type(module).__name__ for module in model.modules() if "orm" in type(module).__name__)
        names = (
            ", ".join(name for name, _ in found[:20])
            or f"none; classes that sound like one: {', '.join(kinds) or 'none'}"
        )
        raise ArgumentError(
            "model", type(model).__name__, f"has no layer norm or RMS norm to change; norms seen: {names}"
        )
    if twice := [name for name, norm in used if task in getattr(getattr(norm, "task_norms", None), "tasks", ())]:
        raise ArgumentError("task", task, f"has a norm of its own at {twice[0]} already")
    if new:
        freeze(model)
    chosen = chosen_of(model)
    for _, norm in used:
        there = getattr(norm, "task_norms", None)
        there = there if isinstance(there, TaskNorm) else TaskNorm(chosen, norm)
        there.tasks[task] = Affine(norm)
    set_task(model, task)
    return model
