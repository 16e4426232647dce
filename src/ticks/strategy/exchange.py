"""The exchange: the anchor, and messages on their way. It knows tensors and steps, not Lightning.

What a worker did to a fragment of the parameters since the anchor is sent (`send`); when the mean over the workers is
back, at once or `delay` steps later, the sync rule moves the anchor by it, and the worker follows (`use`). Where
neither the rule nor the wire needs an anchor, parameters are averaged in place: the same thing, without a copy.
"""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

from ticks.strategy.diagnostics import Seen, new_sums, sample
from ticks.strategy.facts import FIELDS, only_weight
from ticks.strategy.flat import FlatBuffer
from ticks.strategy.fragments import fragment_of
from ticks.strategy.layout import Layout
from ticks.strategy.ledger import Ledger
from ticks.strategy.sync import Sync
from ticks.strategy.wire import FP32, Matrix, Received, Told, Wire


@dataclass
class Message:
    """What was sent and has not been used yet."""

    fragment: int
    due: int  # the step after which it is used
    numbers: Tensor  # what was sent; the mean, once `received` is there
    closes_round: bool  # carries the facts of a whole round
    steps: int  # how many steps that had
    sums: dict[str, float]  # what is seen of that round
    received: "Received | Future[Received]"


class Worker(Protocol):
    """What the exchange asks of whoever trains."""

    @property
    def step(self) -> int:
        """Steps done."""

    def named_parameters(self) -> list[tuple[str, Tensor]]:
        """The parameters that train, in one order on all workers."""

    def floating_buffers(self) -> list[Tensor]:
        """Buffers that are averaged with them (BatchNorm's statistics)."""

    def facts(self, numbers: Tensor) -> Tensor:
        """This worker's row of FIELDS for a message of `numbers`."""

    def steps_of_round(self) -> int:
        """Steps done since the last tick."""

    def forget_optimizers(self) -> None:
        """Their states are not finite."""

    def round_closed(self, rows_NxF: Tensor, message: Message) -> None:
        """All parameters of a round have arrived, with everybody's facts in the last message."""


class Exchange:
    """One worker's side of all messages of parameters. ArgumentError for fragments that do not fit the parameters."""

    def __init__(self, worker: Worker, sync: Sync, wire: Wire, ledger: Ledger, *, workers_per_node: int) -> None:
        self.worker, self.sync, self.wire, self.ledger = worker, sync, wire, ledger
        self.in_flight: list[Message] = []
        self.constraints: list[Callable[[], None]] = []  # of the tensors, in place: whatever arrives keeps them
        self._background: ThreadPoolExecutor | None = None
        self._side_group: Any = None  # for messages that travel while the worker trains
        self._group: Any = None  # for workers that meet inside a round
        if sync.delay:
            self._side_group = dist.new_group()
            self._background = ThreadPoolExecutor(1, "ticks-message")
        if sync.meets_in_groups:
            size = sync.group_size or workers_per_node
            nodes = (dist.get_world_size() // size, size)
            device = worker.named_parameters()[0][1].device.type
            self._group = init_device_mesh(device, nodes, mesh_dim_names=("nodes", "node")).get_group("node")
        self._lay_out(self.tensors())

    @property
    def keeps_anchor(self) -> bool:
        """Whether averaging in place is not enough."""
        sync = self.sync
        return bool(sync.keeps_anchor or self.wire.lossy or sync.delay or sync.alpha or not sync.only_averages)

    def close(self) -> None:
        """Give the parameters storage of their own back."""
        if self._background is not None:
            self._background.shutdown(wait=False, cancel_futures=True)
        self.layout.release()

    # ---- what travels --------------------------------------------------------------------------------------------

    def parameters(self) -> list[Tensor]:
        """The parameters that train, those of one fragment together."""
        named = self.worker.named_parameters()
        if self.sync.fragments == 1:
            return [p for _, p in named]
        return [p for _, (_, p) in sorted(zip(self._fragment_of(named), named, strict=True), key=lambda pair: pair[0])]

    def tensors(self) -> list[Tensor]:
        """All that is agreed at ticks: the parameters, then the buffers."""
        return [*self.parameters(), *self.worker.floating_buffers()]

    def _fragment_of(self, named: Sequence[tuple[str, Tensor]]) -> list[int]:
        return fragment_of([name for name, _ in named], [p.numel() for _, p in named], self.sync.fragments)

    def laid_out(self) -> Layout:
        """Where everything lies, laid out anew if other parameters train than before.

        A message then, if training is under way: called where all workers talk anyway.
        """
        parameters = self.parameters()
        tensors = [*parameters, *self.worker.floating_buffers()]
        if not self.layout.fits(tensors, len(parameters)):
            self._change_layout(tensors)
        return self.layout

    def _change_layout(self, tensors: list[Tensor]) -> None:
        """Everybody agrees on all tensors of the old layout and the new one; what both have keeps its anchor, and what
        the rule remembers of it."""
        for message in list(self.in_flight):
            self.use(message)
        before, anchor, moments = self.layout, self.anchor, self.sync.moments()
        before.release()
        both = list({id(t): t for t in (*before.tensors, *tensors)}.values())
        meeting = FlatBuffer(both)
        meeting.load(both)
        facts = self.worker.facts(meeting.all[:0])  # who has nan is found at the next tick
        self.ledger.sent(FP32().mean(meeting.all, facts, channel="layout", step=self.worker.step).n_bytes)
        meeting.store(both)
        self._lay_out(tensors)
        if self.anchor is not None and anchor is not None:
            before.move(anchor, self.layout, self.anchor)
            self.sync.begin(self.layout.parts(self.anchor))
            if moments:
                self.sync.set_moments(before.move_parts(moments, self.layout))
        self._look_at_anchor()

    def _lay_out(self, tensors: list[Tensor]) -> None:
        self.layout = Layout(tensors, self._fragment_of(self.worker.named_parameters()))
        self.anchor = self.layout.flat.all.clone() if self.keeps_anchor else None  # laid out like it
        self.sync.begin([] if self.anchor is None else self.layout.parts(self.anchor))
        self.wire.reset()
        self.seen = Seen()
        self.anchor_is_old = False  # the workers moved on together, by DDP's steps
        self._look_at_anchor()

    def start_round(self) -> None:
        """The anchor catches up with steps it did not see."""
        if self.anchor_is_old:
            if self.anchor is not None:
                self.anchor.copy_(self.layout.flat.all)
            self._look_at_anchor()
        self.anchor_is_old = False

    def change_anchor(self, change: Callable[[], None]) -> None:
        """`change` alters the worker's tensors in place: for its time the anchor stands there, if there is one."""
        if self.anchor is not None:
            self.layout.change(self.anchor, change)

    def _look_at_anchor(self) -> None:
        agreed = self.layout.flat.all if self.anchor is None else self.anchor
        for fragment, numbers in enumerate(self.layout.parts(agreed)):
            self.seen.anchor(fragment, numbers)

    # ---- messages ------------------------------------------------------------------------------------------------

    def send(self, fragment: int, *, closes_round: bool = False, at_once: bool = False) -> None:
        """Send what this worker did to a fragment since its anchor; buffers go with the one that closes the round."""
        for message in [m for m in self.in_flight if m.fragment == fragment]:
            self.use(message)
        layout = self.laid_out()
        layout.load()
        place = layout.slices[fragment]
        size = place.stop - place.start
        mine = layout.flat.all[place.start : None if closes_round else place.stop]
        facts = self._checked_facts(mine[:size])
        self.seen.sent(fragment, mine[:size])
        facts[FIELDS.index("update")] = self.seen.sums["mine"]
        waits = at_once or self._background is None
        in_place = at_once or (waits and not self.sync.alpha)  # else what this worker has is needed again
        numbers = mine if in_place else mine.clone()
        if self.anchor is not None:
            torch.sub(self.anchor[place], mine[:size], out=numbers[:size])
        channel, step = f"parameters/{fragment}", self.worker.step
        arguments = (numbers, facts, mine.numel() - size, channel, step, layout.matrices[fragment])
        received: Received | Future[Received]
        if waits:
            with self.ledger.timed():
                received = self.mean(*arguments)
        else:
            assert self._background is not None
            received = self._background.submit(self.mean, *arguments, self._side_group)
        due = self.worker.step + (0 if waits else self.sync.delay)
        steps, sums = self.worker.steps_of_round(), self.seen.sums
        if closes_round:
            self.seen.sums = new_sums()
        message = Message(fragment, due, numbers, closes_round, steps, sums, received)
        self.in_flight.append(message)
        if waits:
            self.use(message, take_over=at_once)

    def mean(
        self,
        numbers: Tensor,
        facts: Tensor,
        exact: int,
        channel: str,
        step: int,
        matrices: Sequence[Matrix],
        group: Any = None,
    ) -> Received:
        """The wire's mean; may run in the background."""
        return self.wire.mean(numbers, facts, exact=exact, channel=channel, step=step, matrices=matrices, group=group)

    def use(self, message: Message, *, take_over: bool = False) -> None:
        """The anchor moves by the mean of what was sent, and the worker with it: wholly, to `take_over`."""
        received = self._await(message)
        self.in_flight.remove(message)
        self.ledger.sent(received.n_bytes)
        fragment = message.fragment
        place = self.layout.slices[fragment]
        size, end = place.stop - place.start, place.start + message.numbers.numel()
        mine = self.layout.flat.all[place.start : end]
        scale = size / max(1, self.seen.anchors[fragment].numel())
        if self.anchor is None:
            self.seen.received(fragment, self.seen.anchors[fragment] - sample(mine[:size]), scale, message.sums)
            self.seen.anchor(fragment, mine[:size])
        else:
            anchor = self.anchor[place.start : end]
            self.seen.received(fragment, sample(message.numbers[:size]), scale, message.sums)
            lr = float(received.rows_NxF[:, FIELDS.index("lr")].max())
            self.sync.step(fragment, anchor[:size], message.numbers[:size], lr)
            anchor[size:] = message.numbers[size:]
            if self.sync.alpha and not take_over:
                mine[:size].lerp_(anchor[:size], 1.0 - self.sync.alpha)
                mine[size:] = anchor[size:]
            else:
                mine.copy_(anchor)
            self.seen.anchor(fragment, anchor[:size])
        self.layout.store()
        for constraint in self.constraints:
            constraint()
            self.change_anchor(constraint)
        if message.closes_round:
            self.worker.round_closed(received.rows_NxF, message)

    def use_due(self, step: int) -> None:
        """Use what was to travel until after this step."""
        for message in [m for m in self.in_flight if m.due <= step]:
            self.use(message)

    def send_all(self) -> None:
        """All fragments at once, and every worker restarts from the anchor: the end of training."""
        for message in list(self.in_flight):
            self.use(message)
        last = len(self.laid_out().slices) - 1
        for fragment in range(last + 1):
            self.send(fragment, closes_round=fragment == last, at_once=True)

    def average(self, channel: str, *, in_group: bool = False, forget: bool = True) -> None:
        """Everything becomes the mean of all workers, or of this worker's group: in full precision, by no rule."""
        layout = self.laid_out()
        layout.load()
        facts = self._checked_facts(layout.parameters) if forget else self.worker.facts(layout.parameters)
        with self.ledger.timed():
            group = self._group if in_group else None
            received = FP32().mean(layout.flat.all, facts, channel=channel, step=self.worker.step, group=group)
        self.ledger.sent(received.n_bytes)
        layout.store()

    def meet(self, what: str, note: str = "") -> None:
        """All workers do `what` after this step, or OutOfStep on all who meet; `note` is told with it.

        In every group where another may be waiting for this worker: who means something else is found in one of them.
        """
        meaning, device = f"{what} after step {self.worker.step}", self.worker.named_parameters()[0][1].device

        def tell(group: Any) -> Told:
            return Told(only_weight(1.0), meaning, note=note, device=device, group=group)

        asked: list[Told | Future[Tensor]] = [tell(None)]
        if self._group not in (None, dist.group.WORLD):
            asked.append(tell(self._group))
        if self._background is not None:  # after the messages that it has under way
            asked.append(self._background.submit(lambda: tell(self._side_group).rows()))
        self.ledger.waiting = True  # who keeps others waiting is found
        while asked:
            for answer in [answer for answer in asked if len(asked) == 1 or answer.done()]:
                asked.remove(answer)
                answer.result() if isinstance(answer, Future) else answer.rows()
            time.sleep(0.0005 if asked else 0)
        self.ledger.waiting = False

    def _checked_facts(self, numbers: Tensor) -> Tensor:
        """The worker's facts; if its numbers are not finite it starts again from what it last agreed to."""
        facts = self.worker.facts(numbers)
        if not facts[0]:
            for message in self.in_flight:
                self._await(message)  # what it leaves owed is forgotten as well, whenever it gets there
            self.worker.forget_optimizers()
            self.wire.reset()
            if self.anchor is not None:
                self.layout.flat.all.copy_(self.anchor)
                self.layout.store()
        return facts

    def _await(self, message: Message) -> Received:
        if isinstance(message.received, Future):
            with self.ledger.timed():
                message.received = message.received.result()
        return message.received

    # ---- checkpoints ---------------------------------------------------------------------------------------------

    def state_dict(self, *, agreed: bool) -> dict[str, Any]:
        """What it must remember; the anchor only where the workers do not have it."""
        return {
            "anchor": None if agreed and not self.in_flight and self.layout.all_live_here() else self.anchor,
            "anchor_is_old": self.anchor_is_old,
            "shapes": [tuple(t.shape) for t in self.layout.tensors],
            "names": [name for name, _ in self.worker.named_parameters()],
            "in_flight": [self._saved(message) for message in self.in_flight],
            "sync": self.sync.state_dict(),
            "wire": self.wire.state_dict(),
            "seen": self.seen.state_dict(),
        }

    def fingerprint(self) -> Tensor:
        """A number that differs if this worker's parameters do, from a sample of them."""
        layout = self.laid_out()
        layout.load()
        return sample(layout.parameters).double().sum()  # buffers differ, and travel along

    def _saved(self, message: Message) -> dict[str, Any]:
        received = self._await(message)
        return vars(message) | {"received": (received.rows_NxF, received.n_bytes)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """ValueError if other parameters trained when it was written."""
        now, names = [tuple(t.shape) for t in self.layout.tensors], [name for name, _ in self.worker.named_parameters()]
        then = state.get("shapes", now)  # older checkpoints do not say, nor what is called how
        if then != now or state.get("names", names) != names:
            raise ValueError(
                f"{len(then)} tensors trained and travelled when it was written, now {len(now)}:"
                " freeze and thaw parameters before training starts as they were then"
            )
        if state["anchor"] is not None and self.anchor is not None:
            self.anchor.copy_(state["anchor"])
        self.anchor_is_old = state["anchor_is_old"]
        self.sync.load_state_dict(state["sync"])
        self.wire.load_state_dict(state["wire"])
        self.seen.load_state_dict(state["seen"])
        for saved in state["in_flight"]:
            self.in_flight.append(Message(**(saved | {"received": Received(*saved["received"])})))
