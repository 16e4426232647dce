"""Tracks: what the settings of a timeline make of each value that they set."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ticks.arguments import ArgumentError
from ticks.timeline.action import Setting, Stage
from ticks.timeline.moments import Entry, Track
from ticks.timeline.settings import Augmentation, BatchSize, Interval, LrFactor, Timed

OF_DATA = (BatchSize, Augmentation)  # settings that data say of each step, before it comes


@contextmanager
def of(one: Entry) -> Iterator[None]:
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
            with of(one):
                targets = one.do.targets(stage)
            for target in targets:
                by_target.setdefault(target, []).append(one)
    tracks = [Track(target, entries) for target, entries in by_target.items()]
    for track in tracks:
        track.check()
    return tracks


def look_ahead(
    found: Sequence[Track], stage: Stage, total_steps: float, look: Callable[[int, list[str]], None]
) -> None:
    """Call `look` at each step from which on other parameters train than before, with the entries by which they do.
    Behind it all is as it was."""
    meant = [track for track in found if Track.setting(track.entries[0]).of_training]
    tracks = [Track(track.target, track.entries) for track in meant]  # those of training know what is set
    before = {name: p.requires_grad for name, p in stage.module.named_parameters()}
    trained = {part: part.training for part in stage.module.modules()}
    step: float = 1
    try:
        while tracks and math.isfinite(step) and step <= total_steps:
            names = []
            for track in tracks:
                track.set(stage, int(step))
                names += [e.name for e in track.entries if e.holds(int(step))]
            look(int(step), list(dict.fromkeys(names)))
            step = min(track.next_change(int(step)) for track in tracks)
    finally:
        for name, p in stage.module.named_parameters():
            p.requires_grad_(before[name])
        for part, was_training in trained.items():
            part.training = was_training


def hand_over(track: Track, stage: Stage) -> None:
    """To the schedule and the clock, what they say themselves."""
    first = track.entries[0].do
    if isinstance(first, LrFactor):
        first.follow(stage, lambda done: track.value(done + 1))
    elif isinstance(first, OF_DATA):
        first.follow(stage, track.value)
    elif isinstance(first, Interval):
        borders = {b for e in track.entries for b in (e.begin, e.until) if 0 < b < math.inf}
        strategy: Any = stage.trainer.strategy
        strategy.clock = Timed(strategy.clock, track.value, borders, stage.begin)
