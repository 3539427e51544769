"""The test clips that two classifiers' results have in common, whatever their order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sleepfm_fast.errors import SleepfmError

if TYPE_CHECKING:
    from sleepfm_fast.results import Result

__all__ = ["SharedClips", "shared_clips"]


@dataclass(frozen=True)
class SharedClips:
    """Clips that both results have, by recording and onset.

    Attributes
    ----------
    rows : two int64 [n]
        Rows of each result's arrays.
    label : int8 [n]
    group : int64 [n]
        Number of the clip's subject, from 0 to ``n_subjects`` - 1.
    n_subjects : int
    n_only : (int, int)
        Clips that only one of the results has.
    """

    rows: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]
    label: npt.NDArray[np.int8]
    group: npt.NDArray[np.int64]
    n_subjects: int
    n_only: tuple[int, int]


def _keys(result: Result, recordings: dict[str, int]) -> npt.NDArray[np.int64]:
    """Return one number a clip: its recording, numbered alike for both results, and its onset in milliseconds."""
    of_recording = np.array([recordings.setdefault(name, len(recordings)) for name in result.record["recordings"]])
    onset_ms = np.round(np.asarray(result.array("onset_s")) * 1000).astype(np.int64)
    # 2^40 ms are 35 years.
    keys: npt.NDArray[np.int64] = of_recording[result.array("recording")].astype(np.int64) * 2**40 + onset_ms
    return keys


def shared_clips(first: Result, second: Result) -> SharedClips:
    """Match the clips of two results by the name of their recording and their onset.

    Raises
    ------
    SleepfmError
        When there is no shared clip, or when shared clips carry other labels or subjects.
    """
    recordings: dict[str, int] = {}
    keys = [_keys(result, recordings) for result in (first, second)]
    for result, values in zip((first, second), keys, strict=True):
        if len(np.unique(values)) < len(values):
            raise SleepfmError(f"the result {result.path} has two clips of one recording and onset; make it again.")
    _, *rows = np.intersect1d(keys[0], keys[1], assume_unique=True, return_indices=True)
    if not rows[0].size:
        raise SleepfmError(
            f"{first.path} and {second.path} share no test clip (matched by recording and onset). Compare results of "
            "one test set."
        )

    def of_both(name: str) -> tuple[Any, Any]:
        return np.asarray(first.array(name))[rows[0]], np.asarray(second.array(name))[rows[1]]

    label, other = of_both("label")
    if (label != other).any():
        raise SleepfmError(
            f"{int((label != other).sum())} of the {len(label)} clips that {first.path} and {second.path} share carry "
            "another label in each; compare results of one scoring."
        )
    subject, other = of_both("subject")
    names = [np.asarray(result.record["subjects"])[s] for result, s in ((first, subject), (second, other))]
    if (names[0] != names[1]).any():
        raise SleepfmError(f"{first.path} and {second.path} name the subjects of the shared recordings differently.")
    subjects, group = np.unique(subject, return_inverse=True)
    n_only = (len(keys[0]) - len(label), len(keys[1]) - len(label))
    return SharedClips((rows[0], rows[1]), label, group, len(subjects), n_only)
