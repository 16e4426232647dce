"""Parameter groups by name, and what Lightning is told of optimizer and schedule."""

import inspect
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightning import LightningModule
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from ticks.arguments import ArgumentError, not_negative

MakesOptimizer = Callable[..., Optimizer]
Schedule = Callable[[int, float], float]
OUTER = ("input", "head")  # roles of layers (ticks.models.initialise) whose weights are no hidden matrices


@dataclass(frozen=True)
class Rule:
    """Parameters whose name `match` (a regular expression) finds have this decay, and this factor of the learning rate.

    `weight_decay` None: the optimizer's own on matrices, 0 on vectors. One that is `optional` may match nothing.
    ArgumentError for numbers that cannot be used.
    """

    match: str
    weight_decay: float | None = None
    lr_factor: float = 1.0
    optional: bool = False

    def __post_init__(self) -> None:
        not_negative(lr_factor=self.lr_factor, weight_decay=self.weight_decay or 0.0)
        if not isinstance(self.optional, bool):
            raise ArgumentError("optional", self.optional, "must be true or false")
        try:
            re.compile(self.match)
        except re.error as error:
            raise ArgumentError("match", self.match, f"is no regular expression: {error}") from None


def grouped(
    module: nn.Module, rules: Sequence[Rule | Mapping[str, Any]] = (), *, lr: float = 0.0, matrices: bool = False
) -> list[dict[str, Any]]:
    """Groups over every parameter that may ever train: frozen ones have no gradient, so that thawing them later works.

    The first of the `rules` that matches a parameter's name counts; `lr` is what their factors are of. Vectors and
    scalars (biases, norms) do not decay. With `matrices` the weights of linear layers are groups of their own, which
    say of how many matrices a weight consists; not those of layers whose `role` is "input" or "head", which lead into a
    model and out of it as embeddings do. ArgumentError for a rule that matches nothing.
    """
    chosen = [rule if isinstance(rule, Rule) else Rule(**rule) for rule in rules]
    linear = [m for m in module.modules() if type(m) is nn.Linear and getattr(m, "role", "") not in OUTER]
    blocks = {id(m.weight): int(getattr(m, "matrices", 1)) for m in linear}
    for module_ in module.modules():
        if isinstance(module_, nn.Embedding):
            blocks.pop(id(module_.weight), None)  # tied to a head
    groups: dict[tuple[Any, ...], dict[str, Any]] = {}
    unused = {rule for rule in chosen if not rule.optional}
    for name, parameter in sorted(module.named_parameters(), key=lambda item: item[1].ndim < 2):  # matrices first
        rule = next((rule for rule in chosen if re.search(rule.match, name)), None)
        unused.discard(rule)  # type: ignore[arg-type]
        decay = rule.weight_decay if rule and rule.weight_decay is not None else None if parameter.ndim >= 2 else 0.0
        factor = rule.lr_factor if rule else 1.0
        n = blocks.get(id(parameter), 0) if matrices else 0
        group = groups.setdefault((decay, factor, n), {"params": []})
        group["params"].append(parameter)
        group |= {} if decay is None else {"weight_decay": decay}
        group |= {} if factor == 1.0 else {"lr": lr * factor}
        group |= {"matrices": n} if n else {}
    if unused:
        raise ArgumentError("parameter_groups", sorted(rule.match for rule in unused), "match no parameter")
    return list(groups.values())


def configure(
    module: LightningModule,
    optimizer: MakesOptimizer,
    schedule: Schedule | None = None,
    parameter_groups: Sequence[Rule | Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """What a LightningModule's `configure_optimizers` returns: the schedule moves once per optimizer step."""
    made: Any = getattr(optimizer, "func", optimizer)  # of a partial
    settings = {name: p.default for name, p in inspect.signature(made).parameters.items() if p.default is not p.empty}
    settings |= getattr(optimizer, "keywords", {})
    lr = float(settings.get("lr", float("nan")))
    groups = grouped(module, parameter_groups, lr=lr, matrices=getattr(made, "wants_matrices", False))
    if any(math.isnan(group.get("lr", 0.0)) for group in groups):
        raise ArgumentError("lr_factor", "given", "needs an optimizer whose lr can be read: partial(SGD, lr=0.1)")
    scaled = "mixed" in str(module.trainer.precision)  # Lightning does not clip fused steps of scaled gradients
    built = optimizer(groups, fused=False) if scaled and settings.get("fused") else optimizer(groups)
    if schedule is None:
        return {"optimizer": built}
    total = module.trainer.estimated_stepping_batches - getattr(module, "steps_before", 0)  # of a run, before it

    def factor(step: int) -> float:  # a plain function: LambdaLR leaves it out of checkpoints
        return schedule(step, total)

    return {"optimizer": built, "lr_scheduler": {"scheduler": LambdaLR(built, factor), "interval": "step"}}
