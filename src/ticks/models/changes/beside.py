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

from ticks.arguments import ArgumentError, above, at_least, is_whole, share
from ticks.models.changes.families import FAMILIES, FFN, Family, find_ffns
from ticks.models.changes.task_norm import at_least_32_bits
from ticks.models.changes.tasks import Chosen, TaskModule, check_new, chosen_of, freeze, set_task
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

    @property
    def r(self) -> Tensor:
        """(k), zeros where there is none."""
        bias: Tensor | None = self.down.bias
        return self.down.weight.new_zeros(self.width) if bias is None else bias

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

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_x": None}  # left behind by a forward that was broken off

    def add(self, down: nn.Module, inputs: tuple[Any, ...], y: Tensor) -> Tensor:
        x, self._x = self._x, None
        if x is None:
            return y
        if self.chosen.names is not None:
            return self._mixed(x, y)
        if self.chosen.name not in self.tasks:
            return y
        ticks = self.tasks[self.chosen.name]
        q, r, p = (None if t is None else t.to(x.dtype) for t in (ticks.down.weight, ticks.down.bias, ticks.up.weight))
        hidden = ticks.dropout(self._activation[0](F.linear(x, q, r)))  # type: ignore[arg-type]
        flat = torch.addmm(y.flatten(0, -2), hidden.flatten(0, -2), p.t(), alpha=ticks.scale)  # type: ignore[union-attr]
        return flat.view_as(y)

    def _mixed(self, x: Tensor, y: Tensor) -> Tensor:
        """Each example with its own task's: their matrices side by side, narrower ones filled up with zeros."""
        names = list(self.tasks)
        index_B = self.chosen.indices(names, x.device)
        x_BxTxD, y_BxTxD = (self.chosen.rows(t, "an FFN") for t in (x, y))
        every = [self.tasks[name] for name in names]
        width = max([ticks.width for ticks in every])

        def of_each(matrices: list[Tensor]) -> Tensor:
            """Each example's, zeros for one whose task has none here."""
            return torch.stack([*matrices, torch.zeros_like(matrices[0])])[index_B].to(x.dtype)

        wider = [width - ticks.width for ticks in every]
        q_BxKxD = of_each([F.pad(t.down.weight, (0, 0, 0, more)) for t, more in zip(every, wider, strict=True)])
        r_BxK = of_each([F.pad(t.r, (0, more)) for t, more in zip(every, wider, strict=True)])
        p_BxDxK = of_each([F.pad(t.up.weight * t.scale, (0, more)) for t, more in zip(every, wider, strict=True)])
        hidden = self._activation[0](torch.baddbmm(r_BxK.unsqueeze(1), x_BxTxD, q_BxKxD.transpose(1, 2)))
        if self.training and any(t.dropout.p for t in every):
            hidden = hidden * self._kept(hidden, torch.tensor([*(t.dropout.p for t in every), 0.0])[index_B.cpu()])
        return torch.baddbmm(y_BxTxD, hidden, p_BxDxK.transpose(1, 2)).view_as(y)

    @staticmethod
    def _kept(hidden_BxTxK: Tensor, share_B: Tensor) -> Tensor:
        """What dropout leaves, each example with its own share: 0, or what makes up for the others."""
        share_Bx1x1 = share_B.to(hidden_BxTxK)[:, None, None]
        return (torch.rand_like(hidden_BxTxK) >= share_Bx1x1) / (1 - share_Bx1x1).clamp(min=1e-6)


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
    `activation` is the FFN's own if it is None. `bias=False` leaves out r, for bases whose maps have none.

    A task that is new finds all else frozen: the base, and what there was of other tasks. Thaw what is to train with
    it, a head say, by requires_grad_(True). ArgumentError for a model in which no FFN is found, with what was seen.
    """
    new = check_new(model, task)
    above(0, scale=scale)
    share(dropout=dropout)
    if activation is not None and activation not in ACTIVATIONS:
        raise ArgumentError("activation", activation, f"is unknown; known: {', '.join(ACTIVATIONS)}, null")
    ffns = find_ffns(model, families)
    chosen_widths = list(zip(ffns, _widths(width, len(ffns)), strict=True))
    for ffn, k in chosen_widths:
        if k:
            _check(ffn, task, activation)
    if new:
        freeze(model)
    chosen = chosen_of(model)
    for ffn, k in chosen_widths:
        if k:
            there = getattr(ffn.down, Beside.NAME, None)
            beside = there if isinstance(there, Beside) else Beside(chosen, ffn, activation, families)
            ticks = Ticks(ffn.d_model, k, scale=scale, dropout=dropout, bias=bias)
            weight = at_least_32_bits(next(ffn.up.parameters()))
            beside.tasks[task] = ticks.to(weight.device, weight.dtype).train(model.training)
    set_task(model, task)
    return model


def _widths(width: int | Sequence[int] | Mapping[int, int], n: int) -> list[int]:
    """One for each of n FFNs."""
    several = isinstance(width, Mapping | Sequence) and not isinstance(width, str)
    if not several and not is_whole(width):
        raise ArgumentError("width", width, "must be a whole number, one for each FFN, or {layer: number}")
    if isinstance(width, Mapping):
        if strange := [layer for layer in width if not isinstance(layer, int) or not 0 <= layer < n]:
            raise ArgumentError("width", dict(width), f"has no layer {strange[0]}: they count from 0 to {n - 1}")
        widths = [width.get(layer, 0) for layer in range(n)]
    else:
        widths = list(width) if isinstance(width, Sequence) else [width] * n
    if len(widths) != n:
        raise ArgumentError("width", widths, f"must be one number, or one for each of the {n} FFNs")
    for k in widths:
        at_least(0, width=k)
    if not any(widths):
        raise ArgumentError("width", width, "must be at least 1 somewhere")
    return widths


def _check(ffn: FFN, task: str, activation: str | None) -> None:
    """ArgumentError for a task that has ticks there, for an activation that is not known or not that of other tasks."""
    there = getattr(ffn.down, Beside.NAME, None)
    if isinstance(there, Beside) and task in there.tasks:
        raise ArgumentError("task", task, f"has ticks at {ffn.name} already")
    if isinstance(there, Beside) and there.activation != activation:
        raise ArgumentError("activation", activation, f"must be that of the other tasks at {ffn.name}")
    if activation is None and ffn.activation is None:
        raise ArgumentError("activation", None, f"was not found at {ffn.name}: say which ({', '.join(ACTIVATIONS)})")
