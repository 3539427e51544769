"""Age and sex predicted for whole nights: a night is one case, judged by the mean probability of its clips.

Age and sex are facts of a person, so that all clips of a night have the same label. Figures over clips, as in the
paper, tell how much 30 s reveal; these figures tell how much a recording reveals. The case is the night and not the
subject, because age is that at the recording, so that two visits of a subject can be in different groups, and because a
later user of the classifier has one recording. The intervals, which are over subjects, account for the likeness of a
subject's nights.
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
        Numbered as the clips' subjects are.
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
        One per clip; all clips of a recording have the same label and subject.
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
        A row per test clip, and a column for each class of ``trained``.
    trained, label, subject, task, bootstraps, seed
        As for :func:`sleepfm_fast.evaluation.figures.evaluate`; the same subjects are drawn as for clips.
    recording : int32 [n]
        The recording of each clip.

    Returns
    -------
    dict
        The figures of ``evaluate``, over nights, with ``n_nights`` and ``n_subjects``.
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
