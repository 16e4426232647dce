"""One persistent flat buffer: every tensor that travels has its place in it, and a tick allocates nothing.

Tensors are copied in and out with one fused kernel each. They are never rebound to views of the buffer: a view would
drag the whole buffer into every checkpoint of a part of the model.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


class FlatBuffer:
    """A float32 buffer for `like`, in its order, followed by `tail` further numbers."""

    def __init__(self, like: Sequence[Tensor], *, tail: int = 0) -> None:
        self.sizes = [t.numel() for t in like]
        self.numel = sum(self.sizes)
        device = like[0].device if like else torch.device("cpu")
        self.all = torch.zeros(self.numel + tail, dtype=torch.float32, device=device)
        self.body = self.all[: self.numel]
        self.tail = self.all[self.numel :]
        parts = self.body.split(self.sizes) if like else ()
        self.views = [part.view(t.shape) for part, t in zip(parts, like, strict=True)]

    def load(self, tensors: Sequence[Tensor]) -> None:
        """Copy `tensors` into the buffer."""
        copy(self.views, tensors)

    def store(self, tensors: Sequence[Tensor]) -> None:
        """Copy the buffer into `tensors`, in place."""
        copy(tensors, self.views)

    @torch.no_grad()
    def distance(self, tensors: Sequence[Tensor]) -> Tensor:
        """Euclidean distance between `tensors` and the buffer, over the buffer's norm (a scalar on its device)."""
        parts = [torch.dist(t.float(), view) for t, view in zip(tensors, self.views, strict=True)]
        return torch.stack(parts).norm() / self.body.norm().clamp_min(1e-30)


@torch.no_grad()
def copy(to: Sequence[Tensor], source: Sequence[Tensor]) -> None:
    """Copy each tensor of `source` into its partner in `to`, in place, in one fused kernel where there is one."""
    if to:
        torch._foreach_copy_(list(to), list(source))
