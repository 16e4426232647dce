"""The result table that ends a run."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from ticks.contract import Measure

Row = tuple[str, str, str]
COLUMNS = ("", "before", "after")


def megabytes(n_bytes: float | None) -> str:
    if n_bytes is None:
        return "-"
    return f"{n_bytes / 1e3:,.1f} kB" if 0 < n_bytes < 1e5 else f"{n_bytes / 1e6:,.1f} MB"


def seen_at_ticks(rows: Sequence[Mapping[str, str]]) -> list[tuple[str, str]]:
    """Means over the ticks in metrics.csv of what they show of training, for people."""

    def column(name: str) -> list[float]:
        return [float(row[name]) for row in rows if row.get(name)]

    figures: list[tuple[str, str]] = []
    for label, names, digits in (
        ("interval, mean", ("tick/interval",), 1),
        ("drift, mean and largest (of the anchor)", ("tick/drift", "tick/drift_max"), 4),
        ("pseudo-gradient norm", ("tick/pseudo_gradient_norm",), 3),
        ("cosine between rounds", ("tick/cosine_rounds",), 2),
        ("cosine between workers", ("tick/cosine_workers",), 2),
    ):
        if all(columns := [column(name) for name in names]):
            means = [
                max(c) if name.endswith("_max") else sum(c) / len(c) for name, c in zip(names, columns, strict=True)
            ]
            figures.append((label, " / ".join(f"{mean:.{digits}f}" for mean in means)))
    if excluded := sum(column("tick/excluded")):
        figures.append(("workers excluded, over all ticks", f"{excluded:.0f}"))
    return figures


def result_rows(
    summary: Mapping[str, Any],
    *,
    measures: Sequence[Measure],
    before: Mapping[str, float],
    baselines: Mapping[str, Mapping[str, float]],
    ddp_bytes: int | None,
    measuring_bytes: int,
    rows: Sequence[Mapping[str, str]] = (),
) -> tuple[list[Row], list[Row]]:
    """What a run came to: its measures beside what they were `before` training and beside baselines; and how it got
    there. `rows` are those of metrics.csv."""

    def number(value: float | None, digits: int) -> str:
        return "-" if value is None else f"{value:.{digits}f}"

    reached: list[Row] = []
    for m in measures:
        old, new, tested = before.get(m.name), summary.get(f"val_{m.name}"), summary.get(f"test_{m.name}")
        reached.append((f"validation {m.label}", number(old, m.digits), number(new, m.digits)))
        for name, value in baselines.get(m.name, {}).items():
            reached.append((f"  {name}, for comparison", "", number(value, m.digits)))
        if tested is not None:
            reached.append((f"test {m.label}", "", number(tested, m.digits)))
    if losses := [float(row["train/loss"]) for row in rows if row.get("train/loss")]:
        reached.append(("training loss, first and last logged", number(losses[0], 3), number(losses[-1], 3)))
    interval = f", interval {summary['clock']}" if summary["clock"] else ""
    rule = "".join(f", {summary[key]}" for key in ("sync", "wire") if summary[key])
    how = [(f"steps / ticks ({summary['strategy']}{interval})", "", f"{summary['steps']} / {summary['ticks']}")]
    if rule:
        how.append((f"  messages ({rule[2:]})", "", str(summary["messages"])))
    how.append(("sent per worker", "", megabytes(summary["bytes_sent_per_worker"])))
    if ddp_bytes is not None and summary["world_size"] > 1:
        how.append(("  DDP would have sent", "", megabytes(ddp_bytes)))
    if measuring_bytes:
        how.append(("  to evaluate or save between ticks", "", megabytes(measuring_bytes)))
    if summary["sync_seconds"] is not None:
        seconds, total = summary["sync_seconds"], summary["train_seconds"]
        share = seconds / max(1e-9, total)
        how.append(("seconds in ticks", "", f"{seconds:.1f} of {total:.1f} ({share:.0%})"))
    how += [(f"  {label}", "", figure) for label, figure in seen_at_ticks(rows)]
    how.append(("steps per second", "", f"{summary['steps_per_second'] or 0:.2f}"))
    return reached, how


def show_result(
    summary: Mapping[str, Any],
    rows: tuple[list[Row], list[Row]],
    *,
    shown: str | None = None,
    picture: str | None = None,
) -> None:
    """Print `result_rows`, what the task has to show, and where it all lies."""
    table = Table(title="Result", show_header=True, title_justify="left")
    for column in COLUMNS:
        table.add_column(column, justify="left" if not column else "right")
    for section in rows:
        for row in section:
            table.add_row(*row)
        table.add_section()
    console = Console(highlight=False)
    console.print(table)
    if shown:
        console.print(Panel(Text(shown), title="sample", title_align="left"))
    if picture:
        console.print(f"picture     {picture}", soft_wrap=True)
    console.print(f"run         {summary['run_dir']}\ncheckpoint  {summary['checkpoint']}", soft_wrap=True)
