"""Where a token stands, as numbers that are added to its embedding."""

import torch
from torch import Tensor, nn

POSITIONS = ("learned", "sinusoidal", "rotary")


def positions(kind: str, length: int, d_model: int) -> Tensor | None:
    """(length, d_model): a parameter of zeros if `learned`, waves if `sinusoidal`; None if nothing is added."""
    if kind == "learned":
        return nn.Parameter(torch.zeros(length, d_model))
    return sinusoids(length, d_model) if kind == "sinusoidal" else None


def sinusoids(length: int, d_model: int) -> Tensor:
    """sin(t f_i) in the first half of the features, cos(t f_i) in the second, f_i = 10000^(-2i/d_model)
    (arXiv 1706.03762, which interleaves them). They are as large as initial embeddings: of standard deviation 0.02."""
    half = (d_model + 1) // 2
    frequency = 10_000.0 ** (-torch.arange(half) / half)
    angle = torch.outer(torch.arange(length), frequency)
    return torch.cat([angle.sin(), angle.cos()], dim=1)[:, :d_model] * (0.02 * 2**0.5)
