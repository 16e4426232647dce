"""Events: a checkpoint by name, an evaluation, what the task has to show, pruning, the end, anything of yours."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ticks.arguments import ArgumentError
from ticks.arguments import share as shares
from ticks.models.changes.prune import mask, mask_of, prunable, smallest, stay_pruned, zero
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
        path = Path(folder).expanduser() / f"{self.name}-{stage.begin + stage.step:08d}.ckpt"
        trainer.save_checkpoint(path)
        return str(path)


class Evaluate(Event):
    """All of the validation data are measured, and the numbers logged."""

    def __init__(self) -> None:
        self._before: Any = None

    def check(self, stage: Stage) -> None:
        trainer = stage.trainer
        if trainer.limit_val_batches == 0 or (stage.given is None and not trainer.enable_validation):
            raise ArgumentError("_target_", type(self).__name__, "is of no use: there are no validation data")
        self._before = None

    def happen(self, stage: Stage) -> None:
        trainer = stage.trainer
        before = trainer.val_check_batch, trainer.check_val_every_n_epoch
        if before != (1, None):  # by another one of this step
            self._before = before  # so that Lightning measures behind this step, in whatever epoch it is
            trainer.val_check_batch, trainer.check_val_every_n_epoch = 1, None

    def as_before(self, trainer: Any) -> None:
        """Lightning measures as often as it did."""
        if self._before is not None:
            trainer.val_check_batch, trainer.check_val_every_n_epoch = self._before
            self._before = None


class Show(Event):
    """What the task has to show of the data, by the model that all workers agree on: a text or a picture."""

    def __init__(self, *, directory: str | None = None) -> None:
        self.directory = directory

    def happen(self, stage: Stage) -> str | None:
        trainer, module = stage.trainer, stage.module
        agreed = getattr(trainer.strategy, "agreed_model", nullcontext)
        trained = {part: part.training for part in module.modules()}  # some may not, in a module that does
        with agreed():
            module.eval()
            shown = module.show(trainer.datamodule) if trainer.is_global_zero and hasattr(module, "show") else None
            for part, was_training in trained.items():
                part.training = was_training
        if shown is None:
            return None
        if not hasattr(shown, "savefig"):
            stage.say(str(shown))
            return str(shown)
        path = (
            Path(self.directory or trainer.default_root_dir).expanduser() / f"shown-{stage.begin + stage.step:08d}.png"
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        shown.savefig(path, dpi=150)
        return str(path)


class Prune(Event):
    """The `share` of the model's weights in linear maps that is the nearest to zero, in the model that all workers
    agree on, is zero from now on (arXiv 1506.02626; little by little: 1710.01878)."""

    def __init__(self, *, share: float) -> None:
        shares(share=share)
        self.share = share
        self._zero: Callable[[], None] | None = None
        self._maps: list[Any] = []

    def check(self, stage: Stage) -> None:
        prunable(self._model(stage))

    @staticmethod
    def _model(stage: Stage) -> Any:
        return getattr(stage.module, "model", stage.module)

    def happen(self, stage: Stage) -> str:
        maps = prunable(self._model(stage))
        with getattr(stage.trainer.strategy, "agreed_model", nullcontext)():
            kept = smallest(maps, self.share)
        self._stay(stage, maps, kept)
        return f"{self.share:g} of {sum(one.numel() for one in kept):,} weights"

    def state(self) -> dict[str, Any]:
        """Which weights stay, eight of them in a byte."""
        if not self._maps:
            return {}
        return {"kept": [torch.from_numpy(np.packbits(mask_of(one).cpu().numpy())) for one in self._maps]}

    def happened(self, stage: Stage, state: dict[str, Any]) -> None:
        maps = prunable(self._model(stage))
        kept = []
        for one, packed in zip(maps, state["kept"], strict=True):
            bits = np.unpackbits(packed.numpy(), count=one.weight.numel()).astype(bool)
            kept.append(torch.from_numpy(bits).view(one.weight.shape).to(one.weight.device))
        self._stay(stage, maps, kept)

    def _stay(self, stage: Stage, maps: list[Any], kept: list[Any]) -> None:
        strategy = stage.trainer.strategy
        mask(maps, kept)
        if self._zero is None:  # what is pruned later is masked in the same maps
            self._zero, self._maps = (lambda: zero(maps)), maps
            for optimizer in stage.optimizers:
                stay_pruned(self._model(stage), optimizer)
            getattr(strategy, "constraints", []).append(self._zero)  # a rule's momentum moves them, too
        getattr(strategy, "everywhere", lambda change: change())(self._zero)

    def over(self, trainer: Any) -> None:
        if self._zero in (constraints := getattr(trainer.strategy, "constraints", [])):
            constraints.remove(self._zero)
        self._zero = None


class Stop(Event):
    """Training ends, as it does at its last step."""

    last = True

    def check(self, stage: Stage) -> None:
        loop = stage.trainer.fit_loop
        if least := [f"{name}={getattr(loop, name)}" for name in ("min_steps", "min_epochs") if getattr(loop, name)]:
            raise ArgumentError("_target_", type(self).__name__, f"cannot be: {least[0]} lets training go on")

    def happen(self, stage: Stage) -> None:
        together = getattr(stage.trainer.strategy, "stop_together", None)
        if together is not None:
            together()
        stage.trainer.should_stop = True

    def happened(self, stage: Stage, state: dict[str, Any]) -> None:
        self.happen(stage)


class Run(Event):
    """`call(trainer, module)`, on every worker."""

    def __init__(self, call: Callable[[Any, Any], Any]) -> None:
        if not callable(call):
            raise ArgumentError("call", call, "must be callable with the trainer and the module")
        self.call = call

    def happen(self, stage: Stage) -> str | None:
        said = self.call(stage.trainer, stage.module)
        return None if said is None else str(said)
