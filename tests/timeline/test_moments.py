"""Moments and entries as people write them."""

import math
from typing import Any

import pytest

from ticks.arguments import ArgumentError
from ticks.timeline import LrFactor, Save
from ticks.timeline.moments import Track, entry, moment


@pytest.mark.parametrize(
    ("said", "kind", "n"),
    [
        (100, "steps", 100), ("100", "steps", 100), ("100 steps", "steps", 100), (0, "steps", 0),
        ("50%", "steps", 320), ("12.5%", "steps", 80), ("100%", "steps", 640), ("tick 12", "ticks", 12),
        ("30s", "seconds", 30), ("20min", "seconds", 1200), ("1.5 h", "seconds", 5400),
    ],
)  # fmt: skip
def test_a_moment_is_read(said: Any, kind: str, n: float) -> None:
    found = moment("x", said, 640)
    assert (found.kind, found.n) == (kind, n)


@pytest.mark.parametrize("said", ["soon", "-1", -1, 1.5, True, "12 tick 3", "5 minutes", "50 %%", None, "", "12 ticks"])
def test_what_is_none_is_named(said: Any) -> None:
    with pytest.raises(
        ArgumentError, match=r"save\.at=.* must be a(t least 0| number of steps, 50%, tick 12, 30s, 20min)"
    ):
        moment("save.at", said, 640)


def test_a_length_is_above_0_and_of_ticks_in_their_plural() -> None:
    assert moment("x", "4 ticks", 640, length=True).kind == "ticks"
    assert moment("x", "0.5s", 640, length=True).n == 0.5
    for said in (0, "0 ticks", "0%", "0s"):
        with pytest.raises(ArgumentError, match="must be above 0"):
            moment("x", said, 640, length=True)


def test_a_share_needs_an_end() -> None:
    with pytest.raises(ArgumentError, match="is a share of a run without an end"):
        moment("x", "50%", math.inf)


def shares(**said: Any) -> list[float]:
    """In steps 1 to 8 of 8."""
    one = entry("it", {key.rstrip("_"): value for key, value in said.items()} | {"do": LrFactor(end=0.0)}, 8)
    return [round(one.share(step), 3) for step in range(1, 9)]


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({}, [1, 1, 1, 1, 1, 1, 1, 1]),
        ({"from_": 3}, [0, 0, 0, 1, 1, 1, 1, 1]),
        ({"from_": 3, "until": 5}, [0, 0, 0, 1, 1, 0, 0, 0]),
        ({"ramp": 4}, [0.25, 0.5, 0.75, 1, 1, 1, 1, 1]),
        ({"from_": "25%", "ramp": 3, "until": 6}, [0, 0, 0.333, 0.667, 1, 1, 0, 0]),
        ({"from_": 2, "ramp": 10, "until": 5}, [0, 0, 0.1, 0.2, 0.3, 0, 0, 0]),
    ],
)  # fmt: skip
def test_how_far_a_setting_is_at_every_step(said: dict[str, Any], expected: list[float]) -> None:
    assert shares(**said) == expected


def test_the_next_change_is_never_missed_and_steps_of_rest_are_skipped() -> None:
    for said in ({"from": 3}, {"from": 3, "until": 5}, {"ramp": 4}, {"from": 2, "ramp": 3, "until": 6}, {}):
        one = entry("it", {**said, "do": LrFactor(end=0.0)}, 8)
        looks, step = {1}, 1
        while (step := one.next_change(step)) <= 8:  # type: ignore[assignment]
            looks.add(step)
        value = one.share(1)
        for step in range(1, 9):
            if step in looks:
                value = one.share(step)
            assert value == one.share(step), (said, step)
    assert entry("it", {"from": 3, "do": LrFactor(end=0.0)}, 8).next_change(4) == math.inf


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"at": 3}, [3]), ({"at": [2, "75%"]}, [2, 6]), ({"every": 3}, [3, 6]),
        ({"every": "25%", "from": 3}, [4, 6, 8]), ({"every": 2, "until": 5}, [2, 4]), ({"at": 0}, [0]),
    ],
)  # fmt: skip
def test_after_which_steps_an_event_happens(said: dict[str, Any], expected: list[int]) -> None:
    one = entry("it", {**said, "do": Save()}, 8)
    found, step = [], -1.0
    while (step := one.next_moment("steps", step)) <= 8:
        found.append(int(step))
    assert [step for step in found if step or "at" in said] == expected
    assert [s for s in range(9) if one.due("steps", s - 1, s) and one.begin < s + ("at" in said) and s <= one.until
            and (s or "at" in said)] == expected  # fmt: skip


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"when": 3, "do": Save()}, "it.when=3 is unknown; known: at, every, from, until, ramp, do"),
        ({"at": 3}, "it.do=None must be an action"),
        ({"at": 3, "every": 3, "do": Save()}, "must have at: or every:, and not both"),
        ({"do": Save()}, "must have at: or every:"),
        ({"at": 9, "do": Save()}, "it.at=9 is behind the end: 9, the run has 8 steps"),
        ({"at": 3, "ramp": 3, "do": Save()}, "it.ramp=3 is for settings; Save is an event"),
        ({"at": 3, "until": 3, "do": Save()}, "it.until=3 is for what happens every so often"),
        ({"at": 3, "do": LrFactor(end=0.0)}, "it.at=3 is for events; LrFactor is a setting, which holds from:"),
        ({"from": "tick 3", "do": LrFactor(end=0.0)}, "it.from='tick 3' must be a number of steps or a share of them"),
        ({"from": 5, "until": 4, "do": LrFactor(end=0.0)}, "it.until=4 must be behind from=5"),
        ({"from": 8, "do": LrFactor(end=0.0)}, "it.from=8 is the end of the run, which has 8 steps"),
        ({"every": 9, "do": Save()}, "it.every=9 never comes in the run's 8 steps"),
        ({"every": "150%", "do": Save()}, "it.every='150%' never comes in the run's 8 steps"),
        ({"every": 2, "from": 50, "do": Save()}, "it.every=2 never comes in the run's 8 steps from 50"),
        ({"every": 2, "from": 5, "until": 3, "do": Save()}, "it.every=2 never comes in the run's 8 steps from 5 until"),
        ({"every": "5%", "do": Save()}, "it.every='5%' of 8 steps is less than one"),
        ({"at": "0s", "do": Save()}, "it.at='0s' must be above 0; before the first step it is 0"),
        ({"at": "tick 0", "do": Save()}, "it.at='tick 0' must be above 0; before the first step it is 0"),
    ],
)  # fmt: skip
def test_an_entry_that_cannot_be_is_named(said: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError) as error:
        entry("it", said, 8)
    assert message in str(error.value)


def test_two_settings_of_one_value_take_turns_or_are_refused() -> None:
    def track(*saids: dict[str, Any]) -> Track:
        found = Track("the lr", [entry(f"e{i}", said, 8) for i, said in enumerate(saids)])
        found.check()
        return found

    half, tenth = LrFactor(end=0.5), LrFactor(end=0.1)
    turns = track({"from": 5, "do": tenth}, {"from": 2, "until": 5, "do": half})
    assert [turns.value(step) for step in range(1, 9)] == [1, 1, 0.5, 0.5, 0.5, 0.1, 0.1, 0.1]
    with pytest.raises(ArgumentError, match=r"e1=.* sets the lr while e0 does .*; give e0 an until:"):
        track({"from": 2, "do": half}, {"from": 5, "do": tenth})
    with pytest.raises(ArgumentError, match="has another start for the lr than e0"):
        track({"from": 2, "until": 3, "do": half}, {"from": 5, "do": LrFactor(start=0.9, end=0.1)})
