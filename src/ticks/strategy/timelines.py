"""What a strategy does for those who say what happens when (ticks.timeline, or a callback of yours)."""

from collections.abc import Callable
from typing import Any

from ticks.strategy.rounds import Rounds


class ForTimelines:
    """A part of TickStrategy.

    `seconds_of_training` is set to what says how long this worker has trained: it travels with a tick's facts, and
    `agreed_seconds` is the slowest worker's. `constraints` put the parameters right, in place and alike on all workers,
    whenever something has arrived from others.
    """

    lightning_module: Any
    _rounds: Rounds
    _stop_agreed: bool

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.seconds_of_training: Callable[[], float] = lambda: 0.0
        self.constraints: list[Callable[[], None]] = []

    @property
    def agreed_seconds(self) -> float:
        """The most `seconds_of_training` of any worker at the last tick."""
        return self._rounds.known.elapsed

    def everywhere(self, change: Callable[[], None]) -> None:
        """`change`, which alters the module's tensors in place and is the same on all workers, is done to what this
        worker has and to the anchor. No message."""
        change()
        if self._rounds.exchange is not None:
            self._rounds.exchange.change_anchor(change)

    def stop_together(self) -> None:
        """Training ends after this step; every worker says so."""
        self._stop_agreed = self.lightning_module.trainer.should_stop = True
