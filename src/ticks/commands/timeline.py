"""Usage: ticks timeline [KEY=VALUE ...]
       ticks timeline run=RUN_DIR

What happens when in a run with this configuration, in its order and phase by
phase, without training: python train.py with the same words would do it, and
checks what needs the model or the data (patterns, sizes) as well.

  KEY=VALUE    as behind train.py; timeline=[A,B] chooses entries
  run=RUN_DIR  of a run that there is, by its own configuration

Example: ticks timeline timeline=[norm_warmup,lr_steps] trainer.max_steps=2000
"""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from ticks.commands.options import run_of, split, where_it_began
from ticks.config import ConfigError, compose_phases, compose_strictly
from ticks.run_directory import load_config

NOTHING = "nothing but training: timeline=none"


def main(arguments: list[str]) -> None:
    options, rest = split(arguments, run=None)
    if options["run"] is not None and rest:
        raise ConfigError(f"{rest[0]}: run= has a configuration of its own; leave one of them out")
    run_dir = None if options["run"] is None else run_of(options["run"])
    config, phases = typed(rest) if run_dir is None else recorded(run_dir)
    with nullcontext() if run_dir is None else where_it_began(run_dir):
        show(config, phases)


def typed(arguments: list[str]) -> tuple[Any, dict[str, Any]]:
    """The configuration of a run and of its phases, as train.py would compose them."""
    configs = Path("configs").resolve()
    if not (configs / "train.yaml").is_file():
        raise ConfigError("there is no configs/train.yaml here: go to where train.py lies, or give run=RUN_DIR")
    config = compose_strictly(arguments, configs)
    config.run_dir = config.run_dir or "RUN_DIR"
    phases = {name: of_phase for name, (of_phase, _) in compose_phases(config, arguments, configs).items()}
    for of_phase in phases.values():
        of_phase.run_dir = config.run_dir
    return config, phases


def recorded(run_dir: Path) -> tuple[Any, dict[str, Any]]:
    """The same of a run that there is."""
    config = load_config(run_dir)
    if OmegaConf.select(config, "trainer.max_steps") is None:
        raise ConfigError(f"{run_dir}/config.yaml says nothing of trainer.max_steps: it is no run's")
    said: Any = OmegaConf.to_container(config.get("phase_configs") or OmegaConf.create({}))
    return config, {name: OmegaConf.create(of_phase["config"]) for name, of_phase in said.items()}


def show(config: Any, phases: dict[str, Any]) -> None:
    from ticks.assemble import planned

    begin = 0
    for name, of_phase in phases.items():
        print(f"phase {name}: steps {begin + 1} to {begin + of_phase.trainer.max_steps}, counted from 1 here:")
        try:
            lines = planned(of_phase)
        except ConfigError as error:
            raise ConfigError(f"phases.{name}: {error}") from None
        for line in lines:
            print(f"  {line}")
        begin += of_phase.trainer.max_steps
    for line in () if phases else planned(config) or [NOTHING]:
        print(line)
