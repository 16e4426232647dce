"""Wires: how numbers are encoded while they travel, and how many bytes that is.

To add one: a class here with `mean`, and a YAML in configs/strategy/wire/.
"""

from abc import ABC, abstractmethod

import torch.distributed as dist
from torch import Tensor


class Wire(ABC):
    """An exchange over the default process group."""

    @abstractmethod
    def mean(self, flat_P: Tensor, exact: int = 0) -> int:
        """Replace `flat_P` (P,) by its mean over the workers, in place; the bytes this worker sent for it.

        Its last `exact` numbers are facts, not parameters: they are summed, not averaged, and travel in full
        precision whatever the encoding.
        """


class FP32(Wire):
    """Plain 32-bit floats in one all-reduce. On a ring each worker sends 2 (n - 1) / n times the payload."""

    def mean(self, flat_P: Tensor, exact: int = 0) -> int:
        n = dist.get_world_size()
        if n == 1:
            return 0
        flat_P[: len(flat_P) - exact].div_(n)  # before the sum, as DDP does: the mean of equal numbers stays exact
        dist.all_reduce(flat_P)
        return ring_bytes(flat_P.numel() * flat_P.element_size(), n)


def ring_bytes(payload: int, world_size: int) -> int:
    """Bytes one worker sends to all-reduce `payload` bytes on a ring: 2 (n - 1) / n of them."""
    return 2 * (world_size - 1) * payload // world_size
