"""The reader against pyedflib, and every fault that a header, the records or the annotations can have."""

from __future__ import annotations

import os
import pickle
import warnings
from datetime import datetime
from fractions import Fraction
from pathlib import Path

import numpy as np
import pyedflib
import pytest
from edf_files import Channel, edf_bytes, ramp, write_edf

from sleepfm_fast.edf import EdfError, Segment, read_recording
from sleepfm_fast.epochs import read_digital


def one_channel(path: Path, signal: dict[str, object] | None = None, n: int = 3, **options: object) -> Path:
    return write_edf(path / "one.edf", [Channel("C3-M2", ramp(n, 10), signal or {})], **options)


def samples(recording, k=0, segment=0):
    return read_digital(recording, recording.signals, recording.segments[segment])[k]


# ---- against pyedflib ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["edf", "bdf"])
@pytest.mark.parametrize("rates", [(200, 200, 200), (512, 64, 1, 25), (33, 7)])
def test_written_by_pyedflib(tmp_path, kind, rates):
    path = tmp_path / f"night.{kind}"
    limit = 32768 if kind == "edf" else 8388608
    rng = np.random.default_rng(len(rates))
    writer = pyedflib.EdfWriter(
        str(path), len(rates), pyedflib.FILETYPE_EDFPLUS if kind == "edf" else pyedflib.FILETYPE_BDFPLUS
    )
    for k, rate in enumerate(rates):
        writer.setSignalHeader(
            k,
            {
                "label": f"S{k}",
                "dimension": "uV",
                "sample_frequency": rate,
                "physical_min": -250.5 - k,
                "physical_max": 1000.25 * (k + 1),
                "digital_min": -limit if k % 2 == 0 else -1000,
                "digital_max": limit - 1 if k % 2 == 0 else 4095,
                "transducer": "cup",
                "prefilter": "HP:0.1Hz",
            },
        )
    writer.setStartdatetime(datetime(2023, 5, 6, 7, 8, 9))
    written = [rng.integers(-1000, 4096, rate * 9, dtype=np.int32) for rate in rates]
    for second in range(9):
        writer.blockWriteDigitalSamples(
            np.concatenate([w[second * r : (second + 1) * r] for w, r in zip(written, rates, strict=True)])
        )
    for i in range(9):  # pyedflib writes one a record
        writer.writeAnnotation(0.25 * i, -1 if i % 3 == 0 else 1.5 * i, f"Événement {i}")
    writer.close()

    recording = read_recording(path, strict=True)
    assert recording.format == ("EDF+C" if kind == "edf" else "BDF+C")
    assert recording.start == datetime(2023, 5, 6, 7, 8, 9)
    assert [s.fs_hz for s in recording.signals] == list(rates)
    assert recording.duration_s == 9.0
    digital = read_digital(recording, recording.signals, recording.segments[0])
    with pyedflib.EdfReader(str(path)) as oracle:
        for k, signal in enumerate(recording.signals):
            assert (signal.label, signal.unit, signal.transducer) == (f"S{k}", "uV", "cup")
            assert (signal.physical_min, signal.physical_max) == (
                oracle.getPhysicalMinimum(k),
                oracle.getPhysicalMaximum(k),
            )
            np.testing.assert_array_equal(digital[k], written[k])
            np.testing.assert_array_equal(digital[k], oracle.readSignal(k, digital=True))
            np.testing.assert_allclose(
                signal.gain * digital[k] + signal.offset, oracle.readSignal(k), rtol=1e-9, atol=1e-9
            )
        onsets, durations, texts = oracle.readAnnotations()
    ours = [(a.onset_s, -1 if a.duration_s is None else a.duration_s, a.text) for a in recording.annotations]
    assert ours == list(zip(onsets.tolist(), durations.tolist(), texts.tolist(), strict=True))
    assert len(ours) == 9


@pytest.mark.parametrize("record_s", [0.25, 3.0, 30.0, 9.997558])
def test_record_durations_against_pyedflib(tmp_path, record_s):
    path = tmp_path / "night.edf"
    writer = pyedflib.EdfWriter(str(path), 2, pyedflib.FILETYPE_EDFPLUS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # it warns of rates that whole-second records cannot hold
        writer.setDatarecordDuration(record_s)
        for k, n in enumerate((100, 7)):
            limits = {"physical_min": -1, "physical_max": 1, "digital_min": -32768, "digital_max": 32767}
            header = {"label": f"S{k}", "dimension": "uV", "sample_frequency": n / record_s}
            writer.setSignalHeader(k, header | limits | {"transducer": "", "prefilter": ""})
    rng = np.random.default_rng(0)
    for _ in range(5):
        writer.blockWriteDigitalSamples(rng.integers(-999, 999, 107, dtype=np.int32))
    writer.close()
    recording = read_recording(path)
    written = Fraction(path.read_bytes()[244:252].decode().strip())  # pyedflib rounds it to 10 microseconds
    assert float(written) == pytest.approx(record_s, abs=1e-5)
    assert recording.record_s == written
    with pyedflib.EdfReader(str(path)) as oracle:
        for k, signal in enumerate(recording.signals):
            assert signal.fs_hz == Fraction((100, 7)[k]) / written
            assert float(signal.fs_hz) == pytest.approx(oracle.getSampleFrequency(k), rel=1e-12)
            np.testing.assert_array_equal(samples(recording, k), oracle.readSignal(k, digital=True))
    assert len(recording.segments) == 1


# ---- faults that are repaired --------------------------------------------------------------------------------------


def test_a_clean_file_has_no_issues(tmp_path):
    recording = read_recording(one_channel(tmp_path), strict=True)
    assert recording.issues == ()
    assert recording.signals[0].issues == ()
    assert recording.format == "EDF"
    assert recording.start == datetime(2021, 3, 2, 22, 15, 30)
    np.testing.assert_array_equal(samples(recording), np.arange(30))


REPAIRS = [
    ("count -1", {"n_records": -1}, {}, "the record count is '-1'; the file holds 3 whole records"),
    ("count blank", {"n_records": ""}, {}, "the record count is ''"),
    (
        "count too high",
        {"n_records": 9},
        {},
        "the header promises 9 records, the file holds 3 whole ones, which are used; "
        "probably an incomplete copy: the last 6 s of 9 s are missing",
    ),
    ("count too low", {"n_records": 2}, {}, "the header promises 2 records, the file holds 3; all of them are used"),
    ("stray bytes", {"tail": b"abc"}, {}, "3 stray bytes after the last whole record are left out"),
    ("NULs", {"patient": b"X X X X".ljust(80, b"\0")}, {}, "NUL bytes in: patient"),
    ("NUL version", {"version": b"0\0\0\0\0\0\0\0"}, {}, "NUL bytes in: version"),
    ("noise after NUL", {"n_signals": b"1\0\x7f\x03"}, {}, "NUL bytes in: signal count"),
    ("leading blanks", {"record_s": b"       1"}, {}, "text that is not left-justified in: record duration"),
    ("control character", {"patient": b"X\tX"}, {}, "control characters in: patient"),
    ("header bytes", {"header_bytes": 256}, {}, "the header bytes are '256', 1 signal takes 512; 512 is used"),
    ("header bytes blank", {"header_bytes": ""}, {}, "the header bytes are ''"),
    ("comma", {"record_s": "1,0"}, {}, "the record duration is '1,0'; the comma is read as a decimal point"),
    ("marked EDF+", {"reserved": "EDF+C"}, {}, "marked 'EDF+C' but has no annotation signal; it is read as continuous"),
    ("date slashes", {"date": "02/03/21"}, {}, "expected the form 'dd.mm.yy' 'hh.mm.ss'"),
    ("time colons", {"time": "22:15:30"}, {}, "expected the form 'dd.mm.yy' 'hh.mm.ss'"),
    ("dates differ", {"date": "03.03.21"}, {}, "the recording field says 'Startdate 02-MAR-2021'; the first is used"),
]


@pytest.mark.parametrize(("options", "signal", "sentence"), [r[1:] for r in REPAIRS], ids=[r[0] for r in REPAIRS])
def test_repairs_are_reported_and_keep_the_data(tmp_path, options, signal, sentence):
    path = one_channel(tmp_path, signal, **options)
    recording = read_recording(path)
    assert any(sentence in issue for issue in recording.issues), recording.issues
    np.testing.assert_array_equal(samples(recording), np.arange(30))
    assert recording.signals[0].fs_hz == 10
    assert recording.signals[0].calibrated
    with pytest.raises(EdfError, match=str(path)):
        read_recording(path, strict=True)


@pytest.mark.parametrize("count", [-1, 3])
def test_cut_off_record_is_dropped(tmp_path, count):
    recording = read_recording(one_channel(tmp_path, drop=7, n_records=count))
    assert recording.n_records == 2
    assert any("the last record is cut off after 13 of 20 bytes and is left out" in i for i in recording.issues)
    np.testing.assert_array_equal(samples(recording), np.arange(20))


def test_what_an_interrupted_copy_lacks_is_counted(tmp_path):
    assert read_recording(one_channel(tmp_path, n_records=9, record_s="0.5")).n_missing == 6
    assert read_recording(one_channel(tmp_path, n_records=9, record_s="0.5")).missing_s == 3
    for count in (-1, 2, 3, ""):
        assert read_recording(one_channel(tmp_path, n_records=count)).n_missing == 0


def test_longer_header_is_believed_only_where_the_size_agrees(tmp_path):
    content = edf_bytes([Channel("C3", ramp(3, 10))], header_bytes=1024)
    path = tmp_path / "long.edf"
    path.write_bytes(content[:512] + b" " * 512 + content[512:])
    recording = read_recording(path)
    assert recording.header_bytes == 1024
    np.testing.assert_array_equal(samples(recording), np.arange(30))
    path.write_bytes(content)
    recording = read_recording(path)
    assert recording.header_bytes == 512
    np.testing.assert_array_equal(samples(recording), np.arange(30))


@pytest.mark.parametrize(
    ("date", "time", "recording_field", "expected"),
    [
        ("01.02.84", "00.00.00", "", datetime(2084, 2, 1)),
        ("01.02.85", "00.00.00", "", datetime(1985, 2, 1)),
        ("01.02.84", "00.00.00", "Startdate 01-FEB-1984 X", datetime(1984, 2, 1)),
        ("00.00.00", "22.00.00", "", None),
        ("31.02.20", "22.00.00", "", None),
        ("01.02.20", "24.00.00", "", None),
        ("", "", "", None),
        ("1.2.2020", "1.2.3", "", datetime(2020, 2, 1, 1, 2, 3)),
        ("..", "???", "Startdate X X X X", None),
    ],
)
def test_start(tmp_path, date, time, recording_field, expected):
    recording = read_recording(one_channel(tmp_path, date=date, time=time, recording=recording_field))
    assert recording.start == expected
    if expected is None:
        assert any("the start is taken as unknown" in issue for issue in recording.issues)
    np.testing.assert_array_equal(samples(recording), np.arange(30))


CALIBRATIONS = [
    ({"physical_min": "100", "physical_max": "-100"}, True, "the physical limits are swapped"),
    ({"digital_min": 32767, "digital_max": -32768}, True, "the digital limits are swapped"),
    ({"physical_min": "5", "physical_max": "5"}, False, "the physical minimum and maximum are both 5"),
    ({"digital_min": 0, "digital_max": 0}, False, "the digital minimum and maximum are both 0"),
    ({"physical_min": "abc"}, False, "the physical minimum is 'abc', expected a number"),
    ({"physical_max": ""}, False, "the physical maximum is '', expected a number"),
    ({"physical_min": "nan"}, False, "the physical minimum is 'nan'"),
    ({"physical_min": "-1e999"}, False, "the physical minimum is '-1e999'"),
    ({"digital_min": "1.2.3"}, False, "the digital minimum is '1.2.3'"),
    ({"physical_min": "-100,5"}, True, "the comma is read as a decimal point"),
    ({"digital_min": 0, "digital_max": 65535}, True, "exceed the sample's range -32768 to 32767"),
    ({"digital_min": -32769, "digital_max": 32767}, True, "exceed the sample's range -32768 to 32767"),
    ({"digital_min": -32768, "digital_max": 32768}, True, "exceed the sample's range -32768 to 32767"),
    ({"physical_min": 0, "physical_max": "1e-323"}, False, "give no usable gain"),
    ({"label": ""}, True, "the label is empty"),
]


@pytest.mark.parametrize(("bad", "calibrated", "sentence"), CALIBRATIONS, ids=[c[2] for c in CALIBRATIONS])
def test_one_bad_channel_never_costs_the_night(tmp_path, bad, calibrated, sentence):
    good = Channel("good", ramp(4, 5, 1000))
    path = write_edf(tmp_path / "two.edf", [Channel("bad", ramp(4, 10), bad), good])
    recording = read_recording(path)
    first, second = recording.signals
    assert first.calibrated is calibrated
    assert any(sentence in issue for issue in first.issues), first.issues
    assert recording.issues == ()
    if not calibrated:
        assert (first.gain, first.offset) == (1.0, 0.0)
    assert second.calibrated
    assert second.issues == ()
    np.testing.assert_array_equal(samples(recording, 0), np.arange(40))
    np.testing.assert_array_equal(samples(recording, 1), np.arange(1000, 1020))
    with pytest.raises(EdfError, match="signal 1 of 2"):
        read_recording(path, strict=True)


def test_calibration_values(tmp_path):
    def gain_and_offset(**limits):
        signal = read_recording(one_channel(tmp_path, limits)).signals[0]
        return signal.gain, signal.offset

    plain = {"physical_min": -10, "physical_max": 30, "digital_min": -100, "digital_max": 100}
    assert gain_and_offset(**plain) == pytest.approx((0.2, 10.0))
    assert gain_and_offset(**plain | {"physical_min": 30, "physical_max": -10}) == pytest.approx((-0.2, 10.0))
    assert gain_and_offset(**plain | {"digital_min": 100, "digital_max": -100}) == pytest.approx((-0.2, 10.0))
    assert gain_and_offset(**plain | {"physical_min": "-10,0"}) == pytest.approx((0.2, 10.0))
    assert gain_and_offset(**plain | {"physical_max": "3.0E+01"}) == pytest.approx((0.2, 10.0))


@pytest.mark.parametrize(
    ("raw", "unit"), [(b"\xb5V", "µV"), ("µV".encode(), "µV"), (b"\xb0C", "°C"), (b"u\0\x05", "u")]
)
def test_text_outside_ascii(tmp_path, raw, unit):
    recording = read_recording(one_channel(tmp_path, {"unit": raw}))
    assert recording.signals[0].unit == unit
    assert any("unit of signal 1 of 1" in issue for issue in recording.issues)


def test_many_badly_padded_fields_make_one_sentence(tmp_path):
    channels = [Channel(f"S{k}", ramp(2, 3), {"unit": b"uV".ljust(8, b"\0")}) for k in range(9)]
    recording = read_recording(write_edf(tmp_path / "nul.edf", channels))
    assert len(recording.issues) == 1
    assert recording.issues[0].endswith("and 5 more")


def test_duplicate_labels_are_kept_and_ambiguous(tmp_path):
    channels = [Channel(name, ramp(2, 3, 10 * k)) for k, name in enumerate(["C3", "C4", "C3"])]
    recording = read_recording(write_edf(tmp_path / "twice.edf", channels))
    assert [s.label for s in recording.signals] == ["C3", "C4", "C3"]
    assert recording.issues == ("2 signals are called 'C3' (numbers 1, 3); all are kept",)
    assert recording.signal("C4").index == 1
    with pytest.raises(EdfError, match=r"2 signals are called 'C3'; take one of signals\[0, 2\]"):
        recording.signal("C3")
    with pytest.raises(EdfError, match="no signal is called 'Cz'; the signals are: 'C3', 'C4', 'C3'"):
        recording.signal("Cz")


def test_signals_without_samples_are_left_out(tmp_path):
    channels = [Channel("none", np.empty((2, 0), int)), Channel("C3", ramp(2, 4))]
    recording = read_recording(write_edf(tmp_path / "none.edf", channels))
    assert [(s.label, s.index) for s in recording.signals] == [("C3", 1)]
    assert recording.issues == ("signal 1 of 2 ('none') is left out: it has no samples",)
    np.testing.assert_array_equal(samples(recording), np.arange(8))


def test_a_file_without_signals_or_records(tmp_path):
    recording = read_recording(write_edf(tmp_path / "empty.edf", []))
    assert (recording.signals, recording.segments, recording.n_records) == ((), (), 0)
    assert recording.issues == ("the header describes no signals",)
    assert recording.records().shape == (0, 0)
    recording = read_recording(one_channel(tmp_path, n=0))
    assert (recording.n_records, recording.segments, recording.duration_s) == (0, (), 0.0)
    assert recording.issues == ("the file holds no data records",)
    assert recording.records().shape == (0, 20)


# ---- faults that are refused ---------------------------------------------------------------------------------------

REFUSALS = [
    (b"", "the file is empty, expected an EDF or BDF file"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer"),
    (b"\x1f\x8b\x08" + b"x" * 600, "compressed with gzip; decompress it first"),
    (b"<html>404</html>", "a page of XML or HTML"),
    (b"time,value\n0,1\n" * 100, "the version field is b'time,val', expected b'0       '"),
    (b"0       too short", "the file ends after 17 bytes, expected a header of at least 256 bytes"),
    (
        edf_bytes([Channel("C3", ramp(1, 4))])[:400],
        "ends after 400 bytes, expected a header of 512 bytes for 1 signal",
    ),
    (edf_bytes([Channel("C3", ramp(1, 4))], n_signals="x"), "the signal count is 'x', expected a whole number"),
    (edf_bytes([Channel("C3", ramp(1, 4))], n_signals=-1), "the signal count is '-1'"),
    (
        edf_bytes([Channel("C3", ramp(1, 4))], record_s="soon"),
        "the record duration is 'soon', expected a number of sec",
    ),
    (edf_bytes([Channel("C3", ramp(1, 4))], record_s="-1"), "the record duration is '-1'"),
    (edf_bytes([Channel("C3", ramp(1, 4))], record_s="1e999"), "the record duration is '1e999'"),
    (
        edf_bytes([Channel("C3", ramp(1, 4), {"samples_per_record": "four"})]),
        r"the samples per record of signal 1 of 1 \('C3'\) are 'four', expected a whole number",
    ),
    (edf_bytes([Channel("C3", ramp(1, 4), {"samples_per_record": -4})]), "are '-4', expected a whole number"),
]


@pytest.mark.parametrize(("content", "sentence"), REFUSALS, ids=[r[1][:40] for r in REFUSALS])
def test_refusals_name_file_field_found_and_expected(tmp_path, content, sentence):
    path = tmp_path / "night.edf"
    path.write_bytes(content)
    with pytest.raises(EdfError, match=sentence) as error:
        read_recording(path)
    assert str(error.value).startswith(str(path))


def test_paths_that_are_no_files(tmp_path):
    with pytest.raises(EdfError, match="cannot be read"):
        read_recording(tmp_path / "missing.edf")
    with pytest.raises(EdfError, match="a folder"):
        read_recording(tmp_path)
    with pytest.raises(EdfError, match="cannot be read"):
        read_recording("nul\0byte.edf")
    os.mkfifo(tmp_path / "pipe.edf")
    with pytest.raises(EdfError, match="no regular file"):
        read_recording(tmp_path / "pipe.edf")


# ---- mapping -------------------------------------------------------------------------------------------------------


def test_file_beyond_two_gibibytes(tmp_path):
    path = one_channel(tmp_path, {"samples_per_record": 1 << 20}, n_records=1200, record_s=4096)
    record_bytes = 2 << 20
    with path.open("r+b") as file:
        file.truncate(512 + 1200 * record_bytes)  # sparse: 2.5 GB that take no space
        file.seek(512 + 1199 * record_bytes + 2 * 1000)
        file.write(np.arange(1, 6, dtype="<i2").tobytes())
    recording = read_recording(path)
    assert recording.n_records == 1200
    assert recording.issues == ()
    assert recording.records()[1199, 2000] == 1
    last = read_digital(recording, recording.signals, Segment(1199, 1, Fraction(0)))[0]
    np.testing.assert_array_equal(last[998:1007], [0, 0, 1, 2, 3, 4, 5, 0, 0])


def test_a_recording_travels_without_its_samples(tmp_path):
    recording = read_recording(one_channel(tmp_path, n=100_000))
    recording.records()
    message = pickle.dumps(recording)
    assert len(message) < 5000
    np.testing.assert_array_equal(samples(pickle.loads(message)), samples(recording))


def test_a_file_that_shrank_is_named(tmp_path):
    path = one_channel(tmp_path)
    recording = read_recording(path)
    path.write_bytes(path.read_bytes()[:540])
    with pytest.raises(EdfError, match="has the file changed"):
        recording.records()
