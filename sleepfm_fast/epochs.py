"""Data records to epochs of signals of any mixture of rates, as the integers recorded."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sleepfm_fast.edf import EdfError, Recording, Signal
from sleepfm_fast.execution.threads import in_threads
from sleepfm_fast.formats.record_kernels import SNAP_SAMPLES, copy_epochs
from sleepfm_fast.formats.segments import (
    output_of,
    read_digital,
    read_physical,
    record_samples,
    sample_dtype,
    sample_starts,
)
from sleepfm_fast.plurals import agreeing, counted, first_of

__all__ = ["EpochPositions", "EpochReader", "locate_epochs", "read_digital", "read_epochs", "read_physical"]


class EpochPositions(NamedTuple):
    """The places of epochs in samples of one rate.

    Attributes
    ----------
    segment : int64 [n]
        Index into ``recording.segments``.
    first : int64 [n]
        Index, within the segment, of the sample at or before the onset: ``floor(onset * fs)``.
    phase : float64 [n]
        Fraction of a sample by which the onset lies after ``first``, 0 <= phase < 1. It is not 0 where the rate is
        fractional or the onset falls between samples.
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
    # There is usually one segment, seldom more than tens. The loop runs backwards so that of overlapping segments the
    # first in the file wins.
    for index in range(begins.size - 1, -1, -1):
        inside = (onsets >= begins[index] - slack_s) & (onsets + epoch_s <= begins[index] + lengths[index] + slack_s)
        segment[inside] = index
    if (segment < 0).any():
        raise outside_error(recording, onsets, segment < 0, epoch_s)
    position = (onsets - begins[segment]) * rate
    nearest = np.rint(position)
    first = np.where(np.abs(position - nearest) < SNAP_SAMPLES, nearest, np.floor(position))
    return EpochPositions(segment, first.astype(np.int64), np.maximum(position - first, 0.0))


def outside_error(
    recording: Recording, onsets_s: NDArray[np.float64], outside: NDArray[np.bool_], epoch_s: float
) -> EdfError:
    """Make the error that says which epochs lie in no segment, and where the segments lie."""
    begins = [float(s.onset_s) for s in recording.segments]
    lengths = [float(s.n_records * recording.record_s) for s in recording.segments]
    spans = [f"{b:g}-{b + n:g} s" for b, n in zip(begins, lengths, strict=True)]
    return EdfError(
        f"{recording.path}: {outside.sum()} of {counted(onsets_s.size, 'epoch')} of {epoch_s:g} s "
        f"{agreeing(int(outside.sum()), 'does', 'do')} not lie wholly inside one segment; the first starts "
        f"at {onsets_s[outside][0]:g} s, the segments are: {first_of(spans, 5) or 'none'}."
    )


class EpochReader:
    """Reads epochs of signals of any mixture of rates from an open recording, with the context that filters need.

    An epoch of a signal consists of ``ceil(epoch_s * fs)`` samples, beginning with the one at or before its onset
    (:func:`locate_epochs` gives that sample and the phase), and of ``ceil(context_s * fs)`` more on either side; beyond
    the ends of the segment these repeat the edge sample. Places are computed once by the constructor, so that a
    :meth:`read` is a single compiled call. A reader may be used from several threads.

    Parameters
    ----------
    recording : Recording
        Its records are mapped by the constructor and stay mapped.
    signals : sequence of Signal
        Signals of this recording, in the order of the output.
    epoch_s, context_s : float
        Duration of an epoch, and of the context before and after it.

    Attributes
    ----------
    dtype : dtype
        int16 (EDF) or int32 (BDF).
    n_samples : tuple of int
        Number of samples of each signal in an epoch, context included.
    offsets : tuple of int
        Index at which each signal starts in an epoch's row, followed by the length of the row.

    Raises
    ------
    ValueError
        When a signal does not belong to the recording, or a duration is out of range.
    """

    def __init__(
        self, recording: Recording, signals: Sequence[Signal], *, epoch_s: float = 30.0, context_s: float = 0.0
    ) -> None:
        if not (epoch_s > 0 and context_s >= 0 and math.isfinite(epoch_s + context_s)):
            raise ValueError(f"epoch_s {epoch_s} must be above 0 and context_s {context_s} not below 0")
        starts = sample_starts(recording, signals)
        self.recording = recording
        self.epoch_s = float(epoch_s)
        self.dtype = sample_dtype(recording)
        n_context = [math.ceil(context_s * s.fs_hz - SNAP_SAMPLES) for s in signals]
        n_epoch = [math.ceil(epoch_s * s.fs_hz - SNAP_SAMPLES) for s in signals]
        self.n_samples = tuple(n + 2 * c for n, c in zip(n_epoch, n_context, strict=True))
        self.offsets = tuple(itertools.accumulate(self.n_samples, initial=0))
        geometry = np.empty((len(signals), 5), np.int64)
        geometry[:, 0] = starts
        geometry[:, 1] = [s.samples_per_record for s in signals]
        geometry[:, 2] = n_context
        geometry[:, 3] = self.n_samples
        geometry[:, 4] = self.offsets[:-1]
        rates_hz = np.array([float(s.fs_hz) for s in signals])
        segments = recording.segments
        self._begins_s = np.array([float(s.onset_s) for s in segments])
        self._lengths_s = np.array([float(s.n_records * recording.record_s) for s in segments])
        first_records = np.array([s.first_record for s in segments], np.int64)
        n_records = np.array([s.n_records for s in segments], np.int64)
        self._places = (
            *(*record_samples(recording), geometry, rates_hz),
            *(self._begins_s, self._lengths_s, first_records, n_records),
        )
        # The tolerance for an epoch to lie inside its segment: 1/1000 of a sample of the fastest signal.
        self._times_s = (self.epoch_s, SNAP_SAMPLES / float(rates_hz.max(initial=0.0) or 1.0))
        self._shape = (1, self.offsets[-1])

    def read(self, onset_s: float, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Read one epoch: ``[offsets[-1]]``, one signal after the other.

        Parameters
        ----------
        onset_s : float
            From the first sample of the recording; within 1/1000 of a sample it counts as that sample.
        out : ndarray [offsets[-1]], optional
            Contiguous, of the reader's ``dtype``; written in place and returned.

        Raises
        ------
        EdfError
            When the epoch does not lie wholly inside one segment; ``out`` is not changed then.
        """
        out = output_of(out, self._shape[1:], self.dtype)
        onsets_s = np.array((onset_s,), np.float64)
        if copy_epochs(*self._places, onsets_s, *self._times_s, 0, 1, out.reshape(self._shape)) >= 0:
            raise outside_error(self.recording, onsets_s, np.ones(1, np.bool_), self.epoch_s)
        return out

    def read_many(self, onsets_s: ArrayLike, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Read epochs in any order, as ``[epoch, offsets[-1]]``; large requests are divided among threads.

        Parameters
        ----------
        onsets_s : array_like of float [epoch]
        out : ndarray [epoch, offsets[-1]], optional
            C-contiguous, of the reader's ``dtype``; written in place and returned.

        Raises
        ------
        EdfError
            When an epoch does not lie wholly inside one segment.
        """
        onsets = np.ascontiguousarray(onsets_s, np.float64).reshape(-1)
        target, failed = output_of(out, (onsets.size, self._shape[1]), self.dtype), []

        def work(begin: int, end: int) -> None:
            if copy_epochs(*self._places, onsets, *self._times_s, begin, end, target) >= 0:
                failed.append(begin)

        if onsets.size:
            in_threads(work, onsets.size, target.nbytes)
        if failed:
            slack_s = self._times_s[1]
            outside = np.ones(onsets.size, np.bool_)
            for begin_s, length_s in zip(self._begins_s, self._lengths_s, strict=True):
                inside = (onsets >= begin_s - slack_s) & (onsets + self.epoch_s <= begin_s + length_s + slack_s)
                outside &= ~inside
            raise outside_error(self.recording, onsets, outside, self.epoch_s)
        return target

    def split(self, samples: NDArray[Any]) -> list[NDArray[Any]]:
        """Return a view ``[..., n_samples]`` of each signal in what :meth:`read` or :meth:`read_many` returned."""
        return [samples[..., a:b] for a, b in itertools.pairwise(self.offsets)]


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

    :class:`EpochReader` defines an epoch; use it directly for many calls, and for signals of several rates.

    Parameters
    ----------
    recording : Recording
    signals : sequence of Signal
        Signals of this recording, all of one rate.
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
    sample_starts(recording, signals)
    if len({s.samples_per_record for s in signals}) != 1:
        rates = ", ".join(f"{s.label!r} {float(s.fs_hz):g} Hz" for s in signals) or "none"
        raise ValueError(f"epochs need signals of one rate, given were: {rates}; EpochReader reads a mixture of rates")
    reader = EpochReader(recording, signals, epoch_s=epoch_s, context_s=context_s)
    onsets = np.asarray(onsets_s, np.float64).reshape(-1)
    shape = (onsets.size, len(signals), reader.n_samples[0])
    out = output_of(out, shape, reader.dtype)
    reader.read_many(onsets, out.reshape(shape[0], shape[1] * shape[2]))
    return out
