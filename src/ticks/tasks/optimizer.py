"""AdamW with weight decay on matrices only, and the warm-up + cosine schedule of its learning rate."""

import math

from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR


def adamw(
    module: nn.Module, *, lr: float, weight_decay: float, betas: tuple[float, float], eps: float, fused: bool = True
) -> AdamW:
    """AdamW (arXiv 1711.05101) over the trainable parameters; vectors and scalars (biases, norms) do not decay."""
    trainable = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    return AdamW([group for group in groups if group["params"]], lr=lr, betas=betas, eps=eps, fused=fused)


def warmup_cosine(step: int, *, warmup_steps: int, total_steps: float, min_ratio: float) -> float:
    """Factor of the peak learning rate at step + 1: linear up to 1, then half a cosine down to `min_ratio`."""
    step += 1
    if step <= warmup_steps:
        return step / warmup_steps
    if math.isinf(total_steps):
        return 1.0
    progress = min(1.0, (step - warmup_steps) / max(1.0, total_steps - warmup_steps))
    return min_ratio + (1.0 - min_ratio) * 0.5 * (1.0 + math.cos(math.pi * progress))


def schedule(optimizer: AdamW, *, warmup_steps: int, total_steps: float, min_ratio: float) -> LambdaLR:
    """`warmup_cosine` as a scheduler that steps once per optimizer step."""

    def factor(step: int) -> float:  # a plain function, not a partial: LambdaLR leaves it out of checkpoints
        return warmup_cosine(step, warmup_steps=warmup_steps, total_steps=total_steps, min_ratio=min_ratio)

    return LambdaLR(optimizer, factor)
