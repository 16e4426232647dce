"""The straight line of a run: assemble -> fit -> test -> summary."""

import logging
import math
import os
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning import seed_everything
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import OmegaConf

from ticks.config import ConfigError, build, check_targets
from ticks.job import Job, relative
from ticks.record import summary as file
from ticks.record.callback import Record
from ticks.record.progress import ProgressLine
from ticks.record.result import show_result
from ticks.record.wandb import log_config
from ticks.strategy import EverySteps, NonFiniteLoss, Refused, TickStrategy
from ticks.strategy.checkpoint import replacing
from ticks.strategy.identity import Identity
from ticks.strategy.workers import WorkerStrategy


def _first(results: Any) -> dict[str, float]:
    """The metrics of an evaluation, {} if it was switched off; `step` only told the loggers where they belong."""
    return {name: value for name, value in results[0].items() if name != "step"} if results else {}


class Run:
    """What a run is made of, and what is done with it."""

    def __init__(self, job: Job, me: Identity, worker_command: list[str]) -> None:
        self.job = job
        self.me = me
        self.worker_command = worker_command
        self.config = OmegaConf.create(job.config)
        self.is_zero = me.rank == 0
        self.run_dir = Path(job.run_dir)
        self.before: dict[str, float] | None = None
        self.status = "failed"
        self.checkpoint: str | None = None  # the last one written when the run ended
        self.began = False  # whether this worker has a summary to keep

    @property
    def is_training(self) -> bool:
        return getattr(getattr(self, "strategy", None), "is_training", False)

    @property
    def launcher(self) -> Any:
        """The one that started this machine's other workers, if it was built yet."""
        return getattr(getattr(getattr(self, "trainer", None), "strategy", None), "launcher", None)

    def newest_checkpoint(self) -> str | None:
        """The last one that was written."""
        files = [(path.stat().st_mtime, str(path)) for path in (self.run_dir / "checkpoints").glob("*.ckpt")]
        return max(files)[1] if files else None

    def assemble(self) -> None:
        """Build everything in this process. ConfigError before any other worker is started."""
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
        return {"worker_command": self.worker_command, "fingerprint": self.job.config_digest}

    def _quiet(self) -> None:
        """Messages of our libraries that say nothing a user can act on."""
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

    def fit(self) -> dict[str, Any] | None:
        """Train, then measure the agreed model on all of the validation and test text."""
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
        step, metrics = self.record.last_val or (0, {})
        for name, value in metrics.items():
            if not math.isfinite(value):
                raise NonFiniteLoss(f"{name} is {value} after step {step}: lower the learning rate or clip gradients")

    def save_config(self) -> None:
        """config.yaml: all that `resume` and `ticks eval` need."""
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
        strategy = self.strategy
        fixed = isinstance(strategy, TickStrategy) and isinstance(strategy.clock, EverySteps) and not strategy.ddp_steps
        return strategy.clock.interval if fixed else None

    def _clock_label(self) -> str | None:
        """When workers meet, in a few words; None where it is at every step."""
        if not isinstance(self.strategy, TickStrategy):
            return None
        first = f"1 until {self.strategy.ddp_steps}, then " if self.strategy.ddp_steps else ""
        return first + self.strategy.clock.label

    def _device(self) -> str:
        device = self.strategy.root_device
        return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type

    def evaluate(self) -> dict[str, Any] | None:
        """The validation and test metrics of the run's newest checkpoint."""
        checkpoint = self.job.checkpoint
        trainer, task, data = self.trainer, self.task, self.data
        metrics = _first(trainer.validate(task, datamodule=data, ckpt_path=checkpoint, verbose=False))
        if self.config.test:
            metrics |= _first(trainer.test(task, datamodule=data, ckpt_path=checkpoint, verbose=False))
        return {key.replace("/", "_"): value for key, value in metrics.items()} | {"checkpoint": checkpoint}
