"""Optimizers with parameter groups, and schedules of the learning rate. Works with any module. Of the package it uses
`arguments` alone.

An optimizer is what makes a torch.optim.Optimizer of parameter groups, `functools.partial(torch.optim.SGD, lr=0.1)`
say. A schedule is a factor of its learning rate: any `Callable[[int, float], float]` of the step that is about to be
done (0 is the first) and of how many there will be.
"""

from ticks.optim.adamw import adamw
from ticks.optim.groups import Rule, configure, grouped
from ticks.optim.lion import Lion
from ticks.optim.muon import Muon
from ticks.optim.schedules import (
    Constant,
    InverseSqrt,
    WarmupCosine,
    WarmupLinear,
    WarmupStableDecay,
)

__all__ = [
    "Constant",
    "InverseSqrt",
    "Lion",
    "Muon",
    "Rule",
    "WarmupCosine",
    "WarmupLinear",
    "WarmupStableDecay",
    "adamw",
    "configure",
    "grouped",
]
