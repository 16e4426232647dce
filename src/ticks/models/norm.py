"""Normalisation layers. A norm is any `Callable[[int], nn.Module]`: give it d_model, get a module.

LayerNorm  y = gamma (x - mean(x)) / sqrt(var(x) + eps) + beta    over the features of one token, biased variance
           (arXiv 1607.06450)
RMSNorm    y = gamma x / sqrt(mean(x^2) + eps)                    (arXiv 1910.07467)

To add one: a class here whose first argument is `d_model`, and a YAML in configs/model/norm/.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LayerNorm(nn.Module):
    """(..., d_model) -> (..., d_model), normalised over the last dimension (arXiv 1607.06450).

    `eps` is added to the variance. `bias=False` drops beta.
    """

    def __init__(self, d_model: int, *, eps: float = 1e-5, bias: bool = True) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(d_model))
        self.bias = nn.Parameter(torch.zeros(d_model)) if bias else None

    def forward(self, x_BxTxD: Tensor) -> Tensor:
        return F.layer_norm(x_BxTxD, self.weight.shape, self.weight, self.bias, self.eps)


class RMSNorm(nn.Module):
    """(..., d_model) -> (..., d_model), divided by the root mean square of the last dimension (arXiv 1910.07467)."""

    def __init__(self, d_model: int, *, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(d_model))

    def forward(self, x_BxTxD: Tensor) -> Tensor:
        # torch's own kernel is not fused on a CPU: 7x slower forward + backward
        if x_BxTxD.device.type == "cpu" and x_BxTxD.dtype == self.weight.dtype:
            return _RMSNormCPU.apply(x_BxTxD, self.weight, self.eps)
        return F.rms_norm(x_BxTxD, self.weight.shape, self.weight, self.eps)


class _RMSNormCPU(torch.autograd.Function):
    """RMSNorm with its gradient written out, so that autograd keeps two tensors instead of five.

    With n = x / rms and u = grad_y gamma:  grad_x = (u - n mean(u n)) / rms,  grad_gamma = sum(grad_y n).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:  # type: ignore[override]
        mean_square = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1])
        inverse_rms = mean_square.add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, inverse_rms)
        return (x * inverse_rms).mul_(weight)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor, Tensor, None]:  # type: ignore[override]
        x, weight, inverse_rms = ctx.saved_tensors
        normed = x * inverse_rms
        grad_weight = (grad_y * normed).reshape(-1, x.shape[-1]).sum(0)
        u = grad_y * weight
        mean_un = torch.linalg.vecdot(u, normed).unsqueeze(-1).div_(x.shape[-1])
        grad_x = u.addcmul_(normed, mean_un, value=-1.0).mul_(inverse_rms)
        return grad_x, grad_weight, None
