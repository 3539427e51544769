"""A classifier's figures for parts of the test subjects: by age group and by sex, over clips and over nights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sleepfm_fast.cli.command import say
from sleepfm_fast.evaluation.figures import HEAD, cells, evaluate
from sleepfm_fast.evaluation.interval_notice import FEW_SUBJECTS, covered
from sleepfm_fast.evaluation.tasks import TASKS, age_groups_of, sex_codes
from sleepfm_fast.evaluation.whole_nights import by_night

if TYPE_CHECKING:
    from sleepfm_fast.evaluation.classification import HeldOut
    from sleepfm_fast.evaluation.tasks import Task

__all__ = ["by_stratum", "say_strata", "strata_notice"]

UNKNOWN = "unknown"


def by_stratum(
    held_out: HeldOut,
    score: npt.NDArray[np.floating[Any]],
    probability: npt.NDArray[np.floating[Any]],
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
    probability : float [n, k]
        That goes with ``score``.

    Returns
    -------
    dict
        ``{"age": {group: figures}, "sex": {...}}``, groups without test clips left out; figures are those of
        ``evaluate`` but the confusion matrix, with ``n_clips`` and ``n_subjects``. Of age and sex each also has
        ``nights``, those of :func:`sleepfm_fast.evaluation.whole_nights.by_night`: a night's clips are of one stratum.
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
            entry = {"n_clips": int(here.sum()), "n_subjects": len(np.unique(subject)), **figures}
            if task.of_person:
                whose = (held_out.label[here], subject, held_out.recording[here])
                entry["nights"] = by_night(probability[here], trained, *whose, task, bootstraps, seed)
                entry["nights"].pop("confusion")
            strata[fact][name] = entry
    return strata


def say_strata(strata: dict[str, dict[str, dict[str, Any]]]) -> None:
    """Print one line a stratum, over clips and of age and sex over nights."""
    entries = [(f"{fact} {name}", entry) for fact, groups in strata.items() for name, entry in groups.items()]
    _say_rows(entries, "clip")
    if nights := [(name, entry["nights"]) for name, entry in entries if "nights" in entry]:
        say("strata over nights:")
        _say_rows(nights, "night")


def strata_notice(strata: dict[str, dict[str, dict[str, Any]]]) -> str:
    """Return the sentence that belongs beside strata of few subjects among more; empty where there are none."""
    sizes = [entry["n_subjects"] for groups in strata.values() for entry in groups.values()]
    fewest = min((n for n in sizes if n > 1), default=FEW_SUBJECTS)
    total = max((sum(entry["n_subjects"] for entry in groups.values()) for groups in strata.values()), default=0)
    if fewest >= FEW_SUBJECTS or total < FEW_SUBJECTS:  # of few subjects in all it is said already
        return ""
    return (
        f"in strata of few subjects the intervals are too narrow: with {fewest}, for a mean, they contain the true "
        f"value about {100 * covered(fewest):.0f} times in 100, not 95."
    )


def _say_rows(entries: list[tuple[str, dict[str, Any]]], unit: str) -> None:
    say(f"{'stratum':<13}{'subjects':>9}{f'{unit}s':>9}  {HEAD}")
    for name, entry in entries:
        macro = entry["macro"]
        classes = f"AUROC, AUPRC over {macro['n_classes']} of {len(entry['classes'])} classes"
        note = "" if macro["n_classes"] == len(entry["classes"]) else classes
        say(f"{name:<13}{entry['n_subjects']:>9}{entry[f'n_{unit}s']:>9}  {cells(macro)}{note}".rstrip())
