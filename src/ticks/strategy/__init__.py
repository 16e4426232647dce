"""Distributed training whose workers talk only at ticks. Works with any LightningModule:

    Trainer(strategy=TickStrategy(interval=64), accelerator="cpu", devices=4)

Names are looked up lazily, so that `ticks.strategy.clock` can be used without importing torch.
"""

from contextlib import suppress
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

_NAMES = {
    "strategy": ("TickStrategy",),
    "shared_facts": ("NonFiniteLoss",),
    "ddp": ("DDP",),
    "clock": ("Adaptive", "Clock", "EverySeconds", "EverySteps", "Facts", "PostLocal", "Quadratic", "Schedule"),
    "sync": ("Accumulate", "Gradients", "Hierarchical", "Outer", "Parameters", "Streaming", "Sync"),
    "optimizer_state": ("Average", "Keep", "OptimizerState", "Reset"),
    "wire": ("BF16", "FP16", "FP32", "Int4", "Int8", "OutOfStep", "Wire"),
    "low_rank": ("LowRank",),
    "ledger": ("Ledger",),
    "refusals": ("Refused",),
    "shutdown": ("Stopped",),
}
_HOME = {name: module for module, names in _NAMES.items() for name in names}
__all__ = sorted(_HOME)  # type: ignore[assignment]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def _refuse_other_lightnings(known: str = "2.6") -> None:
    """ImportError with any Lightning but the one whose private names start and stop the workers."""
    with suppress(PackageNotFoundError):  # the clocks need none
        if not (found := version("lightning")).startswith(f"{known}."):
            raise ImportError(
                f"lightning {found} is installed: TickStrategy knows the inside of lightning {known} alone:"
                f" pip install 'lightning=={known}.*'"
            )


_refuse_other_lightnings()
