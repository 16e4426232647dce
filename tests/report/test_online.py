"""Runs from a project of Weights & Biases, its public API faked by what it gives for a run that was logged."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import wandb

from tests.conftest import only_run, run_command, run_workers
from tests.report.made import grid
from ticks.commands.report import main
from ticks.config import ConfigError
from ticks.report.figures import curve
from ticks.report.groups import group
from ticks.report.online import STEP, load_online, upload
from ticks.report.runs import load_runs

ASKED: list[Any] = []


def online(directory: Path) -> SimpleNamespace:
    """What the API gives for a run that lies in `directory`."""
    (run,) = load_runs([directory])
    nested: dict[str, Any] = {}
    for key, value in run.settings.items():
        if "/" not in key and key not in ("model", "strategy", "task"):
            node = nested
            *above, last = key.split(".")
            for part in above:
                node = node.setdefault(part, {})
            node[last] = value
    nested["choices"] = {key: run.settings[key] for key in ("model", "strategy", "task", "model/norm")}
    history: list[dict[str, Any]] = []
    for i, row in enumerate(row for row in run.rows if row.get("val/bits_per_byte")):
        step = int(row["step"])
        history += [
            {"_step": 3 * i, STEP: step, "tick/bytes_sent": 7.0, "tick/loss": 1.0},
            {"_step": 3 * i + 1, STEP: step, "val/bits_per_byte": float(row["val/bits_per_byte"])},
            {"_step": 3 * i + 2, STEP: step, "bytes_sent": float(row["bytes_sent"])},
        ]
    return SimpleNamespace(
        name="ticks", id=directory.name, state="finished", summary_metrics={"run": run.summary},
        config={"resolved": nested, "sweep_coordinates": {key: str(run.settings[key]) for key in run.typed}},
        scan_history=lambda: history,
    )  # fmt: skip


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What a project holds; ASKED has what it was asked for."""
    runs = [online(directory) for directory in sorted(grid(tmp_path / "runs").iterdir())]

    class Api:
        def __init__(self, timeout: int) -> None: ...

        def runs(self, path: str, filters: Any) -> list[Any]:
            ASKED.append((path, filters))
            return runs

    ASKED.clear()
    monkeypatch.setattr(wandb, "Api", Api)
    return runs


def test_runs_of_a_project_are_the_runs_that_were_logged(project: list[Any], tmp_path: Path) -> None:
    found, here = load_online("wandb:me/trial"), load_runs([tmp_path / "runs"])
    assert ASKED == [("me/trial", None)]
    assert [one.values for one in group(found)] == [one.values for one in group(here)]
    assert [one.of("val_bits_per_byte") for one in group(found)] == [one.of("val_bits_per_byte") for one in group(here)]
    for x in ("step", "bytes_sent"):
        ours, theirs = (curve(group(runs)[1], "val_bits_per_byte", x) for runs in (here, found))
        assert theirs == ours


def recorded(file: Path) -> SimpleNamespace:
    """What the API gives for a run whose offline file has been synced: its records, as W&B's own reader finds them."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(file)]
    output = subprocess.run(command, capture_output=True, text=True).stdout
    if not output.startswith("{"):
        pytest.skip("this W&B has no `wandb leet inspect` to read its files back")
    of_kind: dict[str, list[Any]] = {}
    for record in map(json.loads, output.splitlines()):
        of_kind.setdefault(record["type"], []).append(record[record["type"]])
    summary_metrics: dict[str, Any] = {}
    config: dict[str, Any] = {}
    history = [said["item"] for said in of_kind["history"]]
    for said in [*history, *(said["update"] for said in of_kind["summary"])]:
        summary_metrics |= said
    for said in of_kind["config"]:
        config |= said["update"]
    return SimpleNamespace(name="ticks", id="a", state="finished", summary_metrics=summary_metrics, config=config,
                           scan_history=lambda: history)  # fmt: skip


def test_a_run_is_read_as_it_was_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, output = run_command(
        tmp_path, "debug=fast", "logger=wandb", "strategy=local_sgd", "strategy.clock.interval=2",
        "trainer.max_steps=6", "trainer.val_check_interval=3", "trainer.limit_val_batches=1", "test=false",
        "task.sample_bytes=0", env={"WANDB_MODE": "offline"},
    )  # fmt: skip
    assert code == 0, output
    (file,) = tmp_path.glob("logs/runs/*/wandb/offline-run-*/*.wandb")
    api = SimpleNamespace(runs=lambda *_, **__: [recorded(file)])
    monkeypatch.setattr(wandb, "Api", lambda timeout: api)
    (found,), (here,) = load_online("wandb:me/trial"), load_runs([only_run(tmp_path)])
    assert found.summary == here.summary
    assert (found.settings, sorted(found.typed)) == (here.settings, sorted(here.typed))
    evaluations = [row for row in here.rows if row["val/loss"]]
    assert [row["step"] for row in found.rows] == [row["step"] for row in evaluations] == ["0", "3", "6"]
    for mine, theirs in zip(found.rows, evaluations, strict=True):
        for key in ("val/loss", "bytes_sent", "seconds", "tokens"):
            assert float(mine[key]) == pytest.approx(float(theirs[key])), key


def test_a_sweeps_group_is_asked_for(
    project: list[Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    main(["wandb:me/trial/intervals", "against=model=ln"])
    assert ASKED == [("me/trial", {"group": "intervals"})]
    assert "+0.105 ± 0.016" in " ".join(capsys.readouterr().out.split())


def test_runs_without_a_summary_count_and_foreign_ones_are_left_out(
    project: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    project[0].summary_metrics, project[0].state = {STEP: 7}, "crashed"
    project[1].summary_metrics, project[1].state = {}, "running"
    project[2].config = {"lr": 3}
    found = load_online("wandb:me/trial")
    assert [run.summary["status"] for run in found[:2]] == ["failed", "running"]
    assert found[0].summary["steps"] == 7
    assert len(found) == len(project) - 1
    assert "left out: 1 runs of wandb:me/trial" in capsys.readouterr().err


def test_what_cannot_be_read_is_one_line(project: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    for place in ("wandb:", "wandb:me", "wandb:/x"):
        with pytest.raises(ConfigError, match="it is wandb:ENTITY/PROJECT"):
            load_online(place)
    project.clear()
    with pytest.raises(ConfigError, match="wandb:me/trial has no run that logger=wandb has written"):
        load_online("wandb:me/trial")

    def fails(*_: Any, **__: Any) -> Any:
        raise wandb.errors.UsageError("no API key configured. Use `wandb login` to log in.\nmore")

    monkeypatch.setattr(wandb, "Api", fails)
    with pytest.raises(ConfigError, match=r"wandb:me/trial cannot be read: no API key configured\. Use `wandb login`"):
        load_online("wandb:me/trial")


def _upload(folder: str) -> str:
    os.environ |= {"WANDB_SILENT": "true", "WANDB_MODE": "offline", "WANDB_DIR": folder}
    (Path(folder) / "table.md").write_text("| a |")
    where = upload([Path(folder) / "table.md"], "trial", "ticks report runs")
    wandb.teardown()
    return where


def test_tables_and_figures_are_uploaded_with_the_command_that_made_them(tmp_path: Path) -> None:
    (where,) = run_workers(1, _upload, str(tmp_path))
    assert "offline-run-" in where
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    content = file.read_bytes()
    assert b"table.md" in content
    assert b"ticks report runs" in content


def test_there_must_be_something_to_upload(project: list[Any]) -> None:
    with pytest.raises(ConfigError, match="wandb=trial: one project, to which what out= names is uploaded"):
        main(["wandb:me/trial", "wandb=trial"])
