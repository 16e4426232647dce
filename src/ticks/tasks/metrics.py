"""Evaluation metrics, summed over every worker's tokens and divided once."""

import torch
from torch import Tensor
from torchmetrics import Metric


class TokenLoss(Metric):
    """Mean negative log-likelihood per token, in units of `unit` nats (1: nats; ln 2: bits).

    The sums are float64 and travel as they are, so that splitting the tokens over workers changes nothing.
    """

    full_state_update = False
    total: Tensor
    tokens: Tensor

    def __init__(self, *, unit: float = 1.0) -> None:
        super().__init__()
        self.unit = unit
        self.set_dtype(torch.float64)
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("tokens", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, nll: Tensor, tokens: Tensor) -> None:
        """Add the summed loss `nll` of `tokens` tokens (both scalars)."""
        self.total += nll
        self.tokens += tokens

    def compute(self) -> Tensor:
        return self.total / self.tokens / self.unit
