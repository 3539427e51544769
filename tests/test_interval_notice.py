"""Intervals over few subjects: how often they hold the truth, and that the commands and the report say so."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

from sleepfm_fast.evaluation.interval_notice import (
    FEW_SUBJECTS,
    class_caution,
    class_notice,
    covered,
    interval_notice,
    rarest_caution,
)  # fmt: skip
from sleepfm_fast.evaluation.metrics import Interval, bootstrap_curves, bootstrap_subjects, percentile_interval


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
    # Nothing left out: nobody differs from anybody, of which resamples learn nothing; 5 of 5 is no 1.000 to 1.000.
    assert percentile_interval(1.0, np.ones(100), 5) == Interval(1.0, None, None, 100)
    assert percentile_interval(1 / 3, 1 / 3 + 1e-17 * np.arange(100), 5).low is None
    # A median of ranks does not move although subjects differ, and a result does not differ from itself.
    assert percentile_interval(1.0, np.ones(100), 5, may_agree=True) == Interval(1.0, 1.0, 1.0, 100)
    assert percentile_interval(0.548, one, 2, may_agree=True) == Interval(0.548, None, None, 50)
    assert percentile_interval(0.5, np.r_[one, 0.6], 2).high is not None


@pytest.mark.parametrize("n_with", [1, 2, 3, 5])
def test_of_two_groups_the_smaller_decides_what_an_interval_holds(n_with):
    # One clip each: an AUROC of so many with a class and of 30 without, one standard deviation apart.
    n, held = n_with + 30, 0
    positive, truth = np.arange(n) < n_with, norm.cdf(1 / np.sqrt(2))
    for trial in range(300):
        score = np.random.default_rng(trial).standard_normal(n) + positive
        weights = np.vstack([np.ones((1, n)), bootstrap_subjects(n, 300, trial)])
        area, _ = bootstrap_curves(positive, score, np.arange(n), weights)
        found = percentile_interval(area[0], area[1:], n)
        held += found.low is not None and found.low <= truth <= found.high
    if n_with == 1:
        assert held / 300 < 0.45  # why there is none
    else:
        assert covered(n_with) - 0.08 < held / 300 < covered(n_with) + 0.22 < covered(30) + 0.16


def of(n_test, n_subjects, n_others):
    return {"n_test": n_test, "n_subjects": n_subjects, "n_subjects_of_others": n_others}


def test_classes_of_few_subjects_are_named_unless_all_are_few():
    many = of(900, 30, 30)
    assert class_notice({"W": many, "R": of(80, 12, 30)}, 30) == ""
    assert class_notice({"W": many, "R": of(0, 0, 30)}, 30) == ""  # absent: it has no figure
    assert class_notice({"F": of(900, 30, 0)}, 30) == ""  # no other class: neither
    assert class_notice({"W": {"n_test": 5}}, 30) == ""  # a record of before
    words = class_notice({"W": many, "R": of(80, 3, 30)}, 30)
    assert words == (
        "only 3 subjects have clips of R: intervals of this class, and of means over it, contain the true value about "
        "75 times in 100, not 95."
    )
    assert class_notice({"F": of(900, 27, 3)}, 30).startswith("only 3 subjects have clips of other than F: intervals")
    two = class_notice({"A": of(9, 1, 30), "B": of(9, 1, 30), "C": of(9, 4, 30), "D": of(9, 4, 30)}, 31)
    assert two.startswith("one subject each has clips of A and of B, which says nothing of others like them: the fig")
    assert two.endswith(
        "; only 4 subjects each have clips of C and of D: intervals of these classes contain the true value about 81 "
        "times in 100, not 95."
    )
    # Of F, which one subject has, the four others are no matter: it has no interval.
    assert "only" not in class_notice({"F": of(9, 1, 4)}, 5)
    # With seven in all, six differ little, and three much.
    assert class_notice({"R": of(80, 6, 7)}, 7) == ""
    assert "only 3 subjects" in class_notice({"R": of(80, 3, 7)}, 7)
    assert class_notice({"R": of(80, 1, 1)}, 1) == ""
    assert class_caution({"R": of(80, 3, 30)}, 30).startswith(" Only 3 subjects")
    assert "only 3 subjects have clips" in rarest_caution([{"W": many}, {"R": of(80, 3, 30), "N1": of(9, 1, 30)}], 30)
    assert rarest_caution([{"W": many}, {}], 30) == rarest_caution([], 0) == ""
