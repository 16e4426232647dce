"""A configuration as plain containers, and by which two of them are known to be the same."""

import hashlib
import json
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ticks.config.messages import ConfigError

# keys that runs of before do not have: without a value they say nothing
LATER = ("pretrained", "tuning", "gap", "changes", "timeline", "phases", "task.regulariser", "data.by_length")
# where a run lies, how it is called and what is shown of it does not make it another experiment
NOT_DIGESTED = ("run_dir", "resume", "name", "task.sample_prompt")


def plain(config: DictConfig) -> dict[str, Any]:
    """The configuration as plain containers, interpolations resolved. ConfigError if one cannot be."""
    try:
        return OmegaConf.to_container(config, resolve=True, throw_on_missing=True)  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        raise ConfigError(str(error).splitlines()[0]) from None


def digest(config: DictConfig) -> str:
    """Twelve hexadecimal digits that two configurations share if they describe the same experiment."""
    neutral = config.copy()
    OmegaConf.set_struct(neutral, False)
    for key in NOT_DIGESTED:  # what is derived from them (a checkpoint's path, a logger's name) must not count either
        group, _, name = key.rpartition(".")
        if group:
            (neutral.get(group) or {}).pop(name, None)
        else:
            OmegaConf.update(neutral, key, None, force_add=True)
    content = {key: value for key, value in plain(neutral).items() if key not in NOT_DIGESTED}
    if content.get("phases"):
        content["phases"] = list(content["phases"].items())  # in their order
    for key in LATER:
        group, _, name = key.rpartition(".")
        inside = content.get(group) if group else content
        if isinstance(inside, dict) and name in inside and not inside[name]:
            del inside[name]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
