"""summary.json: the one file that tools, sweeps and reports read. Keys that do not apply are null, never missing."""

import json
import math
import platform
from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

KEYS = (
    "status", "strategy", "interval", "clock", "sync", "wire", "norm", "adapter", "seed", "world_size",
    "n_params", "n_trainable", "n_nonzero", "steps", "ticks", "tokens", "measure", "better", "higher_is_better",
    "val_loss", "bytes_sent_per_worker", "messages", "sync_seconds", "train_seconds", "steps_per_second", "peak_memory",
    "device", "run_dir", "checkpoint", "config_digest", "versions",
)  # fmt: skip
UNFINISHED = ("running", "stopped", "failed")


def write(run_dir: Path, values: Mapping[str, Any]) -> dict[str, Any]:
    """Write summary.json with all KEYS in order, then the measures, val_*, test_* and gap_*, and of a run with phases a
    row for each. ValueError for others."""
    if unknown := [
        key for key in values if key not in KEYS and not key.startswith(("val_", "test_", "gap_", "phases"))
    ]:
        raise ValueError(f"summary.json has no {unknown}")
    summary = dict.fromkeys(KEYS) | {key: _finite(value) for key, value in values.items()}
    scratch = run_dir / ".summary.partial"
    scratch.write_text(json.dumps(summary, indent=2) + "\n")
    scratch.replace(run_dir / "summary.json")
    return summary


def read(run_dir: Path) -> dict[str, Any]:
    """A run's summary; FileNotFoundError if there is none."""
    return json.loads((run_dir / "summary.json").read_text())


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def headline(summary: Mapping[str, Any]) -> tuple[str, float | None]:
    """The measure by which a run is judged, and what it came to on the validation data."""
    name = summary.get("measure") or ("bits_per_byte" if "val_bits_per_byte" in summary else "loss")  # of older runs
    return name, summary.get(f"val_{name}")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide what a run computes."""
    ours = import_module(__name__.partition(".")[0])
    names = ("torch", "lightning", "hydra-core", "omegaconf", "torchmetrics", "numpy")
    return {"python": platform.python_version(), ours.__name__: ours.__version__} | {n: version(n) for n in names}
