"""The user's own text, in any language: one file, a folder or a glob."""

import codecs
import glob
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ticks.arguments import ArgumentError
from ticks.data.bytes import ByteData
from ticks.data.corpus import Corpus, prepare

HEAD = 8192  # bytes of a file that show whether it is text
SAMPLE = 1 << 16  # bytes of a file that show its encoding
BYTE_ORDER_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",  # begins with UTF-16's
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
# what text that is not UTF-8 is usually in; the languages of Latin letters cannot be told apart by their bytes
ENCODINGS = {
    "gb18030": "GB18030 (GBK)", "big5": "Big5", "cp932": "Shift-JIS", "euc_jp": "EUC-JP", "cp949": "CP949 (EUC-KR)",
    "cp1251": "CP1251", "koi8_r": "KOI8-R", "cp1253": "CP1253", "cp1255": "CP1255", "cp1256": "CP1256",
    "cp1252": "CP1252", "cp1250": "CP1252 or CP1250",
}  # fmt: skip


class TextFiles(ByteData):
    """Text files. `path` is a file, a folder (every text file below it) or a glob ("books/**/*.txt").

    A document is a run of paragraphs of about `document_bytes` bytes (less where the corpus is small, so that each
    split gets some). ArgumentError if nothing matches, or if there is no text in it, or something else.
    """

    def __init__(self, *, path: str | None, document_bytes: int = 4096, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not path:
            raise ArgumentError("path", path, 'is not set: give a text file, a folder or a quoted glob, "books/*.txt"')
        self.path = path
        self.document_bytes = document_bytes
        self.files()  # a missing or empty file is an error now, not after the workers started

    def files(self) -> list[Path]:
        """What is read, sorted by name."""
        return self._files_and_others()[0]

    def _files_and_others(self) -> tuple[list[Path], list[Path]]:
        """The text files, and what else lies in the folder."""
        place = Path(os.path.expanduser(self.path))
        found, others = _matches(place), []
        if not found:
            raise ArgumentError("path", self.path, f"matches no file{_where(place)}")
        reasons = {file: reason for file in found if (reason := _why_no_text(file))}
        if place.is_dir():
            found, others = [file for file in found if file not in reasons], list(reasons)
            if not found:
                file, reason = next(iter(reasons.items()))
                raise ArgumentError("path", self.path, f": no text file below this folder; {file} {reason}")
        for file, reason in reasons.items() if not others else ():
            raise ArgumentError("path", self.path, f": {file} {reason}")
        if not any(file.stat().st_size for file in found):
            raise ArgumentError("path", self.path, f": no text in {len(found)} file(s), all are empty")
        return found, others

    def notes(self) -> list[str]:
        files, others = self._files_and_others()
        notes = []
        if len(files) > 1 or Path(os.path.expanduser(self.path)).is_dir():
            size = sum(file.stat().st_size for file in files)
            left_out = f"; {len(others)} that are no text were left out: {_first_of(others)}" if others else ""
            notes.append(f"path={self.path!r}: {len(files)} text file(s), {size / 1e6:,.1f} MB{left_out}")
        if foreign := {file: encoding for file in files[:100] if (encoding := _foreign_encoding(file)) is not None}:
            file, encoding = next(iter(foreign.items()))
            looks = f" but looks like {encoding}" if encoding else ""
            convert = f": iconv -f {encoding.split()[0]} -t UTF-8 {shlex.quote(str(file))} > NEW" if encoding else ""
            notes.append(
                f"path={self.path!r}: {_first_of(list(foreign))} is not UTF-8{looks}; its bytes are learnt as they are,"
                f" what is generated will not be readable. To convert it first{convert}"
            )
        return notes + super().notes()

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


def _matches(place: Path) -> list[Path]:
    """The file, the files below the folder (hidden ones left out), or the glob's."""
    if place.is_file():
        return [place]
    pattern = os.path.join(glob.escape(str(place)), "**", "*") if place.is_dir() else _with_literal_folders(place)
    return sorted(path for name in glob.glob(pattern, recursive=True) if (path := Path(name)).is_file())


def _with_literal_folders(pattern: Path) -> str:
    """The glob, with the folders at its beginning that exist under this very name taken as they are: `[a]`, say."""
    *folders, name = pattern.parts
    there = Path()
    for number, folder in enumerate(folders):
        if not (there / folder).is_dir():
            return os.path.join(glob.escape(str(there)), *folders[number:], name)
        there /= folder
    return os.path.join(glob.escape(str(there)), name)


def _where(place: Path) -> str:
    """What to give instead, and where it was looked for."""
    here = "" if place.is_absolute() else f" in {Path.cwd()}"
    bracket = "; in a glob [ stands for itself only as [[]" if "[" in str(place) else ""
    return f"{here}{bracket}; give a text file, a folder or a quoted glob"


def _why_no_text(file: Path) -> str | None:
    with file.open("rb") as stream:
        head = stream.read(HEAD)
    for mark, encoding in BYTE_ORDER_MARKS.items():
        if head.startswith(mark):
            return f"is {encoding}, not UTF-8: iconv -f {encoding} -t UTF-8 {shlex.quote(str(file))} > NEW"
    return "is no text: it has bytes of value zero, which only end documents" if b"\0" in head else None


def _foreign_encoding(file: Path) -> str | None:
    """None for UTF-8, else the name of the encoding that the file looks like; empty if it looks like none."""
    with file.open("rb") as stream:
        sample = stream.read(SAMPLE)
    try:
        codecs.getincrementaldecoder("utf-8")().decode(sample)  # a character cut at the sample's end is none
    except UnicodeDecodeError:
        from charset_normalizer import from_bytes

        best = from_bytes(sample, cp_isolation=list(ENCODINGS)).best()
        return ENCODINGS.get(best.encoding, "") if best is not None else ""
    return None


def _first_of(files: list[Path]) -> str:
    more = f" and {len(files) - 1} more" if len(files) > 1 else ""
    return f"{files[0]}{more}"


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
