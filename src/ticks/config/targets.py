"""Every `_target_` is imported, its arguments are compared with its signature, and it is built."""

import importlib
import inspect
from collections.abc import Collection, Mapping
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ticks.arguments import ArgumentError, under
from ticks.config.hydra import config_folders
from ticks.config.messages import ConfigError, did_you_mean, quoted

OURS = __name__.partition(".")[0] + "."  # classes here hand all that they do not know to their bases
BESIDE = {"model": ("compile",)}  # keys of a group that are not for its class
PARTS = ("model", "optimizer", "schedule")  # of a task, which are built for it


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
        if str(key).startswith("_") or names is None or OmegaConf.is_missing(node, key) or key in BESIDE.get(path, ()):
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
    if not inspect.isclass(target) or not any(base.__module__.startswith(OURS) for base in target.__mro__):
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
    if kind in (Any, object) or not isinstance(kind, type):  # Any is a class from Python 3.11 on
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


def takes(node: DictConfig, argument: str) -> bool:
    """Whether the class of `node` has an argument of this name."""
    return argument in (_arguments(locate(node["_target_"])) or ())


def offered(node: DictConfig, path: str, offers: Mapping[str, Any], source: str) -> dict[str, Any]:
    """What of `offers` the class of `node` takes and has not got. ConfigError if it needs what nobody gives."""
    given = {name: value for name, value in offers.items() if takes(node, name) and name not in node}
    needed = [name for name in _required(locate(node["_target_"])) if name not in node and name not in given]
    needed = [name for name in needed if name not in PARTS]
    if needed and not node.get("_partial_"):
        has = ", ".join(offers) or "nothing"
        name = str(node["_target_"]).rpartition(".")[2]
        values = " ".join(f"+{path}.{argument}=VALUE" for argument in needed)
        others = choices_that_fit(path, offers)
        instead = f"choose one that fits: {path}={f', {path}='.join(others)}" if others else f"choose another {path}"
        raise ConfigError(
            f"{path}: {name} needs {', '.join(needed)}, which {source} does not give (it gives: {has}): {instead},"
            f" or set {values}"
        )
    return given


def choices_that_fit(group: str, offers: Mapping[str, Any]) -> list[str]:
    """The files of a group whose class gets all that it needs from `offers` and from its file; none outside Hydra."""
    fit = []
    for file in sorted(file for folder in config_folders() for file in (folder / group).glob("*.yaml")):
        try:
            content: Any = OmegaConf.to_container(OmegaConf.load(file))
            below = {key for entry in content.get("defaults", []) if isinstance(entry, dict) for key in entry}
            needed = set(_required(locate(content["_target_"]))) - content.keys() - below - offers.keys() - {*PARTS}
        except (KeyError, ImportError, AttributeError, ValueError, OSError, yaml.YAMLError, OmegaConfBaseException):
            continue  # it builds on another file, or cannot be read: not what to recommend
        if not needed and offers.keys() & set(_arguments(locate(content["_target_"])) or ()):
            fit.append(file.stem)
    return fit


def _required(target: Any) -> list[str]:
    """Arguments without a default."""
    try:
        parameters = inspect.signature(target).parameters.values()
    except ValueError:  # written in C
        return []
    return [p.name for p in parameters if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]


def build(node: DictConfig | None, path: str, *args: Any, **kwargs: Any) -> Any:
    """Build the object that `node` describes; what its class refuses becomes a ConfigError that names the key."""
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    if node is None:
        return None
    node = node.copy()
    for key in BESIDE.get(path, ()):
        node.pop(key, None)
    try:
        return instantiate(node, *args, _convert_="all", **kwargs)
    except InstantiationException as error:
        cause = error.__cause__ or error
        mistakes = (ValueError, TypeError, LookupError, OSError, ImportError)
        if is_out_of_memory(cause):
            raise ConfigError(f"{path} does not fit into memory: {str(cause).splitlines()[0]}") from error
        if isinstance(cause, mistakes) or type(cause).__name__ == "MisconfigurationException":
            key = _full_key(error, path)
            failed = (OmegaConf.select(node, key.removeprefix(path)[1:]) if key != path else node) or {}
            of_a_part = isinstance(cause, ArgumentError) and cause.argument.partition(".")[0] not in failed
            raise ConfigError(f"{key}: {cause}" if of_a_part else under(key, cause)) from error
        raise cause from None  # a mistake in the class: its trace says where


def is_out_of_memory(error: BaseException) -> bool:
    """Of Python, of a GPU, or, known by its words alone, of the CPU."""
    words = "can't allocate memory"
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or words in str(error)


def _full_key(error: Exception, path: str) -> str:
    inner = str(error).rpartition("full_key: ")[2].strip() if "full_key: " in str(error) else ""
    return inner if inner.startswith(path) else f"{path}.{inner}".rstrip(".")
