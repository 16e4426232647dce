"""Sweep files: what they mean, and what is no sweep file."""

import re
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf

from tests.conftest import REPOSITORY, only_run, run_command
from ticks.config import ConfigError, check_targets, compose_strictly
from ticks.record import summary
from ticks.sweep.file import Sweep, distribution, read
from ticks.sweep.file import written as as_written

CONFIGS = REPOSITORY / "configs"
SWEEPS = sorted((CONFIGS / "sweep").glob("*.yaml"))
TINY = ["debug=fast", "logger=csv", "trainer.devices=1", "trainer.max_steps=4"]
every_sweep = pytest.mark.parametrize("file", SWEEPS, ids=lambda file: file.stem)


def combinations(file: Path) -> list[list[str]]:
    sweep = read(file)
    return [sweep.job(values) for values in sweep.grid()]


def written(path: Path, text: str) -> Path:
    (path.parent / "train.py").touch()
    path.write_text(text)
    return path


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "train.py").touch()
    monkeypatch.chdir(tmp_path)


@pytest.mark.workers  # no worker, but seconds
@every_sweep
def test_every_combination_composes_and_says_what_it_changes(file: Path) -> None:
    sweep, jobs = read(file), combinations(file)
    n = 1
    for spec in sweep.parameters.values():
        n *= len(spec.get("values", [0]))
    assert len({tuple(job) for job in jobs}) == len(jobs) == n
    axes = {key: spec.get("values", [spec.get("value")]) for key, spec in sweep.parameters.items()}
    axes |= {"seed": axes["seed"][:1]} if "seed" in axes else {}  # one composes as another
    for i in range(max(len(values) for values in axes.values())):  # each value at least once
        composed(sweep.job({key: values[i % len(values)] for key, values in axes.items()}))


def composed(job: list[str]) -> None:
    """It composes, and means what it says."""
    config = compose_strictly(job, CONFIGS)
    for override in job:
        key, _, value = override.partition("=")
        found = OmegaConf.select(config, key)
        is_group = (CONFIGS / key).is_dir()
        assert (CONFIGS / key / f"{value}.yaml").is_file() if is_group else as_written(found) == value
    config.run_dir = "somewhere"
    check_targets(config)


@every_sweep
def test_keys_are_flat_and_the_command_gives_them_as_key_equals_value(file: Path) -> None:
    content: Any = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
    assert content["program"] == "train.py"
    assert content["command"] == ["${env}", "${interpreter}", "${program}", "${args_no_hyphens}"]
    better = "maximize" if content["metric"]["name"] == "val/accuracy" else "minimize"
    assert content["metric"] in ({"name": "val/loss", "goal": better}, {"name": "val/accuracy", "goal": better})
    for spec in content["parameters"].values():
        assert spec.keys() <= {"value", "values"}  # a nested key would reach train.py as one dictionary
    assert content["parameters"]["logger"] == {"value": "wandb"}  # or W&B would see nothing


KINDS = ("intervals", "norms", "algorithms", "workers", "quality", "tuning")  # the others vary what one of these does


@pytest.mark.parametrize("file", [f for f in SWEEPS if f.stem in KINDS], ids=lambda file: file.stem)
def test_a_combination_trains(file: Path, tmp_path: Path) -> None:
    job = combinations(file)[-1]
    code, output = run_command(tmp_path, *job, *TINY)
    assert code == 0, output
    about = summary.read(only_run(tmp_path))
    assert (about["status"], about["steps"]) == ("finished", 4)
    assert about["interval"] == OmegaConf.select(compose_strictly(job, CONFIGS), "strategy.clock.interval")


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


def test_the_program_is_found_above_the_configs_of_the_sweep_file_else_in_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository, elsewhere = tmp_path / "repository", tmp_path / "elsewhere"
    (repository / "configs" / "sweep").mkdir(parents=True)
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    (file := repository / "configs" / "sweep" / "a.yaml").write_text("method: grid\nprogram: go.py\nparameters: {}\n")
    with pytest.raises(ConfigError, match=rf"a\.yaml: program=go\.py is neither in {repository} nor in {elsewhere}"):
        read(file)
    for place in (elsewhere, repository):  # another project may have one of that name
        (place / "go.py").touch()
        assert read(file).program == place / "go.py"


def test_a_grid_is_the_product_of_its_axes(tmp_path: Path) -> None:
    file = written(
        tmp_path / "sweep.yaml",
        "method: grid\nparameters:\n  a.b: {values: [1, null]}\n  c: {value: true}\n  d: {values: [x, 0.5, 1e-5]}\n",
    )
    assert combinations(file) == [
        [f"a.b={a}", "c=true", f"d={d}"] for a in ("1", "null") for d in ("x", "0.5", "1e-05")
    ]


def test_a_grid_has_at_most_as_many_jobs_as_its_cap(tmp_path: Path) -> None:
    file = written(tmp_path / "sweep.yaml", "method: grid\nrun_cap: 2\nparameters: {a: {values: [1, 2, 3]}}")
    assert combinations(file) == [["a=1"], ["a=2"]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("method: byes\nparameters: {a: {value: 1}}", r"method=byes is unknown; did you mean 'bayes'"),
        ("parameters: {a: {value: 1}}", r"method=None is unknown.*grid"),
        ("method: grid\nparameters: {a: {min: 0, max: 1}}", r"parameters\.a needs `value` or `values` in a grid"),
        ("method: grid\nparameters: {a: {b: {value: 1}}}", r"parameters\.a needs .*keys are flat and dotted"),
        ("method: grid\nparameters: {a: 1}", r"parameters\.a needs `value` or `values`"),
        ("method: grid\nparameters: {a: {values: []}}", r"parameters\.a\.values=\[\] must be a list"),
        ("method: grid\nparameters: {a: {values: 3}}", r"parameters\.a\.values=3 must be a list"),
        ("method: random\nrun_cap: 0\nparameters: {a: {value: 3}}", r"run_cap=0 must be a whole number of at least 1"),
        ("method: grid\nmetric: loss\nparameters: {a: {value: 1}}", r"metric=loss must have a name and a goal"),
        ("method: grid", r"is no sweep file: it has no `parameters`"),
        ("- a\n- b", r"is no sweep file"),
        ("", r"is no sweep file"),
        ("a: [1", r"is no sweep file: .*while parsing"),
    ],
)
def test_a_file_that_is_no_sweep_is_one_message(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        combinations(written(tmp_path / "sweep.yaml", text))
    assert str(error.value).startswith(str(tmp_path / "sweep.yaml"))
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"sweep file '.*nothing\.yaml' does not exist"):
        read(tmp_path / "nothing.yaml")


# ---- random ----------------------------------------------------------------------------------------------------------


def draws(tmp_path: Path, spec: dict[str, Any], n: int = 4000) -> list[Any]:
    sweep = Sweep(tmp_path / "s.yaml", "random", {"a": spec}, [], [], tmp_path / "train.py", {}, None)
    return [values["a"] for values in sweep.random(n)]


@pytest.mark.parametrize(
    ("spec", "kind", "low", "high", "middle"),
    [
        ({"min": 1, "max": 6}, "int_uniform", 1, 6, 3.5),
        ({"min": 1.0, "max": 3.0}, "uniform", 1.0, 3.0, 2.0),
        ({"distribution": "q_uniform", "min": 0.0, "max": 1.0, "q": 0.25}, "q_uniform", 0.0, 1.0, 0.5),
        ({"distribution": "log_uniform_values", "min": 1e-4, "max": 1.0}, "log_uniform_values", 1e-4, 1.0, 1e-2),
        ({"distribution": "log_uniform", "min": 0, "max": 2}, "log_uniform", 1.0, np.exp(2), np.exp(1)),
        ({"mu": 5.0, "sigma": 0.1}, "normal", 4.4, 5.6, 5.0),
        ({"values": [1, 2], "probabilities": [0.0, 1.0]}, "categorical", 2, 2, 2),
        ({"value": 7}, "constant", 7, 7, 7),
    ],
)
def test_distributions_are_wandbs(
    spec: dict[str, Any], kind: str, low: float, high: float, middle: float, tmp_path: Path
) -> None:
    assert distribution(spec) == kind
    found = draws(tmp_path, spec)
    assert low <= min(found) <= max(found) <= high
    assert float(np.median(found)) == pytest.approx(middle, rel=0.35)
    assert found == draws(tmp_path, spec)
    if kind.startswith("q_"):
        assert {value % 0.25 for value in found} == {0.0}


def test_random_jobs_are_as_many_as_asked_for_and_always_the_same(tmp_path: Path) -> None:
    file = written(tmp_path / "s.yaml", "method: random\nparameters: {a: {min: 0.0, max: 1.0}, b: {values: [x, y]}}")
    jobs = [read(file).job(values) for values in read(file).random(5)]
    assert len({tuple(job) for job in jobs}) == 5
    assert jobs[:3] == [read(file).job(values) for values in islice(read(file).random(9), 3)]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"distribution": "uniform", "min": 0.0}, r"parameters\.a: uniform needs 'max'"),
        ({"distribution": "unifrom", "min": 0.0}, r"distribution=unifrom is unknown; did you mean 'uniform'"),
        ({"values": [1, 2], "probabilities": [0.5]}, r"parameters\.a: categorical"),
        ({"distribution": "log_uniform_values", "min": 0, "max": 1}, r"parameters\.a: log_uniform_values"),
    ],
)
def test_what_cannot_be_drawn_from_is_named(spec: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        draws(tmp_path, spec)
