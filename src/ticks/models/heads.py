"""From the features of tokens to an answer: poolings, and the head behind them.

Shapes: B batch, T time, D d_model, C classes. `present` (B, T) is True where there is a token.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ticks.arguments import at_least, one_of, share
from ticks.models.initialise import role


def mean_pool(x_BxTxD: Tensor, present: Tensor | None = None) -> Tensor:
    """The mean of the tokens that are there: (B, D)."""
    if present is None:
        return x_BxTxD.mean(1)
    here_BxTx1 = present.unsqueeze(-1).to(x_BxTxD.dtype)
    return (x_BxTxD * here_BxTx1).sum(1) / here_BxTx1.sum(1).clamp(min=1)


def max_pool(x_BxTxD: Tensor, present: Tensor | None = None) -> Tensor:
    """The largest value of each feature over the tokens that are there: (B, D)."""
    if present is not None:
        x_BxTxD = x_BxTxD.masked_fill(~present.unsqueeze(-1), torch.finfo(x_BxTxD.dtype).min)
    return x_BxTxD.amax(1)


def first_pool(x_BxTxD: Tensor, present: Tensor | None = None) -> Tensor:
    """The first token: (B, D)."""
    return x_BxTxD[:, 0]


def last_pool(x_BxTxD: Tensor, present: Tensor | None = None) -> Tensor:
    """The last token that is there, which in a decoder has seen all others: (B, D)."""
    if present is None:
        return x_BxTxD[:, -1]
    last_B = (present.long() * torch.arange(present.shape[1], device=present.device)).argmax(1)
    return x_BxTxD[torch.arange(len(last_B), device=last_B.device), last_B]


POOLINGS: dict[str, Callable[..., Tensor]] = {
    "mean": mean_pool,
    "max": max_pool,
    "first": first_pool,
    "last": last_pool,
}


class ClassificationHead(nn.Module):
    """Features (B, T, D) -> logits (B, C): pooled, dropped out, one linear layer.

    ArgumentError for an unknown pooling or fewer than one class.
    """

    def __init__(self, d_model: int, n_classes: int, *, pooling: str = "mean", dropout: float = 0.0) -> None:
        super().__init__()
        at_least(1, n_classes=n_classes)
        one_of(POOLINGS, pooling=pooling)
        share(dropout=dropout)
        self.pooling = pooling
        self.pool = POOLINGS[pooling]
        self.dropout = nn.Dropout(dropout)
        self.linear = role("head", nn.Linear(d_model, n_classes))

    def forward(self, x_BxTxD: Tensor, present: Tensor | None = None) -> Tensor:
        return self.linear(self.dropout(self.pool(x_BxTxD, present)))
