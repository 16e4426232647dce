"""Next-token prediction: loss = mean over tokens of -log p(y_t | x_1..x_t).

Logs train/loss (this worker's own, in nats; nothing is exchanged between ticks), val/loss, test/loss, and their
bits_per_byte = loss / ln 2 / bytes per token.
"""

import math
from typing import Any, cast

import torch
import torch.nn.functional as F
from lightning import LightningModule
from torch import Tensor, nn

from ticks.tasks.metrics import TokenLoss
from ticks.tasks.optimizer import adamw, schedule

IGNORE = -100  # targets that are padding


class LanguageModeling(LightningModule):
    """Train `model`, a module from tokens (B, T) to logits (B, T, V), on batches {"x": (B, T), "y": (B, T)}.

    `warmup_steps` and the cosine after it count optimizer steps; the cosine ends at `min_lr_ratio` of `lr` when
    training ends. `sample_bytes` is how much the model writes for `show`, after `sample_prompt`. Parameters with
    requires_grad=False are left alone, so freeze `model` before training to fine-tune. ValueError for a negative rate
    or count, and for values that cannot be used.
    """

    measures = (("bits_per_byte", "bits per byte", "lower", 3), ("loss", "loss (nats)", "lower", 3))

    def __init__(
        self,
        model: nn.Module,
        *,
        lr: float = 3e-3,
        weight_decay: float = 0.1,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        warmup_steps: int = 50,
        min_lr_ratio: float = 0.1,
        bytes_per_token: float = 1.0,
        sample_bytes: int = 0,
        sample_prompt: str = "",
    ) -> None:
        super().__init__()
        for name, value in {"lr": lr, "weight_decay": weight_decay, "warmup_steps": warmup_steps, "eps": eps}.items():
            if value < 0:
                raise ValueError(f"{name}={value} must not be negative")
            if not math.isfinite(value):
                raise ValueError(f"{name}={value} must be a finite number")
        if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas={list(betas)} must be two numbers from 0 to below 1")
        if not 0 <= min_lr_ratio <= 1:
            raise ValueError(f"min_lr_ratio={min_lr_ratio} must be from 0 to 1")
        if not 0 < bytes_per_token < math.inf:
            raise ValueError(f"bytes_per_token={bytes_per_token} must be above 0")
        if isinstance(sample_bytes, bool) or not isinstance(sample_bytes, int) or not 0 <= sample_bytes <= 10**6:
            raise ValueError(f"sample_bytes={sample_bytes} must be a whole number from 0 to {10**6}")
        self.model = model
        self.lr = lr
        self.weight_decay = weight_decay
        self.betas = (betas[0], betas[1])
        self.eps = eps
        self.warmup_steps = warmup_steps
        self.min_lr_ratio = min_lr_ratio
        self.sample_bytes = sample_bytes
        self.sample_prompt = sample_prompt
        bits_per_byte = math.log(2) * bytes_per_token
        self.metrics = nn.ModuleDict(
            {
                f"{split}_{name}": TokenLoss(unit=unit)
                for split in ("val", "test")
                for name, unit in {"loss": 1.0, "bits_per_byte": bits_per_byte}.items()
            }
        )

    def forward(self, tokens_BxT: Tensor) -> Tensor:
        return self.model(tokens_BxT)

    def loss(self, batch: dict[str, Tensor], *, reduction: str = "mean") -> Tensor:
        """Cross-entropy in nats of a batch, targets of IGNORE left out."""
        logits_BxTxV = self(batch["x"])
        logits_NxV = logits_BxTxV.flatten(0, 1).float()  # a sum over a batch in bfloat16 has three digits
        y_N = batch["y"].flatten()
        return F.cross_entropy(logits_NxV, y_N, reduction=reduction, ignore_index=IGNORE)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        every = getattr(self.trainer, "log_every_n_steps", 1) or 1
        if (self.global_step + 1) % every == 0:  # a call costs 2% of a small step
            self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self._evaluate("val", batch)

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self._evaluate("test", batch)

    def _evaluate(self, split: str, batch: dict[str, Tensor]) -> None:
        nll, tokens = self.loss(batch, reduction="sum"), (batch["y"] != IGNORE).sum()
        for name in ("loss", "bits_per_byte"):
            metric = cast(TokenLoss, self.metrics[f"{split}_{name}"])
            metric.update(nll, tokens)
            self.log(f"{split}/{name}", metric, on_step=False, on_epoch=True)

    def configure_optimizers(self) -> Any:
        fused = "mixed" not in str(self.trainer.precision)  # Lightning does not clip fused steps of scaled gradients
        optimizer = adamw(self, lr=self.lr, weight_decay=self.weight_decay, betas=self.betas, eps=self.eps, fused=fused)
        scheduler = schedule(
            optimizer,
            warmup_steps=self.warmup_steps,
            total_steps=self.trainer.estimated_stepping_batches,
            min_ratio=self.min_lr_ratio,
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def show(self, data: Any) -> str | None:
        """A text that the model writes; None if it is to write none, or cannot."""
        if not self.sample_bytes or not hasattr(self.model, "generate"):
            return None
        return data.decode(self.generate(data.encode(self.sample_prompt or "\n"), self.sample_bytes))

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
