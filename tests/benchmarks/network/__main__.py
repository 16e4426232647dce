"""Steps per second of four workers on a slow network, and what they sent: `make bench-network ARGS="..."`.

Builds a network of its own (root needed; see link.py), removes it afterwards, and measures at each bandwidth: every
preset of configs/strategy, what people would use instead (../others.py), and workers that never talk, the ceiling.

    --rates 100 --models default --intervals 8 --presets ddp,local_sgd --others none    a small part: a minute
    --presets "diloco strategy/wire=int8"       a preset with overrides
    --time-to-loss streaming_diloco,local_sgd   seconds to DDP's final validation loss, presets as their files say
    --tick                                      a tick's seconds beside those of a bare all-reduce of the same bytes
    --report                                    tables and figures from the file again, nothing measured

Results are merged into the JSON file after each measurement, so that pieces can run at different times. Nothing else
should run on the machine. Exit code 1 if the network cannot be built, 2 for a mistake on the command line.
"""

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

os.environ["OMP_NUM_THREADS"] = "1"  # else four workers on two cores run seven times slower

from rich.console import Console

from tests.benchmarks.network.link import SlowNetwork, Unavailable

if TYPE_CHECKING:
    from tests.benchmarks.network.plan import Planned
    from tests.benchmarks.network.report import Results

RESULTS = Path(__file__).parents[1] / "results"
console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)


def listed(kind: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    def parse(text: str) -> list[Any]:
        return [kind(part.strip()) for part in text.split(",") if part.strip() and part != "none"]

    return parse


def positive(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} must be at least 1")
    return int(text)


def duration(text: str) -> float:
    if not 0 < float(text) < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} s: give more than 0 seconds")
    return float(text)


def rate(text: str) -> float:
    if not 0.1 <= float(text) <= 100_000:
        raise argparse.ArgumentTypeError(f"{text} Mbit/s: give 0.1 to 100000")
    return float(text)


def command_line() -> argparse.Namespace:
    parser = argparse.ArgumentParser("network", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add = parser.add_argument
    add("--rates", type=listed(rate), default=[10.0, 100.0, 1000.0], help="Mbit/s (10,100,1000)")
    add("--models", type=listed(str), default=["default", "large"], help="default,large")
    add("--presets", type=listed(str), help="of configs/strategy; default: all, and local_sgd with every wire")
    add("--others", type=listed(str), help="of ../others.py; default: all")
    add("--intervals", type=listed(positive), default=[1, 8, 32, 128], help="steps between ticks (1,8,32,128)")
    add("--steps", type=positive, help="measure so many, rounded up to whole rounds, instead of ...")
    add("--seconds", type=duration, default=12.0, help="... whole rounds of about so many seconds (12)")
    add("--longest", type=duration, default=600.0, help="leave out what should take longer than so many seconds (600)")
    add("--repeats", type=positive, default=1, help="go through everything so many times (1)")
    add("--json", type=Path, default=RESULTS / "network.json", help="file that results are merged into")
    add("--time-to-loss", type=listed(str), metavar="PRESETS", help="instead of speeds; DDP is always among them")
    add("--loss-steps", type=listed(positive), default=[640], help="lengths of the presets' runs (640)")
    add("--loss-model", default="default", help="the model of --time-to-loss (default)")
    add("--ddp-steps", type=positive, default=640, help="length of DDP's run for it, the loss to reach (640)")
    add("--tick", action="store_true", help="instead of speeds: a tick beside a bare all-reduce of the same bytes")
    add("--again", action="store_true", help="run DDP again although the file has its losses")
    add("--dry-run", action="store_true", help="say what would be measured and how long it would take")
    add("--report", action="store_true", help="only tables and figures, from the file")
    return parser.parse_args()


def main() -> int:
    arguments = command_line()
    try:
        if arguments.report:
            from tests.benchmarks.network.report import Results

            Results(arguments.json).show(console)
            return 0
        with nullcontext() if arguments.dry_run else SlowNetwork(4) as network:  # before anything slow is imported
            return measure_all(arguments, network)
    except Unavailable as error:
        console.print(f"bench-network: {error}. Nothing was measured, nothing is left behind.", style="red")
        return 1
    except KeyboardInterrupt:
        console.print("interrupted: the network is removed, what was measured is in the file")
        return 130


def measure_all(arguments: argparse.Namespace, network: Any) -> int:
    stops = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    signal.pthread_sigmask(signal.SIG_BLOCK, stops)  # imports of others may swallow the exception that ends us
    start_quietly()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, stops)
    from tests.benchmarks.network.report import Results

    results = Results(arguments.json)
    if arguments.time_to_loss is not None:
        from tests.benchmarks.network.loss import time_to_loss

        time_to_loss(network, results, arguments, console)
    elif arguments.tick:
        from tests.benchmarks.network.tick import compare_ticks

        compare_ticks(network, results, arguments, console)
    else:
        measure_speeds(network, results, arguments)
    if not arguments.dry_run:
        results.show(console)
    return 0


def start_quietly() -> None:
    """Import once what every worker needs: they are forked from this process, and all run the same code."""
    import logging
    import warnings

    import torch

    import ticks.data
    import ticks.models
    import ticks.strategy
    import ticks.tasks  # noqa: F401

    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)


# ---- speeds ------------------------------------------------------------------------------------------------------


def chosen_methods(arguments: argparse.Namespace) -> list[str]:
    from tests.benchmarks.network.measure import CONFIGS, presets
    from tests.benchmarks.others import LIGHTNING, LOOPS

    wires = [file.stem for file in sorted((CONFIGS / "strategy" / "wire").glob("*.yaml")) if file.stem != "fp32"]
    ours = [*presets(), *(f"local_sgd strategy/wire={wire}" for wire in wires if "local_sgd" in presets())]
    chosen = ours if arguments.presets is None else arguments.presets
    others = [*LIGHTNING, *LOOPS] if arguments.others is None else arguments.others
    check_known("--presets", [method.split()[0] for method in chosen], presets())
    check_known("--others", others, [*LIGHTNING, *LOOPS])
    return [*chosen, *others]


def check_known(option: str, names: Sequence[str], valid: Sequence[str]) -> None:
    if unknown := set(names) - set(valid):
        mistake(f"{option}: unknown: {', '.join(sorted(unknown))}; valid: {', '.join(valid)}")


def mistake(message: str) -> NoReturn:
    console.print(f"error: {message}", style="red")
    raise SystemExit(2)


def measure_speeds(network: SlowNetwork, results: "Results", arguments: argparse.Namespace) -> None:
    from tests.benchmarks.network.measure import MODELS
    from tests.benchmarks.network.plan import plan
    from ticks.config import ConfigError

    check_known("--models", arguments.models, list(MODELS))
    selection = (chosen_methods(arguments), arguments.models, arguments.rates, arguments.intervals)
    sizes = {"steps": arguments.steps, "seconds": arguments.seconds, "computing": results.seconds_per_step()}
    try:
        planned = plan(*selection, **sizes) * arguments.repeats
    except ConfigError as error:
        mistake(str(error))
    for item in planned:
        if item.seconds > arguments.longest:
            console.print(f"left out, {item.seconds:.0f} s is beyond --longest: {in_words(item)}")
    planned = [item for item in planned if item.seconds <= arguments.longest]
    ceilings = len(arguments.models) + len(planned)
    expected = sum(item.seconds for item in planned) + ceilings * (5 + arguments.seconds)
    console.print(f"{len(planned)} measurements, about {expected / 60:.0f} minutes on a quiet machine with 2 cores")
    if arguments.dry_run:
        for item in planned:
            console.print(f"{item.seconds:6.0f} s  {in_words(item)}")
        return
    Speeds(network, results, arguments.seconds, planned).measure()


def in_words(item: "Planned") -> str:
    job = item.job
    same = f" (= {', '.join(item.same)})" if item.same else ""
    return f"{job.rate:g} Mbit/s, {job.model}, H={job.interval}, {job.steps} steps: {job.method}{same}"


class Speeds:
    """Measures what is planned, and before and behind each thing the ceiling of the same model."""

    def __init__(self, network: SlowNetwork, results: "Results", seconds: float, planned: "list[Planned]") -> None:
        self.network = network
        self.results = results
        self.seconds = seconds  # per measurement of the ceiling
        self.planned = planned
        self.began = time.time()

    def measure(self) -> None:
        total, done, spent = sum(item.seconds for item in self.planned), 0.0, 0.0
        for number, item in enumerate(self.planned, 1):
            model = item.job.model
            started = time.time()
            if number == 1 or self.planned[number - 2].job.model != model:
                self.measure_ceiling(model)
            outcome = self.measure_one(item)
            self.measure_ceiling(model)
            done, spent = done + item.seconds, spent + time.time() - started
            left = (total - done) * spent / done / 60
            console.print(
                f"[{number}/{len(self.planned)}] {in_words(item)}: {outcome}; {left:.0f} min left", markup=False
            )

    def run(self, job: Any, expected: float) -> list[dict[str, float]]:
        from tests.benchmarks.network.measure import measure
        from tests.benchmarks.network.workers import run_workers

        if job.rate != self.network.rate:
            self.network.set_rate(job.rate)
        return run_workers(self.network, lambda report: measure(job, report), timeout=120 + 4 * expected)

    def measure_ceiling(self, model: str) -> None:
        from tests.benchmarks.network.measure import MODELS, NEVER, Job

        known = self.results.seconds_per_step().get(model, MODELS[model].seconds)
        steps = max(8, round(self.seconds / known))
        outcomes = self.run(Job(NEVER, model, self.network.rate or 100.0, 1, steps=steps), self.seconds)
        speed = self.results.add_ceiling(model, steps, outcomes)
        console.print(f"    ceiling, {model}: {speed:.2f} steps/s")

    def measure_one(self, item: "Planned") -> str:
        from tests.benchmarks.network.workers import WorkerFailed

        try:
            outcomes = self.run(item.job, item.seconds)
        except WorkerFailed as error:
            self.results.add_failure(item, str(error), since=self.began)
            return "failed: " + str(error).splitlines()[0]
        return self.results.add_speed(item, outcomes, since=self.began)


def leave(signum: int, frame: Any) -> NoReturn:
    console.print(f"stopped by {signal.Signals(signum).name}: what was measured is in the file")
    raise SystemExit(128 + signum)


if __name__ == "__main__":
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, leave)  # leaves through the network's clean-up
    sys.exit(main())
