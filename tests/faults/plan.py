"""What trial k of seed S does: always the same, whatever else is run.

Of ten trials four send a signal, three mutate the configuration, two damage a checkpoint of a stopped run and one takes
something away (disk, data, W&B's process). Within each kind presets, signals, targets and damages go round, so that all
of them and their pairs are met; the rest (moments, bytes, workers, how a run is started) is drawn.
"""

import random
from dataclasses import dataclass, field

from tests.conftest import REPOSITORY

KINDS = ("signal", "mutation", "signal", "checkpoint", "signal", "mutation", "surroundings", "signal", "checkpoint",
         "mutation")  # fmt: skip
SIGNALS = ("SIGKILL", "SIGTERM", "SIGINT", "SIGSTOP")
TARGETS = ("main", "worker", "group")
PHASES = ("first import", "workers start", "run directory", "training", "checkpoint", "final checkpoint", "last lines")
DAMAGES = ("truncated", "emptied", "bit flipped", "plain Lightning's", "another run's", "another strategy's",
           "side file missing", "side file truncated", "side file bit flipped", "payload", "side file payload",
           "all truncated")  # fmt: skip
SURROUNDINGS = ("disk full", "data gone", "data shrunk", "disk full", "data gone during", "wandb killed", "disk full",
                "data shrunk during", "cache shrunk")  # fmt: skip
PRESETS = tuple(sorted(f.stem for f in (REPOSITORY / "configs" / "strategy").glob("*.yaml") if f.stem != "base"))


@dataclass(frozen=True)
class Moment:
    """A share of the run's whole length, measured beforehand, or `delay` seconds after a phase is seen to begin."""

    share: float | None = None
    phase: str | None = None
    delay: float = 0.0

    def __str__(self) -> str:
        return f"at {self.share:.0%} of the run" if self.share is not None else f"{self.delay:.2f} s into {self.phase}"


@dataclass(frozen=True)
class Trial:
    """One thing done to one run. `draw()` is a generator for what is decided while it happens."""

    number: int
    seed: int
    fault: str  # the row of the table: SIGKILL, "checkpoint truncated", "disk full", "mutation", ...
    target: str
    preset: str
    workers: int = 2
    start: str = "forked"  # or "real": `python train.py` from the first import on
    moment: Moment = field(default_factory=Moment)
    resume: str = "RUN_DIR"  # or "auto"
    system: str = "ticks"  # or "lightning"

    def draw(self) -> random.Random:
        return random.Random(f"{self.seed}/{self.number}/later")

    def __str__(self) -> str:
        started = "" if self.start == "forked" else f", {self.start} start"
        when = f", {self.moment}" if self.moment != Moment() else ""
        return f"{self.fault}, {self.target}: {self.preset}, {self.workers} worker(s){started}{when}"


def trial(number: int, seed: int, system: str = "ticks") -> Trial:
    """Trial `number` (0, 1, ...) of `seed`. Plain Lightning is only sent signals: it has no presets."""
    draw = random.Random(f"{seed}/{number}")
    if system == "lightning":
        return _signal(number, seed, number, draw, system="lightning", preset="ddp", start="real")
    kind, index = _kind(number)
    preset = PRESETS[(index + index // 60) % len(PRESETS)]  # 60: else some never meet some signals
    if kind == "signal":
        return _signal(number, seed, index, draw, preset=preset, start="real" if draw.random() < 0.2 else "forked")
    if kind == "mutation":
        return Trial(number, seed, "mutation", "configuration", preset, workers=1)
    resume = draw.choice(("RUN_DIR", "auto"))
    workers = draw.choice((2, 2, 2, 2, 1, 3))
    if kind == "checkpoint":
        damage = DAMAGES[index % len(DAMAGES)]
        if damage == "another strategy's":
            workers = 2
        target = "side file" if damage.startswith("side") else "all" if damage.startswith("all") else "newest"
        return Trial(number, seed, f"checkpoint {damage}", target, preset, workers, resume=resume)
    fault = SURROUNDINGS[index % len(SURROUNDINGS)]
    target = {"disk": "run directory", "data": "text file", "cache": "cache", "wandb": "service"}[fault.split()[0]]
    moment = _moment(draw, workers=workers, start="forked", during_training=True)
    return Trial(number, seed, fault, target, preset, workers, moment=moment, resume=resume)


def trials(count: int, seed: int, only: tuple[str, ...] = (), system: str = "ticks") -> list[Trial]:
    """The first `count` trials of `seed` whose fault begins with one of `only` (all if it is empty)."""
    found: list[Trial] = []
    number = 0
    while len(found) < count and number < 120 * (count + 1):
        candidate = trial(number, seed, system)
        if not only or candidate.fault.lower().startswith(tuple(name.lower() for name in only)):
            found.append(candidate)
        number += 1
    return found


def _kind(number: int) -> tuple[str, int]:
    """The kind of a trial, and how many of this kind came before it."""
    cycle, place = divmod(number, len(KINDS))
    kind = KINDS[place]
    return kind, cycle * KINDS.count(kind) + KINDS[:place].count(kind)


def _signal(
    number: int, seed: int, index: int, draw: random.Random, *, preset: str, start: str, system: str = "ticks"
) -> Trial:
    signal, target = SIGNALS[index % len(SIGNALS)], TARGETS[index // len(SIGNALS) % len(TARGETS)]
    workers = draw.choice((2, 2, 2, 2, 3) if target == "worker" or system == "lightning" else (2, 2, 2, 1, 3))
    moment = _moment(draw, workers=workers, start=start)
    resume = draw.choice(("RUN_DIR", "auto"))
    return Trial(number, seed, signal, target, preset, workers, start, moment, resume, system)


def _moment(draw: random.Random, *, workers: int, start: str, during_training: bool = False) -> Moment:
    if during_training:
        return Moment(phase="training", delay=draw.uniform(0, 1.5))
    if draw.random() < 0.6:
        return Moment(share=draw.random())
    phases = [p for p in PHASES if (p != "first import" or start == "real") and (p != "workers start" or workers > 1)]
    phase = draw.choice(phases)
    return Moment(phase=phase, delay=draw.uniform(0, 0.1 if phase == "last lines" else 0.5))
