"""Ticks into the FFN and out of it again. With the FFN's own activation ticks ARE k more hidden units:

    W1' = [W1; Q]   b1' = [b1; r]   W2' = [W2, scale P]      of a GLU: gate' = [gate; Q], bias r; up' = [up; 0], bias 1

so a merged model computes the same function at the speed of its base, in the base's own format: every layer gets as
many units as the widest ticks have, the rest zeros, and its configuration says so. Taking them out is a slice.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ticks.arguments import ArgumentError
from ticks.models.changes.beside import Beside, Ticks
from ticks.models.changes.families import FAMILIES, FFN, find_ffns, is_transposed
from ticks.models.changes.task_norm import Affine, TaskNorm
from ticks.models.changes.tasks import IsMerged, check_task, chosen_of, tasks_of

SIZES = ("intermediate_size", "n_inner", "hidden_dim", "d_ff", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim")


class CannotMerge(ValueError):
    """Merging would change what the model computes, or could not be written in its format. Its text is the reason."""


@dataclass
class Merged(IsMerged):
    """What taking the ticks out again needs."""

    task: str
    width: int
    ffns: list[FFN]
    beside: dict[str, Beside]  # by the FFN's name
    norms: dict[str, tuple[TaskNorm, dict[str, nn.Parameter]]] = field(default_factory=dict)  # and its own values
    biases: list[nn.Module] = field(default_factory=list)  # maps that had none
    config: dict[str, Any] = field(default_factory=dict)  # what it was


def merge(model: nn.Module, task: str | None = None) -> nn.Module:
    """Make a task's ticks hidden units of the FFNs and its norms the model's own, in place: the model itself.

    `task` may be left out where there is one. A base in 16 bits takes them rounded to those. CannotMerge, and nothing
    is changed, where the result would not be the same function: ticks with another activation, weights that are no
    floating-point numbers, components of other tasks, a bias that the base's format has no place for.
    """
    if isinstance(getattr(model, "merged", None), Merged):
        raise CannotMerge("it is merged already: unmerge(model) first")
    task = _the_task(model, task)
    besides = {id(m): m for m in model.modules() if isinstance(m, Beside) and task in m.tasks}
    ffns = list(_all_ffns(model)) if besides else []
    at = {ffn.name: besides[id(ffn.down.ticks)] for ffn in ffns if id(getattr(ffn.down, "ticks", None)) in besides}
    width = max((_ticks(beside, task).width for beside in at.values()), default=0)
    biased = [ffn for ffn in ffns if _needs_bias(ffn, [_ticks(b, task) for n, b in at.items() if n == ffn.name])]
    _check(model, at, ffns, biased, width)
    record = Merged(task, width, ffns, at)
    if biased:
        record.biases = [m for ffn in ffns for m, _ in _maps(ffn) if m.bias is None]
    with torch.no_grad():
        for module in record.biases:
            weight: Tensor = module.weight  # type: ignore[assignment]
            out = weight.shape[1] if is_transposed(module) else weight.shape[0]
            module.bias = nn.Parameter(weight.new_zeros(out), requires_grad=weight.requires_grad)
        for ffn in ffns:
            _widen(ffn, _ticks(at[ffn.name], task) if ffn.name in at else None, width)
            if ffn.name in at:
                at[ffn.name].leave()
        for name, norm in list(model.named_modules()):
            there = getattr(norm, "task_norms", None)
            if isinstance(there, TaskNorm) and task in there.tasks:
                record.norms[name] = there, {n: p for n, p in norm._parameters.items() if p is not None}
                affine: Affine = there.tasks[task]
                for own, value in affine.named_parameters():
                    old: nn.Parameter = norm._parameters[own]  # type: ignore[assignment]
                    setattr(norm, own, nn.Parameter(value.detach().to(old, copy=True), requires_grad=old.requires_grad))
                there.leave()
    record.config = _tell(_config_of(model), ffns, width, biased=bool(biased))
    model.merged = record  # type: ignore[assignment]
    return model


def unmerge(model: nn.Module) -> nn.Module:
    """What `merge` did, undone: the base's tensors bit for bit, the ticks and norms beside it, its task set.
    ArgumentError if nothing is merged."""
    record = getattr(model, "merged", None)
    if not isinstance(record, Merged):
        raise ArgumentError("model", type(model).__name__, "is not merged")
    with torch.no_grad():
        for ffn in record.ffns:
            for module, dim in _maps(ffn):
                _cut(module, dim, ffn.d_ff)
        for module in record.biases:
            module.bias = None  # type: ignore[assignment]
        for beside in record.beside.values():
            beside.enter()
        modules = dict(model.named_modules())
        for name, (there, values) in record.norms.items():
            for own, value in values.items():
                setattr(modules[name], own, value)
            there.enter()
    for key, value in record.config.items():
        setattr(_config_of(model), key, value)
    del model.merged
    chosen_of(model).name = record.task
    return model


def _the_task(model: nn.Module, task: str | None) -> str:
    known = tasks_of(model)
    if task is not None:
        check_task(model, task)
    elif not known:
        raise ArgumentError("model", type(model).__name__, "has no ticks and no task norms")
    if others := [name for name in known if name != (task or known[0])]:
        raise CannotMerge(
            f"it has components of {len(known)} tasks: merged into the base, one task's would be in the way of"
            f" {', '.join(others)}; remove_task(model, '{others[0]}'), or merge a copy that has one"
        )
    return task or known[0]


def _config_of(model: nn.Module) -> Any:
    """What a model of transformers is made by, the model itself or within another one; None of anything else."""
    return next((m.config for m in model.modules() if hasattr(getattr(m, "config", None), "model_type")), None)


def _all_ffns(model: nn.Module) -> list[FFN]:
    for module in model.modules():
        if isinstance(module, Beside):
            return find_ffns(model, module.families)
    return find_ffns(model, FAMILIES)


def _ticks(beside: Beside, task: str) -> Ticks:
    return beside.tasks[task]


def _needs_bias(ffn: FFN, ticks: list[Ticks]) -> bool:
    return ffn.first.bias is None and any(t.down.bias is not None or ffn.gate is not None for t in ticks)


def _check(model: nn.Module, at: dict[str, Beside], ffns: list[FFN], biased: list[FFN], width: int) -> None:
    for ffn in ffns:
        beside = at.get(ffn.name)
        if beside is not None and not beside.own:
            raise CannotMerge(f"the ticks at {ffn.name} have another activation than the FFN: they are no units of it")
        for module, _ in _maps(ffn):
            weight = module.weight
            plain = type(weight) in (Tensor, nn.Parameter) and type(weight.data) is Tensor
            if not plain or not weight.is_floating_point():
                kind = weight.dtype if plain else type(weight.data if isinstance(weight, Tensor) else weight).__name__
                raise CannotMerge(f"{ffn.name} is quantised ({kind})")
    if biased and not hasattr(_config_of(model), "mlp_bias"):
        why = "a GLU's ticks need one" if biased[0].gate is not None else "attach_ticks(bias=False) needs none"
        raise CannotMerge(
            f"the maps of {biased[0].name} have no bias, and this model's format has no place for one: {why}"
        )
    config, sizes = _config_of(model), {ffn.d_ff for ffn in ffns}
    if config is not None and len(sizes) > 1:
        raise CannotMerge(f"its FFNs have {len(sizes)} widths, which its format cannot say")
    if config is not None and ffns and not _words_for(config, ffns[0].d_ff):
        ratio = getattr(config, "mlp_ratio", None)
        units, of = ffns[0].d_ff + width, ffns[0].d_model
        if ratio is None or units % of:
            said = f"only multiples of {of}" if ratio else "none"
            raise CannotMerge(f"its format has no word for {units} hidden units: {said}")


def _maps(ffn: FFN) -> list[tuple[Any, int]]:
    """Each map, and the dimension of its weight that is the hidden units'."""
    into = [(m, 1 if is_transposed(m) else 0) for m in (ffn.gate, ffn.up) if m is not None]
    return [*into, (ffn.down, 0 if is_transposed(ffn.down) else 1)]


def _widen(ffn: FFN, ticks: Ticks | None, width: int) -> None:
    """`width` more hidden units, the first of them the ticks'."""
    weight: Tensor = ffn.first.weight  # type: ignore[assignment]
    q, p = weight.new_zeros(width, ffn.d_model), weight.new_zeros(ffn.d_model, width)
    r, ones = weight.new_zeros(width), weight.new_zeros(width)
    if ticks is not None:
        k = ticks.width
        q[:k], p[:, :k], ones[:k] = ticks.down.weight, ticks.up.weight * ticks.scale, 1.0
        if ticks.down.bias is not None:
            r[:k] = ticks.down.bias
    for module, dim in _maps(ffn):
        if module is ffn.down:
            more, bias = p, None
        elif module is ffn.first:
            more, bias = q, r
        else:
            more, bias = torch.zeros_like(q), ones
        _append(module, dim, more.t() if is_transposed(module) else more, bias)


def _append(module: Any, dim: int, more: Tensor, bias: Tensor | None) -> None:
    trains = module.weight.requires_grad
    module.weight = nn.Parameter(torch.cat([module.weight, more.to(module.weight.dtype)], dim), requires_grad=trains)
    if bias is not None and module.bias is not None:
        module.bias = nn.Parameter(torch.cat([module.bias, bias]), requires_grad=module.bias.requires_grad)
    _say_sizes(module)


def _cut(module: Any, dim: int, size: int) -> None:
    weight = module.weight.narrow(dim, 0, size).clone()
    into = module.bias is not None and module.bias.shape[0] != weight.shape[1 if is_transposed(module) else 0]
    module.weight = nn.Parameter(weight, requires_grad=module.weight.requires_grad)
    if into:
        module.bias = nn.Parameter(module.bias[:size].clone(), requires_grad=module.bias.requires_grad)
    _say_sizes(module)


def _say_sizes(module: Any) -> None:
    if is_transposed(module):
        module.nx, module.nf = module.weight.shape
    else:
        module.out_features, module.in_features = module.weight.shape


def _words_for(config: Any, size: int) -> list[str]:
    """The names under which a configuration says how many hidden units an FFN has."""
    return [
        name
        for name in SIZES
        if getattr(config, name, None) == size or (name == "n_inner" and getattr(config, name, 0) is None)
    ]


def _tell(config: Any, ffns: list[FFN], width: int, *, biased: bool) -> dict[str, Any]:
    """Let the base's configuration be the merged model's; what it was."""
    if config is None or not ffns:
        return {}
    size = ffns[0].d_ff
    said = dict.fromkeys(_words_for(config, size), size + width)
    said = said or {"mlp_ratio": (size + width) // ffns[0].d_model}
    before = {name: getattr(config, name) for name in said}
    if biased:
        before["mlp_bias"], said["mlp_bias"] = config.mlp_bias, True
    for name, value in said.items():
        setattr(config, name, value)
    return before
