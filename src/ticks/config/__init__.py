"""Strict configuration: what Hydra composes is checked before anything is built.

Two passes. `check_keys` needs no torch: every key must exist in the configuration that the chosen groups compose
without experiment and debug files, so a typo inside such a file is an error too. `check_targets` imports each
`_target_` and compares its arguments. Every error names the key, the value and what would be valid.
"""

from ticks.config.compose import check_place, check_sweep, compose_strictly, default_choices, leave_out
from ticks.config.digest import digest, plain
from ticks.config.keys import check_keys, check_values
from ticks.config.messages import ConfigError, did_you_mean, quoted
from ticks.config.overrides import group_options, with_home_directory
from ticks.config.phases import compose_phases
from ticks.config.targets import build, check_targets, is_out_of_memory, locate, offered, takes

__all__ = [
    "ConfigError",
    "build",
    "check_keys",
    "check_place",
    "check_sweep",
    "check_targets",
    "check_values",
    "compose_phases",
    "compose_strictly",
    "default_choices",
    "did_you_mean",
    "digest",
    "group_options",
    "is_out_of_memory",
    "leave_out",
    "locate",
    "offered",
    "plain",
    "quoted",
    "takes",
    "with_home_directory",
]
