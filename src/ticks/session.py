"""What surrounds a run on one worker: who it is, the lock, signals, what other workers fail of, and the exit code."""

import json
import os
import signal
import sys
import time
import traceback
from contextlib import ExitStack, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from ticks import jobs
from ticks.arguments import with_path
from ticks.config import ConfigError, is_out_of_memory
from ticks.job import Job, identity_of, relative
from ticks.run_directory import discard_if_empty, locked
from ticks.signals import leaving_on_signals
from ticks.strategy.exits import STOPS
from ticks.strategy.identity import RANKS, Identity, WrongLauncher, tasks_of_a_shell, unbelieved

if TYPE_CHECKING:
    from ticks.run import Run

USER_MISTAKE = 2  # exit code


def die(error: Exception, code: int = USER_MISTAKE) -> NoReturn:
    """Leave with one line."""
    print(f"error: {error}", file=sys.stderr, flush=True)
    raise SystemExit(code) from error


def run(job: Job, jobfile: Path | None = None) -> dict[str, Any] | None:
    """Do `job` on this worker, worker 0 starting the others; worker 0's summary, or None in eval mode's others.

    `jobfile` is where the process that started this one has written the job, and reads what its workers fail of.

    Exits (SystemExit) with 1 after a failure and 128 + signal after an agreed stop. ConfigError for user mistakes.
    """
    from ticks.strategy.launch import restored_environment

    with ExitStack() as stack:
        stack.enter_context(restored_environment())
        me = identity_of(job.config)
        left_behind = unbelieved(os.environ, int(job.config["trainer"].get("num_nodes") or 1))
        if told := [f"{name}={os.environ[name]}" for name in RANKS if name in left_behind]:
            print(f"note: {' '.join(told)} in the environment, but no launcher that set it: not believed", flush=True)
        if me.launcher == "own" and (tasks := tasks_of_a_shell(os.environ)):
            print(f"note: SLURM speaks of {tasks} tasks, but of an interactive shell: not believed; if srun has started"
                  f" {tasks} of these, name the job: srun --job-name=train ...", flush=True)  # fmt: skip
        for name in left_behind:
            del os.environ[name]
        if jobfile is None:
            scratch = jobs.scratch_directory({"job.json": json.dumps(asdict(job))})
            jobfile = stack.enter_context(scratch) / "job.json"
        session = Session(job, jobfile, me)
        stack.enter_context(leaving_on_signals(agreed=session.is_training, give_up=session.give_up))
        if me.rank == 0 and job.mode == "fit":
            Path(job.run_dir).mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(Path(job.run_dir)))
        return session.go()


class Session:
    """One run on this worker, from its first import to its exit code."""

    def __init__(self, job: Job, jobfile: Path, me: Identity) -> None:
        self.job = job
        self.jobfile = jobfile
        self.me = me
        self.failures = Failures(jobfile.parent)
        self.is_zero = me.rank == 0
        self.run_dir = Path(job.run_dir)
        self.run: Run | None = None  # once everything is imported
        self.agreed_end = False  # whether the other workers end by themselves

    def go(self) -> dict[str, Any] | None:
        """Do the run. However it ends, it has a true summary, its workers are gone, and a failure is told once."""
        exit_code = 1
        try:
            from ticks.run import Run

            self.run = Run(self.job, self.me, self._worker_command())
            self.run.assemble()
            self._listen_to_workers()
            result = self.run.fit() if self.job.mode == "fit" else self.run.evaluate()
            exit_code, self.agreed_end = 0, True
            return result
        except SystemExit as left:  # a signal: agreed in training, else where there is nothing to be agreed
            exit_code = left.code or 1  # type: ignore[assignment]
            self._say_stopped(left)
            raise
        except Exception as error:
            self._tell(error)
            raise
        finally:
            if exit_code:
                self._keep_summary()
            self._end_workers()
            if (wandb := sys.modules.get("ticks.record.wandb")) is not None:
                wandb.finish(exit_code)

    def _worker_command(self) -> list[str]:
        """What starts workers 1 .. n - 1."""
        return [sys.executable, "-m", f"{__package__}.train", str(self.jobfile)]

    def _listen_to_workers(self) -> None:
        if (launcher := self._launcher()) is not None:
            launcher.last_words = self._last_words

    def _last_words(self) -> None:
        """Before everything is ended because a worker has: called from a thread, worker 0 waits somewhere."""
        launcher = self._launcher()
        if launcher is not None and not self.failures.tell() and not launcher.killed():
            self.failures.tell(broken=True)
        if launcher is not None and launcher.signum:
            self._mark_stopped()
            self._say(launcher.signum)
        self._keep_summary()

    def _keep_summary(self) -> None:
        """As things stand, if there is one to keep."""
        if self.run is not None and self.run.began and self.run.status != "finished":
            with suppress(OSError):  # what could not be written may be this; the failure itself has been told
                self.run.summarise()

    @property
    def _is_child(self) -> bool:
        """Whether another process of this run started this one, and tells what it fails of."""
        return self.me.launcher == "worker"

    def is_training(self) -> bool:
        """Whether stopping is the workers' affair, to be agreed between steps."""
        return self.run is not None and self.run.is_training

    def _mark_stopped(self) -> None:
        if self.run is not None and self.run.status != "finished":
            self.run.status = "stopped"

    def give_up(self, signum: int) -> None:
        """Called from a thread where a signal has ended nothing: leave things as they stand, but no process behind."""
        self._mark_stopped()
        self._keep_summary()
        if (launcher := self._launcher()) is not None:
            launcher.kill_all()
        if self.is_zero:
            discard_if_empty(self.run_dir, is_mine=True)
            print(f"stopped by {signal.Signals(signum).name} while waiting: everything was left at once", flush=True)

    # ---- the end

    def _say_stopped(self, left: SystemExit) -> None:
        from ticks.strategy.shutdown import Stopped

        self._mark_stopped()
        where = ""
        if isinstance(left, Stopped) and self.run is not None and self.job.mode == "fit":
            self.agreed_end = left.checkpoint is not None  # by all workers, after the same step
            newest = left.checkpoint or self.run.newest_checkpoint()
            self.run.checkpoint = relative(Path(newest)) if newest else None
            where = f" after step {left.step}" + (f", checkpoint {self.run.checkpoint}" if newest else "")
            self._keep_summary()  # before anybody reads that it is over
        if (signum := next((signum for signum in STOPS if left.code == 128 + signum), None)) is not None:
            self._say(signum, where)

    def _say(self, signum: int, where: str = "") -> None:
        if not self.is_zero:
            return
        if self.job.mode == "fit" and self.run is not None and self.run.began:
            where += f"; continue with: python train.py resume={self.run_dir}"
        elif self.job.mode == "fit":
            where += " before training began"
        print(f"stopped by {signal.Signals(signum).name}{where}", flush=True)

    def _tell(self, error: Exception) -> None:
        """Leave with one line for what is no bug, or for what happened to another worker; return for a stack trace."""
        from lightning.pytorch.utilities.exceptions import MisconfigurationException

        from ticks.strategy.checkpoint import CheckpointNotWritten
        from ticks.strategy.launch import NoScript
        from ticks.strategy.meeting import NoMeeting
        from ticks.strategy.refusals import Refused
        from ticks.strategy.shared_facts import NonFiniteLoss
        from ticks.strategy.wire import OutOfStep

        if isinstance(error, NonFiniteLoss) and self.run is not None:
            self.run.status = "diverged"
        if isinstance(error, NonFiniteLoss | CheckpointNotWritten):
            self._fail(error, 1, all_know=True)
        if isinstance(error, OutOfStep | Refused):
            self._fail(ConfigError(with_path("strategy", error)), USER_MISTAKE, all_know=True)
        within = self.run is not None and self.run.has_trained  # where a configuration is no longer to blame
        if isinstance(error, MisconfigurationException) and not within:
            self._fail(error, USER_MISTAKE)
        if isinstance(error, NoMeeting | NoScript | WrongLauncher):
            self._fail(error, USER_MISTAKE)
        if isinstance(error, ConfigError):
            if self._is_child:
                self._fail(error, USER_MISTAKE)
            return
        if is_out_of_memory(error):
            self._fail(MemoryError(f"out of memory: {error}; data.global_batch_size, data.eval_batch_size,"
                                   " data.block_size and the model decide how much it takes"), 1)  # fmt: skip
        if isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError):
            began = self.run is not None and self.run.began
            again = f"; resume with: python train.py resume={self.run_dir}" if began else ""
            self._fail(OSError(f"{error}{again}"), 1)  # the disk is full, say
        self._explain(error)

    def _fail(self, error: Exception, exit_code: int, *, all_know: bool = False) -> NoReturn:
        """Leave with one line, said once for all workers; `all_know`: every worker fails of the same."""
        if self._is_child:
            self.failures.report(self.me.rank, str(error), exit_code=exit_code)
        elif self.is_zero or not self.me.started_by_others:
            self.failures.told.add(str(error))
            die(error, exit_code)
        elif not all_know:
            die(ConfigError(f"worker {self.me.rank}: {error}"), exit_code)
        sys.exit(exit_code)

    def _explain(self, error: Exception) -> None:
        """Before a stack trace: a line instead, where what happened to another worker is all there is to tell."""
        from ticks.strategy.launch import WorkerDied

        words = ("connection", "gloo", "nccl", "timed out", "socket")
        text = f"{type(error).__name__}: {error}"
        broken = isinstance(error, RuntimeError) and any(word in str(error).lower() for word in words)
        broken = broken or isinstance(error, WorkerDied)
        if self._is_child:
            self.failures.report(self.me.rank, text, trace=traceback.format_exc(), broken=broken)
            sys.exit(1)
        if not self.is_zero:
            print(f"error: worker {self.me.rank}: {text}", file=sys.stderr, flush=True)
            if broken:
                sys.exit(1)
        launcher = self._launcher()
        if not broken or launcher is None:
            self.failures.told.add(text)
            return
        deadline = time.monotonic() + 3
        while launcher.dead is None and time.monotonic() < deadline:
            time.sleep(0.1)
        if self.failures.tell():
            raise SystemExit(self.failures.exit_code) from RuntimeError(self.failures.last)
        if launcher.signum:
            self._mark_stopped()
            self._say(launcher.signum)
            sys.exit(128 + launcher.signum)
        if not launcher.killed() and self.failures.tell(broken=True):
            raise SystemExit(self.failures.exit_code) from RuntimeError(self.failures.last)
        if dead := launcher.killed() or launcher.dead:
            die(RuntimeError(f"{dead}; resume with: python train.py resume={self.run_dir}"), 1)

    def _launcher(self) -> Any:
        """The one that started this machine's other workers, if it was built yet."""
        from ticks.strategy.launch import WorkerLauncher

        launcher = self.run.launcher if self.run is not None else None
        return launcher if isinstance(launcher, WorkerLauncher) else None

    def _end_workers(self) -> None:
        """Leave no process and no process group behind, and nothing untold that one of them failed of."""
        if (launcher := self._launcher()) is not None:
            launcher.wait(20 if self.agreed_end else 1)
            launcher.kill_all()
        if not self._is_child:
            self.failures.tell()
        import torch.distributed as dist

        if dist.is_initialized():
            dist.destroy_process_group()


class Failures:
    """What the workers of one machine say when they fail: each writes a file, worker 0 shows every text once.

    So a failure reaches the terminal as a line of its own, before what it leads to elsewhere, and not once per worker.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.told: set[str] = set()
        self.last, self.exit_code = "", 1  # of the last one told

    def report(self, rank: int, text: str, *, trace: str = "", exit_code: int = 1, broken: bool = False) -> None:
        """On the worker that failed; `broken` if it may only be what happened to another one."""
        about = {"rank": rank, "text": text, "trace": trace, "exit_code": exit_code, "broken": broken}
        scratch = self.directory / f".{rank}"
        scratch.write_text(json.dumps(about))
        scratch.replace(self.directory / f"failed-{rank}.json")

    def tell(self, *, broken: bool = False) -> bool:
        """On worker 0: show what has not been shown; whether there was anything. Broken connections only if asked for:
        where nothing else was said, one of them is the cause."""
        found: dict[str, list[dict[str, Any]]] = {}
        for file in sorted(self.directory.glob("failed-*.json")):
            failure = json.loads(file.read_text())
            if failure["text"] not in self.told and failure["broken"] == broken:
                found.setdefault(failure["text"], []).append(failure)
        for text, failures in found.items():
            who = ", ".join(str(failure["rank"]) for failure in failures)
            print(f"error: worker{'s' * (len(failures) > 1)} {who}: {text}", file=sys.stderr, flush=True)
            if failures[0]["trace"]:
                print(failures[0]["trace"], file=sys.stderr, flush=True)
            self.told.add(text)
            self.last = text
            self.exit_code = failures[0]["exit_code"]
        return bool(found)
