"""Starting a run, seeing how far it is, and finding every process that belongs to it.

A run leads a session of its own. Its processes are those of that session, those that inherited its mark in their
environment, and those that name its directory in their command line.
"""

import contextlib
import os
import resource
import signal
import subprocess
import sys
import time
import traceback
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path

from tests.conftest import REPOSITORY
from tests.faults.plan import Moment
from ticks.signals import leave_on_signals

MARK = "TICKS_FAULTS_RUN"
SCRIPTS = {"ticks": REPOSITORY / "train.py", "lightning": Path(__file__).with_name("plain_lightning.py")}
DEFAULTS = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL, signal.SIGHUP: signal.SIG_DFL}


class Run:
    """`python train.py ARGS` in `directory`, or plain Lightning's script.

    `start` is "forked" (this process, which has imported torch, goes on as train.py: workers other than 0 are started
    as always) or "real". `limits` are for `resource.setrlimit`. What it prints goes to a file in `outputs` (default:
    in `directory`).
    """

    def __init__(
        self,
        directory: Path,
        arguments: Iterable[str],
        *,
        start: str = "forked",
        system: str = "ticks",
        env: dict[str, str] | None = None,
        limits: dict[int, int] | None = None,
        outputs: Path | None = None,
    ) -> None:
        self.directory = directory.resolve()
        self.directory.mkdir(parents=True, exist_ok=True)
        self.mark = uuid.uuid4().hex
        outputs = outputs or self.directory
        outputs.mkdir(parents=True, exist_ok=True)
        self.output_file = outputs.resolve() / f"output-{len(list(outputs.glob('output-*')))}.txt"
        self.env = {MARK: self.mark, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{REPOSITORY / 'src'}:{REPOSITORY}"}
        self.env |= env or {}
        self.limits = limits or {}
        self.arguments = list(arguments)
        self.code: int | None = None
        self.ended_here = False  # the main process, by `clear`
        self.began = time.monotonic()
        self.output_file.touch()
        self._popen = None if start == "forked" else self._started(SCRIPTS[system])
        self.pid = self._popen.pid if self._popen is not None else self._forked()

    def _started(self, script: Path) -> subprocess.Popen:
        def prepare() -> None:
            for signum in DEFAULTS:  # a shell that put us into the background has told us to ignore Ctrl-C
                signal.signal(signum, signal.SIG_DFL)
            self._limit()

        with self.output_file.open("w") as output:
            return subprocess.Popen(
                [sys.executable, str(script), *self.arguments],
                cwd=self.directory,
                env=os.environ | self.env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                preexec_fn=prepare,
            )

    def _forked(self) -> int:
        if pid := os.fork():
            return pid
        code = 1
        try:
            self._become_train_py()
            code = 0
        except SystemExit as exit_:
            code = exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
        except KeyboardInterrupt:  # as Python does: a trace, and the end that a shell calls 130
            traceback.print_exc()
            code = 130
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(BaseException):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)
        raise AssertionError("unreachable")

    def _become_train_py(self) -> None:
        os.setsid()
        for signum, handler in DEFAULTS.items():
            signal.signal(signum, handler)
        os.chdir(self.directory)
        os.environ |= self.env
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        descriptor = os.open(self.output_file, os.O_WRONLY)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
        sys.argv = [str(REPOSITORY / "train.py"), *self.arguments]
        self._limit()
        leave_on_signals()  # as train.py does before it imports anything that takes time
        from ticks.train import main

        main(REPOSITORY / "configs")

    def _limit(self) -> None:
        for which, value in self.limits.items():
            resource.setrlimit(which, (value, resource.getrlimit(which)[1]))

    # ---- seeing

    @property
    def output(self) -> str:
        return self.output_file.read_text(errors="replace")

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    def poll(self) -> int | None:
        """The main process's exit code (negative: the signal that killed it), or None while it runs."""
        if self.code is None:
            if self._popen is not None:
                self.code = self._popen.poll()
            elif (waited := os.waitpid(self.pid, os.WNOHANG))[0]:
                self.code = os.waitstatus_to_exitcode(waited[1])
        return self.code

    def processes(self) -> list[int]:
        """Everything of this run that is alive."""
        self.poll()
        return [pid for pid in _all_processes() if self._is_mine(pid)]

    def _is_mine(self, pid: int) -> bool:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            if fields[0] in "ZX":
                return False
            if int(fields[2]) == self.pid or int(fields[3]) == self.pid:
                return True
            if self.mark.encode() in Path(f"/proc/{pid}/environ").read_bytes():
                return True
            return pid != os.getpid() and str(self.directory).encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            return False

    def workers(self) -> list[int]:
        """The workers other than 0 that there are now."""
        return [pid for pid in self.processes() if pid != self.pid and _is_worker(pid)]

    def wait(self, seconds: float, *, gone: bool = True) -> bool:
        """Until the main process has ended and, with `gone`, everything else of the run; whether that came in time."""
        deadline = time.monotonic() + seconds
        while True:
            if self.poll() is not None and not (gone and self.processes()):
                return True
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)

    def wait_for_others(self, seconds: float) -> bool:
        """Until no process but the main one is alive; whether that came in time."""
        deadline = time.monotonic() + seconds
        while [pid for pid in self.processes() if pid != self.pid]:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        return True

    def until(self, moment: Moment, length: float) -> bool:
        """Wait for `moment` of a run that takes `length` seconds; False if the run ends before it comes."""
        if moment.share is not None:
            return self._sleep(moment.share * length - self.seconds)
        while not self._has_begun(str(moment.phase)):
            if self.poll() is not None:
                return False
            time.sleep(0.005)
        return self._sleep(moment.delay)

    def _sleep(self, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self.poll() is None:
            time.sleep(0.002)
        return self.poll() is None

    def _has_begun(self, phase: str) -> bool:
        patterns = {
            "run directory": "summary.json",
            "training": "metrics.csv",
            "checkpoint": "checkpoints/*.ckpt",
            "final checkpoint": "checkpoints/*final.ckpt*",
        }
        if phase == "first import":
            return True
        if phase == "workers start":
            return bool(self.workers())
        if phase == "last lines":
            return (
                any('"finished"' in _text(file) for file in self._files("summary.json")) or "last lines" in self.output
            )
        return any(True for _ in self._files(patterns[phase]))

    def _files(self, pattern: str) -> Iterator[Path]:
        return self.directory.glob(f"logs/runs/*/{pattern}")

    # ---- acting

    def send(self, signum: int, pids: Iterable[int]) -> None:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signum)

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()

    def clear(self) -> list[str]:
        """Kill whatever is left of the run, and say what it was."""
        left: list[str] = []
        self.ended_here = self.ended_here or self.poll() is None
        for _ in range(50):
            if not (pids := self.processes()):
                break
            left = left or [_describe(pid) for pid in pids]
            self.send(signal.SIGKILL, pids)
            time.sleep(0.05)
        return left


def _all_processes() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def _is_worker(pid: int) -> bool:
    command = _command_line(pid)
    return "ticks.train" in command or SCRIPTS["lightning"].name in command


def _describe(pid: int) -> str:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        state = "?"
    return f"{pid} ({state}) {_command_line(pid)[-80:]}"


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""
