"""What happens when: settings that are functions of the step, and events at their moments."""

from ticks.timeline.action import Action, Event, Setting, Stage
from ticks.timeline.events import Evaluate, Prune, Run, Save, Show, Stop
from ticks.timeline.settings import (
    Augmentation,
    BatchSize,
    Dropout,
    Freeze,
    Interval,
    LrFactor,
    NormGate,
    Number,
    Thaw,
    TrainOnly,
    WeightDecay,
)
from ticks.timeline.timeline import Timeline

__all__ = [
    "Action",
    "Augmentation",
    "BatchSize",
    "Dropout",
    "Evaluate",
    "Event",
    "Freeze",
    "Interval",
    "LrFactor",
    "NormGate",
    "Number",
    "Prune",
    "Run",
    "Save",
    "Setting",
    "Show",
    "Stage",
    "Stop",
    "Thaw",
    "Timeline",
    "TrainOnly",
    "WeightDecay",
]
