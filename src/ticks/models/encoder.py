"""An encoder Transformer that tells sequences apart: every token sees every token, one answer for all of them.

Shapes: B batch, T time, D d_model, C classes.
"""

from typing import Any

from torch import Tensor, nn

from ticks.arguments import ArgumentError, at_least
from ticks.models.block import Transformer
from ticks.models.heads import ClassificationHead


class EncoderClassifier(Transformer):
    """Token ids (B, T) -> logits (B, C), T at most `block_size`; `pad_id`, if there is one, is where no token is.

    `pooling` is "mean", "max" or "first". Takes what `Transformer` takes.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        block_size: int,
        n_classes: int,
        pad_id: int | None = None,
        pooling: str = "mean",
        **arguments: Any,
    ) -> None:
        super().__init__(**arguments)
        at_least(1, vocab_size=vocab_size, block_size=block_size)
        if pad_id is not None and not 0 <= pad_id < vocab_size:
            raise ArgumentError("pad_id", pad_id, f"must be a token below vocab_size={vocab_size}, or null")
        self.block_size = block_size
        self.pad_id = pad_id
        self.embedding = nn.Embedding(vocab_size, self.d_model)
        self.add_positions("position", block_size)
        self.blocks = self.make_blocks(causal=False)
        self.final_norm = self.make_final_norm()
        self.head = ClassificationHead(self.d_model, n_classes, pooling=pooling, dropout=self.dropout.p)
        self.begin()

    def forward(self, tokens_BxT: Tensor) -> Tensor:
        present = None if self.pad_id is None else tokens_BxT != self.pad_id
        return self.head(self.features(tokens_BxT, present), present)

    def features(self, tokens_BxT: Tensor, present: Tensor | None = None) -> Tensor:
        """What it makes of tokens, where they are `present`: (B, T, D)."""
        x_BxTxD = self.blocks(self.embed(tokens_BxT, self.embedding, self.position), present=present)
        return self.final_norm(x_BxTxD)
