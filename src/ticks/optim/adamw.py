"""AdamW (arXiv 1711.05101), torch's own."""

from collections.abc import Iterable
from typing import Any

from torch.optim import AdamW

from ticks.arguments import below_one, not_negative


def adamw(
    params: Iterable[Any],
    *,
    lr: float = 3e-3,
    weight_decay: float = 0.1,
    betas: tuple[float, float] = (0.9, 0.95),
    eps: float = 1e-8,
    fused: bool = True,
) -> AdamW:
    """One kernel for all parameters; ArgumentError for numbers that cannot be used."""
    not_negative(lr=lr, weight_decay=weight_decay, eps=eps)
    below_one(betas=betas)
    return AdamW(params, lr=lr, betas=(betas[0], betas[1]), eps=eps, weight_decay=weight_decay, fused=fused)
