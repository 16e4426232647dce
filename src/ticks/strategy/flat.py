"""One persistent flat buffer: every tensor that travels has its place in it, and a tick copies next to nothing.

While training lasts the parameters live in the buffer (`adopt`): each tensor's data is a view of its place, so a tick
is one in-place all-reduce and a small sample of before and after. What cannot live there (another dtype) is copied in
and out. `release` gives every tensor storage of its own again: a view saved by itself would drag the whole buffer into
the file.
"""

import hashlib
from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from ticks.strategy.wire import Matrix

ALIGNMENT = 16  # numbers: each tensor starts at a multiple of 64 bytes, as kernels like it


class FlatBuffer:
    """Places for tensors like `like`, in their order; float64 if any of them is. `all` is the whole of it."""

    def __init__(self, like: Sequence[Tensor]) -> None:
        self.shapes = [t.shape for t in like]
        padded = [-(-t.numel() // ALIGNMENT) * ALIGNMENT for t in like]
        dtype = torch.float64 if any(t.dtype == torch.float64 for t in like) else torch.float32
        device = like[0].device if like else torch.device("cpu")
        self.all = torch.zeros(sum(padded), dtype=dtype, device=device)
        self._padded = padded
        self.views = self.views_of(self.all)

    def views_of(self, numbers: Tensor) -> list[Tensor]:
        """The tensors inside another flat tensor that is laid out like this buffer."""
        parts = numbers.split(self._padded) if self.shapes else ()
        return [part[: shape.numel()].view(shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def matrices(self, place: slice) -> list[Matrix]:
        """The tensors of two and more dimensions inside `place`, counted from its start; dimensions after the first are
        columns."""
        starts = accumulate(self._padded, initial=0)
        return [
            Matrix(start - place.start, shape[0], shape[1:].numel())
            for start, shape in zip(starts, self.shapes, strict=False)
            if len(shape) > 1 and shape.numel() and place.start <= start < place.stop
        ]

    def until(self, n_tensors: int) -> Tensor:
        """The part of the buffer that holds the first `n_tensors` tensors."""
        return self.all[: sum(self._padded[:n_tensors])]

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


@torch.no_grad()
def copy(to: Sequence[Tensor], source: Sequence[Tensor]) -> None:
    """Copy each tensor of `source` into its partner in `to`, in place, in one fused kernel where there is one."""
    if to:
        torch._foreach_copy_(list(to), list(source))


def digest(tensors: Sequence[Tensor]) -> str:
    """32 hexadecimal digits that are equal for tensors of equal bits, and hardly ever for others."""
    hashed = hashlib.blake2b(digest_size=16)
    for tensor in tensors:
        hashed.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        hashed.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return hashed.hexdigest()
