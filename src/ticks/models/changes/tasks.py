"""Several tasks on one base: whose components take part, for all examples of a batch or for each one."""

import re
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
        self.n_tokens: int | None = None  # of each example of a batch of token ids
        self.brought: dict[str, tuple[str, ...]] = {}  # by task: what of the base its adapter file has put in place
        self._indices: dict[Any, Tensor] = {}

    def hook(self, model: nn.Module) -> None:
        """Look at what the model is given, from now on."""
        if next(self._looks(model), None) is None:
            model.register_forward_pre_hook(self.look, with_kwargs=True)

    def unhook(self, model: nn.Module) -> None:
        """Look at nothing any more that is given to the model or to a part of it."""
        for module in model.modules():
            for number in list(self._looks(module)):
                del module._forward_pre_hooks[number]
                module._forward_pre_hooks_with_kwargs.pop(number, None)

    def _looks(self, module: nn.Module) -> Iterator[int]:
        """The numbers of its hooks at a module. (A handle of them cannot be copied with a model: that of a wrapper
        which is gone, torch fails on.)"""
        return (n for n, hook in module._forward_pre_hooks.items() if getattr(hook, "__self__", None) is self)

    def indices(self, known: Sequence[str], device: torch.device) -> Tensor:
        """Each example's task as a number in `known`; what is not there is `len(known)`: (B,)."""
        key = (self.names, tuple(known), str(device))
        if key not in self._indices:
            place = {name: i for i, name in enumerate(known)}
            found = torch.tensor([place.get(name, len(known)) for name in self.names or ()], device=device)
            self._indices = {of: kept for of, kept in self._indices.items() if of[0] == self.names} | {key: found}
        return self._indices[key]

    def rows(self, x: Tensor, what: str) -> Tensor:
        """x with its first dimension for the examples, and one more for what lies within: (B, T, D); where a model has
        put all tokens behind each other, they are taken apart. ArgumentError for what is not the examples'."""
        n = len(self.names or ())
        flat = x.dim() == 2 and self.n_tokens is not None and x.shape[0] == n * self.n_tokens
        if x.shape[0] != n and not flat:
            wrong = f"are not the {x.shape[0]} rows that {what} sees: compute one task after the other"
            raise ArgumentError("task", f"{n} names", wrong)
        return x.reshape(n, -1, x.shape[-1])

    def look(self, model: nn.Module, inputs: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        """ArgumentError for a batch of another size than there are names."""
        said = [named[name] for name in ("input_ids", "inputs_embeds", "pixel_values") if name in named]
        first = next((x for x in (*inputs, *said, *named.values()) if isinstance(x, Tensor) and x.dim()), None)
        if first is None:
            return
        self.n_tokens = first.shape[1] if first.dim() == 2 and not first.is_floating_point() else None
        if self.names is not None and len(first) != len(self.names):
            raise ArgumentError("task", f"{len(self.names)} names", f"must be as many as the {len(first)} examples")


_EMPTY = nn.ModuleDict()


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
    """The model's, made if it has none yet; one for all of it, where its parts had several."""
    modules = [module for _, module in task_modules(model)]
    several = list({id(module.chosen): module.chosen for module in modules}.values())
    chosen, *others = several or [Chosen()]
    for other in others:
        other.unhook(model)
        chosen.brought |= other.brought
    for module in modules:
        module.chosen = chosen
    chosen.hook(model)
    return chosen


def tasks_of(model: nn.Module) -> list[str]:
    """The names of the tasks whose components a model has."""
    return list(dict.fromkeys(name for _, module in task_modules(model) for name in module.tasks))


def check_task(model: nn.Module, task: str) -> None:
    """ArgumentError if the model has no such task."""
    if task not in (known := tasks_of(model)):
        raise ArgumentError("task", task, f"is unknown; known: {', '.join(known) or 'none'}")


class IsMerged:
    """A mark of what `merge` leaves as `model.merged`."""


def check_new(model: nn.Module, task: Any) -> bool:
    """Whether the model has no such task yet. ArgumentError for what cannot be a task's name, and for a model that a
    task is merged into."""
    if any(isinstance(vars(module).get("merged"), IsMerged) for module in model.modules()):
        raise ArgumentError("model", type(model).__name__, "is merged: unmerge(model) first, or save and load it")
    if not isinstance(task, str) or not re.fullmatch(r"[\w-]+", task) or hasattr(_EMPTY, task):
        valid = "must be of letters, digits, - and _, and nothing that torch calls something else"
        raise ArgumentError("task", task, valid)
    return task not in tasks_of(model)


def freeze(model: nn.Module) -> nn.Module:
    """Nothing of it trains any more: the model itself."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model


def set_task(model: nn.Module, task: str | Iterable[str] | None) -> None:
    """From now on this task's ticks, norms and head take part; None: the base alone. Names, one per example: each row
    of the next batches is computed with its own task's. ArgumentError for one that the model does not have.

    With gradient checkpointing, which computes a second time, set another one behind `backward` only."""
    if task is None and not tasks_of(model):
        return
    names = (task,) if isinstance(task, str) else tuple(task or ())
    if task is not None and not names:
        raise ArgumentError("task", task, "names none; None is the base alone")
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
