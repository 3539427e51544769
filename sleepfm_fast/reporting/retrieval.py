"""Section: one modality's clip found by another's: figures with intervals, ranks, and examples drawn from the store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sleepfm_fast.evaluation.interval_notice import interval_caution
from sleepfm_fast.reporting import suggestions
from sleepfm_fast.reporting.comparison import retrieval_differences
from sleepfm_fast.reporting.page import Figure, Group, Missing, Section, table
from sleepfm_fast.reporting.plot import Plot, legend, series_class
from sleepfm_fast.reporting.retrieval_examples import example_figures
from sleepfm_fast.reporting.scale import Scale
from sleepfm_fast.reporting.sources import MISSHAPEN, Run
from sleepfm_fast.reporting.wording import count, value_of, with_interval
from sleepfm_fast.results import Result

__all__ = ["recall_keys", "retrieval_section"]

MOST_RUNS = 4  # results whose examples are drawn


def recall_keys(record: dict[str, Any]) -> list[str]:
    """The recall@k entries of a record, by k."""
    keys = {k for d in record.get("directions") or () for k in d if str(k).startswith("recall@")}
    return sorted(keys, key=lambda k: int(k.partition("@")[2]))


def scope_of(result: Result) -> str:
    """Say among which clips was searched."""
    scope = str(result.record.get("scope") or "")
    return {
        "": "among all clips of the split",
        "cohort": "among all clips of the split",
        "all": "among all clips of the split",
        "night": "within the query's own night",
        "other-subjects": "among clips of other subjects and the true one",
    }.get(scope, f"scope: {scope}")


def figures_table(name: str, result: Result) -> Figure:
    """Every direction: recall with intervals and chance, median and mean rank."""
    record = result.record
    keys = recall_keys(record)
    head = ["query → found", "clips"]
    for key in keys:
        head += [key, "chance", "× chance"]
    head += ["median rank", "mean rank", "chance"]
    rows = []
    for d in record["directions"]:
        cells = [f"{d['query']} → {d['candidates']}", count(d["n_clips"])]
        if "median_rank" not in d:
            rows.append([f"{cells[0]} ({d.get('note', 'no figures')})", cells[1], *("-" for _ in head[2:])])
            continue
        for key in keys:
            r = d.get(key) or {}
            cells += [with_interval(r), shown(r.get("chance"), 4), shown(r.get("times_chance"), 1)]
        median, mean = d["median_rank"], d.get("mean_rank") or {}
        cells += [rank_with_interval(median), rank_with_interval(mean), shown(median.get("chance"), 1)]
        rows.append(cells)
    mean = record.get("mean") or {}
    if mean and keys:
        cells = ["mean of directions", ""]
        for key in keys:
            r = mean.get(key) or {}
            cells += [with_interval(r), shown(r.get("chance"), 4), shown(r.get("times_chance"), 1)]
        median, mean_rank = mean.get("median_rank") or {}, mean.get("mean_rank") or {}
        ranks = (rank_with_interval(median), rank_with_interval(mean_rank), shown(median.get("chance"), 1))
        rows.append([*cells, *ranks])
    fewest = min((int(n) for d in record["directions"] if (n := value_of(d.get("n_subjects")))), default=0)
    brackets = "No intervals: it was made with --bootstraps 0."
    if record.get("n_bootstraps") != 0:
        brackets = "Brackets are 95 % intervals, bootstrapped over the queries' subjects." + interval_caution(fewest)
    return Figure(
        "Figures of each direction",
        table(head, rows, f"Retrieval figures of {name}"),
        f"recall@k: share of queries whose own clip is among the k nearest. {brackets} Chance is what a random order "
        "would give.",
        [result.record_file],
        {k: record[k] for k in ("scope", "split", "n_clips", "directions", "mean") if k in record},
        wide=True,
    )


def shown(figure: Any, digits: int) -> str:
    """A number or a dash."""
    value = value_of(figure)
    return "-" if value is None else f"{value:.{digits}f}"


def rank_with_interval(figure: Any) -> str:
    """A rank with one decimal."""
    return with_interval(figure, 1)


def candidates_of(result: Result, direction: dict[str, Any]) -> npt.NDArray[np.float64]:
    """How many candidates each query of a direction had; empty where the result does not say."""
    array = f"n_candidates_{direction['query']}_{direction['candidates']}"
    if array in result.record.get("arrays", {}):
        return np.asarray(result.array(array), np.float64)
    low, high = direction.get("n_candidates") or (0, 1)
    return np.full(int(direction["n_clips"]) if low == high else 0, float(low))


def chance_curve(n_candidates: npt.NDArray[np.float64], k: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Expected recall at each k of random orders: the mean over queries of min(k, n) / n, n the query's candidates."""
    sizes, counts = np.unique(n_candidates, return_counts=True)
    found: npt.NDArray[np.float64] = np.minimum(k[:, None] / sizes, 1.0) @ counts / counts.sum()
    return found


def ranks_figure(name: str, result: Result) -> Figure | None:
    """Recall at every k: the distribution of the ranks of all directions."""
    arrays = result.record.get("arrays", {})
    ranked, sizes = [], []
    for d in result.record["directions"]:
        array = f"rank_{d['query']}_{d['candidates']}"
        if array in arrays and arrays[array][1:] and arrays[array][1] > 1:
            ranked.append((f"{d['query']} → {d['candidates']}", array, np.sort(np.asarray(result.array(array)))))
            sizes.append(candidates_of(result, d))
    if not ranked:
        return None
    n_candidates = np.concatenate(sizes) if all(len(s) for s in sizes) else np.empty(0)
    n = max(2, int(n_candidates.max(initial=2)), *(int(ranks[-1]) for *_, ranks in ranked))
    plot = Plot(
        Scale(1.0, float(n), log=True), Scale(0.0, 1.0), f"Recall at every k: {name}", "",
        x_label="k (logarithmic)", y_label="recall@k",
    )  # fmt: skip
    grid = np.unique(np.rint(np.geomspace(1, n, 120)).astype(int))
    data: dict[str, Any] = {"k": grid}
    for i, (direction, _, ranks) in enumerate(ranked):
        recall = np.searchsorted(ranks, grid, "right") / len(ranks)
        plot.line(grid, recall, series_class(i))
        data[direction] = recall.round(4)
    words = ""
    if n_candidates.size:
        chance = chance_curve(n_candidates, grid)
        plot.line(grid, chance, "chance")
        data["chance"] = chance.round(6)
        words = "; the dashed line below is chance, the mean over all queries of k / (their number of candidates)"
    plot.description = " ".join(f"{d}: half of the clips are found within {np.median(r):.0f}." for d, _, r in ranked)
    return Figure(
        "Recall at every k", plot,
        f"Share of queries whose own clip is among the k nearest{words}.",
        [result.path / f"{array}.npy" for _, array, _ in ranked], data,
        key=legend([(series_class(i), d) for i, (d, *_) in enumerate(ranked)]),
    )  # fmt: skip


def retrieval_section(runs: Sequence[Run], n_examples: int) -> Section:
    """Draw every retrieval result."""
    section = Section("retrieval", "Retrieval between modalities")
    n_shown = 0
    try:
        if differences := retrieval_differences(runs):
            section.groups.append(Group(items=[*differences]))
    except MISSHAPEN as error:
        words = f"The differences of retrievals cannot be tabulated ({error!r}). Write them again."
        section.groups.append(Group(items=[Missing(words)]))
    for run in runs:
        results = run.results_of("retrieve")
        for result in results:
            name = f"{run.name}, {result.path.name}" if len(runs) > 1 or len(results) > 1 else run.name
            group = Group(
                f"{name}: {scope_of(result)}" if len(runs) > 1 or len(results) > 1 else "",
                "A clip of one modality asks for the clip of another modality that was recorded at the same time, "
                f"{scope_of(result)} ({result.record.get('split', 'test')}).",
            )
            try:
                items = [figures_table(name, result), ranks_figure(name, result)]
                group.items = [item for item in items if item is not None]
                group.items += example_figures(run, result, n_examples if n_shown < MOST_RUNS else 0)
                n_shown += 1
            except MISSHAPEN as error:
                group.items.append(Missing(f"{result.path} cannot be drawn: {error}"))
            section.groups.append(group)
        about = run.embeddings
        contrasted = about.kind != "feature" and len(about.modalities) > 1 if about is not None else bool(run.config)
        if not results and not run.supervised and contrasted:
            section.groups.append(
                Group(
                    items=[
                        Missing(
                            f"{run.name} has no retrieval result. This command makes one:",
                            suggestions.retrieve(run),
                        )
                    ]
                )
            )
    return section
