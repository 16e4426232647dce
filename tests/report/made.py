"""Runs that nobody trained: directories with a summary, a configuration and a record."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from ticks.record import summary
from ticks.record.metrics import MetricsFile

FINISHED = {
    "status": "finished", "strategy": "ticks", "interval": 8, "sync": "gradients", "wire": "fp32", "norm": "rms_norm",
    "adapter": "none", "world_size": 4, "steps": 640, "measure": "bits_per_byte", "better": "lower",
    "val_bits_per_byte": 2.345, "bytes_sent_per_worker": 12_300_000, "steps_per_second": 7.5, "seed": 0,
}  # fmt: skip


def run(
    directory: Path,
    bits: Sequence[float] = (),
    *,
    sent: int = 10**6,
    typed: dict[str, Any] | None = None,
    config: dict[str, Any] | None = None,
    choices: dict[str, str] | None = None,
    **about: Any,
) -> Path:
    """A run's directory: `about` in its summary, `bits` the evaluations of its record, ten steps apart, the first at 0.
    With `typed`, `config` or `choices` there is a config.yaml, too."""
    directory.mkdir(parents=True)
    about = FINISHED | about
    summary.write(directory, about)
    file = MetricsFile(directory / "metrics.csv")
    for i, value in enumerate(bits):
        file.append({"step": 10 * i, "bytes_sent": sent * i, "val/bits_per_byte": value})
        file.append({"step": 10 * i + 5, "bytes_sent": sent * i, "train/loss": 1.0})
    if typed is not None or config is not None or choices is not None:
        content = {"seed": about["seed"], "name": directory.name, "run_dir": str(directory)} | (config or {})
        content |= {"choices": choices or {}, "coordinates": {key: str(value) for key, value in (typed or {}).items()}}
        (directory / "config.yaml").write_text(yaml.safe_dump(content))
    return directory


def grid(folder: Path, *, seeds: Sequence[int] = (0, 1, 2), norms: Sequence[str] = ("ln", "rms")) -> Path:
    """Runs at two intervals and with two norms, as a sweep leaves them; nothing in them is random."""
    for i, norm in enumerate(norms):
        for interval in (1, 16):
            for seed in seeds:
                bits = 2.0 + 0.1 * i + (0.1 + 0.05 * i) * (interval == 16) + 0.01 * seed + 0.003 * seed * seed * i
                bits += 0.002 * (seed % 2) * (interval == 16)
                run(
                    folder / f"{norm}_{interval}_{seed}",
                    [8.0, bits + 1.0, bits + 0.2, bits],
                    sent=10**8 // interval,
                    typed={"model": norm, "strategy.clock.interval": interval, "seed": seed},
                    config={"model": {"norm": {"_target_": norm}}, "strategy": {"clock": {"interval": interval}},
                            "data": {"seed": seed}, "logger": {"csv": {"id": f"{norm}{interval}{seed}"}}},
                    choices={"model": norm, "strategy": "ticks", "task": "language_modeling", "model/norm": norm},
                    seed=seed, val_bits_per_byte=bits, interval=interval, norm=norm,
                    bytes_sent_per_worker=3 * 10**8 // interval,
                )  # fmt: skip
    return folder
