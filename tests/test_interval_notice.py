"""Intervals over few subjects: how often they hold the truth, and that the commands and the report say so."""

from __future__ import annotations

import numpy as np
import pytest

from sleepfm_fast.evaluation.interval_notice import FEW_SUBJECTS, covered, interval_notice
from sleepfm_fast.evaluation.metrics import Interval, percentile_interval


@pytest.mark.parametrize("n", [2, 3, 4, 5, 10])
def test_the_share_that_is_stated_is_the_share_that_is_measured(n):
    rng = np.random.default_rng(n)
    held, n_trials = 0, 1500
    for _ in range(n_trials):
        means = rng.multinomial(n, np.full(n, 1 / n), 400) @ rng.standard_normal(n) / n
        low, high = np.percentile(means, [2.5, 97.5])
        held += low <= 0 <= high
    # Four standard errors of 1,500 trials, and 0.01 for 400 resamples and a distribution that is not quite normal.
    assert held / n_trials == pytest.approx(covered(n), abs=4 * np.sqrt(0.25 * 0.75 / n_trials) + 0.01)


def test_the_threshold_is_where_nine_in_ten_are_held():
    assert covered(FEW_SUBJECTS - 1) < 0.9 <= covered(FEW_SUBJECTS)
    assert interval_notice(FEW_SUBJECTS) == interval_notice(0) == ""
    assert "no intervals" in interval_notice(1)
    assert "with 3 subjects" in interval_notice(3)
    assert "about 75 times in 100" in interval_notice(3)


def test_resamples_that_are_all_one_make_no_interval():
    one = np.where(np.arange(100) % 2, 0.548, np.nan)
    assert percentile_interval(0.548, one, 2) == Interval(0.548, None, None, 50)
    # Nothing left out: a figure that no choice of subjects changes.
    assert percentile_interval(1.0, np.ones(100), 5) == Interval(1.0, 1.0, 1.0, 100)
    assert percentile_interval(0.5, np.r_[one, 0.6], 2).high is not None
