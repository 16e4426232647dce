"""The rules of the house: what each room may know of the others."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

PACKAGE = REPOSITORY / "src" / "ticks"
NAME = PACKAGE.name
EVERYBODYS = {"arguments", "similarity"}  # what any room may use: the standard library alone
MAY_KNOW = {  # besides itself
    "data": {"contract"},
    "models": set(),
    "optim": set(),
    "tasks": {"models", "optim", "contract"},
    "strategy": set(),
    "record": {"contract", "strategy"},
    "report": {"record", "config"},
    "config": set(),
}
PLAIN_MISTAKES = ("ValueError", "TypeError", "LookupError", "FileNotFoundError")
PLAIN = ("data", "models", "optim", "tasks", "strategy")  # never see a config object


def imports(file: Path) -> Iterator[tuple[str, list[str]]]:
    """Every module that a file imports, late ones too, with the names taken from it."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, []) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute"
            yield node.module or "", [alias.name for alias in node.names]


def room_of(module: str, names: list[str]) -> set[str]:
    """The rooms of ours that an import enters."""
    parts = module.split(".")
    if parts[0] != NAME:
        return set()
    return {parts[1]} if len(parts) > 1 else set(names)


def files(room: str) -> list[Path]:
    return sorted((PACKAGE / room).rglob("*.py"))


@pytest.mark.parametrize("room", MAY_KNOW)
def test_a_room_knows_no_other_rooms_than_it_may(room: str) -> None:
    assert files(room)
    for file in files(room):
        entered = set().union(*(room_of(module, names) for module, names in imports(file)))
        assert entered <= MAY_KNOW[room] | {room} | EVERYBODYS, file


@pytest.mark.parametrize("room", PLAIN)
def test_what_computes_never_sees_a_configuration(room: str) -> None:
    for file in files(room):
        known = {module.split(".")[0] for module, _ in imports(file)}
        assert not known & {"hydra", "omegaconf"}, file


@pytest.mark.parametrize("room", [*PLAIN, "record"])
def test_a_mistake_that_names_an_argument_is_an_argument_error(room: str) -> None:
    """So that nobody has to read it out of the message: `raise ValueError(f"lr={lr} must ...")` is not to be found."""
    for file in files(room):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in PLAIN_MISTAKES and node.args:
                assert not re.match(r"""f?["'](?:\w+|\{\w+\})=""", ast.unparse(node.args[0])), f"{file}:{node.lineno}"


GROUPS = "data|model|task|optimizer|schedule|strategy|callbacks|logger|trainer"
CONFIG_PATH = re.compile(rf"(?<![\w.])(?:(?:{GROUPS})\.[a-z_]+|(?:{GROUPS}|test)=\w)")  # strategy.sync, task=NAME


def texts(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """What a file says, with its line: every text but docstrings, {} where a value stands in it."""
    within = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    within |= {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in within:
            yield node.lineno, node.value
        elif isinstance(node, ast.JoinedStr):
            parts = (part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
            yield node.lineno, "".join(map(str, parts))


@pytest.mark.parametrize("room", PLAIN)
def test_what_computes_knows_no_path_of_a_configuration(room: str) -> None:
    """It names the argument; who builds it puts the path before (`with_path`)."""
    for file in files(room):
        for line, text in texts(ast.parse(file.read_text())):
            assert not (found := CONFIG_PATH.search(text)), f"{file}:{line}: {found[0]}"


def test_models_work_without_lightning() -> None:
    for file in files("models"):
        assert not {module.split(".")[0] for module, _ in imports(file)} & {"lightning", "torchmetrics", "wandb"}, file


def test_what_is_written_can_be_read_at_one_sitting() -> None:
    """A longer one has a part with a name of its own."""
    most = {ast.ClassDef: 300, ast.FunctionDef: 60, ast.AsyncFunctionDef: 60}
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, tuple(most)):
                lines = (node.end_lineno or 0) - min([node.lineno, *(d.lineno for d in node.decorator_list)]) + 1
                assert lines <= most[type(node)], f"{file}: {node.name} has {lines} lines"


def test_no_private_name_of_one_room_is_used_in_another() -> None:
    for file in PACKAGE.rglob("*.py"):
        for module, names in imports(file):
            home = PACKAGE.joinpath(*module.split(".")[1:]).with_suffix(".py")
            if module.split(".")[0] == NAME and home.parent != file.parent:
                assert not [name for name in names if name.startswith("_")], f"{file}: {module}"


def test_private_names_of_lightning_and_hydra_have_one_file_each() -> None:
    of_lightning = re.compile(r"\b(?:trainer|loop|callback|connector|fit_loop|epoch_loop|val_loop|results)\._[a-z]")
    for file in PACKAGE.rglob("*.py"):
        private = [m for m, names in imports(file) if any(n.startswith("_") for n in [*m.split("."), *names])]
        if file.relative_to(PACKAGE) != Path("strategy/lightning.py"):
            assert not [m for m in private if m.startswith("lightning")], file
            assert not of_lightning.search(file.read_text()), file
        if file.relative_to(PACKAGE) != Path("config/hydra.py"):
            assert not [m for m in private if m.startswith("hydra")], file


def test_the_packages_own_name_decides_nothing() -> None:
    """A fork has another one."""
    decides = re.compile(rf"""(?:startswith|version|==|\bin)\s*\(?["']{NAME}["'.]""")
    for file in PACKAGE.rglob("*.py"):
        assert not decides.search(file.read_text()), file


def test_the_packages_own_name_is_asked_for() -> None:
    """`__name__` knows it, `NAME` in tests: written as a bare word it is not told from the strategy's in a fork."""
    written = re.compile(
        rf"""(?:startswith|version|getLogger|import_module|find_spec|modules\.get)\(["']{NAME}[. ]?["']"""
    )
    for file in [*PACKAGE.rglob("*.py"), *(REPOSITORY / "tests").rglob("*.py")]:
        assert not written.search(file.read_text()), file
