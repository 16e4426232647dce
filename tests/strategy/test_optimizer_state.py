"""What of the optimizers' states travels: those that there are, and the same on every worker."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tests.strategy.cases import Cases
from tests.strategy.rules import Probe, train
from ticks.optim import Lion, Muon, adamw, grouped
from ticks.strategy import Average, Parameters, TickStrategy
from ticks.strategy.facts import FIELDS
from ticks.strategy.optimizer_state import names_of_states, treat

MATRIX, VECTOR, SCALAR = 6 * 4, 6, 1
PLACE = 16  # numbers: each tensor begins at a multiple of so many


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 6)
        self.gate = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.gate * self.layer(x)


class Looks(torch.optim.SGD):
    """Cannot be stepped without numbers."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            assert all(bool(p.isfinite().all()) for p in group["params"])
        return super().step(closure)


def muon(module: nn.Module) -> Optimizer:
    return Muon(grouped(module, matrices=True))


OPTIMIZERS: dict[str, tuple[Callable[[nn.Module], Optimizer], dict[str, int]]] = {  # how many places each state takes
    "muon": (muon, {"exp_avg": 2 * PLACE + PLACE + PLACE, "exp_avg_sq": PLACE + PLACE}),
    "adamw": (lambda m: adamw(grouped(m)), {"exp_avg": 4 * PLACE, "exp_avg_sq": 4 * PLACE}),
    "fused": (lambda m: torch.optim.AdamW(m.parameters(), fused=True), {"exp_avg": 4 * PLACE, "exp_avg_sq": 4 * PLACE}),
    "lion": (lambda m: Lion(grouped(m)), {"exp_avg": 4 * PLACE}),
    "one group with momentum": (
        lambda m: torch.optim.SGD([{"params": [m.layer.weight], "momentum": 0.0}, {"params": [m.layer.bias, m.gate]}],
                                  lr=0.1, momentum=0.9), {"momentum_buffer": 2 * PLACE},
    ),
    "one that looks": (lambda m: Looks(m.parameters(), lr=0.1, momentum=0.9), {"momentum_buffer": 4 * PLACE}),
}  # fmt: skip


def sent(make: Callable[[nn.Module], Optimizer], *, steps: int, without: str = "") -> dict[str, Tensor]:
    """By name what is given to be averaged after so many steps, in which a parameter may have no gradient."""
    torch.manual_seed(0)
    net = Net()
    optimizer = make(net)
    for _ in range(steps):
        net(torch.randn(8, 4)).square().mean().backward()
        for name, parameter in net.named_parameters():
            parameter.grad = None if name == without else parameter.grad
        optimizer.step()
        optimizer.zero_grad()
    found: dict[str, Tensor] = {}
    treat(Average(), 1, [optimizer], names_of_states([optimizer]), lambda name, all_P: found.update({name: all_P}))
    return found


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_state_travels_for_the_parameters_that_have_it(optimizer: str) -> None:
    make, sizes = OPTIMIZERS[optimizer]
    after_two = sent(make, steps=2)
    assert {name: numbers.numel() for name, numbers in after_two.items()} == sizes
    assert all(numbers.any() for numbers in after_two.values())


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("without", ["layer.weight", "layer.bias", "gate"])
def test_who_has_no_state_yet_sends_as_much(optimizer: str, without: str) -> None:
    """A parameter without a gradient, on one worker alone; a worker that has done no step."""
    make, sizes = OPTIMIZERS[optimizer]
    for found in (sent(make, steps=2, without=without), sent(make, steps=0)):
        assert {name: numbers.numel() for name, numbers in found.items()} == sizes


class WithMuon(Probe):
    """`apart`: worker 1 never has a gradient for the last layer."""

    def __init__(self, *, apart: bool = False) -> None:
        super().__init__()
        self.apart = apart

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        if self.apart and self.trainer.global_rank:
            self.net[4].weight.grad = None

    def configure_optimizers(self) -> Any:
        return Muon(grouped(self, matrices=True), lr=0.01)


def of_muon(rule: Any = None, **options: Any) -> dict[str, Any]:
    strategy = partial(TickStrategy, 4, sync=Parameters(), optimizer_state=rule)
    return train(strategy, 2, module=partial(WithMuon, **options), steps=8)


RUNS = Cases(2, {"keep": of_muon, "average": partial(of_muon, Average()),
                 "apart": partial(of_muon, Average(), apart=True)})  # fmt: skip


@pytest.mark.parametrize("name", ["average", "apart"])
def test_muons_matrices_send_one_state_and_its_vectors_two(name: str) -> None:
    matrices, vectors = 6 * 16 + 16, 16 + PLACE
    for kept, averaged in zip(RUNS["keep"], RUNS[name], strict=True):
        ledger, before = averaged["ledger"], kept["ledger"]
        assert ledger.messages - before.messages == 2 * 2  # two states, after each of two rounds
        facts = 2 * 2 * 8 * (1 + len(FIELDS))
        assert ledger.bytes_sent - before.bytes_sent == 2 * 4 * (matrices + 2 * vectors) + facts
    first, second = RUNS[name]
    assert torch.equal(first["final"], second["final"])
