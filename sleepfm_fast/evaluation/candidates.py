"""Which clips take part in a retrieval: all of a split, or a seeded draw, uniform or balanced over event types."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from sleepfm_fast.errors import SleepfmError
from sleepfm_fast.evaluation.tasks import SCORING, TASKS
from sleepfm_fast.plurals import counted

if TYPE_CHECKING:
    from sleepfm_fast.embeddings import Embeddings

__all__ = ["Pair", "balanced_order", "draw_pairs", "event_types"]

Pair = tuple[str, str]
SDB = ("unscored", "none", "event")  # codes -1, 0, 1


def event_types(embeddings: Embeddings, clips: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], tuple[str, ...]]:
    """Return every clip's event type, sleep stage x respiratory event, -1 without a stage, and the types' names."""
    stage = np.asarray(embeddings.stage)[clips].astype(np.int64)
    sdb = np.asarray(embeddings.sdb)[clips].astype(np.int64)
    names = tuple(f"{s}/{e}" for s in TASKS["stage"].names for e in SDB)
    return np.where(stage < 0, -1, stage * len(SDB) + sdb + 1), names


def _turn(key: npt.NDArray[np.int64], *groups: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return every clip's place, by ``key``, among the clips that are equal in all ``groups``."""
    order = np.lexsort((key, *groups))
    first = np.ones(len(order), bool)
    first[1:] = np.any([g[order][1:] != g[order][:-1] for g in groups], axis=0)
    places = np.arange(len(order))
    turn = np.empty(len(order), np.int64)
    turn[order] = places - np.maximum.accumulate(np.where(first, places, 0))
    return turn


def balanced_order(
    event: npt.NDArray[np.int64], subject: npt.NDArray[np.int64], key: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Order clips so that any number from the front is as even as can be over event types, and in each over subjects.

    Event types take turns; within a type its subjects take turns; what has run out leaves its turns to the others.

    Parameters
    ----------
    event, subject : int64 [n]
    key : int64 [n]
        A random permutation; it decides between clips, and who begins.

    Returns
    -------
    int64 [n]
        Places of the clips, first drawn first.
    """
    # Within a type, subjects take turns: by a clip's turn within (type, subject), then at random.
    within = _turn(key, subject, event)
    rank = np.empty(len(key), np.int64)
    rank[np.lexsort((key, within))] = np.arange(len(key))
    order: npt.NDArray[np.int64] = np.lexsort((key, _turn(rank, event)))
    return order


def draw_pairs(
    embeddings: Embeddings, clips: npt.NDArray[np.int64], n: int | None, sample: str, seed: int
) -> dict[Pair, npt.NDArray[np.int64]]:
    """Choose the clips of every undirected pair of modalities: those with both, or a seeded draw among them.

    Parameters
    ----------
    embeddings : Embeddings
    clips : int64 [N]
        Those of the split.
    n : int, optional
        How many to draw; all when omitted or when there are fewer.
    sample : {"uniform", "balanced"}
        Every clip is equally likely, or :func:`balanced_order` over the clips that have a sleep stage.
    seed : int
        One seeded order of the split's clips serves all pairs, so that pairs share clips.

    Returns
    -------
    dict
        (first, second) in the folder's order of modalities -> ascending clips.

    Raises
    ------
    SleepfmError
        When a balanced draw is asked and no clip has a sleep stage.
    """
    rng = np.random.default_rng(seed)
    event, subject = np.zeros(0, np.int64), np.zeros(0, np.int64)
    if sample == "balanced":
        event, _ = event_types(embeddings, clips)
        if not (event >= 0).any():
            raise SleepfmError(
                f"--sample balanced draws over sleep stages, and none of the {counted(len(clips), 'clip')} has one. "
                f"{SCORING}, or use --sample uniform."
            )
        clips, event = clips[event >= 0], event[event >= 0]
        subject = np.asarray(embeddings.subject)[clips].astype(np.int64)
    drawn = clips
    if n is not None:
        order = rng.permutation(len(clips))
        drawn = clips[order]
        if sample == "balanced":
            event, subject = event[order], subject[order]
    have = np.asarray(embeddings.mask)[drawn]
    chosen = {}
    for (i, first), (j, second) in itertools.combinations(enumerate(embeddings.modalities), 2):
        both = np.flatnonzero(have[:, i] & have[:, j])
        if n is not None and sample == "balanced":
            both = both[balanced_order(event[both], subject[both], both.astype(np.int64))]
        chosen[first, second] = np.sort(drawn[both[:n]])
    return chosen
