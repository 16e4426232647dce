"""Ticks beside the FFNs of a Transformer that somebody else has built and trained: FFN(x) + scale P s(Q x + r).

x is what the FFN itself is given, behind the norm of a pre-norm block; P is 0 at the start, so that the model then
computes what it did, bit for bit (its own maps are left alone: hidden units put into their matrix products would be
added up in another order). The nearest published relative is the scaled parallel adapter (arXiv 2110.04366).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ticks.arguments import ArgumentError, above, at_least, share
from ticks.models.changes.families import FAMILIES, FFN, Family, find_ffns
from ticks.models.changes.tasks import Chosen, TaskModule, chosen_of, rows, set_task
from ticks.models.ffn import ACTIVATIONS

Activation = Callable[[Tensor], Tensor]


class Ticks(nn.Module):
    """The ticks of one task beside one FFN: P (d, k), Q (k, d) and, unless `bias` is False, r (k)."""

    def __init__(self, d_model: int, width: int, *, scale: float, dropout: float, bias: bool) -> None:
        super().__init__()
        self.width, self.scale = width, scale
        self.down = nn.Linear(d_model, width, bias=bias)  # Q and r
        self.up = nn.Linear(width, d_model, bias=False)  # P
        self.dropout = nn.Dropout(dropout)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Q normal with standard deviation 0.02, r and P zero."""
        nn.init.normal_(self.down.weight, std=0.02)
        nn.init.zeros_(self.up.weight)
        if self.down.bias is not None:
            nn.init.zeros_(self.down.bias)


class Beside(TaskModule):
    """The ticks of several tasks beside one FFN; it is told of the FFN's input, and adds to its output."""

    NAME = "ticks"

    def __init__(self, chosen: Chosen, ffn: FFN, activation: str | None, families: Sequence[Family]) -> None:
        super().__init__(chosen)
        self.activation = activation  # None: the FFN's own, and so ticks can be merged into it
        self.families = tuple(families)
        function = ffn.activation if activation is None else ACTIVATIONS[activation]
        assert function is not None
        self._activation = (function,)  # in a tuple: the FFN's own module is not ours as well
        self._about = (ffn.first, ffn.down)
        self._x: Tensor | None = None
        self.enter()

    @property
    def own(self) -> bool:
        return self.activation is None

    def enter(self) -> None:
        first, down = self._about
        down.ticks = self
        self._handles = [first.register_forward_pre_hook(self.take), down.register_forward_hook(self.add)]

    def take(self, up: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._x = inputs[0] if self.chosen.name is not None or self.chosen.names is not None else None

    def add(self, down: nn.Module, inputs: tuple[Any, ...], y: Tensor) -> Tensor:
        x, self._x = self._x, None
        if x is None:
            return y
        if self.chosen.names is not None:
            return self._mixed(x, y)
        if self.chosen.name not in self.tasks:
            return y
        ticks = self.tasks[self.chosen.name]
        hidden = ticks.dropout(self._activation[0](ticks.down(x)))
        flat = torch.addmm(y.flatten(0, -2), hidden.flatten(0, -2), ticks.up.weight.t(), alpha=ticks.scale)
        return flat.view_as(y)

    def _mixed(self, x: Tensor, y: Tensor) -> Tensor:
        """Each example with its own task's: their matrices side by side, narrower ones filled up with zeros."""
        names = list(self.tasks)
        index_B = self.chosen.indices(names, x.device)
        x_BxTxD, y_BxTxD = (rows(t, len(index_B), "an FFN") for t in (x, y))
        every = [self.tasks[name] for name in names]
        width = max((ticks.width for ticks in every), default=0)
        if not width:
            return y
        wide = [F.pad(ticks.down.weight, (0, 0, 0, width - ticks.width)) for ticks in every]
        q_BxKxD = torch.stack([*wide, torch.zeros_like(wide[0])])[index_B]
        r = [
            F.pad(ticks.down.bias, (0, width - ticks.width))
            if ticks.down.bias is not None
            else wide[0].new_zeros(width)
            for ticks in every
        ]
        r_BxK = torch.stack([*r, torch.zeros_like(r[0])])[index_B]
        up = [F.pad(ticks.up.weight * ticks.scale, (0, width - ticks.width)) for ticks in every]
        p_BxDxK = torch.stack([*up, torch.zeros_like(up[0])])[index_B]
        hidden = self._activation[0](torch.baddbmm(r_BxK.unsqueeze(1), x_BxTxD, q_BxKxD.transpose(1, 2)))
        if every[0].dropout.p and self.training:
            hidden = every[0].dropout(hidden)
        return torch.baddbmm(y_BxTxD, hidden, p_BxDxK.transpose(1, 2)).view_as(y)


def attach_ticks(
    model: nn.Module,
    width: int | Sequence[int] | Mapping[int, int] = 16,
    *,
    task: str = "task",
    scale: float = 1.0,
    dropout: float = 0.0,
    activation: str | None = None,
    bias: bool = True,
    families: Sequence[Family] = FAMILIES,
) -> nn.Module:
    """Put a task's ticks beside every FFN of `model`, in place, and set the task: the model itself.

    `width` is k: one for all, one for each FFN, or {layer: k} for some of them, layers counted from 0; 0 is none.
    `activation` is the FFN's own if it is None. `bias=False` leaves out r, for bases whose maps have none. What was
    there of other tasks stays as it was. ArgumentError for a model in which no FFN is found, with what was seen.
    """
    above(0, scale=scale)
    share(dropout=dropout)
    if activation is not None and activation not in ACTIVATIONS:
        raise ArgumentError("activation", activation, f"is unknown; known: {', '.join(ACTIVATIONS)}, null")
    ffns = find_ffns(model, families)
    chosen = chosen_of(model)
    if any(task in module.tasks for module in model.modules() if isinstance(module, Beside)):
        raise ArgumentError("task", task, "has ticks already")
    chosen_widths = list(zip(ffns, _widths(width, len(ffns)), strict=True))
    for ffn, k in chosen_widths:
        if k:
            _check(ffn, activation)
    for ffn, k in chosen_widths:
        if k:
            there = getattr(ffn.down, Beside.NAME, None)
            beside = there if isinstance(there, Beside) else Beside(chosen, ffn, activation, families)
            ticks = Ticks(ffn.d_model, k, scale=scale, dropout=dropout, bias=bias)
            weight = next(ffn.up.parameters())
            dtype = weight.dtype if weight.is_floating_point() else torch.get_default_dtype()
            beside.tasks[task] = ticks.to(weight.device, dtype).train(model.training)
    set_task(model, task)
    return model


def _widths(width: int | Sequence[int] | Mapping[int, int], n: int) -> list[int]:
    """One for each of n FFNs."""
    if isinstance(width, Mapping):
        if strange := [layer for layer in width if not isinstance(layer, int) or not 0 <= layer < n]:
            raise ArgumentError("width", dict(width), f"has no layer {strange[0]}: they count from 0 to {n - 1}")
        widths = [width.get(layer, 0) for layer in range(n)]
    else:
        widths = [width] * n if isinstance(width, int) else list(width)
    if len(widths) != n:
        raise ArgumentError("width", widths, f"must be one number, or one for each of the {n} FFNs")
    for k in widths:
        at_least(0, width=k)
    if not any(widths):
        raise ArgumentError("width", width, "must be at least 1 somewhere")
    return widths


def _check(ffn: FFN, activation: str | None) -> None:
    """ArgumentError for an activation that is not known, or another one than other tasks have there."""
    there = getattr(ffn.down, Beside.NAME, None)
    if isinstance(there, Beside) and there.activation != activation:
        raise ArgumentError("activation", activation, f"must be that of the other tasks at {ffn.name}")
    if activation is None and ffn.activation is None:
        raise ArgumentError("activation", None, f"was not found at {ffn.name}: say which ({', '.join(ACTIVATIONS)})")
