"""The agreed model: what is evaluated and saved, never one worker's own."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ticks.strategy.facts import only_weight
from ticks.strategy.flat import copy
from ticks.strategy.rounds import Rounds
from ticks.strategy.wire import FP32


class AgreedModel:
    """What all workers agree on, in the place of what this one has, and back.

    That is the anchor where the rule keeps one (outer optimizers), else the mean of the workers, for which they talk.
    """

    def __init__(self, rounds: Rounds) -> None:
        self.rounds = rounds
        self.own: list[Tensor] | None = None  # this worker's tensors while the agreed ones stand in their place

    @contextmanager
    def entered(self) -> Iterator[None]:
        """In the block the module holds it; then each worker's own parameters again."""
        mine = self.enter()
        try:
            yield
        finally:
            if mine:
                self.leave()

    def enter(self) -> bool:
        """Whether that changed anything: not where it is there already."""
        exchange = self.rounds.exchange
        if self.rounds.agreed or self.own is not None or exchange is None:
            return False
        layout = exchange.laid_out()
        self.rounds.make_room()
        own = [t.detach().clone() for t in layout.tensors]
        layout.load()
        if exchange.sync.keeps_anchor:
            assert exchange.anchor is not None
            layout.flat.all.copy_(exchange.anchor)
        else:
            facts = only_weight(float(torch.isfinite(layout.parameters.sum())))
            measured = FP32().mean(layout.flat.all, facts, channel="measuring", step=exchange.worker.step)
            exchange.ledger.measuring_bytes += measured.n_bytes
        layout.store()
        self.own = own
        return True

    def leave(self) -> None:
        """Each worker's own parameters again, if it was entered."""
        if self.own is not None:
            assert self.rounds.exchange is not None
            copy(self.rounds.exchange.layout.tensors, self.own)
            self.own = None
