"""Starting the workers of one machine, watching them, and leaving nothing behind.

Worker 0 is the process the user started; it starts the others. Unlike Lightning's launcher this one can be given the
exact command of the other workers (so that a sweep's children do not run the whole sweep again), notices a dead worker
within a second, and never leaves a process behind. Under torchrun, SLURM and the like it starts nothing.
"""

import atexit
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from lightning.fabric.plugins import ClusterEnvironment
from lightning.fabric.utilities.distributed import _set_num_threads_if_needed
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher

GRACE_SECONDS = 5.0  # how long worker 0 may take to notice by itself that another worker died


class WorkerLauncher(_SubprocessScriptLauncher):
    """Starts workers 1 .. n - 1 with `command`, or by running this script again if it is None."""

    def __init__(
        self,
        cluster_environment: ClusterEnvironment,
        num_processes: int,
        num_nodes: int,
        *,
        command: Sequence[str] | None,
    ) -> None:
        super().__init__(cluster_environment, num_processes, num_nodes)
        self.command = command
        self.dead: str | None = None  # what happened to the first worker that died
        self.signum: int | None = None  # the signal it was stopped by, if it was
        self._done = threading.Event()
        self._failed = False  # whether worker 0 left its last fit, validate or test by an exception

    def launch(self, function: Callable, *args: Any, trainer: Any = None, **kwargs: Any) -> Any:
        environment = self.cluster_environment
        environment.validate_settings(num_devices=self.num_processes, num_nodes=self.num_nodes)
        if not environment.creates_processes_externally:
            self._call_children_scripts()
            atexit.register(self._end)
            threading.Thread(target=self._observe, name="ticks-observer", daemon=True).start()
        _set_num_threads_if_needed(num_processes=self.num_processes)
        self._failed = True
        result = function(*args, **kwargs)
        self._failed = False
        return result

    def _call_children_scripts(self) -> None:
        if self.command is None:
            super()._call_children_scripts()
            return
        environment = self.cluster_environment
        os.environ |= {
            "MASTER_ADDR": environment.main_address,
            "MASTER_PORT": str(environment.main_port),
            "NODE_RANK": str(environment.node_rank()),
            "LOCAL_RANK": "0",
            "WORLD_SIZE": str(self.num_processes * self.num_nodes),
        }
        path = os.pathsep.join(entry for entry in sys.path if entry)
        for local_rank in range(1, self.num_processes):
            env = os.environ | {"LOCAL_RANK": str(local_rank), "PYTHONPATH": path}
            self.procs.append(subprocess.Popen(self.command, env=env))

    def kill(self, signum: int) -> None:  # type: ignore[override]
        """Send `signum` to the workers that this process started and that still run."""
        for process in self.procs:
            if process.poll() is None:
                process.send_signal(signum)

    def _end(self) -> None:
        """At exit: workers that do what worker 0 did end by themselves; nobody waits for one that failed."""
        if not self._failed:
            self.wait(30)
        self.kill_all()

    def kill_all(self) -> None:
        """End every worker that this process started, at once."""
        self._done.set()
        self.kill(signal.SIGKILL)
        for process in self.procs:
            process.wait()
        self.procs = []

    def expect_the_end(self) -> None:
        """All workers end now, in agreement: one that has ended is nothing to worry about."""
        self._done.set()

    def wait(self, seconds: float) -> bool:
        """Wait for the workers to end by themselves; whether all did, with exit code 0 or by an agreed stop."""
        self._done.set()
        deadline = time.monotonic() + seconds
        for process in self.procs:
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                return False
        return all(process.returncode == 0 or process.returncode > 128 for process in self.procs)

    def _observe(self) -> None:
        """If a worker dies, give worker 0 a moment to fail in its own words, then end everything."""
        while not self._done.wait(0.2):
            for rank, process in enumerate(self.procs, start=1):
                code = process.poll()
                if code:
                    stops = {code_of: s for s in (signal.SIGTERM, signal.SIGINT) for code_of in (128 + s, -s)}
                    self.signum = stops.get(code)
                    self.dead = f"worker {rank} {describe_exit(code)}"
                    if not self._done.wait(GRACE_SECONDS):
                        print(f"ticks: {self.dead}; ending the other workers", file=sys.stderr, flush=True)
                        self.kill(signal.SIGKILL)
                        os._exit(128 + self.signum if self.signum else 1)
                    return


def describe_exit(code: int) -> str:
    """An exit code of `subprocess` in words."""
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"


@contextmanager
def restored_environment() -> Iterator[None]:
    """Give os.environ back as it was: what one job sets (WORLD_SIZE, ...) must not reach the next."""
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)
