"""The clips that two results have in common, whatever the order of their rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from sleepfm_fast.errors import SleepfmError
from sleepfm_fast.evaluation.changed_store import keys

if TYPE_CHECKING:
    from sleepfm_fast.results import Result

__all__ = ["SharedClips", "shared_clips"]


@dataclass(frozen=True)
class SharedClips:
    """The clips that both results have, matched by recording and onset.

    Attributes
    ----------
    rows : two int64 [n]
        Rows of each result's arrays.
    group : int64 [n]
        Number of the clip's subject, from 0 to ``n_subjects`` - 1.
    n_subjects : int
    n_only : (int, int)
        Number of clips that only the first, and only the second, result has.
    """

    rows: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]
    group: npt.NDArray[np.int64]
    n_subjects: int
    n_only: tuple[int, int]


def _keys(result: Result, recordings: dict[str, int]) -> npt.NDArray[np.int64]:
    """Return :func:`~sleepfm_fast.evaluation.changed_store.keys`, recordings being numbered alike for all results."""
    of_recording = np.array([recordings.setdefault(name, len(recordings)) for name in result.record["recordings"]])
    return keys(of_recording[result.array("recording")], np.asarray(result.array("onset_s")))


def shared_clips(first: Result, second: Result) -> SharedClips:
    """Match the clips of two results by the name of their recording and their onset.

    Parameters
    ----------
    first, second : Result
        With arrays ``recording``, ``onset_s`` and ``subject``, and the recordings' and subjects' names in the record.

    Raises
    ------
    SleepfmError
        When no clip is shared, when a result has a clip twice, or when shared clips have different subjects.
    """
    recordings: dict[str, int] = {}
    clips = [_keys(result, recordings) for result in (first, second)]
    for result, values in zip((first, second), clips, strict=True):
        if len(np.unique(values)) < len(values):
            raise SleepfmError(f"the result {result.path} has two clips of one recording and onset; make it again.")
    _, *rows = np.intersect1d(clips[0], clips[1], assume_unique=True, return_indices=True)
    if not rows[0].size:
        raise SleepfmError(
            f"{first.path} and {second.path} share no test clip (matched by recording and onset). Compare results of "
            "one test set."
        )
    subjects = [np.asarray(result.array("subject"))[r] for result, r in zip((first, second), rows, strict=True)]
    names = [np.asarray(r.record["subjects"])[s] for r, s in zip((first, second), subjects, strict=True)]
    if (names[0] != names[1]).any():
        raise SleepfmError(f"{first.path} and {second.path} name the subjects of the shared recordings differently.")
    known, group = np.unique(subjects[0], return_inverse=True)
    n_only = (len(clips[0]) - len(group), len(clips[1]) - len(group))
    return SharedClips((rows[0], rows[1]), group, len(known), n_only)
