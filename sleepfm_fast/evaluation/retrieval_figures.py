"""The figures of retrieval: recall@k, median and mean rank, against chance, with intervals over subjects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sleepfm_fast.cli.command import say
from sleepfm_fast.evaluation.metrics import percentile_interval, resampled_median, resampled_ratio

__all__ = ["Direction", "chance_median", "mean_of_directions", "say_directions", "summarise"]


@dataclass(frozen=True)
class Direction:
    """One direction's figures, and their values in every resample of subjects, from which directions are averaged."""

    record: dict[str, Any]
    resampled: dict[str, npt.NDArray[np.float64]]


def chance_median(n_candidates: npt.NDArray[np.int64]) -> float:
    """Return the median of ranks drawn uniformly from 1 to each query's number of candidates."""
    sizes, counts = np.unique(n_candidates, return_counts=True)
    half = counts.sum() / 2

    def below(rank: int) -> float:
        return float((counts * np.minimum(rank, sizes) / sizes).sum())

    def first(reached: float) -> int:
        low, high = 1, int(sizes[-1])
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if below(middle) >= reached else (middle + 1, high)
        return low

    # Where the distribution function is exactly 1/2 between two ranks, the median is their mean: look for the first
    # rank that reaches 1/2, and for the first that exceeds it. 1e-9 is well above the rounding of the sums.
    return (first(half - 1e-9 * half) + first(half + 1e-9 * half)) / 2


def summarise(
    ranks: npt.NDArray[np.int64],
    n_candidates: npt.NDArray[np.int64],
    group: npt.NDArray[np.int64],
    draws: npt.NDArray[np.int32],
    ks: Sequence[int],
) -> Direction:
    """Summarise the ranks of one direction.

    Parameters
    ----------
    ranks : int64 [n]
    n_candidates : int64 [n]
        Number of candidates of each query; the chance level is the mean of the queries' own.
    group : int64 [n]
        Column of ``draws`` of each query's subject.
    draws : int32 [B, S]
        From :func:`sleepfm_fast.evaluation.metrics.bootstrap_subjects`.
    ks : sequence of int

    Returns
    -------
    Direction
        Record: ``n_clips``, ``n_subjects``, ``n_candidates`` (its range), ``recall@k`` (value, low, high, n_resamples,
        chance, times_chance), ``median_rank`` and ``mean_rank`` (value, low, high, n_resamples, chance).
    """
    n_groups = draws.shape[1]
    counts = np.bincount(group, minlength=n_groups)
    n_subjects = int((counts > 0).sum())
    resampled: dict[str, npt.NDArray[np.float64]] = {}

    def interval(name: str, value: float, values: npt.NDArray[np.float64]) -> dict[str, float | int | None]:
        resampled[name] = values
        return asdict(percentile_interval(value, values, n_subjects, may_agree=name == "median_rank"))

    def mean_over_clips(name: str, values: npt.NDArray[Any]) -> dict[str, float | int | None]:
        sums = np.bincount(group, weights=values, minlength=n_groups)
        return interval(name, float(values.mean()), resampled_ratio(sums, counts, draws))

    record: dict[str, Any] = {
        "n_clips": len(ranks),
        "n_subjects": n_subjects,
        "n_candidates": [int(n_candidates.min()), int(n_candidates.max())],
    }
    for k in ks:
        chance = float((np.minimum(k, n_candidates) / n_candidates).mean())
        recall = mean_over_clips(f"recall@{k}", ranks <= k)
        record[f"recall@{k}"] = {**recall, "chance": chance, "times_chance": float((ranks <= k).mean()) / chance}
    median = interval("median_rank", float(np.median(ranks)), resampled_median(ranks, group, draws))
    record["median_rank"] = {**median, "chance": chance_median(n_candidates)}
    record["mean_rank"] = {**mean_over_clips("mean_rank", ranks), "chance": float((n_candidates + 1).mean() / 2)}
    return Direction(record, resampled)


def mean_of_directions(directions: Sequence[Direction], ks: Sequence[int]) -> dict[str, Any]:
    """Average the directions' figures, within each resample too, which draws the same subjects in every direction."""
    n_subjects = min((d.record["n_subjects"] for d in directions), default=0)
    mean: dict[str, Any] = {"n_directions": len(directions)}
    for name in [*(f"recall@{k}" for k in ks), "median_rank", "mean_rank"]:
        value = float(np.mean([d.record[name]["value"] for d in directions]))
        resampled = np.mean([d.resampled[name] for d in directions], axis=0)
        mean[name] = asdict(percentile_interval(value, resampled, n_subjects, may_agree=name == "median_rank"))
        for against in ("chance", "times_chance"):
            if against in directions[0].record[name]:
                mean[name][against] = float(np.mean([d.record[name][against] for d in directions]))
    return mean


def say_directions(directions: Sequence[dict[str, Any]], ks: Sequence[int]) -> None:
    """Print a table with one line per direction."""
    heads = "".join(f"{f'recall@{k}':>11}  {'95 % interval':<15}{'x chance':>9}" for k in ks)
    say(f"{'query':<12} {'candidates':<12}{'clips':>8}{heads}{'median':>9}  {'95 % interval':<15}{'chance':>9}")
    for d in directions:
        line = f"{d['query']:<12} {d['candidates']:<12}{d['n_clips']:>8}"
        if "note" in d:
            say(f"{line}  {d['note']}")
            continue
        for k in ks:
            r = d[f"recall@{k}"]
            limits = "" if r["low"] is None else f"{r['low']:.4f}-{r['high']:.4f}"
            line += f"{r['value']:>11.4f}  {limits:<15}{r['times_chance']:>9.1f}"
        m = d["median_rank"]
        limits = "" if m["low"] is None else f"{m['low']:.1f}-{m['high']:.1f}"
        say(f"{line}{m['value']:>9.1f}  {limits:<15}{m['chance']:>9.1f}")
