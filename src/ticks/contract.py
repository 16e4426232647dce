"""What data and tasks promise to a run, its record and its reports. Neither has to import this: the names are all.

Data is a LightningDataModule. It may say
    shape                   what a model and a task are built for: {"vocab_size": 256}, {"n_classes": 10, ...}
    worker_batch_size(world_size, accumulate) -> int
                            samples per worker and batch; who has it knows by itself which worker takes what
    step_label() -> str     what a step takes: "32 sequences of 64 bytes"
    tokens_per_step         None where there are no tokens
    baselines()             by measure, what a far simpler method reaches: {"accuracy": {"majority": 0.237}}
    notes()                 lines that a person should read before training
    split_dataloader("train")
                            what is learnt from as it is measured, each sample once, for gap=true
    recall(state)           take from what state_dict() returned in an earlier run what decides the shape (a tokenizer),
                            before the shape is asked

A task is a LightningModule. It may say
    measures                by what it is judged, the first one being its headline: (name, label, better, digits) each,
                            `name` logged as val/NAME and test/NAME, `better` "lower" or "higher"
    show(data)              a text or a picture (a matplotlib Figure) for the end of a run, or None
What is not said is left out, and of a task without measures everything counts that it logs while it is evaluated.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

BETTER = ("lower", "higher")


class Measure(NamedTuple):
    """A number by which a task is judged."""

    name: str
    label: str
    better: str = "lower"
    digits: int = 3


def measures_of(task: Any, logged: Iterable[str] = ()) -> list[Measure]:
    """What a task is judged by; if it does not say, what was `logged`, its loss first. ValueError for nonsense."""
    said = getattr(task, "measures", None)
    if said is None:
        names = sorted(logged, key=lambda name: (name != "loss", name))
        return [Measure(name, name.replace("_", " ")) for name in names]
    measures = []
    for entry in said:
        try:
            measure = Measure(*entry)
        except TypeError:
            measure = Measure("", "")
        if not measure.name or measure.better not in BETTER or not isinstance(measure.digits, int):
            raise ValueError(
                f"measures: {entry!r} must be (name, label, better, digits), better being lower or higher: it is what"
                f" {type(task).__name__} is judged by"
            )
        measures.append(measure)
    if not measures:
        raise ValueError(f"measures: {type(task).__name__} has none; leave it out, or name at least one")
    return measures


def shape_of(data: Any) -> dict[str, Any]:
    """What a model can be built for."""
    return dict(getattr(data, "shape", None) or {})


def knows_workers(data: Any) -> bool:
    """Whether data know by themselves which worker takes what, so that resuming and evaluating are exact."""
    return callable(getattr(data, "worker_batch_size", None))


def tokens_per_step(data: Any) -> int | None:
    return getattr(data, "tokens_per_step", None)


def tokens_after(data: Any, steps: int) -> int | None:
    """How many tokens so many steps have taken."""
    each, before = tokens_per_step(data), getattr(data, "samples_before", None)
    if each is None or before is None:
        return None if each is None else steps * each
    return before(steps) * each // data.global_batch_size


def baselines_of(data: Any) -> Mapping[str, Mapping[str, float]]:
    """By measure, what a far simpler method reaches on the same data."""
    said = getattr(data, "baselines", None)
    return said() if callable(said) else {}


def evaluated(metrics: Mapping[str, Any], split: str) -> dict[str, float]:
    """The numbers of one split by their name alone, logged as val/NAME or, as others do, val_NAME."""
    found = {}
    for key, value in metrics.items():
        if key.startswith((f"{split}/", f"{split}_")):
            found[key[len(split) + 1 :]] = float(value)
    first = "/dataloader_idx_0"  # of several loaders: what it is judged by
    return found | {name.removesuffix(first): value for name, value in found.items() if name.endswith(first)}
