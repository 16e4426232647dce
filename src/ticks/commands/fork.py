"""Usage: ticks fork TARGET [name=NAME]

Copy this repository under another name: what git tracks and would track,
no runs, with a first commit. Its package, its command, its variables in
the environment and its W&B project have the new name; strategies, models
and keys keep theirs. Data that was prepared is prepared again there.

  TARGET        a folder that is not there yet, or empty (required)
  name=NAME     of the package (default: the folder's)

Example: ticks fork ../mylab name=mylab
"""

import keyword
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Iterator
from importlib.metadata import packages_distributions
from pathlib import Path, PurePath
from typing import Any

from ticks.commands import COMMANDS
from ticks.commands.options import split
from ticks.commands.renaming import Renaming
from ticks.config import ConfigError, did_you_mean
from ticks.signals import acting_on_signals, exit_by_signal

PACKAGE = Path(__file__).resolve().parents[1]
OWN = PACKAGE.name
REPOSITORY = PACKAGE.parents[1]
NEVER_COPIED = (".git", "__pycache__", "wandb", "build", "dist")
MARKS = ("CACHEDIR.TAG", "pyvenv.cfg")  # lie in caches and in virtual environments
OF_ANOTHER = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_COMMON_DIR", "GIT_PREFIX")


def main(arguments: list[str]) -> None:
    options, rest = split(arguments, name=None)
    if strange := [word for word in rest if "=" in word]:
        raise ConfigError(f"unknown option '{strange[0]}'{did_you_mean(strange[0].partition('=')[0], options)}")
    if len(rest) != 1 or not rest[0]:
        raise ConfigError("give one folder for the copy: ticks fork ../mylab name=mylab")
    if not (REPOSITORY / "pyproject.toml").is_file() or PACKAGE.parent.name != "src":
        raise ConfigError(f"{PACKAGE} lies in no repository: install it with pip install -e . from a copy of it")
    target = Path(os.path.expanduser(rest[0])).resolve()
    name = options["name"] if options["name"] is not None else target.name
    try:
        check_target(target, rest[0])
        check_name(name)
        with acting_on_signals(exit_by_signal):
            said = fork(REPOSITORY, target, name)
    except OSError as error:
        raise ConfigError(f"nothing was forked to {rest[0]}: {error.strerror or error}: {error.filename}") from None
    print(f"{name} lies in {rest[0]}, {said}. Now:")
    print(f"  cd {shlex.quote(rest[0])}")
    print(f"  make setup   # its own .venv, with the command `{name}`")
    print("  make test    # green before you change anything")


def check_target(target: Path, given: str) -> None:
    """ConfigError unless a repository can be put there: a folder outside of this one, new or empty."""
    if target.is_relative_to(REPOSITORY):
        raise ConfigError(f"{given} lies inside of {REPOSITORY}: a fork lies elsewhere")
    if os.path.lexists(target) and not target.is_dir():
        raise ConfigError(f"{given} is a file: name a folder that is not there yet, or empty")
    if target.is_dir() and any(target.iterdir()):
        raise ConfigError(f"{given} is not empty: name a folder that is not there yet, or empty")


def check_name(name: str) -> None:
    """ConfigError unless a package can have this name, beside all that is installed or lies in the repository."""
    if not re.fullmatch(r"[a-z]([a-z0-9_]*[a-z0-9])?", name):
        raise ConfigError(f"name={name} must be lower-case letters, digits and _, from a letter to a letter or digit")
    if keyword.iskeyword(name) or keyword.issoftkeyword(name):
        raise ConfigError(f"name={name} is a keyword of Python: take another")
    if name in sys.stdlib_module_names:
        raise ConfigError(f"name={name} is a module of Python's standard library: take another")
    if name == OWN:
        raise ConfigError(f"name={name} is this package's own: take another (git clone makes a copy of the same name)")
    if place := _names_here().get(name):
        raise ConfigError(f"name={name} is {place} in the repository already: take another")
    if name in packages_distributions() or name in _required():
        raise ConfigError(f"name={name} is a package that is installed or needed: take another")


def _names_here() -> dict[str, PurePath]:
    """What is called by its name in the repository, or begins the name of a value: `train`, `tests`, `model`."""
    places = [*PACKAGE.iterdir(), *(REPOSITORY / "configs").glob("*"), *REPOSITORY.iterdir()]
    return {place.stem: place.relative_to(REPOSITORY) for place in places}


def _required() -> set[str]:
    project = _project()
    lines = [project.get("dependencies", []), *project.get("optional-dependencies", {}).values()]
    return {re.split(r"[^\w.-]", line)[0].lower().replace("-", "_") for several in lines for line in several}


def _project() -> dict[str, Any]:
    return tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]


def fork(repository: Path, target: Path, name: str) -> str:
    """Write the repository to `target` with its package called `name`; what became of its first commit. All or
    nothing is there afterwards."""
    was_there = target.is_dir()
    target.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix=".fork-", dir=target) as scratch:
            place = Path(scratch)
            modules = {path.stem for path in PACKAGE.iterdir()}
            renaming = Renaming(OWN, name, modules=modules, commands=COMMANDS)
            changed = copy(repository, files_of(repository), place, renaming)
            said = f"{tidied(place, changed)}{first_commit(place, f'{name}, from {_origin(repository)}')}"
            for path in list(place.iterdir()):
                path.rename(target / path.name)
    except BaseException:
        if not was_there:
            shutil.rmtree(target, ignore_errors=True)
        raise
    return said


def files_of(repository: Path) -> list[PurePath]:
    """What git tracks and would track; without git, all but caches and virtual environments. No runs."""
    listed = _git(repository, "ls-files", "-z", "--cached", "--others", "--exclude-standard").stdout
    paths = [PurePath(name) for name in dict.fromkeys(listed.split("\0")) if name]
    if PurePath("pyproject.toml") not in paths:
        paths = sorted(_walked(repository, PurePath()))
    there = [path for path in paths if (repository / path).is_file() or (repository / path).is_symlink()]
    return [path for path in there if not _is_of_a_run(repository, path)]


def _walked(repository: Path, folder: PurePath) -> Iterator[PurePath]:
    for path in (repository / folder).iterdir():
        inside = folder / path.name
        if not path.is_dir() or path.is_symlink():
            yield inside
        elif not (
            path.name in NEVER_COPIED
            or path.name.endswith(("_cache", ".egg-info"))
            or any((path / mark).exists() for mark in MARKS)
        ):
            yield from _walked(repository, inside)


def _is_of_a_run(repository: Path, path: PurePath) -> bool:
    if path.parts[0] == "logs":
        return not (len(path.parts) == 2 and path.name.startswith("."))  # .gitkeep
    return any((repository / folder / "summary.json").is_file() for folder in path.parents[:-1])


def copy(repository: Path, paths: Iterable[PurePath], place: Path, renaming: Renaming) -> list[PurePath]:
    """Copy what is no text as it is and all texts renamed; the Python files among those that changed."""
    changed = []
    for path in paths:
        source, to = repository / path, place / (renamed := renaming.path(path))
        to.parent.mkdir(parents=True, exist_ok=True)
        if source.is_symlink():
            to.symlink_to(os.readlink(source))
            continue
        content = source.read_bytes()
        new = _renamed(path, content, renaming)
        to.write_bytes(new)
        shutil.copymode(source, to)
        if new != content and path.suffix == ".py":
            changed.append(renamed)
    return changed


def _renamed(path: PurePath, content: bytes, renaming: Renaming) -> bytes:
    try:
        return renaming.text(path, content.decode()).encode()
    except UnicodeDecodeError:
        return content
    except SyntaxError as error:
        raise ConfigError(f"{path} is no Python and cannot be renamed: {' '.join(str(error).split())}") from None


def tidied(place: Path, changed: list[PurePath]) -> str:
    """Sort imports and wrap lines anew where the name stands in them; what is to be said of it."""

    def ruff(*command: str) -> bool:
        run = [sys.executable, "-m", "ruff", *command, "--no-cache", "--quiet", *map(str, changed)]
        return subprocess.run(run, cwd=place, capture_output=True).returncode == 0

    if not changed:
        return ""
    if not (ruff("check", "--select", "I", "--fix") and ruff("format")):
        return "with its lines as they were, since ruff does not run here (make format, there), "
    project = place / "pyproject.toml"
    settings = project.read_text()
    if '"E501"' in settings or ruff("check", "--select", "E501"):
        return ""
    project.write_text(settings.replace("\nignore = [", '\nignore = ["E501", '))  # no tool wraps texts and comments
    return "with long lines allowed in pyproject.toml (E501), "


def first_commit(place: Path, message: str) -> str:
    """Commit everything, as the user; what is to be said of it."""
    steps = [["init", "-b", "main"], ["add", "--all", "--force"], ["commit", "--no-verify", "-m", message]]
    for step in steps:
        done = _git(place, "-c", "user.useConfigOnly=true", *step)  # else git may guess who somebody is
        if done.returncode:
            why = [line for line in done.stderr.splitlines() if line.strip()] or ["it failed"]
            return f"without a first commit (git {step[0]}: {why[0]})"
    return f"with a first commit, {_git(place, 'rev-parse', '--short', 'HEAD').stdout.strip()}"


def _origin(repository: Path) -> str:
    commit = _git(repository, "rev-parse", "--short", "HEAD").stdout.strip()
    return f"{OWN} {_project()['version']}" + f" ({commit})" * bool(commit)


def _git(place: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """What git says in `place`, whichever repository the environment names; code 127 where there is no git."""
    env = {key: value for key, value in os.environ.items() if key not in OF_ANOTHER}
    command = ["git", *arguments]
    try:
        return subprocess.run(command, cwd=place, env=env, capture_output=True, text=True, errors="surrogateescape")
    except FileNotFoundError:
        return subprocess.CompletedProcess(command, 127, "", "git is not installed")
