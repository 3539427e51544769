"""Ranks among all clips, among the clips of the query's own night, or among other subjects' clips only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from sleepfm_fast.embeddings import Embeddings

__all__ = ["Ranked", "n_similarities", "ranks_in_scope", "restricting_group"]


@dataclass(frozen=True)
class Ranked:
    """The ranks of a pair of modalities in both directions.

    Attributes
    ----------
    clips : int64 [n]
        The queries: clips with at least two candidates.
    forward, backward : int64 [n]
        Rank of the query's own clip, from 1, with the first modality as query and with the second.
    n_candidates : int64 [n]
        Number of candidates of each query, its own clip included.
    """

    clips: npt.NDArray[np.int64]
    forward: npt.NDArray[np.int64]
    backward: npt.NDArray[np.int64]
    n_candidates: npt.NDArray[np.int64]


def restricting_group(embeddings: Embeddings, clips: npt.NDArray[np.int64], scope: str) -> npt.NDArray[np.int64]:
    """Return the recording ("night") or the subject ("other-subjects") of every clip; zeros for the whole cohort."""
    if scope == "cohort":
        return np.zeros(len(clips), np.int64)
    column = embeddings.recording if scope == "night" else embeddings.subject
    return np.asarray(column)[clips].astype(np.int64)


def n_similarities(embeddings: Embeddings, clips: npt.NDArray[np.int64], scope: str) -> int:
    """Count the similarities that are computed to rank a pair's clips."""
    within = int(np.square(np.unique(restricting_group(embeddings, clips, scope), return_counts=True)[1]).sum())
    return within + (len(clips) ** 2 if scope == "other-subjects" else 0)


def _within(
    embeddings: Embeddings,
    clips: npt.NDArray[np.int64],
    pair: tuple[str, str],
    group: npt.NDArray[np.int64],
    progress: Callable[[int], object] | None,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Rank every clip among those of its group: return both directions' ranks, and the size of each clip's group."""
    from sleepfm_fast.embeddings import ModalityRows
    from sleepfm_fast.ranks import pair_ranks

    forward, backward, size = (np.empty(len(clips), np.int64) for _ in range(3))
    order = np.argsort(group, kind="stable")
    for members in np.split(order, np.flatnonzero(np.diff(group[order])) + 1):
        a, b = (ModalityRows(embeddings, clips[members], m) for m in pair)
        forward[members], backward[members] = pair_ranks(a, b, progress=progress)
        size[members] = len(members)
    return forward, backward, size


def ranks_in_scope(
    embeddings: Embeddings,
    clips: npt.NDArray[np.int64],
    pair: tuple[str, str],
    scope: str,
    progress: Callable[[int], object] | None = None,
) -> Ranked:
    """Rank every clip's own embedding in the other modality among the candidates of the scope.

    Parameters
    ----------
    embeddings : Embeddings
    clips : int64 [n]
        Ascending and not empty; every clip has both modalities.
    pair : (str, str)
    scope : {"cohort", "night", "other-subjects"}
        The candidates: all ``clips``; those of the query's recording; or the query's own clip and all clips of other
        subjects.
    progress : callable, optional
        Called with the number of similarities just computed; these add up to :func:`n_similarities`.

    Returns
    -------
    Ranked
        Of equally similar candidates the earlier clip ranks first, in every scope.
    """
    group = restricting_group(embeddings, clips, scope)
    forward, backward, size = _within(embeddings, clips, pair, group, progress)
    if scope == "other-subjects":
        # A pair of candidates compares alike in every scope, so that the candidates of other subjects ahead of the own
        # clip are those ahead among all clips minus those ahead within the subject.
        everyone = np.zeros_like(group)
        forward_all, backward_all, _ = _within(embeddings, clips, pair, everyone, progress)
        forward, backward, size = forward_all - forward + 1, backward_all - backward + 1, len(clips) - size + 1
    asks = size > 1
    return Ranked(clips[asks], forward[asks], backward[asks], size[asks])
