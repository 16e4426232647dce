"""Next-token prediction: loss = mean over tokens of -log p(y_t | x_1..x_t).

Logs train/loss (this worker's own, in nats; nothing is exchanged between ticks), val/loss, test/loss, and
bits_per_byte = the sum of the losses / ln 2 / the bytes of text that were predicted: alike for every tokenizer.
"""

import math
from collections.abc import Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from ticks.arguments import above, at_least
from ticks.tasks.base import Task
from ticks.tasks.metrics import TokenLoss
from ticks.tasks.predictive_coding import IGNORE, Regulariser


class LanguageModeling(Task):
    """Train `model`, a module from tokens (B, T) to logits (B, T, V), on batches {"x": (B, T), "y": (B, T)}.

    Batches may say in "n_bytes" how many bytes of text their targets are, else a target is `bytes_per_token` of them.
    A `regulariser` adds to the loss what it makes of the same predictions.
    `sample_bytes` is about how much the model writes for `show`, after `sample_prompt`. Takes what `Task` takes.
    ArgumentError for numbers that cannot be used.
    """

    measures = (("bits_per_byte", "bits per byte", "lower", 3), ("loss", "loss (nats)", "lower", 3))

    def __init__(
        self,
        model: nn.Module,
        *,
        bytes_per_token: float = 1.0,
        sample_bytes: int = 0,
        sample_prompt: str = "",
        regulariser: Regulariser | None = None,
        **arguments: Any,
    ) -> None:
        super().__init__(model, **arguments)
        above(0, bytes_per_token=bytes_per_token)
        at_least(0, most=10**6, sample_bytes=sample_bytes)
        self.regulariser = regulariser
        self.sample_bytes = sample_bytes
        self.sample_prompt = sample_prompt
        self.bytes_per_token = bytes_per_token
        self.metrics = nn.ModuleDict(
            {
                f"{split}_{name}": TokenLoss(unit=unit)
                for split in ("val", "test")
                for name, unit in {"loss": 1.0, "bits_per_byte": math.log(2)}.items()
            }
        )

    def forward(self, tokens_BxT: Tensor) -> Tensor:
        return self.model(tokens_BxT)

    def loss(self, batch: dict[str, Tensor], *, reduction: str = "mean") -> Tensor:
        """Cross-entropy in nats of a batch, targets of IGNORE left out. MisconfigurationException for another batch."""
        if not isinstance(batch, Mapping):
            raise MisconfigurationException(
                "task: LanguageModeling learns from batches of x and y by name, not from a"
                f" {type(batch).__name__} as these data give: choose their own task, classification say"
            )
        return F.cross_entropy(*self._predicted(batch), reduction=reduction, ignore_index=IGNORE)

    def _predicted(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Logits (N, V) and targets (N,)."""
        logits_BxTxV = self(batch["x"])
        return logits_BxTxV.flatten(0, 1).float(), batch["y"].flatten()  # a sum in bfloat16 has three digits

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        e = None
        if self.regulariser is None:
            loss = self.loss(batch)
        else:
            logits_NxV, y_N = self._predicted(batch)
            penalty, e = self.regulariser(logits_NxV, y_N)
            loss = F.cross_entropy(logits_NxV, y_N, ignore_index=IGNORE) + penalty
        every = getattr(self.trainer, "log_every_n_steps", 1) or 1
        if (self.global_step + 1) % every == 0:  # a call costs 2% of a small step
            self.log("train/loss", loss)
            if e is not None:
                self.log("train/e", e)
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self._evaluate("val", batch)

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self._evaluate("test", batch)

    def _evaluate(self, split: str, batch: dict[str, Tensor]) -> None:
        nll, tokens = self.loss(batch, reduction="sum"), (batch["y"] != IGNORE).sum()
        n_bytes = batch["n_bytes"].sum() if "n_bytes" in batch else tokens.double() * self.bytes_per_token
        for name, parts in {"loss": tokens, "bits_per_byte": n_bytes}.items():
            metric = cast(TokenLoss, self.metrics[f"{split}_{name}"])
            metric.update(nll, parts)
            self.log(f"{split}/{name}", metric, on_step=False, on_epoch=True)

    def show(self, data: Any) -> str | None:
        """A text that the model writes; None if it is to write none, or cannot."""
        if not self.sample_bytes or not hasattr(self.model, "generate"):
            return None
        n = tokens_for(self.sample_bytes, data)
        return data.decode(self.generate(data.encode(self.sample_prompt or "\n"), n))

    @torch.no_grad()
    def generate(self, prompt_T: Tensor, n: int, *, temperature: float = 0.8, seed: int = 0) -> Tensor:
        """`prompt_T` (T,) continued by `n` sampled tokens: (T + n,). The model must have a `generate` method."""
        training = self.training
        self.eval()
        generator = torch.Generator(device=self.device).manual_seed(seed)
        prompt_1xT = prompt_T.to(self.device).unsqueeze(0)
        model: Any = self.model
        tokens_1xT = model.generate(prompt_1xT, n, temperature=temperature, generator=generator)
        self.train(training)
        return tokens_1xT[0].cpu()


def tokens_for(n_bytes: int, data: Any) -> int:
    """How many tokens of `data` are about so many bytes of text."""
    return math.ceil(n_bytes / getattr(data, "bytes_per_token", 1.0))
