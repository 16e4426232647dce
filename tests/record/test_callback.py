"""What a run writes into metrics.csv while it trains."""

import csv
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import Logger
from torch import nn
from torch.utils.data import DataLoader

from tests.conftest import run_workers
from ticks.optim import WarmupCosine
from ticks.record.callback import Record
from ticks.record.metrics import MetricsFile
from ticks.strategy import TickStrategy
from ticks.tasks import LanguageModeling


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# ---- the callback -------------------------------------------------------------------------------------------------


class Table(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.randn(4, 4, generator=torch.Generator().manual_seed(0)))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.rows[tokens]


class SlowEvaluation(pl.Callback):
    """Evaluation takes 0.3 seconds; `seconds` is how long all of training took, with it."""

    def on_train_start(self, *args: Any) -> None:
        self.started = time.perf_counter()

    def on_train_end(self, *args: Any) -> None:
        self.seconds = time.perf_counter() - self.started

    def on_validation_batch_end(self, *args: Any) -> None:
        time.sleep(0.3)


def batches(n: int) -> DataLoader:
    tokens = torch.arange(8).view(2, 4) % 4
    return DataLoader([{"x": tokens, "y": tokens}] * n, batch_size=None)


def fit(
    directory: Path,
    *,
    steps: int,
    resume: Path | None = None,
    strategy: Any = "auto",
    devices: int = 1,
    every: int = 2,
    logger: Any = False,
    accumulate: int = 1,
) -> tuple[pl.Trainer, Record]:
    record = Record(directory, tokens_after=lambda steps: 8 * steps, every_n_steps=every)
    trainer = pl.Trainer(
        accelerator="cpu", devices=devices, strategy=strategy, max_steps=steps, max_epochs=-1, val_check_interval=4,
        check_val_every_n_epoch=None, num_sanity_val_steps=0, callbacks=[record, SlowEvaluation()], logger=logger,
        accumulate_grad_batches=accumulate,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=1,
        default_root_dir=directory, use_distributed_sampler=False,
    )  # fmt: skip
    task = LanguageModeling(Table(), schedule=WarmupCosine(min_ratio=0.1))
    if logger:
        trainer.validate(task, batches(1), verbose=False)
    trainer.fit(task, batches(100), batches(1), ckpt_path=resume)
    trainer.save_checkpoint(directory / "end.ckpt")
    return trainer, record


def test_a_run_leaves_its_losses_its_rate_and_its_measures(tmp_path: Path) -> None:
    fit(tmp_path, steps=9)
    rows = rows_of(tmp_path / "metrics.csv")
    assert [(r["step"], r["tokens"]) for r in rows if r["train/loss"]] == [(str(s), str(8 * s)) for s in (2, 4, 6, 8)]
    assert [r["step"] for r in rows if r["val/loss"]] == ["4", "8"]
    assert all(float(r["lr"]) > 0 for r in rows if r["train/loss"])
    losses = [float(r["train/loss"]) for r in rows if r["train/loss"]]
    assert losses == sorted(losses, reverse=True)
    assert next(r for r in rows if r["val/loss"])["val/bits_per_byte"]


def test_seconds_are_those_of_training_without_evaluation(tmp_path: Path) -> None:
    trainer, record = fit(tmp_path, steps=9)
    (evaluation,) = (callback for callback in trainer.callbacks if isinstance(callback, SlowEvaluation))
    seconds = [float(row["seconds"]) for row in rows_of(tmp_path / "metrics.csv")]
    assert seconds == sorted(seconds)
    assert 0 < record.seconds() < evaluation.seconds - 0.55  # there were two evaluations
    assert record.seconds() == record.seconds()  # training is over


def test_a_resumed_run_replaces_the_steps_it_does_again_and_keeps_counting(tmp_path: Path) -> None:
    _, first = fit(tmp_path, steps=6, every=1)
    MetricsFile(tmp_path / "metrics.csv").append({"step": 7, "train/loss": 99.0})  # after the checkpoint
    _, second = fit(tmp_path, steps=10, resume=tmp_path / "end.ckpt", every=1)
    rows = rows_of(tmp_path / "metrics.csv")
    assert [r["step"] for r in rows if r["train/loss"]] == [str(step) for step in range(1, 11)]
    assert "99.0" not in [r["train/loss"] for r in rows]
    assert second.seconds() > first.seconds()


class Noting(Logger):
    """Keeps what it is told, as TensorBoard and W&B do: (step, metrics)."""

    name, version = "noting", 0

    def __init__(self) -> None:
        super().__init__()
        self.told: list[tuple[int | None, dict[str, float]]] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.told.append((step, dict(metrics)))

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass

    def points(self, metric: str) -> list[tuple[int | None, float]]:
        return [(step, metrics[metric]) for step, metrics in self.told if metric in metrics]


def _told(directory: Path, accumulate: int) -> list[tuple[int | None, dict[str, float]]]:
    logger = Noting()
    strategy = TickStrategy(interval=3)
    trainer, _ = fit(directory, steps=9, strategy=strategy, every=1, logger=logger, accumulate=accumulate)
    trainer.validate(trainer.lightning_module, batches(1), verbose=False)
    trainer.test(trainer.lightning_module, batches(1), verbose=False)
    return logger.told


@pytest.mark.parametrize("accumulate", [1, 2])
def test_loggers_get_every_metric_at_the_step_of_metrics_csv(tmp_path: Path, accumulate: int) -> None:
    logger = Noting()
    (logger.told,) = run_workers(1, _told, tmp_path, accumulate)
    rows = rows_of(tmp_path / "metrics.csv")
    for metric in ("val/loss", "val/bits_per_byte", "tick/loss"):
        recorded = [(int(row["step"]), pytest.approx(float(row[metric]))) for row in rows if row[metric]]
        assert logger.points(metric) == recorded
    expected = {1: [0, 4, 8, 9], 2: [0, 2, 4, 6, 8, 9]}[accumulate]
    assert [step for step, _ in logger.points("val/loss")] == expected
    assert [step for step, _ in logger.points("train/loss")] == list(range(1, 10))
    assert [step for step, _ in logger.points("test/loss")] == [9]
    assert not logger.points("step")  # it only says where the others belong


def _two_workers(directory: Path) -> tuple[int, bool]:
    trainer, _ = fit(directory, steps=9, strategy=TickStrategy(interval=4), devices=2, every=1)
    return trainer.global_rank, trainer.is_global_zero


def test_ticks_and_what_was_sent_are_recorded_by_worker_0_alone(tmp_path: Path) -> None:
    run_workers(2, _two_workers, tmp_path)
    rows = rows_of(tmp_path / "metrics.csv")
    assert [r["step"] for r in rows if r["tick/loss"]] == ["4", "8", "9"]
    assert [r["step"] for r in rows if r["train/loss"]] == [str(step) for step in range(1, 10)]  # once each
    sent = [int(r["bytes_sent"]) for r in rows]
    assert sent == sorted(sent)
    assert sent[0] == 0 < sent[-1]
    ticks = [r for r in rows if r["tick/loss"]]
    assert all(float(r["tick/bytes_sent"]) == int(r["bytes_sent"]) for r in ticks)


@pytest.mark.parametrize("every", [0, -3])
def test_recording_every_zero_steps_is_every_step(tmp_path: Path, every: int) -> None:
    assert Record(tmp_path, every_n_steps=every).every_n_steps == 1
