"""What workers know alike: what every one told at a tick, and what is kept of it until the next."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ticks.strategy.facts import FIELDS
from ticks.strategy.ledger import Ledger


class NonFiniteLoss(RuntimeError):
    """A worker's loss or parameters are nan or infinite; raised at the next tick, on every worker."""


class Everyones:
    """The facts of every worker, by their name in FIELDS: what came with the last message of a round."""

    def __init__(self, rows_NxF: Tensor) -> None:
        self._by_name = {name: rows_NxF[:, i].tolist() for i, name in enumerate(FIELDS)}
        self.world_size = len(rows_NxF)
        health = enumerate(zip(self["weight"], self["bad_step"], strict=True))
        self.sick = [rank for rank, (weight, bad_step) in health if not weight or bad_step]  # not finite now, or before

    def __getitem__(self, name: str) -> list[float]:
        return self._by_name[name]

    def refuse_sick(self, step: int, *, others_go_on: bool) -> None:
        """NonFiniteLoss, found at the tick after `step`, for a sick worker; if `others_go_on`, where there are none."""
        if not self.sick or (others_go_on and len(self.sick) < self.world_size):
            return
        rank = self.sick[0]
        bad_step, loss = int(self["bad_step"][rank]), self["loss"][rank]
        what = "parameters were not finite" if math.isfinite(loss) else f"training loss was {loss}"
        others = "" if len(self.sick) == self.world_size else " (the strategy's non_finite=exclude goes on without it)"
        raise NonFiniteLoss(
            f"worker {rank}'s {what} at step {bad_step}, found at the tick after step {step}; nothing after the"
            f" last checkpoint can be trusted: lower the learning rate or clip gradients{others}"
        )


@dataclass
class Known:
    """What decides the next round, the same on every worker; a resumed run must know it again."""

    rounds: int = 0  # of the rule that are over, DDP's steps not counted
    lockstep: bool = True  # whether the workers' optimizers, too, have always seen the same
    mean_loss: float = math.nan  # of the last round
    first_loss: float = math.nan  # of the first
    slowest: float = math.nan  # seconds per step
    lr: float = math.nan
    stop_wanted: bool = False  # by this worker: the others are told at the next tick
    seconds_told: float = 0.0  # of the ledger's, what has been logged
    elapsed: float = 0.0  # seconds of training, of the worker that has had most of them

    def learn(self, facts: Everyones, *, is_first: bool) -> None:
        """What the workers that count saw in a round."""
        healthy = [rank for rank in range(facts.world_size) if rank not in facts.sick]
        self.mean_loss = sum(facts["loss"][rank] for rank in healthy) / len(healthy)
        if is_first:
            self.first_loss = self.mean_loss
        self.lr = max(facts["lr"])
        self.slowest = max(facts["seconds"])
        self.elapsed = max(facts["elapsed"])

    def told(self, steps: int, n_excluded: int, ledger: Ledger, seen: Mapping[str, float]) -> dict[str, float]:
        """What loggers are told of a round of so many steps; of what was `seen` only what is a number."""
        since, self.seconds_told = self.seconds_told, ledger.seconds
        return {
            "tick/loss": self.mean_loss,
            "tick/interval": float(steps),
            "tick/waiting": ledger.seconds - since,
            "tick/excluded": float(n_excluded),
            "tick/bytes_sent": float(ledger.bytes_sent),
            "tick/seconds": ledger.seconds,
        } | {f"tick/{name}": value for name, value in seen.items() if math.isfinite(value)}

    def state_dict(self) -> dict[str, Any]:
        """By the names that checkpoints have always had."""
        return {f"_{name}": value for name, value in vars(self).items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in vars(self):
            setattr(self, name, state.get(f"_{name}", getattr(self, name)))  # older checkpoints say less
