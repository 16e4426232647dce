"""Where what travels lies while training lasts: tensor by tensor in one flat buffer, fragment by fragment.

It changes where other parameters train than before: a phase may have frozen some.
"""

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from ticks.strategy.flat import FlatBuffer, copy


class Layout:
    """Places for `tensors`, which live there from now on: the parameters, fragment by fragment, then buffers.

    `fragments` are the parameters' numbers of their fragment, in any order.
    """

    def __init__(self, tensors: list[Tensor], fragments: Sequence[int]) -> None:
        self.tensors = tensors
        self.flat = FlatBuffer(tensors)
        self.flat.adopt(tensors)
        self._ids = [id(p) for p in tensors[: len(fragments)]]
        self.parameters = self.flat.until(len(fragments))  # the part of the flat buffer before the buffers
        ends = [
            self.flat.until(sum(f <= last for f in fragments)).numel() for last in range(max(fragments, default=0) + 1)
        ]
        self.slices = [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]  # of each fragment
        self.matrices = [self.flat.matrices(place) for place in self.slices]  # inside each of them

    def fits(self, tensors: list[Tensor], n_parameters: int) -> bool:
        """Whether these have their places here; buffers that their module has made anew get them."""
        if _same(tensors, self.tensors):
            return True
        fits = self._ids == [id(p) for p in tensors[:n_parameters]] and self.flat.shapes == [t.shape for t in tensors]
        if fits:
            self.tensors = tensors
            self.flat.adopt(tensors)
        return fits

    def load(self) -> None:
        """Copy what does not live in the flat buffer into it."""
        self.flat.load(self.tensors)

    def store(self) -> None:
        """Copy the flat buffer into what does not live there."""
        self.flat.store(self.tensors)

    def release(self) -> None:
        """Give the tensors storage of their own."""
        self.flat.release(self.tensors)

    def parts(self, numbers: Tensor) -> list[Tensor]:
        """The fragments of a flat tensor that is laid out like this."""
        return [numbers[place] for place in self.slices]

    def all_live_here(self) -> bool:
        """Whether the tensors are the flat buffer's, and not roundings of it (bfloat16)."""
        return all(t.data_ptr() == view.data_ptr() for t, view in zip(self.tensors, self.flat.views, strict=True))

    def change(self, numbers: Tensor, change: Callable[[], None]) -> None:
        """`change` alters the tensors in place: for its time `numbers`, laid out like this, stand there, and take what
        comes of it."""
        own = [t.detach().clone() for t in self.tensors]
        self.load()
        self.flat.all.copy_(numbers)
        self.store()
        change()
        self.load()
        numbers.copy_(self.flat.all)
        copy(self.tensors, own)
        self.load()

    def move(self, numbers: Tensor, to: "Layout", others: Tensor) -> None:
        """Of the tensors that both have: copy `numbers`, laid out like this, into `others`, laid out like that."""
        mine = {id(t): view for t, view in zip(self.tensors, self.flat.views_of(numbers), strict=True)}
        for tensor, place in zip(to.tensors, to.flat.views_of(others), strict=True):
            if id(tensor) in mine:
                place.copy_(mine[id(tensor)])

    def move_parts(self, values: Sequence[dict[str, Any]], to: "Layout") -> list[dict[str, Any]]:
        """The same for what is known fragment by fragment, 0 where that has none; other values are the same in all."""
        moved: list[dict[str, Any]] = [{} for _ in to.slices]
        for name in dict.fromkeys(name for of in values for name in of):
            known = [(part, of[name]) for part, of in zip(self.slices, values, strict=True) if of.get(name) is not None]
            if not known:
                continue
            numbers, others = torch.zeros_like(self.flat.all), torch.zeros_like(to.flat.all)
            laid_out = all(isinstance(value, Tensor) and value.shape == numbers[part].shape for part, value in known)
            if laid_out:
                for part, value in known:
                    numbers[part] = value
                self.move(numbers, to, others)
            for part, own in zip(to.slices, moved, strict=True):
                own[name] = others[part].clone() if laid_out else deepcopy(known[0][1])
        return moved


def _same(some: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    return len(some) == len(others) and all(a is b for a, b in zip(some, others, strict=True))
