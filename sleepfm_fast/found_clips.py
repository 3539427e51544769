"""What a few queries found: the best candidates themselves, for a reader to look at."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from sleepfm_fast.embeddings import Embeddings

__all__ = ["best_candidates", "clips_of_pair", "examples"]

FOUND = 5  # candidates shown for a query
BLOCK = 8192  # candidates in memory at a time, as float64: 32 MiB at D = 512

Chosen = Mapping[tuple[str, str], npt.NDArray[np.int64]]


def clips_of_pair(chosen: Chosen, query: str, candidates: str) -> npt.NDArray[np.int64]:
    """Return the clips of a pair of modalities, which is kept in one order only."""
    return chosen[query, candidates] if (query, candidates) in chosen else chosen[candidates, query]


def best_candidates(
    embeddings: Embeddings,
    queries: npt.NDArray[np.int64],
    clips: npt.NDArray[np.int64],
    query: str,
    candidates: str,
    n: int,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Find the most similar candidates of some queries, reading the candidates once.

    Parameters
    ----------
    embeddings : Embeddings
    queries : int64 [q]
        Clips that ask, by their ``query`` embedding.
    clips : int64 [N]
        Clips that may answer, by their ``candidates`` embedding, ascending.
    query, candidates : str
        Modalities.
    n : int
        How many to find; all where there are fewer.

    Returns
    -------
    found : int64 [q, min(n, N)]
        Best first; of equal candidates the earlier.
    similarity : float64 [q, min(n, N)]
        Cosines.
    """
    x = embeddings.read(queries, (query,))[:, 0].astype(np.float64)
    found, similarity = np.empty((len(x), 0), np.int64), np.empty((len(x), 0))
    for start in range(0, len(clips), BLOCK):
        block = clips[start : start + BLOCK]
        y = embeddings.read(block, (candidates,))[:, 0].astype(np.float64)
        similarity = np.hstack([similarity, x @ y.T])
        found = np.hstack([found, np.broadcast_to(block, (len(x), len(block)))])
        # What was found before stands first, so that a stable order prefers the earlier of equals.
        best = np.argsort(-similarity, axis=1, kind="stable")[:, :n]
        similarity, found = np.take_along_axis(similarity, best, 1), np.take_along_axis(found, best, 1)
    return found, similarity


def examples(
    embeddings: Embeddings,
    chosen: Chosen,
    ranks: Mapping[tuple[str, str], npt.NDArray[np.int64]],
    n: int,
    seed: int,
) -> list[dict[str, Any]]:
    """Keep what ``n`` queries of every direction found; the queries are drawn at random, not for what they found.

    Parameters
    ----------
    embeddings : Embeddings
    chosen : mapping
        The clips of every undirected pair of modalities.
    ranks : mapping
        The rank of every query of every direction, in the order of the pair's clips.
    n, seed : int
        Queries a direction, and what draws them.

    Returns
    -------
    list of dict
        ``query`` and ``candidates`` (modalities), ``clip``, ``rank``, ``found`` (clips, best first) and
        ``found_similarity`` (cosines).
    """
    kept = []
    for (query, candidates), rank in ranks.items():
        clips = clips_of_pair(chosen, query, candidates)
        # The seeded order is one of all clips of the folder, so that directions show the same queries where they can.
        order = np.random.default_rng(seed).permutation(embeddings.n_clips)[clips]
        drawn = np.sort(np.argsort(order)[:n])
        found, similarity = best_candidates(embeddings, clips[drawn], clips, query, candidates, FOUND)
        kept += [
            {
                "query": query,
                "candidates": candidates,
                "clip": clips[place],
                "rank": rank[place],
                "found": found[i],
                "found_similarity": similarity[i],
            }
            for i, place in enumerate(drawn)
        ]
    return kept
