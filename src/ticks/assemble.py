"""The only place that builds: of a configuration, all that a run is made of."""

import logging
import math
import os
import shutil
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from lightning import LightningDataModule, LightningModule, seed_everything
from lightning.pytorch import Trainer
from lightning.pytorch.accelerators import AcceleratorRegistry
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.model_helpers import is_overridden
from omegaconf import DictConfig, ListConfig, OmegaConf

from ticks import contract
from ticks.arguments import ArgumentError, under, with_path
from ticks.config import ConfigError, build, check_targets, offered, takes
from ticks.contract import Measure
from ticks.job import Job
from ticks.optim import Rule, configure, grouped
from ticks.record.callback import Record
from ticks.record.progress import ProgressLine
from ticks.strategy import Refused
from ticks.strategy.identity import Identity
from ticks.strategy.workers import WorkerStrategy
from ticks.timeline import Stage, Timeline

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

READING = (ValueError, OSError, ImportError)  # what data that cannot be used are refused with


# ---- what is learnt, from what ----------------------------------------------------------------------------------


@dataclass
class Parts:
    """What is learnt, from what: all that the math of a run is made of."""

    data: LightningDataModule
    task: LightningModule
    uses_model: bool  # else the task has one of its own
    own_optimizer: bool  # of the task
    optimizer: Any = None  # one like that which it will have, if the task has none of its own

    @property
    def measures(self) -> list[Measure]:
        """ConfigError if the task says nonsense."""
        try:
            return contract.measures_of(self.task)
        except ValueError as error:
            raise ConfigError(f"task: {error}") from None

    def notes(self, choices: Mapping[str, str]) -> list[str]:
        """What is not promised, or not used, of what was chosen: a line each."""
        notes, task = [], type(self.task).__name__
        if not contract.knows_workers(self.data):
            notes.append(
                f"{type(self.data).__name__} does not say which worker takes what (ticks.data.MapData does): a"
                " run resumed within an epoch may see samples twice or never, several workers may measure some twice"
            )
        if not self.uses_model:
            notes.append(f"{task} takes no model: model={choices.get('model')} is not used")
        if choices.get("tuning", "full") != "full" and not getattr(getattr(self.task, "model", None), "source", None):
            notes.append(
                f"tuning={choices['tuning']} freezes a model that nobody has trained: pretrained=RUN model=pretrained"
            )
        if self.own_optimizer:
            notes.append(
                f"{task} has an optimizer of its own: optimizer={choices.get('optimizer')},"
                f" schedule={choices.get('schedule')} and parameter_groups are not used"
            )
        return notes


def parts(config: DictConfig, choices: Mapping[str, str], checkpoint: str | None = None) -> Parts:
    """Data, and a task with the model it is to train; data recall what the `checkpoint` holds of them. ConfigError for
    what does not fit together."""
    for group in ("data", "model", "task", "optimizer", "schedule"):
        check_targets(config[group], group)
    data = build(config.data, "data")
    shape, source = _shape_of(data, checkpoint), f"data={choices.get('data', '')}".rstrip("=")
    uses_model = takes(config.task, "model")
    made: dict[str, Any] = {}
    if uses_model:
        offers = shape | {"load": trained_model}
        made["model"] = build(config.model, "model", **offered(config.model, "model", offers, source))
        for name, node in (config.get("changes") or {}).items():
            _change(made["model"], node, f"changes.{name}")
        _change(made["model"], config.get("tuning"), "tuning")
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
    like = None if own_optimizer else _checked_optimizer(how["optimizer"], how["parameter_groups"], task)
    return Parts(data, task, uses_model, own_optimizer, like)


def _shape_of(data: Any, checkpoint: str | None) -> dict[str, Any]:
    """ConfigError for data that cannot be read, if that is needed to know what they are."""
    try:
        if checkpoint and hasattr(data, "recall"):
            saved = torch.load(checkpoint, map_location="cpu", mmap=True, weights_only=True)
            data.recall(saved.get(type(data).__qualname__, {}))
        return contract.shape_of(data)
    except READING as error:
        raise ConfigError(under("data", error)) from error


def restored(job: Job) -> Parts:
    """What a run's newest checkpoint holds, to be used without a trainer. ConfigError if there is none."""
    made = parts(OmegaConf.create(job.config), job.choices, job.checkpoint)
    checkpoint = torch.load(str(job.checkpoint), map_location="cpu", weights_only=True)
    try:
        made.task.on_load_checkpoint(checkpoint)
    except MisconfigurationException as error:
        raise ConfigError(str(error)) from None
    made.task.load_state_dict(checkpoint["state_dict"])
    made.task.eval()
    return made


def trained_model(run_dir: str) -> torch.nn.Module:
    """The model of a run, with what it has learnt. ArgumentError if there is none."""
    from ticks.job import resumed_job

    try:
        task: Any = restored(resumed_job(Path(run_dir).expanduser(), [], mode="eval")).task
    except ConfigError as error:
        raise ArgumentError("name", run_dir, f"cannot be loaded: {error}") from None
    return task.model.train()


def _change(model: torch.nn.Module, how: DictConfig | None, path: str) -> None:
    """Change the model in place. ConfigError for what cannot be."""
    if how is not None:
        try:
            build(how, path)(model)
        except (ValueError, ImportError) as error:
            raise ConfigError(under(path, error)) from None


def _compile(model: torch.nn.Module, how: bool | str) -> None:
    """In place, so that its checkpoints stay what they are. ConfigError for a backend that is not there."""
    if how is False:
        return
    if how is True and shutil.which(os.environ.get("CXX", "g++")) is None and not torch.cuda.is_available():
        raise ConfigError("model.compile=true needs a C++ compiler on a CPU: install g++, or name one in CXX")
    known = torch.compiler.list_backends(exclude_tags=())
    if isinstance(how, str) and how not in known:
        offered = ", ".join(torch.compiler.list_backends())
        raise ConfigError(f"model.compile={how} must be true, false or a backend: {offered}")
    model.compile(backend="inductor" if how is True else how)


def _checked_optimizer(make: Any, rules: list[Rule], task: LightningModule) -> Any:
    """One like that of the training. ConfigError now for what would be refused when that begins."""
    try:
        groups = grouped(task, rules, lr=1.0)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    try:
        return make(groups)
    except (TypeError, ValueError) as error:
        raise ConfigError(under("optimizer", error)) from None


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


# ---- the whole run -----------------------------------------------------------------------------------------------


@dataclass
class Assembled:
    """All that a run is made of."""

    config: DictConfig
    parts: Parts
    measures: list[Measure]  # by which the task says that it is judged
    strategy: WorkerStrategy
    record: Record
    trainer: Trainer
    worker_batch_size: int | None  # None: the data do not say

    def notes(self, choices: Mapping[str, str]) -> list[str]:
        """What a person should know before training: a line each."""
        notes, steps = self.parts.notes(choices), self.trainer.max_steps
        notes += [f"timeline: {line}" for c in self.trainer.callbacks if isinstance(c, Timeline) for line in c.lines()]  # type: ignore[attr-defined]
        warmup = self.config.schedule.get("warmup_steps", 0) if self.config.schedule else 0
        if isinstance(warmup, int) and 0 < steps <= warmup and not self.parts.own_optimizer:
            notes.append(
                f"schedule.warmup_steps={warmup}: the run of {steps} steps ends before the learning rate is reached"
            )
        return notes


def assemble(job: Job, me: Identity, worker_command: list[str]) -> Assembled:
    """Build everything in this process. ConfigError before any other worker is started."""
    config, run_dir, fitting = OmegaConf.create(job.config), Path(job.run_dir), job.mode == "fit"
    _quieten()
    seed_everything(int(config.seed), workers=True, verbose=False)
    made = parts(config, job.choices, job.checkpoint)
    measures = made.measures
    check_targets(config)
    strategy = build(config.strategy, "strategy", worker_command=worker_command, fingerprint=job.config_digest)
    record = Record(
        run_dir,
        tokens_per_step=contract.tokens_per_step(made.data),
        every_n_steps=config.trainer.get("log_every_n_steps") or 50,
    )
    timeline = _timeline(config)
    timeline.listeners.append(record.happened)
    _choose_accelerator(config.trainer, says=me.rank == 0)
    trainer = trainer_of(
        config,
        made.data,
        strategy=strategy,
        callbacks=[*_built(config, "callbacks"), timeline, record, ProgressLine()] if fitting else [ProgressLine()],
        logger=_loggers(config, me.rank) if fitting else False,
        default_root_dir=str(run_dir),
        enable_checkpointing=fitting,
    )
    assert isinstance(trainer.strategy, WorkerStrategy)
    worker_batch_size = _worker_batch_size(made.data, trainer)
    _check_strategy(strategy, trainer, made.task, fitting=fitting)
    if fitting:
        _check_timeline(timeline, trainer, made)
    if config.get("gap") and not hasattr(made.data, "split_dataloader"):
        raise ConfigError(
            f"gap=true: {type(made.data).__name__} has no split_dataloader to measure the training split with"
        )
    if me.local_rank == 0:
        _prepare(made.data, ["val", *(["test"] if config.test else [])], trainer.world_size)
    return Assembled(config, made, measures, strategy, record, trainer, worker_batch_size)


def _built(config: DictConfig, group: str) -> list[Any]:
    return [build(node, f"{group}.{name}") for name, node in (config.get(group) or {}).items() if node]


def _timeline(config: DictConfig) -> Timeline:
    """ConfigError for an action that cannot be."""
    said: dict[str, Any] = {}
    for name, node in (config.get("timeline") or {}).items():
        if not isinstance(node, DictConfig):
            if node is None:
                continue
            raise ConfigError(f"timeline.{name}={node} must have at:, every: or from:, and do: an action")
        plain: Any = OmegaConf.to_container(node, resolve=True)
        said[str(name)] = plain | {"do": build(node.get("do"), f"timeline.{name}.do")}
    return Timeline(said)


def planned(config: DictConfig) -> list[str]:
    """A timeline's entries in the order in which they begin, for people. ConfigError for what cannot be."""
    check_targets(config.timeline, "timeline")
    timeline, steps = _timeline(config), config.trainer.max_steps
    try:
        entries = timeline.plan(steps if steps and steps > 0 else math.inf)
    except ArgumentError as error:
        raise ConfigError(under("timeline", error)) from None
    return [f"{one.name}: {one}" for one in sorted(entries, key=lambda one: one.first)]


def _check_timeline(timeline: Timeline, trainer: Trainer, made: Parts) -> None:
    """ConfigError for what the timeline could not do when its time comes."""
    steps = trainer.max_steps if trainer.max_steps > 0 else math.inf
    optimizers = None if made.optimizer is None else (made.optimizer,)
    try:
        timeline.plan(steps)
        timeline.check(Stage(trainer, made.task, made=optimizers, given=made.data))
    except ArgumentError as error:
        raise ConfigError(under("timeline", error)) from None


def _loggers(config: DictConfig, rank: int) -> list[Any]:
    rank_zero_only.rank = rank  # type: ignore[attr-defined]  # loggers write where it is 0
    return _built(config, "logger")


def _choose_accelerator(wish: DictConfig, *, says: bool) -> None:
    """auto: GPUs if there is one for every worker, else the CPU. ConfigError for fewer than one worker."""
    if isinstance(wish.devices, int) and wish.devices < 1:
        raise ConfigError(f"trainer.devices={wish.devices} must be at least 1 worker, or auto")
    if wish.accelerator != "auto":
        there = [name for name in AcceleratorRegistry if AcceleratorRegistry[name]["accelerator"].is_available()]
        if isinstance(wish.accelerator, str) and wish.accelerator not in (*there, *(["gpu"] if there[1:] else [])):
            raise ConfigError(f"trainer.accelerator={wish.accelerator}: there is none here; auto, {', '.join(there)}")
        return
    gpus = torch.cuda.device_count()
    enough = gpus > 0 and not (isinstance(wish.devices, int) and wish.devices > gpus)
    wish.accelerator = "gpu" if enough else "cpu"
    if gpus and not enough and says:
        print(f"{wish.devices} workers but {gpus} GPU(s): using the CPU (trainer.devices={gpus} would use them)")


def trainer_of(config: DictConfig, data: LightningDataModule, **arguments: Any) -> Trainer:
    """Lightning's Trainer for these data. ConfigError for numbers of workers or steps that cannot be."""
    wish = config.trainer
    if wish.get("overfit_batches") and contract.knows_workers(data) and hasattr(data, "overfit_batches"):
        if not isinstance(wish.overfit_batches, int) or wish.overfit_batches < 1:
            raise ConfigError(f"trainer.overfit_batches={wish.overfit_batches} must be a whole number of batches")
        data.overfit_batches, wish.overfit_batches = wish.overfit_batches, 0
    if "use_distributed_sampler" not in wish:
        arguments["use_distributed_sampler"] = not contract.knows_workers(data)
    try:
        trainer: Any = build(wish, "trainer", **arguments)
    except ConfigError as error:
        raise ConfigError(_with_its_key(str(error), wish)) from error
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
    if (wish.get("gradient_clip_val") or 0) < 0:
        raise ConfigError(f"trainer.gradient_clip_val={wish.gradient_clip_val} must be at least 0; 0: no clipping")
    return trainer


def _with_its_key(message: str, wish: DictConfig) -> str:
    """Lightning's complaint about its Trainer, with the argument that it speaks of before it."""
    said = message.removeprefix("trainer: ")
    spoken = (str(key) for key, value in wish.items() if f"`{key!s}`" in said or f"'{value!s}'" in said)
    key = None if said == message and not message.startswith("trainer: ") else next(spoken, None)
    return message if key is None else f"trainer.{key}={wish[key]}: {said}"


def _worker_batch_size(data: Any, trainer: Any) -> int | None:
    """ConfigError for numbers of workers that cannot share a batch."""
    if not contract.knows_workers(data):
        return None
    if (trainer.limit_train_batches != 1.0 or trainer.overfit_batches) and not trainer.fast_dev_run:
        raise ConfigError("trainer.limit_train_batches, overfit_batches: training has no epochs; use max_steps")
    try:
        return data.worker_batch_size(trainer.world_size, trainer.accumulate_grad_batches)
    except ValueError as error:
        raise ConfigError(under("data", error)) from None


def _check_strategy(strategy: WorkerStrategy, trainer: Trainer, task: LightningModule, *, fitting: bool) -> None:
    """ConfigError for what the strategy refuses."""
    try:
        strategy.check(task)
        if fitting:
            strategy.check_training(trainer, task)
    except Refused as error:
        raise ConfigError(with_path("strategy", error)) from None
    try:
        strategy.refuse_what_talks(trainer)
    except Refused as error:
        raise ConfigError(f"trainer: {error}") from None


def _prepare(data: Any, splits: list[str], world_size: int) -> None:
    """What one worker of a machine does for all of its workers. ConfigError for data that cannot be used."""
    split = ""
    try:
        data.prepare_data()
        for split in splits if hasattr(data, "check_splits") else ():
            data.check_splits([split], world_size)
    except READING as error:
        hint = ": leave it out with test=false" if split == "test" else ""
        raise ConfigError(under("data", error) + hint) from error


def _quieten() -> None:
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    profilers = logging.getLogger("lightning.pytorch.profilers")
    profilers.setLevel(logging.INFO)  # their reports, which Hydra's handlers would take for news of a job
    profilers.propagate = False
    profilers.handlers = [logging.StreamHandler(sys.stdout)]
    for message in QUIET:
        warnings.filterwarnings("ignore", message)
