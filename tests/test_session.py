"""What surrounds a run: signals outside training, what workers say when they fail, workers whose parent is gone."""

import ctypes
import errno
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import time
from datetime import timedelta
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, Command, free_port, only_run, run_command, run_workers
from tests.test_shutdown import gone
from ticks import job, jobs, session, signals, train
from ticks.config import ConfigError
from ticks.job import Job
from ticks.session import Failures
from ticks.strategy import launch, meeting

QUIET = ("debug=fast", "test=false", "task.sample_bytes=0", "callbacks=none", "trainer.max_steps=4",
         "trainer.limit_val_batches=1")  # fmt: skip

CALLBACKS = """
    import os, signal, time
    from lightning.pytorch import Callback
    from lightning.pytorch.utilities.exceptions import MisconfigurationException

    class Fails(Callback):
        def __init__(self, how: str, ranks: list):
            self.how, self.ranks = how, ranks
        def on_train_start(self, trainer, module):
            if self.how == "busy" and trainer.global_rank not in self.ranks:
                time.sleep(8)
            if trainer.global_rank in self.ranks:
                raise {
                    "mistake": MisconfigurationException("it wants a logger"),
                    "bug": KeyError("a bug"),
                    "socket": RuntimeError("the socket of my own database is gone"),
                    "busy": RuntimeError("the socket of my own database is gone"),
                    "memory": RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 4096000000 bytes"),
                }[self.how]

    class Deaf(Callback):  # waits where no handler of Python's runs
        def on_fit_start(self, trainer, module):
            print("deaf now", flush=True)
            from tests.test_session import wait_in_c
            wait_in_c()
"""


def wait_in_c() -> None:
    """For ever, where no handler runs and no signal but one that kills ends it: a lock that is held already."""
    c, lock = ctypes.CDLL(None), ctypes.create_string_buffer(128)
    c.pthread_mutex_init(lock, None)
    c.pthread_mutex_lock(lock)
    c.pthread_mutex_lock(lock)


def with_callbacks(directory: Path) -> dict[str, str]:
    (directory / "their_callbacks.py").write_text(textwrap.dedent(CALLBACKS))
    return {"PYTHONPATH": str(directory)}


def said(output: str) -> list[str]:
    """The lines of ours: torch 2.8's gloo counts its peers on stdout, two processes in one line now and then."""
    return [line for line in output.splitlines() if "peer ranks" not in line and not re.fullmatch(r"[\d ]*", line)]


def failing(directory: Path, how: str, ranks: str, workers: int) -> tuple[int, str]:
    sys.path.insert(0, str(directory))  # the forked command finds it there, its workers through PYTHONPATH
    try:
        with_callbacks(directory)
        bad = f"+callbacks.bad={{_target_: their_callbacks.Fails, how: {how}, ranks: {ranks}}}"
        return run_command(directory, *QUIET, f"trainer.devices={workers}", "data.global_batch_size=12", bad)
    finally:
        sys.path.remove(str(directory))
        sys.modules.pop("their_callbacks", None)


def test_a_mistake_that_one_worker_finds_is_one_line_with_its_number(tmp_path: Path) -> None:
    code, output = failing(tmp_path, "mistake", "[1]", workers=2)
    assert code == 2, output
    assert said(output)[3:] == ["error: worker 1: it wants a logger"]


def test_a_mistake_that_all_workers_find_is_told_once(tmp_path: Path) -> None:
    code, output = failing(tmp_path, "mistake", "[0,1]", workers=2)
    assert code == 2, output
    assert said(output)[3:] == ["error: it wants a logger"]


def test_a_bug_on_one_worker_is_its_own_first_line_then_one_trace(tmp_path: Path) -> None:
    code, output = failing(tmp_path, "bug", "[1,2]", workers=3)
    assert code == 1, output
    lines = [line for line in said(output)[3:] if not line.startswith("ticks: worker 0 waits")]  # a busy machine
    assert lines[0] in ("error: workers 1, 2: KeyError: 'a bug'", "error: worker 1: KeyError: 'a bug'",
                        "error: worker 2: KeyError: 'a bug'"), output  # fmt: skip
    assert output.count("Traceback") == 1, output
    assert "gloo" not in output
    assert "Connection" not in output


def test_worker_0_shows_every_text_once_with_who_said_it(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for rank, text in ((1, "no space"), (2, "no time"), (3, "no space")):
        Failures(tmp_path).report(rank, text, exit_code=2)
    of_worker_0 = Failures(tmp_path)
    of_worker_0.told.add("no time")
    assert of_worker_0.tell()
    assert of_worker_0.exit_code == 2
    assert capfd.readouterr().err == "error: workers 1, 3: no space\n"
    assert not of_worker_0.tell()


def test_a_broken_connection_is_shown_where_nothing_else_was_said(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    Failures(tmp_path).report(1, "RuntimeError: NCCL error: unhandled cuda error", broken=True)
    Failures(tmp_path).report(2, "KeyError: 'a bug'")
    of_worker_0 = Failures(tmp_path)
    assert of_worker_0.tell()
    assert capfd.readouterr().err == "error: worker 2: KeyError: 'a bug'\n"
    assert of_worker_0.tell(broken=True)
    assert capfd.readouterr().err == "error: worker 1: RuntimeError: NCCL error: unhandled cuda error\n"


def test_a_bug_that_reads_like_a_broken_connection_is_shown(tmp_path: Path) -> None:
    code, output = failing(tmp_path, "socket", "[1]", workers=2)
    assert code == 1, output
    assert said(output)[3] == "error: worker 1: RuntimeError: the socket of my own database is gone"
    assert output.count("Traceback") == 1, output


def test_a_bug_is_shown_though_worker_0_is_busy_until_everything_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "GRACE_SECONDS", 1.0)
    code, output = failing(tmp_path, "busy", "[1]", workers=2)
    assert code == 1, output
    assert "error: worker 1: RuntimeError: the socket of my own database is gone" in output
    assert "ticks: worker 1 ended with exit code 1; ending the other workers" in output


def test_out_of_memory_is_one_line(tmp_path: Path) -> None:
    code, output = failing(tmp_path, "memory", "[0,1]", workers=2)
    assert code == 1, output
    (line,) = said(output)[3:]
    assert line.startswith("error: out of memory: ")
    assert "data.global_batch_size" in line


def test_no_directory_is_left_of_a_run_that_never_began(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(job: Job) -> None:
        Path(job.run_dir).mkdir()
        raise KeyError("before anything was written")

    monkeypatch.setattr(train, "run", fails)
    with pytest.raises(KeyError):
        train._do(lambda: Job("fit", {}, {}, str(tmp_path / "run"), ""))
    assert not list(tmp_path.iterdir())


def test_a_temporary_directory_that_is_full_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setenv("TMPDIR", "/small")
    monkeypatch.setattr(Path, "write_text", full)
    message = "TMPDIR=/small cannot be used: No space left on device"
    with pytest.raises(ConfigError, match=message), jobs.scratch_directory({"job.json": "{}"}):
        pass


def test_a_handler_of_cs_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    before, real = signal.getsignal(signal.SIGHUP), signal.getsignal
    monkeypatch.setattr(signal, "getsignal", lambda signum: None if signum == signal.SIGHUP else real(signum))
    with signals.acting_on_signals(lambda *_: None):
        assert real(signal.SIGHUP) == before
    assert real(signal.SIGHUP) == before


@pytest.mark.parametrize("module", ["ticks.__main__", "ticks.signals"])
def test_signals_can_be_taken_before_anything_else_is_imported(module: str) -> None:
    code = (
        f"import {module}, sys; print(sorted({{'hydra', 'omegaconf', 'rich', 'yaml', 'torch'}} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_program_of_anybodys_is_tied_to_its_parent_before_it_begins(tmp_path: Path) -> None:
    """A worker of a foreign script imports torch for seconds before it could tie itself."""
    ready = tmp_path / "ready"
    child = f"import time; open({str(ready)!r}, 'w').close(); time.sleep(60)"
    code = f"""
import os, subprocess, sys, time
from ticks.strategy.identity import Identity
from ticks.strategy.parent import ended_with_parent
me = Identity("worker", 1, 1, 0, 2, process=os.getpid())
command = ended_with_parent([sys.executable, "-S", "-c", {child!r}])
pid = subprocess.Popen(command, env=os.environ | me.to_environment()).pid
while not os.path.exists({str(ready)!r}):
    time.sleep(0.01)
print(pid, flush=True)
os._exit(0)"""
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True, timeout=30)
    deadline = time.monotonic() + 10
    stat = Path("/proc") / done.stdout.strip() / "stat"
    while stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_worker_of_a_thread_that_ends_lives_on_and_ends_with_the_process(tmp_path: Path) -> None:
    child = f"""
import time
from ticks.strategy.parent import end_with_parent
end_with_parent()
open({str(tmp_path / "ready")!r}, "w").close()
time.sleep(60)"""
    code = f"""
import os, subprocess, sys, threading, time
from ticks.strategy.identity import Identity
me = Identity("worker", 1, 1, 0, 2, process=os.getpid(), by_main_thread=False)
children = []
def start():
    children.append(subprocess.Popen([sys.executable, "-c", {child!r}], env=os.environ | me.to_environment()))
    while not os.path.exists({str(tmp_path / "ready")!r}):
        time.sleep(0.01)
thread = threading.Thread(target=start)
thread.start()
thread.join()
time.sleep(1.5)
print(children[0].pid, children[0].poll(), flush=True)
os._exit(0)"""
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, timeout=30)
    pid, code_of_child = done.stdout.split()
    assert code_of_child == "None"
    deadline = time.monotonic() + 5
    stat = Path("/proc") / pid / "stat"
    while stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.02)


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_sigkill_of_the_main_process_during_start_up_leaves_nothing(tmp_path: Path) -> None:
    command = Command(tmp_path, *QUIET, "trainer.devices=3", "data.global_batch_size=12", fresh=True)
    command.wait_for("tokens per step")
    deadline = time.monotonic() + 30
    while len(children(command.process.pid or 0)) < 2:
        assert time.monotonic() < deadline, command.output
        time.sleep(0.01)
    began = time.monotonic()
    os.kill(command.process.pid or 0, signal.SIGKILL)  # its workers are importing torch
    assert command.end(20) == -9
    gone(command, began, within=10)


def test_sigkill_of_the_main_process_ends_a_stopped_worker_too(tmp_path: Path) -> None:
    command = Command(
        tmp_path, *QUIET, "trainer.devices=2", "trainer.max_steps=100000", "trainer.val_check_interval=1000000"
    )
    command.wait_for_step(10)
    os.kill(command.workers()[1], signal.SIGSTOP)
    began = time.monotonic()
    os.kill(command.process.pid or 0, signal.SIGKILL)
    assert command.end(20) == -9
    gone(command, began, within=10)


def takes(pid: int, signum: int) -> bool:
    """Whether a process has a handler for a signal."""
    caught = re.search(r"SigCgt:\s*(\w+)", Path(f"/proc/{pid}/status").read_text())
    return bool(caught and int(caught[1], 16) >> (signum - 1) & 1)


def test_ctrl_c_between_a_directory_and_a_run_in_it_leaves_none_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While lightning is imported, say."""

    def imports(job: Job) -> None:
        assert Path(job.run_dir).is_dir()
        print("imports", flush=True)
        time.sleep(60)

    monkeypatch.setattr(train, "run", imports)
    command = Command(tmp_path, *QUIET)
    command.wait_for("imports")
    os.kill(command.process.pid or 0, signal.SIGINT)
    assert command.end(10) == 130
    assert command.output.splitlines() == ["imports", "stopped by SIGINT before anything was done"]
    assert not list((tmp_path / "logs" / "runs").iterdir()), command.output


def test_ctrl_c_between_a_directory_and_what_is_to_be_done_in_it_leaves_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def plain(config: object) -> None:
        print("plans", flush=True)
        time.sleep(60)

    monkeypatch.setattr(job, "plain", plain)
    command = Command(tmp_path, *QUIET)
    command.wait_for("plans")
    assert len(list((tmp_path / "logs" / "runs").iterdir())) == 1
    os.kill(command.process.pid or 0, signal.SIGINT)
    assert command.end(10) == 130
    assert command.output.splitlines() == ["plans", "stopped by SIGINT before anything was done"]
    assert not list((tmp_path / "logs" / "runs").iterdir())


def test_no_directory_is_left_where_a_run_waits_in_c_before_it_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loads(session: object) -> None:
        print("loads", flush=True)
        wait_in_c()

    monkeypatch.setattr(signals, "LEAVE_SECONDS", 1.0)
    monkeypatch.setattr(session.Session, "go", loads)
    command = Command(tmp_path, *QUIET)
    command.wait_for("loads")
    assert len(list((tmp_path / "logs" / "runs").iterdir())) == 1
    os.kill(command.process.pid or 0, signal.SIGINT)
    assert command.end(10) == 130
    assert "stopped by SIGINT while waiting: everything was left at once" in command.output
    assert not list((tmp_path / "logs" / "runs").iterdir())


def test_an_impatient_second_ctrl_c_leaves_a_true_summary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(run: object) -> None:
        print("ends workers", flush=True)
        time.sleep(60)

    monkeypatch.setattr(session.Session, "_end_workers", slow)
    command = Command(tmp_path, *QUIET, "trainer.max_steps=100000", "trainer.val_check_interval=100000")
    command.wait_for_step(1)
    os.kill(command.process.pid or 0, signal.SIGINT)
    command.wait_for("ends workers")
    os.kill(command.process.pid or 0, signal.SIGINT)
    assert command.end(20) == 130
    assert "stopped by SIGINT after step" in command.output
    assert '"status": "stopped"' in (only_run(tmp_path) / "summary.json").read_text()


@pytest.mark.workers
@pytest.mark.parametrize("seconds", [0.0, 0.5, 4.0])
def test_ctrl_c_during_start_up_leaves_without_a_trace(seconds: float, tmp_path: Path) -> None:
    program = (
        f"import runpy; print('now', flush=True); runpy.run_path({str(REPOSITORY / 'train.py')!r}, None, '__main__')"
    )
    command = subprocess.Popen(
        [sys.executable, "-c", program, *QUIET, "trainer.devices=2"],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # background jobs ignore it
    )  # fmt: skip
    assert command.stdout is not None
    assert command.stdout.readline() == "now\n"
    while not takes(command.pid, signal.SIGTERM):  # the first import is done
        assert command.poll() is None, command.stdout.read()
        time.sleep(0.001)
    time.sleep(seconds)
    began = time.monotonic()
    os.killpg(command.pid, signal.SIGINT)
    output, _ = command.communicate(timeout=30)
    assert command.returncode == 130, output
    assert "Traceback" not in output, output
    assert time.monotonic() - began < 10
    runs = list((tmp_path / "logs" / "runs").iterdir()) if (tmp_path / "logs" / "runs").exists() else []
    assert all((run / "config.yaml").exists() for run in runs)  # none that is empty
    assert not runs or "stopped by SIGINT" in output


def test_a_signal_leaves_though_the_process_waits_where_no_handler_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signals, "LEAVE_SECONDS", 1.0)
    sys.path.insert(0, str(tmp_path))
    with_callbacks(tmp_path)
    try:
        command = Command(tmp_path, *QUIET, "trainer.devices=2", "+callbacks.deaf._target_=their_callbacks.Deaf")
        command.wait_for("deaf now")
    finally:
        sys.path.remove(str(tmp_path))
    began = time.monotonic()
    os.killpg(command.process.pid or 0, signal.SIGTERM)
    assert command.end(20) == 143, command.output
    gone(command, began, within=10)
    assert '"status": "stopped"' in (only_run(tmp_path) / "summary.json").read_text()


def test_a_run_that_is_through_stays_finished_whatever_holds_its_end_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def deaf(session: object) -> None:
        print("ends workers", flush=True)
        wait_in_c()

    monkeypatch.setattr(signals, "LEAVE_SECONDS", 0.5)
    monkeypatch.setattr(session.Session, "_end_workers", deaf)
    command = Command(tmp_path, *QUIET, "trainer.max_steps=2")
    command.wait_for("ends workers")
    os.kill(command.process.pid or 0, signal.SIGTERM)
    assert command.end(70) == 143
    assert '"status": "finished"' in (only_run(tmp_path) / "summary.json").read_text()


LEFT_BEHIND = [
    {"SLURM_JOB_NAME": "bash", "SLURM_JOB_ID": "77", "SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0",
     "SLURM_NODEID": "0", "RANK": "0"},
    {"LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "5", "MASTER_ADDR": "10.255.255.1", "MASTER_PORT": "1"},
]  # fmt: skip


@pytest.mark.parametrize("environ", LEFT_BEHIND, ids=lambda environ: next(iter(environ)))
def test_variables_that_a_launcher_left_behind_change_nothing(environ: dict[str, str], tmp_path: Path) -> None:
    code, output = run_command(tmp_path, *QUIET, "trainer.devices=2", env=environ)
    assert code == 0, output
    assert "2 worker(s)" in output
    assert "in the environment, but no launcher that set it: not believed" in output


@pytest.mark.parametrize("name", ["RANK", "LOCAL_RANK", "SLURM_PROCID"])
def test_a_rank_that_is_no_number_is_one_line(name: str, tmp_path: Path) -> None:
    """Lightning reads it when it is imported, and so fails of it."""
    for program, arguments in (("train.py", QUIET), ("ticks", ("generate", "run=x"))):
        code, output = run_command(tmp_path, *arguments, program=program, env={name: "x"})
        assert (code, output) == (2, f"error: {name}=x in the environment must be a whole number\n")


def test_a_world_size_that_is_not_the_trainers_is_refused(tmp_path: Path) -> None:
    by_hand = {"LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    code, output = run_command(tmp_path, *QUIET, "trainer.devices=2", env=by_hand)
    assert code == 2, output
    assert "wants 2 workers (devices x num_nodes), but there are 3: WORLD_SIZE=3 in the environment" in output
    assert len(output.splitlines()) == 1


def test_several_nodes_need_to_be_told_where_to_meet(tmp_path: Path) -> None:
    code, output = run_command(tmp_path, *QUIET, "trainer.num_nodes=2")
    assert code == 2, output
    assert output.splitlines() == [
        "error: trainer.num_nodes=2 but NODE_RANK, MASTER_ADDR, MASTER_PORT not set: start one process on each node"
        " with NODE_RANK, MASTER_ADDR and MASTER_PORT, or use torchrun or srun"
    ]


def test_a_port_in_use_is_one_line(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        node = {"NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        code, output = run_command(tmp_path, *QUIET, "trainer.num_nodes=2", env=node)
    assert code == 2, output
    assert output.splitlines()[-1] == f"error: MASTER_PORT={port} is in use on this machine: choose another one"
    assert "Traceback" not in output


def test_a_worker_that_waits_for_a_worker_0_that_is_not_there_can_be_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(meeting, "PATIENCE", 0.5)
    nobody = {"LOCAL_RANK": "0", "RANK": "1", "NODE_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
              "MASTER_PORT": "1"}  # fmt: skip
    command = Command(tmp_path, *QUIET, "trainer.devices=1", "trainer.num_nodes=2", env=nobody)
    command.wait_for("worker 1 waits for worker 0 at 127.0.0.1:1 (MASTER_ADDR, MASTER_PORT)", 60)
    began = time.monotonic()
    command.process.terminate()
    assert command.end(20) == 143, command.output
    assert time.monotonic() - began < 5
    assert "Traceback" not in command.output


def test_a_worker_0_that_accepts_and_says_nothing_is_given_up() -> None:
    """One that is stopped: torch waits for its first words without an end."""
    with socket.socket() as stopped:
        stopped.bind(("127.0.0.1", 0))
        stopped.listen()
        began = time.monotonic()
        with pytest.raises(meeting.NoMeeting, match=r"worker 1 waits for worker 0 .* nothing for 1 s"):
            meeting.join("127.0.0.1", stopped.getsockname()[1], timedelta(seconds=1), who="worker 1")
        assert time.monotonic() - began < 8


@pytest.mark.parametrize(("said", "used"), [(None, meeting.RESOLVER), ("timeout:9", "timeout:9")])
def test_a_lost_question_for_a_name_is_asked_again_soon(said: str | None, used: str) -> None:
    """torch asks for the name of each end of a connection."""

    def options() -> str:
        os.environ.pop("RES_OPTIONS", None)
        os.environ |= {} if said is None else {"RES_OPTIONS": said}
        meeting.host(0, timedelta(seconds=5))
        return os.environ["RES_OPTIONS"]

    assert run_workers(1, options) == [used]


def test_worker_0_does_not_go_by_the_name_that_others_find_it_under(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If that is another machine's, torch would wait for it, where no signal is heard."""
    monkeypatch.setattr(meeting, "PATIENCE", 0.5)
    by_hand = {"LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "10.255.255.1",
               "MASTER_PORT": str(free_port())}  # fmt: skip
    command = Command(tmp_path, *QUIET, "trainer.devices=2", env=by_hand)
    command.wait_for("worker 0 waits for the other workers, 2 in all", 60)
    meeting.join("127.0.0.2", int(by_hand["MASTER_PORT"]), timedelta(seconds=5), who="worker 1")  # by any name of its
    began = time.monotonic()
    command.process.terminate()
    assert command.end(20) == 143, command.output
    assert time.monotonic() - began < 5


SNIPPET = """
import torch
from lightning.pytorch import LightningModule, Trainer
from ticks.strategy import TickStrategy
class Net(LightningModule):
    def __init__(self): super().__init__(); self.layer = torch.nn.Linear(4, 1)
    def training_step(self, batch, batch_idx): return self.layer(batch[0]).square().mean()
    def configure_optimizers(self): return torch.optim.SGD(self.parameters(), lr=0.1)
    def train_dataloader(self):
        return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.randn(8, 4)))
def train(n):
    trainer = Trainer(strategy=TickStrategy(2), accelerator="cpu", devices=n, max_steps=4, logger=False,
                      enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
    trainer.fit(Net()); print(f"steps {trainer.strategy.step}\\n", end="", flush=True)
"""


NO_SCRIPT = f"{SNIPPET}\ntry: train(2)\nexcept ValueError as error: print('refused:', error)\ntrain(1)"


def test_python_c_trains_with_one_worker_and_says_what_several_need(tmp_path: Path) -> None:
    code, output = run_command(tmp_path, NO_SCRIPT, program="-c")
    assert code == 0, output
    assert "steps 4" in output
    assert "refused: several workers are started by running this script again, and this is none" in output


@pytest.mark.workers
def test_so_does_a_notebook(tmp_path: Path) -> None:
    """Lightning looks for the prompt when it is imported."""
    code = f"import sys; sys.ps1 = '>>> '\n{NO_SCRIPT}"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert "steps 4" in done.stdout, done.stdout + done.stderr
    assert "refused: several workers are started by running this script again, and this is none" in done.stdout


def test_a_second_trainer_of_a_script_finds_the_workers_there(tmp_path: Path) -> None:
    script = tmp_path / "twice.py"
    script.write_text(f"{SNIPPET}\nif __name__ == '__main__':\n    train(2); train(2)\n")
    command = Command(tmp_path, program=str(script))
    assert command.end() == 0, command.output
    assert command.output.count("steps 4") in (3, 4), command.output  # the other one ends with worker 0
    assert command.output_file.with_suffix(".workers").read_text().count("\n") == 1  # one other was started, once
