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

from sleepfm_fast.edf_header import Issues

__all__ = ["Annotation", "Tal", "read_tals"]

CHUNK = re.compile(rb"[^\x00]+")
ONSET = re.compile(rb"[+-]\d{1,15}(?:\.\d{0,15})?")
LENIENT = re.compile(rb"[+-]?\d{1,15}(?:\.\d{0,15})?")


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


def read_tals(
    records: NDArray[np.uint8], spans: tuple[tuple[int, int], ...], issues: Issues
) -> tuple[list[Decimal | None], list[Tal]]:
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
    record_onsets : list of Decimal or None
        Start of each record, None where the record does not state it.
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

    record_onsets: list[Decimal | None] = [None] * n_records
    tals: list[Tal] = []
    faults: dict[str, list[str]] = {}
    last_record = -1
    for chunk in CHUNK.finditer(table.tobytes()):
        record, column = divmod(chunk.start(), width)
        head, mark, body = chunk.group().partition(b"\x14")
        stamp, _, length_text = head.partition(b"\x15")
        leads = record != last_record and column < first_length
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
            record_onsets[record] = onset
            if len(texts) <= 2 and not any(texts):
                continue
        duration = None
        if length_text:
            length_text = length_text.replace(b",", b".")
            if LENIENT.fullmatch(length_text) and not length_text.startswith(b"-"):
                duration = Decimal(length_text.decode("ascii"))
            else:
                faults.setdefault("with an unreadable duration are kept without it", []).append(repr(length_text[:24]))
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
    return record_onsets, tals
