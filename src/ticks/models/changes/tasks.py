"""Several tasks on one base: whose components take part, for all examples of a batch or for each one."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ticks.arguments import ArgumentError


class Chosen:
    """Which task's components take part: one `name` for all examples, `names` one by one, or none."""

    def __init__(self) -> None:
        self.name: str | None = None
        self.names: tuple[str, ...] | None = None

    def indices(self, known: Sequence[str], device: torch.device) -> Tensor:
        """Each example's task as a number in `known`; what is not there is `len(known)`: (B,)."""
        place = {name: i for i, name in enumerate(known)}
        return torch.tensor([place.get(name, len(known)) for name in self.names or ()], device=device)

    def check(self, model: nn.Module, inputs: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        """ArgumentError for a batch of another size than there are names."""
        first = next((x for x in (*inputs, *named.values()) if isinstance(x, Tensor) and x.dim()), None)
        if self.names is not None and first is not None and len(first) != len(self.names):
            raise ArgumentError("task", f"{len(self.names)} names", f"must be as many as the {len(first)} examples")


class TaskModule(nn.Module):
    """Components of several tasks at one place of a model. All of a model's share what is `chosen`."""

    NAME = ""  # under which a module that it is about knows it

    def __init__(self, chosen: Chosen) -> None:
        super().__init__()
        self.chosen = chosen
        self.tasks: Any = nn.ModuleDict()
        self._about: tuple[nn.Module, ...] = ()
        self._handles: list[RemovableHandle] = []

    def enter(self) -> None:
        """Take part in the model again."""
        raise NotImplementedError

    def leave(self) -> None:
        """Take part in the model no more."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        delattr(self._about[-1], self.NAME)


def task_modules(model: nn.Module) -> Iterator[tuple[str, TaskModule]]:
    return ((name, module) for name, module in model.named_modules() if isinstance(module, TaskModule))


def chosen_of(model: nn.Module) -> Chosen:
    """The model's, made if it has none yet."""
    found = next((module.chosen for _, module in task_modules(model)), None)
    if found is None:
        found = Chosen()
        model.register_forward_pre_hook(found.check, with_kwargs=True)
    return found


def tasks_of(model: nn.Module) -> list[str]:
    """The names of the tasks whose components a model has."""
    return list(dict.fromkeys(name for _, module in task_modules(model) for name in module.tasks))


def check_task(model: nn.Module, task: str) -> None:
    """ArgumentError if the model has no such task."""
    if task not in (known := tasks_of(model)):
        raise ArgumentError("task", task, f"is unknown; known: {', '.join(known) or 'none'}")


def set_task(model: nn.Module, task: str | Iterable[str] | None) -> None:
    """From now on this task's ticks, norms and head take part; None: the base alone. Names, one per example: each row
    of the next batches is computed with its own task's. ArgumentError for one that the model does not have."""
    if task is None and not tasks_of(model):
        return
    names = (task,) if isinstance(task, str) else tuple(task or ())
    for name in dict.fromkeys(names):
        check_task(model, name)
    chosen = chosen_of(model)
    alike = len(set(names)) == 1
    chosen.name = names[0] if alike else None
    chosen.names = names if names and not alike else None


@contextmanager
def task_set(model: nn.Module, task: str | Iterable[str] | None) -> Iterator[None]:
    """`set_task` for a block, and what it was before afterwards."""
    chosen = chosen_of(model)
    before = chosen.name, chosen.names
    set_task(model, task)
    try:
        yield
    finally:
        chosen.name, chosen.names = before


def parameters_of(model: nn.Module, task: str) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters that are a task's own, by their names in the model."""
    for place, module in task_modules(model):
        if task in module.tasks:
            for name, parameter in module.tasks[task].named_parameters():
                yield f"{place}.tasks.{task}.{name}", parameter


def rows(x: Tensor, n: int, what: str) -> Tensor:
    """x with its first dimension for the examples, and one more for what lies within: (B, T, D); where a model has put
    all tokens behind each other, they are taken apart. ArgumentError for a batch of another size than the names."""
    if x.shape[0] != n and (x.dim() != 2 or x.shape[0] % n):
        raise ArgumentError("task", f"{n} names", f"must be as many as the examples; {what} sees {x.shape[0]}")
    return x.reshape(n, -1, x.shape[-1])
