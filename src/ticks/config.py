"""Strict configuration: what Hydra composes is checked before anything is built.

Two passes. `check_keys` needs no torch: every key must exist in the configuration that the chosen groups compose
without experiment and debug files, so a typo inside such a file is an error too. `check_targets` imports each
`_target_` and compares its arguments. Every error names the key, the value and what would be valid.
"""

import difflib
import hashlib
import importlib
import inspect
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

TOP_LEVEL = {
    "name", "seed", "resume", "test", "sample_bytes", "run_dir", "data", "model", "task", "strategy", "trainer",
    "callbacks", "logger",
}  # fmt: skip
OVERLAYS = ("experiment", "debug")  # groups whose files may change existing keys but not add any
NOT_DIGESTED = ("run_dir", "resume", "name")  # where a run lies and is called does not make it another experiment


class ConfigError(Exception):
    """A user's mistake in the configuration. Its text is the whole message."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """ "; did you mean 'x'? valid: a, b, x", with the valid names sorted."""
    names = sorted(str(k) for k in known)
    close = difflib.get_close_matches(str(name), names, n=1, cutoff=0.6)
    return (f"; did you mean '{close[0]}'?" if close else ";") + f" valid: {', '.join(names)}"


def compose_strictly(overrides: Sequence[str], config_dir: Path) -> DictConfig:
    """The configuration that `overrides` compose, its keys checked. ConfigError for any mistake in them."""
    parsed = _parse(overrides)
    try:
        with _hydra(config_dir):
            config = compose("train", overrides=list(overrides), return_hydra_config=True)
            choices = OmegaConf.to_container(config.hydra.runtime.choices)
            base = compose("train", overrides=_without_overlays(parsed, choices))
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_explain(error, parsed, config_dir)) from None
    config = _without_hydra(config)
    added = {o.key_or_group for o in parsed if o.is_add()}
    check_keys(config, base, added)
    return config


def _without_hydra(config: DictConfig) -> DictConfig:
    OmegaConf.set_readonly(config, False)
    OmegaConf.set_struct(config, False)
    config.pop("hydra")
    return config


def _hydra(config_dir: Path) -> initialize_config_dir:
    GlobalHydra.instance().clear()
    return initialize_config_dir(str(config_dir.resolve()), version_base="1.3")


def _parse(overrides: Sequence[str]) -> list[Override]:
    try:
        return OverridesParser.create().parse_overrides(list(overrides))
    except HydraException as error:
        raise ConfigError(f"cannot read the command line: {error}") from None


def _without_overlays(parsed: Sequence[Override], choices: Any) -> list[str]:
    """Overrides that choose the same groups, but no experiment and no debug file."""
    groups = {g: c for g, c in choices.items() if not g.startswith("hydra") and g not in OVERLAYS and c is not None}
    kept = [str(o.input_line) for o in parsed if o.is_add() or o.is_delete()]
    return [f"{group}={choice}" for group, choice in groups.items()] + kept


def check_keys(config: DictConfig, base: DictConfig, added: Iterable[str] = ()) -> None:
    """ConfigError unless every key of `config` is in `base` or in `added` (dotted, given with + on purpose)."""
    for key in config:
        if key not in TOP_LEVEL:
            raise ConfigError(f"unknown key '{key!s}'{did_you_mean(str(key), TOP_LEVEL)}")
    _check_below(config, base, "", set(added))
    for group in ("callbacks", "logger"):
        for name, node in (config.get(group) or {}).items():
            if node is not None and "_target_" not in node:
                raise ConfigError(
                    f"{group}.{name!s} has no _target_, so it would do nothing{did_you_mean('_target_', node)};"
                    " give the class to build, or null to leave it out"
                )


def _check_below(node: Any, base: Any, path: str, added: set[str]) -> None:
    if not isinstance(node, DictConfig) or not isinstance(base, DictConfig):
        return
    for key in node:
        here = f"{path}{key!s}"
        if here in added:
            continue
        if key not in base:
            raise ConfigError(f"unknown key '{here}'{did_you_mean(str(key), map(str, base))}")
        _check_below(node._get_node(key), base._get_node(key), f"{here}.", added)


def check_targets(node: Any, path: str = "") -> None:
    """ConfigError if a `_target_` below `node` does not exist or does not take the arguments it is given."""
    if isinstance(node, ListConfig):
        for i, item in enumerate(node):
            check_targets(item, f"{path}[{i}]")
    if not isinstance(node, DictConfig):
        return
    if "_target_" in node:
        _check_target(node, path)
    for key in node:
        if not OmegaConf.is_missing(node, key):
            check_targets(node[key], f"{path}.{key!s}" if path else str(key))


def _check_target(node: DictConfig, path: str) -> None:
    try:
        parameters = inspect.signature(locate(node["_target_"])).parameters
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{path}._target_={node['_target_']}: {error}") from None
    names = _argument_names(locate(node["_target_"]), parameters)
    for key in node:
        if not str(key).startswith("_") and names is not None and key not in names:
            raise ConfigError(
                f"{path}.{key!s}={node[key]}: {node['_target_']} takes no '{key!s}'{did_you_mean(str(key), names)}"
            )


def _argument_names(target: Any, parameters: Any) -> set[str] | None:
    """Names a target takes; through **kwargs those of its base classes as well; None if anything goes."""
    kinds = {p.kind for p in parameters.values()}
    names = {n for n, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)} - {"self"}
    if inspect.Parameter.VAR_KEYWORD not in kinds:
        return names
    if not inspect.isclass(target) or not target.__module__.startswith("ticks."):
        return None
    for base in target.__mro__[1:]:
        if "__init__" in vars(base) and base is not object:
            own = inspect.signature(vars(base)["__init__"]).parameters
            names |= {n for n, p in own.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)} - {"self"}
            if not any(p.kind == p.VAR_KEYWORD for p in own.values()):
                break
    return names


def locate(target: str) -> Any:
    """The object with the dotted name `target`. ImportError or AttributeError if there is none."""
    module, _, name = target.rpartition(".")
    return getattr(importlib.import_module(module), name)


def build(node: DictConfig | None, path: str, *args: Any, **kwargs: Any) -> Any:
    """Build the object that `node` describes; what its class refuses becomes a ConfigError that names the key."""
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    if node is None:
        return None
    try:
        return instantiate(node, *args, _convert_="all", **kwargs)
    except InstantiationException as error:
        cause = error.__cause__ or error
        if isinstance(cause, (ValueError, TypeError, OSError)) or type(cause).__name__ == "MisconfigurationException":
            raise ConfigError(f"{_full_key(error, path)}: {cause}") from error
        raise


def _full_key(error: Exception, path: str) -> str:
    inner = str(error).rpartition("full_key: ")[2].strip() if "full_key: " in str(error) else ""
    return f"{path}.{inner}" if inner else path


def plain(config: DictConfig) -> dict[str, Any]:
    """The configuration as plain containers, interpolations resolved. ConfigError if one cannot be."""
    try:
        return OmegaConf.to_container(config, resolve=True, throw_on_missing=True)  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        raise ConfigError(str(error).splitlines()[0]) from None


def digest(config: DictConfig) -> str:
    """Twelve hexadecimal digits that two configurations share if they describe the same experiment."""
    content = {key: value for key, value in plain(config).items() if key not in NOT_DIGESTED}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def _explain(error: Exception, parsed: Sequence[Override], config_dir: Path) -> str:
    """Hydra's error in one line, with what would have been valid."""
    first = str(error).splitlines()[0]
    for override in parsed:
        key = override.key_or_group
        folder = config_dir / key
        if folder.is_dir() and override.value() is not None:
            options = {file.stem for file in folder.glob("*.yaml")}
            if str(override.value()) not in options:
                return f"{key}={override.value()} is unknown{did_you_mean(str(override.value()), options)}"
        if f"'{key}'" in first or first.endswith(key):
            return f"unknown key '{key}' (value {override.value()!r}){_valid_siblings(key, config_dir)}"
    return first


def _valid_siblings(key: str, config_dir: Path) -> str:
    """What exists where the unknown `key` was looked for, in the default configuration."""
    with _hydra(config_dir):
        node: Any = compose("train")
    *parents, name = key.split(".")
    for parent in parents:
        if not isinstance(node, DictConfig) or parent not in node:
            name = parent
            break
        node = node[parent]
    groups = {p.name for p in config_dir.iterdir() if p.is_dir()} if node is not None and not parents else set()
    known = {str(k) for k in node} if isinstance(node, DictConfig) else set()
    return did_you_mean(name, known | groups)
