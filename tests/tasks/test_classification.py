"""Classification on handwritten digits: what it is judged by, on any number of workers, and what it shows."""

import json
import math
import re
from pathlib import Path

import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from sklearn.metrics import confusion_matrix, f1_score
from torch import nn

from tests.conftest import only_run, run_command
from ticks.data import Digits
from ticks.models import Mlp
from ticks.tasks import Classification
from ticks.tasks.classification import confusion_figure

DIGITS = ("experiment=digits_mlp", "trainer.log_every_n_steps=50")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    directory = tmp_path_factory.mktemp("digits")
    code, output = run_command(directory, *DIGITS, "trainer.devices=2")
    assert code == 0, output
    return only_run(directory), output


def test_digits_are_told_apart_nearly_as_well_as_their_nearest_neighbours_say(trained: tuple[Path, str]) -> None:
    run, output = trained
    about = json.loads((run / "summary.json").read_text())
    assert (about["measure"], about["norm"], about["tokens"]) == ("accuracy", "layer_norm", None)
    assert about["val_accuracy"] > 0.94
    assert about["test_macro_f1"] > 0.92
    assert 0 <= about["test_calibration_error"] < 0.1
    assert "nearest neighbour, for comparison" in output
    assert (run / "sample.png").stat().st_size > 5000


def test_one_worker_measures_the_same(trained: tuple[Path, str]) -> None:
    run, _ = trained
    about = json.loads((run / "summary.json").read_text())
    code, output = run_command(run.parents[2], "eval", f"run={run}", "trainer.devices=1", program="ticks")
    assert code == 0, output
    found = {
        line.split()[0]: float(line.split()[1]) for line in output.splitlines() if line.startswith(("val", "test"))
    }
    for name in ("accuracy", "macro_f1", "calibration_error", "loss"):
        close = 1e-4 if name == "calibration_error" else 1e-5  # sums of float32 in another order
        assert found[f"val_{name}"] == pytest.approx(about[f"val_{name}"], rel=close), name
        assert found[f"test_{name}"] == pytest.approx(about[f"test_{name}"], rel=close), name


def test_the_measures_are_scikit_learns() -> None:
    data = Digits(global_batch_size=8)
    x, y = data.datasets["val"].images(slice(None)), data.datasets["val"].labels_N
    torch.manual_seed(0)
    task = Classification(Mlp(n_features=64, n_classes=10), n_classes=10)
    task.log = lambda *_, **__: None  # type: ignore[method-assign]
    for batch in zip(x.split(60), y.split(60), strict=True):
        task.validation_step(batch, 0)
    seen = task.model(x).argmax(1)
    assert float(task._metric("val", "accuracy").compute()) == pytest.approx(float((seen == y).float().mean()))
    expected = f1_score(y, seen, average="macro", labels=sorted(set(y.tolist()) | set(seen.tolist())))
    assert float(task._metric("val", "macro_f1").compute()) == pytest.approx(expected, abs=1e-6)
    task._keep_confusion("val")
    assert torch.equal(task.confusion_CxC, torch.tensor(confusion_matrix(y, seen, labels=range(10))))


def test_the_calibration_error_is_the_mean_gap_between_confidence_and_accuracy() -> None:
    """Of 15 bins of confidence three have samples: the gaps |0.95 - 2/4|, |0.7 - 1|, |0.62 - 0| count by how many."""
    task = Classification(nn.Identity(), n_classes=2)
    task.log = lambda *_, **__: None  # type: ignore[method-assign]
    confidence, right = [0.95, 0.95, 0.95, 0.95, 0.7, 0.7, 0.62], [1, 1, 0, 0, 1, 1, 0]
    logits = torch.tensor([[p, 1 - p] for p in confidence]).log()
    for rows in (slice(0, 3), slice(3, 7)):
        task.validation_step((logits[rows], 1 - torch.tensor(right)[rows]), 0)
    expected = (4 * 0.45 + 2 * 0.3 + 1 * 0.62) / 7
    assert float(task._metric("val", "calibration_error").compute()) == pytest.approx(expected, abs=1e-6)


def test_the_confusion_matrix_is_a_picture_or_text(monkeypatch: pytest.MonkeyPatch) -> None:
    task = Classification(nn.Linear(2, 2), n_classes=2)
    assert task.show(None) is None
    task.confusion_CxC = torch.tensor([[3, 1], [0, 4]])
    assert hasattr(task.show(None), "savefig")
    texts = [text.get_text() for text in confusion_figure(task.confusion_CxC, ["a", "b"]).axes[0].texts]
    assert texts == ["3", "1", "4"]
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    assert task.show(None).splitlines()[1].split() == ["0", "3", "1"]


def test_the_split_is_fixed_and_whole() -> None:
    data = Digits(global_batch_size=8)
    assert {split: len(dataset) for split, dataset in data.datasets.items()} == {"train": 1297, "val": 250, "test": 250}
    assert data.baselines()["accuracy"]["nearest neighbour"] > 0.95
    assert data.baselines()["accuracy"]["majority"] < 0.2


def test_fewer_than_two_classes_are_refused() -> None:
    with pytest.raises(ValueError, match="n_classes=1 must be at least 2"):
        Classification(nn.Linear(2, 1), n_classes=1)


@pytest.mark.parametrize("shape", [(4, 3), (4, 7, 5), (2, 5)])
def test_a_model_that_gives_other_logits_than_those_of_the_classes_is_refused(shape: tuple[int, ...]) -> None:
    task = Classification(nn.Unflatten(1, shape[1:]), n_classes=5)
    batch = torch.zeros(shape[0], math.prod(shape[1:])), torch.zeros(4, dtype=torch.long)
    message = re.escape(f"needs logits of (4, 5), samples by classes, but Unflatten gives {shape}")
    for step in (task.training_step, task.validation_step, task.test_step):
        with pytest.raises(MisconfigurationException, match=message):
            step(batch, 0)
