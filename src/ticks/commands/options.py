"""What the commands share: how their arguments are read."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager
from pathlib import Path

from ticks.config import ConfigError
from ticks.run_directory import load_config


def split(arguments: list[str], **defaults: str | None) -> tuple[dict[str, str | None], list[str]]:
    """Split KEY=VALUE arguments into the known options and the rest."""
    options, rest = dict(defaults), []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if equals and key in defaults:
            options[key] = value
        else:
            rest.append(argument)
    return options, rest


def run_of(value: str | None) -> Path:
    if not value:
        raise ConfigError("give the run's directory: run=logs/runs/...")
    return Path(os.path.expanduser(value))


def started_in(run_dir: Path) -> Path:
    """Where the run was started, to which paths in its configuration are relative; here if its directory was moved."""
    recorded, lies = Path(str(load_config(run_dir).get("run_dir") or "")), run_dir.resolve()
    depth = len(recorded.parts)
    if not depth or recorded.is_absolute() or lies.parts[-depth:] != recorded.parts:
        return Path.cwd()
    return lies.parents[depth - 1]


@contextmanager
def where_it_began(run_dir: Path) -> Iterator[None]:
    """A block in the directory that a run was started in, where classes beside train.py are found as they were then."""
    place = str(started_in(run_dir))
    sys.path.insert(0, place)
    try:
        with chdir(place):
            yield
    finally:
        sys.path.remove(place)


def absolute(override: str) -> str:
    """An override whose value is the path of a file here, so that it can be read elsewhere too."""
    key, _, value = override.partition("=")
    return f"{key}={Path(value).resolve()}" if value and Path(value).is_file() else override


def number(name: str, text: str | None, kind: Callable[[str], float]) -> float:
    """A finite number of at least 0."""
    try:
        number = kind(text or "")
    except ValueError:
        number = -1.0
    if not 0 <= number < 2**63:
        what = "whole number" if kind is int else "number"
        raise ConfigError(f"{name}={text} must be a {what} of at least 0")
    return number
