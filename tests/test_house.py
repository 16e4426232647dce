"""The rules of the house: what each room may know of the others."""

import ast
import inspect
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, ProgressBar
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.plugins.io import AsyncCheckpointIO, TorchCheckpointIO
from lightning.pytorch.strategies import DDPStrategy

from tests.conftest import REPOSITORY

PACKAGE = REPOSITORY / "src" / "ticks"
NAME = PACKAGE.name
EVERYBODYS = {"arguments", "installed", "similarity"}  # what any room may use: the standard library alone
MAY_KNOW = {  # besides itself
    "data": {"contract"},
    "models": set(),
    "optim": set(),
    "tasks": {"models", "optim", "contract"},
    "strategy": set(),
    "record": {"contract", "strategy"},
    "report": {"record", "config", "run_directory"},
    "sweep": {"record", "config", "run_directory", "jobs", "signals", "strategy"},
    "config": set(),
    "timeline": {"models", "strategy"},
}
PLAIN_MISTAKES = ("ValueError", "TypeError", "LookupError", "FileNotFoundError")
PLAIN = ("data", "models", "optim", "tasks", "strategy", "timeline")  # never see a config object


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


def test_private_names_of_lightning_and_hydra_are_imported_in_one_file_each() -> None:
    for file in PACKAGE.rglob("*.py"):
        private = [m for m, names in imports(file) if any(n.startswith("_") for n in [*m.split("."), *names])]
        if file.relative_to(PACKAGE) != Path("strategy/lightning.py"):
            assert not [m for m in private if m.startswith("lightning")], file
        if file.relative_to(PACKAGE) != Path("config/hydra.py"):
            assert not [m for m in private if m.startswith("hydra")], file


def hidden_in(kind: type) -> set[str]:
    """Private names that a class has of Lightning: attributes of its bases there, and what these set on self."""
    names: set[str] = set()
    for base in kind.__mro__:
        if base.__module__.startswith("lightning"):
            names |= vars(base).keys() | set(re.findall(r"\bself\.(_\w+)", inspect.getsource(base)))
    return {name for name in names if re.fullmatch(r"_[a-z]\w*", name)}


def kinds_in(thing: Any, known: set[type]) -> set[type]:
    """The classes of Lightning that a Trainer, say, is made of: its loops, its connectors, what those hold."""
    if type(thing).__module__.startswith("lightning") and type(thing) not in known:
        known.add(type(thing))
        for part in [*vars(thing).values()] if hasattr(thing, "__dict__") else ():
            kinds_in(part, known)
    return known


@pytest.fixture(scope="module")
def hidden() -> set[str]:
    """Of all that we inherit from Lightning or are handed by it."""
    kinds = kinds_in(Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False), set())
    kinds |= {LightningModule, LightningDataModule, DDPStrategy, TorchCheckpointIO, AsyncCheckpointIO, ProgressBar}
    return set().union(*map(hidden_in, kinds | {ModelCheckpoint, WandbLogger, CSVLogger, TensorBoardLogger}))


def touched(file: Path, hidden: set[str]) -> Iterator[tuple[int, str]]:
    """Lines at which a file touches a private name of Lightning: uses it, sets it, overrides it, or asks for it.

    On `self` those count that the class has of Lightning; on anything else all but what classes of the file itself
    define.
    """
    tree = ast.parse(file.read_text())
    module = import_module(".".join([NAME, *file.relative_to(PACKAGE).with_suffix("").parts]).removesuffix(".__init__"))
    inherited: dict[ast.AST, set[str]] = {}  # by node inside a class of ours
    own: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            kind = getattr(module, node.name, None)
            of_base = hidden_in(kind) if isinstance(kind, type) else set()
            inherited |= dict.fromkeys(ast.walk(node), of_base)
            sets = [n.attr for n in ast.walk(node) if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store)]
            own |= {*sets, *(n.name for n in node.body if isinstance(n, ast.FunctionDef))} - of_base
    for node in ast.walk(tree):
        of_base = inherited.get(node, set())
        if isinstance(node, ast.FunctionDef) and node.name in of_base:
            yield node.lineno, node.name
        elif isinstance(node, ast.Attribute):
            on_self = ast.unparse(node.value) in ("self", "cls", "super()")
            if node.attr in (of_base if on_self else hidden - own):
                yield node.lineno, node.attr
        elif isinstance(node, ast.Call) and re.fullmatch("(get|set|has|del)attr", ast.unparse(node.func)):
            yield from [(node.lineno, name) for name in hidden - own if ast.unparse(node.args[1]) == repr(name)]


def test_private_names_of_lightning_are_touched_in_one_file(hidden: set[str]) -> None:
    """Everywhere else, record/ included, what strategy/lightning.py makes public of them is used."""
    some = {"_timeout", "_layer_sync", "_configure_launcher", "_experiment", "_results", "_monitor_candidates"}
    assert some | {"_should_accumulate", "_signal_connector", "_original_handlers", "_module_mode"} <= hidden
    one_file = PACKAGE / "strategy" / "lightning.py"
    assert {name for _, name in touched(one_file, hidden)} >= some
    found = [f"{file.relative_to(REPOSITORY)}:{line}: {name}" for file in sorted(PACKAGE.rglob("*.py"))
             if file != one_file for line, name in touched(file, hidden)]  # fmt: skip
    assert not found, "\n".join(found)


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
