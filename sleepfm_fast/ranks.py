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

import numpy as np
import numpy.typing as npt
import torch

from sleepfm_fast import _C

__all__ = ["Rows", "pair_ranks"]

QUERY_BLOCK = 4096
CANDIDATE_BLOCK = 2048


class Rows(Protocol):
    """A matrix [N, D] that gives blocks of rows: an array, or rows that stay on disk."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows and columns."""

    def __getitem__(self, rows: slice, /) -> Any:
        """Return the rows of a slice as float32 [n, D]."""


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

    Memory is ``8 (query_block + candidate_block) D`` bytes, a tile a thread, and a few numbers a clip; both operands
    are read block by block.

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
        _C.own_inner_products(x.ctypes.data, y.ctypes.data, own[rows].ctypes.data, len(x), dim)
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
    # The float64 roundings of own, f, g and centre, which count where T itself is (nearly) zero, as for a single clip.
    lengths = largest + np.linalg.norm((wide_a, wide_b), axis=1)
    margin += 4 * 2.0**-53 * (dim + 8) * float(lengths.prod())
    target_a, target_b = own - g, own - f - centre
    # Of the rows (columns): limits, the own similarity, and what a row (column) adds where the other compares.
    tables: list[list[npt.NDArray[Any]]] = [
        [(target - margin).astype(np.float32), (target + margin).astype(np.float32), own, shift.astype(np.float32)]
        for target, shift in ((target_a, h), (target_b, f))
    ]
    ahead = np.zeros((2, n), np.int64)
    n_threads = torch.get_num_threads()
    n_bytes = _C.pair_ranks_bytes(min(query_block, n), min(candidate_block, n), dim, n_threads)
    workspace = torch.empty(n_bytes, dtype=torch.uint8)

    def addresses(arrays: list[npt.NDArray[Any]], first: int) -> Any:
        return tuple(array[first:].ctypes.data for array in arrays)

    for rows in blocks:
        x = _block(a, rows)
        for column in range(0, n, candidate_block):
            y = _block(b, slice(column, min(column + candidate_block, n)))
            _C.pair_ranks(
                (x.ctypes.data, y.ctypes.data),
                (len(x), len(y), dim),
                (rows.start, column),
                (mean_a.ctypes.data, mean_b.ctypes.data),
                addresses(tables[0], rows.start),
                addresses(tables[1], column),
                (ahead[0, rows.start :].ctypes.data, ahead[1, column:].ctypes.data),
                column == 0,
                n_threads,
                workspace.data_ptr(),
            )
            if progress is not None:
                progress(len(x) * len(y))
    return ahead[0] + 1, ahead[1] + 1
