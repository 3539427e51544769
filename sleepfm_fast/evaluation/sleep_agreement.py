"""How far predicted sleep figures lie from the scorer's, over nights: bias and limits of agreement.

As Bland and Altman (Lancet 1986; 327: 307-310) define them: of the differences d, predicted minus scored, the bias is
their mean, and the limits are mean(d) - 1.96 SD(d) and mean(d) + 1.96 SD(d), between which 95 % of the nights lie where
differences are normally distributed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sleepfm_fast.cli.command import say
from sleepfm_fast.evaluation.interval_notice import interval_notice
from sleepfm_fast.evaluation.metrics import bootstrap_subjects, percentile_interval
from sleepfm_fast.plurals import counted
from sleepfm_fast.scoring.sleep_figures import SLEEP_COLUMNS

__all__ = ["AGREEMENT_COLUMNS", "say_agreement", "sleep_agreement"]

WIDTH = 1.96
"""Standard deviations on either side of the mean between which 95 % of a normal distribution lie."""
N_BOOTSTRAPS, SEED = 1000, 0
ESTIMATES = ("bias", "lower_limit", "upper_limit")
AGREEMENT_COLUMNS = (
    *("figure", "nights", "subjects", "scored_mean", "predicted_mean", "sd"),
    *(f"{name}{end}" for name in ESTIMATES for end in ("", "_lo", "_hi")),
)
SAID = SLEEP_COLUMNS[:5]


def sleep_agreement(nights: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Compare the sleep figures of nights that the classifier was not fitted on.

    Parameters
    ----------
    nights : iterable of mapping
        Rows of :func:`sleepfm_fast.evaluation.predicted_nights.night_row` for the task ``stage``. Those whose ``split``
        is train or validation are left out, and those with scored epochs that have no prediction, as their predicted
        minutes are too few.

    Returns
    -------
    list of dict
        :data:`AGREEMENT_COLUMNS` of each figure that two nights or more have from both. ``_lo`` and ``_hi`` are the 95
        % interval over resamples of subjects, None where there is none. A subject's nights count one by one.
    """
    tested = [
        night
        for night in nights
        if night["split"] in ("", "test") and night["epochs_compared"] == night["scored_epochs"]
    ]
    found = []
    for name in SLEEP_COLUMNS:
        pairs = [
            (night[f"{name}_within_scored"], night[f"scored_{name}"], night["subject"])
            for night in tested
            if night[f"{name}_within_scored"] is not None and night[f"scored_{name}"] is not None
        ]
        if len(pairs) >= 2:
            predicted, scored = (np.array([pair[side] for pair in pairs], np.float64) for side in (0, 1))
            found.append({"figure": name, **compared(predicted, scored, [pair[2] for pair in pairs])})
    return found


def compared(
    predicted: npt.NDArray[np.float64], scored: npt.NDArray[np.float64], subjects: Sequence[str]
) -> dict[str, Any]:
    """Return the row of one figure of two nights or more."""
    names, group = np.unique(subjects, return_inverse=True)
    difference = predicted - scored
    bias = float(difference.mean())
    # Sums of each subject; around the bias, so that the variance is no small difference of large numbers.
    sums = [np.bincount(group, weights=(difference - bias) ** power, minlength=names.size) for power in (0, 1, 2)]
    draws = bootstrap_subjects(names.size, N_BOOTSTRAPS, SEED)
    once = np.ones((1, names.size), np.int32)
    n, total, squares = (np.vstack([once, draws]) @ of_subject for of_subject in sums)
    mean = total / n
    variance = np.full(n.shape, np.nan)
    np.divide(squares - total * mean, n - 1, out=variance, where=n > 1)
    sd = np.sqrt(variance.clip(0))
    row: dict[str, Any] = {
        "nights": difference.size,
        "subjects": int(names.size),
        "scored_mean": float(scored.mean()),
        "predicted_mean": float(predicted.mean()),
        "sd": float(sd[0]),
    }
    for name, values in zip(ESTIMATES, (mean, mean - WIDTH * sd, mean + WIDTH * sd), strict=True):
        found = percentile_interval(bias + float(values[0]), bias + values[1:], int(names.size))
        row |= {name: found.value, f"{name}_lo": found.low, f"{name}_hi": found.high}
    return row


def say_agreement(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print the figures that describe a night as a whole."""
    if not rows:
        return
    n_subjects = max(row["subjects"] for row in rows)
    nights = counted(max(row["nights"] for row in rows), "night")
    say(f"sleep figures, predicted minus scored, of {nights} of {counted(n_subjects, 'subject')}:")
    for row in rows:
        if row["figure"] in SAID:
            interval = "" if row["bias_lo"] is None else f" ({row['bias_lo']:.1f} to {row['bias_hi']:.1f})"
            limits = f"{row['lower_limit']:.1f} to {row['upper_limit']:.1f}"
            say(f"  {row['figure']:<27}bias {row['bias']:.1f}{interval}, limits of agreement {limits}")
    if notice := interval_notice(n_subjects):
        say(f"notice: {notice}")
