"""Classification: loss = mean over samples of -log p(y | x); judged by accuracy, macro F1 and calibration."""

from typing import Any, cast

import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassCalibrationError,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
)

from ticks.arguments import ArgumentError, at_least
from ticks.tasks.base import Task
from ticks.tasks.metrics import TokenLoss
from ticks.tasks.predictive_coding import Regulariser


class Classification(Task):
    """Train `model`, a module from x (B, ...) to logits (B, n_classes), on batches (x, y) with y (B,).

    With a `regulariser` the model also predicts its own input tokens (`predict_tokens`), and that is added to the loss.
    Takes what `Task` takes. ArgumentError for fewer than two classes, and for a model that predicts no tokens then;
    MisconfigurationException, as it begins, for a model that gives no such logits.
    """

    measures = (
        ("accuracy", "accuracy", "higher", 3),
        ("macro_f1", "macro F1", "higher", 3),
        ("calibration_error", "expected calibration error", "lower", 3),
        ("loss", "loss (nats)", "lower", 3),
    )

    def __init__(
        self, model: nn.Module, *, n_classes: int, regulariser: Regulariser | None = None, **arguments: Any
    ) -> None:
        super().__init__(model, **arguments)
        at_least(2, n_classes=n_classes)
        self.regulariser = regulariser
        if regulariser is not None and not getattr(model, "predicts_tokens", False):
            wrong = f"needs a model that predicts its tokens; {type(model).__name__} does not"
            raise ArgumentError("regulariser", type(regulariser).__name__, wrong)
        self.n_classes = n_classes
        self.metrics = nn.ModuleDict({f"{split}_{name}": m for split in ("val", "test") for name, m in self._metrics()})
        self.confusion_CxC: Tensor | None = None  # of the last evaluation: rows are true, columns seen

    def _metrics(self) -> list[tuple[str, Metric]]:
        return [
            ("accuracy", MulticlassAccuracy(self.n_classes, average="micro")),
            ("macro_f1", MulticlassF1Score(self.n_classes, average="macro")),
            ("calibration_error", MulticlassCalibrationError(self.n_classes, n_bins=15)),
            ("loss", TokenLoss()),
            ("confusion", MulticlassConfusionMatrix(self.n_classes)),
        ]

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)

    def _logits(self, x: Any, n: int) -> Tensor:
        """(B, n_classes) of n samples. MisconfigurationException for a model that gives something else."""
        logits_BxC = self(x)
        if logits_BxC.shape != (n, self.n_classes):
            raise MisconfigurationException(
                f"task: Classification needs logits of {(n, self.n_classes)}, samples by classes, but"
                f" {type(self.model).__name__} gives {tuple(logits_BxC.shape)}: choose a model that classifies"
            )
        return logits_BxC.float()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y_B = batch
        loss = F.cross_entropy(self._logits(x, len(y_B)), y_B)
        if self.regulariser is not None:
            penalty, e = self.regulariser(*cast(Any, self.model).predict_tokens(x))
            self.log("train/e", e)
            loss = loss + penalty
        self.log("train/loss", loss)
        return loss

    @torch.no_grad()
    def answers(self, x: Tensor, data: Any) -> list[dict[str, Any]]:
        """Of each sample its likeliest class by name, and the share that the model gives to it."""
        shares_BxC = self(x.to(self.device)).float().softmax(-1).cpu()
        names = [str(name) for name in getattr(data, "class_names", range(self.n_classes))]
        best = shares_BxC.max(-1)
        return [{"class": names[i], "share": float(p)} for p, i in zip(best.values, best.indices.tolist(), strict=True)]

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self._evaluate("val", batch)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self._evaluate("test", batch)

    def _evaluate(self, split: str, batch: Any) -> None:
        x, y_B = batch
        logits_BxC = self._logits(x, len(y_B))
        for name, _, _, _ in self.measures:
            metric = self._metric(split, name)
            if name == "loss":
                metric.update(F.cross_entropy(logits_BxC, y_B, reduction="sum"), torch.tensor(len(y_B)))
            else:
                metric.update(logits_BxC, y_B)
            self.log(f"{split}/{name}", metric, on_step=False, on_epoch=True, batch_size=len(y_B))
        self._metric(split, "confusion").update(logits_BxC, y_B)

    def _metric(self, split: str, name: str) -> Metric:
        return cast(Metric, self.metrics[f"{split}_{name}"])

    def on_validation_epoch_end(self) -> None:
        self._keep_confusion("val")

    def on_test_epoch_end(self) -> None:
        self._keep_confusion("test")

    def _keep_confusion(self, split: str) -> None:
        metric = self._metric(split, "confusion")
        self.confusion_CxC = metric.compute().cpu()  # of all workers
        metric.reset()

    def show(self, data: Any) -> Any:
        """The confusion matrix of the last evaluation: a picture, or text without matplotlib."""
        if self.confusion_CxC is None:
            return None
        names = [str(name) for name in getattr(data, "class_names", range(self.n_classes))]
        try:
            return confusion_figure(self.confusion_CxC, names)
        except ImportError:
            rows = [f"{name:>12} " + " ".join(f"{n:5d}" for n in row) for name, row in
                    zip(names, self.confusion_CxC.tolist(), strict=True)]  # fmt: skip
            return "\n".join(["rows are true, columns seen", *rows])


def confusion_figure(confusion_CxC: Tensor, names: list[str]) -> Any:
    """The matrix as a picture: shares of each row by colour, counts in the cells. ImportError without
    matplotlib, which is in the extra `figures`."""
    from matplotlib.figure import Figure

    n = len(names)
    shares = confusion_CxC / confusion_CxC.sum(1, keepdim=True).clamp(min=1)
    size = max(4.0, 0.5 * n + 2)
    figure = Figure(figsize=(size, size), constrained_layout=True)
    axes = figure.add_subplot()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(n), names, rotation=90 if max(map(len, names)) > 3 else 0)
    axes.set_yticks(range(n), names)
    axes.set_xlabel("seen")
    axes.set_ylabel("true")
    for i, row in enumerate(confusion_CxC.tolist()):
        for j, count in enumerate(row):
            if count:
                dark = shares[i, j] > 0.5
                axes.text(j, i, f"{count}", ha="center", va="center", color="white" if dark else "black", fontsize=8)
    return figure
