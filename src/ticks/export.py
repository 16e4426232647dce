"""A trained model for use elsewhere: written, read again, and compared on real inputs with the one it was made of.

Models of transformers need the extra `tuning`, ONNX the extra `export`.
"""

import copy
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ticks.models.changes import AdapterError, CannotMerge, merge, save_adapter, tasks_of

MOST = 1e-4  # by how much an output may differ, as a share of the largest


class CannotExport(ValueError):
    """The model has no such form. Its text is the reason."""


def export(task: Any, data: Any, kind: str, out: Path, *, named: bool) -> Iterator[str]:
    """Write `task.model` as `kind` to `out`, a place of its own if it is `named`, else one within it; lines for people.
    CannotExport if it cannot be, or computes something else then."""
    x = inputs_of(data)
    if kind == "adapter":
        yield from _adapter(task.model, out if named else out / "adapter.safetensors")
        return
    model, note = _merged(task.model)
    if note:
        yield note
    expected = task.model(x).detach()
    if kind == "merged":
        if note or not tasks_of(task.model):
            raise CannotExport(note.removeprefix("note: ") or "the model has no ticks and no task norms")
        yield from _own_format(model, data, out if named else out / "merged", x, expected)
        return
    write = {"onnx": _onnx, "torch": _program, "int8": _int8}[kind]
    place = out if named else out / {"onnx": "model.onnx", "torch": "model.pt2", "int8": "model.int8.pt"}[kind]
    place.parent.mkdir(parents=True, exist_ok=True)
    yield from write(model, place, x, expected, task, data)


def inputs_of(data: Any) -> Tensor:
    """A batch of validation samples as the model is given them. CannotExport for data that have none of their own."""
    if not hasattr(data, "eval_batches"):
        raise CannotExport(f"{type(data).__name__} gives no batch to compare with")
    batch = data.eval_batches("val", 1, 0)[0]
    x = batch["x"] if isinstance(batch, dict) else batch[0]
    if not isinstance(x, Tensor):
        raise CannotExport(f"the model of {type(data).__name__} takes more than one tensor")
    return x[:8]


def _merged(model: nn.Module) -> tuple[nn.Module, str]:
    """A copy with its ticks merged, as far as that is possible, and a note where it is not."""
    model = copy.deepcopy(model).eval()
    try:
        return (merge(model) if tasks_of(model) else model), ""
    except CannotMerge as error:
        return model, f"note: ticks stay beside the FFNs: {error}"


def _compared(found: Tensor, expected: Tensor, place: Path) -> str:
    difference = float((found.detach() - expected).abs().max())
    if not difference <= MOST * max(1.0, float(expected.abs().max())):
        raise CannotExport(f"what was written to {place} computes something else: by up to {difference:.2g}")
    return f"largest difference of an output: {difference:.2g}, of outputs up to {float(expected.abs().max()):.2g}"


def _size(place: Path) -> str:
    files = place.rglob("*") if place.is_dir() else place.parent.glob(f"{place.name}*")
    return f"{place}: {sum(file.stat().st_size for file in files if file.is_file()) / 1e6:.1f} MB"


def _adapter(model: nn.Module, place: Path) -> Iterator[str]:
    try:
        yield _size(save_adapter(model, place))
    except AdapterError as error:
        raise CannotExport(str(error)) from None


def _own_format(model: Any, data: Any, out: Path, x: Tensor, expected: Tensor) -> Iterator[str]:
    """The body as its library writes it, its tokenizer beside it, and the head."""
    body: Any = getattr(model, "body", None)
    if not hasattr(body, "save_pretrained"):
        raise CannotExport("only models of transformers have a format of their own to be merged into; format=torch")
    out.mkdir(parents=True, exist_ok=True)
    body.save_pretrained(out)
    tokenizer: Any = getattr(getattr(data, "tokenizer", None), "_tokenizer", None)
    if hasattr(tokenizer, "save_pretrained"):
        tokenizer.save_pretrained(out)
    from safetensors.torch import save_file

    head = getattr(model, "head", None)
    if head is not None:
        save_file({name: t.detach().contiguous() for name, t in head.state_dict().items()}, out / "head.safetensors")
    again = copy.deepcopy(model)
    again.body = type(body).from_pretrained(out).eval()
    yield _compared(again(x).detach(), expected, out)
    yield _size(out)


def _shapes(x: Tensor) -> Any:
    """Batch and length are free."""
    batch, time = torch.export.Dim("batch", min=1, max=1 << 16), torch.export.Dim("time", min=2, max=1 << 16)
    return ({0: batch, 1: time},) if x.dim() == 2 else ({0: batch},)


def _exported(model: nn.Module, x: Tensor) -> Any:
    """A program for any batch; for any length that the model allows, if it allows several."""
    for shapes in (_shapes(x), ({0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO},)):
        try:
            return torch.export.export(model, (x,), dynamic_shapes=shapes)
        except Exception as error:  # many kinds, by what the model does with its sizes
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
    raise CannotExport(f"torch.export cannot follow the model: {reason}")


def _program(model: nn.Module, place: Path, x: Tensor, expected: Tensor, *_: Any) -> Iterator[str]:
    torch.export.save(_exported(model, x), place)
    again = torch.export.load(place).module()
    yield _compared(again(x), expected, place)
    yield _compared(again(x[:3]), expected[:3], place)
    yield _size(place)


def _onnx(model: nn.Module, place: Path, x: Tensor, expected: Tensor, *_: Any) -> Iterator[str]:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  # torch writes ONNX with it
    except ImportError as error:
        raise CannotExport(f'needs {error.name}: pip install -e ".[export]"') from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            _exported(model, x), (x,), place, dynamo=True, external_data=False, verbose=False, input_names=["inputs"],
            output_names=["outputs"],
        )  # fmt: skip
    session = onnxruntime.InferenceSession(str(place))
    (name,) = [node.name for node in session.get_inputs()]

    def run(x: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {name: x.numpy()})[0])

    yield _compared(run(x), expected, place)
    yield _compared(run(x[:3]), expected[:3], place)
    yield _size(place)


def _int8(model: nn.Module, place: Path, x: Tensor, expected: Tensor, task: Any, data: Any) -> Iterator[str]:
    """Weights of linear maps in 8 bits, activations as they come; and what that costs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        small = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {nn.Linear}, dtype=torch.qint8)
        traced = torch.jit.trace(small, (x,), check_trace=False)
        traced.save(str(place))
        again: Any = torch.jit.load(str(place))
    share = float((again(x).argmax(-1) == expected.argmax(-1)).float().mean())
    yield f"the same likeliest class as before: {share:.1%} of a batch"
    for name, of in (("before", model), ("in 8 bits", again)):
        yield f"validation accuracy {name}: {_accuracy(of, data):.4f}"
    yield _size(place)


@torch.no_grad()
def _accuracy(model: Callable[[Tensor], Tensor], data: Any) -> float:
    """The share of validation samples whose label is the model's likeliest class."""
    batches = data.eval_batches("val", 1, 0)
    right = total = 0
    for i in range(len(batches)):
        x, y = batches[i]
        right += int((model(x).argmax(-1) == y).sum())
        total += y.numel()
    return right / max(1, total)
