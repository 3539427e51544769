"""Differences between two results' figures, resampled together over the subjects of the clips that they share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sleepfm_fast.errors import SleepfmError
from sleepfm_fast.evaluation.classification import probability_of
from sleepfm_fast.evaluation.figures import macro_of, resample
from sleepfm_fast.evaluation.metrics import percentile_interval
from sleepfm_fast.evaluation.retrieval_figures import Direction, summarise
from sleepfm_fast.evaluation.tasks import TASKS
from sleepfm_fast.evaluation.whole_nights import nights_of

if TYPE_CHECKING:
    from sleepfm_fast.evaluation.figures import Resampled
    from sleepfm_fast.evaluation.shared_clips import SharedClips
    from sleepfm_fast.evaluation.tasks import Task
    from sleepfm_fast.results import Result

__all__ = ["of_classifiers", "of_retrievals"]

Curve = npt.NDArray[np.float64]  # [1 + B]: a figure on all clips, then in each resample


def difference(first: Curve, second: Curve, n_subjects: int) -> dict[str, Any]:
    """Return both values, their difference and its 95 % interval.

    Parameters
    ----------
    first, second : float64 [1 + B]
        A figure on all clips, then in resamples that draw the same subjects for both.
    n_subjects : int
        With fewer than two there is no interval.
    """
    found = percentile_interval(float(first[0] - second[0]), (first - second)[1:], n_subjects, may_agree=True)
    return {
        "first": float(first[0]),
        "second": float(second[0]),
        "difference": found.value,
        "low": found.low,
        "high": found.high,
        "n_resamples": found.n_resamples,
    }


def of_classifiers(results: tuple[Result, Result], shared: SharedClips, draws: npt.NDArray[np.int32]) -> dict[str, Any]:
    """Compare two classifiers on shared test clips.

    Returns
    -------
    dict
        ``n_classes`` (those that both can score), ``class_subjects`` (for each of them the numbers of its clips, of the
        subjects who have it, and of those who have another), ``macro``, ``classes``, ``accuracy`` and ``cohen_kappa``,
        each figure as from :func:`difference`. For age and sex also ``nights``, the same over nights
        (:mod:`sleepfm_fast.evaluation.whole_nights`), where a night's score is the mean over its shared clips.

    Raises
    ------
    SleepfmError
        When shared clips have different labels in the two results.
    """
    labels = [np.asarray(result.array("label"))[rows] for result, rows in zip(results, shared.rows, strict=True)]
    if (labels[0] != labels[1]).any():
        raise SleepfmError(
            f"{int((labels[0] != labels[1]).sum())} of the {len(labels[0])} clips that {results[0].path} and "
            f"{results[1].path} share carry another label in each; compare results of one scoring."
        )
    task = TASKS[results[0].record["task"]]
    scores = [np.asarray(result.array("score"))[rows] for result, rows in zip(results, shared.rows, strict=True)]
    trained = [np.asarray(result.record["trained_classes"], np.int8) for result in results]
    record: dict[str, Any] = {"task": results[0].record["task"]}
    record |= _differences(
        [resample(s, t, labels[0], shared.group, draws, task) for s, t in zip(scores, trained, strict=True)],
        draws,
        task,
    )
    if task.of_person:
        recording = np.asarray(results[0].array("recording"))[shared.rows[0]]
        pair = [nights_of(probability_of(s), labels[0], shared.group, recording) for s in scores]
        found = [
            resample(nights.probability, t, nights.label, nights.subject, draws, task, progress=False, unit="night")
            for nights, t in zip(pair, trained, strict=True)
        ]
        record["nights"] = {"n_nights": len(pair[0].label), **_differences(found, draws, task)}
    return record


def _differences(pair: Sequence[Resampled], draws: npt.NDArray[np.int32], task: Task) -> dict[str, Any]:
    """Subtract every figure of the second classifier from that of the first."""
    one, other = pair
    n = draws.shape[1]
    both = [k for k in task.scored if k in one.auroc and k in other.auroc]
    classes: dict[str, dict[str, Any]] = {task.names[k]: {} for k in task.scored}
    macro: dict[str, Any] = {}
    for name in ("auroc", "auprc"):
        mine, theirs = getattr(one, name), getattr(other, name)
        mean, their_mean = (macro_of(of_class, len(draws), both) for of_class in (mine, theirs))
        macro[name] = difference(mean, their_mean, one.behind(both))
        for k in both:
            classes[task.names[k]][name] = difference(mine[k], theirs[k], one.behind([k]))
    for k in task.scored:
        classes[task.names[k]]["f1"] = difference(one.f1[:, k], other.f1[:, k], one.behind([k]))
    single = classes[task.names[task.scored[0]]]["f1"]
    present = np.flatnonzero(one.n_subjects[:, 0]).tolist()
    all_f1 = difference(one.macro_f1, other.macro_f1, one.behind(present))
    macro["f1"] = all_f1 if len(task.scored) > 1 else single
    return {
        "n_classes": len(both),
        "class_subjects": {
            task.names[k]: {
                "n_test": int(one.confusion[k].sum()),
                "n_subjects": int(one.n_subjects[k, 0]),
                "n_subjects_of_others": int(one.n_subjects[k, 1]),
            }
            for k in both
        },
        "macro": macro,
        "classes": classes,
        "accuracy": difference(one.accuracy, other.accuracy, n),
        "cohen_kappa": difference(one.cohen_kappa, other.cohen_kappa, n),
    }


def _directions(results: tuple[Result, Result]) -> Iterator[tuple[str, str]]:
    """Yield the directions that both results have ranks for."""
    for d in results[0].record["directions"]:
        name = f"rank_{d['query']}_{d['candidates']}"
        if all(name in result.record["arrays"] for result in results):
            yield d["query"], d["candidates"]


def _shared_queries(
    results: tuple[Result, Result], shared: SharedClips, name: str
) -> tuple[tuple[npt.NDArray[np.int64], ...], npt.NDArray[np.int64]]:
    """Return each result's indices of a direction's shared queries, and the subjects of these queries."""
    places = []
    for result, rows in zip(results, shared.rows, strict=True):
        # The index of every shared clip among the direction's queries, -1 where it is none.
        clips, queries = np.asarray(result.array("clip"))[rows], np.asarray(result.array(f"clip_{name}"))
        place = np.searchsorted(queries, clips).clip(max=max(len(queries) - 1, 0))
        places.append(np.where(queries[place] == clips, place, -1) if len(queries) else np.full(len(clips), -1))
    asks = (places[0] >= 0) & (places[1] >= 0)
    return tuple(place[asks] for place in places), shared.group[asks]


def recording_of(result: Result, name: str) -> npt.NDArray[np.int64]:
    """Return the recording of every query of a direction."""
    place = np.searchsorted(result.array("clip"), result.array(f"clip_{name}"))
    return np.asarray(result.array("recording"))[place].astype(np.int64)


def of_retrievals(results: tuple[Result, Result], shared: SharedClips, draws: npt.NDArray[np.int32]) -> dict[str, Any]:
    """Compare two retrievals on shared queries, direction by direction and on average.

    Returns
    -------
    dict
        ``directions`` (query, candidates, n_clips, recall@k, median_rank, mean_rank) and ``mean``, each figure as from
        :func:`difference`.

    Raises
    ------
    SleepfmError
        When the queries' candidates differ between the results, or when they have no direction in common.
    """
    ks = [int(name[7:]) for name in results[0].record["mean"] if name.startswith("recall@")]
    names = [*(f"recall@{k}" for k in ks), "median_rank", "mean_rank"]
    scope = results[0].record["scope"]
    directions, of_both = [], []
    for query, candidates in _directions(results):
        name = f"{query}_{candidates}"
        places, group = _shared_queries(results, shared, name)
        if not len(group):
            continue
        ranks, sizes = (
            [np.asarray(r.array(f"{kind}_{name}")).astype(np.int64)[p] for r, p in zip(results, places, strict=True)]
            for kind in ("rank", "n_candidates")
        )
        # Every candidate is a query too, so candidates are the same if all queries are shared. In the scope of a night
        # only that night's matter: as many of its queries must be shared as it had candidates.
        n_queries = [len(r.array(f"rank_{name}")) for r in results]
        if scope == "night":
            night = recording_of(results[0], name)[places[0]]
            others = bool((np.bincount(night)[night] != sizes[0]).any())
        else:
            others = max(n_queries) > len(group)
        if others or (sizes[0] != sizes[1]).any():
            raise SleepfmError(
                f"{results[0].path} and {results[1].path} ranked the {candidates} clips for {query} queries among "
                f"other candidates (of {n_queries[0]} and {n_queries[1]} clips they share {len(group)}). Ranks compare "
                "at equal --split, --candidates, --sample and --seed on the same recordings."
            )
        pair = [summarise(r, sizes[0], group, draws, ks) for r in ranks]
        of_both.append(pair)
        n_subjects = pair[0].record["n_subjects"]
        figures = {f: difference(_curve(pair[0], f), _curve(pair[1], f), n_subjects) for f in names}
        directions.append({"query": query, "candidates": candidates, "n_clips": len(group), **figures})
    if not directions:
        raise SleepfmError(f"{results[0].path} and {results[1].path} have no direction of retrieval in common.")
    mean = {}
    for f in names:
        first, second = (np.mean([_curve(pair[i], f) for pair in of_both], axis=0) for i in (0, 1))
        mean[f] = difference(first, second, shared.n_subjects)
    return {"scope": scope, "directions": directions, "mean": mean}


def _curve(direction: Direction, figure: str) -> Curve:
    return np.concatenate([[direction.record[figure]["value"]], direction.resampled[figure]])
