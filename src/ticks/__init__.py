"""ticks: train transformers whose workers rarely talk."""

__version__ = "0.1.0"
