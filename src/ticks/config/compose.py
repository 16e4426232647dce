"""What Hydra composes, checked before anything is built, for one run and for many."""

import os
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ticks.config.hydra import in_hydra, jobs_of_a_grid
from ticks.config.keys import MOVED, REQUIRED, check_keys, check_values
from ticks.config.messages import ConfigError, did_you_mean
from ticks.config.overrides import group_options, of_groups, parse, parse_one

PLUGINS = dict.fromkeys(
    ("joblib", "submitit_local", "submitit_slurm"), ': it is in an extra, pip install -e ".[launchers]"'
)  # launchers of Hydra's that are packages of their own
HYDRA_GROUPS = (
    "callbacks",
    "env",
    "help",
    "hydra_help",
    "hydra_logging",
    "job_logging",
    "launcher",
    "output",
    "sweeper",
)
OVERLAYS = ("experiment", "debug")  # groups whose files may change existing keys but not add any


def compose_strictly(
    overrides: Sequence[str], config_dir: Path, *, place: str | None = None, keep: bool = False
) -> DictConfig:
    """The configuration that `overrides` compose, its keys checked. ConfigError for any mistake in them.

    `place` is the key of the directory that Hydra will make, which must be possible; what is said of Hydra itself, the
    key `hydra`, stays in it only if it is to `keep`.
    """
    config = _compose_checked(overrides, config_dir)
    if place and (directory := OmegaConf.select(config, place)):
        check_place(str(directory), place)
    return config if keep else _without_hydra(config)


def composed(overrides: Sequence[str], config_dir: Path, *, check: bool = True) -> tuple[DictConfig, dict[str, str]]:
    """The same configuration, and the file that was chosen from each group; its keys unchecked, if so asked."""
    config = _compose_checked(overrides, config_dir, keys=check)
    choices = {group: str(choice) for group, choice in config.hydra.runtime.choices.items() if choice is not None}
    return _without_hydra(config), {group: choice for group, choice in choices.items() if not group.startswith("hydra")}


def _compose_checked(overrides: Sequence[str], config_dir: Path, *, keys: bool = True) -> DictConfig:
    """The same with what it says of Hydra itself."""
    parsed = parse(overrides)
    for override in parsed:
        if override.is_delete() and (key := override.key_or_group) in REQUIRED:
            chosen = ", ".join(f"{key}={option}" for option in sorted(group_options(config_dir / key)))
            raise ConfigError(f"{override.input_line}: a run needs one: {chosen}")
    try:
        with in_hydra(config_dir):
            config = compose("train", overrides=list(overrides), return_hydra_config=True)
            choices: Any = OmegaConf.to_container(config.hydra.runtime.choices)
            leave_out(config, choices, config_dir, overrides)
            named = {group for group in OVERLAYS if choices.get(group)} | {o.key_or_group for o in parsed}
            overlaid = not named.isdisjoint(OVERLAYS)
            base = config
            if overlaid and keys:
                base = _base(
                    tuple(_without_overlays(parsed, choices, config_dir)), config_dir.resolve(), _seen(config_dir)
                )
    except yaml.YAMLError as error:
        raise ConfigError(f"a file cannot be read: {' '.join(str(error).split())}") from None
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        for override in parsed:
            _refuse_a_value_for_a_group(override, parsed, config_dir)
        raise ConfigError(_explain(error, parsed, config_dir)) from None
    except (AttributeError, AssertionError) as error:  # OmegaConf's, for a key below a typed null
        what = str(error).splitlines()[0]
        raise ConfigError(f"cannot be set on the command line: one of {', '.join(overrides)} ({what})") from None
    for override in parsed:
        _refuse_a_value_for_a_group(override, parsed, config_dir)
    if not keys:
        return config
    added = {o.key_or_group for o in parsed if o.is_add()}
    own = _without_hydra(config.copy())
    check_keys(own, own if base is config else base, added)
    check_values(own)
    return config


@lru_cache(maxsize=64)
def _base(overrides: tuple[str, ...], config_dir: Path, seen: frozenset[Any]) -> DictConfig:
    """What `overrides` compose, to be read only: jobs of a sweep and phases of a run have the same. `seen`: the files
    as they were then."""
    return compose("train", overrides=list(overrides))


def _seen(config_dir: Path) -> frozenset[Any]:
    """Which files there are, and when they were written."""
    seen = set()
    for file in config_dir.rglob("*.yaml"):
        with suppress(OSError):  # a link to nothing, as editors make
            seen.add((file, (about := file.stat()).st_mtime_ns, about.st_size))
    return frozenset(seen)


def leave_out(config: DictConfig, choices: Mapping[str, Any], config_dir: Path, typed: Sequence[str]) -> None:
    """Drop from `config` what the chosen debug file says of data, model or task of another kind: it is for any task.

    A key that no file of its group has stays, and one that was `typed` (KEY=VALUE), and is found to be unknown.
    """
    file = config_dir / "debug" / f"{choices.get('debug')}.yaml"
    said: Any = OmegaConf.load(file) if file.is_file() else {}
    for group in ("data", "model", "task", "optimizer", "schedule"):
        if not (missing := set(said.get(group, {})) - _keys(config_dir / group, str(choices.get(group)))):
            continue
        anywhere = {key for option in (config_dir / group).glob("*.yaml") for key in _keys(option.parent, option.stem)}
        for key in missing & anywhere:
            if not any(text.lstrip("+").startswith(f"{group}.{key}=") for text in typed):
                OmegaConf.set_struct(config, False)
                config[group].pop(key, None)


def _keys(folder: Path, option: str) -> set[str]:
    """The keys that a group's file has, with those of the files that it builds on."""
    file = folder / f"{option}.yaml"
    content: Any = OmegaConf.to_container(OmegaConf.load(file)) if file.is_file() else {}
    defaults = content.pop("defaults", [])
    below = {str(key).rpartition(" ")[2] for entry in defaults if isinstance(entry, dict) for key in entry}
    bases = [_keys(folder, entry) for entry in defaults if isinstance(entry, str) and entry != "_self_"]
    return set(content).union(below, *bases)


def _refuse_a_value_for_a_group(override: Override, parsed: Sequence[Override], config_dir: Path) -> None:
    """ConfigError for `strategy.sync=outer`: files are chosen with a slash."""
    key, value = override.key_or_group, override.value()
    options = sorted(group_options(config_dir / key.replace(".", "/"))) if "." in key else []
    if options and isinstance(value, str | int | float) and not isinstance(value, bool):
        groups = [str(o.input_line) for o in of_groups(parsed, config_dir) if not o.is_add() and not o.is_delete()]
        try:
            with in_hydra(config_dir):
                names = OmegaConf.select(compose("train", overrides=groups), key)
        except (HydraException, OmegaConfBaseException, ValueError):  # another mistake
            names = None
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
        jobs = jobs_of_a_grid(parsed)
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
    with in_hydra(config_dir):  # which knows what glob(*) finds
        loader = GlobalHydra.instance().config_loader()
        return [parse_one(text, loader) for text in overrides]


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


def _without_overlays(parsed: Sequence[Override], choices: Any, config_dir: Path) -> list[str]:
    """Overrides that choose the same groups, but no experiment and no debug file."""
    groups = {g: c for g, c in choices.items() if not g.startswith("hydra") and g not in OVERLAYS and c is not None}
    lists = [o for o in of_groups(parsed, config_dir) if o.key_or_group not in (*groups, *OVERLAYS)]
    kept = [str(o.input_line) for o in parsed if o.is_add() or o.is_delete() or o in lists]
    return [f"{group}={choice}" for group, choice in groups.items()] + kept


def _explain(error: Exception, parsed: Sequence[Override], config_dir: Path) -> str:
    """Hydra's error in one line, with what would have been valid."""
    first = str(error).splitlines()[0]
    for override in parsed:
        if override.is_hydra_override() and (said := _about_hydra(override, first, parsed, config_dir)):
            return said
    for override in of_groups(parsed, config_dir):
        value, options = override.value(), group_options(config_dir / override.key_or_group)
        if not isinstance(value, list) and not override.is_delete() and str(value) not in options:
            if value is None and override.key_or_group in ("tuning", *OVERLAYS):
                return f"{override.key_or_group}=null: to choose nothing, write ~{override.key_or_group}"
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
            if override.is_add() and "already at" in first:
                return (
                    f"{override.input_line}: '{key}' is there already, so without the +: {str(override.input_line)[1:]}"
                )
            hint = f": it is {MOVED[key]} now" if key in MOVED else _valid_siblings(key, parsed, config_dir)
            more = f"; another argument of Lightning's Trainer is added with a +: +{override.input_line}"
            if key.startswith("timeline."):
                more = f"; another entry, or key of one, is added with a +: +{override.input_line}"
            shown = more if key.startswith(("trainer.", "timeline.")) else ""
            return f"unknown key '{key}' (value {override.value()!r}){hint}{shown}"
    return first


def _about_hydra(override: Override, first: str, parsed: Sequence[Override], config_dir: Path) -> str | None:
    """What is wrong with a choice or a value of Hydra itself, a launcher's say; None if it is something else."""
    key, value = override.key_or_group, override.value()
    with in_hydra(config_dir):
        options = set(GlobalHydra.instance().config_loader().get_group_options(key)) if "." not in key else set()
        if options and str(value) not in options:
            needs = PLUGINS.get(str(value))
            return f"{override.input_line} is unknown{needs or did_you_mean(str(value), options)}"
        if "/" in key and not options:
            groups = [f"hydra/{name}" for name in HYDRA_GROUPS]
            return f"{override.input_line}: there is no group {key}{did_you_mean(key, groups)}"
        if f"'{key}'" not in first and not first.endswith(key) and str(override.input_line) not in first:
            return None
        chosen = [str(o.input_line) for o in parsed if o.is_hydra_override() and "." not in o.key_or_group]
        node: Any = compose("train", overrides=chosen, return_hydra_config=True)
        for name in key.replace("/", ".").split("."):
            if not isinstance(node, DictConfig) or name not in node:
                return f"unknown key '{key}' (value {value!r}){did_you_mean(name, set(map(str, node or ())))}"
            node = node[name]
    return f"{override.input_line} cannot be: {key} is {node} unless it is given"


def _valid_siblings(key: str, parsed: Sequence[Override], config_dir: Path) -> str:
    """What exists where the unknown `key` was looked for, in the groups that were chosen."""
    groups = [str(o.input_line) for o in of_groups(parsed, config_dir) if o.key_or_group != key]
    with in_hydra(config_dir):
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
    hint = f"; {' and '.join(elsewhere)} {'has' if len(elsewhere) == 1 else 'have'} it" if elsewhere else ""
    return hint + did_you_mean(name, {str(k) for k in node} | folders)


def _has_key(file: Path, name: str) -> bool:
    content = OmegaConf.load(file)
    return isinstance(content, DictConfig) and name in content
