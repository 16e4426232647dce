"""The baseline: PyTorch's DDP, which averages gradients at every step, with its traffic counted."""

from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from ticks.strategy.wire import ring_bytes
from ticks.strategy.workers import WorkerStrategy


class DDP(WorkerStrategy):
    """Lightning's DDPStrategy without its broadcast at every batch. Takes what `WorkerStrategy` takes.

    Its ledger counts the gradient buckets as they leave; their seconds overlap with backward and are not measured.
    """

    def __init__(self, **kwargs: Any) -> None:
        # else DDP sums its first step in another order than the rest, and a resumed run is not exact from 3 workers on
        super().__init__(**({"find_unused_parameters": True} | kwargs))

    def register_hooks(self) -> None:
        assert isinstance(self.model, DistributedDataParallel)
        self.model.register_comm_hook(state=self, hook=_count_and_reduce)

    def _end_step(self) -> None:
        super()._end_step()
        self.ledger.ticks += 1
        self.ledger.ddp_bytes = self.ledger.bytes_sent


def _count_and_reduce(strategy: DDP, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
    buffer = bucket.buffer()
    strategy.ledger.sent(ring_bytes(buffer.numel() * buffer.element_size(), dist.get_world_size()))
    group: Any = dist.group.WORLD
    return allreduce_hook(group, bucket)
