"""What can be given for an argument: one exception for a mistake, and the checks that raise it. Every room uses them.

at_least(1, d_model=d_model, n_layers=n_layers)     ArgumentError: d_model=0 must be at least 1
share(dropout=dropout)                              ArgumentError: dropout=1.5 must be from 0 to 1
one_of(("learned", "rotary"), position=position)    ArgumentError: position='x' is unknown; known: learned, rotary
"""

import sys
from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any


class ArgumentError(ValueError):
    """A value that an argument cannot have: `argument`, `value`, and in `valid` what it can be."""

    def __init__(self, argument: str, value: Any, valid: str) -> None:
        self.argument = argument
        self.value = value
        self.valid = valid
        shown = list(value) if isinstance(value, tuple) else value
        super().__init__(f"{argument}={shown!r}{'' if valid.startswith((':', ';')) else ' '}{valid}")

    def __reduce__(self) -> Any:
        return type(self), (self.argument, self.value, self.valid)


def under(path: str, error: BaseException) -> str:
    """What is said of a mistake in what lies at `path`: "path.argument=value ...", or "path: ..." if none is named."""
    return f"{path}{'.' if isinstance(error, ArgumentError) else ': '}{error}"


def with_path(path: str, error: BaseException) -> str:
    """The same where a mistake names an argument; one that names none, its text alone."""
    return under(path, error) if isinstance(error, ArgumentError) else str(error)


def is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether it is a finite number."""
    most: Any = sys.float_info.max
    return isinstance(value, Real) and not isinstance(value, bool) and bool(-most <= value <= most)


def at_least(least: int, *, most: int | None = None, of: str = "", **numbers: Any) -> None:
    """Whole numbers from `least` to `most`; `of` is what they count, " steps" say."""
    for name, value in numbers.items():
        limits = f"at least {least}" + (f" and at most {most}" if most is not None else "")
        if not is_whole(value):
            raise ArgumentError(name, value, f"must be a whole number{' of' * bool(of)}{of}, {limits}")
        if value < least or (most is not None and value > most):
            raise ArgumentError(name, value, f"must be {limits}{of}")


def above(least: float, *, most: float | None = None, of: str = "", **numbers: Any) -> None:
    """Finite numbers above `least`, up to `most`; `of` is what they count, " seconds" say."""
    for name, value in numbers.items():
        if not is_number(value) or value <= least or (most is not None and value > most):
            limit = "" if most is None else f" and at most {most}"
            raise ArgumentError(name, value, f"must be a finite number{' of' * bool(of)}{of} above {least:g}{limit}")


def not_negative(**numbers: Any) -> None:
    """Finite numbers from 0 on."""
    for name, value in numbers.items():
        if not is_number(value):
            raise ArgumentError(name, value, "must be a finite number")
        if value < 0:
            raise ArgumentError(name, value, "must not be negative")


def share(**numbers: Any) -> None:
    """Numbers from 0 to 1."""
    for name, value in numbers.items():
        if not is_number(value) or not 0 <= value <= 1:
            raise ArgumentError(name, value, "must be from 0 to 1")


def below_one(**numbers: Any) -> None:
    """Numbers from 0 to below 1; betas are two of them."""
    for name, value in numbers.items():
        several = value if isinstance(value, tuple | list) else [value]
        if name == "betas" and len(several) != 2:
            raise ArgumentError(name, value, "must be two numbers")
        if not all(is_number(number) and 0 <= number < 1 for number in several):
            raise ArgumentError(name, value, "must be from 0 to below 1")


def one_of(known: Iterable[str], **names: Any) -> None:
    """One of the known names."""
    known = list(known)
    for name, value in names.items():
        if value not in known:
            raise ArgumentError(name, value, f"is unknown; known: {', '.join(known)}")
