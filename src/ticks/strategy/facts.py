"""What workers tell each other with every message, and what one of them collects for it in the course of a round."""

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

# the first is the weight of a worker's numbers in the mean: 0 if they are not finite
FIELDS = ("weight", "loss", "seconds", "update", "drift", "stop", "bad_step", "lr", "fingerprint", "elapsed")


def only_weight(weight: float) -> Tensor:
    """A row of FIELDS for a message that tells nothing else: all messages begin with as many bytes."""
    return torch.tensor([weight] + [0.0] * (len(FIELDS) - 1), dtype=torch.float64)


def largest_lr(optimizers: Iterable[Optimizer]) -> float:
    """0 where there are none."""
    return float(max((group["lr"] for optimizer in optimizers for group in optimizer.param_groups), default=0.0))


@dataclass
class Round:
    """One round on one worker: its losses, its seconds without waiting for others, the first step that went wrong."""

    interval: int = 0
    end: int = 0  # the step after which it ends
    steps: int = 0  # done
    seconds: float = 0.0  # of them
    loss: Tensor | float = 0.0  # their sum
    bad_step: int = 0  # where the loss or the parameters were first not finite; 0: nowhere
    losses: list[Tensor] = field(default_factory=list)  # of single batches, since the round began or was resumed
    losses_from: int = 0  # the step of the round that the first of them belongs to
    sent: list[int] = field(default_factory=list)  # fragments that have left before its end
    step_started: float | None = None
    last_ended: float | None = None  # when the step before the current one did: loading data counts for a step
    waited: float = 0.0  # since then, for other workers or for what is no training

    @property
    def start(self) -> int:
        """The step before its first."""
        return self.end - self.interval

    def begin_step(self) -> None:
        if self.step_started is None:
            self.step_started = time.perf_counter() if self.last_ended is None else self.last_ended

    def saw(self, loss: Tensor) -> None:
        """The loss of a batch, or its share of a step's where batches accumulate."""
        self.loss = self.loss + loss
        self.losses.append(loss)

    def end_step(self) -> None:
        self.seconds += self._running()
        self.steps += 1
        self.step_started = None

    def between_steps(self) -> None:
        """What follows belongs to the next step."""
        self.last_ended, self.waited = time.perf_counter(), 0.0

    def leave_out(self, seconds: float) -> None:
        """Of the current step, if there is one: they went into something else."""
        if self.step_started is not None or self.last_ended is not None:
            self.waited += seconds

    def _running(self) -> float:
        return 0.0 if self.step_started is None else time.perf_counter() - self.step_started - self.waited

    def row(self, numbers: Tensor | None = None, **others: float) -> Tensor:
        """This worker's facts, in the order of FIELDS; its weight is 0 if its losses or `numbers` are not finite."""
        steps = max(1, self.steps + (self.step_started is not None))  # the current one, where it is not over yet
        loss = float(self.loss) / steps
        first_bad = 0 if math.isfinite(loss) else self.first_bad_step()
        if not first_bad and numbers is not None and not math.isfinite(float(numbers.sum())):
            first_bad = self.start + steps
        self.bad_step = self.bad_step or first_bad
        own = {
            "weight": float(not first_bad),
            "loss": loss,
            "seconds": (self.seconds + self._running()) / steps,
            "bad_step": self.bad_step,
        }
        return torch.tensor([own.get(name, others.get(name, 0.0)) for name in FIELDS], dtype=torch.float64)

    def first_bad_step(self) -> int:
        """The first step of this round whose loss was not finite."""
        if self.bad_step:
            return self.bad_step
        steps = self.steps - self.losses_from + (self.step_started is not None)
        batches = max(1, len(self.losses) // max(1, steps))
        bad = (i for i, loss in enumerate(self.losses) if not math.isfinite(float(loss)))
        return self.start + self.losses_from + next(bad, 0) // batches + 1

    def state_dict(self) -> dict[str, Any]:
        bad_step = self.bad_step if math.isfinite(float(self.loss)) else self.first_bad_step()
        return {
            "interval": self.interval,
            "end": self.end,
            "steps": self.steps,
            "seconds": self.seconds,
            "loss": float(self.loss),
            "bad_step": bad_step,
            "losses_from": self.steps,
            "sent": list(self.sent),
        }
