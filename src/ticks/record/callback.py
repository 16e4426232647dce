"""The callback that fills metrics.csv while a run trains, and gives other loggers the same at the same steps."""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from ticks.contract import evaluated
from ticks.record.metrics import MetricsFile


def step_loss(trainer: Trainer, outputs: Any) -> float:
    """Worker 0's loss of the batch just done; Lightning has divided it by the batches it accumulates."""
    return float(outputs["loss"]) * trainer.accumulate_grad_batches if has_loss(outputs) else math.nan


def has_loss(outputs: Any) -> bool:
    """Whether a training step has said its loss, as one that optimizes by hand need not."""
    return isinstance(outputs, dict) and outputs.get("loss") is not None


class Record(Callback):
    """Writes metrics.csv in `run_dir` and keeps the training time, over resumed runs too. `tokens_after` says how many
    tokens so many steps have taken; None where there are none."""

    validation_can_be_left = True  # in the middle, when training stops

    def __init__(
        self, run_dir: str | Path, *, tokens_after: Callable[[int], int | None] | None = None, every_n_steps: int = 10
    ) -> None:
        self.file = MetricsFile(Path(run_dir) / "metrics.csv")
        self.tokens_after = tokens_after or (lambda steps: None)
        self.every_n_steps = max(1, every_n_steps)
        self.train_seconds = 0.0
        self.last_val: tuple[int, dict[str, float]] | None = None
        self._running_since: float | None = None
        self._listens = False
        self.has_begun = False  # training has, in this process
        self.phase: dict[str, Any] | None = None  # of the run, for its checkpoints

    def state_dict(self) -> dict[str, Any]:
        return {"train_seconds": self.seconds()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.train_seconds = state_dict["train_seconds"]

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if self.phase is not None:
            checkpoint["phase"] = self.phase

    def seconds(self) -> float:
        """Seconds of training so far, without evaluation and start-up."""
        running = 0.0 if self._running_since is None else time.perf_counter() - self._running_since
        return self.train_seconds + running

    def _pause(self) -> None:
        self.train_seconds, self._running_since = self.seconds(), None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            self.file.forget_after(trainer.global_step)
        listeners = getattr(trainer.strategy, "on_tick", None)
        if listeners is not None and not self._listens:
            listeners.append(lambda metrics: self.write(trainer, metrics))
            self._listens = True
        self._running_since = time.perf_counter()
        self.has_begun = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx + 1 < trainer.accumulate_grad_batches or (batch_idx + 1) % trainer.accumulate_grad_batches:
            return  # in the middle of a step
        self._tell_loggers(trainer, pl_module, on_step=True)
        if trainer.is_global_zero and trainer.global_step % self.every_n_steps == 0:
            lr = max((group["lr"] for o in trainer.optimizers for group in o.param_groups), default=0.0)
            loss = {"train/loss": step_loss(trainer, outputs)} if has_loss(outputs) else {}
            said = {name: float(v) for name, v in trainer.callback_metrics.items() if name.startswith("train/")}
            self.write(trainer, said | loss | {"lr": lr})

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._pause()

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._tell_loggers(trainer, pl_module)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._tell_loggers(trainer, pl_module)

    def _tell_loggers(self, trainer: Trainer, pl_module: LightningModule, *, on_step: bool = False) -> None:
        """Lightning counts the step that is just over only later; a metric called `step` is what it logs at."""
        if trainer.loggers and not trainer.sanity_checking:
            step = torch.tensor(self._step(trainer), dtype=torch.float64)  # exact beyond 2^24
            pl_module.log("step", step, on_step=on_step, on_epoch=not on_step)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        metrics = {f"val/{name}": value for name, value in evaluated(trainer.callback_metrics, "val").items()}
        if not trainer.sanity_checking:
            self.last_val = (trainer.global_step, metrics)
            self.write(trainer, metrics)
            self._tell_totals(trainer)
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._running_since = time.perf_counter()

    def _tell_totals(self, trainer: Trainer) -> None:
        """Other loggers have beside each evaluation what it can be drawn against."""
        if trainer.is_global_zero:
            said = {key: value for key, value in self._head(trainer).items() if key != "step" and value != ""}
            for logger in trainer.loggers:
                logger.log_metrics(said, step=self._step(trainer))

    def happened(self, trainer: Trainer, name: str, said: Any) -> None:
        """An event of a timeline, or a setting's new value: a row, and a mark for other loggers."""
        self.write(trainer, {f"timeline/{name}": 1 if said is None else said})
        number = said if isinstance(said, int | float) else 1
        for logger in trainer.loggers if trainer.is_global_zero else ():
            logger.log_metrics({f"timeline/{name}": float(number)}, step=self._step(trainer))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._pause()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._pause()

    def write(self, trainer: Trainer, metrics: dict[str, Any]) -> None:
        """One row now. Nothing on workers other than 0."""
        if not trainer.is_global_zero or not metrics:
            return
        self.file.append(self._head(trainer) | metrics)

    def _head(self, trainer: Trainer) -> dict[str, Any]:
        """Where training is, and the totals so far."""
        step = self._step(trainer)
        ledger = getattr(trainer.strategy, "ledger", None)
        tokens = self.tokens_after(step)
        return {
            "step": step,
            "tokens": "" if tokens is None else tokens,
            "seconds": round(self.seconds(), 3),
            "bytes_sent": ledger.bytes_sent if ledger else "",
        }

    def _step(self, trainer: Trainer) -> int:
        return getattr(trainer.strategy, "step", trainer.global_step)  # Lightning's own is one behind inside a tick
