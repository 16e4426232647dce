"""What a person sees while a run goes on: one live line on a terminal, a plain line now and then in a log file."""

import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ticks.report.record import step_loss


class ProgressLine(Callback):
    """A progress bar over steps with loss, ticks and MB sent. Worker 0 only.

    Without a terminal a plain line every `log_seconds` seconds and after each evaluation takes its place.
    """

    def __init__(self, *, log_seconds: float = 15.0) -> None:
        self.log_seconds = log_seconds
        self.console = Console(highlight=False)
        self._bar: Progress | None = None
        self._logged = 0.0
        self._val = ""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        self._logged = time.monotonic()
        if self.console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(bar_width=30),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[facts]}"),
            )
            self._bar = Progress(*columns, console=self.console, refresh_per_second=4)
            self._bar.start()
            total = trainer.estimated_stepping_batches
            self._task = self._bar.add_task("training", total=total, completed=trainer.global_step, facts="")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not trainer.is_global_zero:
            return
        if self._bar is not None:
            if time.monotonic() - self._logged > 0.25:  # reading the loss waits for a GPU: not at every step
                self._logged = time.monotonic()
                self._bar.update(self._task, completed=trainer.global_step, facts=self._facts(trainer, outputs))
        elif time.monotonic() - self._logged > self.log_seconds:
            self._log_line(trainer, self._facts(trainer, outputs))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero or trainer.sanity_checking or trainer.state.fn != "fit":
            return
        metrics = trainer.callback_metrics
        bits = f" ({float(metrics['val/bits_per_byte']):.3f} bits/byte)" if "val/bits_per_byte" in metrics else ""
        self._val = f"val {float(metrics['val/loss']):.3f}{bits}" if "val/loss" in metrics else ""
        if self._bar is None:
            self._log_line(trainer, self._val)

    def _log_line(self, trainer: Trainer, text: str) -> None:
        self._logged = time.monotonic()
        self.console.print(f"step {trainer.global_step}/{trainer.estimated_stepping_batches}  {text}")

    def _facts(self, trainer: Trainer, outputs: Any) -> str:
        loss = f"loss {step_loss(trainer, outputs):.3f}" if isinstance(outputs, dict) and "loss" in outputs else ""
        ledger = getattr(trainer.strategy, "ledger", None)
        sent = f"tick {ledger.ticks}, {ledger.bytes_sent / 1e6:.1f} MB sent" if ledger else ""
        return "  ".join(part for part in (loss, self._val if self._bar else "", sent) if part)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=trainer.global_step)
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._close()
