"""Usage: ticks eval run=RUN_DIR [KEY=VALUE ...]

Measure the model of a run's newest checkpoint again, on all of the
validation and test data, and print it beside what summary.json says.

  run=RUN_DIR   the run's directory (required)
  KEY=VALUE     a value of the run's configuration to change, for example
                trainer.devices=2: the numbers are the same on any number
                of workers; test=false leaves the test data out

Example: ticks eval run=logs/runs/RUN trainer.devices=2
"""

from ticks.commands.options import absolute, run_of, split, where_it_began


def main(arguments: list[str]) -> None:
    from ticks.job import resumed_job
    from ticks.record import summary
    from ticks.session import run

    options, overrides = split(arguments, run=None)
    run_dir = run_of(options["run"])
    directory, overrides = run_dir.resolve(), [absolute(o) for o in overrides]
    with where_it_began(run_dir):
        metrics = run(resumed_job(directory, overrides, mode="eval"))
    if metrics is None:
        return
    recorded = summary.read(directory) if (directory / "summary.json").exists() else {}
    for key, value in metrics.items():
        before = recorded.get(key) if key != "checkpoint" else None
        print(f"{key:20} {value}" + ("" if before is None else f"   summary.json: {before}"))
