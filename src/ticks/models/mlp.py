"""A perceptron with one hidden layer and the articles' layer norm behind it, before the activation."""

from collections.abc import Callable

from torch import Tensor, nn

from ticks.arguments import at_least, share
from ticks.models.ffn import activation_named
from ticks.models.initialise import role
from ticks.models.norm import LayerNorm


class Mlp(nn.Module):
    """W2 s(N(W1 x + b1)) + b2: (B, n_features) -> logits (B, n_classes). An image (B, ...) is flattened first.

    `norm` builds a module from d_model, the width of the hidden layer. ArgumentError for sizes below 1.
    """

    def __init__(
        self,
        *,
        n_features: int,
        n_classes: int,
        d_model: int = 128,
        norm: Callable[[int], nn.Module] = LayerNorm,
        activation: str = "relu",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        at_least(1, n_features=n_features, n_classes=n_classes, d_model=d_model)
        share(dropout=dropout)
        self.fc1 = role("hidden", nn.Linear(n_features, d_model))
        self.norm = norm(d_model)
        self.activation = activation_named(activation)
        self.dropout = nn.Dropout(dropout)
        self.fc2 = role("head", nn.Linear(d_model, n_classes))

    def forward(self, x_BxF: Tensor) -> Tensor:
        h_BxD = self.activation(self.norm(self.fc1(x_BxF.flatten(1))))
        return self.fc2(self.dropout(h_BxD))
