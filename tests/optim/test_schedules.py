"""Factors of the learning rate over a run."""

import math
from itertools import pairwise

import pytest

from ticks.optim import Constant, InverseSqrt, WarmupCosine, WarmupLinear, WarmupStableDecay

COSINE = WarmupCosine(warmup_steps=10, min_ratio=0.1)
ALL = [
    COSINE, WarmupLinear(warmup_steps=10, min_ratio=0.1), Constant(warmup_steps=10), InverseSqrt(warmup_steps=10),
    WarmupStableDecay(warmup_steps=10, decay_share=0.5, min_ratio=0.1),
]  # fmt: skip


@pytest.mark.parametrize(
    ("schedule", "step", "factor"),
    [
        (COSINE, 59, 0.55),  # halfway down
        (COSINE, 109, 0.1),  # the end
        (COSINE, 500, 0.1),
        (WarmupLinear(warmup_steps=10, min_ratio=0.2), 59, 0.6),
        (WarmupLinear(warmup_steps=10, min_ratio=0.2), 109, 0.2),
        (Constant(), 0, 1.0),
        (Constant(), 10**9, 1.0),
        (InverseSqrt(warmup_steps=100), 99, 1.0),
        (InverseSqrt(warmup_steps=100), 399, 0.5),
        (WarmupStableDecay(warmup_steps=10, decay_share=0.2), 87, 1.0),  # 22 of 110 steps are its last part
        (WarmupStableDecay(warmup_steps=10, decay_share=0.2), 98, 0.5),
        (WarmupStableDecay(warmup_steps=10, decay_share=0.2), 109, 0.0),
        (WarmupStableDecay(warmup_steps=10, decay_share=0.0), 109, 1.0),
    ],
)
def test_the_rate_is_what_its_name_says(schedule: Constant, step: int, factor: float) -> None:
    assert schedule(step, 110) == pytest.approx(factor)


@pytest.mark.parametrize("schedule", ALL, ids=lambda schedule: type(schedule).__name__)
def test_the_rate_warms_up_to_its_peak_then_falls_and_never_jumps(schedule: Constant) -> None:
    rates = [schedule(step, 110) for step in range(110)]
    assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])  # not 0, so that no step is wasted
    assert max(abs(a - b) for a, b in pairwise(rates)) <= 0.1 + 1e-9
    assert rates[9:] == sorted(rates[9:], reverse=True)


@pytest.mark.parametrize("schedule", ALL, ids=lambda schedule: type(schedule).__name__)
def test_a_run_that_ends_in_its_warm_up_and_one_without_end_have_a_rate(schedule: Constant) -> None:
    assert schedule(9, 10) == pytest.approx(1.0)
    assert 0 <= schedule(10, 10) <= 1
    assert 0 <= schedule(10**6, math.inf) <= 1
    assert isinstance(schedule, InverseSqrt) or schedule(10**6, math.inf) == 1.0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: WarmupCosine(warmup_steps=-5), "warmup_steps=-5 must not be negative"),
        (lambda: WarmupCosine(min_ratio=1.5), "min_ratio=1.5 must be from 0 to 1"),
        (lambda: WarmupStableDecay(decay_share=-0.1), "decay_share=-0.1 must be from 0 to 1"),
        (lambda: InverseSqrt(warmup_steps=0), "warmup_steps=0 must be at least 1"),
    ],
)
def test_values_that_cannot_be_are_refused(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
