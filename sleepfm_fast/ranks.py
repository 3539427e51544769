"""Retrieval ranks between two modalities, by float64 similarities, computed in blocks without an N x N matrix.

With S_rc = <a_r, b_c>, the rank of query r among N candidates is

    rank_r = 1 + #{c != r : S_rc > S_rr} + #{c < r : S_rc = S_rr},

so 1 is best, and of equally similar candidates the earlier one ranks first. Each block of S serves both directions, a
-> b along its rows and b -> a along its columns.

Most comparisons are decided by a coarse similarity with a proven bound of its error. Encoders put all embeddings into a
narrow cone where inner products hardly differ, so the operands are centred by their means, A = a - m_a and B = b - m_b:

    S_rc - <m_a, m_b> = <A_r, B_c> + h_r + f_c,    h_r = <A_r, m_b>,    f_c = <B_c, m_a>.

Each vector becomes 16-bit integers q in steps of a d proportional to its length, A_r = d_r q_r + e_r, with
|q_r| < 2^15.5. The residues |e_r|, about sqrt(D / 12) d_r, are computed from the q that are used. Then <q_r, q_c> is an
exact product of integers that fits 32 bits (Cauchy-Schwarz), and

    |<A_r, B_c> - d_r d_c <q_r, q_c>| <= |e_r| |B_c| + |d_r q_r| |e_c|.

What remains is the rounding to float32 (u = 2^-24) of the integer, of the products with d_r and d_c, of the shifts and
of the sums: at most 6 u |A_r| |B_c| + 5 u (|h_r| + |f_c|). The first term is added to the |e|, and the second widens
the limits around S_rr - <m_a, m_b>. A comparison closer than these bounds is decided by the float64 inner product
<a_r, b_c>, summed in one fixed order. The ranks therefore depend neither on the blocks nor on the processor, and
duplicates tie exactly.
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
_U = 2.0**-24


class Rows(Protocol):
    """A matrix [N, D] that can be read by blocks of rows: an array, or rows that stay on disk."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows and columns."""

    def __getitem__(self, rows: slice, /) -> Any:
        """Return the rows of a slice as floats [n, D]."""


def _block(rows: Rows, which: slice) -> npt.NDArray[np.float32]:
    return np.ascontiguousarray(rows[which], dtype=np.float32)


class _Modality:
    """What the kernel needs of every clip in one modality besides its embedding; see RankOperand in csrc/params.h."""

    def __init__(self, n: int, mean: npt.NDArray[np.float32]) -> None:
        self.mean = mean
        self.factor = np.empty(n, np.float32)
        self.step, self.length, self.residue, self.shift = np.empty((4, n))
        self.ahead = np.zeros(n, np.int64)

    def measure(self, which: slice, x: npt.NDArray[np.float32], other: _Modality, n_threads: int) -> None:
        """Measure the embeddings ``x`` of the rows ``which``: fill these rows of all arrays but ``ahead``."""
        results = (self.factor, self.step, self.length, self.residue, self.shift)
        _C.measure_rank_rows(
            x.ctypes.data,
            (self.mean.ctypes.data, other.mean.ctypes.data),
            (len(x), len(self.mean)),
            tuple(each[which].ctypes.data for each in results),
            n_threads,
        )

    def bound(self) -> None:
        """Turn lengths and residues into upper bounds that cover the rounding in the kernel and of the float64 sums."""
        self.length = (1 + 2.0**-20 + len(self.mean) * 2.0**-50) * (self.length + self.residue)
        self.residue = 1.0001 * self.residue + 6 * _U * self.length

    def tables(self, unit: float, limits: tuple[npt.NDArray[Any], ...]) -> tuple[npt.NDArray[Any], ...]:
        """Return the arrays of RankOperand, in its order: lengths are in multiples of ``unit``."""
        lengths = ((each / unit).astype(np.float32) for each in (self.step, self.length, self.residue))
        return (self.factor, *lengths, self.shift.astype(np.float32), *limits, self.ahead)


def pair_ranks(
    a: Rows,
    b: Rows,
    *,
    query_block: int = QUERY_BLOCK,
    candidate_block: int = CANDIDATE_BLOCK,
    progress: Callable[[int], object] | None = None,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Rank every clip's own embedding in the other modality among the embeddings of all clips.

    Both operands are read block by block. The memory is ``6 (query_block + candidate_block) D`` bytes (float32 and
    16-bit integers), a tile per thread, and a few numbers per clip.

    Parameters
    ----------
    a, b : float32 [N, D]
        The same clips in two modalities, as arrays or :class:`Rows`; row r of both is clip r. Other numbers are rounded
        to float32 first.
    query_block, candidate_block : int
        Rows of ``a`` and of ``b`` in a block.
    progress : callable, optional
        Called with the number of similarities just computed.

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
    if n == 0:
        return np.empty(0, np.int64), np.empty(0, np.int64)
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
    queries, candidates = _Modality(n, mean_a), _Modality(n, mean_b)
    n_threads = torch.get_num_threads()
    for rows in blocks:
        queries.measure(rows, _block(a, rows), candidates, n_threads)
        candidates.measure(rows, _block(b, rows), queries, n_threads)
    tables = _tables(queries, candidates, own)
    n_bytes = _C.pair_ranks_bytes(min(query_block, n), min(candidate_block, n), dim, n_threads)
    workspace = torch.empty(n_bytes, dtype=torch.uint8, device="cpu")

    def addresses(side: int, x: npt.NDArray[np.float32], first: int) -> tuple[int, ...]:
        mean = (mean_a, mean_b)[side]
        return (x.ctypes.data, mean.ctypes.data, *(table[first:].ctypes.data for table in tables[side]))

    for rows in blocks:
        x = _block(a, rows)
        for column in range(0, n, candidate_block):
            y = _block(b, slice(column, min(column + candidate_block, n)))
            _C.pair_ranks(
                addresses(0, x, rows.start),
                addresses(1, y, column),
                (len(x), len(y), dim),
                (rows.start, column),
                column == 0,
                n_threads,
                workspace.data_ptr(),
            )
            if progress is not None:
                progress(len(x) * len(y))
    return queries.ahead + 1, candidates.ahead + 1


def _tables(
    queries: _Modality, candidates: _Modality, own: npt.NDArray[np.float64]
) -> tuple[tuple[npt.NDArray[Any], ...], ...]:
    """Return the arrays of RankOperand for queries and candidates, scaled to units in which float32 can hold them."""
    wide_a, wide_b = queries.mean.astype(np.float64), candidates.mean.astype(np.float64)
    centre = float(wide_a @ wide_b)
    target = own - centre
    # Bound of the float64 rounding of own, the shifts and the centre. It matters only where the centred vectors are
    # (nearly) zero, as with a single clip.
    lengths = [each.length.max() + np.linalg.norm(each.mean.astype(np.float64)) for each in (queries, candidates)]
    margin = 4 * 2.0**-53 * (len(wide_a) + 8) * float(np.prod(lengths))
    for each in (queries, candidates):
        each.bound()
    shifts = np.abs(queries.shift).max() + np.abs(candidates.shift).max()
    margin += 5 * _U * shifts
    # The units are powers of two, so that scaling is exact, and such that no similarity exceeds 4 and no length 2. What
    # then underflows in float32 is below 2^-100 of the unit, which is added to the margin.
    longest = queries.length.max(), candidates.length.max()
    unit = 2.0 ** float(np.frexp(max(longest[0] * longest[1], shifts, np.abs(target).max()))[1])
    unit_a = 2.0 ** float(np.frexp(longest[0])[1])
    margin += 2.0**-100 * unit
    low = np.nextafter(((target - margin) / unit).astype(np.float32), np.float32(-np.inf))
    high = np.nextafter(((target + margin) / unit).astype(np.float32), np.float32(np.inf))
    for each in (queries, candidates):
        each.shift /= unit
    limits = (low, high, own)
    return queries.tables(unit_a, limits), candidates.tables(unit / unit_a, limits)
