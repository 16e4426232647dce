"""Starting the workers of one machine, watching them, and leaving nothing behind.

Worker 0 is the process the user started; it starts the others, who end when it does, whatever happened to it. Unlike
Lightning's launcher this one can be given the exact command of the other workers (so that a sweep's children do not run
the whole sweep again), tells each who it is, notices a dead worker within a second, and never leaves a process behind.
Under torchrun, SLURM and the like it starts nothing.
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
from dataclasses import replace
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from lightning.fabric.plugins import ClusterEnvironment

from ticks.strategy import meeting
from ticks.strategy.environment import WorkerEnvironment
from ticks.strategy.exits import STOPS, exit_in_words, stopped_by
from ticks.strategy.identity import Identity
from ticks.strategy.lightning import SubprocessLauncher, hydra_command, script_command, set_num_threads
from ticks.strategy.parent import ended_with_parent

GRACE_SECONDS = 5.0  # how long worker 0 may take to notice by itself that another worker died


class WorkerDied(RuntimeError):
    """A worker ended before training could begin."""


class NoScript(ValueError):
    """There is no script that the other workers could run. Its text is the whole message."""


class WorkerLauncher(SubprocessLauncher):
    """Starts workers 1 .. n - 1 with `command`, or by running this script again if it is None.

    `command` starts with SIGTERM, SIGINT and SIGHUP blocked, and unblocks them once it can take them.
    """

    def __init__(
        self,
        cluster_environment: ClusterEnvironment,
        num_processes: int,
        num_nodes: int,
        *,
        command: Sequence[str] | None,
        patience: timedelta = timedelta(minutes=30),
    ) -> None:
        super().__init__(cluster_environment, num_processes, num_nodes)
        self.command = command
        self.patience = patience  # with workers that do not come
        self.store: dist.TCPStore | None = None  # where workers meet, if this is worker 0
        self.dead: str | None = None  # what happened to the first worker that died
        self.signum: int | None = None  # the signal it was stopped by, if it was
        self.last_words: Callable[[], object] = lambda: None  # said before everything ends because a worker died
        self._done = threading.Event()
        self._failed = False  # whether worker 0 left its last fit, validate or test by an exception

    @property
    def is_interactive_compatible(self) -> bool:
        return True  # with one worker; with several `launch` says what it needs

    def launch(self, function: Callable, *args: Any, trainer: Any = None, **kwargs: Any) -> Any:
        environment = self.cluster_environment
        environment.validate_settings(num_devices=self.num_processes, num_nodes=self.num_nodes)
        if not environment.creates_processes_externally:
            self._start_others()
            if self.procs:
                atexit.register(self._end)
                threading.Thread(target=self._observe, name="ticks-observer", daemon=True).start()
        set_num_threads(num_processes=self.num_processes)
        self._failed = True
        result = function(*args, **kwargs)
        self._failed = False
        return result

    def _start_others(self) -> None:
        """Start the others. NoScript if they cannot be started, OSError if worker 0's port is taken."""
        environment = self.cluster_environment
        assert isinstance(environment, WorkerEnvironment)
        others = range(1, self.num_processes)
        commands = {n: (self.command, None) if self.command is not None else _script(n) for n in others}
        world_size = self.num_processes * self.num_nodes
        if world_size == 1:
            return
        by_main_thread = threading.current_thread() is threading.main_thread()
        me = replace(environment.identity, launcher="worker", process=os.getpid(), by_main_thread=by_main_thread)
        me = replace(me, rank=environment.global_rank(), world_size=world_size)
        if me.rank == 0:
            self.store = meeting.host(me.port, self.patience)
            me = replace(me, port=self.store.port)
        environment.become(me)
        os.environ |= me.to_environment()  # a second Trainer of this script finds its workers there already
        for local_rank, (command, directory) in commands.items():
            self._start(command, directory, replace(me, rank=me.rank + local_rank, local_rank=local_rank))

    def _start(self, command: Sequence[str], directory: str | None, worker: Identity) -> None:
        """A worker that is told who it is; our own command is started deaf, so that no signal finds it half awake."""
        path = os.pathsep.join(entry for entry in sys.path if entry)
        env = os.environ | worker.to_environment() | {"PYTHONPATH": path}
        deaf = self.command is not None
        behind = ended_with_parent(command, deaf=deaf)
        before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPS if deaf or behind != command else ())
        try:
            self.procs.append(subprocess.Popen(behind, env=env, cwd=directory))
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def check(self) -> None:
        """WorkerDied if one of the workers that this process started has ended."""
        for rank, process in enumerate(self.procs, start=1):
            if (code := process.poll()) is not None:
                self.signum = stopped_by(code)
                raise WorkerDied(f"worker {rank} {exit_in_words(code)}")

    def killed(self) -> str | None:
        """A worker that something has killed, in words: what others fail of is its end."""
        codes = {rank: process.poll() for rank, process in enumerate(self.procs, start=1)}
        dead = {rank: code for rank, code in codes.items() if code is not None and code < 0 and not stopped_by(code)}
        return next((f"worker {rank} {exit_in_words(code)}" for rank, code in dead.items()), None)

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
                    self.signum = stopped_by(code)
                    self.dead = self.killed() or f"worker {rank} {exit_in_words(code)}"
                    if not self._done.wait(GRACE_SECONDS):
                        self.last_words()
                        print(f"ticks: {self.dead}; ending the other workers", file=sys.stderr, flush=True)
                        self.kill(signal.SIGKILL)
                        os._exit(128 + self.signum if self.signum else 1)
                    return


def _script(local_rank: int) -> tuple[Sequence[str], str | None]:
    """The command that runs this script again, and where. NoScript if there is none."""
    main = sys.modules["__main__"]
    if getattr(main, "__file__", None) is None and getattr(main, "__spec__", None) is None:
        raise NoScript(
            "several workers are started by running this script again, and this is none (python -c, a notebook, a"
            " prompt): use devices=1, or save it as a file and run that"
        )
    hydra: Any = sys.modules.get("hydra.core.hydra_config")  # where the script has a configuration of its own
    if hydra is not None and hydra.HydraConfig.initialized():
        return hydra_command(local_rank)
    return script_command(), None


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
