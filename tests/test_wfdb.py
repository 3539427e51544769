"""WFDB annotation files, checked against files assembled here byte by byte and against the published format."""

from __future__ import annotations

import itertools
import os
import struct
from collections import Counter
from datetime import datetime
from pathlib import Path

import pytest

from sleepfm_fast.wfdb import WfdbError, read_annotations, read_header

DATA = Path(os.environ.get("SLEEPFM_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))


def words(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}H", *values)


def word(code: int, interval: int) -> bytes:
    return words(code << 10 | interval)


def skip(interval: int) -> bytes:
    bits = interval & 0xFFFFFFFF
    return words(59 << 10, bits >> 16, bits & 0xFFFF)


def note(text: str, interval: int = 0) -> bytes:
    raw = text.encode("latin-1")
    return word(22, interval) + word(63, len(raw)) + raw + b"\0" * (len(raw) % 2)


def read(tmp_path: Path, data: bytes):
    path = tmp_path / "a.st"
    path.write_bytes(data)
    return read_annotations(path)


def test_every_kind_of_word(tmp_path):
    data = (
        note("W", 1)
        + skip(7499)
        + note("4 LA")
        + word(1, 1023)
        + word(61, 3)
        + word(62, 2)
        + word(60, 0xFE)
        + word(5, 10)
        + skip(-100)
        + word(22, 1)
        + skip(70_000)
        + word(22, 0)
        + words(0)
    )
    annotations, frequency_hz = read(tmp_path, data)
    assert frequency_hz is None
    assert [a.sample for a in annotations] == [1, 7500, 8523, 8533, 8434, 78434]
    assert [a.aux for a in annotations] == ["W", "4 LA", "", "", "", ""]
    assert [a.code for a in annotations] == [22, 22, 1, 5, 22, 22]
    assert [a.subtype for a in annotations] == [0, 0, 3, 0, 0, 0], "a subtype belongs to one annotation"
    assert [a.channel for a in annotations] == [0, 0, 2, 2, 2, 2], "a channel holds until changed"
    assert [a.number for a in annotations] == [0, 0, -2, -2, -2, -2]


def test_time_resolution_and_definitions_are_no_annotations(tmp_path):
    data = note("## time resolution: 500") + note("## annotation type definitions") + note("N2", 600) + words(0)
    annotations, frequency_hz = read(tmp_path, data)
    assert frequency_hz == 500
    assert [(a.sample, a.aux) for a in annotations] == [(600, "N2")]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "0 bytes"),
        (note("W", 1), "without the zero word"),
        (note("W", 1)[:-1], "without the zero word"),
        (word(22, 0) + word(63, 200) + b"short", "without the zero word"),
        (word(59, 0) + b"\1", "without the zero word"),
        (word(55, 3) + words(0), "code 55"),
        (word(63, 2) + b"W\0" + words(0), "code 63"),
        (skip(-5) + word(22, 1) + words(0), "before the recording's start"),
        (note("## time resolution: 0") + words(0), "frequency"),
        (note("## time resolution: 1e") + words(0), "frequency"),
    ],
)
def test_damage_is_named(tmp_path, data, said):
    with pytest.raises(WfdbError, match=said):
        read(tmp_path, data)


def test_missing_files(tmp_path):
    with pytest.raises(WfdbError, match="cannot be read"):
        read_annotations(tmp_path / "none.st")
    with pytest.raises(WfdbError, match="cannot be read"):
        read_header(tmp_path / "none.hea")


@pytest.mark.parametrize(
    ("line", "fs_hz", "n_samples", "start"),
    [
        ("a 4 250/0.0333(94) 1800000 23:07:00 19/1/1989", 250, 1_800_000, datetime(1989, 1, 19, 23, 7)),
        ("# a comment\na 2 128.5(3) 10", 128.5, 10, None),
        ("a/3 2 360 0 1:02:03.25 1/2/2003", 360, None, datetime(2003, 2, 1, 1, 2, 3, 250_000)),
        ("a 2", 250, None, None),
        ("a 2 100 5 25:00:00 1/1/2000", 100, 5, None),
    ],
)
def test_header_line(tmp_path, line, fs_hz, n_samples, start):
    path = tmp_path / "a.hea"
    path.write_text(line + "\na.dat 16\n")
    header = read_header(path)
    assert (header.fs_hz, header.n_samples, header.start) == (fs_hz, n_samples, start)


@pytest.mark.parametrize("line", ["", "a", "a b 250", "a 2 fast", "a 2 -250", "a 2 0"])
def test_bad_header_line(tmp_path, line):
    path = tmp_path / "a.hea"
    path.write_text(line)
    with pytest.raises(WfdbError):
        read_header(path)


def manual_notes(data: bytes) -> list[tuple[int, str]]:
    """Decode the one pattern that the .st files of slpdb use: SKIP, NOTE, AUX; a restatement, not the reader."""
    notes, time, at = [], 0, 0
    while data[at : at + 2] != b"\0\0":
        if data[at + 1] == 0xEC:
            high, low = struct.unpack("<hH", data[at + 2 : at + 6])
            time += high * 65536 + low
            at += 6
        assert data[at + 1] >> 2 == 22
        time += struct.unpack("<H", data[at : at + 2])[0] & 1023
        length = data[at + 2]
        assert data[at + 3] == 0xFC
        notes.append((time, data[at + 4 : at + 4 + length].decode().strip("\0")))
        at += 4 + length + length % 2
    return notes


@pytest.mark.parametrize(("record", "n"), [("slp01a", 240), ("slp03", 720), ("slp14", 714), ("slp41", 780)])
def test_slpdb(record, n):
    path = DATA / "annotations" / f"{record}.st"
    if not path.is_file():
        pytest.skip(f"{path} is not there; set SLEEPFM_TEST_DATA")
    annotations, frequency_hz = read_annotations(path)
    assert frequency_hz is None
    assert [(a.sample, a.aux) for a in annotations] == manual_notes(path.read_bytes())
    assert len(annotations) == n
    header = read_header(path.with_suffix(".hea"))
    assert header.fs_hz == 250
    # one note per 30 s, up to the record's last epoch
    assert annotations[-1].sample == header.n_samples - 7500
    steps = Counter(b.sample - a.sample for a, b in itertools.pairwise(annotations))
    assert set(steps) <= {7499, 7500}
