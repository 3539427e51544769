"""Copies of a simulated recording with one defect planted: other integers in a channel, or another header field."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from sleepfm_fast.edf import read_recording
from sleepfm_fast.formats.edf_fields import SIGNAL_FIELDS

Change = Callable[[np.ndarray], np.ndarray]


def plant(
    source: Path,
    target: Path,
    samples: dict[str, Change] | None = None,
    header: dict[str, dict[str, object]] | None = None,
    file_header: dict[int, bytes] | None = None,
) -> Path:
    """Copy an EDF file, changing the integers of channels and fields of their headers, by label.

    ``file_header`` are bytes to write at offsets of the file's own header.
    """
    recording = read_recording(source)
    content = bytearray(source.read_bytes())
    records = np.frombuffer(content, "<i2", offset=recording.header_bytes).reshape(recording.n_records, -1)
    signals = {s.label: s for s in recording.signals}
    for label, change in (samples or {}).items():
        s = signals[label]
        columns = slice(s.offset_bytes // 2, s.offset_bytes // 2 + s.samples_per_record)
        old = records[:, columns].ravel().astype(np.int64)
        new = np.asarray(change(old))
        assert new.shape == old.shape
        records[:, columns] = np.clip(np.rint(new), -32768, 32767).astype(np.int16).reshape(recording.n_records, -1)
    del records
    n_signals = int(content[252:256])
    for label, changed in (header or {}).items():
        at = 256
        for name, width in SIGNAL_FIELDS.items():
            if name in changed:
                begin = at + width * signals[label].index
                content[begin : begin + width] = str(changed[name]).encode().ljust(width)
            at += width * n_signals
    for at, value in (file_header or {}).items():
        content[at : at + len(value)] = value
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(content)
    return target


def samples_of(source: Path, label: str) -> np.ndarray:
    """Integers of a channel."""
    from sleepfm_fast.epochs import read_digital

    recording = read_recording(source)
    return read_digital(recording, [recording.signal(label)], recording.segments[0])[0].astype(np.int64)
