"""What a run is: for a person as it begins, and for its summary."""

import resource
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule
from lightning.pytorch import Trainer

from ticks import contract
from ticks.contract import Measure
from ticks.strategy import DDP, EverySteps, TickStrategy


def announce(
    run_dir: Path,
    trainer: Trainer,
    task: LightningModule,
    data: Any,
    worker_batch_size: int | None,
    notes: Sequence[str],
) -> None:
    """Print what begins; `notes` are what is not promised, a line each."""
    parameters = sum(p.numel() for p in task.parameters())
    trained = sum(p.numel() for p in task.parameters() if p.requires_grad)
    count = f"{parameters:,} parameters" + (f", {trained:,} of which train" if trained < parameters else "")
    line = f"{count}; {trainer.world_size} worker(s) on {trainer.strategy.root_device.type}"
    if worker_batch_size is not None:
        line += f"; {data.step_label()} per step, {worker_batch_size} per worker and batch"
    tokens, interval = contract.tokens_per_step(data), fixed_interval(trainer.strategy)
    if tokens:
        a_round = f", {tokens * interval:,} per round of {interval} steps" if interval else ""
        line += f": {tokens:,} tokens per step{a_round}"
    print(f"run directory {run_dir}\n{line}", flush=True)
    for note in data.notes() if hasattr(data, "notes") else ():
        print(f"data.{note}", flush=True)
    for note in notes:
        print(f"note: {note}", flush=True)
    if interval and trainer.world_size > 1 and interval > (steps := trainer.max_steps) > 0:
        print(f"the interval of {interval} steps is longer than the run of {steps}: workers meet only at its end")


def chosen(choices: Mapping[str, str], strategy: Any, *, uses_model: bool) -> dict[str, Any]:
    """By their names in configs/, and when workers meet."""
    return {
        "strategy": choices.get("strategy"),
        "interval": fixed_interval(strategy),
        "clock": clock_label(strategy),
        "sync": choices.get("strategy/sync"),
        "wire": choices.get("strategy/wire"),
        "norm": choices.get("model/norm") if uses_model else None,
        "adapter": choices.get("model/adapter") if uses_model else None,
    }


def done(strategy: Any, task: LightningModule, *, seconds: float, tokens: int | None) -> dict[str, Any]:
    """By these workers, in so many `seconds` of training."""
    ledger, steps, device = strategy.ledger, strategy.step, strategy.root_device
    return {
        "world_size": strategy.world_size,
        "n_params": sum(p.numel() for p in task.parameters()),
        "n_trainable": sum(p.numel() for p in task.parameters() if p.requires_grad),
        "n_nonzero": sum(int(torch.count_nonzero(p.detach())) for p in task.parameters()),
        "steps": steps,
        "ticks": ledger.ticks,
        "tokens": tokens,
        "bytes_sent_per_worker": ledger.bytes_sent,
        "messages": ledger.messages,
        "sync_seconds": None if isinstance(strategy, DDP) else round(ledger.seconds, 3),
        "train_seconds": round(seconds, 3),
        "steps_per_second": round(steps / seconds, 4) if seconds > 0 else None,
        "peak_memory": peak_memory(device),
        "device": device_name(device),
    }


def judged(measures: Sequence[Measure], val: Mapping[str, float], tests: Mapping[str, float]) -> dict[str, Any]:
    """By its measures; what was not measured is None."""
    known: dict[str, Any] = {
        "measure": measures[0].name if measures else None,
        "better": measures[0].better if measures else None,
        "higher_is_better": ",".join(m.name for m in measures if m.better == "higher"),
    }
    known |= {f"{split}_{m.name}": None for split in ("val", "test") for m in measures}
    known |= {f"val_{name}": value for name, value in val.items()}
    return known | {f"test_{name}": value for name, value in tests.items()}


def fixed_interval(strategy: Any) -> int | None:
    """The interval, where it is the same from the first step to the last."""
    fixed = isinstance(strategy, TickStrategy) and isinstance(strategy.clock, EverySteps) and not strategy.ddp_steps
    return strategy.clock.interval if fixed else None


def clock_label(strategy: Any) -> str | None:
    """When workers meet, in a few words; None where it is at every step."""
    if not isinstance(strategy, TickStrategy):
        return None
    first = f"1 until {strategy.ddp_steps}, then " if strategy.ddp_steps else ""
    return first + strategy.clock.label


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def peak_memory(device: torch.device) -> int:
    """Bytes that this worker has had at most: of its GPU, or of the machine."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
