"""Usage: ticks report RUN_DIR [RUN_DIR ...] [out=FILE]

One line per run: strategy, norm, adapter, workers, steps, validation bits
per byte, MB sent per worker, speed. What is no run is left out, with a
warning.

  RUN_DIR       a run's directory, or a multirun's with all its runs
  out=FILE      draw bits per byte against MB sent and against steps, as
                png, pdf, svg, ... (default: no figure)

Example: ticks report logs/runs/* out=figure.png
"""

import os
from pathlib import Path

from ticks.commands.options import split
from ticks.config import ConfigError


def main(arguments: list[str]) -> None:
    from ticks.report.compare import figure, load_runs, show_runs

    options, directories = split(arguments, out=None)
    runs = load_runs([Path(d) for d in directories])
    show_runs(runs)
    if options["out"]:
        try:
            figure(runs, Path(os.path.expanduser(options["out"])))
        except OSError as error:
            raise ConfigError(f"out={options['out']} cannot be written: {error.strerror or error}") from None
        print(f"figure {options['out']}")
