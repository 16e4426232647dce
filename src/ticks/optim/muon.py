"""Muon: matrices move by the orthogonal factor of their momentum; everything else by AdamW, in the same optimizer.

    m = b m + (1 - b) g;   u = b m + (1 - b) g  (Nesterov);   W = W - lr (0.2 sqrt(max(rows, columns)) O(u) + decay W)

O(u) = U V^T of u = U S V^T, by five Newton-Schulz steps. The factor gives an update the size of AdamW's, so that one
learning rate serves both (arXiv 2502.16982; the method: Jordan et al. 2024, kellerjordan.github.io/posts/muon).
"""

from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ticks.arguments import at_least, below_one, not_negative

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic that pushes singular values towards 1


class Muon(Optimizer):
    """Parameter groups with `matrices` n take their weights (n rows, columns) for n matrices, one below the other;
    groups without are AdamW's. `momentum` is b, `betas` and `eps` are AdamW's. `bfloat16` says whether Newton-Schulz
    steps multiply in it, which is enough for them; None: where the processor does so itself. Checkpoints hold what was
    decided; workers on unlike processors need to be told.

    ArgumentError for numbers that cannot be used.
    """

    wants_matrices = True  # `grouped` tells them apart

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float = 5e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        newton_schulz_steps: int = 5,
        bfloat16: bool | None = None,
    ) -> None:
        not_negative(lr=lr, weight_decay=weight_decay, eps=eps)
        below_one(momentum=momentum, betas=betas)
        at_least(1, newton_schulz_steps=newton_schulz_steps)
        defaults = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "betas": tuple(betas), "eps": eps}
        defaults |= {"newton_schulz_steps": newton_schulz_steps, "bfloat16": bfloat16, "matrices": 0}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            with_gradient = [p for p in group["params"] if p.grad is not None]
            if group["matrices"]:
                self._orthogonal(group, with_gradient)
            else:
                self._adamw(group, with_gradient)
        return loss

    def _orthogonal(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        b, lr, n = group["momentum"], group["lr"], group["matrices"]
        by_shape: dict[torch.Size, list[Tensor]] = {}
        for p in parameters:
            if "exp_avg" not in self.state[p]:
                self.state[p]["exp_avg"] = torch.zeros_like(p)
            by_shape.setdefault(p.shape, []).append(p)
        for (rows, columns), same in by_shape.items():  # alike ones at once: one product for all of them
            gradients: list[Any] = [p.grad for p in same]
            means = [self.state[p]["exp_avg"] for p in same]
            torch._foreach_lerp_(means, gradients, 1 - b)
            updates = torch._foreach_lerp(gradients, means, b)
            stacked = torch.stack(list(updates)).view(len(same) * n, rows // n, columns)
            scale = 0.2 * max(rows // n, columns) ** 0.5
            if group.get("bfloat16") is None:
                group["bfloat16"] = multiplies_in_bfloat16(stacked.device.type)
            orthogonal = orthogonalised(stacked, group["newton_schulz_steps"], bfloat16=group["bfloat16"])
            orthogonal = orthogonal.view(len(same), rows, columns)
            torch._foreach_mul_(same, 1 - lr * group["weight_decay"])
            torch._foreach_add_(same, list(orthogonal.unbind(0)), alpha=-lr * scale)

    def _adamw(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        if not parameters:
            return
        (b1, b2), lr = group["betas"], group["lr"]
        for p in parameters:
            state = self.state[p]
            if "exp_avg_sq" not in state:
                state["exp_avg"] = torch.zeros_like(p)
                state["exp_avg_sq"] = torch.zeros_like(p)
                state["step"] = 0
            state["step"] += 1
        gradients: list[Any] = [p.grad for p in parameters]
        states = [self.state[p] for p in parameters]
        means, squares = [s["exp_avg"] for s in states], [s["exp_avg_sq"] for s in states]
        torch._foreach_mul_(parameters, 1 - lr * group["weight_decay"])
        torch._foreach_lerp_(means, gradients, 1 - b1)
        torch._foreach_mul_(squares, b2)
        torch._foreach_addcmul_(squares, gradients, gradients, 1 - b2)
        roots = torch._foreach_sqrt(squares)
        torch._foreach_div_(roots, [(1 - b2 ** s["step"]) ** 0.5 for s in states])
        torch._foreach_add_(roots, group["eps"])
        torch._foreach_addcdiv_(parameters, means, roots, [-lr / (1 - b1 ** s["step"]) for s in states])


@cache
def multiplies_in_bfloat16(device: str) -> bool:
    """Whether it does so itself, instead of imitating it slowly."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # not in every torch
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def orthogonalised(u_NxRxC: Tensor, steps: int = 5, *, bfloat16: bool = False) -> Tensor:
    """About U V^T of each matrix u = U S V^T, (N, R, C): singular values between 0.7 and 1.2.

    Newton-Schulz: x = a x + b (x x^T) x + c (x x^T)^2 x, started at u over its Frobenius norm.
    """
    a, b, c = COEFFICIENTS
    x = u_NxRxC.float()
    if tall := x.shape[-2] > x.shape[-1]:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    if bfloat16:
        x = x.bfloat16()
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(u_NxRxC.dtype)
