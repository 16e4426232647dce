"""Shared by all tests: a cache of their own, one thread per worker, and `run_workers`."""

import multiprocessing as mp
import os
import pickle
import socket
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("WANDB_MODE", "offline")

import pytest
import torch

torch.set_num_threads(1)
REPOSITORY = Path(__file__).parent.parent


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Prepared corpora of the whole session lie in one temporary place."""
    os.environ["TICKS_CACHE"] = str(tmp_path_factory.mktemp("cache"))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run_workers(n: int, function: Callable[..., Any], *args: Any, timeout: float = 90.0) -> list[Any]:
    """`function(*args)` in n forked processes that Lightning takes for its workers; their results by rank.

    An exception in one is raised here with its traceback; what does not end in `timeout` seconds is killed.
    """
    context = mp.get_context("fork")
    port = free_port()
    pipes, processes = [], []
    for rank in range(n):
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_worker, args=(sender, rank, n, port, function, args))
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


def _worker(pipe: Any, rank: int, n: int, port: int, function: Callable[..., Any], args: tuple) -> None:
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
    pipe.close()
    os._exit(0)
