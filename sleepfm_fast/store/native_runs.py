"""A channel of a recording at its native rate, in physical units, read window by window."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sleepfm_fast.clips import ClipStore
from sleepfm_fast.scoring.stages import EPOCH_S

__all__ = ["BLOCK", "NativeRun", "native_run"]

Array = npt.NDArray[np.float64]
BLOCK = 128  # windows that `blocks` holds at a time: 15 MiB of float64 at 512 Hz


@dataclass(frozen=True)
class NativeRun:
    """One uninterrupted stretch of a channel.

    Attributes
    ----------
    integers : int16 or int32 [n]
        As recorded; physical value = ``gain`` * integer + ``offset``.
    gain, offset : float
    fs_hz : float
    unit : str
    """

    integers: npt.NDArray[Any]
    gain: float
    offset: float
    fs_hz: float
    unit: str

    def __len__(self) -> int:
        """Count the samples."""
        return len(self.integers)

    def physical(self, start: int = 0, stop: int | None = None) -> Array:
        """Return samples ``start`` to ``stop`` (exclusive) in the channel's unit, float64."""
        return np.asarray(self.integers[start:stop], np.float64) * self.gain + self.offset

    def windows(self, onset_s: Array, length_s: float = EPOCH_S) -> Array:
        """Return windows of equal length that begin ``onset_s`` [n] seconds into the run, as float64 [n, samples].

        A window has floor(length * rate) samples, beginning with the one nearest to its onset; places outside the run
        are NaN. Rounding may put a clip's last sample one beyond the run's end: its window then begins one earlier.
        """
        n = int(length_s * self.fs_hz + 1e-6)
        start = np.rint(onset_s * self.fs_hz).astype(np.int64)
        start = np.where(start + n == len(self) + 1, start - 1, start)
        places = start[:, None] + np.arange(n)
        inside = (places >= 0) & (places < len(self))
        if not len(self):
            return np.full(places.shape, np.nan)
        values = np.asarray(self.integers[np.clip(places, 0, len(self) - 1)], np.float64) * self.gain + self.offset
        values[~inside] = np.nan
        return values

    def blocks(self, onset_s: Array) -> Iterator[tuple[slice, Array]]:
        """Yield the windows of the clips at ``onset_s``, :data:`BLOCK` at a time, each block with its slice of rows."""
        for begin in range(0, len(onset_s), BLOCK):
            rows = slice(begin, min(begin + BLOCK, len(onset_s)))
            yield rows, self.windows(onset_s[rows])


def native_run(store: ClipStore, recording: int, slot: int, segment: int) -> NativeRun | None:
    """Open a channel's run; None where the recording lacks the channel or has less than one sample of it a clip."""
    fs = store.fs_hz(recording, slot)
    if fs is None or fs * EPOCH_S < 1:
        return None
    columns = store.channels
    return NativeRun(
        store.run(recording, slot, segment),
        float(columns.gain[recording, slot]),
        float(columns.offset[recording, slot]),
        float(fs),
        store.units[columns.unit[recording, slot]],
    )
