"""Jobs side by side: each exactly once, whatever ends before its time."""

import os
import re
import shlex
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPOSITORY, Command, run_command
from ticks.config import ConfigError
from ticks.jobs import Outcome
from ticks.run_directory import locked
from ticks.sweep import pool as pools
from ticks.sweep.folder import Planned, claimed, plan
from ticks.sweep.pool import gpus_of, in_words, threads

# a program that trains as long as it is told to: it leaves what a run leaves, and a line in the file `done` per job
PROGRAM = """
import json, os, signal, sys, time
from pathlib import Path
told = dict(a.split("=", 1) for a in sys.argv[1:])
run = Path(told.get("run_dir") or told["resume"])
run.mkdir(parents=True, exist_ok=True)
def leave(status, code, **more):
    about = {"status": status, "measure": "loss", "better": "lower", "val_loss": 1.5, "train_seconds": 2.0}
    (run / "summary.json").write_text(json.dumps(about | more))
    if file := os.environ.get("TICKS_TOLD"):
        Path(file).write_text(json.dumps({"run_dir": str(run.resolve()), "message": "it was told to"}))
    sys.exit(code)
signal.signal(signal.SIGTERM, lambda *_: leave("stopped", 143))
print(sys.argv[1:], "threads", os.environ.get("OMP_NUM_THREADS"), os.environ.get("WANDB_RUN_GROUP"),
      os.environ.get("WANDB_TAGS"), flush=True)
(run / "config.yaml").write_text("x: 1")
leave_at = Path("begun")
with leave_at.open("a") as file:
    file.write(run.name + (" again" if "resume" in told else "") + "\\n")
if told.get("b") == "wait" and "resume" not in told:
    time.sleep(60)
time.sleep(float(told.get("s", 0)))
if told.get("b") == "fail":
    leave("failed", 7)
if told.get("b") == "nan":
    leave("diverged", 1)
with Path("done").open("a") as file:
    file.write(run.name + "\\n")
leave("finished", 0)
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "train.py").write_text(PROGRAM)
    return tmp_path


def sweep(home: Path, values: str, *more: str, **options: Any) -> tuple[int, str]:
    (home / "grid.yaml").write_text(f"method: grid\nparameters: {{b: {{values: [{values}]}}}}\n")
    return run_command(home, "sweep", "grid.yaml", *more, program="ticks", env={"COLUMNS": "120"}, **options)


def rows(output: str) -> list[list[str]]:
    return [
        cells[:3]
        for line in output.splitlines()
        if len(cells := line.split()) > 3 and cells[0].isdigit() and "=" in cells[1]
    ]


def lines(file: Path) -> list[str]:
    return file.read_text().split("\n")[:-1] if file.exists() else []


def test_a_failed_job_ends_nothing_but_itself_and_what_is_done_is_skipped(home: Path) -> None:
    code, output = sweep(home, "1, fail, nan, 4", "c=5")
    assert code == 1, output
    assert rows(output) == [
        ["1", "b=1", "finished"], ["2", "b=fail", "failed"], ["3", "b=nan", "diverged"], ["4", "b=4", "finished"]
    ]  # fmt: skip
    assert "job 2 failed: it was told to" in output
    assert "Traceback" not in output
    assert len(lines(home / "begun")) == 4
    folder = home / "logs" / "sweeps" / "grid"
    (text,) = folder.glob("b-4_*.txt")
    assert "['b=4', 'c=5', 'run_dir=logs/sweeps/grid/b-4_" in text.read_text()
    code, again = sweep(home, "1, fail, nan, 4", "c=5")
    assert code == 1  # one has diverged, and would again
    assert [row[2] for row in rows(again)] == ["finished", "finished", "diverged", "finished"]
    for said in (output, again):
        assert re.search(r"3 +b=nan +diverged +- ", said), "what a diverged job came to is nothing"
    begun = lines(home / "begun")
    assert len(begun) == 5  # the failed one alone, from where it was
    assert begun[-1].startswith("b-fail_")
    assert begun[-1].endswith(" again")
    code, other = sweep(home, "1, fail, nan, 4", "c=6")
    assert len(lines(home / "begun")) == 9, other


def test_a_changed_sweep_keeps_what_it_shares_with_the_old_one(home: Path) -> None:
    code, output = sweep(home, "1, 4", "c=5")
    assert code == 0, output
    (home / "wider.yaml").write_text("method: grid\nparameters: {b: {values: [1, 4]}, c: {values: [5, 6]}}\n")
    code, output = run_command(home, "sweep", "wider.yaml", "dir=logs/sweeps/grid", program="ticks")
    assert code == 0, output
    names = [name.rpartition("_")[0] for name in lines(home / "begun")]
    assert names == ["b-1", "b-4", "b-1_c-6", "b-4_c-6"], (
        "another key is swept: jobs have another name, and are the same"
    )


@pytest.mark.parametrize("at_once", [1, 2])
def test_a_signal_stops_what_runs_with_its_checkpoint_and_a_second_call_goes_on(at_once: int, home: Path) -> None:
    (home / "grid.yaml").write_text("method: grid\nparameters: {b: {values: [wait, 2, 3]}}\n")
    arguments = ("sweep", "grid.yaml", f"jobs={at_once}", "s=0.3")
    command = Command(home, *arguments, program="ticks", env={"COLUMNS": "120"})
    deadline = time.monotonic() + 30
    while len(lines(home / "done")) < (at_once - 1) * 2 or not lines(home / "begun"):
        assert time.monotonic() < deadline, command.output
        time.sleep(0.05)
    command.process.terminate()
    assert command.end(20) == 143, command.output
    assert rows(command.output)[0] == ["1", "b=wait", "stopped"]
    if at_once == 1:
        assert f"2 of 3 jobs never started; to go on with what is not finished: ticks {shlex.join(arguments)}" in (
            command.output
        )
    assert "Traceback" not in command.output
    code, output = run_command(home, *arguments, program="ticks", env={"COLUMNS": "120"})
    assert code == 0, output
    assert [row[2] for row in rows(output)] == ["finished"] * 3
    assert sorted(name.partition("_")[0] for name in lines(home / "done")) == ["b-2", "b-3", "b-wait"]


def test_killed_and_started_again_each_job_is_done_exactly_once(home: Path) -> None:
    (home / "grid.yaml").write_text("method: grid\nparameters: {b: {values: [1, 2, 3, 4, 5, 6]}}\n")
    command = Command(home, "sweep", "grid.yaml", "jobs=2", "s=0.5", program="ticks")
    deadline = time.monotonic() + 30
    while len(lines(home / "done")) < 2:
        assert time.monotonic() < deadline, command.output
        time.sleep(0.02)
    os.kill(command.process.pid, signal.SIGKILL)
    command.process.join()
    time.sleep(0.7)  # its jobs go with it: nothing is done that nobody waits for
    assert len(lines(home / "done")) <= 4
    code, output = run_command(home, "sweep", "grid.yaml", "jobs=2", "s=0.5", program="ticks")
    assert code == 0, output
    done = lines(home / "done")
    assert len(done) == len(set(done)) == 6, done


def test_two_sweeps_in_one_folder_do_not_take_each_others_jobs(home: Path) -> None:
    (home / "grid.yaml").write_text("method: grid\nparameters: {b: {values: [1, 2, 3, 4, 5, 6]}}\n")
    commands = [Command(home, "sweep", "grid.yaml", "s=0.3", program="ticks") for _ in range(2)]
    assert [command.end(60) for command in commands] == [0, 0]
    begun = lines(home / "begun")
    assert len(begun) == len(set(begun)) == 6, begun
    assert sorted(begun) == sorted(lines(home / "done"))


def test_the_end_is_told_by_what_jobs_took(home: Path) -> None:
    code, output = sweep(home, "1, 2, 3")
    assert code == 0, output
    lines = [line for line in output.splitlines() if line.startswith("[")]
    assert [bool(re.search(r": finished, val_loss 1\.5000; about .+ left$", line)) for line in lines] == [
        True,
        True,
        False,
    ]
    pool = pools.Pool(home / "train.py", at_once=2)
    assert pool.left(6) is None
    pool._seconds = [10.0, 20.0]
    pool.outcomes = {1: Outcome([], "finished"), 2: Outcome([], "failed"), 3: Outcome([], "elsewhere")}
    assert pool.left(6) == 15.0 * 4 / 2


def test_jobs_run_at_once_share_the_processors_and_have_names_on_wandb(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS")
    code, output = sweep(home, "1, 2", "jobs=2")
    assert code == 0, output
    texts = [file.read_text() for file in (home / "logs" / "sweeps" / "grid").glob("*.txt")]
    share = str(pools.threads(2, None))
    assert sorted(text.split()[-4:] for text in texts) == [["threads", share, "grid", f"b={b}"] for b in (1, 2)]


def test_a_group_of_ones_own_stays_and_tags_are_added(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_RUN_GROUP", "mine")
    monkeypatch.setenv("WANDB_TAGS", "paper")
    assert sweep(home, "1")[0] == 0
    (text,) = (home / "logs" / "sweeps" / "grid").glob("*.txt")
    assert text.read_text().split()[-1] == "paper,b=1"


def test_a_place_may_have_any_name_but_a_files(home: Path) -> None:
    code, output = sweep(home, "1", "dir=lr=0.1,a (b)")
    assert code == 0, output
    (said,) = (home / "lr=0.1,a (b)").glob("b-1_*.txt")
    assert "run_dir='lr=0.1,a (b)/b-1_" in said.read_text()
    (home / "file").touch()
    code, output = sweep(home, "1", "dir=file")
    assert (code, "error: nothing can be written to dir=file: " in output, "Traceback" in output) == (2, True, False)


def test_what_still_writes_its_checkpoint_is_waited_for(tmp_path: Path) -> None:
    """Its pool was killed, and it is not yet through."""
    job = Planned(["a=1"], "abc", tmp_path / "a")
    job.directory.mkdir()
    with locked(job.directory), claimed(job) as mine:
        assert not mine
    with claimed(job) as mine:
        assert mine


def test_threads_are_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools.os, "sched_getaffinity", lambda _: set(range(16)))
    assert [threads(n, workers) for n, workers in ((1, 1), (2, 4), (4, None), (8, 4))] == [16, 2, 4, 1]


def test_gpus_are_shared_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(pools, "GPUS", tmp_path / "none")
    assert gpus_of(0, 2) is None
    monkeypatch.setattr(pools, "GPUS", tmp_path)
    for name in "abcde":
        (tmp_path / name).mkdir()
    assert [gpus_of(slot, 2) for slot in range(2)] == ["0,1", "2,3"]
    assert gpus_of(0, 8) is None
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7,3,5")
    assert [gpus_of(slot, 3, 1) for slot in range(3)] == ["7", "3", "5"]
    assert gpus_of(0, 3, 2) is None, "a job of two workers needs two"


def test_what_was_swept_is_a_tag_each_beside_those_of_the_environment(home: Path) -> None:
    (home / "grid.yaml").write_text("method: grid\nparameters: {a.b: {values: ['[1,2]']}, s: {value: 0}}\n")
    code, output = run_command(home, "sweep", "grid.yaml", program="ticks", env={"WANDB_TAGS": "mine"})
    assert code == 0, output
    (said,) = (home / "logs" / "sweeps" / "grid").glob("*.txt")
    assert said.read_text().split()[-1] == "mine,b=[1;2]"  # W&B takes a comma for the end of a tag


def test_a_claim_is_one_processs_at_a_time_and_goes_with_it(tmp_path: Path) -> None:
    job = Planned(["a=1"], "abc", tmp_path / "a")
    with claimed(job) as first, claimed(job) as second:
        assert (first, second) == (True, False)
    with claimed(job) as again:
        assert again


def test_equal_jobs_are_one(tmp_path: Path) -> None:
    (tmp_path / "train.py").touch()
    jobs = plan([["a=1"], ["a=2"], ["a=1"]], ["a"], tmp_path, tmp_path / "train.py")
    assert [job.overrides for job in jobs] == [["a=1"], ["a=2"]]
    assert len({job.directory for job in jobs}) == 2


def test_the_plan_is_shown_without_running_anything(home: Path) -> None:
    code, output = sweep(home, "1, 2, 3", "dry=true")
    assert code == 0
    assert output.count(" new ") == 3
    assert "3 jobs in logs/sweeps/grid, 3 to be done: nothing is known yet" in output
    assert not (home / "logs").exists()
    sweep(home, "1, fail", "dry=false")
    code, output = sweep(home, "1, fail, 3", "dry=true", "jobs=2")
    assert [line.split()[1] for line in output.splitlines()[:3]] == ["finished", "interrupted", "new"]
    assert "2 to be done: about 10 s, 2 at once, by its own 1 that are finished" in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give a sweep file"),
        (["jobs=0"], "jobs=0 must be a whole number of at least 1"),
        (["jobs=two"], "jobs=two must be a whole number"),
        (["dry=maybe"], "dry=maybe must be true or false"),
        (["count=3"], "count=3: grid.yaml is a grid"),
        (["other.yaml"], "'other.yaml' is no KEY=VALUE"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], message: str, home: Path) -> None:
    (home / "grid.yaml").write_text("method: grid\nparameters: {b: {values: [1]}}\n")
    file = ["grid.yaml"] if arguments else []
    code, output = run_command(home, "sweep", *file, *arguments, program="ticks")
    assert (code, output.count("\n")) == (2, 1), output
    assert message in output


def test_a_mistake_in_any_job_is_found_before_the_first_begins(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown key 'modle'"):
        plan([["model.d_model=8"], ["modle=ln"]], ["modle"], tmp_path, REPOSITORY / "train.py")
    with pytest.raises(ConfigError, match="run_dir=x: each job of a sweep has a directory of its own"):
        plan([["run_dir=x"]], [], tmp_path, REPOSITORY / "train.py")
    assert not list(tmp_path.glob("*_*"))


def test_time_is_told_in_words() -> None:
    assert [in_words(seconds) for seconds in (3, 100, 600, 7300)] == ["3 s", "2 min", "10 min", "2 h 02 min"]
