"""The clips of a store as a folder of embeddings or features describes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from sleepfm_fast.cli.command import say
from sleepfm_fast.clips import ClipStore
from sleepfm_fast.embeddings import Description
from sleepfm_fast.runs.origin import Seen
from sleepfm_fast.runs.splits import SPLITS, Split, assign_subjects
from sleepfm_fast.store.clip_facts import columns_of, people_of

__all__ = ["described_clips"]


def described_clips(
    store: ClipStore, split: Split, seen: Seen, *, run: str, presets: Mapping[str, Any]
) -> tuple[dict[str, npt.NDArray[Any]], Description]:
    """Divide the subjects of a store, say what is doubtful in that, and describe all of its clips.

    Parameters
    ----------
    store : ClipStore
    split : Split
        The rule.
    seen : Seen
        Whose split the training of the weights has settled. The one subject of a store, if others than it are known, is
        a test subject.
    run, presets
        As of :class:`sleepfm_fast.embeddings.Description`.

    Returns
    -------
    columns : dict of str to array [n_clips]
    description : Description
    """
    known, renamed = seen.in_store(store)
    if len(store.subjects) == 1 and known and store.subjects[0] not in known:
        # Another laboratory's night. For a training, its one subject would have to serve all purposes.
        codes = np.full(1, SPLITS.index("test"), np.int8)
        notices: tuple[str, ...] = ()
    else:
        codes, notices = assign_subjects(store.subjects, split, known)
    for notice in (*renamed, *notices):
        say(f"notice: {notice}")
    overlap = bool((codes < 0).any())
    encoder = {name: SPLITS[known[name]] for name in store.subjects if known.get(name, 2) != 2}
    if presets.get("weights") is not None:
        presets = {**presets, "subjects_seen": encoder}
    description = Description(
        **people_of(store),
        run=run,
        store=str(store.path),
        split_rule=split.rule(),
        presets=presets,
        overlap=overlap,
        overlap_note=" ".join(notices) if overlap else "",
    )
    return columns_of(store, codes), description
