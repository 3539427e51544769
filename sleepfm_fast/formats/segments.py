"""Data records to whole segments: the recorded integers, or physical values in float32.

The records are traversed once, in their order on disk, and all signals are filled on the way, so that the file is read
front to back whatever the number of signals. Callers may pass memory in, since touching fresh memory costs more than
the copy itself.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sleepfm_fast.edf import Recording, Segment, Signal
from sleepfm_fast.execution.threads import in_threads
from sleepfm_fast.formats.record_kernels import copy_records, scale_records
from sleepfm_fast.plurals import counted

__all__ = ["output_of", "read_digital", "read_physical", "record_samples", "sample_dtype", "sample_starts"]


def sample_dtype(recording: Recording) -> np.dtype[Any]:
    """Return the native integer type: int16 for EDF, int32 for BDF."""
    return np.dtype(np.int16 if recording.sample_bytes == 2 else np.int32)


def record_samples(recording: Recording) -> tuple[NDArray[Any], int]:
    """Map the records as int16 ``[record, sample]`` or uint8 ``[record, byte]``; return also elements per sample."""
    records = recording.records()
    return (records.view("<i2"), 1) if recording.sample_bytes == 2 else (records, 3)


def sample_starts(recording: Recording, signals: Sequence[Signal]) -> NDArray[np.int64]:
    """Return each signal's first sample within a record, counted in samples; refuse signals of another recording."""
    own = {s.index: s for s in recording.signals}
    for signal in signals:
        known = own.get(signal.index)
        if known is not signal and known != signal:
            raise ValueError(f"the signal {signal.label!r} does not belong to {recording.path}; take it from .signals")
    return np.array([s.offset_bytes // recording.sample_bytes for s in signals], np.int64)


def output_of(
    out: NDArray[Any] | None, shape: tuple[int, ...], dtype: np.dtype[Any], what: str = "out"
) -> NDArray[Any]:
    """Return ``out``, refused where compiled code could not fill it, or a fresh array; ``what`` names it."""
    if out is None:
        return np.empty(shape, dtype)
    if out.dtype != dtype or out.shape != shape or not out.flags.c_contiguous or not out.flags.writeable:
        raise ValueError(f"{what} is {out.dtype}{out.shape}, expected writable, contiguous {dtype}{shape}")
    return out


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
        Signals of this recording, in the order of the output.
    segment : Segment
        A segment of this recording.
    out : list of ndarray, optional
        One C-contiguous array per signal, of ``segment.n_records * signal.samples_per_record`` native integers (int16
        for EDF, int32 for BDF), written in place. Reusing arrays saves the cost of fresh memory, which is higher than
        that of the copy.

    Returns
    -------
    list of ndarray
        ``out``, or fresh arrays that share one buffer.

    Raises
    ------
    ValueError
        When a signal, the segment or an output array does not fit the recording.
    """
    dtype = sample_dtype(recording)
    starts, lengths, out = segment_arrays(recording, signals, segment, dtype, out)
    if not signals or segment.n_records == 0:
        return out
    source, units = record_samples(recording)
    source = source[segment.first_record : segment.first_record + segment.n_records]
    addresses = np.array([array.ctypes.data for array in out], np.int64)

    def work(begin: int, end: int) -> None:
        copy_records(source, units, dtype.type(0), begin, end, starts, lengths, addresses)

    in_threads(work, segment.n_records, segment.n_records * int(lengths.sum()) * recording.sample_bytes)
    return out


def read_physical(
    recording: Recording,
    signals: Sequence[Signal],
    segment: Segment,
    out: list[NDArray[np.float32]] | None = None,
) -> list[NDArray[np.float32]]:
    """Read as :func:`read_digital` does, but in each signal's unit: float32 ``gain * integer + offset``.

    Parameters
    ----------
    recording, signals, segment
        See :func:`read_digital`.
    out : list of float32 ndarray, optional
        One C-contiguous array per signal, written in place.

    Returns
    -------
    list of float32 ndarray
        Within ``3 * 2**-24 * (abs(gain * integer) + abs(offset))`` of the exact value.
    """
    starts, lengths, out = segment_arrays(recording, signals, segment, np.dtype(np.float32), out)
    if not signals or segment.n_records == 0:
        return out
    source, units = record_samples(recording)
    source = source[segment.first_record : segment.first_record + segment.n_records]
    addresses = np.array([array.ctypes.data for array in out], np.int64)
    scales = np.array([(s.gain, s.offset) for s in signals], np.float32)

    def work(begin: int, end: int) -> None:
        scale_records(source, units, begin, end, starts, lengths, addresses, scales)

    in_threads(work, segment.n_records, segment.n_records * int(lengths.sum()) * 4)
    return out


def segment_arrays(
    recording: Recording,
    signals: Sequence[Signal],
    segment: Segment,
    dtype: np.dtype[Any],
    out: list[NDArray[Any]] | None,
) -> tuple[NDArray[np.int64], NDArray[np.int64], list[NDArray[Any]]]:
    """Return the signals' places in a record, their samples per record, and the output: ``out``, checked, or fresh."""
    starts = sample_starts(recording, signals)
    n_records = segment.n_records
    if not 0 <= segment.first_record <= segment.first_record + n_records <= recording.n_records:
        raise ValueError(f"{segment} lies outside the {counted(recording.n_records, 'record')} of {recording.path}")
    lengths = np.array([s.samples_per_record for s in signals], np.int64)
    if out is None:
        bounds = np.concatenate([[0], np.cumsum(lengths * n_records)])
        flat = np.empty(int(bounds[-1]), dtype)
        return starts, lengths, [flat[a:b] for a, b in itertools.pairwise(bounds)]
    if len(out) != len(signals):
        raise ValueError(
            f"{counted(len(out), 'output array was', 'output arrays were')} given for {counted(len(signals), 'signal')}"
        )
    for array, signal in zip(out, signals, strict=True):
        output_of(array, (n_records * signal.samples_per_record,), dtype, f"the output for {signal.label!r}")
    return starts, lengths, out
