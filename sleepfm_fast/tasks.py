"""What a classifier may be asked to tell of a clip: the classes, and every clip's label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

__all__ = ["AGE_EDGES", "TASKS", "Labelled", "Task", "age_groups", "labels_of", "sex_codes"]

AGE_EDGES = (18.0, 35.0, 50.0)  # years; the groups of Thapa et al. (2024): 0-18, 18-35, 35-50, 50+


@dataclass(frozen=True)
class Task:
    """One classification.

    Attributes
    ----------
    names : tuple of str
        Class names by code.
    scored : tuple of int
        The classes that get an AUROC and AUPRC. Of two complementary classes only one is scored.
    labels : str
        What the labels are, for messages.
    remedy : str
        Where they come from, for messages.
    """

    names: tuple[str, ...]
    scored: tuple[int, ...]
    labels: str
    remedy: str


SCORING = "Give the scoring to `python -m sleepfm_fast.preprocess ... --labels`"
PARTICIPANTS = "Give a table with the subjects' age and sex to `python -m sleepfm_fast.preprocess ... --participants`"

TASKS = {
    "stage": Task(("W", "N1", "N2", "N3", "R"), (0, 1, 2, 3, 4), "sleep stage", SCORING),
    "sdb": Task(("none", "event"), (1,), "scored respiratory events", SCORING),
    "age": Task(("0-18", "18-35", "35-50", "50+"), (0, 1, 2, 3), "the subject's age", PARTICIPANTS),
    "sex": Task(("M", "F"), (1,), "the subject's sex", PARTICIPANTS),
}


def age_groups(ages: Sequence[float | None]) -> npt.NDArray[np.int8]:
    """Every subject's age group from the age in years, -1 where it is not known; 18.0 years is in 18-35."""
    known = (-1 if age is None or np.isnan(age) else int(np.searchsorted(AGE_EDGES, age, "right")) for age in ages)
    return np.fromiter(known, np.int8, len(ages))


def sex_codes(sexes: Sequence[str | None]) -> npt.NDArray[np.int8]:
    """Every subject's sex as a class of the task, -1 where it is not known."""
    names = TASKS["sex"].names
    return np.fromiter((names.index(sex) if sex in names else -1 for sex in sexes), np.int8, len(sexes))


class Labelled(Protocol):
    """Columns that labels are read from: of an embeddings folder, or of a clip store."""

    stage: Any
    sdb: Any
    subject: Any
    description: Any
    """Has ``ages`` and ``sexes``, one entry a subject."""


def labels_of(clips_of: Labelled, task: str, clips: npt.NDArray[np.int64]) -> npt.NDArray[np.int8]:
    """Every clip's class, -1 where it is not known.

    Parameters
    ----------
    clips_of : Embeddings or StoreFacts
        Where the clips are; age and sex are facts of the subject and are the same for all clips of it.
    task : {"stage", "sdb", "age", "sex"}
        A key of :data:`TASKS`. Age groups are half-open: 18.0 years is in 18-35.
    clips : int64 [n]
        Rows of it.

    Returns
    -------
    int8 [n]
        Index into the task's names, or -1.
    """
    if task in ("stage", "sdb"):
        codes: npt.NDArray[np.int8] = np.asarray(clips_of.stage if task == "stage" else clips_of.sdb)[clips]
        return codes
    description = clips_of.description
    of_subject = age_groups(description.ages) if task == "age" else sex_codes(description.sexes)
    subject: npt.NDArray[np.int32] = np.asarray(clips_of.subject)[clips]
    return of_subject[subject]
