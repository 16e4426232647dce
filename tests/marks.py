"""The marker `workers`: tests that start worker processes or a whole command line. The others are the quick part.

It is put on by what a test uses: whoever comes to a starter, through fixtures and the functions and classes of tests,
has it. Where that cannot be seen, where an interpreter that imports torch is started, and where something takes
seconds, a corpus to prepare or a repository to copy, a test says so itself: `@pytest.mark.workers`. One that does not,
and starts them nevertheless, fails.
"""

import dis
import inspect
import os
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar

import pytest

T = TypeVar("T", bound=Callable[..., Any])
STARTERS: set[Any] = set()
WITHOUT_TORCH = str(Path(__file__).with_name("without_torch"))
_running: pytest.Item | None = None


def starter(function: T) -> T:
    """A decorator for what starts processes that train; its first line is `check_marked()`."""
    STARTERS.add(function)
    return function


def check_marked() -> None:
    """Fail the test that is running, if there is one and it has no mark."""
    if _running is not None and not _is_marked(_running):
        pytest.fail("a test that starts workers or a command needs @pytest.mark.workers, see tests/marks.py")


def mark(item: pytest.Item) -> None:
    """Put the marker on a test that uses a starter."""
    fixtures = getattr(item, "_fixtureinfo", None)  # pytest has no other way to ask which function a fixture is
    definitions = fixtures.name2fixturedefs.values() if fixtures is not None else ()
    functions = [getattr(item, "function", None), *(fixture.func for of_name in definitions for fixture in of_name)]
    if any(starts(function) for function in functions):
        item.add_marker(pytest.mark.workers)


@contextmanager
def running(item: pytest.Item) -> Iterator[None]:
    """Around a test: the processes of an unmarked one find no torch."""
    global _running
    before = os.environ.get("PYTHONPATH", "")
    _running = item
    if not _is_marked(item):
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [WITHOUT_TORCH, before]))
    try:
        yield
    finally:
        _running = None
        os.environ["PYTHONPATH"] = before


def _is_marked(item: pytest.Item) -> bool:
    return item.get_closest_marker("workers") is not None


@cache
def starts(function: Any) -> bool:
    """Whether a test or a fixture comes to a starter."""
    return _starts(function, set())


def _starts(thing: Any, seen: set[int]) -> bool:
    """Whether a function or class of the tests, or an instance of one, comes to a starter by names of its module."""
    if isinstance(thing, partial):
        return _starts(thing.func, seen)
    if isinstance(thing, dict):
        return any(_starts(value, seen) for value in thing.values())
    thing = inspect.unwrap(thing) if callable(thing) else thing
    if isinstance(thing, types.FunctionType | type) and thing in STARTERS:
        return True
    if not isinstance(thing, types.FunctionType | type):
        thing = type(thing)
    if id(thing) in seen or not str(thing.__module__).startswith("tests."):
        return False
    seen.add(id(thing))
    if isinstance(thing, type):
        return any(_starts(method, seen) for method in vars(thing).values() if isinstance(method, types.FunctionType))
    return any(_starts(thing.__globals__.get(name), seen) for name in _globals_of(thing.__code__))


def _globals_of(code: types.CodeType) -> Iterator[str]:
    """The global names that a function uses, in functions within it as well."""
    yield from (step.argval for step in dis.get_instructions(code) if step.opname in ("LOAD_GLOBAL", "LOAD_NAME"))
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _globals_of(constant)
