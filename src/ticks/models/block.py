"""The blocks of a Transformer, and what every Transformer here shares.

A site is a named place in a model: `blocks.3.attention`, `blocks.3.cross`, `blocks.3.ffn`, `final`. At each of a
block's sites a sublayer stands, with its norms around it as the placement says.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from ticks.arguments import at_least, one_of, share
from ticks.models.attention import CrossAttention, Past, SelfAttention
from ticks.models.ffn import FeedForward
from ticks.models.initialise import initialise
from ticks.models.norm import LayerNorm
from ticks.models.placement import Norm, Placement, Pre
from ticks.models.position import POSITIONS, positions

Adapter = Callable[[int], nn.Module]
BlockPast = tuple[Past, Past]  # of a block's attention, and of its attention to another sequence


class Block(nn.Module):
    """Attention, attention to another sequence if `cross`, the FFN with ticks beside it: (B, T, D) -> (B, T, D).

    `layer` is its number, from 1 to `n_layers`.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        d_ff: int,
        *,
        norm: Norm,
        placement: Placement,
        layer: int,
        n_layers: int,
        causal: bool,
        cross: bool,
        rotary: bool,
        activation: str,
        dropout: float,
        bias: bool,
    ) -> None:
        super().__init__()

        def around(site: str) -> nn.Module:
            return placement.build(norm, d_model, site=site, layer=layer, n_layers=n_layers)

        self.placement = placement
        self.norm1 = around("attention")
        self.attention = SelfAttention(d_model, n_heads, causal=causal, rotary=rotary, dropout=dropout, bias=bias)
        if cross:
            self.norm_cross = around("cross")
            self.cross = CrossAttention(d_model, n_heads, dropout=dropout, bias=bias)
        self.norm2 = around("ffn")
        self.ffn = FeedForward(d_model, d_ff, activation=activation, bias=bias)
        self.dropout = nn.Dropout(dropout)
        self.adapter: nn.Module | None = None

    def forward(
        self,
        x_BxTxD: Tensor,
        present: Tensor | None = None,
        memory: Tensor | None = None,
        memory_present: Tensor | None = None,
        past: BlockPast | None = None,
    ) -> Tensor:
        place = self.placement
        own, others = past or (None, None)
        x_BxTxD = place(x_BxTxD, lambda h: self.dropout(self.attention(h, present, own)), self.norm1)
        if memory is not None:
            x_BxTxD = place(
                x_BxTxD, lambda h: self.dropout(self.cross(h, memory, memory_present, others)), self.norm_cross
            )
        return place(x_BxTxD, lambda h: self.dropout(self._ffn(h)), self.norm2)

    def _ffn(self, h_BxTxD: Tensor) -> Tensor:
        y_BxTxD = self.ffn(h_BxTxD)
        return y_BxTxD if self.adapter is None else y_BxTxD + self.adapter(h_BxTxD)


class Blocks(nn.ModuleList):
    """Blocks one behind the other: (B, T, D) -> (B, T, D). Where `present` (B, T) is given, the rest is padding;
    `memory` (B, S, D) is what blocks with cross-attention see, where it is `memory_present` (B, S). With the `past` of
    each block a sequence grows by a position per call."""

    def forward(self, x_BxTxD: Tensor, *, past: Sequence[BlockPast] | None = None, **others: Tensor | None) -> Tensor:
        for i, block in enumerate(self):
            x_BxTxD = block(x_BxTxD, past=None if past is None else past[i], **others)
        return x_BxTxD


class Transformer(nn.Module):
    """What every Transformer here takes. A subclass makes its parts, in the order in which they are drawn, and ends
    with `begin()`.

    `norm` and `adapter` build a module from d_model, `placement` says how norms stand around a sublayer, `d_ff` is
    4 d_model unless given. `position` is "learned" (a table, added), "sinusoidal" (waves, added) or "rotary" (queries
    and keys are turned). ArgumentError for what does not fit together.
    """

    def __init__(
        self,
        *,
        d_model: int = 128,
        n_layers: int = 4,
        n_heads: int = 4,
        d_ff: int | None = None,
        norm: Norm = LayerNorm,
        placement: Placement | None = None,
        adapter: Adapter | None = None,
        position: str = "learned",
        activation: str = "gelu",
        dropout: float = 0.0,
        bias: bool = True,
    ) -> None:
        super().__init__()
        at_least(1, d_model=d_model, n_layers=n_layers, d_ff=4 * d_model if d_ff is None else d_ff)
        one_of(POSITIONS, position=position)
        share(dropout=dropout)
        self.d_model = d_model
        self.n_layers = n_layers
        self.norm = norm
        self.placement = placement or Pre()
        self.adapter = adapter
        self.position_kind = position
        self.dropout = nn.Dropout(dropout)
        self._block: dict[str, Any] = {
            "n_heads": n_heads,
            "d_ff": 4 * d_model if d_ff is None else d_ff,
            "activation": activation,
        }
        self._block |= {"dropout": dropout, "bias": bias}

    def make_blocks(self, *, causal: bool, cross: bool = False) -> Blocks:
        """As many as `n_layers`."""
        return Blocks(
            Block(
                self.d_model, norm=self.norm, placement=self.placement, layer=layer, n_layers=self.n_layers,
                causal=causal, cross=cross, rotary=self.position_kind == "rotary", **self._block,
            )
            for layer in range(1, self.n_layers + 1)
        )  # fmt: skip

    def make_final_norm(self) -> nn.Module:
        return self.norm(self.d_model) if self.placement.final else nn.Identity()

    def add_positions(self, name: str, length: int) -> None:
        """`self.NAME`: what is added to embeddings (length, D), or None."""
        table = positions(self.position_kind, length, self.d_model)
        if table is None or isinstance(table, nn.Parameter):
            self.register_parameter(name, table)
        else:
            self.register_buffer(name, table, persistent=False)

    def embed(self, tokens: Tensor, embedding: Callable[[Tensor], Tensor], position: Any, *, start: int = 0) -> Tensor:
        """Embeddings, with what was added by `add_positions`: (B, T, D). The first one's position is `start`."""
        x_BxTxD = embedding(tokens)
        if position is not None:
            x_BxTxD = x_BxTxD + position[start : start + x_BxTxD.shape[1]]
        return self.dropout(x_BxTxD)

    def stacks(self) -> Iterator[Blocks]:
        return (module for module in self.modules() if isinstance(module, Blocks))

    def begin(self) -> None:
        """Draw the initial weights, those of ticks last: with and without ticks the base draws the same numbers."""
        self.reset_parameters()
        if self.adapter is not None:
            for blocks in self.stacks():
                for block in blocks:
                    block.adapter = self.adapter(self.d_model)

    def reset_parameters(self) -> None:
        """Normal(0, 0.02) and biases 0, times what the placement says of a layer's role."""
        scales = {
            layer: self.placement.scale(_sublayers(blocks)) for blocks in self.stacks() for layer in blocks.modules()
        }
        initialise(self, scales)
        for name, parameter in self.named_parameters(recurse=False):
            if name.endswith("position"):
                nn.init.normal_(parameter, std=0.02)


def _sublayers(blocks: Any) -> int:
    return sum(2 + hasattr(block, "cross") for block in blocks)
