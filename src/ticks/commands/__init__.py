"""The `ticks` command: what is done with runs after, and around, training.

  eval run=RUN_DIR [KEY=VALUE ...]            measure its newest checkpoint
  export run=RUN_DIR format=FORMAT            write its model for use elsewhere
  fork TARGET [name=NAME]                     copy all this under another name
  generate run=RUN_DIR [prompt=TEXT] [...]    continue a text with its model
  predict run=RUN_DIR text=TEXT               what its model says of a text
  report RUN_DIR [RUN_DIR ...] [out=FILE]     compare runs: table and figure
  sweep SWEEP.yaml [KEY=VALUE ...]            run a sweep's whole grid here
  timeline [KEY=VALUE ...]                    what happens when in a run

ticks COMMAND --help, or ticks help COMMAND, tells more of each.
"""

import inspect
import sys
from importlib import import_module
from types import ModuleType

from ticks.config import ConfigError, did_you_mean
from ticks.run_directory import check_here
from ticks.strategy.identity import WrongLauncher, check_numbers
from ticks.terminal import forgive, lost_output

HELP = ("-h", "--help")
COMMANDS = (
    "eval",
    "export",
    "fork",
    "generate",
    "predict",
    "report",
    "sweep",
    "timeline",
)  # modules of this package; their docstrings are the help


def main() -> None:
    """Exit code 0; 2 for a mistake on the command line, told in one line; 1 for a failure."""
    forgive()
    arguments = sys.argv[1:]
    if arguments[:1] == ["help"]:
        arguments = [*arguments[1:2], "--help"]
    try:
        if not arguments or arguments[0] in HELP:
            print(__doc__)
        elif arguments[0] not in COMMANDS:
            raise ConfigError(f"unknown command '{arguments[0]}'{did_you_mean(arguments[0], COMMANDS)}")
        elif not set(HELP).isdisjoint(arguments):
            print(inspect.getdoc(_module(arguments[0])))
        else:
            check_here()
            check_numbers()
            _module(arguments[0]).main(arguments[1:])
    except (ConfigError, WrongLauncher) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    if (lost := lost_output()) is not None:  # here it is the result
        print(f"error: the output could not be written: {lost.strerror}", file=sys.stderr)
        sys.exit(1)


def _module(command: str) -> ModuleType:
    return import_module(f"{__package__}.{command}")
