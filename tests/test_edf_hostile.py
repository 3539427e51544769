"""Hostile input: whatever the bytes, a recording is read or refused with a sentence, never a traceback or a hang."""

from __future__ import annotations

import numpy as np
import pytest
from edf_files import Channel, annotation_channel, edf_bytes, ramp, starts

from sleepfm_fast.edf import EdfError, read_recording
from sleepfm_fast.epochs import read_digital
from sleepfm_fast.formats.edf_tal import take_starts


def mutate(content: bytes, rng: np.random.Generator) -> bytes:
    """Change, cut, insert or repeat a few bytes, mostly within the header."""
    raw = bytearray(content)
    for _ in range(int(rng.integers(1, 6))):
        reach = len(raw) if rng.random() < 0.3 else min(len(raw), 1400)
        at = int(rng.integers(0, max(reach, 1)))
        kind = rng.integers(0, 5)
        if kind == 0:
            raw[at : at + 1] = bytes([int(rng.integers(0, 256))])
        elif kind == 1:
            raw[at : at + 8] = (
                str(rng.choice(["-1", "0", "9" * 8, "1e9", "nan", "1e-300", "-0.0", "٣", ",", ""]))
                .encode()[:8]
                .ljust(8)
            )
        elif kind == 2:
            del raw[at : at + int(rng.integers(1, 300))]
        elif kind == 3:
            raw[at:at] = rng.bytes(int(rng.integers(1, 50)))
        else:
            del raw[at:]
    return bytes(raw)


def test_any_bytes_are_read_or_refused(tmp_path):
    more = {0: b"+0\x1530\x14Sleep stage W\x14\0", 1: "+1\x14é\x14\0".encode()}
    channels = [
        Channel("C3", ramp(4, 20)),
        annotation_channel(starts(["0", "1", "5", "6"], more), 30),
        Channel("SpO2", ramp(4, 1)),
    ]
    edf = edf_bytes(channels, reserved="EDF+D")
    channels[1].label = "BDF Annotations"
    bdf = edf_bytes(channels, reserved="BDF+D", bdf=True)
    rng = np.random.default_rng(20240607)
    path = tmp_path / "any"
    read = refused = 0
    for trial in range(1500):
        path.write_bytes(mutate((edf, bdf)[trial % 2], rng))
        try:
            recording = read_recording(path)
        except EdfError as error:
            sentence = str(error)
        else:
            sentence = ""
        if sentence:
            assert sentence.startswith(str(path))
            refused += 1
            continue
        read += 1
        for segment in recording.segments:
            arrays = read_digital(recording, recording.signals, segment)
            assert [a.size for a in arrays] == [segment.n_records * s.samples_per_record for s in recording.signals]
        assert sum(s.n_records for s in recording.segments) == recording.n_records
        assert all(s.fs_hz > 0 and np.isfinite([s.gain, s.offset]).all() for s in recording.signals)
    assert read > 300
    assert refused > 100


@pytest.mark.parametrize(
    "text", [b"+0\x14\x14", b"+0\x14\x14\0", b"+123456789012345\x14\x14", b"+0\x14", b"+", b"\x14"]
)
def test_starts_are_looked_for_in_their_signal_only(text):
    """A start without its closing zero at the file's end was compared with the byte behind it, which may be no page."""
    records = np.frombuffer(b"abc" + text, np.uint8).reshape(1, -1)
    ticks, decimals, taken = np.zeros((3, 1), np.int64)
    busy = np.zeros(1, np.bool_)
    # Python, other than the compiled function, checks every index
    take_starts.py_func(records, 0, 1, np.array([3]), np.array([len(text)]), ticks, decimals, taken, busy)
    assert bool(taken[0]) == text.endswith(b"\0")
    assert busy[0] != text.endswith(b"\0")
