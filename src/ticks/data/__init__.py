"""Data sources. Each serves batches that depend on (seed, step, worker) alone."""

from ticks.data.augment import ShiftRotate
from ticks.data.base import StepData
from ticks.data.bbc import BBCNews
from ticks.data.bible import Bible
from ticks.data.bytes import ByteData
from ticks.data.cmudict import CmuDict
from ticks.data.digits import Digits
from ticks.data.idx import IdxFiles
from ticks.data.images import Images, LabelledImages
from ticks.data.labelled import LabelledTexts
from ticks.data.mnist import Mnist
from ticks.data.pair_files import PairFiles
from ticks.data.pairs import PairData
from ticks.data.pretrained_tokenizer import PretrainedTokenizer
from ticks.data.samples import MapData
from ticks.data.table import Table
from ticks.data.text import TextFiles
from ticks.data.tokenizers import Bpe, Bytes, TrainedBpe
from ticks.data.topics import Topics

__all__ = [
    "BBCNews",
    "Bible",
    "Bpe",
    "ByteData",
    "Bytes",
    "CmuDict",
    "Digits",
    "IdxFiles",
    "Images",
    "LabelledImages",
    "LabelledTexts",
    "MapData",
    "Mnist",
    "PairData",
    "PairFiles",
    "PretrainedTokenizer",
    "ShiftRotate",
    "StepData",
    "Table",
    "TextFiles",
    "Topics",
    "TrainedBpe",
]
