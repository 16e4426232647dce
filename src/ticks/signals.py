"""Signals outside training.

Inside training a stop is agreed between the workers (strategy/shutdown.py). Everywhere else, from the first import to
the last write, a signal leaves through the usual clean-up, and a thread sees to it that this takes seconds, wherever
the process waits. This module imports nothing but the standard library.
"""

import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

from ticks.strategy.exits import STOPS

LEAVE_SECONDS = 6.0  # for the usual clean-up, before everything is left as it stands


def leave_on_signals() -> None:
    """While there is nothing to clean up yet, a signal ends this process with 128 + signal and without a word."""
    _install(_leave_at_once)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)  # workers are started deaf


def _leave_at_once(signum: int, frame: Any) -> NoReturn:
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
    os._exit(128 + signum)


def _install(act: Callable[[int, Any], Any]) -> dict[int, Any]:
    """`act` for every signal that is not ignored (as under nohup) and not C's affair; what was there before."""
    before: dict[int, Any] = {signum: signal.getsignal(signum) for signum in STOPS}
    before = {signum: had for signum, had in before.items() if had not in (signal.SIG_IGN, None)}
    for signum in before:
        signal.signal(signum, act)
    return before


@contextmanager
def acting_on_signals(act: Callable[[int, Any], Any]) -> Iterator[None]:
    """In the block a signal calls `act`, but for those that are ignored. Outside the main thread nothing is changed."""
    before = _install(act) if threading.current_thread() is threading.main_thread() else {}
    try:
        yield
    finally:
        for signum, had in before.items():
            signal.signal(signum, had)


@contextmanager
def put_off() -> Iterator[None]:
    """Signals that ask this thread to stop come behind the block."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def exit_by_signal(signum: int, frame: Any) -> NoReturn:
    """A handler: SystemExit 128 + signal."""
    sys.exit(128 + signum)


@contextmanager
def leaving_on_signals(*, agreed: Callable[[], bool], give_up: Callable[[int], None]) -> Iterator[None]:
    """In the block a signal raises SystemExit(128 + signal), so that everything is cleaned up.

    If that is not done after LEAVE_SECONDS, because the process waits where no handler runs, `give_up(signal)` is
    called in a thread and the process left. While `agreed()` a stop is the training's affair and takes the time it
    takes, unless it is asked for twice. Outside the main thread nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    receiver, sender = os.pipe()
    os.set_blocking(sender, False)
    wakeup_before = signal.set_wakeup_fd(sender, warn_on_full_buffer=False)
    thread = threading.Thread(target=_see_to_it, args=(receiver, agreed, give_up), name="ticks-signals", daemon=True)
    thread.start()
    try:
        with acting_on_signals(exit_by_signal):
            yield
    finally:
        signal.set_wakeup_fd(wakeup_before)
        os.close(sender)  # the thread reads the end and ends
        thread.join()
        os.close(receiver)


def _without_wakeup() -> None:
    with suppress(ValueError):
        signal.set_wakeup_fd(-1)


os.register_at_fork(after_in_child=_without_wakeup)  # a loader's process must not speak for the one it came from


def _see_to_it(receiver: int, agreed: Callable[[], bool], give_up: Callable[[int], None]) -> None:
    """What C writes the moment a signal comes, whatever Python waits for."""
    signum, times, since = 0, 0, 0.0
    while True:
        if select.select([receiver], [], [], 0.2 if signum else None)[0]:
            came = os.read(receiver, 64)
            if not came:
                return
            for number in came:
                if number in STOPS:
                    signum, times = number, times + 1
                    since = since or time.monotonic()
        if signum and times == 1 and agreed():
            since = time.monotonic()
        if signum and time.monotonic() - since > LEAVE_SECONDS:
            with suppress(Exception):
                give_up(signum)
            os._exit(128 + signum)
