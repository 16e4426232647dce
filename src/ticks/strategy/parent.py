"""Processes do not outlive the one that started them, however it ended. Imports nothing but the standard library.

A worker is ended with worker 0; a job of a sweep is asked to stop, and leaves a checkpoint.
"""

import ctypes
import os
import signal
import sys
import threading
import time

from ticks.strategy.identity import as_told

JOB = "TICKS_JOB_OF"  # the process that waits for this one, a job of a sweep or a multirun
PR_SET_PDEATHSIG = 1  # Linux: a signal when the parent is gone; it ends a stopped process, too
LOOK_SECONDS = 1.0
_watching = threading.Event()


def end_with_parent() -> None:
    """From now on this process ends when the one that started it as a worker or as a job does. Nothing in others."""
    told, waiting = as_told(os.environ), os.environ.pop(JOB, None)  # what a job starts is none
    if told is not None and told.local_rank > 0:
        _end_with(told.process, signal.SIGKILL, by_its_main_thread=told.by_main_thread)
    elif told is None and waiting and os.getsid(0) == os.getpid():  # as jobs are started; not what outlived one
        _end_with(int(waiting), signal.SIGTERM)


def _end_with(parent: int, signum: signal.Signals, *, by_its_main_thread: bool = True) -> None:
    if _watching.is_set():
        return
    # Linux takes the end of the thread that started a process for the end of its parent; without the signal a process
    # that is stopped, too, lives on until it goes on
    if sys.platform == "linux" and by_its_main_thread and os.getppid() == parent:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signum)
    if os.getppid() != parent:
        if _is_gone(parent):
            _end(signum)
        return  # something that a worker or a job has started
    _watching.set()
    threading.Thread(target=_watch, args=(parent, signum), name="ticks-parent", daemon=True).start()


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
