"""A corpus as tokens: train.bin, val.bin, test.bin of uint16 or uint32, encoded once and kept beside its bytes.

Each document ends with END, where the corpus has its 0 byte: so END is one byte of text here.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from ticks.data.cache import make_whole
from ticks.data.corpus import SPLITS, Corpus
from ticks.data.tokenizers import Bytes

AT_ONCE = 1 << 22  # bytes of text that are encoded at once


@dataclass(frozen=True)
class Encoded:
    """The tokens of a corpus. `lengths` (vocab_size,) are the bytes of each token."""

    directory: Path
    n_tokens: dict[str, int]
    dtype: str
    lengths: np.ndarray

    def tokens(self, split: str) -> np.ndarray:
        """The split as a read-only memory map, shape (n_tokens[split],)."""
        return np.memmap(self.directory / f"{split}.bin", dtype=self.dtype, mode="r")


def encode(corpus: Corpus, tokenizer: Bytes) -> Encoded:
    """Write the tokens unless they are there, whole. OSError, which says what to set, if they cannot be written."""
    directory = Path(corpus.directory) / f"tokens-{tokenizer.digest}"
    dtype = token_type(tokenizer.vocab_size)

    def write(_: Iterator[Any], scratch: Path) -> None:
        n_tokens = {split: _write(corpus, split, tokenizer, scratch / f"{split}.bin", dtype) for split in SPLITS}
        (scratch / "tokens.json").write_text(json.dumps({"n_tokens": n_tokens, "dtype": dtype}))

    make_whole(directory, (), write)
    about = json.loads((directory / "tokens.json").read_text())
    lengths = tokenizer.lengths
    lengths[tokenizer.end_id] = 1
    return Encoded(directory, about["n_tokens"], about["dtype"], lengths)


def token_type(vocab_size: int) -> str:
    """The smallest type that holds every token."""
    return "uint16" if vocab_size <= 1 << 16 else "uint32"


def _write(corpus: Corpus, split: str, tokenizer: Bytes, path: Path, dtype: str) -> int:
    n = 0
    with path.open("wb") as file:
        for documents in in_batches(corpus.texts(split)):
            flat = np.fromiter(
                chain.from_iterable((*ids, tokenizer.end_id) for ids in tokenizer.encode_many(documents)), dtype
            )
            file.write(flat.tobytes())
            n += len(flat)
    return n


def in_batches(documents: Iterable[bytes]) -> Iterator[list[bytes]]:
    batch, size = [], 0
    for document in documents:
        batch.append(document)
        size += len(document)
        if size >= AT_ONCE:
            yield batch
            batch, size = [], 0
    yield batch
