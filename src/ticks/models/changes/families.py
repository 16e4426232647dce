"""Where the FFNs of a Transformer are: a family names their linear maps by how the names of its modules end.

To add a family: three strings, Family("mine", up="mlp.wide", down="mlp.narrow", gate="mlp.gate"), given as `families=`.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from ticks.arguments import ArgumentError
from ticks.models.changes.tasks import task_modules


@dataclass(frozen=True)
class Family:
    """FFNs whose maps into the hidden units (`up`, of GLUs with a `gate` beside it) and out of them (`down`) are called
    so, behind what a block is called."""

    name: str
    up: str
    down: str
    gate: str | None = None


FAMILIES = (
    Family("ticks", "ffn.fc1", "ffn.fc2"),
    Family("BERT, RoBERTa, ELECTRA", "intermediate.dense", "output.dense"),
    Family("DistilBERT", "ffn.lin1", "ffn.lin2"),
    Family("GPT-2", "mlp.c_fc", "mlp.c_proj"),
    Family("Llama, Mistral, Qwen, Gemma", "mlp.up_proj", "mlp.down_proj", "mlp.gate_proj"),
    Family("T5 1.1", "DenseReluDense.wi_1", "DenseReluDense.wo", "DenseReluDense.wi_0"),
    Family("T5", "DenseReluDense.wi", "DenseReluDense.wo"),
    Family("GPT-NeoX", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"),
    Family("ViT, DINOv2", "mlp.fc1", "mlp.fc2"),
    Family("OPT, BART", "fc1", "fc2"),
)
ACTIVATIONS = ("activation", "act", "act_fn", "activation_fn", "intermediate_act_fn")  # what models call their own


@dataclass(frozen=True)
class FFN:
    """One of a model's FFNs: its name, its maps, its activation (None: it was not found) and its sizes."""

    name: str
    up: nn.Module
    down: nn.Module
    gate: nn.Module | None
    activation: Callable[[Tensor], Tensor] | None
    d_model: int
    d_ff: int

    @property
    def first(self) -> nn.Module:
        """The one whose input goes through the activation."""
        return self.up if self.gate is None else self.gate


def find_ffns(model: nn.Module, families: Sequence[Family] = FAMILIES) -> list[FFN]:
    """All of them, in the model's order. ArgumentError, with what was seen, if there is none."""
    ours = tuple(f"{place}." for place, _ in task_modules(model))
    modules = {name: module for name, module in model.named_modules() if not name.startswith(ours or ("\0",))}
    found: dict[str, FFN] = {}
    taken: set[nn.Module] = set()
    for family in families:
        for name, up in modules.items():
            before = _before(name, family.up)
            if before is None or up in taken:
                continue
            down = modules.get(before + family.down)
            gate = modules.get(before + family.gate) if family.gate else None
            if down is None or (family.gate and gate is None) or sizes_of(up) is None or sizes_of(down) is None:
                continue
            (d_model, d_ff), out = sizes_of(up) or (0, 0), sizes_of(down)
            if out != (d_ff, d_model):
                continue
            taken.update({up, down})
            parents = [modules[path.rpartition(".")[0]] for path in (name, before + family.down)]
            act = next((getattr(p, a) for p in parents for a in ACTIVATIONS if callable(getattr(p, a, None))), None)
            place = (before + family.up).rpartition(".")[0] or before.rstrip(".")
            found[name] = FFN(place, up, down, gate, act, d_model, d_ff)
    if not found:
        if any(hasattr(module, "get_base_layer") for module in modules.values()):
            wrong = "holds LoRA's updates, beside which ticks have no place: merge them first"
            raise ArgumentError("model", type(model).__name__, wrong)
        raise ArgumentError("model", type(model).__name__, f"has no FFN of a known family; {_seen(modules)}")
    return [found[name] for name in modules if name in found]


def _before(name: str, end: str) -> str | None:
    """What stands before `end` in a name: "" or a path that ends with a dot."""
    if name == end:
        return ""
    return name[: -len(end)] if name.endswith(f".{end}") else None


def sizes_of(module: nn.Module) -> tuple[int, int] | None:
    """(in, out) of a linear map, GPT-2's transposed one too; None of anything else."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    if is_transposed(module):
        weight: Tensor = module.weight  # type: ignore[assignment]
        return weight.shape[0], weight.shape[1]
    return None


def is_transposed(module: nn.Module) -> bool:
    """Whether its weight is (in, out), as that of transformers' Conv1D."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def _seen(modules: dict[str, nn.Module]) -> str:
    """The linear maps of a model, layers counted, for a message."""
    names = Counter(
        ".".join("*" if part.isdigit() else part for part in name.split("."))
        for name, module in modules.items()
        if sizes_of(module) is not None
    )
    shown = ", ".join(f"{name} ({n})" if n > 1 else name for name, n in list(names.items())[:20])
    return f"its linear maps are {shown}; name them: families=[Family('mine', up=..., down=...)]" if names else (
        "it has no linear maps at all"
    )  # fmt: skip
