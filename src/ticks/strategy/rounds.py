"""Rounds: what is sent after which step, and what is learnt at the tick. Knows steps and optimizers, not Lightning.

`_begin` asks the clock for the length of a round and plans what is sent after which of its steps; `end_step` carries
the plan out through the exchange, which knows the flat tensors; `_learn` acts on the facts that came with the last
message of a round, the same on every worker.
"""

import logging
import math
from collections.abc import Callable
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer

from ticks.strategy.clock import Clock, Facts
from ticks.strategy.exchange import Exchange, Message
from ticks.strategy.facts import FIELDS, Round, largest_lr, only_weight
from ticks.strategy.flat import copy
from ticks.strategy.gradients import GradientMessages
from ticks.strategy.ledger import Ledger
from ticks.strategy.optimizer_state import Keep, OptimizerState, treat
from ticks.strategy.plan import Plan
from ticks.strategy.refusals import Refused, refused
from ticks.strategy.shared_facts import Everyones, Known
from ticks.strategy.sync import Sync
from ticks.strategy.wire import FP32, Wire, ring_bytes

log = logging.getLogger(__name__)


class Trains(Protocol):
    """What rounds ask of whoever does the steps: a TickStrategy."""

    step: int  # steps done
    ledger: Ledger
    clock: Clock
    sync: Sync
    wire: Wire
    state_rule: OptimizerState
    ddp_steps: int
    non_finite: Literal["error", "exclude"]
    seconds_of_training: Callable[[], float]  # this worker's
    constraints: list[Callable[[], None]]  # of the parameters, in place, kept by what comes from others

    @property
    def world_size(self) -> int:
        """How many workers there are."""

    @property
    def is_global_zero(self) -> bool:
        """Whether this is worker 0."""

    @property
    def root_device(self) -> torch.device:
        """Where the parameters are."""

    @property
    def optimizers(self) -> list[Optimizer]:
        """This worker's."""

    def named_parameters(self) -> list[tuple[str, Tensor]]:
        """The parameters that train, in one order on all workers."""

    def floating_buffers(self) -> list[Tensor]:
        """Buffers that are averaged with them (BatchNorm's statistics)."""

    def ticked(self, metrics: dict[str, float], *, stop: bool) -> None:
        """A round is over: its figures, and whether a worker wants to stop, the same everywhere."""


class Rounds:
    """One worker's rounds, from the first step of a run to its last."""

    def __init__(self, trainee: Trains) -> None:
        self.trainee = trainee
        self.round = Round()
        self.plan = Plan()  # of this round
        self.known = Known()
        self.exchange: Exchange | None = None  # while training lasts, where there is anything to say
        self.gradients: GradientMessages | None = None  # then, too
        self.agreed = True  # whether all workers hold the same parameters right now
        self._total_steps = math.inf
        self._state_names: list[str] = []  # of the optimizers: what they keep for a parameter
        self._resumed: dict[str, Any] | None = None
        self._last_exchange: dict[str, Any] | None = None  # its state when training ended

    # ---- start and end -------------------------------------------------------------------------------------------

    def start(self, *, total_steps: float, lr: float, state_names: list[str], workers_per_node: int) -> None:
        """Training starts or goes on. `Refused` for fragments or a checkpoint that do not fit the parameters."""
        trainee, known = self.trainee, self.known
        self._total_steps, self._state_names = total_steps, state_names
        known.stop_wanted = known.stop_wanted and self._resumed is not None
        known.lr = lr if math.isnan(known.lr) else known.lr
        if not self._alone:
            try:
                self.exchange = Exchange(
                    self, trainee.sync, trainee.wire, trainee.ledger, workers_per_node=workers_per_node
                )
            except ValueError as error:
                raise refused("sync", error) from None
            self.exchange.constraints = trainee.constraints
            self._say_fewer_fragments(len(self.exchange.layout.slices))
            self.gradients = GradientMessages(self.exchange)
            self._restore(self.exchange, self.gradients)
        if self.round.end <= self.step:
            self._begin()
        else:
            self._plan()
        self.round.between_steps()

    def _say_fewer_fragments(self, n: int) -> None:
        wanted = self.trainee.sync.fragments
        if isinstance(wanted, int) and n < wanted and self.trainee.is_global_zero:
            log.warning("sync.fragments=%d, but %d layer(s) to share out: as many fragments travel", wanted, n)

    @property
    def _alone(self) -> bool:
        """One worker, and nothing that would do anything with one."""
        sync = self.trainee.sync
        plain = sync.steps_locally and not sync.keeps_anchor and isinstance(self.trainee.state_rule, Keep)
        return self.trainee.world_size == 1 and plain

    def end(self, everyones: Callable[[float], list[float]]) -> None:
        """A last tick, where training ended in the middle of a round; or where a callback changed a worker's model.

        `everyones` gives every worker's number for this one's.
        """
        exchange = self.exchange
        assert exchange is not None
        if not self.agreed or exchange.in_flight:
            if self.round.steps:
                self._count_tick()
            exchange.send_all()
            self.agreed = True
            self.round = Round()
        if len(set(everyones(float(exchange.fingerprint())))) > 1:
            exchange.average("repair", forget=False)
        self._last_exchange = exchange.state_dict(agreed=True)  # for a checkpoint of the trained model

    def close(self) -> None:
        self.gradients = None  # first: while the parameters get storage of their own, there are two copies of them
        if self.exchange is not None:
            self.exchange.close()
        self.exchange = None

    def make_room(self) -> None:
        """For a second copy of the parameters, while there is one."""
        if self.gradients is not None and not self.plan.accumulates:
            self.gradients.give_memory_back()

    # ---- what the exchange asks ----------------------------------------------------------------------------------

    @property
    def step(self) -> int:
        return self.trainee.step

    def named_parameters(self) -> list[tuple[str, Tensor]]:
        return self.trainee.named_parameters()

    def floating_buffers(self) -> list[Tensor]:
        return self.trainee.floating_buffers()

    def facts(self, numbers: Tensor | None = None) -> Tensor:
        drift, lr = 0.0 if self.exchange is None else self.exchange.seen.drift, largest_lr(self.trainee.optimizers)
        told = {"drift": drift, "stop": float(self.known.stop_wanted), "lr": lr}
        return self.round.row(numbers, elapsed=self.trainee.seconds_of_training(), **told)

    def steps_of_round(self) -> int:
        return self.round.steps

    def forget_optimizers(self) -> None:
        for optimizer in self.trainee.optimizers:
            optimizer.state.clear()

    def round_closed(self, rows_NxF: Tensor, message: Message) -> None:
        assert self.exchange is not None
        sync = self.trainee.sync
        self.agreed = len(self.exchange.layout.slices) == 1 and not sync.delay and not sync.alpha
        self._learn(rows_NxF, message.steps, message.sums)

    # ---- steps ---------------------------------------------------------------------------------------------------

    @property
    def in_last_step(self) -> bool:
        """Whether the step that is being done ends the round."""
        return self.step + 1 >= self.round.end

    def use_gradients(self) -> None:
        """Add up or average this step's gradients, before clipping and the optimizer see them."""
        if self.gradients is None:
            return
        if self.plan.accumulates:
            self.gradients.add(first=self.round.steps == 0)
        if self.in_last_step and (self.plan.by_gradients or self.trainee.sync.averages_gradients):
            self._average_gradients(self.gradients)

    def _average_gradients(self, gradients: GradientMessages) -> None:
        self._finish_compute()
        spent = self.trainee.ledger.seconds
        steps = self.round.steps + 1 if self.plan.accumulates else None
        gradients.average(added_up=steps, alone=self.plan.by_gradients)
        self.round.leave_out(self.trainee.ledger.seconds - spent)

    def end_step(self) -> None:
        """One more step is done: what the plan says for it."""
        closes_round, sends = self.step >= self.round.end, self.plan.sends.get(self.step, [])
        meets = self.step - self.round.start in self.plan.group_offsets
        if closes_round or sends or meets:
            self._finish_compute()
        self.round.end_step()
        if not self.plan.by_gradients and self.exchange is not None:
            self.agreed = self.known.lockstep = False
        elif self.plan.accumulates and self.floating_buffers():  # BatchNorm's statistics move at every batch
            self.agreed = closes_round
        if self.exchange is not None:
            self.exchange.use_due(self.step)
            if meets:
                self.exchange.average("group", in_group=True)
            for fragment in sends:
                if fragment < len(self.exchange.laid_out().slices):  # fewer, where layers were frozen in this round
                    self.exchange.send(fragment)
                    self.round.sent.append(fragment)
        if closes_round:
            self._close_round()
        self.round.between_steps()

    def _finish_compute(self) -> None:
        """Wait for the GPU, so that its queue counts as computing and not as talking."""
        if (device := self.trainee.root_device).type == "cuda":
            torch.cuda.synchronize(device)

    # ---- rounds --------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        known, ddp_steps = self.known, self.trainee.ddp_steps
        facts = Facts(
            step=self.step,
            lr=known.lr,
            mean_loss=known.mean_loss,
            first_loss=known.first_loss,
            seconds_per_step=known.slowest,
            interval=self.round.interval if self.step > ddp_steps else 0,
            total_steps=self._total_steps,
        )
        interval = 1 if self.step < ddp_steps else self.trainee.clock.round_length(facts)
        self.round = Round(interval=interval, end=self.step + interval)
        self._plan()
        if self.exchange is not None and not self.plan.by_gradients:
            self.exchange.start_round()

    def _plan(self) -> None:
        self.plan = Plan.of(
            self.round,
            self.trainee.sync,
            as_ddp=self.round.start < self.trainee.ddp_steps,
            lockstep=self.known.lockstep,
            is_last=self._is_last_round,
            n_fragments=0 if self.exchange is None else len(self.exchange.layout.slices),
        )

    @property
    def _is_last_round(self) -> bool:
        return self.round.end >= self._total_steps

    def _close_round(self) -> None:
        self._count_tick()
        if self.exchange is None:
            self._learn(self.facts()[None], self.round.steps)
        elif self.plan.by_gradients:
            assert self.gradients is not None
            self._close_by_gradients(self.exchange, self.gradients.rows_NxF)
        elif self._is_last_round:
            self.exchange.send_all()
            self.agreed = True
        else:
            last = len(self.exchange.laid_out().slices) - 1
            for fragment in range(last + 1):
                if fragment == last or fragment not in self.round.sent:
                    self.exchange.send(fragment, closes_round=fragment == last)
        if self.exchange is not None and self.round.start >= self.trainee.ddp_steps:
            self._treat_optimizer_states()
        if self.step < self._total_steps:
            self._begin()

    def _close_by_gradients(self, exchange: Exchange, rows_NxF: Tensor) -> None:
        """Parameters travel only where they are no longer the same, or may be sick."""
        exchange.anchor_is_old = True
        fingerprints = rows_NxF[:, FIELDS.index("fingerprint")]
        strayed = bool((fingerprints != fingerprints[0]).any())  # somebody set a worker's parameters, say
        if strayed or (rows_NxF[:, 0] == 0).any():  # who is sick may have sick parameters, too
            exchange.average("repair", forget=False)  # the optimizers have only seen mean gradients
            if strayed and self.known.lockstep and self.trainee.is_global_zero:
                log.warning("step %d: workers' parameters were no longer the same, and are averaged", self.step)
            self.known.lockstep = self.known.lockstep and not strayed
        self._learn(rows_NxF, self.round.steps)

    def _treat_optimizer_states(self) -> None:
        """A round of the rule is over: the optimizers' states are averaged or forgotten, if it is their turn."""
        self.known.rounds += 1
        trainee, facts = self.trainee, only_weight(float(not self.round.bad_step))

        def mean(name: str, numbers: Tensor) -> None:
            if self.known.lockstep:
                return  # they are the same everywhere
            with trainee.ledger.timed():
                received = FP32().mean(numbers, facts, channel=f"optimizer/{name}", step=self.step)
            trainee.ledger.sent(received.n_bytes)

        treat(trainee.state_rule, self.known.rounds, trainee.optimizers, self._state_names, mean)

    def _count_tick(self) -> None:
        ledger = self.trainee.ledger
        ledger.ticks += 1
        n_parameters = sum(p.numel() for _, p in self.named_parameters())
        ledger.ddp_bytes += self.round.steps * ring_bytes(4 * n_parameters, self.trainee.world_size)

    def _learn(self, rows_NxF: Tensor, steps: int, sums: dict[str, float] | None = None) -> None:
        """Act on what all workers now know: the same on every worker."""
        facts, known = Everyones(rows_NxF), self.known
        facts.refuse_sick(self.step, others_go_on=self.trainee.non_finite == "exclude")
        if steps == 0:
            return  # a last message after the last round
        known.learn(facts, is_first=math.isnan(known.first_loss) and self.step > self.trainee.ddp_steps)
        seen: dict[str, float] = {}
        if self.exchange is not None and sums is not None:  # else the round's message were gradients
            seen = self.exchange.seen.metrics(sums, facts["update"], facts["drift"])
        metrics = known.told(steps, len(facts.sick), self.trainee.ledger, seen)
        stop = any(facts["stop"])
        known.stop_wanted = known.stop_wanted and not stop
        self.trainee.ticked(metrics, stop=stop)

    # ---- checkpoints ---------------------------------------------------------------------------------------------

    def state_dict(self, parameters: list[Tensor] | None) -> dict[str, Any]:
        """What a resumed run must know again; `parameters` are this worker's where others stand in their place."""
        own, exchange = None, self.exchange
        if not self.agreed and exchange is not None:
            own = parameters or [t.detach() for t in exchange.tensors()]
        added_up = self.gradients if self.plan.accumulates and self.round.steps else None
        return {
            "parameters": own,
            "gradients": added_up.state() if added_up else None,
            "exchange": exchange.state_dict(agreed=self.agreed) if exchange is not None else self._last_exchange,
            "round": self.round.state_dict(),
            "known": self.known.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what can be before training starts; the rest follows then."""
        self.agreed = state["parameters"] is None
        self.round = Round(**state["round"])
        self.known.load_state_dict(state["known"])
        self._resumed = state

    def _restore(self, exchange: Exchange, gradients: GradientMessages) -> None:
        """What needs the flat buffer to be there before it can be taken back."""
        if (state := self._resumed) is None:
            return
        self._resumed = None
        if state["exchange"] is not None:
            try:
                exchange.load_state_dict(state["exchange"])
            except ValueError as error:
                raise Refused(f"the checkpoint does not fit: {error}") from None
        if state["parameters"] is not None:
            copy(exchange.tensors(), state["parameters"])
        if state["gradients"] is not None:
            gradients.load_state(state["gradients"])
