"""EDF, EDF+, BDF and BDF+ recordings: header and annotations are read, samples stay on disk and are memory-mapped.

Times are seconds from the first sample. The first record of an EDF+ file may start a fraction of a second after the
start that the header states, whereas its annotations count from the header's start. Here that fraction is added to
``Recording.start`` and subtracted from every annotation and segment, so that sample 0 lies at 0 s.

What can be repaired safely is repaired, and listed in the ``issues`` of the recording or the signal; nothing is changed
silently. A bad signal never makes the whole recording unusable. With ``strict=True`` the first issue raises instead.
"""

from __future__ import annotations

import itertools
import mmap
import stat
from dataclasses import dataclass, fields, replace
from datetime import datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sleepfm_fast.cli.given_paths import as_path
from sleepfm_fast.formats.edf_fields import BLOCK_BYTES, EdfError, Issues
from sleepfm_fast.formats.edf_header import Header, Signal, parse_header
from sleepfm_fast.formats.edf_tal import Annotation, RecordStarts, read_tals
from sleepfm_fast.plurals import agreeing, counted

__all__ = ["Annotation", "EdfError", "Recording", "Segment", "Signal", "read_recording"]

DRIFT_S = 0.5
"""Sum of deviations between stated starts and samples, each too small to be a gap, from which on they count. A clock
that is 20 ppm off does not reach it in the 6.9 hours of a night, and nobody scores more finely."""
NANOSECOND = Decimal("1e-9")


@dataclass(frozen=True)
class Segment:
    """A stretch of records without a gap; ``onset_s`` counts from the first sample of the recording.

    ``drifted`` says that it begins where the stated starts had drifted away from the samples, and not after a gap.
    """

    first_record: int
    n_records: int
    onset_s: Fraction
    drifted: bool = False


@dataclass(frozen=True)
class Recording:
    """A recording's header, segments and annotations; :meth:`records` maps its samples.

    Attributes
    ----------
    format : str
        "EDF", "EDF+C", "EDF+D", "BDF", "BDF+C" or "BDF+D".
    start : datetime or None
        Time of the first sample; None where the header holds no valid date and time.
    record_s : Fraction
        Duration of a record, exact; 0 in files that hold annotations only.
    sample_bytes : int
        2 (EDF) or 3 (BDF), little-endian, two's complement.
    signals : tuple of Signal
        The ordinary signals. Those without samples or without a sampling rate are left out and named in ``issues``.
    segments : tuple of Segment
        In the order of the file; only one unless the file is discontinuous.
    issues : tuple of str
        What was repaired, or what a user must know, about the file; each signal has issues of its own.
    n_missing : int
        Number of records that the header promises and the file lacks, as after an interrupted copy.
    """

    path: Path
    format: str
    start: datetime | None
    patient: str
    recording_id: str
    n_records: int
    record_s: Fraction
    header_bytes: int
    record_bytes: int
    sample_bytes: int
    signals: tuple[Signal, ...]
    segments: tuple[Segment, ...]
    annotations: tuple[Annotation, ...]
    issues: tuple[str, ...]
    n_missing: int = 0

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that it was read from: ``path``, and any others that hold its samples."""
        return (self.path,)

    def sample_issues(self) -> tuple[str, ...]:
        """Return issues that only the samples show; none here, since these stay on disk until they are used."""
        return ()

    @property
    def duration_s(self) -> float:
        """Time from the first sample to the end of the last segment, gaps included."""
        return float(max((s.onset_s + s.n_records * self.record_s for s in self.segments), default=Fraction(0)))

    @property
    def missing_s(self) -> float:
        """Seconds of the records that the header promises and the file does not hold."""
        return float(self.n_missing * self.record_s)

    def signal(self, label: str) -> Signal:
        """Find a signal by its label.

        Raises
        ------
        EdfError
            When no signal, or more than one, carries the label.
        """
        found = [s for s in self.signals if s.label == label]
        if len(found) == 1:
            return found[0]
        if found:
            places = ", ".join(str(self.signals.index(s)) for s in found)
            raise EdfError(f"{self.path}: {len(found)} signals are called {label!r}; take one of signals[{places}].")
        choices = ", ".join(repr(s.label) for s in self.signals) or "none at all"
        raise EdfError(f"{self.path}: no signal is called {label!r}; the signals are: {choices}.")

    @cached_property
    def _mapped(self) -> NDArray[np.uint8]:
        return map_records(self.path, self.header_bytes, self.n_records, self.record_bytes)

    def records(self) -> NDArray[np.uint8]:
        """Map the data records, read-only, ``uint8 [n_records, record_bytes]``; mapped once, kept with the object.

        A file with annotations is mapped when it is read, so that its pages are looked up only once. The map holds one
        file descriptor as long as the object lives.

        Raises
        ------
        EdfError
            When the file has gone or has become shorter since it was read.
        """
        expected = self.header_bytes + self.n_records * self.record_bytes
        try:
            found = self.path.stat().st_size
        except OSError as error:
            raise EdfError(f"{self.path}: the records cannot be mapped ({error}); has the file changed?") from error
        if found < expected:
            raise EdfError(
                f"{self.path}: the {counted(self.n_records, 'record needs', 'records need')} {expected} bytes, the "
                f"file has {found}; has the file changed?"
            )
        return self._mapped

    def __getstate__(self) -> dict[str, Any]:
        """Leave the mapping behind when the object is copied or sent to another process."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


def map_records(path: Path, header_bytes: int, n_records: int, record_bytes: int) -> NDArray[np.uint8]:
    """Map whole records read-only; an empty array where there are none."""
    if n_records * record_bytes == 0:
        return np.empty((n_records, record_bytes), np.uint8)
    try:
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), header_bytes + n_records * record_bytes, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise EdfError(
            f"{path}: the {counted(n_records, 'record')} cannot be mapped ({error}); has the file changed?"
        ) from error
    flat = np.frombuffer(mapped, np.uint8, n_records * record_bytes, header_bytes)
    return flat.reshape(n_records, record_bytes)


def read_recording(path: str | Path, *, strict: bool = False) -> Recording:
    """Read the header and the annotations of an EDF, EDF+, BDF or BDF+ file.

    Parameters
    ----------
    path : str or Path
        The file; its content decides the format, not its suffix.
    strict : bool
        Raise at the first issue instead of repairing it.

    Returns
    -------
    Recording

    Raises
    ------
    EdfError
        When the file is missing, is no EDF or BDF file, or its layout cannot be known; in strict mode at any issue.
    """
    path = as_path(path)
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            kind = "a folder" if stat.S_ISDIR(status.st_mode) else "no regular file"
            raise EdfError(f"{path}: this is {kind}, expected an EDF or BDF file.")
        with path.open("rb") as file:
            content = file.read(BLOCK_BYTES)
            if not content:
                raise EdfError(f"{path}: the file is empty, expected an EDF or BDF file.")
            count = content[BLOCK_BYTES - 4 :].lstrip(b"\0 ").split(b"\0", 1)[0].strip()
            if count.isdigit():
                content += file.read(int(count) * BLOCK_BYTES)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise EdfError(f"{path}: the file cannot be read ({getattr(error, 'strerror', None) or error}).") from error
    issues = Issues(str(path), strict=strict)
    header = parse_header(path, content, status.st_size, issues)
    shift_s = Decimal(0)
    segments: tuple[Segment, ...] = (Segment(0, header.n_records, Fraction(0)),) if header.n_records else ()
    annotations: tuple[Annotation, ...] = ()
    records: NDArray[np.uint8] | None = None
    if header.annotation_spans and header.n_records:
        records = map_records(path, header.header_bytes, header.n_records, header.record_bytes)
        starts, tals = read_tals(records, header.annotation_spans, issues)
        if header.record_s > 0:
            shift_s = starts.exact(0) or shift_s
            segments = find_segments(header, starts, shift_s, issues)
            # Where records are out of order, the first sample is not that of the first record.
            if earliest_s := min(segment.onset_s for segment in segments):
                segments = tuple(replace(segment, onset_s=segment.onset_s - earliest_s) for segment in segments)
                shift_s += Decimal(earliest_s.numerator) / Decimal(earliest_s.denominator)
        annotations = tuple(
            Annotation(
                float(t.onset_s - shift_s if shift_s else t.onset_s),
                None if t.duration_s is None else float(t.duration_s),
                t.text,
            )
            for t in tals
        )
    recording = Recording(
        path, header.format, shift_start(header.start, shift_s, issues), header.patient, header.recording_id,
        header.n_records, header.record_s, header.header_bytes, header.record_bytes, header.sample_bytes,
        header.signals, segments, annotations, tuple(issues.sentences), header.n_missing,
    )  # fmt: skip
    if records is not None:
        recording.__dict__["_mapped"] = records
    return recording


def shift_start(start: datetime | None, shift_s: Decimal, issues: Issues) -> datetime | None:
    """Return the time of the first sample, ``shift_s`` after the header's start; None beyond the calendar."""
    if start is None or not shift_s:
        return start
    try:
        return start + timedelta(seconds=float(shift_s))
    except OverflowError:
        issues.add(f"the first record starts {shift_s} s after the header's start, which is beyond the calendar")
        return None


def find_segments(header: Header, starts: RecordStarts, shift_s: Decimal, issues: Issues) -> tuple[Segment, ...]:
    """Cut the records where their stated starts leave a gap or go back.

    A start counts as contiguous when it is less than one sample of the fastest signal, or less than 1 ms, away from the
    end of the record before, since writers round the starts. Such differences may add up, as with a recorder whose
    clock runs at another rate than its header says: a segment then ends when they reach ``DRIFT_S``.
    """
    n_records = header.n_records
    stated = ~np.isnan(starts.seconds)
    missing = n_records - int(stated.sum())
    if missing:
        do = agreeing(missing, "does not state its start; it", "do not state their start; each")
        issues.add(f"{missing} of {counted(n_records, 'record')} {do} is taken to follow the one before")
    record_s = float(header.record_s)
    index = np.arange(n_records)
    last = np.maximum.accumulate(np.where(stated, index, -1))  # the last record up to here that states its start
    begins_s = np.where(last >= 0, starts.seconds[last], float(shift_s)) + (index - np.maximum(last, 0)) * record_s
    tolerance_s = max(1e-3, min((float(1 / s.fs_hz) for s in header.signals), default=0.0))
    jumps = np.flatnonzero(np.abs(np.diff(begins_s) - record_s) >= tolerance_s) + 1
    limit_s = max(DRIFT_S, tolerance_s)
    drifted = drift_breaks(begins_s - index * record_s, jumps, limit_s)
    whole = (Segment(0, n_records, Fraction(0)),)
    continuous = not header.format.endswith("D")
    if drifted:
        consequence = (
            "the file is marked continuous and read so, and annotations lie beside their samples by as much"
            if continuous
            else f"the file is cut at {counted(len(drifted), 'such place')}, so that each part lies where it states"
        )
        issues.add(
            "the starts of the records, each less than a sample from the end of the one before, drift away from the "
            f"samples, by {limit_s:g} s up to record {drifted[0] + 1}; {consequence}"
        )
    if continuous and jumps.size:
        k = int(jumps[0])
        issues.add(
            f"the file is marked continuous and read so, but {counted(jumps.size, 'record does', 'records do')} not "
            f"follow the one before: record {k + 1} states that it starts at {begins_s[k]:g} s, the one before ends at "
            f"{begins_s[k - 1] + record_s:g} s"
        )
    if continuous or not (jumps.size or drifted):
        return whole
    backwards = int(np.sum(begins_s[jumps] < begins_s[jumps - 1] + record_s))
    if backwards:
        issues.add(
            f"{counted(backwards, 'record starts', 'records start')} before the one before has ended; the order of the "
            "file is kept"
        )
    segments = []
    for first, end in itertools.pairwise([0, *sorted([*jumps.tolist(), *drifted]), n_records]):
        onset_s = starts.exact(first)
        at_s = Fraction(0 if onset_s is None else rounded_s(onset_s - shift_s))
        segments.append(Segment(first, end - first, at_s, drifted=first in drifted))
    return tuple(segments)


def drift_breaks(deviation_s: NDArray[np.float64], jumps: NDArray[np.int64], limit_s: float) -> list[int]:
    """Return the records, between the jumps, at which the deviation of the stated starts has grown by ``limit_s``.

    Parameters
    ----------
    deviation_s : float64 [n_records]
        Each start minus the one it would have if all records followed one another without a break.
    jumps : int64 [n_jumps]
        First record of every stretch except the first stretch.
    limit_s : float
    """
    breaks = []
    for first, end in itertools.pairwise([0, *jumps.tolist(), len(deviation_s)]):
        begin, seen, width = first, first + 1, 64
        while seen < end:
            away = np.abs(deviation_s[seen : min(seen + width, end)] - deviation_s[begin]) >= limit_s
            if away.any():
                begin = seen + int(away.argmax())
                breaks.append(begin)
                seen, width = begin + 1, 64
            else:
                seen, width = seen + width, 2 * width
    return breaks


def rounded_s(onset_s: Decimal) -> Decimal:
    """An onset in whole nanoseconds where it has more decimals: further ones are those of a printed double."""
    exponent = onset_s.as_tuple().exponent
    return onset_s.quantize(NANOSECOND) if isinstance(exponent, int) and exponent < -9 else onset_s
