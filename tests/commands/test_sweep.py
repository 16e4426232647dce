"""Sweep files: every combination composes, means what it says, and trains."""

import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from tests.conftest import REPOSITORY, Command, only_run, run_command
from ticks.commands.sweep import combinations, program_of, run_all
from ticks.config import ConfigError, check_targets, compose_strictly
from ticks.jobs import Outcome
from ticks.record import summary

CONFIGS = REPOSITORY / "configs"
SWEEPS = sorted((CONFIGS / "sweep").glob("*.yaml"))
TINY = ["debug=fast", "logger=csv", "trainer.devices=1", "trainer.max_steps=4"]
every_sweep = pytest.mark.parametrize("file", SWEEPS, ids=lambda file: file.stem)


def content(file: Path) -> Any:
    return OmegaConf.to_container(OmegaConf.load(file), resolve=False)


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@every_sweep
def test_every_combination_composes_and_says_what_it_changes(file: Path) -> None:
    jobs = combinations(file)
    sizes = [len(spec.get("values", [0])) for spec in content(file)["parameters"].values()]
    n = 1
    for size in sizes:
        n *= size
    assert len({tuple(job) for job in jobs}) == len(jobs) == n
    for job in jobs:
        config = compose_strictly(job, CONFIGS)
        for override in job:
            key, _, value = override.partition("=")
            found = OmegaConf.select(config, key)
            assert (CONFIGS / key / f"{value}.yaml").is_file() if isinstance(found, DictConfig) else str(found) == value
    config.run_dir = "somewhere"
    check_targets(config)


@every_sweep
def test_keys_are_flat_and_the_command_gives_them_as_key_equals_value(file: Path) -> None:
    sweep = content(file)
    assert sweep["program"] == "train.py"
    assert sweep["command"] == ["${env}", "${interpreter}", "${program}", "${args_no_hyphens}"]
    assert sweep["metric"] == {"name": "val/loss", "goal": "minimize"}
    for spec in sweep["parameters"].values():
        assert spec.keys() <= {"value", "values"}  # a nested key would reach train.py as one dictionary
    assert sweep["parameters"]["logger"] == {"value": "wandb"}  # or W&B would see nothing


@every_sweep
def test_a_combination_trains(file: Path, tmp_path: Path) -> None:
    job = combinations(file)[-1]
    code, output = run_command(tmp_path, *job, *TINY)
    assert code == 0, output
    about = summary.read(only_run(tmp_path))
    assert (about["status"], about["steps"]) == ("finished", 4)
    settings = dict(override.split("=") for override in job)
    assert about["interval"] == int(settings.get("strategy.clock.interval", 8))


def test_what_a_command_gives_to_all_jobs_is_given_to_them(tmp_path: Path) -> None:
    """W&B's place for constants."""
    head = "method: grid\nparameters: {seed: {values: [1, 2]}}\n"
    words = '["${env}", python, "${program}", debug=fast, "${args_no_hyphens}", logger=csv]'
    file = written(tmp_path / "sweep.yaml", f"{head}command: {words}\n")
    assert combinations(file) == [["debug=fast", f"seed={seed}", "logger=csv"] for seed in (1, 2)]
    for command, message in (
        ('["${program}"]', "must be a list with"),
        ('["${program}", "${args}", --flag]', "command has '--flag': only KEY=VALUE can stand behind"),
        ('["${program}", "${args_no_hyphens}", "name=${envvar:X}"]', "command has 'name="),
    ):
        written(file, f"{head}command: {command}\n")
        with pytest.raises(ConfigError, match=re.escape(message)):
            combinations(file)


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program that says what it got, and fails or waits for a signal if it is told to."""
    monkeypatch.setenv("COLUMNS", "80")
    return written(
        tmp_path / "train.py",
        """
import sys, time, signal
signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.5), print("saved", flush=True), sys.exit(143)))
print(sys.argv[1:], flush=True)
if "b=wait" in sys.argv:
    time.sleep(60)
sys.exit(7 * ("b=2" in sys.argv))
""",
    )


def test_a_failed_job_ends_nothing_but_itself(program: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        run_all([["b=1"], ["b=2"], ["b=3"]], ["c=4"], program)
    assert stop.value.code == 1
    shown = capfd.readouterr().out.splitlines()
    assert shown[:6] == [
        "[1/3] b=1", "['b=1', 'c=4']", "[2/3] b=2", "['b=2', 'c=4']", "[3/3] b=3", "['b=3', 'c=4']",
    ]  # fmt: skip
    assert [line.split()[:3] for line in shown if "ed  " in line] == [
        ["1", "b=1", "finished"], ["2", "b=2", "failed"], ["3", "b=3", "finished"],
    ]  # fmt: skip
    assert shown[-1] == "job 2 failed: the process ended with exit code 7 without a word"


def test_a_signal_stops_the_job_with_its_checkpoint_and_the_sweep(program: Path) -> None:
    directory = program.parent
    written(directory / "grid.yaml", "method: grid\nparameters: {b: {values: [1, wait, 3]}}\n")
    command = Command(directory, "sweep", "grid.yaml", program="ticks")
    command.wait_for("['b=wait']")
    command.process.terminate()
    assert command.end(20) == 143, command.output
    assert "saved" in command.output
    rows = [line.split() for line in command.output.splitlines()]
    assert ["2", "b=wait", "stopped", "-", "-"] in rows
    assert "never started: job 3" in command.output
    assert "Traceback" not in command.output


def test_the_program_is_found_above_the_configs_of_the_sweep_file_else_in_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository, elsewhere = tmp_path / "repository", tmp_path / "elsewhere"
    (repository / "configs" / "sweep").mkdir(parents=True)
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    file = written(repository / "configs" / "sweep" / "a.yaml", "program: go.py\nparameters: {}\n")
    with pytest.raises(ConfigError, match=rf"a\.yaml: program=go\.py is neither in {repository} nor in {elsewhere}"):
        program_of(file)
    for place in (elsewhere, repository):  # another project may have one of that name
        here = written(place / "go.py", "")
        assert program_of(file) == here
    here = written(elsewhere / "train.py", "")
    assert program_of(written(tmp_path / "a.yaml", "parameters: {}")) == here


def test_a_grid_is_the_product_of_its_axes(tmp_path: Path) -> None:
    file = written(
        tmp_path / "sweep.yaml",
        "method: grid\nparameters:\n  a.b: {values: [1, null]}\n  c: {value: true}\n  d: {values: [x, 0.5]}\n",
    )
    assert combinations(file) == [
        ["a.b=1", "c=True", "d=x"],
        ["a.b=1", "c=True", "d=0.5"],
        ["a.b=null", "c=True", "d=x"],
        ["a.b=null", "c=True", "d=0.5"],
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("method: bayes\nparameters: {a: {value: 1}}", r"method=bayes cannot be run here; grid can"),
        ("parameters: {a: {value: 1}}", r"method=None cannot be run here"),
        ("method: grid\nparameters: {a: {min: 0, max: 1}}", r"parameters\.a needs `value` or `values`"),
        ("method: grid\nparameters: {a: {b: {value: 1}}}", r"parameters\.a needs .*keys are flat and dotted"),
        ("method: grid\nparameters: {a: 1}", r"parameters\.a needs `value` or `values`"),
        ("method: grid\nparameters: {a: {values: []}}", r"parameters\.a\.values=\[\] must be a list"),
        ("method: grid\nparameters: {a: {values: 3}}", r"parameters\.a\.values=3 must be a list"),
        ("method: grid", r"is no sweep file: it has no `parameters`"),
        ("- a\n- b", r"is no sweep file"),
        ("", r"is no sweep file"),
        ("a: [1", r"is no sweep file: .*while parsing"),
    ],
)
def test_a_file_that_is_no_grid_is_one_message(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        combinations(written(tmp_path / "sweep.yaml", text))
    assert str(error.value).startswith(str(tmp_path / "sweep.yaml"))
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"sweep file '.*nothing\.yaml' does not exist"):
        combinations(tmp_path / "nothing.yaml")


def test_a_signal_behind_a_job_keeps_its_outcome(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped_late(command: list[str], overrides: list[str]) -> Outcome:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.05)
        return Outcome(overrides, "finished", measure=1.5, measured="loss")

    monkeypatch.setattr("ticks.commands.sweep.run_job", stopped_late)
    with pytest.raises(SystemExit, match="143"):
        run_all([["seed=1"], ["seed=2"]], [], Path("train.py"))
    assert re.search(r"1 +seed=1 +finished +1.5000", capsys.readouterr().out)
