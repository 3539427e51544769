"""The figures of a classifier on held-out clips: each class against the rest and their means, with intervals."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sleepfm_fast.cli.bars import progress_bar
from sleepfm_fast.cli.command import say

if TYPE_CHECKING:
    from sleepfm_fast.evaluation.metrics import Interval
    from sleepfm_fast.evaluation.tasks import Task

__all__ = [
    "FIGURES", "HEAD", "Resampled", "cell", "cells", "evaluate", "macro_of", "mean_with_chance", "resample",
    "say_table",
]  # fmt: skip

FIGURES = ("auroc", "auprc", "f1")
HEAD = f"{'AUROC [95 %]':<21}{'AUPRC [95 %]':<21}{'F1 [95 %]':<21}"
"""The table's heading over the columns that :func:`cells` writes."""


@dataclass(frozen=True)
class Resampled:
    """Every figure of a classifier: entry 0 is on all test clips, the other B are in the resamples of subjects.

    Attributes
    ----------
    auroc, auprc : dict of int to float64 [1 + B]
        By class; classes that cannot be scored are missing.
    f1 : float64 [1 + B, K]
    macro_f1, accuracy, cohen_kappa : float64 [1 + B]
    confusion : int64 [K, K]
    notes : dict of int to str
        Why a class is missing.
    n_subjects : int64 [K, 2]
        Number of subjects with a clip of each class, and of those with a clip of any other class.
    """

    auroc: dict[int, npt.NDArray[np.float64]]
    auprc: dict[int, npt.NDArray[np.float64]]
    f1: npt.NDArray[np.float64]
    macro_f1: npt.NDArray[np.float64]
    accuracy: npt.NDArray[np.float64]
    cohen_kappa: npt.NDArray[np.float64]
    confusion: npt.NDArray[np.int64]
    notes: dict[int, str]
    n_subjects: npt.NDArray[np.int64]

    def behind(self, classes: Iterable[int]) -> int:
        """Return how many subjects an interval of these classes, or of their mean, rests on.

        It is the smaller number of those who have the class and those who have another. An interval of one person's
        clips against those of 30 others tells how the 30 vary, and nothing about the one. Where nobody has another
        class, it is the number of those who have this one.
        """
        sides = [side for k in classes for side in self.n_subjects[k].tolist() if side]
        return min(sides, default=0)


def resample(
    scores: npt.NDArray[np.floating[Any]],
    trained: npt.NDArray[np.int8],
    labels: npt.NDArray[np.int8],
    group: npt.NDArray[np.int64],
    draws: npt.NDArray[np.int32],
    task: Task,
    *,
    progress: bool = True,
    unit: str = "clip",
) -> Resampled:
    """Compute every figure under every resample of subjects.

    Parameters
    ----------
    scores, trained, labels, task, progress, unit
        As for :func:`evaluate`.
    group : int64 [n]
        Column of ``draws`` of each clip's subject.
    draws : int32 [B, S]
        From :func:`sleepfm_fast.evaluation.metrics.bootstrap_subjects`.
    """
    from sleepfm_fast.evaluation import metrics

    n_subjects = draws.shape[1]
    # The first row is all test clips once: the point estimates come from the same sweep as the resamples.
    weights = np.vstack([np.ones((1, n_subjects), np.int32), draws])
    confusion = metrics.confusion_by_subject(labels, trained[scores.argmax(1)], group, len(task.names), n_subjects)
    auroc, auprc, notes = {}, {}, {}
    for k in progress_bar(task.scored, desc="bootstrap", unit="class", disable=not progress):
        positive = labels == k
        if k not in trained:
            notes[k] = "absent from the training clips, so it is never predicted"
        elif not positive.any():
            notes[k] = f"absent from the test {unit}s"
        elif positive.all():
            notes[k] = f"the only class of the test {unit}s"
        else:
            score = scores[:, list(trained).index(k)]
            auroc[k], auprc[k] = metrics.bootstrap_curves(positive, score, group, weights)
            # Where every drawn clip is of the class, precision is 1 whatever the scores: no figure, as for AUROC.
            auprc[k][np.isnan(auroc[k])] = np.nan
    has = confusion.sum(2) > 0
    any_other = confusion.sum((1, 2))[:, None] > confusion.sum(2)
    return Resampled(
        auroc,
        auprc,
        **metrics.confusion_curves(confusion, weights),
        confusion=confusion.sum(0),
        notes=notes,
        n_subjects=np.stack([has.sum(0), any_other.sum(0)], axis=1),
    )


def macro_of(
    of_class: Mapping[int, npt.NDArray[np.float64]], n_resamples: int, classes: Iterable[int] | None = None
) -> npt.NDArray[np.float64]:
    """Average a figure over classes, on all clips and in each resample: float64 [1 + n_resamples].

    A resample that lacks one of the classes has no macro value (NaN): a mean over fewer classes is another figure.
    """
    rows = [of_class[k] for k in (of_class if classes is None else classes)]
    mean: npt.NDArray[np.float64] = np.mean(rows, axis=0) if rows else np.full(1 + n_resamples, np.nan)
    return mean


def mean_with_chance(figure: str, classes: Iterable[tuple[float, float | None]]) -> float | None:
    """Average over the classes that the test clips have; one without a figure, never trained, is at chance.

    Parameters
    ----------
    figure : {"auroc", "auprc"}
        Chance is 0.5 or the prevalence.
    classes : iterable of (float, float or None)
        Prevalence and figure of each class.
    """
    values = [
        (0.5 if figure == "auroc" else prevalence) if value is None else value
        for prevalence, value in classes
        if 0 < prevalence < 1
    ]
    return float(np.mean(values)) if values else None


def evaluate(
    scores: npt.NDArray[np.floating[Any]],
    trained: npt.NDArray[np.int8],
    labels: npt.NDArray[np.int8],
    subject: npt.NDArray[np.int32],
    task: Task,
    bootstraps: int,
    seed: int,
    *,
    progress: bool = True,
    unit: str = "clip",
) -> dict[str, Any]:
    """Score a classifier on test clips; classes without a figure get null and a note.

    Parameters
    ----------
    scores : float [n, len(trained)]
        A column for each class that the classifier knows, with any increasing function of its probability that is the
        same for all. The class with the largest score is predicted.
    trained : int8 [k]
        Class of each column, ascending.
    labels : int8 [n]
        True class of every clip.
    subject : int32 [n]
        The subject of every clip; intervals are bootstrapped over subjects.
    task : Task
        Names the classes and says which of them are scored.
    bootstraps, seed : int
        Number of resamples of subjects, and the seed of their draw.
    progress : bool
        Show a bar over the classes.
    unit : str
        What messages and keys call a row: ``clip`` or ``night``.

    Returns
    -------
    dict
        ``classes`` (name -> n_test, n_subjects, n_subjects_of_others, prevalence, auroc, auprc, f1, note), ``macro``,
        ``accuracy``, ``cohen_kappa``, ``confusion``; figures are
        :class:`sleepfm_fast.evaluation.metrics.Interval`. A class has no limits, and neither has a mean over it, if
        only one subject has it or only one has another.
    """
    from sleepfm_fast.evaluation import metrics

    subjects, group = np.unique(subject, return_inverse=True)
    draws = metrics.bootstrap_subjects(len(subjects), bootstraps, seed)
    found = resample(scores, trained, labels, group, draws, task, progress=progress, unit=unit)

    def interval(values: npt.NDArray[np.float64], of: Iterable[int] | None = None) -> Interval:
        n = len(subjects) if of is None else found.behind(of)
        return metrics.percentile_interval(float(values[0]), values[1:], n)

    classes: dict[str, Any] = {}
    present = np.flatnonzero(found.n_subjects[:, 0]).tolist()
    for k in task.scored:
        positive = labels == k
        of, others = found.n_subjects[k].tolist()
        entry: dict[str, Any] = {"n_test": int(positive.sum()), "n_subjects": of, "n_subjects_of_others": others}
        entry["prevalence"] = float(positive.mean())
        if k in found.notes:
            entry |= {"auroc": metrics.NO_VALUE, "auprc": metrics.NO_VALUE, "note": found.notes[k]}
        else:
            entry |= {"auroc": interval(found.auroc[k], [k]), "auprc": interval(found.auprc[k], [k])}
        entry["f1"] = interval(found.f1[:, k], [k])
        classes[task.names[k]] = entry
    return {
        "classes": classes,
        "macro": {
            "n_classes": len(found.auroc),
            "auroc": interval(macro_of(found.auroc, bootstraps), found.auroc),
            "auprc": interval(macro_of(found.auprc, bootstraps), found.auprc),
            "f1": interval(found.macro_f1, present)
            if len(task.scored) > 1
            else interval(found.f1[:, task.scored[0]], task.scored),
        },
        "accuracy": interval(found.accuracy),
        "cohen_kappa": interval(found.cohen_kappa),
        "confusion": {
            "rows_true_columns_predicted": task.names,
            "counts": found.confusion,
            f"n_{unit}s": len(labels),
        },
    }


def cell(value: float | None, low: float | None, high: float | None) -> str:
    """Format a figure with its interval for a table, 21 characters wide."""
    if value is None:
        return f"{'-':<21}"
    limits = "" if low is None else f" [{low:.3f}, {high:.3f}]"
    return f"{f'{value:.3f}{limits}':<21}"


def cells(entry: Mapping[str, Interval]) -> str:
    """Format the figures of a class, or their means."""
    return "".join(cell(entry[f].value, entry[f].low, entry[f].high) for f in FIGURES)


def say_table(result: dict[str, Any], unit: str = "clip") -> None:
    """Print what :func:`evaluate` returned."""
    say(f"{'class':<7}{f'{unit}s':>8}{'subjects':>10}{'prev.':>7}  {HEAD}")
    for name, entry in result["classes"].items():
        sizes = f"{entry['n_test']:>8}{entry['n_subjects']:>10}{entry['prevalence']:>7.3f}"
        say(f"{name:<7}{sizes}  {cells(entry)}{entry.get('note', '')}".rstrip())
    macro, known = result["macro"], len(result["classes"])
    note = "" if macro["n_classes"] == known else f"AUROC, AUPRC over {macro['n_classes']} of {known} classes"
    say(f"{'macro':<32}  {cells(macro)}{note}".rstrip())
    accuracy, kappa = (cell(f.value, f.low, f.high).strip() for f in (result["accuracy"], result["cohen_kappa"]))
    say(f"accuracy {accuracy}  Cohen's kappa {kappa}")
    names, counts = result["confusion"]["rows_true_columns_predicted"], result["confusion"]["counts"]
    say("true \\ predicted" + "".join(f"{n:>9}" for n in names))
    for name, row in zip(names, counts, strict=True):
        say(f"{name:<16}" + "".join(f"{int(n):>9}" for n in row))
