"""WFDB records (``.hea`` with ``.dat`` or ``.mat``) as recordings, for instance those of CinC 2018.

In a signal file the samples of all signals take turns. They are decoded whole, when they are first asked for, into
records as those of an EDF file, one signal after the other; the rest of the package then reads both alike.

Format: the WFDB applications guide, header(5) and signal(5), PhysioNet.
"""

from __future__ import annotations

import itertools
import math
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from sleepfm_fast.edf import Recording, Segment, Signal
from sleepfm_fast.formats.wfdb_header import BITS, SignalLine, read_signal_lines
from sleepfm_fast.plurals import counted
from sleepfm_fast.wfdb import WfdbError, read_header

__all__ = ["WfdbRecording", "read_wfdb_recording"]

RECORD_S = 30
"""Frames are gathered to records of at most this: the loops over records then do little but copy."""
CHUNK_BYTES = 4 << 20
"""What is decoded at a time: it stays in the caches while it is turned."""


@dataclass(frozen=True)
class SignalFile:
    """Signals whose samples take turns in one file; ``missing`` is the integer that stands for no sample."""

    path: Path
    format: int
    byte_offset: int
    lines: tuple[SignalLine, ...]

    @property
    def frame_samples(self) -> int:
        """Samples of a frame."""
        return sum(line.per_frame for line in self.lines)

    @property
    def missing(self) -> int:
        """The smallest number of the format: what writers put where there is no sample."""
        return -(1 << (BITS[self.format] - 1))


@dataclass(frozen=True)
class WfdbRecording(Recording):
    """A record's header; the samples are decoded at the first call of :meth:`records` and kept with the object."""

    sources: tuple[SignalFile, ...] = ()
    frames_per_record: int = 1
    is_whole: bool = True  # as many samples as the header says, so that its checksums are theirs

    @property
    def decoded_dtype(self) -> np.dtype[Any]:
        """Type that samples are decoded to; the third byte of 24 bits makes four."""
        return np.dtype("<i2" if self.sample_bytes == 2 else "<i4")

    @property
    def files(self) -> tuple[Path, ...]:
        """The header and the signal files."""
        return (self.path, *dict.fromkeys(source.path for source in self.sources))

    def records(self) -> NDArray[np.uint8]:
        """Give the samples as those of an EDF file, ``uint8 [n_records, record_bytes]``, little-endian.

        Raises
        ------
        WfdbError
            When a signal file has gone or has become shorter, or its samples need more than 24 bits.
        """
        return self._decoded[0]

    def sample_issues(self) -> tuple[str, ...]:
        """Say what only the samples show: a file that was changed, and samples that are marked as missing."""
        return self._decoded[1]

    @cached_property
    def _decoded(self) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
        return decode(self)


def read_wfdb_recording(path: str | Path) -> WfdbRecording:
    """Read the header of a WFDB record.

    Parameters
    ----------
    path : str or Path
        The ``.hea`` file; its signal files lie beside it.

    Returns
    -------
    WfdbRecording

    Raises
    ------
    WfdbError
        When the header cannot be read, or a signal file is missing or of a format that is not read.
    """
    path = Path(path)
    header = read_header(path)
    fs_hz = Fraction(repr(header.fs_hz))  # the decimal as written
    issues: list[str] = []
    sources, held = signal_files(path, read_signal_lines(path), issues)
    n_frames = min(held, default=0)
    if header.n_samples is not None and sources:
        if header.n_samples > n_frames:
            issues.append(
                f"the header promises {header.n_samples} samples a signal, the files hold {n_frames}, which are used"
            )
        n_frames = min(n_frames, header.n_samples)
    together = frames_per_record(n_frames, fs_hz)
    wide = any(BITS[source.format] > 16 for source in sources)
    sample_bytes = 3 if wide else 2
    signals, position = [], 0
    for line in sorted((line for source in sources for line in source.lines), key=lambda line: line.index):
        n_samples = line.per_frame * together
        signals.append(signal_of(line, n_samples, position * sample_bytes, fs_hz * line.per_frame))
        position += n_samples
    n_records = n_frames // together
    return WfdbRecording(
        path=path,
        format="WFDB",
        start=header.start,
        patient="",
        recording_id=header.record,
        n_records=n_records,
        record_s=together / fs_hz,
        header_bytes=0,
        record_bytes=position * sample_bytes,
        sample_bytes=sample_bytes,
        signals=tuple(signals),
        segments=(Segment(0, n_records, Fraction(0)),) if n_records else (),
        annotations=(),
        issues=tuple(issues),
        sources=sources,
        frames_per_record=together,
        is_whole=header.n_samples in (None, n_frames),
    )


def signal_files(
    path: Path, lines: tuple[SignalLine, ...], issues: list[str]
) -> tuple[tuple[SignalFile, ...], list[int]]:
    """Group signals by their file, and count the whole frames that each file holds."""
    sources: list[SignalFile] = []
    held: list[int] = []
    for name, group in itertools.groupby(lines, key=lambda line: line.file):
        members = tuple(group)
        if name in ("~", "-"):
            issues.append(f"{', '.join(repr(m.label) for m in members)}: the header names no signal file; left out")
            continue
        if any(name == source.path.name for source in sources):
            raise WfdbError(
                f"{path}: the signals of {name} do not stand together; their order in the file is not known."
            )
        source = SignalFile(path.parent / name, members[0].format, members[0].byte_offset, members)
        for line in members:
            if line.format not in BITS:
                raise WfdbError(
                    f"{path}: {line.label!r} is stored in format {line.format}; the formats "
                    f"{', '.join(map(str, BITS))} are read. Convert the record to format 16 (with xform of the WFDB "
                    "software, or wrsamp of the Python package wfdb)."
                )
            if line.format != source.format:
                raise WfdbError(f"{path}: {name} is said to hold both format {source.format} and {line.format}.")
        try:
            status = source.path.stat()
        except OSError as error:
            raise WfdbError(
                f"{path}: its signal file {name} cannot be read ({error.strerror or error}). Put it beside the header."
            ) from error
        if not stat.S_ISREG(status.st_mode):  # reading a pipe waits for its writer, which may never come
            raise WfdbError(f"{path}: its signal file {name} is no regular file. Put the file beside the header.")
        n_bytes = status.st_size - source.byte_offset
        # format 212: two samples in three bytes, a last one alone in two
        n_samples = max(n_bytes, 0) * 8 // BITS[source.format]
        sources.append(source)
        held.append(n_samples // source.frame_samples if source.frame_samples else 0)
    return tuple(sources), held


def frames_per_record(n_frames: int, fs_hz: Fraction) -> int:
    """Return the largest divisor of the recording's frames that is at most 30 s: no frame is left over."""
    most = max(1, min(n_frames, math.floor(RECORD_S * fs_hz)))
    return next(d for d in range(most, 0, -1) if n_frames % d == 0)


def signal_of(line: SignalLine, n_samples: int, offset_bytes: int, fs_hz: Fraction) -> Signal:
    """Describe a signal as one of an EDF file; ``physical = (integer - baseline) / gain``."""
    issues = []
    if line.gain is None:
        issues.append("the header states no gain; the signal stays uncalibrated")
    if line.skew:
        issues.append(
            f"the signal lies {counted(line.skew, 'frame')} late in its file and was moved back; its end repeats a "
            "sample"
        )
    gain = 1.0 if line.gain is None else 1.0 / line.gain
    offset = 0.0 if line.gain is None else -line.baseline / line.gain
    half = 1 << (min(line.resolution or 32, BITS[line.format]) - 1)
    low, high = float(line.zero - half), float(line.zero + half - 1)
    return Signal(
        index=line.index,
        label=line.label,
        unit="" if line.gain is None else line.unit,
        transducer="",
        prefilter="",
        physical_min=gain * low + offset,
        physical_max=gain * high + offset,
        digital_min=low,
        digital_max=high,
        samples_per_record=n_samples,
        offset_bytes=offset_bytes,
        fs_hz=fs_hz,
        gain=gain,
        offset=offset,
        calibrated=line.gain is not None,
        issues=tuple(issues),
    )


# ---- samples ---------------------------------------------------------------------------------------------------------


def decode(recording: WfdbRecording) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
    """Decode all signal files of a record into records, and say what their samples show."""
    n_records, together = recording.n_records, recording.frames_per_record
    lines = sorted((line for source in recording.sources for line in source.lines), key=lambda line: line.index)
    begins = dict(zip(lines, itertools.accumulate((line.per_frame * together for line in lines), initial=0)))  # noqa: B905
    records = np.empty((n_records, recording.record_bytes // recording.sample_bytes), recording.decoded_dtype)
    issues: list[str] = []
    for source in recording.sources:
        sums, lost = dict.fromkeys(source.lines, 0), dict.fromkeys(source.lines, 0)
        step = max(1, CHUNK_BYTES // (4 * together * source.frame_samples))
        try:
            with source.path.open("rb") as file:
                for first in range(0, n_records, step):
                    n = min(step, n_records - first)
                    frames = read_frames(file, source, first * together, n * together)
                    column = 0
                    for line in source.lines:
                        own = frames[:, column : column + line.per_frame]
                        column += line.per_frame
                        sums[line] += int(own.sum(dtype=np.int64))
                        lost[line] += int(np.count_nonzero(own == source.missing))
                        length = line.per_frame * together
                        target = records[first : first + n, begins[line] : begins[line] + length]
                        target[...] = own.reshape(n, length)
        except OSError as error:
            raise WfdbError(f"{source.path} cannot be read: {error.strerror or error}.") from error
        for line in source.lines:
            own = records[:, begins[line] : begins[line] + line.per_frame * together]
            if line.skew:
                move_back(own, line.skew * line.per_frame)
            if lost[line]:
                hold(own, source.missing, line.baseline)
        issues += remarks(source, sums if recording.is_whole else {}, lost, n_records * together)
    if recording.sample_bytes == 2:
        return records.view(np.uint8), tuple(issues)
    if records.size and max(int(records.max()), -int(records.min()) - 1) >= 1 << 23:
        raise WfdbError(f"{recording.path}: its 32-bit samples need more than the 24 bits that are kept of a sample.")
    packed = records.reshape(*records.shape, 1).view(np.uint8)[..., :3]
    return np.ascontiguousarray(packed).reshape(n_records, recording.record_bytes), tuple(issues)


def read_frames(file: BinaryIO, source: SignalFile, first: int, n_frames: int) -> NDArray[Any]:
    """Read frames of a signal file, ``[frame, sample]`` as the smallest integers that hold them."""
    begin, end = first * source.frame_samples, (first + n_frames) * source.frame_samples
    bits = BITS[source.format]
    aligned = begin - begin % 2 if bits == 12 else begin  # two samples share three bytes
    first_byte = aligned * bits // 8
    file.seek(source.byte_offset + first_byte)
    content = np.frombuffer(file.read(-(-end * bits // 8) - first_byte), np.uint8)
    samples = unpack(content, source.format)[begin - aligned :][: end - begin]
    if samples.size < end - begin:
        raise WfdbError(f"{source.path} has become shorter since its header was read.")
    return samples.reshape(n_frames, source.frame_samples)


def unpack(content: NDArray[np.uint8], stored: int) -> NDArray[Any]:
    """Samples out of bytes, as signal(5) lays them out."""
    if stored == 212:  # twelve bits each: low byte, both high halves, low byte
        content = np.append(content, np.zeros(-content.size % 3, np.uint8)).reshape(-1, 3).astype(np.int16)
        pairs = np.empty((len(content), 2), np.int16)
        pairs[:, 0] = content[:, 0] | (content[:, 1] & 0x0F) << 8
        pairs[:, 1] = content[:, 2] | (content[:, 1] & 0xF0) << 4
        return ((pairs << 4) >> 4).reshape(-1)
    if stored == 24:
        wide = np.zeros((content.size // 3, 4), np.uint8)
        wide[:, 1:] = content[: content.size // 3 * 3].reshape(-1, 3)
        return wide.view("<i4").reshape(-1) >> 8
    if stored == 80:
        return content.astype(np.int16) - np.int16(128)
    kind = {16: "<i2", 32: "<i4", 61: ">i2", 160: "<u2"}[stored]
    samples = content[: content.size // np.dtype(kind).itemsize * np.dtype(kind).itemsize].view(kind)
    return (samples ^ np.uint16(0x8000)).view(np.int16) if stored == 160 else samples


def hold(samples: NDArray[Any], missing: int, baseline: int) -> None:
    """Let the sample before stand for those that are missing, at the start the first one that is there."""
    flat = samples.reshape(-1)
    there = np.flatnonzero(flat != missing)
    if there.size == 0:
        samples[...] = min(max(baseline, missing + 1), -missing - 1)
        return
    before = np.searchsorted(there, np.arange(flat.size), side="right") - 1
    samples[...] = flat[there[np.maximum(before, 0)]].reshape(samples.shape)


def move_back(samples: NDArray[Any], n: int) -> None:
    """Move a signal ``n`` samples towards the start; its last sample fills the end."""
    flat = samples.reshape(-1)
    samples[...] = np.append(flat[n:], np.full(min(n, flat.size), flat[-1:])).reshape(samples.shape)


def remarks(
    source: SignalFile, sums: dict[SignalLine, int], lost: dict[SignalLine, int], n_frames: int
) -> Iterator[str]:
    """Say which checksums do not agree, and what share of a signal is marked as missing."""
    wrong = [line for line, total in sums.items() if line.checksum is not None and (total - line.checksum) % (1 << 16)]
    if wrong:
        yield (
            f"the checksums of {', '.join(repr(line.label) for line in wrong)} in {source.path.name} do not agree with "
            "the header; was the file damaged or changed?"
        )
    for line, n_lost in lost.items():
        if n_lost:
            share = 100 * n_lost / (n_frames * line.per_frame)
            yield f"{line.label}: {share:.3g} % of its samples are marked as missing and repeat the one before"
