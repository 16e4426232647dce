"""What a tick shows, against the same figures computed by hand from every worker's parameters."""

from collections.abc import Callable
from functools import partial
from itertools import combinations
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor

from tests.strategy.cases import Cases
from tests.strategy.toys import Snapshots, Toy, flat, trainer_for
from ticks.strategy import Gradients, Int8, Outer, Parameters, Streaming, TickStrategy
from ticks.strategy.diagnostics import sample

NESTEROV = partial(torch.optim.SGD, lr=0.7, momentum=0.5, nesterov=True)
RULES: dict[str, Callable[[], TickStrategy]] = {
    "parameters": lambda: TickStrategy(4, sync=Parameters()),
    "gradients": lambda: TickStrategy(4, sync=Gradients()),
    "outer": lambda: TickStrategy(4, sync=Outer(NESTEROV)),
    "int8": lambda: TickStrategy(4, sync=Parameters(), wire=Int8()),
    "streaming": lambda: TickStrategy(4, sync=Streaming(NESTEROV, fragments=2, delay=0, alpha=0)),
    "ddp_steps": lambda: TickStrategy(4, sync=Outer(NESTEROV), ddp_steps=4),
}
TICKS = (4, 8, 12, 16)
FIRST_LAYER = 6 * 16 + 16  # numbers; the first fragment


class Noting(Toy):
    """Notes its parameters before training, and after its optimizer's step, before workers meet."""

    def __init__(self) -> None:
        super().__init__()
        self.stepped: dict[int, Tensor] = {}

    def on_train_start(self) -> None:
        self.stepped[0] = flat(self)

    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        optimizer.register_step_post_hook(lambda *_: self.stepped.update({self.trainer.global_step + 1: flat(self)}))
        return optimizer


def train(rule: str, n: int) -> tuple[dict[int, dict[str, float]], dict[int, Tensor], dict[int, Tensor]]:
    """What was told at each tick, the parameters before and after workers met in each step."""
    pl.seed_everything(0, verbose=False)
    toy, snapshots, strategy = Noting(), Snapshots(), RULES[rule]()
    told: dict[int, dict[str, float]] = {}
    strategy.on_tick.append(lambda metrics: told.update({strategy.step: metrics}))
    trainer_for(strategy, n, steps=TICKS[-1], callbacks=[snapshots]).fit(toy)
    return told, toy.stepped, snapshots.after | {0: toy.stepped[0]}


TRAINED = {n: Cases(n, {rule: partial(train, rule, n) for rule in RULES}) for n in (2, 3)}


def by_hand(n: int, rule: str) -> dict[int, dict[str, float]]:
    """The figures of each tick; u is what each worker did in a round (N, P), g its mean."""
    results = TRAINED[n][rule]
    after = results[0][2]
    figures: dict[int, dict[str, float]] = {}
    drifts, last_g = None, None
    for tick in TICKS[rule == "ddp_steps" :]:
        x_NxP = torch.stack([stepped[tick] for _, stepped, _ in results]).double()
        anchor = after[tick - 4].double()
        if rule == "streaming" and tick != TICKS[-1]:  # the first layer met two steps earlier
            x_NxP[:, :FIRST_LAYER] = torch.stack([stepped[tick - 2] for _, stepped, _ in results])[:, :FIRST_LAYER]
        if rule == "streaming" and tick > 4:
            anchor[:FIRST_LAYER] = after[tick - 6][:FIRST_LAYER]
        u_NxP = anchor - x_NxP
        g = u_NxP.mean(0)
        products = [float(u_NxP[i] @ u_NxP[j]) for i, j in combinations(range(n), 2)]
        figures[tick] = {
            "pseudo_gradient_norm": float(g.norm()),
            "cosine_workers": sum(products) / len(products) / float(u_NxP.square().sum(1).mean()),
        }
        if drifts is not None and last_g is not None:
            figures[tick]["drift"], figures[tick]["drift_max"] = float(drifts.mean()), float(drifts.max())
            figures[tick]["cosine_rounds"] = float(torch.cosine_similarity(g, last_g, dim=0))
        drifts, last_g = (u_NxP - g).norm(dim=1) / anchor.norm(), g
    return figures


@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize("rule", RULES)
def test_the_figures_of_a_tick_are_those_computed_by_hand(rule: str, n: int) -> None:
    expected = by_hand(n, rule)
    close = {"rel": 0.05} if rule == "int8" else {"rel": 1e-3, "abs": 1e-6}  # int8 sees the mean that arrived
    for told, _, _ in TRAINED[n][rule]:
        for tick, figures in expected.items():
            shown = {name.removeprefix("tick/"): value for name, value in told[tick].items()}
            for name in ("cosine_rounds", "drift"):  # there is none at the first tick
                assert (name in shown) == (name in figures)
            for name, value in figures.items():
                assert shown[name] == pytest.approx(value, **close), f"{name} at {tick}"


def test_the_figures_mean_something() -> None:
    """Workers drift, one more than another; they pull in similar directions."""
    for figures in list(by_hand(3, "parameters").values())[1:]:
        assert 0 < figures["drift"] < figures["drift_max"] < 1
        assert figures["pseudo_gradient_norm"] > 0
        assert 0 < figures["cosine_workers"] < 1
        assert -1 < figures["cosine_rounds"] < 1


def test_steps_of_ddp_show_no_drift() -> None:
    for told, _, _ in TRAINED[2]["ddp_steps"]:
        assert not any("drift" in name for step in (1, 2, 3, 4) for name in told[step])


def test_large_tensors_are_estimated_from_a_sample() -> None:
    numbers = torch.randn(1_000_003, generator=torch.Generator().manual_seed(0))
    part = sample(numbers)
    assert part.numel() < numbers.numel() / 50
    assert float(part.square().sum()) * numbers.numel() / part.numel() == pytest.approx(float(numbers.square().sum()),
                                                                                      rel=0.05)  # fmt: skip
    small = numbers[:1000]
    assert torch.equal(sample(small), small)
    assert sample(small).data_ptr() != small.data_ptr()
