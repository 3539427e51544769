"""The signal lines of a WFDB header: which file holds a signal, how, and what its integers mean.

Format: the WFDB applications guide, header(5), PhysioNet.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from sleepfm_fast.wfdb import WfdbError, read_header

__all__ = ["BITS", "SignalLine", "read_signal_lines"]

BITS = {16: 16, 24: 24, 32: 32, 61: 16, 80: 8, 160: 16, 212: 12}
"""Bits a sample of the formats that are read; 61 is big-endian, 80 and 160 are offset binary."""

FORMAT = re.compile(
    r"(\d{1,9})(?:x(\d{1,9}))?(?::(\d{1,9}))?(?:\+(\d{1,18}))?", re.ASCII
)  # format x samples a frame : skew + offset
GAIN = re.compile(r"([-+.\deE]+)(?:\(([-+]?\d{1,10})\))?(?:/(\S+))?", re.ASCII)  # gain (baseline) / unit
INTEGER = re.compile(r"[-+]?\d{1,10}", re.ASCII)
DEFAULT_UNIT = "mV"
LEAST_GAIN = 1e-30
"""Steps a unit; what is smaller, or larger than the inverse, is a damaged number, and leaves no finite values."""


@dataclass(frozen=True)
class SignalLine:
    """One signal, as its line in the header describes it.

    Attributes
    ----------
    index : int
        Position in the header, from 0.
    file : str
        The signal file's name, in the header's folder; "~" for a signal that was not recorded.
    format : int
        How samples are stored, a key of ``BITS`` if it can be read.
    per_frame : int
        Samples in a frame; the header's frequency counts frames.
    skew : int
        Frames by which the signal lies behind the others in the file.
    byte_offset : int
        Bytes at the beginning of the file that are no samples.
    gain : float or None
        Steps a unit; None where the header states none, 0, or a number that cannot be one.
    baseline : int
        The integer that stands for 0 units.
    unit : str
    resolution, zero : int or None, int
        Bits of the converter, and the middle of its range.
    checksum : int or None
        Sum of all samples, in 16 bits.
    label : str
    """

    index: int
    file: str
    format: int
    per_frame: int
    skew: int
    byte_offset: int
    gain: float | None
    baseline: int
    unit: str
    resolution: int | None
    zero: int
    checksum: int | None
    label: str


def read_signal_lines(path: str | Path) -> tuple[SignalLine, ...]:
    """Read the signal lines of a ``.hea`` file.

    Raises
    ------
    WfdbError
        When the file cannot be read, has fewer lines than its record line says, consists of several segments, or a line
        does not name a file and a format.
    """
    path = Path(path)
    header = read_header(path)
    lines = [line for line in path.read_text(encoding="latin-1").splitlines() if line.strip()]
    lines = [line for line in lines if not line.lstrip().startswith("#")]
    if "/" in lines[0].split()[0]:
        raise WfdbError(
            f"{path}: the record consists of {lines[0].split()[0].partition('/')[2]} segments, which are not read. "
            "Give the segments one by one, or write the record as one (with xform of the WFDB software)."
        )
    if len(lines) - 1 < header.n_signals:
        raise WfdbError(
            f"{path}: its record line promises {header.n_signals} signals, {len(lines) - 1} lines follow; was the file "
            "transferred whole?"
        )
    return tuple(parse_line(path, index, line) for index, line in enumerate(lines[1 : 1 + header.n_signals]))


def parse_line(path: Path, index: int, line: str) -> SignalLine:
    """Read ``file format gain resolution zero initial checksum block label``; what comes after the format may lack."""
    fields = line.split(maxsplit=8)
    stored = FORMAT.fullmatch(fields[1]) if len(fields) > 1 else None
    if stored is None or (stored[2] is not None and int(stored[2]) == 0):
        raise WfdbError(f"{path}: the line of signal {index + 1} reads '{line[:80]}'; expected 'file format ...'.")
    if Path(fields[0]).name != fields[0] or "\0" in fields[0]:
        raise WfdbError(f"{path}: signal {index + 1} lies in '{fields[0][:80]}'; expected a file beside the header.")
    amplitude = GAIN.fullmatch(fields[2]) if len(fields) > 2 else None
    gain = None
    if amplitude is not None:
        try:
            gain = float(amplitude[1])
        except ValueError:
            gain = None
    if gain is not None and not LEAST_GAIN <= abs(gain) <= 1 / LEAST_GAIN:
        gain = None
    resolution, zero, _initial, checksum = (
        int(fields[k]) if len(fields) > k and INTEGER.fullmatch(fields[k]) else None for k in (3, 4, 5, 6)
    )
    baseline = amplitude[2] if amplitude is not None else None
    return SignalLine(
        index=index,
        file=fields[0],
        format=int(stored[1]),
        per_frame=int(stored[2] or 1),
        skew=int(stored[3] or 0),
        byte_offset=int(stored[4] or 0),
        gain=gain,
        baseline=int(baseline) if baseline is not None else zero or 0,
        unit=(amplitude[3] if amplitude is not None else None) or DEFAULT_UNIT,
        resolution=resolution if resolution is not None and resolution > 0 else None,
        zero=zero or 0,
        checksum=checksum,
        label=fields[8].strip() if len(fields) > 8 else f"signal {index + 1}",
    )
