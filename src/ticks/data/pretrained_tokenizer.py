"""The tokenizer of a pretrained model: of Hugging Face's, through transformers, or of a run of ours."""

import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ticks.arguments import ArgumentError
from ticks.data.tokenizers import Bpe, Bytes, Text, letters_of_bytes
from ticks.installed import is_run, needs, place_of, said_by

# the bytes of text in UTF-8, without other control characters and planes that have none: some tokenizers lack those
OF_TEXT = {0x09, 0x0A, 0x0D, *range(0x20, 0x7F), *range(0x80, 0xC0), *range(0xC2, 0xF1), 0xF3, 0xF4}


class PretrainedTokenizer:
    """The tokenizer that `name` has been trained with, to be made once data ask for it. `name` is what a model is
    loaded from. ArgumentError if there is none."""

    def __init__(self, *, name: str | None) -> None:
        self.name = name

    def __call__(self, texts: Iterable[Text], *, identity: str) -> Bytes:
        try:
            if is_run(self.name):
                return _of_a_run(Path(os.path.expanduser(str(self.name))))
            return Theirs(self.name)
        except ArgumentError as error:
            raise ArgumentError(f"tokenizer.{error.argument}", error.value, error.valid) from None


class Theirs(Bytes):
    """A tokenizer of transformers'. Its first and last token of a text and its padding are those that its model knows.

    ArgumentError if it cannot be loaded.
    """

    unit = "tokens"

    def __init__(self, name: str | None) -> None:
        self.name = name
        folder, options = place_of(name)
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # else the library warns of every fork
        try:
            import transformers
        except ImportError:
            raise ModuleNotFoundError('pretrained models need transformers: pip install -e ".[tuning]"') from None
        try:
            self._tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder, **options)
        except ImportError as error:
            raise ModuleNotFoundError(needs(error, options)) from None
        except (OSError, ValueError, KeyError) as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise ArgumentError("name", name, f"has no tokenizer that can be loaded: {reason}") from None
        t = self._tokenizer
        t.model_max_length = 1 << 30  # the data cut texts, and say so
        start = t.cls_token_id if t.cls_token_id is not None else t.bos_token_id
        end = t.sep_token_id if t.sep_token_id is not None else t.eos_token_id
        pad = t.pad_token_id if t.pad_token_id is not None else end
        if end is None or pad is None:
            raise ArgumentError("name", name, "has a tokenizer without an end or a padding token")
        self.start_id, self.end_id, self.pad_id = (end if start is None else start), end, pad
        self.mask_id = t.mask_token_id

    @property
    def vocab_size(self) -> int:
        return len(self._tokenizer)

    @property
    def digest(self) -> str:
        whole = getattr(self._tokenizer, "backend_tokenizer", None)  # of a library in Rust; others are their class
        how = type(self._tokenizer).__name__ if whole is None else whole.to_str()
        content = repr(sorted(self._tokenizer.get_vocab().items())) + repr(how)
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    @property
    def bytes_of(self) -> list[bytes]:  # type: ignore[override]
        """What each token stands for. ArgumentError for a tokenizer whose tokens are no bytes of the text."""
        special = {*self._tokenizer.all_special_ids}
        place = {letter: byte for byte, letter in enumerate(letters_of_bytes())}
        names = self._tokenizer.convert_ids_to_tokens(range(self.vocab_size))
        plain = [name for i, name in enumerate(names) if i not in special]
        needed = {letter for letter, byte in place.items() if byte in OF_TEXT}
        if not needed <= set(plain) or not all(place.keys() >= set(name) for name in plain):
            raise ArgumentError("tokenizer.name", self.name, "takes no bytes for tokens: bits per byte need that")
        return [b"" if i in special else bytes(place[letter] for letter in name) for i, name in enumerate(names)]

    def encode_many(self, texts: Iterable[Text]) -> list[list[int]]:
        plain = [text if isinstance(text, str) else text.decode("utf-8", errors="replace") for text in texts]
        # what is written like a special token is text all the same
        return self._tokenizer(plain, add_special_tokens=False, split_special_tokens=True)["input_ids"] if plain else []

    def decode(self, tokens: Iterable[int]) -> str:
        return self._tokenizer.decode([int(token) for token in tokens], skip_special_tokens=True)

    @property
    def lengths(self) -> np.ndarray:
        return np.array([len(content) for content in self.bytes_of], dtype=np.int64)


def _of_a_run(run: Path) -> Bytes:
    """What a run of ours has learnt with. ArgumentError for one whose tokens a classifier cannot have."""
    import torch

    checkpoints = sorted((run / "checkpoints").glob("*.ckpt"), key=lambda file: file.stat().st_mtime)
    if not checkpoints:
        raise ArgumentError("name", str(run), "has no checkpoint")
    state = torch.load(checkpoints[-1], map_location="cpu", mmap=True, weights_only=True)
    merges: Sequence[Any] | None = next(
        (value["merges"] for value in state.values() if isinstance(value, dict) and "merges" in value), None
    )
    if merges is not None:
        return Bpe(merges)
    if name := ((said_by(str(run)).get("data") or {}).get("tokenizer") or {}).get("name"):  # another model's
        return _of_a_run(Path(name)) if is_run(name) else Theirs(name)
    raise ArgumentError("name", str(run), "has learnt bytes without a padding token: train it with data/tokenizer=bpe")
