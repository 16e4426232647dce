"""Models as plain `nn.Module`s: usable in a notebook, unaware of Lightning and Hydra."""

from ticks.models.adapter import TicksAdapter
from ticks.models.attention import CausalSelfAttention
from ticks.models.ffn import FeedForward
from ticks.models.mlp import Mlp
from ticks.models.norm import LayerNorm, RMSNorm
from ticks.models.transformer import DecoderTransformer

__all__ = ["CausalSelfAttention", "DecoderTransformer", "FeedForward", "LayerNorm", "Mlp", "RMSNorm", "TicksAdapter"]
