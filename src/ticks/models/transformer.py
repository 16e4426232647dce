"""A decoder-only Transformer: pre-norm blocks, tied embeddings, optional ticks beside every FFN.

    h = E[token] + position;   h = h + A(N(h));   h = h + F(N(h)) + ticks(N(h));   logits = N(h) E^T

Shapes: B batch, T time, D d_model, V vocabulary.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ticks.models.attention import CausalSelfAttention
from ticks.models.ffn import FeedForward
from ticks.models.norm import LayerNorm

Norm = Callable[[int], nn.Module]
Adapter = Callable[[int], nn.Module]


class Block(nn.Module):
    """One pre-norm block (arXiv 2002.04745): (B, T, D) -> (B, T, D)."""

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        d_ff: int,
        *,
        norm: Norm,
        activation: str,
        dropout: float,
        bias: bool,
        rotary: bool,
    ) -> None:
        super().__init__()
        self.norm1 = norm(d_model)
        self.attention = CausalSelfAttention(d_model, n_heads, dropout=dropout, bias=bias, rotary=rotary)
        self.norm2 = norm(d_model)
        self.ffn = FeedForward(d_model, d_ff, activation=activation, bias=bias)
        self.dropout = nn.Dropout(dropout)
        self.adapter: nn.Module | None = None

    def forward(self, x_BxTxD: Tensor) -> Tensor:
        x_BxTxD = x_BxTxD + self.dropout(self.attention(self.norm1(x_BxTxD)))
        h_BxTxD = self.norm2(x_BxTxD)
        y_BxTxD = self.ffn(h_BxTxD)
        if self.adapter is not None:
            y_BxTxD = y_BxTxD + self.adapter(h_BxTxD)
        return x_BxTxD + self.dropout(y_BxTxD)


class DecoderTransformer(nn.Module):
    """Token ids (B, T) -> logits (B, T, V).

    `norm` and `adapter` build a module from d_model. `position` is "learned" (a table of `block_size` rows, added) or
    "rotary". `d_ff` is 4 d_model unless given. ValueError for sizes that do not fit together.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        block_size: int,
        d_model: int = 128,
        n_layers: int = 4,
        n_heads: int = 4,
        d_ff: int | None = None,
        norm: Norm = LayerNorm,
        adapter: Adapter | None = None,
        position: str = "learned",
        activation: str = "gelu",
        dropout: float = 0.0,
        bias: bool = True,
    ) -> None:
        super().__init__()
        for name, value in {
            "vocab_size": vocab_size,
            "block_size": block_size,
            "d_model": d_model,
            "n_layers": n_layers,
            "d_ff": 4 * d_model if d_ff is None else d_ff,
        }.items():
            if value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        if position not in ("learned", "rotary"):
            raise ValueError(f"position={position!r} is unknown; known: learned, rotary")
        self.block_size = block_size
        self.embedding = nn.Embedding(vocab_size, d_model)
        self.position = nn.Parameter(torch.zeros(block_size, d_model)) if position == "learned" else None
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            Block(
                d_model,
                n_heads,
                4 * d_model if d_ff is None else d_ff,
                norm=norm,
                activation=activation,
                dropout=dropout,
                bias=bias,
                rotary=position == "rotary",
            )
            for _ in range(n_layers)
        )
        self.final_norm = norm(d_model)
        self.reset_parameters()
        if adapter is not None:  # after everything else: with and without ticks the base draws the same random numbers
            for block in self.blocks:
                block.adapter = adapter(d_model)

    def reset_parameters(self) -> None:
        """Normal(0, 0.02), biases 0; projections into the residual stream divided by sqrt(2 n_layers), as in GPT-2."""
        residual = {f"blocks.{i}.{name}" for i in range(len(self.blocks)) for name in ("attention.out", "ffn.fc2")}
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                std = 0.02 / math.sqrt(2 * len(self.blocks)) if name in residual else 0.02
                nn.init.normal_(module.weight, std=std)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        if self.position is not None:
            nn.init.normal_(self.position, std=0.02)

    def forward(self, tokens_BxT: Tensor) -> Tensor:
        x_BxTxD = self.embedding(tokens_BxT)
        if self.position is not None:
            x_BxTxD = x_BxTxD + self.position[: tokens_BxT.shape[1]]
        x_BxTxD = self.dropout(x_BxTxD)
        for block in self.blocks:
            x_BxTxD = block(x_BxTxD)
        return self.final_norm(x_BxTxD) @ self.embedding.weight.T

    @torch.no_grad()
    def generate(
        self, tokens_BxT: Tensor, n: int, *, temperature: float = 0.8, generator: torch.Generator | None = None
    ) -> Tensor:
        """Append `n` sampled tokens: (B, T) -> (B, T + n). The context is the last `block_size` tokens.

        `temperature` 0 takes the likeliest token. `generator` must live on the tokens' device.
        """
        for _ in range(n):
            logits_BxV = self(tokens_BxT[:, -self.block_size :])[:, -1]
            if temperature == 0:
                next_Bx1 = logits_BxV.argmax(-1, keepdim=True)
            else:
                next_Bx1 = torch.multinomial((logits_BxV / temperature).softmax(-1), 1, generator=generator)
            tokens_BxT = torch.cat([tokens_BxT, next_Bx1], dim=1)
        return tokens_BxT
