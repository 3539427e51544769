"""Real recordings: what is read from each of them is stated here, and agrees with pyedflib or edfio where they can."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from datetime import datetime
from fractions import Fraction
from pathlib import Path

import edfio
import numpy as np
import pyedflib
import pytest

from sleepfm_fast.edf import EdfError, read_recording
from sleepfm_fast.epochs import read_digital, read_epochs

DATA = Path(os.environ.get("SLEEPFM_TEST_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
AWKWARD = DATA / "awkward"
pytestmark = pytest.mark.skipif(
    not AWKWARD.is_dir(), reason=f"real recordings are missing: {DATA} (set SLEEPFM_TEST_DATA)"
)

GENERATOR = [
    *("squarewave", "ramp", "pulse", "ECG", "noise"),
    *("sine 1 Hz", "sine 8 Hz", "sine 8.5 Hz", "sine 15 Hz", "sine 17 Hz", "sine 50 Hz"),
]


@dataclass
class Expected:
    """What a file holds; ``samples`` are (signal, first sample, values), read off the file's bytes by hand."""

    format: str
    start: datetime
    n_records: int
    record_s: str
    rates_hz: dict[str, str] | list[tuple[str, str]]
    samples: tuple[tuple[int, int, list[int]], ...] = ()
    segments: tuple[tuple[int, int, int], ...] | None = None
    annotations: int = 0
    issues: tuple[str, ...] = ()
    signal_issues: tuple[str, ...] = ()
    oracle: str = "pyedflib"


EXPECTED: dict[str, Expected | str] = {
    "EDF.jl__bdf_test.bdf": Expected(
        "BDF", datetime(2020, 2, 2, 2, 20, 20), 73, "1", [(f"EEG Channel-{k}", "250") for k in range(1, 9)],
        samples=((0, 0, [-60, -146, -152]), (1, 0, [-199, -265, -309]), (7, 73 * 250 - 1, [-197])),
        issues=(
            "the file is a BDF file marked 'EDF+C'",
            "the file is marked 'EDF+C' but has no annotation signal; it is read as continuous BDF",
        ),
    ),
    "alvw-edflib__ekg.edf": Expected(
        "EDF", datetime(2070, 1, 1, 1), 22, "1.04781", {"Channel 1": "500/1.04781", "Accelerometer": "50/1.04781"},
        samples=((0, 0, [0, -206, -205]), (1, 22 * 50 - 2, [-62, -57])),
    ),
    "alvw-edflib__ekg.edf.26c2338": Expected(
        "EDF", datetime(2017, 1, 1, 19, 51, 40), 93, "1.000301",
        {"Channel 1": "500/1.000301", "Accelerometer": "50/1.000301"},
    ),
    "alvw-edflib__ekg.edf.b2902fc": Expected(
        "EDF", datetime(2017, 1, 1, 19, 51, 40), 0, "1.000301",
        {"EKG": "500/1.000301", "Accelerometer": "50/1.000301"},
        segments=(),
        issues=(
            "the header promises 93 records, the file holds 0 whole ones, which are used; probably an incomplete copy: "
            "the last 93.028 s of 93.028 s are missing",
        ),
        oracle="edfio",
    ),
    "brainbay__calib_test.edf": Expected(
        "EDF", datetime(2005, 1, 31, 20, 6, 46), 16, "1", {"Sinus": "256", "Rectangle": "256", "Sawtooth": "256"},
        samples=((0, 0, [701, 843, 904, 868]), (1, 16 * 256 - 3, [912, 912, 111]), (2, 0, [563, 614, 665, 717])),
        issues=("the record count is '-1'; the file holds 16 whole records, which are used",),
        oracle="edfio",
    ),
    "brainbay__est_juama1.edf": Expected(
        "EDF", datetime(2006, 9, 4, 2, 19, 54), 0, "1", {},
        segments=(),
        issues=("the header describes no signals", "130560 bytes follow the header, but no signal claims them"),
        oracle="none",
    ),
    "brainbay__test.edf": Expected(
        "EDF", datetime(2007, 3, 5, 20, 10, 24), 20, "1", {"Gen1": "256", "Gen2": "256"},
        samples=((0, 0, [819] * 4), (0, 20 * 256 - 3, [204, 204, 819]), (1, 0, [524, 537, 549, 562])),
        issues=("the header promises 0 records, the file holds 20; all of them are used",),
        oracle="edfio",
    ),
    "edfReader__bdfPlusC.bdf": Expected(
        "BDF+C", datetime(2009, 12, 10, 12, 45, 54), 20, "1", dict.fromkeys(GENERATOR, "200"), annotations=2
    ),
    "edfReader__edfPlusD.edf": Expected(
        "EDF+D", datetime(2009, 12, 10, 12, 44, 2), 11, "1", dict.fromkeys(GENERATOR, "200"),
        samples=((1, 400, [-3276, -3243, -3211, -3178, -3145, -3112]), (10, 2194, [-3276, 0, 3276, 0, -3276, 0])),
        segments=((0, 1, 0), (1, 1, 2), (2, 6, 4), (8, 1, 12), (9, 1, 15), (10, 1, 19)),
        annotations=1,
        oracle="edfio",
    ),
    "mne-python__duplicate_channel_labels.edf": Expected(
        "EDF+C", datetime(2018, 4, 1, 14, 12, 44), 10, "1",
        [("EEG F1-Ref", "250"), ("EEG F2-Ref", "250"), ("EEG F1-Ref", "250")],
        issues=("2 signals are called 'EEG F1-Ref' (numbers 1, 3); all are kept",),
    ),
    "mne-python__test_uneven_samp.edf": Expected(
        "EDF", datetime(2000, 7, 13, 12, 5, 48), 11, "10", {"3Hz +5/-5 V": "100", "0.2Hz Blk 1/0uV": "12.8"},
        samples=((0, 0, [0, 192, 377]), (1, 0, [1000, 1000])),
    ),
    "mne-testing-data__test_utf8_annotations.edf": Expected(
        "EDF+C", datetime(2009, 12, 10, 12, 44, 2), 10, "1", dict.fromkeys(GENERATOR, "200"), annotations=2
    ),
    "node-edflib__output.edf": Expected(
        "EDF+C", datetime(2018, 3, 30, 16, 13, 44), 8, "1", {"lalabel0": "100", "lalabel1": "150"}, annotations=512
    ),
    "openpsg__discontinuous.edf": Expected(
        "EDF+D", datetime(2024, 12, 16, 1, 23, 6), 12, "0", {},
        segments=((0, 12, 0),),
        annotations=12,
        issues=("signal 2 of 2 ('Crc16') is left out: the record duration is 0, so it has no sampling rate",),
        oracle="none",
    ),
    "preraulab__test_malformed_header.edf": (
        "the samples per record of signal 1 of 1 ('C1') are '', expected a whole number; the layout of the records "
        "cannot be known without it."
    ),
    "pyedflib__test_subsecond.edf": Expected(
        "EDF+C", datetime(2020, 1, 24, 4, 5, 56, 394531), 698, "1", {"Fp1": "128"},
        annotations=4,
        signal_issues=(
            "the physical limits are swapped (8711 to -8711); the gain is negative, as EDF+ defines it",
        ),
    ),
    "z3score__test.edf": (
        "this is no EDF or BDF file, it is a Git LFS pointer, not the recording itself; fetch it with `git lfs pull`."
    ),
}  # fmt: skip


def test_every_awkward_file_has_its_expectation():
    assert {p.name for p in AWKWARD.iterdir()} == set(EXPECTED)
    assert len(EXPECTED) == 17


def rate(text: str) -> Fraction:
    over, _, under = text.partition("/")
    return Fraction(over) / Fraction(under or 1)


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_awkward_file(name):
    path, expected = AWKWARD / name, EXPECTED[name]
    if isinstance(expected, str):
        with pytest.raises(EdfError) as error:
            read_recording(path)
        assert str(error.value) == f"{path}: {expected}"
        return
    recording = read_recording(path)
    assert recording.format == expected.format
    assert recording.start == expected.start
    assert recording.n_records == expected.n_records
    assert recording.record_s == Fraction(expected.record_s)
    rates = expected.rates_hz.items() if isinstance(expected.rates_hz, dict) else expected.rates_hz
    assert [(s.label, s.fs_hz) for s in recording.signals] == [(label, rate(text)) for label, text in rates]
    segments = ((0, expected.n_records, 0),) if expected.segments is None else expected.segments
    assert tuple((s.first_record, s.n_records, s.onset_s) for s in recording.segments) == segments
    assert len(recording.annotations) == expected.annotations
    assert recording.issues == expected.issues
    assert tuple(i for s in recording.signals for i in s.issues) == expected.signal_issues
    assert all(s.calibrated for s in recording.signals)
    whole = [read_digital(recording, recording.signals, segment) for segment in recording.segments]
    for k, first, values in expected.samples:
        signal = np.concatenate([arrays[k] for arrays in whole])
        assert signal.dtype == (np.int16 if recording.format.startswith("EDF") else np.int32)
        np.testing.assert_array_equal(signal[first : first + len(values)], values)
    if expected.issues or expected.signal_issues:
        with pytest.raises(EdfError):
            read_recording(path, strict=True)
    else:
        assert read_recording(path, strict=True) == recording


def with_edfio(path: Path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of what it repairs
        edf = edfio.read_bdf(path) if path.read_bytes()[:1] == b"\xff" else edfio.read_edf(path)
        signals = [(s.label, s.digital, s.data) for s in edf.signals]
        return signals, [(a.onset, a.duration, a.text) for a in edf.annotations]


def with_pyedflib(path: Path):
    with pyedflib.EdfReader(str(path)) as edf:
        signals = [
            (edf.getLabel(k), edf.readSignal(k, digital=True), edf.readSignal(k)) for k in range(edf.signals_in_file)
        ]
        columns = (column.tolist() for column in edf.readAnnotations())
        return signals, [(o, None if d == -1 else d, t) for o, d, t in zip(*columns, strict=True)]


def real_files() -> list[tuple[str, str]]:
    others = ["osas2002.edf", "short_psg.edf", "short_psg.bdf", "ucddb018_eeg.edf", "SC4001EC-Hypnogram.edf"]
    pairs = [(name, "pyedflib") for name in [*others, "annotations/ST7011JP-Hypnogram.edf"]]
    pairs += [(name, "edfio") for name in others]
    for name, expected in EXPECTED.items():
        if isinstance(expected, Expected) and expected.oracle != "none":
            pairs += [(f"awkward/{name}", oracle) for oracle in {"edfio", expected.oracle}]
    return sorted(pairs)


@pytest.mark.parametrize(("name", "oracle"), real_files())
def test_real_files_agree_with_other_readers(name, oracle):
    recording = read_recording(DATA / name)
    signals, annotations = (with_pyedflib if oracle == "pyedflib" else with_edfio)(DATA / name)
    assert len(signals) == len(recording.signals)
    whole = [read_digital(recording, recording.signals, segment) for segment in recording.segments]
    for k, (label, digital, physical) in enumerate(signals):
        ours = recording.signals[k]
        samples = np.concatenate([arrays[k] for arrays in whole]) if whole else np.empty(0, np.int16)
        assert ours.label == label
        np.testing.assert_array_equal(samples, digital)
        np.testing.assert_allclose(ours.gain * samples + ours.offset, physical, rtol=1e-9, atol=1e-9)
    mine = [(a.onset_s, a.duration_s, a.text) for a in recording.annotations]
    if oracle == "edfio":  # which sorts them
        mine, annotations = sorted(mine, key=str), sorted(annotations, key=str)
    assert mine == annotations


def test_gaps_and_annotations_of_the_unreadable_by_others():
    """Nobody else reads these two with their times; the values are those in the bytes."""
    recording = read_recording(AWKWARD / "openpsg__discontinuous.edf")
    assert [(a.onset_s, a.duration_s) for a in recording.annotations[:3]] == [(0.0, 0.0), (493.0, 21.0), (538.0, 16.0)]
    assert recording.annotations[0].text == "Recording starts"
    assert {a.text for a in recording.annotations[1:]} == {"Central Apnea"}
    assert recording.annotations[-1].onset_s == 24784.0
    recording = read_recording(AWKWARD / "edfReader__edfPlusD.edf")
    assert recording.duration_s == 20.0
    epochs = read_epochs(recording, recording.signals[1:2], [2.0, 4.0, 9.0, 19.0], epoch_s=1)
    starts = [read_digital(recording, recording.signals[1:2], s)[0][:200] for s in recording.segments]
    np.testing.assert_array_equal(epochs[0, 0], starts[1])
    np.testing.assert_array_equal(epochs[1, 0], starts[2])
    np.testing.assert_array_equal(epochs[3, 0], starts[5])
    with pytest.raises(EdfError, match=r"1 of 1 epoch of 1 s does not lie wholly inside one segment"):
        read_epochs(recording, recording.signals[1:2], [9.5], epoch_s=1)


def test_sub_second_start_moves_annotations_to_the_first_sample():
    recording = read_recording(AWKWARD / "pyedflib__test_subsecond.edf")
    assert recording.annotations[0].onset_s == 1.9511719  # 2.3457031 in the file, whose first sample is at 0.3945312
    assert recording.segments[0].onset_s == 0
    assert recording.signals[0].gain < 0


def test_utf8_and_many_annotation_channels():
    recording = read_recording(AWKWARD / "mne-testing-data__test_utf8_annotations.edf")
    assert recording.annotations[1].text == "仰卧"
    recording = read_recording(AWKWARD / "node-edflib__output.edf")
    assert [a.text for a in recording.annotations] == [f"annot #{k}" for k in range(512)]
    assert recording.annotations[64].duration_s == 0.0064


def test_psg_with_a_hypnogram_signal():
    recording = read_recording(DATA / "osas2002.edf", strict=True)
    assert recording.format == "EDF+C"
    assert recording.duration_s == 1200.0
    hypnogram = recording.signal("Hypnogram")
    assert hypnogram.fs_hz == Fraction(1, 10)
    assert hypnogram.samples_per_record == 1
    (stages,) = read_digital(recording, [hypnogram], recording.segments[0])
    assert stages.size == 120
    kemp = {"0": "W", "1": "N1", "2": "N2", "3": "N3", "4": "N3", "5": "R"}
    rows = [line.split(",") for line in (DATA / "osas2002-stages.csv").read_text().split()[1:]]
    assert [kemp[str(s)] for s in stages[::3]] == [row[2] for row in rows]
    assert {a.text for a in recording.annotations} == {"QRS"}
    assert len(recording.annotations) == 1556


def test_edf_and_bdf_of_one_recording_agree():
    edf, bdf = (read_recording(DATA / f"short_psg.{kind}", strict=True) for kind in ("edf", "bdf"))
    assert edf.start == bdf.start == datetime(1989, 4, 24, 16, 13)
    ours = read_digital(edf, edf.signals, edf.segments[0])
    wide = read_digital(bdf, bdf.signals, bdf.segments[0])
    assert [s.label for s in edf.signals] == [s.label for s in bdf.signals]
    for narrow, other, signal in zip(ours, wide, edf.signals, strict=True):
        assert (narrow.dtype, other.dtype) == (np.int16, np.int32)
        np.testing.assert_array_equal(narrow, other)
        assert np.ptp(narrow) > 0, signal.label
    fast = [[s for s in r.signals if s.fs_hz == 100] for r in (edf, bdf)]
    onsets = np.arange(0, 300, 30.0)
    np.testing.assert_array_equal(
        read_epochs(edf, fast[0], onsets, context_s=2.5), read_epochs(bdf, fast[1], onsets, context_s=2.5)
    )


def test_whole_night_hypnogram():
    recording = read_recording(DATA / "SC4001EC-Hypnogram.edf", strict=True)
    assert recording.signals == ()
    assert recording.record_s == 0
    assert recording.duration_s == 0.0
    assert len(recording.annotations) == 154
    stages = [a for a in recording.annotations if a.text.startswith("Sleep stage")]
    assert (stages[0].onset_s, stages[0].duration_s, stages[0].text) == (0.0, 30630.0, "Sleep stage W")
