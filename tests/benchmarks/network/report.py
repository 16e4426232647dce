"""The results file, the tables made of it and the two figures, in the style of `ticks report`."""

import json
import os
import platform
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from tests.benchmarks.network.plan import Planned

FIGURE_INTERVAL = 32  # of the lines in the first figure
APART = 1.03  # bandwidths of two lines in a figure, so that their intervals do not lie on each other
NEAR = 600.0  # seconds: ceilings that were measured before and behind something count for it
KEY = ("method", "model", "rate", "interval")


class Results:
    """What was measured, in `file`, which is written after each addition.

    `speeds`: one record per measurement: KEY, "steps", "seconds" (the slowest worker's), "at" (time); and in bytes per
    worker and step "sent" by the interface, "own" to TCP of them, "booked" in the ledger; or "error", where it failed.
    `ceilings`: "model", "steps_per_second", "at". `losses`: "method", "model", "rate", "steps", "at", "curve" of [step,
    seconds, MB sent, loss]; of DDP one for each model and rate. `ticks`: for each rate the seconds of a "tick" and of a
    "bare" all-reduce, and the "ratio", medians over "pairs".
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.content: dict[str, Any] = {"about": {}, "speeds": [], "ceilings": [], "losses": [], "ticks": []}
        if file.exists():
            self.content |= json.loads(file.read_text())

    def save(self) -> None:
        import torch

        machine = {
            "processors": os.cpu_count(),
            "machine": platform.machine(),
            "linux": platform.release().split("-")[0],
        }
        self.content["about"] = machine | {"torch": torch.__version__, "written": time.strftime("%Y-%m-%d %H:%M")}
        self.file.parent.mkdir(parents=True, exist_ok=True)
        draft = self.file.with_suffix(".partial")
        draft.write_text(json.dumps(self.content, indent=1))
        draft.replace(self.file)

    # ---- adding

    def add_ceiling(self, model: str, steps: int, outcomes: Sequence[dict[str, float]]) -> float:
        speed = steps / max(outcome["seconds"] for outcome in outcomes)
        self.content["ceilings"].append({"model": model, "steps_per_second": speed, "at": time.time()})
        self.save()
        return speed

    def add_speed(self, item: "Planned", outcomes: Sequence[dict[str, float]], *, since: float) -> str:
        """Record it, in place of what was measured before `since`; in a few words."""
        steps = item.job.steps
        record = {
            "steps": steps,
            "seconds": max(outcome["seconds"] for outcome in outcomes),
            "sent": statistics.mean(outcome["sent"] for outcome in outcomes),
            "own": statistics.mean(outcome["own"] for outcome in outcomes),
            "booked": statistics.mean(outcome["booked"] for outcome in outcomes),
        }
        self._replace(item, record, since)
        row = Row([self._of(item)[-1]], self.content["ceilings"])
        return (
            f"{row.speed:.2f} steps/s, {row.share:.0%} of the ceiling, {row.sent / 1e6:.3f} MB/step{row.ledger_words}"
        )

    def add_failure(self, item: "Planned", error: str, *, since: float) -> None:
        self._replace(item, {"error": error}, since)

    def _of(self, item: "Planned") -> list[dict[str, Any]]:
        key = [getattr(item.job, name) for name in KEY]
        return [record for record in self.content["speeds"] if [record[name] for name in KEY] == key]

    def _replace(self, item: "Planned", record: dict[str, Any], since: float) -> None:
        stale = [old for old in self._of(item) if old["at"] < since]
        self.content["speeds"] = [old for old in self.content["speeds"] if old not in stale]
        key = {name: getattr(item.job, name) for name in KEY}
        self.content["speeds"].append(key | record | {"same": list(item.same), "at": time.time()})
        self.save()

    def add_loss(self, record: dict[str, Any]) -> None:
        def key(known: dict[str, Any]) -> tuple[Any, ...]:
            return known["method"], known["model"], known["rate"], known["method"] == "ddp" or known["steps"]

        self.content["losses"] = [old for old in self.content["losses"] if key(old) != key(record)] + [record]
        self.save()

    def add_tick(self, record: dict[str, Any]) -> None:
        others = [old for old in self.content["ticks"] if old["rate"] != record["rate"]]
        self.content["ticks"] = sorted([*others, record], key=lambda known: known["rate"])
        self.save()

    # ---- reading

    def seconds_per_step(self) -> dict[str, float]:
        """Of workers that never talk, as last measured, by model."""
        return {c["model"]: 1 / c["steps_per_second"] for c in self.content["ceilings"]}

    def rows(self) -> list["Row"]:
        groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
        for record in self.content["speeds"]:
            groups.setdefault(tuple(record[name] for name in KEY), []).append(record)
        return [Row(records, self.content["ceilings"]) for records in groups.values()]

    def show(self, console: Console) -> None:
        """Print the tables, for the terminal and for the README; draw the figures beside the file."""
        rows = self.rows()
        for model in dict.fromkeys(row.model for row in rows):
            console.print(speed_table([row for row in rows if row.model == model], model))
        failed: dict[str, list[Row]] = {}
        for row in rows:
            if row.error:
                failed.setdefault(row.error.splitlines()[0].partition(": ")[2], []).append(row)
        for of in failed.values():  # one traceback for all that failed alike
            which = ", ".join(f"{row.label} at {row.rate:g} Mbit/s H={row.interval}" for row in of)
            console.print(f"failed: {which}", style="red", markup=False)
            console.print(of[0].error, markup=False)
        if self.content["losses"]:
            console.print(loss_table(self.content["losses"]))
        if self.content["ticks"]:
            console.print(tick_table(self.content["ticks"]))
        console.print(markdown(rows, self.content["losses"]), markup=False, soft_wrap=True)
        if any(not row.error and row.interval == FIGURE_INTERVAL for row in rows):
            speeds = draw_speeds(rows, self.file.with_name("network_speed.png"))
            console.print(f"figure: {speeds}")
        if self.content["losses"]:
            losses = draw_losses(self.content["losses"], self.file.with_name("network_loss.png"))
            console.print(f"figure: {losses}")


class Row:
    """All measurements of one job; figures are medians over its repeats."""

    def __init__(self, records: Sequence[dict[str, Any]], ceilings: Sequence[dict[str, Any]]) -> None:
        last = records[-1]
        self.method, self.model, self.rate, self.interval = (last[name] for name in KEY)
        self.same = last["same"]
        good = [record for record in records if "error" not in record]
        self.error = None if good else last["error"]
        if good:
            speeds = [record["steps"] / record["seconds"] for record in good]
            own = [c for c in ceilings if c["model"] == self.model]
            self.speed = statistics.median(speeds)
            self.shares = [s / ceiling_near(own, r["at"]) for s, r in zip(speeds, good, strict=True)]
            self.sent = statistics.median(record["sent"] for record in good)
            self.booked = statistics.median(record["booked"] for record in good)
            self.own = statistics.median(record["own"] for record in good)

    @property
    def share(self) -> float:
        """Of the speed without talking, mean over the repeats."""
        return statistics.mean(self.shares)

    @property
    def label(self) -> str:
        return " ".join(part.rpartition("=")[2] for part in self.method.split())

    @property
    def ledger_error(self) -> float | None:
        """How much more the interface counted than the ledger, as a share of it; None without a ledger."""
        return self.sent / self.booked - 1 if self.booked else None

    @property
    def own_share(self) -> float:
        """The part of that which is TCP's own, headers and what it sent again, and nothing a ledger could count."""
        return self.own / self.booked

    @property
    def ledger_words(self) -> str:
        if self.ledger_error is None:
            return ""
        return f", {self.ledger_error:+.1%} beside the ledger ({self.own_share:.1%} TCP's own)"


def ceiling_near(ceilings: Sequence[dict[str, Any]], at: float) -> float:
    """The speed without talking around the time `at`: mean of the last measured before it and the first after it; of
    the nearest, where none is near."""
    before = [c for c in ceilings if at - NEAR < c["at"] <= at][-1:]
    after = [c for c in ceilings if at < c["at"] < at + NEAR][:1]
    near = before + after or [min(ceilings, key=lambda c: abs(c["at"] - at))]
    return statistics.mean(c["steps_per_second"] for c in near)


def speed_table(rows: Sequence[Row], model: str) -> Table:
    rates = sorted({row.rate for row in rows})
    table = Table(title=f"{model}: steps per second of 4 workers (share of the ceiling)")
    figures = [f"{rate:g} Mbit/s" for rate in rates]
    for name in ("method", "H", *figures, "x DDP", "MB/step sent", "beside the ledger (TCP's own)"):
        table.add_column(name, justify="left" if name == "method" else "right")
    cells: dict[tuple[int, str], dict[float, Row]] = {}
    for row in rows:
        cells.setdefault((row.interval, row.method), {})[row.rate] = row
    ddp = cells.get((1, "ddp"), {})
    for (interval, _), of in cells.items():
        speeds = []
        for rate in rates:
            row = of.get(rate)
            speeds.append("" if row is None else "failed" if row.error else f"{row.speed:.2f} ({row.share:.2f})")
        good = {rate: of[rate] for rate in rates if rate in of and not of[rate].error}
        times = [
            f"{row.speed / ddp[rate].speed:.1f}" for rate, row in good.items() if rate in ddp and not ddp[rate].error
        ]
        any_row = next(iter(of.values()))
        label = any_row.label + (f" = {', '.join(any_row.same)}" if any_row.same else "")
        sent = f"{next(iter(good.values())).sent / 1e6:.3f}" if good else ""
        booked = [row for row in good.values() if row.booked]
        worst = max(booked, key=lambda row: abs(row.sent / row.booked - 1), default=None)
        ledger = "" if worst is None else f"{worst.ledger_error:+.1%} ({worst.own_share:.1%})"
        table.add_row(label, str(interval), *speeds, " / ".join(times), sent, ledger)
    return table


def markdown(rows: Sequence[Row], losses: Sequence[dict[str, Any]]) -> str:
    """The README's tables: speeds at one interval, and seconds to DDP's loss."""
    lines: list[str] = []
    for model in dict.fromkeys(row.model for row in rows):
        own = [row for row in rows if row.model == model and not row.error and row.interval in (1, FIGURE_INTERVAL)]
        own = [row for row in own if row.interval == FIGURE_INTERVAL or is_every_step(row)]
        if not any(row.interval == FIGURE_INTERVAL for row in own):
            continue
        rates = sorted({row.rate for row in own})
        lines += ["", f"{model} model, H={FIGURE_INTERVAL}", ""]
        lines.append("| | " + " | ".join(f"{rate:g} Mbit/s" for rate in rates) + " | MB/step |")
        lines.append("|---|" + "---:|" * (len(rates) + 1))
        for method in dict.fromkeys(row.method for row in own):
            of = {row.rate: row for row in own if row.method == method}
            speeds = (f"{of[rate].speed:.2f} ({of[rate].share:.2f})" if rate in of else "" for rate in rates)
            first = next(iter(of.values()))
            lines.append(f"| {first.label} | " + " | ".join(speeds) + f" | {first.sent / 1e6:.3f} |")
    if losses:
        lines += [
            "",
            "| | steps | final loss | seconds | MB sent | seconds to DDP's loss |",
            "|---|---:|---:|---:|---:|---:|",
        ]
        lines += ["| " + " | ".join(cells) + " |" for cells in loss_cells(losses)]
    return "\n".join(lines)


def is_every_step(row: Row) -> bool:
    from tests.benchmarks.network.plan import EVERY_STEP

    return row.method.startswith(EVERY_STEP)


# ---- loss --------------------------------------------------------------------------------------------------------


def seconds_to(curve: Sequence[Sequence[float]], target: float) -> float | None:
    """Training seconds at the first evaluation that is not above `target`."""
    return next((seconds for _, seconds, _, loss in curve if loss <= target), None)


def base_of(record: dict[str, Any], losses: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """DDP's run of the same model at the same rate."""
    ddp = (r for r in losses if r["method"] == "ddp")
    return next((r for r in ddp if (r["model"], r["rate"]) == (record["model"], record["rate"])), None)


def loss_cells(losses: Sequence[dict[str, Any]]) -> list[list[str]]:
    cells = []
    for record in losses:
        base = base_of(record, losses)
        last = record["curve"][-1]
        cell = ""
        if base is not None:
            needed = seconds_to(record["curve"], base["curve"][-1][3])
            cell = "not reached" if needed is None else f"{needed:.0f} ({base['curve'][-1][1] / needed:.1f}x sooner)"
        figures = [str(record["steps"]), f"{last[3]:.4f}", f"{last[1]:.0f}", f"{last[2]:.1f}", cell]
        cells.append([f"{record['method']}, {record['model']} model", *figures])
    return cells


def loss_table(losses: Sequence[dict[str, Any]]) -> Table:
    rates = ", ".join(f"{rate:g}" for rate in sorted({record["rate"] for record in losses}))
    table = Table(title=f"time to DDP's final validation loss at {rates} Mbit/s; evaluation is not counted")
    for name in ("method", "steps", "final loss", "seconds", "MB sent", "seconds to DDP's loss"):
        table.add_column(name, justify="left" if name == "method" else "right")
    for cells in loss_cells(losses):
        table.add_row(*cells)
    return table


def tick_table(ticks: Sequence[dict[str, Any]]) -> Table:
    table = Table(title="a tick beside a bare all-reduce of the same bytes: seconds of the slowest of 4 workers")
    for name in ("Mbit/s", "tick", "bare", "tick / bare", "pairs"):
        table.add_column(name, justify="right")
    for of in ticks:
        seconds = (f"{of['tick']:.3f}", f"{of['bare']:.3f}", f"{of['ratio']:.3f}")
        table.add_row(f"{of['rate']:g}", *seconds, str(of["pairs"]))
    return table


# ---- figures -----------------------------------------------------------------------------------------------------


def draw_speeds(rows: Sequence[Row], file: Path) -> Path:
    """The share of the speed without talking against bandwidth, a panel per model, each mean of several repeats with
    its 95% interval. Lines only, where there are any; what is not ours is dashed."""
    from ticks.report.statistics import estimate
    from ticks.report.style import colours, label_ends, picture

    shown = [row for row in rows if not row.error and (row.interval == FIGURE_INTERVAL or is_every_step(row))]
    count = Counter((row.model, row.label) for row in shown)
    shown = [row for row in shown if count[row.model, row.label] > 1] or shown
    models, labels = ([*dict.fromkeys(getattr(row, name) for row in shown)] for name in ("model", "label"))
    colour = dict(zip(labels, colours(labels), strict=True))
    with picture(file, columns=len(models), size=(5.2, 4.2)) as axes:
        for panel, model in zip([axes] if len(models) == 1 else axes, models, strict=True):
            own, ends = [row for row in shown if row.model == model], []
            of_model = dict.fromkeys(row.label for row in own)
            for place, label in enumerate(of_model):
                line = sorted((row for row in own if row.label == label), key=lambda row: row.rate)
                shares = [estimate(row.shares) for row in line]
                x = [
                    row.rate * APART ** (place - (len(of_model) - 1) / 2) for row in line
                ]  # intervals beside each other
                y = [share.mean for share in shares]
                style = "o-" if line[0].booked else "x--"
                panel.errorbar(x, y, [share.half or 0.0 for share in shares], fmt=style, color=colour[label], capsize=2)
                ends.append((x[-1], y[-1], label + ("" if line[0].booked else " (others)"), colour[label]))
            beside = max(x for x, *_ in ends) * APART  # no name lies on another line's interval
            panel.axhline(1.0, color="grey", linestyle=":")
            panel.set(
                xscale="log",
                ylim=(0, None),
                xlabel="Mbit/s",
                title=f"{model} model, a tick every {FIGURE_INTERVAL} steps",
            )
            rates = sorted({row.rate for row in own})
            panel.set_xticks(rates, [f"{rate:g}" for rate in rates])
            panel.minorticks_off()
            panel.set_ylabel("share of the speed without talking")
            label_ends(panel, [(beside, *end) for _, *end in ends])
    return file


def draw_losses(losses: Sequence[dict[str, Any]], file: Path) -> Path:
    """Validation loss against MB sent, and against training seconds; a row of panels per model."""
    from ticks.report.style import GREY, colours, label_ends, log_scale, picture

    models = list(dict.fromkeys(record["model"] for record in losses))
    with picture(file, rows=len(models), columns=2, size=(5.2, 3.8)) as axes:
        for panels, model in zip([axes] if len(models) == 1 else axes, models, strict=True):
            own = [record for record in losses if record["model"] == model]
            ends: list[tuple[float, float, str, str]] = []
            for record, colour in zip(own, colours([record["method"] for record in own]), strict=True):
                _, seconds, megabytes, loss = zip(*record["curve"], strict=True)
                for panel, x in zip(panels, (megabytes, seconds), strict=True):
                    panel.plot(x, loss, color=colour)
                ends.append((seconds[-1], loss[-1], f"{record['method']}, {record['steps']} steps", colour))
            for base in (record for record in own if record["method"] == "ddp"):
                for panel in panels:
                    panel.axhline(base["curve"][-1][3], color=GREY, linestyle=":", linewidth=1)
            for panel in panels:
                log_scale(panel)
                panel.set_ylabel(f"{model} model: validation loss (nats per byte)")
            panels[0].set_xlabel("MB sent per worker (log scale)")
            panels[1].set_xlabel(f"training seconds at {own[0]['rate']:g} Mbit/s (log scale)")
            label_ends(panels[1], ends)
    return file
