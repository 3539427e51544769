"""Where signals reach their extremes: what copies of one night share, whatever their gain, resolution or format.

The highest and the lowest value of a minute stand at the same two samples under every gain, offset and polarity, and
nearly always after rounding to another resolution. Two nights share such a pair by chance only: at 128 Hz there are
29 million of them.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["SLOWEST_HZ", "Shared", "extremes_of", "packed", "shared_extremes"]

SLOWEST_HZ = 4.0
"""Slower signals have too few samples a minute to tell nights apart."""
EDGE_S = 1
"""A drift has its extremes at the ends of every window, in all nights alike."""
LEAST_STEPS = 16
"""Coarser signals reach their extremes many times, and which comes first the rounding decides."""
LEAST_SHARED = 5
LEAST_SHARE = 0.25
"""Of the pairs of the night that has fewer. Of 60 simulated nights of an hour, each with 105 to 129 pairs, no two
shared more than one; a real one (osas2002) shared 80, 52 and 39 % with itself in steps 2, 8 and 32 times coarser."""
CLIQUE = 8
"""Of a pair that more nights share (a test signal in all of them) only neighbours are counted, not every two."""

Pairs = NDArray[np.uint64]
Shared = tuple[int, int]
"""How many pairs two nights share, and how many the one that has fewer has."""


def extremes_of(first_sample: int, window: NDArray[Any], fs_hz: float) -> int | None:
    """Numbers of the samples, from the recording's first one, of a window's two extremes; None where they tell nothing.

    The order of the two does not count, so that a signal upside down has the same.
    """
    edge = math.ceil(EDGE_S * fs_hz)
    if fs_hz < SLOWEST_HZ or window.size <= 2 * edge or int(window.max()) - int(window.min()) < LEAST_STEPS:
        return None
    earlier, later = sorted((int(window.argmax()), int(window.argmin())))
    if earlier < edge or later >= window.size - edge:
        return None
    return (first_sample + earlier) << 32 | (first_sample + later)


def packed(found: Iterable[int | None]) -> bytes:
    """Pairs of a night, each once, in 8 bytes each."""
    return np.array(sorted({pair for pair in found if pair is not None}), "<u8").tobytes()


def shared_extremes(nights: Sequence[bytes]) -> dict[tuple[int, int], Shared]:
    """Every two nights, by their numbers, that share too many pairs for chance."""
    pairs = [np.frombuffer(night, "<u8") for night in nights]
    owners = np.repeat(np.arange(len(pairs)), [p.size for p in pairs])
    values = np.concatenate([*pairs, np.empty(0, "<u8")])
    order = np.lexsort((owners, values))
    owners, values = owners[order], values[order]
    ends = np.flatnonzero(np.diff(values, append=values[-1:] + np.uint64(1))) + 1
    begins = np.concatenate([[0], ends[:-1]])[: ends.size]
    counts: Counter[tuple[int, int]] = Counter()
    for begin, end in zip(begins.tolist(), ends.tolist(), strict=True):
        if end - begin > 1:
            members = owners[begin:end].tolist()
            counts.update(itertools.combinations(members, 2) if len(members) <= CLIQUE else itertools.pairwise(members))
    of_fewer = {(a, b): min(pairs[a].size, pairs[b].size) for a, b in counts}
    return {
        two: (n, of_fewer[two])
        for two, n in sorted(counts.items())
        if n >= LEAST_SHARED and n >= LEAST_SHARE * of_fewer[two]
    }
