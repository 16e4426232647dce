"""Linear regression with one weight: four workers, each with data of its own, gradient descent by hand, and ticks.

    python docs/examples/linear_regression.py

Between ticks each worker follows its own gradient, l = mean(x (w x - y)), w <- w - f l, and sends nothing; at a tick
they all go on from the mean of their weights. Each is drawn to the solution of its own data meanwhile: after rounds of
20 steps the weight is near the least-squares solution of all the data, sum(x y) / sum(x x), and not at it. Rounds of
one step are gradient descent on all the data: where the rounds shrink to that, the weight gets there exactly.
"""

import tempfile
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from ticks.strategy import FP32, Clock, EverySteps, Facts, Schedule

WORKERS = 4
SAMPLES = 50  # of each worker
STEPS = 300
LEARNING_RATE = 0.2
CLOCKS: dict[str, Clock] = {
    "rounds of 20 steps": EverySteps(20),
    "rounds of 20, then 5, then 1": Schedule([[0, 20], [100, 5], [200, 1]]),
}


def data(worker: int) -> tuple[torch.Tensor, torch.Tensor]:
    """This worker's x and y (SAMPLES,): their spread and their slope are others than the other workers'."""
    x, noise = torch.randn(2, SAMPLES, generator=torch.Generator().manual_seed(worker), dtype=torch.float64)
    x = x * (0.5 + 0.5 * worker)
    return x, (2 + 0.3 * worker) * x + noise


def least_squares() -> float:
    x, y = (torch.cat(parts) for parts in zip(*map(data, range(WORKERS)), strict=True))
    return float((x * y).sum() / (x * x).sum())


def train(worker: int, clock: Clock, meeting_place: str, answers: Any) -> None:
    dist.init_process_group("gloo", init_method=f"file://{meeting_place}", rank=worker, world_size=WORKERS)
    x, y = data(worker)
    w, wire, healthy = torch.zeros(1, dtype=torch.float64), FP32(), torch.ones(1, dtype=torch.float64)
    step, ticks, sent = 0, 0, 0
    while step < STEPS:
        for _ in range(clock.round_length(Facts(step, LEARNING_RATE, total_steps=STEPS))):
            w -= LEARNING_RATE * (x * (w * x - y)).mean()
            step += 1
        sent += wire.mean(w, healthy, step=step).n_bytes  # float64 stays float64 on this wire
        ticks += 1
    answers.put((w.item(), ticks, sent))
    dist.destroy_process_group()


def in_four_processes(clock: Clock) -> tuple[float, int, int]:
    """The weight that all of them end with, the ticks, and the bytes that each has sent."""
    answers = mp.get_context("fork").SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(train, (clock, f"{folder}/store", answers), WORKERS, start_method="fork")
    (answer,) = {answers.get() for _ in range(WORKERS)}
    return answer


def main() -> None:
    exact = least_squares()
    print(f"least squares                  w = {exact:.12f}")
    errors = []
    for name, clock in CLOCKS.items():
        w, ticks, sent = in_four_processes(clock)
        errors.append(abs(w - exact))
        print(f"{name:30} w = {w:.12f}, {errors[-1]:.1e} off, after {ticks} ticks and {sent} bytes sent per worker")
    assert errors[0] > 0.01, "rounds of 20 steps should end beside the solution"
    assert errors[1] < 1e-12, "rounds of 1 step should end at it"


if __name__ == "__main__":
    main()
