"""WFDB annotation files (MIT format) and the header lines that give them their time scale.

Format: the WFDB applications guide, annot(5) and header(5), PhysioNet.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from sleepfm_fast.errors import SleepfmError
from sleepfm_fast.plurals import counted

__all__ = ["WfdbAnnotation", "WfdbError", "WfdbHeader", "read_annotations", "read_header"]

# Annotation codes above 49 are not annotations but modify the one before or the time of the next.
SKIP, NUM, SUB, CHN, AUX = 59, 60, 61, 62, 63
NOTE = 22
TIME_RESOLUTION = re.compile(r"## time resolution:\s*([0-9.eE+/-]+)")
LOWEST_HZ, HIGHEST_HZ = 1e-12, 1e6
"""A sampling frequency outside of these is a damaged number."""


class WfdbError(SleepfmError):
    """A WFDB file that cannot be read."""


@dataclass(frozen=True)
class WfdbAnnotation:
    """One annotation: time in samples, code (22 is a note), subtype, channel, number, auxiliary text."""

    sample: int
    code: int
    subtype: int
    channel: int
    number: int
    aux: str


@dataclass(frozen=True)
class WfdbHeader:
    """First line of a ``.hea`` file: sampling frequency, samples per signal (None: not given), start."""

    record: str
    n_signals: int
    fs_hz: float
    n_samples: int | None
    start: datetime | None


def read_header(path: str | Path) -> WfdbHeader:
    """Read the record line of a ``.hea`` file.

    Raises
    ------
    WfdbError
        When the file is missing or its record line is not of the form ``name signals [frequency [samples ...]]``.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="latin-1").splitlines()
    except OSError as error:
        raise WfdbError(f"{path} cannot be read: {error.strerror or error}.") from error
    fields = next((line.split() for line in lines if line.strip() and not line.lstrip().startswith("#")), [])
    try:
        # frequency/counter-frequency(base counter): only the sampling frequency gives annotations their time
        fs_hz = float(re.split(r"[/(]", fields[2])[0]) if len(fields) > 2 else 250.0
        n_samples = int(fields[3]) if len(fields) > 3 else 0
        n_signals = int(fields[1].split("/")[0])
        if n_samples < 0 or n_signals < 0:
            raise ValueError("a negative number")
        header = WfdbHeader(fields[0], n_signals, fs_hz, n_samples or None, start_of(fields[4:6]))
    except (IndexError, ValueError) as error:
        raise WfdbError(
            f"{path}: its record line reads '{' '.join(fields)[:80]}'; expected a WFDB record line "
            "'name number-of-signals sampling-frequency number-of-samples'."
        ) from error
    if not is_frequency(fs_hz):
        raise WfdbError(
            f"{path}: its sampling frequency is {fs_hz:g} Hz; expected a positive number, at most {HIGHEST_HZ:g}."
        )
    return header


def is_frequency(value_hz: float) -> bool:
    """Whether a number can be a frequency of samples: times counted by it are finite."""
    return LOWEST_HZ <= value_hz <= HIGHEST_HZ


def start_of(fields: list[str]) -> datetime | None:
    """Read base time and date (``23:51:30 24/8/1989``); None unless both are given and valid."""
    if len(fields) < 2:
        return None
    clock = re.fullmatch(r"(?:(\d+):)?(\d+):(\d+)(?:\.(\d+))?", fields[0])
    date = re.fullmatch(r"(\d+)/(\d+)/(\d+)", fields[1])
    if clock is None or date is None:
        return None
    microsecond = int((clock[4] or "0").ljust(6, "0")[:6])
    try:
        day = datetime(int(date[3]), int(date[2]), int(date[1]))
        return day.replace(hour=int(clock[1] or 0), minute=int(clock[2]), second=int(clock[3]), microsecond=microsecond)
    except (ValueError, OverflowError):
        return None


def read_annotations(path: str | Path) -> tuple[tuple[WfdbAnnotation, ...], float | None]:
    """Read an annotation file in MIT format.

    Each annotation is a little-endian 16-bit word, six bits of code over ten bits of interval; SKIP carries a 32-bit
    interval (high word first), AUX a text padded to even length; NUM and CHN hold until changed. A zero word ends.

    Returns
    -------
    annotations : tuple of WfdbAnnotation
    frequency_hz : float or None
        The file's own ``## time resolution``; None where the header's sampling frequency applies.

    Raises
    ------
    WfdbError
        When the file is missing, is truncated or is not in MIT format.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise WfdbError(f"{path} cannot be read: {error.strerror or error}.") from error
    refused = "expected WFDB annotations in MIT format. Check that the file was transferred whole and in binary mode."
    if len(data) < 2:
        raise WfdbError(f"{path} has {counted(len(data), 'byte')}; {refused}")
    found: list[list[int | str]] = []  # sample, code, subtype, channel, number, aux
    sample = position = channel = number = 0
    ended = False
    while position + 2 <= len(data):
        word = data[position] | data[position + 1] << 8
        position += 2
        code, interval = word >> 10, word & 0x3FF
        if word == 0:
            ended = True
            break
        if code == SKIP:
            if position + 4 > len(data):
                break
            high = int.from_bytes(data[position : position + 2], "little", signed=True)
            sample += (high << 16) + int.from_bytes(data[position + 2 : position + 4], "little")
            position += 4
        elif code <= 49:
            sample += interval
            if sample < 0:
                raise WfdbError(f"{path}: byte {position - 2} gives a time before the recording's start; {refused}")
            found.append([sample, code, 0, channel, number, ""])
        elif code < SKIP or not found:
            raise WfdbError(f"{path}: byte {position - 2} holds code {code} where an annotation belongs; {refused}")
        elif code == AUX:
            if position + interval > len(data):
                break
            found[-1][5] = data[position : position + interval].decode("latin-1").rstrip("\0")
            position += interval + (interval & 1)
        else:
            low = interval & 0xFF
            value = low - 256 if low > 127 else low
            if code == NUM:
                number = found[-1][4] = value
            elif code == CHN:
                channel = found[-1][3] = low
            else:
                found[-1][2] = value
    if not ended:
        raise WfdbError(f"{path} ends at byte {len(data)} without the zero word that closes the list; {refused}")
    annotations = tuple(WfdbAnnotation(*fields) for fields in found)  # type: ignore[arg-type]
    return resolve_time(path, annotations)


def resolve_time(
    path: Path, annotations: tuple[WfdbAnnotation, ...]
) -> tuple[tuple[WfdbAnnotation, ...], float | None]:
    """Take the ``##`` notes at sample 0 (time resolution, type definitions) out of the list."""
    frequency_hz: float | None = None
    kept = []
    for annotation in annotations:
        if annotation.sample == 0 and annotation.code == NOTE and annotation.subtype >= 0:
            if match := TIME_RESOLUTION.match(annotation.aux):
                try:
                    frequency_hz = float(match[1])
                except ValueError:
                    frequency_hz = 0.0
                if not is_frequency(frequency_hz):
                    raise WfdbError(f"{path}: its time resolution reads '{match[1]}'; expected a frequency in Hz.")
                continue
            if annotation.aux.startswith("## "):
                continue
        kept.append(annotation)
    return tuple(kept), frequency_hz
