"""Retrieval as signals: what was asked with, what belongs to it, and what was found."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sleepfm_fast.plurals import clock, counted
from sleepfm_fast.reporting import suggestions
from sleepfm_fast.reporting.following import typed
from sleepfm_fast.reporting.markup import element, escape
from sleepfm_fast.reporting.page import Figure, Missing
from sleepfm_fast.reporting.signals import strip_markup, strips_of
from sleepfm_fast.reporting.sources import MISSHAPEN, Run
from sleepfm_fast.reporting.wording import count, number_of
from sleepfm_fast.results import Result
from sleepfm_fast.scoring.stages import STAGES

if TYPE_CHECKING:
    from sleepfm_fast.clips import ClipStore

__all__ = ["example_figures"]

CHANNELS = 3  # of a modality that are drawn
FOUND = 2  # clips found that are drawn beside the truth


def place(store: ClipStore, clip: int) -> str:
    """Subject, recording where it is named otherwise, time and scoring of a clip."""
    stage = int(store.stage[clip])
    event = ", respiratory event" if int(store.sdb[clip]) == 1 else ""
    scored = STAGES[stage] if stage >= 0 else "not scored"
    subject, recording = store.subject(clip), store.recordings[int(store.recording[clip])].id
    whose = subject if recording == subject else f"{subject} ({recording})"
    return f"{whose} at {clock(float(store.onset_s[clip]))}, {scored}{event}"


def panel(store: ClipStore, clip: int, modality: str, title: str) -> str:
    """One clip's channels under a heading."""
    strips = [strip_markup(s) for s in strips_of(store, clip, modality, CHANNELS)]
    return element("div", element("p", escape(title), class_="panel"), *strips)


def example_figure(run: Run, result: Result, store: ClipStore, example: dict[str, Any]) -> Figure:
    """Draw one query, its truth, and the nearest clips."""
    query, candidates, clip = str(example["query"]), str(example["candidates"]), int(example["clip"])
    rank = int(example["rank"])
    found = [int(c) for c in example.get("found") or ()]
    similarity = example.get("found_similarity") or [None] * len(found)
    panels = [
        panel(store, clip, query, f"Query, {query}: {place(store, clip)}"),
        panel(store, clip, candidates, f"Truth, {candidates}: rank {count(rank)}"),
    ]
    for i, other in enumerate(found[:FOUND]):
        close = "" if similarity[i] is None else f", similarity {float(similarity[i]):.2f}"
        own = "the true clip" if other == clip else place(store, other)
        panels.append(panel(store, other, candidates, f"Found {i + 1}{close}: {own}"))
    recordings = dict.fromkeys(int(store.recording[c]) for c in (clip, *found[:FOUND]))
    files = [store.path / "recordings" / f"{store.recordings[r].id}.bin" for r in recordings]
    nearer = (
        "Found at once." if rank == 1 else f"{number_of(rank - 1, 'clip was', 'clips were')} nearer than the true one."
    )
    return Figure(
        f"{query} → {candidates}: rank {count(rank)}",
        element("div", *panels, class_="panels"),
        f"{EXPLANATION} {nearer}",
        [result.record_file, *files],
        example,
        wide=True,
    )


EXPLANATION = (
    "Thirty seconds of signals as recorded, each strip scaled to its own range. Truth is what was recorded together "
    "with the query; the model saw neither that nor the labels."
)


def example_figures(run: Run, result: Result, most: int) -> list[Figure | Missing]:
    """Draw at most ``most`` examples, of every direction in turn."""
    examples = [e for e in result.record.get("examples") or () if isinstance(e, dict)]
    if not most:
        return []
    if not examples:
        return [
            Missing(
                f"{result.path} names no examples. Write the result again to have some:",
                typed("retrieve", run.embeddings_named, result.path, options="--overwrite"),
            )
        ]
    store = run.store
    if store is None:
        return [
            Missing(
                f"The examples' signals cannot be drawn: the clip store {run.store_named} of {run.name} was not found. "
                "Start the report where that path leads to it."
            )
        ]
    embeddings = run.embeddings
    if embeddings is not None and embeddings.n_clips != len(store):
        return [
            Missing(
                f"The examples' signals cannot be drawn: {store.path} has {counted(len(store), 'clip')}, its "
                f"embeddings have {embeddings.n_clips}. The store has changed since; embed again:",
                suggestions.embed(run, "--overwrite"),
            )
        ]
    by_direction: dict[tuple[Any, Any], list[dict[str, Any]]] = {}
    for e in examples:
        by_direction.setdefault((e.get("query"), e.get("candidates")), []).append(e)
    depth = max(len(v) for v in by_direction.values())
    chosen = [v[i] for i in range(depth) for v in by_direction.values() if i < len(v)][:most]
    figures: list[Figure | Missing] = []
    for i, e in enumerate(chosen):
        clips = [int(c) for c in (e["clip"], *(e.get("found") or ()))]
        if not np.all((np.array(clips) >= 0) & (np.array(clips) < len(store))):
            figures.append(Missing(f"{result.path / 'result.json'} names clips that {store.path} does not have."))
            continue
        try:
            figure = example_figure(run, result, store, e)
        except MISSHAPEN as error:
            figures.append(Missing(f"an example of {result.path} cannot be drawn: {error}"))
            continue
        figure.folded = i >= 3
        figures.append(figure)
    return figures
