"""Texts with labels -> for each split texts, labels and tokens in files, written once and cached."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ticks.data.cache import make_whole, place_of
from ticks.data.corpus import SPLITS
from ticks.data.encoded import in_batches, token_type
from ticks.data.tokenizers import Bytes

FORMAT = 1  # raise it when the files' meaning changes: old caches are then prepared again


class Row(NamedTuple):
    """A text, its class and its split; one without a split is left out."""

    split: str | None
    text: bytes
    label: str


@dataclass(frozen=True)
class LabelledCorpus:
    """Prepared texts. `class_names` are sorted, numbers by their value; `sizes` count the texts of each split, `shared`
    those of val and test whose text is in train, too, `left_out` the rows that were; `digest` is of all texts in order.
    """

    directory: Path
    class_names: list[str]
    sizes: dict[str, int]
    shared: int
    left_out: int
    digest: str

    def texts(self, split: str) -> Iterator[bytes]:
        with (self.directory / f"{split}.bin").open("rb") as file:
            for first, last in pairwise(chain([0], self._about(split)["ends"].tolist())):
                yield file.read(last - first)

    def labels(self, split: str) -> np.ndarray:
        """The number of each text's class, (sizes[split],)."""
        return self._about(split)["labels"]

    def hashes(self, split: str) -> np.ndarray:
        """A number made of each text, (sizes[split],)."""
        return self._about(split)["hashes"]

    def _about(self, split: str) -> Any:
        return np.load(self.directory / f"{split}.npz")


def prepare(rows: Iterable[Row], *, identity: str) -> LabelledCorpus:
    """Write the texts unless cached ones of the same `identity` exist. ValueError if there are not at least two
    classes; OSError, which says what to set, if the cache cannot be written."""
    directory = place_of(f"labelled:{FORMAT}:{identity}")
    make_whole(directory, rows, _write)
    return LabelledCorpus(directory, **json.loads((directory / "corpus.json").read_text()))


def _write(rows: Iterator[Row], scratch: Path) -> None:
    numbers: dict[str, int] = {}
    about: dict[str, dict[str, list[int]]] = {s: {"ends": [], "labels": [], "hashes": []} for s in SPLITS}
    digest, left_out = hashlib.sha256(), 0
    files = {split: (scratch / f"{split}.bin").open("wb") for split in SPLITS}
    try:
        for row in rows:
            if row.split is None:
                left_out += 1
                continue
            here = about[row.split]
            files[row.split].write(row.text)
            here["ends"].append(files[row.split].tell())
            here["labels"].append(numbers.setdefault(row.label, len(numbers)))
            content = hashlib.sha256(row.text).digest()
            here["hashes"].append(int.from_bytes(content[:8], "big"))
            digest.update(repr((row.split, content, row.label)).encode())
    finally:
        for file in files.values():
            file.close()
    names = sorted(numbers, key=_in_order(numbers))
    if len(names) < 2:
        raise ValueError(f"there must be at least two classes, not {len(names)}{f': {names[0]!r}' if names else ''}")
    place = np.empty(len(names), dtype=np.int64)
    place[[numbers[name] for name in names]] = np.arange(len(names))
    for split, here in about.items():
        np.savez(
            scratch / f"{split}.npz",
            ends=np.array(here["ends"], dtype=np.int64),
            labels=place[np.array(here["labels"], dtype=np.int64)],
            hashes=np.array(here["hashes"], dtype=np.uint64),
        )
    known = set(about["train"]["hashes"])
    found = {
        "class_names": names,
        "sizes": {split: len(here["ends"]) for split, here in about.items()},
        "shared": sum(n in known for split in ("val", "test") for n in about[split]["hashes"]),
        "left_out": left_out,
        "digest": digest.hexdigest()[:16],
    }
    (scratch / "corpus.json").write_text(json.dumps(found))


def _in_order(names: Iterable[str]) -> Any:
    """By what class names are sorted: as numbers if all of them are."""
    try:
        return {name: float(name) for name in names}.__getitem__
    except ValueError:
        return str


class Tokens:
    """The tokens of the texts of a split; `tokens[i]` (T_i,)."""

    def __init__(self, flat: np.ndarray, ends: np.ndarray) -> None:
        self.flat = flat
        self.ends = ends

    @classmethod
    def of(cls, texts: Sequence[Sequence[int]]) -> "Tokens":
        """Those of a few texts."""
        return cls(np.fromiter(chain.from_iterable(texts), np.int64), np.cumsum([len(text) for text in texts]))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, i: int) -> np.ndarray:
        return self.flat[self.ends[i - 1] if i else 0 : self.ends[i]]


def tokens_of(corpus: LabelledCorpus, tokenizer: Bytes) -> dict[str, Tokens]:
    """By split, encoded once and kept beside the texts."""
    directory = corpus.directory / f"tokens-{tokenizer.digest}"
    dtype = token_type(tokenizer.vocab_size)

    def write(_: Iterator[Any], scratch: Path) -> None:
        for split in SPLITS:
            lengths: list[int] = []
            with (scratch / f"{split}.bin").open("wb") as file:
                for texts in in_batches(corpus.texts(split)):
                    encoded = tokenizer.encode_many(texts)
                    lengths += map(len, encoded)
                    file.write(np.fromiter(chain.from_iterable(encoded), dtype).tobytes())
            np.save(scratch / f"{split}.npy", np.cumsum(lengths, dtype=np.int64))

    make_whole(directory, (), write)
    found = {}
    for split in SPLITS:
        ends, file = np.load(directory / f"{split}.npy"), directory / f"{split}.bin"
        is_empty = not file.stat().st_size  # which cannot be mapped
        found[split] = Tokens(np.empty(0, dtype) if is_empty else np.memmap(file, dtype=dtype, mode="r"), ends)
    return found
