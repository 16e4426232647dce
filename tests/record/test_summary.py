"""summary.json: always the same keys in the same order."""

import json
import math
from pathlib import Path

import pytest

from tests.conftest import NAME
from ticks.record import summary

PROMISED = """
    status, strategy, interval, clock, sync, wire, norm, adapter, seed, world_size, n_params, n_trainable,
    n_nonzero, steps, ticks, tokens, measure, better, higher_is_better, val_loss, bytes_sent_per_worker, messages,
    sync_seconds, train_seconds, steps_per_second, peak_memory, device, run_dir, checkpoint, config_digest, versions
"""


def test_the_keys_are_those_promised_in_that_order() -> None:
    assert list(summary.KEYS) == [key.strip() for key in PROMISED.split(",")]


def test_keys_that_do_not_apply_are_null_and_never_missing(tmp_path: Path) -> None:
    summary.write(tmp_path, {"steps": 7, "status": "finished"})
    content = json.loads((tmp_path / "summary.json").read_text())
    assert list(content) == list(summary.KEYS)
    assert {key: value for key, value in content.items() if value is not None} == {"steps": 7, "status": "finished"}


def test_a_task_adds_its_measures(tmp_path: Path) -> None:
    summary.write(tmp_path, {"measure": "accuracy", "test_accuracy": 0.9, "val_accuracy": 0.8, "test_loss": 1.0})
    about = summary.read(tmp_path)
    assert list(about) == [*summary.KEYS, "test_accuracy", "val_accuracy", "test_loss"]
    assert summary.headline(about) == ("accuracy", 0.8)


def test_the_headline_of_an_older_run_is_known() -> None:
    assert summary.headline({"val_loss": 2.0, "val_bits_per_byte": 3.0}) == ("bits_per_byte", 3.0)
    assert summary.headline({"val_loss": 2.0}) == ("loss", 2.0)


def test_a_key_nobody_knows_is_refused_and_the_old_file_stays(tmp_path: Path) -> None:
    summary.write(tmp_path, {"steps": 7})
    with pytest.raises(ValueError, match="valid_loss"):
        summary.write(tmp_path, {"valid_loss": 1.0})
    assert summary.read(tmp_path)["steps"] == 7


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_json_does_not_know_become_null(tmp_path: Path, value: float) -> None:
    summary.write(tmp_path, {"val_loss": value, "val_bits_per_byte": 2.5})
    text = (tmp_path / "summary.json").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    assert summary.read(tmp_path)["val_loss"] is None
    assert summary.read(tmp_path)["val_bits_per_byte"] == 2.5


def test_writing_again_replaces_everything_and_leaves_no_other_file(tmp_path: Path) -> None:
    summary.write(tmp_path, {"steps": 7, "val_loss": 1.0})
    summary.write(tmp_path, {"steps": 8})
    assert (summary.read(tmp_path)["steps"], summary.read(tmp_path)["val_loss"]) == (8, None)
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]


def test_versions_name_what_decides_the_numbers() -> None:
    assert {"python", NAME, "torch", "lightning", "numpy"} <= summary.versions().keys()
