"""W&B's sweep files: every combination of a grid, or as many random ones as are wanted."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, product
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ticks.config import ConfigError, did_you_mean

METHODS = ("grid", "random", "bayes")


@dataclass(frozen=True)
class Sweep:
    """What a sweep file says. `parameters` are W&B's, flat and dotted; `before` and `behind` are what its command gives
    to every job; `program` is the script beside the configs folder that the file is in."""

    file: Path
    method: str
    parameters: dict[str, dict[str, Any]]
    before: list[str]
    behind: list[str]
    program: Path
    metric: dict[str, str]
    run_cap: int | None

    @property
    def name(self) -> str:
        return self.file.stem

    @property
    def swept(self) -> list[str]:
        """The parameters that are not the same in every job."""
        return [key for key, spec in self.parameters.items() if "value" not in spec]

    def job(self, values: dict[str, Any]) -> list[str]:
        """The overrides of a job in which the parameters have these values."""
        return [*self.before, *(f"{key}={written(value)}" for key, value in values.items()), *self.behind]

    def grid(self) -> Iterator[dict[str, Any]]:
        """The values of every combination. ConfigError for a parameter that is no list of values."""
        axes = []
        for key, spec in self.parameters.items():
            if not {"value", "values"} & spec.keys():
                raise ConfigError(f"{self.file}: parameters.{key} needs `value` or `values` in a grid")
            axes.append(spec["values"] if "values" in spec else [spec["value"]])
        for combination in islice(product(*axes), self.run_cap):
            yield dict(zip(self.parameters, combination, strict=True))

    def random(self, count: int, seed: int = 0) -> Iterator[dict[str, Any]]:
        """`count` draws, always the same ones. ConfigError for a distribution that is not known."""
        draws = np.random.default_rng(seed)
        for _ in range(count):
            yield {key: drawn(spec, draws, f"{self.file}: parameters.{key}") for key, spec in self.parameters.items()}


def written(value: Any) -> str:
    """A value as an override has it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return repr(value) if isinstance(value, float) else str(value)


def read(file: Path) -> Sweep:
    """ConfigError if the file is no sweep, or its program is not there."""
    if not file.is_file():
        raise ConfigError(f"sweep file '{file}' does not exist")
    try:
        content: Any = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{file} is no sweep file: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict) or not isinstance(content.get("parameters"), dict):
        raise ConfigError(f"{file} is no sweep file: it has no `parameters`")
    if (method := content.get("method")) not in METHODS:
        raise ConfigError(f"{file}: method={method} is unknown{did_you_mean(str(method), METHODS)}")
    for key, spec in content["parameters"].items():
        if not isinstance(spec, dict) or not {"value", "values", "min", "mu", "distribution"} & spec.keys():
            raise ConfigError(f"{file}: parameters.{key} needs `value` or `values` (keys are flat and dotted)")
        if "values" in spec and (not isinstance(spec["values"], list) or not spec["values"]):
            raise ConfigError(f"{file}: parameters.{key}.values={spec['values']} must be a list of at least one value")
    if not isinstance(content.get("metric") or {}, dict):
        raise ConfigError(
            f"{file}: metric={content['metric']} must have a name and a goal: {{name: val/loss, goal: minimize}}"
        )
    cap = content.get("run_cap")
    if cap is not None and (not isinstance(cap, int) or cap < 1):
        raise ConfigError(f"{file}: run_cap={cap} must be a whole number of at least 1")
    before, behind = _of_all(file, content.get("command"))
    program = _program(file, str(content.get("program", "train.py")))
    return Sweep(file, str(method), content["parameters"], before, behind, program, content.get("metric") or {}, cap)


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


def _program(file: Path, name: str) -> Path:
    """The program that a sweep file names: beside the `configs` folder that the file lies in, or in the working
    directory. ConfigError if it is in neither."""
    roots = [parent.parent for parent in file.resolve().parents if parent.name == "configs"][:1]
    for place in (places := [*roots, Path.cwd()]):
        if (place / name).is_file():
            return place / name
    first, *rest = map(str, dict.fromkeys(places))
    raise ConfigError(
        f"{file}: program={name} is {f'neither in {first} nor in {rest[0]}' if rest else f'not in {first}'}"
    )


# ---- distributions ---------------------------------------------------------------------------------------------------


def distribution(spec: dict[str, Any]) -> str:
    """Its name in W&B's words, where it is not said: from what there is."""
    if said := spec.get("distribution"):
        return str(said)
    if "value" in spec or "values" in spec:
        return "constant" if "value" in spec else "categorical"
    if "mu" in spec:
        return "normal"
    whole = all(isinstance(spec.get(end), int) for end in ("min", "max"))
    return "int_uniform" if whole else "uniform"


def drawn(spec: dict[str, Any], draws: np.random.Generator, place: str) -> Any:
    """A value of a parameter. ConfigError, which names the `place`, for a distribution that cannot be drawn from."""
    kind = distribution(spec)
    kinds = {
        "constant": lambda: spec["value"],
        "categorical": lambda: spec["values"][_index(spec, draws)],
        "int_uniform": lambda: int(draws.integers(spec["min"], spec["max"] + 1)),
        "uniform": lambda: draws.uniform(spec["min"], spec["max"]),
        "log_uniform_values": lambda: math.exp(draws.uniform(math.log(spec["min"]), math.log(spec["max"]))),
        "log_uniform": lambda: math.exp(draws.uniform(spec["min"], spec["max"])),
        "normal": lambda: draws.normal(spec.get("mu", 0.0), spec.get("sigma", 1.0)),
        "log_normal": lambda: math.exp(draws.normal(spec.get("mu", 0.0), spec.get("sigma", 1.0))),
    }
    plain = kind.removeprefix("q_")
    if plain not in kinds:
        known = [*kinds, *(f"q_{name}" for name in list(kinds)[3:])]
        raise ConfigError(f"{place}.distribution={kind} is unknown{did_you_mean(kind, known)}")
    try:
        value = kinds[plain]()
    except (KeyError, ValueError, TypeError, OverflowError) as error:
        missing = f"needs {error}" if isinstance(error, KeyError) else str(error)
        raise ConfigError(f"{place}: {kind} {missing}") from None
    if kind.startswith("q_"):
        q = spec.get("q", 1)
        value = round(value / q) * q
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _index(spec: dict[str, Any], draws: np.random.Generator) -> int:
    return int(draws.choice(len(spec["values"]), p=spec.get("probabilities")))
