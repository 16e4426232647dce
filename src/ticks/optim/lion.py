"""Lion (arXiv 2302.06675): the sign of a running mean of gradients, one state where Adam has two."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.optim import Optimizer

from ticks.arguments import below_one, not_negative


class Lion(Optimizer):
    """u = sign(b1 m + (1 - b1) g);  p = p - lr (u + decay p);  m = b2 m + (1 - b2) g.

    Its lr is a third to a tenth of Adam's, its decay as much larger. ArgumentError for numbers that cannot be used.
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float = 5e-4,
        weight_decay: float = 1.0,
        betas: tuple[float, float] = (0.9, 0.99),
    ) -> None:
        not_negative(lr=lr, weight_decay=weight_decay)
        below_one(betas=betas)
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "betas": tuple(betas)})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            (beta1, beta2), lr = group["betas"], group["lr"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if "exp_avg" not in state:
                    state["exp_avg"] = torch.zeros_like(p)
                mean = state["exp_avg"]
                update = torch.lerp(p.grad, mean, beta1).sign_()
                p.mul_(1 - lr * group["weight_decay"]).add_(update, alpha=-lr)
                mean.lerp_(p.grad, 1 - beta2)
        return loss
