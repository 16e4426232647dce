"""The user's own text, in any language: one file or a glob."""

import glob
from collections.abc import Iterator
from pathlib import Path

from ticks.data.bytes import ByteData
from ticks.data.corpus import Corpus, prepare


class TextFiles(ByteData):
    """Text files as bytes. `path` is a file or a glob ("books/**/*.txt").

    A document is a run of paragraphs of about `document_bytes` bytes (less where the corpus is small, so that each
    split gets some). FileNotFoundError if nothing matches; ValueError if there is no text in it.
    """

    def __init__(self, *, path: str | None, document_bytes: int = 4096, **kwargs: int) -> None:
        super().__init__(**kwargs)
        if not path:
            raise ValueError('path is not set: give a text file or a quoted glob, data.path="books/*.txt"')
        self.path = path
        self.document_bytes = document_bytes
        self.files()  # a missing or empty file is an error now, not after the workers started

    def files(self) -> list[Path]:
        found = [Path(self.path)] if Path(self.path).is_file() else []
        found = found or sorted(Path(p) for p in glob.glob(self.path, recursive=True) if Path(p).is_file())
        if not found:
            raise FileNotFoundError(f"path={self.path!r} matches no file; give a text file or a quoted glob")
        if not any(file.stat().st_size for file in found):
            raise ValueError(f"path={self.path!r}: no text in {len(found)} file(s), all are empty")
        return found

    def load(self) -> Corpus:
        files = self.files()
        stats = [(str(file.resolve()), file.stat()) for file in files]
        total = sum(stat.st_size for _, stat in stats)
        document_bytes = max(64, min(self.document_bytes, total // 400))
        identity = repr([(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats])
        return prepare(
            (document for file in files for document in documents(file, document_bytes)),
            identity=f"text:{document_bytes}:{identity}",
        )


def documents(file: Path, document_bytes: int) -> Iterator[bytes]:
    """Cut a file into pieces of at least `document_bytes`: at a blank line where one comes before twice as many, else
    at a line end, within a line only if it is longer than that."""
    piece = bytearray()
    with file.open("rb") as stream:
        for line in iter(lambda: stream.readline(2 * document_bytes), b""):
            piece += line
            full, very_full = len(piece) >= document_bytes, len(piece) >= 2 * document_bytes
            if very_full or (full and not line.strip()):
                yield bytes(piece).strip()
                piece.clear()
    if piece.strip():
        yield bytes(piece).strip()
