"""One persistent flat buffer: every tensor that travels has its place in it, and a tick copies next to nothing.

While training lasts the parameters live in the buffer (`adopt`): each tensor's data is a view of its place, so a tick
is one in-place all-reduce and a small sample of before and after. What cannot live there (another dtype) is copied in
and out. `release` gives every tensor storage of its own again: a view saved by itself would drag the whole buffer into
the file.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

ALIGNMENT = 16  # numbers: each tensor starts at a multiple of 64 bytes, as kernels like it
SAMPLE_BLOCK, SAMPLE_EVERY = 256, 64  # `sample` takes one block in 64 of a large buffer


class FlatBuffer:
    """Places for tensors like `like`, in their order, followed by `tail` further numbers; float64 if any of them is."""

    def __init__(self, like: Sequence[Tensor], *, tail: int = 0) -> None:
        self.shapes = [t.shape for t in like]
        padded = [-(-t.numel() // ALIGNMENT) * ALIGNMENT for t in like]
        dtype = torch.float64 if any(t.dtype == torch.float64 for t in like) else torch.float32
        device = like[0].device if like else torch.device("cpu")
        self.all = torch.zeros(sum(padded) + tail, dtype=dtype, device=device)
        self.body = self.all[: sum(padded)]
        self.tail = self.all[sum(padded) :]
        parts = self.body.split(padded) if like else ()
        self.views = [part[: t.numel()].view(t.shape) for part, t in zip(parts, like, strict=True)]

    def until(self, n_tensors: int) -> Tensor:
        """The part of the buffer that holds the first `n_tensors` tensors."""
        if n_tensors == len(self.views):
            return self.body
        return self.all[: self.views[n_tensors].storage_offset()]

    @torch.no_grad()
    def adopt(self, tensors: Sequence[Tensor]) -> None:
        """Make each tensor a view of its place, where dtype and layout allow it."""
        self.load(tensors)
        for tensor, view in zip(tensors, self.views, strict=True):
            if tensor.dtype == view.dtype and tensor.device == view.device and tensor.is_contiguous():
                tensor.data = view

    @torch.no_grad()
    def release(self, tensors: Sequence[Tensor]) -> None:
        """Give each tensor that lives in the buffer storage of its own."""
        for tensor, view in zip(tensors, self.views, strict=True):
            if tensor.data_ptr() == view.data_ptr():
                tensor.data = tensor.data.clone()

    def load(self, tensors: Sequence[Tensor]) -> None:
        """Copy what does not live in the buffer into it."""
        copy(*self._elsewhere(tensors))

    def store(self, tensors: Sequence[Tensor]) -> None:
        """Copy the buffer into what does not live in it."""
        places, outside = self._elsewhere(tensors)
        copy(outside, places)

    def _elsewhere(self, tensors: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        pairs = zip(self.views, tensors, strict=True)
        apart = [(view, tensor) for view, tensor in pairs if view.data_ptr() != tensor.data_ptr()]
        return [view for view, _ in apart], [tensor for _, tensor in apart]

    def sample(self) -> Tensor:
        """A copy of the body, or of evenly spread blocks of it if it is large: enough to estimate a distance."""
        stride = SAMPLE_BLOCK * SAMPLE_EVERY
        blocks = self.body.numel() // stride
        if blocks < 16:
            return self.body.clone()
        return self.body[: blocks * stride].view(blocks, stride)[:, :SAMPLE_BLOCK].clone()


@torch.no_grad()
def copy(to: Sequence[Tensor], source: Sequence[Tensor]) -> None:
    """Copy each tensor of `source` into its partner in `to`, in place, in one fused kernel where there is one."""
    if to:
        torch._foreach_copy_(list(to), list(source))
