"""A task's components in a safetensors file, with a fingerprint of the base that they belong to. No pickle is read.

Needs safetensors: pip install -e ".[tuning]".
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ticks.models.changes.beside import Beside, Ticks, attach_ticks
from ticks.models.changes.families import FAMILIES, Family, find_ffns
from ticks.models.changes.frozen import base, digest
from ticks.models.changes.merge import Merged
from ticks.models.changes.task_norm import TaskNorm, task_norms
from ticks.models.changes.tasks import check_task, set_task, task_modules, tasks_of

FORMAT = "1"
NEEDS = 'adapter files need safetensors: pip install -e ".[tuning]"'


class AdapterError(ValueError):
    """A file that cannot be used for this model, or a model that cannot be saved so. Its text is the reason."""


def save_adapter(model: nn.Module, path: str | Path, task: str | None = None) -> Path:
    """Write a task's ticks and norms, and everything else of the model that trains (a head), to `path`.

    `task` may be left out where there is one. AdapterError for a merged model.
    """
    try:
        from safetensors.torch import save_file
    except ImportError:
        raise AdapterError(NEEDS) from None
    if isinstance(getattr(model, "merged", None), Merged):
        raise AdapterError("the model is merged: unmerge(model) first, or save all of it")
    known = tasks_of(model)
    if task is None and len(known) != 1:
        raise AdapterError(f"the model has {len(known)} tasks ({', '.join(known) or 'none'}): say which, task=...")
    task = task or known[0]
    check_task(model, task)
    tensors, layout = _own(model, task)
    more = _trained(model)
    about = {
        "format": FORMAT, "task": task, "base": digest(_without(base(model), more)),
        "model": type(model).__name__, "layout": json.dumps(layout), "more": json.dumps(sorted(more)),
    }  # fmt: skip
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(f"{file.name}.partial")
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
    about, tensors = _read(Path(path))
    task = task or about["task"]
    if task in tasks_of(model):
        raise AdapterError(f"{path}: the model has a task '{task}' already; give it another name: task=...")
    more = json.loads(about["more"])
    there = base(model)
    if lost := [name for name in more if name not in there]:
        raise AdapterError(
            f"{path} has {lost[0]}, which this {type(model).__name__} does not; it was a {about['model']}"
        )
    found = digest(_without(there, more))
    if found != about["base"]:
        raise AdapterError(
            f"{path} belongs to another base: that of a {about['model']} with the fingerprint {about['base'][:12]};"
            f" this {type(model).__name__} has {found[:12]}"
        )
    layout = json.loads(about["layout"])
    expected = _names(layout) | set(more)
    if expected != set(tensors):
        wrong = sorted(expected ^ set(tensors))[0]
        raise AdapterError(f"{path} {'lacks' if wrong in expected else 'has an unknown'} tensor {wrong}")
    _build(model, layout, task, families)
    own, _ = _own(model, task)
    targets = own | {name: there[name] for name in more}
    for name, value in tensors.items():
        if targets[name].shape != value.shape:
            remove_task(model, task)
            raise AdapterError(f"{path}: {name} is {tuple(value.shape)}, here it is {tuple(targets[name].shape)}")
    for name, value in tensors.items():
        targets[name].data.copy_(value)
    set_task(model, task)
    return model


def remove_task(model: nn.Module, task: str) -> nn.Module:
    """Take a task's ticks, norms and head away, in place: the model itself. The base is what it was."""
    check_task(model, task)
    for _, module in task_modules(model):
        if task in module.tasks:
            del module.tasks[task]
    left = tasks_of(model)
    for _, module in list(task_modules(model)):
        if not module.tasks:
            module.leave()
    set_task(model, left[0] if left else None)
    return model


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError:
        raise AdapterError(NEEDS) from None
    if not path.is_file():
        raise AdapterError(f"{path} does not exist")
    try:
        with safe_open(path, framework="pt") as file:
            about = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise AdapterError(f"{path} is no whole safetensors file: {' '.join(str(error).split())}") from None
    if missing := {"format", "task", "base", "model", "layout", "more"} - about.keys():
        raise AdapterError(f"{path} is no adapter of ours: it does not say its {sorted(missing)[0]}")
    if about["format"] != FORMAT:
        raise AdapterError(f"{path} has format {about['format']}; this version reads {FORMAT}")
    return about, tensors


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
        layout[place] = about
    return tensors, layout


def _names(layout: Mapping[str, Any]) -> set[str]:
    return {f"{place}.{name}" for place, about in layout.items() for name in about["tensors"]}


def _trained(model: nn.Module) -> dict[str, Tensor]:
    """What trains and belongs to no task: a head, biases."""
    ours = tuple(f"{place}." for place, _ in task_modules(model)) or ("\0",)
    return {name: p for name, p in model.named_parameters() if p.requires_grad and not name.startswith(ours)}


def _without(tensors: dict[str, Tensor], names: Any) -> dict[str, Tensor]:
    return {name: value for name, value in tensors.items() if name not in names}


def _build(model: nn.Module, layout: Mapping[str, Any], task: str, families: tuple[Family, ...]) -> None:
    """Components as they were when they were saved, with initial values."""
    ticks = {place: about for place, about in layout.items() if about.get("kind") == "beside"}
    if ticks:
        names = {module: name for name, module in model.named_modules()}
        places = [f"{names[ffn.down]}.ticks" for ffn in find_ffns(model, families)]
        if lost := [place for place in ticks if place not in places]:
            raise AdapterError(f"there is no FFN at {lost[0].removesuffix('.ticks')}")
        kinds: dict[str, list[str]] = {}
        for place, about in ticks.items():
            kinds.setdefault(json.dumps({k: about[k] for k in ("scale", "dropout", "activation", "bias")}), []).append(
                place
            )
        if len(kinds) > 1:
            raise AdapterError("its ticks differ in more than their widths")
        (kind,) = kinds
        attach_ticks(
            model, [ticks[place]["width"] if place in ticks else 0 for place in places], task=task, families=families,
            **json.loads(kind),
        )  # fmt: skip
    norms = {place.removesuffix(".task_norms") for place, about in layout.items() if about.get("kind") == "norm"}
    if norms:
        task_norms(model, task=task, where=lambda name: name in norms)
