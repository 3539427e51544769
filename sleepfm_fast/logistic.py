"""Logistic regression with an L2 penalty on rows that stay on disk until they are needed."""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sleepfm_fast.command import say
from sleepfm_fast.errors import SleepfmError

if TYPE_CHECKING:
    from sleepfm_fast.embeddings import Embeddings

__all__ = ["BLOCK", "Features", "LogisticModel", "fit"]

BLOCK = 16384  # clips whose features are in memory at a time


class Features:
    """Clips of an embeddings folder as a matrix [n, n_modalities x dim] that is read block by block."""

    def __init__(self, embeddings: Embeddings, clips: npt.NDArray[np.int64], modalities: tuple[str, ...]) -> None:
        self.embeddings, self.clips, self.modalities = embeddings, clips, modalities
        self.shape = (len(clips), len(modalities) * embeddings.dim)

    def __len__(self) -> int:
        """Return the number of clips."""
        return self.shape[0]

    def __getitem__(self, rows: slice) -> npt.NDArray[np.float32]:
        """Read a slice of rows as float32 [n, F]."""
        clips = self.clips[rows]
        return self.embeddings.read(clips, self.modalities).reshape(len(clips), -1)


@dataclass(frozen=True)
class LogisticModel:
    """A fitted classifier: logits = x @ coef.T + intercept.

    Attributes
    ----------
    classes : int8 [k]
        Class of each row of ``coef``, ascending.
    coef : float64 [k, F]
        One row a class; of two classes, the first has zeros.
    intercept : float64 [k]
    """

    classes: npt.NDArray[np.int8]
    coef: npt.NDArray[np.float64]
    intercept: npt.NDArray[np.float64]

    def logits(self, x: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """Return the logits [n, k] of rows [n, F], computed in float64."""
        z: npt.NDArray[np.float64] = np.asarray(x, np.float64) @ self.coef.T + self.intercept
        return z


def _memory_of(features: Features) -> float:
    return features.shape[0] * features.shape[1] * 4 / 2**30


def fit(
    features: Features, labels: npt.NDArray[np.int8], *, c: float = 1.0, max_iter: int = 10000
) -> tuple[LogisticModel, dict[str, Any]]:
    """Fit with balanced class weights: clips of class k weigh n / (K n_k).

    Parameters
    ----------
    features : Features
    labels : int8 [n]
        At least two classes.
    c : float
        Inverse strength of the L2 penalty, scikit-learn's ``C``.
    max_iter : int
        Iterations of L-BFGS at most.

    Returns
    -------
    model : LogisticModel
    about : dict
        ``n_iter``, ``converged``, ``fit_seconds``.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    say(f"fitting on {len(features)} clips x {features.shape[1]} features ({_memory_of(features):.2f} GiB in memory)")
    started = time.perf_counter()
    try:
        x = np.empty(features.shape, np.float32)
    except MemoryError as error:
        raise SleepfmError(
            f"the training features need {_memory_of(features):.1f} GiB of memory, which this machine does not give. "
            "Bound them with --max-train-clips."
        ) from error
    for start in range(0, len(x), BLOCK):
        rows = slice(start, min(start + BLOCK, len(x)))
        x[rows] = features[rows]
    model = LogisticRegression(C=c, class_weight="balanced", max_iter=max_iter)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(x, labels)
    converged = not any(issubclass(w.category, ConvergenceWarning) for w in caught)
    for w in caught:
        say(f"notice: scikit-learn: {str(w.message).splitlines()[0]}")
    coef, intercept = np.asarray(model.coef_, np.float64), np.asarray(model.intercept_, np.float64)
    if len(coef) == 1:
        coef, intercept = np.vstack([np.zeros_like(coef), coef]), np.concatenate([[0.0], intercept])
    about = {
        "n_iter": int(np.max(model.n_iter_)),
        "converged": converged,
        "fit_seconds": round(time.perf_counter() - started, 3),
    }
    return LogisticModel(np.asarray(model.classes_, np.int8), coef, intercept), about
