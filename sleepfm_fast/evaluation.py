"""The figures of a classifier on held-out clips: per class against the rest, macro, intervals over subjects."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sleepfm_fast.command import say

if TYPE_CHECKING:
    from sleepfm_fast.metrics import Interval
    from sleepfm_fast.tasks import Task

__all__ = ["cell", "evaluate", "say_table"]


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
) -> dict[str, Any]:
    """Score a classifier on test clips; classes without a figure get null and a note.

    Parameters
    ----------
    scores : float [n, len(trained)]
        One column a class that the classifier knows, any increasing function of its probability. The predicted class is
        that of the largest.
    trained : int8 [k]
        Class of each column, ascending.
    labels : int8 [n]
        True class of every clip.
    subject : int32 [n]
        Whose clip it is; intervals are bootstrapped over subjects.
    task : Task
        Names the classes and says which of them are scored.
    bootstraps, seed : int
        Resamples of subjects, and what draws them.
    progress : bool
        Show a bar over the classes.

    Returns
    -------
    dict
        ``classes`` (name -> n_test, prevalence, auroc, auprc, f1, note), ``macro``, ``accuracy``, ``cohen_kappa``,
        ``confusion``; intervals as :class:`sleepfm_fast.metrics.Interval`.
    """
    from tqdm import tqdm

    from sleepfm_fast import metrics

    names, scored = task.names, task.scored
    subjects, group = np.unique(subject, return_inverse=True)
    n_subjects, n_clips = len(subjects), len(labels)
    draws = metrics.bootstrap_subjects(n_subjects, bootstraps, seed)
    # The first row is all test clips once: the point estimates come from the same sweep as the resamples.
    weights = np.vstack([np.ones((1, n_subjects), np.int32), draws])
    confusion = metrics.confusion_by_subject(labels, trained[scores.argmax(1)], group, len(names), n_subjects)
    figures = metrics.confusion_figures(confusion, draws)
    f1: Any = figures["f1"]
    classes: dict[str, Any] = {}
    curves: dict[str, list[npt.NDArray[np.float64]]] = {"auroc": [], "auprc": []}
    for k in tqdm(scored, desc="bootstrap", unit="class", file=sys.stderr, disable=not progress):
        positive = labels == k
        entry: dict[str, Any] = {"n_test": int(positive.sum()), "prevalence": float(positive.mean())}
        note = ""
        if k not in trained:
            note = "absent from the training clips, so it is never predicted"
        elif not positive.any():
            note = "absent from the test clips"
        elif positive.all():
            note = "the only class of the test clips"
        if note:
            entry |= {"auroc": metrics.NO_VALUE, "auprc": metrics.NO_VALUE, "note": note}
        else:
            both = metrics.bootstrap_curves(positive, scores[:, list(trained).index(k)], group, weights)
            for name, values in zip(("auroc", "auprc"), both, strict=True):
                entry[name] = metrics.percentile_interval(values[0], values[1:], n_subjects)
                curves[name].append(values)
        entry["f1"] = f1[k]
        classes[names[k]] = entry
    macro: dict[str, Any] = {"n_classes": len(curves["auroc"])}
    for name, rows in curves.items():
        # A resample that lacks one of the classes has no macro value: over other classes it would be another figure.
        mean = np.mean(rows, axis=0) if rows else np.full(1, np.nan)
        macro[name] = metrics.percentile_interval(mean[0], mean[1:], n_subjects)
    macro["f1"] = figures["macro_f1"] if len(scored) > 1 else f1[scored[0]]
    return {
        "classes": classes,
        "macro": macro,
        "accuracy": figures["accuracy"],
        "cohen_kappa": figures["cohen_kappa"],
        "confusion": {"rows_true_columns_predicted": names, "counts": confusion.sum(0), "n_clips": n_clips},
    }


def cell(interval: Interval) -> str:
    """Format a figure with its interval for a table, 21 characters wide."""
    if interval.value is None:
        return f"{'-':<21}"
    limits = "" if interval.low is None else f" [{interval.low:.3f}, {interval.high:.3f}]"
    return f"{f'{interval.value:.3f}{limits}':<21}"


def say_table(result: dict[str, Any]) -> None:
    """Print what :func:`evaluate` returned."""
    say(f"{'class':<7}{'clips':>8}{'prev.':>7}  {'AUROC [95 %]':<21}{'AUPRC [95 %]':<21}{'F1 [95 %]':<21}")
    for name, entry in result["classes"].items():
        figures = "".join(cell(entry[f]) for f in ("auroc", "auprc", "f1"))
        say(f"{name:<7}{entry['n_test']:>8}{entry['prevalence']:>7.3f}  {figures}{entry.get('note', '')}".rstrip())
    macro = result["macro"]
    say(f"{'macro':<22}  {''.join(cell(macro[f]) for f in ('auroc', 'auprc', 'f1'))}".rstrip())
    say(f"accuracy {cell(result['accuracy']).strip()}  Cohen's kappa {cell(result['cohen_kappa']).strip()}")
    names, counts = result["confusion"]["rows_true_columns_predicted"], result["confusion"]["counts"]
    say("true \\ predicted" + "".join(f"{n:>9}" for n in names))
    for name, row in zip(names, counts, strict=True):
        say(f"{name:<16}" + "".join(f"{int(n):>9}" for n in row))
