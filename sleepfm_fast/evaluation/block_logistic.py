"""Logistic regression over rows that do not fit in memory: L-BFGS on an objective that is summed block by block.

The objective is scikit-learn's, so the optimum is too. With weights s_i, S = sum s_i, and W the coefficients without
the intercepts b,

    f(W, b) = 1/S sum_i s_i loss(y_i, W x_i + b) + |W|^2 / (2 C S),

where loss is the cross-entropy of the softmax, or of two classes log(1 + exp(z)) - y z with one row of coefficients.
Start, scaling and stopping rule are scikit-learn's as well, but for a tighter tolerance. Products with a block are
computed in the rows' own type; sums over blocks are float64, where scikit-learn sums in the rows' type.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from sleepfm_fast.ranks import Rows

__all__ = ["GRADIENT_TOLERANCE", "minimise"]

# Rows of a block: 128 x 1,536 float32 are 768 KB, which the second product of a pass finds in the second cache. With
# 1,024 rows a fit took 1.8 times as long, and OpenBLAS's threads, which it has for them, were slower than one.
BLOCK = 128
# scikit-learn's stopping rule: the largest gradient entry, and the relative decrease of the objective. At its default
# of 1e-4 macro F1 was up to 0.007 from the minimum's, and depended on the number of BLAS threads.
GRADIENT_TOLERANCE, DECREASE_TOLERANCE = 1e-5, 64 * np.finfo(np.float64).eps

Gradient = npt.NDArray[np.float64]


def _softmax_terms(
    z: npt.NDArray[np.float64], code: npt.NDArray[np.int64], weight: npt.NDArray[np.float64]
) -> tuple[float, npt.NDArray[np.float64]]:
    """Return the weighted cross-entropy of the softmax of logits ``z`` [m, K], summed, and its derivative by z."""
    rows = np.arange(len(z))
    z = z - z.max(1, keepdims=True)
    own = z[rows, code]
    p = np.exp(z)
    total = p.sum(1)
    p /= total[:, None]
    p[rows, code] -= 1.0
    return float(weight @ (np.log(total) - own)), p * weight[:, None]


def _logistic_terms(
    z: npt.NDArray[np.float64], code: npt.NDArray[np.int64], weight: npt.NDArray[np.float64]
) -> tuple[float, npt.NDArray[np.float64]]:
    """Return the weighted logistic loss of logits ``z`` [m, 1] for two classes, summed, and its derivative by z."""
    z = z[:, 0]
    small = np.exp(-np.abs(z))
    loss = np.maximum(z, 0.0) + np.log1p(small) - code * z
    p = np.where(z >= 0, 1.0, small) / (1.0 + small)
    return float(weight @ loss), ((p - code) * weight)[:, None]


def minimise(
    rows: Rows,
    code: npt.NDArray[np.int64],
    class_weight: npt.NDArray[np.float64],
    *,
    c: float,
    max_iter: int,
    gradient_tolerance: float = GRADIENT_TOLERANCE,
    progress: Callable[[int, float], object] | None = None,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], int, bool]:
    """Minimise the objective by L-BFGS, in the memory of a block of rows, ten pairs of gradients, a few numbers a row.

    Parameters
    ----------
    rows : float [n, F]
        An array or :class:`sleepfm_fast.ranks.Rows`. It is read once in each pass, an evaluation of f and its gradient.
    code : int64 [n]
        Class of each row, 0 to K - 1.
    class_weight : float64 [K]
        Weight of the rows of each class.
    c : float
        Inverse strength of the penalty.
    max_iter : int
        Iterations at most.
    gradient_tolerance : float
        Stop when no entry of the gradient is larger.
    progress : callable, optional
        Called after every pass with the number of passes and f.

    Returns
    -------
    coef : float64 [K, F]
        With two classes the first row is zero.
    intercept : float64 [K]
    n_iter : int
    converged : bool
        Whether a tolerance was met.
    """
    from scipy.optimize import minimize

    n, n_features = rows.shape
    n_classes = len(class_weight)
    n_rows_of_w = 1 if n_classes == 2 else n_classes
    terms = _logistic_terms if n_classes == 2 else _softmax_terms
    total_weight = float(class_weight @ np.bincount(code, minlength=n_classes))
    penalty = 1.0 / (c * total_weight)
    passes = 0

    def objective(flat: Gradient) -> tuple[float, Gradient]:
        nonlocal passes
        w = flat.reshape(n_rows_of_w, n_features + 1)
        coef, intercept = w[:, :-1], w[:, -1]
        loss, gradient = 0.0, np.zeros_like(w)
        for start in range(0, n, BLOCK):
            block = slice(start, min(start + BLOCK, n))
            x = rows[block]
            z = (x @ coef.T.astype(x.dtype)).astype(np.float64) + intercept
            block_loss, slope = terms(z, code[block], class_weight[code[block]])
            loss += block_loss
            gradient[:, :-1] += slope.T.astype(x.dtype) @ x
            gradient[:, -1] += slope.sum(0)
        gradient /= total_weight
        gradient[:, :-1] += penalty * coef
        value = loss / total_weight + 0.5 * penalty * float(np.square(coef).sum())
        passes += 1
        if progress is not None:
            progress(passes, value)
        return value, gradient.ravel()

    found = minimize(
        objective,
        np.zeros(n_rows_of_w * (n_features + 1)),
        method="L-BFGS-B",
        jac=True,
        options={"maxiter": max_iter, "maxls": 50, "gtol": gradient_tolerance, "ftol": DECREASE_TOLERANCE},
    )
    w = np.asarray(found.x, np.float64).reshape(n_rows_of_w, n_features + 1)
    if n_classes == 2:
        w = np.vstack([np.zeros_like(w), w])
    return w[:, :-1], w[:, -1], int(found.nit), found.status == 0
