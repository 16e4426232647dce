"""Signals that ask a process to stop, and what its exit code says. Imports nothing but the standard library."""

import signal

STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def stopped_by(code: int) -> int | None:
    """The signal that asked for this exit code of `subprocess`, if one did."""
    return next((signum for signum in STOPS if code in (128 + signum, -signum)), None)


def exit_in_words(code: int) -> str:
    """An exit code of `subprocess` in words."""
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
