"""Data records to samples, compiled: the loops behind :mod:`sleepfm_fast.epochs`, which release Python's lock.

The records are traversed in their order in the file, and all signals are filled on the way. Numba checks no index:
callers must have checked the places.
"""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np

from sleepfm_fast.execution.addresses import as_pointer
from sleepfm_fast.execution.compiled import compiled

__all__ = ["SNAP_SAMPLES", "copy_epochs", "copy_records", "scale_records"]

SNAP_SAMPLES = 1e-3  # an onset this close to a sample is that sample: onsets are written in rounded decimals


# The loops run over slices from 0: an index that Numba cannot prove non-negative costs the vector instructions.
@compiled()
def widen24(source: Any, target: Any) -> None:
    """Widen 24-bit little-endian bytes to int32, sign-extended."""
    for i in range(target.size):
        low = np.int32(source[3 * i]) | (np.int32(source[3 * i + 1]) << np.int32(8))
        target[i] = low | (np.int32(np.int8(source[3 * i + 2])) << np.int32(16))


@compiled()
def copy16(source: Any, target: Any) -> None:
    """Copy int16 samples by a loop, which for the short pieces of a record takes two thirds of memcpy's time."""
    for i in range(target.size):
        target[i] = source[i]


@compiled()
def copy_records(
    records: Any, sample_units: int, like: Any, begin: int, end: int, starts: Any, lengths: Any, addresses: Any
) -> None:
    """Scatter the records ``[begin, end)`` to one array per signal, at ``addresses``, of the type of ``like``.

    ``records`` [n_records, elements] are those of the segment. A sample has ``sample_units`` elements: 1 of int16, or 3
    of uint8. ``starts`` and ``lengths`` count samples within a record.
    """
    n_records = records.shape[0]
    for record in range(begin, end):
        for s in range(starts.size):
            length = lengths[s]
            whole = numba.carray(as_pointer(addresses[s], like), (n_records * length,))  # type: ignore[attr-defined]
            target = whole[record * length : (record + 1) * length]
            source = records[record, sample_units * starts[s] : sample_units * (starts[s] + length)]
            if sample_units == 1:
                copy16(source, target)
            else:
                widen24(source, target)


@compiled()
def scale16(source: Any, target: Any, gain: Any, offset: Any) -> None:
    """Scale int16 samples to float32."""
    for i in range(target.size):
        target[i] = gain * np.float32(source[i]) + offset


@compiled()
def scale24(source: Any, target: Any, gain: Any, offset: Any) -> None:
    """Scale 24-bit little-endian bytes to float32, which holds them exactly."""
    for i in range(target.size):
        low = np.int32(source[3 * i]) | (np.int32(source[3 * i + 1]) << np.int32(8))
        target[i] = gain * np.float32(low | (np.int32(np.int8(source[3 * i + 2])) << np.int32(16))) + offset


@compiled()
def scale_records(
    records: Any, sample_units: int, begin: int, end: int, starts: Any, lengths: Any, addresses: Any, scales: Any
) -> None:
    """Scatter as :func:`copy_records`, as float32 ``gain * integer + offset``; ``scales`` [signal, (gain, offset)]."""
    like = np.float32(0)
    n_records = records.shape[0]
    for record in range(begin, end):
        for s in range(starts.size):
            length = lengths[s]
            whole = numba.carray(as_pointer(addresses[s], like), (n_records * length,))  # type: ignore[attr-defined]
            target = whole[record * length : (record + 1) * length]
            source = records[record, sample_units * starts[s] : sample_units * (starts[s] + length)]
            if sample_units == 1:
                scale16(source, target, scales[s, 0], scales[s, 1])
            else:
                scale24(source, target, scales[s, 0], scales[s, 1])


@compiled()
def find_segment(onset_s: float, epoch_s: float, slack_s: float, begins_s: Any, lengths_s: Any) -> int:
    """Find the first segment that an epoch lies wholly inside; -1 where there is none."""
    for segment in range(begins_s.size):
        begin = begins_s[segment]
        if onset_s >= begin - slack_s and onset_s + epoch_s <= begin + lengths_s[segment] + slack_s:
            return segment
    return -1


@compiled()
def copy_epochs(
    records: Any,
    sample_units: int,
    geometry: Any,
    rates_hz: Any,
    begins_s: Any,
    lengths_s: Any,
    first_records: Any,
    n_records: Any,
    onsets_s: Any,
    epoch_s: float,
    slack_s: float,
    begin: int,
    end: int,
    out: Any,
) -> int:
    """Fill each of the rows ``[begin, end)`` of ``out`` with all signals of an epoch, one signal after the other.

    ``geometry`` int64 [signal, 5] has, in samples: the signal's first sample within a record, its samples per record,
    the context on either side, the epoch with its context, and its place in the output row. Samples beyond the segment
    repeat its edge.
    Returns -1; or the row of the first epoch that lies in no segment, and then none of these rows is written.
    """
    for row in range(begin, end):
        if find_segment(onsets_s[row], epoch_s, slack_s, begins_s, lengths_s) < 0:
            return row
    n_signals = geometry.shape[0]
    places = np.empty((n_signals, 3), np.int64)
    for row in range(begin, end):
        segment = find_segment(onsets_s[row], epoch_s, slack_s, begins_s, lengths_s)
        first_record, last_record = n_records[segment], np.int64(0)
        for s in range(n_signals):
            per_record = geometry[s, 1]
            n_segment = n_records[segment] * per_record
            position = (onsets_s[row] - begins_s[segment]) * rates_hz[s]
            nearest = np.rint(position)
            at = np.int64(nearest) if abs(position - nearest) < SNAP_SAMPLES else np.int64(math.floor(position))
            low = min(max(at, 0), n_segment - 1) - geometry[s, 2]
            first, last = max(low, 0), min(low + geometry[s, 3], n_segment)
            places[s, 0], places[s, 1], places[s, 2] = low, first, last
            if last > first:
                first_record = min(first_record, first // per_record)
                last_record = max(last_record, (last - 1) // per_record + 1)
        for record in range(first_record, last_record):
            source = first_records[segment] + record
            for s in range(n_signals):
                per_record = geometry[s, 1]
                here = record * per_record
                a, b = max(places[s, 1], here), min(places[s, 2], here + per_record)
                if a < b:
                    at = geometry[s, 0] + a - here
                    begins = geometry[s, 4] + a - places[s, 0]
                    piece = records[source, sample_units * at : sample_units * (at + b - a)]
                    if sample_units == 1:
                        copy16(piece, out[row, begins : begins + b - a])
                    else:
                        widen24(piece, out[row, begins : begins + b - a])
        for s in range(n_signals):
            target = out[row, geometry[s, 4] : geometry[s, 4] + geometry[s, 3]]
            before, after = places[s, 1] - places[s, 0], places[s, 2] - places[s, 0]
            if after > before:
                target[:before] = target[before]
                target[after:] = target[after - 1]
    return -1
