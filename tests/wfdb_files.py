"""Writes WFDB records and annotations, sample by sample, as the WFDB applications guide lays them out."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np


def pack(values: Sequence[int], stored: int) -> bytes:
    """Bytes of samples in a format of signal(5)."""
    if stored == 212:
        out = bytearray()
        values = [v & 0xFFF for v in values]
        for k in range(0, len(values), 2):
            a, b = values[k], values[k + 1] if k + 1 < len(values) else None
            out += bytes((a & 0xFF, a >> 8 | (0 if b is None else b >> 8 << 4)))
            if b is not None:
                out.append(b & 0xFF)
        return bytes(out)
    one = {
        16: lambda v: struct.pack("<h", v),
        24: lambda v: struct.pack("<i", v)[:3],
        32: lambda v: struct.pack("<i", v),
        61: lambda v: struct.pack(">h", v),
        80: lambda v: struct.pack("<B", v + 128),
        160: lambda v: struct.pack("<H", v + 32768),
    }[stored]
    return b"".join(one(v) for v in values)


def checksum(values) -> int:
    """Sum of samples as a signed number of 16 bits."""
    return (int(np.sum(values, dtype=np.int64)) + 32768) % 65536 - 32768


def write_wfdb(
    folder: Path,
    name: str,
    fs_hz: float,
    signals: Sequence[tuple[str, Sequence[int], dict]],
    *,
    stored: int = 16,
    lead: bytes = b"",
    suffix: str = ".dat",
    start: str = "",
) -> Path:
    """Write a record into ``folder``; ``signals``: label, integers, and ``gain``, ``per_frame``, ``resolution``...

    ``lead`` stands before the samples, as the header of a MATLAB file does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    per_frame = [options.get("per_frame", 1) for _, _, options in signals]
    n_frames = len(signals[0][1]) // per_frame[0]
    order = []
    for frame in range(n_frames):
        for (_, values, _), n in zip(signals, per_frame, strict=True):
            order += [int(v) for v in values[frame * n : (frame + 1) * n]]
    (folder / f"{name}{suffix}").write_bytes(lead + pack(order, stored))
    lines = [f"{name} {len(signals)} {fs_hz:g} {n_frames} {start}".rstrip()]
    for (label, values, options), n in zip(signals, per_frame, strict=True):
        how = f"{stored}" + (f"x{n}" if n > 1 else "") + (f":{options['skew']}" if "skew" in options else "")
        how += f"+{len(lead)}" if lead else ""
        zero = options.get("zero", 0)
        lines.append(
            f"{name}{suffix} {how} {options.get('gain', '200')} {options.get('resolution', 0)} {zero} {int(values[0])} "
            f"{options.get('checksum', checksum(values))} 0 {label}"
        )
    header = folder / f"{name}.hea"
    header.write_text("\n".join(lines) + "\n", encoding="latin-1")
    return header


def write_notes(path: Path, notes: Sequence[tuple[int, str]]) -> None:
    """Write an annotation file of notes at samples, as annot(5) lays it out."""
    out, at = bytearray(), 0
    for sample, text in notes:
        gap = sample - at
        out += struct.pack("<HHH", 59 << 10, gap >> 16 & 0xFFFF, gap & 0xFFFF)  # SKIP
        raw = text.encode("latin-1")
        out += struct.pack("<HH", 22 << 10, 63 << 10 | len(raw)) + raw + b"\0" * (len(raw) % 2)  # NOTE, AUX
        at = sample
    path.write_bytes(bytes(out) + b"\0\0")
