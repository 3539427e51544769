"""Writes EDF and BDF files byte by byte, so that any field can be given any content."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

FILE_WIDTHS = {
    "version": 8,
    "patient": 80,
    "recording": 80,
    "date": 8,
    "time": 8,
    "header_bytes": 8,
    "reserved": 44,
    "n_records": 8,
    "record_s": 8,
    "n_signals": 4,
}
SIGNAL_WIDTHS = {
    "label": 16,
    "transducer": 80,
    "unit": 8,
    "physical_min": 8,
    "physical_max": 8,
    "digital_min": 8,
    "digital_max": 8,
    "prefilter": 80,
    "samples_per_record": 8,
    "signal_reserved": 32,
}


@dataclass
class Channel:
    """One signal: integers ``[n_records, samples_per_record]``, or the bytes of each record's annotations."""

    label: str
    values: np.ndarray | list[bytes]
    fields: dict[str, object] = field(default_factory=dict)


def annotation_channel(lists: list[bytes], n_samples: int, label: str = "EDF Annotations") -> Channel:
    """Annotation signal of ``n_samples`` per record; each record's TALs are padded with zero bytes."""
    return Channel(label, lists, {"samples_per_record": n_samples, "physical_min": -1, "physical_max": 1})


def padded(value: object, width: int) -> bytes:
    raw = value if isinstance(value, bytes) else str(value).encode("ascii")
    if len(raw) > width:
        raise ValueError(f"{raw!r} is longer than {width} bytes")
    return raw.ljust(width)


def edf_bytes(channels: list[Channel], *, record_s: object = 1, bdf: bool = False, **fields: object) -> bytes:
    """Whole file; ``fields`` replace what the header would say (text, numbers or raw bytes)."""
    sample_bytes = 3 if bdf else 2
    n_records = len(channels[0].values) if channels else 0
    file_fields: dict[str, object] = {
        "version": b"\xffBIOSEMI" if bdf else "0",
        "patient": "X X X X",
        "recording": "Startdate 02-MAR-2021 X X X",
        "date": "02.03.21",
        "time": "22.15.30",
        "header_bytes": 256 * (len(channels) + 1),
        "reserved": "",
        "n_records": n_records,
        "record_s": record_s,
        "n_signals": len(channels),
    } | fields
    limit = 1 << (8 * sample_bytes - 1)
    signal_fields = []
    for channel in channels:
        annotations = isinstance(channel.values, list)
        signal_fields.append(
            {
                "label": channel.label,
                "transducer": "",
                "unit": "" if annotations else "uV",
                "physical_min": -100,
                "physical_max": 100,
                "digital_min": -limit,
                "digital_max": limit - 1,
                "prefilter": "",
                "samples_per_record": 0 if annotations else channel.values.shape[1],
                "signal_reserved": "",
            }
            | channel.fields
        )
    out = [padded(file_fields[name], width) for name, width in FILE_WIDTHS.items()]
    out += [padded(f[name], width) for name, width in SIGNAL_WIDTHS.items() for f in signal_fields]
    for record in range(n_records):
        for channel, f in zip(channels, signal_fields, strict=True):
            if isinstance(channel.values, list):
                n_bytes = int(f["samples_per_record"]) * sample_bytes
                if len(channel.values[record]) > n_bytes:
                    raise ValueError(f"{channel.values[record]!r} is longer than {n_bytes} bytes")
                out.append(channel.values[record].ljust(n_bytes, b"\0"))
            else:
                wide = np.ascontiguousarray(channel.values[record], "<i4").view(np.uint8).reshape(-1, 4)
                out.append(wide[:, :sample_bytes].tobytes())
    return b"".join(out)


def write_edf(path: Path, channels: list[Channel], *, tail: bytes = b"", drop: int = 0, **options: object) -> Path:
    """Write :func:`edf_bytes`, less the last ``drop`` bytes, plus ``tail``."""
    content = edf_bytes(channels, **options)  # type: ignore[arg-type]
    path.write_bytes(content[: len(content) - drop] + tail)
    return path


def ramp(n_records: int, samples_per_record: int, first: int = 0) -> np.ndarray:
    """Consecutive integers, so that every sample tells its place."""
    return np.arange(first, first + n_records * samples_per_record).reshape(n_records, samples_per_record)


def starts(onsets: list[str], more: dict[int, bytes] | None = None) -> list[bytes]:
    """Time-keeping TAL of every record, with further TALs after it."""
    return [f"+{o}".encode() + b"\x14\x14\0" + (more or {}).get(i, b"") for i, o in enumerate(onsets)]
