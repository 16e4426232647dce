"""Checkpoints that survive being interrupted, and what only one worker knows.

Beside Lightning's `NAME.ckpt`, which holds the agreed model, lies `NAME.workers/TOKEN-rankR.pt` for every worker: its
own parameters where they differ, its optimizer and random states, and the strategy's state. TOKEN ties the files of
one save together, whatever becomes of a checkpoint's name. Everything is written under a temporary name, synced and
renamed; the `.ckpt` comes last, so one that exists is complete.

This file holds everything private of Lightning that choosing checkpoints needs: how ModelCheckpoint gets its metrics.
"""

import os
import random
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from lightning.fabric.plugins import TorchCheckpointIO

from ticks.strategy.lightning import is_local_path

KEY = "ticks"  # where the `.ckpt` says which worker files belong to it


class CheckpointNotWritten(OSError):
    """A worker could not write its part of a checkpoint; raised on every worker."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoint files, written whole or not at all. Remote paths are left to Lightning."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        if not is_local_path(str(path)):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        with replacing(Path(path)) as scratch:
            torch.save(checkpoint, scratch)

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = None) -> dict[str, Any]:
        """Nothing in a file is executed, unless `weights_only=False` is asked for by name."""
        return super().load_checkpoint(path, map_location, weights_only=weights_only is not False)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A scratch path that becomes `path`, safely on disk, when the block succeeds; else `path` is untouched."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
    os.close(handle)
    scratch = Path(name)
    try:
        yield scratch
        with scratch.open("rb") as file:
            os.fsync(file.fileno())
        scratch.chmod(0o644)
        os.replace(scratch, path)
        _sync_directory(path.parent)
    finally:
        scratch.unlink(missing_ok=True)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_or_why_not(write: Callable[[], None], path: Any, rank: int) -> str | None:
    """`write` what belongs to a checkpoint; why worker `rank` could not, if so."""
    try:
        write()
    except (OSError, RuntimeError) as error:
        return f"worker {rank} could not write checkpoint {path}: {error}"
    return None


def check_written(reasons: Iterable[str | None]) -> None:
    """CheckpointNotWritten if a worker has a reason why it was not."""
    if failed := [reason for reason in reasons if reason]:
        raise CheckpointNotWritten("; ".join(failed) + ". Earlier checkpoints are untouched.")


def workers_directory(path: Any) -> Path:
    """`a/b.ckpt` -> `a/b.workers`, and `a/b.1` -> `a/b.1.workers`."""
    return Path(str(path).removesuffix(".ckpt") + ".workers")


def worker_file(path: Any, token: str, rank: int) -> Path:
    return workers_directory(path) / f"{token}-rank{rank}.pt"


def find_worker_file(path: Any, token: str, rank: int) -> Path:
    """Where one worker's file lies, even if the checkpoint is a link or a copy, or was renamed without it."""
    target = Path(path).resolve()
    beside = (worker_file(path, token, rank), *target.parent.glob(f"*.workers/{token}-rank{rank}.pt"))
    return next((file for file in beside if file.exists()), beside[0])


def save_worker(path: Any, token: str, rank: int, state: dict[str, Any]) -> None:
    """Write one worker's file of the checkpoint `path`."""
    with replacing(worker_file(path, token, rank)) as scratch:
        torch.save(state, scratch)


def drop_stale_workers(path: Any, token: str) -> None:
    """Delete worker files of earlier saves under the same name, once the new `.ckpt` is in place, and those of
    checkpoints beside it that a link to another one has replaced."""
    for file in workers_directory(path).glob("*.pt"):
        if not file.name.startswith(f"{token}-"):
            file.unlink(missing_ok=True)
    for link in Path(path).parent.glob("*.ckpt"):
        if link.is_symlink():
            drop_workers(link)


def drop_workers(path: Any) -> None:
    """Delete the worker files of a checkpoint that is gone."""
    shutil.rmtree(workers_directory(path), ignore_errors=True)


def load_worker(
    path: Any, checkpoint: dict[str, Any], rank: int, world_size: int, kind: str
) -> tuple[dict[str, Any] | None, str | None]:
    """This worker's own state and None, or None and what is lost by starting from the agreed model.

    `kind` is what its strategy calls states that it can take back.
    """
    about = checkpoint.get(KEY)
    if about is None:
        return None, "another program wrote it: every worker starts with its optimizer state"
    if about["world_size"] != world_size:
        return None, (
            f"it was written by {about['world_size']} workers, now there are {world_size}: every worker starts from the"
            f" agreed model with worker 0's optimizer state; the workers' own parameters since the last tick, other"
            " optimizer states and random states are dropped"
        )
    state = torch.load(find_worker_file(path, about["token"], rank), map_location="cpu", weights_only=True)
    if state["kind"] != kind:
        return None, (
            f"it was written by {state['kind']}, now it is {kind}: every worker starts from the agreed"
            " model with worker 0's optimizer state; everything else that workers remember is dropped"
        )
    return state, None


def damage(path: Path, of: Collection[str] = ()) -> str | None:
    """What is wrong with a checkpoint, in one line, or None: its archive and its workers' must be whole and load.

    `of` are the fingerprints of the runs that may have written it; without any it may be anybody's.
    """
    try:
        about = _whole(path).get(KEY)
        if about is None:
            return "another program wrote it" if of else None
        if of and about.get("fingerprint", next(iter(of))) not in of:  # older ones do not say
            return "another run wrote it"
        for rank in range(about["world_size"]):
            file = find_worker_file(path, about["token"], rank)
            if not file.is_file():
                return f"{file.parent.name}/{file.name} is missing"
            _whole(file)
    except Damaged as error:
        return str(error)
    except Exception as error:  # a part of it that says something else than it should
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return None


class Damaged(ValueError):
    """A file that is not what was written."""


def _whole(file: Path) -> dict[str, Any]:
    """What torch.save wrote there, its checksums compared, nothing in it executed. Damaged for any other file."""
    try:
        with zipfile.ZipFile(file) as archive:
            if (bad := archive.testzip()) is not None:
                raise Damaged(f"{file.name}: checksum of {bad} does not match")
        loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Damaged:
        raise
    except UnpicklingError:
        raise Damaged(f"{file.name} holds something else than tensors and plain values, which is not loaded") from None
    except Exception as error:  # any way of not being an archive: torch, zipfile and the file system have many
        reason = " ".join(str(error).split())[:200]
        raise Damaged(f"{file.name}: {reason or type(error).__name__}") from None
    if not isinstance(loaded, dict):
        raise Damaged(f"{file.name} holds a {type(loaded).__name__}")
    return loaded


def newest_usable(directories: Path | Iterable[Path], of: Collection[str] = ()) -> tuple[Path | None, list[str]]:
    """The newest whole checkpoint in `directories` that a run with a fingerprint in `of` wrote (any run if `of` is
    empty), and a line for every newer one that cannot be used."""
    complaints: list[str] = []
    places = [directories] if isinstance(directories, Path) else directories
    files = [file for place in places for file in place.glob("*.ckpt")]
    for path in sorted(files, key=lambda p: p.stat().st_mtime_ns, reverse=True):
        if (reason := damage(path, of)) is None:
            return path, complaints
        complaints.append(f"{path} cannot be used ({reason})")
    return None, complaints


def step_of(path: Path) -> int:
    """After how many steps a checkpoint of ours was written."""
    return torch.load(path, map_location="cpu", weights_only=True, mmap=True)[KEY]["step"]


def random_state(device: torch.device) -> dict[str, Any]:
    """The states of Python's, NumPy's and torch's generators, as plain containers and tensors."""
    name, keys, *rest = np.random.get_state()  # type: ignore[misc]
    state = {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(np.asarray(keys, dtype=np.int64)), *rest),
        "torch": torch.get_rng_state(),
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Take back what `random_state` gave."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)
