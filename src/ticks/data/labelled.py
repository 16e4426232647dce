"""Texts that are to be told apart: what every source of them shares."""

import hashlib
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ticks.arguments import ArgumentError, at_least
from ticks.data.by_length import ByLength
from ticks.data.labelled_corpus import LabelledCorpus, Row, Tokens, prepare, tokens_of
from ticks.data.pretrained_tokenizer import PretrainedTokenizer, Theirs
from ticks.data.samples import MapData, TrainSamples
from ticks.data.tokenizers import Bpe, Bytes, TrainedBpe

MOST_FOR_TFIDF = 20_000  # training texts: a baseline must not take longer than the run


class LabelledTexts(MapData):
    """Batches of tokens (B, T) and labels (B,). A text is START and its tokens, cut to `block_size` and padded with PAD
    to the longest of its batch; with the tokenizer of a pretrained model, END comes behind it, as that has learnt.

    `tokenizer` is learnt from the training split, its labels unseen, or a pretrained model's; None: bytes. With
    `n_per_class` only so many labelled texts of each class are trained on; of one `seed`, fewer are always among more.
    With `by_length` texts of about the same length share a step, which leaves less padding. Takes what `StepData`
    takes. ArgumentError for numbers that cannot be.
    """

    samples_are = "texts"

    def __init__(
        self,
        *,
        block_size: int,
        global_batch_size: int,
        tokenizer: TrainedBpe | PretrainedTokenizer | None = None,
        n_per_class: int | None = None,
        by_length: bool = False,
        eval_batch_size: int = 64,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__(
            global_batch_size=global_batch_size, eval_batch_size=eval_batch_size, seed=seed, num_workers=num_workers
        )
        at_least(3, block_size=block_size)
        if n_per_class is not None:
            at_least(1, n_per_class=n_per_class)
        self.block_size = block_size
        self.make_tokenizer = tokenizer
        self.n_per_class = n_per_class
        self.by_length = by_length
        self._corpus: LabelledCorpus | None = None
        self._tokenizer: Bytes | None = None
        self._class_names: list[str] | None = None

    @abstractmethod
    def identity(self) -> str:
        """Another one whenever `rows` are others."""

    @abstractmethod
    def rows(self) -> Iterator[Row]:
        """Every text with its split and its label."""

    @property
    def corpus(self) -> LabelledCorpus:
        """The texts, read when they are first asked for, if they are not in the cache."""
        if self._corpus is None:
            self._corpus = prepare(self.rows(), identity=self.identity())
        return self._corpus

    @property
    def tokenizer(self) -> Bytes:
        if self._tokenizer is None:
            if self.make_tokenizer is None:
                self._tokenizer = Bytes()
            else:
                texts = self.corpus.texts("train")
                self._tokenizer = self.make_tokenizer(texts, identity=f"train of {self.corpus.digest}")
        return self._tokenizer

    @property
    def class_names(self) -> list[str]:
        return self._class_names or self.corpus.class_names

    @property  # type: ignore[misc]
    def shape(self) -> dict[str, Any]:
        return {
            "vocab_size": self.tokenizer.vocab_size,
            "block_size": self.block_size,
            "n_classes": len(self.class_names),
            "pad_id": self.tokenizer.pad_id,
            "mask_id": getattr(self.tokenizer, "mask_id", None),
        }

    def step_label(self) -> str:
        return f"{self.global_batch_size} {self.samples_are} of up to {self.block_size} {self.tokenizer.unit}"

    def notes(self) -> list[str]:
        sizes = {split: len(texts) for split, texts in self.datasets.items()}  # type: ignore[arg-type]
        held = ", ".join(f"{n:,} for {split}" for split, n in sizes.items() if split != "train")
        classes = f"in {len(self.class_names)} classes to learn from, {held}"
        if self.n_per_class is None:
            return [f"{self.samples_are}: {sizes['train']:,} {classes}", *super().notes()]
        return [f"n_per_class={self.n_per_class}: {sizes['train']:,} {self.samples_are} {classes}", *super().notes()]

    def load(self) -> dict[str, Dataset]:
        corpus, numbers = self.corpus, self._numbers()
        for split in ("train", "val"):
            if not corpus.sizes[split]:
                raise ValueError(f"too few {self.samples_are}: of {sum(corpus.sizes.values())} none is for {split}")
        tokens = tokens_of(corpus, self.tokenizer)
        rows = {split: np.arange(size) for split, size in corpus.sizes.items() if size}
        if self.n_per_class is not None:
            rows["train"] = self._few(corpus.labels("train"), corpus.hashes("train"))
        return {
            split: TokenTexts(tokens[split], numbers[corpus.labels(split)], of_split, self.block_size, self.tokenizer)
            for split, of_split in rows.items()
        }

    def _numbers(self) -> np.ndarray:
        """From the number of a class among these texts' to the one that is learnt."""
        if unknown := sorted(set(self.corpus.class_names) - set(self.class_names)):
            raise ValueError(f"{unknown[0]!r} is none of the classes that were learnt: {', '.join(self.class_names)}")
        return np.array([self.class_names.index(name) for name in self.corpus.class_names])

    def _few(self, labels_N: np.ndarray, hashes_N: np.ndarray) -> np.ndarray:
        """The rows of `n_per_class` texts of each class, chosen by their content and the seed."""
        chosen = []
        for number, name in enumerate(self.corpus.class_names):
            rows = np.flatnonzero(labels_N == number)
            if len(rows) < (self.n_per_class or 0):
                raise ArgumentError("n_per_class", self.n_per_class, f"is more than the {len(rows)} of class {name!r}")
            lot = [hashlib.sha256(f"{self.seed}:{hashes_N[row]}".encode()).digest() for row in rows]
            chosen.append(rows[sorted(range(len(rows)), key=lot.__getitem__)[: self.n_per_class]])
        return np.sort(np.concatenate(chosen))

    def collate(self, samples: Sequence[Any]) -> tuple[Tensor, Tensor]:
        x_BxT = torch.full((len(samples), max(len(tokens) for tokens, _ in samples)), self.tokenizer.pad_id)
        for row, (tokens, _) in zip(x_BxT, samples, strict=True):
            row[: len(tokens)] = tokens
        return x_BxT, torch.tensor([label for _, label in samples])

    @property
    def sizes_can_change(self) -> bool:
        """Whether steps may differ in size: not where many are sorted by length together."""
        return not self.by_length

    def train_batches(self, world_size: int, worker: int, batch_size: int) -> TrainSamples:
        if not self.by_length:
            return super().train_batches(world_size, worker, batch_size)
        return ByLength(
            self.datasets["train"], self.collate, batch_size=batch_size, seed=self.seed, worker=worker,
            world_size=world_size, global_batch_size=self.global_batch_size,
        )  # fmt: skip

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """A batch (B, T) of texts that have no label, as those with one are given to a model."""
        tokens = Tokens.of(self.tokenizer.encode_many(texts))
        rows, labels = np.arange(len(texts)), np.zeros(len(texts), dtype=np.int64)
        made = TokenTexts(tokens, labels, rows, self.block_size, self.tokenizer)
        return self.collate([made[i] for i in range(len(made))])[0]

    def recall(self, state_dict: dict[str, Any]) -> None:
        """Take the tokenizer and the classes from what `state_dict` returned in an earlier run."""
        if self.make_tokenizer is not None and (merges := state_dict.get("merges")) is not None:
            self._tokenizer = Bpe(merges)
        self._class_names = state_dict.get("class_names")

    def state_dict(self) -> dict[str, Any]:
        merges = {"merges": self.tokenizer.merges} if isinstance(self.tokenizer, Bpe) else {}
        return super().state_dict() | {"class_names": self.class_names} | merges

    def _identity(self) -> dict[str, Any]:
        return super()._identity() | {"texts": self.corpus.digest}

    def baselines(self) -> dict[str, dict[str, float]]:
        """What the commonest class, and with scikit-learn (in the extra `hf`) a linear model of the words' TF-IDF,
        say of the validation texts."""
        rows = self.datasets["train"].rows  # type: ignore[attr-defined]
        y_N, y_M = self.corpus.labels("train")[rows], self.corpus.labels("val")
        found = {"commonest class": float((y_M == np.bincount(y_N).argmax()).mean())}
        if len(rows) <= MOST_FOR_TFIDF and len(set(y_N.tolist())) > 1:
            taken = set(rows.tolist())
            train = [text for i, text in enumerate(self.corpus.texts("train")) if i in taken]
            found |= tfidf(train, y_N, list(self.corpus.texts("val")), y_M)
        return {"accuracy": found}


class TokenTexts(Dataset):
    """Some of a split's texts as START and tokens (T,), at most `block_size`, with their labels."""

    def __init__(
        self, tokens: Tokens, labels_N: np.ndarray, rows: np.ndarray, block_size: int, tokenizer: Bytes
    ) -> None:
        self.first, self.last = [tokenizer.start_id], [tokenizer.end_id] if isinstance(tokenizer, Theirs) else []
        self.tokens = tokens
        self.labels_N = labels_N
        self.rows = rows
        self.block_size = block_size
        self.lengths = np.minimum(np.diff(tokens.ends, prepend=0)[rows], block_size)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        row = int(self.rows[i])
        tokens = self.tokens[row][: self.block_size - 1 - len(self.last)].astype(np.int64)
        whole = np.concatenate([self.first, tokens, self.last]).astype(np.int64)
        return torch.from_numpy(whole), int(self.labels_N[row])


def tfidf(train: list[bytes], y_N: np.ndarray, val: list[bytes], y_M: np.ndarray) -> dict[str, float]:
    """The accuracy of logistic regression on the words' TF-IDF; {} without scikit-learn."""
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
    except ImportError:
        return {}
    words = TfidfVectorizer(sublinear_tf=True, decode_error="replace")
    try:
        x_NxW = words.fit_transform(train)
    except ValueError:  # no words at all
        return {}
    model = LogisticRegression(C=10, max_iter=1000).fit(x_NxW, y_N)
    return {"TF-IDF, logistic regression": float(model.score(words.transform(val), y_M))}
