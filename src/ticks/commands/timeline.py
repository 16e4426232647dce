"""Usage: ticks timeline [KEY=VALUE ...]

What happens when in a run with this configuration, in its order and phase by
phase, without training: python train.py with the same words would do it, and
checks what needs the model or the data (patterns, sizes) as well.

  KEY=VALUE   as behind train.py; timeline=[A,B] chooses entries

Example: ticks timeline timeline=[norm_warmup,lr_steps] trainer.max_steps=2000
"""

from pathlib import Path

from ticks.config import ConfigError, compose_phases, compose_strictly

NOTHING = "nothing but training: timeline=none"


def main(arguments: list[str]) -> None:
    configs = Path("configs").resolve()
    if not (configs / "train.yaml").is_file():
        raise ConfigError("there is no configs/train.yaml here: go to where train.py lies")
    config = compose_strictly(arguments, configs)
    config.run_dir = config.run_dir or "RUN_DIR"
    phases = compose_phases(config, arguments, configs)

    from ticks.assemble import planned

    begin = 0
    for name, (of_phase, _) in phases.items():
        of_phase.run_dir = config.run_dir
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
