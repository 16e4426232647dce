"""Some of the golden cases in the suite; `make golden` compares all of them."""

from pathlib import Path

import pytest

from tests.golden import cases, difference, machine, measure, read

SOME = (
    "strategy=ticks",
    "strategy=streaming_diloco",
    "optimizer=muon",
    "dropout, accumulation",
    "digits, a perceptron",
    "pairs, the choices for verses",
)


@pytest.mark.parametrize("name", SOME)
def test_a_move_changes_no_number(name: str, tmp_path: Path) -> None:
    golden = read()
    line = difference(name, measure(name, tmp_path), golden["cases"][name], exactly=golden["machine"] == machine())
    assert line is None, f"{line}; if that is meant: make golden ARGS=--write, and say why"


def test_every_preset_is_written_down() -> None:
    assert read()["cases"].keys() == cases().keys()


def test_a_number_that_changed_is_named() -> None:
    then = {"train/loss": {"1": 5.5, "2": 5.4}, "val/loss": {"0": 5.6}, "parameters": "ab"}
    now = then | {"train/loss": {"1": 5.5, "2": 5.4000001}}
    assert difference("it", then, then, exactly=True) is None
    assert "train/loss at step 2" in str(difference("it", now, then, exactly=True))
    assert difference("it", now, then, exactly=False) is None
    assert "train/loss at step 2" in str(
        difference("it", then | {"train/loss": {"1": 5.5, "2": 5.6}}, then, exactly=False)
    )
    assert "parameters" in str(difference("it", then | {"parameters": "cd"}, then, exactly=True))
    assert "at steps 1" in str(difference("it", then | {"train/loss": {"1": 5.5}}, then, exactly=True))
