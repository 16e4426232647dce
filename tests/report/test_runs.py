"""Runs read back: found in folders, damaged ones left out with a word."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.report.made import grid, run
from ticks.config import ConfigError
from ticks.report.groups import shown
from ticks.report.runs import load_runs


def test_runs_are_found_below_a_multiruns_directory(tmp_path: Path) -> None:
    for number in (0, 1, 2):
        run(tmp_path / "multirun" / str(number))
    assert [found.directory.name for found in load_runs([tmp_path / "multirun"])] == ["0", "1", "2"]


def test_a_run_knows_what_it_was_told(tmp_path: Path) -> None:
    (found,) = load_runs([grid(tmp_path) / "ln_1_0"])
    assert found.typed == ("model", "seed", "strategy.clock.interval")
    assert {key: found.settings[key] for key in ("model", "model/norm", "strategy.clock.interval", "data.seed")} == {
        "model": "ln", "model/norm": "ln", "strategy.clock.interval": 1, "data.seed": 0
    }  # fmt: skip
    assert "config_digest" not in found.settings


def test_a_choice_that_stands_for_nothing_is_called_as_it_was_typed(tmp_path: Path) -> None:
    choices, config = {"tuning": "full", "timeline": "none"}, {"tuning": None, "timeline": None}
    run(tmp_path / "typed", typed={"tuning": "full", "timeline": "none"}, choices=choices, config=config)
    run(tmp_path / "untyped", choices=choices, config=config)
    typed, untyped = load_runs([tmp_path])
    assert (typed.settings["tuning"], typed.settings["timeline"]) == ("full", None)
    assert untyped.settings["tuning"] is None


def test_a_choice_of_an_empty_file_is_called_by_its_name(tmp_path: Path) -> None:
    run(tmp_path / "a", typed={"timeline": "none"}, choices={"timeline": "none"}, config={"timeline": {}, "name": "x"})
    (found,) = load_runs([tmp_path])
    assert (found.settings["timeline"], found.settings["name"], found.typed) == ("none", "x", ("timeline",))


@pytest.mark.parametrize("content", ["[1, 2]", "a: [", "\0"])
def test_a_configuration_that_cannot_be_read_is_done_without(
    content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run(tmp_path / "a", config={}) / "config.yaml").write_text(content)
    (found,) = load_runs([tmp_path])
    assert found.settings["strategy"] == "ticks"
    assert "config.yaml cannot be read" in capsys.readouterr().err


def test_values_are_shown_as_people_write_them() -> None:
    assert [shown(value) for value in (None, True, 5e-3, 8, "ln", 1e-8)] == ["-", "true", "0.005", "8", "ln", "1e-08"]


def test_a_run_that_failed_before_its_first_row_is_listed_too(tmp_path: Path) -> None:
    run(tmp_path / "a", status="failed")
    assert not (tmp_path / "a" / "metrics.csv").exists()
    assert load_runs([tmp_path / "a"])[0].rows == []


def test_a_directory_without_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no run in '.*nowhere', which does not exist"):
        load_runs([tmp_path / "nowhere"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"no run in '.*empty': no summary\.json there or below it"):
        load_runs([tmp_path / "empty"])


def test_jobs_of_a_sweep_that_came_to_no_run_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("lr-0.1_abc", "lr-0.2_def"):
        (tmp_path / f"{name}.txt").write_text("what the job said")
    run(tmp_path / "lr-0.1_abc")
    load_runs([tmp_path])
    assert capsys.readouterr().err == "", "texts in a folder that is no sweep's are none of its jobs"
    (tmp_path / ".claims").mkdir()
    assert len(load_runs([tmp_path])) == 1
    assert "1 job(s) of a sweep have no run, what they said is in " in (said := capsys.readouterr().err)
    assert "lr-0.2_def.txt" in said


def test_what_is_no_run_is_left_out_with_one_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = run(tmp_path / "good", [8.0, 4.0])
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("a file")
    for name, content in (
        ("cut", '{"status": '), ("foreign", '{"status": "ok", "version": 3}'), ("a-list", "[1]"), ("latin", "\xff"),
        ("other", '{"status": "finished", "strategy": "x", "steps": "many"}'),
    ):  # fmt: skip
        (tmp_path / name).mkdir()
        (tmp_path / name / "summary.json").write_bytes(content.encode("latin-1"))
    runs = load_runs(sorted(tmp_path.iterdir()))
    assert [found.directory for found in runs] == [good]
    (warning,) = capsys.readouterr().err.splitlines()
    assert warning.startswith("warning: left out: ")
    for name in ("empty", "notes.txt", "cut", "foreign", "a-list", "latin", "other"):
        assert name in warning


def test_runs_are_compared_without_torch() -> None:
    code = (
        "import sys, ticks.commands.report, ticks.report.tables, ticks.report.figures, ticks.report.frame\n"
        "print({'torch', 'lightning', 'wandb', 'pandas', 'matplotlib', 'scipy'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr


def test_no_directory_at_all_says_how_to_give_one() -> None:
    with pytest.raises(ConfigError, match="give run directories: ticks report"):
        load_runs([])


def test_a_damaged_summary_is_named(tmp_path: Path) -> None:
    (run(tmp_path / "a") / "summary.json").write_text('{"status": ')
    with pytest.raises(ConfigError, match=r"a/summary\.json cannot be read"):
        load_runs([tmp_path / "a"])
