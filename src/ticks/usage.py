"""What `train.py --help` prints: what can be chosen, and how. Free of torch."""

from pathlib import Path
from textwrap import fill

from ticks.config import default_choices, group_options

USAGE = """\
Usage: python train.py [GROUP=CHOICE ...] [KEY=VALUE ...] [FLAG ...]

Train one model, or several. Examples:
  python train.py model=ln_ticks trainer.devices=4
  python train.py strategy=diloco strategy.clock.interval=32
  python train.py -m seed=0,1 optimizer.lr=1e-3,3e-3  every combination, in turn
  python train.py resume=auto                       go on with an unfinished run

A value is set by its dotted name, null is None; +KEY=VALUE adds an argument
that no file names, ~KEY leaves one out. Quote what has special characters:
'data.path="books/**/*.txt"'. The files in configs/ say what values mean.

Choices, the default in brackets:
{groups}

Flags:
  -h, --help            this text
  -m, --multirun        values with commas, and globs, are several runs
  -c, --cfg job         print the configuration instead of training; also
                        hydra, all; --resolve fills in references, and
                        -p trainer (--package) prints only that part
  -i, --info defaults   where the configuration comes from; also
                        defaults-tree, searchpath, plugins, config, all
  -cd, --config-dir DIR more files to choose from, laid out as in configs/
  --hydra-help          Hydra's own help"""


def usage(config_dir: Path) -> str:
    """The help of train.py, with the choices that there are in `config_dir`."""
    chosen = default_choices(config_dir)
    return USAGE.format(
        groups="\n".join(_line(name, options, chosen.get(name)) for name, options in groups(config_dir))
    )


def groups(config_dir: Path) -> list[tuple[str, list[str]]]:
    """Every group of files from which one is chosen, with the names of its files."""
    folders = [path for path in sorted(config_dir.rglob("*")) if path.is_dir()]
    named = [(str(folder.relative_to(config_dir)), sorted(group_options(folder))) for folder in folders]
    return [(name, options) for name, options in named if options and name != "sweep"]  # `ticks sweep` reads those


def _line(name: str, options: list[str], default: str | None) -> str:
    shown = [f"[{option}]" if option == default else option for option in options]
    return fill(" ".join(shown), width=79, initial_indent=f"  {name:26}", subsequent_indent=" " * 28)
