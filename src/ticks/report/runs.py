"""Runs read back from their directories: what each was told, what it came to, and its record."""

import csv
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ticks.config import ConfigError
from ticks.record import summary
from ticks.record.metrics import MetricsFile
from ticks.run_directory import is_locked

ABOUT_ITSELF = ("config_digest", "earlier_digests", "phase_configs", "of_run")
IN_A_SUMMARY = {
    "strategy": "strategy", "strategy.clock.interval": "interval", "strategy/sync": "sync", "strategy/wire": "wire",
    "model/norm": "norm", "model/adapter": "adapter", "trainer.devices": "world_size", "seed": "seed",
}  # fmt: skip


@dataclass(frozen=True)
class Run:
    """One run's summary.json, the rows of its metrics.csv, and what its config.yaml says.

    `settings` has the names of its groups, as `strategy` and `model/norm`, and every value by its dotted key; `typed`
    are those of the command line.
    """

    directory: Path
    summary: dict[str, Any]
    rows: list[dict[str, str]]
    settings: dict[str, Any] = field(default_factory=dict)
    typed: tuple[str, ...] = ()

    @property
    def measure(self) -> tuple[str, float | None]:
        """By what it is judged, and what it came to."""
        return summary.headline(self.summary)

    @property
    def label(self) -> str:
        about = self.summary
        if about["strategy"] == "ddp":
            return "DDP"
        clock = about.get("clock") or about["interval"]
        wire = f", {about['wire']}" if about.get("wire") not in (None, "fp32") else ""
        return f"{about['sync']}, interval {clock}{wire}"


def load_runs(directories: Sequence[Path]) -> list[Run]:
    """The runs in `directories`, or below them for a multirun's or a sweep's, each once. What is no run is left out
    with one warning. ConfigError if there is none at all.
    """
    if not directories:
        raise ConfigError("give run directories: ticks report logs/runs/* out=figure.png")
    runs: dict[Path, Run] = {}
    skipped = []
    for directory in directories:
        found = sorted(directory.glob("**/summary.json"))
        found = [file for file in found if "phases" not in file.relative_to(directory).parts]  # of a run that is there
        if not directory.exists():
            skipped.append(f"no run in '{directory}', which does not exist")
        elif not found:
            skipped.append(f"no run in '{directory}': no summary.json there or below it")
        said = sorted(directory.glob("*.txt")) if (directory / ".claims").is_dir() else []  # it is a sweep's folder
        if lost := [text for text in said if not (text.with_suffix("") / "summary.json").exists()]:
            names = ", ".join(map(str, lost[:3])) + (", ..." if len(lost) > 3 else "")
            skipped.append(f"{len(lost)} job(s) of a sweep have no run, what they said is in {names}")
        for file in found:
            try:
                runs.setdefault(file.parent.resolve(), _run(file))
            except (ValueError, OSError) as error:
                skipped.append(f"{file} cannot be read: {error}")
    if not runs:
        raise ConfigError("; ".join(skipped))
    if skipped:
        print(f"warning: left out: {'; '.join(skipped)}", file=sys.stderr, flush=True)
    return list(runs.values())


def _run(file: Path) -> Run:
    about = _summary(file)
    settings, typed = _settings(file.with_name("config.yaml"))
    return Run(file.parent, about, _rows(file.with_name("metrics.csv")), settings or _of_a_summary(about), typed)


def _summary(file: Path) -> dict[str, Any]:
    """A run's summary with every key. ValueError if it is damaged or another program's."""
    about = summary.read(file.parent)
    if not isinstance(about, dict) or not {"status", "strategy", "steps"} <= about.keys():
        raise ValueError("no summary of a training run: it needs status, strategy and steps")
    measured = f"val_{summary.headline(about)[0]}"
    for key in ("steps", "world_size", measured, "bytes_sent_per_worker", "steps_per_second"):
        if not isinstance(about.get(key), int | float | None):
            raise ValueError(f"{key}={about[key]!r} must be a number or null")
    if about["status"] == "running" and not is_locked(file.parent):
        about["status"] = "failed"  # its process is gone, without a word
    return dict.fromkeys(summary.KEYS) | about


def _settings(file: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    """What is in config.yaml, and what of it was typed; nothing if it is not there or damaged."""
    if not file.exists():
        return {}, ()
    try:
        content = yaml.safe_load(file.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        content = str(error)
    if not isinstance(content, dict):
        print(f"warning: {file} cannot be read: what the run was told is not compared", file=sys.stderr, flush=True)
        return {}, ()
    return settings_of(content)


def settings_of(content: dict[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """A resolved configuration's values by their dotted keys, with its choices; and what of it was typed.

    A choice that stands for nothing (`tuning=full`) is called as it was typed, one of an empty file (`timeline=none`)
    by its name.
    """
    choices, typed = content.pop("choices", None) or {}, content.pop("coordinates", None) or {}
    named = {key for key in choices if content.get(key) == {}}
    told = choices | dict(_flat({key: value for key, value in content.items() if key not in {*ABOUT_ITSELF, *named}}))
    told |= {key: name for key in typed if told.get(key) is None and (name := choices.get(key)) not in (None, "none")}
    return told, tuple(bare for key in typed if (bare := key.lstrip("+~")) in told)


def _flat(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every value by its dotted key; a list is one value."""
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", str(value) if isinstance(value, list | dict) else value


def _of_a_summary(about: dict[str, Any]) -> dict[str, Any]:
    """What a summary alone tells of a run's configuration."""
    return {key: about.get(name) for key, name in IN_A_SUMMARY.items()}


def _rows(file: Path) -> list[dict[str, str]]:
    """The rows of a run's metrics.csv; none if it is not there or damaged: the table does without them."""
    try:
        return MetricsFile(file).rows()
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        print(f"warning: {file} cannot be read: {error}", file=sys.stderr, flush=True)
        return []
