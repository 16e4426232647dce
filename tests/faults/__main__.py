"""Faults, counted: `make faults` (about an hour on 2 cores), `make faults ARGS="--trials 1000"` for the whole table.

Starts small runs under every preset, does one thing to each (a signal to the main process, one worker or the group,
at any moment from the first import to the last write; a full disk; a damaged or foreign checkpoint; text that is gone;
W&B's process killed; a mutated configuration), and counts whether what docs/reliability.md promises held: it leaves in
time with the right exit code, leaves nothing behind, resumes to the same bits, executes no payload, says one line.

    --only SIGKILL,checkpoint    faults whose names begin so
    --trial 17 --seed 0          this one alone, what it printed shown
    --system lightning           the same signals to the same model under Trainer(strategy="ddp")

Trial k of a seed always is the same. Exit code 0 if every trial held, 1 if not, 2 for a mistake on the command line.
"""

import argparse
import os
import shlex
import signal
import sys
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).parents[2] / "src"))

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from tests.faults.outcome import Ledger, Outcome
from tests.faults.plan import Trial, trial, trials

AN_HOUR = 400  # trials
console = Console(stderr=True, highlight=False)


def positive(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} must be at least 1")
    return int(text)


def command_line(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser("faults", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add = parser.add_argument
    add("--trials", type=positive, default=AN_HOUR, help=f"how many ({AN_HOUR})")
    add("--seed", type=int, default=0, help="of everything that is drawn (0)")
    add("--trial", type=int, help="only this one")
    add("--only", default="", help="names of faults, or their beginnings, separated by commas")
    add("--jobs", type=positive, default=2, help="trials at a time (2)")
    add("--system", choices=("ticks", "lightning"), default="ticks")
    add("--out", type=Path, help="write the table here as well")
    add("--work", type=Path, help="where runs lie, and uninterrupted ones and outcomes are kept: the next time it goes"
        " on behind them (default: a temporary directory)")  # fmt: skip
    chosen = parser.parse_args(arguments)
    only = tuple(name.strip() for name in chosen.only.split(",") if name.strip())
    if chosen.trial is not None:
        chosen.planned, chosen.jobs = [trial(chosen.trial, chosen.seed, chosen.system)], 1
    else:
        chosen.planned = trials(chosen.trials, chosen.seed, only, chosen.system)
    if not chosen.planned:
        parser.error(f"--only {chosen.only}: no fault has such a name")
    return chosen


def main(arguments: list[str]) -> int:
    chosen = command_line(arguments)
    from tests.faults.table import failure, markdown

    command = shlex.join(["python", "-m", "tests.faults", *arguments])
    with _work_directory(chosen.work) as root, _progress() as progress:
        ledger = Ledger(root / "outcomes.jsonl")
        known = ledger.read(chosen.planned) if chosen.trial is None else {}
        outcomes = list(known.values())
        task = progress.add_task(
            "", total=len(chosen.planned), completed=len(known), held=sum(o.held for o in outcomes)
        )
        left = [planned for planned in chosen.planned if planned not in known]
        for outcome in _until_interrupted(results(left, root, jobs=chosen.jobs, show=chosen.trial is not None)):
            outcomes.append(outcome)
            ledger.write(outcome)
            progress.update(task, advance=1, held=sum(o.held for o in outcomes))
            if not outcome.held:
                progress.console.print(failure(outcome), markup=False, soft_wrap=True)
            if chosen.out:  # as far as it is: an hour is long
                chosen.out.write_text(markdown(outcomes, command))
    print(markdown(outcomes, command), end="")
    complete = len(outcomes) == len(chosen.planned)
    return 0 if complete and all(o.held for o in outcomes) else 1


def _until_interrupted(outcomes: Iterator[Outcome]) -> Iterator[Outcome]:
    """What has been measured counts, however it ends."""
    try:
        yield from outcomes
    except KeyboardInterrupt:
        console.print("interrupted: the table holds what was measured until then")
    except BrokenProcessPool:
        console.print("a process of this program was killed by somebody else: the table holds what was measured before")


@contextmanager
def _work_directory(chosen: Path | None) -> Iterator[Path]:
    if chosen is not None:
        yield chosen
        return
    with tempfile.TemporaryDirectory(prefix="ticks-faults-", ignore_cleanup_errors=True) as name:
        yield Path(name)


def _progress() -> Progress:
    return Progress(
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[held]} held"),
        TimeElapsedColumn(),
        TextColumn("left:"),
        TimeRemainingColumn(elapsed_when_finished=False),
        console=console,
    )


def results(planned: Iterable[Trial], root: Path, *, jobs: int, show: bool = False) -> Iterator[Outcome]:
    """Every trial's outcome, as they come. Processes are forked once torch is imported, before there are threads."""
    import lightning.pytorch  # noqa: F401
    import torch
    import torchmetrics  # noqa: F401

    torch.set_num_threads(1)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # like Ctrl-C: what was started is ended
    with ProcessPoolExecutor(jobs, mp_context=get_context("fork")) as pool:
        futures: list[Future[Outcome]] = [pool.submit(_one, t, root, show) for t in planned]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _one(planned: Trial, root: Path, show: bool) -> Outcome:
    from tests.faults.trials import run_trial

    try:
        return run_trial(planned, root, show=show)
    except KeyboardInterrupt:  # its run has been ended; the pool would go on with the next trial
        os._exit(130)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
