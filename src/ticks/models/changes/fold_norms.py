"""Norms without what can be part of the next linear map. A norm is g n(x) + b, n(x) what only norms; where nothing but
linear maps take that,

    W (g n(x) + b) + c  =  (W diag(g)) n(x) + (W b + c)

so W and c take g and b over, exactly. Which maps take a norm's output is seen by running the model once, and that the
result is the same is proven by running a copy of it with other g and b. Where it is not, in a block that norms behind
its residual (arXiv 2002.04745) or before a head that is the embedding, the norm is left as it is, and named.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ticks.arguments import ArgumentError
from ticks.models.changes.families import is_transposed, sizes_of
from ticks.models.changes.gate import gate_of
from ticks.models.changes.task_norm import TaskNorm, is_norm, unit_of

TOLERANCE = 1e-9  # of the largest output, in double precision


def fold_norms(model: nn.Module, example: Any = None) -> dict[str, str]:
    """Fold the gammas and betas of a model's norms into the maps behind them, in place, wherever that is exact: by
    name, the norms that stay as they are, and why. What was folded is 1 and 0 from now on, and trains no more; a norm
    whose gate is closed is gone, an nn.Identity stands in its place.

    `example` is an input of the model (default: a few tokens). ArgumentError for a model without norms, or one that
    such an input does not fit.
    """
    names = [name for name, module in model.named_modules() if is_norm(module)]
    if not names:
        raise ArgumentError("model", type(model).__name__, "has no layer norm or RMS norm")
    example = _tokens(model) if example is None else example
    tried = copy.deepcopy(model).double().eval()
    followers = _followers(tried, names, example)
    reasons: dict[str, str] = {}
    with torch.no_grad():
        for name in names:
            norm = tried.get_submodule(name)
            reason = None if _is_gone(norm) else _why_not(norm, [tried.get_submodule(f) for f in followers[name]])
            if reason is None and not _is_exact(
                tried, norm, [tried.get_submodule(f) for f in followers[name]], example
            ):
                reason = "something else than linear maps takes its output, too"
            if reason is not None:
                reasons[name] = reason
        del tried
        for name in names:
            if name not in reasons:
                _fold(model.get_submodule(name), [model.get_submodule(follower) for follower in followers[name]])
                if gate_of(model.get_submodule(name))[0] == 0.0:
                    parent, _, own = name.rpartition(".")
                    setattr(model.get_submodule(parent), own, nn.Identity())
    return reasons


def _tokens(model: nn.Module) -> Tensor:
    table = next((module for module in model.modules() if isinstance(module, nn.Embedding)), None)
    if table is None:
        raise ArgumentError("example", None, f"must be an input of {type(model).__name__}, which takes no tokens")
    return torch.arange(1, 9, device=table.weight.device).remainder(table.num_embeddings).unsqueeze(0)


def _followers(model: nn.Module, names: list[str], example: Any) -> dict[str, list[str]]:
    """By a norm's name, the linear maps that are given its very output."""
    made: dict[int, str] = {}
    kept: list[Tensor] = []  # so that no other tensor gets the name of one that is gone
    found: dict[str, list[str]] = {name: [] for name in names}

    def note(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            made[id(output)] = name
            kept.append(output)

        return hook

    def look(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            norm = made.get(id(inputs[0])) if inputs else None
            if norm is not None and name not in found[norm]:
                found[norm].append(name)

        return hook

    handles = []
    for name, module in model.named_modules():
        if name in found:
            handles.append(module.register_forward_hook(note(name)))
        elif sizes_of(module) is not None:
            handles.append(module.register_forward_pre_hook(look(name)))
    try:
        with torch.no_grad():
            _run(model, example)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _run(model: nn.Module, example: Any) -> Tensor:
    """The first tensor of what it gives. ArgumentError if it does not take the example."""
    inputs = example.double() if isinstance(example, Tensor) and example.is_floating_point() else example
    try:
        found = model(inputs)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ArgumentError("example", "given", f"is no input of {type(model).__name__}: {reason}") from None
    while not isinstance(found, Tensor):
        found = next(iter(found.values())) if hasattr(found, "values") else found[0]
    return found


def _is_gone(norm: nn.Module) -> bool:
    """Whether nothing of it is left, and so nothing to fold."""
    return gate_of(norm) == (0.0, False)


def _why_not(norm: Any, followers: list[Any]) -> str | None:
    if isinstance(getattr(norm, "task_norms", None), TaskNorm):
        return "it has gammas of several tasks: merge(model) first"
    a, keeps = gate_of(norm)
    if not keeps:
        return f"its gate is open to {a:g}, and its gamma counts for that share alone"
    if not followers:
        return "no linear map takes its output as it is"
    if getattr(norm, "bias", None) is not None and any(f.bias is None for f in followers):
        return "a map behind it has no bias, which its beta needs"
    return None


def _is_exact(model: nn.Module, norm: Any, followers: list[Any], example: Any) -> bool:
    """Whether the model computes the same when it is folded, whatever gamma and beta are; it is as it was behind."""
    if _is_gone(norm):
        return True
    tensors = [p for module in (norm, *followers) for p in (module.weight, getattr(module, "bias", None))]
    before = [None if p is None else p.detach().clone() for p in tensors]
    drawn = torch.Generator().manual_seed(0)
    for name, p in norm._parameters.items():
        if p is not None:
            p.copy_(torch.rand(p.shape, generator=drawn, dtype=p.dtype) + (0.5 if name == "weight" else -0.5))
    expected = _run(model, example)
    _fold(norm, followers)
    found = _run(model, example)
    for p, value in zip(tensors, before, strict=True):
        if p is not None:
            p.copy_(value)
    return bool((found - expected).abs().max() <= TOLERANCE * expected.abs().max())


@torch.no_grad()
def _fold(norm: Any, followers: list[Any]) -> None:
    unit, beta = unit_of(norm), getattr(norm, "bias", None)
    gamma = norm.weight + (1.0 - unit)
    if _is_gone(norm):
        return
    for module in followers:
        weight = module.weight.t() if is_transposed(module) else module.weight  # (out, in)
        if beta is not None:
            module.bias.add_(weight @ beta.to(weight.dtype))
        weight.mul_(gamma.to(weight.dtype))
    norm.weight.fill_(unit)
    norm.weight.requires_grad_(False)
    if beta is not None:
        beta.zero_()
        beta.requires_grad_(False)
