"""Features as a linear classifier needs them: holes filled and marked, every column of mean 0 and variance 1.

Everything is measured on the clips a classifier is fitted on, so nothing of a test subject, nor of a training subject
that a few-shot draw left out, reaches it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Standardiser"]

Matrix = npt.NDArray[np.float32]
COLUMNS = 64  # columns that are sorted or summed in float64 at a time


@dataclass(frozen=True)
class Standardiser:
    """Fill what is missing with the median, add a column that says so, subtract the mean, divide by the deviation.

    Attributes
    ----------
    fill : float64 [k]
        Median of each column over the fitted clips that have it; 0 where none has.
    centre, scale : float64 [k]
        Mean and standard deviation after filling; a column that does not vary has scale 1.
    marked : int64 [i]
        The columns whose holes are marked: one for each pattern of holes, since the features of one channel are missing
        together. The marks (1 missing, 0 there) follow the columns.
    """

    fill: npt.NDArray[np.float64]
    centre: npt.NDArray[np.float64]
    scale: npt.NDArray[np.float64]
    marked: npt.NDArray[np.int64]

    @classmethod
    def fit(cls, x: npt.NDArray[np.floating]) -> Standardiser:
        """Measure the columns of ``x`` [n, k], the clips that a classifier will be fitted on; NaN is missing."""
        k = x.shape[1]
        fill, centre, scale = np.zeros(k), np.zeros(k), np.ones(k)
        patterns: dict[bytes, int] = {}
        for begin in range(0, k, COLUMNS):
            block = np.array(x[:, begin : begin + COLUMNS], np.float64)
            missing = np.isnan(block)
            for j in range(block.shape[1]):
                holes = missing[:, j]
                if holes.all():
                    block[:, j] = 0.0
                    continue
                fill[begin + j] = np.median(block[~holes, j])
                if holes.any():
                    patterns.setdefault(np.packbits(holes).tobytes(), begin + j)
                    block[holes, j] = fill[begin + j]
            if len(block):
                mean, deviation = block.mean(0), block.std(0)
                # Below this a deviation is the rounding of a constant column.
                varies = deviation > 1e-7 * np.maximum(np.abs(mean), 1e-30)
                centre[begin : begin + COLUMNS] = mean
                scale[begin : begin + COLUMNS] = np.where(varies, deviation, 1.0)
        return cls(fill, centre, scale, np.array(sorted(patterns.values()), np.int64))

    @property
    def width(self) -> int:
        """Columns that come out."""
        return len(self.fill) + len(self.marked)

    def __call__(self, x: npt.NDArray[np.floating]) -> Matrix:
        """Standardise clips ``x`` [n, k] into float32 [n, width]."""
        k = len(self.fill)
        if x.ndim != 2 or x.shape[1] != k:
            raise ValueError(f"expected clips with {k} columns, got an array of shape {x.shape}")
        out = np.empty((len(x), self.width), np.float32)
        for begin in range(0, k, COLUMNS):
            columns = slice(begin, min(begin + COLUMNS, k))
            block = np.array(x[:, columns], np.float64)
            block = np.where(np.isnan(block), self.fill[columns], block)
            out[:, columns] = (block - self.centre[columns]) / self.scale[columns]
        out[:, k:] = np.isnan(x[:, self.marked])
        return out

    def names(self, columns: Sequence[str]) -> tuple[str, ...]:
        """Name what comes out, given the names of what goes in."""
        return (*columns, *(f"{columns[j]} missing" for j in self.marked))
