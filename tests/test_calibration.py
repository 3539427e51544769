"""Calibration against scikit-learn, against probabilities that are right by construction, and its intervals."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss

from sleepfm_fast.evaluation.calibration import calibration, correct_for_prior
from sleepfm_fast.evaluation.tasks import TASKS

STAGES = np.arange(5, dtype=np.int8)


def case(n=20_000, n_subjects=20, seed=0):
    """Probabilities of five classes, and labels drawn from them."""
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.full(5, 0.4), n)
    labels = (p.cumsum(1) < rng.random(n)[:, None]).sum(1).clip(max=4).astype(np.int8)
    return p, labels, rng.integers(0, n_subjects, n).astype(np.int32)


def test_bins_and_brier_equal_scikit_learn():
    p, labels, subject = case()
    found = calibration(p, STAGES, labels, subject, TASKS["stage"], 50, 0)["as_fitted"]
    assert list(found["classes"]) == list(TASKS["stage"].names)
    for k, entry in enumerate(found["classes"].values()):
        observed, mean_p = calibration_curve(labels == k, p[:, k], n_bins=10)
        full = [b for b in entry["bins"] if b["n"]]
        np.testing.assert_allclose([b["observed"] for b in full], observed)
        np.testing.assert_allclose([b["mean_probability"] for b in full], mean_p)
        assert all(b["low"] <= b["mean_probability"] <= b["high"] == pytest.approx(b["low"] + 0.1) for b in full)
        assert sum(b["n"] for b in entry["bins"]) == len(p)
        assert entry["brier"].value == pytest.approx(brier_score_loss(labels == k, p[:, k]))
        assert entry["brier"].low < entry["brier"].value < entry["brier"].high
        weights = np.array([b["n"] for b in full]) / len(p)
        assert entry["expected_calibration_error"].value == pytest.approx(weights @ np.abs(observed - mean_p))


def test_right_probabilities_have_little_error_and_overconfident_ones_much():
    p, labels, subject = case()
    right = calibration(p, STAGES, labels, subject, TASKS["stage"], 0, 0)["as_fitted"]["predicted_class"]
    # 10 bins of some 2,000 clips: each gap has a standard error of about 0.01.
    assert right["expected_calibration_error"].value < 0.02
    sure = p**4 / (p**4).sum(1, keepdims=True)
    wrong = calibration(sure, STAGES, labels, subject, TASKS["stage"], 0, 0)["as_fitted"]["predicted_class"]
    assert wrong["expected_calibration_error"].value > 0.1
    assert wrong["brier"].value > right["brier"].value


def test_the_intervals_are_those_of_resampling_by_hand():
    p, labels, subject = case(n=600, n_subjects=5)
    from sleepfm_fast.evaluation.metrics import bootstrap_subjects

    found = calibration(p, STAGES, labels, subject, TASKS["stage"], 40, 3)["as_fitted"]["classes"]["N2"]
    errors = []
    for drawn in bootstrap_subjects(5, 40, 3):
        clips = np.concatenate([np.repeat(np.flatnonzero(subject == s), times) for s, times in enumerate(drawn)])
        one = calibration(p[clips], STAGES, labels[clips], subject[clips], TASKS["stage"], 0, 0)
        errors.append(one["as_fitted"]["classes"]["N2"]["expected_calibration_error"].value)
    interval = found["expected_calibration_error"]
    low, high = np.percentile(errors, [2.5, 97.5])
    v = interval.value
    assert (interval.low, interval.high) == pytest.approx((max(2 * v - high, 0), 2 * v - low))
    assert 0 <= interval.low < v < interval.high


def test_the_error_of_right_probabilities_may_be_none():
    covered = 0
    for seed in range(40):
        p, labels, subject = case(n=2000, seed=seed)
        found = calibration(p, STAGES, labels, subject, TASKS["stage"], 100, 0)["as_fitted"]["predicted_class"]
        interval = found["expected_calibration_error"]
        assert 0 <= interval.low <= interval.value <= interval.high
        covered += interval.low == 0
    # The truth is 0, which percentiles of resampled errors never reach. (30 of 40, docs/evaluation.md.)
    assert covered >= 24


def test_the_error_of_overconfident_probabilities_is_covered():
    # Far from 0 the error is a mean like any other: over many clips it is known, and intervals of few clips cover it.
    def overconfident(n, seed):
        p, labels, subject = case(n=n, seed=seed)
        sure = p**3 / (p**3).sum(1, keepdims=True)
        found = calibration(sure, STAGES, labels, subject, TASKS["stage"], 200, 0)["as_fitted"]["predicted_class"]
        return found["expected_calibration_error"]

    truth = overconfident(400_000, 99).value
    intervals = [overconfident(1000, seed) for seed in range(40)]
    assert truth > 0.05
    assert sum(i.low <= truth <= i.high for i in intervals) >= 33


def test_the_prior_undoes_balanced_weights():
    # Two Gaussian classes of equal spread: logistic regression is the true model, whatever the weights.
    rng = np.random.default_rng(0)
    y = (rng.random(60_000) < 0.05).astype(np.int8)
    x = rng.standard_normal((60_000, 2)) + 1.5 * y[:, None]
    balanced = LogisticRegression(class_weight="balanced").fit(x, y).predict_proba(x)
    plain = LogisticRegression().fit(x, y).predict_proba(x)
    prior = np.array([1 - y.mean(), y.mean()])
    corrected = correct_for_prior(balanced, prior)
    assert np.abs(corrected - plain).mean() < 0.005 < 0.1 < np.abs(balanced - plain).mean()
    result = calibration(balanced, np.array([0, 1], np.int8), y, np.zeros(60_000, np.int32), TASKS["sdb"], 0, 0, prior)
    before, after = (result[name]["classes"]["event"] for name in ("as_fitted", "prior_corrected"))
    assert before["expected_calibration_error"].value > 0.08
    assert after["expected_calibration_error"].value < 0.005
    assert result["prior"]["event"] == pytest.approx(y.mean())


def test_classes_that_were_not_trained_have_no_curve_and_count_as_wrong():
    p = np.array([[1.0, 0.0], [0.0, 1.0], [0.9, 0.1]])
    result = calibration(
        p, np.array([0, 2], np.int8), np.array([0, 2, 1], np.int8), np.zeros(3, np.int32), TASKS["stage"], 10, 0
    )
    assert list(result["as_fitted"]["classes"]) == ["W", "N2"]
    last = result["as_fitted"]["predicted_class"]["bins"][9]
    assert (last["n"], last["observed"]) == (3, pytest.approx(2 / 3))
    assert result["as_fitted"]["predicted_class"]["brier"].low is None  # one subject


@pytest.mark.parametrize(("n", "low", "high"), [(30, 0.16, 0.20), (300, 0.05, 0.07)])
def test_the_error_of_right_probabilities_of_few_cases_is_noise(n, low, high):
    # Why there is none over nights (docs/evaluation.md).
    errors = []
    for seed in range(100):
        rng = np.random.default_rng(seed)
        p = rng.random(n)
        label = (rng.random(n) < p).astype(np.int8)
        found = calibration(
            np.stack([1 - p, p], 1), np.array([0, 1], np.int8), label, np.arange(n, dtype=np.int32), TASKS["sdb"], 0, 0
        )
        errors.append(found["as_fitted"]["classes"]["event"]["expected_calibration_error"].value)
    assert low < np.mean(errors) < high


def test_one_clip():
    result = calibration(
        np.array([[0.3, 0.7]]),
        np.array([0, 1], np.int8),
        np.array([1], np.int8),
        np.zeros(1, np.int32),
        TASKS["sex"],
        5,
        0,
    )
    entry = result["as_fitted"]["classes"]["F"]
    assert entry["brier"].value == pytest.approx(0.09)
    assert sum(b["n"] for b in entry["bins"]) == 1
