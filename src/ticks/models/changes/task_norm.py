"""Task norms: gamma and beta of a task's own over the statistics that all share, from the pretrained values on.

Any layer norm or RMS norm whose class says so, with its own epsilon, precision and kind of gamma (Gemma's counts from
1). The base's values stay where they are, and are what a model without a chosen task uses.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ticks.arguments import ArgumentError
from ticks.models.changes.tasks import Chosen, TaskModule, chosen_of, rows, set_task

KINDS = ("LayerNorm", "RMSNorm")


class Affine(nn.Module):
    """A task's gamma and, if the norm has one, beta: (D,) each."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        for name in ("weight", "bias"):
            value = getattr(norm, name, None)
            self.register_parameter(name, None if value is None else nn.Parameter(value.detach().clone()))


class TaskNorm(TaskModule):
    """The gammas and betas of several tasks at one norm, which are put in the place of its own while it computes."""

    NAME = "task_norms"

    def __init__(self, chosen: Chosen, norm: nn.Module) -> None:
        super().__init__(chosen)
        self.unit = _unit(norm)
        self._about = (norm,)
        self._base: dict[str, Any] = {}
        self._given: tuple[Tensor, Tensor | None] | None = None  # of the examples, while a mixed batch is computed
        self.enter()

    def enter(self) -> None:
        (norm,) = self._about
        norm.task_norms = self
        self._handles = [
            norm.register_forward_pre_hook(self.begin),
            norm.register_forward_hook(self.end, always_call=True),
        ]

    def begin(self, norm: nn.Module, inputs: tuple[Any, ...]) -> None:
        if self.chosen.names is not None:
            self._of_each(norm, len(self.chosen.names))
        elif self.chosen.name in self.tasks:
            self._put(norm, dict(self.tasks[self.chosen.name]._parameters))

    def end(self, norm: nn.Module, inputs: tuple[Any, ...], y: Tensor) -> Tensor | None:
        given, self._given = self._given, None
        norm._parameters.update(self._base)
        self._base = {}
        if given is None or not isinstance(y, Tensor):
            return None
        gamma_BxD, beta_BxD = given
        y_BxTxD = rows(y, len(gamma_BxD), "a norm")
        if beta_BxD is not None:
            return torch.addcmul(beta_BxD.unsqueeze(1), y_BxTxD, gamma_BxD.unsqueeze(1)).to(y.dtype).view_as(y)
        return (y_BxTxD * gamma_BxD.unsqueeze(1)).to(y.dtype).view_as(y)

    def _put(self, norm: nn.Module, values: dict[str, Any]) -> None:
        self._base = {name: norm._parameters[name] for name in values if name in norm._parameters}
        norm._parameters.update({name: values[name] for name in self._base})

    def _of_each(self, norm: nn.Module, n: int) -> None:
        """The norm computes with gamma 1 and beta 0; each example's own come behind."""
        base = {name: p for name, p in norm._parameters.items() if name in ("weight", "bias") and p is not None}
        every = [*self.tasks.values(), norm]
        index_B = self.chosen.indices(list(self.tasks), base["weight"].device)
        gamma_BxD = torch.stack([affine.weight for affine in every])[index_B] + (1.0 - self.unit)
        beta_BxD = torch.stack([affine.bias for affine in every])[index_B] if "bias" in base else None
        neutral = {"weight": torch.full_like(base["weight"], self.unit)}
        if "bias" in base:
            neutral["bias"] = torch.zeros_like(base["bias"])
        self._put(norm, neutral)
        self._given = gamma_BxD, beta_BxD


def is_norm(module: nn.Module) -> bool:
    """Whether it norms the features of a token, and has a gamma."""
    weight = module._parameters.get("weight")
    return type(module).__name__.endswith(KINDS) and weight is not None and weight.dim() == 1


def _unit(norm: nn.Module) -> float:
    """The gamma with which the norm only norms: 1, or 0 where it counts from 1."""
    weight: Tensor = norm.weight  # type: ignore[assignment]
    x = torch.arange(1.0, weight.numel() + 1, device=weight.device, dtype=weight.dtype).unsqueeze(0)
    values = {name: torch.zeros_like(p) for name, p in norm._parameters.items() if p is not None}
    with torch.no_grad():
        zero: Tensor = torch.func.functional_call(norm, values, (x,))
    return 0.0 if bool(zero.abs().sum() > 0) else 1.0


def task_norms(model: nn.Module, *, task: str = "task", where: Callable[[str], bool] | None = None) -> nn.Module:
    """Give a task a gamma and a beta of its own at every norm of `model`, in place, and set the task: the model itself.

    `where` says of a norm's name whether it takes part. ArgumentError for a model without a norm, with what was seen.
    """
    found = [(name, module) for name, module in model.named_modules() if is_norm(module)]
    chosen = chosen_of(model)
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
    for name, norm in used:
        there = getattr(norm, "task_norms", None)
        if not isinstance(there, TaskNorm):
            there = TaskNorm(chosen, norm)
        if task in there.tasks:
            raise ArgumentError("task", task, f"has a norm of its own at {name} already")
        there.tasks[task] = Affine(norm)
    set_task(model, task)
    return model
