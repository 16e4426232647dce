"""Mutations of the configuration: each is refused in one message, or runs correctly."""

import contextlib
import csv
import random
import resource
import signal
import time
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from tests.conftest import REPOSITORY
from tests.faults.kept import Kept, run_directory, summary
from tests.faults.outcome import Outcome, errors, last_line
from tests.faults.plan import Trial
from tests.faults.runs import Run

TINY = ("debug=fast", "trainer.max_steps=4", "trainer.val_check_interval=2", "trainer.limit_val_batches=1",
        "trainer.limit_test_batches=1")  # fmt: skip
LAYERS = {"streaming_diloco": ("model.n_layers=4",)}  # as many as it has fragments
KINDS = ("type", "sign", "huge", "nan", "infinite", "zero", "empty", "null", "unknown", "deleted", "added")
OF_NUMBERS = ("sign", "huge", "nan", "infinite", "zero")
VALUES = {
    "type": ("abc", "[1,2]", "{a:1}", "true", "1.5", "7", "'1'"),
    "huge": ("1e30", "1000000000000", "1000000", "99999999999999999999999", "50000"),
    "nan": ("nan",),
    "infinite": ("inf", "-inf", ".inf"),
    "zero": ("0", "0.0"),
    "empty": ("", "''", "[]", "{}"),
    "null": ("null",),
}
ADDED = ("trainer.max_time", "trainer.fast_dev_run", "trainer.overfit_batches", "trainer.detect_anomaly", "extra",
         "model.extra", "strategy.extra", "task.extra", "data.extra", "callbacks.extra", "logger.extra")  # fmt: skip
TO_END = 25.0  # seconds: a run that goes on longer must be a long one, and stop when it is told to
TO_LEAVE = 10.0
MEMORY = 8 << 30  # bytes of address space
MOST_PROCESSES = 40


def run(trial: Trial, directory: Path, kept: Kept) -> Outcome:
    """Run a tiny job with one mutation."""
    outcome = Outcome(trial)
    override = mutation(trial.draw(), trial.preset)
    outcome.note = override
    arguments = [*TINY, *LAYERS.get(trial.preset, ()), f"strategy={trial.preset}", override]
    it = Run(directory, arguments, env=kept.env, limits={resource.RLIMIT_AS: MEMORY, resource.RLIMIT_CORE: 0})
    try:
        told_to_stop = not _ends(it, TO_END, outcome)
        if told_to_stop:
            began = it.seconds
            it.send(signal.SIGTERM, [it.pid])
            outcome.expect(it.wait(TO_LEAVE), f"frozen: alive {it.seconds:.0f} s after the start")
            outcome.seconds = it.seconds - began
    finally:
        outcome.left = it.clear()
    outcome.expect(not outcome.left, f"left behind: {outcome.left}")
    judge(it, outcome, told_to_stop=told_to_stop)
    return outcome


def _ends(it: Run, seconds: float, outcome: Outcome) -> bool:
    """Whether the run ends by itself; one that starts ever more processes is ended here."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if it.poll() is not None:
            return it.wait(TO_LEAVE)
        if len(it.processes()) > MOST_PROCESSES:
            outcome.expect(False, f"more than {MOST_PROCESSES} processes")
            it.clear()
            return True
        time.sleep(0.05)
    return False


def judge(it: Any, outcome: Outcome, *, told_to_stop: bool) -> None:
    """One message and exit code 1 or 2, or a finished run of finite numbers; a long one stops when told to."""
    output = it.output
    found = errors(output)
    outcome.expect("Traceback" not in output, f"a stack trace ({last_line(output)})")
    if told_to_stop:
        outcome.expect(it.code == 128 + signal.SIGTERM, f"exit code {it.code} of a long run told to stop")
        outcome.expect("tokens per step" in output, "it never began")
    elif it.code == 0:
        run_dir = run_directory(it.directory)
        outcome.expect(summary(run_dir).get("status") == "finished", "exit code 0 without a finished run")
        if run_dir is not None:
            numbers = list(logged(run_dir))
            outcome.expect(all(abs(n) < float("inf") for n in numbers), "exit code 0 with a loss that is not finite")
    else:
        outcome.expect(it.code in (1, 2), f"exit code {it.code} ({last_line(output)})")
        outcome.expect(len(found) == 1, f"{len(found)} messages ({last_line(output)})")


def logged(run_dir: Path) -> list[float]:
    """Every loss in metrics.csv."""
    numbers: list[float] = []
    with contextlib.suppress(OSError), (run_dir / "metrics.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            numbers += [float(value) for key, value in row.items() if key and key.endswith("loss") and value]
    return numbers


def mutation(draw: random.Random, preset: str) -> str:
    """One override that somebody might type, or a program might make."""
    key, value = draw.choice(leaves(preset))
    kind = draw.choice(KINDS)
    if kind in OF_NUMBERS:
        key, value = draw.choice([(k, v) for k, v in leaves(preset) if _is_number(v)])
    if kind == "deleted":
        return f"~{key}"
    if kind == "unknown":
        at = draw.randrange(len(key))
        return f"{key[:at]}{draw.choice('xyz_')}{key[at:]}={_written(value)}"
    if kind == "added":
        return f"+{draw.choice(ADDED)}={draw.choice(('1', 'abc', 'null', '-1', 'true'))}"
    if kind == "sign":
        return f"{key}={-value or -1}"
    return f"{key}={draw.choice(VALUES[kind])}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _written(value: Any) -> str:
    return "null" if value is None else str(value).replace(" ", "")


@cache
def leaves(preset: str) -> list[tuple[str, Any]]:
    """Every key of the configuration that holds a value, and the value."""
    from ticks.config import compose_strictly

    config = compose_strictly([*TINY, *LAYERS.get(preset, ()), f"strategy={preset}"], REPOSITORY / "configs")
    found: list[tuple[str, Any]] = []

    def collect(node: Any, path: str) -> None:
        for key in node:
            value = node._get_node(key)
            here = f"{path}{key}"
            if isinstance(value, DictConfig) and len(value):
                collect(value, f"{here}.")
            else:
                found.append((here, OmegaConf.select(config, here) if not OmegaConf.is_missing(node, key) else None))

    collect(config, "")
    return found
