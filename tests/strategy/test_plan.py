"""What a round sends after which step is a plan, made at its start from what all workers know."""

from typing import Any

import pytest

from ticks.strategy import Accumulate, Gradients, Hierarchical, Parameters, Streaming, Sync
from ticks.strategy.facts import Round
from ticks.strategy.plan import Plan


def plan(sync: Sync, length: int = 8, **said: Any) -> Plan:
    """Of the round behind step 16."""
    usual = {"as_ddp": False, "lockstep": False, "is_last": False, "n_fragments": 1}
    return Plan.of(Round(interval=length, end=16 + length), sync, **(usual | said))


def test_fragments_leave_spread_over_the_round_and_the_last_one_at_its_end() -> None:
    assert plan(Streaming(fragments=4), n_fragments=4).sends == {18: [0], 20: [1], 22: [2]}
    assert plan(Streaming(fragments=4), 2, n_fragments=4).sends == {17: [0, 1, 2]}
    assert plan(Streaming(fragments=4), 1, n_fragments=4).sends == {}


def test_in_the_last_round_everything_leaves_at_its_end() -> None:
    assert plan(Streaming(fragments=4), n_fragments=4, is_last=True) == Plan()


def test_groups_meet_inside_the_round() -> None:
    assert list(plan(Hierarchical(group_size=1, inner_interval=3)).group_offsets) == [3, 6]


@pytest.mark.parametrize(
    ("sync", "said", "by_gradients", "accumulates"),
    [
        (Parameters(), {}, False, False),
        (Parameters(), {"as_ddp": True}, True, False),
        (Accumulate(), {}, True, True),
        (Accumulate(), {"as_ddp": True}, True, False),
        (Gradients(), {"lockstep": True}, False, False),
        (Gradients(), {"lockstep": True, "length": 1}, True, False),
        (Gradients(), {"length": 1}, False, False),  # optimizers have seen different gradients: parameters must travel
    ],
)
def test_a_round_whose_gradients_say_all_sends_no_parameters(
    sync: Sync, said: dict[str, Any], by_gradients: bool, accumulates: bool
) -> None:
    made = plan(sync, **said)
    assert (made.by_gradients, made.accumulates) == (by_gradients, accumulates)


def test_alone_there_is_nobody_to_send_anything_to() -> None:
    assert plan(Streaming(fragments=4), n_fragments=0) == Plan()
