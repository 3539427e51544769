"""From the clip store to a batch: the native integers of each clip and channel, with the context its filter needs.

What comes out is what :func:`sleepfm_fast.ops.filter_resample` takes. All positions are computed for the whole batch at
once; the samples are copied by one compiled loop a recording, outside Python's lock, so that threads may gather in
parallel.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any, NamedTuple, Protocol

import numba
import numpy as np
import numpy.typing as npt

from sleepfm_fast.clips import ClipStore
from sleepfm_fast.stages import EPOCH_S

__all__ = ["Bank", "Batch", "Feed", "gather"]

Array = npt.NDArray[Any]
Int64 = npt.NDArray[np.int64]


class Bank(Protocol):
    """What is asked of a :class:`sleepfm_fast.filters.FilterBank`."""

    def index(self, kind: str, fs_hz: Fraction) -> int:
        """Return the number of the filter for a kind of channel at a native rate."""
        ...

    def up(self, f: int) -> int:
        """Return L of the resampling ratio L/M of filter ``f``."""
        ...

    def context(self, f: int) -> int:
        """Return how many native samples filter ``f`` needs on each side of a clip."""
        ...


class Batch(NamedTuple):
    """Arguments of ``filter_resample``.

    ``raw`` int16 or int32, 1-D: the windows of the batch one after the other. ``table`` int64 [B, C, 6]: offset into
    raw, length (0 = missing), start of the window and first sample of the clip (both counted in the segment), phase,
    filter. ``calibration`` float32 [B, C, 4]: gain, offset, center (0), scale (1).
    """

    raw: Array
    table: Int64
    calibration: npt.NDArray[np.float32]


@numba.njit(cache=True, nogil=True)
def copy_windows(
    source16: Any, source32: Any, raw: Any, rows: Any, itemsize: Any, begin: Any, offset: Any, length: Any
) -> None:
    """Copy the windows of the clips ``rows`` from one recording, seen as int16 and as int32, into ``raw``."""
    for row in rows:
        for c in range(length.shape[1]):
            source, target = begin[row, c], offset[row, c]
            if itemsize[row, c] == 2:
                for i in range(length[row, c]):
                    raw[target + i] = source16[source + i]
            else:
                for i in range(length[row, c]):
                    raw[target + i] = source32[source + i]


class Feed:
    """Gathers batches of one set of slots through one filter bank.

    Parameters
    ----------
    store : ClipStore
    slots : sequence of int
        Flat slot numbers, in the order the channels shall have; ``store.slots_of(modality)`` gives a modality's.
    bank : FilterBank
        Filters are designed here, one for each kind and native rate that occurs.
    """

    def __init__(self, store: ClipStore, slots: Sequence[int], bank: Bank) -> None:
        self.store = store
        self.bank = bank
        self.slots = np.asarray(slots, dtype=np.int64)
        if self.slots.ndim != 1 or np.any((self.slots < 0) | (self.slots >= len(store.slots))):
            raise ValueError(f"slots must be numbers from 0 to {len(store.slots) - 1}; given: {list(slots)}.")
        channels = store.channels
        self.present = np.asarray(channels.present[:, self.slots])
        self.fs_num = np.asarray(channels.fs_num[:, self.slots])
        self.fs_den = np.asarray(channels.fs_den[:, self.slots])
        self.itemsize = np.asarray(channels.itemsize[:, self.slots])
        self.calibration = np.zeros((*self.present.shape, 4), np.float32)
        self.calibration[..., 0] = channels.gain[:, self.slots]
        self.calibration[..., 1] = channels.offset[:, self.slots]
        self.calibration[..., 3] = 1
        self.filter = np.zeros(self.present.shape, np.int64)
        self.up = np.ones(self.present.shape, np.int64)
        self.context = np.zeros(self.present.shape, np.int64)
        for c, slot in enumerate(self.slots):
            rates = np.stack([self.fs_num[:, c], self.fs_den[:, c]], axis=1)
            for num, den in np.unique(rates[self.present[:, c]], axis=0):
                f = bank.index(store.slots[slot].kind, Fraction(int(num), int(den)))
                same = self.present[:, c] & (rates[:, 0] == num) & (rates[:, 1] == den)
                self.filter[same, c] = f
                self.up[same, c] = bank.up(f)
                self.context[same, c] = bank.context(f)

    def gather(self, clips: npt.ArrayLike) -> Batch:
        """Native windows of the clips ``clips`` (numbers into the store's rows, [B]), in their order.

        A window reaches from ``context`` samples before the clip to ``context`` samples after it, or to the end of the
        segment. ``raw`` is int16 unless the batch holds a channel that is stored in 32 bits.
        """
        store = self.store
        clips = np.asarray(clips, dtype=np.int64)
        recording = store.recording[clips].astype(np.int64)
        segment = store.first_segment[recording] + store.segment[clips]
        onset_s = store.onset_s[clips] - store.segment_onset_s[segment]
        present, up, den = self.present[recording], self.up[recording], self.fs_den[recording]
        num, context = self.fs_num[recording], self.context[recording]
        # Rounding to 1/L sample before dividing carries a phase of L over into the next sample.
        position = np.rint(onset_s[:, None] * num.astype(np.float64) * up / den).astype(np.int64)
        first, phase = np.divmod(position, up)
        last = first - (-(phase * den + EPOCH_S * num * up) // (den * up))
        start = np.maximum(first - context, 0)
        stop = np.minimum(last + context, store.run_n_samples[segment][:, self.slots])
        length = np.where(present, stop - start, 0)
        end = np.cumsum(length.ravel()).reshape(length.shape)
        offset = end - length

        itemsize = np.where(present, self.itemsize[recording], 2)
        raw = np.empty(int(length.sum()), np.int16 if np.all(itemsize == 2) else np.int32)
        begin = store.run_offset[segment][:, self.slots] // itemsize + start
        order = np.argsort(recording, kind="stable")
        for rows in np.split(order, np.flatnonzero(np.diff(recording[order])) + 1):
            if len(rows):
                source = store.samples(int(recording[rows[0]]))
                copy_windows(source.view(np.int16), source.view(np.int32), raw, rows, itemsize, begin, offset, length)

        table = np.stack([offset, length, start, first, phase, self.filter[recording]], axis=-1)
        table[~present] = 0
        return Batch(raw, table, self.calibration[recording])


def gather(store: ClipStore, clip_indices: npt.ArrayLike, slots: Sequence[int], bank: Bank) -> Batch:
    """Gather one batch; see :class:`Feed`, which is prepared once per store, slots and bank and kept with the store.

    Parameters
    ----------
    store : ClipStore
    clip_indices : array-like of int [B]
    slots : sequence of int [C]
    bank : FilterBank

    Returns
    -------
    Batch
        ``(raw, table [B, C, 6], calibration [B, C, 4])``.
    """
    key = (tuple(slots), id(bank))
    feed = store.feeds.get(key)
    if not isinstance(feed, Feed):
        feed = store.feeds[key] = Feed(store, slots, bank)
    return feed.gather(clip_indices)
