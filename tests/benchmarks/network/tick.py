"""What a tick takes beside a bare all-reduce of the same bytes, at each bandwidth: averaging parameters, in fp32."""

import argparse
import time

import numpy as np
from rich.console import Console

from tests.benchmarks.network.link import SlowNetwork
from tests.benchmarks.network.measure import MODELS, WORKERS
from tests.benchmarks.network.report import Results
from tests.benchmarks.network.workers import WorkerFailed, run_workers
from tests.benchmarks.tick import time_ticks
from ticks.strategy import FP32, Parameters

PARAMETERS = MODELS["large"].parameters  # as many as the module that is timed has, but for its longer positions
SECONDS, LEAST, MOST, WARM_UP = 60.0, 4, 20, 2  # of a measurement, and its pairs; WARM_UP are left out


def compare_ticks(network: SlowNetwork, results: Results, arguments: argparse.Namespace, console: Console) -> None:
    """Pairs of a tick and an all-reduce, in turn first; recorded for each bandwidth as it ends."""
    pairs, expected = {}, {}
    for rate in arguments.rates:
        one = PARAMETERS * 4 * 1.5 * 8 / (rate * 0.95e6) + 0.05
        pairs[rate] = int(min(MOST, max(LEAST, SECONDS / (2 * one))))
        expected[rate] = 10 + 2 * one * (pairs[rate] + WARM_UP + 2)  # two for the start and the end
        console.print(f"{rate:g} Mbit/s: {pairs[rate]} pairs, about {expected[rate] / 60:.0f} minutes")
    for rate in () if arguments.dry_run else arguments.rates:
        network.set_rate(rate)
        try:
            workers = run_workers(
                network,
                lambda report, n=pairs[rate]: time_ticks(1, Parameters(), FP32(), WARM_UP + n, num_nodes=WORKERS),
                timeout=120 + 4 * expected[rate],
            )
        except WorkerFailed as error:
            console.print(f"failed: {error}", style="red", markup=False)
            continue
        tick, bare = np.max(workers, axis=0)[WARM_UP:].T  # of the slowest worker
        ratios = tick / bare
        medians = {name: float(np.median(of)) for name, of in (("tick", tick), ("bare", bare), ("ratio", ratios))}
        results.add_tick(medians | {"rate": rate, "pairs": len(ratios), "at": time.time()})
        each = f"single pairs {ratios.min():.3f} to {ratios.max():.3f}"
        console.print(f"{rate:g} Mbit/s: a tick takes {medians['ratio']:.3f} times as long, {each}")
