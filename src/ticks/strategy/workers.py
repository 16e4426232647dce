"""What every strategy here shares, whatever its workers say to each other: steps, stopping, exact resume."""

import logging
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn
from uuid import uuid4

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from torch.optim import Optimizer

from ticks.strategy import checkpoint as files
from ticks.strategy.launch import WorkerLauncher
from ticks.strategy.ledger import Ledger
from ticks.strategy.lightning import Numbers, follow_worker_0, quieten, times_itself
from ticks.strategy.meeting import Meetings
from ticks.strategy.process_group import LaunchedStrategy
from ticks.strategy.refusals import Refused
from ticks.strategy.shutdown import Heartbeat, Stopped
from ticks.strategy.validation import Validations, can_be_left

log = logging.getLogger(__name__)


class WorkerStrategy(LaunchedStrategy):
    """A strategy whose workers stop together, and whose checkpoints hold what each of them knows.

    Takes what `LaunchedStrategy` takes.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(checkpoint_io=kwargs.pop("checkpoint_io", None) or files.AtomicCheckpointIO(), **kwargs)
        self.step = 0  # optimizer steps that every worker has attempted, counted over resumed runs
        self.ledger = Ledger()
        self.dropped: str | None = None  # what a resumed run could not take over
        self.is_training = False  # a stop is agreed between steps, and takes the time it takes
        self._heartbeat: Heartbeat | None = None
        self._worker_state: dict[str, Any] | None = None
        self._met_after: int | None = None  # the step at the end of an epoch

    # ---- start and end -------------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer) -> None:
        self._roll_call()
        self.refuse_what_talks(trainer)
        quieten(trainer, self)
        self._meetings = Meetings(self._fit_name, self.global_rank, self.world_size)
        self._validations = Validations(self._fit_name, self.world_size)
        self._met_after = None
        if self.world_size > 1:
            for callback in trainer.checkpoint_callbacks:
                follow_worker_0(callback, self.all_failed)
        super().setup(trainer)

    def _gather(self, thing: Any) -> list[Any]:
        self._meet_after_an_epoch()
        return super()._gather(thing)

    def check(self, module: LightningModule) -> None:
        """`Refused` for a module that does not fit, before any worker is started."""

    def check_training(self, trainer: Trainer, module: LightningModule) -> None:
        """`Refused` for what cannot be trained like this, but can be evaluated; before any worker is started."""

    def refuse_what_talks(self, trainer: Trainer) -> None:
        """`Refused` for Trainer options that exchange messages at every batch or by each worker's own clock."""
        if (what := times_itself(trainer)) is not None:
            raise Refused(what)

    def on_train_start(self) -> None:
        super().on_train_start()
        self.is_training = True
        if self._worker_state is not None:
            files.set_random_state(self._worker_state["random"], self.root_device)
            self._worker_state = None
        self._heartbeat = Heartbeat(
            self.global_rank, self.world_size, name=self._fit_name, seconds=self.heartbeat_seconds,
            hang_seconds=self.hang_seconds, state=lambda: (self.step, self.ledger.waiting), abort=self._abort,
        )  # fmt: skip
        self._heartbeat.start()

    def begin_anew(self) -> None:
        """The next fit, of another module perhaps, takes nothing over but steps and what was sent."""
        self._worker_state = None

    def on_train_end(self) -> None:
        super().on_train_end()
        mine = self._heartbeat.signum if self._heartbeat is not None else None
        self._end_heartbeat()
        if signums := [signum for signum in self._gather(mine) if signum is not None]:  # too late to stop between steps
            self._stop(signums[0])
        self.is_training = False

    def on_exception(self, exception: BaseException) -> None:
        self.is_training = False
        self._end_heartbeat()
        super().on_exception(exception)

    def _end_heartbeat(self) -> None:
        if self._heartbeat is not None:
            self._heartbeat.close()
            self._heartbeat = None

    # ---- meeting outside of ticks --------------------------------------------------------------------------------

    def meet(self, what: str) -> None:
        """All workers are at this point of training, after the same step; OutOfStep if they are elsewhere.

        Through the store: here (DDP) a worker may wait for this one in torch's own code. Who is not there within
        `hang_seconds` is told by RuntimeError.
        """
        self._meetings.meet(f"{what} after step {self.step}", self.hang_seconds, note=self._note())

    def _note(self) -> str:
        trainer = self.lightning_module.trainer if self.lightning_module is not None else None
        return ", where its data ended" if trainer is not None and trainer.is_last_batch else ""

    def _meet_after_an_epoch(self) -> None:
        """Before the first word that is said between two epochs, or after the last: another worker's data may end
        elsewhere. Epochs of any length do where nothing is said there, for ticks count steps."""
        if not self.is_training or self.world_size == 1 or self.lightning_module is None:
            return
        epochs: Any = self.lightning_module.trainer.fit_loop.epoch_progress.current
        if epochs.ready and epochs.processed == epochs.ready and self._met_after != self.step:
            self._met_after = self.step
            self.meet("the end of an epoch")

    def reduce(self, tensor: Any, *args: Any, **kwargs: Any) -> Any:
        self._meet_after_an_epoch()
        return super().reduce(tensor, *args, **kwargs)

    def all_gather(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        self._meet_after_an_epoch()
        return super().all_gather(*args, **kwargs)

    def broadcast(self, obj: Any, src: int = 0) -> Any:
        self._meet_after_an_epoch()
        return super().broadcast(obj, src)

    def barrier(self, *args: Any, **kwargs: Any) -> None:
        self._meet_after_an_epoch()
        super().barrier(*args, **kwargs)

    def lightning_module_state_dict(self) -> dict[str, Any]:
        if self.is_training:
            self.meet("a checkpoint")
        return self.agreed_state()

    def agreed_state(self) -> dict[str, Any]:
        """The module's state for a checkpoint; all workers call this at once."""
        return super().lightning_module_state_dict()

    # ---- steps ---------------------------------------------------------------------------------------------------

    def optimizer_step(self, optimizer: Optimizer, closure: Callable[[], Any], model: Any = None, **kwargs: Any) -> Any:
        output = super().optimizer_step(optimizer, closure, model, **kwargs)
        if self._steps_automatically:
            self._end_step()
        return output

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        if self._steps_automatically:
            return super().training_step(*args, **kwargs)
        stepped_before = self._manual_steps()
        output = super().training_step(*args, **kwargs)
        if self._manual_steps() > stepped_before:
            self._end_step()
        return output

    @property
    def _steps_automatically(self) -> bool:
        return self.lightning_module is not None and self.lightning_module.automatic_optimization

    def _manual_steps(self) -> int:
        assert self.lightning_module is not None
        return self.lightning_module.trainer.global_step

    def _end_step(self) -> None:
        """One step is over, on this worker."""
        self.step += 1

    @contextmanager
    def unmoved_random_state(self) -> Iterator[None]:
        """Give the random generators back as they were: measuring (a loader's seed alone) must not change training.

        Validation starts here: all workers are there.
        """
        self.meet("a validation")
        module = self.lightning_module
        assert module is not None
        with self._validations.inside(can_leave=can_be_left(module.trainer, module), device=self.root_device):
            yield

    def validation_step(self, *args: Any, **kwargs: Any) -> Any:
        self._validations.begin_batch(self._heartbeat, self.step)
        return super().validation_step(*args, **kwargs)

    def end_validation(self) -> None:
        self._validations.end_loader(self.timeout.total_seconds())

    def count_everybodys(self, numbers: Numbers) -> None:
        """Make of `numbers` what all workers have seen: a mean is one over all samples then, in double precision."""
        if self.world_size == 1:
            return
        everyones = self._gather(numbers.mine())
        for key in sorted(set().union(*everyones)):  # one worker may have had no such batch
            numbers.put(key, [theirs[key] for theirs in everyones if key in theirs], self.root_device)

    def stop_after_validation(self) -> NoReturn:
        assert self._heartbeat is not None
        self._stop(self._heartbeat.asked())

    # ---- stopping ------------------------------------------------------------------------------------------------

    def on_signal(self, signum: int) -> None:
        if self._heartbeat is None:
            raise Stopped(signum, self.step, None)
        if self._heartbeat.signum is not None and signum == signal.SIGINT:  # impatient: at once, without a checkpoint
            raise SystemExit(128 + signum)
        if self._heartbeat.signum is None:
            self._heartbeat.signum = signum

    def between_steps(self) -> None:
        if self._heartbeat is None or (signum := self._heartbeat.stop_now(self.step)) is None:
            return
        self._stop(signum)

    def _stop(self, signum: int) -> NoReturn:
        """Every worker does this after the same step."""
        path = self._stop_path()
        assert self.lightning_module is not None
        self.lightning_module.trainer.save_checkpoint(path)
        if isinstance(self.launcher, WorkerLauncher):
            self.launcher.expect_the_end()
        if self.worker_command is None and self.is_global_zero:  # in somebody's own script
            name = signal.Signals(signum).name
            print(
                f"ticks: stopped by {name} after step {self.step}; go on with fit(..., ckpt_path={path!r})", flush=True
            )
        raise Stopped(signum, self.step, path)

    def _stop_path(self) -> str:
        assert self.lightning_module is not None
        trainer = self.lightning_module.trainer
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint) and callback.dirpath:
                return f"{callback.dirpath}/stopped.ckpt"
        return f"{self.broadcast(trainer.default_root_dir)}/checkpoints/stopped.ckpt"

    def hold_early_stop(self) -> None:
        """Nothing to hold where workers meet at every step."""

    # ---- checkpoints ---------------------------------------------------------------------------------------------

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Write every worker's file, then worker 0 the checkpoint, where worker 0 wants it. CheckpointNotWritten, on
        all, if one could not."""
        token, filepath = self.broadcast((uuid4().hex[:12], str(filepath)))
        about = {"token": token, "world_size": self.world_size, "step": self.step, "fingerprint": self.fingerprint}
        checkpoint[files.KEY] = about | {"ledger": self.ledger.state_dict()}
        state = self._worker_state or self.worker_state()  # resumed at its end, training never began: still as it was
        self._together(lambda: files.save_worker(filepath, token, self.global_rank, state), filepath)
        self._together(
            lambda: super(WorkerStrategy, self).save_checkpoint(checkpoint, filepath, storage_options), filepath
        )
        if self.is_global_zero:
            files.drop_stale_workers(filepath, token)

    def remove_checkpoint(self, filepath: Any) -> None:
        super().remove_checkpoint(filepath)
        if self.is_global_zero:
            files.drop_workers(filepath)

    def all_failed(self, exception: BaseException) -> bool:
        """Whether every worker is in such an exception after this step: only then can they still talk, and save."""
        return self._meetings.all_fail(f"{type(exception).__name__} after step {self.step}")

    def _together(self, write: Callable[[], None], path: Any) -> None:
        files.check_written(self._gather(files.write_or_why_not(write, path, self.global_rank)))

    def worker_state(self) -> dict[str, Any]:
        """What only this worker knows. Worker 0's optimizers are in the `.ckpt` already."""
        optimizers = [] if self.is_global_zero else [self.optimizer_state(o) for o in self.optimizers]
        return {
            "kind": self.kind(),
            "step": self.step,
            "random": self._validations.random_state or files.random_state(self.root_device),
            "optimizers": optimizers,
            "ledger": self.ledger.state_dict(),
        }

    def kind(self) -> str:
        """What a worker's own state must have been written by to be taken back."""
        return type(self).__name__

    def load_worker_state(self, state: dict[str, Any]) -> None:
        """Take back what `worker_state` gave; random states follow when training starts."""
        self.ledger.load_state_dict(state["ledger"])
        for optimizer, own in zip(self.optimizers, state["optimizers"], strict=False):
            optimizer.load_state_dict(own)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        checkpoint = super().load_checkpoint(checkpoint_path, weights_only=weights_only)
        assert self.lightning_module is not None
        if self.lightning_module.trainer.state.fn == TrainerFn.FITTING:
            self._worker_state, self.dropped = files.load_worker(
                checkpoint_path, checkpoint, self.global_rank, self.world_size, self.kind()
            )
            if self.dropped and self.is_global_zero:
                log.warning("%s: %s", checkpoint_path, self.dropped)
        return checkpoint

    def load_optimizer_state_dict(self, checkpoint: Any) -> None:
        super().load_optimizer_state_dict(checkpoint)
        self.step = checkpoint[files.KEY]["step"] if files.KEY in checkpoint else checkpoint["global_step"]
        if self._worker_state is not None:
            self.load_worker_state(self._worker_state)
        elif files.KEY in checkpoint:
            self.ledger.load_state_dict(checkpoint[files.KEY]["ledger"])
