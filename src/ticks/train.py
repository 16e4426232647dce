"""The straight line of a run: compose -> check -> build -> fit -> test -> summary.

`main` is what train.py calls. It checks the configuration before torch is imported and leaves the rest to a `Job`:
plain data that says what to do, handed as it is to every worker, so that all of them do the same. Workers that this
process starts run `python -m ticks.train JOBFILE`; under torchrun each makes the same Job from the same command.
"""

import json
import math
import os
import signal
import sys
import time
import traceback
from argparse import Namespace
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ticks import jobs
from ticks.config import (
    ConfigError,
    build,
    check_keys,
    check_sweep,
    check_targets,
    check_values,
    compose_strictly,
    is_out_of_memory,
    with_home_directory,
)
from ticks.config.hydra import flags
from ticks.job import Job, identity_of, planned_job, relative, resumed_job
from ticks.run_directory import check_here, discard_if_empty, locked
from ticks.session import Failures, acting_on_signals, leave_on_signals, leaving_on_signals
from ticks.strategy.exits import STOPS
from ticks.strategy.identity import RANKS, SIZES, Identity, WrongLauncher, tasks_of_a_shell, unbelieved
from ticks.strategy.parent import end_with_parent
from ticks.terminal import forgive
from ticks.usage import usage

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

USER_MISTAKE = 2  # exit code
OTHER_CONFIGURATIONS = (
    "config_name",
    "config_path",
    "config_dir",
    "experimental_rerun",
    "shell_completion",
    "hydra_help",
)


def main(config_dir: Path) -> None:
    """The command line of train.py. Exit code 0; 2 for a mistake in it; 1 for a failure, also of one job of several;
    128 + signal if stopped."""
    end_with_parent()
    forgive()
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # no C++ stack traces when a worker ends
    with jobs.told():
        _forget_launchers()
        _main([with_home_directory(argument) for argument in sys.argv[1:]], config_dir)


def _main(arguments: list[str], config_dir: Path) -> None:
    asked = flags().parse_intermixed_args(arguments)
    if asked.help:
        print(usage(config_dir))
        return
    sys.argv[1:] = asked.overrides + [a for a in arguments if a not in asked.overrides]  # Hydra wants them together
    many = asked.multirun or "hydra.mode=MULTIRUN" in asked.overrides
    known: list[list[str]] = []
    try:
        check_here()
        resume = {a.partition("=")[2] for a in arguments if a.startswith("resume=")} - {"auto", "null", ""}
        if resume and asked.overrides == arguments:  # the run's configuration counts, not this tree's
            _do(resumed_job(Path(resume.pop()), arguments))
            return
        _check_flags(asked)
        if not any(getattr(asked, flag) for flag in OTHER_CONFIGURATIONS):
            if many:
                known = check_sweep(asked.overrides, config_dir)
            else:
                compose_strictly(asked.overrides, config_dir, place="hydra.run.dir")
    except ConfigError as error:
        _die(error)
    start = hydra.main(version_base="1.3", config_path=str(config_dir.resolve()), config_name="train")(_hydra_job)
    try:
        with jobs.multirun(known) if many else nullcontext():
            start()
    except (HydraException, OmegaConfBaseException, ValueError) as error:  # of Hydra's flags: jobs' own end in Hydra
        _die(ConfigError(str(error).splitlines()[0]))


def _forget_launchers() -> None:
    """Variables that configs/trainer ask for count only if what set them is there."""
    try:
        left_behind = unbelieved(os.environ)
    except WrongLauncher as error:
        _die(error)
    for name in set(SIZES).intersection(left_behind):
        del os.environ[name]


def _die(error: Exception, code: int = USER_MISTAKE) -> NoReturn:
    print(f"error: {error}", file=sys.stderr, flush=True)
    raise SystemExit(code) from error


def _check_flags(asked: Namespace) -> None:
    """ConfigError for flags of Hydra's that it would answer with a stack trace."""
    one_of = {"--multirun": asked.multirun, "--cfg": asked.cfg, "--info": asked.info, "-sc": asked.shell_completion}
    if len(given := [flag for flag, value in one_of.items() if value]) > 1:
        raise ConfigError(f"{', '.join(given)}: only one of them can be given")
    if asked.config_dir and not Path(asked.config_dir).is_dir():
        raise ConfigError(f"--config-dir {asked.config_dir}: there is no such directory")
    if asked.shell_completion and not any(o.startswith(("install=", "uninstall=", "query=")) for o in asked.overrides):
        raise ConfigError("--shell-completion needs install=SHELL or uninstall=SHELL: bash, fish or zsh")


def _hydra_job(config: DictConfig) -> float | None:
    """One job of Hydra's: a single run here, or one of several in a process of its own; what a sweeper learns of it."""
    about = HydraConfig.get()
    many = about.mode == RunMode.MULTIRUN
    try:
        check_keys(config, config)
        check_values(config)
        job = planned_job(config)
        if not many:
            _do(job)
            return None
    except ConfigError as error:
        if not many:
            _die(error)
        print(f"error: {error}", file=sys.stderr, flush=True)
        outcome = jobs.Outcome(list(about.overrides.task), "failed", message=str(error), code=USER_MISTAKE)
        jobs.record(about.job.num, outcome)
    else:
        with jobs.signals_afterwards():  # an outcome is kept before one ends everything
            outcome = _in_a_process(job, list(about.overrides.task))
            jobs.record(about.job.num, outcome)
    return jobs.for_sweeper(outcome)


def _in_a_process(job: Job, overrides: list[str]) -> jobs.Outcome:
    with jobs.scratch_directory({"job.json": json.dumps(asdict(job))}) as folder:
        path = os.pathsep.join(entry for entry in sys.path if entry)
        command = [sys.executable, "-m", "ticks.jobs", str(folder / "job.json")]
        place = HydraConfig.get().runtime.cwd
        return jobs.run_job(command, overrides, env={"PYTHONPATH": path}, directory=place, deaf=True)


def planned(jobfile: Path) -> None:
    """The entry of a multirun's job."""
    _do(Job(**json.loads(jobfile.read_text())))


def _do(job: Job) -> None:
    """Run `job` in this process. However it ends, no empty directory is left behind."""
    run_dir = Path(job.run_dir)
    jobs.tell(run_dir=str(run_dir.resolve()))

    def leave(signum: int, frame: Any) -> NoReturn:  # nothing has begun: what takes time is imported
        discard_if_empty(run_dir)
        print(f"stopped by {signal.Signals(signum).name} before anything was done", flush=True)
        os._exit(128 + signum)

    try:
        with acting_on_signals(leave):
            run(job)
    except ConfigError as error:
        _die(error)
    finally:
        discard_if_empty(run_dir)


# ---- one run -----------------------------------------------------------------------------------------------------


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
        this = _Run(job, jobfile, me)
        stack.enter_context(leaving_on_signals(agreed=this.is_training, give_up=this.give_up))
        if me.rank == 0 and job.mode == "fit":
            Path(job.run_dir).mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(Path(job.run_dir)))
        return this.go()


def _first(results: Any) -> dict[str, float]:
    """The metrics of an evaluation, {} if it was switched off; `step` only told the loggers where they belong."""
    return {name: value for name, value in results[0].items() if name != "step"} if results else {}


class _Run:
    """What the steps of one run share."""

    def __init__(self, job: Job, jobfile: Path, me: Identity) -> None:
        self.job = job
        self.jobfile = jobfile
        self.failures = Failures(jobfile.parent)
        self.me = me
        self.config = OmegaConf.create(job.config)
        self.is_zero = me.rank == 0
        self.run_dir = Path(job.run_dir)
        self.before: dict[str, float] | None = None
        self.status = "failed"
        self.checkpoint: str | None = None  # the last one written when the run ended
        self.began = False  # whether this worker has a summary to keep
        self.agreed_end = False  # whether the other workers end by themselves

    def go(self) -> dict[str, Any] | None:
        from lightning.pytorch.utilities.exceptions import MisconfigurationException

        from ticks.record import wandb
        from ticks.strategy.launch import NoScript
        from ticks.strategy.meeting import NoMeeting
        from ticks.strategy.shutdown import Stopped
        from ticks.strategy.strategy import NonFiniteLoss
        from ticks.strategy.wire import OutOfStep
        from ticks.strategy.workers import CheckpointNotWritten, Refused

        exit_code = 1
        try:
            self.build()
            result = self.fit() if self.job.mode == "fit" else self.evaluate()
            exit_code, self.agreed_end = 0, True
            return result
        except Stopped as stop:
            exit_code, self.status = stop.code, "stopped"  # type: ignore[assignment]
            self.agreed_end = stop.checkpoint is not None
            self.checkpoint = relative(Path(stop.checkpoint)) if stop.checkpoint else None
            self._keep_summary()  # before anybody reads that it is over
            self._say_stopped(stop)
            raise
        except SystemExit as left:  # a signal where there is nothing to be agreed
            exit_code, self.status = left.code or 1, "stopped"  # type: ignore[assignment]
            self._say_left(left.code)
            raise
        except (NonFiniteLoss, CheckpointNotWritten) as error:
            self._fail(error, 1, all_know=True)
        except (OutOfStep, Refused) as error:
            self._fail(error, USER_MISTAKE, all_know=True)
        except (MisconfigurationException, NoMeeting, NoScript, WrongLauncher) as error:
            self._fail(error, USER_MISTAKE)
        except ConfigError as error:
            if self._is_child:
                self._fail(error, USER_MISTAKE)
            raise
        except Exception as error:
            if is_out_of_memory(error):
                self._fail(MemoryError(f"out of memory: {error}; data.global_batch_size, data.eval_batch_size,"
                                       " data.block_size and the model decide how much it takes"), 1)  # fmt: skip
            if isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError):
                again = f"; resume with: python train.py resume={self.run_dir}" if self.began else ""
                self._fail(OSError(f"{error}{again}"), 1)  # the disk is full, say
            self._explain(error)
            raise
        finally:
            if exit_code:
                self._keep_summary()
            self._end_workers()
            wandb.finish(exit_code)

    def _keep_summary(self) -> None:
        """As things stand, if there is one to keep."""
        if self.began:
            with suppress(OSError):  # what could not be written may be this; the failure itself has been told
                self.summarise()

    @property
    def _is_child(self) -> bool:
        """Whether another process of this run started this one, and tells what it fails of."""
        return self.me.launcher == "worker"

    def is_training(self) -> bool:
        """Whether stopping is the workers' affair, to be agreed between steps."""
        return getattr(getattr(self, "strategy", None), "is_training", False)

    def give_up(self, signum: int) -> None:
        """Called from a thread where a signal has ended nothing: leave things as they stand, but no process behind."""
        self.status = "stopped"
        self._keep_summary()
        if (launcher := self._launcher()) is not None:
            launcher.kill_all()
        if self.is_zero:
            print(f"stopped by {signal.Signals(signum).name} while waiting: everything was left at once", flush=True)

    # ---- build

    def build(self) -> None:
        """Build everything in this process. ConfigError before any other worker is started."""
        from lightning import seed_everything
        from lightning.pytorch.utilities import rank_zero_only

        from ticks.record.callback import Record
        from ticks.record.progress import ProgressLine
        from ticks.strategy.workers import Refused, WorkerStrategy

        config = self.config
        check_targets(config)
        self._quiet()
        seed_everything(int(config.seed), workers=True, verbose=False)
        self.data = build(config.data, "data")
        self.model = build(config.model, "model", vocab_size=self.data.vocab_size)
        self.task = build(config.task, "task", model=self.model)
        fitting = self.job.mode == "fit"
        self.strategy = build(config.strategy, "strategy", **self._for_workers())
        tokens_per_step = self.data.global_batch_size * self.data.block_size
        self.record = Record(
            self.run_dir,
            tokens_per_step=tokens_per_step,
            every_n_steps=config.trainer.get("log_every_n_steps") or 50,
        )
        callbacks = [build(node, f"callbacks.{name}") for name, node in (config.get("callbacks") or {}).items() if node]
        rank_zero_only.rank = self.me.rank  # type: ignore[attr-defined]  # loggers write where it is 0
        loggers = [build(node, f"logger.{name}") for name, node in (config.get("logger") or {}).items() if node]
        self._choose_accelerator()
        self.trainer: Trainer = build(
            config.trainer,
            "trainer",
            strategy=self.strategy,
            callbacks=[*callbacks, self.record, ProgressLine()] if fitting else [ProgressLine()],
            logger=loggers if fitting else False,
            default_root_dir=str(self.run_dir),
            enable_checkpointing=fitting,
        )
        assert isinstance(self.trainer.strategy, WorkerStrategy)
        if (launcher := self._launcher()) is not None:
            launcher.last_words = lambda: self.failures.tell() or launcher.killed() or self.failures.tell(broken=True)
        self._check_sizes()
        try:
            self.strategy.check(self.task)
            if fitting:
                self.strategy.check_training(self.trainer, self.task)
        except Refused as error:
            raise ConfigError(str(error)) from None
        try:
            self.strategy._refuse_what_talks(self.trainer)
        except Refused as error:
            raise ConfigError(f"trainer: {error}") from None
        if self.me.local_rank == 0:
            self._prepare_data()

    def _choose_accelerator(self) -> None:
        """auto: GPUs if there is one for every worker, else the CPU. ConfigError for fewer than one worker."""
        import torch

        wish = self.config.trainer
        if isinstance(wish.devices, int) and wish.devices < 1:
            raise ConfigError(f"trainer.devices={wish.devices} must be at least 1 worker, or auto")
        if wish.accelerator != "auto":
            return
        gpus = torch.cuda.device_count()
        enough = gpus > 0 and not (isinstance(wish.devices, int) and wish.devices > gpus)
        wish.accelerator = "gpu" if enough else "cpu"
        if gpus and not enough and self.is_zero:
            print(f"{wish.devices} workers but {gpus} GPU(s): using the CPU (trainer.devices={gpus} would use them)")

    def _for_workers(self) -> dict[str, Any]:
        command = [sys.executable, "-m", "ticks.train", str(self.jobfile)]
        return {"worker_command": command, "fingerprint": self.job.config_digest}

    def _quiet(self) -> None:
        """Messages of our libraries that say nothing a user can act on."""
        import logging
        import warnings

        for name in ("lightning.pytorch", "lightning.fabric"):
            logging.getLogger(name).setLevel(logging.WARNING)
        logging.getLogger("lightning.pytorch.profilers").setLevel(logging.INFO)  # their reports
        for message in (
            ".*does not have many workers.*",
            ".*It is recommended to use `self.log.*sync_dist=True.*",
            ".*Checkpoint directory .* exists and is not empty.*",
            ".*ended before the epoch ended and your dataloader is not resumable.*",
            ".*Found .* module.* in eval mode.*",
            ".*callbacks used to create the checkpoint need to be provided.*",  # `ticks eval` needs none of them
            ".*`isinstance.treespec, LeafSpec.` is deprecated.*",
            ".*Starting from v1.9.0, `tensorboardX`.*",
            ".*`lr_scheduler.step..` before `optimizer.step..`.*",  # sync rule `accumulate` skips steps on purpose
        ):
            warnings.filterwarnings("ignore", message)

    def _check_sizes(self) -> None:
        trainer: Any = self.trainer
        config = self.config.trainer
        devices = config.devices
        asked = int(devices) * int(config.get("num_nodes", 1)) if isinstance(devices, int) else trainer.world_size
        if trainer.world_size != asked:
            raise ConfigError(
                f"trainer.devices={devices} asks for {asked} workers, but there are {trainer.world_size}"
                f" (WORLD_SIZE={os.environ.get('WORLD_SIZE')} in the environment)"
            )
        if config.val_check_interval is not None and config.val_check_interval <= 0:
            raise ConfigError(f"trainer.val_check_interval={config.val_check_interval} must be above 0 steps")
        if (config.get("log_every_n_steps") or 0) < 0:
            raise ConfigError(f"trainer.log_every_n_steps={config.log_every_n_steps} must be at least 0 steps")
        if (trainer.limit_train_batches != 1.0 or trainer.overfit_batches) and not trainer.fast_dev_run:
            raise ConfigError("trainer.limit_train_batches, overfit_batches: training has no epochs; use max_steps")
        try:
            self.worker_batch_size = self.data.worker_batch_size(trainer.world_size, trainer.accumulate_grad_batches)
        except ValueError as error:
            raise ConfigError(f"data.{error}") from None

    def _prepare_data(self) -> None:
        try:
            self.data.prepare_data()
        except (ValueError, OSError, ImportError) as error:
            raise ConfigError(f"data: {error}") from error

    # ---- fit

    def fit(self) -> dict[str, Any] | None:
        """Train, then measure the agreed model on all of the validation and test text."""
        from ticks.record.result import show_result
        from ticks.record.wandb import log_config

        trainer, task, data = self.trainer, self.task, self.data
        if self.is_zero:
            self.save_config()
            self.began = True
            self.status = "running"
            self.summarise()
            self.status = "failed"
            self._announce()
            log_config(trainer.loggers, self.job.config | {"choices": self.job.choices}, self.job.coordinates)
        if self.job.checkpoint is None:
            self.before = _first(trainer.validate(task, datamodule=data, verbose=False))
        trainer.fit(task, datamodule=data, ckpt_path=self.job.checkpoint)
        final = self.run_dir / "checkpoints" / "final.ckpt"
        trainer.save_checkpoint(self.strategy.broadcast(str(final)))
        if self.is_zero and (stopped := final.with_name("stopped.ckpt")).exists():
            self.strategy.remove_checkpoint(stopped)
        last = self.record.last_val
        if last is None or last[0] != trainer.global_step:
            trainer.validate(task, datamodule=data, verbose=False)
        self._refuse_a_lost_model()
        tests = _first(trainer.test(task, datamodule=data, verbose=False)) if self.config.test else {}
        sample = self._sample()
        if not self.is_zero:
            return None
        self.status = "finished"
        self.checkpoint = relative(final)
        summary = self.summarise(tests=dict(tests))
        ledger = self.strategy.ledger
        show_result(
            summary,
            before=self.before or self._first_validation(),
            floors=self.data.corpus.floors,
            ddp_bytes=ledger.ddp_bytes,
            measuring_bytes=ledger.measuring_bytes,
            rows=self.record.file.rows(),
            sample=sample,
        )
        return summary

    def _refuse_a_lost_model(self) -> None:
        """NonFiniteLoss, on every worker, if what was trained cannot be measured: a tick sees parameters only."""
        from ticks.strategy.strategy import NonFiniteLoss

        step, metrics = self.record.last_val or (0, {})
        for name, value in metrics.items():
            if not math.isfinite(value):
                raise NonFiniteLoss(f"{name} is {value} after step {step}: lower the learning rate or clip gradients")

    def save_config(self) -> None:
        """config.yaml: all that `resume` and `ticks eval` need."""
        from ticks.strategy.checkpoint import replacing

        job = self.job
        extra = {"choices": job.choices, "config_digest": job.config_digest, "coordinates": job.coordinates}
        extra |= {"earlier_digests": job.earlier_digests} if job.earlier_digests else {}
        with replacing(self.run_dir / "config.yaml") as scratch:  # killed meanwhile, a run keeps what it had
            OmegaConf.save(OmegaConf.create(self.job.config | extra), scratch)

    def _announce(self) -> None:
        data, trainer, strategy = self.data, self.trainer, self.strategy
        tokens = data.global_batch_size * data.block_size
        interval = self._fixed_interval()
        a_round = f", {tokens * interval:,} per round of {interval} steps" if interval else ""
        parameters = sum(p.numel() for p in self.task.parameters())
        print(f"run directory {self.run_dir}")
        print(
            f"{parameters:,} parameters; {trainer.world_size} worker(s) on {strategy.root_device.type};"
            f" {data.global_batch_size} sequences of {data.block_size} bytes per step, {self.worker_batch_size} per"
            f" worker and batch: {tokens:,} tokens per step{a_round}",
            flush=True,
        )
        for note in data.notes():
            print(f"data.{note}", flush=True)
        if interval and trainer.world_size > 1 and interval > (steps := trainer.max_steps) > 0:
            print(f"the interval of {interval} steps is longer than the run of {steps}: workers meet only at its end")

    def _sample(self) -> str | None:
        if not self.is_zero or not self.config.sample_bytes or not hasattr(self.model, "generate"):
            return None
        prompt = self.data.encode(self.config.sample_prompt or "\n")
        tokens = self.task.generate(prompt, int(self.config.sample_bytes))
        return self.data.decode(tokens)

    def _first_validation(self) -> dict[str, float] | None:
        """A resumed run's validation before its first step, from its record."""
        for row in self.record.file.rows():
            if row["step"] == "0" and row.get("val/loss"):
                return {key: float(value) for key, value in row.items() if key.startswith("val/") and value}
        return None

    def summarise(self, *, tests: dict[str, float] | None = None) -> dict[str, Any]:
        """Write summary.json as things stand."""
        from ticks.record import summary as file

        trainer, strategy, choices = self.trainer, self.strategy, self.job.choices
        ledger, (_, val) = strategy.ledger, self.record.last_val or (0, {})
        seconds, steps = self.record.seconds(), strategy.step
        return file.write(
            self.run_dir,
            {
                "status": self.status,
                "strategy": choices.get("strategy"),
                "interval": self._fixed_interval(),
                "clock": self._clock_label(),
                "sync": choices.get("strategy/sync"),
                "wire": choices.get("strategy/wire"),
                "norm": choices.get("model/norm"),
                "adapter": choices.get("model/adapter"),
                "seed": self.config.seed,
                "world_size": trainer.world_size,
                "n_params": sum(p.numel() for p in self.task.parameters()),
                "n_trainable": sum(p.numel() for p in self.task.parameters() if p.requires_grad),
                "steps": steps,
                "ticks": ledger.ticks,
                "tokens": steps * self.record.tokens_per_step,
                "val_loss": val.get("val/loss"),
                "val_bits_per_byte": val.get("val/bits_per_byte"),
                "bytes_sent_per_worker": ledger.bytes_sent,
                "messages": ledger.messages,
                "sync_seconds": None if choices.get("strategy") == "ddp" else round(ledger.seconds, 3),
                "train_seconds": round(seconds, 3),
                "steps_per_second": round(steps / seconds, 4) if seconds > 0 else None,
                "device": self._device(),
                "run_dir": str(self.run_dir),
                "checkpoint": self.checkpoint,
                "config_digest": self.job.config_digest,
                "versions": file.versions(),
            }
            | {key.replace("/", "_"): value for key, value in (tests or {}).items()},
        )

    def _fixed_interval(self) -> int | None:
        """The interval, where it is the same from the first step to the last."""
        from ticks.strategy import EverySteps, TickStrategy

        strategy = self.strategy
        fixed = isinstance(strategy, TickStrategy) and isinstance(strategy.clock, EverySteps) and not strategy.ddp_steps
        return strategy.clock.interval if fixed else None

    def _clock_label(self) -> str | None:
        """When workers meet, in a few words; None where it is at every step."""
        from ticks.strategy import TickStrategy

        if not isinstance(self.strategy, TickStrategy):
            return None
        first = f"1 until {self.strategy.ddp_steps}, then " if self.strategy.ddp_steps else ""
        return first + self.strategy.clock.label

    def _device(self) -> str:
        import torch

        device = self.strategy.root_device
        return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type

    # ---- evaluate

    def evaluate(self) -> dict[str, Any] | None:
        """The validation and test metrics of the run's newest checkpoint."""
        checkpoint = self.job.checkpoint
        trainer, task, data = self.trainer, self.task, self.data
        metrics = _first(trainer.validate(task, datamodule=data, ckpt_path=checkpoint, verbose=False))
        if self.config.test:
            metrics |= _first(trainer.test(task, datamodule=data, ckpt_path=checkpoint, verbose=False))
        return {key.replace("/", "_"): value for key, value in metrics.items()} | {"checkpoint": checkpoint}

    # ---- the end

    def _say_stopped(self, stop: Any) -> None:
        if self.is_zero:
            name = signal.Signals(stop.signum).name
            again = f"; continue with: python train.py resume={self.run_dir}" if stop.checkpoint else ""
            print(f"stopped by {name} after step {stop.step}, checkpoint {self.checkpoint}{again}", flush=True)

    def _say_left(self, code: Any) -> None:
        signum = next((signum for signum in STOPS if code == 128 + signum), None)
        if self.is_zero and signum is not None:
            again = f"; continue with: python train.py resume={self.run_dir}"
            print(f"stopped by {signum.name}{again if self.began else ' before training began'}", flush=True)

    def _fail(self, error: Exception, exit_code: int, *, all_know: bool = False) -> NoReturn:
        """Leave with one line, said once for all workers; `all_know`: every worker fails of the same."""
        if self._is_child:
            self.failures.report(self.me.rank, str(error), exit_code=exit_code)
        elif self.is_zero or not self.me.started_by_others:
            self.failures.told.add(str(error))
            _die(error, exit_code)
        elif not all_know:
            _die(ConfigError(f"worker {self.me.rank}: {error}"), exit_code)
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
            self.status = "stopped"
            sys.exit(128 + launcher.signum)
        if not launcher.killed() and self.failures.tell(broken=True):
            raise SystemExit(self.failures.exit_code) from RuntimeError(self.failures.last)
        if dead := launcher.killed() or launcher.dead:
            _die(RuntimeError(f"{dead}; resume with: python train.py resume={self.run_dir}"), 1)

    def _launcher(self) -> Any:
        """The one that started this machine's other workers, if it was built yet."""
        from ticks.strategy.launch import WorkerLauncher

        launcher = getattr(getattr(getattr(self, "trainer", None), "strategy", None), "launcher", None)
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


def worker(jobfile: str) -> None:
    """The entry of workers 1 .. n - 1."""
    end_with_parent()
    leave_on_signals()
    forgive()
    run(Job(**json.loads(Path(jobfile).read_text())), Path(jobfile))


if __name__ == "__main__":
    worker(sys.argv[1])
