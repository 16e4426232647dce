"""Ticks: small task-specific components that stand beside a Transformer's FFN.

    FFN(x) + scale P s(Q x + r)        P (d, k), Q (k, d), r (k), k much smaller than d and d_ff

x is the FFN's own input, so the FFN itself runs once. P is 0 at the start: a model with ticks then computes the same
function as its base, bit for bit. A scaled parallel adapter is the closest published relative (arXiv 2110.04366).
"""

from torch import Tensor, nn

from ticks.arguments import at_least
from ticks.models.ffn import activation_named


class TicksAdapter(nn.Module):
    """scale P s(Q x + r): (..., d_model) -> (..., d_model). Parameters: 2 d_model width + width.

    `width` is k, `scale` multiplies the output. ArgumentError if width is below 1.
    """

    def __init__(self, d_model: int, *, width: int = 16, activation: str = "gelu", scale: float = 1.0) -> None:
        super().__init__()
        at_least(1, width=width)
        self.activation = activation_named(activation)
        self.scale = scale
        self.down = nn.Linear(d_model, width)  # Q and r
        self.up = nn.Linear(width, d_model, bias=False)  # P
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Q normal with standard deviation 0.02, r and P zero."""
        nn.init.normal_(self.down.weight, std=0.02)
        nn.init.zeros_(self.down.bias)
        nn.init.zeros_(self.up.weight)

    def forward(self, x_BxTxD: Tensor) -> Tensor:
        return self.up(self.activation(self.down(x_BxTxD))) * self.scale
