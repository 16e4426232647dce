"""A run that learns one thing after another: what a phase is, how one is tried before it comes, what it takes over.

A phase that is over lies in RUN/phases/NAME as a run of its own, with its checkpoint, configuration and summary: what
comes behind it loads its model from there (`pretrained: ${run_dir}/phases/NAME`), and so does anybody else.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from omegaconf import OmegaConf

from ticks.job import Job, moved
from ticks.models.changes.prune import MASK
from ticks.strategy.checkpoint import KEY

TOTALS = ("ticks", "bytes_sent_per_worker", "messages", "train_seconds", "tokens")


@dataclass(frozen=True)
class Phase:
    """One of a run's; a run without any is one, without a name. `begin` are the steps before it, `before` what the run
    had come to by then."""

    name: str | None
    job: Job
    begin: int = 0
    before: Mapping[str, Any] = field(default_factory=dict)
    is_last: bool = True
    ended: int | None = None  # the step behind which it was over

    @property
    def steps(self) -> int:
        return self.job.config["trainer"]["max_steps"]

    @property
    def end(self) -> int:
        return self.begin + self.steps if self.ended is None else self.ended

    def state(self) -> dict[str, Any] | None:
        """By what a checkpoint says of which phase it is."""
        if self.name is None:
            return None
        return {"name": self.name, "begin": self.begin, "before": dict(self.before), "ended": self.ended}


def phase_of(checkpoint: str | None) -> dict[str, Any]:
    """What a checkpoint says of its phase; that there is none."""
    none: dict[str, Any] = {"name": None, "begin": 0, "before": {}, "ended": None}
    if checkpoint is None:
        return none
    return torch.load(checkpoint, map_location="cpu", mmap=True, weights_only=True).get("phase") or none


def first_phase(job: Job) -> Phase:
    """That which a run begins with, or goes on in."""
    names = list(job.phases)
    if not names or job.mode != "fit":
        return Phase(None, job)
    said = phase_of(job.checkpoint)
    name = said["name"] or names[0]
    return Phase(name, job.of_phase(name), said["begin"], said["before"], name == names[-1], said["ended"])


def next_phase(job: Job, phase: Phase, *, begin: int, before: Mapping[str, Any]) -> Phase:
    """What comes behind it, after so many steps."""
    names = list(job.phases)
    name = names[names.index(str(phase.name)) + 1]
    of_phase = replace(job.of_phase(name), checkpoint=None)
    return Phase(name, of_phase, begin, before, name == names[-1])


def at(job: Job, run_dir: str) -> Job:
    """The same where worker 0 has it: a worker that others have started knows it from there alone."""
    return replace(job, run_dir=run_dir, phases=moved(job.phases, run_dir, job.run_dir))


def later_phases(job: Job, phase: Phase) -> list[str]:
    names = list(job.phases)
    return [] if phase.name is None else names[names.index(phase.name) + 1 :]


def directory_of(run_dir: Path, name: str) -> Path:
    return run_dir / "phases" / name


def shares(totals: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
    """Of what a run has come to, what was done in a phase."""
    return {
        name: None if totals.get(name) is None else round(totals[name] - (before.get(name) or 0), 3) for name in TOTALS
    }


# ---- a phase that is tried before it comes ---------------------------------------------------------------------------


@contextmanager
def rehearsal(job: Job) -> Iterator["Rehearsal"]:
    """In the block phases can be built whose predecessors have not been trained yet."""
    with TemporaryDirectory(prefix="ticks-phases-") as folder:
        yield Rehearsal(job, Path(folder))


class Rehearsal:
    """Untrained models where the trained ones will be."""

    def __init__(self, job: Job, folder: Path) -> None:
        self.job, self.folder = job, folder

    def config(self, name: str) -> dict[str, Any]:
        """A phase's configuration, which finds what lies below the run's directory here."""
        return moved(self.job.phases[name]["config"], str(self.folder))

    def leave(self, name: str, task: Any, data: Any) -> None:
        """What a phase will leave to those behind it, as far as anything but its numbers goes."""
        place = directory_of(self.folder, name)
        (place / "checkpoints").mkdir(parents=True)
        save_config(place, self.job, name, self.config(name) | {"run_dir": str(place)})
        state: dict[str, Any] = {"state_dict": task.state_dict(), "global_step": 0}
        task.on_save_checkpoint(state)
        if hasattr(data, "state_dict"):
            state[type(data).__qualname__] = data.state_dict()
        state[KEY] = {"token": "none", "world_size": 0, "step": 0, "fingerprint": self.job.config_digest}
        torch.save(state, place / "checkpoints" / "final.ckpt")


def save_config(place: Path, job: Job, name: str, config: dict[str, Any]) -> None:
    """config.yaml of a phase that can be loaded as a run."""
    extra = {"choices": job.phases[name]["choices"], "config_digest": job.config_digest, "of_run": job.run_dir}
    place.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(OmegaConf.create(config | extra | {"coordinates": job.coordinates}), place / "config.yaml")


# ---- what is taken over ----------------------------------------------------------------------------------------------


class TakeOver(Callback):
    """What of a phase goes on in the next one, by the names of parameters: their values, on which all workers agree,
    and what this worker's optimizers know of those that go on training."""

    def __init__(self, module: LightningModule, trainer: Trainer) -> None:
        names: dict[Any, str] = {parameter: _name(name) for name, parameter in module.named_parameters()}
        self.states = {
            names[parameter]: (type(optimizer), state)
            for optimizer in trainer.optimizers
            for parameter, state in optimizer.state.items()
            if parameter in names
        }
        masks = {name: module._buffers.get(MASK) for name, module in module.named_modules()}
        self.masks = {_name(name): mask for name, mask in masks.items() if mask is not None}
        self.values = {_name(name): value.detach().clone() for name, value in module.state_dict().items()}

    @torch.no_grad()
    def give_values(self, module: LightningModule) -> str:
        """Of the same name and shape; a few words on what is new."""
        new = []
        for name, value in module.state_dict().items():
            old = self.values.get(_name(name))
            if old is None or old.shape != value.shape:
                new.append(name.removeprefix("model."))
            else:
                value.copy_(old)
        for name, at in module.named_modules():
            mask, weight = self.masks.get(_name(name)), getattr(at, "weight", None)
            if mask is not None and weight is not None and weight.shape == mask.shape:
                at.register_buffer(MASK, mask.clone(), persistent=False)  # what was pruned stays so
        if not new:
            return "goes on with all of the model"
        if len(new) == len(module.state_dict()):
            return "begins anew: nothing has the same name and shape"
        more = f" and {len(new) - 3} more" if len(new) > 3 else ""
        return f"goes on with the model; new: {', '.join(new[:3])}{more}"

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        names = {parameter: _name(name) for name, parameter in pl_module.named_parameters()}
        for optimizer in trainer.optimizers:
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    kind, state = self.states.get(names.get(parameter, ""), (None, {}))
                    fits = all(
                        not isinstance(value, torch.Tensor) or value.dim() == 0 or value.shape == parameter.shape
                        for value in state.values()
                    )
                    if kind is type(optimizer) and fits and parameter.requires_grad:
                        optimizer.state[parameter] = {k: _beside(v, parameter, group) for k, v in state.items()}
        self.states, self.values = {}, {}


def _beside(value: Any, parameter: torch.Tensor, group: Mapping[str, Any]) -> Any:
    """Where its optimizer keeps it: Lightning has moved it to the CPU. A number of steps stays there, mostly."""
    moves = isinstance(value, torch.Tensor) and (value.dim() > 0 or group.get("fused") or group.get("capturable"))
    return value.to(parameter.device) if moves else value


def _name(name: str) -> str:
    """A parameter's, whether its model stands alone or has a head put on it."""
    return name.replace("model.body.", "model.", 1)
