"""Pairs of texts, a source and its target: data for any task that makes one sequence of another.

A source may have several targets: each of them is learnt from, and each counts as right when the source is evaluated.
So all pairs of a source are in the same split, by default by a hash of the source (90% train, 5% val, 5% test).
"""

import gc
import hashlib
import json
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ticks.arguments import ArgumentError, at_least, one_of
from ticks.data.by_length import ByLength
from ticks.data.corpus import split_of
from ticks.data.samples import SPLITS, MapData
from ticks.data.tokenizers import END, PAD, START, Bpe
from ticks.data.vocabulary import Symbols, Tokenizer

Pair = tuple[str, str]
KINDS = ("characters", "words", "bpe")
SHARES = "90/5/5 by a hash of the source"


class Sample(NamedTuple):
    """A source and a target as tokens, without START and END; the source as a text, and every target that is right."""

    source: list[int]
    target: list[int]
    source_text: str
    references: tuple[str, ...]


class PairData(MapData):
    """Batches {"source": (B, S), "target": (B, T), "source_text": B texts, "references": B tuples of texts}.

    Targets begin with START and end with END, both are padded with PAD. A subclass says what the `pairs` are.
    `source_tokens` and `target_tokens` are "characters", "words" or "bpe" (`vocab_size` byte pairs) of the training
    texts: each side has a vocabulary of its own, or with `shared_vocabulary` both have one. `source_length` and
    `target_length` are how many tokens there are at most, END counted in (None: as many as the longest pair has):
    longer pairs are not learnt from; where they are evaluated, they are cut, and only a whole target is right. Takes
    what `StepData` takes. ArgumentError for what cannot be used.
    """

    samples_are = "pairs"

    def __init__(
        self,
        *,
        source_tokens: str = "characters",
        target_tokens: str = "characters",
        vocab_size: int = 4096,
        shared_vocabulary: bool = False,
        source_length: int | None = None,
        target_length: int | None = None,
        global_batch_size: int,
        eval_batch_size: int = 256,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__(
            global_batch_size=global_batch_size, eval_batch_size=eval_batch_size, seed=seed, num_workers=num_workers
        )
        one_of(KINDS, source_tokens=source_tokens, target_tokens=target_tokens)
        for name, length in (("source_length", source_length), ("target_length", target_length)):
            if length is not None:
                at_least(2, of=" tokens", **{name: length})
        if shared_vocabulary and source_tokens != target_tokens:
            raise ArgumentError("shared_vocabulary", True, f"needs source_tokens={source_tokens!r} on both sides")
        self.vocab_size = vocab_size
        self.settings = {
            "source_tokens": source_tokens,
            "target_tokens": target_tokens,
            "shared_vocabulary": shared_vocabulary,
            "source_length": source_length,
            "target_length": target_length,
        }
        self.left_out: dict[str, int] = {}  # pairs that are not learnt from, by the reason
        with _nothing_collected():
            self._texts = self._without_leaks(self.pairs())
            sources, targets = ([pair[side] for pair in self._texts["train"]] for side in (0, 1))
            if shared_vocabulary:
                self.source_tokenizer = self.target_tokenizer = self.tokenizer(target_tokens, [*sources, *targets])
            else:
                self.source_tokenizer = self.tokenizer(source_tokens, sources)
                self.target_tokenizer = self.tokenizer(target_tokens, targets)
            self._prepare(source_length, target_length)

    # ---- what a source of pairs says

    @abstractmethod
    def pairs(self) -> dict[str, list[Pair]]:
        """Source and target of each pair, by split."""

    def tokenizer(self, kind: str, texts: Sequence[str]) -> Tokenizer:
        """What makes tokens of texts like these, the training texts of one side or both."""
        if kind == "bpe":
            identity = hashlib.sha256("\n".join(texts).encode()).hexdigest()
            return Bpe.trained(texts, vocab_size=self.vocab_size, identity=f"pairs:{identity}")
        return Symbols(texts, words=kind == "words")

    # ---- what becomes of them

    def _prepare(self, source_length: int | None, target_length: int | None, *, recalled: bool = False) -> None:
        """Make samples of the pairs, with the tokenizers that there are, and say the shape. ArgumentError if none is
        short enough to be learnt from, unless tokenizers and lengths are `recalled`: then all may be evaluated only."""
        samples = {split: self._samples(pairs, grouped=split != "train") for split, pairs in self._texts.items()}
        every = [sample for of_split in samples.values() for sample in of_split]
        self.source_length = source_length or max(len(sample.source) for sample in every)
        self.target_length = target_length or max(len(sample.target) for sample in every) + 1
        kept = [sample for sample in samples["train"] if self._fits(sample)]
        if not kept and not recalled:
            also = f"and target_length={self.target_length} leave no pair to learn from"
            raise ArgumentError("source_length", self.source_length, also)
        self.n_too_long = len(samples["train"]) - len(kept)
        samples["train"] = kept or samples["train"]
        self._pairs = {split: Pairs(of_split) for split, of_split in samples.items() if of_split}
        self.shape = {
            "source_vocab_size": self.source_tokenizer.vocab_size,
            "target_vocab_size": self.target_tokenizer.vocab_size,
            "shared_vocabulary": self.settings["shared_vocabulary"],
            "source_length": self.source_length,
            "target_length": self.target_length,
            "pad_id": PAD,
            "start_id": START,
            "end_id": END,
            "decode": self.target_tokenizer.decode,
        }

    def _without_leaks(self, by_split: Mapping[str, list[Pair]]) -> dict[str, list[Pair]]:
        """Each pair once, and nothing learnt from whose source is evaluated. ValueError if a split is empty."""
        by_split = {split: list(dict.fromkeys(pairs)) for split, pairs in by_split.items()}
        for split in ("train", "val"):
            if not by_split.get(split):
                raise ValueError(f"no pair is in the {split} split ({SHARES}, unless each is given): give more pairs")
        evaluated = {source for split in SPLITS[1:] for source, _ in by_split.get(split, ())}
        kept = [pair for pair in by_split["train"] if pair[0] not in evaluated]
        if n := len(by_split["train"]) - len(kept):
            self.left_out["have a source that is evaluated"] = n
        return by_split | {"train": kept}

    def _samples(self, pairs: list[Pair], *, grouped: bool) -> list[Sample]:
        """By length; a source once, with its first target, if `grouped`."""
        references: dict[str, list[str]] = {}
        for source, target in pairs:
            references.setdefault(source, []).append(target)
        if grouped:
            pairs = [(source, targets[0]) for source, targets in references.items()]
        sources = self.source_tokenizer.encode_many([source for source, _ in pairs])
        targets = self.target_tokenizer.encode_many([target for _, target in pairs])
        samples = [
            Sample(source, target, text, tuple(references[text]))
            for source, target, (text, _) in zip(sources, targets, pairs, strict=True)
        ]
        return sorted(samples, key=lambda sample: (len(sample.source), len(sample.target)))

    def _fits(self, sample: Sample) -> bool:
        """Whether it is not too long to be learnt from."""
        return len(sample.source) <= self.source_length and len(sample.target) < self.target_length

    def samples(self, split: str) -> list[Sample]:
        """Of a split, by length."""
        return self._pairs[split].samples

    def load(self) -> dict[str, Dataset]:
        return dict(self._pairs)

    def collate(self, samples: Sequence[Sample]) -> dict[str, Any]:
        most = self.target_length - 1
        return {
            "source": padded([sample.source[: self.source_length] for sample in samples]),
            "target": padded([[START, *sample.target[:most], END] for sample in samples]),
            "source_text": [sample.source_text for sample in samples],
            "references": [sample.references for sample in samples],
        }

    sizes_can_change = False  # of steps: many are sorted by length together

    def train_batches(self, world_size: int, worker: int, batch_size: int) -> ByLength:
        return ByLength(
            self.datasets["train"], self.collate, batch_size=batch_size, seed=self.seed, worker=worker,
            world_size=world_size, global_batch_size=self.global_batch_size,
        )  # fmt: skip

    def notes(self) -> list[str]:
        too_long = {f"are longer than {self.source_length} and {self.target_length} tokens": self.n_too_long}
        left_out = {reason: n for reason, n in (self.left_out | too_long).items() if n}
        return super().notes() + [f"pairs: {n:,} are left out, which {reason}" for reason, n in left_out.items()]

    # ---- going on

    def recall(self, state_dict: dict[str, Any]) -> None:
        """Take vocabularies and lengths from what `state_dict` returned in an earlier run, which may have said nothing
        of them, before anything else is asked. ArgumentError for an argument that asks for others."""
        learnt = state_dict.get("settings")
        if learnt is None:
            return
        for name, value in self.settings.items():
            if value not in (None, learnt[name]):
                raise ArgumentError(name, value, f"is not what this run has learnt with: {learnt[name]!r}")
        self.source_tokenizer = tokenizer_of(state_dict["source"]) or self.source_tokenizer
        self.target_tokenizer = tokenizer_of(state_dict["target"]) or self.target_tokenizer
        if learnt["shared_vocabulary"]:
            self.source_tokenizer = self.target_tokenizer
        with _nothing_collected():
            self._prepare(learnt["source_length"], learnt["target_length"], recalled=True)

    def state_dict(self) -> dict[str, Any]:
        lengths = {"source_length": self.source_length, "target_length": self.target_length}
        return super().state_dict() | {
            "settings": self.settings | lengths,
            "source": known_of(self.source_tokenizer),
            "target": known_of(self.target_tokenizer),
        }

    def _identity(self) -> dict[str, Any]:
        return super()._identity() | {"pairs": self._digest}

    @cached_property
    def _digest(self) -> str:
        """Another one whenever other samples, or the same in another order, are learnt from or evaluated."""
        digest = hashlib.sha256()
        for split, pairs in sorted(self._pairs.items()):
            for sample in pairs.samples:
                digest.update(json.dumps((split, *sample)).encode())
        return digest.hexdigest()[:16]


@contextmanager
def _nothing_collected() -> Iterator[None]:
    """Python does not look for garbage meanwhile: while hundreds of thousands of lists are made it finds none, again
    and again, and takes longer for it than they do."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


class Pairs(Dataset):
    """Samples, and how long each of them is."""

    def __init__(self, samples: list[Sample]) -> None:
        self.samples = samples
        self.lengths = np.array([len(sample.source) + len(sample.target) for sample in samples])

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]


def known_of(tokenizer: Tokenizer) -> dict[str, Any]:
    """What `tokenizer_of` makes a tokenizer of, in plain lists; {} for one that is of neither kind here."""
    if isinstance(tokenizer, Symbols):
        return {"symbols": tokenizer.own, "words": tokenizer.words}
    return {"merges": tokenizer.merges} if isinstance(tokenizer, Bpe) else {}


def tokenizer_of(known: Mapping[str, Any]) -> Tokenizer | None:
    """The tokenizer of which `known_of` said this, None for {}."""
    if "symbols" in known:
        return Symbols.of(known["symbols"], words=known["words"])
    return Bpe(known["merges"]) if "merges" in known else None


def padded(sequences: Sequence[list[int]]) -> Tensor:
    """Sequences of tokens (B, longest), filled up with PAD."""
    longest = max(map(len, sequences))
    return torch.tensor([sequence + [PAD] * (longest - len(sequence)) for sequence in sequences])


def split_by_source(pairs: Iterable[Pair]) -> dict[str, list[Pair]]:
    """By a hash of the source, so that adding a pair never moves another one."""
    by_split: dict[str, list[Pair]] = {split: [] for split in SPLITS}
    for pair in pairs:
        by_split[split_of(pair[0].encode())].append(pair)
    return by_split
