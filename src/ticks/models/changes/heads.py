"""A head for each task: features of an example in, logits of its own task's classes out."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ticks.arguments import ArgumentError, at_least
from ticks.models.changes.tasks import Chosen, TaskModule, check_new
from ticks.models.initialise import role


class TaskHeads(TaskModule):
    """(B, D) -> (B, C) of the chosen task. Where each example has its own, C is that of the task with the most classes,
    and what another one does not have is -inf. ArgumentError where no task with a head is chosen."""

    def __init__(self, chosen: Chosen, d_model: int, n_classes: Mapping[str, int] | None = None) -> None:
        super().__init__(chosen)
        self.d_model = d_model
        for task, n in (n_classes or {}).items():
            self.add(task, n)

    def add(self, task: str, n_classes: int) -> None:
        at_least(1, n_classes=n_classes)
        check_new(self, task)
        head = role("head", nn.Linear(self.d_model, n_classes))
        nn.init.normal_(head.weight, std=0.02)
        nn.init.zeros_(head.bias)
        self.tasks[task] = head

    def enter(self) -> None:
        """It always takes part."""

    def leave(self) -> None:
        """It stays."""

    def forward(self, x_BxD: Tensor) -> Tensor:
        if self.chosen.names is None:
            if self.chosen.name not in self.tasks:
                raise ArgumentError("task", self.chosen.name, f"has no head; known: {', '.join(self.tasks)}")
            return self.tasks[self.chosen.name](x_BxD)
        if len(x_BxD) != len(self.chosen.names):
            raise ArgumentError("task", f"{len(self.chosen.names)} names", f"are not the {len(x_BxD)} rows of a head")
        if lost := [name for name in self.chosen.names if name not in self.tasks]:
            raise ArgumentError("task", lost[0], f"has no head; known: {', '.join(self.tasks)}")
        index_B = self.chosen.indices(list(self.tasks), x_BxD.device)
        every = {name: head(x_BxD) for name, head in self.tasks.items() if name in self.chosen.names}
        most = max(logits.shape[1] for logits in every.values())
        out_BxC = x_BxD.new_full((len(x_BxD), most), -torch.inf, dtype=next(iter(every.values())).dtype)
        for i, name in enumerate(self.tasks):
            if name in every:
                mine = (index_B == i).unsqueeze(1)
                padded = nn.functional.pad(every[name], (0, most - every[name].shape[1]), value=-torch.inf)
                out_BxC = torch.where(mine, padded, out_BxC)
        return out_BxC
