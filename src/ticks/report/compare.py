"""Several runs side by side: a table of their summaries, a figure of validation loss against what was sent."""

import csv
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from ticks.config import ConfigError, did_you_mean
from ticks.record import summary
from ticks.record.metrics import MetricsFile
from ticks.record.result import megabytes


@dataclass(frozen=True)
class Run:
    """One run's summary.json and the rows of its metrics.csv."""

    directory: Path
    summary: dict[str, Any]
    rows: list[dict[str, str]]

    @property
    def measure(self) -> tuple[str, float | None]:
        """By what it is judged, and what it came to."""
        return summary.headline(self.summary)

    @property
    def label(self) -> str:
        about = self.summary
        if about["strategy"] == "ddp":
            return "DDP"
        clock = about.get("clock") or about["interval"]
        wire = f", {about['wire']}" if about.get("wire") not in (None, "fp32") else ""
        return f"{about['sync']}, interval {clock}{wire}"


def load_runs(directories: list[Path]) -> list[Run]:
    """The runs in `directories`, or below them for a multirun's. What is no run is left out with one warning.

    ConfigError if there is none at all.
    """
    if not directories:
        raise ConfigError("give run directories: ticks report logs/runs/* out=figure.png")
    runs, skipped = [], []
    for directory in directories:
        found = sorted(directory.glob("**/summary.json"))
        if not found:
            skipped.append(f"no run in '{directory}': no summary.json there or below it")
        for file in found:
            try:
                runs.append(Run(file.parent, _summary(file), _rows(file.with_name("metrics.csv"))))
            except (ValueError, OSError) as error:
                skipped.append(f"{file} cannot be read: {error}")
    if not runs:
        raise ConfigError("; ".join(skipped))
    if skipped:
        print(f"warning: left out: {'; '.join(skipped)}", file=sys.stderr, flush=True)
    return runs


def _summary(file: Path) -> dict[str, Any]:
    """A run's summary with every key. ValueError if it is damaged or another program's."""
    about = summary.read(file.parent)
    if not isinstance(about, dict) or not {"status", "strategy", "steps"} <= about.keys():
        raise ValueError("no summary of a training run: it needs status, strategy and steps")
    measured = f"val_{summary.headline(about)[0]}"
    for key in ("steps", "world_size", measured, "bytes_sent_per_worker", "steps_per_second"):
        if not isinstance(about.get(key), int | float | None):
            raise ValueError(f"{key}={about[key]!r} must be a number or null")
    return dict.fromkeys(summary.KEYS) | about


def _rows(file: Path) -> list[dict[str, str]]:
    """The rows of a run's metrics.csv; none if it is not there or damaged: the table does without them."""
    try:
        return MetricsFile(file).rows()
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        print(f"warning: {file} cannot be read: {error}", file=sys.stderr, flush=True)
        return []


def show_runs(runs: list[Run]) -> None:
    """Print one line per run. What is the same for all of several runs stands once, above the table; on a narrow
    terminal the table numbers the runs, and their names and strategies stand below it."""
    console = Console(highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = 140
    measured = {run.measure[0] for run in runs}
    several = len(measured) > 1
    words, _, last = ("" if several else _words(measured.pop())).rpartition(" ")
    title = "measure" if several else f"{words}\n{last}".lstrip()
    shown: dict[str, Callable[[Run], Any]] = COLUMNS | {title: lambda run: _measured(run, named=several)} | SPEED
    columns = {name: [str(show(run)) for run in runs] for name, show in shown.items()}
    shared = [name for name, cells in columns.items() if name in SETTINGS and len(runs) > 1 and len(set(cells)) == 1]
    if shared:
        console.print("all runs: " + "; ".join(f"{name} {columns.pop(name)[0]}" for name in shared))
    names = [str(run.directory) for run in runs]
    width = sum(2 + max(map(len, [*title.split("\n"), *cells])) for title, cells in columns.items())
    first = [run.directory.name for run in runs]
    if narrow := width + 2 + max(map(len, first)) > console.width:
        first = [str(number) for number in range(1, len(runs) + 1)]
        names = [": ".join(parts) for parts in zip(names, columns.pop("strategy", []), strict=False)] or names
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("run", no_wrap=True)
    for title in columns:
        table.add_column(title, justify="left" if title in ("strategy", "norm", "adapter") else "right", no_wrap=True)
    for cells in zip(first, *columns.values(), strict=True):
        table.add_row(*cells)
    console.print(table)
    for number, name in zip(first, names, strict=True) if narrow else ():
        console.print(f"{number:>3}  {name}", soft_wrap=True)


def _words(measure: str) -> str:
    return measure.replace("_", " ")


def _measured(run: Run, *, named: bool) -> str:
    name, value = run.measure
    return "-" if value is None else f"{value:.3f}" + (f" {_words(name)}" if named else "")


def _steps(run: Run) -> str:
    status = run.summary["status"]
    return f"{run.summary['steps']}" + ("" if status == "finished" else f" ({status})")


def _figure(key: str, digits: int) -> Callable[[Run], str]:
    def show(run: Run) -> str:
        value = run.summary[key]
        return "-" if value is None else f"{value:.{digits}f}"

    return show


SETTINGS = ("strategy", "norm", "adapter", "workers", "steps")
COLUMNS: dict[str, Callable[[Run], Any]] = {
    "strategy": lambda run: run.label,
    "norm": lambda run: run.summary["norm"],
    "adapter": lambda run: run.summary["adapter"],
    "workers": lambda run: run.summary["world_size"],
    "steps": _steps,
}
SPEED: dict[str, Callable[[Run], Any]] = {
    "sent per\nworker": lambda run: megabytes(run.summary["bytes_sent_per_worker"]),
    "steps/s": _figure("steps_per_second", 2),
}


def distinct_labels(runs: list[Run]) -> list[str]:
    """Each run's strategy, and whatever else of norm, adapter, workers and seed is not the same for all."""
    keys = [key for key in ("norm", "adapter", "world_size", "seed") if len({str(r.summary[key]) for r in runs}) > 1]
    return [", ".join([run.label, *(f"{key} {run.summary[key]}" for key in keys)]) for run in runs]


def _evaluations(run: Run) -> list[tuple[int, float, float]]:
    """Step, MB sent and the measure of each evaluation during training; none from a damaged file."""
    key = f"val/{run.measure[0]}"
    try:
        return [
            (int(row["step"]), float(row["bytes_sent"]) / 1e6, float(row[key]))
            for row in run.rows
            if row.get(key) and row["step"] != "0"
        ]
    except (ValueError, TypeError, KeyError):
        return []


def figure(runs: list[Run], out: Path) -> None:
    """Draw the validation measure against MB sent per worker (log scale) and against steps.

    ConfigError without matplotlib, for an unknown picture format, for runs that are judged by different measures, or
    if no run was evaluated twice.
    """
    if len(names := sorted({run.measure[0] for run in runs})) > 1:
        raise ConfigError(f"runs that are judged by different measures ({', '.join(names)}) are no one figure")
    try:
        import matplotlib
    except ImportError:
        raise ConfigError('figures need matplotlib: pip install -e ".[figures]"') from None
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    labels = distinct_labels(runs)
    fig, (left, right) = plt.subplots(1, 2, figsize=(10, 4), sharey=True, constrained_layout=True)
    if (suffix := out.suffix[1:]) not in (known := fig.canvas.get_supported_filetypes()):
        plt.close(fig)
        raise ConfigError(f"out={out}: '{suffix}' is no picture format{did_you_mean(suffix, known)}")
    left_out = []
    for run, label in zip(runs, labels, strict=True):
        points = _evaluations(run)
        if len(points) < 2:
            left_out.append(str(run.directory))
            continue
        steps, sent, bits = zip(*points, strict=True)
        left.plot(sent, bits, marker="o", markersize=3.5, label=label)
        right.plot(steps, bits, marker="o", markersize=3.5, label=label)
    if len(left_out) == len(runs):
        plt.close(fig)
        raise ConfigError(
            "nothing to draw: no run has two evaluations during training"
            " (trainer.val_check_interval says after how many steps they come)"
        )
    if left_out:
        print(f"warning: fewer than two evaluations, not drawn: {', '.join(left_out)}", file=sys.stderr, flush=True)
    left.set_xscale("log")
    left.set_xlabel("MB sent per worker (log scale)")
    left.set_ylabel(f"validation {_words(names[0])}")
    right.set_xlabel("optimizer steps")
    right.legend(frameon=False)
    for axes in (left, right):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    out.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(out, dpi=150)
    plt.close(fig)
