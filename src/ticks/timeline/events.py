"""Events: a checkpoint by name, an evaluation, what the task has to show, the end, anything of yours."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from ticks.arguments import ArgumentError
from ticks.timeline.action import Event, Stage


class Save(Event):
    """A checkpoint that stays: `name`-STEP.ckpt in `directory` (None: where the others are)."""

    last = True

    def __init__(self, *, name: str = "saved", directory: str | None = None) -> None:
        if not name or "/" in name:
            raise ArgumentError("name", name, "must be a part of a file's name")
        self.name, self.directory = name, directory

    def happen(self, stage: Stage) -> str:
        trainer = stage.trainer
        others = [callback.dirpath for callback in trainer.checkpoint_callbacks if getattr(callback, "dirpath", None)]
        folder = self.directory or (others[0] if others else f"{trainer.default_root_dir}/checkpoints")
        path = Path(folder).expanduser() / f"{self.name}-{stage.step:08d}.ckpt"
        trainer.save_checkpoint(path)
        return str(path)


class Evaluate(Event):
    """All of the validation data are measured, and the numbers logged."""

    def __init__(self) -> None:
        self._before: Any = None

    def happen(self, stage: Stage) -> None:
        trainer = stage.trainer
        if trainer.val_check_batch != 1:
            self._before = trainer.val_check_batch
            trainer.val_check_batch = 1  # so that Lightning measures behind this step

    def over(self, trainer: Any) -> None:
        """Lightning measures as often as it did."""
        if self._before is not None:
            trainer.val_check_batch, self._before = self._before, None


class Show(Event):
    """What the task has to show of the data, by the model that all workers agree on: a text or a picture."""

    def __init__(self, *, directory: str | None = None) -> None:
        self.directory = directory

    def happen(self, stage: Stage) -> str | None:
        trainer, module = stage.trainer, stage.module
        agreed = getattr(trainer.strategy, "agreed_model", nullcontext)
        was_training = module.training
        with agreed():
            module.eval()
            shown = module.show(trainer.datamodule) if trainer.is_global_zero and hasattr(module, "show") else None
            module.train(was_training)
        if shown is None:
            return None
        if not hasattr(shown, "savefig"):
            stage.say(str(shown))
            return str(shown)
        path = Path(self.directory or trainer.default_root_dir).expanduser() / f"shown-{stage.step:08d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        shown.savefig(path, dpi=150)
        return str(path)


class Stop(Event):
    """Training ends, as it does at its last step."""

    last = True

    def happen(self, stage: Stage) -> None:
        together = getattr(stage.trainer.strategy, "stop_together", None)
        if together is not None:
            together()
        stage.trainer.should_stop = True


class Run(Event):
    """`call(trainer, module)`, on every worker."""

    def __init__(self, call: Callable[[Any, Any], Any]) -> None:
        if not callable(call):
            raise ArgumentError("call", call, "must be callable with the trainer and the module")
        self.call = call

    def happen(self, stage: Stage) -> str | None:
        said = self.call(stage.trainer, stage.module)
        return None if said is None else str(said)
