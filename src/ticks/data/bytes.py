"""Language modelling data, of bytes or of longer tokens: what every source of text shares.

Training windows are the corpus cut at every `block_size` tokens; they are the samples of `ticks.data.base`.
"""

from abc import abstractmethod
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.utils.data import Dataset

from ticks.arguments import at_least
from ticks.data.base import StepData, TrainBatches
from ticks.data.corpus import Corpus
from ticks.data.encoded import Encoded, encode
from ticks.data.pretrained_tokenizer import PretrainedTokenizer
from ticks.data.tokenizers import Bpe, Bytes, TrainedBpe

IGNORE = -100  # targets of padding: not counted in any loss


class ByteData(StepData):
    """Batches {"x": (B, T), "y": (B, T)} of int64 tokens, y one token ahead of x.

    Tokens are bytes, or what a `tokenizer` makes of them that is learnt from the training split; then batches for
    evaluation say in "n_bytes" (B,) how many bytes of text the targets are, END, the end of a document, being one.
    `block_size` is T; `global_batch_size` counts sequences. Takes what `StepData` takes.
    """

    def __init__(
        self, *, block_size: int, tokenizer: TrainedBpe | PretrainedTokenizer | None = None, **arguments: Any
    ) -> None:
        super().__init__(**arguments)
        at_least(1, block_size=block_size)
        self.block_size = block_size
        self.make_tokenizer = tokenizer
        self.corpus: Corpus | None = None
        self._encoded: Encoded | None = None
        self._tokenizer: Bytes | None = None
        self.bytes_per_token = 1.0  # the mean over the training split, once that is known

    @property
    def tokenizer(self) -> Bytes | None:
        """None for bytes; else learnt when it is first asked for, if it is not in the cache."""
        if self.make_tokenizer is not None and self._tokenizer is None:
            corpus = self.corpus or self.load()
            self._tokenizer = self.make_tokenizer(corpus.texts("train"), identity=f"train of {corpus.key}")
        return self._tokenizer

    @property
    def shape(self) -> dict[str, Any]:
        return {"vocab_size": self.tokenizer.vocab_size if self.tokenizer else 256, "block_size": self.block_size}

    @property
    def tokens_per_step(self) -> int:
        return self.global_batch_size * self.block_size

    def step_label(self) -> str:
        return f"{self.global_batch_size} sequences of {self.block_size} {self._unit}"

    @property
    def _unit(self) -> str:
        return "bytes" if self.make_tokenizer is None else "tokens"

    def notes(self) -> list[str]:
        if self.make_tokenizer is None or self.tokenizer is None:
            return []
        if not isinstance(self.make_tokenizer, TrainedBpe):
            return [f"tokenizer: {self.tokenizer.vocab_size:,} tokens, {self.bytes_per_token:.2f} bytes per token"]
        wish, found = self.make_tokenizer.vocab_size, self.tokenizer.vocab_size
        fewer = f"; the text repeats too little for more than {found:,}" if found < wish else ""
        return [f"tokenizer.vocab_size={wish}: {self.bytes_per_token:.2f} bytes per token{fewer}"]

    def baselines(self) -> dict[str, dict[str, float]]:
        """What add-one n-gram models of bytes reach."""
        floors = self.corpus.floors if self.corpus is not None else {}
        return {"bits_per_byte": {f"{name} model": bits for name, bits in floors.items()}}

    @abstractmethod
    def load(self) -> Corpus:
        """Prepare the corpus, or find it in the cache."""

    def prepare_data(self) -> None:
        if self.corpus is None:  # later stages of a run need the text no more
            corpus = self.load()
            self.check(corpus, self._encode(corpus))

    def setup(self, stage: str | None = None) -> None:
        if self.corpus is None:
            self.corpus = self.load()
            self._encoded = self._encode(self.corpus)

    def _encode(self, corpus: Corpus) -> Encoded | None:
        """None for bytes."""
        if self.tokenizer is None:
            return None
        encoded = encode(corpus, self.tokenizer)
        self.bytes_per_token = corpus.n_bytes["train"] / max(1, encoded.n_tokens["train"])
        return encoded

    def recall(self, state_dict: dict[str, Any]) -> None:
        """Take the tokenizer from what `state_dict` returned in an earlier run, before anything else is asked."""
        if self.make_tokenizer is not None and (merges := state_dict.get("merges")) is not None:
            self._tokenizer = Bpe(merges)
            self.bytes_per_token = state_dict["bytes_per_token"]

    def state_dict(self) -> dict[str, Any]:
        """By what a resumed run knows its text again, wherever it lies now, and its tokenizer."""
        known: dict[str, Any] = {"text": self._identity()} if self.corpus is not None else {}
        if self.tokenizer:
            known |= {"bytes_per_token": self.bytes_per_token}
            known |= {"merges": self.tokenizer.merges} if isinstance(self.tokenizer, Bpe) else {}
        return known

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """MisconfigurationException if training would go on with another text. Checkpoints once said nothing of it."""
        wanted, training = state_dict.get("text"), self.trainer is not None and self.trainer.state.fn == "fit"
        if training and wanted and self.corpus is not None and wanted != self._identity():
            then, now = sum(wanted["n_bytes"].values()), sum(self.corpus.n_bytes.values())
            raise MisconfigurationException(
                f"data: the text is not the one that this run has learnt from ({now:,} bytes, it had {then:,}): give it"
                " back, or start a new run"
            )

    def _identity(self) -> dict[str, Any]:
        assert self.corpus is not None
        return {name: dict(getattr(self.corpus, name)) for name in ("documents", "n_bytes", "floors")}

    def check(self, corpus: Corpus, encoded: Encoded | None = None) -> None:
        """ValueError if a split is too small for one window."""
        n_documents = sum(corpus.documents.values()) + corpus.duplicates
        copies = f"; {corpus.duplicates} of {n_documents} documents are copies of others, which are dropped"
        for split, n in (encoded.n_tokens if encoded else corpus.n_bytes).items():
            if n < self.block_size + 1:
                raise ValueError(
                    f"too little text: the {split} split has {n} {self._unit} in {corpus.documents[split]} documents,"
                    f" a window of block_size={self.block_size} needs {self.block_size + 1}"
                    + (copies if corpus.duplicates else "")
                )

    def train_batches(self, world_size: int, worker: int, batch_size: int) -> "TrainWindows":
        return TrainWindows(
            self._prepared().tokens("train"),
            block_size=self.block_size,
            batch_size=batch_size,
            seed=self.seed,
            worker=worker,
            world_size=world_size,
        )

    def eval_batches(self, split: str, world_size: int, worker: int) -> "EvalWindows":
        return EvalWindows(
            self._prepared().tokens(split),
            block_size=self.block_size,
            batch_size=self.eval_batch_size,
            worker=worker,
            world_size=world_size,
            lengths=self._encoded.lengths if self._encoded else None,
        )

    def _prepared(self) -> Corpus | Encoded:
        assert self.corpus is not None, "setup() comes first"
        return self._encoded or self.corpus

    def decode(self, tokens: Tensor) -> str:
        """Tokens (T,) as text; bytes that are no UTF-8 become the replacement character."""
        ids = tokens.tolist()
        if self.tokenizer:
            content = b"".join(b"\0" if i == self.tokenizer.end_id else self.tokenizer.bytes_of[i] for i in ids)
        else:
            content = bytes(ids)
        return content.replace(b"\0", b"\n\n").decode("utf-8", errors="replace")

    def encode(self, text: str) -> Tensor:
        """Text as tokens (T,); what a command line could not read as UTF-8 is the bytes that were typed."""
        content = text.encode("utf-8", errors="surrogateescape")
        return torch.tensor(self.tokenizer.encode(content) if self.tokenizer else list(content), dtype=torch.long)


class TrainWindows(TrainBatches):
    """Endless batches of windows."""

    def __init__(self, tokens: np.ndarray, *, block_size: int, **arguments: Any) -> None:
        super().__init__((len(tokens) - 1) // block_size, **arguments)
        self.tokens = tokens
        self.block_size = block_size

    def batch(self, index: int) -> dict[str, Tensor]:
        return _cut(self.tokens, self.samples(index), self.block_size)


class EvalWindows(Dataset):
    """Every token of a split once: consecutive windows, in batches that do not depend on the number of workers.

    Worker w takes batches w, w + W, ...; where the last row of batches or the last window is not full, padding targets
    (IGNORE) make it so, and every worker has the same number of batches. With `lengths` (vocab_size,), the bytes of
    each token, batches have "n_bytes".
    """

    def __init__(
        self,
        tokens: np.ndarray,
        *,
        block_size: int,
        batch_size: int,
        worker: int,
        world_size: int,
        lengths: np.ndarray | None = None,
    ) -> None:
        self.tokens = tokens
        self.block_size = block_size
        self.batch_size = batch_size
        self.worker = worker
        self.world_size = world_size
        self.lengths = None if lengths is None else torch.from_numpy(lengths)
        self.n_windows = -(-(len(tokens) - 1) // block_size)

    def __len__(self) -> int:
        n_batches = -(-self.n_windows // self.batch_size)
        return -(-n_batches // self.world_size)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        first = (index * self.world_size + self.worker) * self.batch_size
        batch = _cut(self.tokens, np.arange(first, first + self.batch_size), self.block_size)
        if self.lengths is not None:
            batch["n_bytes"] = (self.lengths[batch["y"].clamp(min=0)] * (batch["y"] >= 0)).sum(1)
        return batch


def _cut(tokens: np.ndarray, windows: np.ndarray, block_size: int) -> dict[str, Tensor]:
    """Windows (B,) -> {"x": (B, T), "y": (B, T)}; positions past the end are 0 in x and IGNORE in y."""
    at = windows[:, None] * block_size + np.arange(block_size + 1)
    inside = at < len(tokens)
    xy = torch.from_numpy(tokens[np.minimum(at, len(tokens) - 1)].astype(np.int64))
    x, y = xy[:, :-1].clone(), xy[:, 1:].clone()  # not views of one tensor: padding differs
    if not inside.all():
        x[torch.from_numpy(~inside[:, :-1])] = 0
        y[torch.from_numpy(~inside[:, 1:])] = IGNORE
    return {"x": x, "y": y}
