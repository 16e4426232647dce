"""Evaluation metrics, summed over every worker's tokens and divided once."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from ticks.similarity import ORDERS, chrf, ngram_counts


class TokenLoss(Metric):
    """Mean negative log-likelihood per token (or byte), in units of `unit` nats (1: nats; ln 2: bits).

    The sums are float64 and travel as they are, so that splitting the tokens over workers changes nothing.
    """

    full_state_update = False
    total: Tensor
    tokens: Tensor

    def __init__(self, *, unit: float = 1.0) -> None:
        super().__init__()
        self.unit = unit
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("tokens", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def _apply(self, fn: Callable, exclude_state: Sequence[str] = "") -> Any:
        """Follow the module around to its device, but not to its precision: sums in bfloat16 stop growing."""
        return super()._apply(lambda tensor: tensor.to(fn(tensor).device), exclude_state)

    def update(self, nll: Tensor, tokens: Tensor) -> None:
        """Add the summed loss `nll` of `tokens` tokens (both scalars)."""
        # not in place: an evaluation in inference mode, as on GPUs, leaves sums that nothing else may change
        self.total = self.total + nll
        self.tokens = self.tokens + tokens

    def compute(self) -> Tensor:
        return self.total / self.tokens / self.unit


class ErrorRate(TokenLoss):
    """Errors over what there was to get right, each summed over every worker."""


class Chrf(Metric):
    """chrF of all texts together, from 0 to 100: n-grams are counted over every worker's texts and compared once."""

    full_state_update = False
    counts: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("counts", torch.zeros(ORDERS, 3, dtype=torch.float64), dist_reduce_fx="sum")

    def _apply(self, fn: Callable, exclude_state: Sequence[str] = "") -> Any:
        return super()._apply(lambda tensor: tensor.to(fn(tensor).device), exclude_state)

    def update(self, said: Sequence[str], references: Sequence[Sequence[str]]) -> None:
        """Add what was said of each sample, to be held against the best of its references."""
        counted = [ngram_counts(text, right) for text, right in zip(said, references, strict=True)]
        self.counts = self.counts + torch.tensor(counted, dtype=torch.float64).sum(0).to(self.counts.device)

    def compute(self) -> Tensor:
        return torch.tensor(chrf(self.counts.tolist()), dtype=torch.float64, device=self.counts.device)
