"""Processes do not outlive the one that started them, however it ended. Imports nothing but the standard library.

A worker is ended with worker 0; a job of a sweep is asked to stop, and leaves a checkpoint. On Linux
`ended_with_parent(command)` settles it before `command` begins, whatever that is; elsewhere, and for what Linux does
not do, `end_with_parent` looks each second.
"""

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence

from ticks.strategy.exits import STOPS
from ticks.strategy.identity import as_told

JOB = "TICKS_JOB_OF"  # the process that waits for this one, a job of a sweep or a multirun
PR_SET_PDEATHSIG = 1  # Linux: a signal when the parent is gone; it ends a stopped process, too
LOOK_SECONDS = 1.0
HEARING = "--hearing"
_watching = threading.Event()


def ended_with_parent(command: Sequence[str], *, deaf: bool = True) -> list[str]:
    """`command` behind this module: a signal that is asked for before a program is started stays asked for.

    Start it with signals blocked, for this module has no use for one; unless `deaf` it unblocks them for `command`.
    """
    if sys.platform != "linux":
        return list(command)
    return [sys.executable, "-P", "-m", __name__, *([] if deaf else [HEARING]), *command]


def end_with_parent() -> None:
    """From now on this process ends when the one that started it as a worker or as a job does. Nothing in others."""
    tied = _tied()
    os.environ.pop(JOB, None)  # what a job starts is none
    if tied is not None and _ask(*tied) and not _watching.is_set():
        _watching.set()
        threading.Thread(target=_watch, args=tied[:2], name="ticks-parent", daemon=True).start()


def _tied() -> tuple[int, signal.Signals, bool] | None:
    """The process that this one is tied to, the signal that ends it, and whether that one's main thread started it."""
    told, waiting = as_told(os.environ), os.environ.get(JOB)
    if told is not None:
        return (told.process, signal.SIGKILL, told.by_main_thread) if told.local_rank > 0 else None
    if waiting and os.getsid(0) == os.getpid():  # as jobs are started; not what outlived one
        return int(waiting), signal.SIGTERM, True
    return None


def _ask(parent: int, signum: signal.Signals, by_its_main_thread: bool) -> bool:
    """Ask Linux for the signal; whether `parent` is this process's parent, and not just of what started it."""
    if sys.platform == "linux" and by_its_main_thread and os.getppid() == parent:
        # the end of the thread that started this process counts as its parent's, so not from any thread; without the
        # signal a process that is stopped, too, lives until it goes on
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signum)
    if os.getppid() == parent:
        return True
    if _is_gone(parent):
        _end(signum)
    return False


def _watch(parent: int, signum: signal.Signals) -> None:
    while os.getppid() == parent:
        time.sleep(LOOK_SECONDS)
    _end(signum)


def _end(signum: signal.Signals) -> None:
    if signum == signal.SIGKILL:
        os._exit(1)
    os.kill(os.getpid(), signum)


def _is_gone(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False


if __name__ == "__main__":
    if (tied := _tied()) is not None:
        _ask(*tied)
    command = sys.argv[1:]
    if command[0] == HEARING:
        del command[0]
        if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # from here on without a trace
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
    os.execvp(command[0], command)
