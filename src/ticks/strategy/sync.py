"""Sync rules: what workers agree on at a tick.

The anchor is what all workers agreed on at the last tick, the pseudo-gradient g = anchor - mean_i x_i what they have
done since. A rule is what g does to the anchor, after which every worker restarts from it: `step`. Plain averaging is
anchor - g. A rule sees flat tensors, never modules. To add one: a class here, and a YAML in configs/strategy/sync/.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ticks.arguments import ArgumentError, at_least, share

OptimizerFactory = Callable[[Iterable[Tensor]], Optimizer]


class Sync:
    """theta_i <- mean_k theta_k, and what other rules may change of it."""

    averages_gradients = False  # also before the optimizer uses them, in the step that ends a round
    steps_locally = True  # whether workers use their optimizers between ticks
    keeps_anchor = False  # whether the anchor is the model that is evaluated and saved, and `step` more than averaging
    fragments: int | Sequence[Sequence[str]] = 1  # parts sent one by one, spread over the round: see fragments.py
    delay = 0  # steps between sending a part and using what came back, while the worker goes on
    alpha = 0.0  # share of a worker's own parameters that is left when it takes the anchor over
    meets_in_groups = False  # whether groups of `group_size` workers (None: of one node) meet inside a round
    group_size: int | None = None

    @property
    def only_averages(self) -> bool:
        """Whether the anchor just becomes the mean, so that nobody need keep it."""
        return type(self).step is Sync.step

    def begin(self, anchors: Sequence[Tensor]) -> None:
        """Training starts from these anchors, one flat tensor for each fragment; `step` changes them in place."""

    def step(self, fragment: int, anchor_P: Tensor, pseudo_gradient_P: Tensor, lr: float) -> None:
        """Move the anchor (P,) by the mean pseudo-gradient (P,), in place, the same on every worker.

        `lr` is the inner learning rate of the step just done. The pseudo-gradient may be overwritten.
        """
        anchor_P.sub_(pseudo_gradient_P)

    def moments(self) -> list[dict[str, Any]]:
        """What the rule remembers of each anchor, by name: tensors (P,), or values of the whole. [] if nothing."""
        return []

    def set_moments(self, moments: Sequence[dict[str, Any]]) -> None:
        """Take back what `moments` gave, after `begin`, laid out like the new anchors."""

    def group_offsets(self, interval: int) -> range:
        """After which steps of a round of `interval` steps the workers of a group meet."""
        return range(0)

    def state_dict(self) -> dict[str, Any]:
        """What the rule must remember to resume exactly."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave, after `begin`."""


class Parameters(Sync):
    """Local SGD (arXiv 1805.09767): theta_i <- mean_k theta_k. One message per tick."""


class Gradients(Sync):
    """At a tick l = mean_k l_k; theta_i <- theta_i - f l; then theta_i <- mean_k theta_k. Two messages per tick.

    With plain SGD it gives the same parameters as `Parameters`. In rounds of one step it is DDP, and one message.
    """

    averages_gradients = True


class Accumulate(Sync):
    """One optimizer step per round, with the mean gradient over all workers and all the round's steps. One message.

    Workers never differ: the exact way to send gradients every N steps, at the price of N times fewer updates.
    """

    averages_gradients = True
    steps_locally = False


class Outer(Sync):
    """An outer optimizer takes g as its gradient (arXiv 2311.08105); workers restart from the anchor it moves.

    `optimizer` makes any elementwise torch optimizer from a list of tensors: SGD(lr=1), the default, is `Parameters`;
    SGD(lr=0.7, momentum=0.9, nesterov=True) is DiLoCo. With `relative_to_lr` g is divided by the inner learning rate
    and the outer one multiplied by it: SGD(lr=alpha, momentum=beta) is then SlowMo (arXiv 1910.00643),
    u <- beta u + g / lr; anchor <- anchor - alpha lr u. ValueError for an optimizer that cannot be made like that.
    """

    keeps_anchor = True

    def __init__(self, optimizer: OptimizerFactory | None = None, *, relative_to_lr: bool = False) -> None:
        self.optimizer = optimizer or _averaging
        self._try()
        self.relative_to_lr = relative_to_lr
        self._optimizers: list[Optimizer] = []  # one for each fragment

    def _try(self) -> None:
        parameter = torch.nn.Parameter(torch.zeros(2))
        parameter.grad = torch.ones(2)
        try:
            self.optimizer([parameter]).step()
        except (TypeError, ValueError, RuntimeError) as error:  # unknown settings, a closure needed, matrices only
            raise ValueError(f"optimizer: cannot move a flat vector of parameters: {error}") from None

    def begin(self, anchors: Sequence[Tensor]) -> None:
        self._optimizers = [self.optimizer([torch.nn.Parameter(anchor)]) for anchor in anchors]
        self._rates = [[float(group["lr"]) for group in optimizer.param_groups] for optimizer in self._optimizers]

    def step(self, fragment: int, anchor_P: Tensor, pseudo_gradient_P: Tensor, lr: float) -> None:
        optimizer = self._optimizers[fragment]
        if self.relative_to_lr:
            if lr == 0:  # a schedule's end: the step without momentum, which the division would blow up
                anchor_P.sub_(pseudo_gradient_P, alpha=self._rates[fragment][0])
                return
            pseudo_gradient_P.div_(lr)
            for group, rate in zip(optimizer.param_groups, self._rates[fragment], strict=True):
                group["lr"] = rate * lr
        parameter = _anchor_of(optimizer)
        parameter.grad = pseudo_gradient_P
        optimizer.step()
        parameter.grad = None

    def moments(self) -> list[dict[str, Any]]:
        return [dict(optimizer.state.get(_anchor_of(optimizer), {})) for optimizer in self._optimizers]

    def set_moments(self, moments: Sequence[dict[str, Any]]) -> None:
        for optimizer, own in zip(self._optimizers, moments, strict=True):
            optimizer.state[_anchor_of(optimizer)] = dict(own)

    def state_dict(self) -> dict[str, Any]:
        return {"optimizers": [optimizer.state_dict() for optimizer in self._optimizers]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for optimizer, own in zip(self._optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(own)


class Streaming(Outer):
    """Streaming DiLoCo (arXiv 2501.18512): the parameters travel in fragments while the workers go on training.

    `fragments`: a number P of strided groups of layers (of fewer layers, as many), or one list of name patterns (`*`
    for anything) for each. Fragment k of a round of H steps is sent after its step H (k + 1) // P; what comes back is
    used `delay` steps later: x <- alpha x + (1 - alpha) anchor. One message per fragment and round, each 1 / P of the
    whole.
    ArgumentError unless fragments >= 1, delay >= 0 and 0 <= alpha <= 1.
    """

    def __init__(
        self,
        optimizer: OptimizerFactory | None = None,
        *,
        fragments: int | Sequence[Sequence[str]] = 4,
        delay: int = 1,
        alpha: float = 0.5,
        relative_to_lr: bool = False,
    ) -> None:
        super().__init__(optimizer, relative_to_lr=relative_to_lr)
        if (fragments < 1) if isinstance(fragments, int) else (not fragments):
            raise ArgumentError("fragments", fragments, "must be at least 1, or a list of lists of patterns")
        at_least(0, of=" steps", delay=delay)
        share(alpha=alpha)
        self.fragments = fragments if isinstance(fragments, int) else [list(patterns) for patterns in fragments]
        self.delay, self.alpha = int(delay), float(alpha)


class Hierarchical(Sync):
    """Workers of a group average their parameters every `inner_interval` steps, all of them at ticks (2010.12998).

    Groups are `group_size` neighbouring ranks; None: the workers of one node. What all do at a tick is another rule,
    `outer`. Inside a group numbers travel in fp32. ArgumentError for sizes below 1 and for `outer=Accumulate()`.
    """

    meets_in_groups = True

    def __init__(self, outer: Sync | None = None, *, group_size: int | None = None, inner_interval: int = 1) -> None:
        if group_size is not None:
            at_least(1, of=" workers", group_size=group_size)
        at_least(1, of=" steps", inner_interval=inner_interval)
        self.outer = outer or Parameters()
        if not self.outer.steps_locally or isinstance(self.outer, Hierarchical):
            raise ArgumentError("outer", type(self.outer).__name__, "leaves nothing to average inside a group")
        self.group_size = None if group_size is None else int(group_size)
        self.inner_interval = int(inner_interval)
        for name in ("averages_gradients", "keeps_anchor", "fragments", "delay", "alpha"):
            setattr(self, name, getattr(self.outer, name))

    @property
    def only_averages(self) -> bool:
        return type(self).step is Hierarchical.step and self.outer.only_averages

    def group_offsets(self, interval: int) -> range:
        return range(self.inner_interval, interval, self.inner_interval)

    def begin(self, anchors: Sequence[Tensor]) -> None:
        self.outer.begin(anchors)

    def step(self, fragment: int, anchor_P: Tensor, pseudo_gradient_P: Tensor, lr: float) -> None:
        self.outer.step(fragment, anchor_P, pseudo_gradient_P, lr)

    def moments(self) -> list[dict[str, Any]]:
        return self.outer.moments()

    def set_moments(self, moments: Sequence[dict[str, Any]]) -> None:
        self.outer.set_moments(moments)

    def state_dict(self) -> dict[str, Any]:
        return self.outer.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.outer.load_state_dict(state)


def _anchor_of(optimizer: Optimizer) -> Tensor:
    (anchor,) = optimizer.param_groups[0]["params"]
    return anchor


def _averaging(anchors: Iterable[Tensor]) -> Optimizer:
    return torch.optim.SGD(anchors, lr=1.0)
