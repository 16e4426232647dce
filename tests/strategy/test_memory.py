"""What ticks cost in memory: next to nothing beyond parameters, gradients and what is on its way."""

from typing import Any

import pytest

from tests.benchmarks.bench import peak_bytes
from tests.benchmarks.tick import OnlyParameters
from tests.conftest import run_workers
from ticks.strategy import Gradients, Parameters, TickStrategy

VALIDATION = {"limit_val_batches": 1, "val_check_interval": 3, "check_val_every_n_epoch": None}  # within a round


@pytest.mark.parametrize("sync", [Gradients(), Parameters()], ids=["gradients", "parameters"])
def test_there_are_never_more_than_three_copies_of_the_parameters(sync: Any) -> None:
    """DDP has as many: parameters, gradients, and the buckets in which they travel."""
    size = 4 * sum(p.numel() for p in OnlyParameters().parameters())
    peaks = run_workers(2, peak_bytes, TickStrategy(interval=2, sync=sync), VALIDATION)
    assert 2.0 < max(peaks) / size < 3.1
