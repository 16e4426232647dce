"""Articles told apart by an encoder: a whole run on two workers, measured again, resumed, with few labels."""

import json
import math
from pathlib import Path

import pytest
import torch

from tests.conftest import only_run, run_command, run_forked

SMALL = ("experiment=topics", "debug=fast", "data.tokenizer.vocab_size=512", "optimizer.lr=1e-2",
         "trainer.limit_val_batches=null", "trainer.limit_test_batches=null")  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    directory = tmp_path_factory.mktemp("topics")
    code, output = run_forked(
        2, directory, *SMALL, "trainer.max_steps=60", "callbacks.checkpoint.every_n_train_steps=43"
    )
    assert code == 0, output
    return directory, output


def test_a_run_learns_and_is_judged(trained: tuple[Path, str]) -> None:
    directory, output = trained
    about = json.loads((only_run(directory) / "summary.json").read_text())
    assert (about["measure"], about["norm"], about["tokens"]) == ("accuracy", "layer_norm", None)
    assert about["val_loss"] < math.log(5)
    assert "8 articles of up to 32 tokens per step, 4 per worker and batch" in output
    assert "commonest class, for comparison" in output
    assert "TF-IDF, logistic regression, for comparison" in output
    assert (only_run(directory) / "sample.png").stat().st_size > 5000


def test_one_worker_measures_the_same(trained: tuple[Path, str]) -> None:
    directory, _ = trained
    about = json.loads((only_run(directory) / "summary.json").read_text())
    code, output = run_command(directory, "eval", f"run={only_run(directory)}", "trainer.devices=1", program="ticks")
    assert code == 0, output
    found = {line.split()[0]: float(line.split()[1]) for line in output.splitlines() if line[:4] in ("val_", "test")}
    assert len(found) == 8
    assert found == pytest.approx({name: about[name] for name in found}, rel=1e-5)


def test_resuming_is_exact(trained: tuple[Path, str]) -> None:
    directory, _ = trained
    final = only_run(directory) / "checkpoints" / "final.ckpt"
    whole = torch.load(final, weights_only=True)
    assert whole["Topics"]["class_names"] == ["business", "entertainment", "politics", "sports", "tech"]
    final.unlink()
    code, output = run_forked(2, directory, f"resume={only_run(directory)}")
    assert code == 0, output
    assert "step-00000043.ckpt" in output
    again = torch.load(final, weights_only=True)
    assert all(torch.equal(value, again["state_dict"][name]) for name, value in whole["state_dict"].items())
    assert again["Topics"] == whole["Topics"]


def test_few_labels_and_bytes_can_be_learnt_from(tmp_path: Path) -> None:
    code, output = run_command(
        tmp_path, "experiment=topics", "debug=fast", "data/tokenizer=bytes", "data.n_per_class=4", "test=false"
    )
    assert code == 0, output
    assert "8 articles of up to 32 bytes per step" in output
    assert "data.n_per_class=4: 20 articles in 5 classes to learn from, 87 for val, 96 for test" in output


def test_a_language_model_on_articles_with_topics_is_one_line(tmp_path: Path) -> None:
    code, output = run_command(tmp_path, "data=topics", "debug=fast")
    assert code == 2, output
    assert "error: task: LanguageModeling learns from batches of x and y by name, not from a list" in output
    assert "Traceback" not in output
