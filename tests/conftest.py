"""Shared by all tests: a cache of their own, one thread per worker, and `run_workers`."""

import ctypes
import faulthandler
import gc
import logging
import multiprocessing as mp
import os
import pickle
import re
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("RES_OPTIONS", "timeout:1 attempts:1")  # as ticks.strategy.meeting does, for tests without it
for name in ("WANDB_API_KEY", "WANDB_MODE"):
    os.environ.pop(name, None)
os.environ["NETRC"] = os.devnull  # no test finds a key of W&B

import pytest
import torch

import ticks.data  # once here, so that forked commands need not
import ticks.run
import ticks.tasks
import ticks.train  # noqa: F401
from tests import marks
from tests.marks import check_marked, starter
from tests.spares import Spares, leave, run_python
from ticks.config import ConfigError, compose_strictly
from ticks.record.metrics import MetricsFile

torch.set_num_threads(1)
STAYS = 5.0  # seconds at most, for workers that wait for this one to go
REPOSITORY = Path(__file__).parent.parent
with suppress(ConfigError):  # which tests tell; what nearly every command composes is known to all forks
    compose_strictly(["debug=fast"], REPOSITORY / "configs")
NAME = MetricsFile.__module__.partition(".")[0]  # the package's, which a fork changes


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Prepared corpora of the whole session, of all the processes it is divided among, lie in one temporary place."""
    base = tmp_path_factory.getbasetemp()
    root = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "cache"
    root.mkdir(exist_ok=True)
    os.environ["TICKS_CACHE"] = str(root)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        marks.mark(item)
    slow = {item.path for item in items if item.get_closest_marker("workers")}
    items.sort(key=lambda item: item.path not in slow)  # files of quick tests last: all processors end together


_files: list[Path] = []  # of the tests that have run


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    if item.path not in _files:
        _files.append(item.path)
        if sys.platform == "linux":  # what an earlier file's tests have needed is not copied with every fork
            ctypes.CDLL(None).malloc_trim(0)
    with marks.running(item):
        return (yield)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@starter
def run_workers(n: int, function: Callable[..., Any], *args: Any, timeout: float = 90.0) -> list[Any]:
    """`function(*args)` in n forked processes that Lightning takes for its workers; their results by rank.

    An exception in one is raised here with its traceback; what does not end in `timeout` seconds is killed. Who has a
    result stays until all have one: with worker 0 goes what a late one wants to meet it at.
    """
    check_marked()
    context = mp.get_context("fork")
    port = free_port()
    pipes, processes = [], []
    for rank in range(n):
        receiver, sender = context.Pipe()
        process = context.Process(target=_worker, args=(sender, rank, n, port, timeout, function, args))
        process.start()
        sender.close()
        pipes.append(receiver)
        processes.append(process)
    try:
        outcomes = []
        for rank, pipe in enumerate(pipes):
            if not pipe.poll(timeout):
                raise TimeoutError(f"worker {rank} did not end within {timeout} s")
            try:
                outcomes.append(pickle.loads(pipe.recv_bytes()))
            except EOFError:
                outcomes.append(("died", f"worker {rank} died without a word"))
    finally:
        for pipe in pipes:
            with suppress(OSError):  # it has gone
                pipe.send_bytes(b"all have one")
        for process in processes:
            process.join(2)
            if process.is_alive():
                process.kill()
                process.join()
    if errors := [text for kind, text in outcomes if kind != "result"]:
        raise WorkerError("\n".join(errors))
    return [result for _, result in outcomes]


class WorkerError(RuntimeError):
    """An exception in a worker of `run_workers`; its text holds every worker's traceback."""


def _worker(pipe: Any, rank: int, n: int, port: int, timeout: float, function: Callable[..., Any], args: tuple) -> None:
    gc.freeze()  # what the session holds is not looked through again
    faulthandler.dump_traceback_later(timeout * 0.9)  # says where it hangs
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(n),
        "NODE_RANK": "0",
        "LOCAL_RANK": str(rank),
    }
    try:
        outcome = ("result", function(*args))
    except BaseException as error:
        outcome = ("error", f"worker {rank}: {type(error).__name__}: {error}\n{traceback.format_exc()}")
    pipe.send_bytes(pickle.dumps(outcome))  # by value: shared memory would go with the process
    if outcome[0] == "result":
        pipe.poll(STAYS)
    os._exit(0)


@pytest.fixture(autouse=True)
def _no_wandb_left() -> Iterator[None]:
    """Commands, which are forked, do not begin with what W&B, and Lightning for it, have set for an earlier test."""
    mode = os.environ.get("WANDB_MODE")
    yield
    if mode is None:
        os.environ.pop("WANDB_MODE", None)
    if (wandb := sys.modules.get("wandb")) is not None:
        wandb.teardown()


_commands: list[Any] = []  # processes that were started


@pytest.fixture(autouse=True)
def _no_command_left() -> Iterator[None]:
    """A test that fails in the middle of a command must not leave it running."""
    yield
    while _commands:
        process = _commands.pop()
        if process.is_alive():
            os.killpg(process.pid, signal.SIGKILL)
        process.join()


@starter
class Command:
    """`python train.py ARGS` (or `ticks ARGS`, `python PROGRAM ARGS`) in a forked process: what a user runs, without
    importing torch again.

    Its output goes to a file; `process.pid` is worker 0, the leader of its own process group. What it starts is forked
    as well (tests/spares.py), or, `fresh`, an interpreter of its own as a user's.
    """

    def __init__(
        self,
        directory: Path,
        *arguments: str,
        program: str = "train.py",
        env: dict[str, str] | None = None,
        configs: Path = REPOSITORY / "configs",
        fresh: bool = False,
    ):
        check_marked()
        self.directory = directory
        self.output_file = directory / f"output-{len(list(directory.glob('output-*.txt')))}.txt"
        self.output_file.touch()  # the next one has another
        arguments_and_env = (directory, arguments, program, env or {}, self.output_file, configs, fresh)
        self.process = mp.get_context("fork").Process(target=_command, args=arguments_and_env)
        self.process.start()
        _commands.append(self.process)

    @property
    def output(self) -> str:
        return self.output_file.read_text() if self.output_file.exists() else ""

    def workers(self) -> dict[int, int]:
        """Process ids of the other workers that were started, by rank."""
        told = self.output_file.with_suffix(".workers")
        lines = told.read_text().splitlines() if told.exists() else []
        return {int(rank): int(pid) for rank, pid in map(str.split, lines)}

    def wait_for(self, text: str, seconds: float = 60.0) -> None:
        """Until the output contains `text`."""
        deadline = time.monotonic() + seconds
        while text not in self.output:
            if time.monotonic() > deadline or not self.process.is_alive():
                raise AssertionError(f"{text!r} did not appear in:\n{self.output}")
            time.sleep(0.02)

    def wait_for_step(self, step: int, seconds: float = 60.0) -> None:
        """Until its record, which begins with a validation at step 0, speaks of `step` or a later one."""
        deadline = time.monotonic() + seconds
        records = [MetricsFile(path) for path in self.directory.glob("logs/runs/*/metrics.csv")]
        while not any(int(row["step"]) >= step for record in records for row in record.rows()):
            if time.monotonic() > deadline or not self.process.is_alive():
                raise AssertionError(f"step {step} did not come:\n{self.output}")
            time.sleep(0.02)
            records = [MetricsFile(path) for path in self.directory.glob("logs/runs/*/metrics.csv")]

    def end(self, seconds: float = 90.0) -> int:
        """Its exit code; what still runs after `seconds` is killed and fails the test."""
        self.process.join(seconds)
        if self.process.is_alive():
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.join()
            raise AssertionError(f"still running after {seconds} s:\n{self.output}")
        assert self.process.exitcode is not None
        return self.process.exitcode

    def group(self) -> list[int]:
        """Process ids that belong to the command's process group and are alive, worker 0 first."""
        alive = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[2]) == self.process.pid and fields[0] != "Z":
                alive.append(int(stat.parent.name))
        return sorted(alive)


@starter
def _command(
    directory: Path,
    arguments: tuple[str, ...],
    program: str,
    env: dict[str, str],
    output: Path,
    configs: Path,
    fresh: bool = False,
) -> None:
    gc.freeze()
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # and what nohup starts this
    logging.getLogger().handlers.clear()  # pytest's
    os.chdir(directory)
    os.environ |= env
    with output.open("w") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    sys.stdout = os.fdopen(1, "w", buffering=1)
    sys.stderr = os.fdopen(2, "w", buffering=1)
    sys.argv = [program, *arguments]
    devices = [int(n) for argument in arguments for n in re.findall(r"^trainer\.devices=(\d+)$", argument)]
    many = "-m" in arguments or arguments[:1] == ("sweep",)
    spares = max(3 if many else 1, *[n - 1 for n in devices], 0)
    Spares(0 if fresh else spares, output.with_suffix(".workers"))

    def run() -> None:
        if program == "train.py":
            from ticks.train import main

            main(configs)
        elif program == "ticks":
            from ticks.commands import main as cli

            cli()
        else:
            run_python((program, *arguments))

    leave(run)


def run_command(directory: Path, *arguments: str, seconds: float = 90.0, **options: Any) -> tuple[int, str]:
    """Exit code and output of a command that ends by itself."""
    command = Command(directory, *arguments, **options)
    return command.end(seconds), command.output


def run_forked(n: int, directory: Path, *arguments: str) -> tuple[int, str]:
    """Exit code and output of `python train.py ARGS` with n workers that are forked here, as if torchrun had started
    them: sooner than to let the command start them, which import torch first."""
    environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(n), "NODE_RANK": "0"}
    commands = [
        Command(
            directory, *arguments, f"trainer.devices={n}",
            env=environment | {"LOCAL_RANK": str(rank), "RANK": str(rank)} if n > 1 else {},
        )
        for rank in range(n)
    ]  # fmt: skip
    codes = [command.end() for command in commands]
    return max(codes), "".join(command.output for command in commands)


def only_run(directory: Path) -> Path:
    """The one run directory below `directory`."""
    (run,) = (directory / "logs" / "runs").iterdir()
    return run
