"""What every strategy here shares, whatever its workers say to each other: launching, stopping, exact resume."""

import logging
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NoReturn
from uuid import uuid4

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, ProgressBar, ThroughputMonitor, Timer
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch.distributed.constants import default_pg_timeout
from torch.optim import Optimizer

from ticks.arguments import above
from ticks.strategy import checkpoint as files
from ticks.strategy import meeting
from ticks.strategy.environment import WorkerEnvironment, cluster_environment
from ticks.strategy.launch import WorkerLauncher
from ticks.strategy.ledger import Ledger
from ticks.strategy.lightning import Numbers, ValidationLeft, follow_worker_0, is_in_a_step, quieten, times_itself
from ticks.strategy.parent import end_with_parent
from ticks.strategy.shutdown import Heartbeat, Presence, Stopped, leave
from ticks.strategy.wire import out_of_step

log = logging.getLogger(__name__)
A_YEAR = 31_536_000  # seconds
START_UP = timedelta(seconds=50)  # what workers that we start may take at least to get here: they import torch
HOSTED = timedelta(seconds=10)  # what a store may take to answer at least that worker 0 hosted before it started us

HARMLESS = (ProgressBar, Timer, ThroughputMonitor)  # what they begin with a validation needs no end
FAILURE_SECONDS = 5.0  # for the others to fail as well, where an exception is to be saved


def _acts(owner: Any, hook: str) -> bool:
    """Whether a module or a callback does something in a hook that has to be undone after the validation."""
    if getattr(owner, "validation_can_be_left", False):
        return False
    try:
        return is_overridden(hook, owner, LightningModule if isinstance(owner, LightningModule) else Callback)
    except AttributeError:  # LambdaCallback's hooks need not be functions
        return True


class Refused(ValueError):
    """A combination that would not do what it says; raised on every worker before training starts."""


class CheckpointNotWritten(OSError):
    """A worker could not write its part of a checkpoint; raised on every worker."""


class WorkerStrategy(DDPStrategy):
    """DDPStrategy with a launcher, a shutdown and checkpoints that do what they should.

    `worker_command` starts workers 1 .. n - 1 (default: this script again). `fingerprint` is compared over the workers
    at the start: give a digest of the configuration. `heartbeat_seconds` is how often workers look for a stop request,
    `hang_seconds` how long one may be silent, or be in one step while others wait for it in a tick, before everything
    is stopped.
    """

    def __init__(
        self,
        *,
        heartbeat_seconds: float = 1.0,
        hang_seconds: float = 300.0,
        fingerprint: str = "",
        worker_command: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        above(0, most=A_YEAR, of=" seconds", heartbeat_seconds=heartbeat_seconds, hang_seconds=hang_seconds)
        end_with_parent()
        super().__init__(
            checkpoint_io=kwargs.pop("checkpoint_io", None) or files.AtomicCheckpointIO(),
            cluster_environment=kwargs.pop("cluster_environment", None) or cluster_environment(),
            **kwargs,
        )
        self.heartbeat_seconds = heartbeat_seconds
        self.hang_seconds = hang_seconds
        self.fingerprint = fingerprint
        self.worker_command = worker_command
        self.step = 0  # optimizer steps that every worker has attempted, counted over resumed runs
        self.ledger = Ledger()
        self.dropped: str | None = None  # what a resumed run could not take over
        self.is_training = False  # a stop is agreed between steps, and takes the time it takes
        self._heartbeat: Heartbeat | None = None
        self._presence: Presence | None = None
        self._fit_name = ""
        self._meetings = 0  # of this fit
        self._met_after: int | None = None  # the step at the end of an epoch
        self._all_failed: bool | None = None  # once this fit, validate or test has failed
        self._worker_state: dict[str, Any] | None = None
        self._random_before_validation: dict[str, Any] | None = None
        self._can_leave_validation = False  # is in one, in training, that can be left
        self._validations = 0  # of this fit
        self._validated = self._loaders_ended = 0  # batches and loaders of the last one

    # ---- start and end -------------------------------------------------------------------------------------------

    def _configure_launcher(self) -> None:
        assert self.cluster_environment is not None
        self._launcher = WorkerLauncher(
            self.cluster_environment,
            self.num_processes,
            self.num_nodes,
            command=self.worker_command,
            patience=self._timeout or default_pg_timeout,
        )

    def set_world_ranks(self) -> None:
        if isinstance(self.cluster_environment, WorkerEnvironment):
            self.cluster_environment.set_num_nodes(self.num_nodes)
        super().set_world_ranks()

    def setup_distributed(self) -> None:
        """The process group, where nobody waits inside C++ for somebody who does not come."""
        self.set_world_ranks()
        if dist.is_initialized() and dist.get_world_size() == 1 != self.world_size:  # of an earlier Trainer
            dist.destroy_process_group()
        if not dist.is_initialized() and isinstance(self.cluster_environment, WorkerEnvironment):
            self._meet(self.cluster_environment)
        super().setup_distributed()

    def _meet(self, environment: WorkerEnvironment) -> None:
        launcher, rank, timeout = self._launcher, self.global_rank, self._timeout or default_pg_timeout
        assert isinstance(launcher, WorkerLauncher)
        if self.world_size == 1:
            self._make_process_group(dist.HashStore(), timeout)
            return
        on_one_machine = environment.identity.launcher == "worker" and self.num_nodes == 1
        patience = max(START_UP, timedelta(seconds=self.hang_seconds)) if on_one_machine else timeout
        address, port = environment.main_address, environment.main_port
        if rank == 0:
            store = launcher.store or meeting.host(port, timeout)
        else:
            there_already = max(HOSTED, timedelta(seconds=self.hang_seconds)) if on_one_machine else timeout
            store = meeting.join(address, port, there_already, who=f"worker {rank}")
        store.set_timeout(timeout)
        if rank != 0:
            self._be_present("start", store)
        by_hand = ", as LOCAL_RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT, RANK or NODE_RANK in the environment say"
        how = f"at {address}:{port}{by_hand if environment.identity.launcher == 'hand' else ''}"
        meeting.gather(store, rank, self.world_size, patience, how=how, check=launcher.check)
        if rank == 0:  # they are here, and have said so
            self._be_present("start", store)
        self._make_process_group(store, timeout)

    def _make_process_group(self, store: dist.Store, timeout: timedelta) -> None:
        dist.init_process_group(
            self._get_process_group_backend(),
            store=dist.PrefixStore("default_pg", store),
            rank=self.global_rank,
            world_size=self.world_size,
            timeout=timeout,
            device_id=self.root_device if self.root_device.type != "cpu" else None,
        )

    def setup(self, trainer: Trainer) -> None:
        self._compare_fingerprints()
        self._be_present(self._fit_name)
        self.refuse_what_talks(trainer)
        quieten(trainer, self)
        self._meetings, self._validations, self._met_after, self._all_failed = 0, 0, None, None
        if self.world_size > 1:
            for callback in trainer.checkpoint_callbacks:
                follow_worker_0(callback, self.all_failed)
        super().setup(trainer)

    def _be_present(self, name: str, store: Any = None) -> None:
        if self._presence is not None:
            self._presence.close()
        if self.world_size > 1:
            self._presence = Presence(
                self.global_rank,
                self.world_size,
                name=name,
                seconds=self.heartbeat_seconds,
                hang_seconds=self.hang_seconds,
                abort=self._abort,
                store=store.clone() if hasattr(store, "clone") else store,
            )

    def teardown(self) -> None:
        if self._presence is not None:
            self._presence.close()
            self._presence = None
        super().teardown()

    def _compare_fingerprints(self) -> None:
        """`Refused` unless all workers were started with the same configuration."""
        mine = f"{self.fingerprint} {self.describe()}"
        gathered = self._gather((mine, uuid4().hex))
        everyones, self._fit_name = [theirs for theirs, _ in gathered], gathered[0][1]
        different = [rank for rank, theirs in enumerate(everyones) if theirs != everyones[0]]
        if different:
            raise Refused(
                f"workers {different} were started with another configuration than worker 0"
                f" ({everyones[different[0]]!r} instead of {everyones[0]!r})"
            )

    def _gather(self, thing: Any) -> list[Any]:
        """Every worker's `thing`, by rank."""
        self._meet_after_an_epoch()
        things: list[Any] = [None] * self.world_size
        dist.all_gather_object(things, thing)
        return things

    def check(self, module: LightningModule) -> None:
        """`Refused` for a module that does not fit, before any worker is started."""

    def check_training(self, trainer: Trainer, module: LightningModule) -> None:
        """`Refused` for what cannot be trained like this, but can be evaluated; before any worker is started."""

    def describe(self) -> str:
        """What must be equal on all workers, in a few words."""
        return type(self).__name__

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
            self.global_rank,
            self.world_size,
            name=self._fit_name,
            seconds=self.heartbeat_seconds,
            hang_seconds=self.hang_seconds,
            state=lambda: (self.step, self.ledger.waiting),
            abort=self._abort,
        )
        self._heartbeat.start()

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

    def _abort(self, message: str) -> NoReturn:
        if isinstance(self._launcher, WorkerLauncher):
            self._launcher.kill_all()
        leave(message)
        raise AssertionError("unreachable")

    # ---- meeting outside of ticks --------------------------------------------------------------------------------

    def meet(self, what: str) -> None:
        """All workers are at this point of training, after the same step; OutOfStep if they are elsewhere.

        Through the store: here (DDP) a worker may wait for this one in torch's own code. Who is not there within
        `hang_seconds` is told by RuntimeError.
        """
        if self.world_size == 1:
            return
        self._meetings += 1
        store: Any = dist.PrefixStore(
            f"ticks/meet/{self._fit_name}/{self._meetings}", dist.distributed_c10d._get_default_store()
        )
        ranks = [str(rank) for rank in range(self.world_size)]
        store.set(str(self.global_rank), f"{what} after step {self.step}")
        if not meeting.all_there(store, ranks, self.hang_seconds):
            missing = {rank: "elsewhere" for rank in range(self.world_size) if not store.check([str(rank)])}
            told = {self.global_rank: f"{what} after step {self.step}{self._note()}, for {self.hang_seconds:g} s"}
            raise RuntimeError(str(out_of_step(told | missing)))
        meanings = {rank: store.get(str(rank)).decode() for rank in range(self.world_size)}
        if len(set(meanings.values())) > 1:
            raise out_of_step(meanings)

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
        self._random_before_validation = files.random_state(self.root_device)
        self._can_leave_validation = self._is_begun_anew_by_a_resumed_run() and self._leaves_nothing_behind()
        self._validations += 1
        self._validated = self._loaders_ended = 0
        try:
            yield
        finally:
            self._can_leave_validation = False
            files.set_random_state(self._random_before_validation, self.root_device)
            self._random_before_validation = None

    def validation_step(self, *args: Any, **kwargs: Any) -> Any:
        if self._can_leave_validation and self._heartbeat is not None:
            if self._heartbeat.stop_validating(self.step, self._validated) is not None:
                if self.world_size > 1:
                    self._end_of_loader().set("then", "leave")
                raise ValidationLeft
            self._validated += 1
        return super().validation_step(*args, **kwargs)

    def end_validation(self) -> None:
        """Either every worker goes on from here, or everybody leaves this validation: ValidationLeft."""
        if not self._can_leave_validation or self.world_size == 1:
            return
        store = self._end_of_loader()
        self._loaders_ended += 1
        if store.add("through", 1) == self.world_size:
            store.set("then", "go on")
        if not meeting.all_there(store, ["then"], (self._timeout or default_pg_timeout).total_seconds()):
            raise RuntimeError("not every worker came to the end of a validation")
        if store.get("then") == b"leave":
            raise ValidationLeft

    def count_everybodys(self, numbers: Numbers) -> None:
        """Make of `numbers` what all workers have seen: a mean is one over all samples then, in double precision."""
        if self.world_size == 1:
            return
        everyones = self._gather(numbers.mine())
        for key in sorted(set().union(*everyones)):  # one worker may have had no such batch
            numbers.put(key, [theirs[key] for theirs in everyones if key in theirs], self.root_device)

    def _end_of_loader(self) -> Any:
        """Where workers that have had its last batch read what to do: once all have, or one that has not leaves."""
        base = dist.distributed_c10d._get_default_store()
        return dist.PrefixStore(f"ticks/validation/{self._fit_name}/{self._validations}/{self._loaders_ended}", base)

    def stop_after_validation(self) -> NoReturn:
        assert self._heartbeat is not None
        self._stop(self._heartbeat.asked())

    def _leaves_nothing_behind(self) -> bool:
        """Whether a validation can be left in the middle: not where something begun before it is ended after it."""
        module = self.lightning_module
        assert module is not None
        callbacks: Any = module.trainer.callbacks  # type: ignore[attr-defined]
        callbacks = [callback for callback in callbacks if not isinstance(callback, HARMLESS)]
        starts = ("on_validation_start", "on_validation_epoch_start")
        acted_upon = [(module, hook) for hook in (*starts, "on_validation_model_eval", "on_validation_model_train")]
        acted_upon += [(callback, hook) for callback in callbacks for hook in starts]
        return not any(_acts(owner, hook) for owner, hook in acted_upon)

    def _is_begun_anew_by_a_resumed_run(self) -> bool:
        """Not the one behind the last step, nor one in the middle of a step, whose gradients would be lost."""
        module = self.lightning_module
        assert module is not None
        trainer = module.trainer
        is_last = 0 <= trainer.max_steps <= trainer.global_step
        return not is_last and not is_in_a_step(trainer)

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
        if isinstance(self._launcher, WorkerLauncher):
            self._launcher.expect_the_end()
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
        if self._all_failed is None:
            self._all_failed = self.world_size == 1 or not dist.is_initialized() or self._fail_alike(exception)
        return self._all_failed

    def _fail_alike(self, exception: BaseException) -> bool:
        store: Any = dist.PrefixStore(f"ticks/failed/{self._fit_name}", dist.distributed_c10d._get_default_store())
        ranks = [str(rank) for rank in range(self.world_size)]
        try:
            store.set(str(self.global_rank), f"{type(exception).__name__} after step {self.step}")
            came = meeting.all_there(store, ranks, FAILURE_SECONDS)
            alike = came and len({store.get(rank) for rank in ranks}) == 1
        except RuntimeError:  # the store, which lives with worker 0, is gone
            alike = False
        if not alike:
            log.warning("worker %d failed by itself: no checkpoint of the exception is saved", self.global_rank)
        return alike

    def _together(self, write: Callable[[], None], path: Any) -> None:
        error: str | None = None
        try:
            write()
        except (OSError, RuntimeError) as caught:
            error = f"worker {self.global_rank} could not write checkpoint {path}: {caught}"
        if failed := [text for text in self._gather(error) if text]:
            raise CheckpointNotWritten("; ".join(failed) + ". Earlier checkpoints are untouched.")

    def worker_state(self) -> dict[str, Any]:
        """What only this worker knows. Worker 0's optimizers are in the `.ckpt` already."""
        optimizers = [] if self.is_global_zero else [self.optimizer_state(o) for o in self.optimizers]
        return {
            "kind": self.kind(),
            "step": self.step,
            "random": self._random_before_validation or files.random_state(self.root_device),
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
                checkpoint_path, checkpoint, self.global_rank, self.world_size
            )
            if self._worker_state is not None and (written_by := self._worker_state["kind"]) != self.kind():
                self._worker_state = None
                self.dropped = (
                    f"it was written by {written_by}, now it is {self.kind()}: every worker starts from the agreed"
                    " model with worker 0's optimizer state; everything else that workers remember is dropped"
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

    def trainable(self) -> list[torch.Tensor]:
        """The parameters that train, in the module's order, chosen by requires_grad."""
        assert self.lightning_module is not None
        return [p for p in self.lightning_module.parameters() if p.requires_grad]
