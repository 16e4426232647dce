"""Several runs side by side: a table of their summaries, a figure of validation loss against what was sent."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ticks.config import ConfigError, did_you_mean
from ticks.report import summary
from ticks.report.record import MetricsFile
from ticks.report.table import megabytes


@dataclass(frozen=True)
class Run:
    """One run's summary.json and the rows of its metrics.csv."""

    directory: Path
    summary: dict[str, Any]
    rows: list[dict[str, str]]

    @property
    def label(self) -> str:
        about = self.summary
        if about["strategy"] == "ddp":
            return "DDP"
        clock = about.get("clock") or about["interval"]
        wire = f", {about['wire']}" if about.get("wire") not in (None, "fp32") else ""
        return f"{about['sync']}, interval {clock}{wire}"


def load_runs(directories: list[Path]) -> list[Run]:
    """The runs in `directories`, or below them for a multirun's. ConfigError if there is none."""
    runs = []
    for directory in directories:
        found = sorted(directory.glob("**/summary.json"))
        if not found:
            raise ConfigError(f"no run in '{directory}': no summary.json there or below it")
        for file in found:
            try:
                about = summary.read(file.parent)
            except ValueError as error:
                raise ConfigError(f"{file} cannot be read: {error}") from None
            runs.append(Run(file.parent, about, MetricsFile(file.parent / "metrics.csv").rows()))
    if not runs:
        raise ConfigError("give run directories: ticks report logs/runs/* out=figure.png")
    return runs


def show_runs(runs: list[Run]) -> None:
    """Print one line per run."""
    table = Table(title="Runs", title_justify="left")
    for column in ("run", "strategy", "norm", "adapter"):
        table.add_column(column)
    for column in ("workers", "steps", "bits per byte", "sent per worker", "steps/s"):
        table.add_column(column, justify="right")
    for run in runs:
        about = run.summary
        bits = about["val_bits_per_byte"]
        table.add_row(
            run.directory.name,
            run.label,
            str(about["norm"]),
            str(about["adapter"]),
            str(about["world_size"]),
            f"{about['steps']}" + ("" if about["status"] == "finished" else f" ({about['status']})"),
            "-" if bits is None else f"{bits:.3f}",
            megabytes(about["bytes_sent_per_worker"]),
            f"{about['steps_per_second'] or 0:.2f}",
        )
    console = Console(highlight=False)
    console.width = console.width if console.is_terminal else 140
    console.print(table)


def distinct_labels(runs: list[Run]) -> list[str]:
    """Each run's strategy, and whatever else of norm, adapter, workers and seed is not the same for all."""
    keys = [key for key in ("norm", "adapter", "world_size", "seed") if len({str(r.summary[key]) for r in runs}) > 1]
    return [", ".join([run.label, *(f"{key} {run.summary[key]}" for key in keys)]) for run in runs]


def figure(runs: list[Run], out: Path) -> None:
    """Draw validation bits per byte against MB sent per worker (log scale) and against steps.

    ConfigError without matplotlib, for an unknown picture format, or if no run was evaluated twice.
    """
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
    drawn = False
    for run, label in zip(runs, labels, strict=True):
        points = [
            (int(row["step"]), float(row["bytes_sent"]) / 1e6, float(row["val/bits_per_byte"]))
            for row in run.rows
            if row.get("val/bits_per_byte") and row["step"] != "0"
        ]
        if len(points) < 2:
            continue
        drawn = True
        steps, sent, bits = zip(*points, strict=True)
        left.plot(sent, bits, marker="o", markersize=3.5, label=label)
        right.plot(steps, bits, marker="o", markersize=3.5, label=label)
    if not drawn:
        plt.close(fig)
        raise ConfigError(
            "nothing to draw: no run has two evaluations during training"
            " (trainer.val_check_interval says after how many steps they come)"
        )
    left.set_xscale("log")
    left.set_xlabel("MB sent per worker (log scale)")
    left.set_ylabel("validation bits per byte")
    right.set_xlabel("optimizer steps")
    right.legend(frameon=False)
    for axes in (left, right):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    out.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(out, dpi=150)
    plt.close(fig)
