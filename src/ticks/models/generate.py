"""Text from a model that predicts the next token."""

from collections.abc import Callable

import torch
from torch import Tensor


@torch.no_grad()
def sample(
    model: Callable[[Tensor], Tensor],
    tokens_BxT: Tensor,
    n: int,
    *,
    context: int,
    temperature: float = 0.8,
    generator: torch.Generator | None = None,
) -> Tensor:
    """`tokens_BxT` continued by `n` sampled tokens: (B, T + n). `model` gives logits (B, t, V) for the last `context`
    tokens; `temperature` 0 takes the likeliest token; `generator` lives on the tokens' device."""
    for _ in range(n):
        logits_BxV = model(tokens_BxT[:, -context:])[:, -1]
        if temperature == 0:
            next_Bx1 = logits_BxV.argmax(-1, keepdim=True)
        else:
            next_Bx1 = torch.multinomial((logits_BxV / temperature).softmax(-1), 1, generator=generator)
        tokens_BxT = torch.cat([tokens_BxT, next_Bx1], dim=1)
    return tokens_BxT
