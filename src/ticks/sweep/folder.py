"""A sweep's folder: a directory per job, named by what it is, so that a second call knows what the first one did."""

import fcntl
import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ticks.config import ConfigError, compose_strictly, digest
from ticks.record import summary
from ticks.run_directory import is_locked

SWEEPS = Path("logs/sweeps")
DONE = ("finished", "diverged")  # what another start would only repeat


@dataclass(frozen=True)
class Planned:
    """One job of a sweep: its overrides, its digest, and the directory of its run."""

    overrides: list[str]
    digest: str
    directory: Path
    devices: int | None = None  # workers, as far as they are known before
    max_steps: int | None = None
    labels: dict[str, str] = field(default_factory=dict)

    @property
    def about(self) -> dict[str, Any]:
        """Its summary; {} where there is none that can be read."""
        try:
            about = summary.read(self.directory)
        except (OSError, ValueError):
            return {}
        return about if isinstance(about, dict) else {}

    @property
    def state(self) -> str:
        """finished, diverged, interrupted, or new."""
        status = self.about.get("status")
        if status in DONE:
            return str(status)
        return "interrupted" if (self.directory / "config.yaml").exists() else "new"


def plan(jobs: Sequence[Sequence[str]], swept: Sequence[str], folder: Path, program: Path) -> list[Planned]:
    """Each job once, with its place below `folder`. Where the program has a configs folder, every job is composed and
    checked. ConfigError for the first that cannot be."""
    configs = program.parent / "configs"
    there = {place.name.rpartition("_")[2]: place for place in folder.glob("*_*/")}
    planned: dict[str, Planned] = {}
    for overrides in jobs:
        labels = {key: value for key, _, value in (o.partition("=") for o in overrides) if key in swept}
        said = "_".join(f"{key.rpartition('.')[2]}-{value}" for key, value in labels.items())
        name = re.sub(r"[^\w.+-]+", "-", said)[:80]  # nothing that would have to be quoted
        about: dict[str, Any] = {"labels": labels}
        if configs.is_dir():
            if clash := [o for o in overrides if o.partition("=")[0] in ("run_dir", "resume")]:
                raise ConfigError(f"{clash[0]}: each job of a sweep has a directory of its own; dir=PLACE says where")
            config = compose_strictly(overrides, configs)
            what = digest(config)
            devices = config.trainer.get("devices")
            about |= {"devices": devices if isinstance(devices, int) else None, "max_steps": config.trainer.max_steps}
        else:
            what = hashlib.sha256("\n".join(overrides).encode()).hexdigest()[:12]
        place = there.get(what[:6], folder / f"{name or 'job'}_{what[:6]}")  # whatever it was called there
        if configs.is_dir() and (other := _another(place, what)):
            raise ConfigError(f"{place} holds a run of another configuration ({other}, not {what}): give another dir=")
        planned.setdefault(what, Planned(list(overrides), what, place, **about))
    return list(planned.values())


def _another(place: Path, what: str) -> str | None:
    """The digest of the run that lies there, if it is none of this one's."""
    try:
        said = yaml.safe_load((place / "config.yaml").read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError):  # not there; or damaged, which resuming says
        return None
    if not isinstance(said, dict):
        return None
    known = [str(said.get("config_digest") or what), *map(str, said.get("earlier_digests") or ())]
    return None if what in known else known[0]


@contextmanager
def claimed(job: Planned) -> Iterator[bool]:
    """Whether the job is this process's in the block: no other sweep's, here or in another terminal. What holds it goes
    with the process, however it ends."""
    claims = job.directory.parent / ".claims"
    with ExitStack() as stack:
        try:
            claims.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context((claims / job.directory.name).open("w"))
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        except OSError as error:
            raise ConfigError(f"nothing can be written to dir={job.directory.parent}: {error.strerror}") from None
        # a job whose pool was killed may still be writing its checkpoint
        yield not (job.directory.is_dir() and is_locked(job.directory))
