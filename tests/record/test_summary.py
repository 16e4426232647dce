"""summary.json: always the same keys in the same order."""

import json
import math
from pathlib import Path

import pytest

from ticks.record import summary

PROMISED = """
    status, strategy, interval, clock, sync, wire, norm, adapter, seed, world_size, n_params, n_trainable,
    steps, ticks, tokens, val_loss, val_bits_per_byte, test_*, bytes_sent_per_worker,
    messages, sync_seconds, train_seconds, steps_per_second, device, run_dir, checkpoint, config_digest, versions
"""


def test_the_keys_are_those_promised_in_that_order() -> None:
    promised = [key.strip() for key in PROMISED.split(",")]
    tests = [key for key in summary.KEYS if key.startswith("test_")]
    assert tests == ["test_loss", "test_bits_per_byte"]
    at = promised.index("test_*")
    assert list(summary.KEYS) == promised[:at] + tests + promised[at + 1 :]


def test_keys_that_do_not_apply_are_null_and_never_missing(tmp_path: Path) -> None:
    summary.write(tmp_path, {"steps": 7, "status": "finished"})
    content = json.loads((tmp_path / "summary.json").read_text())
    assert list(content) == list(summary.KEYS)
    assert {key: value for key, value in content.items() if value is not None} == {"steps": 7, "status": "finished"}


def test_other_tasks_may_add_their_tests(tmp_path: Path) -> None:
    summary.write(tmp_path, {"test_accuracy": 0.9, "test_loss": 1.0})
    assert summary.read(tmp_path)["test_accuracy"] == 0.9
    assert list(summary.read(tmp_path)) == [*summary.KEYS, "test_accuracy"]


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
    assert {"python", "ticks", "torch", "lightning", "numpy"} <= summary.versions().keys()
