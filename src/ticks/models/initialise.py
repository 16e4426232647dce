"""Initial weights. A layer has a role, and a model says how weights of each role begin."""

from collections.abc import Mapping
from typing import TypeVar

from torch import nn

ROLES = (  # of layers with weights
    "input",  # from patches or features into the model
    "query_key_value",  # attention's three matrices in one
    "query",
    "key_value",
    "hidden",  # into the FFN
    "residual",  # back into the residual stream: attention's and the FFN's last one
    "head",  # from features to classes or tokens
)
STD = 0.02  # of GPT-2
Layer = TypeVar("Layer", bound=nn.Module)


def role(name: str, layer: Layer) -> Layer:
    """The layer, knowing its role."""
    assert name in ROLES, name
    layer.role = name  # type: ignore[assignment]
    return layer


def initialise(model: nn.Module, scales: Mapping[nn.Module, Mapping[str, float]]) -> None:
    """Weights of linear layers and embeddings normal(0, 0.02), times what `scales` has for a layer's role; biases 0."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            factor = scales.get(module, {}).get(getattr(module, "role", ""), 1.0)
            nn.init.normal_(module.weight, std=STD * factor)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
