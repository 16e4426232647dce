"""Runs read back from a project of Weights & Biases, as `logger=wandb` has written them there."""

import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ticks.config import ConfigError
from ticks.record import summary
from ticks.report.runs import Run, settings_of

PREFIX = "wandb:"
STATES = {"running": "running", "finished": "finished", "preempting": "stopped", "preempted": "stopped"}
STEP = "trainer/global_step"  # as Lightning's logger calls it
TOTALS = ("bytes_sent", "seconds", "tokens")  # logged with every evaluation


def load_online(place: str) -> list[Run]:
    """The runs of `wandb:ENTITY/PROJECT`, or of one group, `wandb:ENTITY/PROJECT/GROUP`, a sweep's say. What no run of
    ours is, is left out with one warning. ConfigError without a key, or where there is none."""
    entity, _, rest = place.removeprefix(PREFIX).partition("/")
    project, _, group = rest.partition("/")
    if not entity or not project:
        raise ConfigError(f"{place}: it is wandb:ENTITY/PROJECT, or wandb:ENTITY/PROJECT/GROUP")
    import wandb

    try:
        found = list(wandb.Api(timeout=30).runs(f"{entity}/{project}", filters={"group": group} if group else None))
        runs = [read for one in found if (read := _run(one)) is not None]
    except (wandb.errors.Error, ValueError, OSError) as error:
        raise ConfigError(f"{place} cannot be read: {str(error).splitlines()[0]}") from None
    if not runs:
        raise ConfigError(f"{place} has no run that logger=wandb has written")
    if n := len(found) - len(runs):
        print(f"warning: left out: {n} runs of {place} that logger=wandb has not written", file=sys.stderr, flush=True)
    return runs


def upload(files: Iterable[Path], project: str, command: str) -> str:
    """Put figures and tables into an artifact called `report`, by a run of its own that says the command; offline
    without a key. Where it is to be found. ConfigError for what W&B refuses."""
    import wandb

    try:
        mode: Any = "offline" if not _has_key() and not os.environ.get("WANDB_MODE") else None
        with wandb.init(project=project, job_type="report", mode=mode, config={"command": command}) as run:
            artifact = wandb.Artifact("report", type="report", description=command)
            for file in files:
                artifact.add_file(str(file))
            run.log_artifact(artifact)
            return str(run.url or run.dir)
    except (wandb.errors.Error, ValueError, OSError) as error:
        raise ConfigError(f"wandb={project}: {str(error).splitlines()[0]}") from None


def _has_key() -> bool:
    import wandb

    return bool(os.environ.get("WANDB_API_KEY") or wandb.login(prompt=False))


def _run(one: Any) -> Run | None:
    """None for a run that another program has logged."""
    resolved = one.config.get("resolved")
    if not isinstance(resolved, Mapping):
        return None
    content = dict(resolved) | {"coordinates": one.config.get("sweep_coordinates") or {}}
    settings, typed = settings_of(content)
    said = one.summary_metrics.get("run")  # plain, which `summary` is not
    about: dict[str, Any] = dict(said) if isinstance(said, Mapping) else _unfinished(one, settings)
    return Run(
        Path(f"{one.name}-{one.id}"), dict.fromkeys(summary.KEYS) | about, _rows(one.scan_history()), settings, typed
    )


def _unfinished(one: Any, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What is known of a run that never came to its summary."""
    status = STATES.get(str(one.state), "failed")
    steps = int(one.summary_metrics.get(STEP) or 0)
    return {
        "status": "failed" if status == "finished" else status,  # it has ended, but without a result
        "strategy": settings.get("strategy"), "steps": steps, "seed": settings.get("seed"),
    }  # fmt: skip


def _rows(history: Iterable[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Its evaluations as metrics.csv would have them."""
    rows: dict[int, dict[str, str]] = {}
    for entry in history:
        told = {key: str(v) for key, v in entry.items() if v is not None and (key in TOTALS or key.startswith("val/"))}
        if told and entry.get(STEP) is not None:
            step = int(entry[STEP])
            rows.setdefault(step, {"step": str(step)}).update(told)
    return [row for row in rows.values() if any(key.startswith("val/") for key in row)]
