"""What numbers an optimizer or a schedule can be given."""

import math


def not_negative(**numbers: float) -> None:
    """ValueError that names the first that is negative or not finite."""
    for name, value in numbers.items():
        if not math.isfinite(value):
            raise ValueError(f"{name}={value} must be a finite number")
        if value < 0:
            raise ValueError(f"{name}={value} must not be negative")


def below_one(**numbers: tuple[float, ...] | list[float] | float) -> None:
    """ValueError that names the first that is not from 0 to below 1."""
    for name, value in numbers.items():
        several = value if isinstance(value, tuple | list) else [value]
        if name == "betas" and len(several) != 2:
            raise ValueError(f"betas={list(several)} must be two numbers")
        if not all(0 <= number < 1 for number in several):
            shown = list(several) if isinstance(value, tuple | list) else value
            raise ValueError(f"{name}={shown} must be from 0 to below 1")


def share(**numbers: float) -> None:
    """ValueError that names the first that is not from 0 to 1."""
    for name, value in numbers.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name}={value} must be from 0 to 1")
