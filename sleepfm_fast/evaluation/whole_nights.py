"""Age and sex told of whole nights: a night is one case, judged by the mean probability of its clips.

Age and sex are facts of a person, and every clip of a night carries the same label. Figures over clips, the paper's,
ask what 30 s tell. These ask what a recording tells. The night is the case, not the subject: age is the age at a
recording, so two visits of a subject can be of two groups, and one recording is what a later user of the classifier
has. That nights of a subject resemble each other is left to the intervals, which are over subjects.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sleepfm_fast.cli.command import say
from sleepfm_fast.evaluation.figures import evaluate, say_table
from sleepfm_fast.plurals import counted

if TYPE_CHECKING:
    from sleepfm_fast.evaluation.tasks import Task

__all__ = ["Nights", "by_night", "nights_of", "say_nights"]


@dataclass(frozen=True)
class Nights:
    """The nights of some clips, ascending by recording.

    Attributes
    ----------
    probability : float64 [n, k]
        Mean over each night's clips.
    label : int8 [n]
    subject : int [n]
        As the clips' subjects are numbered.
    """

    probability: npt.NDArray[np.float64]
    label: npt.NDArray[np.int8]
    subject: npt.NDArray[Any]


def nights_of(
    probability: npt.NDArray[Any],
    label: npt.NDArray[np.int8],
    subject: npt.NDArray[Any],
    recording: npt.NDArray[Any],
) -> Nights:
    """Gather clips by their recording.

    Parameters
    ----------
    probability : float [n, k]
    label, subject, recording : int [n]
        Of each clip; the same label and subject in all clips of a recording.
    """
    _, first, night = np.unique(recording, return_index=True, return_inverse=True)
    n_clips = np.bincount(night)
    p = np.asarray(probability, np.float64)
    mean = np.stack([np.bincount(night, column) / n_clips for column in p.T], axis=1)
    return Nights(mean, label[first], subject[first])


def by_night(
    probability: npt.NDArray[Any],
    trained: npt.NDArray[np.int8],
    label: npt.NDArray[np.int8],
    subject: npt.NDArray[np.int32],
    recording: npt.NDArray[np.int32],
    task: Task,
    bootstraps: int,
    seed: int,
) -> dict[str, Any]:
    """Evaluate the test nights of a task whose classes are those of a person.

    Parameters
    ----------
    probability : float [n, k]
        Of every test clip, a column a class of ``trained``.
    trained, label, subject, task, bootstraps, seed
        As for :func:`sleepfm_fast.evaluation.figures.evaluate`; the same subjects are drawn as for clips.
    recording : int32 [n]
        Whose night each clip is of.

    Returns
    -------
    dict
        The figures of ``evaluate``, of nights, with ``n_nights`` and ``n_subjects``.
    """
    nights = nights_of(probability, label, subject, recording)
    figures = evaluate(
        nights.probability, trained, nights.label, nights.subject, task, bootstraps, seed, progress=False, unit="night"
    )
    return {"n_nights": len(nights.label), "n_subjects": len(np.unique(nights.subject)), **figures}


def say_nights(figures: dict[str, Any]) -> None:
    """Print what :func:`by_night` returned."""
    nights, subjects = counted(figures["n_nights"], "night"), counted(figures["n_subjects"], "subject")
    say(f"over nights, each by the mean probability of its clips ({nights} of {subjects}):")
    say_table(figures, unit="night")
