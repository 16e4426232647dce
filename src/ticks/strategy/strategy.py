"""TickStrategy: every worker trains by itself; at ticks, and only then, they agree.

step      one optimizer step, counted from 1
round     the steps between two ticks; its length is the interval, chosen by the clock
tick      the end of a round: a message carries the parameters, the buffers and the facts workers must share
anchor    the parameters all agreed on at the last tick; kept where the rule or a lossy wire needs it

A round goes like this: `_begin_round` asks the clock for its length and plans what is sent after which step;
`_end_step` carries the plan out through the exchange, which knows the flat tensors; `_learn` acts on the facts that
came with the last message of a round, the same on every worker.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, NoReturn

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import StochasticWeightAveraging, Timer, WeightAveraging
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.optim import Optimizer

from ticks.arguments import ArgumentError, at_least, one_of, under
from ticks.strategy.clock import Clock, EverySteps, Facts
from ticks.strategy.exchange import Exchange, Message
from ticks.strategy.facts import FIELDS, Round, only_weight
from ticks.strategy.flat import copy, digest
from ticks.strategy.fragments import fragment_of
from ticks.strategy.gradients import GradientBuffer
from ticks.strategy.optimizer_state import Keep, OptimizerState, names_of_states, treat
from ticks.strategy.sync import Gradients, Sync
from ticks.strategy.wire import FP32, Wire, ring_bytes
from ticks.strategy.workers import Refused, WorkerStrategy

log = logging.getLogger(__name__)

# what all workers know and a resumed run must know again
KNOWN = ("_rounds", "_lockstep", "_mean_loss", "_first_loss", "_slowest", "_lr", "_stop_wanted", "_seconds_told")


class TickStrategy(WorkerStrategy):
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
        self._round = Round()
        self._rounds = 0  # of the rule, DDP's steps not counted
        self._exchange: Exchange | None = None  # while training lasts
        self._last_exchange: dict[str, Any] | None = None
        self._gradients: GradientBuffer | None = None
        self._gradient_rows = torch.empty(0)  # the facts that came with the last gradients
        self._accumulates = self._by_gradients = False  # this round
        self._agreed = True  # whether all workers hold the same parameters right now
        self._lockstep = True  # whether their optimizers, too, have always seen the same
        self._own: list[Tensor] | None = None  # this worker's tensors while the agreed model stands in their place
        self._resumed: dict[str, Any] | None = None
        self._mean_loss = self._first_loss = self._slowest = self._lr = math.nan
        self._state_names: list[str] = []
        self._seconds_told = 0.0  # of the ledger's, what has been logged
        self._stop_wanted = self._stop_agreed = False
        self._silent = False  # inside a step
        self._validation_started = 0.0

    @property
    def interval(self) -> int:
        """Length of the current round."""
        return self._round.interval

    @property
    def next_tick(self) -> int:
        """The step after which it ends."""
        return self._round.end

    def describe(self) -> str:
        parts = (self.clock, self.sync, self.wire, self.state_rule)
        return f"{' '.join(map(_describe, parts))} ddp_steps={self.ddp_steps} non_finite={self.non_finite}"

    # ---- start and end -------------------------------------------------------------------------------------------

    def refuse_what_talks(self, trainer: Trainer) -> None:
        super().refuse_what_talks(trainer)
        if self._layer_sync is not None:
            raise Refused("sync_batchnorm=True talks at every step: leave it out, buffers are averaged at ticks")
        for callback in getattr(trainer, "callbacks", ()):
            if isinstance(callback, Timer):
                raise Refused("max_time (the Timer callback) talks at every batch: give max_steps")
            if self.world_size > 1 and isinstance(callback, WeightAveraging | StochasticWeightAveraging):
                name = type(callback).__name__
                raise Refused(f"{name} averages one worker's own weights, which differ between ticks: leave it out")
        if trainer.state.fn == TrainerFn.FITTING:
            assert self.lightning_module is not None
            self.check_training(trainer, self.lightning_module)
            if self.sync.meets_in_groups and self._group_size == self.world_size > 1 and self.is_global_zero:
                log.warning("all %d workers form one group, so they all meet inside the rounds", self.world_size)

    @property
    def _group_size(self) -> int:
        return self.sync.group_size or self.num_processes

    def check_training(self, trainer: Trainer, module: LightningModule) -> None:
        size, n = self._group_size, self.world_size
        if self.sync.meets_in_groups and n % size:
            valid = ", ".join(str(divisor) for divisor in range(1, n + 1) if n % divisor == 0)
            raise Refused(f"strategy.sync.group_size={size} must divide the number of workers, {n}; valid: {valid}")
        for name, parameter in module.named_parameters():
            if parameter.is_complex():
                raise Refused(f"parameter {name} is complex: keep its real and imaginary part as a real tensor")
        if not (self.sync.averages_gradients or self.ddp_steps):
            return
        who = "ddp_steps" if self.ddp_steps else f"sync rule {type(self.sync).__name__}"
        if not module.automatic_optimization:
            raise Refused(f"{who} needs automatic optimization: use a rule that sends no gradients, sync=Parameters()")
        if getattr(trainer.precision_plugin, "scaler", None) is not None:
            raise Refused(f"{who} cannot average scaled gradients: use precision=bf16-mixed, or sync=Parameters()")

    def check(self, module: LightningModule) -> None:
        """Refused, before anything starts, if the sync rule's fragments do not fit the module's parameters."""
        named = [(name, p.numel()) for name, p in module.named_parameters() if p.requires_grad]
        try:
            fragment_of([name for name, _ in named], [size for _, size in named], self.sync.fragments)
        except ValueError as error:
            raise Refused(under("strategy.sync", error)) from None

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
        known = self.lightning_module.trainer.estimated_stepping_batches  # -1 where data have no known end
        self._total_steps = known if known > 0 else math.inf
        self._stop_agreed = False
        self._stop_wanted = self._stop_wanted and self._resumed is not None
        self._check_agreement()
        if not self._alone:
            try:
                self._exchange = Exchange(self, self.sync, self.wire, self.ledger, workers_per_node=self.num_processes)
            except ValueError as error:
                raise Refused(under("strategy.sync", error)) from None
            self._restore()
        if self._round.end <= self.step:
            self._begin_round()
        else:
            self._plan()
        self._round.between_steps()

    def _check_agreement(self) -> None:
        """`Refused` where workers would train for different numbers of steps, or their optimizers do not fit."""
        assert self.lightning_module is not None
        batches = float(self.lightning_module.trainer.num_training_batches)
        everyones = self._gather((float(self._total_steps), batches, self._own_lr()))
        if len(totals := {total for total, _, _ in everyones}) > 1:
            raise Refused(f"workers would do different numbers of steps, {sorted(totals)}: give trainer.max_steps, and"
                          " as many batches to each")  # fmt: skip
        if len(counts := {count for _, count, _ in everyones}) > 1:  # they would evaluate and save after other steps
            raise Refused(f"workers have different numbers of batches, {sorted(counts)}: give as many to each, or"
                          f" trainer.limit_train_batches={min(counts):g}")  # fmt: skip
        if math.isnan(self._lr):
            self._lr = max(lr for _, _, lr in everyones)
        self._state_names = names_of_states(self.optimizers)
        try:
            self.state_rule.averaged(1, self._state_names)
        except ValueError as error:
            raise Refused(under("strategy.optimizer_state", error)) from None
        sends_gradients = self.sync.averages_gradients or self.ddp_steps
        if sends_gradients and any(isinstance(optimizer, torch.optim.LBFGS) for optimizer in self.optimizers):
            raise Refused("LBFGS computes gradients a number of times that workers do not share: use sync=Parameters()")

    def on_train_end(self) -> None:
        """A last tick, where training ended in the middle of a round; or where a callback changed a worker's model."""
        if self._accumulates and self._round.steps and self.is_global_zero:
            log.warning("the data ended %d steps into a round: their gradients were not used", self._round.steps)
        if (exchange := self._exchange) is not None:
            self._meet_after_an_epoch()
            if not self._agreed or exchange.in_flight:
                if self._round.steps:
                    self._count_tick()
                exchange.send_all()
                self._agreed = True
                self._round = Round()
            if len(set(self._gather(float(exchange.fingerprint())))) > 1:
                exchange.average("repair", forget=False)
            self._last_exchange = exchange.state_dict(agreed=True)  # for a checkpoint of the trained model
        super().on_train_end()

    def meet(self, what: str) -> None:
        if self._exchange is not None and self.world_size > 1:
            self._exchange.meet(what, self._note())

    def teardown(self) -> None:
        if self._exchange is not None:
            self._exchange.close()
        self._exchange = self._gradients = None
        super().teardown()

    @property
    def _alone(self) -> bool:
        """One worker, and nothing that would do anything with one."""
        plain = self.sync.steps_locally and not self.sync.keeps_anchor and isinstance(self.state_rule, Keep)
        return self.world_size == 1 and plain

    # ---- what the exchange asks ----------------------------------------------------------------------------------

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

    def facts(self, numbers: Tensor | None = None) -> Tensor:
        drift = 0.0 if self._exchange is None else self._exchange.seen.drift
        return self._round.row(numbers, drift=drift, stop=float(self._stop_wanted), lr=self._own_lr())

    def steps_of_round(self) -> int:
        return self._round.steps

    def _own_lr(self) -> float:
        rates = [group["lr"] for optimizer in self.optimizers for group in optimizer.param_groups]
        return float(max(rates, default=0.0))

    def forget_optimizers(self) -> None:
        for optimizer in self.optimizers:
            optimizer.state.clear()

    def round_closed(self, rows_NxF: Tensor, message: Message) -> None:
        assert self._exchange is not None
        self._agreed = len(self._exchange.slices) == 1 and not self.sync.delay and not self.sync.alpha
        self._learn(rows_NxF, message.steps, message.sums)

    # ---- steps ---------------------------------------------------------------------------------------------------

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_start(batch, batch_idx)
        self._round.begin_step()

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
        self._round.saw(closure_loss.detach().float())

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
            raise Refused("broadcast in a training step (trainer.log_dir is one) talks at every step: between ticks"
                          " workers do not")  # fmt: skip
        return super().broadcast(obj, src)

    def optimizer_step(self, optimizer: Optimizer, closure: Callable[[], Any], model: Any = None, **kwargs: Any) -> Any:
        closes_round = self.step + 1 >= self._round.end

        def closure_of_step() -> Any:
            loss = closure()
            if not self._alone:
                if self._accumulates:
                    self._gradient_buffer().add(first=self._round.steps == 0)
                if closes_round and (self._by_gradients or self.sync.averages_gradients):
                    self._average_gradients()
            return loss

        if self._accumulates and not closes_round:
            with self._not_a_word():
                loss = closure_of_step()
            self._end_step()
            return loss
        with self._not_a_word():
            return super().optimizer_step(optimizer, closure_of_step, model, **kwargs)

    def _end_step(self) -> None:
        super()._end_step()
        closes_round, sends = self.step >= self._round.end, self._sends.get(self.step, [])
        meets = self.step - self._round.start in self._group_offsets
        if closes_round or sends or meets:
            self._finish_compute()
        self._round.end_step()
        if not self._by_gradients and not self._alone:
            self._agreed = self._lockstep = False
        elif self._accumulates and self.floating_buffers():  # BatchNorm's statistics move at every batch
            self._agreed = closes_round
        if self._exchange is not None:
            self._exchange.use_due(self.step)
            if meets:
                self._exchange.average("group", in_group=True)
            for fragment in sends:
                self._exchange.send(fragment)
                self._round.sent.append(fragment)
        if closes_round:
            self._close_round()
        self._round.between_steps()

    def _finish_compute(self) -> None:
        """Wait for the GPU, so that its queue counts as computing and not as talking."""
        if self.root_device.type == "cuda":
            torch.cuda.synchronize(self.root_device)

    # ---- rounds --------------------------------------------------------------------------------------------------

    def _begin_round(self) -> None:
        facts = Facts(
            step=self.step,
            lr=self._lr,
            mean_loss=self._mean_loss,
            first_loss=self._first_loss,
            seconds_per_step=self._slowest,
            interval=self._round.interval if self.step > self.ddp_steps else 0,
            total_steps=self._total_steps,
        )
        interval = 1 if self.step < self.ddp_steps else self.clock.round_length(facts)
        self._round = Round(interval=interval, end=self.step + interval)
        self._plan()
        if self._exchange is not None and not self._by_gradients:
            self._exchange.start_round()

    def _plan(self) -> None:
        """What happens after which step of this round: a function of its start and its length."""
        start, length = self._round.start, self._round.interval
        single = self.sync.averages_gradients and self._lockstep and length == 1
        self._accumulates = start >= self.ddp_steps and not self.sync.steps_locally
        self._by_gradients = start < self.ddp_steps or self._accumulates or single  # one message, of gradients
        self._sends: dict[int, list[int]] = {}  # by step: the fragments that are sent before the round ends
        self._group_offsets = range(0)  # after which steps of the round groups meet
        if self._exchange is None or self._by_gradients:
            return
        self._group_offsets = self.sync.group_offsets(length)
        n = len(self._exchange.slices)
        for fragment in range(n if not self._is_last_round else 0):
            offset = max(1, length * (fragment + 1) // n)
            if offset < length:
                self._sends.setdefault(start + offset, []).append(fragment)

    @property
    def _is_last_round(self) -> bool:
        return self._round.end >= self._total_steps

    def _close_round(self) -> None:
        self._count_tick()
        if self._exchange is None:
            self._learn(self.facts()[None], self._round.steps)
        elif self._by_gradients:
            self._exchange.anchor_is_old = True
            fingerprints = self._gradient_rows[:, FIELDS.index("fingerprint")]
            strayed = bool((fingerprints != fingerprints[0]).any())  # somebody set a worker's parameters, say
            if strayed or (self._gradient_rows[:, 0] == 0).any():  # who is sick may have sick parameters, too
                self._exchange.average("repair", forget=False)  # the optimizers have only seen mean gradients
                if strayed and self._lockstep and self.is_global_zero:
                    log.warning("step %d: workers' parameters were no longer the same, and are averaged", self.step)
                self._lockstep = self._lockstep and not strayed
            self._learn(self._gradient_rows, self._round.steps)
        elif self._is_last_round:
            self._exchange.send_all()
            self._agreed = True
        else:
            last = len(self._exchange.slices) - 1
            for fragment in range(last + 1):
                if fragment not in self._round.sent:
                    self._exchange.send(fragment, closes_round=fragment == last)
        if self._exchange is not None and self._round.start >= self.ddp_steps:
            self._treat_optimizer_states()
        if self.step < self._total_steps:
            self._begin_round()

    def _treat_optimizer_states(self) -> None:
        """A round of the rule is over: the optimizers' states are averaged or forgotten, if it is their turn."""
        self._rounds += 1
        facts = only_weight(float(not self._round.bad_step))

        def mean(name: str, numbers: Tensor) -> None:
            if self._lockstep:
                return  # they are the same everywhere
            with self.ledger.timed():
                received = FP32().mean(numbers, facts, channel=f"optimizer/{name}", step=self.step)
            self.ledger.sent(received.n_bytes)

        treat(self.state_rule, self._rounds, self.optimizers, self._state_names, mean)

    def _count_tick(self) -> None:
        self.ledger.ticks += 1
        ddp_bytes_per_step = ring_bytes(4 * sum(p.numel() for p in self.trainable()), self.world_size)
        self.ledger.ddp_bytes += self._round.steps * ddp_bytes_per_step

    # ---- gradients -----------------------------------------------------------------------------------------------

    def _gradient_buffer(self) -> GradientBuffer:
        assert self._exchange is not None
        parameters, buffers = self._exchange.parameters(), self.floating_buffers()
        if self._gradients is None or not self._gradients.fits(parameters, buffers):
            before, self._gradients = self._gradients, GradientBuffer(parameters, buffers)
            if before is not None:
                self._gradients.take_over(before)
        return self._gradients

    def _average_gradients(self) -> None:
        """Replace this worker's gradients by the mean over all, before clipping and the optimizer see them."""
        self._finish_compute()
        assert self._exchange is not None
        gradients, spent = self._gradient_buffer(), self.ledger.seconds
        with self.ledger.timed():
            if self._accumulates:
                gradients.divide(self._round.steps + 1)
            else:
                gradients.load()
            numbers, exact = gradients.message(with_buffers=self._by_gradients)
            facts = self.facts(numbers[: numbers.numel() - exact])
            if self._by_gradients:
                facts[FIELDS.index("fingerprint")] = self._exchange.fingerprint()
            received = self._exchange.mean(numbers, facts, exact, "gradients", self.step, gradients.matrices)
            gradients.store(with_buffers=self._by_gradients)
        self.ledger.sent(received.n_bytes)
        self._gradient_rows = received.rows_NxF
        self._round.leave_out(self.ledger.seconds - spent)

    # ---- what a tick tells ---------------------------------------------------------------------------------------

    def _learn(self, rows_NxF: Tensor, steps: int, sums: dict[str, float] | None = None) -> None:
        """Act on what all workers now know: the same on every worker."""
        facts = {name: rows_NxF[:, i].tolist() for i, name in enumerate(FIELDS)}
        sick = [rank for rank, (weight, bad) in enumerate(zip(facts["weight"], facts["bad_step"], strict=True))
                if not weight or bad]  # fmt: skip
        if sick and (self.non_finite == "error" or len(sick) == self.world_size):
            rank = sick[0]
            step, loss = int(facts["bad_step"][rank]), facts["loss"][rank]
            what = "parameters were not finite" if math.isfinite(loss) else f"training loss was {loss}"
            raise NonFiniteLoss(
                f"worker {rank}'s {what} at step {step}, found at the tick after step {self.step}; nothing after the"
                " last checkpoint can be trusted: lower the learning rate or clip gradients"
                + ("" if len(sick) == self.world_size > 1 or self.world_size == 1
                   else " (strategy.non_finite=exclude goes on without it)")
            )  # fmt: skip
        if steps == 0:
            return  # a last message after the last round
        healthy = [rank for rank in range(self.world_size) if rank not in sick]
        self._mean_loss = sum(facts["loss"][rank] for rank in healthy) / len(healthy)
        if math.isnan(self._first_loss) and self.step > self.ddp_steps:
            self._first_loss = self._mean_loss
        self._lr = max(facts["lr"])
        self._slowest = max(facts["seconds"])
        assert self.lightning_module is not None
        trainer = self.lightning_module.trainer
        if any(facts["stop"]):
            self._stop_agreed = trainer.should_stop = True
            self._stop_wanted = False
        seen: dict[str, float] = {}
        if self._exchange is not None and sums is not None:  # else the round's message were gradients
            seen = self._exchange.seen.metrics(sums, facts["update"], facts["drift"])
        metrics = {
            "tick/loss": self._mean_loss,
            "tick/interval": float(steps),
            "tick/waiting": self.ledger.seconds - self._seconds_told,
            "tick/excluded": float(len(sick)),
            "tick/bytes_sent": float(self.ledger.bytes_sent),
            "tick/seconds": self.ledger.seconds,
        } | {f"tick/{name}": value for name, value in seen.items() if math.isfinite(value)}
        self._seconds_told = self.ledger.seconds
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
        """In the block the module holds what all workers agree on; then each worker's own parameters again.

        That is the anchor where the rule keeps one (outer optimizers), else the mean of the workers.
        """
        entered = self._enter_agreed()
        try:
            yield
        finally:
            if entered:
                self._leave_agreed()

    def _enter_agreed(self) -> bool:
        if self._agreed or self._own is not None or self._exchange is None:
            return False
        self._own = self._exchange.enter_agreed()
        return True

    def _leave_agreed(self) -> None:
        if self._own is not None:
            assert self._exchange is not None
            self._exchange.leave_agreed(self._own)
            self._own = None

    def on_validation_start(self) -> None:
        self._validation_started = time.perf_counter()
        super().on_validation_start()
        self._enter_agreed()

    def on_validation_end(self) -> None:
        self._leave_agreed()
        super().on_validation_end()
        self._round.leave_out(time.perf_counter() - self._validation_started)

    def stop_after_validation(self) -> NoReturn:
        self.on_validation_end()
        super().stop_after_validation()

    # ---- checkpoints ---------------------------------------------------------------------------------------------

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        started = time.perf_counter()
        super().save_checkpoint(checkpoint, filepath, storage_options)
        self._round.leave_out(time.perf_counter() - started)

    def agreed_state(self) -> dict[str, Any]:
        with self.agreed_model():
            state = super().agreed_state()
            if not self.is_global_zero:  # not saved
                return state
            return {name: value.clone() if isinstance(value, Tensor) else value for name, value in state.items()}

    def worker_state(self) -> dict[str, Any]:
        own, exchange = None, self._exchange
        if not self._agreed and exchange is not None:
            own = self._own or [t.detach() for t in exchange.tensors()]
        partial = self._gradients if self._accumulates and self._round.steps else None
        return super().worker_state() | {
            "parameters": own,
            "gradients": partial.flat.all if partial else None,
            "exchange": exchange.state_dict(agreed=self._agreed) if exchange is not None else self._last_exchange,
            "round": self._round.state_dict(),
            "known": {name: getattr(self, name) for name in KNOWN},
        }

    def kind(self) -> str:
        return f"TickStrategy {_describe(self.sync)} {_describe(self.wire)}"

    def load_worker_state(self, state: dict[str, Any]) -> None:
        super().load_worker_state(state)
        self._agreed = state["parameters"] is None
        self._round = Round(**state["round"])
        for name in KNOWN:
            setattr(self, name, state["known"][name])
        self._resumed = state

    def _restore(self) -> None:
        """What needs the flat buffer to be there before it can be taken back."""
        if (state := self._resumed) is None:
            return
        self._resumed = None
        assert self._exchange is not None
        if state["exchange"] is not None:
            try:
                self._exchange.load_state_dict(state["exchange"])
            except ValueError as error:
                raise Refused(f"the checkpoint does not fit: {error}") from None
        if state["parameters"] is not None:
            copy(self._exchange.tensors(), state["parameters"])
        if state["gradients"] is not None:
            self._gradient_buffer().flat.all.copy_(state["gradients"])


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


class NonFiniteLoss(RuntimeError):
    """A worker's loss or parameters are nan or infinite; raised at the next tick, on every worker."""
