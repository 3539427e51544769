"""Logistic regression with an L2 penalty and balanced class weights, on embeddings or features read from disk."""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from sleepfm_fast.cli.bars import progress_bar
from sleepfm_fast.cli.command import say
from sleepfm_fast.errors import SleepfmError
from sleepfm_fast.evaluation import imputation
from sleepfm_fast.plurals import counted

if TYPE_CHECKING:
    from sleepfm_fast.embeddings import Embeddings
    from sleepfm_fast.evaluation.imputation import Imputer
    from sleepfm_fast.results import Result

__all__ = ["BLOCK", "Features", "LogisticModel", "Solver", "arrays_of", "fit", "model_of"]

BLOCK = 16384  # clips whose features are in memory at a time when they are copied or scored
# Features larger than this are fitted block by block. scikit-learn wants them in memory at once.
LARGEST_IN_MEMORY = 4 * 2**30  # bytes
N_STRONGEST = 10

Solver = Literal["auto", "sklearn", "blocks"]


class Features:
    """Clips of an embeddings folder as a matrix [n, F] that is read block by block.

    For embeddings F is n_modalities x dim. For hand-made features it is the number of the modalities' features; a
    feature that could not be measured is NaN, unless an imputer fills and marks it.

    Attributes
    ----------
    shape : (int, int)
    imputer : Imputer or None
    centre, scale : float32 [F] or None
        A block is read as (x - centre) * scale where they are set; see :meth:`standardised`.
    """

    def __init__(
        self,
        embeddings: Embeddings,
        clips: npt.NDArray[np.int64],
        modalities: tuple[str, ...],
        imputer: Imputer | None = None,
    ) -> None:
        self.embeddings, self.clips, self.modalities = embeddings, clips, modalities
        self.imputer = imputer
        self.shape = (len(clips), embeddings.width(modalities) if imputer is None else imputer.width)
        self.centre: npt.NDArray[np.float32] | None = None
        self.scale: npt.NDArray[np.float32] | None = None
        self._n_checked = 0  # rows, counted from the first, whose vectors have been checked

    def __len__(self) -> int:
        """Return the number of clips."""
        return self.shape[0]

    @property
    def n_bytes(self) -> int:
        """Memory that the whole matrix would take as float64, in which scikit-learn reaches the minimum."""
        return self.shape[0] * self.shape[1] * 8

    def __getitem__(self, rows: slice) -> npt.NDArray[np.float32]:
        """Read a slice of rows as float32 [n, F]; every vector is checked the first time.

        Raises
        ------
        SleepfmError
            When a vector is damaged or holds a value that is not finite.
        """
        start, stop, _ = rows.indices(len(self))
        clips = self.clips[start:stop]
        if stop <= self._n_checked and self.embeddings.kind == "embedding":
            x = self.embeddings.copy(clips, self.modalities).reshape(len(clips), -1)
        else:
            x = self._checked(clips)
            if start <= self._n_checked:
                self._n_checked = stop
        if self.imputer is not None:
            x = self.imputer(x)
        if self.centre is not None and self.scale is not None:
            x -= self.centre
            x *= self.scale
        return x

    def _checked(self, clips: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        x = self.embeddings.matrix(clips, self.modalities)
        # NaN among features is a missing value and no damage.
        bad = np.isinf(x) if self.embeddings.kind == "feature" else ~np.isfinite(x)
        if bad.any():
            i, j = np.argwhere(bad)[0]
            raise SleepfmError(
                f"{self.embeddings.path}: feature {j} of clip {clips[i]} is {x[i, j]}; a classifier needs finite "
                "numbers. Make the folder again."
            )
        return x

    def standardise(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Set ``centre`` and ``scale`` to these clips' mean and 1 / standard deviation, and return both.

        A feature that does not vary gets scale 0, since it says nothing about the class.
        """
        n, mean, squares = 0, np.zeros(self.shape[1]), np.zeros(self.shape[1])
        for start in range(0, len(self), BLOCK):
            x = self[start : start + BLOCK].astype(np.float64)
            m = x.mean(0)
            # Chan et al.: the sum of squares about the joint mean is the sum of both parts' about their own means, plus
            # (difference of the means)^2 n1 n2 / (n1 + n2).
            squares += np.square(x - m).sum(0) + np.square(m - mean) * (n * len(x) / (n + len(x)))
            mean += (m - mean) * (len(x) / (n + len(x)))
            n += len(x)
        deviation = np.sqrt(squares / n)
        # Equal float32 values leave a deviation that is only rounding, far below a millionth of the mean.
        varies = deviation > 1e-6 * np.abs(mean)
        scale = np.where(varies, 1.0 / np.where(varies, deviation, 1.0), 0.0)
        self.centre, self.scale = mean.astype(np.float32), scale.astype(np.float32)
        return self.centre.astype(np.float64), self.scale.astype(np.float64)


@dataclass(frozen=True)
class LogisticModel:
    """A fitted classifier: logits = x @ coef.T + intercept.

    Attributes
    ----------
    classes : int8 [k]
        Class of each row of ``coef``, ascending.
    coef : float64 [k, F]
        One row per class; of two classes, the first row is zero.
    intercept : float64 [k]
    imputer : Imputer or None
        Fills the missing hand-made features of a row first; F then includes its marks.
    """

    classes: npt.NDArray[np.int8]
    coef: npt.NDArray[np.float64]
    intercept: npt.NDArray[np.float64]
    imputer: Imputer | None = None

    @property
    def n_features(self) -> int:
        """Number of values per clip that :meth:`logits` takes, without an imputer's marks."""
        return self.coef.shape[1] if self.imputer is None else len(self.imputer.fill)

    def logits(self, x: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """Return the logits [n, k] of rows [n, n_features], computed in float64."""
        filled = x if self.imputer is None else self.imputer(x)
        z: npt.NDArray[np.float64] = np.asarray(filled, np.float64) @ self.coef.T + self.intercept
        return z


def arrays_of(model: LogisticModel) -> dict[str, npt.NDArray[Any]]:
    """Return a model's arrays for a result folder: ``coef`` [k, F], ``intercept`` [k], and those of the imputer."""
    arrays: dict[str, npt.NDArray[Any]] = {"coef": model.coef, "intercept": model.intercept}
    if model.imputer is not None:
        arrays |= {"fill": model.imputer.fill, "marked": model.imputer.marked}
    return arrays


def model_of(result: Result) -> LogisticModel:
    """Read the fitted classifier of a result that probe wrote.

    Raises
    ------
    SleepfmError
        When the result is another command's, or older than the keeping of :func:`arrays_of`, or damaged.
    """
    if result.command != "probe":
        raise SleepfmError(
            f"{result.path} is a result of {result.command}; a probe's is expected (for supervise, use classify)."
        )
    if "coef" not in result.record["arrays"]:
        raise SleepfmError(
            f"{result.path} does not hold its classifier: it was written before results kept it. Run its probe again "
            "with --overwrite."
        )
    result.require("task", "modalities", "trained_classes")
    imputer = None
    if "fill" in result.record["arrays"]:
        imputer = imputation.Imputer(np.array(result.array("fill")), np.array(result.array("marked")))
    classes = np.asarray(result.record["trained_classes"], np.int8)
    coef, intercept = np.array(result.array("coef")), np.array(result.array("intercept"))
    fits = coef.shape[:1] == intercept.shape == classes.shape and coef.ndim == 2
    if imputer is not None:
        k = len(imputer.fill)
        fits = fits and bool(((imputer.marked >= 0) & (imputer.marked < k)).all()) and coef.shape[1] == imputer.width
    if not fits:
        raise SleepfmError(
            f"the classifier in {result.path} is damaged: its arrays do not fit each other. Run its probe again with "
            "--overwrite."
        )
    return LogisticModel(classes, coef, intercept, imputer)


def _fit_in_memory(features: Features, labels: npt.NDArray[np.int8], c: float, max_iter: int) -> tuple[Any, ...]:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    from sleepfm_fast.evaluation.block_logistic import GRADIENT_TOLERANCE

    try:
        x = np.empty(features.shape, np.float64)
    except MemoryError as error:
        raise SleepfmError(
            f"the training features need {features.n_bytes / 2**30:.1f} GiB of memory, which this machine does not "
            "give. Fit them block by block with --solver blocks, or bound them with --max-train-clips."
        ) from error
    for start in range(0, len(x), BLOCK):
        x[start : start + BLOCK] = features[start : start + BLOCK]
    model = LogisticRegression(C=c, class_weight="balanced", max_iter=max_iter, tol=GRADIENT_TOLERANCE)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(x, labels)
    converged = not any(issubclass(w.category, ConvergenceWarning) for w in caught)
    for w in caught:
        say(f"notice: scikit-learn: {str(w.message).splitlines()[0]}")
    coef, intercept = np.asarray(model.coef_, np.float64), np.asarray(model.intercept_, np.float64)
    if len(coef) == 1:
        coef, intercept = np.vstack([np.zeros_like(coef), coef]), np.concatenate([[0.0], intercept])
    return coef, intercept, int(np.max(model.n_iter_)), converged


def _fit_blocks(features: Features, labels: npt.NDArray[np.int8], c: float, max_iter: int) -> tuple[Any, ...]:
    from sleepfm_fast.evaluation.block_logistic import minimise

    classes, code = np.unique(labels, return_inverse=True)
    weight = len(labels) / (len(classes) * np.bincount(code))
    with progress_bar(desc="fit", unit="pass") as bar:

        def progress(_: int, loss: float) -> None:
            bar.set_postfix_str(f"loss {loss:.5f}", refresh=False)
            bar.update()

        return minimise(features, code.astype(np.int64), weight, c=c, max_iter=max_iter, progress=progress)


def fit(
    features: Features,
    labels: npt.NDArray[np.int8],
    *,
    c: float = 1.0,
    max_iter: int = 10000,
    solver: Solver = "auto",
    standardise: bool = False,
    quiet: bool = False,
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
        Largest number of iterations of L-BFGS.
    solver : {"auto", "sklearn", "blocks"}
        scikit-learn with the features in memory, or :mod:`sleepfm_fast.evaluation.block_logistic`, whose optimum is the
        same. "auto" chooses blocks for features of more than :data:`LARGEST_IN_MEMORY` bytes.
    standardise : bool
        Scale every feature to mean 0 and variance 1 over these clips; the model returned takes unscaled features.
        Hand-made features are always scaled; their missing values are filled with the median over these clips, and
        marked.
    quiet : bool
        Do not print what is fitted. A fit that did not converge is reported nevertheless.

    Returns
    -------
    model : LogisticModel
    about : dict
        ``solver``, ``c``, ``max_iter``, ``standardise``, ``n_iter``, ``converged``, ``fit_seconds``; for hand-made
        features also ``strongest``, the names and weights of :data:`N_STRONGEST` features by class code.
    """
    standardise = standardise or features.embeddings.kind == "feature"
    imputer = None
    if features.embeddings.kind == "feature":
        looked_at = imputation.sample(features.clips)
        imputer = imputation.Imputer.fit(features.embeddings.matrix(looked_at, features.modalities))
    chosen = ("sklearn" if features.n_bytes <= LARGEST_IN_MEMORY else "blocks") if solver == "auto" else solver
    where = f"{features.n_bytes / 2**20:,.1f} MiB in memory" if chosen == "sklearn" else "read block by block"
    if not quiet:
        say(
            f"fitting on {counted(len(features), 'clip')} x {counted(features.shape[1], 'feature')} ({where}), C = "
            f"{c:g}"
        )
    started = time.perf_counter()
    scaled = features
    if standardise:
        scaled = Features(features.embeddings, features.clips, features.modalities, imputer)
        centre, scale = scaled.standardise()
    how = _fit_in_memory if chosen == "sklearn" else _fit_blocks
    coef, intercept, n_iter, converged = how(scaled, labels, c, max_iter)
    classes = np.unique(labels).astype(np.int8)
    named = {} if imputer is None else {"strongest": strongest(features, imputer, classes, coef)}
    if standardise:
        coef = coef * scale
        intercept = intercept - coef @ centre
    if not converged:
        say(
            f"notice: L-BFGS stopped after {counted(n_iter, 'iteration')} before it converged; give more with "
            "--max-iter."
        )
    about = {
        "solver": chosen,
        "c": c,
        "max_iter": max_iter,
        "standardise": standardise,
        "n_iter": n_iter,
        "converged": converged,
        "fit_seconds": round(time.perf_counter() - started, 3),
        **named,
    }
    return LogisticModel(classes, coef, intercept, imputer), about


def strongest(
    features: Features, imputer: Imputer, classes: npt.NDArray[np.int8], coef: npt.NDArray[np.float64]
) -> dict[int, list[tuple[str, float]]]:
    """Return the names and weights of the features with the largest weights, for each class.

    A weight is the change of the class's logit by one standard deviation of the feature. Correlated features share
    their weight, so that a small weight does not mean that a feature is useless.
    """
    columns = [name for m in features.modalities for name in features.embeddings.features[m]]
    names = imputer.names(columns)
    order = np.argsort(-np.abs(coef), axis=1, kind="stable")[:, :N_STRONGEST]
    # Of two classes the first has no weights of its own.
    return {
        int(k): [(names[j], round(float(row[j]), 4)) for j in best]
        for k, row, best in zip(classes, coef, order, strict=True)
        if row.any()
    }
