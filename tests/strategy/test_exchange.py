"""The exchange by itself, one worker of a world of one: what it keeps when other parameters train than before."""

import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from tests.conftest import run_workers
from ticks.strategy import FP32, Int8, Outer, Streaming, Sync, Wire
from ticks.strategy.exchange import Exchange
from ticks.strategy.facts import FIELDS
from ticks.strategy.ledger import Ledger
from ticks.strategy.wire import Received


def alone(test: Callable[[], None]) -> None:
    """Run it in a process group of its own."""

    def body() -> None:
        dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
        test()

    run_workers(1, body)


def worker_with(tensors: dict[str, Tensor]) -> Any:
    worker = SimpleNamespace(step=0, training=list(tensors), weight=1.0)
    worker.named_parameters = lambda: [(name, tensors[name]) for name in worker.training]
    worker.floating_buffers = list
    worker.facts = lambda numbers: torch.tensor([worker.weight] + [0.0] * (len(FIELDS) - 1), dtype=torch.float64)
    worker.steps_of_round = lambda: 1
    worker.forget_optimizers = worker.round_closed = lambda *_: None
    return worker


def exchange_of(worker: Any, sync: Sync, wire: Wire | None = None) -> Exchange:
    return Exchange(worker, sync, wire or FP32(), Ledger(), workers_per_node=1)


def moments_by_name(exchange: Exchange, worker: Any, name: str) -> dict[str, Tensor]:
    flat = torch.cat([of[name] for of in exchange.sync.moments()])
    views = exchange.layout.flat.views_of(
        torch.nn.functional.pad(flat, (0, exchange.layout.flat.all.numel() - flat.numel()))
    )
    order = {id(tensor): view for tensor, view in zip(exchange.tensors(), views, strict=True)}
    return {n: order[id(p)].clone() for n, p in worker.named_parameters()}


@pytest.mark.parametrize("optimizer", [partial(torch.optim.SGD, lr=0.7, momentum=0.9, nesterov=True), torch.optim.Adam])
@pytest.mark.parametrize("fragments", [1, 2])
def test_an_outer_optimizer_keeps_what_it_knows_of_parameters_that_go_on(optimizer: Any, fragments: int) -> None:
    def check() -> None:
        tensors = {f"layers.{i}.weight": torch.randn(4 + i, 3) for i in range(4)}
        worker = worker_with(tensors)
        worker.training = ["layers.0.weight", "layers.2.weight", "layers.3.weight"]
        exchange = exchange_of(worker, Streaming(optimizer, fragments=fragments, delay=0, alpha=0.0))
        for _ in range(2):
            for tensor in tensors.values():
                tensor += torch.randn(tensor.shape)
            for fragment in range(fragments):
                exchange.send(fragment, closes_round=fragment == fragments - 1)
        moment = "exp_avg" if optimizer is torch.optim.Adam else "momentum_buffer"
        before = moments_by_name(exchange, worker, moment)
        worker.training = ["layers.1.weight", "layers.2.weight", "layers.3.weight"]  # 0 is frozen, 1 thaws
        exchange.laid_out()
        after = moments_by_name(exchange, worker, moment)
        assert before["layers.2.weight"].any()
        assert torch.equal(after["layers.2.weight"], before["layers.2.weight"])
        assert torch.equal(after["layers.3.weight"], before["layers.3.weight"])
        assert not after["layers.1.weight"].any()
        if moment == "exp_avg":
            steps = [of["step"] for of in exchange.sync.moments()]
            assert [float(step) for step in steps] == [2.0] * fragments
            assert len({step.data_ptr() for step in steps}) == fragments, "each counts for itself"

    alone(check)


def test_an_outer_optimizer_that_knows_nothing_yet_starts_as_ever() -> None:
    def check() -> None:
        tensors = {"a": torch.randn(4, 3), "b": torch.randn(5)}
        worker = worker_with(tensors)
        worker.training = ["a"]
        exchange = exchange_of(worker, Outer(partial(torch.optim.SGD, lr=0.7, momentum=0.9)))
        worker.training = ["a", "b"]
        exchange.send(0, closes_round=True)
        assert exchange.sync.moments()[0]["momentum_buffer"] is not None

    alone(check)


class Slow(Int8):
    """Writes down what it owes long after it was asked."""

    def mean(self, numbers_P: Tensor, facts_F: Tensor, *, channel: str = "", **_: Any) -> Received:
        time.sleep(0.3)
        self._residuals[channel] = torch.ones(1)
        return Received(facts_F[None], 0)


def test_a_sick_worker_forgets_what_messages_on_their_way_will_owe() -> None:
    def check() -> None:
        worker = worker_with({f"layers.{i}.weight": torch.randn(4, 3) for i in range(2)})
        exchange = exchange_of(worker, Streaming(fragments=2, delay=5), Slow())
        exchange.send(0)
        worker.weight = 0.0
        exchange.send(1)
        assert isinstance(exchange.in_flight[1].received, Future)
        exchange.in_flight[1].received.result()
        assert set(exchange.wire.state_dict()) == {"parameters/1"}

    alone(check)
