"""The fields of EDF and BDF headers: names and widths, text out of raw bytes, numbers, and the list of faults.

Layout: 256 bytes for the file, then 256 bytes a signal, stored field by field (all labels, then all transducers, ...).
"""

from __future__ import annotations

import re
from decimal import Decimal

from sleepfm_fast.errors import SleepfmError
from sleepfm_fast.plurals import first_of

__all__ = ["EdfError", "Fields", "Issues", "parse_decimal", "split_fields"]

FILE_FIELDS = {
    "version": 8,
    "patient": 80,
    "recording": 80,
    "start date": 8,
    "start time": 8,
    "header bytes": 8,
    "reserved": 44,
    "record count": 8,
    "record duration": 8,
    "signal count": 4,
}
SIGNAL_FIELDS = {
    "label": 16,
    "transducer": 80,
    "unit": 8,
    "physical minimum": 8,
    "physical maximum": 8,
    "digital minimum": 8,
    "digital maximum": 8,
    "prefilter": 80,
    "samples per record": 8,
    "reserved": 32,
}
BLOCK_BYTES = 256  # of the file's own header, and of each signal's

NUMBER = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d{1,3})?", re.ASCII)
INTEGER = re.compile(r"[+-]?\d+", re.ASCII)


class EdfError(SleepfmError):
    """A recording that cannot be read: the file, the field, what was found and what was expected."""


class Issues:
    """Collects what was found wrong and repaired; in strict mode the first one is raised as :class:`EdfError`."""

    def __init__(self, where: str, *, strict: bool) -> None:
        self.where = where
        self.strict = strict
        self.sentences: list[str] = []

    def add(self, sentence: str) -> None:
        """Note one repaired fault, or raise it in strict mode."""
        if self.strict:
            raise EdfError(f"{self.where}: {sentence}")
        self.sentences.append(sentence)


class Fields:
    """Header fields as text: decoded, unpadded, with their formal faults collected by kind."""

    def __init__(self) -> None:
        self.faults: dict[str, list[str]] = {}

    def text(self, raw: bytes, name: str) -> str:
        """Decode a field: ASCII, else UTF-8, else Latin-1."""
        body = raw.lstrip(b"\0 ").split(b"\0", 1)[0]  # C writers end the text with a NUL; what follows is noise
        if b"\0" in raw:
            self.faults.setdefault("NUL bytes", []).append(name)
        if body and raw[:1] == b" ":
            self.faults.setdefault("text that is not left-justified", []).append(name)
        try:
            text = body.decode("ascii")
        except UnicodeDecodeError:
            self.faults.setdefault("characters outside ASCII", []).append(name)
            try:
                text = body.decode("utf-8")
            except UnicodeDecodeError:
                text = body.decode("latin-1")
        if not text.isprintable():
            self.faults.setdefault("control characters", []).append(name)
            text = "".join(c if c.isprintable() else " " for c in text)
        return text.strip()

    def report(self, issues: Issues) -> None:
        """Make one issue of each kind of fault, naming the first fields."""
        for kind, names in self.faults.items():
            issues.add(f"the header has {kind} in: {first_of(names, 4)}")


def split_fields(block: bytes, widths: dict[str, int], count: int) -> list[dict[str, bytes]]:
    """Cut ``count`` interleaved sets of fields out of a header block."""
    sets: list[dict[str, bytes]] = [{} for _ in range(count)]
    position = 0
    for name, width in widths.items():
        for fields in sets:
            fields[name] = block[position : position + width]
            position += width
    return sets


def parse_decimal(text: str) -> tuple[Decimal | None, bool]:
    """Read a number; the flag tells that a decimal comma was taken as a point."""
    comma = "," in text and "." not in text
    if comma:
        text = text.replace(",", ".")
    return (Decimal(text) if NUMBER.fullmatch(text) else None), comma
