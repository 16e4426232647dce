"""What happens at ticks to the state of the workers' own optimizers (Adam's m and v): a choice beside the sync rule.

To add one: a class here with `averaged` or `resets`, and a YAML in configs/strategy/optimizer_state/.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from ticks.arguments import ArgumentError, at_least

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

_KEPT: WeakKeyDictionary[Optimizer, dict[tuple[Any, ...], set[str] | None]] = WeakKeyDictionary()


class OptimizerState:
    """Every worker keeps its own: nothing is sent."""

    def averaged(self, round_number: int, available: list[str]) -> list[str]:
        """Which of the `available` states are averaged over the workers after this round (counted from 1)."""
        return []

    def resets(self, round_number: int) -> bool:
        """Whether all of it is forgotten after this round."""
        return False


class Keep(OptimizerState):
    """Every worker keeps its own: what DiLoCo does (arXiv 2311.08105), nothing is sent."""


class Average(OptimizerState):
    """Averaged over the workers after every `every`-th round, in fp32; a period for each state is DES-LOC's way.

    DES-LOC (arXiv 2505.22549): {exp_avg: 3, exp_avg_sq: 6}. ArgumentError for periods below 1 and, when
    training starts, for a state that the optimizer does not have.
    """

    def __init__(self, every: int | Mapping[str, int] = 1) -> None:
        self.every = every if isinstance(every, int) else dict(every)
        periods = {"every": every} if isinstance(every, int) else {f"every.{name}": n for name, n in every.items()}
        at_least(1, of=" rounds", **periods)

    def averaged(self, round_number: int, available: list[str]) -> list[str]:
        periods = dict.fromkeys(available, self.every) if isinstance(self.every, int) else self.every
        if unknown := [name for name in periods if name not in available]:
            raise ArgumentError("every", self.every, f": the optimizer has no {unknown}; it has {available}")
        return [name for name, period in periods.items() if round_number % period == 0]


class Reset(OptimizerState):
    """Forgotten after every `every`-th round: workers start afresh from the anchor."""

    def __init__(self, every: int = 1) -> None:
        at_least(1, of=" rounds", every=every)
        self.every = int(every)

    def resets(self, round_number: int) -> bool:
        return round_number % self.every == 0


def names_of_states(optimizers: Sequence[Optimizer]) -> list[str]:
    """The states that these optimizers keep for a parameter, of its shape: found by a step of copies of them."""
    import torch

    names: dict[str, None] = {}
    for optimizer in optimizers:
        parameter = torch.nn.Parameter(torch.ones(2, 2))
        parameter.grad = torch.ones(2, 2)
        options = {name: value for group in optimizer.param_groups for name, value in group.items() if name != "params"}
        try:
            copy = _copy(optimizer, parameter, options)
            copy.step()
        except Exception:  # somebody's optimizer that is made in another way: what it has by now
            held = [optimizer.state.get(p, {}) for group in optimizer.param_groups for p in group["params"] if p.dim()]
        else:
            held = [copy.state[parameter]]
        for state in held:
            names |= dict.fromkeys(n for n, value in state.items() if isinstance(value, torch.Tensor) and value.dim())
    return list(names)


def _copy(optimizer: Optimizer, parameter: Tensor, options: Mapping[str, Any]) -> Optimizer:
    """One of the same class for this parameter, with those of the options that it can be made with."""
    accepted = inspect.signature(type(optimizer)).parameters
    known = {name: value for name, value in options.items() if name in accepted}
    return type(optimizer)([parameter], **known)  # type: ignore[call-arg]


def kept_states(optimizer: Optimizer, group: Mapping[str, Any], parameter: Tensor) -> set[str] | None:
    """The states that the optimizer keeps for a parameter of this group once it had a gradient: the same on all
    workers, whatever each holds by now.

    Found by a step of a copy of it on numbers that are not there (a meta tensor); None if that cannot be done.
    """
    import torch

    options = {name: value for name, value in group.items() if name != "params"}
    options |= {name: False for name in ("fused", "capturable") if options.get(name)}  # ask for the numbers' device
    shadow = torch.nn.Parameter(torch.empty_like(parameter, device="meta"))
    shadow.grad = torch.empty_like(shadow)
    try:
        copy = _copy(optimizer, shadow, options)
        copy.param_groups[0].update(options)
        copy.step()
    except Exception:  # somebody's optimizer that looks at the numbers, or is made in another way
        return None
    return set(copy.state[shadow])


def kept(optimizer: Optimizer, number: int, parameter: Tensor) -> set[str] | None:
    """`kept_states` for a parameter of its group of this number, found once for each shape: it takes as long as a part
    of a step."""
    known, what = _KEPT.setdefault(optimizer, {}), (number, parameter.shape, parameter.dtype)
    if what not in known:
        known[what] = kept_states(optimizer, optimizer.param_groups[number], parameter)
    return known[what]


def treat(
    rule: OptimizerState,
    round_number: int,
    optimizers: Sequence[Optimizer],
    available: list[str],
    mean: Callable[[str, Tensor], None],
) -> None:
    """Average or forget what the optimizers remember, as `rule` says for this round.

    `available` are their `names_of_states`; `mean(name, numbers)` replaces flat numbers by their mean over the workers.
    A state travels for the parameters that the optimizer keeps it for, as 0 from a worker that has none by now.
    """
    import torch

    from ticks.strategy.flat import FlatBuffer, copy

    if rule.resets(round_number):
        for optimizer in optimizers:
            optimizer.state.clear()
    names = rule.averaged(round_number, available)
    states = [
        (p, optimizer.state.get(p, {}), kept(optimizer, number, p) if names else None)
        for optimizer in optimizers
        for number, group in enumerate(optimizer.param_groups)
        for p in group["params"]
        if p.requires_grad
    ]
    for name in names:
        sent = [(p, state) for p, state, holds in states if holds is None or name in holds]
        if not sent:
            continue
        like = [state.get(name, torch.zeros_like(p)) for p, state in sent]
        buffer = FlatBuffer(like)
        buffer.load(like)
        mean(name, buffer.all)
        held = [(state[name], view) for (_, state), view in zip(sent, buffer.views, strict=True) if name in state]
        copy([value for value, _ in held], [view for _, view in held])
