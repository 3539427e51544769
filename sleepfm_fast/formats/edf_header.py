"""The header of EDF, EDF+, BDF and BDF+ files: what it says, what was repaired, what cannot be read.

Sources: Kemp et al., Electroencephalogr. Clin. Neurophysiol. 82 (1992) 391-393 (EDF); Kemp and Olivan, Clin.
Neurophysiol. 114 (2003) 1755-1761 (EDF+); BioSemi's description of its 24-bit variant (BDF).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from datetime import datetime
from fractions import Fraction
from pathlib import Path

from sleepfm_fast.formats.edf_fields import (
    BLOCK_BYTES,
    FILE_FIELDS,
    INTEGER,
    SIGNAL_FIELDS,
    EdfError,
    Fields,
    Issues,
    parse_decimal,
    split_fields,
)
from sleepfm_fast.plurals import agreeing, counted

__all__ = ["INCOMPLETE", "Header", "Signal", "parse_header"]

DATE = re.compile(r"(\d{1,2})\D(\d{1,2})\D(\d{4}|\d{2})", re.ASCII)
TIME = re.compile(r"(\d{1,2})\D(\d{1,2})\D(\d{1,2})", re.ASCII)
STARTDATE = re.compile(r"Startdate (\d{1,2})-([A-Z]{3})-(\d{4})(?!\d)", re.ASCII | re.IGNORECASE)
MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")

INCOMPLETE = "probably an incomplete copy"
"""Stands in the remark on a file that is shorter than its header says."""

# What lies under the name of a recording often enough to be recognised by its first bytes.
NOT_RECORDINGS = (
    (b"version https://git-lfs", "a Git LFS pointer, not the recording itself; fetch it with `git lfs pull`"),
    (b"\x1f\x8b", "compressed with gzip; decompress it first"),
    (b"PK\x03\x04", "a zip archive; unpack it first"),
    (b"\x89HDF", "an HDF5 file"),
    (b"MATLAB", "a MATLAB file"),
    (b"<", "a page of XML or HTML, perhaps a failed download"),
)


@dataclass(frozen=True)
class Signal:
    """One ordinary signal of a recording, as its header describes it.

    Attributes
    ----------
    index : int
        Position in the header, from 0, annotation signals counted too.
    samples_per_record, offset_bytes : int
        Samples in one data record, and where they start within it.
    fs_hz : Fraction
        Sampling rate, exact: samples per record over the record's duration; always above 0.
    gain, offset : float
        ``physical = gain * digital + offset`` in ``unit``; 1 and 0 where the header allows no calibration.
    calibrated : bool
        False where the header's limits are equal or unreadable.
    issues : tuple of str
        What was repaired or must be known about this signal.
    """

    index: int
    label: str
    unit: str
    transducer: str
    prefilter: str
    physical_min: float
    physical_max: float
    digital_min: float
    digital_max: float
    samples_per_record: int
    offset_bytes: int
    fs_hz: Fraction
    gain: float
    offset: float
    calibrated: bool
    issues: tuple[str, ...] = ()


@dataclass(frozen=True)
class Header:
    """A whole header after repair.

    ``annotation_spans`` are (offset, length) in bytes within a record; ``n_missing`` records are promised and not in
    the file.
    """

    format: str
    start: datetime | None
    patient: str
    recording_id: str
    header_bytes: int
    record_bytes: int
    sample_bytes: int
    n_records: int
    record_s: Fraction
    signals: tuple[Signal, ...]
    annotation_spans: tuple[tuple[int, int], ...]
    n_missing: int = 0


def parse_start(fields: dict[str, str], issues: Issues) -> datetime | None:
    """Start of the recording; the year's century from the EDF+ `Startdate` where it agrees, else 1985-2084."""
    date_text, time_text = fields["start date"], fields["start time"]
    date, time = DATE.fullmatch(date_text), TIME.fullmatch(time_text)
    if date is None or time is None:
        issues.add(
            f"the start is {date_text!r} {time_text!r}, expected 'dd.mm.yy' 'hh.mm.ss'; the start is taken as unknown"
        )
        return None
    if not re.fullmatch(r"(\d\d\.){2}\d\d", date_text) or not re.fullmatch(r"(\d\d\.){2}\d\d", time_text):
        issues.add(f"the start is written {date_text!r} {time_text!r}, expected the form 'dd.mm.yy' 'hh.mm.ss'")
    day, month, year = (int(v) for v in date.groups())
    if year < 100:
        year += 1900 if year >= 85 else 2000
    stated = STARTDATE.search(fields["recording"])
    if stated is not None and stated[2].upper() in MONTHS:
        long = (int(stated[1]), MONTHS.index(stated[2].upper()) + 1, int(stated[3]))
        if (day, month, year % 100) == (long[0], long[1], long[2] % 100):
            year = long[2]
        else:
            issues.add(
                f"the start date is {date_text!r}, but the recording field says {stated[0]!r}; the first is used"
            )
    try:
        hour, minute, second = (int(v) for v in time.groups())
        return datetime(year, month, day, hour, minute, second)
    except ValueError:
        issues.add(f"the start {date_text!r} {time_text!r} is no date and time; the start is taken as unknown")
        return None


def parse_calibration(
    text: dict[str, str], full_scale: int, issues: Issues
) -> tuple[tuple[float, float, float, float], float, float, bool]:
    """Limits, gain, offset and whether the signal is calibrated.

    ``gain = (physical_max - physical_min) / (digital_max - digital_min)``; swapped limits keep their negative gain.
    """
    limits: list[float] = []
    for name in ("physical minimum", "physical maximum", "digital minimum", "digital maximum"):
        number, comma = parse_decimal(text[name])
        value = math.nan if number is None else float(number)
        if not math.isfinite(value):
            value = math.nan
            issues.add(f"the {name} is {text[name]!r}, expected a number; the signal stays uncalibrated")
        elif comma:
            issues.add(f"the {name} is {text[name]!r}; the comma is read as a decimal point")
        limits.append(value)
    p_min, p_max, d_min, d_max = limits
    result = (p_min, p_max, d_min, d_max)
    if any(math.isnan(v) for v in limits):
        return result, 1.0, 0.0, False
    if d_min == d_max or p_min == p_max:
        which = "digital" if d_min == d_max else "physical"
        issues.add(
            f"the {which} minimum and maximum are both {text[which + ' minimum']}; the signal stays uncalibrated"
        )
        return result, 1.0, 0.0, False
    gain = (p_max - p_min) / (d_max - d_min)
    offset = p_min - gain * d_min
    if not (math.isfinite(gain) and math.isfinite(offset)) or gain == 0.0:
        issues.add(f"the limits {p_min:g} to {p_max:g} give no usable gain; the signal stays uncalibrated")
        return result, 1.0, 0.0, False
    if d_min > d_max:
        issues.add(f"the digital limits are swapped ({d_min:g} to {d_max:g}); the gain follows them")
    if p_min > p_max:
        issues.add(
            f"the physical limits are swapped ({p_min:g} to {p_max:g}); the gain is negative, as EDF+ defines it"
        )
    if min(d_min, d_max) < -full_scale or max(d_min, d_max) > full_scale - 1:
        issues.add(
            f"the digital limits {d_min:g} to {d_max:g} exceed the sample's range {-full_scale} to {full_scale - 1}"
        )
    return result, gain, offset, True


def parse_format(raw_version: bytes, reserved: str, has_annotations: bool, issues: Issues) -> str:
    """Name of the format; the continuity mark counts only with an annotation signal, which carries the times."""
    family = "BDF" if raw_version[:1] == b"\xff" else "EDF"
    mark = re.match(r"(EDF|BDF)\+\s*([CD]?)", reserved, re.IGNORECASE)
    if mark is None:
        if not has_annotations:
            return family
        issues.add(f"the file has an annotation signal but is not marked {family}+; it is read as {family}+C")
        return f"{family}+C"
    if mark[1].upper() != family:
        issues.add(f"the file is a {family} file marked {mark[0]!r}")
    if not has_annotations:
        issues.add(f"the file is marked {mark[0]!r} but has no annotation signal; it is read as continuous {family}")
        return family
    if not mark[2]:
        issues.add(f"the file is marked {mark[0]!r}, expected {family}+C or {family}+D; it is read as {family}+C")
    return f"{family}+{mark[2].upper() or 'C'}"


def check_version(raw: bytes, path: Path) -> int:
    """Bytes a sample (2 or 3), or a refusal that says what the file is instead."""
    version = raw[:8]
    if version[:1] == b"\xff" and version[1:].rstrip(b"\0 ") == b"BIOSEMI":
        return 3
    if version.split(b"\0", 1)[0].strip() == b"0":
        return 2
    for magic, meaning in NOT_RECORDINGS:
        if raw.startswith(magic):
            raise EdfError(f"{path}: this is no EDF or BDF file, it is {meaning}.")
    raise EdfError(
        f"{path}: the version field is {version!r}, expected b'0       ' (EDF) or b'\\xffBIOSEMI' (BDF); "
        "this is no EDF or BDF file."
    )


def count_records(
    stated_text: str, available_bytes: int, record_bytes: int, record_s: Fraction, issues: Issues
) -> tuple[int, int]:
    """Whole records in the file, and those that the header promises besides; the file is trusted over the header."""
    stated = int(stated_text) if INTEGER.fullmatch(stated_text) else None
    if record_bytes == 0:
        if available_bytes:
            issues.add(
                f"{counted(available_bytes, 'byte follows', 'bytes follow')} the header, but no signal claims them"
            )
        return 0, 0
    n_records, rest = divmod(available_bytes, record_bytes)
    whole = counted(n_records, "whole record, which is", "whole records, which are")
    n_missing = max((stated or 0) - n_records, 0)
    lost_s, whole_s = float(n_missing * record_s), float((n_records + n_missing) * record_s)
    incomplete_copy = f"; {INCOMPLETE}: the last {lost_s:g} s of {whole_s:g} s are missing" if record_s else ""
    if stated is None or stated < 0:
        issues.add(f"the record count is {stated_text!r}; the file holds {whole} used")
    elif stated > n_records:
        issues.add(
            f"the header promises {counted(stated, 'record')}, the file holds {n_records} "
            f"{agreeing(n_records, 'whole one, which is', 'whole ones, which are')} used{incomplete_copy}"
        )
    elif stated < n_records:
        issues.add(f"the header promises {counted(stated, 'record')}, the file holds {n_records}; all of them are used")
    elif n_records == 0:
        issues.add("the file holds no data records")
    if rest and stated is not None and 0 <= stated <= n_records:
        issues.add(f"{rest} stray bytes after the last whole record are left out")
    elif rest:
        issues.add(f"the last record is cut off after {rest} of {record_bytes} bytes and is left out")
    return n_records, n_missing


def parse_signals(
    path: Path, block: bytes, n_signals: int, sample_bytes: int, record_s: Fraction, texts: Fields, issues: Issues
) -> tuple[list[Signal], list[tuple[int, int]], int]:
    """Ordinary signals, spans of the annotation signals, and the bytes that a record takes."""
    signals: list[Signal] = []
    spans: list[tuple[int, int]] = []
    position = 0
    for index, raw_fields in enumerate(split_fields(block, SIGNAL_FIELDS, n_signals)):
        ordinal = f"signal {index + 1} of {n_signals}"
        fields = {name: texts.text(value, f"{name} of {ordinal}") for name, value in raw_fields.items()}
        if not INTEGER.fullmatch(fields["samples per record"]) or int(fields["samples per record"]) < 0:
            raise EdfError(
                f"{path}: the samples per record of {ordinal} ({fields['label']!r}) are "
                f"{fields['samples per record']!r}, expected a whole number; the layout of the records cannot be known "
                "without it."
            )
        n_samples = int(fields["samples per record"])
        n_bytes = n_samples * sample_bytes
        if fields["label"].casefold() in ("edf annotations", "bdf annotations"):
            if n_bytes:
                spans.append((position, n_bytes))
        elif n_samples == 0 or record_s == 0:
            why = "it has no samples" if n_samples == 0 else "the record duration is 0, so it has no sampling rate"
            issues.add(f"{ordinal} ({fields['label']!r}) is left out: {why}")
        else:
            own = Issues(f"{path}, {ordinal} ({fields['label']!r})", strict=issues.strict)
            if not fields["label"]:
                own.add("the label is empty")
            limits, gain, offset, calibrated = parse_calibration(fields, 1 << (8 * sample_bytes - 1), own)
            rate = Fraction(n_samples) / record_s
            signals.append(
                Signal(
                    index, fields["label"], fields["unit"], fields["transducer"], fields["prefilter"], *limits,
                    n_samples, position, rate, gain, offset, calibrated, tuple(own.sentences),
                )
            )  # fmt: skip
        position += n_bytes
    return signals, spans, position


def parse_header(path: Path, content: bytes, file_bytes: int, issues: Issues) -> Header:
    """Parse and repair a header.

    Parameters
    ----------
    path : Path
        For the sentences only.
    content : bytes
        The file's beginning: at least the header, or all there is.
    file_bytes : int
        Size of the whole file.
    issues : Issues
        Receives what was repaired.

    Raises
    ------
    EdfError
        When the layout of the records cannot be known, or at the first issue in strict mode.
    """
    sample_bytes = check_version(content, path)
    if len(content) < BLOCK_BYTES:
        raise EdfError(
            f"{path}: the file ends after {counted(len(content), 'byte')}, expected a header of at least 256 bytes."
        )
    texts = Fields()
    raw = split_fields(content, FILE_FIELDS, 1)[0]
    text = {name: texts.text(value, name) for name, value in raw.items() if name != "version"}
    if b"\0" in raw["version"]:
        texts.faults.setdefault("NUL bytes", []).insert(0, "version")
    if not INTEGER.fullmatch(text["signal count"]) or int(text["signal count"]) < 0:
        raise EdfError(f"{path}: the signal count is {text['signal count']!r}, expected a whole number from 0 to 9999.")
    n_signals = int(text["signal count"])
    header_bytes = BLOCK_BYTES * (n_signals + 1)
    if len(content) < header_bytes:
        raise EdfError(
            f"{path}: the file ends after {len(content)} bytes, expected a header of {header_bytes} bytes for "
            f"{counted(n_signals, 'signal')}."
        )
    duration, comma = parse_decimal(text["record duration"])
    # The bounds keep the exact fraction small; the field could otherwise hold 1e999.
    if duration is None or duration < 0 or (duration > 0 and not -7 <= duration.adjusted() <= 7):
        raise EdfError(f"{path}: the record duration is {text['record duration']!r}, expected a number of seconds.")
    if comma:
        issues.add(f"the record duration is {text['record duration']!r}; the comma is read as a decimal point")
    record_s = Fraction(duration)

    block = content[BLOCK_BYTES:header_bytes]
    signals, spans, record_bytes = parse_signals(path, block, n_signals, sample_bytes, record_s, texts, issues)
    if n_signals == 0:
        issues.add("the header describes no signals")
    texts.report(issues)
    report_duplicates(signals, issues)

    stated = int(text["header bytes"]) if INTEGER.fullmatch(text["header bytes"]) else -1
    if stated != header_bytes:
        # A longer header is believed where the file's size agrees with it and with nothing else.
        count = int(text["record count"]) if INTEGER.fullmatch(text["record count"]) else -1
        longer = stated > header_bytes and stated % BLOCK_BYTES == 0 and count > 0 and record_bytes > 0
        believed = longer and file_bytes == stated + count * record_bytes
        issues.add(
            f"the header bytes are {text['header bytes']!r}, {counted(n_signals, 'signal takes', 'signals take')} "
            f"{header_bytes}; "
            + (f"{stated} agrees with the file's size and is used" if believed else f"{header_bytes} is used")
        )
        if believed:
            header_bytes = stated
    start = parse_start(text, issues)
    name = parse_format(raw["version"], text["reserved"], bool(spans), issues)
    n_records, n_missing = count_records(
        text["record count"], file_bytes - header_bytes, record_bytes, record_s, issues
    )
    return Header(
        name, start, text["patient"], text["recording"], header_bytes, record_bytes, sample_bytes,
        n_records, record_s, tuple(signals), tuple(spans), n_missing,
    )  # fmt: skip


def report_duplicates(signals: list[Signal], issues: Issues) -> None:
    """Name the labels that more than one signal carries."""
    places: dict[str, list[int]] = {}
    for signal in signals:
        places.setdefault(signal.label, []).append(signal.index + 1)
    for label, numbers in places.items():
        if len(numbers) > 1:
            issues.add(
                f"{len(numbers)} signals are called {label!r} (numbers {', '.join(map(str, numbers))}); all are kept"
            )
