"""Time in EDF+ files: gaps, sub-second starts and annotations, written byte by byte."""

from __future__ import annotations

from datetime import datetime
from fractions import Fraction

import numpy as np
import pytest
from edf_files import Channel, annotation_channel, ramp, starts, write_edf

from sleepfm_fast.edf import EdfError, read_recording
from sleepfm_fast.epochs import read_digital


def samples(recording, k=0, segment=0):
    return read_digital(recording, recording.signals, recording.segments[segment])[k]


def plus(path, onsets, *, reserved="EDF+D", more=None, record_s=1, n=10, width=40):
    channels = [
        annotation_channel(starts(onsets, more), width),
        Channel("C3", ramp(len(onsets), n)),
    ]
    return write_edf(path / "plus.edf", channels, reserved=reserved, record_s=record_s)


def test_gaps_stay_gaps(tmp_path):
    recording = read_recording(plus(tmp_path, ["0.5", "1.5", "7.25", "8.25", "9.25", "100.5"]), strict=True)
    assert recording.format == "EDF+D"
    assert [(s.first_record, s.n_records, s.onset_s) for s in recording.segments] == [
        (0, 2, 0),
        (2, 3, Fraction("6.75")),
        (5, 1, 100),
    ]
    assert recording.duration_s == 101.0
    assert recording.start == datetime(2021, 3, 2, 22, 15, 30, 500000)
    np.testing.assert_array_equal(samples(recording, segment=1), np.arange(20, 50))


def test_rounded_starts_are_no_gaps(tmp_path):
    onsets = [f"{k * 9.997558:.3f}" for k in range(50)]
    recording = read_recording(plus(tmp_path, onsets, record_s="9.997558", n=2000), strict=True)
    assert len(recording.segments) == 1
    onsets[20:] = [f"{k * 9.997558 + 0.006:.3f}" for k in range(20, 50)]  # more than one sample, 5 ms
    recording = read_recording(plus(tmp_path, onsets, record_s="9.997558", n=2000), strict=True)
    assert [s.first_record for s in recording.segments] == [0, 20]


@pytest.mark.parametrize("step", ["1.0005", "0.9995"])
def test_starts_that_drift_away_from_the_samples_cut_the_file(tmp_path, step):
    onsets = [f"{k * float(step):.4f}" for k in range(2500)]  # each within a sample of the end of the one before
    recording = read_recording(plus(tmp_path, onsets))
    assert [(s.first_record, s.onset_s) for s in recording.segments] == [
        (k, k * Fraction(step)) for k in (0, 1000, 2000)
    ]
    assert "drift away from the samples, by 0.5 s up to record 1001; the file is cut at 2 such" in recording.issues[0]
    recording = read_recording(plus(tmp_path, onsets, reserved="EDF+C"))
    assert len(recording.segments) == 1
    assert "marked continuous and read so, and annotations lie beside" in recording.issues[0]


def test_starts_that_stray_and_come_back_cut_nothing(tmp_path):
    onsets = [f"{k + 0.4 * np.sin(k / 100):.3f}" for k in range(2500)]
    recording = read_recording(plus(tmp_path, onsets), strict=True)
    assert len(recording.segments) == 1


def test_onsets_as_a_double_is_printed(tmp_path):
    more = {1: b"+0.30000000000000004\x150.30000000000000004\x14Sleep stage N2\x14\0"}
    onsets = ["0", "1", "28800.123456789012345678"]
    recording = read_recording(plus(tmp_path, onsets, more=more), strict=True)
    assert [(a.onset_s, a.duration_s) for a in recording.annotations] == [(0.1 + 0.2, 0.1 + 0.2)]
    # whole nanoseconds: numerator and denominator stand in the store as 64-bit integers
    assert recording.segments[1].onset_s == Fraction("28800.123456789")


def test_discontinuous_file_with_faults(tmp_path):
    path = plus(tmp_path, ["0", "1", "2", "9", "10"])
    content = path.read_bytes().replace(b"+1\x14\x14", b"\0\0\0\0").replace(b"+10\x14\x14", b"\0\0\0\0\0")
    path.write_bytes(content)
    recording = read_recording(path)
    assert [(s.first_record, s.n_records, s.onset_s) for s in recording.segments] == [(0, 3, 0), (3, 2, 9)]
    assert recording.issues == ("2 of 5 records do not state their start; each is taken to follow the one before",)
    recording = read_recording(plus(tmp_path, ["0", "1", "0.5"]))
    assert len(recording.segments) == 2
    assert any("1 record starts before the one before has ended" in issue for issue in recording.issues)


def test_records_out_of_order_count_from_the_earliest(tmp_path):
    more = {2: b"+0.75\x1430\x14early\x14\0", 0: b"+500.5\x14late\x14\0"}
    recording = read_recording(plus(tmp_path, ["500.5", "501.5", "0.25", "1.25"], more=more))
    assert [(s.first_record, s.onset_s) for s in recording.segments] == [(0, Fraction("500.25")), (2, 0)]
    assert recording.start == datetime(2021, 3, 2, 22, 15, 30, 250000)
    assert {a.text: a.onset_s for a in recording.annotations} == {"30": 0.5, "early": 0.5, "late": 500.25}
    assert recording.duration_s == 502.25
    assert any("1 record starts before the one before has ended" in issue for issue in recording.issues)


def test_continuous_file_with_a_gap_is_read_as_marked_and_reported(tmp_path):
    recording = read_recording(plus(tmp_path, ["0", "1", "5"], reserved="EDF+C"))
    assert len(recording.segments) == 1
    assert any("marked continuous and read so, but 1 record does not follow" in issue for issue in recording.issues)


def test_annotations_count_from_the_first_sample(tmp_path):
    more = {0: b"+0.75\x142 s\x14\0", 2: b"+30.5\x1530\x14Sleep stage N2\x14\0"}
    recording = read_recording(plus(tmp_path, ["0.5", "1.5", "2.5"], reserved="EDF+C", more=more), strict=True)
    assert recording.segments[0].onset_s == 0
    assert recording.start == datetime(2021, 3, 2, 22, 15, 30, 500000)
    assert [(a.onset_s, a.duration_s, a.text) for a in recording.annotations] == [
        (0.25, None, "2 s"),
        (30.0, 30.0, "Sleep stage N2"),
    ]


TALS = [
    (b"+1\x14a\x14b\x14\0", [(1.0, None, "a"), (1.0, None, "b")], None),
    (b"-0.5\x14before\x14\0", [(-0.5, None, "before")], None),
    (b"+1\x150\x14zero\x14\0", [(1.0, 0.0, "zero")], None),
    (b"+1\x15\x14blank\x14\0", [(1.0, None, "blank")], None),
    (b"+1\x152\x14\x14\0", [], None),
    (b"+1.\x14dot\x14\0", [(1.0, None, "dot")], None),
    (b"+1\x14 Sleep stage W  \x14\0", [(1.0, None, "Sleep stage W")], None),
    (b"\0\0+1\x14late\x14\0\0+2\x14later\x14\0", [(1.0, None, "late"), (2.0, None, "later")], None),
    ("+1\x14仰卧 µ\x14\0".encode(), [(1.0, None, "仰卧 µ")], None),
    (b"+1\x14R\xf6ntgen\x14\0", [(1.0, None, "Röntgen")], "not UTF-8 are read as Latin-1: 1, the first is 'Röntgen'"),
    (b"+1,5\x142\x14\0", [(1.5, None, "2")], "with an onset of another form"),
    (b"+1\x15,5\x14comma\x14\0", [(1.0, 0.5, "comma")], "with a duration of another form"),
    (b"+1\x15.25\x14point\x14\0", [(1.0, 0.25, "point")], "with a duration of another form"),
    (b"1.5\x14unsigned\x14\0", [(1.5, None, "unsigned")], "with an onset of another form"),
    (b"+1\x15x\x14text\x14\0", [(1.0, None, "text")], "with a duration that cannot be read"),
    (b"+1\x15-2\x14text\x14\0", [(1.0, None, "text")], "with a duration that cannot be read"),
    (b"+1\x14open\0", [(1.0, None, "open")], "without their closing mark are kept: 1"),
    (b"+12\0", [], "without a text are left out: 1, the first is b'+12'"),
    (b"+12\x153\0", [], "without a text are left out: 1"),
    (b"noise\0+1\x14a\x14\0", [(1.0, None, "a")], "without a readable onset are left out: 1, the first is b'noise'"),
    (b"+1e5\x14a\x14\0", [], "without a readable onset"),
    (b"+" + b"9" * 40 + b"\x14a\x14\0", [], "without a readable onset"),
    (b"\xff" * 60, [], "without a readable onset"),
    (b"12.5\0", [], "without a readable onset"),
]


@pytest.mark.parametrize(("tal", "expected", "sentence"), TALS, ids=[repr(t[0][:20]) for t in TALS])
def test_tals(tmp_path, tal, expected, sentence):
    path = plus(tmp_path, ["0", "1"], reserved="EDF+C", more={1: tal})
    recording = read_recording(path)
    assert [(a.onset_s, a.duration_s, a.text) for a in recording.annotations] == expected
    if sentence is None:
        assert recording.issues == ()
    else:
        assert len(recording.issues) == 1
        assert sentence in recording.issues[0]
        with pytest.raises(EdfError):
            read_recording(path, strict=True)


STARTS = [
    (b"+5\x14\x14\0", 5, [], None),
    (b"-3.5\x14\x14\0", -3.5, [], "before the one before has ended"),
    (b"12.5\x14\x14\0", 12.5, [], "with an onset of another form"),
    (b"+.25\x14\x14\0", 0.25, [], "with an onset of another form"),
    (b"+5,5\x14\x14\0", 5.5, [], "with an onset of another form"),
    (b"+5.2.1\x14\x14\0", None, [], "without a readable onset"),
    (b"+5,2.1\x14\x14\0", None, [], "without a readable onset"),
    (b"+\x14\x14\0", None, [], "without a readable onset"),
    (b"+9\x14x\0", None, [(9.0, "x")], "without their closing mark"),
    (b"+5\x14\x14x\0", 5, [(5.0, "x")], "without their closing mark"),
    (b"+9\x14first\x14\0+7\x14\x14\0", None, [(9.0, "first")], "1 of 3 records do"),
    (b"+1\x14\x14\0+9\x14\x14second\x14\0", 1, [(9.0, "second")], None),
]


@pytest.mark.parametrize(("tals", "start_s", "annotations", "sentence"), STARTS, ids=[repr(t[0]) for t in STARTS])
def test_starts_are_the_first_list_of_their_record_alone(tmp_path, tals, start_s, annotations, sentence):
    """The usual form is read by compiled code, everything else by Python: both must take the same for a start."""
    lists = [b"+0\x14\x14\0", tals, b"+20\x14\x14\0"]
    channels = [annotation_channel(lists, 20), Channel("C3", ramp(3, 10))]
    recording = read_recording(write_edf(tmp_path / "a.edf", channels, reserved="EDF+D"))
    begins_s = {0: 0, 2: 20} if start_s in (None, 1) else {0: 0, 1: start_s, 2: 20}
    earliest_s = min(begins_s.values())
    assert [(s.first_record, s.onset_s) for s in recording.segments] == [
        (record, begin_s - earliest_s) for record, begin_s in begins_s.items()
    ]
    assert [(a.onset_s, a.text) for a in recording.annotations] == annotations
    assert any(
        "do not state their start" in issue or "does not state its start" in issue for issue in recording.issues
    ) == (start_s is None)
    assert any(sentence in issue for issue in recording.issues) if sentence else recording.issues == ()


def test_a_start_in_another_annotation_channel_is_no_start(tmp_path):
    first = annotation_channel([b"+0\x14\x14\0", b"", b"+2\x14\x14\0"], 6)
    second = annotation_channel([b"", b"+9\x14\x14x\x14\0", b""], 6)
    path = write_edf(tmp_path / "a.edf", [first, second, Channel("C3", ramp(3, 10))], reserved="EDF+D")
    recording = read_recording(path)
    assert len(recording.segments) == 1
    assert [(a.onset_s, a.text) for a in recording.annotations] == [(9.0, "x")]


def test_a_text_beside_the_start_of_a_record_is_an_annotation(tmp_path):
    lists = [b"+0\x14\x14Lights off\x14\0", b"+1\x14\x14\0"]
    path = write_edf(tmp_path / "a.edf", [Channel("C3", ramp(2, 4)), annotation_channel(lists, 20)], reserved="EDF+C")
    recording = read_recording(path, strict=True)
    assert [(a.onset_s, a.text) for a in recording.annotations] == [(0.0, "Lights off")]
    assert len(recording.segments) == 1


@pytest.mark.parametrize("bdf", [False, True])
def test_several_annotation_channels_anywhere(tmp_path, bdf):
    name = "BDF Annotations" if bdf else "EDF Annotations"
    channels = [
        Channel("C3", ramp(3, 5)),
        annotation_channel(starts(["0", "1", "2"], {0: b"+0\x14one\x14\0"}), 15, name),
        Channel("C4", ramp(3, 3, -7)),
        annotation_channel([b"+9\x14two\x14\0", b"", b"+1.5\x14four\x14\0+0\x14five\x14\0"], 20, name),
        annotation_channel([b"", b"+3\x14\x14three\x14\0", b""], 20, name),
    ]
    path = write_edf(tmp_path / "many", channels, bdf=bdf, reserved=name[:3] + "+C")
    recording = read_recording(path, strict=True)
    assert [(a.onset_s, a.text) for a in recording.annotations] == [
        (0.0, "one"),
        (9.0, "two"),
        (3.0, "three"),
        (1.5, "four"),
        (0.0, "five"),
    ]
    assert [s.index for s in recording.signals] == [0, 2]
    np.testing.assert_array_equal(samples(recording, 0), np.arange(15))
    np.testing.assert_array_equal(samples(recording, 1), np.arange(-7, 2))


def test_a_full_annotation_channel_does_not_run_into_the_next(tmp_path):
    full = b"+0\x14\x14\0+1\x14abc\x14"  # 12 bytes: no room for the closing zero
    path = write_edf(
        tmp_path / "full.edf",
        [annotation_channel([full, b""], 6), annotation_channel([b"+3\x14d\x14\0", b""], 6), Channel("C3", ramp(2, 2))],
        reserved="EDF+C",
    )
    recording = read_recording(path)
    assert [(a.onset_s, a.text) for a in recording.annotations] == [(1.0, "abc"), (3.0, "d")]


@pytest.mark.parametrize("width", [1, 2, 3, 5, 9, 12])
def test_narrow_annotation_channels(tmp_path, width):
    lists = [t if len(t) <= 2 * width else b"" for t in starts(["0", "1", "12.500000001"])]
    path = write_edf(
        tmp_path / "n.edf", [annotation_channel(lists, width), Channel("C3", ramp(3, 2))], reserved="EDF+D"
    )
    recording = read_recording(path)
    expected = {1: [0], 2: [0], 3: [0], 5: [0], 9: [0, 2], 12: [0, 2]}[width]
    assert [s.first_record for s in recording.segments] == expected
    if width >= 9:
        assert recording.segments[1].onset_s == Fraction("12.500000001")


def test_discontinuous_file_that_has_no_times_is_read_as_continuous(tmp_path):
    channels = [annotation_channel([b"", b""], 0), Channel("C3", ramp(2, 4))]
    recording = read_recording(write_edf(tmp_path / "d.edf", channels, reserved="EDF+D"))
    assert recording.format == "EDF"
    assert len(recording.segments) == 1
    assert recording.issues == (
        "the file is marked 'EDF+D' but has no annotation signal; it is read as continuous EDF",
    )


def test_unmarked_annotation_channel_is_read(tmp_path):
    recording = read_recording(plus(tmp_path, ["0", "1"], reserved="", more={0: b"+0\x14x\x14\0"}))
    assert recording.format == "EDF+C"
    assert recording.annotations[0].text == "x"
    assert recording.issues == ("the file has an annotation signal but is not marked EDF+; it is read as EDF+C",)


def test_a_first_record_beyond_the_calendar_costs_the_start_alone(tmp_path):
    onsets = ["99999999999999", "100000000000000", "100000000000001"]
    recording = read_recording(plus(tmp_path, onsets, reserved="EDF+C"))
    assert recording.start is None
    assert "the first record starts 99999999999999 s after the header's start, which is beyond the calendar" in str(
        recording.issues
    )
    np.testing.assert_array_equal(samples(recording), ramp(3, 10).ravel())
