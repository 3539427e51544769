"""Retrieval ranks between two modalities, streamed: no N x N matrix, and the ranks of float64 similarities.

With S_rc = <a_r, b_c>, the rank of query r among N candidates is

    rank_r = 1 + #{c != r : S_rc > S_rr} + #{c < r : S_rc = S_rr},

so 1 is best, and of equal candidates the earlier one is preferred. Both directions (a -> b along the rows, b -> a along
the columns) come from one block of S.

Blocks are float32 matrix products. Their error is at most gamma_D |a_r| |b_c| with gamma_D = D u / (1 - D u) and
u = 2^-24, in whatever order the product sums; a comparison closer than that is decided by a float64 inner product
summed in one fixed order. The ranks therefore depend neither on the block size nor on the BLAS, and duplicates tie
exactly.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numba
import numpy as np
import numpy.typing as npt

__all__ = ["Rows", "pair_ranks"]

QUERY_BLOCK = 4096
CANDIDATE_BLOCK = 2048
STRIP = 64  # columns of float32 a thread counts at a time: four cache lines


class Rows(Protocol):
    """A matrix [N, D] that gives blocks of rows: an array, or rows that stay on disk."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows and columns."""

    def __getitem__(self, rows: slice, /) -> Any:
        """Return the rows of a slice as float32 [n, D]."""


@numba.njit(cache=True, nogil=True)
def _inner(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> float:
    # Products of float32 are exact in float64. Four sums in a fixed order: equal vectors give equal bits.
    s0 = s1 = s2 = s3 = 0.0
    whole = a.size - a.size % 4
    for i in range(0, whole, 4):
        s0 += np.float64(a[i]) * np.float64(b[i])
        s1 += np.float64(a[i + 1]) * np.float64(b[i + 1])
        s2 += np.float64(a[i + 2]) * np.float64(b[i + 2])
        s3 += np.float64(a[i + 3]) * np.float64(b[i + 3])
    for i in range(whole, a.size):
        s0 += np.float64(a[i]) * np.float64(b[i])
    return (s0 + s1) + (s2 + s3)


@numba.njit(cache=True, nogil=True, parallel=True)
def _diagonal(
    a: npt.NDArray[np.float32],
    b: npt.NDArray[np.float32],
    own: npt.NDArray[np.float64],
    squares: npt.NDArray[np.float64],
) -> None:
    for r in numba.prange(len(a)):
        own[r] = _inner(a[r], b[r])
        squares[r, 0] = _inner(a[r], a[r])
        squares[r, 1] = _inner(b[r], b[r])


@numba.njit(cache=True, nogil=True, parallel=True)
def _count_rows(
    s: npt.NDArray[np.float32],
    a: npt.NDArray[np.float32],
    b: npt.NDArray[np.float32],
    first_row: int,
    first_column: int,
    own: npt.NDArray[np.float64],
    margin: float,
    ahead: npt.NDArray[np.int64],
) -> None:
    n_rows, n_columns = s.shape
    for i in numba.prange(n_rows):
        r = first_row + i
        low, high = np.float32(own[r] - margin), np.float32(own[r] + margin)
        above = 0
        not_below = 0
        for j in range(n_columns):
            above += s[i, j] > high
            not_below += s[i, j] >= low
        if not_below > above:
            for j in range(n_columns):
                c = first_column + j
                if low <= s[i, j] <= high and c != r:
                    exact = _inner(a[i], b[j])
                    above += exact > own[r] or (exact == own[r] and c < r)
        ahead[r] += above


@numba.njit(cache=True, nogil=True, parallel=True)
def _count_columns(
    s: npt.NDArray[np.float32],
    a: npt.NDArray[np.float32],
    b: npt.NDArray[np.float32],
    first_row: int,
    first_column: int,
    own: npt.NDArray[np.float64],
    margin: float,
    ahead: npt.NDArray[np.int64],
) -> None:
    n_rows, n_columns = s.shape
    n_strips = (n_columns + STRIP - 1) // STRIP
    for strip in numba.prange(n_strips):
        start = strip * STRIP
        stop = min(start + STRIP, n_columns)
        above = np.zeros(STRIP, np.int32)
        low, high = np.empty(STRIP, np.float32), np.empty(STRIP, np.float32)
        for j in range(start, stop):
            low[j - start] = own[first_column + j] - margin
            high[j - start] = own[first_column + j] + margin
        for i in range(n_rows):
            r = first_row + i
            near = 0
            for j in range(start, stop):
                over = s[i, j] > high[j - start]
                above[j - start] += over
                near += (s[i, j] >= low[j - start]) - over
            if near > 0:
                for j in range(start, stop):
                    c = first_column + j
                    if low[j - start] <= s[i, j] <= high[j - start] and c != r:
                        exact = _inner(a[i], b[j])
                        above[j - start] += exact > own[c] or (exact == own[c] and r < c)
        for j in range(start, stop):
            ahead[first_column + j] += above[j - start]


def _block(rows: Rows, start: int, stop: int) -> npt.NDArray[np.float32]:
    return np.ascontiguousarray(rows[start:stop], dtype=np.float32)


def pair_ranks(
    a: Rows,
    b: Rows,
    *,
    query_block: int = QUERY_BLOCK,
    candidate_block: int = CANDIDATE_BLOCK,
    progress: Callable[[int], object] | None = None,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Rank every clip's own embedding among all clips' embeddings of the other modality.

    Memory is ``4 (query_block (D + candidate_block) + candidate_block D)`` bytes and a few numbers a clip; both
    operands are read block by block.

    Parameters
    ----------
    a, b : float32 [N, D]
        The same clips in two modalities; arrays or :class:`Rows`. Row r of ``a`` belongs to row r of ``b``.
    query_block, candidate_block : int
        Rows of ``a`` and of ``b`` in a block.
    progress : callable, optional
        Called with the number of similarities just done.

    Returns
    -------
    a_to_b, b_to_a : int64 [N]
        Ranks from 1 (best) to N: of b_r for the query a_r, and of a_r for the query b_r.

    Raises
    ------
    ValueError
        For operands of different shapes or values that are not finite.
    """
    if len(a.shape) != 2 or tuple(a.shape) != tuple(b.shape):
        raise ValueError(f"the two modalities have shapes {tuple(a.shape)} and {tuple(b.shape)}; expected one [N, D]")
    n, dim = a.shape
    own = np.empty(n)
    largest = 0.0
    for start in range(0, n, query_block):
        stop = min(start + query_block, n)
        squares = np.empty((stop - start, 2))
        _diagonal(_block(a, start, stop), _block(b, start, stop), own[start:stop], squares)
        largest = max(largest, float(squares.max()))
        if not np.isfinite(squares).all():
            raise ValueError(f"rows {start} to {stop - 1} hold values that are not finite")
    # gamma_D plus the rounding of the two limits to float32, which are at most |a||b| + margin in size.
    margin = 1.01 * (dim + 4) * 2.0**-24 * largest
    ahead_a, ahead_b = np.zeros(n, np.int64), np.zeros(n, np.int64)
    buffer = np.empty(min(query_block, n) * min(candidate_block, n), np.float32)
    for row in range(0, n, query_block):
        x = _block(a, row, min(row + query_block, n))
        for column in range(0, n, candidate_block):
            y = _block(b, column, min(column + candidate_block, n))
            s = buffer[: len(x) * len(y)].reshape(len(x), len(y))
            np.matmul(x, y.T, out=s)
            _count_rows(s, x, y, row, column, own, margin, ahead_a)
            _count_columns(s, x, y, row, column, own, margin, ahead_b)
            if progress is not None:
                progress(s.size)
    return ahead_a + 1, ahead_b + 1
