"""A Lightning that names its insides otherwise is told in one line, before anything can go wrong."""

from pathlib import Path

import pytest
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.strategies import DDPStrategy

from tests.strategy.toys import trainer_for
from ticks.strategy import TickStrategy
from ticks.strategy.lightning import OpenWandbLogger, quieten

UNKNOWN = r"^this Lightning is not known here: {} changed; see .*\.strategy\.lightning$"


def test_a_strategy_whose_insides_have_other_names_is_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    TickStrategy()
    monkeypatch.delattr(DDPStrategy, "_get_process_group_backend")
    with pytest.raises(RuntimeError, match=UNKNOWN.format("_get_process_group_backend")):
        TickStrategy()


def test_nor_is_a_logger(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    OpenWandbLogger(save_dir=tmp_path, offline=True)
    monkeypatch.setattr(WandbLogger, "__init__", lambda self, **_: setattr(self, "_experiment", None))
    with pytest.raises(RuntimeError, match=UNKNOWN.format("_offline, _log_model, _wandb_init")):
        OpenWandbLogger(save_dir=tmp_path, offline=True)


def test_training_does_not_start_in_loops_of_other_names(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trainer_for(TickStrategy(), 1, steps=1)
    monkeypatch.delattr(_TrainingEpochLoop, "_broadcast_sigterm_tensor")
    with pytest.raises(RuntimeError, match=UNKNOWN.format("_broadcast_sigterm_tensor")):
        quieten(trainer, trainer.strategy)
