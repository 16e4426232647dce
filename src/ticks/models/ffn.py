"""The position-wise feed-forward network of a Transformer block (arXiv 1706.03762)."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from ticks.arguments import one_of
from ticks.models.initialise import role

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "relu": F.relu, "silu": F.silu}


def activation_named(name: str) -> Callable[[Tensor], Tensor]:
    """The function called `name`; ArgumentError lists the known ones."""
    one_of(ACTIVATIONS, activation=name)
    return ACTIVATIONS[name]


class FeedForward(nn.Module):
    """FFN(x) = W2 s(W1 x + b1) + b2: (..., d_model) -> (..., d_model)."""

    def __init__(self, d_model: int, d_ff: int, *, activation: str = "gelu", bias: bool = True) -> None:
        super().__init__()
        self.activation = activation_named(activation)
        self.fc1 = role("hidden", nn.Linear(d_model, d_ff, bias=bias))
        self.fc2 = role("residual", nn.Linear(d_ff, d_model, bias=bias))

    def forward(self, x_BxTxD: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(x_BxTxD)))
