"""The progress line: bar, count, rate and time left at any width, evaluation too, and a last state that is true."""

import io
import re
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
from rich.console import Console
from rich.progress import Progress

from tests.record.test_callback import Table, batches
from ticks.record.progress import ProgressLine, _columns
from ticks.tasks import LanguageModeling


class EndsAt(pl.Callback):
    """Ends training after `step`: by an exception, as a signal does, or by a wish."""

    def __init__(self, step: int, *, by: type[BaseException] | None) -> None:
        self.step = step
        self.by = by

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        if trainer.global_step == self.step:
            trainer.should_stop = True
            if self.by is not None:
                raise self.by


def console(width: int, *, terminal: bool = True) -> Console:
    file = io.StringIO()
    return Console(file=file, force_terminal=terminal, width=width, highlight=False, _environ={"TERM": "xterm"})


def lines(on: Console) -> list[str]:
    """What stood on the terminal, line by line, redrawn lines again."""
    assert isinstance(on.file, io.StringIO)
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", on.file.getvalue())
    return [line.rstrip() for line in re.split(r"[\r\n]+", text) if line.strip()]


def trainer(on: Console, directory: Path, *more: pl.Callback, **options: Any) -> pl.Trainer:
    return pl.Trainer(
        accelerator="cpu", max_steps=9, max_epochs=-1, val_check_interval=4, check_val_every_n_epoch=None,
        num_sanity_val_steps=0, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=directory, callbacks=[ProgressLine(console=on, **options), *more],
    )  # fmt: skip


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_line_keeps_bar_count_rate_and_time_left(width: int) -> None:
    on = console(width)
    progress = Progress(*_columns(width), console=on, expand=True, get_time=iter(range(10**6)).__next__)
    facts = ("loss 1.234", "val 1.250", "tick 1234", "1234.5 MB sent")
    row = progress.add_task("validation", total=640_000, facts=facts)
    for step in range(10):
        progress.update(row, completed=123_456 + step)
    on.print(progress.get_renderable())
    (line,) = lines(on)
    assert len(line) <= width
    assert re.match(r"validation ━[━╸╺]+ 123465/640000 [\d.]+/s +[\d:]+ left", line), line
    shown = line.partition(" left ")[2].split("  ")
    assert set(shown) - {""} <= set(facts)  # none is cut
    assert ("loss 1.234" in shown) == (width >= 80)


def test_training_ends_with_what_was_done(tmp_path: Path) -> None:
    on = console(100)
    trainer(on, tmp_path).fit(LanguageModeling(Table()), batches(100), batches(3))
    assert re.match(r"training ━+ 9/9 [\d.]+/s +00:00 left loss \d\.\d+  val bits per byte \d\.\d+", lines(on)[-1]), (
        lines(on)
    )


@pytest.mark.parametrize("by", [None, SystemExit, RuntimeError])
def test_a_run_that_ends_early_shows_the_step_it_came_to(tmp_path: Path, by: type[BaseException] | None) -> None:
    on = console(80)
    running = trainer(on, tmp_path, EndsAt(5, by=by))
    try:
        running.fit(LanguageModeling(Table()), batches(100), batches(3))
    except (SystemExit, RuntimeError):
        assert by is not None
    assert re.match(r"training [━╸╺]+ 5/9 ", lines(on)[-1]), lines(on)


def test_evaluation_shows_its_batches_before_beside_and_after_training(tmp_path: Path) -> None:
    on = console(80)
    running = trainer(on, tmp_path)
    running.validate(LanguageModeling(Table()), batches(7), verbose=False)
    assert re.match(r"validation ━+ 7/7 ", lines(on)[-1])
    running.fit(task := LanguageModeling(Table()), batches(100), batches(5))
    assert [line for line in lines(on) if re.match(r"validation +[━╸╺]+ +\d/5 ", line)]
    assert lines(on)[-1].startswith("training")
    running.test(task, batches(6), verbose=False)
    assert re.match(r"test ━+ 6/6 ", lines(on)[-1])


def test_without_a_terminal_there_are_plain_lines_with_the_last_step(tmp_path: Path) -> None:
    on = console(80, terminal=False)
    trainer(on, tmp_path).fit(LanguageModeling(Table()), batches(100), batches(3))
    assert [line.split()[:2] for line in lines(on)] == [["step", f"{step}/9"] for step in (4, 8, 9)]
    assert re.match(r"step 4/9  val bits per byte \d\.\d+  val loss \(nats\) \d\.\d+$", lines(on)[0])


def test_without_a_terminal_a_long_evaluation_says_how_far_it_is(tmp_path: Path) -> None:
    on = console(80, terminal=False)
    trainer(on, tmp_path, log_seconds=0.0).validate(LanguageModeling(Table()), batches(3), verbose=False)
    assert lines(on) == ["validation 1/3", "validation 2/3", "validation 3/3"]
