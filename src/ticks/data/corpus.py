"""Documents -> train.bin, val.bin, test.bin (one byte, one token) and corpus.json, written once and cached.

Documents are split 90/5/5 by a hash of their own content, so that adding a document never moves another one. Files
are streamed: nothing here needs the corpus in memory. A 0 byte ends each document.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ticks.data.cache import make_whole, place_of

SPLITS = ("train", "val", "test")
FORMAT = 1  # raise it when the files' meaning changes: old caches are then prepared again
CHUNK = 1 << 20  # bytes that are read at once
FLOOR_SAMPLE = 1 << 24  # bytes of each split from which the n-gram floors are estimated


@dataclass(frozen=True)
class Corpus:
    """A prepared corpus. `floors` are the bits per byte of add-one n-gram models of 1, 2 and 3 bytes on val;
    `duplicates` is how many documents were dropped because the same was there before."""

    directory: str
    documents: dict[str, int]
    n_bytes: dict[str, int]
    floors: dict[str, float]
    duplicates: int = 0

    @property
    def key(self) -> str:
        """Another one for other text."""
        return Path(self.directory).name

    def tokens(self, split: str) -> np.ndarray:
        """The split as a read-only memory map of bytes, shape (n_bytes[split],)."""
        return np.memmap(Path(self.directory) / f"{split}.bin", dtype=np.uint8, mode="r")

    def texts(self, split: str) -> Iterator[bytes]:
        """The documents of a split, one after the other."""
        rest = b""
        with (Path(self.directory) / f"{split}.bin").open("rb") as file:
            while chunk := file.read(CHUNK):
                *whole, rest = (rest + chunk).split(b"\0")
                yield from whole


def split_of(document: bytes) -> str:
    """The split of a document: a fixed function of its bytes (90% train, 5% val, 5% test)."""
    bucket = int.from_bytes(hashlib.sha256(document).digest()[:8], "big") % 100
    return "train" if bucket < 90 else "val" if bucket < 95 else "test"


def prepare(documents: Iterable[bytes], *, identity: str) -> Corpus:
    """Write the corpus unless a cached one of the same `identity` exists, and return it.

    Exact duplicates are dropped. The folder appears whole or not at all, whoever else prepares it at the same time.
    OSError, which says what to set, if the cache cannot be written.
    """
    directory = place_of(f"{FORMAT}:{identity}")
    make_whole(directory, documents, lambda read, scratch: _write(read, scratch, final=directory), _is_whole)
    about = json.loads((directory / "corpus.json").read_text())
    return Corpus(**(about | {"directory": str(directory)}))  # wherever the cache lies now


def _is_whole(directory: Path) -> bool:
    """Whether a prepared corpus lies there with every byte it had when it was written."""
    try:
        n_bytes = json.loads((directory / "corpus.json").read_text())["n_bytes"]
        return all((directory / f"{split}.bin").stat().st_size == n_bytes[split] for split in SPLITS)
    except (OSError, ValueError, LookupError):
        return False


def _write(documents: Iterable[bytes], scratch: Path, *, final: Path) -> None:
    seen: set[bytes] = set()
    counts, duplicates = dict.fromkeys(SPLITS, 0), 0
    files = {split: (scratch / f"{split}.bin").open("wb") for split in SPLITS}
    try:
        for document in documents:
            fingerprint = hashlib.blake2b(document, digest_size=12).digest()
            if not document:
                continue
            if fingerprint in seen:
                duplicates += 1
                continue
            seen.add(fingerprint)
            split = split_of(document)
            counts[split] += 1
            files[split].write(document + b"\0")
    finally:
        for file in files.values():
            file.close()
    n_bytes = {split: (scratch / f"{split}.bin").stat().st_size for split in SPLITS}
    floors = ngram_floors(scratch) if n_bytes["train"] and n_bytes["val"] else {}
    corpus = Corpus(str(final), counts, n_bytes, floors, duplicates)
    (scratch / "corpus.json").write_text(json.dumps(asdict(corpus), indent=2))


def ngram_floors(directory: Path) -> dict[str, float]:
    """Bits per byte on val of n-gram models counted on train, each backed off to the next shorter one.

    p_n(c | context) = (count(context c) + a p_{n-1}(c)) / (count(context) + a), a = 1, down to the uniform 1/256.
    """
    train = np.fromfile(directory / "train.bin", dtype=np.uint8, count=FLOOR_SAMPLE).astype(np.int64)
    val = np.fromfile(directory / "val.bin", dtype=np.uint8, count=FLOOR_SAMPLE).astype(np.int64)
    floors = {}
    p = np.full(max(0, len(val) - 2), 1 / 256)
    for n, name in enumerate(("unigram", "bigram", "trigram"), start=1):
        context_train, context_val = _context(train, n), _context(val, n)
        size = 256 ** (n - 1)
        pairs = np.bincount(context_train * 256 + train[2:], minlength=size * 256)
        totals = np.bincount(context_train, minlength=size)
        p = (pairs[context_val * 256 + val[2:]] + p) / (totals[context_val] + 1.0)
        floors[name] = float(-np.log2(p).mean()) if len(p) else float("nan")
    return floors


def _context(tokens: np.ndarray, n: int) -> np.ndarray:
    """The n - 1 bytes before each position from the third on, as one number."""
    if n == 1:
        return np.zeros(max(0, len(tokens) - 2), dtype=np.int64)
    return tokens[1:-1] if n == 2 else tokens[:-2] * 256 + tokens[1:-1]
