"""The straight line of a run: assemble -> fit -> test -> summary. It knows no task and no measure by name."""

import logging
import math
import os
import resource
import shutil
import sys
import traceback
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from lightning import LightningDataModule, LightningModule, seed_everything
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.model_helpers import is_overridden
from omegaconf import DictConfig, ListConfig, OmegaConf

from ticks import contract
from ticks.arguments import ArgumentError, under
from ticks.config import ConfigError, build, check_targets, offered, takes
from ticks.contract import Measure
from ticks.job import Job, relative
from ticks.optim import Rule, configure, grouped
from ticks.record import summary as file
from ticks.record.callback import Record
from ticks.record.progress import ProgressLine
from ticks.record.result import result_rows, show_result
from ticks.record.wandb import log_config, log_result
from ticks.strategy import EverySteps, NonFiniteLoss, Refused, TickStrategy
from ticks.strategy.checkpoint import replacing
from ticks.strategy.identity import Identity
from ticks.strategy.workers import WorkerStrategy

QUIET = (  # messages of our libraries that say nothing a user can act on
    ".*does not have many workers.*",
    ".*It is recommended to use `self.log.*sync_dist=True.*",
    ".*Checkpoint directory .* exists and is not empty.*",
    ".*ended before the epoch ended and your dataloader is not resumable.*",
    ".*Found .* module.* in eval mode.*",
    ".*callbacks used to create the checkpoint need to be provided.*",  # `ticks eval` needs none of them
    ".*`isinstance.treespec, LeafSpec.` is deprecated.*",
    ".*Starting from v1.9.0, `tensorboardX`.*",
    ".*Dynamo detected a call to a `functools.lru_cache`.*",  # cosines and sines of positions
    ".*`lr_scheduler.step..` before `optimizer.step..`.*",  # sync rule `accumulate` skips steps on purpose
)


# ---- assemble ----------------------------------------------------------------------------------------------------


@dataclass
class Parts:
    """What is learnt, from what: all that the math of a run is made of."""

    data: LightningDataModule
    task: LightningModule
    uses_model: bool  # else the task has one of its own
    own_optimizer: bool  # of the task

    @property
    def measures(self) -> list[Measure]:
        """ConfigError if the task says nonsense."""
        try:
            return contract.measures_of(self.task)
        except ValueError as error:
            raise ConfigError(f"task: {error}") from None


def parts(config: DictConfig, choices: Mapping[str, str]) -> Parts:
    """Data, and a task with the model it is to train. ConfigError for what does not fit together."""
    for group in ("data", "model", "task", "optimizer", "schedule"):
        check_targets(config[group], group)
    data = build(config.data, "data")
    shape, source = contract.shape_of(data), f"data={choices.get('data', '')}".rstrip("=")
    uses_model = takes(config.task, "model")
    made: dict[str, Any] = {}
    if uses_model:
        made["model"] = build(config.model, "model", **offered(config.model, "model", shape, source))
        _compile(made["model"], config.model.get("compile", False))
    how = {"optimizer": build(config.optimizer, "optimizer"), "schedule": build(config.schedule, "schedule")}
    how["parameter_groups"] = _rules(config.parameter_groups)
    made |= {name: value for name, value in how.items() if takes(config.task, name)}
    task = build(config.task, "task", **made, **offered(config.task, "task", shape, source))
    for room, thing, kind in (("data", data, LightningDataModule), ("task", task, LightningModule)):
        if not isinstance(thing, kind):
            raise ConfigError(
                f"{room}._target_={config[room]['_target_']}: {type(thing).__name__} is no {kind.__name__}"
            )
    own_optimizer = is_overridden("configure_optimizers", task, LightningModule) and "optimizer" not in made
    if not is_overridden("configure_optimizers", task, LightningModule):
        task.configure_optimizers = lambda: configure(task, **how)
    if not own_optimizer:
        _check_optimizer(how["optimizer"], how["parameter_groups"], task)
    return Parts(data, task, uses_model, own_optimizer)


def _compile(model: torch.nn.Module, how: bool | str) -> None:
    """In place, so that its checkpoints stay what they are. ConfigError for a backend that is not there."""
    if how is False:
        return
    if how is True and shutil.which(os.environ.get("CXX", "g++")) is None and not torch.cuda.is_available():
        raise ConfigError("model.compile=true needs a C++ compiler on a CPU: install g++, or name one in CXX")
    known = torch.compiler.list_backends(exclude_tags=())
    if isinstance(how, str) and how not in known:
        raise ConfigError(f"model.compile={how} must be true, false or a backend: {', '.join(map(str, known))}")
    model.compile(backend="inductor" if how is True else how)


def _check_optimizer(make: Any, rules: list[Rule], task: LightningModule) -> None:
    """ConfigError now for what would be refused when training begins."""
    try:
        make([torch.nn.Parameter(torch.zeros(1))])
    except (TypeError, ValueError) as error:
        raise ConfigError(under("optimizer", error)) from None
    try:
        grouped(task, rules)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _rules(said: Any) -> list[Rule]:
    """ConfigError for what is no rule."""
    if not isinstance(said, ListConfig):
        raise ConfigError(f"parameter_groups={said} must be a list of rules, [{{match: norm, weight_decay: 0}}]")
    rules = []
    for i, rule in enumerate(said):
        try:
            rules.append(Rule(**rule))
        except ArgumentError as error:
            raise ConfigError(under(f"parameter_groups[{i}]", error)) from None
        except TypeError as error:
            known = ", ".join(field.name for field in fields(Rule))
            raise ConfigError(f"parameter_groups[{i}]={rule}: {error}; a rule has {known}") from None
    return rules


def trainer_of(config: DictConfig, data: LightningDataModule, **arguments: Any) -> Trainer:
    """Lightning's Trainer for these data. ConfigError for numbers of workers or steps that cannot be."""
    wish = config.trainer
    if wish.get("overfit_batches") and contract.knows_workers(data) and hasattr(data, "overfit_batches"):
        if not isinstance(wish.overfit_batches, int) or wish.overfit_batches < 1:
            raise ConfigError(f"trainer.overfit_batches={wish.overfit_batches} must be a whole number of batches")
        data.overfit_batches, wish.overfit_batches = wish.overfit_batches, 0
    if "use_distributed_sampler" not in wish:
        arguments["use_distributed_sampler"] = not contract.knows_workers(data)
    trainer: Any = build(wish, "trainer", **arguments)
    devices = wish.devices
    asked = int(devices) * int(wish.get("num_nodes", 1)) if isinstance(devices, int) else trainer.world_size
    if trainer.world_size != asked:
        raise ConfigError(
            f"trainer.devices={devices} asks for {asked} workers, but there are {trainer.world_size}"
            f" (WORLD_SIZE={os.environ.get('WORLD_SIZE')} in the environment)"
        )
    if wish.val_check_interval is not None and wish.val_check_interval <= 0:
        raise ConfigError(f"trainer.val_check_interval={wish.val_check_interval} must be above 0 steps")
    if (wish.get("log_every_n_steps") or 0) < 0:
        raise ConfigError(f"trainer.log_every_n_steps={wish.log_every_n_steps} must be at least 0 steps")
    return trainer


class Run:
    """What a run is made of, and what is done with it."""

    parts: Parts
    strategy: WorkerStrategy
    record: Record
    trainer: Trainer

    def __init__(self, job: Job, me: Identity, worker_command: list[str]) -> None:
        self.job = job
        self.me = me
        self.worker_command = worker_command
        self.config = OmegaConf.create(job.config)
        self.is_zero = me.rank == 0
        self.run_dir = Path(job.run_dir)
        self.measures: list[Measure] = []
        self.before: dict[str, float] = {}
        self.status = "failed"
        self.checkpoint: str | None = None  # the last one written when the run ended
        self.began = False  # whether this worker has a summary to keep

    @property
    def is_training(self) -> bool:
        return getattr(getattr(self, "strategy", None), "is_training", False)

    @property
    def has_trained(self) -> bool:
        """Whether a step was done or begun in this process."""
        return hasattr(self, "record") and self.record.has_begun

    def is_within(self, error: BaseException) -> bool:
        """Whether it came out of the code of the task, its model or its data."""
        things = (self.parts.task, getattr(self.parts.task, "model", None), self.parts.data)
        files = {getattr(sys.modules.get(type(thing).__module__), "__file__", None) for thing in things} - {None}
        return any(frame.filename in files for frame in traceback.extract_tb(error.__traceback__))

    @property
    def launcher(self) -> Any:
        """The one that started this machine's other workers, if it was built yet."""
        return getattr(getattr(getattr(self, "trainer", None), "strategy", None), "launcher", None)

    def assemble(self) -> None:
        """Build everything in this process. ConfigError before any other worker is started."""
        config, fitting = self.config, self.job.mode == "fit"
        _quieten()
        seed_everything(int(config.seed), workers=True, verbose=False)
        self.parts = parts(config, self.job.choices)
        data, task = self.parts.data, self.parts.task
        self.measures = self.parts.measures
        check_targets(config)
        self.strategy = build(
            config.strategy, "strategy", worker_command=self.worker_command, fingerprint=self.job.config_digest
        )
        self.record = Record(
            self.run_dir,
            tokens_per_step=contract.tokens_per_step(data),
            every_n_steps=config.trainer.get("log_every_n_steps") or 50,
        )
        self._choose_accelerator()
        self.trainer = trainer_of(
            config,
            data,
            strategy=self.strategy,
            callbacks=[*self._built("callbacks"), self.record, ProgressLine()] if fitting else [ProgressLine()],
            logger=self._loggers() if fitting else False,
            default_root_dir=str(self.run_dir),
            enable_checkpointing=fitting,
        )
        assert isinstance(self.trainer.strategy, WorkerStrategy)
        self._check_sizes()
        try:
            self.strategy.check(task)
            if fitting:
                self.strategy.check_training(self.trainer, task)
        except Refused as error:
            raise ConfigError(str(error)) from None
        try:
            self.strategy.refuse_what_talks(self.trainer)
        except Refused as error:
            raise ConfigError(f"trainer: {error}") from None
        if self.me.local_rank == 0:
            self._prepare_data()

    def _built(self, group: str) -> list[Any]:
        return [build(node, f"{group}.{name}") for name, node in (self.config.get(group) or {}).items() if node]

    def _loggers(self) -> list[Any]:
        rank_zero_only.rank = self.me.rank  # type: ignore[attr-defined]  # loggers write where it is 0
        return self._built("logger")

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

    def _check_sizes(self) -> None:
        trainer: Any = self.trainer
        self.worker_batch_size = None
        if not contract.knows_workers(self.parts.data):
            return
        if (trainer.limit_train_batches != 1.0 or trainer.overfit_batches) and not trainer.fast_dev_run:
            raise ConfigError("trainer.limit_train_batches, overfit_batches: training has no epochs; use max_steps")
        data: Any = self.parts.data
        try:
            self.worker_batch_size = data.worker_batch_size(trainer.world_size, trainer.accumulate_grad_batches)
        except ValueError as error:
            raise ConfigError(under("data", error)) from None

    def _prepare_data(self) -> None:
        data: Any = self.parts.data
        try:
            data.prepare_data()
            if hasattr(data, "check_splits"):
                data.check_splits(["val", *(["test"] if self.config.test else [])], self.trainer.world_size)
        except (ValueError, OSError, ImportError) as error:
            raise ConfigError(under("data", error)) from error

    # ---- fit

    def fit(self) -> dict[str, Any] | None:
        """Train, then measure the agreed model on all of the validation and test data."""
        trainer, task, data = self.trainer, self.parts.task, self.parts.data
        if self.is_zero:
            self._begin()
        if self.job.checkpoint is None:
            self.before = self._measure("val")
        trainer.fit(task, datamodule=data, ckpt_path=self.job.checkpoint)
        final = self.run_dir / "checkpoints" / "final.ckpt"
        trainer.save_checkpoint(self.strategy.broadcast(str(final)))
        if self.is_zero and (stopped := final.with_name("stopped.ckpt")).exists():
            self.strategy.remove_checkpoint(stopped)
        last = self.record.last_val
        if last is None or last[0] != trainer.global_step:
            self._measure("val")
        self._refuse_a_lost_model()
        tests = self._measure("test") if self.config.test else {}
        if not self.is_zero:
            return None
        shown, picture = self._shown()
        self.status = "finished"
        self.checkpoint = relative(final)
        summary = self.summarise(tests)
        rows = result_rows(
            summary,
            measures=self.measures or contract.measures_of(task, self._last_val()),
            before=self.before or self._first_validation(),
            baselines=contract.baselines_of(data),
            ddp_bytes=self.strategy.ledger.ddp_bytes,
            measuring_bytes=self.strategy.ledger.measuring_bytes,
            rows=self.record.file.rows(),
        )
        show_result(summary, rows, shown=shown, picture=relative(picture) if picture else None)
        log_result(trainer.loggers, [*rows[0], *rows[1]], shown=shown, picture=picture)
        return summary

    def _shown(self) -> tuple[str | None, Path | None]:
        """What the task has to show: a text, or a picture."""
        shown: Any = getattr(self.parts.task, "show", lambda data: None)(self.parts.data)
        if not hasattr(shown, "savefig"):
            return shown, None
        path = self.run_dir / "sample.png"
        shown.savefig(path, dpi=150)
        return None, path

    def _begin(self) -> None:
        """What there is of a run before its first step."""
        self.save_config()
        self.began = True
        self.status = "running"
        self.summarise()
        self.status = "failed"
        self._announce()
        config = self.job.config | {"choices": self.job.choices}
        log_config(self.trainer.loggers, config, self.job.coordinates)

    def _measure(self, split: str, checkpoint: str | None = None) -> dict[str, float]:
        """The measures of a split by name; {} where there is nothing to measure, or it was switched off."""
        data, task = self.parts.data, self.parts.task
        hook = {"val": "validation_step", "test": "test_step"}[split]
        if not is_overridden(hook, task, LightningModule):
            return {}
        if not is_overridden(f"{split}_dataloader", data, LightningDataModule):
            return {}
        do = self.trainer.validate if split == "val" else self.trainer.test
        results = do(task, datamodule=data, ckpt_path=checkpoint, verbose=False)
        merged = {key: value for of_loader in results or () for key, value in of_loader.items()}
        found = contract.evaluated(merged, split)
        if split == "val":
            self._refuse_a_measure_that_is_none(found)
        return found

    def _refuse_a_measure_that_is_none(self, found: Mapping[str, float]) -> None:
        """Refused, on every worker, if a task is judged by what it does not log."""
        if missing := [m.name for m in self.measures[:1] if found and m.name not in found]:
            logged = ", ".join(f"val/{name}" for name in found)
            raise Refused(f"task: {type(self.parts.task).__name__} is judged by {missing[0]}, but logged: {logged}")

    def _refuse_a_lost_model(self) -> None:
        """NonFiniteLoss, on every worker, if what was trained cannot be measured: a tick sees parameters only."""
        step, metrics = self.record.last_val or (0, {})
        for name in dict.fromkeys(["val/loss", *(f"val/{m.name}" for m in self.measures)]):
            if not math.isfinite(metrics.get(name, 0.0)):
                raise NonFiniteLoss(
                    f"{name} is {metrics[name]} after step {step}: lower the learning rate or clip gradients"
                )

    def newest_checkpoint(self) -> str | None:
        """The last one that was written."""
        files = [(path.stat().st_mtime, str(path)) for path in (self.run_dir / "checkpoints").glob("*.ckpt")]
        return max(files)[1] if files else None

    def save_config(self) -> None:
        """config.yaml: all that `resume` and `ticks eval` need."""
        job = self.job
        extra = {"choices": job.choices, "config_digest": job.config_digest, "coordinates": job.coordinates}
        extra |= {"earlier_digests": job.earlier_digests} if job.earlier_digests else {}
        with replacing(self.run_dir / "config.yaml") as scratch:  # killed meanwhile, a run keeps what it had
            OmegaConf.save(OmegaConf.create(self.job.config | extra), scratch)

    def _announce(self) -> None:
        data: Any = self.parts.data
        trainer, strategy = self.trainer, self.strategy
        parameters = sum(p.numel() for p in self.parts.task.parameters())
        line = f"{parameters:,} parameters; {trainer.world_size} worker(s) on {strategy.root_device.type}"
        if self.worker_batch_size is not None:
            line += f"; {data.step_label()} per step, {self.worker_batch_size} per worker and batch"
        tokens, interval = contract.tokens_per_step(data), fixed_interval(self.strategy)
        if tokens:
            a_round = f", {tokens * interval:,} per round of {interval} steps" if interval else ""
            line += f": {tokens:,} tokens per step{a_round}"
        print(f"run directory {self.run_dir}\n{line}", flush=True)
        for note in data.notes() if hasattr(data, "notes") else ():
            print(f"data.{note}", flush=True)
        for note in self._what_is_lost():
            print(f"note: {note}", flush=True)
        if interval and trainer.world_size > 1 and interval > (steps := trainer.max_steps) > 0:
            print(f"the interval of {interval} steps is longer than the run of {steps}: workers meet only at its end")

    def _what_is_lost(self) -> list[str]:
        """What is not promised here, in a line each."""
        notes = []
        if not contract.knows_workers(self.parts.data):
            notes.append(
                f"{type(self.parts.data).__name__} does not say which worker takes what (ticks.data.MapData does): a"
                " run resumed within an epoch may see samples twice or never, several workers may measure some twice"
            )
        if not self.parts.uses_model:
            name = type(self.parts.task).__name__
            notes.append(f"{name} takes no model: model={self.job.choices.get('model')} is not used")
        if self.parts.own_optimizer:
            name, choices = type(self.parts.task).__name__, self.job.choices
            notes.append(
                f"{name} has an optimizer of its own: optimizer={choices.get('optimizer')},"
                f" schedule={choices.get('schedule')} and parameter_groups are not used"
            )
        return notes

    def _last_val(self) -> dict[str, float]:
        """The last measures on the validation data, by name."""
        return contract.evaluated((self.record.last_val or (0, {}))[1], "val")

    def _first_validation(self) -> dict[str, float]:
        """A resumed run's validation before its first step, from its record."""
        for row in self.record.file.rows():
            said = {key: value for key, value in row.items() if value}
            if row["step"] == "0" and (found := contract.evaluated(_numbers(said), "val")):
                return found
        return {}

    # ---- summary

    def summarise(self, tests: Mapping[str, float] | None = None) -> dict[str, Any]:
        """Write summary.json as things stand."""
        trainer, strategy, choices = self.trainer, self.strategy, self.job.choices
        ledger, val, tokens = strategy.ledger, self._last_val(), contract.tokens_per_step(self.parts.data)
        seconds, steps = self.record.seconds(), strategy.step
        measures = self.measures or contract.measures_of(self.parts.task, val)
        known: dict[str, float | None] = {f"{split}_{m.name}": None for split in ("val", "test") for m in measures}
        known |= {f"val_{name}": value for name, value in val.items()}
        known |= {f"test_{name}": value for name, value in (tests or {}).items()}
        uses_model = self.parts.uses_model
        return file.write(
            self.run_dir,
            {
                "status": self.status,
                "strategy": choices.get("strategy"),
                "interval": fixed_interval(self.strategy),
                "clock": clock_label(self.strategy),
                "sync": choices.get("strategy/sync"),
                "wire": choices.get("strategy/wire"),
                "norm": choices.get("model/norm") if uses_model else None,
                "adapter": choices.get("model/adapter") if uses_model else None,
                "seed": self.config.seed,
                "world_size": trainer.world_size,
                "n_params": sum(p.numel() for p in self.parts.task.parameters()),
                "n_trainable": sum(p.numel() for p in self.parts.task.parameters() if p.requires_grad),
                "steps": steps,
                "ticks": ledger.ticks,
                "tokens": None if tokens is None else steps * tokens,
                "measure": measures[0].name if measures else None,
                "better": measures[0].better if measures else None,
                "bytes_sent_per_worker": ledger.bytes_sent,
                "messages": ledger.messages,
                "sync_seconds": None if choices.get("strategy") == "ddp" else round(ledger.seconds, 3),
                "train_seconds": round(seconds, 3),
                "steps_per_second": round(steps / seconds, 4) if seconds > 0 else None,
                "peak_memory": peak_memory(self.strategy.root_device),
                "device": device_name(self.strategy.root_device),
                "run_dir": str(self.run_dir),
                "checkpoint": self.checkpoint,
                "config_digest": self.job.config_digest,
                "versions": file.versions(),
            }
            | known,
        )

    # ---- evaluate

    def evaluate(self) -> dict[str, Any] | None:
        """The validation and test measures of the run's newest checkpoint."""
        measured = {f"val_{name}": value for name, value in self._measure("val", self.job.checkpoint).items()}
        if self.config.test:
            measured |= {f"test_{name}": value for name, value in self._measure("test", self.job.checkpoint).items()}
        return measured | {"checkpoint": self.job.checkpoint}


def fixed_interval(strategy: Any) -> int | None:
    """The interval, where it is the same from the first step to the last."""
    fixed = isinstance(strategy, TickStrategy) and isinstance(strategy.clock, EverySteps) and not strategy.ddp_steps
    return strategy.clock.interval if fixed else None


def clock_label(strategy: Any) -> str | None:
    """When workers meet, in a few words; None where it is at every step."""
    if not isinstance(strategy, TickStrategy):
        return None
    first = f"1 until {strategy.ddp_steps}, then " if strategy.ddp_steps else ""
    return first + strategy.clock.label


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def peak_memory(device: torch.device) -> int:
    """Bytes that this worker has had at most: of its GPU, or of the machine."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _numbers(row: Mapping[str, str]) -> dict[str, float]:
    """What of a row can be read as numbers."""
    found = {}
    for key, text in row.items():
        try:
            found[key] = float(text)
        except ValueError:
            continue
    return found


def _quieten() -> None:
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    profilers = logging.getLogger("lightning.pytorch.profilers")
    profilers.setLevel(logging.INFO)  # their reports
    logging.getLogger("lightning.pytorch").propagate = False  # to Hydra's, which would show them once more
    for message in QUIET:
        warnings.filterwarnings("ignore", message)
