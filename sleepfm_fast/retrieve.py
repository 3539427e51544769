"""``python -m sleepfm_fast.retrieve EMBEDDINGS [RESULT]``: find each clip's other modalities among all clips.

Every directed pair of modalities is one task: the query is a clip's embedding in one modality, the candidates are all
clips' embeddings in the other, and the rank of the clip's own is what counts (:mod:`sleepfm_fast.ranks`). Chance
recall@k among N candidates is k / N.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import tyro

from sleepfm_fast.command import run, say
from sleepfm_fast.errors import SleepfmError

if TYPE_CHECKING:
    from sleepfm_fast.embeddings import Embeddings

__all__ = ["Config", "cli", "main"]


@dataclass(frozen=True)
class Config:
    """Recall@k, median and mean rank between every two modalities of an embeddings folder, in both directions.

    Ranks are exact (those of float64 similarities; of equal candidates the earlier clip is preferred) and computed in
    blocks on all cores. Intervals (95 %) are bootstrapped over the queries' subjects with the candidates held fixed.
    """

    embeddings: tyro.conf.Positional[Path]
    """Embeddings folder, made by `python -m sleepfm_fast.embed`."""
    result: tyro.conf.Positional[Path | None] = None
    """Result folder to write, such as RUN/results/retrieval: every figure, and the rank of every query; nothing is
    written when omitted."""
    split: Literal["train", "validation", "test", "all"] = "test"
    """Clips that are queries and candidates."""
    candidates: int | None = None
    """Use N clips drawn uniformly, without replacement, among the split's clips that have both modalities; all when
    omitted or when there are fewer. The draw keeps to one seeded order of the clips, so that pairs share clips."""
    k: Annotated[tuple[int, ...], tyro.conf.arg(metavar="K [K ...]")] = (1, 10)
    """Ranks up to which a query counts as answered."""
    bootstraps: int = 1000
    """Resamples of subjects for the intervals; 0 for none."""
    seed: int = 0
    """Seed of the draw of candidates, of the examples and of the resamples."""
    examples: int = 4
    """Queries of each direction whose best candidates are kept in RESULT, drawn at random."""
    overwrite: bool = False
    """Replace a result that stands at RESULT."""


def _check(config: Config) -> None:
    if config.candidates is not None and config.candidates < 2:
        raise SleepfmError(f"--candidates is {config.candidates}; retrieval needs at least 2 candidates.")
    if not config.k or min(config.k) < 1:
        raise SleepfmError(f"--k is {config.k}; give whole numbers from 1 on.")
    if config.bootstraps < 0:
        raise SleepfmError(f"--bootstraps is {config.bootstraps}; give 0 (no intervals) or more.")
    if config.examples < 0:
        raise SleepfmError(f"--examples is {config.examples}; give 0 (none) or more.")


def _pairs(
    mask: npt.NDArray[np.bool_], clips: npt.NDArray[np.int64], modalities: tuple[str, ...], config: Config
) -> dict[tuple[str, str], npt.NDArray[np.int64]]:
    """Choose the clips of every undirected pair: those with both modalities, or the seeded draw among them."""
    drawn = np.random.default_rng(config.seed).permutation(clips) if config.candidates is not None else clips
    have = mask[drawn]
    chosen = {}
    for (i, first), (j, second) in itertools.combinations(enumerate(modalities), 2):
        both = drawn[have[:, i] & have[:, j]]
        chosen[first, second] = np.sort(both[: config.candidates])
    return chosen


def _direction(ranks: npt.NDArray[np.int64], subject: npt.NDArray[np.int32], config: Config) -> dict[str, Any]:
    """Summarise the ranks of one direction."""
    from sleepfm_fast.metrics import bootstrap_subjects, percentile_interval, resampled_ratio

    n = len(ranks)
    names, group = np.unique(subject, return_inverse=True)
    draws = bootstrap_subjects(len(names), config.bootstraps, config.seed)
    counts = np.bincount(group, minlength=len(names))

    def mean_over_clips(values: npt.NDArray[Any]) -> dict[str, float | None]:
        sums = np.bincount(group, weights=values, minlength=len(names))
        interval = percentile_interval(float(values.mean()), resampled_ratio(sums, counts, draws), len(names))
        return {"value": interval.value, "low": interval.low, "high": interval.high}

    result: dict[str, Any] = {"n_clips": n, "n_subjects": len(names)}
    for k in config.k:
        chance = min(k, n) / n
        recall = mean_over_clips(ranks <= k)
        result[f"recall@{k}"] = {**recall, "chance": chance, "times_chance": float((ranks <= k).mean()) / chance}
    result["median_rank"] = {"value": float(np.median(ranks)), "chance": (n + 1) / 2}
    result["mean_rank"] = {**mean_over_clips(ranks), "chance": (n + 1) / 2}
    return result


def _ranked(
    embeddings: Embeddings, chosen: dict[tuple[str, str], npt.NDArray[np.int64]], config: Config
) -> tuple[list[dict[str, Any]], dict[tuple[str, str], npt.NDArray[np.int64]]]:
    """Return the summaries and the ranks of every direction that has any."""
    from tqdm import tqdm

    from sleepfm_fast.embeddings import ModalityRows
    from sleepfm_fast.ranks import pair_ranks

    directions: list[dict[str, Any]] = []
    ranks = {}
    total = sum(len(clips) ** 2 for clips in chosen.values())
    with tqdm(total=total, unit="similarity", unit_scale=True, desc="ranks", file=sys.stderr) as bar:
        update: Callable[[int], object] = bar.update
        for (first, second), clips in chosen.items():
            if len(clips) < 2:
                directions += [
                    {"query": q, "candidates": c, "n_clips": len(clips), "note": "fewer than two clips have both"}
                    for q, c in ((first, second), (second, first))
                ]
                continue
            a, b = (ModalityRows(embeddings, clips, m) for m in (first, second))
            forward, backward = pair_ranks(a, b, progress=update)
            subject = np.asarray(embeddings.subject[clips])
            for query, candidates, found in ((first, second, forward), (second, first, backward)):
                directions.append({"query": query, "candidates": candidates, **_direction(found, subject, config)})
                ranks[query, candidates] = found
    order = {m: i for i, m in enumerate(embeddings.modalities)}
    return sorted(directions, key=lambda d: (order[d["query"]], order[d["candidates"]])), ranks


def _mean(directions: list[dict[str, Any]], config: Config) -> dict[str, Any]:
    done = [d for d in directions if "median_rank" in d]
    recalls = {
        f"recall@{k}": {
            name: float(np.mean([d[f"recall@{k}"][name] for d in done])) for name in ("value", "chance", "times_chance")
        }
        for k in config.k
    }
    return {
        "n_directions": len(done),
        **recalls,
        "median_rank": float(np.mean([d["median_rank"]["value"] for d in done])),
    }


def _say_table(directions: list[dict[str, Any]], config: Config) -> None:
    heads = "".join(f"{f'recall@{k}':>11}  {'95 % interval':<15}{'x chance':>9}" for k in config.k)
    say(f"{'query':<12} {'candidates':<12}{'clips':>8}{heads}{'median':>9}{'chance':>9}")
    for d in directions:
        line = f"{d['query']:<12} {d['candidates']:<12}{d['n_clips']:>8}"
        if "note" in d:
            say(f"{line}  {d['note']}")
            continue
        for k in config.k:
            r = d[f"recall@{k}"]
            limits = "" if r["low"] is None else f"{r['low']:.4f}-{r['high']:.4f}"
            line += f"{r['value']:>11.4f}  {limits:<15}{r['times_chance']:>9.1f}"
        say(f"{line}{d['median_rank']['value']:>9.1f}{d['median_rank']['chance']:>9.1f}")


def main(config: Config) -> dict[str, Any]:
    """Rank, summarise and report; the result is what the command prints as JSON."""
    from sleepfm_fast.embeddings import SPLITS, Embeddings
    from sleepfm_fast.found_clips import clips_of_pair, examples
    from sleepfm_fast.results import refuse_result, write_result

    _check(config)
    refuse_result(config.result, overwrite=config.overwrite)
    started = time.perf_counter()
    embeddings = Embeddings(config.embeddings)
    if len(embeddings.modalities) < 2:
        raise SleepfmError(
            f"{config.embeddings} holds one modality ({embeddings.modalities[0]}); retrieval is between two."
        )
    splits = SPLITS if config.split == "all" else (config.split,)
    clips = embeddings.clips_of(*splits)
    if clips.size < 2:
        sizes = ", ".join(f"{s} {embeddings.clips_of(s).size}" for s in SPLITS)
        raise SleepfmError(
            f"the {config.split} split of {config.embeddings} has {clips.size} clips; retrieval needs at least two. "
            f"The folder's clips: {sizes}. Choose another with --split."
        )
    overlaps = bool(embeddings.overlap_note)
    if overlaps:
        say(f"notice: {embeddings.overlap_note}")
    chosen = _pairs(np.asarray(embeddings.mask), clips, embeddings.modalities, config)
    if max(len(c) for c in chosen.values()) < 2:
        raise SleepfmError(f"no two modalities occur together in two clips of the {config.split} split.")
    short = [c for c in chosen.values() if config.candidates is not None and len(c) < config.candidates]
    if short:
        say(f"notice: --candidates {config.candidates} is more than the clips there are; all of them are used.")
    directions, ranks = _ranked(embeddings, chosen, config)
    _say_table(directions, config)
    if any(d.get("n_subjects") == 1 for d in directions) and config.bootstraps:
        say("notice: one subject; there is nothing to bootstrap over, so no intervals.")
    record: dict[str, Any] = {
        "command": "retrieve",
        "embeddings": config.embeddings,
        "split": config.split,
        "scope": "cohort",
        "n_clips": int(clips.size),
        "modalities": embeddings.modalities,
        "overlap": overlaps,
        "overlap_note": embeddings.overlap_note if overlaps else "",
        "directions": directions,
        "mean": _mean(directions, config),
        "seconds": round(time.perf_counter() - started, 3),
    }
    if config.result is not None:
        about = embeddings.description
        written = {
            **record,
            "subjects": about.subjects,
            "recordings": about.recordings,
            "examples": examples(embeddings, chosen, ranks, config.examples, config.seed),
        }
        arrays: dict[str, npt.NDArray[Any]] = {}
        for (query, candidates), found in ranks.items():
            arrays[f"rank_{query}_{candidates}"] = found.astype(np.int32)
            arrays[f"clip_{query}_{candidates}"] = clips_of_pair(chosen, query, candidates)
        write_result(config.result, written, arrays, overwrite=config.overwrite)
        say(f"wrote {config.result}")
    return record


def cli(argv: list[str] | None = None) -> int:
    """Run the command with ``argv`` or the process's own arguments."""
    return run(Config, main, argv)


if __name__ == "__main__":
    sys.exit(cli())
