"""TickStrategy: every worker trains by itself; at ticks, and only then, they agree.

step      one optimizer step, counted from 1
round     the steps between two ticks; its length is the interval, chosen by the clock
tick      the end of a round: one message carries the parameters, the buffers and the facts workers must share;
          the rule `gradients` sends the gradients before it
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.optim import Optimizer

from ticks.strategy.clock import Clock, EverySteps, Facts
from ticks.strategy.flat import FlatBuffer, copy
from ticks.strategy.sync import Gradients, Sync
from ticks.strategy.wire import FP32, Wire, ring_bytes
from ticks.strategy.workers import Refused, WorkerStrategy

FIELDS = ("loss", "seconds", "drift", "stop")  # what each worker tells the others at a tick


class TickStrategy(WorkerStrategy):
    """Workers talk at ticks only. Works with any LightningModule:

        Trainer(strategy=TickStrategy(interval=64), accelerator="cpu", devices=4)

    `interval` is short for `clock=EverySteps(interval)`. `sync` says what is agreed at a tick (default `Gradients`),
    `wire` how numbers travel (default `FP32`). Further arguments are those of `WorkerStrategy`. What must not happen
    between ticks (`sync_dist=True` in `training_step`, SyncBatchNorm) is refused with ValueError.

    At each tick the loggers get tick/loss (mean over workers and the round's steps), tick/drift (distance of a worker
    from the mean just before the previous tick, over the mean's norm: mean over workers), tick/interval,
    tick/bytes_sent, tick/seconds.
    """

    def __init__(
        self,
        interval: int | None = None,
        *,
        clock: Clock | None = None,
        sync: Sync | None = None,
        wire: Wire | None = None,
        **kwargs: Any,
    ) -> None:
        if interval is not None and clock is not None:
            raise ValueError(f"give either interval={interval} or a clock, not both")
        super().__init__(**kwargs)
        self.clock = clock or (EverySteps() if interval is None else EverySteps(interval))
        self.sync = sync or Gradients()
        self.wire = wire or FP32()
        self.interval = 0  # length of the current round
        self.next_tick = 0  # the step after which it ends
        self.on_tick: list[Callable[[dict[str, float]], None]] = []  # told the facts of each tick, on every worker
        self._flat: FlatBuffer | None = None  # where parameters and floating-point buffers live while training lasts
        self._adopted: list[Tensor] = []  # those that do
        self._gradients: FlatBuffer | None = None
        self._agreed = True  # whether all workers hold the same parameters right now
        self._own: list[Tensor] | None = None  # this worker's tensors while the agreed model stands in their place
        self._round_loss: Tensor | float = 0.0
        self._round_steps = 0
        self._round_seconds = 0.0
        self._step_started: float | None = None
        self._waited = 0.0  # for the other workers, inside the current step
        self._drift: Tensor | float = 0.0
        self._mean_loss = self._slowest = math.nan
        self._stop_wanted = self._stop_agreed = self._in_training_step = False

    def describe(self) -> str:
        return f"{_describe(self.clock)} {_describe(self.sync)} {_describe(self.wire)}"

    # ---- start and end -------------------------------------------------------------------------------------------

    def _refuse_what_talks(self, trainer: Trainer) -> None:
        super()._refuse_what_talks(trainer)
        if self._layer_sync is not None:
            raise Refused("sync_batchnorm=True talks at every step: leave it out, buffers are averaged at ticks")
        if any(isinstance(callback, Timer) for callback in getattr(trainer, "callbacks", ())):
            raise Refused("max_time (the Timer callback) talks at every batch: give max_steps")
        if trainer.state.fn != TrainerFn.FITTING or not self.sync.averages_gradients:
            return
        assert self.lightning_module is not None
        if not self.lightning_module.automatic_optimization:
            raise Refused("sync rule `gradients` needs automatic optimization: use sync=Parameters()")
        if getattr(trainer.precision_plugin, "scaler", None) is not None:
            raise Refused("sync rule `gradients` cannot average scaled gradients: use bf16-mixed or sync=Parameters()")

    def configure_ddp(self) -> None:
        """No wrapper. All workers start from worker 0's parameters and buffers, the frozen ones included."""
        assert self.lightning_module is not None
        for tensor in (*self.lightning_module.parameters(), *self.lightning_module.buffers()):
            dist.broadcast(tensor.detach(), src=0)

    def on_train_start(self) -> None:
        super().on_train_start()
        assert self.lightning_module is not None
        self._total_steps = self.lightning_module.trainer.estimated_stepping_batches
        if self.world_size > 1:
            self._buffer()
        self._stop_agreed = False
        if self.next_tick <= self.step:
            self._begin_round()

    def on_train_end(self) -> None:
        """A last tick, where training ended in the middle of a round."""
        if not self._agreed:
            self._tick()
        super().on_train_end()

    def _travelling(self) -> list[Tensor]:
        """What is agreed at a tick: trainable parameters, then floating-point buffers (BatchNorm's statistics)."""
        assert self.lightning_module is not None
        return [*self.trainable(), *(b for b in self.lightning_module.buffers() if b.is_floating_point())]

    # ---- steps ---------------------------------------------------------------------------------------------------

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_start(batch, batch_idx)
        if self._step_started is None:
            self._step_started = time.perf_counter()

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        self._in_training_step = True
        try:
            return super().training_step(*args, **kwargs)
        finally:
            self._in_training_step = False

    def pre_backward(self, closure_loss: Tensor) -> None:
        super().pre_backward(closure_loss)
        self._round_loss = self._round_loss + closure_loss.detach().float()  # a share of it, where batches accumulate

    def reduce(self, tensor: Any, *args: Any, **kwargs: Any) -> Any:
        if self._in_training_step:
            raise Refused("self.log(..., sync_dist=True) in training_step talks at every step: log without it;"
                          " tick/loss is the mean over the workers")  # fmt: skip
        return super().reduce(tensor, *args, **kwargs)

    def optimizer_step(self, optimizer: Optimizer, closure: Callable[[], Any], model: Any = None, **kwargs: Any) -> Any:
        def closure_of_step() -> Any:
            loss = closure()
            if self.world_size > 1 and self.sync.averages_gradients and self.step + 1 >= self.next_tick:
                self._average_gradients()
            return loss

        return super().optimizer_step(optimizer, closure_of_step, model, **kwargs)

    def _end_step(self) -> None:
        super()._end_step()
        self._agreed = self.world_size == 1
        self._round_steps += 1
        if self.step >= self.next_tick:
            self._finish_compute()
        now = time.perf_counter()
        self._round_seconds += now - (self._step_started or now) - self._waited
        self._step_started, self._waited = None, 0.0
        if self.step >= self.next_tick:
            self._tick()
            if self.step < self._total_steps:
                self._begin_round()

    def _begin_round(self) -> None:
        rates = [group["lr"] for optimizer in self.optimizers for group in optimizer.param_groups]
        facts = Facts(
            step=self.step,
            lr=float(max(rates, default=0.0)),
            mean_loss=self._mean_loss,
            seconds_per_step=self._slowest,
            total_steps=self._total_steps,
        )
        length = self.clock.next_interval(facts)
        if length < 1:
            raise ValueError(f"{type(self.clock).__name__} chose an interval of {length} steps; it must be at least 1")
        self.interval = int(min(length, max(1, self._total_steps - self.step)))  # the last round is rarely full
        self.next_tick = self.step + self.interval
        self._round_loss, self._round_steps, self._round_seconds = 0.0, 0, 0.0

    # ---- the tick ------------------------------------------------------------------------------------------------

    def _average_gradients(self) -> None:
        """Replace this worker's gradients by the mean over all, before clipping and the optimizer see them."""
        self._finish_compute()
        parameters = self.trainable()
        if self._gradients is None or self._gradients.shapes != [p.shape for p in parameters]:
            self._gradients = FlatBuffer(parameters)
        spent = self.ledger.seconds
        with self.ledger.timed():
            places = self._gradients.views
            missing = [(p, place) for p, place in zip(parameters, places, strict=True) if p.grad is None]
            present = [(p.grad, place) for p, place in zip(parameters, places, strict=True) if p.grad is not None]
            for _, place in missing:
                place.zero_()
            copy([place for _, place in present], [grad for grad, _ in present])
            self._mean(self._gradients.all)
            copy([grad for grad, _ in present], [place for _, place in present])
            for parameter, place in missing:
                if place.any():  # another worker's batch used it
                    parameter.grad = place.to(parameter.dtype, copy=True)
        self._waited = self.ledger.seconds - spent

    def _finish_compute(self) -> None:
        """Wait for the GPU, so that its queue counts as computing and not as talking."""
        if self.root_device.type == "cuda":
            torch.cuda.synchronize(self.root_device)

    def _tick(self) -> None:
        mine = self._own_facts()
        with self.ledger.timed():
            everyones = self._exchange(mine) if self.world_size > 1 else [mine.tolist()]
        self.ledger.ticks += 1
        self.ledger.ddp_bytes += self._round_steps * self._ddp_bytes_per_step()
        self._agreed = True
        self._learn({name: [row[i] for row in everyones] for i, name in enumerate(FIELDS)})

    def _exchange(self, mine: Tensor) -> list[list[float]]:
        """Agree on the parameters, in one message that also carries every worker's facts, which are returned."""
        tensors, flat = self._travelling(), self._buffer()
        flat.load(tensors)
        facts = flat.tail.view(self.world_size, len(FIELDS))
        facts.zero_()  # the others' rows: the sum over workers is then everyone's rows
        facts[self.global_rank] = mine
        before = flat.sample()
        parameters = flat.until(len(self.trainable()))
        self.sync.agree(parameters, lambda: self._mean(flat.all, exact=flat.tail.numel()))
        after = flat.sample()
        self._drift = (before - after).norm() / after.norm().clamp_min(1e-30)
        flat.store(tensors)
        return facts.tolist()

    def _own_facts(self) -> Tensor:
        """This worker's row of the facts, in the order of FIELDS."""
        steps = max(1, self._round_steps)
        facts = torch.zeros(len(FIELDS), device=self.root_device)
        facts.copy_(torch.tensor([0.0, self._round_seconds / steps, 0.0, float(self._stop_wanted)]))
        facts[0], facts[2] = self._round_loss / steps, self._drift
        return facts

    def _buffer(self) -> FlatBuffer:
        """The buffer, made anew if other parameters train than before (a phase may have frozen some)."""
        tensors = self._travelling()
        same = len(tensors) == len(self._adopted) and all(a is b for a, b in zip(tensors, self._adopted, strict=True))
        if self._flat is None or not same:
            if self._flat is not None:
                self._flat.release(self._adopted)
            self._flat, self._adopted = FlatBuffer(tensors, tail=len(FIELDS) * self.world_size), tensors
            self._flat.adopt(tensors)
        return self._flat

    def teardown(self) -> None:
        if self._flat is not None:
            self._flat.release(self._adopted)
            self._flat, self._gradients, self._adopted = None, None, []
        super().teardown()

    def _ddp_bytes_per_step(self) -> int:
        return ring_bytes(4 * sum(p.numel() for p in self.trainable()), self.world_size)

    def _mean(self, numbers: Tensor, exact: int = 0) -> None:
        self.ledger.sent(self.wire.mean(numbers, exact))

    def _learn(self, facts: dict[str, list[float]]) -> None:
        """Act on what all workers now know: the same on every worker."""
        for rank, loss in enumerate(facts["loss"]):
            if not math.isfinite(loss):
                raise NonFiniteLoss(
                    f"worker {rank}'s training loss was {loss} in the {self._round_steps} steps up to step {self.step};"
                    " nothing after the last checkpoint can be trusted: lower the learning rate or clip gradients"
                )
        self._mean_loss = sum(facts["loss"]) / self.world_size
        self._slowest = max(facts["seconds"])
        assert self.lightning_module is not None
        trainer = self.lightning_module.trainer
        if any(facts["stop"]):
            self._stop_agreed = trainer.should_stop = True
        metrics = {
            "tick/loss": self._mean_loss,
            "tick/drift": sum(facts["drift"]) / self.world_size,
            "tick/interval": float(self.interval),
            "tick/bytes_sent": float(self.ledger.bytes_sent),
            "tick/seconds": self.ledger.seconds,
        }
        for logger in trainer.loggers if self.is_global_zero else ():
            logger.log_metrics(metrics, step=self.step)
        for listener in self.on_tick:
            listener(metrics)

    # ---- early stop ----------------------------------------------------------------------------------------------

    def hold_early_stop(self) -> None:
        """Take a wish to stop back from the Trainer until the tick at which all workers agree to it."""
        assert self.lightning_module is not None
        trainer = self.lightning_module.trainer
        if self.world_size > 1 and trainer.should_stop and not self._stop_agreed:
            self._stop_wanted, trainer.should_stop = True, False

    # ---- the agreed model ----------------------------------------------------------------------------------------

    @contextmanager
    def agreed_model(self) -> Iterator[None]:
        """In the block the module holds what all workers agree on: the mean of their parameters. Then its own again."""
        entered = self._enter_agreed()
        try:
            yield
        finally:
            if entered:
                self._leave_agreed()

    def _enter_agreed(self) -> bool:
        if self._agreed or self._own is not None:
            return False
        tensors, flat = self._travelling(), self._buffer()
        self._own = [t.detach().clone() for t in tensors]
        flat.load(tensors)
        self.ledger.measuring_bytes += FP32().mean(flat.body)
        flat.store(tensors)
        return True

    def _leave_agreed(self) -> None:
        if self._own is not None:
            copy(self._travelling(), self._own)
            self._own = None

    def on_validation_start(self) -> None:
        super().on_validation_start()
        self._enter_agreed()

    def on_validation_end(self) -> None:
        self._leave_agreed()
        super().on_validation_end()

    # ---- checkpoints ---------------------------------------------------------------------------------------------

    def lightning_module_state_dict(self) -> dict[str, Any]:
        with self.agreed_model():
            state = super().lightning_module_state_dict()
            if not self.is_global_zero:  # not saved
                return state
            return {name: value.clone() if isinstance(value, Tensor) else value for name, value in state.items()}

    def worker_state(self) -> dict[str, Any]:
        own = None if self._agreed else (self._own or [t.detach() for t in self._travelling()])
        return super().worker_state() | {
            "parameters": own,
            "round": {
                "interval": self.interval,
                "next_tick": self.next_tick,
                "loss": float(self._round_loss),
                "steps": self._round_steps,
                "seconds": self._round_seconds,
                "drift": float(self._drift),
                "mean_loss": self._mean_loss,
                "slowest": self._slowest,
                "stop_wanted": self._stop_wanted,
            },
            "sync": self.sync.state_dict(),
        }

    def load_worker_state(self, state: dict[str, Any]) -> None:
        super().load_worker_state(state)
        if (own := state["parameters"]) is not None:
            copy(self._travelling(), own)
            self._agreed = False
        now = state["round"]
        self.interval, self.next_tick = now["interval"], now["next_tick"]
        self._round_loss, self._round_steps, self._round_seconds = now["loss"], now["steps"], now["seconds"]
        self._drift, self._mean_loss, self._slowest = now["drift"], now["mean_loss"], now["slowest"]
        self._stop_wanted = now["stop_wanted"]
        self.sync.load_state_dict(state["sync"])


def _describe(part: Any) -> str:
    """A clock, rule or wire by its class and settings, those inside it too."""
    if not isinstance(part, Clock | Sync | Wire):
        return repr(part)
    settings = (f"{name}={_describe(value)}" for name, value in vars(part).items() if not isinstance(value, Tensor))
    return f"{type(part).__name__}({', '.join(settings)})"


class NonFiniteLoss(RuntimeError):
    """A worker's training loss is nan or infinite; raised at the next tick, on every worker."""
