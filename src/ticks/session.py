"""What surrounds a run: signals outside training, and what its workers say when they fail.

Inside training a stop is agreed between the workers (strategy/shutdown.py). Everywhere else, from the first import to
the last write, a signal leaves through the usual clean-up, and a thread sees to it that this takes seconds, wherever
the process waits. This module imports nothing but the standard library.
"""

import json
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
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


class Failures:
    """What the workers of one machine say when they fail: each writes a file, worker 0 shows every text once.

    So a failure reaches the terminal as a line of its own, before what it leads to elsewhere, and not once per worker.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.told: set[str] = set()
        self.last, self.exit_code = "", 1  # of the last one told

    def report(self, rank: int, text: str, *, trace: str = "", exit_code: int = 1, broken: bool = False) -> None:
        """On the worker that failed; `broken` if it may only be what happened to another one."""
        about = {"rank": rank, "text": text, "trace": trace, "exit_code": exit_code, "broken": broken}
        scratch = self.directory / f".{rank}"
        scratch.write_text(json.dumps(about))
        scratch.replace(self.directory / f"failed-{rank}.json")

    def tell(self, *, broken: bool = False) -> bool:
        """On worker 0: show what has not been shown; whether there was anything. Broken connections only if asked for:
        where nothing else was said, one of them is the cause."""
        found: dict[str, list[dict[str, Any]]] = {}
        for file in sorted(self.directory.glob("failed-*.json")):
            failure = json.loads(file.read_text())
            if failure["text"] not in self.told and failure["broken"] == broken:
                found.setdefault(failure["text"], []).append(failure)
        for text, failures in found.items():
            who = ", ".join(str(failure["rank"]) for failure in failures)
            print(f"error: worker{'s' * (len(failures) > 1)} {who}: {text}", file=sys.stderr, flush=True)
            if failures[0]["trace"]:
                print(failures[0]["trace"], file=sys.stderr, flush=True)
            self.told.add(text)
            self.last = text
            self.exit_code = failures[0]["exit_code"]
        return bool(found)
