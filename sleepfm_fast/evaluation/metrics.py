"""AUROC, AUPRC and confusion figures, with intervals bootstrapped over subjects.

Clips of one night are not independent, so a resample draws subjects with replacement, and a clip's weight is the number
of times its subject was drawn. Scores are sorted once for all resamples; a sweep over the sorted clips then computes
16 resamples at a time, each with its own weights.

Definitions follow scikit-learn, ties included. With weights w, at the distinct thresholds t_1 > t_2 > ...,
TP_i = sum w [y = 1, s >= t_i] and FP_i likewise:

- AUROC = sum_i (FP_i - FP_{i-1}) (TP_i + TP_{i-1}) / 2 / (TP FP)   (``roc_auc_score``)
- AUPRC = sum_i (TP_i - TP_{i-1}) / TP * TP_i / (TP_i + FP_i)       (``average_precision_score``)
"""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
import numpy.typing as npt

from sleepfm_fast.execution.compiled import compiled
from sleepfm_fast.execution.threads import start_numba_threads

__all__ = [
    "NO_VALUE",
    "Interval",
    "auprc",
    "auroc",
    "bootstrap_curves",
    "bootstrap_subjects",
    "confusion_by_subject",
    "confusion_curves",
    "percentile_interval",
    "resampled_median",
    "resampled_ratio",
]

# Resamples per sweep: 16 float64 counts are two cache lines, and fill two AVX-512 or four AVX2 registers.
LANES = 16


@compiled(parallel=True)
def _sweep(
    group: npt.NDArray[np.int32],
    positive: npt.NDArray[np.bool_],
    last_of_tie: npt.NDArray[np.bool_],
    weights: npt.NDArray[np.float64],
    auroc_out: npt.NDArray[np.float64],
    auprc_out: npt.NDArray[np.float64],
) -> None:
    n_blocks, _, lanes = weights.shape
    for block in numba.prange(n_blocks):
        tp, fp = np.zeros(lanes), np.zeros(lanes)
        tp_before, fp_before = np.zeros(lanes), np.zeros(lanes)
        area, precision_sum = np.zeros(lanes), np.zeros(lanes)
        has_positive = False
        has_negative = False
        for i in range(group.size):
            w = weights[block, group[i]]
            if positive[i]:
                has_positive = True
                for j in range(lanes):
                    tp[j] += w[j]
            else:
                has_negative = True
                for j in range(lanes):
                    fp[j] += w[j]
            if last_of_tie[i]:
                if has_negative:
                    for j in range(lanes):
                        area[j] += (fp[j] - fp_before[j]) * (tp[j] + tp_before[j])
                        fp_before[j] = fp[j]
                if has_positive:
                    for j in range(lanes):
                        # Where both counts are still 0 the increment is 0 as well; 1e-300 only avoids 0 / 0.
                        precision_sum[j] += (tp[j] - tp_before[j]) * (tp[j] / max(tp[j] + fp[j], 1e-300))
                        tp_before[j] = tp[j]
                has_positive = False
                has_negative = False
        for j in range(lanes):
            both = tp[j] > 0 and fp[j] > 0
            auroc_out[block, j] = 0.5 * area[j] / (tp[j] * fp[j]) if both else np.nan
            auprc_out[block, j] = precision_sum[j] / tp[j] if tp[j] > 0 else np.nan


def bootstrap_curves(
    positive: npt.ArrayLike, score: npt.ArrayLike, group: npt.ArrayLike, weights: npt.ArrayLike
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Compute AUROC and AUPRC under many weightings of groups of clips, from one sort.

    Parameters
    ----------
    positive : bool [N]
    score : float [N]
        Higher means more likely positive.
    group : int [N]
        The group (subject) of each clip, an index into the columns of ``weights``.
    weights : float [B, G]
        Non-negative weight of each group in each resample.

    Returns
    -------
    auroc, auprc : float64 [B]
        NaN where a resample has no positive clip (AUROC: or no negative one).

    Raises
    ------
    ValueError
        For shapes that do not match, scores that are NaN, or groups out of range.
    """
    y, s, g = np.asarray(positive, bool), np.asarray(score, np.float64), np.asarray(group)
    w = np.asarray(weights, np.float64)
    if not (y.ndim == s.ndim == g.ndim == 1 and y.size == s.size == g.size and w.ndim == 2):
        raise ValueError(
            f"positive {y.shape}, score {s.shape} and group {g.shape} need one length, weights {w.shape} two axes"
        )
    if np.isnan(s).any():
        raise ValueError("a score is NaN")
    if g.size and not (g.min() >= 0 and g.max() < w.shape[1]):
        raise ValueError(f"groups run from {g.min()} to {g.max()}; weights have {w.shape[1]} groups")
    if not (w >= 0).all():
        raise ValueError("a weight is negative or NaN")
    order = np.argsort(-s, kind="stable")
    s = s[order]
    last_of_tie = np.ones(s.size, bool)
    last_of_tie[:-1] = s[1:] != s[:-1]
    n = len(w)
    lanes = min(LANES, max(n, 1))
    blocks = -(-n // lanes)
    laned = np.zeros((blocks * lanes, w.shape[1]))
    laned[:n] = w
    laned = np.ascontiguousarray(laned.reshape(blocks, lanes, w.shape[1]).transpose(0, 2, 1))
    area, precision = np.empty((blocks, lanes)), np.empty((blocks, lanes))
    start_numba_threads()
    _sweep(g[order].astype(np.int32), y[order], last_of_tie, laned, area, precision)
    return area.ravel()[:n], precision.ravel()[:n]


def _one(positive: npt.ArrayLike, score: npt.ArrayLike, weight: npt.ArrayLike | None, which: int) -> float:
    n = np.size(np.asarray(positive))
    if weight is None:
        group, weights = np.zeros(n, np.int32), np.ones((1, 1))
    else:
        group, weights = np.arange(n, dtype=np.int32), np.asarray(weight, np.float64)[None]
    return float(bootstrap_curves(positive, score, group, weights)[which][0])


def auroc(positive: npt.ArrayLike, score: npt.ArrayLike, weight: npt.ArrayLike | None = None) -> float:
    """Compute the area under the receiver operating characteristic; ties count half.

    Parameters
    ----------
    positive : bool [N]
    score : float [N]
    weight : float [N], optional

    Returns
    -------
    float
        NaN without a positive or without a negative clip.
    """
    return _one(positive, score, weight, 0)


def auprc(positive: npt.ArrayLike, score: npt.ArrayLike, weight: npt.ArrayLike | None = None) -> float:
    """Compute the area under the precision-recall curve as average precision, without interpolation.

    Parameters
    ----------
    positive : bool [N]
    score : float [N]
    weight : float [N], optional

    Returns
    -------
    float
        NaN without a positive clip.
    """
    return _one(positive, score, weight, 1)


def bootstrap_subjects(n_subjects: int, n_bootstraps: int, seed: int) -> npt.NDArray[np.int32]:
    """Draw how often each subject occurs in each resample of ``n_subjects`` with replacement.

    Returns
    -------
    int32 [n_bootstraps, n_subjects]
        Rows sum to ``n_subjects``; the same seed gives the same draws.
    """
    probabilities = np.full(n_subjects, 1.0 / n_subjects)
    return np.random.default_rng(seed).multinomial(n_subjects, probabilities, size=n_bootstraps).astype(np.int32)


def _ratio(top: npt.NDArray[np.float64], bottom: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Divide where the denominator is positive; NaN elsewhere."""
    out = np.full(np.shape(bottom), np.nan)
    np.divide(top, bottom, out=out, where=np.asarray(bottom) > 0)
    return out


@dataclass(frozen=True)
class Interval:
    """A point estimate with its 95 % interval; each is None where it does not exist.

    ``n_resamples`` counts the resamples that the interval rests on: those that lack a class have no value and are left
    out.
    """

    value: float | None
    low: float | None
    high: float | None
    n_resamples: int


NO_VALUE = Interval(None, None, None, 0)


def percentile_interval(
    value: float, resampled: npt.ArrayLike, n_subjects: int, *, may_agree: bool = False
) -> Interval:
    """Summarise resampled values by their 2.5 and 97.5 percentiles.

    Parameters
    ----------
    value : float
        The point estimate on all clips; NaN becomes None.
    resampled : float [B]
        The same figure in each resample; NaN is left out.
    n_subjects : int
        With fewer than two subjects there is no variation to measure: the limits are None.
    may_agree : bool
        Give limits also where all resamples agree. This is right for figures on which they may agree although subjects
        differ, such as a median of ranks, or the difference of two classifiers that predict the same.

    Notes
    -----
    Otherwise, where all resamples agree, no variation was seen and the limits are None too. That all of three subjects
    are classified correctly does not show that everybody would be; and of two subjects with one class each, only
    resamples that draw both have a value, which is always the same.
    """
    values = np.asarray(resampled, np.float64)
    values = values[np.isfinite(values)]
    if not np.isfinite(value):
        return NO_VALUE
    if n_subjects < 2 or values.size < 2:
        return Interval(float(value), None, None, 0 if n_subjects < 2 else int(values.size))
    agree = np.ptp(values) <= 1e-12 * max(1.0, abs(float(values[0])))
    if agree and not (may_agree and values.size == np.size(resampled)):
        return Interval(float(value), None, None, int(values.size))
    low, high = np.percentile(values, [2.5, 97.5])
    return Interval(float(value), float(low), float(high), int(values.size))


def resampled_ratio(
    numerator: npt.ArrayLike, denominator: npt.ArrayLike, draws: npt.NDArray[np.int32]
) -> npt.NDArray[np.float64]:
    """Return sum(numerator) / sum(denominator) over the subjects of each resample, such as a mean over clips.

    Parameters
    ----------
    numerator, denominator : float [S]
        Each subject's sum and count over its clips.
    draws : int32 [B, S]
        From :func:`bootstrap_subjects`.

    Returns
    -------
    float64 [B]
        NaN where the drawn subjects have no clip.
    """
    drawn = draws.astype(np.float64)
    top, bottom = drawn @ np.asarray(numerator, np.float64), drawn @ np.asarray(denominator, np.float64)
    return _ratio(top, bottom)


def resampled_median(
    values: npt.ArrayLike, subject: npt.NDArray[np.int64], draws: npt.NDArray[np.int32]
) -> npt.NDArray[np.float64]:
    """Return the median over clips in each resample of subjects, from one sort.

    Parameters
    ----------
    values : float [N]
        The value of each clip.
    subject : int [N]
        Column of ``draws`` of each clip's subject.
    draws : int32 [B, S]
        From :func:`bootstrap_subjects`.

    Returns
    -------
    float64 [B]
        The mean of the two middle values where their number is even; NaN where the drawn subjects have no clip.
    """
    v = np.asarray(values, np.float64)
    order = np.argsort(v, kind="stable")
    v, g = v[order], np.asarray(subject)[order]
    out = np.full(len(draws), np.nan)
    for b, drawn in enumerate(draws):
        # upto[i]: weight of the clips 0 to i in sorted order, each counted as often as its subject was drawn.
        upto = np.cumsum(drawn[g], dtype=np.int64)
        if v.size and upto[-1]:
            middle = np.searchsorted(upto, [(upto[-1] - 1) // 2, upto[-1] // 2], side="right")
            out[b] = v[middle].mean()
    return out


def confusion_by_subject(
    truth: npt.ArrayLike, predicted: npt.ArrayLike, subject: npt.ArrayLike, n_classes: int, n_subjects: int
) -> npt.NDArray[np.int64]:
    """Count clips by subject, true class (rows) and predicted class (columns): int64 [S, K, K]."""
    flat = (np.asarray(subject, np.int64) * n_classes + np.asarray(truth, np.int64)) * n_classes
    counts = np.bincount(flat + np.asarray(predicted, np.int64), minlength=n_subjects * n_classes**2)
    return counts.reshape(n_subjects, n_classes, n_classes)


def _f1(confusion: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    both = confusion.sum(-1) + confusion.sum(-2)
    hits = np.diagonal(confusion, axis1=-2, axis2=-1)
    return _ratio(2 * hits, both)


def _accuracy(confusion: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    total = confusion.sum((-2, -1))
    hits = np.trace(confusion, axis1=-2, axis2=-1)
    return _ratio(hits, total)


def _kappa(confusion: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    # Cohen's kappa = (p_o - p_e) / (1 - p_e), p_e from the margins; both terms are multiplied by total^2.
    total = confusion.sum((-2, -1))
    expected = (confusion.sum(-1) * confusion.sum(-2)).sum(-1)
    hits = np.trace(confusion, axis1=-2, axis2=-1)
    below = total**2 - expected
    return _ratio(total * hits - expected, below)


def confusion_curves(
    confusion: npt.NDArray[np.int64], weights: npt.NDArray[np.int32]
) -> dict[str, npt.NDArray[np.float64]]:
    """Compute the F1 of each class and their mean, accuracy and Cohen's kappa under many weightings of subjects.

    Parameters
    ----------
    confusion : int64 [S, K, K]
        From :func:`confusion_by_subject`.
    weights : int [B, S]

    Returns
    -------
    dict
        ``f1`` [B, K]; ``macro_f1`` (the mean over the classes that occur as truth), ``accuracy`` and ``cohen_kappa``
        [B]. In a resample whose truth lacks a class, the F1 of that class is NaN, as its AUROC is, and so is the macro
        F1 if the class occurs in other resamples.
    """
    weighted = np.tensordot(np.asarray(weights, np.float64), confusion.astype(np.float64), axes=1)
    present = confusion.sum((0, 2)) > 0
    f1 = np.where(weighted.sum(-1) == 0, np.nan, _f1(weighted))
    f1[:, ~present] = np.nan
    macro = f1[:, present].mean(1) if present.any() else np.full(len(f1), np.nan)
    return {"f1": f1, "macro_f1": macro, "accuracy": _accuracy(weighted), "cohen_kappa": _kappa(weighted)}
