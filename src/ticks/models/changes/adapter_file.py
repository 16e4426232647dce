"""A task's components in a safetensors file, with a fingerprint of the base that they belong to. No pickle is read.

Needs safetensors: pip install -e ".[tuning]".
"""

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ticks.arguments import ArgumentError
from ticks.models.changes.beside import Beside, Ticks, attach_ticks
from ticks.models.changes.families import FAMILIES, FFN, Family, find_ffns
from ticks.models.changes.frozen import base, digest
from ticks.models.changes.heads import TaskHeads
from ticks.models.changes.merge import Merged
from ticks.models.changes.task_norm import TaskNorm, is_norm, task_norms
from ticks.models.changes.tasks import check_new, check_task, chosen_of, set_task, task_modules, tasks_of

FORMAT = "1"
NEEDS = 'adapter files need safetensors: pip install -e ".[tuning]"'
SAID = ("format", "task", "base", "covers", "model", "layout", "more")  # what a file's header has


class AdapterError(ValueError):
    """A file that cannot be used for this model, or a model that cannot be saved so. Its text is the reason."""


@dataclass
class Adapter:
    """What a file holds. `covers` are the base's tensors that the fingerprint `base` is of, `layout` says by place what
    was there of the task, and `more` are tensors of the base that trained with it (a head)."""

    task: str
    base: str
    covers: list[str]
    model: str
    layout: dict[str, dict[str, Any]]
    more: list[str]
    tensors: dict[str, Tensor]

    def places(self, kind: str) -> list[str]:
        return [place for place, about in self.layout.items() if about["kind"] == kind]


def save_adapter(model: nn.Module, path: str | Path, task: str | None = None) -> Path:
    """Write a task's ticks, norms and head, and what else of the model trains (another head), to `path`.

    `task` may be left out where there is one. AdapterError for a merged model, and for one whose base trains as well.
    """
    try:
        from safetensors.torch import save_file
    except ImportError:
        raise AdapterError(NEEDS) from None
    if isinstance(getattr(model, "merged", None), Merged):
        raise AdapterError("the model is merged: unmerge(model) first, or save all of it")
    known = tasks_of(model)
    if not known:
        raise AdapterError("the model has no ticks and no task norms")
    if task is None and len(known) != 1:
        raise AdapterError(f"the model has {len(known)} tasks ({', '.join(known)}): say which, task=...")
    task = task or known[0]
    check_task(model, task)
    _refuse_a_base_that_trains(model)
    tensors, layout = _own(model, task)
    more = _trained(model)
    covered = {name: value for name, value in base(model).items() if name not in more}
    about = {
        "format": FORMAT, "task": task, "base": digest(covered), "covers": json.dumps(sorted(covered)),
        "model": type(model).__name__, "layout": json.dumps(layout), "more": json.dumps(sorted(more)),
    }  # fmt: skip
    file = Path(path)
    if file.is_dir():
        raise AdapterError(f"{file} is a folder")
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(f"{file.name}.{os.getpid()}.partial")
    save_file({name: t.detach().cpu().contiguous().clone() for name, t in (tensors | more).items()}, draft, about)
    draft.replace(file)
    return file


def load_adapter(
    model: nn.Module, path: str | Path, task: str | None = None, *, families: tuple[Family, ...] = FAMILIES
) -> nn.Module:
    """Put what `save_adapter` wrote beside the same base, in place, and set its task: the model itself.

    `task` gives it another name. AdapterError, and nothing is changed, for a file that is none, is cut short, lacks a
    tensor or was made for another base.
    """
    try:
        file = _read(Path(path))
        task = task or file.task
        if not check_new(model, task):
            raise AdapterError(f"the model has a task '{task}' already; give it another name: task=...")
        _check_base(model, file)
        ffns = _check_fit(model, file, families)
    except (AdapterError, ArgumentError) as error:
        raise AdapterError(f"{path}: {error}") from None
    try:
        _build(model, file, task, ffns, families)
    except ArgumentError as error:  # a scale that none can have
        if task in tasks_of(model):
            remove_task(model, task)
        raise AdapterError(f"{path}: {error}") from None
    targets = _own(model, task)[0] | {name: value for name, value in base(model).items() if name in file.more}
    for name, value in file.tensors.items():
        targets[name].data.copy_(value)
    for name, parameter in model.named_parameters():
        if name in file.more:
            parameter.requires_grad_(True)
    chosen_of(model).brought[task] = tuple(file.more)
    set_task(model, task)
    return model


def remove_task(model: nn.Module, task: str) -> nn.Module:
    """Take a task's ticks, norms and head away, in place: the model itself. The base is what it was."""
    check_task(model, task)
    chosen = chosen_of(model)
    for _, module in list(task_modules(model)):
        if task in module.tasks:
            del module.tasks[task]
        if not module.tasks:
            module.leave()
    chosen.brought.pop(task, None)
    left = tasks_of(model)
    chosen.name, chosen.names = (left[0] if left else None), None
    if not left:
        chosen.unhook(model)
    return model


# ---- what a file says


def _read(path: Path) -> Adapter:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError:
        raise AdapterError(NEEDS) from None
    if not path.is_file():
        raise AdapterError("it does not exist")
    try:
        with safe_open(path, framework="pt") as file:
            about = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise AdapterError(f"it is no whole safetensors file: {' '.join(str(error).split())}") from None
    if missing := [key for key in SAID if key not in about]:
        raise AdapterError(f"it is no adapter of ours: it does not say its {missing[0]}")
    if about["format"] != FORMAT:
        raise AdapterError(f"it has format {about['format']}; this version reads {FORMAT}")
    try:
        layout, more, covers = (json.loads(about[key]) for key in ("layout", "more", "covers"))
        sound = all(isinstance(name, str) for names in (more, covers) for name in names)
        sound &= all(set(part["tensors"]) and _is_sound(part) for part in layout.values())
    except (ValueError, TypeError, KeyError, AttributeError):
        sound = False
    if not sound:
        raise AdapterError("it is damaged: what it says of itself cannot be read")
    expected = {f"{place}.{name}" for place, part in layout.items() for name in part["tensors"]} | set(more)
    if wrong := sorted(expected ^ set(tensors)):
        raise AdapterError(f"it {'lacks' if wrong[0] in expected else 'has an unknown'} tensor {wrong[0]}")
    return Adapter(about["task"], about["base"], covers, about["model"], layout, more, tensors)


def _is_sound(part: Mapping[str, Any]) -> bool:
    """Whether it says of a place all that building there needs."""
    if part["kind"] != "beside":
        return part["kind"] in ("norm", "head")
    numbers = all(isinstance(part[key], int | float) for key in ("width", "scale", "dropout"))
    return numbers and isinstance(part["bias"], bool) and isinstance(part["activation"], str | None)


def _check_base(model: nn.Module, file: Adapter) -> None:
    """AdapterError for another base than it was made for."""
    there, kind = base(model), type(model).__name__
    if lost := [name for name in (*file.more, *file.covers) if name not in there]:
        raise AdapterError(
            f"it belongs to another base: it has {lost[0]}, which this {kind} does not; it was a {file.model}"
        )
    found = digest({name: there[name] for name in file.covers})
    if found != file.base:
        raise AdapterError(
            f"it belongs to another base: that of a {file.model} with the fingerprint {file.base[:12]};"
            f" this {kind} has {found[:12]}"
        )
    for task, names in chosen_of(model).brought.items() if tasks_of(model) else ():
        if twice := sorted(set(names) & set(file.more)):
            raise AdapterError(f"its {twice[0]} would take the place of task '{task}': give each a head, TaskHeads")


def _check_fit(model: nn.Module, file: Adapter, families: tuple[Family, ...]) -> list[FFN]:
    """AdapterError for what has no place in the model, before any of it is built; the model's FFNs."""
    modules, there = dict(model.named_modules()), base(model)
    expected: dict[str, tuple[int, ...]] = {name: tuple(there[name].shape) for name in file.more}
    ffns = find_ffns(model, families) if file.places("beside") else []
    at = {f"{name}.ticks": ffn for ffn in ffns for name, module in modules.items() if module is ffn.down}
    for place in file.places("beside"):
        if place not in at:
            raise AdapterError(f"there is no FFN at {place.removesuffix('.ticks')}")
        k, d = file.layout[place].get("width"), at[place].d_model
        found = file.tensors.get(f"{place}.up.weight")
        if not isinstance(k, int) or found is None or found.dim() != 2 or found.shape[1] != k:
            raise AdapterError(f"{place}.up.weight is not of the width {k} that it says")
        sizes = {"down.weight": (k, d), "up.weight": (d, k)} | (
            {"down.bias": (k,)} if file.layout[place]["bias"] else {}
        )
        expected |= {f"{place}.{name}": size for name, size in sizes.items()}
    for place in file.places("norm"):
        norm = modules.get(place.removesuffix(".task_norms"))
        if norm is None or not is_norm(norm):
            raise AdapterError(f"there is no norm at {place.removesuffix('.task_norms')}")
        expected |= {f"{place}.{name}": tuple(p.shape) for name, p in norm._parameters.items() if p is not None}
    for place in file.places("head"):
        heads = modules.get(place)
        if not isinstance(heads, TaskHeads):
            raise AdapterError(f"there are no TaskHeads at {place}")
        n = file.layout[place].get("n_classes")
        expected |= {f"{place}.weight": (n, heads.d_model), f"{place}.bias": (n,)}  # type: ignore[dict-item]
    if wrong := sorted(expected.keys() ^ file.tensors.keys()):
        raise AdapterError(f"it {'lacks' if wrong[0] in expected else 'has an unknown'} tensor {wrong[0]}")
    for name, value in file.tensors.items():
        if tuple(value.shape) != expected[name]:
            raise AdapterError(f"its {name} is {tuple(value.shape)}, here it is {expected[name]}")
    return ffns


# ---- what a model has


def _refuse_a_base_that_trains(model: nn.Module) -> None:
    """AdapterError: the file would have no base to belong to."""
    names = {module: name for name, module in model.named_modules()}
    for place, module in task_modules(model):
        for part in module._about:
            if trains := [name for name, p in part._parameters.items() if p is not None and p.requires_grad]:
                raise AdapterError(
                    f"{names[part]}.{trains[0]}, beside {place}, trains as well: an adapter belongs to a base that is"
                    " frozen; freeze it before training, or save all of the model"
                )


def _own(model: nn.Module, task: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A task's parameters by name, without its own, and what they are part of."""
    tensors: dict[str, Tensor] = {}
    layout: dict[str, Any] = {}
    for place, module in task_modules(model):
        if task not in module.tasks:
            continue
        part: Any = module.tasks[task]
        for name, parameter in part.named_parameters():
            tensors[f"{place}.{name}"] = parameter
        about: dict[str, Any] = {"tensors": [name for name, _ in part.named_parameters()]}
        if isinstance(module, Beside):
            assert isinstance(part, Ticks)
            about |= {"kind": "beside", "width": part.width, "scale": part.scale, "dropout": part.dropout.p,
                      "bias": part.down.bias is not None, "activation": module.activation}  # fmt: skip
        elif isinstance(module, TaskNorm):
            about |= {"kind": "norm"}
        else:
            about |= {"kind": "head", "n_classes": part.out_features}
        layout[place] = about
    return tensors, layout


def _trained(model: nn.Module) -> dict[str, Tensor]:
    """What trains and belongs to no task: a head, an embedding."""
    ours = tuple(f"{place}." for place, _ in task_modules(model))
    return {name: p for name, p in model.named_parameters() if p.requires_grad and not name.startswith(ours)}


def _build(model: nn.Module, file: Adapter, task: str, ffns: Iterable[FFN], families: tuple[Family, ...]) -> None:
    """Components as they were when they were saved, with initial values."""
    layout: Mapping[str, Any] = file.layout
    names = {module: name for name, module in model.named_modules()}
    kinds: dict[str, dict[int, int]] = {}  # by what else they are: the width of each FFN's
    for i, ffn in enumerate(ffns):
        about = layout.get(f"{names[ffn.down]}.ticks")
        if about is not None:
            kind = json.dumps({key: about[key] for key in ("scale", "dropout", "activation", "bias")})
            kinds.setdefault(kind, {})[i] = about["width"]
    for kind, widths in kinds.items():
        attach_ticks(model, widths, task=task, families=families, **json.loads(kind))
    if norms := {place.removesuffix(".task_norms") for place in file.places("norm")}:
        task_norms(model, task=task, where=lambda name: name in norms)
    for place in file.places("head"):
        heads: Any = model.get_submodule(place)
        heads.add(task, layout[place]["n_classes"])
