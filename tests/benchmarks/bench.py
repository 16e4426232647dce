"""What ticks costs: `python tests/benchmarks/bench.py [NAME ...] [--json FILE]`, or `make bench`.

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
import os
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from conftest import REPOSITORY, run_workers  # first: it sets one thread per worker

warnings.filterwarnings("ignore")

import torch
import torch.distributed as dist
from lightning import LightningModule, Trainer
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_
from torch.profiler import ProfilerActivity, profile

from ticks.config import build, compose_strictly
from ticks.models import DecoderTransformer
from ticks.report.record import Record
from ticks.strategy import DDP, Gradients, Parameters, TickStrategy
from ticks.strategy.sync import Sync
from ticks.tasks.optimizer import adamw, schedule

console = Console(highlight=False)
TIMEOUT = 1200.0  # seconds for one measurement's workers


@dataclass(frozen=True)
class Row:
    """One figure. `passed` is None for one that is reported for information."""

    name: str
    figure: float
    unit: str
    target: str
    passed: bool | None
    note: str


def at_most(limit: float, name: str, figure: float, unit: str, note: str) -> Row:
    return Row(name, figure, unit, f"at most {limit:g}", figure <= limit, note)


def at_least(limit: float, name: str, figure: float, unit: str, note: str) -> Row:
    return Row(name, figure, unit, f"at least {limit:g}", figure >= limit, note)


def information(name: str, figure: float, unit: str, note: str) -> Row:
    return Row(name, figure, unit, "", None, note)


def seconds_of(action: Callable[[], Any]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def quiet_trainer(strategy: TickStrategy | DDP, workers: int, **options: Any) -> Trainer:
    """A Trainer that prints nothing, evaluates nothing and writes nothing unless `options` say so."""
    defaults: dict[str, Any] = {
        "max_epochs": -1,
        "logger": False,
        "limit_val_batches": 0,
        "num_sanity_val_steps": 0,
        "use_distributed_sampler": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    return Trainer(accelerator="cpu", devices=workers, strategy=strategy, **(defaults | options))


# ---- tick --------------------------------------------------------------------------------------------------------


class OnlyParameters(LightningModule):
    """The tensors of a 10-million-parameter Transformer, and steps that compute next to nothing with them."""

    def __init__(self) -> None:
        super().__init__()
        self.model = DecoderTransformer(vocab_size=256, block_size=256, d_model=384, n_layers=6, n_heads=6)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return torch.stack([p.sum() for p in self.parameters()]).mean()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("val/loss", self.model.final_norm.weight.sum())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-4)

    def train_dataloader(self) -> list[Tensor]:
        return [torch.zeros(1)] * 1000

    def val_dataloader(self) -> list[Tensor]:
        return [torch.zeros(1)]


class TimedTicks(TickStrategy):
    """Beside every tick, before and after it in turn, a bare all-reduce of as many numbers."""

    def __init__(self, sync: Sync) -> None:
        super().__init__(interval=1, sync=sync)
        self.tick_seconds: list[float] = []
        self.bare_seconds: list[float] = []
        self.gradient_seconds = 0.0
        self._message: Tensor | None = None

    def _average_gradients(self) -> None:
        dist.barrier()
        self.gradient_seconds = seconds_of(super()._average_gradients)

    def _tick(self) -> None:
        if self._message is None:
            self._message = torch.full((self._buffer().all.numel(),), 0.0)  # kept: fresh memory would be slower
        measures = [
            (self.tick_seconds, super()._tick, self.gradient_seconds),
            (self.bare_seconds, partial(dist.all_reduce, self._message), 0.0),
        ]
        for record, action, before in measures if self.step % 2 else measures[::-1]:
            dist.barrier()
            record.append(before + seconds_of(action))


def time_ticks(workers: int, sync: Sync, ticks: int) -> tuple[list[float], list[float]]:
    """Seconds of each tick and of the bare all-reduce beside it, on this worker."""
    strategy = TimedTicks(sync)
    quiet_trainer(strategy, workers, max_steps=ticks).fit(OnlyParameters())
    return strategy.tick_seconds, strategy.bare_seconds


def bench_tick(ticks: int = 40, warm_up: int = 5) -> Iterator[Row]:
    millions = sum(p.numel() for p in OnlyParameters().parameters()) / 1e6
    for sync in (Parameters(), Gradients()):
        for workers in (2, 4):
            outcomes = run_workers(workers, time_ticks, workers, sync, warm_up + ticks, timeout=TIMEOUT)
            tick, bare = (
                [max(worker[i][t] for worker in outcomes) for t in range(warm_up, warm_up + ticks)] for i in (0, 1)
            )
            ratio = median(t / b for t, b in zip(tick, bare, strict=True))
            note = f"{median(tick) * 1e3:.0f} ms, bare {median(bare) * 1e3:.0f} ms; {millions:.1f}M parameters"
            if isinstance(sync, Gradients):
                yield information(f"tick, gradients (2 messages), {workers} workers", ratio, "x bare", note)
            else:
                yield at_most(1.10, f"tick, {workers} workers", ratio, "x bare", note)


# ---- speed -------------------------------------------------------------------------------------------------------


def default_run(workers: int, *overrides: str) -> DictConfig:
    """The configuration that `make train` uses, 8 sequences per worker, nothing but training steps."""
    sizes = [f"trainer.devices={workers}", f"data.global_batch_size={8 * workers}", "trainer.limit_val_batches=0"]
    return compose_strictly(["model=ln_ticks", *sizes, *overrides], REPOSITORY / "configs")


def fit(config: DictConfig, callback: Callback) -> None:
    """Train as train.py does, its record included."""
    torch.manual_seed(0)
    data = build(config.data, "data")
    task = build(config.task, "task", model=build(config.model, "model", vocab_size=data.vocab_size))
    strategy = build(config.strategy, "strategy")
    with tempfile.TemporaryDirectory() as directory:
        record = Record(directory, tokens_per_step=1, every_n_steps=config.trainer.log_every_n_steps)
        own = {"strategy": strategy, "callbacks": [record, callback], "logger": [], "default_root_dir": directory}
        trainer = build(config.trainer, "trainer", enable_checkpointing=False, **own)
        trainer.fit(task, datamodule=data)


class HalfRounds(Callback):
    """Seconds of the first half of every round, which has no tick, and of the second, which ends with one."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.seconds: list[float] = []

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx % self.steps == 0:
            dist.barrier()  # a half starts together, so that a tick waits only for what happened in its own half
            self.started = time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step % self.steps == 0:
            self.seconds.append(time.perf_counter() - self.started)


def time_half_rounds(config: DictConfig, steps: int) -> list[float]:
    halves = HalfRounds(steps)
    fit(config, halves)
    return halves.seconds


def bench_speed_ticks(interval: int = 64, pairs: int = 5, workers: int = 4) -> Iterator[Row]:
    steps = 2 * interval * (pairs + 1)
    config = default_run(workers, f"trainer.max_steps={steps}", f"strategy.clock.interval={2 * interval}")
    outcomes = run_workers(workers, time_half_rounds, config, interval, timeout=TIMEOUT)
    rates = [sum(interval / worker[half] for worker in outcomes) / workers for half in range(2, len(outcomes[0]))]
    never, ticking = rates[0::2], rates[1::2]
    ratio = median(t / n for t, n in zip(ticking, never, strict=True))
    note = f"{median(ticking):.1f} steps/s, never talking {median(never):.1f}; pairs {low_to_high(ticking, never)}"
    yield at_least(0.95, f"speed, {workers} workers, interval {interval}", ratio, "x never", note)


class BareSegments(Callback):
    """After every `steps` steps of the Trainer's, as many of a bare loop with the same model, data and optimizer."""

    def __init__(self, config: DictConfig, steps: int) -> None:
        self.config = config
        self.steps = steps
        self.trainer_seconds: list[tuple[float, float]] = []  # by the clock, of the processor
        self.bare_seconds: list[tuple[float, float]] = []

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        data, task = trainer.datamodule, self.config.task  # type: ignore[attr-defined]
        self.model = build(self.config.model, "model", vocab_size=data.vocab_size)
        self.optimizer = adamw(
            self.model, lr=task.lr, weight_decay=task.weight_decay, betas=tuple(task.betas), eps=task.eps
        )
        self.scheduler = schedule(
            self.optimizer,
            warmup_steps=task.warmup_steps,
            total_steps=trainer.max_steps,
            min_ratio=task.min_lr_ratio,
        )
        self.batches = iter(data.train_dataloader())
        self.started = _clocks()

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step % self.steps == 0:
            self.trainer_seconds.append(_since(self.started))
            started = _clocks()
            self.bare_steps()
            self.bare_seconds.append(_since(started))
            self.started = _clocks()

    def bare_steps(self) -> None:
        for batch in (next(self.batches) for _ in range(self.steps)):
            loss = cross_entropy(self.model(batch["x"]).flatten(0, 1), batch["y"].flatten(), ignore_index=-100)
            self.optimizer.zero_grad()
            loss.backward()
            clip_grad_norm_(self.model.parameters(), self.config.trainer.gradient_clip_val)
            self.optimizer.step()
            self.scheduler.step()


def _clocks() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def _since(then: tuple[float, float]) -> tuple[float, float]:
    now = _clocks()
    return now[0] - then[0], now[1] - then[1]


def time_segments(config: DictConfig, steps: int) -> list[tuple[tuple[float, float], tuple[float, float]]]:
    segments = BareSegments(config, steps)
    fit(config, segments)
    return list(zip(segments.trainer_seconds, segments.bare_seconds, strict=True))


def bench_speed_bare(steps: int = 60, segments: int = 9) -> Iterator[Row]:
    config = default_run(1, f"trainer.max_steps={steps * (segments + 1)}")
    [pairs] = run_workers(1, time_segments, config, steps, timeout=TIMEOUT)
    ours, bare, ours_cpu, bare_cpu = ([steps / pair[i][c] for pair in pairs[1:]] for c in (0, 1) for i in (0, 1))
    note = (
        f"{median(ours):.1f} steps/s, bare loop {median(bare):.1f}; pairs {low_to_high(ours, bare)};"
        f" {median(o / b for o, b in zip(ours_cpu, bare_cpu, strict=True)):.3f} in processor time"
    )
    ratio = median(o / b for o, b in zip(ours, bare, strict=True))
    yield at_least(0.95, "speed, 1 worker, whole machinery", ratio, "x bare loop", note)


def low_to_high(some: list[float], others: list[float]) -> str:
    ratios = sorted(s / o for s, o in zip(some, others, strict=True))
    return f"{ratios[0]:.2f} to {ratios[-1]:.2f}"


# ---- startup -----------------------------------------------------------------------------------------------------


def bench_startup(times: int = 5) -> Iterator[Row]:
    for arguments, exit_code in {"--help": 0, "seeed=1": 2}.items():
        seconds, processor = [], []
        for _ in range(times):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            command = [sys.executable, "train.py", arguments]
            start = time.perf_counter()
            code = subprocess.run(command, cwd=REPOSITORY, capture_output=True).returncode
            seconds.append(time.perf_counter() - start)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            processor.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
            if code != exit_code:
                raise RuntimeError(f"train.py {arguments} left with exit code {code}, not {exit_code}")
        note = f"{min(seconds):.2f} to {max(seconds):.2f} s; {median(processor):.2f} s of processor time"
        yield at_most(1.5, f"startup, train.py {arguments}", median(seconds), "s", note)


# ---- memory ------------------------------------------------------------------------------------------------------


def peak_bytes(strategy: TickStrategy | DDP, occasion: str) -> int:
    """The most tensor memory that a short fit holds at once, beyond the module itself; from torch's profiler."""
    module = OnlyParameters()
    with tempfile.TemporaryDirectory() as directory:
        options: dict[str, Any] = {"max_steps": 8, "default_root_dir": directory}
        if occasion == "validation":
            options |= {"limit_val_batches": 1, "val_check_interval": 3, "check_val_every_n_epoch": None}
        if occasion == "checkpoint":
            options |= {"enable_checkpointing": True, "callbacks": [ModelCheckpoint(directory, every_n_train_steps=3)]}
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            quiet_trainer(strategy, 2, **options).fit(module)
        trace = Path(directory) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    held = peak = 0
    for event in sorted((e for e in events if e["name"] == "[memory]"), key=lambda e: e["ts"]):
        held += event["args"]["Bytes"]
        peak = max(peak, held)
    return peak


def peaks(occasion: str) -> tuple[int, int]:
    return peak_bytes(TickStrategy(interval=2), occasion), peak_bytes(DDP(), occasion)


def bench_memory() -> Iterator[Row]:
    size = 4 * sum(p.numel() for p in OnlyParameters().parameters())
    for occasion in ("training", "validation", "checkpoint"):
        ours, ddp = (max(worker) for worker in zip(*run_workers(2, peaks, occasion, timeout=TIMEOUT), strict=True))
        name = "memory" if occasion == "training" else f"memory, {occasion} in the middle of a round"
        note = f"peak beyond the module {ours / size:.2f} copies, DDP {ddp / size:.2f}; the gradients are one of them"
        yield at_most(1.0, name, (ours - ddp) / size, "copies", note)


# ---- all of them -------------------------------------------------------------------------------------------------

BENCHMARKS: dict[str, Callable[[], Iterator[Row]]] = {
    "tick": bench_tick,
    "speed_ticks": bench_speed_ticks,
    "speed_bare": bench_speed_bare,
    "startup": bench_startup,
    "memory": bench_memory,
}


def measure(name: str) -> Iterator[Row]:
    """The rows of one benchmark as they come; one that fails instead of measuring is a row too."""
    start = time.perf_counter()
    console.print(f"{name} ...")
    try:
        for row in BENCHMARKS[name]():
            console.print(f"  {row.name}: {row.figure:.3f} {row.unit}  ({row.note})")
            yield row
    except Exception as error:
        console.print_exception()
        yield Row(name, float("nan"), "", "", False, f"{type(error).__name__}: {error}".splitlines()[0])
    console.print(f"  {time.perf_counter() - start:.0f} s")


def show(rows: list[Row]) -> None:
    table = Table("measured", "figure", "target", "", "note")
    for row in rows:
        verdict = {True: "[green]PASS", False: "[red]FAIL", None: "for information"}[row.passed]
        table.add_row(row.name, f"{row.figure:.3f} {row.unit}", row.target, verdict, row.note)
    console.print(table)
    failed = [row.name for row in rows if row.passed is False]
    console.print(f"[red]{len(failed)} missed: {'; '.join(failed)}" if failed else "[green]every target is met")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"default: all of {', '.join(BENCHMARKS)}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there as well")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(BENCHMARKS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; valid: {', '.join(BENCHMARKS)}")
    load = os.getloadavg()[0]
    console.print(f"torch {torch.__version__}, {os.cpu_count()} processors, load before the start {load:.1f}")
    build(default_run(1).data, "data").prepare_data()
    rows = [row for name in arguments.names or BENCHMARKS for row in measure(name)]
    show(rows)
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(row) for row in rows], indent=2))


if __name__ == "__main__":
    main()
