"""Multi-head attention: of a sequence to itself, causal or not, or to another one; padded or not (arXiv 1706.03762).

Shapes: B batch, T time, S time of the other sequence, D d_model, H heads, K = D / H features of one head. `present` is
True where there is a token and False where there is padding; each row has at least one token, its first one if causal.
"""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ticks.arguments import ArgumentError
from ticks.models.initialise import role


class Past:
    """Keys and values (B, H, t, K) that an attention has made, for a sequence that grows by a position per call."""

    def __init__(self) -> None:
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def __len__(self) -> int:
        return 0 if self.keys is None else self.keys.shape[2]

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values, the new ones last."""
        if self.keys is not None and self.values is not None:
            k, v = torch.cat([self.keys, k], dim=2), torch.cat([self.values, v], dim=2)
        self.keys, self.values = k, v
        return k, v

    def select(self, rows_N: Tensor) -> None:
        """Go on with these sequences of the batch."""
        if self.keys is not None and self.values is not None:
            self.keys, self.values = self.keys[rows_N], self.values[rows_N]


class Attention(nn.Module):
    """What both kinds share: heads, and what is done with queries, keys and values.

    ArgumentError unless n_heads divides d_model.
    """

    def __init__(self, d_model: int, n_heads: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        if n_heads < 1 or d_model % n_heads:
            raise ArgumentError("n_heads", n_heads, f"must divide d_model={d_model}")
        self.n_heads = n_heads
        self.dropout = dropout

    def _heads(self, x_BxTxND: Tensor, n: int) -> tuple[Tensor, ...]:
        """Features of `n` matrices (B, T, n D) -> n tensors (B, H, T, K)."""
        B, T, ND = x_BxTxND.shape
        K = ND // n // self.n_heads
        return x_BxTxND.view(B, T, n, self.n_heads, K).permute(2, 0, 3, 1, 4).unbind(0)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, present: Tensor | None, *, causal: bool = False) -> Tensor:
        """Queries (B, H, T, K), keys and values (B, H, S, K) -> (B, T, D)."""
        mask = None
        if present is not None:
            mask = present[:, None, None, :]
            if causal:
                T = q.shape[2]
                mask = mask & torch.ones(T, T, dtype=torch.bool, device=mask.device).tril()
        y_BxHxTxK = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=causal and mask is None, dropout_p=self.dropout if self.training else 0.0
        )
        return y_BxHxTxK.transpose(1, 2).flatten(2)


class SelfAttention(Attention):
    """(B, T, D) -> (B, T, D). With `causal` position t sees positions up to t, else all that are `present` (B, T).

    `rotary` turns queries and keys by their position; the head's width is then even, or ArgumentError. With `past` x is
    the sequence's beginning, and then one position per call: it sees what came before it.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        *,
        causal: bool = False,
        rotary: bool = False,
        dropout: float = 0.0,
        bias: bool = True,
    ) -> None:
        super().__init__(d_model, n_heads, dropout=dropout)
        if rotary and (d_model // n_heads) % 2:
            raise ArgumentError("n_heads", n_heads, f"with rotary positions d_model={d_model} / n_heads must be even")
        self.causal = causal
        self.rotary = rotary
        self.qkv = role("query_key_value", nn.Linear(d_model, 3 * d_model, bias=bias))
        self.qkv.matrices = 3  # type: ignore[assignment]  # for optimizers that know matrices
        self.out = role("residual", nn.Linear(d_model, d_model, bias=bias))

    def forward(self, x_BxTxD: Tensor, present: Tensor | None = None, past: Past | None = None) -> Tensor:
        q, k, v = self._heads(self.qkv(x_BxTxD), 3)
        start = 0 if past is None else len(past)
        assert not start or x_BxTxD.shape[1] == 1
        if self.rotary:
            q, k = rotate(q, start=start), rotate(k, start=start)
        if past is not None:
            k, v = past.extend(k, v)
        return self.out(self._attend(q, k, v, present, causal=self.causal and not start))


class CrossAttention(Attention):
    """x (B, T, D) sees memory (B, S, D), where it is `present` (B, S) -> (B, T, D). With `past` the memory is looked at
    in the first call alone."""

    def __init__(self, d_model: int, n_heads: int, *, dropout: float = 0.0, bias: bool = True) -> None:
        super().__init__(d_model, n_heads, dropout=dropout)
        self.query = role("query", nn.Linear(d_model, d_model, bias=bias))
        self.key_value = role("key_value", nn.Linear(d_model, 2 * d_model, bias=bias))
        self.key_value.matrices = 2  # type: ignore[assignment]
        self.out = role("residual", nn.Linear(d_model, d_model, bias=bias))

    def forward(
        self, x_BxTxD: Tensor, memory_BxSxD: Tensor, present: Tensor | None = None, past: Past | None = None
    ) -> Tensor:
        (q,) = self._heads(self.query(x_BxTxD), 1)
        if past is not None and past.keys is not None and past.values is not None:
            k, v = past.keys, past.values
        else:
            k, v = self._heads(self.key_value(memory_BxSxD), 2)
            if past is not None:
                past.extend(k, v)
        return self.out(self._attend(q, k, v, present))


def rotate(x_BxHxTxK: Tensor, base: float = 10_000.0, *, start: int = 0) -> Tensor:
    """Turn each pair (x_i, x_{i+K/2}) at position t by the angle t base^(-2i/K) (arXiv 2104.09864). The first position
    is `start`."""
    T, K = x_BxHxTxK.shape[-2:]
    if torch.compiler.is_exporting() or torch.jit.is_tracing():  # a program computes them for any length
        cos_LxK2, sin_LxK2 = angles(start + T, K, base, x_BxHxTxK.device, x_BxHxTxK.dtype)
    else:
        length = 1 << (start + T - 1).bit_length()  # few tables for all lengths
        cos_LxK2, sin_LxK2 = rotations(length, K, base, x_BxHxTxK.device, x_BxHxTxK.dtype)
    cos_TxK2, sin_TxK2 = cos_LxK2[start : start + T], sin_LxK2[start : start + T]
    first, second = x_BxHxTxK.chunk(2, dim=-1)
    return torch.cat([first * cos_TxK2 - second * sin_TxK2, first * sin_TxK2 + second * cos_TxK2], dim=-1)


@lru_cache(maxsize=16)
@torch.inference_mode(False)  # made while evaluating, it must serve training too
def rotations(T: int, K: int, base: float, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """`angles`, kept."""
    return angles(T, K, base, device, dtype)


def angles(T: int, K: int, base: float, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the angles t base^(-2i/K), each (T, K / 2)."""
    frequency = base ** (-torch.arange(0, K, 2, device=device, dtype=torch.float32) / K)
    angle_TxK2 = torch.outer(torch.arange(T, device=device, dtype=torch.float32), frequency)
    return angle_TxK2.cos().to(dtype), angle_TxK2.sin().to(dtype)
