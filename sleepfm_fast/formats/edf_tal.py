r"""Time-stamped annotation lists (TALs) of EDF+ and BDF+: the annotation signals' bytes to onsets and texts.

A TAL is ``onset [\x15 duration] \x14 text \x14 [text \x14 ...] \x00``, onset with a sign, both in seconds. The first
TAL of each record in the first annotation signal has an empty first text: it states when that record starts.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sleepfm_fast.execution.compiled import compiled
from sleepfm_fast.execution.threads import in_threads
from sleepfm_fast.formats.edf_fields import Issues

__all__ = ["Annotation", "RecordStarts", "Tal", "read_tals"]

CHUNK = re.compile(rb"[^\x00]+")
# Programs write what their doubles print, so that 0.1 + 0.2 stands with 17 decimals.
ONSET = re.compile(rb"[+-]\d{1,15}(?:\.\d{0,40})?")
DURATION = re.compile(rb"\d{1,15}(?:\.\d{0,40})?")
POWERS = 10.0 ** np.arange(16)
FIRST_TOUCH_BYTES = 1024  # a record's first look costs a fault and misses, as much time as copying about so many bytes
LENIENT = re.compile(rb"[+-]?(?:\d{1,15}(?:\.\d{0,40})?|\.\d{1,40})")


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


@compiled()
def any_byte(content: Any) -> bool:
    """Whether a byte is not zero; without an early end, so that it takes vector instructions."""
    found = np.uint8(0)
    for i in range(content.size):
        found |= content[i]
    return bool(found != 0)


@compiled()
def take_starts(
    records: Any, begin: int, end: int, offsets: Any, lengths: Any, ticks: Any, decimals: Any, taken: Any, busy: Any
) -> None:
    r"""Parse the ``+1234.5\x14\x14\x00`` that begins the annotations of each of the records ``[begin, end)``.

    A night has tens of thousands of them, and nothing else in most records. ``taken`` is how many bytes it took, 0
    where the record begins otherwise; ``busy`` marks the records that hold more.
    """
    # At most 15 digits, which a double holds exactly. Three bytes follow them, all of which the signal must still hold.
    width = min(lengths[0] - 1, 18)
    for record in range(begin, end):
        row = records[record, offsets[0] : offsets[0] + lengths[0]]
        stop = 0
        while stop < width and row[stop] != 0x14:
            stop += 1
        plain = 1 < stop <= width - 2 and row[stop + 1] == 0x14 and row[stop + 2] == 0
        plain = plain and (row[0] == 0x2B or row[0] == 0x2D)
        number, after_point, point = np.int64(0), 0, False
        for column in range(1, stop if plain else 0):
            byte = row[column]
            if 48 <= byte <= 57:
                number = number * 10 + np.int64(byte) - 48
                after_point += point
            elif byte == 0x2E and not point and column > 1:
                point = True
            else:
                plain = False
                break
        if plain:
            ticks[record] = -number if row[0] == 0x2D else number
            decimals[record] = after_point
            taken[record] = stop + 2
        busy[record] = any_byte(row[taken[record] :])
        for span in range(1, offsets.size):
            busy[record] |= any_byte(records[record, offsets[span] : offsets[span] + lengths[span]])


def duration_in(text: bytes, faults: dict[str, list[str]]) -> Decimal | None:
    """Read a duration as far as it can be read; other forms than the standard's are noted in ``faults``."""
    if not DURATION.fullmatch(text):
        text = text.replace(b",", b".")
        readable = LENIENT.fullmatch(text) and not text.startswith(b"-")
        kind = "of another form than 12.5 are kept" if readable else "that cannot be read are kept without it"
        faults.setdefault(f"with a duration {kind}", []).append(repr(text[:24]))
        if not readable:
            return None
    return Decimal(text.decode("ascii"))


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
    n_records = records.shape[0]
    first_length = spans[0][1]
    ticks, decimals, taken = np.zeros((3, n_records), np.int64)
    busy = np.zeros(n_records, np.bool_)
    offsets, lengths = np.array(spans, np.int64).T.copy()

    def work(begin: int, end: int) -> None:
        take_starts(records, begin, end, offsets, lengths, ticks, decimals, taken, busy)

    in_threads(work, n_records, n_records * FIRST_TOUCH_BYTES)
    starts = RecordStarts(np.where(taken > 0, ticks / POWERS[decimals], np.nan), ticks, decimals, {})
    # One zero byte behind each signal's part, so that no TAL can run on into the next one.
    width = sum(length + 1 for _, length in spans)
    rows: list[int] = np.flatnonzero(busy).tolist()
    table = np.zeros((len(rows), width), np.uint8)
    position = 0
    for offset, length in spans:
        table[:, position : position + length] = records[rows, offset : offset + length]
        position += length + 1
    table[np.arange(width) < taken[rows, None]] = 0
    silent = (taken[rows] == 0).tolist()
    tals: list[Tal] = []
    faults: dict[str, list[str]] = {}
    last_record = -1
    for chunk in CHUNK.finditer(table.tobytes()):
        row, column = divmod(chunk.start(), width)
        record = rows[row]
        head, mark, body = chunk.group().partition(b"\x14")
        stamp, _, length_text = head.partition(b"\x15")
        leads = silent[row] and record != last_record and column < first_length
        last_record = record
        if not ONSET.fullmatch(stamp):
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
        duration = duration_in(length_text, faults) if length_text else None
        if texts[-1] or not mark:
            kind = "without their closing mark are kept" if any(texts) else "without a text are left out"
            faults.setdefault(kind, []).append(repr(chunk.group()[:24]))
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
