"""ROC, precision-recall and calibration curves of one result, computed from its arrays."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["calibration", "precision_recall", "roc", "thin"]

Floats = npt.NDArray[np.float64]


def cumulated(positive: npt.NDArray[np.bool_], score: Floats) -> tuple[Floats, Floats]:
    """True and false positives at each distinct threshold, the highest first; equal scores fall together."""
    order = np.argsort(-score, kind="stable")
    y, s = positive[order], score[order]
    last = np.r_[s[1:] != s[:-1], True] if s.size else np.zeros(0, bool)
    return np.cumsum(y)[last].astype(np.float64), np.cumsum(~y)[last].astype(np.float64)


def roc(positive: npt.NDArray[np.bool_], score: Floats) -> tuple[Floats, Floats]:
    """False and true positive rate, from (0, 0) to (1, 1).

    Raises
    ------
    ValueError
        Where one of the two classes is absent.
    """
    if positive.all() or not positive.any():
        raise ValueError("a ROC curve needs both classes")
    tp, fp = cumulated(positive, score)
    return np.r_[0.0, fp / fp[-1]], np.r_[0.0, tp / tp[-1]]


def precision_recall(positive: npt.NDArray[np.bool_], score: Floats) -> tuple[Floats, Floats]:
    """Recall and precision at each threshold; the step function whose area is the average precision.

    Raises
    ------
    ValueError
        Where no clip is positive.
    """
    if not positive.any():
        raise ValueError("a precision-recall curve needs a positive clip")
    tp, fp = cumulated(positive, score)
    recall, precision = tp / tp[-1], tp / (tp + fp)
    # Average precision weighs the precision at a threshold with the recall gained there: a step before each point.
    x = np.repeat(np.r_[0.0, recall], 2)[1:-1]
    return x, np.repeat(precision, 2)


def thin(x: Floats, y: Floats, n: int = 500) -> tuple[Floats, Floats]:
    """Keep the first point of every run that stays in one cell of an n x n grid, and the last point of all."""
    if len(x) <= 2:
        return x, y
    cx, cy = np.floor(x * n), np.floor(y * n)
    keep = np.r_[True, (cx[1:] != cx[:-1]) | (cy[1:] != cy[:-1])]
    keep[-1] = True
    return x[keep], y[keep]


def calibration(
    positive: npt.NDArray[np.bool_], probability: Floats, n_bins: int = 10
) -> tuple[Floats, Floats, npt.NDArray[np.int64]]:
    """Mean predicted probability, observed share and number of clips of each occupied bin of equal width."""
    which = np.clip((probability * n_bins).astype(int), 0, n_bins - 1)
    size = np.bincount(which, minlength=n_bins)
    used = size > 0
    mean = np.bincount(which, weights=probability, minlength=n_bins)[used] / size[used]
    seen = np.bincount(which, weights=positive.astype(np.float64), minlength=n_bins)[used] / size[used]
    return mean, seen, size[used]
