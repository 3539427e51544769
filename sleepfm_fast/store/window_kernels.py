"""From clip numbers to windows of samples, compiled: locate them, announce them to the kernel, copy or read them.

The functions release Python's lock, so that threads may gather in parallel. Only :func:`locate_windows` checks bounds;
the others trust its ``table`` and ``places``.
"""

from __future__ import annotations

import mmap
from typing import Any

import numba
import numpy as np

from sleepfm_fast.execution.addresses import advise_file, advise_memory, as_pointer, copy_bytes, read_bytes
from sleepfm_fast.execution.compiled import compiled
from sleepfm_fast.scoring.stages import EPOCH_S

__all__ = ["CHANNEL_COLUMNS", "announce_windows", "copy_windows", "locate_windows", "read_windows"]

CHANNEL_COLUMNS = ("itemsize", "up", "fs_num", "fs_den", "context", "filter", "slot")
"""Columns of a feed's facts about each (recording, channel); ``itemsize`` is 0 where the channel is missing."""
WILL_NEED = 3  # POSIX_FADV_WILLNEED and MADV_WILLNEED
PAGE_BYTES = mmap.PAGESIZE  # madvise(2) takes addresses at multiples of it: 4 KiB, but 64 KiB on some ARM systems


@compiled()
def locate_windows(
    clips: Any,
    recording: Any,
    segment: Any,
    onset_s: Any,
    first_segment: Any,
    segment_onset_s: Any,
    run_offset: Any,
    run_n_samples: Any,
    n_bytes: Any,
    channels: Any,
    table: Any,
    places: Any,
) -> Any:
    """Fill ``table`` int64 [B, C, 6], as in ``Batch``, and ``places`` int64 [B, C, 2].

    ``places`` has the window's first byte in the recording's file and its bytes per sample. The arguments before them
    are B clip numbers, columns of the store, the files' lengths and ``channels`` int64 [n_recordings, C, 7] with the
    columns :data:`CHANNEL_COLUMNS`.

    Returns the samples of all windows together, the bytes of the widest sample (2 or 4), and -1; or, as the third, the
    row of a clip whose window the index places outside its file.
    """
    total, widest = np.int64(0), np.int64(2)
    for row in range(clips.size):
        clip = clips[row]
        night = recording[clip]
        stretch = first_segment[night] + segment[clip]
        onset = onset_s[clip] - segment_onset_s[stretch]
        for c in range(channels.shape[1]):
            itemsize, up, num, den = (
                channels[night, c, 0],
                channels[night, c, 1],
                channels[night, c, 2],
                channels[night, c, 3],
            )
            if itemsize == 0:
                table[row, c, :] = 0
                places[row, c, :] = 0
                continue
            # The clip's onset on the grid of 1/L samples (L = up). It is rounded there and split afterwards, so that
            # a phase that rounds up to L becomes phase 0 of the next sample.
            position = np.int64(np.rint(onset * np.float64(num) * up / den))
            first, phase = position // up, position % up
            # first + ceil(phase / L + EPOCH_S * rate): one past the last sample within the clip, in integers.
            last = first - (-(phase * den + EPOCH_S * num * up) // (den * up))
            context, slot = channels[night, c, 4], channels[night, c, 6]
            start = max(first - context, 0)
            stop = min(last + context, run_n_samples[stretch, slot])
            length = max(stop - start, 0)
            place = run_offset[stretch, slot] + itemsize * start
            if place < 0 or place + itemsize * length > n_bytes[night]:
                return total, widest, row
            table[row, c, 0] = total
            table[row, c, 1] = length
            table[row, c, 2] = start
            table[row, c, 3] = first
            table[row, c, 4] = phase
            table[row, c, 5] = channels[night, c, 5]
            places[row, c, 0] = place
            places[row, c, 1] = itemsize
            total += length
            widest = max(widest, itemsize)
    return total, widest, -1


@compiled()
def announce_windows(table: Any, places: Any, source: Any, addresses: Any, files: Any, begin: int, end: int) -> None:
    """Ask the kernel to read the windows of the rows ``[begin, end)`` into the page cache, without waiting for them.

    ``source`` int64 [B] is the index of a row's recording in ``addresses`` (0: not mapped) and ``files``.
    """
    for row in range(begin, end):
        address, file = addresses[source[row]], files[source[row]]
        for c in range(table.shape[1]):
            n_bytes = table[row, c, 1] * places[row, c, 1]
            if n_bytes == 0:
                continue
            if address != 0:
                begins = address + places[row, c, 0]
                aligned = begins - begins % PAGE_BYTES
                advise_memory(aligned, np.uint64(n_bytes + begins - aligned), np.int32(WILL_NEED))
            else:
                advise_file(np.int32(file), places[row, c, 0], n_bytes, np.int32(WILL_NEED))


@compiled()
def widen(source: int, target: int, n_samples: int) -> None:
    """Widen int16 samples to int32; ``source`` may be the second half of ``target``.

    In ascending order this is safe: writing ``wide[i]`` overwrites the bytes 4 i to 4 i + 3, and the narrow samples
    that are still to be read, j > i, lie at 2 n + 2 j, which is beyond them as i < n.
    """
    narrow = numba.carray(as_pointer(source, np.int16(0)), (n_samples,))  # type: ignore[attr-defined]
    wide = numba.carray(as_pointer(target, np.int32(0)), (n_samples,))  # type: ignore[attr-defined]
    for i in range(n_samples):
        wide[i] = narrow[i]


@compiled()
def copy_windows(
    table: Any, places: Any, source: Any, addresses: Any, raw: int, raw_itemsize: int, begin: int, end: int
) -> None:
    """Copy the windows of the rows ``[begin, end)`` out of mapped recordings to the address ``raw``.

    A window goes to ``table``'s offset times ``raw_itemsize`` bytes; int16 samples are widened where that is 4.
    """
    for row in range(begin, end):
        address = addresses[source[row]]
        for c in range(table.shape[1]):
            n_samples, itemsize = table[row, c, 1], places[row, c, 1]
            target = raw + raw_itemsize * table[row, c, 0]
            if itemsize == raw_itemsize:
                copy_bytes(target, address + places[row, c, 0], n_samples * itemsize)
            elif n_samples:
                widen(address + places[row, c, 0], target, n_samples)


@compiled()
def read_windows(
    table: Any, places: Any, source: Any, files: Any, raw: int, raw_itemsize: int, begin: int, end: int
) -> int:
    """As :func:`copy_windows`, by pread(2). Returns -1, or the row whose file ended early or could not be read."""
    for row in range(begin, end):
        file = np.int32(files[source[row]])
        for c in range(table.shape[1]):
            n_samples, itemsize = table[row, c, 1], places[row, c, 1]
            target = raw + raw_itemsize * table[row, c, 0]
            # Narrow samples are read into the second half of their target, from where `widen` spreads them over all of
            # it. Samples that are not widened have narrow == target.
            narrow = target + (raw_itemsize - itemsize) * n_samples
            n_bytes, done = n_samples * itemsize, np.int64(0)
            while done < n_bytes:
                n = read_bytes(file, narrow + done, np.uint64(n_bytes - done), places[row, c, 0] + done)
                if n <= 0:
                    return row
                done += n
            if itemsize != raw_itemsize and n_samples:
                widen(narrow, target, n_samples)
    return -1
