"""stdout and stderr that never end a run: what cannot be shown is lost, and training goes on.

A character that the terminal's encoding lacks becomes `?`, and rich draws its tables in ASCII there by itself. A pipe
whose reader has left, a full disk behind `> file` or a stream that was closed swallow what is written to them.
"""

import io
import os
import sys
from contextlib import suppress
from typing import Any, TextIO


class _Forgiving(io.RawIOBase):
    """The bytes of a stream, as far as they can be written. `lost` is the error of the last ones that could not."""

    def __init__(self, stream: TextIO) -> None:
        buffer: Any = stream.buffer
        self.stream = stream  # kept: at its end it would close the file
        self.file = getattr(buffer, "raw", buffer)  # python -u has no buffer between
        self.lost: OSError | None = None

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self.file.fileno()

    def isatty(self) -> bool:
        return self.file.isatty()

    def write(self, content: Any) -> int:
        try:
            return self.file.write(content) or len(content)  # None: a full pipe that does not block
        except OSError as error:
            self.lost = error
            return len(content)


def forgive() -> None:
    """Make this process's stdout and stderr such streams. Called again, or in a notebook, it changes nothing."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by who started us: the next file opened must not get its number
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))
        elif _is_a_file(stream) and _forgiving(stream) is None:
            setattr(sys, name, _forgiven(stream, "replace" if name == "stdout" else "backslashreplace"))


def _is_a_file(stream: Any) -> bool:
    """Whether it writes to a file descriptor, and not to a notebook."""
    try:
        return isinstance(stream, io.TextIOWrapper) and stream.fileno() >= 0
    except OSError:
        return False


def _forgiven(stream: TextIO, errors: str) -> TextIO:
    raw: Any = _Forgiving(stream)
    with suppress(OSError):
        stream.flush()
    buffered = isinstance(stream.buffer, io.BufferedWriter)
    return io.TextIOWrapper(
        io.BufferedWriter(raw) if buffered else raw,
        encoding=stream.encoding,
        errors=errors,
        line_buffering=bool(stream.line_buffering),
        write_through=not buffered,
    )


def _forgiving(stream: Any) -> _Forgiving | None:
    buffer = getattr(stream, "buffer", None)
    raw = getattr(buffer, "raw", buffer)
    return raw if isinstance(raw, _Forgiving) else None


def lost_output() -> OSError | None:
    """Why what was written to stdout did not arrive; None if it did, or if its reader had seen enough."""
    try:
        sys.stdout.flush()
    except OSError as error:
        return error
    forgiving = _forgiving(sys.stdout)
    lost = forgiving.lost if forgiving is not None else None
    return None if isinstance(lost, BrokenPipeError) else lost
