"""Where what was prepared once is kept: folders that appear whole or not at all."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

SIZES = "sizes.json"  # of the files of a folder, written last


def cache_root() -> Path:
    """$TICKS_CACHE, else $XDG_CACHE_HOME/ticks, else ~/.cache/ticks."""
    if root := os.environ.get("TICKS_CACHE"):
        return Path(os.path.expanduser(root))
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / __name__.partition(".")[0]


def place_of(identity: str) -> Path:
    """The folder of what is known by `identity`."""
    return cache_root() / hashlib.sha256(identity.encode()).hexdigest()[:16]


def make_whole(
    directory: Path,
    items: Iterable[Any],
    write: Callable[[Iterator[Any], Path], None],
    is_whole: Callable[[Path], bool] | None = None,
) -> None:
    """`write(items, folder)` unless `directory` is whole: unless every file has the size that it was written with.

    The folder takes its place when it is done, whoever else makes the same one meanwhile. OSError, which says what to
    set, if the cache cannot be written; an error of reading the items is raised as it is.
    """
    if is_whole is None:
        make_whole(directory, items, lambda read, scratch: _sealed(write, read, scratch), _has_its_sizes)
        return
    if is_whole(directory):
        return
    unread: list[OSError] = []
    try:
        _write_whole(directory, lambda scratch: write(_noting(items, unread), scratch), is_whole)
    except OSError as error:
        if error in unread:
            raise
        if not is_whole(directory):
            raise OSError(
                f"the cache of prepared text cannot be written to {directory.parent} ({error.strerror or error}):"
                " set the environment variable TICKS_CACHE to a directory that can, with room for all the text"
            ) from error


def _sealed(write: Callable[[Iterator[Any], Path], None], items: Iterator[Any], scratch: Path) -> None:
    write(items, scratch)
    sizes = {file.name: file.stat().st_size for file in scratch.iterdir()}
    (scratch / SIZES).write_text(json.dumps(sizes))


def _has_its_sizes(directory: Path) -> bool:
    try:
        sizes = json.loads((directory / SIZES).read_text())
        return all((directory / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, AttributeError):
        return False


def _noting(items: Iterable[Any], unread: list[OSError]) -> Iterator[Any]:
    """The items; an error of reading them is put into `unread`, to be told from one of writing."""
    try:
        yield from items
    except OSError as error:
        unread.append(error)
        raise


def _write_whole(directory: Path, write: Callable[[Path], None], is_whole: Callable[[Path], bool]) -> None:
    directory.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f"{directory.name}-", dir=directory.parent))
    damaged = scratch.with_name(f"{scratch.name}-damaged")
    try:
        write(scratch)
        if directory.exists() and not is_whole(directory):  # whoever has it open goes on with what it has
            os.rename(directory, damaged)
        os.rename(scratch, directory)
    finally:
        for leftover in (scratch, damaged):
            shutil.rmtree(leftover, ignore_errors=True)
