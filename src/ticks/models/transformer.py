"""A decoder-only Transformer: tied embeddings, optional ticks beside every FFN.

    h = E[token] + position;   h = h + A(N(h));   h = h + F(N(h)) + ticks(N(h));   logits = N(h) E^T

Shapes: B batch, T time, D d_model, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor, nn

from ticks.arguments import at_least
from ticks.models.block import Transformer
from ticks.models.generate import sample


class DecoderTransformer(Transformer):
    """Token ids (B, T) -> logits (B, T, V), T at most `block_size`. Takes what `Transformer` takes."""

    def __init__(self, *, vocab_size: int, block_size: int, **arguments: Any) -> None:
        super().__init__(**arguments)
        at_least(1, vocab_size=vocab_size, block_size=block_size)
        self.block_size = block_size
        self.embedding = nn.Embedding(vocab_size, self.d_model)
        self.add_positions("position", block_size)
        self.blocks = self.make_blocks(causal=True)
        self.final_norm = self.make_final_norm()
        self.begin()

    def forward(self, tokens_BxT: Tensor) -> Tensor:
        return self.features(tokens_BxT) @ self.embedding.weight.T

    def features(self, tokens_BxT: Tensor, present: Tensor | None = None) -> Tensor:
        """What it makes of tokens: (B, T, D). Padding behind them is seen by none of them."""
        return self.final_norm(self.blocks(self.embed(tokens_BxT, self.embedding, self.position)))

    def generate(
        self, tokens_BxT: Tensor, n: int, *, temperature: float = 0.8, generator: torch.Generator | None = None
    ) -> Tensor:
        """`tokens_BxT` continued by `n` sampled tokens: (B, T + n). The context is the last `block_size` tokens."""
        return sample(self, tokens_BxT, n, context=self.block_size, temperature=temperature, generator=generator)
