"""Which keys and which values of the top level a configuration can have. Needs no torch."""

import difflib
import math
import re
from collections.abc import Iterable
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from ticks.config.messages import ConfigError, did_you_mean

NEEDED = ("name", "seed", "resume", "test", "run_dir", "parameter_groups", "trainer.accelerator", "trainer.devices",
          "trainer.max_steps",
          "trainer.val_check_interval")  # fmt: skip
TOP_LEVEL = {
    "name", "seed", "resume", "test", "run_dir", "parameter_groups", "data", "model", "task", "optimizer", "schedule",
    "strategy", "trainer", "callbacks", "logger", "pretrained", "tuning", "gap", "changes",
    "timeline", "phases",
}  # fmt: skip
EXTENSIBLE = ("trainer.", "callbacks.", "logger.", "timeline.")  # to which experiment and debug files may add
MOVED = {  # by what they were once called
    "sample_bytes": "task.sample_bytes", "sample_prompt": "task.sample_prompt", "task.lr": "optimizer.lr",
    "task.weight_decay": "optimizer.weight_decay", "task.betas": "optimizer.betas", "task.eps": "optimizer.eps",
    "task.warmup_steps": "schedule.warmup_steps", "task.min_lr_ratio": "schedule.min_ratio",
}  # fmt: skip
REQUIRED = ("data", "model", "task", "optimizer", "schedule", "strategy", "trainer")  # each is built from its _target_


def check_keys(config: DictConfig, base: DictConfig, added: Iterable[str] = ()) -> None:
    """ConfigError unless every key of `config` is in `base` or in `added` (dotted, given with + on purpose)."""
    for key in config:
        if key not in TOP_LEVEL:
            hint = f": it is {MOVED[key]} now" if key in MOVED else did_you_mean(str(key), TOP_LEVEL)
            raise ConfigError(f"unknown key '{key!s}'{hint}")
    _check_below(config, base, "", set(added))
    for group in REQUIRED:
        if "_target_" not in (config.get(group) or ()):
            raise ConfigError(f"{group} has no _target_: choose one of its files, {group}=NAME")
    for group in ("callbacks", "logger"):
        for name, node in (config.get(group) or {}).items():
            if node is not None and not isinstance(node, DictConfig):
                raise ConfigError(f"{group}.{name!s}={node} must be a class to build, with its _target_, or null")
            if node is not None and "_target_" not in node:
                close = difflib.get_close_matches("_target_", map(str, node), n=1, cutoff=0.6)
                hint = f"; did you mean '_target_' instead of '{close[0]}'?" if close else ""
                raise ConfigError(
                    f"{group}.{name!s} has no _target_, so it would do nothing{hint};"
                    " give the class to build, or null to leave it out"
                )


def check_values(config: DictConfig) -> None:
    """ConfigError for a value of the top level that no run can have, or one that is missing."""
    for key in NEEDED:
        group, _, name = key.rpartition(".")
        if name not in ((config.get(group) or {}) if group else config):
            given = map(str, config.get(group) or {} if group else config)
            near = difflib.get_close_matches(name, given, n=1, cutoff=0.85)
            meant = f"; is '{group}{'.' if group else ''}{near[0]}' meant for it?" if near else ""
            raise ConfigError(f"{key} is missing: give it a value instead of leaving it out{meant}")
    seed = config.get("seed")
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise ConfigError(f"seed={seed} must be a whole number from 0 to {2**32 - 1}")
    if not isinstance(config.get("test"), bool):
        raise ConfigError(f"test={config.get('test')} must be true or false")
    if not isinstance(config.get("gap", False), bool):
        raise ConfigError(f"gap={config.get('gap')} must be true or false")
    said = OmegaConf.to_container(config, resolve=False)
    assert isinstance(said, dict)
    pretrained = said.pop("pretrained", None)
    if pretrained is not None and not _stands_in(said, ("${pretrained}", pretrained)):
        raise ConfigError(f"pretrained={pretrained}: nothing here is pretrained; add model=pretrained")
    if not re.fullmatch(r"[\w.+=,-]+", name := str(config.get("name") or "")):
        raise ConfigError(f"name={name} must be a part of a directory's name: letters, digits and . + = , - _")
    how = (config.get("model") or {}).get("compile", False)
    if not isinstance(how, bool | str):
        raise ConfigError(f"model.compile={how} must be true, false or the name of a backend")
    nodes = (config.get("trainer") or {}).get("num_nodes", 1)
    if isinstance(nodes, bool) or not isinstance(nodes, int) or nodes < 1:
        raise ConfigError(f"trainer.num_nodes={nodes} must be a whole number of at least 1")
    if isinstance(place := config.get("run_dir"), DictConfig | ListConfig) or place == "":
        raise ConfigError(f"run_dir={place} must be the path of a directory, or null")
    if config.get("resume") == "":
        raise ConfigError("resume= must be the directory of a run, auto or null")
    devices = OmegaConf.select(config, "trainer.devices", throw_on_resolution_failure=False)
    text = isinstance(devices, str) and re.fullmatch(r"auto|-1|\d+(, ?\d+)*,?", devices)
    elsewhere = devices is None and OmegaConf.is_interpolation(config.trainer, "devices")  # and not to be found there
    if not (text or elsewhere or isinstance(devices, int | ListConfig)) or isinstance(devices, bool):
        raise ConfigError(f"trainer.devices={devices} must be a whole number, a list of GPUs, or auto")
    _refuse_no_number(config, "")


def _stands_in(node: Any, values: tuple[Any, ...]) -> bool:
    """Whether one of the values stands anywhere in plain containers."""
    if isinstance(node, dict | list):
        return any(_stands_in(part, values) for part in (node.values() if isinstance(node, dict) else node))
    return node in values


def _refuse_no_number(node: Any, path: str) -> None:
    """ConfigError for nan, wherever it stands, since it slips through every comparison that could refuse it later, and
    for whole numbers that only Python can hold."""
    keys: Iterable[Any] = range(len(node)) if isinstance(node, ListConfig) else node
    for key in keys:
        value = _said(node, key)
        here = f"{path}[{key}]" if isinstance(node, ListConfig) else f"{path}{'.' if path else ''}{key!s}"
        if isinstance(value, DictConfig | ListConfig):
            _refuse_no_number(value, here)
        elif isinstance(value, float) and math.isnan(value):
            raise ConfigError(f"{here}=nan must be a number")
        elif isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise ConfigError(f"{here}={value} is beyond 64 bits: write it as 1e30 is written if it need not be whole")


def _said(node: DictConfig | ListConfig, key: Any) -> Any:
    """The value itself, None where there is none or where it stands elsewhere."""
    return None if OmegaConf.is_missing(node, key) or OmegaConf.is_interpolation(node, key) else node[key]


def _check_below(node: Any, base: Any, path: str, added: set[str]) -> None:
    if not isinstance(node, DictConfig) or not isinstance(base, DictConfig):
        return
    for key in node:
        here = f"{path}{key!s}"
        if here in added or here == "phases":  # each of them is composed, and checked, by itself
            continue
        if key not in base and path in EXTENSIBLE:
            continue  # what is built says whether it takes it
        if key not in base:
            hint = f": it is {MOVED[here]} now" if here in MOVED else did_you_mean(str(key), map(str, base))
            raise ConfigError(f"unknown key '{here}'{hint}")
        _check_below(_said(node, key), _said(base, key), f"{here}.", added)
