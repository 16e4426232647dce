"""Byte-level language modelling data: what every source shares.

Training windows are the corpus cut at every `block_size` bytes. Sample p of the run (p = 0, 1, 2, ...) is window
permute(p mod n) of epoch p // n; step s takes samples s G .. (s + 1) G - 1 of the global batch size G, and worker w of
W takes its own G / W of them. So a batch depends on (seed, step, worker) alone: workers never overlap, the number of
workers does not change what is learnt from, and resuming at step s is starting at step s.
"""

import os
import signal
from abc import abstractmethod
from collections.abc import Iterator
from itertools import count
from typing import Any

import numpy as np
import torch
from lightning import LightningDataModule
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from ticks.data.corpus import Corpus
from ticks.data.order import permute

IGNORE = -100  # targets of padding: not counted in any loss


class ByteData(LightningDataModule):
    """Batches {"x": (B, T), "y": (B, T)} of int64 bytes, y one byte ahead of x.

    `global_batch_size` is the sequences of one step over all workers and accumulated batches; what one worker takes
    is derived, and ValueError says which numbers would divide. `block_size` is T. `seed` chooses the order.
    """

    def __init__(
        self,
        *,
        block_size: int,
        global_batch_size: int,
        eval_batch_size: int = 32,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        for name, value, least in (
            ("block_size", block_size, 1),
            ("global_batch_size", global_batch_size, 1),
            ("eval_batch_size", eval_batch_size, 1),
            ("seed", seed, 0),
            ("num_workers", num_workers, 0),
        ):
            if value < least:
                raise ValueError(f"{name}={value} must be at least {least}")
        if num_workers > (most := 8 * (os.cpu_count() or 1)):
            raise ValueError(f"num_workers={num_workers} must be at most {most}, eight processes for each CPU core")
        self.block_size = block_size
        self.global_batch_size = global_batch_size
        self.eval_batch_size = eval_batch_size
        self.seed = seed
        self.num_workers = num_workers
        self.corpus: Corpus | None = None

    @property
    def shape(self) -> dict[str, Any]:
        return {"vocab_size": 256, "block_size": self.block_size}

    @property
    def tokens_per_step(self) -> int:
        return self.global_batch_size * self.block_size

    def step_label(self) -> str:
        return f"{self.global_batch_size} sequences of {self.block_size} bytes"

    def baselines(self) -> dict[str, dict[str, float]]:
        """What add-one n-gram models reach."""
        floors = self.corpus.floors if self.corpus is not None else {}
        return {"bits_per_byte": {f"{name} model": bits for name, bits in floors.items()}}

    @abstractmethod
    def load(self) -> Corpus:
        """Prepare the corpus, or find it in the cache."""

    def prepare_data(self) -> None:
        if self.corpus is None:  # later stages of a run need the text no more
            self.check(self.load())

    def setup(self, stage: str | None = None) -> None:
        if self.corpus is None:
            self.corpus = self.load()

    def state_dict(self) -> dict[str, Any]:
        """By what a resumed run knows its text again, wherever it lies now."""
        return {"text": self._identity()} if self.corpus is not None else {}

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

    def check(self, corpus: Corpus) -> None:
        """ValueError if a split is too small for one window."""
        n_documents = sum(corpus.documents.values()) + corpus.duplicates
        copies = f"; {corpus.duplicates} of {n_documents} documents are copies of others, which are dropped"
        for split, n_bytes in corpus.n_bytes.items():
            if n_bytes < self.block_size + 1:
                raise ValueError(
                    f"too little text: the {split} split has {n_bytes} bytes in {corpus.documents[split]} documents,"
                    f" a window of block_size={self.block_size} needs {self.block_size + 1}"
                    + (copies if corpus.duplicates else "")
                )

    def notes(self) -> list[str]:
        """What a person should know about the text before training, one line each, each beginning with an argument."""
        return []

    def worker_batch_size(self, world_size: int, accumulate: int = 1) -> int:
        """Sequences per worker and batch. ValueError if they do not divide."""
        parts = world_size * accumulate
        if parts < 1:
            raise ValueError(
                f"global_batch_size={self.global_batch_size} cannot be cut into {parts} batches:"
                f" world_size={world_size} and accumulate_grad_batches={accumulate} must be at least 1"
            )
        if self.global_batch_size % parts:
            near = self.global_batch_size // parts * parts
            raise ValueError(
                f"global_batch_size={self.global_batch_size} must be divisible by {world_size} workers"
                + (f" x {accumulate} accumulated batches" if accumulate > 1 else "")
                + f"; the nearest that do: {', '.join(str(n) for n in (near, near + parts) if n)}"
            )
        return self.global_batch_size // parts

    def _loader(self, dataset: Dataset) -> DataLoader:
        generator = torch.Generator().manual_seed(0)  # its own: making an iterator must not move the global one
        return DataLoader(
            dataset,
            batch_size=None,
            num_workers=self.num_workers,
            generator=generator,
            worker_init_fn=_leave_signals_to_training,
        )

    def train_dataloader(self) -> DataLoader:
        trainer, corpus = self._attached()
        batch_size = self.worker_batch_size(trainer.world_size, trainer.accumulate_grad_batches)
        batches = TrainBatches(
            corpus.tokens("train"),
            block_size=self.block_size,
            batch_size=batch_size,
            seed=self.seed,
            worker=trainer.global_rank,
            world_size=trainer.world_size,
            start=trainer.global_step * trainer.accumulate_grad_batches,
        )
        return self._loader(batches)

    def val_dataloader(self) -> DataLoader:
        return self._eval_loader("val")

    def test_dataloader(self) -> DataLoader:
        return self._eval_loader("test")

    def _eval_loader(self, split: str) -> DataLoader:
        trainer, corpus = self._attached()
        return self._loader(
            EvalBatches(
                corpus.tokens(split),
                block_size=self.block_size,
                batch_size=self.eval_batch_size,
                worker=trainer.global_rank,
                world_size=trainer.world_size,
            )
        )

    def _attached(self) -> tuple[Any, Corpus]:
        assert self.trainer is not None
        assert self.corpus is not None, "setup() comes first"
        return self.trainer, self.corpus

    def decode(self, tokens: Tensor) -> str:
        """Bytes (T,) as text; bytes that are no UTF-8 become the replacement character."""
        return bytes(tokens.tolist()).replace(b"\0", b"\n\n").decode("utf-8", errors="replace")

    def encode(self, text: str) -> Tensor:
        """Text as bytes (T,); what a command line could not read as UTF-8 is the bytes that were typed."""
        return torch.tensor(list(text.encode("utf-8", errors="surrogateescape")), dtype=torch.long)


class TrainBatches(IterableDataset):
    """Endless batches of one worker, from batch `start` on. `batch(i)` is a pure function."""

    def __init__(
        self,
        tokens: np.ndarray,
        *,
        block_size: int,
        batch_size: int,
        seed: int,
        worker: int,
        world_size: int,
        start: int = 0,
    ) -> None:
        self.tokens = tokens
        self.block_size = block_size
        self.batch_size = batch_size
        self.seed = seed
        self.worker = worker
        self.world_size = world_size
        self.start = start
        self.n_windows = (len(tokens) - 1) // block_size

    def windows(self, index: int) -> np.ndarray:
        """The windows (batch_size,) of this worker's batch number `index`."""
        first = (index * self.world_size + self.worker) * self.batch_size
        epoch, position = np.divmod(np.arange(first, first + self.batch_size), self.n_windows)
        images = np.empty_like(position)
        for e in np.unique(epoch):
            images[epoch == e] = permute(position[epoch == e], self.n_windows, seed=_mix(self.seed, int(e)))
        return images

    def batch(self, index: int) -> dict[str, Tensor]:
        return _cut(self.tokens, self.windows(index), self.block_size)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        info = get_worker_info()
        offset, stride = (info.id, info.num_workers) if info else (0, 1)
        return (self.batch(index) for index in count(self.start + offset, stride))


class EvalBatches(Dataset):
    """Every byte of a split once: consecutive windows, in batches that do not depend on the number of workers.

    Worker w takes batches w, w + W, ...; where the last row of batches or the last window is not full, padding targets
    (IGNORE) make it so, and every worker has the same number of batches.
    """

    def __init__(self, tokens: np.ndarray, *, block_size: int, batch_size: int, worker: int, world_size: int) -> None:
        self.tokens = tokens
        self.block_size = block_size
        self.batch_size = batch_size
        self.worker = worker
        self.world_size = world_size
        self.n_windows = -(-(len(tokens) - 1) // block_size)

    def __len__(self) -> int:
        n_batches = -(-self.n_windows // self.batch_size)
        return -(-n_batches // self.world_size)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        first = (index * self.world_size + self.worker) * self.batch_size
        return _cut(self.tokens, np.arange(first, first + self.batch_size), self.block_size)


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


def _leave_signals_to_training(_: int) -> None:
    """A loader's process that died of Ctrl-C would take training down before it could stop with a checkpoint."""
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)


def _mix(seed: int, epoch: int) -> int:
    return int(np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0])
