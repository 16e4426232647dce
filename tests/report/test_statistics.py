"""Means, intervals and p values, compared with scipy's own and with tables by hand."""

import numpy as np
import pytest
from scipy import stats

from ticks.report.statistics import Estimate, estimate, holm, paired

VALUES = [1.52, 1.49, 1.61, 1.55, 1.47]


def test_few_values_have_students_interval() -> None:
    found = estimate(VALUES)
    low, high = stats.t.interval(0.95, len(VALUES) - 1, np.mean(VALUES), stats.sem(VALUES))
    assert (found.mean, found.low, found.high) == pytest.approx((np.mean(VALUES), low, high))
    assert found.n == 5
    assert found.half == pytest.approx((high - low) / 2)


def test_one_value_has_no_interval() -> None:
    assert estimate([2.0]) == Estimate(2.0, None, None, 1)
    assert estimate([2.0]).half is None


def test_many_values_are_resampled_and_always_alike() -> None:
    values = np.random.default_rng(3).exponential(size=21).tolist()
    found = estimate(values)
    wanted = stats.bootstrap((np.array(values),), np.mean, n_resamples=9999, rng=np.random.default_rng(0))
    assert (found.low, found.high) == pytest.approx(tuple(wanted.confidence_interval))
    assert estimate(values) == found
    assert found.high is not None
    assert found.low is not None
    assert found.high - found.mean > 1.1 * (found.mean - found.low)  # of what is skewed it is no symmetric one
    few = estimate(values[:20])
    assert few.high is not None
    assert few.low is not None
    assert few.high - few.mean == pytest.approx(few.mean - few.low)


def test_values_without_spread_have_an_interval_of_no_width() -> None:
    assert estimate([1.0] * 30) == Estimate(1.0, 1.0, 1.0, 30)


def test_nothing_has_no_mean() -> None:
    with pytest.raises(ValueError, match="at least one"):
        estimate([])


def test_differences_are_between_equal_seeds() -> None:
    base = {0: 1.50, 1: 1.40, 2: 1.62, 3: 1.44, 4: 1.49}
    values = {4: 1.53, 3: 1.47, 2: 1.66, 1: 1.42, 0: 1.55}
    found = paired(values, base)
    assert found is not None
    test = stats.ttest_rel([values[i] for i in base], list(base.values()))
    assert found.p == pytest.approx(test.pvalue)
    interval = test.confidence_interval()
    assert (found.estimate.low, found.estimate.high) == pytest.approx((interval.low, interval.high))
    assert found.estimate.mean == pytest.approx(0.036)
    unpaired = stats.ttest_ind(list(values.values()), list(base.values())).pvalue
    assert found.p < 0.1 * unpaired


def test_seeds_without_a_partner_are_counted_and_left_out() -> None:
    found = paired({0: 1.0, 1: 1.1, 5: 9.0}, {1: 1.0, 0: 1.0, 7: 1.0, 8: 1.0})
    assert found is not None
    assert (found.estimate.n, found.alone) == (2, 3)
    assert found.estimate.mean == pytest.approx(0.05)
    assert paired({0: 1.0}, {1: 1.0}) is None


def test_one_pair_is_a_difference_and_no_test() -> None:
    found = paired({0: 1.5}, {0: 1.0})
    assert found is not None
    assert (found.estimate.mean, found.estimate.half, found.p) == (0.5, None, None)


@pytest.mark.parametrize("by", [0.0, 0.25, 0.1])
def test_differences_that_are_all_the_same_say_nothing_of_another_seeds(by: float) -> None:
    """Shares of a small split tie; 1.1 - 1.0 and 2.1 - 2.0 are not the same to the last bit."""
    found = paired({0: 1.0 + by, 1: 2.0 + by}, {0: 1.0, 1: 2.0})
    assert found is not None
    assert found.estimate.mean == pytest.approx(by)
    assert (found.p, found.estimate.half, found.estimate.n) == (None, None, 2)


def test_interval_and_p_of_a_difference_are_of_one_method() -> None:
    draws = np.random.default_rng(1).normal(0.5, 1.0, 30)
    found = paired(dict(enumerate(draws)), dict.fromkeys(range(30), 0.0))
    interval = stats.ttest_1samp(draws, 0.0).confidence_interval()
    assert found is not None
    assert (found.estimate.low, found.estimate.high) == pytest.approx((interval.low, interval.high))


def test_holms_correction_is_that_of_the_paper() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.6]) == [1.0, 1.0]
    assert holm([None, 0.04, None]) == [None, 0.04, None]
    assert holm([]) == []
