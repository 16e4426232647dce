"""Usage: ticks predict run=RUN_DIR text=TEXT [text=TEXT ...] [file=FILE]

What the model of a run's newest checkpoint says of texts: a line each, as
JSON, with the likeliest class and the share that the model gives to it.

  run=RUN_DIR   the run's directory (required)
  text=TEXT     a text; as often as you like
  file=FILE     a file of texts, one in each line; - reads standard input

Example: ticks predict run=logs/runs/RUN text="The shares fell by a tenth"
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

from ticks.commands.options import run_of, where_it_began
from ticks.config import ConfigError, did_you_mean

AT_ONCE = 64  # texts


def main(arguments: list[str]) -> None:
    run, texts = None, []
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key == "run":
            run = value
        elif key == "text":
            texts.append(os.fsencode(value).decode(errors="replace"))  # bytes that are no text
        elif key == "file":
            texts += lines_of(value)
        else:
            raise ConfigError(f"unknown option '{argument}'{did_you_mean(key, ('run', 'text', 'file'))}")
    run_dir = run_of(run)
    if not texts:
        raise ConfigError('give a text: text="...", or file=FILE with one in each line')

    from ticks.assemble import restored
    from ticks.job import resumed_job

    directory = run_dir.resolve()
    with where_it_began(run_dir):
        made = restored(resumed_job(directory, [], mode="eval"))
    data: Any = made.data
    task: Any = made.task
    if not hasattr(task, "answers") or not hasattr(data, "encode_texts"):
        raise ConfigError(f"run={run}: {type(task).__name__} on {type(data).__name__} says nothing of texts")
    for start in range(0, len(texts), AT_ONCE):
        some = texts[start : start + AT_ONCE]
        for text, answer in zip(some, task.answers(data.encode_texts(some), data), strict=True):
            print(json.dumps({"text": text, **answer}, ensure_ascii=False))


def lines_of(file: str) -> list[str]:
    """ConfigError for a file that cannot be read."""
    try:
        text = sys.stdin.read() if file == "-" else Path(file).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"file={file} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    *lines, last = text.replace("\r\n", "\n").split("\n")
    return [*lines, last] if last else lines  # an answer for every line, whatever is in it
