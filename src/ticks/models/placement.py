"""How norms stand around a sublayer. A model asks its placement; nothing else knows where a norm is.

A placement is an object without weights: `build` makes what stands at one site of a block, and the placement, called
with it, runs the sublayer there. To add one: a class here and a YAML in configs/model/placement/.
"""

import math
from collections.abc import Callable
from typing import Protocol

from torch import Tensor, nn

Norm = Callable[[int], nn.Module]
Sublayer = Callable[[Tensor], Tensor]


class Placement(Protocol):
    """What a placement has. `final` says whether a norm stands behind the last block."""

    final: bool

    def build(self, norm: Norm, d_model: int, *, site: str, layer: int, n_layers: int) -> nn.Module:
        """What stands at a site of block number `layer`, from 1 to `n_layers`: "attention", "cross" or "ffn"."""

    def __call__(self, x_BxTxD: Tensor, sublayer: Sublayer, built: nn.Module) -> Tensor:
        """The residual stream behind the sublayer, given what was built for its site."""

    def scale(self, n_sublayers: int) -> dict[str, float]:
        """Factors of the initial weights by the role of a layer; the whole stack has `n_sublayers`."""


class Pre:
    """x + F(N(x)), and a norm behind the last block (arXiv 2002.04745). Projections into the residual stream begin
    smaller by sqrt(number of sublayers), as in GPT-2, so that the stream's variance does not grow with depth."""

    final = True

    def build(self, norm: Norm, d_model: int, *, site: str, layer: int, n_layers: int) -> nn.Module:
        return norm(d_model)

    def __call__(self, x_BxTxD: Tensor, sublayer: Sublayer, built: nn.Module) -> Tensor:
        return x_BxTxD + sublayer(built(x_BxTxD))

    def scale(self, n_sublayers: int) -> dict[str, float]:
        return {"residual": 1 / math.sqrt(n_sublayers)}
