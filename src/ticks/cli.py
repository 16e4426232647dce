"""The `ticks` command: what is done with runs after, and around, training.

ticks eval run=RUN_DIR [KEY=VALUE ...]       measure the run's newest checkpoint again, on any number of workers
ticks generate run=RUN_DIR [prompt=TEXT] [bytes=N] [temperature=T] [seed=N]
ticks report RUN_DIR [RUN_DIR ...] [out=FILE.png]     table of the runs, figure of loss against MB sent
ticks sweep SWEEP.yaml [KEY=VALUE ...]       run every combination of a sweep's grid here, one after the other
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path

from ticks.config import ConfigError, did_you_mean
from ticks.run_directory import check_here
from ticks.session import leave_on_signals
from ticks.terminal import forgive, lost_output


def main() -> None:
    """Exit code 0; 2 for a mistake on the command line, told in one line; 1 for a failure."""
    leave_on_signals()
    forgive()
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__)
        return
    try:
        if arguments[0] not in COMMANDS:
            raise ConfigError(f"unknown command '{arguments[0]}'{did_you_mean(arguments[0], COMMANDS)}")
        check_here()
        COMMANDS[arguments[0]](arguments[1:])
    except ConfigError as error:
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
    """Reproduce a run's validation loss from its checkpoint."""
    from ticks.job import resumed_job
    from ticks.report import summary
    from ticks.train import run

    options, overrides = _options(arguments, run=None)
    run_dir = _run_dir(options["run"])
    job = resumed_job(run_dir, overrides, mode="eval")
    metrics = run(job)
    if metrics is None:
        return
    recorded = summary.read(run_dir) if (run_dir / "summary.json").exists() else {}
    for key, value in metrics.items():
        before = recorded.get(key) if key != "checkpoint" else None
        print(f"{key:20} {value}" + ("" if before is None else f"   summary.json: {before}"))


def generate(arguments: list[str]) -> None:
    """Continue a prompt with a run's model."""
    options, rest = _options(arguments, run=None, prompt=None, bytes="400", temperature="0.8", seed="0")
    if rest:
        raise ConfigError(f"unknown option '{rest[0]}'{did_you_mean(rest[0].partition('=')[0], options)}")
    n, seed = int(_number("bytes", options["bytes"], int)), int(_number("seed", options["seed"], int))
    temperature = _number("temperature", options["temperature"], float)

    import torch
    from omegaconf import OmegaConf

    from ticks.config import build
    from ticks.job import resumed_job

    job = resumed_job(_run_dir(options["run"]), [], mode="eval")
    config = OmegaConf.create(job.config)
    data = build(config.data, "data")
    task = build(config.task, "task", model=build(config.model, "model", vocab_size=data.vocab_size))
    checkpoint = torch.load(str(job.checkpoint), map_location="cpu", weights_only=True)
    task.load_state_dict(checkpoint["state_dict"])
    prompt = data.encode((config.sample_prompt if options["prompt"] is None else options["prompt"]) or "\n")
    print(data.decode(task.generate(prompt, n, temperature=temperature, seed=seed)))


def report(arguments: list[str]) -> None:
    """Compare runs."""
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
    """Run a W&B sweep file's grid without W&B's server."""
    from ticks.sweep import combinations, run_all

    if not arguments:
        raise ConfigError("give a sweep file: ticks sweep configs/sweep/intervals.yaml")
    run_all(combinations(Path(arguments[0])), arguments[1:])


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "eval": evaluate,
    "generate": generate,
    "report": report,
    "sweep": sweep,
}

if __name__ == "__main__":
    main()
