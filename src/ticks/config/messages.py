"""What is said of a mistake: one line that names the key, the value and what would be valid."""

import difflib
import re
import shlex
from collections.abc import Iterable

MOST = 60  # names that a person can look through


class ConfigError(Exception):
    """A user's mistake in the configuration. Its text is the whole message."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """ "; did you mean 'x'? valid: a, b, x", with the valid names sorted; of very many, those that are near."""
    names = sorted(str(k) for k in known)
    close = difflib.get_close_matches(str(name), names, n=1, cutoff=0.6)
    if len(names) > MOST:
        near = difflib.get_close_matches(str(name), names, n=8, cutoff=0.4)
        return f"; did you mean '{near[0]}'? near it: {', '.join(near)}" if near else f"; there are {len(names)} others"
    return (f"; did you mean '{close[0]}'?" if close else ";") + f" valid: {', '.join(names)}"


def quoted(override: str) -> str:
    """KEY=VALUE with the value as a text, as it is typed in a shell: once quoted for Hydra, once for the shell."""
    key, _, value = override.partition("=")
    escaped = re.sub(r'(\\*)("|\Z)', lambda match: match[1] * 2 + ('\\"' if match[2] else ""), value)
    return shlex.quote(f'{key}="{escaped}"')
