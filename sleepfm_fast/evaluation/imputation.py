"""Features that could not be measured, as a linear classifier needs them: filled with the median, and marked.

Medians come from the clips a classifier is fitted on, so nothing of a test subject, nor of a training subject that a
few-shot draw left out, reaches it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["LARGEST_SAMPLE", "Imputer", "sample"]

LARGEST_SAMPLE = 65536  # a median of so many clips is known to 0.5 % of the spread between clips


@dataclass(frozen=True)
class Imputer:
    """Fills the holes of a matrix and appends columns that say where they were.

    Attributes
    ----------
    fill : float32 [k]
        Median of each column over the fitted clips that have it; 0 where none has.
    marked : int64 [i]
        The columns whose holes are marked: one for each pattern of holes, since the features of one channel are missing
        together. The marks (1 missing, 0 there) follow the columns.
    """

    fill: npt.NDArray[np.float32]
    marked: npt.NDArray[np.int64]

    @classmethod
    def fit(cls, x: npt.NDArray[np.float32]) -> Imputer:
        """Take medians and patterns from ``x`` [n, k], clips that a classifier will be fitted on; NaN is missing."""
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
        """Columns that come out."""
        return len(self.fill) + len(self.marked)

    def __call__(self, x: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
        """Fill clips ``x`` [n, k] into float32 [n, width]."""
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
        """Name what comes out, given the names of what goes in."""
        return (*columns, *(f"{columns[j]} missing" for j in self.marked))


def sample(clips: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Of many clips, :data:`LARGEST_SAMPLE` evenly spaced ones; of fewer, all."""
    if len(clips) <= LARGEST_SAMPLE:
        return clips
    return clips[np.linspace(0, len(clips) - 1, LARGEST_SAMPLE).round().astype(np.int64)]
