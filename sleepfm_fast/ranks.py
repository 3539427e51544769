"""Retrieval ranks between two modalities, streamed: no N x N matrix, and the ranks of float64 similarities.

With S_rc = <a_r, b_c>, the rank of query r among N candidates is

    rank_r = 1 + #{c != r : S_rc > S_rr} + #{c < r : S_rc = S_rr},

so 1 is best, and of equal candidates the earlier one is preferred. Both directions (a -> b along the rows, b -> a along
the columns) come from one block of S.

Blocks are float32 matrix products T of centred operands, a' = a - m_a and b' = b - m_b, because encoders put all
embeddings into a narrow cone where float32 inner products hardly differ:

    S_rc = T_rc + f_c + g_r,    f_c = <m_a, b_c - m_b>,    g_r = <a_r, m_b>.

With u = 2^-24, the error of T is at most (D + 2) u max|a'| max|b'| to first order, in whatever order the product sums;
a comparison closer than that is decided by a float64 inner product <a_r, b_c> summed in one fixed order. The ranks
therefore depend neither on the block size nor on the BLAS, and duplicates tie exactly.
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
def _diagonal(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32], own: npt.NDArray[np.float64]) -> None:
    for r in numba.prange(len(a)):
        own[r] = _inner(a[r], b[r])


@numba.njit(cache=True, nogil=True, parallel=True)
def _count_rows(
    s: npt.NDArray[np.float32],
    a: npt.NDArray[np.float32],
    b: npt.NDArray[np.float32],
    first_row: int,
    first_column: int,
    own: npt.NDArray[np.float64],
    shift: npt.NDArray[np.float32],
    target: npt.NDArray[np.float64],
    margin: float,
    ahead: npt.NDArray[np.int64],
) -> None:
    n_rows, n_columns = s.shape
    for i in numba.prange(n_rows):
        r = first_row + i
        low, high = np.float32(target[r] - margin), np.float32(target[r] + margin)
        above = 0
        not_below = 0
        for j in range(n_columns):
            value = s[i, j] + shift[first_column + j]
            above += value > high
            not_below += value >= low
        if not_below > above:
            for j in range(n_columns):
                c = first_column + j
                if low <= s[i, j] + shift[c] <= high and c != r:
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
    shift: npt.NDArray[np.float32],
    target: npt.NDArray[np.float64],
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
            low[j - start] = target[first_column + j] - margin
            high[j - start] = target[first_column + j] + margin
        for i in range(n_rows):
            r = first_row + i
            near = 0
            for j in range(start, stop):
                value = s[i, j] + shift[r]
                over = value > high[j - start]
                above[j - start] += over
                near += (value >= low[j - start]) - over
            if near > 0:
                for j in range(start, stop):
                    c = first_column + j
                    if low[j - start] <= s[i, j] + shift[r] <= high[j - start] and c != r:
                        exact = _inner(a[i], b[j])
                        above[j - start] += exact > own[c] or (exact == own[c] and r < c)
        for j in range(start, stop):
            ahead[first_column + j] += above[j - start]


def _block(rows: Rows, which: slice) -> npt.NDArray[np.float32]:
    return np.ascontiguousarray(rows[which], dtype=np.float32)


def pair_ranks(
    a: Rows,
    b: Rows,
    *,
    query_block: int = QUERY_BLOCK,
    candidate_block: int = CANDIDATE_BLOCK,
    progress: Callable[[int], object] | None = None,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Rank every clip's own embedding among all clips' embeddings of the other modality.

    Memory is ``4 (query_block (2 D + candidate_block) + 2 candidate_block D)`` bytes and a few numbers a clip; both
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
    blocks = [slice(start, min(start + query_block, n)) for start in range(0, n, query_block)]
    own = np.empty(n)
    sums = np.zeros((2, dim))
    for rows in blocks:
        x, y = _block(a, rows), _block(b, rows)
        _diagonal(x, y, own[rows])
        sums += x.sum(0, dtype=np.float64), y.sum(0, dtype=np.float64)
        if not np.isfinite(own[rows]).all():
            raise ValueError(f"rows {rows.start} to {rows.stop - 1} hold values that are not finite")
    mean_a, mean_b = (sums / n).astype(np.float32)
    wide_a, wide_b = mean_a.astype(np.float64), mean_b.astype(np.float64)
    f, g, largest = np.empty(n), np.empty(n), np.zeros(2)
    for rows in blocks:
        x, y = _block(a, rows), _block(b, rows)
        f[rows], g[rows] = (y - wide_b) @ wide_a, x @ wide_b
        squares = np.square(x - mean_a).sum(1).max(), np.square(y - mean_b).sum(1).max()
        largest = np.maximum(largest, np.sqrt(squares))
    # In a row, S_rc > S_rr is T_rc + f_c > S_rr - g_r; in a column, S_rc > S_cc is
    # T_rc + h_r > S_cc - f_c - <m_a, m_b>. h is g without its mean, so that what is added to T in float32 is small too.
    centre = float(wide_a @ wide_b)
    h = g - centre
    product = float(largest.prod())
    # The error of T, then the float32 roundings of the shift, of the sum and of the limits.
    margin = 1.01 * 2.0**-24 * ((dim + 8) * product + 4 * float(max(np.abs(f).max(), np.abs(h).max())))
    target_a, target_b = own - g, own - f - centre
    shift_a, shift_b = f.astype(np.float32), h.astype(np.float32)
    ahead_a, ahead_b = np.zeros(n, np.int64), np.zeros(n, np.int64)
    buffer = np.empty(min(query_block, n) * min(candidate_block, n), np.float32)
    for rows in blocks:
        x = _block(a, rows)
        x_centred = x - mean_a
        for column in range(0, n, candidate_block):
            y = _block(b, slice(column, min(column + candidate_block, n)))
            s = buffer[: len(x) * len(y)].reshape(len(x), len(y))
            np.matmul(x_centred, (y - mean_b).T, out=s)
            _count_rows(s, x, y, rows.start, column, own, shift_a, target_a, margin, ahead_a)
            _count_columns(s, x, y, rows.start, column, own, shift_b, target_b, margin, ahead_b)
            if progress is not None:
                progress(s.size)
    return ahead_a + 1, ahead_b + 1
