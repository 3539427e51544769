"""From the clip store to a batch: the native integers of each clip and channel, with the context its filter needs.

What comes out is what :func:`sleepfm_fast.ops.filter_resample` takes. Positions and copies are compiled and hold no
lock, so that threads may gather in parallel.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sleepfm_fast.clips import ClipStore, ClipStoreError
from sleepfm_fast.execution.threads import in_threads
from sleepfm_fast.filters import FilterBank
from sleepfm_fast.plurals import counted
from sleepfm_fast.storage.open_files import Opened, Recent
from sleepfm_fast.storage.row_numbers import row_numbers
from sleepfm_fast.store.window_kernels import (
    CHANNEL_COLUMNS,
    announce_windows,
    copy_windows,
    locate_windows,
    read_windows,
)

__all__ = ["Batch", "Buffer", "Feed", "WholeRecordings"]

Array = npt.NDArray[Any]
Int64 = npt.NDArray[np.int64]


class Batch(NamedTuple):
    """The first three arguments of :func:`sleepfm_fast.ops.filter_resample`.

    Attributes
    ----------
    raw : int16 or int32 [n]
        The windows of the batch one after the other, clip by clip and within a clip channel by channel.
    table : int64 [B, C, 6]
        Offset of the window in ``raw``, its length (0: the channel is missing), its first sample and the clip's first
        sample (both counted from the start of the segment), the clip's phase in 1/L samples, and the filter's number.
    calibration : float32 [B, C, 4]
        Gain, offset, centre and scale; here the centre is 0 and the scale 1.
    """

    raw: Array
    table: Int64
    calibration: npt.NDArray[np.float32]


class Buffer:
    """Memory that is reused for the integers of one batch after the other; it grows to the largest batch.

    Reused memory has its pages already, where fresh memory would fault each of them in. A batch that was gathered into
    a buffer is overwritten by the next one.
    """

    def __init__(self) -> None:
        self._memory = np.empty(0, np.uint8)

    def take(self, n_bytes: int) -> npt.NDArray[np.uint8]:
        """Return the first ``n_bytes`` of the memory; where it must grow, it grows by an eighth more than it must."""
        if n_bytes > self._memory.size:
            self._memory = np.empty(n_bytes + n_bytes // 8, np.uint8)
        return self._memory[:n_bytes]


class Feed:
    """Gathers batches of one set of slots through one filter bank.

    Parameters
    ----------
    store : ClipStore
    slots : sequence of int
        Slot numbers counted through all modalities, in the order of the batch's channels;
        ``store.slots_of(modality)`` gives a modality's.
    bank : FilterBank
        The constructor has it design a filter for each kind and native rate that occurs.
    """

    def __init__(self, store: ClipStore, slots: Sequence[int], bank: FilterBank) -> None:
        self.store = store
        self.bank = bank
        self.slots = np.asarray(slots, dtype=np.int64)
        if self.slots.ndim != 1 or np.any((self.slots < 0) | (self.slots >= len(store.slots))):
            raise ValueError(f"slots must be numbers from 0 to {len(store.slots) - 1}; given: {list(slots)}.")
        channels = store.channels
        self.present = np.asarray(channels.present[:, self.slots])
        self.calibration = np.zeros((*self.present.shape, 4), np.float32)
        self.calibration[..., 0] = channels.gain[:, self.slots]
        self.calibration[..., 1] = channels.offset[:, self.slots]
        self.calibration[..., 3] = 1
        rows = np.zeros((*self.present.shape, len(CHANNEL_COLUMNS)), np.int64)
        rows[..., 0] = np.where(self.present, channels.itemsize[:, self.slots], 0)
        rows[..., 1] = 1
        rows[..., 2] = channels.fs_num[:, self.slots]
        rows[..., 3] = channels.fs_den[:, self.slots]
        rows[..., 6] = self.slots
        for c, slot in enumerate(self.slots):
            for num, den in np.unique(rows[self.present[:, c], c, 2:4], axis=0):
                f = bank.index(store.slots[slot].kind, Fraction(int(num), int(den)))
                same = self.present[:, c] & (rows[:, c, 2] == num) & (rows[:, c, 3] == den)
                rows[same, c, 1] = bank.up(f)
                rows[same, c, 4] = bank.context(f)
                rows[same, c, 5] = f
        self._columns: tuple[Any, ...] = (
            *(np.asarray(column) for column in (store.recording, store.segment, store.onset_s, store.first_segment)),
            *(np.asarray(column) for column in (store.segment_onset_s, store.run_offset, store.run_n_samples)),
            np.array([entry.n_bytes for entry in store.recordings], np.int64),
            rows,
        )
        # Clips whose windows the kernel was asked to read. In a store that fits in memory they stay in the page cache,
        # so that the mark is kept; otherwise `gather` clears it, since the pages may be dropped after their use.
        self._announced = np.zeros(len(store), np.bool_)

    def gather(self, clips: npt.ArrayLike, out: Buffer | None = None) -> Batch:
        """Gather the native windows of some clips, in the order given.

        A window reaches from ``context`` samples before the clip to ``context`` samples after it, cut off at the ends
        of the segment. ``raw`` is int16 unless the batch holds a channel that is stored in 32 bits.

        Parameters
        ----------
        clips : array-like of int [B]
            Numbers of the clips in the store; negative ones count from the end. Or bool, one for each of the store.
        out : Buffer, optional
            Memory for ``raw``; by default fresh memory.

        Raises
        ------
        ClipStoreError
            When the index and the files do not agree, or a file cannot be read.
        """
        numbers = self._numbers(clips)
        table, places, total, widest = self._locate(numbers)
        n_bytes = total * widest
        memory = np.empty(n_bytes, np.uint8) if out is None else out.take(n_bytes)
        raw: Array = memory.view(np.int16 if widest == 2 else np.int32)
        if len(numbers):
            for rows, source, opened in self._open(numbers):
                self._copy(numbers[rows], table[rows], places[rows], source, opened, raw)
            if not self.store.fits:
                self._announced[numbers] = False
        return Batch(raw, table, self.calibration[np.asarray(self.store.recording[numbers])])

    def _copy(self, numbers: Int64, table: Int64, places: Int64, source: Int64, opened: Opened, raw: Array) -> None:
        """Copy the windows of some clips, whose recordings are open, to their places in ``raw``."""
        n_bytes = int(table[:, :, 1].sum()) * raw.itemsize
        cold = self._announce(numbers, table, places, source, opened, n_bytes)
        address, failed = raw.ctypes.data, []

        def work(begin: int, end: int) -> None:
            if opened.files is None:
                copy_windows(table, places, source, opened.addresses, address, raw.itemsize, begin, end)
                return
            row = read_windows(table, places, source, opened.descriptors, address, raw.itemsize, begin, end)
            if row >= 0:
                failed.append(row)

        # Waits for the disk or for system calls overlap in threads; copies out of maps that are in memory are fast
        # enough on one core.
        if cold or opened.files is not None:
            in_threads(work, len(numbers), n_bytes)
        else:
            work(0, len(numbers))
        if failed:
            raise self.store.unread(int(self.store.recording[numbers[min(failed)]]))

    def announce(self, clips: npt.ArrayLike) -> None:
        """Ask the system to read clips that will be gathered soon; returns without waiting for the disk.

        In a store that is not in memory each channel of a random clip costs a disk access. Once announced, the accesses
        of a whole batch run concurrently. Clips that were announced before cost next to nothing.
        """
        numbers = self._numbers(clips)
        numbers = numbers[~self._announced[numbers]]
        if len(numbers):
            table, places, total, widest = self._locate(numbers)
            for rows, source, opened in self._open(numbers):
                self._announce(numbers[rows], table[rows], places[rows], source, opened, total * widest)

    def _announce(
        self, numbers: Int64, table: Int64, places: Int64, source: Int64, opened: Opened, n_bytes: int
    ) -> bool:
        """Announce the windows of all these clips unless every one is marked as announced; return whether it did."""
        cold = not self._announced[numbers].all()
        if cold:
            in_threads(
                lambda begin, end: announce_windows(
                    table, places, source, opened.addresses, opened.descriptors, begin, end
                ),
                len(numbers),
                n_bytes,
            )
            self._announced[numbers] = True
        return cold

    def _numbers(self, clips: npt.ArrayLike) -> Int64:
        """Check clip numbers and return them as int64 [B] from 0 on, negative ones counted from the end."""
        n = len(self.store)
        numbers = row_numbers(clips, n, "clips")
        if numbers.size and not -n <= numbers.min() <= numbers.max() < n:
            raise IndexError(
                f"clip {numbers[(numbers < -n) | (numbers >= n)][0]} is out of the store's {counted(n, 'clip')}"
            )
        return np.where(numbers < 0, numbers + n, numbers)

    def _locate(self, numbers: Int64) -> tuple[Int64, Int64, int, int]:
        """Return the windows' ``table`` and ``places``, their total of samples, and the bytes of the widest sample."""
        shape = (len(numbers), len(self.slots))
        table, places = np.empty((*shape, 6), np.int64), np.empty((*shape, 2), np.int64)
        located: Any = locate_windows
        total, widest, wrong = located(numbers, *self._columns, table, places)
        if wrong >= 0:
            recording = self.store.recordings[int(self.store.recording[numbers[wrong]])]
            raise ClipStoreError(
                f"the index of {self.store.path} is damaged: it places clip {numbers[wrong]} outside the "
                f"{recording.n_bytes} bytes of {recording.id}.bin. {self.store.index_remedy}"
            )
        return table, places, total, widest

    def _open(self, numbers: Int64) -> Iterator[tuple[Any, Int64, Opened]]:
        """Open the recordings of some clips, as many at a time as the store may have in use at once.

        Yields the rows of those clips in ``numbers``, each one's index among the recordings, and these, held open.
        """
        recordings, source = np.unique(np.asarray(self.store.recording)[numbers], return_inverse=True)
        source, n = source.reshape(-1), self.store.at_once
        if len(recordings) <= n:
            yield slice(None), source, self.store.open_recordings(recordings.tolist())
            return
        for first in range(0, len(recordings), n):
            rows = np.flatnonzero((source >= first) & (source < first + n))
            yield rows, source[rows] - first, self.store.open_recordings(recordings[first : first + n].tolist())


class WholeRecordings:
    """Has recordings read as a whole from their first clip on, where clips come from a bounded number at a time.

    A disk that must seek for every window reads a recording from beginning to end many times as fast, and what windows
    share (the samples around clips) is read once.

    Parameters
    ----------
    store : ClipStore
    in_play : int
        Recordings that have clips in a batch at a time. Twice as many are remembered: a recording that comes again
        after those has left the system's cache, perhaps, and is announced again.
    """

    def __init__(self, store: ClipStore, in_play: int) -> None:
        self.store = store
        self._announced: Recent[bool] = Recent(2 * in_play)

    def announce(self, clips: npt.ArrayLike) -> None:
        """Announce the recordings of some clips, those that were not announced lately."""
        for recording in np.unique(np.asarray(self.store.recording)[np.asarray(clips)]).tolist():
            self._announced.get(recording, self._read_soon)

    def _read_soon(self, recording: int) -> bool:
        self.store.read_soon(recording)
        return True
