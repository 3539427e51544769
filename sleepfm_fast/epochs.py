"""Data records to samples: whole segments, or epochs ``[clip, channel, sample]``, as the integers recorded.

The records are walked once, in the order they lie on disk, and every signal is filled on the way: the file is read
front to back whatever the number of signals. The kernels are compiled by Numba, hold no lock and run in plain threads,
each on its own block of records or clips (so they also work in forked and in threaded programs, where Numba's own
thread pool does not). ``NUMBA_NUM_THREADS`` sets how many.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from typing import Any, NamedTuple

import numba
import numpy as np
from numba import types
from numba.extending import intrinsic
from numpy.typing import ArrayLike, NDArray

from sleepfm_fast.edf import EdfError, Recording, Segment, Signal

__all__ = ["EpochPositions", "locate_epochs", "read_digital", "read_epochs"]

THREAD_BYTES = 1 << 20  # starting a thread costs what copying about 1 MB does
SNAP_SAMPLES = 1e-3  # an onset this close to a sample is that sample: onsets are written in rounded decimals


@intrinsic  # type: ignore[untyped-decorator]
def as_pointer16(typing_context: Any, address: Any) -> Any:  # noqa: ARG001
    """Take an integer as the address of int16 samples; a list of arrays would cost Numba more than the copying."""
    return types.CPointer(types.int16)(address), point


@intrinsic  # type: ignore[untyped-decorator]
def as_pointer32(typing_context: Any, address: Any) -> Any:  # noqa: ARG001
    """Take an integer as the address of int32 samples."""
    return types.CPointer(types.int32)(address), point


def point(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    """Emit the conversion of an integer to a pointer."""
    return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def copy_records16(
    records: Any, origin: int, begin: int, end: int, starts: Any, lengths: Any, addresses: Any, n_records: int
) -> None:
    """Scatter records ``[origin + begin, origin + end)``, seen as int16 ``[record, sample]``, to one array a signal."""
    for record in range(begin, end):
        for s in range(starts.size):
            length = lengths[s]
            target = numba.carray(as_pointer16(addresses[s]), (n_records * length,))
            source = starts[s]
            position = record * length
            for i in range(length):
                target[position + i] = records[origin + record, source + i]


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def copy_records24(
    records: Any, origin: int, begin: int, end: int, starts: Any, lengths: Any, addresses: Any, n_records: int
) -> None:
    """Scatter 24-bit records, seen as uint8 ``[record, byte]``, to one int32 array a signal, sign-extended."""
    for record in range(begin, end):
        for s in range(starts.size):
            length = lengths[s]
            target = numba.carray(as_pointer32(addresses[s]), (n_records * length,))
            source = 3 * starts[s]
            position = record * length
            for i in range(length):
                low = np.int32(records[origin + record, source + 3 * i])
                middle = np.int32(records[origin + record, source + 3 * i + 1])
                high = np.int32(np.int8(records[origin + record, source + 3 * i + 2]))
                target[position + i] = low | (middle << 8) | (high << 16)


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def copy_epochs(
    records: Any,
    begin: int,
    end: int,
    starts: Any,
    per_record: int,
    origins: Any,
    segment_samples: Any,
    firsts: Any,
    wide: bool,
    out: Any,
) -> None:
    """Fill clips ``[begin, end)``; sample indices count within the segment, those beyond it repeat its edge."""
    n_channels = starts.size
    n_out = out.shape[2]
    for clip in range(begin, end):
        low = firsts[clip]
        first = max(low, 0)
        last = min(low + n_out, segment_samples[clip])
        record = first // per_record
        while record * per_record < last:
            here = record * per_record
            a = max(first, here) - here
            b = min(last, here + per_record) - here
            position = here + a - low
            row = origins[clip] + record
            for channel in range(n_channels):
                source = starts[channel] + a
                if wide:
                    for i in range(b - a):
                        byte = 3 * (source + i)
                        value = np.int32(records[row, byte]) | (np.int32(records[row, byte + 1]) << 8)
                        out[clip, channel, position + i] = value | (np.int32(np.int8(records[row, byte + 2])) << 16)
                else:
                    for i in range(b - a):
                        out[clip, channel, position + i] = records[row, source + i]
            record += 1
        for channel in range(n_channels):
            for i in range(first - low):
                out[clip, channel, i] = out[clip, channel, first - low]
            for i in range(last - low, n_out):
                out[clip, channel, i] = out[clip, channel, last - low - 1]


def in_threads(work: Callable[[int, int], None], n_items: int, n_bytes: int) -> None:
    """Run ``work(begin, end)`` over blocks of items, in as many threads as the bytes are worth."""
    n_threads = max(1, min(int(numba.config.NUMBA_NUM_THREADS), n_items, n_bytes // THREAD_BYTES))
    if n_threads == 1:
        work(0, n_items)
        return
    bounds = [n_items * i // n_threads for i in range(n_threads + 1)]
    with ThreadPoolExecutor(n_threads) as pool:
        for _ in pool.map(work, bounds[:-1], bounds[1:]):
            pass


def sample_dtype(recording: Recording) -> np.dtype[Any]:
    """Native integer type: int16 for EDF, int32 for BDF."""
    return np.dtype(np.int16 if recording.sample_bytes == 2 else np.int32)


def mapped_samples(recording: Recording) -> NDArray[Any]:
    """Map the records as int16 ``[record, sample]`` (EDF) or as uint8 ``[record, byte]`` (BDF)."""
    records = recording.records()
    return records.view("<i2") if recording.sample_bytes == 2 else records


def sample_starts(recording: Recording, signals: Sequence[Signal]) -> NDArray[np.int64]:
    """Place of each signal's first sample within a record, in samples; refuse signals of another recording."""
    for signal in signals:
        if signal not in recording.signals:
            raise ValueError(f"the signal {signal.label!r} does not belong to {recording.path}; take it from .signals")
    return np.array([s.offset_bytes // recording.sample_bytes for s in signals], np.int64)


def read_digital(
    recording: Recording,
    signals: Sequence[Signal],
    segment: Segment,
    out: list[NDArray[Any]] | None = None,
) -> list[NDArray[Any]]:
    """Read a whole segment of several signals, of any mixture of rates, in one pass over the file.

    Parameters
    ----------
    recording : Recording
    signals : sequence of Signal
        Of this recording, in the order wanted.
    segment : Segment
        Of this recording.
    out : list of ndarray, optional
        One C-contiguous array a signal of ``segment.n_records * signal.samples_per_record`` native integers (int16
        for EDF, int32 for BDF), written in place. Arrays used again save the cost of fresh memory, which is higher
        than that of copying.

    Returns
    -------
    list of ndarray
        ``out``, or fresh arrays that share one buffer.

    Raises
    ------
    ValueError
        When a signal, the segment or an output array does not fit the recording.
    """
    starts = sample_starts(recording, signals)
    n_records = segment.n_records
    if not 0 <= segment.first_record <= segment.first_record + n_records <= recording.n_records:
        raise ValueError(f"{segment} lies outside the {recording.n_records} records of {recording.path}")
    dtype = sample_dtype(recording)
    lengths = np.array([s.samples_per_record for s in signals], np.int64)
    if out is None:
        bounds = np.concatenate([[0], np.cumsum(lengths * n_records)])
        flat = np.empty(int(bounds[-1]), dtype)
        out = [flat[a:b] for a, b in zip(bounds[:-1], bounds[1:], strict=True)]
    if len(out) != len(signals):
        raise ValueError(f"{len(out)} output arrays were given for {len(signals)} signals")
    for array, signal in zip(out, signals, strict=True):
        shape = (n_records * signal.samples_per_record,)
        if array.dtype != dtype or array.shape != shape or not array.flags.c_contiguous or not array.flags.writeable:
            raise ValueError(
                f"the output for {signal.label!r} is {array.dtype}{array.shape}, expected writable, contiguous "
                f"{dtype}{shape}"
            )
    if not signals or n_records == 0:
        return out
    source = mapped_samples(recording)
    addresses = np.array([array.ctypes.data for array in out], np.int64)
    kernel = copy_records16 if recording.sample_bytes == 2 else copy_records24

    def work(begin: int, end: int) -> None:
        kernel(source, segment.first_record, begin, end, starts, lengths, addresses, n_records)

    in_threads(work, n_records, n_records * int(lengths.sum()) * recording.sample_bytes)
    return out


class EpochPositions(NamedTuple):
    """Where epochs lie in the samples of one rate.

    Attributes
    ----------
    segment : int64 [n]
        Index into ``recording.segments``.
    first : int64 [n]
        Index, within the segment, of the sample at or before the onset: ``floor(onset * fs)``.
    phase : float64 [n]
        Rest of the onset in samples, 0 <= phase < 1: not 0 where the rate is fractional or the onset falls between
        samples.
    """

    segment: NDArray[np.int64]
    first: NDArray[np.int64]
    phase: NDArray[np.float64]


def locate_epochs(recording: Recording, fs_hz: Fraction, onsets_s: ArrayLike, epoch_s: float = 30.0) -> EpochPositions:
    """Find the segment and the first sample of epochs.

    Parameters
    ----------
    recording : Recording
    fs_hz : Fraction
        Sampling rate.
    onsets_s : array_like of float [n]
        Onsets from the first sample of the recording; within 1/1000 of a sample they count as that sample.
    epoch_s : float
        Duration of an epoch.

    Returns
    -------
    EpochPositions

    Raises
    ------
    EdfError
        When an epoch does not lie wholly inside one segment.
    """
    onsets = np.asarray(onsets_s, np.float64).reshape(-1)
    rate = float(fs_hz)
    begins = np.array([float(s.onset_s) for s in recording.segments])
    lengths = np.array([float(s.n_records * recording.record_s) for s in recording.segments])
    slack_s = SNAP_SAMPLES / rate
    segment = np.full(onsets.size, -1, np.int64)
    # Usually one segment, seldom more than tens; first fit, as overlapping segments are kept in the file's order.
    for index in range(begins.size - 1, -1, -1):
        inside = (onsets >= begins[index] - slack_s) & (onsets + epoch_s <= begins[index] + lengths[index] + slack_s)
        segment[inside] = index
    outside = np.flatnonzero(segment < 0)
    if outside.size:
        spans = ", ".join(f"{b:g}-{b + n:g} s" for b, n in zip(begins[:5], lengths[:5], strict=True)) or "none"
        raise EdfError(
            f"{recording.path}: {outside.size} of {onsets.size} epochs of {epoch_s:g} s do not lie wholly inside one "
            f"segment; the first starts at {onsets[outside[0]]:g} s, the segments are: {spans}"
            + (f" and {begins.size - 5} more." if begins.size > 5 else ".")
        )
    position = (onsets - begins[segment]) * rate
    nearest = np.rint(position)
    first = np.where(np.abs(position - nearest) < SNAP_SAMPLES, nearest, np.floor(position))
    return EpochPositions(segment, first.astype(np.int64), np.maximum(position - first, 0.0))


def read_epochs(
    recording: Recording,
    signals: Sequence[Signal],
    onsets_s: ArrayLike,
    *,
    epoch_s: float = 30.0,
    context_s: float = 0.0,
    out: NDArray[Any] | None = None,
) -> NDArray[Any]:
    """Read epochs of signals of one rate, with the neighbouring samples that filters need.

    An epoch is the ``ceil(epoch_s * fs)`` samples from the one at or before its onset (:func:`locate_epochs` gives
    that sample and the phase); on either side come ``ceil(context_s * fs)`` more, which repeat the edge sample beyond
    the segment's end.

    Parameters
    ----------
    recording : Recording
    signals : sequence of Signal
        Of this recording, all of one rate.
    onsets_s : array_like of float [clip]
        Onsets from the first sample of the recording, in any order.
    epoch_s, context_s : float
        Duration of an epoch, and of the context before and after it.
    out : ndarray [clip, channel, sample], optional
        C-contiguous native integers, written in place.

    Returns
    -------
    ndarray [clip, channel, sample]
        int16 (EDF) or int32 (BDF).

    Raises
    ------
    EdfError
        When an epoch does not lie wholly inside one segment.
    ValueError
        When the signals differ in rate, or an argument does not fit the recording.
    """
    starts = sample_starts(recording, signals)
    per_record = {s.samples_per_record for s in signals}
    if len(per_record) != 1:
        rates = ", ".join(f"{s.label!r} {float(s.fs_hz):g} Hz" for s in signals) or "none"
        raise ValueError(f"epochs need signals of one rate, given were: {rates}; read each rate by itself")
    if not (epoch_s > 0 and context_s >= 0 and math.isfinite(epoch_s + context_s)):
        raise ValueError(f"epoch_s {epoch_s} must be above 0 and context_s {context_s} not below 0")
    fs_hz = signals[0].fs_hz
    where = locate_epochs(recording, fs_hz, onsets_s, epoch_s)
    n_context = math.ceil(context_s * fs_hz - SNAP_SAMPLES)
    n_samples = math.ceil(epoch_s * fs_hz - SNAP_SAMPLES) + 2 * n_context
    shape = (where.first.size, len(signals), n_samples)
    dtype = sample_dtype(recording)
    if out is None:
        out = np.empty(shape, dtype)
    elif out.dtype != dtype or out.shape != shape or not out.flags.c_contiguous or not out.flags.writeable:
        raise ValueError(f"out is {out.dtype}{out.shape}, expected writable, contiguous {dtype}{shape}")
    if where.first.size == 0:
        return out
    target, n_per_record = out, signals[0].samples_per_record
    origins = np.array([s.first_record for s in recording.segments], np.int64)[where.segment]
    segment_samples = np.array([s.n_records * n_per_record for s in recording.segments], np.int64)[where.segment]
    source = mapped_samples(recording)
    wide = recording.sample_bytes == 3
    firsts = where.first - n_context

    def work(begin: int, end: int) -> None:
        copy_epochs(source, begin, end, starts, n_per_record, origins, segment_samples, firsts, wide, target)

    in_threads(work, where.first.size, target.nbytes)
    return target
