"""Workers do not outlive the worker 0 that started them, however it ended. Imports nothing but the standard library."""

import ctypes
import json
import os
import signal
import sys
import threading
import time

from ticks.strategy.identity import WORKER

PR_SET_PDEATHSIG = 1  # Linux: a signal when the parent is gone; it ends a stopped process, too
LOOK_SECONDS = 1.0
_watching = threading.Event()


def end_with_parent() -> None:
    """From now on this process ends when the one that started it as a worker does. Nothing in any other process."""
    if WORKER not in os.environ or _watching.is_set():
        return
    parent = int(json.loads(os.environ[WORKER])["process"])
    if parent == os.getpid():
        return
    if sys.platform == "linux" and os.getppid() == parent:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        if _is_gone(parent):
            os._exit(1)
        return  # something that a worker has started
    _watching.set()
    threading.Thread(target=_watch, args=(parent,), name="ticks-parent", daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(LOOK_SECONDS)
    os._exit(1)


def _is_gone(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False
