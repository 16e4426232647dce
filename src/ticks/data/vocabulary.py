"""Texts as numbers by the symbols of the training texts: characters, or words between spaces."""

from collections.abc import Iterable
from typing import Protocol

from ticks.data.tokenizers import END, PAD, START

UNKNOWN = 3
NAMES = ("", "", "", "\N{REPLACEMENT CHARACTER}")  # of these in a text


class Tokenizer(Protocol):
    """What cuts a text into tokens and puts it together again; PAD, START and END are tokens of their own."""

    @property
    def vocab_size(self) -> int:
        """Tokens are numbers below it."""

    def encode_many(self, texts: Iterable[str]) -> list[list[int]]: ...

    def decode(self, tokens: Iterable[int]) -> str: ...


class Symbols:
    """Each symbol that `texts` have is a token: a character, or with `words` what stands between spaces. Others are
    UNKNOWN."""

    def __init__(self, texts: Iterable[str], *, words: bool = False) -> None:
        self.words = words
        self.symbols = [*NAMES, *sorted({symbol for text in texts for symbol in self._cut(text)})]
        self.tokens = {symbol: i for i, symbol in enumerate(self.symbols) if i > UNKNOWN}

    @classmethod
    def of(cls, symbols: Iterable[str], *, words: bool = False) -> "Symbols":
        """With these very symbols, as `own` gives them."""
        return cls([(" " if words else "").join(symbols)], words=words)

    @property
    def own(self) -> list[str]:
        """Those of the texts."""
        return self.symbols[UNKNOWN + 1 :]

    @property
    def vocab_size(self) -> int:
        return len(self.symbols)

    def _cut(self, text: str) -> Iterable[str]:
        return text.split() if self.words else text

    def encode(self, text: str) -> list[int]:
        return [self.tokens.get(symbol, UNKNOWN) for symbol in self._cut(text)]

    def encode_many(self, texts: Iterable[str]) -> list[list[int]]:
        return [self.encode(text) for text in texts]

    def decode(self, tokens: Iterable[int]) -> str:
        """The text, without PAD, START and END."""
        return (" " if self.words else "").join(self.symbols[i] for i in tokens if i not in (PAD, START, END))
