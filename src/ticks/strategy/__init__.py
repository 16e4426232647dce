"""Distributed training whose workers talk only at ticks. Works with any LightningModule:

    Trainer(strategy=TickStrategy(interval=64), accelerator="cpu", devices=4)

Names are looked up lazily, so that `ticks.strategy.clock` can be used without importing torch.
"""

from importlib import import_module
from typing import Any

_HOME = {
    "TickStrategy": "strategy",
    "DDP": "ddp",
    "EverySteps": "clock",
    "Facts": "clock",
    "Gradients": "sync",
    "Parameters": "sync",
    "FP32": "wire",
    "Ledger": "ledger",
    "Refused": "workers",
    "Stopped": "shutdown",
}
__all__ = [
    "DDP", "FP32", "EverySteps", "Facts", "Gradients", "Ledger", "Parameters", "Refused", "Stopped", "TickStrategy",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
