r"""Time-stamped annotation lists (TALs) of EDF+ and BDF+: the annotation signals' bytes to onsets and texts.

A TAL is ``onset [\x15 duration] \x14 text \x14 [text \x14 ...] \x00``, onset with a sign, both in seconds. The first
TAL of each record in the first annotation signal has an empty first text: it states when that record starts.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sleepfm_fast.edf_fields import Issues

__all__ = ["Annotation", "RecordStarts", "Tal", "read_tals"]

CHUNK = re.compile(rb"[^\x00]+")
ONSET = re.compile(rb"[+-]\d{1,15}(?:\.\d{0,15})?")
DURATION = re.compile(rb"\d{1,15}(?:\.\d{0,15})?")
LENIENT = re.compile(rb"[+-]?(?:\d{1,15}(?:\.\d{0,15})?|\.\d{1,15})")


@dataclass(frozen=True)
class Annotation:
    """One annotation: onset from the first sample of the recording, duration where one is stated, text."""

    onset_s: float
    duration_s: float | None
    text: str


class Tal(NamedTuple):
    """One annotation with its times as written: from the start that the header states."""

    onset_s: Decimal
    duration_s: Decimal | None
    text: str


@dataclass
class RecordStarts:
    """When each record starts, from the start that the header states; NaN where the record does not say.

    ``seconds`` is ``ticks / 10**decimals``, rounded once; ``written`` holds the rows that were read one by one.
    """

    seconds: NDArray[np.float64]
    ticks: NDArray[np.int64]
    decimals: NDArray[np.int64]
    written: dict[int, Decimal]

    def exact(self, record: int) -> Decimal | None:
        """Start of one record as written, None where it is not stated."""
        if record in self.written:
            return self.written[record]
        if np.isnan(self.seconds[record]):
            return None
        return Decimal(int(self.ticks[record])).scaleb(-int(self.decimals[record]))


def take_starts(table: NDArray[np.uint8], width: int) -> RecordStarts:
    r"""Parse the leading ``+1234.5\x14\x14\x00`` of all rows at once and blank it; other rows are left as they are.

    A night has tens of thousands of them, and nothing else in most records.
    """
    n_records = table.shape[0]
    ticks = np.zeros(n_records, np.int64)
    decimals = np.zeros(n_records, np.int64)
    width = min(width, 18)  # at most 15 digits, which a double holds exactly
    lead = table[:, : width + 1]
    marks = lead == 0x14
    stop = np.argmax(marks, axis=1)
    rows = np.arange(n_records)
    following = lead[:, 1:]
    plain = (stop > 1) & (stop + 2 <= width)
    at = np.minimum(stop, max(width - 2, 0))
    plain &= (following[rows, at] == 0x14) & (following[rows, np.minimum(at + 1, width - 1)] == 0)
    plain &= (lead[:, 0] == ord("+")) | (lead[:, 0] == ord("-"))
    fraction = np.zeros(n_records, np.bool_)
    digits_before = np.zeros(n_records, np.bool_)
    for column in range(1, int(stop[plain].max(initial=0))):
        byte = lead[:, column].astype(np.int64)
        inside = column < stop
        digit = inside & (byte >= 48) & (byte <= 57)
        dot = inside & (byte == ord(".")) & ~fraction & digits_before
        plain &= ~inside | digit | dot
        ticks = np.where(digit, ticks * 10 + byte - 48, ticks)
        decimals += digit & fraction
        digits_before |= digit
        fraction |= dot
    ticks = np.where(lead[:, 0] == ord("-"), -ticks, ticks)
    seconds = np.where(plain, ticks / 10.0**decimals, np.nan)
    lead[plain[:, None] & (np.arange(width + 1) <= stop[:, None] + 1)] = 0
    return RecordStarts(seconds, ticks, decimals, {})


def read_tals(
    records: NDArray[np.uint8], spans: tuple[tuple[int, int], ...], issues: Issues
) -> tuple[RecordStarts, list[Tal]]:
    """Read every TAL of the annotation signals, in the order of the file.

    Parameters
    ----------
    records : uint8 [n_records, record_bytes]
        The mapped data records.
    spans : tuple of (offset, length)
        The annotation signals within a record, in bytes.
    issues : Issues
        Receives what did not follow the standard, each kind once.

    Returns
    -------
    starts : RecordStarts
        When each record starts.
    tals : list of Tal
        Annotations with a text.
    """
    # One zero byte behind each signal's part, so that no TAL can run on into the next one.
    width = sum(length + 1 for _, length in spans)
    n_records = records.shape[0]
    table = np.zeros((n_records, width), np.uint8)
    position = 0
    for offset, length in spans:
        table[:, position : position + length] = records[:, offset : offset + length]
        position += length + 1
    first_length = spans[0][1]

    starts = take_starts(table, first_length)
    tals: list[Tal] = []
    faults: dict[str, list[str]] = {}
    last_record = -1
    busy = np.flatnonzero(table.any(axis=1))  # most records hold nothing but their start
    rows: list[int] = busy.tolist()
    for chunk in CHUNK.finditer(table[busy].tobytes()):
        row, column = divmod(chunk.start(), width)
        record = rows[row]
        head, mark, body = chunk.group().partition(b"\x14")
        stamp, _, length_text = head.partition(b"\x15")
        leads = record != last_record and column < first_length and np.isnan(starts.seconds[record])
        last_record = record
        if not ONSET.fullmatch(stamp):
            if b"," in stamp and b"." not in stamp:
                stamp = stamp.replace(b",", b".")
            if not mark or not LENIENT.fullmatch(stamp):
                faults.setdefault("without a readable onset are left out", []).append(repr(chunk.group()[:24]))
                continue
            faults.setdefault("with an onset of another form than +12.5 are kept", []).append(repr(chunk.group()[:24]))
        onset = Decimal(stamp.decode("ascii"))
        texts = body.split(b"\x14")
        if leads and not texts[0]:
            starts.written[record] = onset
            starts.seconds[record] = float(onset)
            if len(texts) <= 2 and not any(texts):
                continue
        duration = None
        if length_text:
            if not DURATION.fullmatch(length_text):
                length_text = length_text.replace(b",", b".")
                readable = LENIENT.fullmatch(length_text) and not length_text.startswith(b"-")
                kind = "of another form than 12.5 are kept" if readable else "that cannot be read are kept without it"
                faults.setdefault(f"with a duration {kind}", []).append(repr(length_text[:24]))
                length_text = length_text if readable else b""
            duration = Decimal(length_text.decode("ascii")) if length_text else None
        if texts[-1] or not mark:
            faults.setdefault("without their closing mark are kept", []).append(repr(chunk.group()[:24]))
        for raw in texts:
            if not raw:
                continue
            try:
                text = raw.decode("utf-8")
            except UnicodeDecodeError:
                text = raw.decode("latin-1")
                faults.setdefault("that are not UTF-8 are read as Latin-1", []).append(repr(text[:24]))
            tals.append(Tal(onset, duration, text.strip()))
    for kind, examples in faults.items():
        issues.add(f"annotations {kind}: {len(examples)}, the first is {examples[0]}")
    return starts, tals
