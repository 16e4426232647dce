"""TickStrategy: every worker trains by itself; at ticks, and only then, they agree.

step      one optimizer step, counted from 1
round     the steps between two ticks; its length is the interval, chosen by the clock
tick      the end of a round: a message carries the parameters, the buffers and the facts workers must share
anchor    the parameters all agreed on at the last tick; kept where the rule or a lossy wire needs it

What happens in a round is in rounds.py, what is sent in exchange.py. Here is what Lightning sees of it.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Literal, NoReturn

import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.optim import Optimizer

from ticks.arguments import ArgumentError, at_least, one_of
from ticks.strategy.agreed_model import AgreedModel
from ticks.strategy.clock import Clock, EverySteps
from ticks.strategy.facts import largest_lr
from ticks.strategy.flat import digest
from ticks.strategy.optimizer_state import Keep, OptimizerState, names_of_states
from ticks.strategy.refusals import (
    Refused,
    refuse_callbacks,
    refuse_different_ends,
    refuse_fragments,
    refuse_gradients,
    refuse_groups,
    refuse_optimizers,
    refuse_parameters,
)
from ticks.strategy.rounds import Rounds
from ticks.strategy.sync import Gradients, Sync
from ticks.strategy.timelines import ForTimelines
from ticks.strategy.wire import FP32, Wire
from ticks.strategy.workers import WorkerStrategy

log = logging.getLogger(__name__)


class TickStrategy(ForTimelines, WorkerStrategy):
    """Workers talk at ticks only. Works with any LightningModule:

        Trainer(strategy=TickStrategy(interval=64), accelerator="cpu", devices=4)

    `interval` is short for `clock=EverySteps(interval)`. `sync` says what is agreed at a tick (default `Gradients`),
    `wire` how numbers travel (default `FP32`), `optimizer_state` what becomes of Adam's moments (default `Keep`).
    `ddp_steps`: for so many steps, first, train as DDP does: gradients averaged at every step, whatever the rule.
    `non_finite`: what to do at a tick when a worker's loss or parameters are not finite: "error" ends training and
    names worker and step; "exclude" averages over the others and lets the worker restart from them. Further
    arguments are those of `WorkerStrategy`. What would talk between ticks (`sync_dist=True` and
    `all_gather` in a training step, SyncBatchNorm) is refused with ValueError.

    After each round the loggers get, all over the round and the workers unless said otherwise:
    tick/loss, the mean training loss; tick/interval, its steps; tick/waiting, the seconds worker 0 spent in its
    messages, waiting included; tick/drift and tick/drift_max, the mean and the largest distance of a worker from the
    mean over the anchor's norm, one round late; tick/pseudo_gradient_norm, |anchor - mean|; tick/cosine_rounds, between
    this pseudo-gradient and the last; tick/cosine_workers, between the updates of two workers; tick/excluded, workers
    left out of the mean;
    tick/bytes_sent and tick/seconds, totals of the run.
    """

    def __init__(
        self,
        interval: int | None = None,
        *,
        clock: Clock | None = None,
        sync: Sync | None = None,
        wire: Wire | None = None,
        optimizer_state: OptimizerState | None = None,
        ddp_steps: int = 0,
        non_finite: Literal["error", "exclude"] = "error",
        **kwargs: Any,
    ) -> None:
        if interval is not None and clock is not None:
            raise ArgumentError("interval", interval, "cannot be given beside a clock")
        at_least(0, of=" steps", ddp_steps=ddp_steps)
        one_of(("error", "exclude"), non_finite=non_finite)
        super().__init__(**kwargs)
        self.clock = clock or (EverySteps() if interval is None else EverySteps(interval))
        self.sync = sync or Gradients()
        self.wire = wire or FP32()
        self.state_rule = optimizer_state or Keep()  # `optimizer_state` is a method of Lightning
        self.ddp_steps = int(ddp_steps)
        self.non_finite = non_finite
        self.on_tick: list[Callable[[dict[str, float]], None]] = []  # told the facts of each tick, on every worker
        self._rounds = Rounds(self)
        self._agreed_model = AgreedModel(self._rounds)
        self._stop_agreed = False
        self._silent = False  # inside a step
        self._validation_started = 0.0

    @property
    def interval(self) -> int:
        """Length of the current round."""
        return self._rounds.round.interval

    @property
    def next_tick(self) -> int:
        """The step after which it ends."""
        return self._rounds.round.end

    def describe(self) -> str:
        parts = (self.clock, self.sync, self.wire, self.state_rule)
        return f"{' '.join(map(_describe, parts))} ddp_steps={self.ddp_steps} non_finite={self.non_finite}"

    # ---- start and end -------------------------------------------------------------------------------------------

    def refuse_what_talks(self, trainer: Trainer) -> None:
        super().refuse_what_talks(trainer)
        if self.syncs_batchnorm:
            raise Refused("sync_batchnorm=True talks at every step: leave it out, buffers are averaged at ticks")
        refuse_callbacks(trainer, world_size=self.world_size)
        if trainer.state.fn == TrainerFn.FITTING:
            assert self.lightning_module is not None
            self.check_training(trainer, self.lightning_module)
            if self.sync.meets_in_groups and self._group_size == self.world_size > 1 and self.is_global_zero:
                log.warning("all %d workers form one group, so they all meet inside the rounds", self.world_size)

    @property
    def _group_size(self) -> int:
        return self.sync.group_size or self.num_processes

    @property
    def _sends_gradients(self) -> bool:
        return bool(self.sync.averages_gradients or self.ddp_steps)

    def check_training(self, trainer: Trainer, module: LightningModule) -> None:
        if self.sync.meets_in_groups:
            refuse_groups(self._group_size, self.world_size)
        refuse_parameters(module)
        if self._sends_gradients:
            who = "ddp_steps" if self.ddp_steps else f"sync rule {type(self.sync).__name__}"
            refuse_gradients(trainer, module, who)

    def check(self, module: LightningModule) -> None:
        refuse_fragments(module, self.sync)

    def configure_ddp(self) -> None:
        """No wrapper. All workers start from worker 0's parameters and buffers, the frozen ones included.

        They travel only if they differ: usually all workers have made them with one seed, or read one file.
        """
        if self.world_size == 1:
            return
        assert self.lightning_module is not None
        tensors = [*self.lightning_module.parameters(), *self.lightning_module.buffers()]
        if len(set(self._gather(digest(tensors)))) > 1:
            for tensor in tensors:
                dist.broadcast(tensor.detach(), src=0)

    def on_train_start(self) -> None:
        super().on_train_start()
        assert self.lightning_module is not None
        trainer, rounds = self.lightning_module.trainer, self._rounds
        known = trainer.estimated_stepping_batches  # -1 where data have no known end
        total_steps = known if known > 0 else math.inf
        self._stop_agreed = False
        mine = (float(total_steps), float(trainer.num_training_batches), largest_lr(self.optimizers))
        everyones = self._gather(mine)
        refuse_different_ends([(total, batches) for total, batches, _ in everyones])
        states = names_of_states(self.optimizers)
        refuse_optimizers(self.optimizers, states, self.state_rule, sends_gradients=self._sends_gradients)
        lr = max(lr for _, _, lr in everyones)
        rounds.start(total_steps=total_steps, lr=lr, state_names=states, workers_per_node=self.num_processes)

    def on_train_end(self) -> None:
        rounds = self._rounds
        if rounds.plan.accumulates and rounds.round.steps and self.is_global_zero:
            log.warning("the data ended %d steps into a round: their gradients were not used", rounds.round.steps)
        if rounds.exchange is not None:
            self._meet_after_an_epoch()
            rounds.end(self._gather)
        super().on_train_end()

    def meet(self, what: str) -> None:
        if self._rounds.exchange is not None and self.world_size > 1:
            self._rounds.exchange.meet(what, self._note())

    def teardown(self) -> None:
        self._rounds.close()
        super().teardown()

    # ---- what its rounds ask -------------------------------------------------------------------------------------

    def named_parameters(self) -> list[tuple[str, Tensor]]:
        assert self.lightning_module is not None
        return [(name, p) for name, p in self.lightning_module.named_parameters() if p.requires_grad]

    def floating_buffers(self) -> list[Tensor]:
        """What a module saves besides parameters; what it can compute again (masks, tables) stays where it is."""
        assert self.lightning_module is not None
        return [
            buffer
            for module in self.lightning_module.modules()
            for name, buffer in module.named_buffers(recurse=False)
            if buffer.is_floating_point() and name not in module._non_persistent_buffers_set
        ]

    def ticked(self, metrics: dict[str, float], *, stop: bool) -> None:
        assert self.lightning_module is not None
        trainer = self.lightning_module.trainer
        if stop:
            self._stop_agreed = trainer.should_stop = True
        for logger in trainer.loggers if self.is_global_zero else ():
            logger.log_metrics(metrics, step=self.step)
        for listener in self.on_tick:
            listener(metrics)

    # ---- steps ---------------------------------------------------------------------------------------------------

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_start(batch, batch_idx)
        self._rounds.round.begin_step()

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        with self._not_a_word():
            return super().training_step(*args, **kwargs)

    @contextmanager
    def _not_a_word(self) -> Iterator[None]:
        """In the block the module and its callbacks may not talk."""
        before, self._silent = self._silent, True
        try:
            yield
        finally:
            self._silent = before

    def pre_backward(self, closure_loss: Tensor) -> None:
        super().pre_backward(closure_loss)
        self._rounds.round.saw(closure_loss.detach().float())

    def reduce(self, tensor: Any, *args: Any, **kwargs: Any) -> Any:
        if self._silent:
            raise Refused("self.log(..., sync_dist=True) in a training step talks at every step: log without it;"
                          " tick/loss is the mean over the workers")  # fmt: skip
        return super().reduce(tensor, *args, **kwargs)

    def all_gather(self, *args: Any, **kwargs: Any) -> Tensor:
        if self._silent:
            raise Refused("self.all_gather in a training step talks at every step: between ticks workers do not")
        return super().all_gather(*args, **kwargs)

    def broadcast(self, obj: Any, src: int = 0) -> Any:
        if self._silent:
            raise Refused("broadcast in a training step (the Trainer's log_dir is one) talks at every step: between"
                          " ticks workers do not")  # fmt: skip
        return super().broadcast(obj, src)

    def optimizer_step(self, optimizer: Optimizer, closure: Callable[[], Any], model: Any = None, **kwargs: Any) -> Any:
        def closure_of_step() -> Any:
            loss = closure()
            self._rounds.use_gradients()
            return loss

        if self._rounds.plan.accumulates and not self._rounds.in_last_step:
            with self._not_a_word():
                loss = closure_of_step()
            self._end_step()
            return loss
        with self._not_a_word():
            return super().optimizer_step(optimizer, closure_of_step, model, **kwargs)

    def _end_step(self) -> None:
        super()._end_step()
        self._rounds.end_step()

    # ---- early stop ----------------------------------------------------------------------------------------------

    def hold_early_stop(self) -> None:
        """Take a wish to stop back from the Trainer until the tick at which all workers agree to it."""
        assert self.lightning_module is not None
        trainer = self.lightning_module.trainer
        if self.world_size > 1 and trainer.should_stop and not self._stop_agreed:
            self._rounds.known.stop_wanted, trainer.should_stop = True, False

    def begin_anew(self) -> None:
        super().begin_anew()
        self._rounds = Rounds(self)
        self._agreed_model = AgreedModel(self._rounds)

    # ---- the agreed model ----------------------------------------------------------------------------------------

    def agreed_model(self) -> AbstractContextManager[None]:
        """In the block the module holds what all workers agree on; then each worker's own parameters again.

        That is the anchor where the rule keeps one (outer optimizers), else the mean of the workers.
        """
        return self._agreed_model.entered()

    def on_validation_start(self) -> None:
        self._validation_started = time.perf_counter()
        super().on_validation_start()
        self._agreed_model.enter()

    def on_validation_end(self) -> None:
        self._agreed_model.leave()
        super().on_validation_end()
        self._rounds.round.leave_out(time.perf_counter() - self._validation_started)

    def stop_after_validation(self) -> NoReturn:
        self.on_validation_end()
        super().stop_after_validation()

    # ---- checkpoints ---------------------------------------------------------------------------------------------

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        started = time.perf_counter()
        super().save_checkpoint(checkpoint, filepath, storage_options)
        self._rounds.round.leave_out(time.perf_counter() - started)

    def agreed_state(self) -> dict[str, Any]:
        with self.agreed_model():
            state = super().agreed_state()
            if not self.is_global_zero:  # not saved
                return state
            return {name: value.clone() if isinstance(value, Tensor) else value for name, value in state.items()}

    def worker_state(self) -> dict[str, Any]:
        return super().worker_state() | self._rounds.state_dict(self._agreed_model.own)

    def kind(self) -> str:
        return f"TickStrategy {_describe(self.sync)} {_describe(self.wire)}"

    def load_worker_state(self, state: dict[str, Any]) -> None:
        super().load_worker_state(state)
        self._rounds.load_state_dict(state)


def _describe(part: Any) -> str:
    """A clock, rule or wire by its class and settings, those inside it too: the same text on every worker."""
    if part is None or isinstance(part, str | int | float | list | tuple | dict):
        return repr(part)
    if (function := getattr(part, "func", None)) is not None:  # a partial: an optimizer factory
        return f"{_describe(function)}({part.args}, {part.keywords})"
    if not isinstance(part, Clock | Sync | Wire | OptimizerState):
        return getattr(part, "__qualname__", type(part).__qualname__)
    settings = (f"{name}={_describe(value)}" for name, value in vars(part).items() if not name.startswith("_"))
    return f"{type(part).__name__}({', '.join(settings)})"
