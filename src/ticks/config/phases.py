"""The phases of a run, each with a configuration of its own: what is typed, and what is another there.

phases:
  pretrain: {experiment: pretrain_bbc, trainer: {max_steps: 240}}
  finetune: {experiment: finetune_bbc, pretrained: "${run_dir}/phases/pretrain"}

What is typed on the command line counts in every phase that has such a key, and before what the phase says.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ticks.config.compose import composed
from ticks.config.keys import EXTENSIBLE
from ticks.config.messages import ConfigError
from ticks.config.overrides import of_groups, parse

FREE = ("data", "model", "task", "optimizer", "schedule", "parameter_groups", "tuning", "changes", "timeline",
        "pretrained")  # fmt: skip  # which each phase has for itself
OF_THE_RUN = ("name", "seed", "test", "gap", "resume", "run_dir")  # which are the run's, whatever an experiment says
OF_THE_TRAINER = ("max_steps", "val_check_interval", "limit_val_batches")  # which a phase may have for itself
NO_TEXT = ("true", "false", "null", "nan", "inf")  # which mean something else unless quoted
NOT_TYPED = ("phases", "resume", "run_dir", "name")


def compose_phases(
    config: DictConfig, typed: Sequence[str], config_dir: Path
) -> dict[str, tuple[DictConfig, dict[str, str]]]:
    """By name, in their order, the configuration of each phase and the groups' files that it chose. ConfigError for one
    that cannot be."""
    said: Any = OmegaConf.to_container(config.get("phases") or OmegaConf.create({}), resolve=False)
    if not isinstance(said, dict):
        raise ConfigError(f"phases={said} must be names, each with what is another there: {{first: {{model: rms}}}}")
    found: dict[str, tuple[DictConfig, dict[str, str]]] = {}
    defaults: dict[tuple[str, ...], DictConfig] = {}
    for name, own in said.items():
        if own is None:
            continue
        if not re.fullmatch(r"[\w-]+", str(name)):
            raise ConfigError(f"phases.{name} must be called by letters, digits, _ and -")
        if not isinstance(own, dict):
            raise ConfigError(f"phases.{name}={own} must be what is another there: {{model: rms}}, or null")
        try:
            found[str(name)] = _phase(config, str(name), own, typed, config_dir, defaults)
        except ConfigError as error:
            raise ConfigError(f"phases.{name}: {error}") from None
    if said and not found:
        raise ConfigError("phases: all of them are null; phases=null is a run without any")
    return found


def _phase(
    base: DictConfig, name: str, own: Mapping[str, Any], typed: Sequence[str], config_dir: Path,
    defaults: dict[tuple[str, ...], DictConfig],
) -> tuple[DictConfig, dict[str, str]]:  # fmt: skip
    """Its configuration and choices. `defaults`: what typed values come to, which phases have in common."""
    mine = dict(_flat(own))
    if theirs := [key for key in mine if key.partition(".")[0] in OF_THE_RUN]:
        raise ConfigError(f"{theirs[0]}={mine[theirs[0]]} is the whole run's, set it outside of phases")
    prefix = f"phases.{name}."
    strongest = {o.key_or_group.removeprefix(prefix) for o in parse(typed) if o.key_or_group.startswith(prefix)}
    kept = [o for o in parse(typed) if o.key_or_group.partition(".")[0] not in NOT_TYPED]
    kept = [o for o in kept if o.key_or_group not in strongest]
    kept = [o for o in kept if not (o.key_or_group == "experiment" and "experiment" in mine)]
    debug = next((config_dir / "debug" / f"{o.value()}.yaml" for o in kept if o.key_or_group == "debug"), None)
    before = {o.key_or_group for o in kept}
    if debug is not None and debug.is_file():
        before |= {key for key, _ in _flat(OmegaConf.to_container(OmegaConf.load(debug)))}  # type: ignore[arg-type]
    mine = {key: value for key, value in mine.items() if key not in before or key in strongest}
    said = [f"{'++' * key.startswith(EXTENSIBLE)}{key}={_text(value)}" for key, value in mine.items()]
    groups = [o for o in kept if o in of_groups(kept, config_dir) or o.key_or_group in ("experiment", "debug")]
    plain, _ = composed([*said, *(str(o.input_line) for o in groups)], config_dir, check=False)
    values = [o for o in kept if o not in groups and (o.is_add() or _has(plain, o.key_or_group))]
    config, choices = composed([*said, *(str(o.input_line) for o in [*groups, *values])], config_dir)
    config.phases = None
    for key in OF_THE_RUN:
        config[key] = base.get(key)
    rest = tuple(str(o.input_line) for o in kept if o.key_or_group != "experiment")
    if rest not in defaults:
        defaults[rest], _ = composed(rest, config_dir, check=False)
    _take_what_is_the_runs(config, base, defaults[rest])
    steps = config.trainer.max_steps
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ConfigError(f"trainer.max_steps={steps} must be a whole number of at least 1: a phase ends")
    return config, choices


def _take_what_is_the_runs(config: DictConfig, base: DictConfig, default: DictConfig) -> None:
    """From `base`. ConfigError if the phase, or its experiment, wants something else than that, or by `default`."""
    wanted, ours, default_ = (_plain(node) for node in (config, base, default))
    for key in [key for key in ours if key not in (*FREE, *OF_THE_RUN, "phases")]:
        if wanted.get(key) not in (default_.get(key), ours[key]):
            differ = _first_difference(wanted.get(key), ours[key])
            raise ConfigError(f"{key}{differ} is the whole run's, set it outside of phases; a phase has its own"
                              f" {', '.join(FREE)}, trainer.{', trainer.'.join(OF_THE_TRAINER)}")  # fmt: skip
        own = {k: config.trainer.get(k) for k in OF_THE_TRAINER} if key == "trainer" else {}
        config[key] = base[key]
        for k, value in own.items():
            config.trainer[k] = value


def _plain(node: DictConfig) -> dict[str, Any]:
    """Without what a phase may have for itself."""
    plain: Any = OmegaConf.to_container(node, resolve=False)
    plain["trainer"] = {key: value for key, value in plain["trainer"].items() if key not in OF_THE_TRAINER}
    return plain


def _first_difference(one: Any, other: Any) -> str:
    if isinstance(one, dict) and isinstance(other, dict):
        for key in [*one, *other]:
            if one.get(key) != other.get(key):
                return f".{key}{_first_difference(one.get(key), other.get(key))}"
    return f"={one}"


def _has(config: DictConfig, key: str) -> bool:
    node: Any = config
    for part in key.split("."):
        if not isinstance(node, DictConfig) or part not in node:
            return False
        node = None if OmegaConf.is_missing(node, part) else node._get_node(part)
    return True


def _flat(node: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _text(value: Any) -> str:
    """As it is typed."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return f"[{','.join(map(_text, value))}]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{_text(one)}" for key, one in value.items()) + "}"
    if isinstance(value, str) and (
        not re.fullmatch(r"(\$\{[\w.]+\}|[A-Za-z_/])(\$\{[\w.]+\}|[\w./:-])*", value) or value.lower() in NO_TEXT
    ):
        quoted = re.sub(r"(\\*)'", lambda found: f"{found[1] * 2}\\'", value)
        return "'" + re.sub(r"\\+$", lambda found: found[0] * 2, quoted) + "'"
    return str(value)
