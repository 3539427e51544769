"""The metrics against scikit-learn, against resampling done the long way, and against known answers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, average_precision_score, cohen_kappa_score, f1_score, roc_auc_score

from sleepfm_fast.evaluation import metrics
from sleepfm_fast.evaluation.figures import evaluate
from sleepfm_fast.evaluation.tasks import TASKS


def case(seed, n, *, distinct=None, prevalence=0.3):
    """Scores that carry some signal; ``distinct`` values make ties."""
    rng = np.random.default_rng(seed)
    y = rng.random(n) < prevalence
    y[:2] = [True, False]
    s = rng.standard_normal(n) + y
    if distinct is not None:
        s = np.round(s * distinct / 4)
    return rng, y, s


@pytest.mark.parametrize("n", [2, 3, 17, 1000])
@pytest.mark.parametrize("distinct", [None, 1, 8])
@pytest.mark.parametrize("weights", ["none", "real", "counts", "some zero"])
def test_equals_scikit_learn(n, distinct, weights):
    rng, y, s = case(n, n, distinct=distinct)
    w = {
        "none": None,
        "real": rng.random(n) + 0.01,
        "counts": rng.integers(1, 5, n).astype(float),
        "some zero": rng.integers(0, 3, n).astype(float),
    }[weights]
    if w is not None:
        w[:2] = 1.0
    assert metrics.auroc(y, s, w) == pytest.approx(roc_auc_score(y, s, sample_weight=w), abs=1e-12)
    assert metrics.auprc(y, s, w) == pytest.approx(average_precision_score(y, s, sample_weight=w), abs=1e-12)


def test_known_answers():
    y = np.array([1, 1, 0, 0], bool)
    assert metrics.auroc(y, [4, 3, 2, 1]) == 1.0
    assert metrics.auprc(y, [4, 3, 2, 1]) == 1.0
    assert metrics.auroc(y, [1, 2, 3, 4]) == 0.0
    assert metrics.auprc(y, [1, 2, 3, 4]) == pytest.approx((1 / 3 + 2 / 4) / 2)
    assert metrics.auroc(y, [5, 5, 5, 5]) == 0.5
    assert metrics.auprc(y, [5, 5, 5, 5]) == 0.5
    assert metrics.auroc(y, [np.inf, 0, 0, -np.inf]) == 0.875


def test_absent_classes_have_no_value():
    assert np.isnan(metrics.auroc([False, False], [0.0, 1.0]))
    assert np.isnan(metrics.auprc([False, False], [0.0, 1.0]))
    assert np.isnan(metrics.auroc([True, True], [0.0, 1.0]))
    assert metrics.auprc([True, True], [0.0, 1.0]) == 1.0
    assert np.isnan(metrics.auroc([True, False], [0.0, 1.0], [0.0, 1.0]))


@pytest.mark.parametrize("n_bootstraps", [1, 15, 16, 17, 40])
def test_resamples_equal_sorting_each_resample_anew(n_bootstraps):
    rng, y, s = case(1, 400, distinct=16)
    subject = rng.integers(0, 9, y.size)
    draws = metrics.bootstrap_subjects(9, n_bootstraps, seed=5)
    area, precision = metrics.bootstrap_curves(y, s, subject, draws)
    assert area.shape == precision.shape == (n_bootstraps,)
    for b, drawn in enumerate(draws):
        clips = np.concatenate([np.repeat(np.flatnonzero(subject == k), times) for k, times in enumerate(drawn)])
        assert area[b] == pytest.approx(roc_auc_score(y[clips], s[clips]), abs=1e-12)
        assert precision[b] == pytest.approx(average_precision_score(y[clips], s[clips]), abs=1e-12)


def test_a_resample_without_a_class_is_nan():
    y, subject = np.array([1, 1, 0, 0], bool), np.array([0, 0, 1, 1])
    area, precision = metrics.bootstrap_curves(y, [3, 1, 2, 0], subject, [[2, 0], [0, 2], [1, 1]])
    np.testing.assert_array_equal(np.isnan(area), [True, True, False])
    np.testing.assert_array_equal(np.isnan(precision), [False, True, False])
    assert area[2] == 0.75


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (([True], [np.nan], [0], [[1.0]]), "NaN"),
        (([True], [1.0], [1], [[1.0]]), "groups run from 1"),
        (([True], [1.0], [-1], [[1.0]]), "groups run from -1"),
        (([True, False], [1.0], [0], [[1.0]]), "one length"),
        (([True], [1.0], [0], [1.0]), "two axes"),
        (([True], [1.0], [0], [[-1.0]]), "negative"),
    ],
)
def test_wrong_arguments(arguments, match):
    with pytest.raises(ValueError, match=match):
        metrics.bootstrap_curves(*arguments)


def test_draws():
    draws = metrics.bootstrap_subjects(7, 5000, seed=1)
    assert (draws.sum(1) == 7).all()
    np.testing.assert_array_equal(draws, metrics.bootstrap_subjects(7, 5000, seed=1))
    assert (draws != metrics.bootstrap_subjects(7, 5000, seed=2)).any()
    # A subject is left out of a resample with probability (1 - 1/7)^7; five standard errors around it.
    p = (1 - 1 / 7) ** 7
    assert abs((draws == 0).mean() - p) < 5 * np.sqrt(p * (1 - p) / draws.size)


def test_percentiles_leave_out_what_has_no_value():
    resampled = np.concatenate([np.arange(101.0), [np.nan] * 7])
    assert metrics.percentile_interval(40.0, resampled, 5) == metrics.Interval(40.0, 2.5, 97.5, 101)
    assert metrics.percentile_interval(40.0, resampled, 1) == metrics.Interval(40.0, None, None, 0)
    assert metrics.percentile_interval(np.nan, resampled, 5) == metrics.Interval(None, None, None, 0)
    assert metrics.percentile_interval(1.0, [np.nan, 3.0], 5) == metrics.Interval(1.0, None, None, 1)


def test_interval_over_subjects_covers_and_the_interval_over_clips_does_not():
    # Subjects differ in mean by as much as clips within a subject: 30 subjects x 20 clips carry far less than 600
    # clips' worth of evidence. Nominal coverage is 0.95; the band allows for 200 trials and the bootstrap's bias.
    rng = np.random.default_rng(11)
    covered = {"subjects": 0, "clips": 0}
    n_trials = 200
    for trial in range(n_trials):
        hits = rng.random((30, 20)) < rng.beta(1.0, 1.0, (30, 1))
        for name, sums, counts in (
            ("subjects", hits.sum(1), np.full(30, 20)),
            ("clips", hits.ravel(), np.ones(600)),
        ):
            draws = metrics.bootstrap_subjects(len(sums), 200, seed=trial)
            interval = metrics.percentile_interval(
                hits.mean(), metrics.resampled_ratio(sums, counts, draws), n_subjects=len(sums)
            )
            covered[name] += interval.low <= 0.5 <= interval.high
    assert 0.86 <= covered["subjects"] / n_trials <= 0.99
    assert covered["clips"] / n_trials < 0.7


def test_auroc_interval_covers_the_known_auroc():
    # score = y + noise: AUROC = Phi(1 / sqrt(2)) = 0.76025.
    rng = np.random.default_rng(2)
    covered = 0
    for trial in range(100):
        subject = np.repeat(np.arange(25), 12)
        y = rng.random(subject.size) < 0.4
        s = rng.standard_normal(subject.size) + y
        draws = metrics.bootstrap_subjects(25, 200, seed=trial)
        area, _ = metrics.bootstrap_curves(y, s, subject, draws)
        interval = metrics.percentile_interval(metrics.auroc(y, s), area, 25)
        covered += interval.low <= 0.76025 <= interval.high
    assert 85 <= covered <= 100


def figures_of(confusion, draws):
    """Intervals of every figure of confusion matrices: that of all clips, then those of the resamples."""
    n = len(confusion)
    curves = metrics.confusion_curves(confusion, np.vstack([np.ones((1, n), np.int32), draws]))

    def interval(values):
        return metrics.percentile_interval(values[0], values[1:], n)

    return {"f1": [interval(values) for values in curves.pop("f1").T]} | {n: interval(v) for n, v in curves.items()}


def test_confusion_figures_equal_scikit_learn():
    rng = np.random.default_rng(4)
    truth, subject = rng.integers(0, 4, 500), rng.integers(0, 6, 500)
    predicted = np.where(rng.random(500) < 0.6, truth, rng.integers(0, 5, 500))
    confusion = metrics.confusion_by_subject(truth, predicted, subject, 5, 6)
    assert confusion.shape == (6, 5, 5)
    assert confusion[2, 1, 3] == ((subject == 2) & (truth == 1) & (predicted == 3)).sum()
    draws = metrics.bootstrap_subjects(6, 50, seed=0)
    figures = figures_of(confusion, draws)
    expected = f1_score(truth, predicted, labels=range(4), average=None)
    assert [f.value for f in figures["f1"][:4]] == pytest.approx(expected)
    assert figures["f1"][4] == metrics.Interval(None, None, None, 0)  # predicted, never true
    assert figures["macro_f1"].value == pytest.approx(expected.mean())
    assert figures["accuracy"].value == pytest.approx(accuracy_score(truth, predicted))
    assert figures["cohen_kappa"].value == pytest.approx(cohen_kappa_score(truth, predicted))
    resampled = []
    for drawn in draws:
        clips = np.concatenate([np.repeat(np.flatnonzero(subject == k), times) for k, times in enumerate(drawn)])
        resampled.append(f1_score(truth[clips], predicted[clips], labels=range(4), average="macro"))
    low, high = np.percentile(resampled, [2.5, 97.5])
    assert (figures["macro_f1"].low, figures["macro_f1"].high) == (pytest.approx(low), pytest.approx(high))


def test_confusion_figures_of_one_class():
    figures = figures_of(np.array([[[5, 0], [0, 0]]]), metrics.bootstrap_subjects(1, 10, seed=0))
    assert figures["accuracy"].value == 1.0
    assert figures["cohen_kappa"].value is None
    assert figures["f1"][0].value == 1.0
    assert figures["f1"][0].low is None


def test_resampled_median_equals_resampling_by_hand():
    rng = np.random.default_rng(3)
    for n in (1, 2, 7, 200):
        values, subject = rng.integers(1, 30, n), rng.integers(0, 5, n)
        draws = metrics.bootstrap_subjects(5, 60, seed=n)
        found = metrics.resampled_median(values, subject, draws)
        for b, drawn in enumerate(draws):
            clips = np.concatenate([np.repeat(np.flatnonzero(subject == s), t) for s, t in enumerate(drawn)])
            assert found[b] == pytest.approx(np.median(values[clips]) if clips.size else np.nan, nan_ok=True)


THREADS = """
import numpy as np
import torch
from sleepfm_fast.evaluation.metrics import bootstrap_curves
torch.set_num_threads(1)
before = torch.get_num_threads()
bootstrap_curves(np.arange(40) % 2 == 0, np.arange(40.0), np.arange(40) % 4, np.ones((64, 4)))
print(before, torch.get_num_threads())
"""


def test_intervals_leave_torch_the_threads_that_it_was_given():
    """Numba's pool may be OpenMP's: it set torch to all processors for the rest of a process."""
    root = Path(__file__).resolve().parent.parent
    environment = {**os.environ, "PYTHONPATH": str(root), "NUMBA_NUM_THREADS": "3", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", THREADS], env=environment, cwd=root, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.split() == ["1", "1"], done.stderr


def test_an_interval_is_recomputed_as_documented():
    """By docs/evaluation.md alone: the draws, the figure of clips that count as often, percentiles by hand."""
    rng = np.random.default_rng(23)
    whose = np.array([17, 4, 30, 8, 11], np.int32)  # numbered with gaps, as in a result where others have no test clip
    subject = np.repeat(whose, [40, 15, 25, 30, 10])
    label = rng.integers(0, 5, subject.size).astype(np.int8)
    label[subject == 4] = 2  # resamples of this subject alone have no other class
    score = (rng.standard_normal((subject.size, 5)) + np.eye(5)[label]).astype(np.float32)
    found = evaluate(score, np.arange(5, dtype=np.int8), label, subject, TASKS["stage"], 400, 7, progress=False)

    draws = np.random.default_rng(7).multinomial(5, [1 / 5] * 5, size=400)
    areas, kappas = [], []
    for drawn in draws:
        clips = np.concatenate(
            [np.repeat(np.flatnonzero(subject == s), n) for s, n in zip(sorted(whose), drawn, strict=True)]
        )
        y, s = label[clips], score[clips]
        if len(set(y.tolist())) == 5:
            areas.append(np.mean([roc_auc_score(y == k, s[:, k]) for k in range(5)]))
        if len(set(y.tolist())) > 1:
            kappas.append(cohen_kappa_score(y, s.argmax(1)))

    def percentile(values, share):
        v = np.sort(values)
        below = int(share * (len(v) - 1))
        return v[below] + (share * (len(v) - 1) - below) * (v[min(below + 1, len(v) - 1)] - v[below])

    for interval, values in ((found["macro"]["auroc"], areas), (found["cohen_kappa"], kappas)):
        assert interval.n_resamples == len(values)
        assert interval.low == pytest.approx(percentile(values, 0.025), abs=1e-12)
        assert interval.high == pytest.approx(percentile(values, 0.975), abs=1e-12)
