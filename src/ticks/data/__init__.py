"""Data sources. Each serves batches that depend on (seed, step, worker) alone."""

from ticks.data.base import StepData
from ticks.data.bbc import BBCNews
from ticks.data.bible import Bible
from ticks.data.bytes import ByteData
from ticks.data.cmudict import CmuDict
from ticks.data.digits import Digits
from ticks.data.pair_files import PairFiles
from ticks.data.pairs import PairData
from ticks.data.samples import MapData
from ticks.data.text import TextFiles

__all__ = [
    "BBCNews",
    "Bible",
    "ByteData",
    "CmuDict",
    "Digits",
    "MapData",
    "PairData",
    "PairFiles",
    "StepData",
    "TextFiles",
]
