"""The clips of a store as a folder of embeddings or features describes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy.typing as npt

from sleepfm_fast.cli.command import say
from sleepfm_fast.clips import ClipStore
from sleepfm_fast.embeddings import Description
from sleepfm_fast.runs.splits import Split, assign_subjects
from sleepfm_fast.store.clip_facts import columns_of, people_of

__all__ = ["described_clips"]


def described_clips(
    store: ClipStore, split: Split, known: Mapping[str, int] | None, *, run: str, presets: Mapping[str, Any]
) -> tuple[dict[str, npt.NDArray[Any]], Description]:
    """Divide the subjects of a store, say what is doubtful in that, and describe all of its clips.

    Parameters
    ----------
    store : ClipStore
    split, known
        As of :func:`sleepfm_fast.runs.splits.assign_subjects`.
    run, presets
        As of :class:`sleepfm_fast.embeddings.Description`.

    Returns
    -------
    columns : dict of str to array [n_clips]
    description : Description
    """
    codes, notices = assign_subjects(store.subjects, split, known)
    for notice in notices:
        say(f"notice: {notice}")
    overlap = bool((codes < 0).any())
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
