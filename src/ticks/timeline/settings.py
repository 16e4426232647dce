"""Settings: the learning rates' factor, weight decay, what trains, dropout, any number, norms' gates, the interval."""

import re
from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from ticks.arguments import ArgumentError, at_least, is_number, not_negative, share
from ticks.models.changes.frozen import statistics_that_follow
from ticks.models.changes.gate import gate, gated_norms
from ticks.strategy.clock import Clock, Facts
from ticks.timeline.action import Setting, Stage, between


class LrFactor(Setting):
    """A factor on what the schedule says of every learning rate, from `start` to `end`."""

    def __init__(self, *, end: float, start: float = 1.0) -> None:
        not_negative(start=start, end=end)
        self.start, self.end = start, end
        self._factor = start

    def targets(self, stage: Stage) -> list[str]:
        return ["the learning rate's factor"]

    def value(self, target: str, share: float) -> float:
        return between(self.start, self.end, share)

    def follow(self, stage: Stage, factor: Callable[[int], float]) -> None:
        """From now on: `factor` is of each step's. A schedule that is a function of the step says it itself, so that
        what is logged, and what a clock sees, is what is used; behind any other the rates are lent to each step."""
        scheduled = {
            id(config.scheduler.optimizer): config.scheduler
            for config in stage.trainer.lr_scheduler_configs
            if config.interval == "step" and config.frequency == 1
        }
        for optimizer in stage.optimizers:
            scheduler = scheduled.get(id(optimizer))
            if type(scheduler) is LambdaLR:
                scheduler.lr_lambdas = [_times(rate, factor) for rate in scheduler.lr_lambdas]
                for group, base, rate in zip(
                    optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True
                ):
                    group["lr"] = base * rate(scheduler.last_epoch)
            else:
                self._lend(optimizer, stage, factor)

    def _lend(self, optimizer: Any, stage: Stage, factor: Callable[[int], float]) -> None:
        before: list[float] = []

        def begin(optimizer: Any, *_: Any) -> None:
            before[:] = [group["lr"] for group in optimizer.param_groups]
            for group in optimizer.param_groups:
                group["lr"] = group["lr"] * factor(stage.trainer.global_step - stage.begin)

        def end(optimizer: Any, *_: Any) -> None:
            for group, lr in zip(optimizer.param_groups, before, strict=True):
                group["lr"] = lr

        optimizer.register_step_pre_hook(begin)
        optimizer.register_step_post_hook(end)

    def set(self, stage: Stage, target: str, value: float) -> None:
        """The schedule says it."""


def _times(rate: Callable[[int], float], factor: Callable[[int], float]) -> Callable[[int], float]:
    return lambda step: rate(step) * factor(step)


class WeightDecay(Setting):
    """Of every parameter that decays at all, from `start` to `end`."""

    def __init__(self, *, start: float, end: float) -> None:
        not_negative(start=start, end=end)
        self.start, self.end = start, end

    def targets(self, stage: Stage) -> list[str]:
        if not any(group.get("weight_decay") for optimizer in stage.optimizers for group in optimizer.param_groups):
            raise ArgumentError("end", self.end, "is of no use: no parameter decays")
        return ["weight decay"]

    def value(self, target: str, share: float) -> float:
        return between(self.start, self.end, share)

    def set(self, stage: Stage, target: str, value: float) -> None:
        for optimizer in stage.optimizers:
            for group in optimizer.param_groups:
                if group.get("weight_decay") or group.get("decays"):
                    group["decays"] = True  # where the value is 0 for a while
                    group["weight_decay"] = value


class _Training(Setting):
    """Which parameters train. `match` are regular expressions, found anywhere in a parameter's name."""

    of_training = True

    def __init__(self, match: str | Sequence[str]) -> None:
        self.match = _patterns("match", match)
        self._at_start: dict[str, bool] = {}
        self._batch_norms: dict[str, nn.Module] = {}  # whose statistics follow

    def targets(self, stage: Stage) -> list[str]:
        named = dict(stage.module.named_parameters())
        if stage.trainer.world_size > 1 and type(stage.trainer.strategy).__name__.startswith("DDP"):
            wrong = "cannot change while DDP trains: TickStrategy(interval=1) does what that does, and allows it"
            raise ArgumentError("match", self.match, wrong)
        for pattern in self.match:
            try:
                hits = [name for name in named if re.search(pattern, name)]
            except re.error as error:
                raise ArgumentError("match", pattern, f"is no regular expression: {error}") from None
            if not hits:
                raise ArgumentError("match", pattern, f"matches no parameter; there are {_some(named)}")
        self._at_start = {f"whether {name} trains": p.requires_grad for name, p in named.items()}
        meant = [name for name in named if self._is_meant(name)]
        given = {id(p) for optimizer in stage.optimizers for group in optimizer.param_groups for p in group["params"]}
        for name in meant if given else ():
            if self.value(f"whether {name} trains", 1.0) and id(named[name]) not in given:
                wrong = f"cannot train {name}, which no optimizer has: give it one in configure_optimizers"
                raise ArgumentError("match", self.match, wrong)
        self._batch_norms = statistics_that_follow(stage.module)
        for name in meant:
            named[name].timed = True  # type: ignore[attr-defined]  # no proof that it stayed what it was
        return [f"whether {name} trains" for name in meant]

    def _matches(self, name: str) -> bool:
        return any(re.search(pattern, name) for pattern in self.match)

    def _is_meant(self, name: str) -> bool:
        return self._matches(name)

    def set(self, stage: Stage, target: str, value: bool) -> None:
        parameter = stage.module.get_parameter(_name(target))
        if parameter.requires_grad != value:
            parameter.requires_grad_(value)
            parameter.grad = None
            if (norm := self._batch_norms.get(_name(target).rpartition(".")[0])) is not None:
                norm.train(stage.module.training and any(p.requires_grad for p in norm.parameters()))


def _name(target: str) -> str:
    return target.removeprefix("whether ").removesuffix(" trains")


class Freeze(_Training):
    """They do not train while it holds."""

    def value(self, target: str, share: float) -> bool:
        return self._at_start[target] and not share


class Thaw(_Training):
    """They train while it holds, and do not before."""

    def value(self, target: str, share: float) -> bool:
        return bool(share)


class TrainOnly(_Training):
    """Nothing else trains while it holds."""

    def _is_meant(self, name: str) -> bool:
        return not self._matches(name)

    def value(self, target: str, share: float) -> bool:
        return self._at_start[target] and not share


class Dropout(Setting):
    """Of dropouts whose module's name `match` (a pattern with *) fits, from `start` (None: what it was) to `end`."""

    def __init__(self, *, end: float, start: float | None = None, match: str = "*") -> None:
        share(end=end, **({} if start is None else {"start": start}))
        self.end, self.start, self.match = end, start, match
        self._places: dict[str, tuple[Any, str, float]] = {}

    def targets(self, stage: Stage) -> list[str]:
        found: dict[str, tuple[Any, str, float]] = {}
        for name, module in stage.module.named_modules():
            if isinstance(module, nn.Dropout):
                found[name] = (module, "p", module.p)
            elif isinstance(own := vars(module).get("dropout"), float):  # an attention's
                found[f"{name}.dropout"] = (module, "dropout", own)
        self._places = {f"dropout at {name}": place for name, place in found.items() if fnmatchcase(name, self.match)}
        if not self._places:
            raise ArgumentError("match", self.match, f"fits no dropout; there are {_some(found) or 'none'}")
        return list(self._places)

    def value(self, target: str, share: float) -> float:
        start = self._places[target][2] if self.start is None else self.start
        return between(start, self.end, share)

    def set(self, stage: Stage, target: str, value: float) -> None:
        module, attribute, _ = self._places[target]
        setattr(module, attribute, value)


class Number(Setting):
    """Any number of the task's, its model's or its data's, from `start` (None: what it was) to `end`: `of` is where it
    is, "regulariser.weight", "model.scale" or "data.noise"."""

    def __init__(self, *, of: str, end: float, start: float | None = None) -> None:
        if not isinstance(of, str) or not all(re.fullmatch(r"\w+", part) for part in of.split(".")):
            raise ArgumentError("of", of, "must be names with dots between them")
        for name, number in (("end", end), *([] if start is None else [("start", start)])):
            if not is_number(number):
                raise ArgumentError(name, number, "must be a finite number")
        self.of, self.end, self.start = of, end, start
        self._was: float = 0.0

    def targets(self, stage: Stage) -> list[str]:
        owner, attribute = self._owner(stage)
        was = getattr(owner, attribute, None)
        if self.of.startswith("data.") and getattr(stage.data, "num_workers", False):
            raise ArgumentError("of", self.of, "cannot change: num_workers other processes make the batches")
        if isinstance(was, bool) or not isinstance(was, int | float):
            raise ArgumentError("of", self.of, f"is no number of {type(stage.module).__name__}: it is {was!r}")
        try:
            setattr(owner, attribute, was)
        except AttributeError:  # a property
            raise ArgumentError("of", self.of, f"cannot be set: {type(owner).__name__} computes it") from None
        self._was = was
        return [self.of]

    def _owner(self, stage: Stage) -> tuple[Any, str]:
        *path, attribute = self.of.split(".")
        owner = stage.data if path[:1] == ["data"] else stage.module
        for name in path[1:] if path[:1] == ["data"] else path:
            owner = getattr(owner, name, None)
        return owner, attribute

    def value(self, target: str, share: float) -> float:
        """Where it does not ramp, the very numbers that were given: a whole one stays whole."""
        start = self._was if self.start is None else self.start
        return between(start, self.end, share) if share else start

    def at_rest(self, target: str) -> float:
        return float(self.value(target, 0.0))

    def set(self, stage: Stage, target: str, value: float) -> None:
        owner, attribute = self._owner(stage)
        setattr(owner, attribute, value)


class NormGate(Setting):
    """How much of a norm there is, (1 - a) x + a N(x), a from `start` to `end`, at the norms whose names `sites` (a
    pattern with *, or several) fits. With `keep_affine` gamma and beta stay, gamma ((1 - a) x + a n(x)) + beta: at 0
    `ticks.models.changes.fold_norms` makes what is left part of the next linear maps."""

    of_model = True

    def __init__(
        self, *, start: float = 0.0, end: float = 1.0, sites: str | Sequence[str] = "*", keep_affine: bool = False
    ) -> None:
        share(start=start, end=end)
        self.start, self.end, self.keep_affine = start, end, keep_affine
        self.sites = _patterns("sites", sites)

    def targets(self, stage: Stage) -> list[str]:
        found = gated_norms(stage.module)
        for pattern in self.sites:
            if not any(fnmatchcase(name, pattern) for name in found):
                raise ArgumentError("sites", pattern, f"fits no norm; there are {_some(found) or 'none'}")
        meant = [name for name in found if any(fnmatchcase(name, pattern) for pattern in self.sites)]
        if self.keep_affine and (several := [name for name in meant if hasattr(found[name], "task_norms")]):
            raise ArgumentError("keep_affine", True, f"cannot be at {several[0]}: it has a gamma for each task")
        return [f"the gate of {name}" for name in meant]

    def value(self, target: str, share: float) -> float:
        return between(self.start, self.end, share)

    def set(self, stage: Stage, target: str, value: float) -> None:
        gate(stage.module.get_submodule(target.removeprefix("the gate of ")), value, keep_affine=self.keep_affine)


class Interval(Setting):
    """Steps of a round, from `start` (None: what the clock says) to `end`. A round that is under way is cut where it
    begins to hold and where it holds no more."""

    def __init__(self, *, end: int, start: int | None = None) -> None:
        at_least(1, end=end, start=end if start is None else start)
        self.end, self.start = end, start

    def targets(self, stage: Stage) -> list[str]:
        if not isinstance(getattr(stage.trainer.strategy, "clock", None), Clock):
            name = type(stage.trainer.strategy).__name__
            raise ArgumentError("end", self.end, f"is of no use: {name} has no clock")
        return ["the interval"]

    def value(self, target: str, share: float) -> int | None:
        if not share:
            return self.start
        return round(between(float(self.end if self.start is None else self.start), float(self.end), share))

    def set(self, stage: Stage, target: str, value: Any) -> None:
        """The clock says it."""


class BatchSize(Setting):
    """Samples of a step, from `start` (None: what the data say) to `end`. The data say how many come before each step:
    none is seen twice in an epoch, and none left out."""

    def __init__(self, *, end: int, start: int | None = None) -> None:
        at_least(1, end=end, start=end if start is None else start)
        self.end, self.start = end, start
        self._own, self._parts = end, 1

    def targets(self, stage: Stage) -> list[str]:
        data = stage.data
        if not hasattr(data, "vary_batch_size"):
            does = "does not say which samples come before a step (ticks.data.MapData does)"
            raise ArgumentError("end", self.end, f"cannot be: {type(data).__name__} {does}")
        if not getattr(data, "sizes_can_change", True):
            raise ArgumentError("end", self.end, "cannot be: the data sort many steps' samples by length")
        self._parts = stage.trainer.world_size * stage.trainer.accumulate_grad_batches
        self._own = data.global_batch_size if self.start is None else self.start
        for name, size in (("end", self.end), ("start", self._own)):
            if size % self._parts:
                near = size // self._parts * self._parts
                valid = ", ".join(str(n) for n in (near, near + self._parts) if n)
                raise ArgumentError(name, size, f"must be divisible by {self._parts}, workers x accumulated batches;"
                                    f" the nearest that are: {valid}")  # fmt: skip
        return ["the batch size"]

    def value(self, target: str, share: float) -> int:
        size = round(between(float(self._own), float(self.end), share))
        return max(self._parts, size // self._parts * self._parts)

    def follow(self, stage: Stage, size: Callable[[int], int]) -> None:
        """From now on: `size` is of each step's."""
        stage.data.vary_batch_size(size)

    def set(self, stage: Stage, target: str, value: int) -> None:
        """The data say it."""


class Augmentation(Setting):
    """The share of a step's images that is augmented, from `start` to `end`; without it all of them are."""

    def __init__(self, *, start: float = 1.0, end: float) -> None:
        share(start=start, end=end)
        self.start, self.end = start, end

    def targets(self, stage: Stage) -> list[str]:
        data = stage.data
        if not hasattr(data, "vary_augmentation") or data.augment is None:
            said = "augments nothing"
            raise ArgumentError("end", self.end, f"is of no use: {type(data).__name__} {said}")
        return ["augmentation"]

    def value(self, target: str, share: float) -> float:
        return between(self.start, self.end, share)

    def follow(self, stage: Stage, share: Callable[[int], float]) -> None:
        """From now on: `share` is of each step's."""
        stage.data.vary_augmentation(share)

    def set(self, stage: Stage, target: str, value: float) -> None:
        """The data say it."""


class Timed(Clock):
    """A clock whose interval a timeline sets: `interval` is of each step's, or None for what `clock` says. At the
    `borders`, so many steps, a round ends. Both count what lies behind the first `begin` steps of the run."""

    def __init__(
        self, clock: Clock, interval: Callable[[int], int | None], borders: Iterable[float], begin: int = 0
    ) -> None:
        self.clock, self._interval, self._borders, self._begin = clock, interval, sorted(borders), begin

    def next_interval(self, facts: Facts) -> int:
        step = facts.step - self._begin
        said = self._interval(step + 1)
        own = self.clock.next_interval(facts) if said is None else said - step % said
        border = next((b for b in self._borders if b > step), None)
        return own if border is None else max(1, min(own, int(border) - step))

    @property
    def label(self) -> str:
        return f"{self.clock.label}, by the timeline"


def _patterns(argument: str, said: str | Sequence[str]) -> list[str]:
    patterns = [said] if isinstance(said, str) else list(said)
    if not patterns:
        raise ArgumentError(argument, patterns, "must name something: a pattern, or a list of them")
    return patterns


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
