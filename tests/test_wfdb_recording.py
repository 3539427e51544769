"""WFDB records as recordings: against the integers they were written from, and as nights of a cohort."""

from __future__ import annotations

import json
import os
import pickle
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from called import last_json
from nights import DATA, preprocess, state, write_night
from wfdb_files import write_notes, write_wfdb

from sleepfm_fast.clips import ClipStore
from sleepfm_fast.cohorts.corrections import read_corrections
from sleepfm_fast.epochs import EpochReader, read_digital, read_physical
from sleepfm_fast.errors import SleepfmError
from sleepfm_fast.formats.wfdb_recording import read_wfdb_recording
from sleepfm_fast.preprocess import cli
from sleepfm_fast.recordings import open_recording

BITS = {16: 16, 24: 24, 32: 24, 61: 16, 80: 8, 160: 16, 212: 12}  # of the values, and all formats that are read
CINC = [
    *("F3-M2", "F4-M1", "C3-M2", "C4-M1", "O1-M2", "O2-M1", "E1-M2"),
    *("Chin1-Chin2", "ABD", "CHEST", "AIRFLOW", "SaO2", "ECG"),
]


def integers(n: int, bits: int, seed: int = 0):
    """All of a format's numbers but the smallest, which stands for no sample."""
    return np.random.default_rng(seed).integers(-(1 << (bits - 1)) + 1, 1 << (bits - 1), n)


def samples_of(recording):
    return read_digital(recording, recording.signals, recording.segments[0])


@pytest.mark.parametrize("stored", BITS)
@pytest.mark.parametrize("n_frames", [1, 2, 7, 599, 6000, 12_001])  # 599 and 12001 = 11 x 1091 are no whole seconds
@pytest.mark.parametrize("per_frame", [(1,), (1, 1, 1), (1, 4, 2)])
def test_samples_are_those_written(tmp_path: Path, stored: int, n_frames: int, per_frame: tuple[int, ...]) -> None:
    gains = ["200(-3)/uV", "0.5/mV", "-3(7)/%"]
    given = [
        (f"signal {k} of it", integers(n_frames * n, BITS[stored], k), {"per_frame": n, "gain": gains[k]})
        for k, n in enumerate(per_frame)
    ]
    recording = open_recording(write_wfdb(tmp_path, "r", 200, given, stored=stored))
    assert recording.format == "WFDB"
    assert (recording.issues, recording.sample_issues()) == ((), ())
    assert recording.n_records * recording.record_s == Fraction(n_frames, 200)
    assert recording.record_s <= 30
    assert [s.label for s in recording.signals] == [label for label, _, _ in given]
    assert [s.unit for s in recording.signals] == ["uV", "mV", "%"][: len(given)]
    assert [s.fs_hz for s in recording.signals] == [200 * n for n in per_frame]
    for (_, values, _), digital in zip(given, samples_of(recording), strict=True):
        np.testing.assert_array_equal(digital, values)
    physical = read_physical(recording, recording.signals, recording.segments[0])
    for (_, values, _), (gain, base), found in zip(given, [(200, -3), (0.5, 0), (-3, 7)], physical, strict=False):
        np.testing.assert_allclose(found, (values - base) / gain, rtol=1e-6, atol=1e-6 * np.abs(values / gain).max())


@pytest.mark.parametrize("stored", [16, 24, 212])
def test_chunks_join_without_a_seam(tmp_path: Path, monkeypatch, stored: int) -> None:
    values = [integers(12_001, BITS[stored], k) for k in range(3)]
    header = write_wfdb(tmp_path, "r", 200, [(f"s{k}", v, {}) for k, v in enumerate(values)], stored=stored)
    for n_bytes in (1, 4 * 1091 * 3, 4 * 1091 * 3 * 2):  # a record of 1091 frames at a time, and two
        monkeypatch.setattr("sleepfm_fast.formats.wfdb_recording.CHUNK_BYTES", n_bytes)
        for digital, given in zip(samples_of(open_recording(header)), values, strict=True):
            np.testing.assert_array_equal(digital, given)


def test_a_matlab_file_begins_after_its_header(tmp_path: Path) -> None:
    values = integers(6000, 16)
    recording = open_recording(write_wfdb(tmp_path, "r", 200, [("a", values, {})], lead=bytes(24), suffix=".mat"))
    np.testing.assert_array_equal(samples_of(recording)[0], values)


def test_signals_in_two_files(tmp_path: Path) -> None:
    a, b = integers(600, 16, 1), integers(1200, 12, 2)
    write_wfdb(tmp_path, "one", 100, [("a", a, {})])
    write_wfdb(tmp_path, "two", 100, [("b", b, {"per_frame": 2})], stored=212)
    lines = [(tmp_path / f"{name}.hea").read_text().splitlines()[1] for name in ("one", "two")]
    (tmp_path / "both.hea").write_text(
        "\n".join(["both 3 100 600", lines[0], "~ 0 200/mV 12 0 0 0 0 nothing", lines[1]])
    )
    recording = open_recording(tmp_path / "both.hea")
    assert [(s.index, s.label, s.fs_hz) for s in recording.signals] == [(0, "a", 100), (2, "b", 200)]
    assert recording.files == tuple(tmp_path / n for n in ("both.hea", "one.dat", "two.dat"))
    assert recording.issues == ("'nothing': the header names no signal file; left out",)
    for digital, given in zip(samples_of(recording), (a, b), strict=True):
        np.testing.assert_array_equal(digital, given)


@pytest.mark.parametrize("stored", BITS)
def test_missing_samples_repeat_the_one_before(tmp_path: Path, stored: int) -> None:
    missing = -(1 << ({32: 32}.get(stored, BITS[stored]) - 1))
    values, whole = integers(400, BITS[stored]), integers(400, BITS[stored], 1)
    lost = values.copy()
    lost[:3], lost[100:140], lost[-1] = missing, missing, missing
    expected = values.copy()
    expected[:3], expected[100:140], expected[-1] = values[3], values[99], values[-2]
    nothing = np.full(400, missing)
    signals = [("a", lost, {}), ("b", whole, {}), ("c", nothing, {"gain": "10(5)/uV"})]
    recording = open_recording(write_wfdb(tmp_path, "r", 100, signals, stored=stored))
    for digital, given in zip(samples_of(recording), (expected, whole, np.full(400, 5)), strict=True):
        np.testing.assert_array_equal(digital, given)
    assert recording.sample_issues() == (
        "a: 11 % of its samples are marked as missing and repeat the one before",
        "c: 100 % of its samples are marked as missing and repeat the one before",
    )


def test_a_changed_file_is_said(tmp_path: Path) -> None:
    header = write_wfdb(tmp_path, "r", 100, [("a", integers(300, 16), {}), ("b", integers(300, 16, 1), {})])
    content = bytearray((tmp_path / "r.dat").read_bytes())
    content[402] ^= 4
    (tmp_path / "r.dat").write_bytes(content)
    (issue,) = open_recording(header).sample_issues()
    assert issue.startswith("the checksums of 'b' in r.dat do not agree")


def test_a_file_that_is_too_short_or_too_long(tmp_path: Path) -> None:
    values = integers(600, 16)
    header = write_wfdb(tmp_path, "r", 100, [("a", values[:300], {}), ("b", values[300:], {})])
    content = (tmp_path / "r.dat").read_bytes()
    (tmp_path / "r.dat").write_bytes(content[:-5])
    recording = open_recording(header)
    assert recording.issues == ("the header promises 300 samples a signal, the files hold 298, which are used",)
    np.testing.assert_array_equal(samples_of(recording)[1], values[300:598])
    assert recording.sample_issues() == ()  # the checksums are those of the whole
    (tmp_path / "r.dat").write_bytes(content + b"\0\0\0\0\0")
    recording = open_recording(header)
    assert (recording.issues, recording.sample_issues()) == ((), ())
    np.testing.assert_array_equal(samples_of(recording)[0], values[:300])
    recording = open_recording(header)
    (tmp_path / "r.dat").write_bytes(content[:100])
    with pytest.raises(SleepfmError, match=r"r\.dat has become shorter since its header was read"):
        recording.records()
    (tmp_path / "r.dat").unlink()
    with pytest.raises(SleepfmError, match=r"its signal file r\.dat cannot be read"):
        open_recording(header)


def test_a_header_without_a_count_or_samples(tmp_path: Path) -> None:
    values = integers(300, 16)
    header = write_wfdb(tmp_path, "r", 100, [("a", values, {})])
    text = header.read_text()
    header.write_text(text.replace("r 1 100 300", "r 1 100", 1))
    np.testing.assert_array_equal(samples_of(open_recording(header))[0], values)
    (tmp_path / "r.dat").write_bytes(b"")
    recording = open_recording(header)
    assert (recording.n_records, recording.segments, recording.records().size) == (0, (), 0)
    header.write_text("r 0 100 300\n")
    assert open_recording(header).signals == ()


def test_a_late_signal_is_moved_back(tmp_path: Path) -> None:
    values, late = integers(300, 16), integers(300, 16, 1)
    header = write_wfdb(tmp_path, "r", 100, [("a", values, {}), ("b", late, {"skew": 7})])
    recording = open_recording(header)
    a, b = samples_of(recording)
    np.testing.assert_array_equal(a, values)
    np.testing.assert_array_equal(b, [*late[7:], *[late[-1]] * 7])
    assert "lies 7 frames late" in recording.signals[1].issues[0]


@pytest.mark.parametrize(("line", "gain", "offset", "unit", "label"), [
    ("r.dat 16 200(100)/uV 12 50 0 0 0 C3-M2 left", 1 / 200, -0.5, "uV", "C3-M2 left"),
    ("r.dat 16 200/uV 12 50 0 0 0 C3", 1 / 200, -0.25, "uV", "C3"),  # the baseline is the middle of the range
    ("r.dat 16 200", 1 / 200, 0.0, "mV", "signal 1"),
    ("r.dat 16", 1.0, 0.0, "", "signal 1"),
    ("r.dat 16 0/uV 16 0 0 0 0 C3", 1.0, 0.0, "", "C3"),
])  # fmt: skip
def test_what_a_line_may_leave_out(tmp_path: Path, line, gain, offset, unit, label) -> None:
    (tmp_path / "r.dat").write_bytes(bytes(200))
    (tmp_path / "r.hea").write_text(f"# a comment\n\nr 1 100 100\n{line}\n# 59 M\n")
    (signal,) = open_recording(tmp_path / "r.hea").signals
    assert (signal.unit, signal.label) == (unit, label)
    assert (signal.gain, signal.offset) == pytest.approx((gain, offset))
    assert signal.calibrated == bool(unit)


@pytest.mark.parametrize(("text", "said"), [
    ("r/3 1 100 300\nr_1 100\nr_2 100\n", "consists of 3 segments, which are not read"),
    ("r 2 100 300\nr.dat 16\n", "promises 2 signals, 1 lines follow"),
    ("r 1 100 300\nr.dat 508 200\n", "format 508; the formats 16, 24, 32, 61, 80, 160, 212 are read"),
    ("r 2 100 300\nr.dat 16 200\nr.dat 212 200\n", "both format 16 and 212"),
    ("r 3 100 300\nr.dat 16 200\nq.dat 16 200\nr.dat 16 200\n", "the signals of r.dat do not stand together"),
    ("r 1 100 300\n../r.dat 16 200\n", "expected a file beside the header"),
    ("r 1 100 300\nr.dat 16x0 200\n", "expected 'file format ...'"),
    ("r 1 100 300\nr.dat\n", "expected 'file format ...'"),
    ("r 1 0 300\nr.dat 16\n", "expected a positive number"),
    ("", "expected a WFDB record line"),
])  # fmt: skip
def test_what_cannot_be_read_is_said(tmp_path: Path, text: str, said: str) -> None:
    for name in ("r.dat", "q.dat"):
        (tmp_path / name).write_bytes(bytes(600))
    (tmp_path / "r.hea").write_text(text)
    with pytest.raises(SleepfmError, match=r"r\.hea") as refusal:
        open_recording(tmp_path / "r.hea")
    assert said in str(refusal.value)


@pytest.mark.parametrize(("text", "fs_hz"), [("204.85", Fraction(20485, 100)), ("1e-12", Fraction(1, 10**12))])
def test_the_rate_is_the_decimal_as_written(tmp_path: Path, text: str, fs_hz: Fraction) -> None:
    header = write_wfdb(tmp_path, "r", 100, [("a", integers(30, 16), {})])
    header.write_text(header.read_text().replace("r 1 100 ", f"r 1 {text} "))
    recording = open_recording(header)
    assert recording.signals[0].fs_hz == fs_hz
    assert recording.n_records * recording.record_s == 30 / fs_hz


def test_samples_beyond_24_bits_are_refused(tmp_path: Path) -> None:
    for value, fits in ((8_388_607, True), (8_388_608, False), (-8_388_608, True), (-8_388_609, False)):
        header = write_wfdb(tmp_path, "r", 100, [("a", [0, value], {})], stored=32)
        if fits:
            assert samples_of(open_recording(header))[0].tolist() == [0, value]
        else:
            with pytest.raises(SleepfmError, match="need more than the 24 bits"):
                open_recording(header).records()


def test_a_recording_travels_without_its_samples(tmp_path: Path) -> None:
    values = integers(6000, 16)
    recording = read_wfdb_recording(write_wfdb(tmp_path, "r", 100, [("C3", values, {}), ("O1", values, {})]))
    recording.records()
    assert len(pickle.dumps(recording)) < 10_000
    copy = pickle.loads(pickle.dumps(recording))
    assert copy == recording
    (tmp_path / "overrides.json").write_text('{"r.hea": {"C3": {"exclude": true}}}')
    corrected, _ = read_corrections(tmp_path / "overrides.json").apply_to(copy)
    assert [s.label for s in corrected.signals] == ["O1"]
    np.testing.assert_array_equal(samples_of(corrected)[0], values)
    epoch = EpochReader(recording, recording.signals[:1], epoch_s=10, context_s=1).read(20.0)
    np.testing.assert_array_equal(epoch, values[1900:3100])


# ---- as nights -------------------------------------------------------------------------------------------------------


def write_cinc(folder: Path, name: str, seed: int = 0) -> list[np.ndarray]:
    """Two minutes of a night as in the 2018 challenge: 13 channels at 200 Hz in a MATLAB file, and annotations."""
    rng = np.random.default_rng(seed)
    values = [rng.integers(-800, 800, 24_000) for _ in CINC]
    values[11] = rng.integers(30_000, 32_000, 24_000)
    signals = [
        (label, v, {"gain": "32767(0)/%" if label == "SaO2" else "1/uV", "resolution": 16})
        for label, v in zip(CINC, values, strict=True)
    ]
    write_wfdb(folder / name, name, 200, signals, lead=bytes(24), suffix=".mat")
    write_notes(folder / name / f"{name}.arousal", [
        (0, "W"), (6000, "N2"), (6800, "(resp_hypopnea"), (10_000, "resp_hypopnea)"), (12_000, "N3"),
        (18_000, "(resp_obstructiveapnea"), (18_000, "undefined"), (21_000, "resp_obstructiveapnea)"),
    ])  # fmt: skip
    return values


def test_a_cohort_of_the_2018_challenge(tmp_path: Path, capsys) -> None:
    nights, store = tmp_path / "training", tmp_path / "store"
    values = {name: write_cinc(nights, name, seed) for seed, name in enumerate(["tr03-0005", "tr03-0029"])}
    (nights / "age-sex.csv").write_text("Record,Age,Sex\ntr03-0005,59,M\ntr03-0029,64,F\n")
    table = ("--participants", nights / "age-sex.csv", "--montage", "cinc2018")
    status, result = preprocess(capsys, nights, store, *table)
    assert (status, result["nights"], result["clips"], result["failed"]) == (0, 2, 8, [])
    assert result["problems"] == {}
    found = ClipStore(store, verify=True)
    assert found.participants == {"tr03-0005": {"age": 59, "sex": "M"}, "tr03-0029": {"age": 64, "sex": "F"}}
    assert found.stage.tolist() == [0, 2, 3, -1] * 2
    assert found.sdb.tolist() == [0, 1, 0, 1] * 2
    assert found.modality_present().all()
    for night, name in enumerate(values):
        for slot, facts in enumerate(found.record(night)["channels"]):
            given = values[name][CINC.index(facts["labels"][0])]
            np.testing.assert_array_equal(found.run(night, slot, 0), given)
    # nothing is done again, and a signal file that changes is noticed
    before = state(store)
    assert preprocess(capsys, nights, store, *table)[1]["kept"] == 2
    assert state(store) == before
    signals = nights / "tr03-0029" / "tr03-0029.mat"
    content = bytearray(signals.read_bytes())
    content[-1] ^= 1
    signals.write_bytes(content)
    _, result = preprocess(capsys, nights, store, *table)
    (changed,) = result["changed"]
    assert changed["path"].endswith("tr03-0029.hea")
    assert f"{signals} has changed since it was ingested" in changed["reason"]
    status, result = preprocess(capsys, nights, store, *table, "--overwrite")
    assert (status, result["added"], result["kept"]) == (0, 1, 1)
    assert any("the checksums of 'ECG'" in issue for issue in result["problems"]["tr03-0029"])


def test_the_doctor_looks_at_them(tmp_path: Path, capsys) -> None:
    write_cinc(tmp_path / "nights", "tr03-0005")
    assert cli(["--inspect", str(tmp_path / "nights"), "--montage", "cinc2018", "--backend", "threading"]) == 0
    out, _ = capsys.readouterr()
    report = last_json(out)
    assert report["nights"] == 1


def test_a_broken_record_stops_nobody(tmp_path: Path, capsys) -> None:
    nights = tmp_path / "nights"
    for seed, name in enumerate(["a1", "a2", "a3"]):
        write_cinc(nights, name, seed)
    (nights / "a2" / "a2.mat").unlink()
    status, result = preprocess(capsys, nights, tmp_path / "store")
    assert (status, result["nights"]) == (1, 2)
    assert len(result["failed"]) == 1
    assert "a2.mat cannot be read" in json.dumps(result["failed"])


def test_a_header_beside_an_edf_file_is_its_annotations(tmp_path: Path, capsys) -> None:
    (tmp_path / "nights").mkdir()
    write_night(tmp_path / "nights" / "n1.edf", stages="")
    (tmp_path / "nights" / "n1.hea").write_text("n1 1 100 1000\nn1.dat 16\n")
    write_notes(tmp_path / "nights" / "n1.st", [(0, "W"), (3000, "2"), (6000, "4 H"), (9000, "R")])
    _, result = preprocess(capsys, tmp_path / "nights", tmp_path / "store")
    assert (result["nights"], result["failed"]) == (1, [])
    assert result["stages"]["N3"] == 1


def test_a_signal_file_is_answered_with_its_header(tmp_path: Path, capsys) -> None:
    header = write_wfdb(tmp_path, "r", 100, [("C3", integers(300, 16), {})], lead=bytes(24), suffix=".mat")
    with pytest.raises(SleepfmError, match=f"Give {header}, the header of the WFDB record"):
        open_recording(tmp_path / "r.mat")
    assert cli([str(tmp_path / "r.mat"), str(tmp_path / "store")]) == 1
    assert f"Give {header}" in capsys.readouterr().err


@pytest.mark.skipif(not (DATA / "annotations").is_dir(), reason=f"the real annotations are missing: {DATA}")
def test_the_headers_of_the_mit_bih_database(tmp_path: Path) -> None:
    """Real headers; their signals, format 212, are made up."""
    headers = sorted((DATA / "annotations").glob("slp*.hea"))
    assert headers
    for header in headers:
        text = header.read_text().splitlines()
        n_signals = int(text[0].split()[1])
        (tmp_path / f"{header.stem}.hea").write_bytes(header.read_bytes())
        (tmp_path / f"{header.stem}.dat").write_bytes(bytes(3 * n_signals * 500))
        recording = open_recording(tmp_path / f"{header.stem}.hea")
        assert len(recording.signals) == n_signals
        assert {s.fs_hz for s in recording.signals} == {250}
        assert recording.duration_s == 1000 / 250
        assert any("promises" in issue for issue in recording.issues)
        assert recording.start is not None


def test_a_pipe_is_not_waited_for(tmp_path: Path, capsys) -> None:
    write_wfdb(tmp_path, "piped", 100, [("ECG", [0] * 6000, {})])
    (tmp_path / "piped.dat").unlink()
    os.mkfifo(tmp_path / "piped.dat")
    write_night(tmp_path / "good.edf")
    status, result = preprocess(capsys, tmp_path, tmp_path / "store")
    assert (status, result["added"]) == (1, 1)
    assert "its signal file piped.dat is no regular file" in result["failed"][0]["reason"]
