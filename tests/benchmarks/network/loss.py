"""Seconds of training until a method first reaches DDP's final validation loss.

Presets run as `train.py model=ln_ticks strategy=NAME` does, with their own clock and constants; the large model with
fewer sequences per step, as everywhere here. Evaluation is left out of the time: the clock stands still from the moment
a worker begins to evaluate until all have ended.
"""

import argparse
import time
from functools import partial
from itertools import pairwise
from typing import Any, NoReturn

import numpy as np
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch import Callback
from rich.console import Console

from tests.benchmarks.network.link import SlowNetwork
from tests.benchmarks.network.measure import CONFIGS, MODELS, Job, compose, fit, is_preset, presets
from tests.benchmarks.network.plan import exchange
from tests.benchmarks.network.report import Results, base_of, seconds_to
from tests.benchmarks.network.workers import Report, WorkerFailed, run_workers
from ticks.config import ConfigError, build

EVALUATIONS = 16  # in as many steps as DDP has
AT_MOST = 3  # batches of each worker in one, of a model that takes long
RATE = 100.0


class Curve(Callback):
    """Steps, seconds of training since the last evaluation, bytes sent and loss, at each evaluation."""

    def __init__(self) -> None:
        self.points: list[tuple[int, float, int, float]] = []
        self.started = 0.0

    def on_train_start(self, *_: Any) -> None:
        self.started = time.perf_counter()

    def on_validation_start(self, *_: Any) -> None:
        self.seconds = time.perf_counter() - self.started

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        loss = float(trainer.callback_metrics["val/loss"])
        sent = trainer.strategy.ledger.bytes_sent  # type: ignore[attr-defined]
        self.points.append((trainer.global_step, self.seconds, sent, loss))
        self.started = time.perf_counter()


def train(method: str, model: str, steps: int, every: int, report: Report) -> None:
    torch.manual_seed(0)
    name, *more = method.split()
    lengths = [f"trainer.max_steps={steps}", f"trainer.val_check_interval={every}"]
    short = [] if model == "default" else [f"trainer.limit_val_batches={AT_MOST}"]
    config = compose(model, f"strategy={name}", *lengths, *short, *more)
    curve = Curve()
    fit(config, build(config.strategy, "strategy"), [curve])
    report(curve.points)


def time_to_loss(network: SlowNetwork, results: Results, arguments: argparse.Namespace, console: Console) -> None:
    """DDP first, then every preset that was asked for, at each of the lengths; recorded as they end."""
    model, every = arguments.loss_model, max(1, arguments.ddp_steps // EVALUATIONS)
    if model not in MODELS:
        mistake(console, f"--loss-model: {model} is no model; valid: {', '.join(MODELS)}")
    if wrong := [n for n in (arguments.ddp_steps, *arguments.loss_steps) if n % every]:
        mistake(console, f"{wrong[0]} steps do not end with an evaluation: give multiples of {every}")
    others = [method for method in arguments.time_to_loss if method != "ddp"]
    runs = [("ddp", arguments.ddp_steps)] + [(method, steps) for method in others for steps in arguments.loss_steps]
    for method, _ in runs:
        try:
            if not is_preset(method):
                raise ConfigError(f"{method.split()[0]} is no preset; valid: {', '.join(presets())}")
            compose(model, *(["strategy=" + method.split()[0], *method.split()[1:]]))
        except ConfigError as error:
            mistake(console, f"--time-to-loss: {error} ({CONFIGS / 'strategy'})")
    known = base_of({"model": model, "rate": RATE}, results.content["losses"])
    if known and known["steps"] == arguments.ddp_steps and not arguments.again:
        console.print("DDP's run is taken from the file (--again repeats it)")
        runs = runs[1:]
    computing = results.seconds_per_step().get(model, MODELS[model].seconds)
    sending = {method: exchange(Job(method, model, RATE, 1))[0] for method, _ in runs}  # at every step: at most
    expected = sum(n * (sending[method] + 1.3 * computing) + n / every * 5 for method, n in runs)
    console.print(f"{len(runs)} runs at {RATE:g} Mbit/s, at most about {expected / 60:.0f} minutes on a quiet machine")
    if arguments.dry_run:
        return
    network.set_rate(RATE)
    for method, steps in runs:
        console.print(f"{method}, {steps} steps ...")
        try:
            job = partial(train, method, model, steps, every)
            workers = run_workers(network, job, timeout=120 + 4 * expected)
        except WorkerFailed as error:
            console.print(f"failed: {error}", style="red", markup=False)
            continue
        curve = merged(workers)
        record = {"method": method, "model": model, "steps": steps, "rate": RATE, "curve": curve, "at": time.time()}
        results.add_loss(record)
        base = base_of(record, results.content["losses"])
        if base is None:  # its run failed
            continue
        needed = seconds_to(curve, base["curve"][-1][3])
        reached = "does not reach DDP's" if needed is None else f"DDP's after {needed:.0f} s"
        console.print(f"    loss {curve[-1][3]:.4f} after {curve[-1][1]:.0f} s; {reached}")


def mistake(console: Console, message: str) -> NoReturn:
    console.print(f"error: {message}", style="red")
    raise SystemExit(2)


def merged(workers: list[list[tuple[int, float, int, float]]]) -> list[list[float]]:
    """[step, seconds, MB, loss] at each evaluation: of each piece between two of them the slowest worker's seconds,
    the mean of the bytes sent."""
    points = np.array(workers)  # (worker, evaluation, 4)
    seconds = points[:, :, 1].max(axis=0).cumsum()
    megabytes = points[:, :, 2].mean(axis=0) / 1e6
    assert all(before < after for before, after in pairwise(seconds)), "time only goes on"
    return np.stack([points[0, :, 0], seconds, megabytes, points[0, :, 3]], axis=1).tolist()
