"""What several seeds say together: means with 95% intervals, differences paired by seed, p values of many comparisons.

Needs scipy: pip install -e ".[report]".
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

CONFIDENCE = 0.95
BOOTSTRAP_FROM = 21  # so many values need no normal distribution behind them
RESAMPLES = 9999


@dataclass(frozen=True)
class Estimate:
    """A mean of `n` values and its 95% interval; `low` and `high` are None where one value says nothing of another."""

    mean: float
    low: float | None
    high: float | None
    n: int

    @property
    def half(self) -> float | None:
        """Half the interval's width."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2


@dataclass(frozen=True)
class Difference:
    """The mean difference of `estimate.n` pairs. `p` is of the hypothesis that there is none (None: it was not tested),
    `alone` counts values that had no partner."""

    estimate: Estimate
    p: float | None
    alone: int


def estimate(values: Sequence[float], *, normal: bool = False) -> Estimate:
    """The mean of `values` and its 95% interval: Student's t, and from 21 values on the BCa bootstrap, always alike,
    unless they are taken for `normal`."""
    from scipy import stats

    x = np.asarray(values, dtype=float)
    if x.size < 1:
        raise ValueError("values=[]: there must be at least one")
    mean = float(x.mean())
    if x.size == 1:
        return Estimate(mean, None, None, 1)
    if not normal and x.size >= BOOTSTRAP_FROM and np.ptp(x) > 0:
        found = stats.bootstrap(
            (x,), np.mean, confidence_level=CONFIDENCE, n_resamples=RESAMPLES, rng=np.random.default_rng(0)
        )
        low, high = found.confidence_interval
        return Estimate(mean, float(low), float(high), x.size)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, x.size - 1) * x.std(ddof=1) / np.sqrt(x.size))
    return Estimate(mean, mean - half, mean + half, x.size)


def paired(values: Mapping[object, float], baseline: Mapping[object, float]) -> Difference | None:
    """How much `values` are above `baseline`, pair by pair: both have a value by the seed. None without any pair.

    Interval and p value are of the paired t test, two-sided; differences that are all the same have neither: of how far
    another seed's would be they say nothing.
    """
    from scipy import stats

    both = [key for key in values if key in baseline]
    alone = len(values) + len(baseline) - 2 * len(both)
    if not both:
        return None
    differences = np.array([values[key] - baseline[key] for key in both], dtype=float)
    size = max(abs(value) for key in both for value in (values[key], baseline[key]))
    if len(both) == 1 or np.ptp(differences) <= 1e-12 * size:
        return Difference(Estimate(float(differences.mean()), None, None, len(both)), None, alone)
    p = float(stats.ttest_1samp(differences, 0.0).pvalue)
    return Difference(estimate(differences.tolist(), normal=True), p, alone)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Each p value as it counts among all of them (Holm 1979); what was not tested is no comparison."""
    tested = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, i) in enumerate(tested):
        largest = max(largest, min(1.0, (len(tested) - rank) * p))
        adjusted[i] = largest
    return adjusted
