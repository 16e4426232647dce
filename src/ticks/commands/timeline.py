"""Usage: ticks timeline [KEY=VALUE ...]

What happens when in a run with this configuration, in its order, without
training: python train.py with the same words would do it.

  KEY=VALUE   as behind train.py; timeline=[A,B] chooses entries

Example: ticks timeline timeline=[norm_warmup,lr_steps] trainer.max_steps=2000
"""

from pathlib import Path

from ticks.config import ConfigError, compose_strictly


def main(arguments: list[str]) -> None:
    configs = Path("configs").resolve()
    if not (configs / "train.yaml").is_file():
        raise ConfigError("there is no configs/train.yaml here: go to where train.py lies")
    config = compose_strictly(arguments, configs)
    config.run_dir = config.run_dir or "RUN_DIR"

    from ticks.assemble import planned

    lines = planned(config)
    for line in lines or ["nothing but training: timeline=none"]:
        print(line)
