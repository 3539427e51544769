"""Summary of a few-shot curve: mean and 95 % interval over the replicates at every number of subjects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sleepfm_fast.cli.command import say
from sleepfm_fast.evaluation.figures import FIGURES, HEAD, cell

__all__ = ["mean_interval", "say_curve", "summarise"]


def mean_interval(values: Sequence[float | None]) -> dict[str, Any]:
    """Return the mean of replicates and its 95 % interval by Student's t, cut at 0 and 1.

    Student's t assumes independent replicates, but these are draws of k from the same N training subjects. As k
    approaches N they share most of their subjects, and the interval shrinks towards zero without the figure becoming
    more certain. It shows the spread of draws within this cohort, which is close to that between cohorts only where k
    is small.

    Parameters
    ----------
    values : sequence of float or None
        A figure for each replicate; None, where a replicate has none, is left out, and ``n`` counts the others.

    Returns
    -------
    dict
        ``mean``, ``low``, ``high`` and ``n``; the limits are None for fewer than two values.
    """
    known = np.array([v for v in values if v is not None], np.float64)
    if not known.size:
        return {"mean": None, "low": None, "high": None, "n": 0}
    mean = float(known.mean())
    if known.size == 1:
        return {"mean": mean, "low": None, "high": None, "n": 1}
    from scipy.stats import t

    half = float(t.ppf(0.975, known.size - 1) * known.std(ddof=1) / np.sqrt(known.size))
    return {"mean": mean, "low": max(mean - half, 0.0), "high": min(mean + half, 1.0), "n": int(known.size)}


def summarise(curve: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Average the replicates of every number of subjects.

    Parameters
    ----------
    curve : sequence of dict
        Points with ``subjects``, ``n_clips``, ``macro``, ``macro_absent_at_chance`` and ``classes``; for age and sex
        also ``nights``, which has the last three over nights.

    Returns
    -------
    list of dict
        One for each number of subjects, ascending, with the :func:`mean_interval` of every figure.
    """
    rows = []
    for n in sorted({point["subjects"] for point in curve}):
        here = [point for point in curve if point["subjects"] == n]
        nights = [point["nights"] for point in here if "nights" in point]
        rows.append(
            {
                "subjects": n,
                "n_replicates": len(here),
                "mean_clips": float(np.mean([p["n_clips"] for p in here])),
                **_averaged(here),
                **({"nights": _averaged(nights)} if nights else {}),
            }
        )
    return rows


def _averaged(points: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Average every figure of some replicates."""
    return {
        **{
            kind: {f: mean_interval([p[kind][f] for p in points]) for f in FIGURES}
            for kind in ("macro", "macro_absent_at_chance")
        },
        "classes": {
            name: {f: mean_interval([p["classes"][name][f] for p in points]) for f in FIGURES}
            for name in points[0]["classes"]
        },
    }


def say_curve(rows: Sequence[dict[str, Any]]) -> None:
    """Print a line per number of subjects, over clips and, for age and sex, over nights; absent classes at chance."""
    _say_rows([(row, row) for row in rows])
    if nights := [(row, row["nights"]) for row in rows if "nights" in row]:
        say("over nights, each by the mean probability of its clips:")
        _say_rows(nights)
    say(
        "means over the classes of the test clips, where a class that a draw lacks counts at chance; intervals over "
        "draws of subjects"
    )


def _say_rows(rows: Sequence[tuple[dict[str, Any], dict[str, Any]]]) -> None:
    say(f"{'subjects':>8}{'draws':>7}{'clips':>9}  {HEAD}")
    for row, figures in rows:
        means = (figures["macro_absent_at_chance"][f] for f in FIGURES)
        cells = "".join(cell(m["mean"], m["low"], m["high"]) for m in means)
        say(f"{row['subjects']:>8}{row['n_replicates']:>7}{row['mean_clips']:>9.0f}  {cells}".rstrip())
