"""A tick beside a bare all-reduce of the same bytes, in the same processes, in turn."""

import time
from typing import Any

import torch
import torch.distributed as dist
from lightning import LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from ticks.models import DecoderTransformer
from ticks.strategy import DDP, Sync, TickStrategy, Wire
from ticks.strategy.rounds import Rounds


class OnlyParameters(LightningModule):
    """The tensors of a 10-million-parameter Transformer, and steps that compute next to nothing with them."""

    def __init__(self) -> None:
        super().__init__()
        self.model = DecoderTransformer(vocab_size=256, block_size=256, d_model=384, n_layers=6, n_heads=6)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return torch.stack([p.sum() for p in self.parameters()]).mean()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("val/loss", self.model.final_norm.weight.sum())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-4)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(torch.zeros(1000, 1))  # type: ignore[arg-type]

    val_dataloader = train_dataloader


def quiet_trainer(strategy: TickStrategy | DDP, workers: int, **options: Any) -> Trainer:
    """A Trainer that prints nothing, evaluates nothing and writes nothing unless `options` say so."""
    defaults: dict[str, Any] = {"logger": False, "limit_val_batches": 0, "num_sanity_val_steps": 0, "max_epochs": -1}
    defaults |= dict.fromkeys(("enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
    return Trainer(accelerator="cpu", devices=workers, strategy=strategy, **(defaults | options))


class TimedRounds(Rounds):
    """Beside every tick, before it and after it in turn, a bare all-reduce of as many numbers."""

    def __init__(self, trainee: TickStrategy) -> None:
        super().__init__(trainee)
        self.seconds: list[tuple[float, float]] = []  # of the tick, of the bare all-reduce
        self.gradient_seconds = 0.0
        self._message: Tensor | None = None  # kept, as the tick's is: fresh memory is slower

    def _average_gradients(self, gradients: Any) -> None:
        dist.barrier()
        start = time.perf_counter()
        super()._average_gradients(gradients)
        self.gradient_seconds = time.perf_counter() - start

    def _close_round(self) -> None:
        if self._message is None:
            self._message = torch.full((self.exchange.laid_out().flat.all.numel(),), 0.0)  # type: ignore[union-attr]
        measured = {}
        actions = {"tick": super()._close_round, "bare": lambda: dist.all_reduce(self._message)}
        for name in actions if self.step % 2 else reversed(actions):
            dist.barrier()
            start = time.perf_counter()
            actions[name]()
            measured[name] = time.perf_counter() - start
        self.seconds.append((measured["tick"] + self.gradient_seconds, measured["bare"]))


def time_ticks(workers: int, sync: Sync, wire: Wire, ticks: int, **options: Any) -> list[tuple[float, float]]:
    """Seconds of each tick but the last and of the all-reduce beside it, on this worker."""
    strategy = TickStrategy(interval=1, sync=sync, wire=wire)
    strategy._rounds = rounds = TimedRounds(strategy)
    quiet_trainer(strategy, workers, max_steps=ticks + 1, **options).fit(OnlyParameters())
    return rounds.seconds[:-1]
