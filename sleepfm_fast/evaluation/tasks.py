"""The tasks of classifiers: their classes, and the label of every clip."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

__all__ = ["TASKS", "Labelled", "Task", "age_groups_of", "labels_of", "sex_codes"]

AGE_EDGES = (18.0, 35.0, 50.0)  # years; the groups of Thapa et al. (2024): 0-18, 18-35, 35-50, 50+


@dataclass(frozen=True)
class Task:
    """What a classifier predicts of a clip.

    Attributes
    ----------
    names : tuple of str
        Class names by code.
    scored : tuple of int
        The classes that get an AUROC and an AUPRC; of two complementary classes only one.
    labels : str
        Noun for the labels in messages.
    remedy : str
        Sentence for messages that says how to supply the labels.
    of_person : bool
        Whether the class is that of a person, and so the same in all clips of a night.
    """

    names: tuple[str, ...]
    scored: tuple[int, ...]
    labels: str
    remedy: str
    of_person: bool = False


SCORING = "Give the scoring to `python -m sleepfm_fast.preprocess ... --labels`"
NO_EVENTS = "with `--events-scored` say that nights without an event were scored for them"
PARTICIPANTS = "Give a table with the subjects' age and sex to `python -m sleepfm_fast.preprocess ... --participants`"

TASKS = {
    "stage": Task(("W", "N1", "N2", "N3", "R"), (0, 1, 2, 3, 4), "sleep stage", SCORING),
    "sdb": Task(("none", "event"), (1,), "scored respiratory events", f"{SCORING}, or {NO_EVENTS}"),
    "age": Task(("0-18", "18-35", "35-50", "50+"), (0, 1, 2, 3), "the subject's age", PARTICIPANTS, of_person=True),
    "sex": Task(("M", "F"), (1,), "the subject's sex", PARTICIPANTS, of_person=True),
}


def age_groups(ages: Sequence[float | None]) -> npt.NDArray[np.int8]:
    """Return the age group of every age in years, -1 where it is not known; 18.0 years is in 18-35."""
    known = (-1 if age is None or np.isnan(age) else int(np.searchsorted(AGE_EDGES, age, "right")) for age in ages)
    return np.fromiter(known, np.int8, len(ages))


def sex_codes(sexes: Sequence[str | None]) -> npt.NDArray[np.int8]:
    """Return every subject's sex as a class of the task ``sex``, -1 where it is not known."""
    names = TASKS["sex"].names
    return np.fromiter((names.index(sex) if sex in names else -1 for sex in sexes), np.int8, len(sexes))


class Labelled(Protocol):
    """The columns that labels are read from, of an embeddings folder or of a clip store."""

    stage: Any
    sdb: Any
    subject: Any
    recording: Any
    description: Any
    """Has ``ages`` and ``sexes``, with an entry per subject, and ``recording_ages``, with one per recording or none."""


def labels_of(clips_of: Labelled, task: str, clips: npt.NDArray[np.int64]) -> npt.NDArray[np.int8]:
    """Return every clip's class, -1 where it is not known.

    Parameters
    ----------
    clips_of : Embeddings or StoreFacts
        Holds the clips. Sex is taken from the subject, and age from the recording where recordings have ages, else from
        the subject.
    task : {"stage", "sdb", "age", "sex"}
        A key of :data:`TASKS`. Age groups are half-open: 18.0 years is in 18-35.
    clips : int64 [n]
        Rows of ``clips_of``.

    Returns
    -------
    int8 [n]
        Index into the task's names, or -1.
    """
    if task in ("stage", "sdb"):
        codes: npt.NDArray[np.int8] = np.asarray(clips_of.stage if task == "stage" else clips_of.sdb)[clips]
        return codes
    description = clips_of.description
    subject: npt.NDArray[np.int32] = np.asarray(clips_of.subject)[clips]
    if task == "age":
        recording = np.asarray(clips_of.recording)[clips]
        return age_groups_of(description.ages, description.recording_ages, subject, recording)
    return sex_codes(description.sexes)[subject]


def age_groups_of(
    ages: Sequence[float | None],
    recording_ages: Sequence[float | None],
    subject: npt.NDArray[np.integer[Any]],
    recording: npt.NDArray[np.integer[Any]],
) -> npt.NDArray[np.int8]:
    """Return every clip's age group, by its recording's age, or by its subject's if none are kept; -1 if unknown."""
    groups: npt.NDArray[np.int8] = (
        age_groups(recording_ages)[recording] if recording_ages else age_groups(ages)[subject]
    )
    return groups
