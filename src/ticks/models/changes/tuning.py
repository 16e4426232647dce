"""What is trained of a model that is already trained: a function per way, each changes the model and freezes the rest.

| `ticks`   | ticks beside every FFN, with `norms` a gamma and beta of the task's own at every norm |
| `norms`   | those gammas and betas alone                                                          |
| `head`    | nothing but the head                                                                  |
| `bitfit`  | every bias (arXiv 2106.10199)                                                         |
| `lora`    | low-rank updates of chosen maps, by peft (arXiv 2106.09685)                           |

A head trains with all of them. Nothing chosen is full fine-tuning.
"""

from collections.abc import Mapping, Sequence

from torch import nn

from ticks.arguments import ArgumentError, at_least
from ticks.models.changes.beside import attach_ticks
from ticks.models.changes.frozen import train_only
from ticks.models.changes.task_norm import task_norms

HEAD = r"^heads?\."


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
    _train(model, [r"(^|\.)bias$"])


def lora(
    model: nn.Module,
    *,
    rank: int = 8,
    alpha: int = 16,
    dropout: float = 0.0,
    targets: str | Sequence[str] = "all-linear",
) -> None:
    """`targets` are the ends of the names of linear maps; "all-linear": every one but the head."""
    at_least(1, rank=rank)
    try:
        import peft
    except ImportError:
        raise ModuleNotFoundError('tuning=lora needs peft: pip install -e ".[tuning]"') from None
    every = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    heads = {name for name in every if name.startswith("head")}
    wanted = [name for name in every if name not in heads]
    if targets != "all-linear":
        ends = [targets] if isinstance(targets, str) else list(targets)
        wanted = [name for name in wanted if any(name == end or name.endswith(f".{end}") for end in ends)]
        if not wanted:
            raise ArgumentError("targets", targets, f"are no linear maps; there are {', '.join(every[:20])}")
    config = peft.LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=wanted)
    peft.inject_adapter_in_model(config, model)
    _train(model, [r"\.lora_"])


def _train(model: nn.Module, patterns: list[str]) -> None:
    has_head = any(name.startswith(("head.", "heads.")) for name, _ in model.named_parameters())
    if not has_head and not patterns:
        raise ArgumentError("model", type(model).__name__, "has no head: nothing would train")
    train_only(model, [*patterns, *([HEAD] if has_head else [])])
