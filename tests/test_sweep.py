"""Sweep files: every combination composes, means what it says, and trains."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from tests.conftest import REPOSITORY, only_run, run_command
from ticks.config import ConfigError, check_targets, compose_strictly
from ticks.report import summary
from ticks.sweep import combinations, run_all

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


def test_jobs_run_one_after_the_other_until_one_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    written(tmp_path / "train.py", "import sys; print(sys.argv[1:], flush=True); sys.exit(7 * ('b=2' in sys.argv))\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", os.path.realpath(sys.executable))  # fast: no site-packages are needed
    with pytest.raises(SystemExit) as stop:
        run_all([["b=1"], ["b=2"], ["b=3"]], ["c=4"])
    assert stop.value.code == 7
    shown = capfd.readouterr().out.splitlines()
    assert shown == ["[1/3] b=1", "['b=1', 'c=4']", "[2/3] b=2", "['b=2', 'c=4']"]


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
