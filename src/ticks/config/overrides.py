"""KEY=VALUE as it is typed, and the groups of files that can be chosen from."""

import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from ticks.config.messages import ConfigError, quoted


def parse(overrides: Sequence[str]) -> list[Override]:
    parsed = [parse_one(text) for text in overrides]
    for text, override in zip(overrides, parsed, strict=True):
        if override.is_sweep_override():
            comma = f"; if it is one value, quote it: {quoted(text)}" if "," in text else ""
            raise ConfigError(f"{text}: several values are several runs: add --multirun{comma}")
    return parsed


def parse_one(text: str, loader: Any = None) -> Override:
    try:
        (override,) = OverridesParser.create(config_loader=loader).parse_overrides([text])
    except HydraException:
        override = None
    if override is None or not override.key_or_group:
        hint = f": {quoted(text)}" if "=" in text else ""
        raise ConfigError(f"cannot read '{text}': write KEY=VALUE, and quote a value that has special characters{hint}")
    return override


def with_home_directory(argument: str) -> str:
    """KEY=~/PATH, which Hydra cannot read, with the path as a quoted text; anything else as it is."""
    key, _, value = argument.partition("=")
    if not key or not re.match(r"~\w*/", value):
        return argument
    expanded = f"{key}={os.path.expanduser(value)}"
    return expanded if key == "resume" else shlex.split(quoted(expanded))[0]  # resume is no value of Hydra's


def of_groups(parsed: Sequence[Override], config_dir: Path) -> list[Override]:
    return [o for o in parsed if (config_dir / o.key_or_group).is_dir()]


def group_options(group: Path) -> set[str]:
    """The names of the files that can be chosen from the folder of a group."""
    return {file.stem for file in group.glob("*.yaml")} - {"base"}  # base: what the group's files share
