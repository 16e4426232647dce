"""Causal multi-head self-attention, with or without rotary positions (arXiv 1706.03762, 2104.09864).

Shapes: B batch, T time, D d_model, H heads, K = D / H features of one head.
"""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class CausalSelfAttention(nn.Module):
    """(B, T, D) -> (B, T, D); position t sees positions up to t.

    `rotary` turns queries and keys by their position. ValueError unless n_heads divides d_model (and, with rotary,
    the head's width is even).
    """

    def __init__(
        self, d_model: int, n_heads: int, *, dropout: float = 0.0, bias: bool = True, rotary: bool = False
    ) -> None:
        super().__init__()
        if n_heads < 1 or d_model % n_heads:
            raise ValueError(f"n_heads={n_heads} must divide d_model={d_model}")
        if rotary and (d_model // n_heads) % 2:
            raise ValueError(f"rotary positions need an even head width, d_model / n_heads is {d_model // n_heads}")
        self.n_heads = n_heads
        self.dropout = dropout
        self.rotary = rotary
        self.qkv = nn.Linear(d_model, 3 * d_model, bias=bias)
        self.qkv.matrices = 3  # type: ignore[assignment]  # for optimizers that know matrices
        self.out = nn.Linear(d_model, d_model, bias=bias)

    def forward(self, x_BxTxD: Tensor) -> Tensor:
        B, T, D = x_BxTxD.shape
        qkv_3xBxHxTxK = self.qkv(x_BxTxD).view(B, T, 3, self.n_heads, D // self.n_heads).permute(2, 0, 3, 1, 4)
        q_BxHxTxK, k_BxHxTxK, v_BxHxTxK = qkv_3xBxHxTxK.unbind(0)
        if self.rotary:
            q_BxHxTxK, k_BxHxTxK = rotate(q_BxHxTxK), rotate(k_BxHxTxK)
        y_BxHxTxK = F.scaled_dot_product_attention(
            q_BxHxTxK, k_BxHxTxK, v_BxHxTxK, is_causal=True, dropout_p=self.dropout if self.training else 0.0
        )
        return self.out(y_BxHxTxK.transpose(1, 2).reshape(B, T, D))


def rotate(x_BxHxTxK: Tensor, base: float = 10_000.0) -> Tensor:
    """Turn each pair (x_i, x_{i+K/2}) at position t by the angle t base^(-2i/K) (arXiv 2104.09864)."""
    T, K = x_BxHxTxK.shape[-2:]
    cos_TxK2, sin_TxK2 = rotations(T, K, base, x_BxHxTxK.device, x_BxHxTxK.dtype)
    first, second = x_BxHxTxK.chunk(2, dim=-1)
    return torch.cat([first * cos_TxK2 - second * sin_TxK2, first * sin_TxK2 + second * cos_TxK2], dim=-1)


@lru_cache(maxsize=16)
@torch.inference_mode(False)  # made while evaluating, it must serve training too
def rotations(T: int, K: int, base: float, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the angles t base^(-2i/K), each (T, K / 2)."""
    frequency = base ** (-torch.arange(0, K, 2, device=device, dtype=torch.float32) / K)
    angle_TxK2 = torch.outer(torch.arange(T, device=device, dtype=torch.float32), frequency)
    return angle_TxK2.cos().to(dtype), angle_TxK2.sin().to(dtype)
