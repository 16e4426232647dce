"""The encoder-decoder Transformer (arXiv 1706.03762): a sequence of one vocabulary from a sequence of another.

    memory = N(encoder(E_s[source] + position));   logits = N(decoder(E_t[target] + position, memory)) E_t^T

Shapes: B batch, S source, T target, D d_model, V target vocabulary, N rows that are decoded together.
"""

from typing import Any

import torch
from torch import Tensor, nn

from ticks.arguments import ArgumentError, at_least
from ticks.models.attention import Past
from ticks.models.block import Transformer
from ticks.models.decode import decode


class EncoderDecoder(Transformer):
    """Source ids (B, S) and target ids (B, T) -> logits (B, T, V) of the token behind each of the target's.

    Both stacks have `n_layers`; S is at most `source_length`, T at most `target_length`. No token is where `pad_id` is,
    a target begins with `start_id` and ends with `end_id`. With `shared_vocabulary` E_s is E_t. Takes what
    `Transformer` takes. ArgumentError for what does not fit together.
    """

    def __init__(
        self,
        *,
        source_vocab_size: int,
        target_vocab_size: int,
        source_length: int,
        target_length: int,
        shared_vocabulary: bool = False,
        pad_id: int = 0,
        start_id: int = 1,
        end_id: int = 2,
        **arguments: Any,
    ) -> None:
        super().__init__(**arguments)
        at_least(1, source_vocab_size=source_vocab_size, source_length=source_length, target_length=target_length)
        special = {"pad_id": pad_id, "start_id": start_id, "end_id": end_id}
        for name, token in special.items():
            if not 0 <= token < target_vocab_size or list(special.values()).count(token) > 1:
                raise ArgumentError(
                    name, token, f"must be a token of its own below target_vocab_size={target_vocab_size}"
                )
        if shared_vocabulary and source_vocab_size != target_vocab_size:
            raise ArgumentError(
                "source_vocab_size", source_vocab_size, f"must be target_vocab_size={target_vocab_size} if it is shared"
            )
        self.source_length = source_length
        self.target_length = target_length
        self.special = special
        self.source_embedding = nn.Embedding(source_vocab_size, self.d_model)
        self.target_embedding = (
            self.source_embedding if shared_vocabulary else nn.Embedding(target_vocab_size, self.d_model)
        )
        self.add_positions("source_position", source_length)
        self.add_positions("target_position", target_length)
        self.encoder = self.make_blocks(causal=False)
        self.encoder_norm = self.make_final_norm()
        self.decoder = self.make_blocks(causal=True, cross=True)
        self.decoder_norm = self.make_final_norm()
        self.begin()

    def forward(self, source_BxS: Tensor, target_BxT: Tensor) -> Tensor:
        memory_BxSxD, present_BxS = self.encode(source_BxS)
        x_BxTxD = self.embed(target_BxT, self.target_embedding, self.target_position)
        x_BxTxD = self.decoder(x_BxTxD, memory=memory_BxSxD, memory_present=present_BxS)
        return self.logits(x_BxTxD)

    def encode(self, source_BxS: Tensor) -> tuple[Tensor, Tensor]:
        """What the decoder sees (B, S, D), and where it is (B, S)."""
        present_BxS = source_BxS != self.special["pad_id"]
        x_BxSxD = self.embed(source_BxS, self.source_embedding, self.source_position)
        return self.encoder_norm(self.encoder(x_BxSxD, present=present_BxS)), present_BxS

    def logits(self, x_BxTxD: Tensor) -> Tensor:
        return self.decoder_norm(x_BxTxD) @ self.target_embedding.weight.T

    @torch.no_grad()
    def decode(
        self, source_BxS: Tensor, *, beam: int = 1, max_length: int | None = None, length_penalty: float = 1.0
    ) -> Tensor:
        """The targets (B, T) that are held to be likeliest, without start and end, padded: see `ticks.models.decode`.

        `max_length` is at most, and if not given, `target_length`.
        """
        max_length = self.target_length if max_length is None else max_length
        at_least(1, most=self.target_length, max_length=max_length)
        return decode(
            Growing(self, source_BxS), len(source_BxS), beam=beam, max_length=max_length,
            length_penalty=length_penalty, device=source_BxS.device, **self.special,
        )  # fmt: skip


class Growing:
    """Targets that grow by a token per call; the source is encoded once, keys and values are kept."""

    def __init__(self, model: EncoderDecoder, source_BxS: Tensor) -> None:
        self.model = model
        self.memory_NxSxD, self.present_NxS = model.encode(source_BxS)
        self.past = [(Past(), Past()) for _ in model.decoder]
        self.n_tokens = 0

    def __call__(self, tokens_N: Tensor) -> Tensor:
        model = self.model
        x_Nx1xD = model.embed(tokens_N[:, None], model.target_embedding, model.target_position, start=self.n_tokens)
        self.n_tokens += 1
        x_Nx1xD = model.decoder(x_Nx1xD, memory=self.memory_NxSxD, memory_present=self.present_NxS, past=self.past)
        return model.logits(x_Nx1xD)[:, 0]

    def select(self, rows_N: Tensor) -> None:
        self.memory_NxSxD, self.present_NxS = self.memory_NxSxD[rows_N], self.present_NxS[rows_N]
        for past in self.past:
            for kept in past:
                kept.select(rows_N)
