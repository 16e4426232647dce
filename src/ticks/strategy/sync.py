"""Sync rules: what happens to the numbers at a tick.

A rule sees flat tensors, never modules: all workers' trainable parameters (or their gradients) in one fixed order.
To add one: a class here, and a YAML in configs/strategy/sync/.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from torch import Tensor

Mean = Callable[[], None]  # sends the tick's message: the parameters become their mean over the workers, in place


class Sync(ABC):
    """One rule. `averages_gradients` asks for a tick's gradients too, averaged before the optimizer uses them."""

    averages_gradients = False

    @abstractmethod
    def agree(self, parameters_P: Tensor, mean: Mean) -> None:
        """Turn this worker's parameters (P,) into those that all workers hold after the tick, in place."""

    def state_dict(self) -> dict[str, Any]:
        """What the rule must remember to resume exactly."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027 - most rules remember nothing
        """Take back what `state_dict` gave."""


class Parameters(Sync):
    """theta_i <- mean_k theta_k (local SGD, arXiv 1805.09767). One message per tick."""

    def agree(self, parameters_P: Tensor, mean: Mean) -> None:
        mean()


class Gradients(Parameters):
    """At a tick l = mean_k l_k; theta_i <- theta_i - f l; then theta_i <- mean_k theta_k. Two messages per tick.

    With plain SGD it gives the same parameters as `Parameters`; at interval 1 it is DDP.
    """

    averages_gradients = True
