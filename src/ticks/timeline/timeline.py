"""A callback that does what a timeline's entries say, on every worker after the same step.

Timeline({
    "warmup": {"from": 0, "ramp": 500, "do": NormGate(start=0.0, end=1.0)},
    "keep": {"every": "20min", "do": Save(name="kept")},
})

Settings are recomputed wherever a run begins or goes on; of events it is kept which have happened. Seconds are of
training, those before a stop among them; all workers take the slowest one's, which comes with the message of a tick.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from ticks.arguments import ArgumentError
from ticks.strategy.lightning import validate_now
from ticks.timeline.action import Event, Setting, Stage
from ticks.timeline.events import Evaluate
from ticks.timeline.moments import Entry, Track, entry, never
from ticks.timeline.seconds import TrainingTime
from ticks.timeline.settings import Timed
from ticks.timeline.tracks import OF_DATA, hand_over, look_ahead, of, tracks_of

Said = Mapping[str, Any]  # {"every": 100, "do": Save()}


def _by_name(entries: Any) -> dict[str, Said]:
    """ArgumentError for what are no entries."""
    if isinstance(entries, str) or not isinstance(entries, Mapping | Sequence):
        raise ArgumentError("entries", entries, 'must be {name: {"every": 100, "do": Save()}, ...} or a list of such')
    named = entries if isinstance(entries, Mapping) else dict(enumerate(entries))
    for name, said in named.items():
        if not isinstance(said, Mapping):
            raise ArgumentError(f"entries[{name!r}]", said, 'must be like {"every": 100, "do": Save()}')
    if named is entries:
        return dict(named)
    return {f"{type(said.get('do')).__name__.lower()}{i or ''}": said for i, said in named.items()}


class Timeline(Callback):
    """Takes entries by name, or a list of them: {"at" or "every" or "from", "until", "ramp", and "do": an action}.
    Steps and ticks count from behind the first `begin` steps of the run.

    ArgumentError, when training is about to start, for moments and actions that cannot be.
    """

    def __init__(self, entries: Mapping[str, Said] | Sequence[Said] = (), *, begin: int = 0) -> None:
        self.said = _by_name(entries)
        self.begin = begin
        self.entries: list[Entry] = []
        self.tracks: list[Track] = []
        self.total_steps = math.inf
        self.listeners: list[Callable[[Trainer, str, Any], None]] = []  # told an entry's name and what it did or is
        self._begin_anew()

    def _begin_anew(self) -> None:
        """Nothing has happened yet: an earlier fit is not this one."""
        self._done: dict[str, float] = {}  # by kind: up to where events have happened
        self._happened: dict[str, str] = {}  # events by name, and what they are
        self._time = TrainingTime()
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
        self.total_steps = total_steps
        self.entries = [entry(name, said, total_steps) for name, said in self.said.items()]
        return self.entries

    def check(self, stage: Stage) -> None:
        """ArgumentError for settings that find nothing to set, or contradict each other. Optimizers must be there."""
        self.tracks = tracks_of(self.entries, stage)
        for one in self.events():
            with of(one):
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

    def events(self, kind: str | None = None) -> list[Entry]:
        """In the order in which they happen."""
        found = [e for e in self.entries if isinstance(e.do, Event) and (kind is None or kind in e.kinds())]
        return sorted(found, key=lambda e: e.do.last)  # type: ignore[union-attr, attr-defined]

    def lines(self) -> list[str]:
        """For people."""
        return [f"{one.name}: {one}" for one in self.entries]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Before anything asks for the data what they say themselves."""
        if stage == "fit":
            self._begin_anew()
        if stage != "fit" or not any(isinstance(said.get("do"), OF_DATA) for said in self.said.values()):
            return
        self.plan(trainer.max_steps - self.begin if trainer.max_steps > 0 else math.inf)
        at = Stage(trainer, pl_module, begin=self.begin)
        entries = [one for one in self.entries if isinstance(one.do, OF_DATA)]
        for track in tracks_of(entries, at):
            hand_over(track, at)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        strategy: Any = trainer.strategy
        if isinstance(clock := getattr(strategy, "clock", None), Timed):  # of an earlier fit
            strategy.clock = clock.clock
        steps = trainer.estimated_stepping_batches if self.said else -1
        self.plan(steps - self.begin if steps > 0 else math.inf)
        stage = Stage(trainer, pl_module, begin=self.begin)
        self.check(stage)

        def look(step: int, names: list[str]) -> None:
            if not any(p.requires_grad for p in pl_module.parameters()):
                who, said = " and ".join(names) or "entries", names or list(self.said)
                raise ArgumentError(who, said, f"leaves nothing that trains, from step {step} on")
            if hasattr(strategy, "check"):
                strategy.check(pl_module)

        look_ahead(self.tracks, stage, self.total_steps, look)
        for track in self.tracks:
            hand_over(track, stage)

    # ---- while it trains

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        step, strategy = self._step(trainer), trainer.strategy
        if "steps" not in self._done:  # what lies behind a run that goes on without having had a timeline is over
            self._done["steps"] = float(step) if step else -1.0
            self._ticks_before = self._ticks(trainer)
        self._done["steps"] = min(self._done["steps"], float(step))
        listeners = getattr(strategy, "on_tick", None)
        if self.entries and isinstance(listeners, list):
            if self._on_tick not in listeners:
                listeners.append(self._on_tick)
            if hasattr(strategy, "seconds_of_training"):
                strategy.seconds_of_training = self.seconds
        self._time.go_on()
        stage = Stage(trainer, pl_module, step=step, begin=self.begin)
        self._last_step = step
        if step:  # the strategy finds what it left; the next step's settings come with its batch
            self._apply(stage, step)
            self._next_setting = step + 1
        else:
            self._apply(stage, 1)
            self._tell(stage, 1)
        self._find_next(step)
        self._go_on(stage)
        if self._done["steps"] < step or self._done["steps"] < 0:  # before the first, or kept by who came before
            self._happen(stage)
            if self._asked:
                self._evaluate(trainer)

    def _go_on(self, stage: Stage) -> None:
        """With what a checkpoint kept of events."""
        kept, self._kept = self._kept, {}
        for one in self.events():
            behind = any(one.due(kind, -1.0, over) for kind, over in self._done.items())  # type: ignore[arg-type]
            known = kept.get("events", {}).get(one.name, {})
            if "happened" in kept:
                has_happened = self._happened.get(one.name) == type(one.do).__name__
            else:  # in a checkpoint of before
                has_happened = behind and one.name in kept.get("entries", ())
            if one.name in kept.get("waiting", []):
                self._behind_evaluation.append(one)
            elif has_happened and (behind or known):
                one.do.happened(stage, known)  # type: ignore[attr-defined]
            elif behind and one.at and one.name not in self._happened and stage.trainer.is_global_zero:
                print(f"note: timeline: {one.name} does not happen where it lies behind step {stage.step}", flush=True)
        if kept.get("asked"):
            self._evaluate(stage.trainer)

    def _evaluate(self, trainer: Trainer) -> None:
        """Before the first step: what all agree on is what the module holds."""
        validate_now(trainer)
        self._asked = False

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        step = self._last_step + 1
        if step >= self._next_setting:
            stage = Stage(trainer, pl_module, step=step - 1, begin=self.begin)
            self._apply(stage, step)
            self._tell(stage, step)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = self._step(trainer)
        if step == self._last_step:  # in the middle of one
            return
        self._last_step = step
        if not self.entries:
            return
        stage = Stage(trainer, pl_module, step=step, begin=self.begin)
        if self._next_setting <= step + 1 <= self.total_steps:  # told before anything is kept, so that it is told once
            self._tell(stage, step + 1)
        if step >= self._next_event or self._ticked or self._looks_at_the_clock(trainer, step):
            self._happen(stage)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._time.pause()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != "fit":
            return
        self._time.go_on()
        self._asked = False
        for one in self.entries:
            if isinstance(one.do, Evaluate):
                one.do.as_before(trainer)
        self._do_what_waited(Stage(trainer, pl_module, step=self._last_step, begin=self.begin))

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Events let go of what may serve another fit. What settings set stays: the model is measured like that."""
        strategy: Any = trainer.strategy
        if self._on_tick in (listeners := getattr(strategy, "on_tick", [])):
            listeners.remove(self._on_tick)
        for one in self.events():
            one.do.over(trainer)  # type: ignore[attr-defined]

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._time.pause()
        for line in never(self.entries, self._done, self._last_step) if trainer.is_global_zero else ():
            print(f"note: timeline: {line}", flush=True)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._time.pause()

    def _step(self, trainer: Trainer) -> int:
        return int(getattr(trainer.strategy, "step", trainer.global_step)) - self.begin

    @staticmethod
    def _ticks(trainer: Trainer) -> int:
        ledger: Any = getattr(trainer.strategy, "ledger", None)
        return 0 if ledger is None else ledger.ticks

    def seconds(self) -> float:
        """Of training so far, on this worker."""
        return self._time.seconds()

    # ---- settings

    def _apply(self, stage: Stage, step: int) -> None:
        """Everything as it is in this step."""
        for track in self.tracks:
            track.update(stage, step)
        self._next_setting = min((track.next_change(step) for track in self.tracks), default=math.inf)

    def _tell(self, stage: Stage, step: int) -> None:
        """Listeners, of what is another in this step than it was."""
        for one in self.entries:
            if isinstance(one.do, Setting) and (state := one.state(step)) != self._told.get(one.name, "rests"):
                self._told[one.name] = state
                self._say(stage, one, state)

    def _say(self, stage: Stage, one: Entry, what: Any) -> None:
        for listener in self.listeners:
            listener(stage.trainer, one.name, what)

    # ---- events

    def _on_tick(self, metrics: dict[str, float]) -> None:
        self._ticked = True

    def _looks_at_the_clock(self, trainer: Trainer, step: int) -> bool:
        """Whether seconds may decide here, where there are no ticks."""
        return not hasattr(trainer.strategy, "on_tick") and self._time.looks(step) and bool(self.events("seconds"))

    def _now(self, trainer: Trainer, step: int) -> dict[str, float]:
        """By kind, what is over, the same on all workers; never less than before."""
        now = {"steps": float(step)}
        if self._ticked or not hasattr(trainer.strategy, "on_tick"):
            if self.events("ticks"):
                now["ticks"] = float(self._ticks(trainer) - self._ticks_before)
            if timed := self.events("seconds"):
                now["seconds"] = self._time.agreed(trainer)
                soonest = min(one.next_moment("seconds", now["seconds"]) for one in timed)
                self._time.plan_look(step, now["seconds"], soonest, alone=trainer.world_size == 1)
        return {kind: max(over, self._done.get(kind, 0.0)) for kind, over in now.items()}

    def _happen(self, stage: Stage) -> None:
        """All events whose moments have come; those that keep something last, behind an evaluation too."""
        before, now = dict(self._done), self._now(stage.trainer, stage.step)
        self._done |= now
        self._ticked = evaluates = False
        due = [
            one for one in self.events()
            if any(one.due(kind, before.get(kind, 0.0), over) for kind, over in now.items())  # type: ignore[arg-type]
        ]  # fmt: skip
        self._happened |= {one.name: type(one.do).__name__ for one in due}
        for one in due:
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
        self._say(stage, one, one.do.happen(stage))

    def _find_next(self, step: int) -> None:
        self._next_event = min((one.next_moment("steps", step) for one in self.events("steps")), default=math.inf)

    # ---- what is kept

    def state_dict(self) -> dict[str, Any]:
        waiting = [one.name for one in self._behind_evaluation]
        known = {one.name: state for one in self.events() if (state := one.do.state())}  # type: ignore[attr-defined]
        kept = {"done": dict(self._done), "happened": dict(self._happened), "told": dict(self._told)}
        kept |= {"step": self._last_step, "seconds": self.seconds(), "ticks_before": self._ticks_before}
        return kept | {"waiting": waiting, "asked": self._asked, "events": known}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._done, self._ticks_before = dict(state_dict["done"]), state_dict["ticks_before"]
        self._done["steps"] = float(state_dict.get("step", math.inf))  # as many as there are
        self._happened, self._told = dict(state_dict.get("happened", {})), dict(state_dict.get("told", {}))
        seconds = max(state_dict["seconds"], self._done.get("seconds", 0.0))  # the slowest worker's at a tick
        self._time = TrainingTime(seconds)
        self._kept = dict(state_dict)
