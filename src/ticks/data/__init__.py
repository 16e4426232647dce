"""Data sources. Each prepares byte tokens once and serves batches that depend on (seed, step, worker) alone."""

from ticks.data.bbc import BBCNews
from ticks.data.bytes import ByteData
from ticks.data.text import TextFiles

__all__ = ["BBCNews", "ByteData", "TextFiles"]
