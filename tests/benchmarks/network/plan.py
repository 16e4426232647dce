"""What is measured and how long it will take."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from omegaconf import OmegaConf

from tests.benchmarks.network.measure import MODELS, NEVER, Job, configure, is_preset

EVERY_STEP = ("ddp", "lightning_ddp", "powersgd")  # how methods begin that talk at every step, whatever --intervals
BROADCASTS = ("ddp", "lightning_ddp", "lightning_ddp_bf16")  # send all parameters before they train, equal or not
WIRE_SHARE = {"BF16": 0.5, "FP16": 0.5, "Int8": 0.27, "Int4": 0.15, "LowRank": 0.05}  # of fp32's bytes, for estimates
START_SECONDS = 5.0  # of four workers


@dataclass(frozen=True)
class Planned:
    """A job, the seconds it should take, and other presets that at one interval are the same."""

    job: Job
    seconds: float
    same: tuple[str, ...] = ()


def plan(
    methods: Sequence[str],
    models: Sequence[str],
    rates: Sequence[float],
    intervals: Sequence[int],
    *,
    steps: int | None,
    seconds: float,
    computing: dict[str, float],
) -> list[Planned]:
    """Jobs in the order in which they run: what will be compared is measured one after the other.

    Each takes `steps` steps, or else about `seconds`, but whole rounds and at least one. `computing` is the seconds of
    a step without talking, per model, where they are known.
    """
    from tests.benchmarks.others import LOOPS

    planned = []
    for model in models:
        for rate in rates:
            for interval in (None, *intervals):
                group: dict[str, Planned] = {}
                for method in methods:
                    if method.startswith(EVERY_STEP) != (interval is None):
                        continue
                    if method in LOOPS and (interval or 1) < LOOPS[method].least_interval:
                        continue
                    job = Job(method, model, rate, interval or 1)
                    identity = same_work(job)
                    if identity in group:
                        first = group[identity]
                        group[identity] = replace(first, same=(*first.same, method))
                    else:
                        group[identity] = sized(job, steps, seconds, computing.get(model, MODELS[model].seconds))
                planned += group.values()
    return planned


def same_work(job: Job) -> str:
    """Equal for presets that differ only in what is replaced here (clocks, a first phase): they are measured once."""
    return OmegaConf.to_yaml(configure(job).strategy) if is_preset(job.method) else job.method


def sized(job: Job, steps: int | None, seconds: float, computing: float) -> Planned:
    from tests.benchmarks.others import LOOPS

    tick, cycle, overlaps = exchange(job)
    per_round = job.interval * computing + tick
    rounds = math.ceil(steps / job.interval) if steps else round(seconds / per_round)
    at_least = (2 if tick > 10 else 3) if job.interval == 1 else 1
    rounds = cycle * math.ceil(max(rounds, at_least) / cycle)
    warmup = (1 if tick > 10 else 4) if job.interval == 1 else min(job.interval, 4)
    if job.method in LOOPS:
        warmup = max(warmup, LOOPS[job.method].least_warmup)
    lead = job.interval if overlaps else 0
    start = START_SECONDS
    if job.method in BROADCASTS:  # to one worker, then from two to two
        start += 2 * MODELS[job.model].parameters * 4 * 8 / (job.rate * 0.95e6)
    expected = start + warmup * computing + (tick if job.interval > 1 else warmup * tick)
    expected += (rounds + overlaps) * per_round
    return Planned(replace(job, warmup=warmup, lead=lead, steps=rounds * job.interval), expected)


def exchange(job: Job) -> tuple[float, int, bool]:
    """Seconds that a round's messages should take, the rounds after which what is sent repeats, and whether it travels
    while workers compute."""
    copies, cycle, overlaps = (0.5 if job.method.endswith("bf16") else 1.0), 1, False
    if is_preset(job.method):
        strategy: Any = OmegaConf.to_container(configure(job).strategy)
        wire = str((strategy.get("wire") or {}).get("_target_", "")).rpartition(".")[2]
        copies = WIRE_SHARE.get(wire, 1.0)
        if str((strategy.get("sync") or {}).get("_target_", "")).endswith(".Gradients") and job.interval > 1:
            copies *= 2
        overlaps = bool((strategy.get("sync") or {}).get("delay"))
        every = (strategy.get("optimizer_state") or {}).get("every")
        if str((strategy.get("optimizer_state") or {}).get("_target_", "")).endswith(".Average"):
            periods = list(every.values()) if isinstance(every, dict) else [every] * 2
            copies += sum(1 / period for period in periods)
            cycle = math.lcm(*periods)
    elif job.method == NEVER:
        copies = 0.0
    seconds = MODELS[job.model].parameters * 4 * 1.5 * 8 * copies / (job.rate * 0.95e6) + 0.05
    return seconds, cycle, overlaps
