"""Token-wise predictive coding, a regulariser: with q the share that a model gives to the token that came,

    e = q - log q        least, 1, at q = 1; its derivative is 1 - 1/q

and `weight` times the mean of e is added to a task's loss. Against the loss itself, -log q, it asks less of tokens that
are nearly certain.
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from ticks.arguments import not_negative

IGNORE = -100  # targets that are padding
Regulariser = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # logits, targets -> what is added, and what is logged


class PredictiveCoding:
    """Logits (N, V) and targets (N,), of which IGNORE is left out -> `weight` mean(e), and mean(e) to be logged.

    ArgumentError for a negative weight.
    """

    def __init__(self, *, weight: float = 1e-3) -> None:
        not_negative(weight=weight)
        self.weight = weight

    def __call__(self, logits_NxV: Tensor, y_N: Tensor) -> tuple[Tensor, Tensor]:
        nll_N = F.cross_entropy(logits_NxV, y_N, reduction="none", ignore_index=IGNORE)
        there = y_N != IGNORE
        e = ((nll_N.neg().exp() + nll_N) * there).sum() / there.sum().clamp(min=1)
        return self.weight * e, e.detach()
