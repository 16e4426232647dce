"""Usage: ticks report RUNS ... [by=KEY ...] [y=MEASURE] [x=KEY]
                    [against=KEY=VALUE] [best=KEY] [out=FILE ...]

What runs came to. Those that differ in nothing but their seed are one row:
mean, 95% interval, how many, and how many have no result.

  RUNS               run directories, folders with runs in or below them
                     (a multirun's, a sweep's), files that out= wrote, and
                     wandb:ENTITY/PROJECT or wandb:ENTITY/PROJECT/GROUP
  by=KEY             tell runs apart by this key, by=KEY,KEY or several
                     (default: by what differs, but the seed)
  y=MEASURE          any key of summary.json, as val_loss or loss, accuracy,
                     steps_per_second (default: what the runs are judged by)
  against=KEY=VALUE  differences to the runs that have it, paired by seed; a
                     second one: how much they differ from those there
  best=KEY           of runs that differ in KEY alone only those of its best
                     value, as best=optimizer.lr: by the validation measure
                     that they are judged by, whatever y= is; KEY,KEY: of both
  x=KEY              what a figure is drawn against: step, seconds, tokens,
                     bytes_sent (curves); any setting; two, x=KEY,KEY (heat
                     map); bytes_sent_per_worker (what beats what)
  out=FILE           png, svg, pdf: a figure; md, tex: the table; csv,
                     parquet: the runs themselves
  wandb=PROJECT      upload these files as an artifact

Example: ticks report logs/sweeps/intervals against=strategy.clock.interval=1
             x=strategy.clock.interval out=figure.png out=table.md
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ticks.config import ConfigError, did_you_mean

OPTIONS = ("by", "x", "y", "against", "best", "out", "wandb")
TABLES = (".md", ".tex")


def main(arguments: list[str]) -> None:
    from ticks.report.figures import check_x
    from ticks.report.groups import choose, group
    from ticks.report.tables import table_of, table_of_changes

    options, places = read_options(arguments)
    runs = runs_at(places)
    measure, better = measure_of(runs, options["y"])
    keys = [key for entry in options["by"] for key in entry.split(",")]
    for said in options["against"]:
        if "=" not in said:
            raise ConfigError(f"against={said}: it is KEY=VALUE, as against=strategy=ddp")
    if len(options["against"]) > 2:
        raise ConfigError(f"against={options['against'][2]}: there can be two against, no more")
    best = [key for entry in options["best"] for key in entry.split(",")]
    groups = group(runs, keys, [said.partition("=")[0] for said in options["against"]], best)
    notes: list[str] = []
    if best:
        groups, notes = choose(groups, best, *measure_of(runs, []))
    x = [key for entry in options["x"] for key in entry.split(",")]
    if both := [key for key in x if key in best]:
        raise ConfigError(f"best={both[0]}: what one value was chosen of cannot be what x= is")
    check_x(x, runs)
    if x and not any(kind_of(Path(out)) == "figure" for out in options["out"]):
        raise ConfigError(f"x={','.join(x)}: give out=FIGURE.png as well, where it is to be drawn")
    table = table_of(groups, measure, against=next(iter(options["against"]), None))
    table.notes += notes
    table.show()
    tables = [table]
    if len(options["against"]) == 2:
        changes = table_of_changes(groups, measure, *options["against"])
        changes.show()
        tables.append(changes)
    if len(options["wandb"]) > 1 or (options["wandb"] and not options["out"]):
        raise ConfigError(f"wandb={options['wandb'][-1]}: one project, to which what out= names is uploaded")
    for out in options["out"]:
        told = [*keys, *(key for key in best if keys and key not in keys)]
        write(Path(os.path.expanduser(out)), tables, runs, groups, measure, better, told, x, options["against"])
        print(f"{kind_of(Path(out))} {out}")
    for project in options["wandb"]:
        from ticks.report.online import upload
        from ticks.report.style import command

        print(f"artifact {upload([Path(os.path.expanduser(out)) for out in options['out']], project, command())}")


def read_options(arguments: Sequence[str]) -> tuple[dict[str, list[str]], list[str]]:
    """KEY=VALUE by the key, each as often as it came, and the rest."""
    options: dict[str, list[str]] = {name: [] for name in OPTIONS}
    places = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if equals and key in options:
            if not value:
                raise ConfigError(f"{key}= is empty: ticks report --help tells what can stand there")
            options[key].append(value)
        elif argument.startswith("-"):
            raise ConfigError(f"{argument}: options are KEY=VALUE, {', '.join(f'{name}=' for name in options)}")
        elif equals and re.fullmatch(r"\w+", key) and not Path(argument).exists():
            raise ConfigError(f"{argument}: there is no option {key}{did_you_mean(key, options)}")
        else:
            places.append(argument)
    return options, places


def runs_at(places: Sequence[str]) -> list[Any]:
    """The runs in projects of W&B, files that this command wrote, and directories. ConfigError if there is none."""
    from ticks.report import frame
    from ticks.report.online import PREFIX, load_online
    from ticks.report.runs import load_runs

    runs = [run for place in places if place.startswith(PREFIX) for run in load_online(place)]
    here = [Path(os.path.expanduser(place)) for place in places if not place.startswith(PREFIX)]
    files = [place for place in here if place.suffix in frame.FORMATS]
    if missing := [place for place in files if not place.is_file()]:
        raise ConfigError(f"'{missing[0]}' does not exist")
    runs += [run for file in files for run in frame.read(file)]
    directories = [place for place in here if place not in files]
    return runs + (load_runs(directories) if directories or not runs else [])


def measure_of(runs: Sequence[Any], said: Sequence[str]) -> tuple[str, str]:
    """The measure's key in the summaries, and which is better. ConfigError for runs that cannot be compared."""
    judged = {run.measure[0]: run for run in runs}
    tasks = {str(run.settings.get("task")): run for run in runs if run.settings.get("task")}
    for kind, found in (("tasks", tasks), ("measures", judged)):
        if len(found) > 1:
            each = ", ".join(f"{name} ({run.directory})" for name, run in found.items())
            raise ConfigError(f"runs of different {kind} are no one table: {each}")
    better = next((run.summary["better"] for run in runs if run.summary.get("better")), "lower")
    if not said:
        return f"val_{next(iter(judged))}", better
    if len(said) > 1:
        raise ConfigError(f"y={said[1]}: there can be one y")
    keys = {key: None for run in runs for key, value in run.summary.items() if isinstance(value, int | float)}
    name = said[0].replace("/", "_")
    for key in (name, f"val_{name}"):
        if key in keys:
            if key in (f"val_{next(iter(judged))}", f"test_{next(iter(judged))}"):
                return key, better
            higher = {each for run in runs for each in str(run.summary.get("higher_is_better") or "").split(",")}
            is_one = key.partition("_")[2] in higher - {""} or "accuracy" in key or key == "steps_per_second"
            return key, "higher" if is_one else "lower"
    raise ConfigError(f"y={said[0]}: no run has it{did_you_mean(name, keys)}")


def kind_of(out: Path) -> str:
    from ticks.report.frame import FORMATS

    return "table" if out.suffix in TABLES else "runs" if out.suffix in FORMATS else "figure"


def write(
    out: Path, tables: Sequence[Any], runs: Sequence[Any], groups: Sequence[Any], measure: str, better: str,
    keys: Sequence[str], x: Sequence[str], against: Sequence[str] = (),
) -> None:  # fmt: skip
    """What the suffix asks for. ConfigError if it cannot be written."""
    from ticks.report import figures, frame

    try:
        if kind_of(out) == "table":
            out.parent.mkdir(parents=True, exist_ok=True)
            texts = [table.markdown() if out.suffix == ".md" else table.latex() for table in tables]
            out.write_text("\n".join(texts))
        elif kind_of(out) == "runs":
            frame.write(runs, out, keys)
        else:
            figures.draw(groups, measure, out, x=x, better=better, against=next(iter(against), None))
    except OSError as error:
        raise ConfigError(f"out={out} cannot be written: {error.strerror or error}") from None
