"""Stopping together without talking at every step.

Lightning asks "did anyone get SIGTERM?" with a broadcast before every batch, and broadcasts inside its signal handler,
which hangs. Here a signal only sets a flag. A heartbeat thread carries it, through the process group's key-value
store, about once a second; nobody waits for it. Agreement on the step to stop at:

1. a worker's thread posts `stop`; every thread sees it and publishes, under a lock, the step its worker is attempting;
2. between two steps a worker that has published waits for the others' numbers; all stop after the largest of them.

A worker that waits in a tick for another one has published that tick's step through its thread, so the other gets
there: no deadlock, and every worker stops after the same step.

A validation is long, so what they agree on is a place in training: a step, or a batch of the validation after it. Such
a validation is left there by all, and begun anew when the run is resumed. Who has had its last batch waits for the
others before numbers are exchanged: either all leave, or all go on.
"""

import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from lightning.pytorch.utilities.exceptions import SIGTERMException

from ticks.strategy.meeting import all_there

A_STEP = 1 << 32  # places in training: a step, then the batches of a validation
POLL_SECONDS = 0.1  # how often the thread looks at its own worker's flag


class Stopped(SIGTERMException):
    """Training was asked to stop by a signal and did, with a checkpoint. Leaves the process with 128 + signal."""

    def __init__(self, signum: int, step: int, checkpoint: str | None) -> None:
        super().__init__(128 + signum)
        self.signum = signum
        self.step = step
        self.checkpoint = checkpoint


_connection: tuple[Any, Any] | None = None  # the process group's store, and a second connection to it


def connection_of_threads(seconds: float) -> Any:
    """A connection to the process group's store that the main thread does not use: it may wait there.

    One for all threads and fits: torch asks for a name of the address at each new one, which a bad name server answers
    after 5 seconds.
    """
    global _connection
    base: Any = dist.distributed_c10d._get_default_store()
    if _connection is None or _connection[0] is not base:
        _connection = (base, base.clone() if hasattr(base, "clone") else base)
    _connection[1].set_timeout(timedelta(seconds=seconds))
    return _connection[1]


class Heartbeat:
    """One worker's thread. `state()` is how many steps are done and whether this worker waits in a message.

    `abort(message)` must not return: it is called when the store is gone, or a worker has not moved for `hang_seconds`
    while another waits for it.
    """

    def __init__(
        self,
        rank: int,
        world_size: int,
        *,
        name: str,
        seconds: float,
        hang_seconds: float,
        state: Callable[[], tuple[int, bool]],
        abort: Callable[[str], None],
    ) -> None:
        self.name = name  # the same on all workers, another one for each fit
        self.rank = rank
        self.world_size = world_size
        self.seconds = seconds
        self.hang_seconds = hang_seconds
        self.state = state
        self.abort = abort
        self.signum: int | None = None  # set by the signal handler, read by the thread
        self._lock = threading.Lock()
        self._attempted = 0  # a place in training
        self._published = False
        self._stop_at: int | None = None
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to beat. With one worker there is nobody to tell, and no thread."""
        if self.world_size == 1:
            return
        base: Any = dist.distributed_c10d._get_default_store()
        prefix = f"ticks/heartbeat/{self.name}"
        self._store = dist.PrefixStore(prefix, base)
        self._thread_store = dist.PrefixStore(prefix, connection_of_threads(self.hang_seconds))
        self._thread = threading.Thread(target=self._run, name="ticks-heartbeat", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop beating. A last number is published, so that nobody waits for this worker."""
        if self._thread is None:
            return
        self._closed.set()
        self._thread.join(5.0)  # it may wait for a store that is gone
        self._thread = None
        if not self._published:
            with suppress(RuntimeError):
                self._store.set(f"at/{self.rank}", str(self._attempted))

    def stop_now(self, completed: int) -> int | None:
        """The signal to stop for if every worker stops after step `completed`, else None: the next step may start."""
        return self._stop_between(completed * A_STEP + A_STEP - 1, (completed + 1) * A_STEP)

    def stop_validating(self, completed: int, batches: int) -> int | None:
        """The same after so many batches of the validation that follows step `completed`."""
        return self._stop_between(completed * A_STEP + batches, completed * A_STEP + batches + 1)

    def asked(self) -> int:
        """The signal that all stop for, where they do: the first, if several were sent."""
        if self._thread is None:
            assert self.signum is not None
            return self.signum
        return int(self._store.get("stop"))

    def _stop_between(self, done: int, attempted: int) -> int | None:
        if self.world_size == 1 or self._thread is None:
            return self.signum
        with self._lock:
            if not self._published:
                self._attempted = attempted
                return None
        if self._stop_at is None:
            keys = [f"at/{rank}" for rank in range(self.world_size)]
            if not all_there(self._store, keys, self.hang_seconds):
                raise RuntimeError(f"not every worker has said for {self.hang_seconds:g} s where it can stop")
            self._stop_at = max(int(self._store.get(key)) for key in keys)
        return self.asked() if done >= self._stop_at else None

    def _run(self) -> None:
        posted, next_beat, awake = False, 0.0, Awake(self.seconds)
        moved: dict[int, tuple[bytes, float]] = {}  # by worker: its state, and when it was new
        try:
            while not self._closed.wait(POLL_SECONDS):
                urgent = self.signum is not None and not posted
                if time.monotonic() < next_beat and not urgent:
                    continue
                next_beat = time.monotonic() + self.seconds
                steps, waits = self.state()
                self._thread_store.set(f"state/{self.rank}", f"{steps} {int(waits)}")
                if urgent:
                    self._thread_store.set("stop", str(self.signum))
                    posted = True
                if not self._published and self._thread_store.check(["stop"]):
                    with self._lock:
                        self._thread_store.set(f"at/{self.rank}", str(self._attempted))
                        self._published = True
                if self.rank == 0:
                    self._watch(moved, awake.seconds())
        except RuntimeError:  # the store, which lives with worker 0, does not answer
            if not self._closed.is_set():
                self.abort("worker 0 is gone or hangs")

    def _watch(self, moved: dict[int, tuple[bytes, float]], now: float) -> None:
        for rank in range(self.world_size):
            key = f"state/{rank}"
            state = self._thread_store.get(key) if self._thread_store.check([key]) else b""
            if rank not in moved or moved[rank][0] != state:
                moved[rank] = (state, now)
        still = {
            rank: tuple(int(number) for number in state.split())
            for rank, (state, at) in moved.items()
            if state and now - at > self.hang_seconds
        }
        waiting = [rank for rank, (_, waits) in still.items() if waits]
        for rank, (steps, waits) in still.items():
            if waiting and not waits:
                self.abort(f"worker {rank} has been in step {steps + 1} for {self.hang_seconds:g} s while worker"
                           f" {waiting[0]} waits for it")  # fmt: skip


class Awake:
    """Seconds that this process was not stopped: after Ctrl-Z and fg nobody has hung."""

    def __init__(self, beat: float) -> None:
        self._most = 2 * beat  # between two looks
        self._last, self._sum = time.monotonic(), 0.0

    def seconds(self) -> float:
        now = time.monotonic()
        self._sum += min(now - self._last, self._most)
        self._last = now
        return self._sum


class Presence:
    """One worker's sign of life, from the meeting to the end of fit, validate or test; worker 0's look at the others'.

    `abort(message)` must not return: it is called when a worker, or worker 0's store, is silent for `hang_seconds`.
    `store` is a connection that nobody else uses, where there is no process group yet.
    """

    def __init__(
        self,
        rank: int,
        world_size: int,
        *,
        name: str,
        seconds: float,
        hang_seconds: float,
        abort: Callable[[str], None],
        store: Any = None,
    ) -> None:
        self.rank, self.world_size = rank, world_size
        self.seconds, self.hang_seconds = seconds, hang_seconds
        self.abort = abort
        self._store = dist.PrefixStore(f"ticks/presence/{name}", store or connection_of_threads(hang_seconds))
        self._closed = threading.Event()
        self._beats = 0  # that the store has answered
        self._thread = threading.Thread(target=self._run, name="ticks-presence", daemon=True)
        self._thread.start()
        if rank != 0:  # torch waits for the answer of a stopped worker 0 without an end
            threading.Thread(target=self._miss_worker_0, name="ticks-missing", daemon=True).start()

    def close(self) -> None:
        """This worker is through: silence means nothing any more."""
        self._closed.set()
        self._thread.join(5.0)  # it may wait for a store that is gone

    def _run(self) -> None:
        awake = Awake(self.seconds)
        seen: dict[int, tuple[bytes, float]] = {}  # by worker: its last sign, and when it was new
        try:
            while not self._closed.wait(self.seconds if self._beats else 0.0):
                self._store.set(str(self.rank), str(self._beats))
                self._store.check([str(self.rank)])  # waits for an answer
                self._beats += 1
                if self.rank == 0:
                    self._watch(seen, awake.seconds())
            self._store.set(str(self.rank), "through")
        except RuntimeError:
            if not self._closed.is_set():
                self.abort("worker 0 is gone or hangs")

    def _miss_worker_0(self) -> None:
        awake = Awake(self.seconds)
        beats, since = -1, 0.0
        while not self._closed.wait(self.seconds):
            if self._beats != beats:
                beats, since = self._beats, awake.seconds()
            elif awake.seconds() - since > self.hang_seconds:
                self.abort("worker 0 is gone or hangs")

    def _watch(self, seen: dict[int, tuple[bytes, float]], now: float) -> None:
        for rank in range(self.world_size):
            sign = self._store.get(str(rank)) if self._store.check([str(rank)]) else b""
            if rank not in seen or seen[rank][0] != sign:
                seen[rank] = (sign, now)
            elif sign != b"through" and now - seen[rank][1] > self.hang_seconds:
                self.abort(f"worker {rank} has not answered for {self.hang_seconds:g} s")


def leave(message: str) -> None:
    """Print one line and end this process at once, whatever its other threads wait for."""
    print(f"ticks: {message}; stopping", file=sys.stderr, flush=True)
    os._exit(1)
