"""One sequence made of another: loss = mean over target tokens of -log p(y_t | y_1..y_(t-1), x), with label smoothing e

    (1 - e) (-log p(y_t)) + e mean over the vocabulary of -log p

while training alone. What the model writes is compared with what is right: texts by chrF, phonemes by error rates.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import Metric

from ticks.arguments import ArgumentError, at_least, not_negative, share
from ticks.similarity import nearest
from ticks.tasks.base import Task
from ticks.tasks.metrics import Chrf, ErrorRate, TokenLoss


class SequenceToSequence(Task):
    """Train `model`, a module from source ids (B, S) and target ids (B, T) to logits (B, T, V) that has a method
    `decode(source, beam=, length_penalty=)`, on batches as `ticks.data.PairData` makes them.

    `decode` makes a text of target ids. Every sample is decoded whenever it is evaluated: with a beam of 1 (the
    likeliest next token) in validation, of `beam` on the test data and in what is shown, of which there are `n_shown`.
    Takes what `Task` takes. ArgumentError for what cannot be used.
    """

    measures: Sequence[tuple[str, str, str, int]] = (("chrf", "chrF", "higher", 1), ("loss", "loss (nats)", "lower", 3))

    def __init__(
        self,
        model: nn.Module,
        *,
        decode: Callable[[Iterable[int]], str],
        pad_id: int = 0,
        label_smoothing: float = 0.0,
        beam: int = 1,
        length_penalty: float = 1.0,
        n_shown: int = 8,
        **arguments: Any,
    ) -> None:
        super().__init__(model, **arguments)
        share(label_smoothing=label_smoothing)
        at_least(1, beam=beam)
        at_least(0, n_shown=n_shown)
        not_negative(length_penalty=length_penalty)
        if not callable(getattr(model, "decode", None)):
            raise ArgumentError("model", type(model).__name__, "must have a method decode, as EncoderDecoder has")
        self.text_of = decode
        self.pad_id = pad_id
        self.label_smoothing = label_smoothing
        self.beam = beam
        self.length_penalty = length_penalty
        self.n_shown = n_shown
        self.metrics = nn.ModuleDict({f"{split}_{name}": m for split in ("val", "test") for name, m in self.made()})

    def made(self) -> list[tuple[str, Metric]]:
        """A metric of each measure."""
        return [("chrf", Chrf()), ("loss", TokenLoss())]

    def score(self, split: str, said: list[str], references: list[tuple[str, ...]]) -> None:
        """Add what was said of each sample to the metrics."""
        self.metric(split, "chrf").update(said, references)

    def metric(self, split: str, name: str) -> Metric:
        return cast(Metric, self.metrics[f"{split}_{name}"])

    def forward(self, source_BxS: Tensor, target_BxT: Tensor) -> Tensor:
        return self.model(source_BxS, target_BxT)

    def loss(self, batch: dict[str, Any], *, reduction: str = "mean", label_smoothing: float = 0.0) -> Tensor:
        """Cross-entropy in nats of a batch, padding left out."""
        logits_BxTxV = self(batch["source"], batch["target"][:, :-1])
        return F.cross_entropy(
            logits_BxTxV.flatten(0, 1).float(), batch["target"][:, 1:].flatten(), reduction=reduction,
            ignore_index=self.pad_id, label_smoothing=label_smoothing,
        )  # fmt: skip

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        loss = self.loss(batch, label_smoothing=self.label_smoothing)
        self.log("train/loss", loss, batch_size=len(batch["source"]))
        return loss

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self._evaluate("val", batch, beam=1)

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self._evaluate("test", batch, beam=self.beam)

    def _evaluate(self, split: str, batch: dict[str, Any], *, beam: int) -> None:
        n_tokens = (batch["target"][:, 1:] != self.pad_id).sum()
        self.metric(split, "loss").update(self.loss(batch, reduction="sum"), n_tokens)
        self.score(split, self.written(batch["source"], beam=beam), batch["references"])
        for name, *_ in self.measures:
            metric = self.metric(split, name)
            self.log(f"{split}/{name}", metric, on_step=False, on_epoch=True, batch_size=len(batch["source"]))

    @torch.no_grad()
    def written(self, source_BxS: Tensor, *, beam: int) -> list[str]:
        """What the model makes of each source."""
        model: Any = self.model
        tokens_BxT = model.decode(source_BxS, beam=beam, length_penalty=self.length_penalty)
        return [self.text_of([token for token in row if token != self.pad_id]) for row in tokens_BxT.tolist()]

    def show(self, data: Any) -> str | None:
        """Some samples, from the shortest to the longest: what the model makes of them, and what is right."""
        datasets = getattr(data, "datasets", {})
        dataset = datasets.get("test", datasets.get("val"))
        if dataset is None or not self.n_shown:
            return None
        n = min(self.n_shown, len(dataset))
        batch = data.collate([dataset[i * len(dataset) // n + len(dataset) // (2 * n)] for i in range(n)])
        training = self.training
        self.eval()
        said = self.written(batch["source"].to(self.device), beam=self.beam)
        self.train(training)
        return self.table(batch["source_text"], said, batch["references"])

    def table(self, sources: list[str], said: list[str], references: list[tuple[str, ...]]) -> str:
        """The samples, for people."""
        lines = [
            f"{source}\n  said: {text}\n  true: {right[0]}"
            for source, text, right in zip(sources, said, references, strict=True)
        ]
        return "\n\n".join(lines)


class Transcription(SequenceToSequence):
    """Targets are symbols with spaces between them, phonemes of a word: judged by the edits to the nearest of the
    listed ones over its length, and by the share of words that are none of those listed.
    """

    measures = (
        ("phoneme_error_rate", "phoneme error rate", "lower", 4),
        ("word_error_rate", "word error rate", "lower", 4),
        ("loss", "loss (nats)", "lower", 3),
    )

    def made(self) -> list[tuple[str, Metric]]:
        return [("phoneme_error_rate", ErrorRate()), ("word_error_rate", ErrorRate()), ("loss", TokenLoss())]

    def score(self, split: str, said: list[str], references: list[tuple[str, ...]]) -> None:
        found = [
            nearest(text.split(), [reference.split() for reference in right])
            for text, right in zip(said, references, strict=True)
        ]
        wrong, length = (torch.tensor(float(sum(numbers))) for numbers in zip(*found, strict=True))
        self.metric(split, "phoneme_error_rate").update(wrong, length)
        wrong_words = torch.tensor(float(sum(distance > 0 for distance, _ in found)))
        self.metric(split, "word_error_rate").update(wrong_words, torch.tensor(float(len(found))))

    def table(self, sources: list[str], said: list[str], references: list[tuple[str, ...]]) -> str:
        rows = list(zip(sources, said, [" | ".join(right) for right in references], strict=True))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        marks = ["  " if text in right else "x " for text, right in zip(said, references, strict=True)]
        return "\n".join(
            f"{mark}{source:{widths[0]}}  {text:{widths[1]}}  true: {right}"
            for mark, (source, text, right) in zip(marks, rows, strict=True)
        )
