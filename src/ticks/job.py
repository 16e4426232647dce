"""What one run is to do: a `Job`, decided once and handed as it is to every worker.

A new run gets a new directory; `resume` continues one with the configuration it was started with. Under torchrun every
worker decides by itself, from the same command, and comes to the same Job but for the directory, which is worker 0's.
"""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from ticks.arguments import with_path
from ticks.config import ConfigError, check_values, compose_phases, did_you_mean, digest, plain
from ticks.config.hydra import config_folders
from ticks.config.phases import FREE
from ticks.run_directory import (
    MULTIRUNS,
    RUNS,
    begun_in,
    chosen_run_directory,
    find_unfinished,
    load_config,
    new_run_directory,
)
from ticks.strategy.identity import Identity, WrongLauncher, who_am_i

KEPT = {
    "fit": ("data", "model", "task", "optimizer", "schedule", "parameter_groups", "seed",
            "pretrained", "tuning", "changes", "phases"),
    "eval": ("model", "pretrained", "tuning", "changes"),
}  # fmt: skip  # what cannot change once a run has begun
HARMLESS = ("data.num_workers", "data.eval_batch_size", "model.compile", "task.sample_bytes", "task.sample_prompt")


@dataclass(frozen=True)
class Job:
    """What one run is to do. `config` is resolved and plain; `choices` are the names of the chosen groups."""

    mode: str  # "fit" or "eval"
    config: dict[str, Any]
    choices: dict[str, str]
    run_dir: str
    config_digest: str
    checkpoint: str | None = None
    coordinates: dict[str, str] = field(default_factory=dict)
    earlier_digests: list[str] = field(default_factory=list)  # the run's, before values were changed to resume it
    phases: dict[str, Any] = field(default_factory=dict)  # by name: {"config": ..., "choices": ...}

    def of_phase(self, name: str | None) -> "Job":
        """What it is to do in a phase: this, where there are none."""
        return self if name is None else replace(self, **self.phases[name])


def planned_job(config: DictConfig) -> Job:
    """Decide where the run lies and where it starts from."""
    about = HydraConfig.get()
    choices = {k: str(v) for k, v in about.runtime.choices.items() if not k.startswith("hydra") and v is not None}
    coordinates = dict(o.split("=", 1) for o in about.overrides.task if "=" in o)
    resume = str(config.resume) if config.resume is not None else None
    if resume == "auto":
        together = identity_of(config).started_by_others  # each worker has to come to the same answer
        if together and config.run_dir is None:
            raise ConfigError("resume=auto: every worker was started by itself; name a place, run_dir=PLACE")
        found = begun_in(str(config.run_dir), config) if config.run_dir is not None else find_unfinished(config)
        if found is None and identity_of(config).rank == 0:
            places = str(config.run_dir or f"{RUNS}, {MULTIRUNS}")
            print(f"resume=auto: no unfinished run of this configuration in {places}; starting a new one", flush=True)
        resume = str(found) if found else None
    if resume is not None:  # with auto, the configuration found is the one asked for
        return resumed_job(Path(resume), [] if config.resume == "auto" else list(about.overrides.task))
    phases = compose_phases(config, about.overrides.task, config_folders()[0]) if config.get("phases") else None
    if config.run_dir is not None and identity_of(config).rank == 0:
        run_dir = chosen_run_directory(str(config.run_dir))
    elif about.mode == RunMode.MULTIRUN:
        run_dir = Path(about.runtime.output_dir)
    elif identity_of(config).rank == 0:
        run_dir = new_run_directory(str(config.name))
    else:
        run_dir = Path("logs/runs") / "of-worker-0"  # never written to: files are worker 0's
    return make_job(config, choices, run_dir, coordinates, phases)


def make_job(
    config: DictConfig, choices: dict[str, str], run_dir: Path, coordinates: dict[str, str], phases: Any = None
) -> Job:
    """A new run's job. ConfigError if the configuration cannot be resolved."""
    config_digest = digest(config)
    place = relative(run_dir)
    planned = {}
    for name, (node, chosen) in (phases or {}).items():
        node.run_dir = place
        planned[name] = {"config": plain(node), "choices": chosen}
    config.run_dir = place
    whole = plain(config)
    if planned:  # what the run comes to in its last phase, and how long all of it is
        last = list(planned.values())[-1]
        whole |= {key: last["config"][key] for key in FREE if key in last["config"]}
        steps = sum(phase["config"]["trainer"]["max_steps"] for phase in planned.values())
        whole["trainer"] = whole["trainer"] | {"max_steps": steps}
        choices = choices | {k: v for k, v in last["choices"].items() if k.partition("/")[0] in FREE}
    return Job("fit", whole, choices, place, config_digest, None, coordinates, [], planned)


def resumed_job(run_dir: Path, overrides: list[str], mode: str = "fit") -> Job:
    """Continue (or evaluate) the run in `run_dir` with its own configuration, values of `overrides` put on top."""
    from ticks.strategy.checkpoint import newest_usable, step_of

    plainly: Any = OmegaConf.to_container(load_config(run_dir))
    if (of_run := plainly.pop("of_run", None)) is not None:  # a phase's, which lies in it
        plainly = moved(plainly, relative(run_dir.parents[1]), of_run)
    config = OmegaConf.create(moved(plainly, relative(run_dir)))
    choices: Any = OmegaConf.to_container(config.pop("choices", OmegaConf.create({})))
    config_digest = str(config.pop("config_digest", None) or digest(config))
    coordinates: Any = OmegaConf.to_container(config.pop("coordinates", OmegaConf.create({})))
    phases: Any = OmegaConf.to_container(config.pop("phase_configs", OmegaConf.create({})))
    digests = {str(earlier): None for earlier in config.pop("earlier_digests", ())} | {config_digest: None}  # in order
    config_digest = _put_on_top(config, phases, choices, overrides, run_dir, mode, config_digest)
    check_values(config)
    checkpoint, complaints = newest_usable(run_dir / "checkpoints", list(digests))
    border, _ = newest_usable(run_dir.glob("phases/*/checkpoints"), list(digests))
    if border is not None and (checkpoint is None or step_of(border) > step_of(checkpoint)):
        checkpoint = border
    is_zero = identity_of(config).rank == 0
    for complaint in complaints if checkpoint and is_zero else ():
        print(f"warning: {complaint}; using the one before it", file=sys.stderr, flush=True)
    if checkpoint is None and (complaints or mode == "eval"):
        reasons = "".join(f"; {complaint}" for complaint in complaints)
        raise ConfigError(f"no usable checkpoint in {run_dir}/checkpoints{reasons}")
    if is_zero and mode == "fit":
        print(f"resuming {run_dir} from {checkpoint or 'its start: no checkpoint was written yet'}", flush=True)
        if checkpoint is not None and checkpoint.name == "final.ckpt" and checkpoint != border:
            print("it had finished: it is measured again, and trained on if trainer.max_steps is more now", flush=True)
    if phases and checkpoint is not None:
        _refuse_what_is_over(phases, overrides, checkpoint)
        config.trainer.max_steps = sum(phase["config"]["trainer"]["max_steps"] for phase in phases.values())
    job = Job(
        mode,
        plain(config),
        choices,
        relative(run_dir),
        config_digest,
        str(checkpoint) if checkpoint else None,
        coordinates,
        [earlier for earlier in digests if earlier != config_digest],
        phases,
    )
    if mode == "fit" or not phases:
        return job
    from ticks.phases import phase_of  # measured as what its checkpoint is of

    return job.of_phase(phase_of(job.checkpoint)["name"])


def _put_on_top(
    config: DictConfig,
    phases: Any,
    choices: Mapping[str, str],
    overrides: list[str],
    run_dir: Path,
    mode: str,
    known: str,
) -> str:
    """Change a run's configuration, and its phases', by values that are typed; the digest by which it is `known` from
    then on. ConfigError for what cannot be changed."""
    for override in overrides:
        key, _, text = override.partition("=")
        if key == "resume" or choices.get(key) == text:
            continue
        before = plain(config), json.dumps(phases)
        if phases and key == "trainer.max_steps":
            raise ConfigError(f"{override}: say of which phase, phases.{next(iter(phases))}.{override}")
        if phases and key.startswith("phases."):
            _set_in_a_phase(phases, override, run_dir)
        elif "/" in key or key in choices:
            raise ConfigError(
                f"{override}: a run is continued with its own configuration ({run_dir}/config.yaml); its values can be"
                " changed, the chosen groups cannot"
            )
        else:
            check_known(config, key)
            section = key.partition(".")[0]
            if section in KEPT[mode] and key not in HARMLESS:
                raise ConfigError(
                    f"{override}: {run_dir} keeps its {section}, the checkpoint holds it; start a new run"
                )
            value = OverridesParser.create().parse_override(override).value()
            OmegaConf.update(config, key, value)
            for phase in phases.values():
                _set_if_there(phase["config"], key, value)
        if (plain(config), json.dumps(phases)) != before:  # under torchrun worker 0 may have written it down before
            known = sha256(f"{known} {override}".encode()).hexdigest()[:12]  # another one reads it
    return known


def _set_in_a_phase(phases: dict[str, Any], override: str, run_dir: Path) -> None:
    """ConfigError for a value that a phase has not, or keeps."""
    key, _, _ = override.partition("=")
    _, name, within = [*key.split(".", 2), "", ""][:3]
    if name not in phases or not within:
        raise ConfigError(f"{override}: its phases are {', '.join(phases)}; phases.{next(iter(phases))}.KEY=VALUE")
    if within.partition(".")[0] in KEPT["fit"] and within not in HARMLESS:
        raise ConfigError(f"{override}: {run_dir} keeps it, the checkpoint holds it; start a new run")
    check_known(OmegaConf.create(phases[name]["config"]), within)
    _set_if_there(phases[name]["config"], within, OverridesParser.create().parse_override(override).value())


def _refuse_what_is_over(phases: dict[str, Any], overrides: list[str], checkpoint: Path) -> None:
    """ConfigError for a value of a phase that is not trained again."""
    from ticks.phases import phase_of

    said, names = phase_of(str(checkpoint)), list(phases)
    over = names[: names.index(said["name"]) + (said["ended"] is not None)]
    for override in overrides:
        if override.startswith("phases.") and (name := override.split(".")[1]) in over:
            raise ConfigError(f"{override}: phase {name} is over, {checkpoint} lies behind it")


def _set_if_there(config: dict[str, Any], key: str, value: Any) -> None:
    *path, last = key.split(".")
    node: Any = config
    for name in path:
        node = node.get(name) if isinstance(node, dict) else None
    if isinstance(node, dict) and last in node:
        node[last] = value


def moved(config: Any, run_dir: str, old: str | None = None) -> Any:
    """A run's resolved configuration with every path below its old directory put below `run_dir`."""
    old = str(config["run_dir"]) if old is None else old

    def follow(node: Any) -> Any:
        if isinstance(node, dict):
            return {key: follow(value) for key, value in node.items()}
        if isinstance(node, list):
            return [follow(value) for value in node]
        inside = isinstance(node, str) and (node == old or node.startswith(f"{old}/"))
        return run_dir + node[len(old) :] if inside else node

    return follow(config)


def check_known(config: DictConfig, key: str) -> None:
    """ConfigError unless the dotted `key` is in `config`."""
    node: Any = config
    for name in key.split("."):
        if not isinstance(node, DictConfig) or name not in node:
            known = map(str, node) if isinstance(node, DictConfig) else ()
            raise ConfigError(f"unknown key '{key}'{did_you_mean(name, known)}")
        node = node[name]


def relative(path: Path) -> str:
    """The path as it can be opened from where the user stands, which hydra.job.chdir has left."""
    path, here = path.resolve(), Path.cwd()
    left = HydraConfig.initialized() and Path(HydraConfig.get().runtime.cwd) != here
    return str(path.relative_to(here)) if path.is_relative_to(here) and not left else str(path)


def identity_of(config: Any) -> Identity:
    """Who this process is in a run with this configuration. ConfigError if its environment cannot be meant."""
    try:
        return who_am_i(num_nodes=int(config["trainer"].get("num_nodes") or 1))
    except WrongLauncher as error:
        raise ConfigError(with_path("trainer", error)) from None
