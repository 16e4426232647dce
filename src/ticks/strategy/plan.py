"""The plan of a round: what is sent after which of its steps. A function of what all workers know."""

from dataclasses import dataclass, field

from ticks.strategy.facts import Round
from ticks.strategy.sync import Sync


@dataclass(frozen=True)
class Plan:
    """What there is in a round besides its steps."""

    accumulates: bool = False  # gradients are added up for the one step of the optimizers, at its end
    by_gradients: bool = False  # it has one message, of gradients
    sends: dict[int, list[int]] = field(default_factory=dict)  # by step: the fragments that leave before its end
    group_offsets: range = range(0)  # after which of its steps groups meet

    @classmethod
    def of(cls, round: Round, sync: Sync, *, as_ddp: bool, lockstep: bool, is_last: bool, n_fragments: int) -> "Plan":
        """`as_ddp`: whatever the rule; `lockstep`: the optimizers have always seen the same; `n_fragments`: 0 if there
        is nobody to send them to; in the last round of a run all of them are sent at its end."""
        start, length = round.start, round.interval
        accumulates = not as_ddp and not sync.steps_locally
        if as_ddp or accumulates or (sync.averages_gradients and lockstep and length == 1):
            return cls(accumulates, by_gradients=True)
        if not n_fragments:
            return cls()
        sends: dict[int, list[int]] = {}
        for fragment in range(0 if is_last else n_fragments):
            offset = max(1, length * (fragment + 1) // n_fragments)
            if offset < length:
                sends.setdefault(start + offset, []).append(fragment)
        return cls(sends=sends, group_offsets=sync.group_offsets(length))
