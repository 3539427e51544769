"""Fill features that could not be measured with the median, and mark them, as a linear classifier needs.

The medians are those of the clips that the classifier is fitted on, so that it learns nothing from a test subject, nor
from a training subject that a few-shot draw left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Imputer", "sample"]

LARGEST_SAMPLE = 65536  # the median of so many clips has a standard error of 0.5 % of the spread between clips


@dataclass(frozen=True)
class Imputer:
    """Fills the missing values (NaN) of a matrix, and appends columns that say where they were.

    Attributes
    ----------
    fill : float32 [k]
        Median of each column over those fitted clips that have it; 0 if none has.
    marked : int64 [i]
        The columns whose missing values are marked: one column for each distinct pattern of missing values, since the
        features of one channel are missing together. The marks (1 missing, 0 present) follow the k columns.
    """

    fill: npt.NDArray[np.float32]
    marked: npt.NDArray[np.int64]

    @classmethod
    def fit(cls, x: npt.NDArray[np.float32]) -> Imputer:
        """Take the medians and patterns from ``x`` [n, k], the clips of the fit, where NaN is a missing value."""
        fill = np.zeros(x.shape[1], np.float32)
        patterns: dict[bytes, int] = {}
        for j in range(x.shape[1]):
            missing = np.isnan(x[:, j])
            if missing.all():
                continue
            fill[j] = np.median(x[~missing, j])
            if missing.any():
                patterns.setdefault(np.packbits(missing).tobytes(), j)
        return cls(fill, np.array(sorted(patterns.values()), np.int64))

    @property
    def width(self) -> int:
        """Number of columns of a filled matrix: k, and one for each mark."""
        return len(self.fill) + len(self.marked)

    def __call__(self, x: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
        """Return clips ``x`` [n, k], filled and with marks, as float32 [n, width]."""
        k = len(self.fill)
        if x.ndim != 2 or x.shape[1] != k:
            raise ValueError(f"expected clips with {k} columns, got an array of shape {x.shape}")
        out = np.empty((len(x), self.width), np.float32)
        missing = np.isnan(x)
        np.copyto(out[:, :k], x)
        np.copyto(out[:, :k], self.fill, where=missing)
        out[:, k:] = missing[:, self.marked]
        return out

    def names(self, columns: Sequence[str]) -> tuple[str, ...]:
        """Return the names of the ``width`` columns of a filled matrix, given those of the k columns."""
        return (*columns, *(f"{columns[j]} missing" for j in self.marked))


def sample(clips: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return :data:`LARGEST_SAMPLE` evenly spaced clips; all of them where they are fewer."""
    if len(clips) <= LARGEST_SAMPLE:
        return clips
    return clips[np.linspace(0, len(clips) - 1, LARGEST_SAMPLE).round().astype(np.int64)]
