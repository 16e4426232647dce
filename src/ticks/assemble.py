"""The only place that builds: of a configuration, all that a run is made of."""

import logging
import math
import os
import shutil
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
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
from ticks.phases import Phase, Rehearsal, TakeOver, directory_of, first_phase, later_phases, next_phase, rehearsal
from ticks.record.callback import Record
from ticks.record.progress import ProgressLine
from ticks.strategy import Refused
from ticks.strategy.checkpoint import random_state, set_random_state
from ticks.strategy.identity import Identity
from ticks.strategy.workers import WorkerStrategy
from ticks.timeline import Stage, Timeline
from ticks.timeline.tracks import look_ahead

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
    said: list[str] = field(default_factory=list)  # of what changed the model

    @property
    def measures(self) -> list[Measure]:
        """ConfigError if the task says nonsense."""
        try:
            return contract.measures_of(self.task)
        except ValueError as error:
            raise ConfigError(f"task: {error}") from None

    def notes(self, choices: Mapping[str, str]) -> list[str]:
        """What is not promised, or not used, of what was chosen: a line each."""
        notes, task = list(self.said), type(self.task).__name__
        if not contract.knows_workers(self.data):
            notes.append(
                f"{type(self.data).__name__} does not say which worker takes what (ticks.data.MapData does): a"
                " run resumed within an epoch may see samples twice or never, several workers may measure some twice"
            )
        if not self.uses_model:
            notes.append(f"{task} takes no model: model={choices.get('model')} is not used")
        if choices.get("tuning") and not getattr(getattr(self.task, "model", None), "source", None):
            notes.append(
                f"tuning={choices['tuning']} is for a model that is trained already: pretrained=RUN model=pretrained"
            )
        if self.own_optimizer:
            notes.append(
                f"{task} has an optimizer of its own: optimizer={choices.get('optimizer')},"
                f" schedule={choices.get('schedule')} and parameter_groups are not used"
            )
        return notes


@contextmanager
def _called_as_typed(config: DictConfig) -> Iterator[None]:
    """What is wrong with the model that `pretrained` names is said of that, whatever else is told its name."""
    name = config.get("pretrained")
    try:
        yield
    except ConfigError as error:
        for key in ("data.tokenizer.name", "model.name"):
            if str(error).startswith(start := f"{key}={name!r}"):
                raise ConfigError(f"pretrained={name}{str(error).removeprefix(start)}") from None
        raise


def parts(config: DictConfig, choices: Mapping[str, str], checkpoint: str | None = None) -> Parts:
    """Data, and a task with the model it is to train; data recall what the `checkpoint` holds of them. ConfigError for
    what does not fit together."""
    for group in ("data", "model", "task", "optimizer", "schedule"):
        check_targets(config[group], group)
    data = build(config.data, "data")
    with _called_as_typed(config):
        shape, source = _shape_of(data, checkpoint), f"data={choices.get('data', '')}".rstrip("=")
    uses_model = takes(config.task, "model")
    made: dict[str, Any] = {}
    said: list[str] = []
    if uses_model:
        offers = shape | {"load": trained_model}
        with _called_as_typed(config):
            made["model"] = build(config.model, "model", **offered(config.model, "model", offers, source))
        for name, node in (config.get("changes") or {}).items():
            reasons = _change(made["model"], node, f"changes.{name}")
            if isinstance(reasons, dict):
                said += [f"changes.{name}: {place} stays as it is: {reason}" for place, reason in reasons.items()]
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
    return Parts(data, task, uses_model, own_optimizer, like, said)


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
    _dress(made.task, OmegaConf.create(job.config), checkpoint)
    return made


def _dress(task: Any, config: DictConfig, checkpoint: Mapping[str, Any]) -> None:
    """Let the model of a checkpoint compute what it did when that was written, as far as a timeline decides it."""
    if config.get("timeline"):
        step = checkpoint["global_step"] - (checkpoint.get("phase") or {"begin": 0})["begin"]
        _timeline(config).dress(task, step, config.trainer.max_steps)


def trained_model(run_dir: str) -> torch.nn.Module:
    """The model of a run, with what it has learnt. ArgumentError if there is none."""
    from ticks.job import resumed_job

    try:
        task: Any = restored(resumed_job(Path(run_dir).expanduser(), [], mode="eval")).task
    except ConfigError as error:
        raise ArgumentError("name", run_dir, f"cannot be loaded: {error}") from None
    return task.model.train()


def _change(model: torch.nn.Module, how: DictConfig | None, path: str) -> Any:
    """Change the model in place; what that says. ConfigError for what cannot be."""
    if how is not None:
        try:
            return build(how, path)(model)
        except (ValueError, ImportError) as error:
            raise ConfigError(under(path, error)) from None
    return None


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
    timeline: Timeline
    trainer: Trainer
    worker_batch_size: int | None  # None: the data do not say
    phase: Phase
    callbacks: list[Any]  # the configured ones

    def notes(self, choices: Mapping[str, str]) -> list[str]:
        """What a person should know before training: a line each."""
        notes, steps = self.parts.notes(choices), self.trainer.max_steps
        notes += [f"timeline: {line}" for line in self.timeline.lines()]
        schedule, steps = self.phase.job.config["schedule"], steps - self.phase.begin
        warmup = schedule.get("warmup_steps", 0) if schedule else 0
        if isinstance(warmup, int) and 0 < steps <= warmup and not self.parts.own_optimizer:
            notes.append(
                f"schedule.warmup_steps={warmup}: the run of {steps} steps ends before the learning rate is reached"
            )
        return notes


def assemble(job: Job, me: Identity, worker_command: list[str]) -> Assembled:
    """Build everything in this process. ConfigError before any other worker is started."""
    config, run_dir, fitting = OmegaConf.create(job.config), Path(job.run_dir), job.mode == "fit"
    _quieten()
    phase = first_phase(job)
    made = _parts_of(phase)
    measures = made.measures
    check_targets(config)
    strategy = build(config.strategy, "strategy", worker_command=worker_command, fingerprint=job.config_digest)
    record = Record(
        run_dir,
        every_n_steps=config.trainer.get("log_every_n_steps") or 50,
    )
    timeline = _timeline(OmegaConf.create(phase.job.config), phase.begin)
    timeline.listeners.append(record.happened)
    _choose_accelerator(config.trainer, says=me.rank == 0)
    callbacks = _built(config, "callbacks") if fitting else []
    trainer = trainer_of(
        config,
        made.data,
        strategy=strategy,
        callbacks=[*callbacks, timeline, record, ProgressLine()] if fitting else [ProgressLine()],
        logger=_loggers(config, me.rank) if fitting else False,
        default_root_dir=str(run_dir),
        enable_checkpointing=fitting,
    )
    assert isinstance(trainer.strategy, WorkerStrategy)
    if fitting:
        _enter(phase, trainer, record, made)
    worker_batch_size = _worker_batch_size(made.data, trainer)
    _check_strategy(strategy, trainer, made.task, fitting=fitting)
    if fitting:
        _check_timeline(timeline, trainer, made, phase)
    elif job.checkpoint is not None and config.get("timeline"):
        _dress(made.task, config, torch.load(job.checkpoint, map_location="cpu", mmap=True, weights_only=True))
    if config.get("gap") and phase.is_last:
        _check_gap(made.data)
    if me.local_rank == 0:
        _prepare(made.data, ["val", *(["test"] if config.test and phase.is_last else [])], trainer.world_size)
        if fitting and later_phases(job, phase):
            _rehearse(job, phase, made, trainer)
    return Assembled(config, made, measures, strategy, record, timeline, trainer, worker_batch_size, phase, callbacks)


def _parts_of(phase: Phase) -> Parts:
    config = OmegaConf.create(phase.job.config)
    seed_everything(int(config.seed), workers=True, verbose=False)
    return parts(config, phase.job.choices, phase.job.checkpoint)


def _enter(phase: Phase, trainer: Trainer, record: Record, made: Parts) -> None:
    """Let what goes through all phases serve this one."""
    wish = phase.job.config["trainer"]
    if phase.name is not None:
        trainer.fit_loop.epoch_loop.max_steps = phase.end
        trainer.val_check_interval = wish["val_check_interval"]
        trainer.limit_val_batches = 1.0 if wish["limit_val_batches"] is None else wish["limit_val_batches"]
        for thing in (made.data, made.task):
            thing.steps_before = phase.begin  # type: ignore[union-attr, assignment]
    data, begin, before = made.data, phase.begin, phase.before.get("tokens") or 0

    def tokens(steps: int) -> int | None:
        found = contract.tokens_after(data, steps - begin)
        return None if found is None else before + found

    record.tokens_after, record.phase = tokens, phase.state()


def enter_next_phase(made: Assembled, job: Job, *, before: Mapping[str, Any], me: Identity) -> Assembled:
    """The same trainer, strategy and record with what the next phase learns; its optimizers know what those of the one
    behind it do of parameters that go on training."""
    over, trainer = TakeOver(made.parts.task, made.trainer), made.trainer
    phase = next_phase(job, made.phase, begin=trainer.global_step, before=before)
    new, timeline = _parts_of(phase), _timeline(OmegaConf.create(phase.job.config), phase.begin)
    taken = over.give_values(new.task)
    if me.rank == 0:
        print(f"phase {phase.name} {taken}", flush=True)
    timeline.listeners.append(made.record.happened)
    config = OmegaConf.create(job.config)  # what a callback knows of the phase before (a best score) ends with it
    fresh = dict(zip(map(id, made.callbacks), _built(config, "callbacks"), strict=True)) | {id(made.timeline): timeline}
    callbacks = [c for c in trainer.callbacks if not isinstance(c, TakeOver)]  # type: ignore[attr-defined]
    trainer.callbacks = [over, *(fresh.get(id(c), c) for c in callbacks)]  # type: ignore[attr-defined]
    if hasattr(new.data, "overfit_batches"):
        new.data.overfit_batches = getattr(made.parts.data, "overfit_batches", None)
    made.strategy.begin_anew()
    _enter(phase, trainer, made.record, new)
    worker_batch_size = _worker_batch_size(new.data, trainer)
    _check_strategy(made.strategy, trainer, new.task, fitting=True)
    _check_timeline(timeline, trainer, new, phase)
    if me.local_rank == 0:
        _prepare(new.data, ["val", *(["test"] if made.config.test and phase.is_last else [])], trainer.world_size)
    return replace(
        made, parts=new, measures=new.measures, timeline=timeline, worker_batch_size=worker_batch_size, phase=phase,
        callbacks=[fresh[id(c)] for c in made.callbacks],
    )  # fmt: skip


def _rehearse(job: Job, phase: Phase, made: Parts, trainer: Trainer) -> None:
    """ConfigError now for what would be refused when a later phase begins."""
    strategy, random = trainer.strategy, random_state(torch.device("cpu"))
    assert isinstance(strategy, WorkerStrategy)
    try:
        _check_phase(made, made)
    except ConfigError as error:
        raise ConfigError(f"phases.{phase.name}: {error}") from None
    with rehearsal(job) as stage:
        for name in list(job.phases)[: list(job.phases).index(str(phase.name))]:  # which are over
            _leave_trained(job, name, stage)
        stage.leave(str(phase.name), made.task, made.data)
        for name in later_phases(job, phase):
            try:
                config = OmegaConf.create(stage.config(name))
                check_targets(config)
                new = parts(config, job.phases[name]["choices"])
                _ = new.measures
                _check_phase(new, made)
                _worker_batch_size(new.data, trainer)
                _check_strategy(strategy, trainer, new.task, fitting=True)
                length = Phase(name, replace(job, config=stage.config(name)))
                _check_timeline(_timeline(config), trainer, new, length)
                if name == list(job.phases)[-1] and job.config.get("gap"):
                    _check_gap(new.data)
                splits = ["val", *(["test"] if job.config["test"] and name == list(job.phases)[-1] else [])]
                _prepare(new.data, splits, trainer.world_size)
                stage.leave(name, new.task, new.data)
            except ConfigError as error:
                raise ConfigError(f"phases.{name}: {error}") from None
    set_random_state(random, torch.device("cpu"))


def _check_phase(made: Parts, first: Parts) -> None:
    """ConfigError for what can be trained, but not as a phase of a run."""
    if not any(p.requires_grad for p in made.task.parameters()):
        raise ConfigError("nothing trains in it")
    if not made.task.automatic_optimization:
        raise ConfigError(f"{type(made.task).__name__} optimizes by itself, which no phase can")
    if contract.knows_workers(made.data) != contract.knows_workers(first.data):
        kinds = f"{type(first.data).__name__}, {type(made.data).__name__}"
        raise ConfigError(f"all phases' data must say which worker takes what, or none of them: {kinds}")


def _leave_trained(job: Job, name: str, stage: Rehearsal) -> None:
    shutil.copytree(directory_of(Path(job.run_dir), name), directory_of(stage.folder, name))


def _check_gap(data: Any) -> None:
    if not hasattr(data, "split_dataloader"):
        raise ConfigError(f"gap=true: {type(data).__name__} has no split_dataloader to measure the training split with")


def _built(config: DictConfig, group: str) -> list[Any]:
    return [build(node, f"{group}.{name}") for name, node in (config.get(group) or {}).items() if node]


def _timeline(config: DictConfig, begin: int = 0) -> Timeline:
    """ConfigError for an action that cannot be."""
    check_targets(config.get("timeline") or OmegaConf.create({}), "timeline")
    said: dict[str, Any] = {}
    for name, node in (config.get("timeline") or {}).items():
        if not isinstance(node, DictConfig):
            if node is None:
                continue
            raise ConfigError(f"timeline.{name}={node} must have at:, every: or from:, and do: an action")
        if name == "phase":
            raise ConfigError("timeline.phase: the record calls the phases of a run so: choose another name")
        plain: Any = OmegaConf.to_container(node, resolve=True)
        said[str(name)] = plain | {"do": build(node.get("do"), f"timeline.{name}.do")}
    return Timeline(said, begin=begin)


def planned(config: DictConfig) -> list[str]:
    """A timeline's entries in the order in which they begin, for people. ConfigError for what cannot be."""
    timeline, steps = _timeline(config), config.trainer.max_steps
    try:
        entries = timeline.plan(steps if steps and steps > 0 else math.inf)
    except ArgumentError as error:
        raise ConfigError(under("timeline", error)) from None
    return [f"{one.name}: {one}" for one in sorted(entries, key=lambda one: one.first)]


def _check_timeline(timeline: Timeline, trainer: Trainer, made: Parts, phase: Phase) -> None:
    """ConfigError for what the timeline could not do when its time comes, in the whole phase."""
    steps = phase.steps if phase.steps and phase.steps > 0 else math.inf
    optimizers = () if made.optimizer is None else (made.optimizer,)
    stage = Stage(trainer, made.task, made=optimizers, given=made.data, begin=phase.begin)
    strategy = trainer.strategy
    assert isinstance(strategy, WorkerStrategy)

    def look(step: int, names: list[str]) -> None:
        when = f"timeline: from step {step} on, by {', '.join(names)}" if names else f"timeline: in step {step}"
        if not any(p.requires_grad for p in made.task.parameters()):
            raise ConfigError(f"{when}: nothing trains")
        try:
            strategy.check(made.task)
        except Refused as error:
            raise ConfigError(f"{when}: {with_path('strategy', error)}") from None

    try:
        timeline.plan(steps)
        timeline.check(stage)
        look_ahead(timeline.tracks, stage, steps, look)
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
