"""What an entry of a timeline does: a setting, which is a value of every step, or an event, which happens.

To add one: a class here or in settings.py or events.py, and a YAML in configs/timeline/.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Stage:
    """Where a timeline plays: Lightning's trainer and module, what to write a line to, and the step that is over."""

    trainer: Any
    module: Any
    say: Callable[[str], None] = print
    step: int = 0
    begin: int = 0  # steps of the run before the timeline's first
    made: tuple[Any, ...] | None = None  # optimizers, where the trainer has none yet
    given: Any = None  # data, where the trainer has none yet

    @property
    def data(self) -> Any:
        return getattr(self.trainer, "datamodule", None) if self.given is None else self.given

    @property
    def optimizers(self) -> list[Any]:
        return list(self.trainer.optimizers if self.made is None else self.made)


class Action(ABC):  # noqa: B024  # what it can do is a setting's or an event's
    """A setting or an event."""

    def __str__(self) -> str:
        plain = {key: value for key, value in vars(self).items() if not key.startswith("_")}
        said = [f"{key}={_in_words(value)}" for key, value in plain.items() if value is not None and value is not False]
        return f"{type(self).__name__}({', '.join(said)})"


def _in_words(value: Any) -> str:
    """A function by its name, and not by where it lies in memory."""
    value = getattr(value, "func", value)  # of a partial
    return getattr(value, "__qualname__", None) or str(value)


class Setting(Action):
    """A value that is a pure function of the step: computed anew wherever a run begins or goes on, never kept."""

    of_model = False  # whether it changes what the model computes, also when it does not train
    of_training = False  # whether it changes which parameters train

    @abstractmethod
    def targets(self, stage: Stage) -> list[str]:
        """What it sets, in words; what two settings have in common they may not set at once. Asked once, before the
        first step. ArgumentError if there is none."""

    @abstractmethod
    def value(self, target: str, share: float) -> Any:
        """At so much of the way from its start (0) to its end (1)."""

    @abstractmethod
    def set(self, stage: Stage, target: str, value: Any) -> None:
        """Make it so; called when it changes, before the step in which it is so."""

    def at_rest(self, target: str) -> Any:
        """Where it does not hold."""
        return self.value(target, 0.0)


class Event(Action):
    """Something that happens after a step, on all workers after the same."""

    last = False  # whether it comes behind the others of its step

    @abstractmethod
    def happen(self, stage: Stage) -> str | None:
        """A few words on what came of it, or None."""

    def check(self, stage: Stage) -> None:
        """ArgumentError, before the first step, for what it could not do."""

    def over(self, trainer: Any) -> None:
        """The fit is over."""

    def state(self) -> dict[str, Any]:
        """What a checkpoint has to keep of what happened; plain values and tensors."""
        return {}

    def happened(self, stage: Stage, state: dict[str, Any]) -> None:
        """A run goes on in which it has happened, perhaps several times, and which kept its `state`."""


def between(start: float, end: float, share: float) -> float:
    """`start` at 0 and `end` at 1, exactly."""
    return end if share >= 1.0 else start + (end - start) * share
