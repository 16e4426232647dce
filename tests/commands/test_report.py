"""`ticks report`, as it is typed: what is printed, what is written, what is refused."""

from pathlib import Path
from typing import Any

import pytest

from tests.conftest import run_command
from tests.report.made import grid, run
from ticks.commands.report import main, measure_of
from ticks.config import ConfigError
from ticks.report.runs import load_runs


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


def words_of(capsys: pytest.CaptureFixture[str]) -> list[list[str]]:
    return [line.split() for line in capsys.readouterr().out.splitlines()]


def test_from_runs_to_a_table_a_figure_and_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grid(tmp_path / "runs")
    out = {suffix: tmp_path / f"out.{suffix}" for suffix in ("png", "md", "tex", "csv")}
    main([str(tmp_path / "runs"), "against=model=ln", *(f"out={file}" for file in out.values())])
    shown = capsys.readouterr().out
    assert "+0.105 ± 0.016" in shown
    assert [line for line in shown.splitlines() if line.split()[1:] == [str(out["png"])]] == [f"figure {out['png']}"]
    assert f"table {out['md']}" in shown
    assert f"runs {out['csv']}" in shown
    assert all(file.stat().st_size > 100 for file in out.values())
    main([str(out["csv"]), "against=model=ln"])
    assert "+0.105 ± 0.016" in capsys.readouterr().out


def test_any_measure_by_any_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, accuracy in (("a", 0.5), ("b", 0.75)):
        run(tmp_path / name, measure="accuracy", better="higher", val_accuracy=accuracy, val_f1=accuracy / 2, norm=name)
    main([str(tmp_path)])
    assert ["a", "a", "0.5000", "12.3", "7.500"] in words_of(capsys)
    for y in ("f1", "val/f1", "val_f1"):
        main([str(tmp_path), f"y={y}", "by=norm,strategy", "by=world_size"])
        lines = words_of(capsys)
        assert ["norm", "strategy", "world_size", "run", "val", "f1", "MB", "sent", "steps/s"] in lines
        assert ["b", "ticks", "4", "b", "0.3750", "12.3", "7.500"] in lines
    main([str(tmp_path), "y=steps_per_second"])
    assert any(line[:3] == ["model/norm", "run", "steps"] for line in words_of(capsys))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["y=acuracy"], r"y=acuracy: no run has it"),
        (["y=loss", "y=x"], r"y=x: there can be one y"),
        (["against=model=ln", "against=model=rms", "against=model=x"], r"there can be two against"),
        (["against=model"], r"against=model: it is KEY=VALUE"),
        (["by="], r"by= is empty"),
        (["out=nowhere.pgn"], r"'pgn' is no picture format"),
        (["missing"], r"no run in 'missing'"),
        (["notthere.csv"], r"'notthere.csv' does not exist"),
        (["agains=model=ln"], r"agains=model=ln: there is no option agains; did you mean 'against'"),
        (["x=seed", "out=figure.png"], r"x=seed: it differs between the runs of model=ln, strategy\.clock"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], message: str, tmp_path: Path) -> None:
    grid(tmp_path / "runs")
    places = [] if arguments[0] in ("missing", "notthere.csv") else [str(tmp_path / "runs")]
    with pytest.raises(ConfigError, match=message):
        main([*places, *arguments])


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        (
            {"choices": {"task": "language_modeling"}},
            {"choices": {"task": "topics"}},
            "tasks .*language_modeling .*topics",
        ),
        ({"measure": "accuracy", "val_accuracy": 0.5}, {}, "measures .*accuracy .*bits_per_byte"),
    ],
)
def test_runs_of_different_tasks_are_refused_with_both_names(
    one: dict[str, Any], other: dict[str, Any], message: str, tmp_path: Path
) -> None:
    run(tmp_path / "a", **one), run(tmp_path / "b", **other)
    with pytest.raises(ConfigError, match=f"runs of different {message}"):
        main([str(tmp_path)])


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    grid(tmp_path / "runs")
    (tmp_path / "file").write_text("")
    for suffix in ("png", "md", "csv"):
        with pytest.raises(ConfigError, match=rf"out=.*file/x\.{suffix} cannot be written"):
            main([str(tmp_path / "runs"), f"out={tmp_path}/file/x.{suffix}"])


@pytest.mark.parametrize("left", [{"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0"}, {"PMI_SIZE": "4"}])
def test_what_needs_no_workers_asks_for_no_launcher(left: dict[str, str], tmp_path: Path) -> None:
    code, output = run_command(tmp_path, "report", "no/run", program="ticks", env=left)
    assert code == 2
    assert output.startswith("error: no run in 'no/run'"), output


def test_differences_of_differences(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Is what a longer interval costs more with the one norm than with the other?"""
    grid(tmp_path / "runs")
    main([str(tmp_path / "runs"), "against=strategy.clock.interval=1", "against=model=ln"])
    lines = words_of(capsys)
    assert any(line[:3] == ["rms", "16", "+0.05"] for line in lines), lines
    notes = [" ".join(line) for line in lines]
    assert any(note.startswith("how much the difference to strategy.clock.interval=1 is larger") for note in notes)


def test_a_figure_without_differences_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grid(tmp_path / "runs")
    for x, says in (("strategy.clock.interval,model", True), ("step", True), ("strategy.clock.interval", False)):
        main([str(tmp_path / "runs"), "against=model=ln", f"x={x}", f"out={tmp_path}/figure.png"])
        assert ("shows values; differences are drawn against one setting" in capsys.readouterr().err) == says


def test_what_is_better_is_known_of_every_measure(tmp_path: Path) -> None:
    for seed in (0, 1):
        run(tmp_path / str(seed), seed=seed, measure="loss", better="lower", val_loss=1.0, val_macro_f1=0.5,
            test_macro_f1=0.5, val_calibration_error=0.1, messages=7,
            higher_is_better=("accuracy,macro_f1", "")[seed])  # fmt: skip
    runs = load_runs([tmp_path])
    for y, better in {"loss": "lower", "macro_f1": "higher", "test_macro_f1": "higher",
                      "calibration_error": "lower", "steps_per_second": "higher",
                      "messages": "lower"}.items():  # fmt: skip
        assert measure_of(runs, [y])[1] == better, y


def test_a_learning_rate_is_chosen_by_validation_and_told_by_other_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for model, losses in {"ln": (1.2, 1.0), "rms": (1.0, 1.1)}.items():
        for lr, loss in zip((0.1, 0.2), losses, strict=True):
            for seed in (0, 1):
                run(tmp_path / f"{model}{lr}{seed}", seed=seed, measure="loss", better="lower",
                    val_loss=loss + seed / 100, test_loss=10 * lr + seed, choices={"model": model},
                    config={"optimizer": {"lr": lr}})  # fmt: skip
    main([str(tmp_path), "best=optimizer.lr", "y=test_loss", "against=model=ln"])
    shown = capsys.readouterr().out
    rows = [line.split() for line in shown.splitlines()]
    assert ["ln", "0.2", "2.5"] in [row[:3] for row in rows]
    (rms,) = [row for row in rows if row[:3] == ["rms", "0.1", "1.5"]]
    assert float(rms[6]) == -1.0, "seed by seed, at another learning rate"
    assert "optimizer.lr: the best by val loss, chosen by these runs; no interval and no p knows of the choice" in shown
    with pytest.raises(ConfigError, match=r"best=optimizer.lr: what one value was chosen of cannot be what x= is"):
        main([str(tmp_path), "best=optimizer.lr", "x=optimizer.lr", "out=a.png"])
    for wrong, message in (
        ("optimizer.ls", "no run has 'optimizer.ls'"), ("seed", "best=seed must be a setting"),
        ("val_loss", "best=val_loss must be a setting"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=message):
            main([str(tmp_path), f"best={wrong}"])
    main([str(tmp_path), "best=optimizer.lr", "by=model", f"out={tmp_path}/runs.csv"])
    main([f"{tmp_path}/runs.csv", "best=optimizer.lr", "y=test_loss"])
    assert ["ln", "0.2", "2.5"] in [line.split()[:3] for line in capsys.readouterr().out.splitlines()]
