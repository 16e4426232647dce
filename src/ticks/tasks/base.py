"""What every task shares: a model, and how it is optimized."""

from collections.abc import Mapping, Sequence
from typing import Any

from lightning import LightningModule
from torch import nn

from ticks.optim import Rule, WarmupCosine, adamw, configure
from ticks.optim.groups import MakesOptimizer, Schedule


class Task(LightningModule):
    """Train `model`. `optimizer` makes one of parameter groups (default: AdamW), `schedule` is a factor of its learning
    rate at each optimizer step (default: warm-up and cosine), `parameter_groups` are `ticks.optim.Rule`s.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        optimizer: MakesOptimizer = adamw,
        schedule: Schedule | None = None,
        parameter_groups: Sequence[Rule | Mapping[str, Any]] = (),
    ) -> None:
        super().__init__()
        self.model = model
        self.make_optimizer = optimizer
        self.schedule = WarmupCosine(warmup_steps=50, min_ratio=0.1) if schedule is None else schedule
        self.parameter_groups = [rule if isinstance(rule, Rule) else Rule(**rule) for rule in parameter_groups]

    def configure_optimizers(self) -> Any:
        return configure(self, self.make_optimizer, self.schedule, self.parameter_groups)
