"""Sweep files in W&B's format, read without W&B: the combinations of a grid as command-line overrides.

program: train.py
method: grid
command: ["${env}", "${interpreter}", "${program}", "${args_no_hyphens}"]
parameters: {strategy.clock.interval: {values: [1, 8]}, trainer.devices: {value: 4}}
"""

import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ticks.config import ConfigError


def combinations(file: Path) -> list[list[str]]:
    """Every combination of the grid as a list of KEY=VALUE. ConfigError if the file is no flat grid."""
    if not file.is_file():
        raise ConfigError(f"sweep file '{file}' does not exist")
    try:
        content: Any = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{file} is no sweep file: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict) or not isinstance(content.get("parameters"), dict):
        raise ConfigError(f"{file} is no sweep file: it has no `parameters`")
    if content.get("method") != "grid":
        raise ConfigError(f"{file}: method={content.get('method')} cannot be run here; grid can, others need W&B")
    axes = []
    for key, spec in content["parameters"].items():
        if not isinstance(spec, dict) or not {"value", "values"} & spec.keys():
            raise ConfigError(f"{file}: parameters.{key} needs `value` or `values` (keys are flat and dotted)")
        values = spec["values"] if "values" in spec else [spec["value"]]
        if not isinstance(values, list) or not values:
            raise ConfigError(f"{file}: parameters.{key}.values={values} must be a list of at least one value")
        axes.append([f"{key}={'null' if value is None else value}" for value in values])
    return [list(combination) for combination in product(*axes)]


def run_all(jobs: list[list[str]], overrides: list[str]) -> None:
    """Run train.py once per combination; the first failure ends the sweep. `overrides` go behind each."""
    for number, job in enumerate(jobs, start=1):
        print(f"[{number}/{len(jobs)}] {' '.join(job)}", flush=True)
        code = subprocess.run([sys.executable, "train.py", *job, *overrides]).returncode
        if code:
            raise SystemExit(code)
