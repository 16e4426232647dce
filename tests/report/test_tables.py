"""The table of groups: a golden one, and what stands below it."""

import shutil
from pathlib import Path

import pytest

from tests.report.made import grid, run
from ticks.report.groups import group
from ticks.report.runs import load_runs
from ticks.report.tables import Table, number, probability, table_of

MEASURE = "val_bits_per_byte"
GOLDEN = """\
| model | strategy.clock.interval | val bits per byte ± 95% | n | diverged | difference | p | pairs | MB sent \
| steps/s |
| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
| ln | 1 | 2.010 ± 0.025 | 3 | 0 | - | - | - | 300.0 | 7.500 |
| ln | 16 | 2.111 ± 0.025 | 3 | 0 | +0.1007 ± 0.0029 | <0.001 | 3 | 18.8 | 7.500 |
| rms | 1 | 2.115 ± 0.040 | 3 | 0 | - | - | - | 300.0 | 7.500 |
| rms | 16 | 2.257 ± 0.095 | 2 | 1 | +0.151 ± 0.013 | 0.004 | 2 | 18.8 | 7.500 |

differences are to strategy.clock.interval=1, seed by seed; p is of the paired t test, Holm-corrected over the table

model=rms, strategy.clock.interval=16 and model=rms, strategy.clock.interval=1: 1 runs of one have no partner of the \
same seed in the other, left out of the difference
"""


def golden(folder: Path) -> Table:
    grid(folder)
    run(folder / "more", seed=7, status="diverged", val_bits_per_byte=None, bytes_sent_per_worker=18_750_000,
        choices={"model": "rms", "strategy": "ticks", "task": "language_modeling", "model/norm": "rms"},
        config={"model": {"norm": {"_target_": "rms"}}, "strategy": {"clock": {"interval": 16}}},
        typed={"model": "rms", "strategy.clock.interval": 16})  # fmt: skip
    shutil.rmtree(folder / "rms_16_2")
    groups = group(load_runs([folder]))
    return table_of(groups, MEASURE, against="strategy.clock.interval=1")


def test_a_table_is_as_it_was(tmp_path: Path) -> None:
    assert golden(tmp_path).markdown() == GOLDEN


def test_latex_can_be_set(tmp_path: Path) -> None:
    text = golden(tmp_path).latex()
    assert text.count(r"\begin{tabular}{llrrrrrrrr}") == text.count(r"\end{tabular}") == 1
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert len(rows) == 5
    assert {row.count(" & ") for row in rows} == {9}
    assert r"ln & 1 & 2.010 $\pm$ 0.025 & 3" in text
    assert r"val bits per byte $\pm$ 95\%" in text
    assert "$<$0.001" in text
    assert Table(["a_b"], [["50% & # \\"]]).latex().count(r"50\% \& \# \textbackslash{}") == 1


def test_one_run_each_has_no_interval_and_says_so(tmp_path: Path) -> None:
    table = table_of(group(load_runs([grid(tmp_path, seeds=[0])])), MEASURE)
    assert table.titles == ["model", "strategy.clock.interval", "run", "val bits per byte", "MB sent", "steps/s"]
    assert table.rows[1] == ["ln", "16", "ln_16_0", "2.100", "18.8", "7.500"]
    assert table.notes == ["one run each: how much another seed would change it is not known"]


def test_a_run_alone_is_a_row(tmp_path: Path) -> None:
    table = table_of(group(load_runs([run(tmp_path / "a")])), MEASURE)
    assert table.rows == [["a", "2.345", "12.3", "7.500"]]
    assert table.notes == ["one run each: how much another seed would change it is not known"]


def test_a_baseline_that_nothing_is_compared_with_is_no_mistake(tmp_path: Path) -> None:
    grid(tmp_path)
    for seed in (0, 1, 2):
        shutil.rmtree(tmp_path / f"rms_16_{seed}")
    table = table_of(group(load_runs([tmp_path])), MEASURE, against="model=ln")
    assert not [note for note in table.notes if "alike in all but" in note]


def test_one_run_beside_several_is_said(tmp_path: Path) -> None:
    grid(tmp_path, norms=("ln",))
    shutil.rmtree(tmp_path / "ln_16_1")
    shutil.rmtree(tmp_path / "ln_16_2")
    table = table_of(group(load_runs([tmp_path])), MEASURE)
    assert table.notes == ["one run only, so no interval: strategy.clock.interval=16"]


def test_runs_without_a_result_are_rows_too(tmp_path: Path) -> None:
    runs = [run(tmp_path / "a"), run(tmp_path / "b", norm="none", status="failed", val_bits_per_byte=None,
                                     bytes_sent_per_worker=None, steps_per_second=None)]  # fmt: skip
    table = table_of(group(load_runs(runs)), MEASURE)
    assert table.titles[:4] == ["model/norm", "run", "val bits per byte", "failed"]
    assert table.rows[0] == ["none", "b", "-", "1", "-", "-"]


def test_repeated_runs_are_told(tmp_path: Path) -> None:
    table = table_of(group(load_runs([run(tmp_path / "a"), run(tmp_path / "b")])), MEASURE)
    assert table.notes[-1] == "1 runs are the same as others, seed and all: of each the last one counts"


def test_groups_without_a_common_seed_have_no_difference(tmp_path: Path) -> None:
    for seed, interval in ((0, 1), (1, 1), (2, 8), (3, 8)):
        run(tmp_path / str(seed), seed=seed, interval=interval)
    groups = group(load_runs([tmp_path]))
    table = table_of(groups, MEASURE, against="strategy.clock.interval=1")
    assert table.rows[1][3:6] == ["-", "-", "-"]
    assert "no seed is in it and in strategy.clock.interval=1" in table.notes[-1]


def test_at_80_columns_nothing_is_lost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    table = golden(tmp_path)
    table.show()
    out = capsys.readouterr().out
    assert "…" not in out
    assert "interval" in out.split()
    drawn = "".join("".join(line.split()) for line in out.splitlines())
    for cell in ("2.010±0.025", "+0.1007±0.0029"):
        assert cell in drawn
    assert "not shown for want of width: MB sent, steps/s" in out


@pytest.mark.parametrize(
    ("value", "half", "text"),
    [
        (1.23456, 0.0123, "1.235"), (1.23456, 0.00123, "1.2346"), (811.5, 120.0, "812"), (2.3449, None, "2.345"),
        (1234.5, None, "1234"), (0.00012345, None, "0.000123"), (0.0, None, "0"), (None, None, "-"),
        (2.0, 0.0, "2.000"),
    ],
)  # fmt: skip
def test_numbers_show_what_is_known(value: float | None, half: float | None, text: str) -> None:
    assert number(value, half) == text


def test_probabilities_are_not_smaller_than_they_can_be() -> None:
    assert [probability(p) for p in (None, 0.0, 0.00099, 0.001, 1.0)] == ["-", "<0.001", "<0.001", "0.001", "1.000"]
