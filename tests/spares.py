"""What a forked command starts is forked as well: its workers, the jobs of its sweep, a script that runs itself again.

A new interpreter needs 5 seconds of a processor until it can train. A spare has imported what the test session has, is
made before the command begins, and waits. What the command starts becomes one: a child of its own, told its arguments,
environment, directory and session as a new one is, and nothing else of what the command has done.
"""

import atexit
import ctypes
import gc
import multiprocessing as mp
import os
import runpy
import signal
import subprocess
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from ticks import jobs
from ticks.strategy import launch, parent
from ticks.strategy.exits import STOPS
from ticks.strategy.identity import as_told


def run_python(arguments: Sequence[str]) -> None:
    """`python ARGUMENTS` in this process: -m MODULE, -c CODE or a script, and what they are told."""
    flag, rest = arguments[0], list(arguments[1:])
    if flag == "-c":
        sys.argv = ["-c", *rest[1:]]
        sys.modules["__main__"] = ModuleType("__main__")
        exec(compile(rest[0], "<string>", "exec"), vars(sys.modules["__main__"]))
    elif flag == "-m":
        sys.argv = rest
        warnings.filterwarnings("ignore", module="runpy")  # it was imported before
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = [flag, *rest]
        sys.path.insert(0, os.path.dirname(os.path.abspath(flag)))
        runpy.run_path(flag, run_name="__main__")


def leave(run: Callable[[], object]) -> None:
    """`run`, then out of this process as Python leaves: with its exit code, or 1 and a stack trace, and with
    what it asked to be done at exit; the test session's is not its own."""
    atexit._clear()
    code = 0
    try:
        run()
    except SystemExit as exit_:
        code = exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


class Spares:
    """`n` processes that wait to become what this one starts, a job's process with as many of its own.

    `told` gets a line "RANK PID" for each worker that was started, whichever way.
    """

    def __init__(self, n: int, told: Path) -> None:
        self.n, self.told = n, told
        self.waiting: list[tuple[int, Connection]] = []
        for _ in range(n if sys.platform == "linux" else 0):
            self.waiting.append(self._fork())
        names = ("TimeoutExpired", "STDOUT", "DEVNULL")
        instead = SimpleNamespace(Popen=self.start, **{name: getattr(subprocess, name) for name in names})
        launch.subprocess = jobs.subprocess = instead  # type: ignore[attr-defined,assignment]

    def start(self, command: Sequence[str], *, env: dict[str, str], **options: Any) -> Any:
        """What `subprocess.Popen` does, with a spare if there is one and the command is Python's."""
        process: Any
        program = command[command.index(parent.__name__) + 1 :] if parent.__name__ in command else []
        hearing = program[:1] == [parent.HEARING]
        if self.waiting and program[hearing : hearing + 1] == [sys.executable]:
            pid, pipe = self.waiting.pop(0)
            output = getattr(options.pop("stdout", None), "name", None)
            options = {name: options.get(name) for name in ("start_new_session", "cwd")} | {"output": output}
            pipe.send((program[hearing + 1 :], hearing, env, options))
            pipe.close()
            process = Child(pid)
        else:
            process = subprocess.Popen(command, env=env, **options)
        if (worker := as_told(env)) is not None and worker.local_rank and worker.process == os.getpid():
            with self.told.open("a") as file:
                file.write(f"{worker.rank} {process.pid}\n")
        return process

    def _fork(self) -> tuple[int, Connection]:
        mine, theirs = mp.Pipe(duplex=False)
        before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
        of = os.getpid()
        if (pid := os.fork()) == 0:
            gc.freeze()  # as in tests/conftest.py
            leave(lambda: self._wait(mine, of))
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        mine.close()
        return pid, theirs

    def _wait(self, pipe: Connection, of: int) -> None:
        prctl = ctypes.CDLL(None).prctl
        prctl(parent.PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != of:
            return
        arguments, hearing, env, options = pipe.recv()
        prctl(parent.PR_SET_PDEATHSIG, 0)  # from here on it is the command's affair
        for _, other in self.waiting:
            other.close()
        if options.get("start_new_session"):
            os.setsid()
        if options.get("output"):
            file = os.open(options["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            for stream in (1, 2):
                os.dup2(file, stream)
        os.environ.clear()
        os.environ.update(env)
        os.chdir(options.get("cwd") or ".")
        sys.path[:] = [*env.get("PYTHONPATH", "").split(os.pathsep), *sys.path]
        if arguments[0] == "-m":
            sys.path.insert(0, os.getcwd())
        if hearing:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
        Spares(self.n if arguments[:2] == ["-m", jobs.__name__] else 0, self.told)
        run_python(arguments)


class Child:
    """What `subprocess.Popen` is to those who wait for a process and send it signals, for one that was forked."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._lock = threading.Lock()

    def poll(self) -> int | None:
        with self._lock:
            if self.returncode is None and (waited := os.waitpid(self.pid, os.WNOHANG))[0]:
                self.returncode = os.waitstatus_to_exitcode(waited[1])
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        deadline = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if deadline is not None and time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
            time.sleep(0.01)
        return code

    def send_signal(self, signum: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, signum)
