"""Models as plain `nn.Module`s: usable in a notebook, unaware of Lightning and Hydra."""

from ticks.models.adapter import TicksAdapter
from ticks.models.attention import CrossAttention, SelfAttention
from ticks.models.block import Block, Blocks, Transformer
from ticks.models.encoder import EncoderClassifier
from ticks.models.encoder_decoder import EncoderDecoder
from ticks.models.ffn import FeedForward
from ticks.models.heads import ClassificationHead
from ticks.models.mlp import Mlp
from ticks.models.norm import LayerNorm, RMSNorm
from ticks.models.placement import Pre
from ticks.models.pretrained import PretrainedClassifier, PretrainedLanguageModel
from ticks.models.recurrent import RecurrentLanguageModel
from ticks.models.transformer import DecoderTransformer
from ticks.models.vit import VisionTransformer

__all__ = [
    "Block",
    "Blocks",
    "ClassificationHead",
    "CrossAttention",
    "DecoderTransformer",
    "EncoderClassifier",
    "EncoderDecoder",
    "FeedForward",
    "LayerNorm",
    "Mlp",
    "Pre",
    "PretrainedClassifier",
    "PretrainedLanguageModel",
    "RMSNorm",
    "RecurrentLanguageModel",
    "SelfAttention",
    "TicksAdapter",
    "Transformer",
    "VisionTransformer",
]
