"""What is trained of a model that is already trained: a function per way, each changes the model and freezes the rest.

| `ticks`   | ticks beside every FFN, with `norms` a gamma and beta of the task's own at every norm |
| `norms`   | those gammas and betas alone                                                          |
| `head`    | nothing but the head                                                                  |
| `bitfit`  | every bias (arXiv 2106.10199)                                                         |
| `lora`    | low-rank updates of chosen maps, by peft (arXiv 2106.09685)                           |
| `full`    | everything                                                                            |

A head trains with all of them.
"""

import re
import warnings
from collections.abc import Mapping, Sequence

from torch import nn

from ticks.arguments import ArgumentError, above, at_least, share
from ticks.models.changes.beside import attach_ticks
from ticks.models.changes.families import is_transposed
from ticks.models.changes.frozen import train_only
from ticks.models.changes.prune import linear_maps
from ticks.models.changes.task_norm import task_norms
from ticks.models.changes.tasks import task_modules

HEAD = r"^heads?\."
BIAS = r"^(?!.*\.tasks\.)(.*\.)?bias$"  # of no earlier task's


def ticks(
    model: nn.Module,
    *,
    width: int | Sequence[int] | Mapping[int, int] = 16,
    scale: float = 4.0,
    dropout: float = 0.0,
    activation: str | None = None,
    bias: bool = True,
    norms: bool = True,
    task: str = "task",
) -> None:
    """Ticks beside every FFN (`attach_ticks` says what the arguments are), with `norms` task norms as well."""
    attach_ticks(model, width, scale=scale, dropout=dropout, activation=activation, bias=bias, task=task)
    if norms:
        task_norms(model, task=task)
    _train(model, [rf"\.tasks\.{task}\."])


def norms(model: nn.Module, *, task: str = "task") -> None:
    task_norms(model, task=task)
    _train(model, [rf"\.task_norms\.tasks\.{task}\."])


def head(model: nn.Module) -> None:
    """ArgumentError for a model without one."""
    _train(model, [])


def bitfit(model: nn.Module) -> None:
    """ArgumentError for a model whose maps and norms have no biases."""
    if not any(re.search(BIAS, name) and not re.search(HEAD, name) for name, _ in model.named_parameters()):
        raise ArgumentError("model", type(model).__name__, "has no biases: ticks, norm or lora train something of it")
    _train(model, [BIAS])


def full(model: nn.Module) -> None:
    """Also what an earlier tuning had frozen."""
    model.requires_grad_(True)


def lora(
    model: nn.Module,
    *,
    rank: int = 8,
    alpha: int = 16,
    dropout: float = 0.0,
    targets: str | Sequence[str] = "all-linear",
) -> None:
    """`targets` are the ends of the names of linear maps; "all-linear": every one but heads, and maps that share their
    weight with an embedding. ArgumentError for a model that has such updates already."""
    at_least(1, rank=rank)
    above(0, alpha=alpha)
    share(dropout=dropout)
    try:
        import peft
    except ImportError:
        raise ModuleNotFoundError('tuning=lora needs peft: pip install -e ".[tuning]"') from None
    if any(hasattr(module, "lora_A") for module in model.modules()):
        raise ArgumentError(
            "model", type(model).__name__, "has low-rank updates already: go on from it merged (format=merged)"
        )
    ours = tuple(f"{place}." for place, _ in task_modules(model))
    maps = linear_maps(model)
    every = [name for name in maps if not name.startswith(ours or ("\0",))]
    wanted = every
    if targets != "all-linear":
        ends = [targets] if isinstance(targets, str) else targets
        if not isinstance(ends, Sequence) or not all(isinstance(end, str) for end in ends):
            raise ArgumentError("targets", targets, "must be all-linear, or ends of the names of linear maps")
        wanted = [name for name in every if any(name == end or name.endswith(f".{end}") for end in ends)]
    if not wanted:
        raise ArgumentError("targets", targets, f"are no linear maps; there are {', '.join(every[:20]) or 'none'}")
    transposed = is_transposed(maps[wanted[0]])
    config = peft.LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=wanted, fan_in_fan_out=transposed
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")  # where a model has maps of both kinds
        peft.inject_adapter_in_model(config, model)
    _train(model, [r"\.lora_"])


def _train(model: nn.Module, patterns: list[str]) -> None:
    has_head = any(name.startswith(("head.", "heads.")) for name, _ in model.named_parameters())
    if not has_head and not patterns:
        raise ArgumentError("model", type(model).__name__, "has no head: nothing would train")
    train_only(model, [*patterns, *([HEAD] if has_head else [])])
