"""Usage: ticks sweep SWEEP.yaml [KEY=VALUE ...]

Run every combination of a W&B sweep file's grid here, without W&B's
server, one after the other. A run that fails ends nothing but itself; at
the end a table says what became of each. Ctrl-C stops the running one,
with a checkpoint, and the sweep.

  SWEEP.yaml    a sweep file with method: grid (required); the program
                that it names lies beside the configs folder that the
                file is in, or in the working directory
  KEY=VALUE     put behind the overrides of every run (default: none)

Example: ticks sweep configs/sweep/intervals.yaml logger=csv seed=1
"""

import sys
from itertools import product
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ticks.config import ConfigError
from ticks.jobs import Outcome, all_finished, run_job, show, signals_afterwards


def main(arguments: list[str]) -> None:
    if not arguments:
        raise ConfigError("give a sweep file: ticks sweep configs/sweep/intervals.yaml")
    file = Path(arguments[0])
    run_all(combinations(file), arguments[1:], program_of(file))


def combinations(file: Path) -> list[list[str]]:
    """Every combination of the grid as a list of KEY=VALUE, with what `command` gives to all of them. ConfigError if
    the file is no flat grid."""
    content = _read(file)
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
    before, behind = _of_all(file, content.get("command"))
    return [[*before, *combination, *behind] for combination in product(*axes)]


def _of_all(file: Path, command: Any) -> tuple[list[str], list[str]]:
    """Arguments that stand in a sweep's command before and behind those that W&B puts into it."""
    if command is None:
        return [], []
    words = [str(word) for word in command] if isinstance(command, list) else []
    places = [i for i, word in enumerate(words) if word in ("${args}", "${args_no_hyphens}")]
    if "${program}" not in words or len(places) != 1 or (start := words.index("${program}") + 1) > places[0]:
        raise ConfigError(f"{file}: command={command} must be a list with ${{program}} and then ${{args_no_hyphens}}")
    before, behind = words[start : places[0]], words[places[0] + 1 :]
    if strange := [word for word in [*before, *behind] if "${" in word or "=" not in word]:
        raise ConfigError(f"{file}: command has '{strange[0]}': only KEY=VALUE can stand behind ${{program}} here")
    return before, behind


def _read(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise ConfigError(f"sweep file '{file}' does not exist")
    try:
        content: Any = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{file} is no sweep file: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict) or not isinstance(content.get("parameters"), dict):
        raise ConfigError(f"{file} is no sweep file: it has no `parameters`")
    return content


def program_of(file: Path) -> Path:
    """The program that the sweep file names: beside the `configs` folder that the file lies in, or in the working
    directory. ConfigError if it is in neither."""
    name = str(_read(file).get("program", "train.py"))
    roots = [parent.parent for parent in file.resolve().parents if parent.name == "configs"][:1]
    for place in (places := [*roots, Path.cwd()]):
        if (place / name).is_file():
            return place / name
    raise ConfigError(f"{file}: program={name} is neither in {' nor in '.join(map(str, dict.fromkeys(places)))}")


def run_all(jobs: list[list[str]], overrides: list[str], program: Path) -> None:
    """Run `program` once per combination, `overrides` behind each, and print a table at the end.

    A job that fails, or that somebody stops, ends nothing but itself: SystemExit 1 when the others are done. A signal
    to this process is passed on to the running job, waited for, and ends the sweep: SystemExit 128 + signal.
    """
    outcomes = {number: Outcome([*job, *overrides]) for number, job in enumerate(jobs, start=1)}
    try:
        for number, job in enumerate(jobs, start=1):
            print(f"[{number}/{len(jobs)}] {' '.join(job)}", flush=True)
            with signals_afterwards():
                outcomes[number] = run_job([sys.executable, str(program), *job, *overrides], [*job, *overrides])
            if (signum := outcomes[number].asked) is not None:
                raise SystemExit(128 + signum)
    finally:
        show(outcomes, program=program)
    if not all_finished(outcomes.values()):
        raise SystemExit(1)
