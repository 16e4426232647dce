"""Validations inside training: one is long, so a stop leaves it where it is, on every worker alike.

A stop is agreed for a batch of it (see shutdown.py). Who has had the last batch of a loader waits for the others before
numbers are exchanged: either all go on from there, or one that has not comes to leave, and all do.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ProgressBar, ThroughputMonitor, Timer
from lightning.pytorch.utilities.model_helpers import is_overridden

from ticks.strategy import checkpoint as files
from ticks.strategy import meeting
from ticks.strategy.lightning import ValidationLeft, is_in_a_step
from ticks.strategy.shutdown import Heartbeat

HARMLESS = (ProgressBar, Timer, ThroughputMonitor)  # what they begin with a validation needs no end


class Validations:
    """Those of one fit, on one worker. `name` is the fit's, the same on all of its workers."""

    def __init__(self, name: str, world_size: int) -> None:
        self.name = name
        self.world_size = world_size
        self.random_state: dict[str, Any] | None = None  # in one: as it was before
        self.can_leave = False  # is in one that can be left
        self._number = 0
        self._batches = self._loaders = 0  # done, of the current one

    @contextmanager
    def inside(self, *, can_leave: bool, device: torch.device) -> Iterator[None]:
        """In the block is one; it gives the random generators back as they were."""
        self.random_state = files.random_state(device)
        self.can_leave = can_leave
        self._number += 1
        self._batches = self._loaders = 0
        try:
            yield
        finally:
            self.can_leave = False
            files.set_random_state(self.random_state, device)
            self.random_state = None

    def begin_batch(self, heartbeat: Heartbeat | None, step: int) -> None:
        """ValidationLeft if all leave before this batch of the validation behind `step`."""
        if not self.can_leave or heartbeat is None:
            return
        if heartbeat.stop_validating(step, self._batches) is not None:
            if self.world_size > 1:
                self._end_of_loader().set("then", "leave")
            raise ValidationLeft
        self._batches += 1

    def end_loader(self, seconds: float) -> None:
        """Either every worker goes on from here, or everybody leaves: ValidationLeft. RuntimeError if one does not come
        for so many seconds."""
        if not self.can_leave or self.world_size == 1:
            return
        store = self._end_of_loader()
        self._loaders += 1
        if store.add("through", 1) == self.world_size:
            store.set("then", "go on")
        if not meeting.all_there(store, ["then"], seconds):
            raise RuntimeError("not every worker came to the end of a validation")
        if store.get("then") == b"leave":
            raise ValidationLeft

    def _end_of_loader(self) -> Any:
        """Where workers that have had its last batch read what to do: once all have, or one that has not leaves."""
        return meeting.place(f"validation/{self.name}/{self._number}/{self._loaders}")


def can_be_left(trainer: Trainer, module: LightningModule) -> bool:
    """Whether a resumed run begins the one that begins now anew, and nothing is left behind half done.

    Not the one behind the last step, nor one in the middle of a step, whose gradients would be lost; nor where
    something that is begun before a validation is ended after it.
    """
    is_last = 0 <= trainer.max_steps <= trainer.global_step
    return not is_last and not is_in_a_step(trainer) and _leaves_nothing_behind(trainer, module)


def _leaves_nothing_behind(trainer: Any, module: LightningModule) -> bool:
    callbacks = [callback for callback in trainer.callbacks if not isinstance(callback, HARMLESS)]
    starts = ("on_validation_start", "on_validation_epoch_start")
    acted_upon = [(module, hook) for hook in (*starts, "on_validation_model_eval", "on_validation_model_train")]
    acted_upon += [(callback, hook) for callback in callbacks for hook in starts]
    return not any(_acts(owner, hook) for owner, hook in acted_upon)


def _acts(owner: Any, hook: str) -> bool:
    """Whether a module or a callback does something in a hook that has to be undone after the validation."""
    if getattr(owner, "validation_can_be_left", False):
        return False
    try:
        return is_overridden(hook, owner, LightningModule if isinstance(owner, LightningModule) else Callback)
    except AttributeError:  # LambdaCallback's hooks need not be functions
        return True
