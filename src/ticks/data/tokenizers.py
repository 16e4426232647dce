"""Text <-> tokens, without loss for any text. Ids 0, 1, 2 are PAD, START, END, 3 to 258 the bytes, the rest longer.

tokenizer = Bpe.trained(texts, vocab_size=4096, identity="my texts, version 1")
tokenizer.decode(tokenizer.encode("Zeitgefühl"))  # "Zeitgefühl"
"""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ticks.arguments import at_least
from ticks.data.cache import make_whole, place_of

PAD, START, END = 0, 1, 2
FIRST_BYTE = 3
FORMAT = 1  # raise it when the file's meaning changes: tokenizers are then trained again
MOST = 1 << 20  # ids of a tokenizer

Text = str | bytes
Merges = Sequence[tuple[int, int]]


class Bytes:
    """Each byte of the text in UTF-8 is a token."""

    pad_id, start_id, end_id = PAD, START, END
    unit = "bytes"

    def __init__(self) -> None:
        self.bytes_of = [b""] * FIRST_BYTE + [bytes([byte]) for byte in range(256)]

    @property
    def vocab_size(self) -> int:
        return len(self.bytes_of)

    @property
    def lengths(self) -> np.ndarray:
        """The bytes of each token, (vocab_size,); none of PAD, START, END."""
        return np.array([len(content) for content in self.bytes_of], dtype=np.int64)

    @property
    def digest(self) -> str:
        """By which two tokenizers are known to be the same."""
        return hashlib.sha256(repr(self.bytes_of).encode()).hexdigest()[:16]

    def encode(self, text: Text) -> list[int]:
        """The tokens of a text. What a command line could not read as UTF-8 is the bytes that were typed."""
        return self.encode_many([text])[0]

    def encode_many(self, texts: Iterable[Text]) -> list[list[int]]:
        return [[FIRST_BYTE + byte for byte in _bytes(text)] for text in texts]

    def to_bytes(self, tokens: Iterable[int]) -> bytes:
        """What the tokens stand for, PAD, START and END for nothing."""
        return b"".join(self.bytes_of[int(token)] for token in tokens)

    def decode(self, tokens: Iterable[int]) -> str:
        """The text; bytes that are no UTF-8, which a model can write, become the replacement character."""
        return self.to_bytes(tokens).decode("utf-8", errors="replace")


class Bpe(Bytes):
    """Byte-pair encoding: `merges` are pairs of ids, each of which becomes the next id, from 259 on.

    ModuleNotFoundError without the library tokenizers.
    """

    unit = "tokens"

    def __init__(self, merges: Merges) -> None:
        super().__init__()
        self.merges = [(int(a), int(b)) for a, b in merges]
        for a, b in self.merges:
            self.bytes_of.append(self.bytes_of[a] + self.bytes_of[b])
        self._tokenizer = self._made()

    @classmethod
    def trained(cls, texts: Iterable[Text], *, vocab_size: int, identity: str) -> "Bpe":
        """The merges that `texts` ask for, learnt once and kept in the cache under `vocab_size` and `identity`.

        Text that repeats little has fewer tokens than `vocab_size`. ArgumentError for fewer than reserved ids and
        bytes; OSError if the cache cannot be written.
        """
        at_least(FIRST_BYTE + 256, most=MOST, vocab_size=vocab_size)
        directory = place_of(f"bpe:{FORMAT}:{vocab_size}:{identity}")

        def write(items: Iterator[Text], scratch: Path) -> None:
            (scratch / "tokenizer.json").write_text(json.dumps({"merges": _learnt(items, vocab_size)}))

        make_whole(directory, texts, write)
        return cls(json.loads((directory / "tokenizer.json").read_text())["merges"])

    def _made(self) -> Any:
        """The library's tokenizer, with the ids of this one. It finds nothing special in a text."""
        library, letters = _library(), letters_of_bytes()
        names = ["".join(letters[byte] for byte in content) for content in self.bytes_of]
        names[:FIRST_BYTE] = ["pad id", "start id", "end id"]  # with a space, which no token's name has
        pairs = [(names[a], names[b]) for a, b in self.merges]
        return _splitting(library.models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=pairs))

    def encode_many(self, texts: Iterable[Text]) -> list[list[int]]:
        """The tokens of several texts, on several cores."""
        contents = [_bytes(text) for text in texts]
        clean = [_utf8(content) for content in contents]
        encoded = iter(self._tokenizer.encode_batch([text for text in clean if text is not None]))
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # else the library warns of every fork from now on
        return [
            next(encoded).ids if text is not None else self._in_pieces(content)
            for text, content in zip(clean, contents, strict=True)
        ]

    def _in_pieces(self, content: bytes) -> list[int]:
        """The tokens of bytes that are no UTF-8: each wrong byte is its own token."""
        tokens: list[int] = []
        for piece in re.split("([\udc80-\udcff]+)", content.decode("utf-8", errors="surrogateescape")):
            part = piece.encode("utf-8", errors="surrogateescape")
            text = _utf8(part)
            tokens += [FIRST_BYTE + byte for byte in part] if text is None else self._tokenizer.encode(text).ids
        return tokens


class TrainedBpe:
    """Byte-pair encoding of `vocab_size` tokens, to be learnt from texts once there are some. ArgumentError for fewer
    than there are bytes and reserved ids."""

    def __init__(self, *, vocab_size: int) -> None:
        at_least(FIRST_BYTE + 256, most=MOST, vocab_size=vocab_size)
        self.vocab_size = vocab_size

    def __call__(self, texts: Iterable[Text], *, identity: str) -> Bpe:
        return Bpe.trained(texts, vocab_size=self.vocab_size, identity=identity)


def _learnt(texts: Iterator[Text], vocab_size: int) -> list[tuple[int, int]]:
    """Merges as pairs of ids. Pairs that come once are none."""
    library, letters = _library(), letters_of_bytes()
    tokenizer = _splitting(library.models.BPE())
    trainer = library.trainers.BpeTrainer(
        vocab_size=vocab_size - FIRST_BYTE, min_frequency=2, initial_alphabet=letters, show_progress=False
    )
    tokenizer.train_from_iterator((_bytes(text).decode("utf-8", errors="ignore") for text in texts), trainer=trainer)
    ids = {letter: FIRST_BYTE + byte for byte, letter in enumerate(letters)}
    merges = []
    for a, b in json.loads(tokenizer.to_str())["model"]["merges"]:
        if a + b not in ids:
            merges.append((ids[a], ids[b]))
            ids[a + b] = FIRST_BYTE + 255 + len(merges)
    return merges


def _splitting(model: Any) -> Any:
    """A tokenizer of words with the space before them, of which `model` makes tokens."""
    library = _library()
    tokenizer = library.Tokenizer(model)
    tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    return tokenizer


def _library() -> Any:
    try:
        import tokenizers
    except ImportError:
        raise ModuleNotFoundError('byte-pair encoding needs the package tokenizers: pip install -e ".[bpe]"') from None
    return tokenizers


def letters_of_bytes() -> list[str]:
    """How the library writes each of the 256 bytes: printable ones as themselves, the others from U+0100 on."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def _bytes(text: Text) -> bytes:
    if isinstance(text, bytes):
        return text
    try:
        return text.encode("utf-8", errors="surrogateescape")
    except UnicodeEncodeError:  # half a character, which no text has
        return text.encode("utf-8", errors="replace")


def _utf8(content: bytes) -> str | None:
    try:
        return content.decode()
    except UnicodeDecodeError:
        return None
