"""The `ticks` command: what is done with runs after, and around, training.

ticks eval run=RUN_DIR [KEY=VALUE ...]            measure its newest checkpoint
ticks generate run=RUN_DIR [prompt=TEXT] [...]    continue a text with its model
ticks report RUN_DIR [RUN_DIR ...] [out=FILE]     compare runs: table and figure
ticks sweep SWEEP.yaml [KEY=VALUE ...]            run a sweep's whole grid here

ticks COMMAND --help, or ticks help COMMAND, tells more of each.
"""

import inspect
import os
import sys
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path

from ticks.config import ConfigError, did_you_mean
from ticks.run_directory import check_here
from ticks.strategy.identity import WrongLauncher, who_am_i
from ticks.terminal import forgive, lost_output

HELP = ("-h", "--help")


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
            print(inspect.getdoc(COMMANDS[arguments[0]]))
        else:
            check_here()
            who_am_i()
            COMMANDS[arguments[0]](arguments[1:])
    except (ConfigError, WrongLauncher) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    if (lost := lost_output()) is not None:  # here it is the result
        print(f"error: the output could not be written: {lost.strerror}", file=sys.stderr)
        sys.exit(1)


def _options(arguments: list[str], **defaults: str | None) -> tuple[dict[str, str | None], list[str]]:
    """Split KEY=VALUE arguments into the known options and the rest."""
    options, rest = dict(defaults), []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if equals and key in defaults:
            options[key] = value
        else:
            rest.append(argument)
    return options, rest


def _run_dir(value: str | None) -> Path:
    if not value:
        raise ConfigError("give the run's directory: run=logs/runs/...")
    return Path(os.path.expanduser(value))


def _started_in(run_dir: Path) -> Path:
    """Where the run was started, to which paths in its configuration are relative; here if its directory was moved."""
    from ticks.run_directory import load_config

    recorded, lies = Path(str(load_config(run_dir).get("run_dir") or "")), run_dir.resolve()
    depth = len(recorded.parts)
    if not depth or recorded.is_absolute() or lies.parts[-depth:] != recorded.parts:
        return Path.cwd()
    return lies.parents[depth - 1]


def _absolute(override: str) -> str:
    """An override whose value is the path of a file here, so that it can be read elsewhere too."""
    key, _, value = override.partition("=")
    return f"{key}={Path(value).resolve()}" if value and Path(value).is_file() else override


def _number(name: str, text: str | None, kind: Callable[[str], float]) -> float:
    """A finite number of at least 0."""
    try:
        number = kind(text or "")
    except ValueError:
        number = -1.0
    if not 0 <= number < 2**63:
        what = "whole number" if kind is int else "number"
        raise ConfigError(f"{name}={text} must be a {what} of at least 0")
    return number


def evaluate(arguments: list[str]) -> None:
    """Usage: ticks eval run=RUN_DIR [KEY=VALUE ...]

    Measure the model of a run's newest checkpoint again, on all of the
    validation and test data, and print it beside what summary.json says.

      run=RUN_DIR   the run's directory (required)
      KEY=VALUE     a value of the run's configuration to change, for example
                    trainer.devices=2: the numbers are the same on any number
                    of workers; test=false leaves the test data out

    Example: ticks eval run=logs/runs/2026-01-31_12-00-00_ticks trainer.devices=2
    """
    from ticks.job import resumed_job
    from ticks.report import summary
    from ticks.train import run

    options, overrides = _options(arguments, run=None)
    run_dir = _run_dir(options["run"])
    place, run_dir, overrides = _started_in(run_dir), run_dir.resolve(), [_absolute(o) for o in overrides]
    with chdir(place):
        metrics = run(resumed_job(run_dir, overrides, mode="eval"))
    if metrics is None:
        return
    recorded = summary.read(run_dir) if (run_dir / "summary.json").exists() else {}
    for key, value in metrics.items():
        before = recorded.get(key) if key != "checkpoint" else None
        print(f"{key:20} {value}" + ("" if before is None else f"   summary.json: {before}"))


def generate(arguments: list[str]) -> None:
    """Usage: ticks generate run=RUN_DIR [OPTION=VALUE ...]

    Continue a text with the model of a run's newest checkpoint.

      run=RUN_DIR       the run's directory (required)
      prompt=TEXT       what to continue (default: the run's sample_prompt)
      bytes=N           how many bytes to generate (default: 400)
      temperature=T     0 always takes the likeliest byte, 1 samples from the
                        model's distribution (default: 0.8)
      seed=N            of the sampling (default: 0)

    Example: ticks generate run=logs/runs/2026-01-31_12-00-00_ticks prompt="Mr "
    """
    options, rest = _options(arguments, run=None, prompt=None, bytes="400", temperature="0.8", seed="0")
    if rest:
        raise ConfigError(f"unknown option '{rest[0]}'{did_you_mean(rest[0].partition('=')[0], options)}")
    n, seed = int(_number("bytes", options["bytes"], int)), int(_number("seed", options["seed"], int))
    temperature = _number("temperature", options["temperature"], float)

    import torch
    from omegaconf import OmegaConf

    from ticks.config import build
    from ticks.job import resumed_job

    run_dir = _run_dir(options["run"])
    place, run_dir = _started_in(run_dir), run_dir.resolve()
    with chdir(place):
        job = resumed_job(run_dir, [], mode="eval")
        config = OmegaConf.create(job.config)
        data = build(config.data, "data")
        task = build(config.task, "task", model=build(config.model, "model", vocab_size=data.vocab_size))
        checkpoint = torch.load(str(job.checkpoint), map_location="cpu", weights_only=True)
    task.load_state_dict(checkpoint["state_dict"])
    prompt = data.encode((config.sample_prompt if options["prompt"] is None else options["prompt"]) or "\n")
    print(data.decode(task.generate(prompt, n, temperature=temperature, seed=seed)))


def report(arguments: list[str]) -> None:
    """Usage: ticks report RUN_DIR [RUN_DIR ...] [out=FILE]

    One line per run: strategy, norm, adapter, workers, steps, validation bits
    per byte, MB sent per worker, speed. What is no run is left out, with a
    warning.

      RUN_DIR       a run's directory, or a multirun's with all its runs
      out=FILE      draw bits per byte against MB sent and against steps, as
                    png, pdf, svg, ... (default: no figure)

    Example: ticks report logs/runs/* out=figure.png
    """
    from ticks.report.compare import figure, load_runs, show_runs

    options, directories = _options(arguments, out=None)
    runs = load_runs([Path(d) for d in directories])
    show_runs(runs)
    if options["out"]:
        try:
            figure(runs, Path(os.path.expanduser(options["out"])))
        except OSError as error:
            raise ConfigError(f"out={options['out']} cannot be written: {error.strerror or error}") from None
        print(f"figure {options['out']}")


def sweep(arguments: list[str]) -> None:
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
    from ticks.sweep import combinations, program_of, run_all

    if not arguments:
        raise ConfigError("give a sweep file: ticks sweep configs/sweep/intervals.yaml")
    file = Path(arguments[0])
    run_all(combinations(file), arguments[1:], program_of(file))


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "eval": evaluate,
    "generate": generate,
    "report": report,
    "sweep": sweep,
}
