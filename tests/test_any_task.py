"""A task that knows nothing of this project: its own data, LightningModule and measure, run by the command line."""

import csv
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import REPOSITORY, Command, only_run

MODULE = '''
import torch
from lightning import LightningDataModule, LightningModule
from torch.utils.data import DataLoader, TensorDataset


class Halves(LightningDataModule):
    """Points of the plane, told apart by the sum of their coordinates."""

    def __init__(self, n=90, batch_size=8):
        super().__init__()
        points = torch.randn(n, 2, generator=torch.Generator().manual_seed(0))
        self.set, self.batch_size = TensorDataset(points, (points.sum(1) > 0).long()), batch_size
        self.shape = {"n_classes": 2}

    def baselines(self):
        return {"accuracy": {"majority": 0.5}}

    def train_dataloader(self): return DataLoader(self.set, batch_size=self.batch_size, shuffle=True)
    def val_dataloader(self): return DataLoader(self.set, batch_size=self.batch_size)
    def test_dataloader(self): return DataLoader(self.set, batch_size=self.batch_size)


class Classify(LightningModule):
    measures = [("accuracy", "accuracy", "higher", 4), ("loss", "loss (nats)")]

    def __init__(self, n_classes, lr=0.1):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.lr = torch.nn.Linear(2, n_classes), lr

    def _loss(self, batch):
        x, y = batch
        logits = self.layer(x)
        return torch.nn.functional.cross_entropy(logits, y), (logits.argmax(1) == y).float().mean()

    def training_step(self, batch, batch_idx): return self._loss(batch)[0]

    def validation_step(self, batch, batch_idx):
        loss, accuracy = self._loss(batch)
        self.log_dict({"val_loss": loss, "val_accuracy": accuracy})
        self.log("val/n", float(len(batch[1])), reduce_fx="sum")
        self.log("val/largest", batch[0].max(), reduce_fx="max")
        if (batch[0] > 3.2).any():  # few samples: not every worker has one
            self.log("val/rare", 1.0)

    def test_step(self, batch, batch_idx):
        self.log("test/accuracy", self._loss(batch)[1])

    def configure_optimizers(self): return torch.optim.SGD(self.parameters(), lr=self.lr)
    def show(self, data): return f"weights {self.layer.weight.shape}"
'''


CALLBACK = """
from lightning.pytorch import Callback
from lightning.pytorch.utilities.exceptions import MisconfigurationException


class Calls(Callback):
    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if batch_idx == 3:
            raise MisconfigurationException("not now")
"""


WITH_PROMISES = '''
import torch
from ticks.data import MapData
import halves


class Halves(MapData):
    """The same points, a little moved at random each time."""

    def load(self):
        class Moved(torch.utils.data.Dataset):
            def __len__(self): return 90
            def __getitem__(self, i): return whole[i][0] + 0.1 * torch.randn(2), whole[i][1]
        whole = halves.Halves().set
        return {"train": Moved(), "val": whole, "test": whole}
'''


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the module, two YAML files for it, and the project's own configuration beside them."""
    home = tmp_path_factory.mktemp("theirs")
    (home / "halves.py").write_text(MODULE)
    shutil.copytree(REPOSITORY / "configs", home / "configs")
    (home / "configs" / "data" / "halves.yaml").write_text("_target_: halves.Halves\nn: 90\nbatch_size: 8\n")
    (home / "kept_halves.py").write_text(WITH_PROMISES)
    kept = "_target_: kept_halves.Halves\nglobal_batch_size: 8\nseed: ${seed}\nshape: {n_classes: 2}\n"
    (home / "configs" / "data" / "kept_halves.yaml").write_text(kept)
    (home / "configs" / "task" / "halves.yaml").write_text("_target_: halves.Classify\nlr: 0.5\n")
    sys.path.insert(0, str(home))
    yield home
    sys.path.remove(str(home))


def run(home: Path, directory: Path, *arguments: str, program: str = "train.py") -> tuple[int, str]:
    command = Command(directory, *arguments, program=program, configs=home / "configs")
    return command.end(), command.output


THEIRS = ("data=halves", "task=halves", "trainer.max_steps=40", "trainer.val_check_interval=20")


@pytest.fixture(scope="module", params=["ticks"])
def trained(home: Path, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    directory = tmp_path_factory.mktemp("run")
    code, output = run(
        home, directory, *THEIRS, f"strategy={request.param}", "trainer.devices=2", "trainer.log_every_n_steps=5"
    )
    assert code == 0, output
    return directory, output


def test_it_trains_and_is_judged_by_its_own_measure(trained: tuple[Path, str]) -> None:
    directory, output = trained
    about = json.loads((only_run(directory) / "summary.json").read_text())
    expected = {
        "status": "finished",
        "measure": "accuracy",
        "better": "higher",
        "norm": None,
        "tokens": None,
        "steps": 40,
    }
    assert {key: about[key] for key in expected} == expected
    assert about["val_accuracy"] > 0.9
    assert about["test_accuracy"] > 0.9
    assert "validation accuracy" in output
    assert "training loss, first and last logged" in output
    assert output.index("majority, for comparison") < output.index("test accuracy")  # it is the validation data's
    assert "majority, for comparison" in output
    assert "weights torch.Size([2, 2])" in output
    assert "bits per byte" not in output
    rows = list(csv.DictReader((only_run(directory) / "metrics.csv").open()))
    assert {row["step"] for row in rows if row.get("val/accuracy")} == {"0", "20", "40"}


def test_it_is_told_what_it_goes_without(trained: tuple[Path, str]) -> None:
    _, output = trained
    assert "note: Halves does not say which worker takes what" in output
    assert "note: Classify takes no model: model=ln is not used" in output


def test_it_is_reported_and_measured_again(home: Path, trained: tuple[Path, str]) -> None:
    directory, _ = trained
    place = only_run(directory)
    code, output = run(home, directory, "report", str(place), program="ticks")
    assert code == 0, output
    assert "accuracy" in output
    code, output = run(home, directory, "eval", f"run={place}", program="ticks")
    assert code == 0, output
    about = json.loads((place / "summary.json").read_text())
    assert f"summary.json: {about['val_accuracy']}" in output
    code, output = run(home, directory, "generate", f"run={place}", program="ticks")
    assert code == 2
    assert "Classify on Halves writes no text" in output


def test_what_a_model_needs_and_data_do_not_give_is_named(home: Path, tmp_path: Path) -> None:
    code, output = run(home, tmp_path, "data=halves")
    assert code == 2
    assert output.startswith("error: model: DecoderTransformer needs vocab_size, block_size, which data=halves")
    code, output = run(home, tmp_path, "data=digits")
    assert code == 2
    assert "choose one that fits: model=mlp, model=vit, or set +model.vocab_size=VALUE +model.block_size" in output


def test_a_mistake_in_the_middle_of_training_keeps_its_trace(home: Path, tmp_path: Path) -> None:
    mistake = "raise __import__('lightning').pytorch.utilities.exceptions.MisconfigurationException('not now')"
    step = "return self._loss(batch)[0]"
    late = MODULE.replace(step, f"\n        if batch_idx == 3: {mistake}\n        {step}")
    (home / "late.py").write_text(late)
    code, output = run(home, tmp_path, "data=halves", "task=halves", "task._target_=late.Classify")
    assert code == 1, output
    assert "Traceback" in output
    assert "in training_step" in output


def test_a_mistake_in_a_callback_does_too(home: Path, tmp_path: Path) -> None:
    (home / "calls.py").write_text(CALLBACK)
    code, output = run(home, tmp_path, *THEIRS, "+callbacks.calls._target_=calls.Calls")
    assert code == 1, output
    assert "Traceback" in output
    assert "in on_train_batch_end" in output


def test_a_mistake_in_a_constructor_says_where(home: Path, tmp_path: Path) -> None:
    wrong = MODULE.replace("        torch.manual_seed(0)\n        self.layer", "        self.layr")
    (home / "built.py").write_text(wrong)
    code, output = run(home, tmp_path, *THEIRS, "task._target_=built.Classify")
    assert code == 1, output
    assert 'built.py", line' in output
    assert "has no attribute" in output


@pytest.mark.parametrize(
    ("shows", "note"),
    [
        ("return 1 / 0", "note: not shown: ZeroDivisionError: division by zero ("),
        ("return [1, 2]", "note: not shown: TypeError: Classify.show gives a list: it must be a text, a matplotlib"),
    ],
)
def test_a_show_that_fails_costs_nobody_the_result(shows: str, note: str, home: Path, tmp_path: Path) -> None:
    name = f"shows_{len(shows)}"
    (home / f"{name}.py").write_text(MODULE.replace('return f"weights {self.layer.weight.shape}"', shows))
    code, output = run(home, tmp_path, *THEIRS, f"task._target_={name}.Classify", "trainer.max_steps=4",
                       "trainer.val_check_interval=4")  # fmt: skip
    assert code == 0, output
    assert note in output
    assert "test accuracy" in output
    about = json.loads((only_run(tmp_path) / "summary.json").read_text())
    assert about["status"] == "finished"
    assert about["test_accuracy"] is not None


def test_a_measure_that_is_never_logged_is_named_before_training(home: Path, tmp_path: Path) -> None:
    (home / "never.py").write_text(MODULE.replace('[("accuracy",', '[("recall",'))
    code, output = run(
        home, tmp_path, "data=halves", "task=halves", "task._target_=never.Classify", "trainer.devices=2"
    )
    assert code == 2, output
    assert output.count("error: ") == 1
    assert "error: task: Classify is judged by recall, but logged: val/" in output
    assert "Traceback" not in output


def test_a_split_that_cannot_be_measured_is_named_before_training(home: Path, tmp_path: Path) -> None:
    for what, message in (('"test": whole', "there is no test dataset: leave it out with test=false"),
                          ('"val": whole', "there is no val dataset"),):  # fmt: skip
        (home / "cut.py").write_text(WITH_PROMISES.replace(what, '"more": whole'))
        code, output = run(home, tmp_path, "data=kept_halves", "task=halves", "data._target_=cut.Halves")
        assert code == 2, output
        assert output.startswith(f"error: data: {message}")


def test_the_same_batch_again_and_again_is_learnt_by_heart_on_any_data(home: Path, tmp_path: Path) -> None:
    for data in ("halves", "kept_halves"):
        directory = tmp_path / data
        directory.mkdir()
        code, output = run(home, directory, f"data={data}", "task=halves", "debug=overfit", "task.lr=5")
        assert code == 0, output
        losses = [float(row["train/loss"]) for row in csv.DictReader((only_run(directory) / "metrics.csv").open())
                  if row.get("train/loss")]  # fmt: skip
        assert losses[-1] < 0.05, (data, losses)


def test_what_a_person_typed_is_no_debug_files(home: Path, tmp_path: Path) -> None:
    code, output = run(home, tmp_path, "data=halves", "task=halves", "debug=fast", "+data.block_size=9")
    assert code == 2
    assert "block_size" in output


def test_measures_that_are_none_are_named(home: Path, tmp_path: Path) -> None:
    wrong = MODULE.replace('("accuracy", "accuracy", "higher", 4)', '("accuracy", "accuracy", "up")')
    (home / "wrong.py").write_text(wrong)
    code, output = run(home, tmp_path, "data=halves", "task=halves", "task._target_=wrong.Classify")
    assert code == 2
    assert output.startswith(
        "error: task: measures: ('accuracy', 'accuracy', 'up') must be (name, label, better, digits)"
    )


def test_it_is_measured_alike_by_any_number_of_workers(home: Path, trained: tuple[Path, str]) -> None:
    """Its numbers are plain ones, logged without a word of workers; the last batch is not full."""
    directory, _ = trained
    place = only_run(directory)
    found = []
    for n in (1, 2):
        code, output = run(home, directory, "eval", f"run={place}", f"trainer.devices={n}", program="ticks")
        assert code == 0, output
        found.append([float(line.split()[1]) for line in output.splitlines() if line.startswith(("val_", "test_"))])
    assert len(found[0]) == 6
    assert 90.0 in found[0]
    assert found[1] == pytest.approx(found[0], rel=1e-6)


def test_on_data_that_keep_the_promises_it_is_resumed_exactly_within_an_epoch(home: Path, tmp_path: Path) -> None:
    arguments = ("data=kept_halves", "task=halves", "strategy=diloco", "trainer.devices=2", "test=false",
                 "trainer.max_steps=40", "callbacks.checkpoint.every_n_train_steps=21")  # fmt: skip
    code, output = run(home, tmp_path, *arguments)
    assert code == 0, output
    assert "does not say which worker" not in output
    checkpoints = only_run(tmp_path) / "checkpoints"
    final = checkpoints / "final.ckpt"
    whole = torch.load(final, weights_only=True)["state_dict"]
    final.unlink()
    code, output = run(home, tmp_path, f"resume={only_run(tmp_path)}")
    assert code == 0, output
    assert "step-00000021.ckpt" in output
    again = torch.load(final, weights_only=True)["state_dict"]
    assert all(torch.equal(whole[name], again[name]) for name in whole)
