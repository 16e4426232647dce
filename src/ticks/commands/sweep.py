"""Usage: ticks sweep SWEEP.yaml [jobs=K] [dir=PLACE] [count=N] [dry=true]
                   [KEY=VALUE ...]

Run a W&B sweep file here, without W&B's server. What is finished is
skipped, what was interrupted is resumed: call it again after a failure or
Ctrl-C, which stops the running jobs with their checkpoints. A job that
fails ends nothing but itself; at the end a table says what became of each.

  SWEEP.yaml    a sweep file (required); method: grid, random or bayes
                (Optuna); the program that it names lies beside the configs
                folder that the file is in, or in the working directory
  jobs=K        so many at once, which share the processors (default: 1)
  dir=PLACE     where the runs lie (default: logs/sweeps/NAME_OF_THE_FILE)
  count=N       how many jobs of a random sweep or a search (default: the
                file's run_cap)
  dry=true      list the jobs, and about how long they take
  KEY=VALUE     put behind the overrides of every job (default: none)

Example: ticks sweep configs/sweep/intervals.yaml logger=csv seed=1 jobs=2
"""

import difflib
import os
import shlex
import statistics
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ticks.commands.options import split
from ticks.config import ConfigError
from ticks.config.keys import TOP_LEVEL
from ticks.jobs import Outcome, show
from ticks.record import summary
from ticks.run_directory import RUNS
from ticks.sweep.file import Sweep, read
from ticks.sweep.folder import SWEEPS, Planned, plan
from ticks.sweep.pool import Heard, Pool, in_words
from ticks.sweep.search import Search

START = 8.0  # seconds until a run has imported and built everything


def main(arguments: list[str]) -> None:
    options, rest = split(arguments, jobs="1", dir=None, count=None, dry="false")
    if not rest or "=" in rest[0]:
        raise ConfigError("give a sweep file: ticks sweep configs/sweep/intervals.yaml")
    sweep, overrides = read(Path(rest[0])), rest[1:]
    if strange := [o for o in overrides if "=" not in o]:
        raise ConfigError(f"'{strange[0]}' is no KEY=VALUE; one sweep file at a time")
    for override in overrides:
        key = override.partition("=")[0]
        if key not in TOP_LEVEL and (near := difflib.get_close_matches(key, options, n=1, cutoff=0.7)):
            raise ConfigError(f"{override}: there is no such option; did you mean '{near[0]}'?")
    at_once = _whole("jobs", options["jobs"])
    if options["dry"] not in ("true", "false"):
        raise ConfigError(f"dry={options['dry']} must be true or false")
    folder = Path(os.path.expanduser(options["dir"])) if options["dir"] else SWEEPS / sweep.name
    count = _count(sweep, options["count"])
    again = shlex.join(["ticks", "sweep", *arguments])
    if sweep.method == "bayes":
        _search(sweep, folder, overrides, count, at_once, again=again, dry=options["dry"] == "true")
        return
    values = sweep.grid() if sweep.method == "grid" else sweep.random(count)
    jobs = planned(sweep, values, overrides, folder)
    if options["dry"] == "true":
        show_plan(jobs, folder, at_once)
        return
    _run(sweep, folder, at_once, jobs, len(jobs), again=again, known=jobs)


def planned(sweep: Sweep, values: Any, overrides: Sequence[str], folder: Path) -> list[Planned]:
    """Each job of a sweep, checked. ConfigError for the first that cannot be."""
    return plan([[*sweep.job(of_one), *overrides] for of_one in values], sweep.swept, folder, sweep.program)


def _whole(name: str, text: str | None) -> int:
    if not (text or "").isdigit() or int(text or 0) < 1:
        raise ConfigError(f"{name}={text} must be a whole number of at least 1")
    return int(text or 0)


def _count(sweep: Sweep, said: str | None) -> int:
    """How many jobs a random sweep has. ConfigError if nobody says so."""
    if sweep.method == "grid":
        if said is not None:
            raise ConfigError(f"count={said}: {sweep.file} is a grid, which has as many jobs as combinations")
        return 0
    if said is None and sweep.run_cap is None:
        raise ConfigError(f"{sweep.file}: method={sweep.method} has no end: give count=N, or run_cap in the file")
    return _whole("count", said) if said is not None else int(sweep.run_cap or 0)


def _search(
    sweep: Sweep, folder: Path, overrides: Sequence[str], count: int, at_once: int, *, again: str, dry: bool
) -> None:  # fmt: skip
    search = Search(sweep, folder, count)
    if dry:
        print(f"{count} jobs in {folder}, chosen as they go; {len(search.asked)} of them so far")
        return

    def jobs() -> Iterator[Planned]:
        for values in search.jobs():
            yield from planned(sweep, [values], overrides, folder)

    def heard(number: int, job: Planned, outcome: Outcome) -> None:
        search.hear(number - 1, job.about, outcome)

    _run(sweep, folder, at_once, jobs(), count, again=again, heard=heard)


def _run(
    sweep: Sweep, folder: Path, at_once: int, jobs: Iterable[Planned], total: int, *, again: str,
    known: Sequence[Planned] = (), heard: Heard | None = None,
) -> None:  # fmt: skip
    """Run them and print what became of each, those that never started too as far as they are `known`. SystemExit 128 +
    signal if somebody stopped the sweep, 1 if a job has no result."""
    pool = Pool(sweep.program, at_once=at_once, group=folder.name)
    try:
        pool.run(jobs, total, heard)
    finally:
        unstarted = {number: Outcome(list(job.overrides)) for number, job in enumerate(known, start=1)}
        show(unstarted | pool.outcomes, again=again)
        if pool.outcomes:
            print(f"what jobs print is in {folder}/*.txt; next: ticks report {folder}", flush=True)
    if pool.asked is not None:
        raise SystemExit(128 + pool.asked)
    if any(outcome.status in ("failed", "diverged", "stopped") for outcome in pool.outcomes.values()):
        raise SystemExit(1)


def show_plan(jobs: Sequence[Planned], folder: Path, at_once: int) -> None:
    """Print the jobs, what is done of them, and about how long the rest takes."""
    for number, job in enumerate(jobs, start=1):
        print(f"{number:>3}  {job.state:<11}  {' '.join(job.overrides)}")
    left = [job for job in jobs if job.state in ("new", "interrupted")]
    seconds, known_by = _seconds_per_job(jobs)
    guess = "nothing is known yet of how long one takes" if seconds is None else (
        f"about {in_words(seconds * len(left) / at_once)}, {at_once} at once, by {known_by}"
    )  # fmt: skip
    print(f"{len(jobs)} jobs in {folder}, {len(left)} to be done: {guess}")


def _seconds_per_job(jobs: Sequence[Planned]) -> tuple[float | None, str]:
    """By the sweep's own finished jobs; before there is one, by the steps of finished runs of as many workers."""
    own = [_whole_seconds(job.directory, about) for job in jobs if (about := job.about).get("status") == "finished"]
    if own:
        return statistics.fmean(own), f"its own {len(own)} that are finished"
    steps = [job.max_steps for job in jobs if isinstance(job.max_steps, int) and job.max_steps > 0]
    speeds, beside = [], []
    for file in RUNS.glob("*/summary.json"):
        try:
            about = summary.read(file.parent)
        except (OSError, ValueError):
            continue
        alike = about.get("status") == "finished" and about.get("world_size") == jobs[0].devices
        if alike and about["steps_per_second"]:
            speeds.append(1 / about["steps_per_second"])
            beside.append(_whole_seconds(file.parent, about) - float(about["train_seconds"]))
    if not speeds or not steps:
        return None, ""
    seconds = statistics.median(speeds) * statistics.fmean(steps) + statistics.median(beside)
    return seconds, f"{len(speeds)} runs of as many workers in {RUNS}"


def _whole_seconds(run: Path, about: dict[str, Any]) -> float:
    """What a run took from its start to its end, evaluation too: between the files that it wrote first and last. Of one
    that was interrupted, what it trained."""
    try:
        written = (run / "summary.json").stat().st_mtime - (run / "config.yaml").stat().st_mtime
    except OSError:
        written = 0.0
    trained = float(about["train_seconds"] or 0.0)
    return START + (written if trained <= written <= 3 * trained + 300 else trained)
