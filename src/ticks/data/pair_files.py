"""The user's own pairs: files with a source, a tab and a target on each line."""

import os
from pathlib import Path
from typing import Any

from ticks.arguments import ArgumentError
from ticks.data.pairs import Pair, PairData, split_by_source


class PairFiles(PairData):
    """The lines of `path`, split by a hash of the source, or those of `train`, `val` and, if there is one, `test`.

    Takes what `PairData` takes. ArgumentError names what cannot be read.
    """

    def __init__(
        self,
        *,
        path: str | None = None,
        train: str | None = None,
        val: str | None = None,
        test: str | None = None,
        **arguments: Any,
    ) -> None:
        self.path = path
        self.files = {"train": train, "val": val, "test": test}
        super().__init__(**arguments)

    def pairs(self) -> dict[str, list[Pair]]:
        given = {split: file for split, file in self.files.items() if file}
        if self.path and given:
            raise ArgumentError("path", self.path, f"and {', '.join(given)}: give one file to split, or one for each")
        if given:
            for split in ("train", "val"):
                if split not in given:
                    raise ArgumentError(split, None, f"is not set: {', '.join(given)} given as files, so must this be")
            return {split: read(split, file) for split, file in given.items()}
        if not self.path:
            raise ArgumentError("path", self.path, "is not set: give a file with a source, a tab and a target a line")
        return split_by_source(read("path", self.path))


def read(argument: str, file: str) -> list[Pair]:
    """The pairs of a file; empty lines are left out. ArgumentError that names the line."""
    path = Path(os.path.expanduser(file))
    if not path.is_file():
        here = "" if path.is_absolute() else f" in {Path.cwd()}"
        raise ArgumentError(argument, file, f"is no file{here}; give one with a source, a tab and a target a line")
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ArgumentError(argument, file, f"is no text in UTF-8: byte {error.start} is none") from None
    pairs = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        columns = [column.strip() for column in line.split("\t")]
        if len(columns) != 2:
            has = "no tab" if len(columns) == 1 else f"{len(columns) - 1} tabs"
            raise ArgumentError(argument, file, f": line {number} has {has}: it must be source, tab, target")
        if not all(columns):
            raise ArgumentError(argument, file, f": line {number} has no {'source' if columns[1] else 'target'}")
        pairs.append((columns[0], columns[1]))
    if not pairs:
        raise ArgumentError(argument, file, "has no pair in it")
    return pairs
