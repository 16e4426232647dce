"""The ledger: what this worker sent, in how many messages, and the seconds it spent doing so."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass


@dataclass
class Ledger:
    """Totals since the start of the run, resumed runs included.

    `bytes_sent` and `messages` are the training's own; what evaluation and checkpoints in the middle of a round cost
    is kept apart in `measuring_bytes` (it would vanish if they fell on ticks). `seconds` includes waiting for others.
    `ddp_bytes` is what DDP would have sent by now: one fp32 gradient all-reduce a step.
    """

    ticks: int = 0
    messages: int = 0
    bytes_sent: int = 0
    measuring_bytes: int = 0
    seconds: float = 0.0
    ddp_bytes: int = 0
    waiting = False  # inside a message right now; not part of the totals

    def sent(self, n_bytes: int) -> None:
        """One message of `n_bytes` left for training."""
        self.bytes_sent += n_bytes
        self.messages += 1

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Add the seconds of the block."""
        start, self.waiting = time.perf_counter(), True
        try:
            yield
        finally:
            self.waiting = False
            self.seconds += time.perf_counter() - start

    def state_dict(self) -> dict[str, float]:
        return asdict(self)

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.__dict__.update(state)
