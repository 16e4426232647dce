"""What training costs: `python -m tests.benchmarks.bench [NAME ...] [--json FILE]`, or `make bench`; 5 to 10 minutes.

    tick         one tick against a bare all-reduce of the same bytes, 2 and 4 workers
    speed_ticks  steps per second of 4 workers at interval 64 against 4 workers that do not talk
    speed_bare   steps per second of the whole machinery on one worker against a bare PyTorch loop
    startup      `train.py --help` and a mistake on the command line
    memory       peak tensor memory beyond DDP's, in copies of the trainable parameters

Speeds are ratios of two things that alternate in the same processes, so that other load on the machine meets both;
each figure is a median. Every worker has one thread. A missed target is printed and is no error: the exit code is 0.
"""

import argparse
import json
import logging
import os
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.conftest import REPOSITORY, run_workers  # isort: skip - first: it sets one thread per worker

import numpy as np
import torch
import torch.distributed as dist
from lightning import LightningModule, Trainer
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_
from torch.profiler import ProfilerActivity, profile

from tests.benchmarks.tick import OnlyParameters, quiet_trainer, time_ticks
from ticks.assemble import parts, trainer_of
from ticks.config import build, compose_strictly
from ticks.record.callback import Record
from ticks.strategy import DDP, FP32, Gradients, Int4, Int8, Outer, Parameters, TickStrategy

TIMEOUT = 1200.0  # seconds for the workers of one measurement
console = Console(highlight=False, width=None if sys.stdout.isatty() else 150)


@dataclass(frozen=True)
class Row:
    """One figure; for information only if it has no limit, a miss if it is None: measuring failed."""

    name: str
    figure: float | None
    unit: str
    note: str
    at_most: float | None = None
    at_least: float | None = None

    @property
    def passed(self) -> bool | None:
        if self.figure is None:
            return False
        if self.at_most is not None:
            return round(self.figure, 3) <= self.at_most
        return None if self.at_least is None else round(self.figure, 3) >= self.at_least

    @property
    def cells(self) -> tuple[str, str, str, str, str]:
        figure = "failed" if self.figure is None else f"{self.figure:.3f} {self.unit}"
        target = f"at most {self.at_most}" if self.at_most else f"at least {self.at_least}" if self.at_least else ""
        verdict = {True: "[green]PASS", False: "[red]FAIL", None: "for information"}[self.passed]
        return self.name, figure, target, verdict, self.note


# ---- tick --------------------------------------------------------------------------------------------------------

TIMED = {  # name: rule, wire, and how many times a bare all-reduce it may take
    "parameters": (Parameters(), FP32(), 1.05),
    "gradients (interval 1: DDP)": (Gradients(), FP32(), None),
    "DiLoCo": (Outer(), FP32(), None),
    "parameters, int8": (Parameters(), Int8(), None),
    "parameters, int4": (Parameters(), Int4(), None),
}


def bench_tick(ticks: int = 40, warm_up: int = 5) -> Iterator[Row]:
    millions = sum(p.numel() for p in OnlyParameters().parameters()) / 1e6
    for name, (sync, wire, limit) in TIMED.items():
        for workers in (2, 4):
            outcomes = run_workers(workers, time_ticks, workers, sync, wire, warm_up + ticks, timeout=TIMEOUT)
            tick, bare = np.max(outcomes, axis=0)[warm_up:].T  # of the slowest worker
            note = f"{np.median(tick) * 1e3:.0f} ms, bare {np.median(bare) * 1e3:.0f} ms; {millions:.1f}M parameters"
            yield Row(f"tick, {name}, {workers} workers", float(np.median(tick / bare)), "x bare", note, at_most=limit)


# ---- speed -------------------------------------------------------------------------------------------------------


def default_run(workers: int, *overrides: str) -> DictConfig:
    """The configuration of `make train`, 8 sequences per worker and batch, nothing but training steps."""
    sizes = [f"trainer.devices={workers}", f"data.global_batch_size={8 * workers}", "trainer.limit_val_batches=0"]
    return compose_strictly(["model=ln_ticks", *sizes, *overrides], REPOSITORY / "configs")


class Segments(Callback):
    """Seconds of the run's segments, each `steps` steps long: (what was timed) x (by the clock, of the processor)."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.seconds: list[np.ndarray] = []

    def clocks(self) -> np.ndarray:
        return np.array([time.perf_counter(), time.process_time()])

    def record(self, trainer: Trainer, *seconds: np.ndarray) -> None:
        self.seconds.append(np.stack(seconds))
        if trainer.is_global_zero:
            console.print(".", end="")


def fit(config: DictConfig, segments: Segments) -> list[np.ndarray]:
    """Train as train.py does, its record included, but without checkpoints."""
    torch.manual_seed(0)
    made = parts(config, {})
    data, task = made.data, made.task
    with tempfile.TemporaryDirectory() as directory:
        record = Record(directory, every_n_steps=config.trainer.log_every_n_steps)
        own = {"callbacks": [record, segments], "logger": [], "default_root_dir": directory}
        strategy = build(config.strategy, "strategy")
        trainer = trainer_of(config, data, strategy=strategy, enable_checkpointing=False, **own)
        trainer.fit(task, datamodule=data)
    return segments.seconds


def compare(ours: np.ndarray, others: np.ndarray, what: str) -> tuple[float, str]:
    """The median ratio of rates (pairs, clocks) by the clock, and a note."""
    console.print()  # ends the line of dots
    (ratio, of_processor), pairs = np.median(ours / others, axis=0), (ours / others)[:, 0]
    note = (
        f"{np.median(ours[:, 0]):.1f} steps/s, {what} {np.median(others[:, 0]):.1f};"
        f" single pairs {pairs.min():.2f} to {pairs.max():.2f}; {of_processor:.3f} in processor time"
    )
    return float(ratio), note


class HalfRounds(Segments):
    """The first half of every round, which has no tick, and the second, which ends with one."""

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step % self.steps == 0:
            dist.barrier()  # a half starts together: its tick waits for nothing that happened in the other half
            self.started = self.clocks()

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step % self.steps == 0:
            self.record(trainer, self.clocks() - self.started)


def bench_speed_ticks(interval: int = 64, pairs: int = 7, workers: int = 4) -> Iterator[Row]:
    steps = 2 * interval * (1 + pairs)  # the first pair is warm-up
    config = default_run(workers, f"trainer.max_steps={steps}", f"strategy.clock.interval={2 * interval}")
    seconds = np.array(run_workers(workers, fit, config, HalfRounds(interval), timeout=TIMEOUT))[:, 2:, 0]
    rates = (interval / seconds).mean(axis=0)  # over workers
    ratio, note = compare(rates[1::2], rates[0::2], "never talking")
    yield Row(f"speed, {workers} workers, interval {interval}", ratio, "x never", note, at_least=0.95)


class BareSegments(Segments):
    """After every `steps` steps of the Trainer's, as many of a bare loop with the same model, data and optimizer."""

    def __init__(self, config: DictConfig, steps: int) -> None:
        super().__init__(steps)
        self.config = config

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        task: Any = parts(self.config, {}).task
        self.model = task.model
        task.trainer = trainer  # the schedule asks it for the number of steps
        chosen = task.configure_optimizers()
        self.optimizer, self.scheduler = chosen["optimizer"], chosen["lr_scheduler"]["scheduler"]
        self.batches = iter(data.train_dataloader())
        self.started = self.clocks()

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step % self.steps == 0:
            between = self.clocks()
            self.bare_steps()
            self.record(trainer, between - self.started, self.clocks() - between)
            self.started = self.clocks()

    def bare_steps(self) -> None:
        for batch in (next(self.batches) for _ in range(self.steps)):
            loss = cross_entropy(self.model(batch["x"]).flatten(0, 1), batch["y"].flatten(), ignore_index=-100)
            self.optimizer.zero_grad()
            loss.backward()
            clip_grad_norm_(self.model.parameters(), self.config.trainer.gradient_clip_val)
            self.optimizer.step()
            self.scheduler.step()


def bench_speed_bare(steps: int = 40, segments: int = 21) -> Iterator[Row]:
    config = default_run(1, f"trainer.max_steps={steps * (1 + segments)}")  # the first segment is warm-up
    [seconds] = run_workers(1, fit, config, BareSegments(config, steps), timeout=TIMEOUT)
    rates = steps / np.array(seconds)[1:]
    ratio, note = compare(rates[:, 0], rates[:, 1], "bare loop")
    yield Row("speed, 1 worker, whole machinery", ratio, "x bare loop", note, at_least=0.95)


# ---- startup -----------------------------------------------------------------------------------------------------


def bench_startup(times: int = 5) -> Iterator[Row]:
    for argument, exit_code in {"--help": 0, "seeed=1": 2}.items():
        seconds = []
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        for _ in range(times):
            start = time.perf_counter()
            done = subprocess.run([sys.executable, "train.py", argument], cwd=REPOSITORY, capture_output=True)
            seconds.append(time.perf_counter() - start)
            if done.returncode != exit_code:
                raise RuntimeError(f"train.py {argument} left with exit code {done.returncode}, not {exit_code}")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        processor = (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / times
        note = f"{min(seconds):.2f} to {max(seconds):.2f} s; {processor:.2f} s of processor time"
        yield Row(f"startup, train.py {argument}", float(np.median(seconds)), "s", note, at_most=1.5)


# ---- memory ------------------------------------------------------------------------------------------------------


def peak_bytes(strategy: TickStrategy | DDP, options: dict[str, Any]) -> int:
    """The most tensor memory that a short fit holds at once, its module's included, from torch's profiler.

    The module is made while it counts, or what is freed of it would not be seen.
    """
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # the profiler's chatter; this process only measures
    with tempfile.TemporaryDirectory() as directory:
        where = {"default_root_dir": directory}
        if options.get("enable_checkpointing"):
            where["callbacks"] = [ModelCheckpoint(directory, every_n_train_steps=3)]
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            quiet_trainer(strategy, 2, max_steps=8, **options, **where).fit(OnlyParameters())
        trace = Path(directory) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    return max(event["args"]["Total Allocated"] for event in events if event["name"] == "[memory]")


def bench_memory() -> Iterator[Row]:
    size = 4 * sum(p.numel() for p in OnlyParameters().parameters())
    within: dict[str, dict[str, Any]] = {  # with a tick every 2 steps, what comes every 3 meets a round's middle
        "": {},
        ", validation within a round": {"limit_val_batches": 1, "val_check_interval": 3},
        ", checkpoint within a round": {"enable_checkpointing": True},
    }
    for occasion, options in within.items():
        options["check_val_every_n_epoch"] = None
        ddp = min(run_workers(2, peak_bytes, DDP(), options, timeout=TIMEOUT)) / size
        for sync in (Gradients(), Parameters()):
            ours = max(run_workers(2, peak_bytes, TickStrategy(interval=2, sync=sync), options, timeout=TIMEOUT)) / size
            name = f"memory, {type(sync).__name__.lower()}{occasion}"
            note = f"{ours:.2f} copies, DDP {ddp:.2f}; parameters and gradients are two of them"
            saved = 1.0 if "enable_checkpointing" in options else 0.0  # a copy that is on its way to the file
            yield Row(name, ours - ddp, "copies", note, at_most=saved + 0.1)


# ---- all of them -------------------------------------------------------------------------------------------------

BENCHMARKS = {name: globals()[f"bench_{name}"] for name in ("tick", "speed_ticks", "speed_bare", "startup", "memory")}


def measure(name: str) -> Iterator[Row]:
    """The rows of one benchmark as they come; one that fails instead of measuring is a row too."""
    console.print(f"{name} ...")
    try:
        for measured in BENCHMARKS[name]():
            console.print("  ".join(measured.cells))
            yield measured
    except Exception as error:
        console.print_exception()
        yield Row(name, None, "", f"{type(error).__name__}: {error}".splitlines()[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"default: all of {', '.join(BENCHMARKS)}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there as well")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(BENCHMARKS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; valid: {', '.join(BENCHMARKS)}")
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    load = os.getloadavg()[0]
    console.print(f"torch {torch.__version__}, {os.cpu_count()} processors, load before the start {load:.1f}")
    build(default_run(1).data, "data").prepare_data()
    rows = [measured for name in arguments.names or BENCHMARKS for measured in measure(name)]
    table = Table("measured", "figure", "target", "", "note")
    for line in rows:
        table.add_row(*line.cells)
    console.print(table)
    missed = [line.name for line in rows if line.passed is False]
    console.print(f"[red]{len(missed)} missed: {'; '.join(missed)}" if missed else "[green]every target is met")
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(line) | {"passed": line.passed} for line in rows], indent=2))


if __name__ == "__main__":
    main()
