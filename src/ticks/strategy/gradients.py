"""Gradients on their way: copied into one flat buffer, averaged there, copied back before the optimizer sees them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ticks.strategy.exchange import Exchange
from ticks.strategy.facts import FIELDS
from ticks.strategy.flat import FlatBuffer, copy


class GradientBuffer:
    """Places for the parameters' gradients, then for the model's floating-point buffers."""

    def __init__(self, parameters: Sequence[Tensor], buffers: Sequence[Tensor]) -> None:
        self.parameters, self.buffers = list(parameters), list(buffers)
        self.flat = FlatBuffer([*parameters, *buffers])
        self.places = self.flat.views[: len(self.parameters)]
        self.numbers = self.flat.until(len(self.parameters))
        self.matrices = self.flat.matrices(slice(0, self.numbers.numel()))

    def fits(self, parameters: Sequence[Tensor], buffers: Sequence[Tensor]) -> bool:
        """Whether it was made for these; buffers that their module has made anew are taken over."""
        if [id(p) for p in parameters] != [id(p) for p in self.parameters]:
            return False
        if [b.shape for b in buffers] != [b.shape for b in self.buffers]:
            return False
        self.buffers = list(buffers)
        return True

    def take_over(self, before: "GradientBuffer") -> None:
        """What was added up of the parameters that it held, too: others train than before."""
        known = {id(p): place for p, place in zip(before.parameters, before.places, strict=True)}
        for parameter, place in zip(self.parameters, self.places, strict=True):
            if id(parameter) in known:
                place.copy_(known[id(parameter)])

    def load(self) -> None:
        """Take this step's gradients; a parameter without one counts as 0."""
        for parameter, place in zip(self.parameters, self.places, strict=True):
            if parameter.grad is None:
                place.zero_()
        places, gradients = self._present()
        copy(places, gradients)

    def add(self, *, first: bool) -> None:
        """Add this step's gradients to those of the steps before, or start anew."""
        if first:
            self.flat.all.zero_()
        places, gradients = self._present()
        if places:
            torch._foreach_add_(places, gradients)

    def divide(self, steps: int) -> None:
        """Turn a sum over steps into their mean."""
        self.numbers.div_(steps)

    def message(self, *, with_buffers: bool) -> tuple[Tensor, int]:
        """What is sent, and how many numbers at its end are the model's buffers."""
        if not (with_buffers and self.buffers):
            return self.numbers, 0
        copy(self.flat.views[len(self.parameters) :], self.buffers)
        return self.flat.all, self.flat.all.numel() - self.numbers.numel()

    def store(self, *, with_buffers: bool) -> None:
        """Give every parameter its mean gradient; one that had none gets one if another worker's batch used it."""
        places, gradients = self._present()
        copy(gradients, places)
        for parameter, place in zip(self.parameters, self.places, strict=True):
            if parameter.grad is None and place.any():
                parameter.grad = place.to(parameter.dtype, copy=True)
        if with_buffers:
            copy(self.buffers, self.flat.views[len(self.parameters) :])

    def _present(self) -> tuple[list[Tensor], list[Tensor]]:
        pairs = zip(self.places, self.parameters, strict=True)
        present = [(place, p.grad) for place, p in pairs if p.grad is not None]
        return [place for place, _ in present], [gradient for _, gradient in present]


class GradientMessages:
    """One worker's side of all messages of gradients, which are averaged before the optimizers see them."""

    def __init__(self, exchange: Exchange) -> None:
        self.exchange = exchange
        self.rows_NxF = torch.empty(0)  # everybody's facts that came with the last ones
        self._buffer: GradientBuffer | None = None

    def _fitting(self) -> GradientBuffer:
        """A buffer for what trains now."""
        parameters, buffers = self.exchange.parameters(), self.exchange.worker.floating_buffers()
        if self._buffer is None or not self._buffer.fits(parameters, buffers):
            before, self._buffer = self._buffer, GradientBuffer(parameters, buffers)
            if before is not None:
                self._buffer.take_over(before)
        return self._buffer

    def add(self, *, first: bool) -> None:
        """Add this step's gradients to those of the steps before, or start anew."""
        self._fitting().add(first=first)

    def average(self, *, added_up: int | None, alone: bool) -> None:
        """Replace this worker's gradients by the mean over all: this step's, or those `added_up` of so many steps.

        Where they are `alone`, no parameters following, the buffers travel along, and a fingerprint of the parameters.
        """
        buffer, exchange = self._fitting(), self.exchange
        with exchange.ledger.timed():
            if added_up:
                buffer.divide(added_up)
            else:
                buffer.load()
            numbers, exact = buffer.message(with_buffers=alone)
            facts = exchange.worker.facts(numbers[: numbers.numel() - exact])
            if alone:
                facts[FIELDS.index("fingerprint")] = exchange.fingerprint()
            received = exchange.mean(numbers, facts, exact, "gradients", exchange.worker.step, buffer.matrices)
            buffer.store(with_buffers=alone)
        exchange.ledger.sent(received.n_bytes)
        self.rows_NxF = received.rows_NxF

    def give_memory_back(self) -> None:
        """Until the next message; not while gradients are added up."""
        self._buffer = None

    def state(self) -> Tensor | None:
        """What has been added up."""
        return None if self._buffer is None else self._buffer.flat.all

    def load_state(self, numbers: Tensor) -> None:
        self._fitting().flat.all.copy_(numbers)
