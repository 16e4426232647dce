"""Many runs: none ends another, signals reach the one that runs, and a table says what became of each."""

import json
import math
import multiprocessing as mp
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPOSITORY, run_command
from ticks import jobs, train
from ticks.config import ConfigError
from ticks.job import Job
from ticks.jobs import Outcome, for_sweeper, record, run_job, show, signals_afterwards, told
from ticks.record import summary

PYTHON = os.path.realpath(sys.executable)  # starts fast: no site-packages are needed


def python(code: str) -> list[str]:
    return [PYTHON, "-S", "-c", code]


# ---- one job -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_is_passed_on_once_and_waited_for(
    signum: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = f"""
import signal, sys, time
came = []
signal.signal({signum}, lambda *_: came.append(1))
open({str(tmp_path / "ready")!r}, "w").close()
while not came:
    time.sleep(0.01)
time.sleep(0.5)  # a checkpoint
open({str(tmp_path / "saved")!r}, "w").write(str(len(came)))
sys.exit(128 + {signum})
"""

    def interrupt() -> None:
        while not (tmp_path / "ready").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signum)

    monkeypatch.setattr(signal, "SIG_IGN", object())  # a shell's background jobs and nohup ignore some of them
    before = signal.getsignal(signum)
    threading.Thread(target=interrupt).start()
    outcome = run_job(python(code), ["a=1"])
    assert (outcome.status, outcome.code) == ("stopped", 128 + signum)
    assert (tmp_path / "saved").read_text() == "1"
    assert signal.getsignal(signum) == before


def test_a_signal_that_comes_while_a_job_starts_is_passed_on_once(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[int] = []

    class Interrupted(subprocess.Popen):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            os.kill(os.getpid(), signal.SIGTERM)  # its handler runs now, or once signals are not blocked any more

        def send_signal(self, signum: int) -> None:
            sent.append(signum)
            super().send_signal(signum)

    monkeypatch.setattr(subprocess, "Popen", Interrupted)
    for deaf in (False, True):
        code = "import signal, time; signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM]); time.sleep(30)"
        outcome = run_job(python(code), [], deaf=deaf)
        assert (outcome.status, outcome.code, outcome.asked) == ("stopped", 143, signal.SIGTERM)
        assert sent == [signal.SIGTERM]
        sent.clear()


def test_a_job_that_was_through_when_all_were_asked_to_stop_is_finished(tmp_path: Path) -> None:
    code = f"""
import os, signal, time
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
os.kill({os.getpid()}, signal.SIGTERM)
time.sleep(30)"""
    outcome = run_job(python(code), [])
    assert (outcome.status, outcome.code, outcome.asked) == ("finished", 0, signal.SIGTERM)


def test_a_signal_between_two_jobs_loses_no_outcome() -> None:
    kept = []

    def job_and_its_record() -> None:
        with signals_afterwards():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)
            kept.append("outcome")

    with pytest.raises(SystemExit, match="143"):
        job_and_its_record()
    assert kept


def test_a_job_that_cannot_be_started_has_failed_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = train._in_a_process

    def full(job: Job, overrides: list[str]) -> jobs.Outcome:
        if "seed=1" in overrides:
            raise ConfigError("nothing can be written to TMPDIR")
        return started(job, overrides)

    monkeypatch.setattr(train, "_in_a_process", full)
    code, output = run_command(tmp_path, "-m", "debug=fast", "trainer.max_steps=1", "test=false", "seed=1,2")
    assert code == 1, output
    assert "Traceback" not in output
    assert "job 0 failed: nothing can be written to TMPDIR" in output
    assert output.count("finished") == 1


def test_a_signal_behind_a_job_keeps_its_outcome(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped_late(job: Job, overrides: list[str]) -> jobs.Outcome:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.05)
        return jobs.Outcome(overrides, "finished", measure=1.5, measured="loss")

    monkeypatch.setattr(train, "_in_a_process", stopped_late)
    code, output = run_command(tmp_path, "-m", "debug=fast", "seed=1,2")
    assert code == 143, output
    assert re.search(r"0 +seed=1 +finished +1.5000", output), output
    assert "never started: job 1" in output


def test_a_directory_that_was_refused_is_none_of_the_jobs(tmp_path: Path) -> None:
    path = os.pathsep.join(filter(None, sys.path))
    code = f"from ticks.jobs import tell; tell(run_dir={str(tmp_path / 'gone')!r})"
    assert run_job([sys.executable, "-c", code], [], env={"PYTHONPATH": path}).run_dir is None


def test_ctrl_c_before_a_job_is_awake_leaves_without_a_trace(tmp_path: Path) -> None:
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text("program: train.py\nmethod: grid\nparameters: {seed: {values: [1, 2]}}\n")
    (tmp_path / "train.py").write_text("import time\ntime.sleep(30)\n")
    for seconds in (0.0, 0.03, 0.06):
        command = subprocess.Popen(
            [sys.executable, "-u", "-m", "ticks", "sweep", str(sweep)], cwd=tmp_path, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )  # fmt: skip
        deadline = time.monotonic() + 30
        while not (written := [*tmp_path.glob("logs/sweeps/sweep/*.txt")]) and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(seconds)
        os.kill(command.pid, signal.SIGINT)
        output, _ = command.communicate(timeout=20)  # the job alone would take longer
        assert command.returncode == 130, output
        said = output + written[0].read_text()
        assert "ticks/strategy" not in said, said  # a program of somebody else's may have a trace of its own
        written[0].unlink()


def test_what_outlived_a_job_is_none() -> None:
    """A variable that was left behind: its job is gone, and so would this process be."""
    code = "import os; from ticks.strategy.parent import end_with_parent as e; e(); print('TICKS_JOB_OF' in os.environ)"
    gone = subprocess.Popen(["true"])
    gone.wait()
    env = os.environ | {"TICKS_JOB_OF": str(gone.pid)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "False\n")
    as_a_job = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, start_new_session=True)
    assert as_a_job.returncode == -signal.SIGTERM


def test_a_deaf_job_starts_with_signals_blocked_and_others_do_not() -> None:
    code = "import signal, sys; sys.exit(len(signal.pthread_sigmask(signal.SIG_BLOCK, [])))"
    assert [run_job(python(code), [], deaf=deaf).code for deaf in (True, False)] == [3, 0]


def test_a_terminals_ctrl_c_reaches_a_job_through_its_parent_alone() -> None:
    code = "import os, sys; sys.exit(os.getsid(0) == int(sys.argv[1]) or os.getpgid(0) == int(sys.argv[2]))"
    assert run_job([*python(code), str(os.getsid(0)), str(os.getpgid(0))], []).status == "finished"


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import os; os.kill(os.getpid(), 9)", "the process was killed by SIGKILL without a word"),
        ("import os; os._exit(7)", "the process ended with exit code 7 without a word"),
    ],
)
def test_a_job_that_dies_has_failed_and_says_how(code: str, message: str) -> None:
    outcome = run_job(python(code), [])
    assert (outcome.status, outcome.message) == ("failed", message)


def test_a_killed_parent_leaves_no_job_behind(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    code = f"""
import os, time
from ticks.strategy.parent import end_with_parent
end_with_parent()
open({str(pid)!r}, "w").write(str(os.getpid()))
time.sleep(60)"""
    env = {"PYTHONPATH": str(REPOSITORY / "src")}
    parent = mp.get_context("fork").Process(target=run_job, args=(python(code), []), kwargs={"env": env})
    parent.start()
    while not (pid.exists() and pid.read_text()):
        time.sleep(0.01)
    parent.kill()
    parent.join()
    deadline = time.monotonic() + 10
    stat = Path("/proc") / pid.read_text() / "stat"
    while stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_job_does_not_share_its_parents_wandb_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_RUN_ID", "of-another-run")
    assert run_job(python("import os, sys; sys.exit('WANDB_RUN_ID' in os.environ)"), []).status == "finished"


def _dies_of(error: BaseException) -> None:
    with told():
        try:
            raise error
        except BaseException as cause:
            raise SystemExit(1) from cause


def test_what_a_job_came_to_is_known_where_it_was_started(tmp_path: Path) -> None:
    summary.write(tmp_path, {"status": "finished", "measure": "accuracy", "better": "higher", "val_accuracy": 0.75})
    path = os.pathsep.join(filter(None, sys.path))
    code = f"from ticks.jobs import tell; tell(run_dir={str(tmp_path)!r})"
    outcome = run_job([sys.executable, "-c", code], ["a=1"], env={"PYTHONPATH": path})
    measured = {"measure": 0.75, "measured": "accuracy", "better": "higher"}
    assert outcome == Outcome(["a=1"], "finished", run_dir=str(tmp_path), **measured)


def test_why_a_job_failed_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TICKS_TOLD", str(tmp_path / "told.json"))
    for error, message in (
        (ValueError("lr=-1 must not\nbe negative"), "lr=-1 must not be negative"),
        (RuntimeError("worker 1 was killed"), "worker 1 was killed"),
    ):
        with pytest.raises(SystemExit):
            _dies_of(error)
        assert json.loads((tmp_path / "told.json").read_text())["message"] == message
    with pytest.raises(KeyError), told():  # nobody caught it
        raise KeyError("loss")
    assert json.loads((tmp_path / "told.json").read_text())["message"] == "KeyError: 'loss'"


def test_a_sweeper_learns_the_measure_or_the_worst_there_is() -> None:
    assert for_sweeper(Outcome([], "finished", measure=1.5)) == 1.5
    assert for_sweeper(Outcome([], "finished")) is None
    assert for_sweeper(Outcome([], "failed")) == math.inf  # Optuna aborts at nan, and learns nothing from None
    assert for_sweeper(Outcome([], "stopped", code=143)) == math.inf  # somebody stopped this one alone
    with pytest.raises(SystemExit, match="143"):
        for_sweeper(Outcome([], "stopped", code=143, asked=15))


def test_a_job_that_is_stopped_alone_was_not_asked_for_all() -> None:
    outcome = run_job(python("import os; os.kill(os.getpid(), 15)"), [])
    assert (outcome.status, outcome.code, outcome.asked) == ("stopped", 143, None)


# ---- the table ---------------------------------------------------------------------------------------------------


def test_the_table_is_readable_at_80_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)
    same = ["debug=fast", "logger=csv"]
    runs = tmp_path / "logs" / "runs"
    show(
        {
            1: Outcome(
                [*same, "optimizer.lr=1"], "failed", message="[bold] it was nan", run_dir=f"{runs}/2026-01-02_ticks"
            ),
            2: Outcome(
                [*same, "model.adapter.width=32", "strategy.clock.interval=128", "data.path=[a]"], "finished", 1.25
            ),
            3: Outcome([*same, "optimizer.lr=2"], "stopped", run_dir=f"{runs}/2026-01-03_a b", code=143),
            4: Outcome([*same, "optimizer.lr=3"]),
        }
    )
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert "…" not in out
    assert "all jobs: debug=fast logger=csv" in lines
    assert "runs in logs/runs" in lines
    rows = [line.split() for line in lines]
    assert ["1", "optimizer.lr=1", "failed", "-", "2026-01-02_ticks"] in rows
    assert ["2", "model.adapter.width=32", "finished", "1.2500", "-"] in rows
    assert "data.path=[a]" in out
    assert max(map(len, lines[: lines.index("job 1 failed: [bold] it was nan")])) <= 80
    assert "job 3 was stopped; go on with it: python train.py 'resume=logs/runs/2026-01-03_a b'" in lines
    assert lines[-1] == "never started: job 4; start each with its overrides"


# ---- train.py -m -------------------------------------------------------------------------------------------------


def test_a_failed_job_ends_nothing_but_itself(tmp_path: Path) -> None:
    code, output = run_command(
        tmp_path, "debug=fast", "test=false", "task.sample_bytes=0", "callbacks=none", "trainer.max_steps=4",
        "-m", "optimizer.lr=1e30,1e-3", seconds=150,
    )  # fmt: skip
    assert code == 1, output
    (sweep,) = (tmp_path / "logs" / "multiruns").iterdir()
    statuses = [json.loads((sweep / job / "summary.json").read_text())["status"] for job in "01"]
    assert statuses == ["diverged", "finished"]
    cells = [line.split() for line in output.splitlines()]
    rows = [row[1:3] for row in cells if row and row[0] in "01"]
    assert rows == [["optimizer.lr=1e+30", "failed"], ["optimizer.lr=0.001", "finished"]]
    assert "job 0 failed: worker 0's training loss was" in output
    assert "Traceback" not in output


FAKE_SWEEPER = """
from hydra.plugins.sweeper import Sweeper
from hydra.core.plugins import Plugins
from ticks import jobs, train

class Fake(Sweeper):
    '''Launches one job after the other, and says what it learned of each.'''
    def __init__(self, n): self.n = n
    def setup(self, *, hydra_context, task_function, config):
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config)
        self.config = config
    def sweep(self, arguments):
        for i in range(self.n):
            (job,) = self.launcher.launch([[f"seed={-1 if i == 2 else i}"]], initial_job_idx=i)
            print("learned", job.return_value)

def run_job(command, overrides, **options):
    seed = int(overrides[-1].removeprefix("seed="))
    if seed == 3:
        return jobs.Outcome(overrides, "stopped", code=143, asked=15)
    return jobs.Outcome(overrides, "failed", message="nan") if seed == 1 else jobs.Outcome(overrides, "finished", 0.5)

jobs.run_job = run_job
"""


@pytest.mark.parametrize(("n", "code", "learned"), [(3, 1, ["0.5", "inf", "inf"]), (5, 143, ["0.5", "inf", "inf"])])
def test_another_sweeper_learns_what_became_of_each_job(n: int, code: int, learned: list[str], tmp_path: Path) -> None:
    plugin = tmp_path / "plugins" / "hydra_plugins"
    plugin.mkdir(parents=True)
    (plugin / "fake.py").write_text(FAKE_SWEEPER)
    (tmp_path / "configs" / "hydra" / "sweeper").mkdir(parents=True)
    (tmp_path / "configs" / "hydra" / "sweeper" / "fake.yaml").write_text(
        f"_target_: hydra_plugins.fake.Fake\nn: {n}\n"
    )
    for entry in (REPOSITORY / "configs").iterdir():
        (tmp_path / "configs" / entry.name).symlink_to(entry)
    program = f"from pathlib import Path; from ticks.train import main; main(Path({str(tmp_path / 'configs')!r}))"
    path = os.pathsep.join([str(plugin.parent), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-c", program, "-m", "hydra/sweeper=fake", "seed=0,1"],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    assert [line.split()[1] for line in done.stdout.splitlines() if line.startswith("learned")] == learned
    assert "job 1 failed: nan" in done.stdout
    assert "job 2 failed: seed=-1 must be a whole number" in done.stdout  # found before a process was started


def test_an_outcome_without_a_multirun_around_it_is_not_kept() -> None:
    record(0, Outcome([]))
