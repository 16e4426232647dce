"""How workers find each other before there is a process group, and come together later where it has no say.

Both go through a key-value store that worker 0 hosts.
torch would wait for the others inside C++, where no signal handler runs. Here every wait is a loop in Python that a
signal ends, that says what it waits for, and that gives up where a worker has died.
"""

import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from ticks.strategy.wire import out_of_step

log = logging.getLogger(__name__)
TRY_SECONDS = 2  # to reach worker 0, once: inside C++
POLL_SECONDS = 0.05
FAILURE_SECONDS = 5.0  # for the others to fail as well, where an exception is to be saved
RESOLVER = "timeout:1 attempts:3"  # as resolv.conf(5) says
PATIENCE = 30.0  # seconds of silence before a worker says what it waits for: imports take their time on a busy disk


class NoMeeting(OSError):
    """Workers could not find each other. Its text is the whole message."""


def host(port: int, seconds: timedelta) -> dist.TCPStore:
    """Worker 0's store; port 0 takes a free one (`.port` tells). NoMeeting if the port is taken.

    It listens on all addresses of this machine. Worker 0 itself does not go by the name that the others use: if that
    is another machine's, torch would wait for it.
    """
    _ask_names_again_soon()
    try:
        return dist.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False, timeout=seconds)
    except RuntimeError as error:  # torch's DistNetworkError
        why = "is in use" if "EADDRINUSE" in str(error) else f"cannot be used ({str(error).splitlines()[0]})"
        raise NoMeeting(f"MASTER_PORT={port} {why} on this machine: choose another one") from None


def join(address: str, port: int, seconds: timedelta, *, who: str) -> dist.TCPStore:
    """The store that worker 0 hosts; its own timeout is short. NoMeeting if there is none for `seconds`."""
    _ask_names_again_soon()
    attempt = _Attempt(address, port)
    for _ in _waiting(seconds, f"{who} waits for worker 0 at {address}:{port} (MASTER_ADDR, MASTER_PORT)"):
        attempt.join(TRY_SECONDS)
        if attempt.store is not None:
            return attempt.store
        if not attempt.is_alive():
            attempt = _Attempt(address, port)
    raise AssertionError("unreachable")


def _ask_names_again_soon() -> None:
    """Unless somebody has said how long. torch asks the name server, at both ends of every connection, who 127.0.0.1
    is; a question that gets lost is asked again after 5 seconds, and nobody trains meanwhile."""
    os.environ.setdefault("RES_OPTIONS", RESOLVER)


class _Attempt(threading.Thread):
    """To reach a store, in a thread: torch waits without an end for the first words of a worker 0 that is stopped."""

    def __init__(self, address: str, port: int) -> None:
        super().__init__(name="ticks-join", daemon=True)
        self.address, self.port = address, port
        self.store: dist.TCPStore | None = None
        self.start()

    def run(self) -> None:
        once = timedelta(seconds=TRY_SECONDS)
        with suppress(OSError, RuntimeError):  # nobody there yet, or somebody else
            socket.create_connection((self.address, self.port), timeout=TRY_SECONDS).close()
            self.store = dist.TCPStore(self.address, self.port, is_master=False, wait_for_workers=False, timeout=once)


def gather(
    store: dist.Store, rank: int, world_size: int, seconds: timedelta, *, how: str, check: Callable[[], None]
) -> None:
    """Until every worker is here. NoMeeting names who did not come; `check` may raise what else is known; `how` they
    are to come is said where it takes long."""
    store.set(f"here/{rank}", "")
    missing = list(range(world_size))
    with suppress(NoMeeting):
        for _ in _waiting(seconds, f"worker {rank} waits for the other workers, {world_size} in all, {how}"):
            check()
            missing = [other for other in missing if not store.check([f"here/{other}"])]
            if not missing:
                return
    raise NoMeeting(f"workers {missing} of {world_size} did not come within {seconds.total_seconds():.0f} s")


def place(name: str) -> Any:
    """Where all workers find what the others have left under this name, once there is a process group."""
    return dist.PrefixStore(f"ticks/{name}", dist.distributed_c10d._get_default_store())


class Meetings:
    """Where the workers of one fit, validate or test come together outside of ticks, each after the same step.

    `name` is the same on all of them.
    """

    def __init__(self, name: str, rank: int, world_size: int) -> None:
        self.name = name
        self.rank = rank
        self.world_size = world_size
        self._number = 0  # of the next one
        self._failed_alike: bool | None = None  # once this worker has failed

    def meet(self, meaning: str, seconds: float, *, note: str = "") -> None:
        """OutOfStep if others come for something else; RuntimeError names who is not there for so many seconds."""
        if self.world_size == 1:
            return
        self._number += 1
        store, ranks = place(f"meet/{self.name}/{self._number}"), range(self.world_size)
        store.set(str(self.rank), meaning)
        if not all_there(store, [str(rank) for rank in ranks], seconds):
            missing = {rank: "elsewhere" for rank in ranks if not store.check([str(rank)])}
            told = {self.rank: f"{meaning}{note}, for {seconds:g} s"}
            raise RuntimeError(str(out_of_step(told | missing)))
        meanings = {rank: store.get(str(rank)).decode() for rank in ranks}
        if len(set(meanings.values())) > 1:
            raise out_of_step(meanings)

    def all_fail(self, meaning: str) -> bool:
        """Whether every worker fails like this: only then can they still talk, and save. Said once."""
        if self._failed_alike is None:
            self._failed_alike = self.world_size == 1 or not dist.is_initialized() or self._fail(meaning)
        return self._failed_alike

    def _fail(self, meaning: str) -> bool:
        ranks = [str(rank) for rank in range(self.world_size)]
        try:
            store = place(f"failed/{self.name}")
            store.set(str(self.rank), meaning)
            came = all_there(store, ranks, FAILURE_SECONDS)
            alike = came and len({store.get(rank) for rank in ranks}) == 1
        except RuntimeError:  # the store, which lives with worker 0, is gone
            alike = False
        if not alike:
            log.warning("worker %d failed by itself: no checkpoint of the exception is saved", self.rank)
        return alike


def all_there(store: dist.Store, keys: Sequence[str], seconds: float) -> bool:
    """Wait until the store has every key; False if it has not after so many seconds."""
    return any(store.check(list(keys)) for _ in looks(seconds))


def looks(seconds: float) -> Iterator[None]:
    """Look at once, soon, then every POLL_SECONDS, and for the last time after so many seconds."""
    deadline, pause = time.monotonic() + seconds, 0.0005
    while True:
        yield
        if time.monotonic() > deadline:
            return
        time.sleep(pause)
        pause = min(1.5 * pause, POLL_SECONDS)


def _waiting(seconds: timedelta, what: str) -> Iterator[None]:
    began, told = time.monotonic(), False
    while (waited := time.monotonic() - began) < seconds.total_seconds():
        yield
        if waited > PATIENCE and not told:
            print(f"ticks: {what}", file=sys.stderr, flush=True)
            told = True
        time.sleep(POLL_SECONDS)
    raise NoMeeting(f"{what}: nothing for {seconds.total_seconds():.0f} s")
