"""A callback that does what a timeline's entries say, on every worker after the same step.

Timeline({
    "warmup": {"from": 0, "ramp": 500, "do": NormGate(start=0.0, end=1.0)},
    "keep": {"every": "20min", "do": Save(name="kept")},
})

Settings are recomputed wherever a run begins or goes on; of events it is kept which have happened. Seconds are of
training, those before a stop among them; all workers take the slowest one's, which comes with the message of a tick.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from ticks.arguments import ArgumentError
from ticks.strategy.lightning import validate_now
from ticks.timeline.action import Event, Setting, Stage
from ticks.timeline.events import Evaluate
from ticks.timeline.moments import Entry, Track, entry, never
from ticks.timeline.settings import Augmentation, BatchSize, Interval, LrFactor, Timed

OF_DATA = (BatchSize, Augmentation)  # settings that data say of each step, before it comes
Said = Mapping[str, Any]  # {"every": 100, "do": Save()}


@contextmanager
def _of(one: Entry) -> Iterator[None]:
    """A mistake in an action's argument, by where it stands."""
    try:
        yield
    except ArgumentError as error:
        raise ArgumentError(f"{one.name}.do.{error.argument}", error.value, error.valid) from None


def tracks_of(entries: Sequence[Entry], stage: Stage) -> list[Track]:
    """A value over the steps for each target of the settings among them."""
    by_target: dict[str, list[Entry]] = {}
    for one in entries:
        if isinstance(one.do, Setting):
            with _of(one):
                targets = one.do.targets(stage)
            for target in targets:
                by_target.setdefault(target, []).append(one)
    tracks = [Track(target, entries) for target, entries in by_target.items()]
    for track in tracks:
        track.check()
    return tracks


class Timeline(Callback):
    """Takes entries by name, or a list of them: {"at" or "every" or "from", "until", "ramp", and "do": an action}.
    Steps and ticks count from behind the first `begin` steps of the run.

    ArgumentError, when training is about to start, for moments and actions that cannot be.
    """

    def __init__(self, entries: Mapping[str, Said] | Sequence[Said] = (), *, begin: int = 0) -> None:
        if not isinstance(entries, Mapping):
            entries = {f"{type(said.get('do')).__name__.lower()}{i or ''}": said for i, said in enumerate(entries)}
        self.said = dict(entries)
        self.begin = begin
        self.entries: list[Entry] = []
        self.tracks: list[Track] = []
        self.listeners: list[Callable[[Trainer, str, Any], None]] = []  # told an entry's name and what it did or is
        self._done: dict[str, float] = {}  # by kind: up to where events have happened
        self._seconds = 0.0  # of training, in earlier processes
        self._since: float | None = None
        self._next_setting = self._next_event = math.inf  # steps
        self._last_step = -1
        self._ticked = False
        self._told: dict[str, str] = {}  # by a setting's name: what listeners know
        self._ticks_before = 0
        self._behind_evaluation: list[Entry] = []  # what waits for one
        self._asked = False  # for an evaluation that has not ended
        self._kept: dict[str, Any] = {}  # of a run that goes on: what waited, and what events know

    # ---- before training

    def plan(self, total_steps: float) -> list[Entry]:
        """Its entries in a run of so many steps. ArgumentError for what cannot be."""
        self.entries = [entry(name, said, total_steps) for name, said in self.said.items()]
        return self.entries

    def check(self, stage: Stage) -> None:
        """ArgumentError for settings that find nothing to set, or contradict each other. Optimizers must be there."""
        self.tracks = tracks_of(self.entries, stage)
        for one in self.events():
            with _of(one):
                one.do.check(stage)  # type: ignore[attr-defined]
        if self.events("ticks") and not hasattr(stage.trainer.strategy, "on_tick"):
            name = self.events("ticks")[0].name
            raise ArgumentError(name, "ticks", f"are not there: {type(stage.trainer.strategy).__name__} has none")

    def dress(self, module: Any, step: int, total_steps: float) -> None:
        """Let a model compute what it does behind so many steps of such a run."""
        entries = [one for one in self.plan(total_steps) if isinstance(one.do, Setting) and one.do.of_model]
        stage = Stage(None, module, begin=self.begin)
        for track in tracks_of(entries, stage):
            track.set(stage, max(1, step))

    def what_trains(self, stage: Stage, total_steps: float) -> Iterator[tuple[int, list[str]]]:
        """From which step on other parameters train than before, and by which entries; in between they do. Behind the
        last it is as it was."""
        tracks = [track for track in self.tracks if Track.setting(track.entries[0]).of_training]
        before = {name: p.requires_grad for name, p in stage.module.named_parameters()}
        step: float = 1
        while tracks and step <= total_steps:
            names = []
            for track in tracks:
                track.set(stage, int(step))
                names += [e.name for e in track.entries if e.holds(int(step))]
            yield int(step), list(dict.fromkeys(names))
            step = min(track.next_change(int(step)) for track in tracks)
        for name, p in stage.module.named_parameters():
            p.requires_grad_(before[name])

    def events(self, kind: str | None = None) -> list[Entry]:
        """In the order in which they happen."""
        found = [e for e in self.entries if isinstance(e.do, Event) and (kind is None or kind in e.kinds())]
        return sorted(found, key=lambda e: e.do.last)  # type: ignore[union-attr, attr-defined]

    def lines(self) -> list[str]:
        """For people."""
        return [f"{one.name}: {one}" for one in self.entries]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Before anything asks for the data what they say themselves."""
        if stage != "fit" or not any(isinstance(said.get("do"), OF_DATA) for said in self.said.values()):
            return
        self.plan(trainer.max_steps - self.begin if trainer.max_steps > 0 else math.inf)
        at = Stage(trainer, pl_module, begin=self.begin)
        entries = [one for one in self.entries if isinstance(one.do, OF_DATA)]
        for track in tracks_of(entries, at):
            self._hand_over(track, at)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        strategy: Any = trainer.strategy
        if isinstance(clock := getattr(strategy, "clock", None), Timed):  # of an earlier fit
            strategy.clock = clock.clock
        steps = trainer.estimated_stepping_batches if self.said else -1
        self.plan(steps - self.begin if steps > 0 else math.inf)
        stage = Stage(trainer, pl_module, begin=self.begin)
        self.check(stage)
        for track in self.tracks:
            self._hand_over(track, stage)

    def _hand_over(self, track: Track, stage: Stage) -> None:
        """To the schedule and the clock, what they say themselves."""
        first = track.entries[0].do
        if isinstance(first, LrFactor):
            first.follow(stage, lambda done: track.value(done + 1))
        elif isinstance(first, OF_DATA):
            first.follow(stage, track.value)
        elif isinstance(first, Interval):
            borders = {b for e in track.entries for b in (e.begin, e.until) if 0 < b < math.inf}
            strategy: Any = stage.trainer.strategy
            strategy.clock = Timed(strategy.clock, track.value, borders, self.begin)

    # ---- while it trains

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        step, strategy = self._step(trainer), trainer.strategy
        if "steps" not in self._done:  # what lies behind a run that goes on without having had a timeline is over
            self._done["steps"] = float(step) if step else -1.0
            self._ticks_before = self._ticks(trainer)
        listeners = getattr(strategy, "on_tick", None)
        if self.entries and isinstance(listeners, list):
            if self._on_tick not in listeners:
                listeners.append(self._on_tick)
            if hasattr(strategy, "seconds_of_training"):
                strategy.seconds_of_training = self.seconds
        self._since = time.perf_counter()
        stage = Stage(trainer, pl_module, step=step, begin=self.begin)
        kept, self._kept = self._kept, {}
        if step:  # the strategy finds what it left; the next step's settings come with its batch
            self._told = {one.name: one.state(step) for one in self.entries if isinstance(one.do, Setting)}
        self._set(stage, max(1, step))
        if step:
            self._next_setting = step + 1
        self._last_step = step
        self._find_next(step)
        waiting = kept.get("waiting", [])
        for one in self.events():
            if one.name in waiting:
                self._behind_evaluation.append(one)
            elif one.name not in kept.get("entries", []):
                continue  # it is new in a run that goes on: what lies behind it does not happen
            elif any(one.due(kind, -1.0, over) for kind, over in self._done.items()):  # type: ignore[arg-type]
                one.do.happened(stage, kept.get("events", {}).get(one.name, {}))  # type: ignore[attr-defined]
        if kept.get("asked"):
            self._evaluate(trainer)
        if self._done["steps"] < step == 0:  # what is to happen before the first step
            self._happen(stage)
            if self._asked:
                self._evaluate(trainer)

    def _evaluate(self, trainer: Trainer) -> None:
        """Before the first step: what all agree on is what the module holds."""
        validate_now(trainer)
        self._asked = False

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        step = self._last_step + 1
        if step >= self._next_setting:
            self._set(Stage(trainer, pl_module, step=step - 1, begin=self.begin), step)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not self.entries:
            return
        step = self._step(trainer)
        if step == self._last_step:  # in the middle of one
            return
        self._last_step = step
        if step >= self._next_event or self._ticked or self._looks_at_the_clock(trainer):
            self._happen(Stage(trainer, pl_module, step=step, begin=self.begin))

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._since is not None:
            self._seconds, self._since = self.seconds(), None

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != "fit":
            return
        self._since, self._asked = time.perf_counter(), False
        for one in self.entries:
            if isinstance(one.do, Evaluate):
                one.do.as_before(trainer)
        self._do_what_waited(Stage(trainer, pl_module, step=self._last_step, begin=self.begin))

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nothing of it is left in what may serve another fit."""
        strategy: Any = trainer.strategy
        if self._on_tick in (listeners := getattr(strategy, "on_tick", [])):
            listeners.remove(self._on_tick)
        for one in self.events():
            one.do.over(trainer)  # type: ignore[attr-defined]

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._seconds, self._since = self.seconds(), None
        for line in never(self.entries, self._done, self._last_step) if trainer.is_global_zero else ():
            print(f"note: timeline: {line}", flush=True)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._seconds, self._since = self.seconds(), None

    def _step(self, trainer: Trainer) -> int:
        return int(getattr(trainer.strategy, "step", trainer.global_step)) - self.begin

    @staticmethod
    def _ticks(trainer: Trainer) -> int:
        ledger: Any = getattr(trainer.strategy, "ledger", None)
        return 0 if ledger is None else ledger.ticks

    def seconds(self) -> float:
        """Of training so far, on this worker."""
        return self._seconds + (0.0 if self._since is None else time.perf_counter() - self._since)

    # ---- settings

    def _set(self, stage: Stage, step: int) -> None:
        """Everything as it is in this step."""
        for track in self.tracks:
            track.update(stage, step)
        for one in self.entries:
            if isinstance(one.do, Setting) and (state := one.state(step)) != self._told.get(one.name, "rests"):
                self._told[one.name] = state
                for listener in self.listeners:
                    listener(stage.trainer, one.name, state)
        self._next_setting = min((track.next_change(step) for track in self.tracks), default=math.inf)

    # ---- events

    def _on_tick(self, metrics: dict[str, float]) -> None:
        self._ticked = True

    def _looks_at_the_clock(self, trainer: Trainer) -> bool:
        """Whether seconds decide here, behind every step: where there are no ticks."""
        return bool(self.events("seconds")) and not hasattr(trainer.strategy, "on_tick")

    def _now(self, trainer: Trainer, step: int) -> dict[str, float]:
        """By kind, what is over, the same on all workers; never less than before."""
        now = {"steps": float(step)}
        if self._ticked or not hasattr(trainer.strategy, "on_tick"):
            if self.events("ticks"):
                now["ticks"] = float(self._ticks(trainer) - self._ticks_before)
            if self.events("seconds"):
                now["seconds"] = self._agreed_seconds(trainer)
        return {kind: max(over, self._done.get(kind, 0.0)) for kind, over in now.items()}

    def _agreed_seconds(self, trainer: Trainer) -> float:
        strategy: Any = trainer.strategy
        if hasattr(strategy, "agreed_seconds"):
            return strategy.agreed_seconds if trainer.world_size > 1 else self.seconds()
        return self.seconds() if trainer.world_size == 1 else strategy.broadcast(self.seconds())

    def _happen(self, stage: Stage) -> None:
        """All events whose moments have come; those that keep something last, behind an evaluation too."""
        before, now = dict(self._done), self._now(stage.trainer, stage.step)
        self._done |= now
        self._ticked = evaluates = False
        for one in self.events():
            if not any(one.due(kind, before.get(kind, 0.0), over) for kind, over in now.items()):  # type: ignore[arg-type]
                continue
            if evaluates and one.do.last:  # type: ignore[attr-defined]
                self._behind_evaluation.append(one)
                continue
            evaluates = evaluates or (isinstance(one.do, Evaluate) and stage.trainer.enable_validation)
            self._do(one, stage)
        self._asked = evaluates
        self._find_next(stage.step)

    def _do_what_waited(self, stage: Stage) -> None:
        while self._behind_evaluation:
            self._do(self._behind_evaluation.pop(0), stage)

    def _do(self, one: Entry, stage: Stage) -> None:
        assert isinstance(one.do, Event)
        said = one.do.happen(stage)
        for listener in self.listeners:
            listener(stage.trainer, one.name, said)

    def _find_next(self, step: int) -> None:
        self._next_event = min((e.next_step(step) for e in self.events("steps")), default=math.inf)

    # ---- what is kept

    def state_dict(self) -> dict[str, Any]:
        waiting = [one.name for one in self._behind_evaluation]
        known = {one.name: state for one in self.events() if (state := one.do.state())}  # type: ignore[attr-defined]
        kept = {"done": dict(self._done), "seconds": self.seconds(), "ticks_before": self._ticks_before}
        return kept | {"waiting": waiting, "asked": self._asked, "events": known, "entries": list(self.said)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._done, self._ticks_before = dict(state_dict["done"]), state_dict["ticks_before"]
        self._seconds = max(state_dict["seconds"], self._done.get("seconds", 0.0))  # the slowest worker's at a tick
        self._kept = dict(state_dict)
