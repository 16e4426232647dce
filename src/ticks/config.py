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
import math
import os
import re
import shlex
import tempfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

NEEDED = ("name", "seed", "resume", "test", "sample_bytes", "run_dir", "trainer.accelerator", "trainer.devices",
          "trainer.max_steps",
          "trainer.val_check_interval")  # fmt: skip
TOP_LEVEL = {
    "name", "seed", "resume", "test", "sample_bytes", "sample_prompt", "run_dir", "data", "model", "task", "strategy",
    "trainer", "callbacks", "logger",
}  # fmt: skip
REQUIRED = ("data", "model", "task", "strategy", "trainer")  # each is built from its _target_
OVERLAYS = ("experiment", "debug")  # groups whose files may change existing keys but not add any
# where a run lies, how it is called and what is shown of it does not make it another experiment
NOT_DIGESTED = ("run_dir", "resume", "name", "sample_prompt")


class ConfigError(Exception):
    """A user's mistake in the configuration. Its text is the whole message."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """ "; did you mean 'x'? valid: a, b, x", with the valid names sorted."""
    names = sorted(str(k) for k in known)
    close = difflib.get_close_matches(str(name), names, n=1, cutoff=0.6)
    return (f"; did you mean '{close[0]}'?" if close else ";") + f" valid: {', '.join(names)}"


def compose_strictly(overrides: Sequence[str], config_dir: Path, *, place: str | None = None) -> DictConfig:
    """The configuration that `overrides` compose, its keys checked. ConfigError for any mistake in them.

    `place` is the key of the directory that Hydra will make, which must be possible.
    """
    config = _compose_checked(overrides, config_dir)
    if place and (directory := OmegaConf.select(config, place)):
        check_place(str(directory), place)
    return _without_hydra(config)


def _compose_checked(overrides: Sequence[str], config_dir: Path) -> DictConfig:
    """The same with what it says of Hydra itself."""
    parsed = _parse(overrides)
    for override in parsed:
        if override.is_delete() and (key := override.key_or_group) in REQUIRED:
            chosen = ", ".join(f"{key}={option}" for option in sorted(group_options(config_dir / key)))
            raise ConfigError(f"{override.input_line}: a run needs one: {chosen}")
    try:
        with _hydra(config_dir):
            config = compose("train", overrides=list(overrides), return_hydra_config=True)
            choices: Any = OmegaConf.to_container(config.hydra.runtime.choices)
            named = {group for group in OVERLAYS if choices.get(group)} | {o.key_or_group for o in parsed}
            overlaid = not named.isdisjoint(OVERLAYS)
            base = compose("train", overrides=_without_overlays(parsed, choices, config_dir)) if overlaid else config
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise ConfigError(_explain(error, parsed, config_dir)) from None
    except (AttributeError, AssertionError) as error:  # OmegaConf's, for a key below a typed null
        what = str(error).splitlines()[0]
        raise ConfigError(f"cannot be set on the command line: one of {', '.join(overrides)} ({what})") from None
    for override in parsed:
        _refuse_a_value_for_a_group(override, config_dir)
    added = {o.key_or_group for o in parsed if o.is_add()}
    own = _without_hydra(config.copy())
    check_keys(own, own if base is config else base, added)
    check_values(own)
    return config


def _refuse_a_value_for_a_group(override: Override, config_dir: Path) -> None:
    """ConfigError for `strategy.sync=outer`: files are chosen with a slash."""
    key, value = override.key_or_group, override.value()
    options = sorted(group_options(config_dir / key.replace(".", "/"))) if "." in key else []
    if options and isinstance(value, str | int | float) and not isinstance(value, bool):
        with _hydra(config_dir):
            names = OmegaConf.select(compose("train"), key)
        inner = [str(name) for name in names if not str(name).startswith("_")] if isinstance(names, DictConfig) else []
        or_one = f"; one of its values: {key}.{inner[0]}={value}" if len(inner) == 1 else ""
        raise ConfigError(
            f"{key}={value}: choose a file with {key.replace('.', '/')}=NAME ({', '.join(options)}){or_one}"
        )


def default_choices(config_dir: Path) -> dict[str, str]:
    """The file that is chosen from each group where nothing else is said."""
    choices: Any = OmegaConf.to_container(_compose_checked([], config_dir).hydra.runtime.choices)
    return {group: str(choice) for group, choice in choices.items() if choice is not None}


def check_sweep(overrides: Sequence[str], config_dir: Path) -> list[list[str]]:
    """Check what `--multirun` will compose. ConfigError for any mistake in it.

    With Hydra's own sweeper that is every job; their overrides are returned. Another one (`hydra/sweeper=optuna`)
    chooses as it goes: each value it can choose is checked beside the first values of the others, and [] is returned.
    """
    parsed = _parse_sweep(overrides, config_dir)
    sweeper = _compose_checked([_values(o)[0] for o in parsed], config_dir).hydra.sweeper
    own = str(sweeper._target_).endswith(".BasicSweeper")
    params = [f"{key}={value}" for key, value in (sweeper.get("params") or {}).items() if own or isinstance(value, str)]
    parsed = _parse_sweep(params, config_dir) + [o for o in parsed if not o.is_hydra_override()]
    if own:
        jobs = _split(parsed)
    else:
        values = [_values(override) for override in parsed]
        first = [options[0] for options in values]
        jobs = [[*first[:i], value, *first[i + 1 :]] for i, options in enumerate(values) for value in options[1:]]
        jobs.insert(0, first)
    for job in jobs:
        if (run_dir := compose_strictly(job, config_dir, place="hydra.sweep.dir").run_dir) is not None:
            raise ConfigError(f"run_dir={run_dir}: each job of a multirun has its own; set hydra.sweep.dir")
    return jobs if own else []


def _parse_sweep(overrides: Sequence[str], config_dir: Path) -> list[Override]:
    with _hydra(config_dir):  # which knows what glob(*) finds
        loader = GlobalHydra.instance().config_loader()
        return [_parse_one(text, loader) for text in overrides]


def _split(parsed: list[Override]) -> list[list[str]]:
    """The overrides of each job, as Hydra's own sweeper cuts them."""
    try:
        from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    except ImportError as error:
        raise ConfigError(f"this Hydra is not known here: {error}: pip install 'hydra-core==1.3.*'") from None
    try:
        return [job for batch in BasicSweeper.split_arguments(parsed, max_batch_size=None) for job in batch]
    except HydraException as error:
        raise ConfigError(f"cannot read the command line: {str(error).splitlines()[0]}") from None


def _values(override: Override) -> list[str]:
    """An override for each value that a sweep can choose; of an interval, for its ends."""
    if not override.is_sweep_override():
        return [str(override.input_line)]
    value: Any = override.value()
    discrete = override.is_discrete_sweep()
    values = list(override.sweep_string_iterator()) if discrete else [value.start, value.end]
    if not values:
        raise ConfigError(f"{override.input_line}: there is no such file or value")
    return [f"{override.get_key_element()}={value}" for value in values]


def check_place(directory: str, key: str) -> None:
    """ConfigError unless something can be written to `directory`, or to the nearest folder above it that exists."""
    path = Path(directory).absolute()
    if path == Path.cwd():
        return  # it is there, and Hydra writes nothing into it
    place = next(p for p in (path, *path.parents) if os.path.lexists(p))
    try:
        with tempfile.TemporaryDirectory(prefix=".ticks-", dir=place):
            pass
    except OSError as error:
        raise ConfigError(
            f"nothing can be written to {directory} ({place}: {error.strerror}): start in a directory that can be"
            f" written, or name a place with {key}=DIRECTORY"
        ) from None


def _without_hydra(config: DictConfig) -> DictConfig:
    OmegaConf.set_readonly(config, False)
    OmegaConf.set_struct(config, False)
    config.pop("hydra")
    return config


def _hydra(config_dir: Path) -> initialize_config_dir:
    GlobalHydra.instance().clear()
    return initialize_config_dir(str(config_dir.resolve()), version_base="1.3")


def _parse(overrides: Sequence[str]) -> list[Override]:
    parsed = [_parse_one(text) for text in overrides]
    for text, override in zip(overrides, parsed, strict=True):
        if override.is_sweep_override():
            comma = f"; if it is one value, quote it: {quoted(text)}" if "," in text else ""
            raise ConfigError(f"{text}: several values are several runs: add --multirun{comma}")
    return parsed


def _parse_one(text: str, loader: Any = None) -> Override:
    try:
        (override,) = OverridesParser.create(config_loader=loader).parse_overrides([text])
    except HydraException:
        override = None
    if override is None or not override.key_or_group:
        hint = f": {quoted(text)}" if "=" in text else ""
        raise ConfigError(f"cannot read '{text}': write KEY=VALUE, and quote a value that has special characters{hint}")
    return override


def quoted(override: str) -> str:
    """KEY=VALUE with the value as a text, as it is typed in a shell: once quoted for Hydra, once for the shell."""
    key, _, value = override.partition("=")
    escaped = re.sub(r'(\\*)("|\Z)', lambda match: match[1] * 2 + ('\\"' if match[2] else ""), value)
    return shlex.quote(f'{key}="{escaped}"')


def with_home_directory(argument: str) -> str:
    """KEY=~/PATH, which Hydra cannot read, with the path as a quoted text; anything else as it is."""
    key, _, value = argument.partition("=")
    if not key or not re.match(r"~\w*/", value):
        return argument
    expanded = f"{key}={os.path.expanduser(value)}"
    return expanded if key == "resume" else shlex.split(quoted(expanded))[0]  # resume is no value of Hydra's


def _without_overlays(parsed: Sequence[Override], choices: Any, config_dir: Path) -> list[str]:
    """Overrides that choose the same groups, but no experiment and no debug file."""
    groups = {g: c for g, c in choices.items() if not g.startswith("hydra") and g not in OVERLAYS and c is not None}
    lists = [o for o in _of_groups(parsed, config_dir) if o.key_or_group not in (*groups, *OVERLAYS)]
    kept = [str(o.input_line) for o in parsed if o.is_add() or o.is_delete() or o in lists]
    return [f"{group}={choice}" for group, choice in groups.items()] + kept


def _of_groups(parsed: Sequence[Override], config_dir: Path) -> list[Override]:
    return [o for o in parsed if (config_dir / o.key_or_group).is_dir()]


def check_keys(config: DictConfig, base: DictConfig, added: Iterable[str] = ()) -> None:
    """ConfigError unless every key of `config` is in `base` or in `added` (dotted, given with + on purpose)."""
    for key in config:
        if key not in TOP_LEVEL:
            raise ConfigError(f"unknown key '{key!s}'{did_you_mean(str(key), TOP_LEVEL)}")
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
            near = difflib.get_close_matches(name, map(str, config.get(group) or {} if group else config), n=1)
            meant = f"; is '{group}{'.' if group else ''}{near[0]}' meant for it?" if near else ""
            raise ConfigError(f"{key} is missing: give it a value, or null, instead of leaving it out{meant}")
    for key, least, most in (("seed", 0, 2**32 - 1), ("sample_bytes", 0, 10**6)):
        value = config.get(key)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise ConfigError(f"{key}={value} must be a whole number from {least} to {most}")
    if not isinstance(prompt := config.get("sample_prompt"), str):
        raise ConfigError(f"sample_prompt={prompt} must be a text: {quoted(f'sample_prompt={prompt}')}")
    if not isinstance(config.get("test"), bool):
        raise ConfigError(f"test={config.get('test')} must be true or false")
    if not re.fullmatch(r"[\w.+=,-]+", name := str(config.get("name") or "")):
        raise ConfigError(f"name={name} must be a part of a directory's name: letters, digits and . + = , - _")
    nodes = (config.get("trainer") or {}).get("num_nodes", 1)
    if isinstance(nodes, bool) or not isinstance(nodes, int) or nodes < 1:
        raise ConfigError(f"trainer.num_nodes={nodes} must be a whole number of at least 1")
    if isinstance(place := config.get("run_dir"), DictConfig | ListConfig) or place == "":
        raise ConfigError(f"run_dir={place} must be the path of a directory, or null")
    if config.get("resume") == "":
        raise ConfigError("resume= must be the directory of a run, auto or null")
    devices = OmegaConf.select(config, "trainer.devices", throw_on_resolution_failure=False)
    if isinstance(devices, str) and not re.fullmatch(r"auto|-1|\d+(, ?\d+)*,?", devices):
        raise ConfigError(f"trainer.devices={devices} must be a whole number, a list of GPUs, or auto")
    _refuse_no_number(config, "")


def _refuse_no_number(node: Any, path: str) -> None:
    """ConfigError for nan, wherever it stands, since it slips through every comparison that could refuse it later, and
    for whole numbers that only Python can hold."""
    keys: Iterable[Any] = range(len(node)) if isinstance(node, ListConfig) else node
    for key in keys:
        value = node._get_node(key)
        here = f"{path}[{key}]" if isinstance(node, ListConfig) else f"{path}{'.' if path else ''}{key!s}"
        if isinstance(value, DictConfig | ListConfig):
            if not (value._is_none() or value._is_missing() or value._is_interpolation()):
                _refuse_no_number(value, here)
        elif isinstance(number := value._value(), float) and math.isnan(number):
            raise ConfigError(f"{here}=nan must be a number")
        elif isinstance(number, int) and not -(2**63) <= number < 2**63:
            raise ConfigError(f"{here}={number} is beyond 64 bits: write it as 1e30 is written if it need not be whole")


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
        target = locate(node["_target_"])
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{path}._target_={node['_target_']}: {error}") from None
    if not callable(target):
        raise ConfigError(f"{path}._target_={node['_target_']}: a {type(target).__name__}, neither class nor function")
    names = _arguments(target)
    for flag in ("_partial_", "_recursive_"):
        if not isinstance(node.get(flag, False), bool):
            raise ConfigError(f"{path}.{flag}={node[flag]} must be true or false")
    for key in node:
        if str(key).startswith("_") or names is None or OmegaConf.is_missing(node, key):
            continue
        if key not in names:
            raise ConfigError(
                f"{path}.{key!s}={node[key]}: {node['_target_']} takes no '{key!s}'{did_you_mean(str(key), names)}"
            )
        if not _fits(node[key], names[str(key)]):
            what = _in_words(names[str(key)])
            given = f"{path}.{key!s}={node[key]}"
            is_text = type(node[key]) is int and _fits("", names[str(key)])
            hint = f"; if it is a text, quote it: {quoted(given)}" if is_text else ""
            raise ConfigError(f"{given} must be {what}{hint}")


def _in_words(annotation: Any) -> str:
    """What an argument of this type can be."""
    words = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", type(None): "null"}
    members = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else [annotation]
    return " or ".join(words.get(member) or inspect.formatannotation(member) for member in members)


def _arguments(target: Any) -> dict[str, Any] | None:
    """Names and types of the arguments a target takes; through **kwargs those of its base classes as well; None if
    anything goes."""
    own, more = _own_arguments(target)
    if not more:
        return own
    if not inspect.isclass(target) or not target.__module__.startswith("ticks."):
        return None
    names: dict[str, Any] = {}
    for base in target.__mro__[:-1]:
        if "__init__" in vars(base):
            own, more = _own_arguments(vars(base)["__init__"])
            names = own | names
            if not more:
                break
    return names


def _own_arguments(function: Any) -> tuple[dict[str, Any], bool]:
    """Arguments by name, with their types (Any where not said), and whether it has **kwargs."""
    try:
        parameters = inspect.signature(function).parameters
    except ValueError:  # written in C
        return {}, True
    try:
        types = get_type_hints(function.__init__ if inspect.isclass(function) else function)
    except Exception:  # a type that exists for type checkers only
        types = {}
    named = [p for p in parameters.values() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    more = any(p.kind == p.VAR_KEYWORD for p in parameters.values())
    return {p.name: types.get(p.name, Any) for p in named if p.name != "self"}, more


def _fits(value: Any, annotation: Any) -> bool:
    """Whether a value from a configuration can be meant for an argument of this type; in doubt, it does."""
    if get_origin(annotation) in (Union, UnionType):
        return any(_fits(value, member) for member in get_args(annotation))
    kind = get_origin(annotation) or annotation
    if not isinstance(kind, type) or kind is object:
        return True
    if isinstance(value, DictConfig):
        return "_target_" in value or issubclass(kind, Mapping)
    if isinstance(value, ListConfig):
        return issubclass(kind, Collection) and kind is not str
    if isinstance(value, bool):
        return kind in (bool, object)
    if isinstance(value, int):
        return kind in (int, float, object)
    try:
        return isinstance(value, kind) or (kind is Path and isinstance(value, str))
    except TypeError:  # a protocol
        return True


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
        mistakes = (ValueError, TypeError, LookupError, OSError, ImportError)
        if is_out_of_memory(cause):
            raise ConfigError(f"{path} does not fit into memory: {str(cause).splitlines()[0]}") from error
        if isinstance(cause, mistakes) or type(cause).__name__ == "MisconfigurationException":
            key = _full_key(error, path)
            about = re.match(r"(\w+)=", str(cause))  # "lr=-1 must not be negative" begins with an argument
            failed = OmegaConf.select(node, key.removeprefix(path)[1:]) if key != path else node
            between = "." if about and about[1] in (failed or ()) else ": "
            raise ConfigError(f"{key}{between}{cause}") from error
        raise


def is_out_of_memory(error: BaseException) -> bool:
    """Of Python, of a GPU, or, known by its words alone, of the CPU."""
    words = "can't allocate memory"
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or words in str(error)


def _full_key(error: Exception, path: str) -> str:
    inner = str(error).rpartition("full_key: ")[2].strip() if "full_key: " in str(error) else ""
    return inner if inner.startswith(path) else f"{path}.{inner}".rstrip(".")


def plain(config: DictConfig) -> dict[str, Any]:
    """The configuration as plain containers, interpolations resolved. ConfigError if one cannot be."""
    try:
        return OmegaConf.to_container(config, resolve=True, throw_on_missing=True)  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        raise ConfigError(str(error).splitlines()[0]) from None


def digest(config: DictConfig) -> str:
    """Twelve hexadecimal digits that two configurations share if they describe the same experiment."""
    neutral = config.copy()
    for key in NOT_DIGESTED:  # what is derived from them (a checkpoint's path, a logger's name) must not count either
        OmegaConf.update(neutral, key, None, force_add=True)
    content = {key: value for key, value in plain(neutral).items() if key not in NOT_DIGESTED}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def _explain(error: Exception, parsed: Sequence[Override], config_dir: Path) -> str:
    """Hydra's error in one line, with what would have been valid."""
    first = str(error).splitlines()[0]
    for override in _of_groups(parsed, config_dir):
        value, options = override.value(), group_options(config_dir / override.key_or_group)
        if not isinstance(value, list) and not override.is_delete() and str(value) not in options:
            shown = "null" if value is None else value
            return f"{override.key_or_group}={shown} is unknown{did_you_mean(str(shown), options)}"
    for override in parsed:
        key = override.key_or_group
        if f"'{key}'" in first or first.endswith(key):
            group, _, part = key.rpartition("/")
            if group and (config_dir / key).is_dir():
                chosen = next((str(o.input_line) for o in parsed if o.key_or_group == group), f"this {group}")
                return f"{override.input_line} chooses nothing: {chosen} has no {part}"
            if override.is_delete() and override.value() is None:
                return f"{override.input_line}: there is no such key, or it is null already"
            return f"unknown key '{key}' (value {override.value()!r}){_valid_siblings(key, parsed, config_dir)}"
    return first


def group_options(group: Path) -> set[str]:
    """The names of the files that can be chosen from the folder of a group."""
    return {file.stem for file in group.glob("*.yaml")} - {"base"}  # base: what the group's files share


def _valid_siblings(key: str, parsed: Sequence[Override], config_dir: Path) -> str:
    """What exists where the unknown `key` was looked for, in the groups that were chosen."""
    groups = [str(o.input_line) for o in _of_groups(parsed, config_dir) if o.key_or_group != key]
    with _hydra(config_dir):
        try:
            node: Any = compose("train", overrides=groups)
        except (HydraException, OmegaConfBaseException, ValueError):
            node = compose("train")
    *parents, name = key.split(".")
    above = ""
    for parent in parents:
        if not isinstance(node, DictConfig) or parent not in node:
            name = parent
            break
        node, above = node[parent], f"{above}{'.' if above else ''}{parent}"
    if not isinstance(node, DictConfig):
        options = group_options(config_dir / above.replace(".", "/"))
        choice = f"; {above.replace('.', '/')} can be: {', '.join(sorted(options))}" if options else ""
        return f": {above} is {node if node is not None else 'null'} here{choice}"
    elsewhere = [
        f"{above}={f.stem}" for f in sorted((config_dir / above).glob("*.yaml")) if above and _has_key(f, name)
    ]
    folders = {p.name for p in config_dir.iterdir() if p.is_dir()} - {"sweep"} if not above else set()
    hint = f"; {' and '.join(elsewhere)} has it" if elsewhere else ""
    return hint + did_you_mean(name, {str(k) for k in node} | folders)


def _has_key(file: Path, name: str) -> bool:
    content = OmegaConf.load(file)
    return isinstance(content, DictConfig) and name in content
