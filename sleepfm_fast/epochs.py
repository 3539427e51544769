"""Data records to samples: whole segments, or epochs ``[clip, channel, sample]``, as the integers recorded.

The records are walked once, in the order they lie on disk, and every signal is filled on the way: the file is read
front to back whatever the number of signals. The kernels are compiled by Numba, hold no lock and run in plain threads,
each on its own block of records or clips (so they also work in forked and in threaded programs, where Numba's own
thread pool does not). ``NUMBA_NUM_THREADS`` sets how many.
"""

from __future__ import annotations

import itertools
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


def type_pointer(typing_context: Any, address: Any, like: Any) -> Any:
    """Type an integer taken as the address of samples of the type of ``like``, whose value is not read."""
    return types.CPointer(like)(address, like), emit_pointer  # type: ignore[no-untyped-call]


def emit_pointer(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    """Emit the conversion of the integer to a pointer."""
    return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))


# Outputs reach the kernel as addresses: a list of arrays would cost Numba more than the copying does.
as_pointer: Any = intrinsic(type_pointer)


# The loops below run over slices from 0: an index that Numba cannot prove non-negative costs the vector instructions.
@numba.njit(cache=True, nogil=True)
def copy16(source: Any, target: Any) -> None:
    """Copy int16 samples."""
    for i in range(target.size):
        target[i] = source[i]


@numba.njit(cache=True, nogil=True)
def widen24(source: Any, target: Any) -> None:
    """Widen 24-bit little-endian bytes to int32, sign-extended."""
    for i in range(target.size):
        low = np.int32(source[3 * i]) | (np.int32(source[3 * i + 1]) << np.int32(8))
        target[i] = low | (np.int32(np.int8(source[3 * i + 2])) << np.int32(16))


@numba.njit(cache=True, nogil=True)
def copy_records(
    records: Any, sample_units: int, like: Any, begin: int, end: int, starts: Any, lengths: Any, addresses: Any
) -> None:
    """Scatter records ``[begin, end)`` to one array a signal; ``records`` starts at the segment's first record.

    A sample takes ``sample_units`` elements of ``records``: 1 of int16, or 3 of uint8.
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


@numba.njit(cache=True, nogil=True)
def copy_epochs(
    records: Any,
    sample_units: int,
    begin: int,
    end: int,
    starts: Any,
    per_record: int,
    origins: Any,
    segment_samples: Any,
    firsts: Any,
    out: Any,
) -> None:
    """Fill clips ``[begin, end)``; sample indices count within the segment, those beyond it repeat its edge."""
    n_out = out.shape[2]
    for clip in range(begin, end):
        low = firsts[clip]
        first = max(low, 0)
        last = min(low + n_out, segment_samples[clip])
        for record in range(first // per_record, (last - 1) // per_record + 1):
            here = record * per_record
            a = max(first, here)
            b = min(last, here + per_record)
            row = origins[clip] + record
            for channel in range(starts.size):
                at = starts[channel] + a - here
                source = records[row, sample_units * at : sample_units * (at + b - a)]
                target = out[clip, channel, a - low : b - low]
                if sample_units == 1:
                    copy16(source, target)
                else:
                    widen24(source, target)
        for channel in range(starts.size):
            out[clip, channel, : first - low] = out[clip, channel, first - low]
            out[clip, channel, last - low :] = out[clip, channel, last - low - 1]


def thread_limit() -> int:
    """Return ``NUMBA_NUM_THREADS``, by default the processors; read without starting Numba's thread pool."""
    return int(numba.config.NUMBA_NUM_THREADS)  # type: ignore[attr-defined]


def in_threads(work: Callable[[int, int], None], n_items: int, n_bytes: int) -> None:
    """Run ``work(begin, end)`` over blocks of items, in as many threads as the bytes are worth."""
    n_threads = max(1, min(thread_limit(), n_items, n_bytes // THREAD_BYTES))
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


def mapped_samples(recording: Recording) -> tuple[NDArray[Any], int]:
    """Map the records as int16 ``[record, sample]``, or as uint8 ``[record, byte]``; with the elements a sample."""
    records = recording.records()
    return (records.view("<i2"), 1) if recording.sample_bytes == 2 else (records, 3)


def sample_starts(recording: Recording, signals: Sequence[Signal]) -> NDArray[np.int64]:
    """Place of each signal's first sample within a record, in samples; refuse signals of another recording."""
    own = {s.index: s for s in recording.signals}
    for signal in signals:
        known = own.get(signal.index)
        if known is not signal and known != signal:
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
        out = [flat[a:b] for a, b in itertools.pairwise(bounds)]
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
    source, units = mapped_samples(recording)
    source = source[segment.first_record : segment.first_record + n_records]
    addresses = np.array([array.ctypes.data for array in out], np.int64)

    def work(begin: int, end: int) -> None:
        copy_records(source, units, dtype.type(0), begin, end, starts, lengths, addresses)

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
    source, units = mapped_samples(recording)
    firsts = where.first - n_context

    def work(begin: int, end: int) -> None:
        copy_epochs(source, units, begin, end, starts, n_per_record, origins, segment_samples, firsts, target)

    in_threads(work, where.first.size, target.nbytes)
    return target
