"""A trained model for use elsewhere: written, read again, and compared on real inputs with the one it was made of.

Models of transformers need the extra `tuning`, ONNX the extra `export`.
"""

import copy
import json
import logging
import shutil
import warnings
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ticks.installed import origin
from ticks.models.changes import AdapterError, CannotMerge, load_adapter, merge, remove_task, save_adapter, tasks_of
from ticks.models.changes.tasks import chosen_of
from ticks.models.pretrained import quiet

PLACES = {
    "adapter": "adapter.safetensors", "merged": "merged", "onnx": "model.onnx", "torch": "model.pt2",
    "int8": "model.int8.pt",
}  # fmt: skip
MOST = 1e-4  # by how much an output may differ, as a share of the largest


class CannotExport(ValueError):
    """The model has no such form. Its text is the reason."""


def export(task: Any, data: Any, kind: str, out: Path, *, named: bool) -> Iterator[str]:
    """Write `task.model` as `kind` to `out`, a place of its own if it is `named`, else one within it; lines for people.
    CannotExport, and nothing is left of it, if it cannot be, or computes something else then."""
    place = out if named else out / PLACES[kind]
    if others := tasks_of(task.model):
        others.remove(own := chosen_of(task.model).name or others[-1])
        if others:
            yield f"note: of the task {own!r}, which the run has trained; {', '.join(others)} stays with its own run"
    base = origin(getattr(task.model, "source", None))
    with _draft(place) as draft:
        if kind == "adapter":
            base = yield from _adapter(task.model, data, draft)
        else:
            yield from _whole(task, data, kind, draft)
    yield _size(place)
    if kind == "adapter" and hasattr(task.model, "body") and getattr(task.model, "head", None) is not None:
        yield _size(_head(task.model, place.with_name(f"{place.stem}.head.safetensors")))
    yield _about(task.model, data, place, base)


def _whole(task: Any, data: Any, kind: str, place: Path) -> Iterator[str]:
    """What needs no base."""
    x = inputs_of(data)
    expected = task.model(x).detach()
    model, note = _merged(task.model)
    if note and kind in ("merged", "int8"):
        raise CannotExport(f"ticks that stay beside the FFNs cannot be written so: {note}")
    if note:
        yield f"note: ticks stay beside the FFNs: {note}"
    _compared(model(x).detach(), expected, "merged, it")
    write: Any = {"merged": _own_format, "onnx": _onnx, "torch": _program, "int8": _int8}[kind]
    yield from write(model, place, x, expected, task, data)


@contextmanager
def _draft(place: Path) -> Iterator[Path]:
    """A path beside `place` whose file, or files, are there in the end if the block succeeds."""
    draft, is_new = place.with_name(f"partial.{place.name}"), not place.parent.exists()
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield draft
        if draft.is_dir():
            place.mkdir(exist_ok=True)
            for file in draft.iterdir():
                file.replace(place / file.name)
        else:
            draft.replace(place)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        draft.unlink(missing_ok=True)
        if is_new and not any(place.parent.iterdir()):
            place.parent.rmdir()


def inputs_of(data: Any) -> Tensor:
    """A batch of validation samples as the model is given them. CannotExport for data that have none of their own."""
    if not hasattr(data, "eval_batches"):
        raise CannotExport(f"{type(data).__name__} gives no batch to compare with")
    try:
        data.prepare_data()
        data.setup("validate")
        batch = data.eval_batches("val", 1, 0)[0]
    except (ValueError, OSError) as error:
        raise CannotExport(f"there is no batch to compare with: {error}") from None
    x = batch.get("x") if isinstance(batch, dict) else batch[0]
    if not isinstance(x, Tensor):
        raise CannotExport(f"the model of {type(data).__name__} takes more than one tensor")
    return x[:8]


def _merged(model: nn.Module) -> tuple[nn.Module, str]:
    """A copy with the chosen task's ticks, or low-rank updates, merged as far as that is possible, and a note where it
    is not; without other tasks."""
    model = copy.deepcopy(model).eval()
    own = chosen_of(model).name if tasks_of(model) else None
    for other in tasks_of(model):
        if own is not None and other != own:
            remove_task(model, other)
    for name, module in _low_rank(model):
        module.merge(safe_merge=True)
        model.set_submodule(name, module.get_base_layer())
    try:
        return (merge(model) if tasks_of(model) else model), ""
    except CannotMerge as error:
        return model, str(error)


def _low_rank(model: nn.Module) -> list[tuple[str, Any]]:
    """The maps that peft has put updates beside."""
    return [(name, m) for name, m in model.named_modules() if hasattr(m, "get_base_layer") and hasattr(m, "merge")]


def _about(model: Any, data: Any, place: Path, base: str | None) -> str:
    """Write down what the numbers mean that go in and come out."""
    head, tokenizer = getattr(model, "head", None), getattr(data, "tokenizer", None)
    said = {
        "classes": getattr(data, "class_names", None),
        "pooling": getattr(head, "pooling", None),
        "pad_id": getattr(model, "pad_id", None),
        "block_size": getattr(data, "block_size", None),
        "tokens": getattr(tokenizer, "unit", None),
        "base": base,
    }
    file = place / "about.json" if place.is_dir() else place.with_name(f"{place.name}.json")
    file.write_text(json.dumps({key: value for key, value in said.items() if value is not None}, indent=2) + "\n")
    return f"{file}: classes and what else an input and an output mean"


def _compared(found: Tensor, expected: Tensor, what: str = "what was written") -> str:
    difference = float((found.detach() - expected.detach()).abs().max())
    if not difference <= MOST * max(1.0, float(expected.abs().max())):
        raise CannotExport(f"{what} computes something else: by up to {difference:.2g}")
    return f"largest difference of an output: {difference:.2g}, of outputs up to {float(expected.abs().max()):.2g}"


def _size(place: Path) -> str:
    files = place.rglob("*") if place.is_dir() else place.parent.glob(f"{place.name}*")
    return f"{place}: {sum(file.stat().st_size for file in files if file.is_file()) / 1e6:.1f} MB"


def _adapter(model: Any, data: Any, place: Path) -> Generator[str, None, str | None]:
    """What stands beside the body, so that it goes beside any copy of that; where there is one: the first model that
    it all began with if that has not been changed since, else the run that was gone on from."""
    body = getattr(model, "body", model)
    if not tasks_of(model):
        raise CannotExport(f"the model has no ticks and no task norms; {_instead(model)}")
    try:
        save_adapter(body, place, task=chosen_of(model).name)
    except AdapterError as error:
        raise CannotExport(str(error)) from None
    if not getattr(model, "source", None):
        return None
    x, reason = inputs_of(data), ""
    for base in dict.fromkeys((origin(model.source), model.source)):
        try:
            again = _beside(model, base, place)
        except AdapterError as error:
            reason = str(error).removeprefix(f"{place}: ")
            continue
        yield _compared(again(x), model(x).detach())
        return base
    what = f"it stands beside {model.source}, which was changed before or while it was trained"
    raise CannotExport(f"{what} ({reason}); {_instead(model)}")


def _beside(model: Any, base: str | None, file: Path) -> nn.Module:
    """The model with another body: that of `base` and what the file holds. AdapterError where they do not fit."""
    body = model.base(base).eval()
    if (task := chosen_of(model).name) in tasks_of(body):  # it was gone on from with what it had learnt
        remove_task(body, str(task))
    again = copy.deepcopy(model)
    again.body = load_adapter(body, file)
    return again


def _instead(model: Any) -> str:
    """The format that has all of a model that was tuned otherwise."""
    return "format=merged has all of it" if hasattr(getattr(model, "body", None), "save_pretrained") else "format=torch"


def _head(model: Any, place: Path) -> Path:
    from safetensors.torch import save_file

    save_file({name: t.detach().contiguous() for name, t in model.head.state_dict().items()}, place)
    return place


def _own_format(model: Any, out: Path, x: Tensor, expected: Tensor, task: Any, data: Any) -> Iterator[str]:
    """The body as its library writes it, its tokenizer beside it, and the head."""
    body: Any = getattr(model, "body", None)
    if not hasattr(body, "save_pretrained"):
        raise CannotExport("only models of transformers have a format of their own to be merged into; format=torch")
    import transformers

    if getattr(body.config, "is_encoder_decoder", False):
        raise CannotExport("its format is that of encoder and decoder, of which only the encoder is here; format=torch")
    out.mkdir(parents=True, exist_ok=True)
    if (classes := getattr(data, "class_names", None)) is not None:
        body.config.id2label, body.config.label2id = dict(enumerate(classes)), {c: i for i, c in enumerate(classes)}
    body.save_pretrained(out)
    tokenizer: Any = getattr(getattr(data, "tokenizer", None), "_tokenizer", None)
    if hasattr(tokenizer, "save_pretrained"):
        tokenizer.save_pretrained(out)
    if getattr(model, "head", None) is not None:
        _head(model, out / "head.safetensors")
    again = copy.deepcopy(model)
    with quiet(transformers.utils.logging):
        again.body = type(body).from_pretrained(out).eval()
    yield _compared(again(x), expected)


def _exported(model: nn.Module, x: Tensor) -> tuple[Any, str]:
    """A program for any batch and, if the model allows several, any length; a note where it does not."""
    free = torch.export.Dim.AUTO
    whole = x
    x = (x[:, : max(2, x.shape[1] - 1)] if x.dim() == 2 else x).clone()  # the longest of all would be the only length
    try:
        program = torch.export.export(model, (x,), dynamic_shapes=({0: free, 1: free} if x.dim() == 2 else {0: free},))
    except Exception as error:  # many kinds, by what the model does with its sizes
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise CannotExport(f"torch.export cannot follow the model: {reason}") from None
    try:
        program.module()(x[:2, : max(2, x.shape[1] // 2)] if x.dim() == 2 else x[:2])
    except (AssertionError, RuntimeError) as error:  # of its guards
        if x.dim() != 2:
            raise CannotExport(
                f"torch.export can follow the model for {len(x)} samples at once only: {error}"
            ) from None
        program = torch.export.export(model, (whole,), dynamic_shapes=({0: free},))
        return program, f"note: for {whole.shape[1]} tokens only: torch.export can follow the model for one length"
    return program, ""


def _checked(
    again: Callable[[Tensor], Tensor], model: nn.Module, x: Tensor, expected: Tensor, note: str
) -> Iterator[str]:
    """What was written, on this batch, on a smaller one and, if lengths are free, on shorter ones."""
    if note:
        yield note
    yield _compared(again(x), expected)
    for other in (x[:3], *(_shorter(x) if not note else [])):
        _compared(_of_another_size(again, other), model(other).detach())


def _of_another_size(again: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """CannotExport for what computes the batch alone that it was made with."""
    try:
        return again(x)
    except Exception as error:  # of whatever computes it
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise CannotExport(f"what was written computes no batch of {tuple(x.shape)}: {reason}") from None


def _shorter(x: Tensor) -> list[Tensor]:
    """The same cut, where lengths may differ."""
    return [x[:2, : max(2, x.shape[1] // 2)]] if x.dim() == 2 and not x.is_floating_point() else []


def _program(model: nn.Module, place: Path, x: Tensor, expected: Tensor, *_: Any) -> Iterator[str]:
    program, note = _exported(model, x)
    torch.export.save(program, place)
    yield from _checked(torch.export.load(place).module(), model, x, expected, note)


def _onnx(model: nn.Module, place: Path, x: Tensor, expected: Tensor, *_: Any) -> Iterator[str]:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  # torch writes ONNX with it
    except ImportError as error:
        raise CannotExport(f'needs {error.name}: pip install -e ".[export]"') from None
    program, note = _exported(model, x)
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)  # of torchvision
    free = {0: "batch", 1: "length"} if x.dim() == 2 and not note else {0: "batch"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            program, (x,), place, dynamo=True, external_data=False, verbose=False, input_names=["inputs"],
            output_names=["outputs"], dynamic_shapes=(free,),
        )  # fmt: skip
    session = onnxruntime.InferenceSession(str(place))
    (name,) = [node.name for node in session.get_inputs()]

    def run(x: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {name: x.numpy()})[0])

    yield from _checked(run, model, x, expected, note)


def _int8(model: nn.Module, place: Path, x: Tensor, expected: Tensor, task: Any, data: Any) -> Iterator[str]:
    """Weights of linear maps in 8 bits, activations as they come; and what that costs."""
    if not any(isinstance(module, nn.Linear) for name, module in model.named_modules() if not name.startswith("head")):
        raise CannotExport("its maps are none that torch can quantise; format=torch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        small = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {nn.Linear}, dtype=torch.qint8)
        traced = torch.jit.trace(small, (x,), check_trace=False)
        traced.save(str(place))
        again: Any = torch.jit.load(str(place))
    for other in (x, x[:3], *_shorter(x)):
        _compared(_of_another_size(again, other), small(other))
    share = float((again(x).argmax(-1) == expected.argmax(-1)).float().mean())
    yield f"the same likeliest class as before: {share:.1%} of a batch"
    for name, of in (("before", task.model), ("in 8 bits", again)):
        yield f"validation {_judged(of, data)} {name}"


@torch.no_grad()
def _judged(model: Callable[[Tensor], Tensor], data: Any) -> str:
    """The share of validation samples whose label is the model's likeliest class; of a text, the loss of its tokens."""
    batches = data.eval_batches("val", 1, 0)
    found = total = 0.0
    for i in range(len(batches)):
        batch = batches[i]
        x, y = (batch["x"], batch["y"]) if isinstance(batch, dict) else batch
        logits = model(x)
        if isinstance(batch, dict):
            found += float(nn.functional.cross_entropy(logits.flatten(0, 1).float(), y.flatten(), reduction="sum"))
        else:
            found += float((logits.argmax(-1) == y).sum())
        total += int((y != -100).sum())
    name = "loss (nats)" if isinstance(batches[0], dict) else "accuracy"
    return f"{name} {found / max(1, total):.4f}"
