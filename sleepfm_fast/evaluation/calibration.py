"""Whether a probability of 0.8 comes true in 80 % of the clips: reliability bins, calibration error, Brier score.

A classifier that was fitted with balanced class weights answers as if all classes were equally frequent, by
construction. Its probabilities are corrected to the frequencies pi_k of the training clips by Bayes' rule,
q_k = pi_k p_k / sum_j pi_j p_j, and both are reported. The correction moves no class's ranking against another class,
but clips are ranked differently within a class against the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sleepfm_fast.cli.command import say
from sleepfm_fast.evaluation.metrics import Interval, bootstrap_subjects, percentile_interval, resampled_ratio
from sleepfm_fast.evaluation.whole_nights import nights_of

if TYPE_CHECKING:
    from sleepfm_fast.evaluation.tasks import Task

__all__ = ["calibration", "correct_for_prior", "recorded_prior", "say_calibration"]

N_BINS = 10


def correct_for_prior(probability: npt.NDArray[Any], prior: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Turn probabilities of equally frequent classes into those of classes with frequencies ``prior``.

    Parameters
    ----------
    probability : float [n, k]
    prior : float [k]
        Positive.

    Returns
    -------
    float64 [n, k]
        Rows sum to 1.
    """
    q = np.asarray(probability, np.float64) * np.asarray(prior, np.float64)
    corrected: npt.NDArray[np.float64] = q / q.sum(1, keepdims=True)
    return corrected


def _reflected(percentiles: Interval) -> Interval:
    """Turn the percentiles of a figure that sampling pushes upwards into the basic bootstrap's interval.

    A sum of absolute gaps v exceeds the truth by the sample's noise, and a resample's q exceeds v by about as much
    again: 2 v - q takes both out. Cut at 0, and widened to hold v.
    """
    v, low, high = percentiles.value, percentiles.low, percentiles.high
    if v is None or low is None or high is None:
        return percentiles
    return replace(percentiles, low=min(max(2 * v - high, 0.0), v), high=max(2 * v - low, v))


def _reliability(
    p: npt.NDArray[np.float64],
    true: npt.NDArray[np.bool_],
    group: npt.NDArray[np.int64],
    draws: npt.NDArray[np.int32],
) -> dict[str, Any]:
    """Bins of one probability, their expected calibration error and the Brier score, from sums over subjects."""
    n_subjects = draws.shape[1]
    # The last bin includes p = 1.
    place = group * N_BINS + np.minimum((p * N_BINS).astype(np.int64), N_BINS - 1)

    def by_subject(values: npt.NDArray[Any] | None) -> npt.NDArray[np.float64]:
        sums = np.bincount(place, weights=values, minlength=n_subjects * N_BINS)
        return sums.reshape(n_subjects, N_BINS).astype(np.float64)

    count, predicted, hits = by_subject(None), by_subject(p), by_subject(true)
    # ECE = sum_b n_b / n |hits_b / n_b - mean p_b| = sum_b |hits_b - sum p_b| / n, for all clips and each resample.
    drawn = draws.astype(np.float64)
    gaps = np.abs(drawn @ (hits - predicted)).sum(1) / (drawn @ count).sum(1)
    squares = np.bincount(group, weights=np.square(p - true), minlength=n_subjects)
    clips = count.sum(1)
    total, mean_p, observed = count.sum(0), predicted.sum(0), hits.sum(0)
    return {
        "bins": [
            {
                "low": b / N_BINS,
                "high": (b + 1) / N_BINS,
                "n": int(total[b]),
                "mean_probability": mean_p[b] / total[b] if total[b] else None,
                "observed": observed[b] / total[b] if total[b] else None,
            }
            for b in range(N_BINS)
        ],
        "expected_calibration_error": _reflected(
            percentile_interval(float(np.abs(observed - mean_p).sum() / len(p)), gaps, n_subjects)
        ),
        "brier": percentile_interval(float(squares.sum() / len(p)), resampled_ratio(squares, clips, draws), n_subjects),
    }


def recorded_prior(record: Mapping[str, Any]) -> npt.NDArray[np.float64] | None:
    """Frequencies among the training clips of a result's classes, [k]; None where the record has none."""
    try:
        prior = record["calibration"]["prior"]
        return np.array([prior[record["class_names"][k]] for k in record["trained_classes"]], np.float64)
    except (KeyError, TypeError, IndexError):
        return None


def _of(
    p: npt.NDArray[np.float64],
    trained: npt.NDArray[np.int8],
    labels: npt.NDArray[np.int8],
    group: npt.NDArray[np.int64],
    draws: npt.NDArray[np.int32],
    task: Task,
) -> dict[str, Any]:
    columns = {int(k): column for column, k in enumerate(trained)}
    classes = {
        task.names[k]: _reliability(p[:, columns[k]], labels == k, group, draws) for k in task.scored if k in columns
    }
    chosen = p.argmax(1)
    rows = np.arange(len(p))
    return {
        "classes": classes,
        "predicted_class": _reliability(p[rows, chosen], trained[chosen] == labels, group, draws),
    }


def calibration(
    probability: npt.NDArray[Any],
    trained: npt.NDArray[np.int8],
    labels: npt.NDArray[np.int8],
    subject: npt.NDArray[np.int32],
    task: Task,
    bootstraps: int,
    seed: int,
    prior: npt.NDArray[np.float64] | None = None,
    recording: npt.NDArray[np.int32] | None = None,
) -> dict[str, Any]:
    """Measure the calibration of probabilities on test clips, with intervals over subjects.

    Parameters
    ----------
    probability : float [n, k]
        One column a class of ``trained``; rows sum to 1.
    trained : int8 [k]
    labels : int8 [n]
        A class the classifier does not know counts against every class it knows.
    subject : int32 [n]
    task : Task
    bootstraps, seed : int
    prior : float64 [k], optional
        Frequencies of the classes among the training clips, of a classifier fitted with balanced class weights.
    recording : int32 [n], optional
        Whose night each clip is of; what is measured over nights needs it.

    Returns
    -------
    dict
        ``as_fitted`` and, with a prior, ``prior_corrected``; each has ``classes`` (every scored class that was trained,
        against the rest) and ``predicted_class`` (the largest probability against whether it was right), with ``bins``
        (10 of equal width), ``expected_calibration_error`` and ``brier``. ``prior`` by class name where given. Of tasks
        whose class is a person's also ``nights``: ``n_nights``, ``n_subjects`` and the same of each night's mean
        probability, without the calibration error. Tens of nights in ten bins would make it mostly noise: right
        probabilities have one above 0.1 there (tests/test_calibration.py).
    """
    subjects, group = np.unique(subject, return_inverse=True)
    draws = bootstrap_subjects(len(subjects), bootstraps, seed)
    p = np.asarray(probability, np.float64)
    result: dict[str, Any] = {"as_fitted": _of(p, trained, labels, group, draws, task)}
    kinds = {"as_fitted": p}
    if prior is not None:
        kinds["prior_corrected"] = correct_for_prior(p, prior)
        result["prior_corrected"] = _of(kinds["prior_corrected"], trained, labels, group, draws, task)
        result["prior"] = {task.names[k]: float(f) for k, f in zip(trained, prior, strict=True)}
    if task.of_person and recording is not None:
        of_nights: dict[str, Any] = {"n_nights": len(np.unique(recording)), "n_subjects": len(subjects)}
        for name, of_clips in kinds.items():
            nights = nights_of(of_clips, labels, group, recording)
            found = _of(nights.probability, trained, nights.label, nights.subject, draws, task)
            for entry in (*found["classes"].values(), found["predicted_class"]):
                del entry["expected_calibration_error"]
            of_nights[name] = found
        result["nights"] = of_nights
    return result


def say_calibration(result: dict[str, Any]) -> None:
    """Print one line, and of tasks whose class is a person's another over nights."""
    error, score = "expected_calibration_error", "brier"
    say(f"expected calibration error of the predicted class: {_of_kinds(result, error)}")
    if "nights" in result:
        say(f"over nights, Brier score of the predicted class: {_of_kinds(result['nights'], score)}")


def _of_kinds(result: dict[str, Any], figure: str) -> str:
    words = {"as_fitted": "as fitted", "prior_corrected": "corrected to the training clips' classes"}
    return ", ".join(
        f"{result[name]['predicted_class'][figure].value:.3f} {word}" for name, word in words.items() if name in result
    )
