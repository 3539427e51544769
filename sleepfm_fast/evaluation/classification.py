"""The last step of every classifier, linear or deep: score its test clips, print the figures, write a result folder.

The folder's arrays have one row per test clip: ``clip`` (int64; the row in the embeddings folder and the clip store),
``label`` (int8), ``subject`` and ``recording`` (int32; indices into the record's ``subjects`` and ``recordings``),
``onset_s`` (float64), ``score`` and ``probability`` (float32 [n, k], one column for each class of
``trained_classes``). Every figure of the record is computed from these arrays as they are written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sleepfm_fast.cli.command import plain, say
from sleepfm_fast.evaluation.calibration import calibration, say_calibration
from sleepfm_fast.evaluation.figures import evaluate, say_table
from sleepfm_fast.evaluation.interval_notice import class_notice, interval_notice
from sleepfm_fast.evaluation.strata import by_stratum, say_strata, strata_notice
from sleepfm_fast.evaluation.subject_splits import splits_of
from sleepfm_fast.evaluation.tasks import TASKS
from sleepfm_fast.evaluation.whole_nights import by_night, say_nights
from sleepfm_fast.results import write_result

if TYPE_CHECKING:
    from sleepfm_fast.embeddings import Embeddings

__all__ = ["HeldOut", "conclude", "log_odds", "probability_of"]


@dataclass(frozen=True)
class HeldOut:
    """The test clips of a classifier, with their subjects and recordings.

    Attributes
    ----------
    clip : int64 [n]
        Row of each clip in its store (and so in its embeddings folder).
    label : int8 [n]
        True class.
    subject, recording : int32 [n]
        Index into ``subjects`` and ``recordings``.
    onset_s : float64 [n]
        Start of the clip in its recording, seconds.
    subjects, recordings : tuple of str
        Names; some of them may have no test clip.
    ages, sexes : tuple
        Age in years, and "M" or "F", of each of ``subjects``; None where not known.
    recording_ages : tuple
        The subject's age in years at each of ``recordings``; empty where that is not kept.
    splits : tuple of str
        What each of ``subjects`` served for, by :func:`sleepfm_fast.evaluation.subject_splits.splits_of`; empty where
        that is not kept.
    """

    clip: npt.NDArray[np.int64]
    label: npt.NDArray[np.int8]
    subject: npt.NDArray[np.int32]
    recording: npt.NDArray[np.int32]
    onset_s: npt.NDArray[np.float64]
    subjects: tuple[str, ...]
    recordings: tuple[str, ...]
    ages: tuple[float | None, ...]
    sexes: tuple[str | None, ...]
    recording_ages: tuple[float | None, ...] = ()
    splits: tuple[str, ...] = ()

    @classmethod
    def of(cls, embeddings: Embeddings, clips: npt.NDArray[np.int64], labels: npt.NDArray[np.int8]) -> HeldOut:
        """Take the test clips ``clips``, rows of an embeddings folder, with their true classes."""
        about = embeddings.description
        return cls(
            clips,
            labels,
            np.asarray(embeddings.subject[clips]),
            np.asarray(embeddings.recording[clips]),
            np.asarray(embeddings.onset_s[clips]),
            about.subjects,
            about.recordings,
            about.ages,
            about.sexes,
            about.recording_ages,
            splits_of(embeddings),
        )


def log_odds(logits: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return log p_k / (1 - p_k) of the softmax of some logits.

    It orders clips as the probability p_k does, without the ties that arise where p_k rounds to 0 or 1.

    Parameters
    ----------
    logits : float [n, k]
        k >= 2.

    Returns
    -------
    float64 [n, k]
    """
    z = np.asarray(logits, np.float64)
    out = np.empty_like(z)
    for k in range(z.shape[1]):
        rest = np.delete(z, k, axis=1)
        highest = rest.max(1)
        out[:, k] = z[:, k] - highest - np.log(np.exp(rest - highest[:, None]).sum(1))
    return out


def probability_of(odds: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return the probabilities of some :func:`log_odds`: p = 1 / (1 + exp(-odds)), without overflow."""
    small = np.exp(-np.abs(np.asarray(odds, np.float64)))
    p: npt.NDArray[np.float64] = np.where(odds >= 0, 1.0, small) / (1.0 + small)
    return p


def conclude(
    record: Mapping[str, Any],
    held_out: HeldOut,
    odds: npt.NDArray[Any],
    trained: npt.NDArray[np.int8],
    *,
    bootstraps: int,
    seed: int,
    prior: npt.NDArray[np.float64] | None = None,
    path: Path | None = None,
    overwrite: bool = False,
    made_of: Mapping[str, Any] | None = None,
    classifier: Mapping[str, npt.NDArray[Any]] | None = None,
) -> dict[str, Any]:
    """Score a classifier on its test clips, print the table and write the result folder.

    Parameters
    ----------
    record : mapping
        What the command says of itself: ``"command"``, ``"task"`` (a key of
        :data:`sleepfm_fast.evaluation.tasks.TASKS`) and anything else; the figures are added to it.
    held_out : HeldOut
    odds : float [n, k]
        The :func:`log_odds` of every test clip for each class that the classifier knows.
    trained : int8 [k]
        Class of each column, ascending.
    bootstraps, seed : int
        Number of resamples of test subjects for the intervals, and the seed of their draw.
    prior : float64 [k], optional
        For a classifier fitted with balanced class weights, the share of each class among its training clips.
        Calibration is then also reported after correction to these shares.
    path : Path, optional
        The result folder; nothing is written without it.
    overwrite : bool
        Replace a result that stands there.
    made_of : mapping, optional
        What the result depends on (:func:`sleepfm_fast.storage.standing.key_of`).
    classifier : mapping of str to array, optional
        The classifier's own arrays, for the result folder (:func:`sleepfm_fast.evaluation.logistic.arrays_of`).

    Returns
    -------
    dict
        The record with ``class_names``, ``trained_classes``, ``n_bootstraps``, the figures of
        :func:`sleepfm_fast.evaluation.figures.evaluate`, for the tasks age and sex ``nights``
        (:mod:`sleepfm_fast.evaluation.whole_nights`), ``strata`` (:mod:`sleepfm_fast.evaluation.strata`) and
        ``calibration`` (:mod:`sleepfm_fast.evaluation.calibration`). The file also has the names ``subjects`` and
        ``recordings``, and ``subject_splits``.
    """
    task = TASKS[record["task"]]
    score = np.asarray(odds, np.float32)
    probability = probability_of(score)
    figures = evaluate(score, trained, held_out.label, held_out.subject, task, bootstraps, seed)
    say_table(figures)
    nights = {}
    if task.of_person:
        whose = (held_out.label, held_out.subject, held_out.recording)
        nights["nights"] = by_night(probability, trained, *whose, task, bootstraps, seed)
        say_nights(nights["nights"])
    strata = by_stratum(held_out, score, probability, trained, task, bootstraps, seed)
    say_strata(strata)
    reliability = calibration(
        probability,
        trained,
        held_out.label,
        held_out.subject,
        task,
        bootstraps,
        seed,
        prior=prior,
        recording=held_out.recording,
    )
    say_calibration(reliability)
    n_subjects = len(np.unique(held_out.subject))
    for notice in (interval_notice(n_subjects), class_notice(figures["classes"], n_subjects), strata_notice(strata)):
        if bootstraps and notice:
            say(f"notice: {notice}")
    full = {
        **record,
        "class_names": task.names,
        "trained_classes": trained,
        "n_bootstraps": bootstraps,
        "seed": seed,
        **figures,
        **nights,
        "strata": strata,
        "calibration": reliability,
    }
    if path is not None:
        arrays: dict[str, npt.NDArray[Any]] = {
            "clip": np.asarray(held_out.clip, np.int64),
            "label": np.asarray(held_out.label, np.int8),
            "subject": np.asarray(held_out.subject, np.int32),
            "recording": np.asarray(held_out.recording, np.int32),
            "onset_s": np.asarray(held_out.onset_s, np.float64),
            "score": score,
            "probability": probability.astype(np.float32),
            **(classifier or {}),
        }
        names = {"subjects": held_out.subjects, "recordings": held_out.recordings}
        if held_out.splits:
            names["subject_splits"] = held_out.splits
        write_result(path, {**full, **names}, arrays, overwrite=overwrite, made_of=made_of)
        say(f"wrote {path}")
    result: dict[str, Any] = plain(full)
    return result
