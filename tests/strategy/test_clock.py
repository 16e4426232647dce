"""Clocks: each rule's own numbers, and what holds for every clock whatever the facts are."""

import math
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from hypothesis.configuration import set_hypothesis_home_dir

from tests.conftest import NAME, REPOSITORY
from ticks.config import ConfigError, build, check_targets, compose_strictly
from ticks.strategy.clock import (
    LONGEST,
    Adaptive,
    Clock,
    EverySeconds,
    EverySteps,
    Facts,
    PostLocal,
    Quadratic,
    Schedule,
)
from ticks.timeline.settings import Timed

scratch = tempfile.TemporaryDirectory()
set_hypothesis_home_dir(scratch.name)  # as soon as tests are collected it writes: not into the repository
repeatable = settings(derandomize=True, database=None, deadline=None, max_examples=40)


def rounds(
    clock: Clock,
    total_steps: int,
    *,
    lr: Callable[[int], float] = lambda step: 0.1,
    loss: Callable[[int], float] = lambda step: 1.0,
    seconds: Callable[[int], float] = lambda step: 0.01,
) -> list[int]:
    """The rounds of a whole training; lr, loss and seconds per step as functions of the step that was just done."""
    lengths: list[int] = []
    step, first = 0, math.nan
    while step < total_steps:
        known = (loss(step), first, seconds(step)) if step else (math.nan, math.nan, math.nan)
        interval = lengths[-1] if lengths else 0
        length = clock.round_length(Facts(step, lr(step), *known, interval=interval, total_steps=total_steps))
        lengths.append(length)
        step += length
        if len(lengths) == 1:
            first = loss(step)
    return lengths


def ticks(lengths: list[int]) -> list[int]:
    return [sum(lengths[: i + 1]) for i in range(len(lengths))]


# ---- every clock, any facts ---------------------------------------------------------------------------------------

lengths = some.integers(1, 200) | some.integers(1, LONGEST)
steps = some.integers(0, 500) | some.integers(0, 10**12)
numbers = some.floats() | some.floats(1e-4, 10) | some.sampled_from([0.0, -1.0, 5e-324, 1e-300, 1e300])
simple: dict[str, some.SearchStrategy[Clock]] = {
    "EverySteps": some.builds(EverySteps, lengths),
    "EverySeconds": some.builds(EverySeconds, some.floats(5e-324, 1e308)),
    "Quadratic": some.builds(Quadratic, some.floats(5e-324, 1e308), lengths, some.integers(0, 500)),
    "Adaptive": some.builds(Adaptive, lengths, lengths),
    "Schedule": some.builds(
        lambda first, later: Schedule([(0, first), *sorted(later.items())]),
        lengths,
        some.dictionaries(some.integers(1, 500), lengths, max_size=4),
    ),
}


def _always(said: int | None, step: int) -> int | None:
    return said


kinds: dict[str, some.SearchStrategy[Clock]] = simple | {
    "Timed": some.builds(
        lambda clock, said, borders, begin: Timed(clock, partial(_always, said), borders, begin),
        some.one_of(*simple.values()), some.none() | lengths, some.lists(some.integers(1, 500)), some.integers(0, 9),
    ),
    "PostLocal": some.builds(PostLocal, some.integers(0, 500), some.one_of(*simple.values())),
}  # fmt: skip
anything = some.builds(
    Facts,
    step=steps,
    lr=numbers,
    mean_loss=numbers,
    first_loss=numbers,
    seconds_per_step=numbers,
    interval=some.integers(0, 500) | some.integers(0, LONGEST),
    total_steps=steps | steps.map(float) | some.just(math.inf) | some.floats(),
)


def test_every_clock_has_its_place_in_these_tests() -> None:
    assert set(kinds) == {kind.__name__ for kind in Clock.__subclasses__() if kind.__module__.startswith(f"{NAME}.")}


@pytest.mark.parametrize("kind", kinds)
@repeatable
@given(data=some.data(), facts=anything)
def test_a_round_is_a_whole_number_of_steps_that_training_still_has(kind: str, data: Any, facts: Facts) -> None:
    length = data.draw(kinds[kind]).round_length(facts)
    assert type(length) is int
    assert 1 <= length <= LONGEST
    if math.isfinite(facts.total_steps):
        assert length <= max(1, facts.total_steps - facts.step)


@pytest.mark.parametrize("kind", kinds)
@repeatable
@given(data=some.data(), facts=anything, others=some.lists(anything, max_size=3))
def test_every_worker_chooses_the_same_round_whatever_it_was_asked_before(
    kind: str, data: Any, facts: Facts, others: list[Facts]
) -> None:
    clock = data.draw(kinds[kind])
    before = pickle.dumps(clock)
    chosen = clock.round_length(facts)
    for other in others:
        clock.round_length(other)
    assert clock.round_length(facts) == chosen
    assert pickle.loads(before).round_length(pickle.loads(pickle.dumps(facts))) == chosen
    assert pickle.dumps(clock) == before


@pytest.mark.parametrize("kind", kinds)
@repeatable
@given(data=some.data(), total_steps=some.integers(1, 300))
def test_rounds_fill_the_training_exactly(kind: str, data: Any, total_steps: int) -> None:
    def falling(step: int) -> float:
        return 1.0 - step / total_steps

    assert sum(rounds(data.draw(kinds[kind]), total_steps, lr=falling, loss=falling)) == total_steps


@pytest.mark.parametrize(
    ("total_steps", "length"), [(math.inf, LONGEST), (100, 40), (100.0, 40), (61, 1), (60, 1), (10, 1), (-1, 1)]
)
def test_a_round_ends_with_training_and_is_never_of_absurd_length(total_steps: float, length: int) -> None:
    class Endless(Clock):
        def next_interval(self, facts: Facts) -> int:
            return 10**600

    chosen = Endless().round_length(Facts(step=60, lr=0.1, total_steps=total_steps))
    assert chosen == length
    assert type(chosen) is int


@pytest.mark.parametrize("chosen", [0, -3, 2.0, math.nan, True, None])
def test_a_clock_that_chooses_no_whole_number_of_at_least_1_is_named(chosen: Any) -> None:
    class Broken(Clock):
        def next_interval(self, facts: Facts) -> int:
            return chosen

    with pytest.raises(ValueError, match=r"^Broken chose an interval of .* steps; it must be a whole number, at least"):
        Broken().round_length(Facts(step=0, lr=0.1))


def test_a_clock_of_ones_own_is_labelled_by_its_name_and_settings() -> None:
    class FullMoon(Clock):
        def __init__(self) -> None:
            self.phase, self.otherwise = 3, EverySteps(8)

        def next_interval(self, facts: Facts) -> int:
            return 1

    assert FullMoon().label == "full moon phase=3, otherwise=8"


def test_clocks_need_no_torch() -> None:
    code = "import sys, ticks.strategy.clock; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


# ---- the rules ----------------------------------------------------------------------------------------------------


def test_every_steps_ticks_at_multiples_of_the_interval_wherever_a_round_starts() -> None:
    assert ticks(rounds(EverySteps(8), 20)) == [8, 16, 20]
    assert [EverySteps(8).round_length(Facts(step=step, lr=0.1)) for step in (0, 3, 7, 8)] == [8, 5, 1, 8]


@repeatable
@given(interval=some.integers(1, 50), total_steps=some.integers(1, 300))
def test_every_steps_ticks_at_each_multiple_and_nowhere_else(interval: int, total_steps: int) -> None:
    *between, last = ticks(rounds(EverySteps(interval), total_steps))
    assert between == list(range(interval, total_steps, interval))
    assert last == total_steps


@pytest.mark.parametrize(
    ("seconds_per_step", "length"),
    [
        (math.nan, 1),  # before the first tick
        (0.25, 40),
        (0.3, 33),  # 33.3
        (0.7, 14),  # 14.3
        (0.6, 17),  # 16.7
        (30.0, 1),
        (math.inf, 1),
        (0.0, 1),  # not measurable: look again after one step
        (1e-300, LONGEST),
    ],
)
def test_every_seconds_is_the_number_of_steps_nearest_to_the_time(seconds_per_step: float, length: int) -> None:
    facts = Facts(step=5, lr=0.1, seconds_per_step=seconds_per_step)
    assert EverySeconds(10).round_length(facts) == length


def test_every_seconds_follows_a_machine_that_slows_down() -> None:
    assert rounds(EverySeconds(1.0), 40, seconds=lambda step: 0.1 if step < 20 else 0.25) == [1, 10, 10, 4, 4, 4, 4, 3]


def test_post_local_is_ddp_until_its_step_and_then_the_other_clock() -> None:
    assert ticks(rounds(PostLocal(3, EverySteps(8)), 20)) == [1, 2, 3, 8, 16, 20]
    assert rounds(PostLocal(0, EverySteps(8)), 20) == [8, 8, 4]
    assert rounds(PostLocal(100, EverySteps(8)), 5) == [1] * 5


def test_the_clock_after_post_local_starts_anew() -> None:
    """Adaptive goes by the round that has just ended: a round of one step that it did not choose must not count."""
    assert rounds(PostLocal(4, Adaptive(16, block_steps=2)), 60, loss=lambda step: 1.0)[:8] == [1] * 4 + [16, 8, 4, 2]


@pytest.mark.parametrize(("lr", "length"), [(0.008, 4), (0.007, 6), (0.004, 19), (0.002, 76), (0.001, 306)])
def test_quadratic_gives_the_numbers_of_vit_b(lr: float, length: int) -> None:
    """arXiv 2310.14423: H_base 4, coefficient 0.0175, peak lr 0.008; (0.0175 / 0.008)^2 = 4.79."""
    assert Quadratic(0.0175, base_interval=4).round_length(Facts(step=1000, lr=lr)) == length


def test_quadratic_is_never_shorter_than_its_base() -> None:
    assert Quadratic(0.0175, base_interval=4).round_length(Facts(step=1000, lr=0.01)) == 4  # 3.06


def test_quadratic_keeps_its_base_in_warm_up_and_at_a_learning_rate_of_zero() -> None:
    clock = Quadratic(0.0175, base_interval=4, warmup_steps=50)
    assert [clock.round_length(Facts(step=step, lr=0.001)) for step in (0, 49, 50)] == [4, 4, 306]
    assert [clock.round_length(Facts(step=60, lr=lr)) for lr in (0.0, -0.1, math.nan)] == [4, 4, 4]


def test_quadratic_ends_with_training_however_small_the_learning_rate() -> None:
    assert Quadratic(0.0175).round_length(Facts(step=60, lr=1e-300, total_steps=100)) == 40
    assert Quadratic(0.0175).round_length(Facts(step=60, lr=1e-300)) == LONGEST


def test_quadratic_rounds_grow_as_the_learning_rate_decays() -> None:
    *grown, _ = rounds(Quadratic(0.0175), 2000, lr=lambda step: 0.008 * (1 - step / 2000))
    assert grown == sorted(grown)
    assert grown[0] == 4
    assert grown[-1] > 50


def adaptive(mean_loss: float, *, last: int = 32, first_loss: float = 4.0, step: int = 100) -> int:
    facts = Facts(step=step, lr=0.1, mean_loss=mean_loss, first_loss=first_loss, interval=last)
    return Adaptive(32, block_steps=100).round_length(facts)


@pytest.mark.parametrize(
    ("mean_loss", "last", "length"),
    [
        (1.0, 32, 16),  # sqrt(1/4) = 1/2
        (3.0, 32, 28),  # 27.7
        (2.25, 32, 24),
        (0.01, 32, 2),  # 1.6
        (0.0, 32, 1),
        (-1.0, 32, 1),
        (4.0, 32, 16),  # did not fall: half
        (9.0, 32, 16),  # rose
        (3.9, 32, 16),  # 31.6, which is 32 again
        (1.0, 16, 8),  # the formula says 16 again
        (1.0, 17, 16),
        (1.0, 15, 7),
        (1e300, 2, 1),
        (4.0, 1, 1),
    ],
)
def test_adaptive_follows_the_loss_and_halves_where_that_is_not_shorter(
    mean_loss: float, last: int, length: int
) -> None:
    assert adaptive(mean_loss, last=last) == length


@pytest.mark.parametrize(("step", "length"), [(64, 32), (96, 32), (100, 16), (128, 16), (131, 16), (132, 32)])
def test_adaptive_changes_only_after_a_round_that_reached_a_multiple_of_its_block(step: int, length: int) -> None:
    assert adaptive(1.0, step=step) == length


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_adaptive_keeps_its_interval_where_a_loss_means_nothing(wrong: float) -> None:
    assert adaptive(wrong, last=20) == 20
    assert adaptive(1.0, first_loss=wrong, last=20) == 20
    assert [adaptive(1.0, first_loss=loss, last=20) for loss in (0.0, -1.0)] == [20, 20]


def test_adaptive_starts_with_its_interval_and_shortens_block_by_block() -> None:
    """At 32 the loss has not fallen: half. At 64 the rule asks for 32 sqrt(1/16) = 8. At 96 it does so again: half."""
    chosen = rounds(Adaptive(32, block_steps=32), 120, loss=lambda step: 1.0 if step < 64 else 1 / 16)
    assert chosen == [32, 16, 16] + [8] * 4 + [4] * 6


@repeatable
@given(interval=lengths, block_steps=some.integers(1, 100), losses=some.lists(numbers, min_size=1, max_size=20))
def test_adaptive_never_grows(interval: int, block_steps: int, losses: list[float]) -> None:
    chosen = rounds(Adaptive(interval, block_steps), 299, loss=lambda step: losses[step % len(losses)])
    assert all(later <= earlier for earlier, later in pairwise(chosen))


def test_schedule_changes_exactly_at_its_steps() -> None:
    clock = Schedule([(0, 4), (10, 1), (12, 8)])
    assert rounds(clock, 30) == [4, 4, 2, 1, 1, 8, 8, 2]
    assert [clock.round_length(Facts(step=step, lr=0.1)) for step in (9, 10, 11, 12, 25)] == [1, 1, 1, 8, 8]


@repeatable
@given(data=some.data(), total_steps=some.integers(1, 600))
def test_a_round_starts_at_each_step_of_a_schedule(data: Any, total_steps: int) -> None:
    clock = data.draw(simple["Schedule"])
    starts = {0, *ticks(rounds(clock, total_steps))}
    assert {step for step, _ in clock.intervals if step <= total_steps} <= starts


def test_a_schedule_takes_lists_as_yaml_gives_them() -> None:
    assert Schedule([[0, 1], [100, 8]]).intervals == Schedule([(0, 1), (100, 8)]).intervals


@pytest.mark.parametrize(
    ("clock", "label"),
    [
        (EverySteps(8), "8"),
        (EverySeconds(10.0), "10 s"),
        (EverySeconds(0.25), "0.25 s"),
        (PostLocal(100, EverySteps(8)), "1 until 100, then 8"),
        (PostLocal(100, Quadratic(0.0175)), "1 until 100, then QSR a=0.0175, at least 4"),
        (Quadratic(0.0175, 4, 50), "QSR a=0.0175, at least 4"),
        (Adaptive(32), "32 falling with the loss"),
        (Schedule([(0, 1), (100, 8), (400, 32)]), "1, from 100: 8, from 400: 32"),
        (Schedule([(0, 8)]), "8"),
    ],
)
def test_labels_are_short(clock: Clock, label: str) -> None:
    assert clock.label == label


# ---- mistakes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EverySteps(0), "interval=0 must be at least 1 and at most 1000000000 steps"),
        (lambda: EverySteps(1.5), "interval=1.5 must be a whole number of steps"),
        (lambda: EverySteps(True), "interval=True must be a whole number of steps"),
        (lambda: EverySteps(10**10), "interval=10000000000 must be .* at most 1000000000"),
        (lambda: EverySeconds(0), "seconds=0 must be a finite number above 0"),
        (lambda: EverySeconds(-1.0), r"seconds=-1\.0 must be"),
        (lambda: EverySeconds(math.inf), "seconds=inf must be"),
        (lambda: EverySeconds(math.nan), "seconds=nan must be"),
        (lambda: EverySeconds(10**400), "seconds=10+ must be"),
        (lambda: EverySeconds("10"), "seconds='10' must be"),
        (lambda: PostLocal(-1, EverySteps()), "until=-1 must be at least 0"),
        (lambda: PostLocal(1, 8), r"then=8 must be a clock, for example EverySteps\(8\)"),
        (lambda: PostLocal(1, None), "then=None must be a clock"),
        (lambda: Quadratic(0.0), r"coefficient=0\.0 must be a finite number above 0"),
        (lambda: Quadratic(0.1, base_interval=0), "base_interval=0 must be at least 1 and at most 1000000000 steps"),
        (lambda: Quadratic(0.1, warmup_steps=-1), "warmup_steps=-1 must be at least 0"),
        (lambda: Adaptive(0), "interval=0 must be"),
        (lambda: Adaptive(8, block_steps=0), "block_steps=0 must be at least 1"),
        (lambda: Schedule([]), r"intervals=\[\] must be a list of \[from_step, interval\], for example \[\[0, 1\]"),
        (lambda: Schedule(8), "intervals=8 must be a list"),
        (lambda: Schedule("08"), "intervals='08' must be a list"),
        (lambda: Schedule([0, 8]), r"intervals=\[0, 8\] must be .*: 0 is not a pair"),
        (lambda: Schedule([[0, 8, 9]]), r": \[0, 8, 9\] is not a pair"),
        (lambda: Schedule([[5, 8]]), r"intervals=\[\[5, 8\]\] must be .*: the first from_step is 5, not 0"),
        (lambda: Schedule([[0, 8], [5, 2], [3, 4]]), ": from_step must rise, and 3 follows 5"),
        (lambda: Schedule([[0, 8], [0, 4]]), ": from_step must rise, and 0 follows 0"),
        (lambda: Schedule([[0, 8], [5.0, 4]]), r": from_step=5\.0 is not a whole number of steps, at least 0"),
        (lambda: Schedule([[-1, 8], [5, 4]]), ": from_step=-1 is not a whole number"),
        (lambda: Schedule([[0, 8], [5, 0]]), ": interval=0 is not a whole number of steps, at least 1"),
        (lambda: Schedule([[0, "8"]]), ": interval='8' is not a whole number"),
        (lambda: Schedule([[0, True]]), ": interval=True is not a whole number"),
    ],
)
def test_a_setting_that_makes_no_sense_is_named_with_what_would(make: Callable[[], Clock], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


# ---- configuration ------------------------------------------------------------------------------------------------


def composed(*overrides: str) -> Clock:
    config = compose_strictly(overrides, REPOSITORY / "configs")
    check_targets(config.strategy.clock, "strategy.clock")
    return build(config.strategy.clock, "strategy.clock")


@pytest.mark.parametrize(
    ("overrides", "label"),
    [
        ([], "8"),
        (["strategy/clock=every_seconds"], "10 s"),
        (["strategy/clock=post_local"], "1 until 50, then 8"),
        (["strategy/clock=post_local", "strategy.clock.then.interval=16"], "1 until 50, then 16"),
        (
            ["strategy/clock=post_local", "strategy/clock@strategy.clock.then=quadratic"],
            "1 until 50, then QSR a=0.011, at least 4",
        ),
        (
            ["strategy/clock=post_local", "strategy/clock@strategy.clock.then=adaptive", "debug=fast"],
            "1 until 2, then 32 falling with the loss",
        ),
        (["strategy/clock=quadratic"], "QSR a=0.011, at least 4"),
        (["strategy/clock=adaptive", "strategy.clock.interval=64"], "64 falling with the loss"),
        (["strategy/clock=schedule"], "1, from 100: 8, from 400: 32"),
        (["strategy/clock=schedule", "strategy.clock.intervals=[[0,2],[9,4]]"], "2, from 9: 4"),
    ],
)
def test_each_yaml_makes_its_clock(overrides: list[str], label: str) -> None:
    assert composed(*overrides).label == label


def test_quadratic_takes_the_warm_up_of_the_task_and_its_peak_gives_the_base() -> None:
    clock = composed("strategy/clock=quadratic", "schedule.warmup_steps=7")
    assert isinstance(clock, Quadratic)
    assert clock.warmup_steps == 7
    lr = compose_strictly([], REPOSITORY / "configs").optimizer.lr
    assert clock.round_length(Facts(step=100, lr=lr)) == clock.base_interval


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["post_local", "strategy.clock.then.interval=0"], "strategy.clock.then.interval=0 must be at least 1"),
        (["post_local", "strategy.clock.thn.interval=4"], "did you mean 'then'?"),
        (["post_local", "strategy/clock@strategy.clock.then=quadratik"], "did you mean 'quadratic'?"),
        (["post_local", "strategy.clock.then=8"], "strategy.clock.then=8 must be ticks.strategy.clock.Clock"),
        (["schedule", "strategy.clock.intervals=[[1,8]]"], "strategy.clock.intervals=[[1, 8]] must be a list"),
        (["every_seconds", "strategy.clock.seconds=-1"], "strategy.clock.seconds=-1 must be a finite number above 0"),
        (["quadratic", "strategy.clock.coefficient=0"], "strategy.clock.coefficient=0 must be a finite number"),
    ],
)
def test_a_mistake_in_the_configuration_is_one_message(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        composed(f"strategy/clock={overrides[0]}", *overrides[1:])
    assert message in str(error.value)
    assert "\n" not in str(error.value)
