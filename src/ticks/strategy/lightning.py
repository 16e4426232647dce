"""Every private name of Lightning that this project touches, so that a new Lightning has one place to break.

What is missing is told before anything can go wrong: when an `OpenDDPStrategy` or `OpenWandbLogger` is made, and at the
start of training, by `quieten` and `follow_worker_0`.
"""

import signal
import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any, NoReturn, Protocol

import torch
from lightning.fabric.utilities.cloud_io import _is_local_file_protocol as is_local_path
from lightning.fabric.utilities.distributed import _set_num_threads_if_needed as set_num_threads
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.loops.evaluation_loop import _EvaluationLoop
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher as SubprocessLauncher
from lightning.pytorch.strategies.launchers.subprocess_script import _basic_subprocess_cmd as script_command
from lightning.pytorch.strategies.launchers.subprocess_script import _hydra_subprocess_cmd as hydra_command
from lightning.pytorch.trainer.connectors.logger_connector.result import _Metadata, _ResultMetric, _Sync
from torch.distributed.constants import default_pg_timeout

from ticks.strategy.exits import STOPS

__all__ = [
    "Numbers",
    "OpenDDPStrategy",
    "OpenWandbLogger",
    "SubprocessLauncher",
    "ValidationLeft",
    "follow_worker_0",
    "hydra_command",
    "is_in_a_step",
    "is_local_path",
    "quieten",
    "script_command",
    "set_num_threads",
    "times_itself",
    "validate_now",
]


def _refuse_unknown(needed: Mapping[Any, tuple[str, ...]]) -> None:
    """RuntimeError if something has not the names that it needs."""
    if missing := [name for owner, names in needed.items() for name in names if not hasattr(owner, name)]:
        raise RuntimeError(f"this Lightning is not known here: {', '.join(missing)} changed; see {__name__}")


class OpenDDPStrategy(DDPStrategy):
    """Lightning's DDPStrategy, with names for what it hides. `launcher` it has itself."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        overridden = ("_configure_launcher", "_register_ddp_hooks", "_get_process_group_backend")
        _refuse_unknown({DDPStrategy: overridden, self: ("_launcher", "_timeout", "_layer_sync")})

    def make_launcher(self) -> SubprocessLauncher:
        """What starts the other workers."""
        raise NotImplementedError

    def _configure_launcher(self) -> None:
        self._launcher = self.make_launcher()

    def register_hooks(self) -> None:
        """On the wrapped model, where there is one."""
        super()._register_ddp_hooks()

    def _register_ddp_hooks(self) -> None:
        self.register_hooks()

    @property
    def backend(self) -> str:
        """Of the process group: gloo, nccl, ..."""
        return self._get_process_group_backend()

    @property
    def timeout(self) -> timedelta:
        """How long a collective may take."""
        return self._timeout or default_pg_timeout

    @property
    def syncs_batchnorm(self) -> bool:
        """Whether the Trainer was given sync_batchnorm."""
        return self._layer_sync is not None


class OpenWandbLogger(WandbLogger):
    """Lightning's WandbLogger, with names for what it hides."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        _refuse_unknown({self: ("_experiment", "_offline", "_log_model", "_wandb_init")})

    @property
    def has_begun(self) -> bool:
        """Whether it has a run."""
        return self._experiment is not None

    @property
    def is_offline(self) -> bool:
        """Whether its run is, or will be."""
        return self._offline

    @property
    def wandb_arguments(self) -> dict[str, Any]:
        """What `wandb.init` will be called with."""
        return self._wandb_init

    def go_offline(self) -> None:
        """A run that has not begun will be offline, and upload no checkpoints."""
        self._offline, self._log_model = True, False
        self._wandb_init["mode"] = "offline"


class ValidationLeft(Exception):
    """Training stops after the step that this validation follows."""


class StopsBetweenSteps(Protocol):
    """What the loops ask of a strategy."""

    def between_steps(self) -> None:
        """Called before every batch that starts a step; may raise `Stopped`."""

    def hold_early_stop(self) -> None:
        """Called after every batch, before Lightning acts on `trainer.should_stop`."""

    def on_signal(self, signum: int) -> None:
        """Called in a signal handler."""

    def unmoved_random_state(self) -> AbstractContextManager[None]:
        """Entered for each validation inside training."""

    def end_validation(self) -> None:
        """Called when this worker has had its last batch of a loader; may raise `ValidationLeft`."""

    def stop_after_validation(self) -> NoReturn:
        """Called when all leave one; raises `Stopped`."""

    def count_everybodys(self, numbers: "Numbers") -> None:
        """Make plain numbers that were logged in an evaluation those of every worker's samples."""


class _EpochLoop(_TrainingEpochLoop):
    """Lightning's epoch loop without its broadcast before every batch."""

    _ticks_strategy: StopsBetweenSteps

    def _broadcast_sigterm_tensor(self) -> None:
        """Nothing: a stop is agreed by the heartbeat."""

    def on_advance_end(self, data_fetcher: Any) -> None:
        self._ticks_strategy.hold_early_stop()
        if self._should_check_val_fx(data_fetcher):
            try:
                with self._ticks_strategy.unmoved_random_state():
                    super().on_advance_end(data_fetcher)
            except ValidationLeft:
                _begin_anew(self.val_loop.batch_progress)
                self.val_loop._module_mode.restore(self.trainer.lightning_module)
                self.trainer.training = True
                self._ticks_strategy.stop_after_validation()
        else:
            super().on_advance_end(data_fetcher)

    @property
    def done(self) -> bool:
        if not super().done:
            self._ticks_strategy.hold_early_stop()  # validation may have asked for it
            if not self._should_accumulate():
                self._ticks_strategy.between_steps()
        return super().done


class _TestLoop(_EvaluationLoop):
    """Lightning's evaluation loop, in which plain numbers count every worker's samples, as metrics do."""

    _ticks_strategy: StopsBetweenSteps

    def _store_dataloader_outputs(self) -> None:
        self._ticks_strategy.count_everybodys(Numbers(self.trainer))
        super()._store_dataloader_outputs()


class _ValidationLoop(_TestLoop):
    """Lightning's validation loop in training, whose workers agree that all have come to the end of a loader."""

    def reset(self) -> None:
        if self.restarting:  # Lightning repairs `current` alone, and every later checkpoint would look like this one
            self.batch_progress.total.reset_on_restart()
        super().reset()

    def _store_dataloader_outputs(self) -> None:
        self._ticks_strategy.end_validation()
        super()._store_dataloader_outputs()


def _begin_anew(progress: Any) -> None:
    """A validation that was left in the middle: Lightning would go on behind the batches that it has seen."""
    seen = progress.current.completed
    for count in (progress.total, progress.current):
        count.completed -= seen
        count.processed = count.completed
        count.started = count.ready = count.completed + 1  # as Lightning knows one that has not ended


def is_in_a_step(trainer: Trainer) -> bool:
    """Whether gradients are being accumulated for a step that is not over."""
    return trainer.fit_loop.epoch_loop._should_accumulate()


def quieten(trainer: Trainer, strategy: StopsBetweenSteps) -> None:
    """Make `trainer` stop through `strategy`: no broadcast per batch, no collective in a signal handler."""
    loop: Any = trainer.fit_loop.epoch_loop
    validation: Any = loop.val_loop
    others: list[Any] = [trainer.validate_loop, trainer.test_loop]
    connector: Any = trainer._signal_connector
    needed: dict[Any, tuple[str, ...]] = {
        loop: ("_broadcast_sigterm_tensor", "on_advance_end", "_should_accumulate", "_should_check_val_fx", "done")
    }
    for evaluation in (validation, *others):
        needed[evaluation] = ("_store_dataloader_outputs", "_module_mode", "batch_progress")
    needed[connector] = ("register_signal_handlers", "_original_handlers", "_get_current_signal_handlers")
    _refuse_unknown(needed)
    loop.__class__ = _EpochLoop
    loop._ticks_strategy = strategy
    validation.__class__ = _ValidationLoop
    for other in others:
        other.__class__ = _TestLoop
    for evaluation in (validation, *others):
        evaluation._ticks_strategy = strategy

    def register() -> None:
        connector._original_handlers = connector._get_current_signal_handlers()
        if threading.current_thread() is threading.main_thread():
            for signum in STOPS:
                if signal.getsignal(signum) is not signal.SIG_IGN:  # as under nohup
                    signal.signal(signum, lambda signum, frame: strategy.on_signal(signum))

    connector.register_signal_handlers = register


def follow_worker_0(callback: Checkpoint, all_failed: Callable[[BaseException], bool]) -> None:
    """Make a checkpoint callback choose and name by worker 0's metrics: a metric may differ between workers, and who
    chooses differently waits for ever. An exception is saved only if `all_failed` by it.

    Worker 0's metrics travel whenever the callback looks at them: at validations and where it is to save.
    """
    kind: Any = type(callback)

    def on_exception(trainer: Trainer, module: Any, exception: BaseException) -> None:
        if getattr(callback, "save_on_exception", True) and all_failed(exception):
            kind.on_exception(callback, trainer, module, exception)

    def monitor_candidates(trainer: Trainer) -> dict[str, Any]:
        own = kind._monitor_candidates(callback, trainer)
        return trainer.strategy.broadcast({name: value.cpu() for name, value in own.items()})

    patched: Any = callback
    patched.on_exception = on_exception
    if isinstance(callback, ModelCheckpoint):
        _refuse_unknown({kind: ("_monitor_candidates",)})
        patched._monitor_candidates = monitor_candidates


def times_itself(trainer: Trainer) -> str | None:
    """What of a trainer goes by each worker's own clock, and what to give instead."""
    for callback in trainer.checkpoint_callbacks:
        if getattr(callback, "_train_time_interval", None) is not None:
            return "ModelCheckpoint(train_time_interval=...) talks at every batch: use every_n_train_steps"
    if getattr(trainer, "_val_check_time_interval", None) is not None:
        return "val_check_interval as a time differs between workers: give a number of batches"
    return None


class Numbers:
    """What was logged in the steps of this evaluation as plain numbers, and is not exchanged by Lightning."""

    def __init__(self, trainer: Trainer) -> None:
        self.results: Any = trainer._results
        self.reduce = trainer.strategy.reduce

    def mine(self) -> dict[str, dict[str, Any]]:
        """This worker's by key: how it is reduced, the value so far, and the samples behind it."""
        found: dict[str, dict[str, Any]] = {}
        for key, result in self.results.valid_items() if self.results is not None else ():  # of this loader
            meta = result.meta
            if result.is_tensor and meta.on_epoch and not meta.sync.should and not meta.sync.rank_zero_only:
                samples = float(result.cumulated_batch_size) if meta.is_mean_reduction else 0.0
                said = {"fx": meta.fx, "name": meta.name, "dataloader_idx": meta.dataloader_idx}
                said |= {"prog_bar": meta.prog_bar, "logger": meta.logger}
                found[key] = {"kind": meta.reduce_fx.__name__, "value": float(result.value), "samples": samples,
                              "said": said}  # fmt: skip
        return found

    def put(self, key: str, everyones: list[dict[str, Any]], device: torch.device) -> None:
        """Replace a number by what all workers have seen, on one that has not logged it too."""
        kind, values = everyones[0]["kind"], [theirs["value"] for theirs in everyones]
        if key not in self.results:
            meta = _Metadata(reduce_fx=kind, **everyones[0]["said"])  # type: ignore[arg-type]
            meta.sync = _Sync(fn=self.reduce)
            self.results[key] = _ResultMetric(meta, is_tensor=True).to(device)
            self.results[key].has_reset = False
            self.results[key].update(torch.zeros((), device=device), 0)
        whole = {"max": max, "min": min}.get(kind, sum)(values)
        result = self.results[key]
        result.value = torch.tensor(whole, dtype=torch.float64, device=device)
        if kind == "mean":
            samples = sum(theirs["samples"] for theirs in everyones)
            result.cumulated_batch_size = torch.tensor(samples, dtype=torch.float64, device=device)


def validate_now(trainer: Trainer) -> None:
    """All of the validation data are measured, between two steps of training or before the first."""
    trainer.validating = True
    trainer.fit_loop.epoch_loop.val_loop.run()
    trainer.training = True
