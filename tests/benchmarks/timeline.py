"""What a timeline costs: the share of a step's time that its hooks take, on the default job with one worker.

python -m tests.benchmarks.timeline [STEPS]

The hooks are timed in the run itself: two whole runs differ by more than what is measured here.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch.utils.data import DataLoader

from ticks.models import DecoderTransformer
from ticks.strategy import TickStrategy
from ticks.timeline import (
    Dropout,
    Freeze,
    Interval,
    LrFactor,
    NormGate,
    Number,
    Run,
    Save,
    Show,
    Timeline,
    WeightDecay,
)

FAR = 10**6  # steps: nothing happens while it is measured
TEN: dict[str, Any] = {
    "lr": {"from": FAR, "do": LrFactor(end=0.1)},
    "decay": {"from": FAR, "do": WeightDecay(start=0.1, end=0.0)},
    "freeze": {"from": FAR, "do": Freeze("embedding")},
    "norms": {"from": FAR, "do": NormGate(start=1.0, end=0.0)},
    "dropout": {"from": FAR, "do": Dropout(end=0.1)},
    "weight": {"from": FAR, "do": Number(of="weight", end=0.0)},
    "interval": {"from": FAR, "do": Interval(end=4)},
    "keep": {"every": "10h", "do": Save()},
    "look": {"at": FAR, "do": Show()},
    "call": {"every": "100000 ticks", "do": Run(print)},
}
RAMPS = ("lr", "decay", "norms", "dropout", "weight")  # of which each step has another value


def ramping() -> dict[str, Any]:
    return {name: said | ({"from": 0, "ramp": FAR} if name in RAMPS else {}) for name, said in TEN.items()}


class Timed(Timeline):
    """Knows how long its hooks took."""

    def __init__(self, entries: Any) -> None:
        super().__init__(entries)
        self.spent = 0.0

    def _timed(self, hook: Callable[..., None], *arguments: Any) -> None:
        started = time.perf_counter()
        hook(*arguments)
        self.spent += time.perf_counter() - started

    def on_train_batch_start(self, *arguments: Any) -> None:
        self._timed(super().on_train_batch_start, *arguments)

    def on_train_batch_end(self, *arguments: Any) -> None:
        self._timed(super().on_train_batch_end, *arguments)


class Ends(Callback):
    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        trainer.should_stop = trainer.global_step >= self.steps


class Job(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.model, self.weight = DecoderTransformer(vocab_size=256, block_size=64), 1.0

    def training_step(self, tokens: torch.Tensor, index: int) -> torch.Tensor:
        logits = self.model(tokens[:, :-1])
        return self.weight * torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def measure(entries: Any, steps: int) -> tuple[float, float]:
    """Seconds of a step, and of the hooks in it."""
    seed_everything(0, verbose=False)
    timeline = Timed(entries)
    data = DataLoader(torch.randint(256, (64 * steps, 65)), batch_size=32)  # type: ignore[arg-type]
    silent: Any = {
        "default_root_dir": tempfile.gettempdir(),
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
    }
    trainer = Trainer(
        callbacks=[timeline, Ends(steps)], strategy=TickStrategy(interval=8), accelerator="cpu", devices=1,
        max_steps=2 * FAR, max_epochs=-1, enable_model_summary=False, **silent,
    )  # fmt: skip
    started = time.perf_counter()
    trainer.fit(Job(), data)
    return (time.perf_counter() - started) / steps, timeline.spent / steps


def main() -> None:
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    for name, entries in (("empty", {}), ("ten entries", TEN), ("ten entries, five of them ramps", ramping())):
        step, spent = measure(entries, steps)
        print(f"{name}: {1e6 * spent:.1f} us of a step of {1e3 * step:.1f} ms: {spent / step:.4%}")


if __name__ == "__main__":
    main()
