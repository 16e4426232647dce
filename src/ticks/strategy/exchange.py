"""The exchange: the flat buffer, the anchor, and messages on their way. It knows tensors and steps, not Lightning.

What a worker did to a fragment of the parameters since the anchor is sent (`send`); when the mean over the workers is
back, at once or `delay` steps later, the sync rule moves the anchor by it, and the worker follows (`use`). Where
neither the rule nor the wire needs an anchor, parameters are averaged in place: the same thing, without a copy.
"""

import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

from ticks.strategy.facts import FIELDS, only_weight
from ticks.strategy.flat import FlatBuffer, copy
from ticks.strategy.fragments import fragment_of
from ticks.strategy.ledger import Ledger
from ticks.strategy.seen import Seen, new_sums, sample
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

    step: int  # steps done

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
        self.seen = Seen()
        self.flat: FlatBuffer | None = None  # where parameters and buffers live while training lasts
        self.slices: list[slice] = []  # the place of each fragment in it
        self._matrices: list[list[Matrix]] = []  # inside each of them
        self.anchor: Tensor | None = None  # laid out like it
        self.anchor_is_old = False  # the workers moved on together, by DDP's steps
        self.in_flight: list[Message] = []
        self._adopted: list[Tensor] = []  # the tensors that live in `flat`
        self._parameters: list[int] = []  # the ids of the parameters among them
        self._n_parameters = 0  # numbers in `flat` before the buffers
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
        self.buffer()

    @property
    def keeps_anchor(self) -> bool:
        """Whether averaging in place is not enough."""
        sync = self.sync
        return bool(sync.keeps_anchor or self.wire.lossy or sync.delay or sync.alpha or not sync.only_averages)

    def close(self) -> None:
        """Give the parameters storage of their own back."""
        if self._background is not None:
            self._background.shutdown(wait=False, cancel_futures=True)
        if self.flat is not None:
            self.flat.release(self._adopted)

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

    def buffer(self) -> FlatBuffer:
        """The flat buffer, laid out anew if other parameters train than before (a phase may have frozen some).

        A message then, if training is under way: called where all workers talk anyway.
        """
        tensors = self.tensors()
        if self.flat is None:
            self._lay_out(tensors)
        elif not _same(tensors, self._adopted):
            if self._parameters == self._ids() and [t.shape for t in tensors] == self.flat.shapes:
                self._adopted = tensors  # only buffers, which their module has made anew
                self.flat.adopt(tensors)
            else:
                self._change_layout(tensors)
        assert self.flat is not None
        return self.flat

    def _ids(self) -> list[int]:
        return [id(p) for p in self.parameters()]

    def _change_layout(self, tensors: list[Tensor]) -> None:
        """Everybody agrees on all tensors of the old layout and the new one; what both have keeps its anchor, and what
        the rule remembers of it."""
        assert self.flat is not None
        for message in list(self.in_flight):
            self.use(message)
        before = _Layout(self._adopted, self.flat, self.slices)
        anchor, moments = self.anchor, self.sync.moments()
        self.flat.release(self._adopted)
        both = list({id(t): t for t in (*self._adopted, *tensors)}.values())
        meeting = FlatBuffer(both)
        meeting.load(both)
        facts = self.worker.facts(meeting.all[:0])  # who has nan is found at the next tick
        self.ledger.sent(FP32().mean(meeting.all, facts, channel="layout", step=self.worker.step).n_bytes)
        meeting.store(both)
        self._lay_out(tensors)
        if self.anchor is not None and anchor is not None:
            after = _Layout(tensors, self.flat, self.slices)
            before.move(anchor, after, self.anchor)
            self.sync.begin([self.anchor[place] for place in self.slices])
            if moments:
                self.sync.set_moments(before.move_parts(moments, after))
        self._look_at_anchor()

    def _lay_out(self, tensors: list[Tensor]) -> None:
        self.flat, self._adopted, self._parameters = FlatBuffer(tensors), tensors, self._ids()
        self.flat.adopt(tensors)
        self._n_parameters = self.flat.until(len(self._parameters)).numel()  # places, of the buffer's
        chosen = sorted(self._fragment_of(self.worker.named_parameters()))
        ends = [self.flat.until(sum(c <= f for c in chosen)).numel() for f in range(max(chosen, default=0) + 1)]
        self.slices = [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]
        self._matrices = [self.flat.matrices(place) for place in self.slices]
        self.anchor = self.flat.all.clone() if self.keeps_anchor else None
        self.sync.begin([] if self.anchor is None else [self.anchor[place] for place in self.slices])
        self.wire.reset()
        self.seen = Seen()
        self.anchor_is_old = False
        self._look_at_anchor()

    def start_round(self) -> None:
        """The anchor catches up with steps it did not see."""
        assert self.flat is not None
        if self.anchor_is_old:
            if self.anchor is not None:
                self.anchor.copy_(self.flat.all)
            self._look_at_anchor()
        self.anchor_is_old = False

    def _look_at_anchor(self) -> None:
        assert self.flat is not None
        agreed = self.flat.all if self.anchor is None else self.anchor
        for fragment, place in enumerate(self.slices):
            self.seen.anchor(fragment, agreed[place])

    # ---- messages ------------------------------------------------------------------------------------------------

    def send(self, fragment: int, *, closes_round: bool = False, at_once: bool = False) -> None:
        """Send what this worker did to a fragment since its anchor; buffers go with the one that closes the round."""
        for message in [m for m in self.in_flight if m.fragment == fragment]:
            self.use(message)
        flat = self.buffer()
        flat.load(self._adopted)
        place = self.slices[fragment]
        size = place.stop - place.start
        mine = flat.all[place.start : None if closes_round else place.stop]
        facts = self._checked_facts(mine[:size])
        self.seen.sent(fragment, mine[:size])
        facts[FIELDS.index("update")] = self.seen.sums["mine"]
        waits = at_once or self._background is None
        in_place = at_once or (waits and not self.sync.alpha)  # else what this worker has is needed again
        numbers = mine if in_place else mine.clone()
        if self.anchor is not None:
            torch.sub(self.anchor[place], mine[:size], out=numbers[:size])
        channel, step = f"parameters/{fragment}", self.worker.step
        arguments = (numbers, facts, mine.numel() - size, channel, step, self._matrices[fragment])
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
        assert self.flat is not None
        flat, fragment = self.flat, message.fragment
        place = self.slices[fragment]
        size, end = place.stop - place.start, place.start + message.numbers.numel()
        mine = flat.all[place.start : end]
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
        flat.store(self._adopted)
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
        for fragment in range(len(self.slices)):
            self.send(fragment, closes_round=fragment == len(self.slices) - 1, at_once=True)

    def average(self, channel: str, *, in_group: bool = False, forget: bool = True) -> None:
        """Everything becomes the mean of all workers, or of this worker's group: in full precision, by no rule."""
        flat = self.buffer()
        flat.load(self._adopted)
        parameters = flat.all[: self._n_parameters]
        facts = self._checked_facts(parameters) if forget else self.worker.facts(parameters)
        with self.ledger.timed():
            group = self._group if in_group else None
            received = FP32().mean(flat.all, facts, channel=channel, step=self.worker.step, group=group)
        self.ledger.sent(received.n_bytes)
        flat.store(self._adopted)

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
                assert self.flat is not None
                self.flat.all.copy_(self.anchor)
                self.flat.store(self._adopted)
        return facts

    def _await(self, message: Message) -> Received:
        if isinstance(message.received, Future):
            with self.ledger.timed():
                message.received = message.received.result()
        return message.received

    # ---- the agreed model ----------------------------------------------------------------------------------------

    def enter_agreed(self) -> list[Tensor]:
        """Put what all agree on into the tensors; copies of what this worker had. The anchor, or else the mean."""
        flat = self.buffer()
        own = [t.detach().clone() for t in self._adopted]
        flat.load(self._adopted)
        if self.sync.keeps_anchor:
            assert self.anchor is not None
            flat.all.copy_(self.anchor)
        else:
            facts = only_weight(float(torch.isfinite(flat.all[: self._n_parameters].sum())))
            measured = FP32().mean(flat.all, facts, channel="measuring", step=self.worker.step)
            self.ledger.measuring_bytes += measured.n_bytes
        flat.store(self._adopted)
        return own

    def leave_agreed(self, own: list[Tensor]) -> None:
        """Take back what `enter_agreed` gave."""
        copy(self._adopted, own)

    # ---- checkpoints ---------------------------------------------------------------------------------------------

    def state_dict(self, *, agreed: bool) -> dict[str, Any]:
        """What it must remember; the anchor only where the workers do not have it."""
        return {
            "anchor": None if agreed and not self.in_flight and self._all_live_here() else self.anchor,
            "anchor_is_old": self.anchor_is_old,
            "shapes": [tuple(t.shape) for t in self._adopted],
            "in_flight": [self._saved(message) for message in self.in_flight],
            "sync": self.sync.state_dict(),
            "wire": self.wire.state_dict(),
            "seen": self.seen.state_dict(),
        }

    def _all_live_here(self) -> bool:
        """Whether the tensors are the flat buffer's, and not roundings of it (bfloat16)."""
        assert self.flat is not None
        return all(t.data_ptr() == view.data_ptr() for t, view in zip(self._adopted, self.flat.views, strict=True))

    def fingerprint(self) -> Tensor:
        """A number that differs if this worker's parameters do, from a sample of them."""
        flat = self.buffer()
        flat.load(self._adopted)
        return sample(flat.all[: self._n_parameters]).double().sum()  # buffers differ, and travel along

    def _saved(self, message: Message) -> dict[str, Any]:
        received = self._await(message)
        return vars(message) | {"received": (received.rows_NxF, received.n_bytes)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """ValueError if other parameters trained when it was written."""
        now = [tuple(t.shape) for t in self._adopted]
        if (then := state.get("shapes", now)) != now:  # older checkpoints do not say
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


@dataclass
class _Layout:
    """Where tensors lie in flat ones, in which parts."""

    tensors: Sequence[Tensor]
    flat: FlatBuffer
    parts: Sequence[slice]

    def move(self, numbers: Tensor, to: "_Layout", others: Tensor) -> None:
        """Of the tensors that both have: copy `numbers`, laid out like this, into `others`, laid out like that."""
        mine = {id(t): view for t, view in zip(self.tensors, self.flat.views_of(numbers), strict=True)}
        for tensor, place in zip(to.tensors, to.flat.views_of(others), strict=True):
            if id(tensor) in mine:
                place.copy_(mine[id(tensor)])

    def move_parts(self, values: Sequence[dict[str, Any]], to: "_Layout") -> list[dict[str, Any]]:
        """The same for tensors that are known part by part, 0 where that has none; other values are the same in all."""
        moved: list[dict[str, Any]] = [{} for _ in to.parts]
        for name in dict.fromkeys(name for of in values for name in of):
            known = [(part, of[name]) for part, of in zip(self.parts, values, strict=True) if of.get(name) is not None]
            if not known:
                continue
            numbers, others = torch.zeros_like(self.flat.all), torch.zeros_like(to.flat.all)
            laid_out = all(isinstance(value, Tensor) and value.shape == numbers[part].shape for part, value in known)
            if laid_out:
                for part, value in known:
                    numbers[part] = value
                self.move(numbers, to, others)
            for part, own in zip(to.parts, moved, strict=True):
                own[name] = others[part].clone() if laid_out else deepcopy(known[0][1])
        return moved


def _same(some: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    return len(some) == len(others) and all(a is b for a, b in zip(some, others, strict=True))
