"""Runs in a file, and read from it again: the same table, the same figures."""

import sys
from pathlib import Path

import pandas as pd
import pytest

from tests.report.made import grid, run
from ticks.commands.report import measure_of
from ticks.config import ConfigError
from ticks.report import frame
from ticks.report.figures import curve
from ticks.report.groups import group
from ticks.report.runs import Run, load_runs
from ticks.report.tables import table_of

MEASURE = "val_bits_per_byte"


def table(runs: list[Run]) -> str:
    return table_of(group(runs), MEASURE, against="model=ln").markdown()


def test_a_row_is_a_run_with_what_was_swept(tmp_path: Path) -> None:
    found = frame.frame(load_runs([grid(tmp_path)]))
    assert list(found.columns[:4]) == ["run", "model", "strategy.clock.interval", "seed"]
    assert len(found) == 12
    assert found.groupby("model")[MEASURE].mean()["ln"] == pytest.approx(2.06, abs=1e-3)
    assert not {"versions", "run_dir", "checkpoint"} & {*found.columns}


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_what_was_written_is_read_again(suffix: str, tmp_path: Path) -> None:
    grid(tmp_path / "runs", norms=("ln", "none"))  # a name that pandas would take for nothing
    run(
        tmp_path / "runs" / "lost",
        status="diverged",
        val_bits_per_byte=None,
        choices={"model": "ln"},
        seed=9,
        gap_loss=0.5,
    )
    runs = load_runs([tmp_path / "runs"])
    out = tmp_path / "new" / f"runs.{suffix}"
    files = frame.write(runs, out)
    assert [file.name for file in files] == [f"runs.{suffix}", f"runs.curves.{suffix}"]
    again = frame.read(out)
    assert table(again) == table(runs)
    assert [found.summary.get("gap_loss") for found in again].count(0.5) == 1
    assert [found.failures() for found in group(again)] == [found.failures() for found in group(runs)]
    for x in ("step", "bytes_sent"):
        assert [curve(found, MEASURE, x) for found in group(again)] == [
            curve(found, MEASURE, x) for found in group(runs)
        ]
    assert files[0].stat().st_size < 10_000 or suffix == "parquet"
    frame.write(again, again_out := tmp_path / f"again.{suffix}")
    if suffix == "csv":
        assert again_out.read_text() == out.read_text()


def test_files_that_are_read_together_know_how_their_runs_differ(tmp_path: Path) -> None:
    for norm in ("ln", "rms"):  # which is the same in all of a file
        frame.write(load_runs([grid(tmp_path / norm, norms=[norm])]), tmp_path / f"{norm}.csv")
    together = [run for norm in ("ln", "rms") for run in frame.read(tmp_path / f"{norm}.csv")]
    assert sorted(found.values["model"] for found in group(together)) == ["ln", "ln", "rms", "rms"]
    run(tmp_path / "other", choices={"task": "topics"}, seed=1)
    frame.write(load_runs([tmp_path / "other"]), tmp_path / "other.csv")
    with pytest.raises(ConfigError, match=r"runs of different tasks are no one table: language_modeling .*topics"):
        measure_of([*together, *frame.read(tmp_path / "other.csv")], [])


def test_runs_without_a_record_have_no_second_file(tmp_path: Path) -> None:
    assert frame.write(load_runs([run(tmp_path / "a")]), tmp_path / "runs.csv") == [tmp_path / "runs.csv"]
    assert frame.read(tmp_path / "runs.csv")[0].rows == []


@pytest.mark.parametrize(
    ("content", "message"), [("a,b\n1,2\n", "holds no runs: it has no column run"), ("", "cannot be read")]
)
def test_another_file_is_refused(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "other.csv").write_text(content)
    with pytest.raises(ConfigError, match=rf"other\.csv {message}"):
        frame.read(tmp_path / "other.csv")


def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = load_runs([run(tmp_path / "a")])
    monkeypatch.setattr(pd.DataFrame, "to_parquet", lambda *_, **__: (_ for _ in ()).throw(ImportError("pyarrow")))
    with pytest.raises(ConfigError, match=r'parquet needs pyarrow: pip install -e "\.\[report\]"; csv does not'):
        frame.write(runs, tmp_path / "runs.parquet")
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ConfigError, match=r'need pandas: pip install -e "\.\[report\]"'):
        frame.write(runs, tmp_path / "runs.csv")
