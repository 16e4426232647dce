"""What a person sees while a run goes on: one live line on a terminal, a plain line now and then in a log file.

The line is as wide as the terminal: bar, count, rate and time left always stand on it, then as many whole facts (loss,
ticks, MB sent) as there is room for.
"""

import math
import time
from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text
from torch import Tensor

from ticks.contract import evaluated, measures_of
from ticks.record.callback import step_loss


class ProgressLine(Callback):
    """A progress bar over the steps of training and over the batches of each evaluation. Worker 0 only.

    Without a terminal a plain line every `log_seconds` seconds and after each evaluation takes its place.
    """

    def __init__(self, *, log_seconds: float = 15.0, console: Console | None = None) -> None:
        self.log_seconds = log_seconds
        self.console = console or Console(highlight=False)
        self._live = self.console.is_terminal and not self.console.is_dumb_terminal
        self._bar: Progress | None = None
        self._rows: dict[str, TaskID] = {}
        self._done = self._total = 0  # batches of the evaluation that goes on
        self._told = 0.0  # when facts were last read, or a line was last printed
        self._told_step = -1
        self._loss: Tensor | None = None
        self._val: list[str] = []

    # ---- training

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            self._told = time.monotonic()
            self._open("training", _total(trainer), trainer.global_step)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not trainer.is_global_zero:
            return
        if isinstance(outputs, dict) and isinstance(loss := outputs.get("loss"), Tensor):
            self._loss = loss.detach()
        if time.monotonic() - self._told > (0.25 if self._live else self.log_seconds):
            self._tell(trainer)  # reading the loss waits for a GPU: not at every step
        else:
            self._move("training", trainer.global_step)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero and (self._live or self._told_step != trainer.global_step):
            self._tell(trainer)
        self._close("training")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Whatever ended the run: what stands there last is what was done."""
        if "training" in self._rows:
            self._tell(trainer)
        for row in list(self._rows):
            self._close(row)

    def _tell(self, trainer: Trainer) -> None:
        """Show the step, and what there is to know about it."""
        self._told, self._told_step = time.monotonic(), trainer.global_step
        facts = self._facts(trainer)
        if self._live:
            self._move("training", trainer.global_step, facts)
        else:
            self._print(trainer, facts)

    def _facts(self, trainer: Trainer) -> list[str]:
        """The most telling first."""
        loss = [] if self._loss is None else [f"loss {step_loss(trainer, {'loss': self._loss}):.3f}"]
        ledger = getattr(trainer.strategy, "ledger", None)
        sent = [f"tick {ledger.ticks}", f"{ledger.bytes_sent / 1e6:.1f} MB sent"] if ledger else []
        return loss + (self._val[:1] + sent + self._val[1:] if self._live else sent)

    def _print(self, trainer: Trainer, facts: Sequence[str]) -> None:
        total = _total(trainer)
        of = "" if total is None else f"/{total}"
        self.console.print(f"step {trainer.global_step}{of}  {'  '.join(facts)}", soft_wrap=True)

    # ---- evaluation

    validation_can_be_left = True  # in the middle, when training stops

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._evaluation_starts(trainer, "validation", trainer.num_val_batches)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        self._evaluated(trainer, "validation")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close("validation")
        if not trainer.is_global_zero or trainer.sanity_checking or trainer.state.fn != "fit":
            return
        metrics = evaluated(trainer.callback_metrics, "val")
        measures = [m for m in measures_of(pl_module, metrics) if m.name in metrics]
        self._val = [f"val {m.label} {metrics[m.name]:.{m.digits}f}" for m in measures]
        if not self._live:
            self._told, self._told_step = time.monotonic(), trainer.global_step
            self._print(trainer, self._val)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._evaluation_starts(trainer, "test", trainer.num_test_batches)

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        self._evaluated(trainer, "test")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close("test")

    def _evaluation_starts(self, trainer: Trainer, what: str, batches: Sequence[int | float]) -> None:
        if trainer.is_global_zero and not trainer.sanity_checking:
            if "training" in self._rows:
                self._tell(trainer)
            self._done, self._told = 0, time.monotonic()
            self._total = int(n) if math.isfinite(n := sum(batches)) else 0
            self._open(what, self._total or None, 0)

    def _evaluated(self, trainer: Trainer, what: str) -> None:
        if not trainer.is_global_zero or trainer.sanity_checking:
            return
        self._done += 1
        self._move(what, self._done)
        if not self._live and time.monotonic() - self._told > self.log_seconds:
            self._told = time.monotonic()
            self.console.print(f"{what} {self._done}" + (f"/{self._total}" if self._total else ""))

    # ---- the bar

    def _open(self, what: str, total: int | None, done: int) -> None:
        if not self._live:
            return
        if self._bar is None:
            self._bar = Progress(*_columns(self.console.width), console=self.console, refresh_per_second=4, expand=True)
            self._bar.start()
        self._rows[what] = self._bar.add_task(what, total=total, completed=done, facts=())

    def _move(self, what: str, done: int, facts: Sequence[str] | None = None) -> None:
        if self._bar is not None and what in self._rows:
            row = self._rows[what]
            self._bar.update(row, completed=done)
            if facts is not None:
                self._bar.update(row, facts=facts)

    def _close(self, what: str) -> None:
        """The last row stays on the screen as it is; one beside it goes."""
        if self._bar is None or (row := self._rows.pop(what, None)) is None:
            return
        if self._rows:
            self._bar.remove_task(row)
        else:
            self._bar.stop()
            self._bar = None


def _total(trainer: Trainer) -> int | None:
    """The steps that training is to take; None where nobody knows."""
    steps = trainer.estimated_stepping_batches
    return int(steps) if 0 < steps < math.inf else None


def _columns(width: int) -> tuple[ProgressColumn, ...]:
    def whole() -> Column:
        return Column(no_wrap=True)

    return (
        TextColumn("{task.description}", table_column=whole()),
        BarColumn(bar_width=max(3, min(30, (width - 44) // 2)), table_column=whole()),
        MofNCompleteColumn(table_column=whole()),
        _Rate(table_column=whole()),
        TimeRemainingColumn(compact=True, table_column=whole()),
        TextColumn("left", table_column=whole()),
        _Facts(table_column=Column(ratio=1, no_wrap=True)),
    )


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("-/s" if speed is None else f"{speed:.{0 if speed >= 100 else 1 if speed >= 1 else 2}f}/s")


class _Facts(ProgressColumn):
    def render(self, task: Task) -> "_WholeFacts":  # type: ignore[override]
        return _WholeFacts(task.fields["facts"])


class _WholeFacts:
    """As many of the facts as there is room for, none of them cut."""

    def __init__(self, facts: Sequence[str]) -> None:
        self.facts = facts

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        shown = ""
        for fact in self.facts:
            longer = f"{shown}  {fact}" if shown else fact
            shown = longer if cell_len(longer) <= options.max_width else shown
        yield Text(shown, no_wrap=True)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(0, cell_len("  ".join(self.facts)))
