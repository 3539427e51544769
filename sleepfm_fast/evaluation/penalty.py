"""Choice of a logistic regression's penalty from a grid, on the validation subjects, with every score recorded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sleepfm_fast.cli.bars import progress_bar
from sleepfm_fast.cli.command import say
from sleepfm_fast.errors import SleepfmError
from sleepfm_fast.evaluation.classification import log_odds
from sleepfm_fast.evaluation.figures import evaluate
from sleepfm_fast.evaluation.tasks import TASKS
from sleepfm_fast.plurals import counted

if TYPE_CHECKING:
    from sleepfm_fast.evaluation.labelled_clips import LabelledClips
    from sleepfm_fast.evaluation.logistic import Features, LogisticModel

__all__ = ["Choice", "choose_c", "scores"]

CRITERION = "macro AUROC on the validation subjects"


def scores(features: Features, model: LogisticModel, *, progress: bool = True) -> npt.NDArray[np.float64]:
    """Return the log-odds [n, k] of every class for every clip; features are read block by block."""
    from sleepfm_fast.evaluation import logistic

    starts = range(0, len(features), logistic.BLOCK)
    return np.concatenate(
        [
            log_odds(model.logits(features[start : start + logistic.BLOCK]))
            for start in progress_bar(starts, desc="scores", unit="block", disable=not progress)
        ]
    )


@dataclass(frozen=True)
class Choice:
    """The best C of a grid, and what was tried.

    Attributes
    ----------
    c : float
        Inverse strength of the penalty.
    model : LogisticModel
        The classifier fitted with it on the training subjects.
    about : dict
        Facts of that fit; see :func:`sleepfm_fast.evaluation.logistic.fit`.
    tried : tuple of dict
        In the order of the grid: ``c``, ``auroc``, ``auprc``, ``f1`` (macro, on the validation clips), ``log_loss``
        (their mean, in nats), ``n_iter``, ``converged``.
    """

    c: float
    model: LogisticModel
    about: dict[str, Any]
    tried: tuple[dict[str, Any], ...]


def choose_c(
    grid: tuple[float, ...],
    task: str,
    validation: LabelledClips,
    validation_features: Features,
    fit_with: Callable[[float], tuple[LogisticModel, dict[str, Any]]],
) -> Choice:
    """Fit with every C of a grid and keep the one with the highest macro AUROC on the validation subjects.

    Parameters
    ----------
    grid : tuple of float
    task : str
        A key of :data:`sleepfm_fast.evaluation.tasks.TASKS`.
    validation : LabelledClips
    validation_features : Features
        The features of the same clips.
    fit_with : callable
        Takes a C and fits the training clips with it.

    Returns
    -------
    Choice
        With equal scores, the smallest C, which is the strongest penalty.

    Raises
    ------
    SleepfmError
        When no class can be scored on the validation clips.
    """
    tried: list[dict[str, Any]] = []
    best: tuple[float, LogisticModel, dict[str, Any]] | None = None
    best_score = -np.inf
    for c in sorted(set(grid)):
        model, about = fit_with(c)
        odds = scores(validation_features, model, progress=False)
        figures = evaluate(
            odds, model.classes, validation.labels, validation.subject, TASKS[task], 0, 0, progress=False
        )
        macro = figures["macro"]
        known = np.isin(validation.labels, model.classes)
        own = odds[known, np.searchsorted(model.classes, validation.labels[known])]
        tried.append(
            {
                "c": c,
                **{name: macro[name].value for name in ("auroc", "auprc", "f1")},
                # -log p = log(1 + exp(-odds)).
                "log_loss": float(np.logaddexp(0.0, -own).mean()) if known.any() else None,
                "n_iter": about["n_iter"],
                "converged": about["converged"],
            }
        )
        score = macro["auroc"].value
        if score is None:
            present = ", ".join(TASKS[task].names[k] for k in np.unique(validation.labels))
            raise SleepfmError(
                f"the validation clips have only the class {present}, so no C can be scored on them. Leave out "
                "--choose-c and give --c, or embed a store with more subjects."
            )
        say(f"C = {c:g}: macro AUROC {score:.4f} on {counted(len(validation), 'validation clip')}")
        if score > best_score:
            best, best_score = (c, model, about), score
    assert best is not None
    c, model, about = best
    if len(tried) > 1 and c in (tried[0]["c"], tried[-1]["c"]):
        say(f"notice: the best C, {c:g}, is at the end of the grid; a wider --c-grid may find a better one.")
    return Choice(c, model, about, tuple(tried))
