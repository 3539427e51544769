"""A classifier's figures for parts of the test subjects: by age group and by sex."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sleepfm_fast.cli.command import say
from sleepfm_fast.evaluation.figures import cell, evaluate
from sleepfm_fast.evaluation.tasks import TASKS, age_groups_of, sex_codes

if TYPE_CHECKING:
    from sleepfm_fast.evaluation.classification import HeldOut
    from sleepfm_fast.evaluation.tasks import Task

__all__ = ["by_stratum", "say_strata"]

UNKNOWN = "unknown"


def by_stratum(
    held_out: HeldOut,
    score: npt.NDArray[np.floating[Any]],
    trained: npt.NDArray[np.int8],
    task: Task,
    bootstraps: int,
    seed: int,
) -> dict[str, dict[str, dict[str, Any]]]:
    """Evaluate the test clips of every age group and of either sex on their own.

    Subjects whose age (or sex) is not known are a stratum of their own, ``"unknown"``. The decision of the classifier
    is the same in every stratum; only who is counted differs. A class that a stratum lacks has null figures and a note,
    and the macro figures are over the ``n_classes`` that have one.

    Parameters
    ----------
    held_out : HeldOut
    score, trained, task, bootstraps, seed
        As for :func:`sleepfm_fast.evaluation.figures.evaluate`; resamples draw among the stratum's subjects.

    Returns
    -------
    dict
        ``{"age": {group: figures}, "sex": {...}}``, groups without test clips left out; figures are those of
        ``evaluate`` but the confusion matrix, with ``n_clips`` and ``n_subjects``.
    """
    strata: dict[str, dict[str, dict[str, Any]]] = {}
    ages = age_groups_of(held_out.ages, held_out.recording_ages, held_out.subject, held_out.recording)
    for fact, of_clip in (("age", ages), ("sex", sex_codes(held_out.sexes)[held_out.subject])):
        strata[fact] = {}
        for code, name in (*enumerate(TASKS[fact].names), (-1, UNKNOWN)):
            here = of_clip == code
            if not here.any():
                continue
            subject = held_out.subject[here]
            figures = evaluate(
                score[here], trained, held_out.label[here], subject, task, bootstraps, seed, progress=False
            )
            figures.pop("confusion")
            strata[fact][name] = {"n_clips": int(here.sum()), "n_subjects": len(np.unique(subject)), **figures}
    return strata


def say_strata(strata: dict[str, dict[str, dict[str, Any]]]) -> None:
    """Print one line a stratum."""
    say(f"{'stratum':<13}{'subjects':>9}{'clips':>9}  {'AUROC [95 %]':<21}{'AUPRC [95 %]':<21}{'F1 [95 %]':<21}")
    for fact, groups in strata.items():
        for name, entry in groups.items():
            macro = entry["macro"]
            figures = "".join(cell(macro[f]) for f in ("auroc", "auprc", "f1"))
            classes = f"AUROC, AUPRC over {macro['n_classes']} of {len(entry['classes'])} classes"
            note = "" if macro["n_classes"] == len(entry["classes"]) else classes
            label = f"{fact} {name}"
            say(f"{label:<13}{entry['n_subjects']:>9}{entry['n_clips']:>9}  {figures}{note}".rstrip())
