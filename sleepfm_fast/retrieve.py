"""``python -m sleepfm_fast.retrieve EMBEDDINGS [RESULT]``: find each clip's other modalities among all clips.

Every directed pair of modalities is one task: the query is a clip's embedding in one modality, the candidates are
clips' embeddings in the other, and the rank of the clip's own is what counts (:mod:`sleepfm_fast.ranks`). Chance
recall@k among N candidates is k / N.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import tyro

from sleepfm_fast.cli.bars import progress_bar
from sleepfm_fast.cli.command import plain, run, say
from sleepfm_fast.cli.given_paths import TakesPaths
from sleepfm_fast.cli.misplaced import Place, reads, writes
from sleepfm_fast.cli.option_effects import Effect, only_with, refuse_without_effect
from sleepfm_fast.cli.path_kinds import Kind
from sleepfm_fast.errors import SleepfmError
from sleepfm_fast.plurals import agreeing, counted
from sleepfm_fast.reporting.following import after_result

if TYPE_CHECKING:
    from sleepfm_fast.embeddings import Embeddings
    from sleepfm_fast.evaluation.kept_ranks import KeptRanks
    from sleepfm_fast.evaluation.retrieval_figures import Direction
    from sleepfm_fast.evaluation.scopes import Ranked

__all__ = ["Config", "cli", "main"]

Chosen = dict[tuple[str, str], npt.NDArray[np.int64]]


@dataclass(frozen=True)
class Config(TakesPaths):
    """Measure recall@k and the median and mean rank between every two modalities of an embeddings folder, both ways.

    Ranks are exact (those of float64 similarities; among equal candidates the earlier clip comes first) and computed in
    blocks on all cores. 95 % intervals are bootstrapped over the queries' subjects, with the candidates held fixed.
    After a kill or an interruption, the same command continues after the last pair of modalities it finished. If the
    same command has already finished RESULT, it says so and exits with status 0.
    """

    embeddings: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="EMBEDDINGS")]
    """Embeddings folder written by `python -m sleepfm_fast.embed`."""
    result: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="[RESULT]")] = None
    """Result folder to write, such as RUN/results/retrieval: all figures, and the rank of every query. If omitted,
    nothing is written."""
    split: Literal["train", "validation", "test", "all"] = "test"
    """Clips that serve as queries and candidates."""
    scope: Literal["cohort", "night", "other-subjects"] = "cohort"
    """Candidates of a query: all clips (cohort); those of its own recording (night); or its own clip and all clips of
    other subjects, so that recognising the person does not count against it (other-subjects)."""
    candidates: int | None = None
    """Use this many clips, drawn without replacement from the split's clips that have both modalities; all if omitted
    or if there are fewer. All draws follow one seeded order of the clips, so that pairs of modalities share clips."""
    sample: Literal["uniform", "balanced"] = "uniform"
    """How --candidates draws. uniform: every clip is equally likely; balanced: as evenly as possible over event
    types (sleep stage x respiratory event) and over subjects within each, among the clips that have a sleep stage."""
    k: Annotated[tuple[int, ...], tyro.conf.arg(metavar="K [K ...]")] = (1, 10)
    """Ranks up to which a query counts as found."""
    bootstraps: int = 1000
    """Resamples of subjects for the intervals; 0 for none."""
    seed: int = 0
    """Seed of the draw of candidates, of the examples and of the resamples."""
    examples: int = 4
    """Queries per direction, drawn at random, whose best candidates are kept in RESULT."""
    overwrite: bool = False
    """Replace an existing RESULT."""

    EFFECTS: ClassVar[tuple[Effect, ...]] = (
        only_with("sample", "candidates"),
        only_with("examples", "result", spelling="RESULT"),
        only_with("overwrite", "result", spelling="RESULT"),
    )

    def places(self) -> list[Place]:
        """What its positionals take."""
        return [
            reads("EMBEDDINGS", self.embeddings, Kind.EMBEDDINGS, Kind.FEATURES),
            writes("RESULT", self.result, Kind.RESULT),
        ]


def _check(config: Config) -> None:
    refuse_without_effect(config)
    if config.candidates is not None and config.candidates < 2:
        raise SleepfmError(f"--candidates is {config.candidates}; retrieval needs at least 2 candidates.")
    if not config.k or min(config.k) < 1:
        raise SleepfmError(f"--k is {' '.join(map(str, config.k)) or 'empty'}; give whole numbers from 1 on.")
    if config.bootstraps < 0:
        raise SleepfmError(f"--bootstraps is {config.bootstraps}; give 0 (no intervals) or more.")
    if config.examples < 0:
        raise SleepfmError(f"--examples is {config.examples}; give 0 (none) or more.")


def _rank(embeddings: Embeddings, chosen: Chosen, config: Config, kept: KeptRanks) -> dict[tuple[str, str], Ranked]:
    """Rank every pair that has at least two clips and is not ranked already."""
    from sleepfm_fast.evaluation.scopes import n_similarities, ranks_in_scope

    whole = {pair: clips for pair, clips in chosen.items() if len(clips) > 1}
    ranked = {pair: ranks for pair in whole if (ranks := kept.get(pair)) is not None}
    if ranked:
        say(
            f"continuing: {len(ranked)} of {counted(len(whole), 'pair')} of modalities "
            f"{agreeing(len(ranked), 'is', 'are')} ranked."
        )
    left = [pair for pair in whole if pair not in ranked]
    total = sum(n_similarities(embeddings, whole[pair], config.scope) for pair in left)
    with progress_bar(total=total, unit="similarity", unit_scale=True, desc="ranks") as bar:
        for pair in left:
            ranked[pair] = ranks_in_scope(embeddings, whole[pair], pair, config.scope, bar.update)
            kept.keep(pair, ranked[pair])
    return {pair: ranked[pair] for pair in whole}


def _summarise(
    embeddings: Embeddings, chosen: Chosen, ranked: dict[tuple[str, str], Ranked], config: Config
) -> tuple[list[dict[str, Any]], list[Direction]]:
    """Return the records of all directions, in the modalities' order, and the figures of those that have any."""
    from sleepfm_fast.evaluation.candidates import event_types
    from sleepfm_fast.evaluation.found_clips import company
    from sleepfm_fast.evaluation.metrics import bootstrap_subjects
    from sleepfm_fast.evaluation.retrieval_figures import summarise

    subject = np.asarray(embeddings.subject)
    subjects = np.unique(np.concatenate([subject[r.clips] for r in ranked.values()]))
    draws = bootstrap_subjects(len(subjects), config.bootstraps, config.seed)
    records, directions = [], []
    n_compared = sum(2 * len(clips) for pair, clips in chosen.items() if pair in ranked) * (config.scope == "cohort")
    with progress_bar(total=n_compared, unit="clip", unit_scale=True, desc="best candidates") as bar:
        for (first, second), clips in chosen.items():
            result = ranked.get((first, second))
            for query, candidates in ((first, second), (second, first)):
                names: dict[str, Any] = {"query": query, "candidates": candidates}
                if result is None or not len(result.clips):
                    note = "fewer than two clips have both"
                    if result is not None:
                        note = "no clip has another candidate in this scope"
                    records.append({**names, "n_clips": len(clips) if result is None else 0, "note": note})
                    continue
                ranks = result.forward if query == first else result.backward
                group = np.searchsorted(subjects, subject[result.clips])
                found = summarise(ranks, result.n_candidates, group, draws, config.k)
                record = {**names, **found.record}
                if config.scope == "cohort":
                    k = min(max(config.k), len(clips))
                    record["company"] = company(embeddings, clips, (query, candidates), k, config.seed, bar.update)
                if config.sample == "balanced":
                    event, types = event_types(embeddings, clips)
                    counts = np.bincount(event, minlength=len(types))
                    record["event_types"] = {t: int(n) for t, n in zip(types, counts, strict=True) if n}
                records.append(record)
                directions.append(found)
    order = {m: i for i, m in enumerate(embeddings.modalities)}
    return sorted(records, key=lambda d: (order[d["query"]], order[d["candidates"]])), directions


def _arrays(embeddings: Embeddings, ranked: dict[tuple[str, str], Ranked]) -> dict[str, npt.NDArray[Any]]:
    """Return the ranks of every direction, and of every clip that asks in any whose it is and when it begins."""
    clips = np.unique(np.concatenate([result.clips for result in ranked.values()]))
    arrays: dict[str, npt.NDArray[Any]] = {
        "clip": clips,
        "subject": np.asarray(embeddings.subject)[clips],
        "recording": np.asarray(embeddings.recording)[clips],
        "onset_s": np.asarray(embeddings.onset_s)[clips],
    }
    for (first, second), result in ranked.items():
        for name, ranks in ((f"{first}_{second}", result.forward), (f"{second}_{first}", result.backward)):
            arrays[f"rank_{name}"] = ranks.astype(np.int32)
            arrays[f"clip_{name}"] = result.clips
            arrays[f"n_candidates_{name}"] = result.n_candidates.astype(np.int32)
    return arrays


def main(config: Config) -> dict[str, Any]:
    """Rank, summarise and report; the result is what the command prints as JSON."""
    from sleepfm_fast.embeddings import Embeddings
    from sleepfm_fast.evaluation.changed_store import say_changed_store
    from sleepfm_fast.evaluation.kept_ranks import remove_kept
    from sleepfm_fast.results import claimed_result
    from sleepfm_fast.storage.standing import digest_of_file, key_of

    _check(config)
    key = key_of("retrieve", config, {"embeddings": digest_of_file(config.embeddings / "embeddings.json")})
    with claimed_result(config.result, overwrite=config.overwrite, made_of=key) as finished:
        if finished is not None:
            remove_kept(finished.path)  # where a kill came before they were removed
            say_changed_store(Embeddings(config.embeddings))
            return finished.printed
        return _retrieved(config, key)


def _asked_for(embeddings: Embeddings, config: Config) -> npt.NDArray[np.int64]:
    """Clips of the split; raise where there are not two."""
    from sleepfm_fast.embeddings import SPLITS

    clips = embeddings.clips_of(*(SPLITS if config.split == "all" else (config.split,)))
    if clips.size < 2:
        sizes = ", ".join(f"{s} {embeddings.clips_of(s).size}" for s in SPLITS)
        raise SleepfmError(
            f"the {config.split} split of {config.embeddings} has {counted(clips.size, 'clip')}; retrieval needs at "
            f"least two. The folder's clips: {sizes}. Choose another with --split."
        )
    return clips


def _retrieved(config: Config, made_of: Mapping[str, Any]) -> dict[str, Any]:
    """Rank, summarise and write the result."""
    from sleepfm_fast.embeddings import Embeddings
    from sleepfm_fast.evaluation.candidates import draw_pairs
    from sleepfm_fast.evaluation.changed_store import say_notes
    from sleepfm_fast.evaluation.found_clips import examples
    from sleepfm_fast.evaluation.interval_notice import interval_notice
    from sleepfm_fast.evaluation.kept_ranks import KeptRanks
    from sleepfm_fast.evaluation.retrieval_figures import mean_of_directions, say_directions
    from sleepfm_fast.results import write_result

    started = time.perf_counter()
    embeddings = Embeddings(config.embeddings)
    if len(embeddings.modalities) < 2:
        raise SleepfmError(
            f"{config.embeddings} holds one modality ({embeddings.modalities[0]}); retrieval is between two."
        )
    clips = _asked_for(embeddings, config)
    notes = say_notes(embeddings)
    chosen = draw_pairs(embeddings, clips, config.candidates, config.sample, config.seed)
    if max(len(c) for c in chosen.values()) < 2:
        raise SleepfmError(f"no two modalities occur together in two clips of the {config.split} split.")
    short = {pair: len(c) for pair, c in chosen.items() if config.candidates is not None and len(c) < config.candidates}
    if short:
        there = ", ".join(f"{n} of {first} and {second}" for (first, second), n in short.items())
        say(f"notice: --candidates {config.candidates} is more than the clips available; all are used: {there}.")
    kept = KeptRanks(config.result, embeddings, chosen, config.scope)
    ranked = _rank(embeddings, chosen, config, kept)
    if not any(len(result.clips) for result in ranked.values()):
        raise SleepfmError(
            f"no clip has another candidate with --scope {config.scope}: "
            + ("every recording has one clip." if config.scope == "night" else "there is one subject.")
            + " Choose another scope."
        )
    records, directions = _summarise(embeddings, chosen, ranked, config)
    say_directions(records, config.k)
    fewest = min((d["n_subjects"] for d in records if d.get("n_subjects")), default=0)
    if config.bootstraps and (notice := interval_notice(fewest)):
        say(f"notice: {notice}")
    record: dict[str, Any] = plain(
        {
            "command": "retrieve",
            "embeddings": config.embeddings,
            "split": config.split,
            "scope": config.scope,
            "sample": config.sample if config.candidates is not None else "all",
            "n_clips": clips.size,
            "modalities": embeddings.modalities,
            **notes,
            "n_bootstraps": config.bootstraps,
            "seed": config.seed,
            "directions": records,
            "mean": mean_of_directions(directions, config.k),
            "seconds": round(time.perf_counter() - started, 3),
        }
    )
    if config.result is not None:
        about = embeddings.description
        written = {
            **record,
            "subjects": about.subjects,
            "recordings": about.recordings,
            "examples": examples(embeddings, chosen, ranked, config.scope, config.examples, config.seed),
        }
        arrays = _arrays(embeddings, ranked)
        write_result(config.result, written, arrays, overwrite=config.overwrite, made_of=made_of)
        kept.remove()
        say(f"wrote {config.result}")
    return record


def cli(argv: list[str] | None = None) -> int:
    """Run the command with ``argv`` or the process's own arguments."""
    kept = "ranks of finished pairs of modalities are kept beside RESULT, if it was given; the same command continues"
    return run(Config, main, argv, interrupted=kept, following=after_result)


if __name__ == "__main__":
    sys.exit(cli())
