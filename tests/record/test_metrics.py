"""metrics.csv: every row stays, new metrics become new columns, steps done again replace the old."""

import csv
from pathlib import Path

from ticks.record.metrics import FIRST_COLUMNS, MetricsFile


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_rows_are_appended(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "metrics.csv")
    for step in (1, 2, 3):
        file.append({"step": step, "tokens": 10 * step, "seconds": 0.5, "bytes_sent": 0})
    assert [row["tokens"] for row in rows_of(file.path)] == ["10", "20", "30"]
    assert list(rows_of(file.path)[0]) == FIRST_COLUMNS
    assert file.rows() == rows_of(file.path)


def test_a_new_metric_becomes_a_new_column_and_no_row_is_lost(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "metrics.csv")
    file.append({"step": 1, "train/loss": 3.0})
    file.append({"step": 2, "val/loss": 2.5, "train/loss": 2.0})
    file.append({"step": 3})
    assert [(r["step"], r["train/loss"], r["val/loss"]) for r in rows_of(file.path)] == [
        ("1", "3.0", ""),
        ("2", "2.0", "2.5"),
        ("3", "", ""),
    ]
    assert list(rows_of(file.path)[0]) == [*FIRST_COLUMNS, "train/loss", "val/loss"]


def test_a_file_is_continued_where_it_stopped(tmp_path: Path) -> None:
    MetricsFile(tmp_path / "metrics.csv").append({"step": 1, "val/loss": 2.5})
    again = MetricsFile(tmp_path / "metrics.csv")
    again.append({"step": 2, "val/loss": 2.0})
    again.append({"step": 3, "lr": 0.1})
    assert [(r["step"], r["val/loss"], r["lr"]) for r in rows_of(again.path)] == [
        ("1", "2.5", ""),
        ("2", "2.0", ""),
        ("3", "", "0.1"),
    ]


def test_forgetting_drops_the_later_rows_only(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "metrics.csv")
    for step in (1, 5, 9, 10, 11):
        file.append({"step": step, "train/loss": step})
    file.forget_after(9)
    assert [row["step"] for row in rows_of(file.path)] == ["1", "5", "9"]
    file.append({"step": 10, "train/loss": 0.5})
    assert rows_of(file.path)[-1]["train/loss"] == "0.5"
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]


def test_forgetting_in_a_new_run_is_no_error(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "metrics.csv")
    file.forget_after(0)
    assert file.rows() == []


def cut(path: Path) -> MetricsFile:
    """A file whose process died in the middle of its last line."""
    file = MetricsFile(path)
    for step in (1, 2):
        file.append({"step": step, "val/loss": 2.345})
    path.write_text(path.read_text().rstrip()[:-2])
    return MetricsFile(path)


def test_a_line_that_was_cut_short_is_not_read(tmp_path: Path) -> None:
    assert [row["val/loss"] for row in cut(tmp_path / "metrics.csv").rows()] == ["2.345"]


def test_what_is_written_after_a_line_that_was_cut_short_is_whole(tmp_path: Path) -> None:
    file = cut(tmp_path / "metrics.csv")
    file.forget_after(5)
    file.append({"step": 6, "val/loss": 1.5})
    assert [(row["step"], row["val/loss"]) for row in rows_of(file.path)] == [("1", "2.345"), ("6", "1.5")]
