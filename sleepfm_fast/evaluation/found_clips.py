"""What queries found: the best candidates themselves, and how many of them belong to the query's own night."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sleepfm_fast.evaluation.scopes import Ranked, restricting_group

if TYPE_CHECKING:
    from sleepfm_fast.embeddings import Embeddings

__all__ = ["best_candidates", "company", "examples"]

FOUND = 5  # candidates shown for a query
BLOCK = 4096  # candidates in memory at a time, as float64: 16 MiB at D = 512, and 8 bytes a query and candidate
QUERIES = 1000  # whose company is examined

NOWHERE = -np.inf  # similarity of a candidate outside the scope


def _best(similarity: npt.NDArray[np.float64], n: int) -> npt.NDArray[np.int64]:
    """Return the places of the ``n`` largest in each row, largest first, of equals the earlier: int64 [q, n]."""
    if similarity.shape[1] <= n:
        return np.argsort(-similarity, axis=1, kind="stable")
    least = np.partition(similarity, -n, axis=1)[:, -n]
    best = np.empty((len(similarity), n), np.int64)
    for i, row in enumerate(similarity):
        places = np.flatnonzero(row >= least[i])
        best[i] = places[np.argsort(-row[places], kind="stable")[:n]]
    return best


def best_candidates(
    embeddings: Embeddings,
    queries: npt.NDArray[np.int64],
    clips: npt.NDArray[np.int64],
    pair: tuple[str, str],
    n: int,
    scope: str = "cohort",
    progress: Callable[[int], object] | None = None,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Find the most similar candidates of some queries, reading the candidates once.

    Parameters
    ----------
    embeddings : Embeddings
    queries : int64 [q]
        Clips that ask, by their embedding of the pair's first modality.
    clips : int64 [N]
        Clips that may answer, by that of the second, ascending.
    pair : (str, str)
    n : int
        How many to find; all where there are fewer.
    scope : {"cohort", "night", "other-subjects"}
        See :func:`sleepfm_fast.evaluation.scopes.ranks_in_scope`.
    progress : callable, optional
        Called with the number of candidates just compared.

    Returns
    -------
    found : int64 [q, min(n, N)]
        Best first; of equal candidates the earlier.
    similarity : float64 [q, min(n, N)]
        Cosines; -inf where the scope has fewer candidates.
    """
    x = embeddings.read(queries, pair[:1])[:, 0].astype(np.float64)
    asking = restricting_group(embeddings, queries, scope)[:, None]
    found, similarity = np.empty((len(x), 0), np.int64), np.empty((len(x), 0))
    for start in range(0, len(clips), BLOCK):
        block = clips[start : start + BLOCK]
        y = embeddings.read(block, pair[1:])[:, 0].astype(np.float64)
        s = x @ y.T
        if scope != "cohort":
            same = asking == restricting_group(embeddings, block, scope)
            outside = ~same if scope == "night" else same & (queries[:, None] != block)
            s[outside] = NOWHERE
        # What was found before stands first, so that of equals the earlier is preferred.
        similarity = np.hstack([similarity, s])
        found = np.hstack([found, np.broadcast_to(block, s.shape)])
        best = _best(similarity, n)
        similarity, found = np.take_along_axis(similarity, best, 1), np.take_along_axis(found, best, 1)
        if progress is not None:
            progress(len(block))
    return found, similarity


def _drawn(n_clips: int, queries: npt.NDArray[np.int64], n: int, seed: int) -> npt.NDArray[np.int64]:
    """Draw places of ``queries``, ascending, by one seeded order of all clips, which all directions share."""
    order = np.random.default_rng(seed).permutation(n_clips)[queries]
    return np.sort(np.argsort(order)[:n])


def examples(
    embeddings: Embeddings,
    chosen: Mapping[tuple[str, str], npt.NDArray[np.int64]],
    ranked: Mapping[tuple[str, str], Ranked],
    scope: str,
    n: int,
    seed: int,
) -> list[dict[str, Any]]:
    """Keep what ``n`` queries of every direction found; the queries are drawn at random, not for what they found.

    Parameters
    ----------
    embeddings : Embeddings
    chosen, ranked : mapping
        Candidates and ranks of every undirected pair of modalities.
    scope : str
    n, seed : int
        Queries a direction, and what draws them.

    Returns
    -------
    list of dict
        ``query`` and ``candidates`` (modalities), ``clip``, ``rank``, ``found`` (clips, best first) and
        ``found_similarity`` (cosines).
    """
    kept = []
    for (first, second), result in ranked.items():
        places = _drawn(embeddings.n_clips, result.clips, n, seed)
        for pair, ranks in (((first, second), result.forward), ((second, first), result.backward)):
            queries = result.clips[places]
            found, similarity = best_candidates(embeddings, queries, chosen[first, second], pair, FOUND, scope)
            for i, place in enumerate(places):
                inside = similarity[i] > NOWHERE
                kept.append(
                    {
                        "query": pair[0],
                        "candidates": pair[1],
                        "clip": queries[i],
                        "rank": ranks[place],
                        "found": found[i, inside],
                        "found_similarity": similarity[i, inside],
                    }
                )
    return kept


def company(
    embeddings: Embeddings,
    clips: npt.NDArray[np.int64],
    pair: tuple[str, str],
    k: int,
    seed: int,
    progress: Callable[[int], object] | None = None,
) -> dict[str, Any]:
    """Share of the best ``k`` candidates, the query's own clip aside, that are of its own night or subject.

    Parameters
    ----------
    embeddings : Embeddings
    clips : int64 [N]
        Queries and candidates; :data:`QUERIES` of the queries, drawn at random, are examined.
    pair : (str, str)
        Modality of the query and of the candidates.
    k : int
    seed : int
    progress : callable, optional

    Returns
    -------
    dict
        ``k``, ``n_queries``; ``own_recording`` and ``own_subject``, each with ``value`` (share of the found clips) and
        ``chance`` (share of all other candidates).
    """
    places = _drawn(embeddings.n_clips, clips, QUERIES, seed)
    queries = clips[places]
    found, _ = best_candidates(embeddings, queries, clips, pair, k, progress=progress)
    other = found != queries[:, None]
    result: dict[str, Any] = {"k": k, "n_queries": len(queries)}
    for name, column in (("own_recording", embeddings.recording), ("own_subject", embeddings.subject)):
        of_clip = np.asarray(column)
        same = (of_clip[found] == of_clip[queries][:, None]) & other
        sizes = np.bincount(of_clip[clips])[of_clip[queries]]
        result[name] = {
            "value": float(same.sum() / other.sum()) if other.any() else None,
            "chance": float(((sizes - 1) / (len(clips) - 1)).mean()),
        }
    return result
