"""The doctor: a clean recording has no finding, and every planted defect is found and nothing else."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from called import last_json
from edf_files import Channel, annotation_channel, starts, write_edf
from nights import LEADS, Lead, contents, write_night
from planted import plant, samples_of

from sleepfm_fast import simulate
from sleepfm_fast.clips import ClipStore
from sleepfm_fast.doctor.extremes import extremes_of, packed, shared_extremes
from sleepfm_fast.doctor.patients import patient_key
from sleepfm_fast.edf import read_recording
from sleepfm_fast.preprocess import cli

EEG, FS = "C4-M1", 128


@pytest.fixture(scope="module")
def sleepers(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two clean recordings of six minutes, which are read whole."""
    folder = tmp_path_factory.mktemp("clean") / "edf"
    assert simulate.cli([str(folder), "--subjects", "2", "--hours", "0.1", "--seed", "5", "--workers", "1"]) == 0
    paths = sorted(folder.glob("*.edf"))
    for path in paths:  # nights of several tests are copies of these, and of nobody
        plant(path, path, file_header={8: b"X X X X".ljust(80)})
    return paths


@pytest.fixture
def examine(tmp_path: Path, capsys):
    """Run --inspect; returns the findings of the report and what was printed."""

    def run(*arguments: object, status: int = 0) -> tuple[list[dict], str]:
        report = tmp_path / "report.json"
        capsys.readouterr()
        given = ["--inspect", *map(str, arguments), "--workers", "1", "--backend", "threading", "--json", str(report)]
        assert cli(given) == status
        return json.loads(report.read_text())["findings"], capsys.readouterr().out

    return run


@pytest.fixture
def said_by_preprocess(capsys):
    """Make a store, or add to it; returns the lines that were said."""

    def run(recordings: Path, store: Path, *options: str) -> list[str]:
        capsys.readouterr()
        assert cli([str(recordings), str(store), *options, "--workers", "1", "--backend", "threading"]) == 0
        return capsys.readouterr().err.splitlines()

    return run


def codes(findings: list[dict]) -> list[tuple[str, str, str]]:
    return sorted((f["severity"], f["code"], f["channel"]) for f in findings)


def another_night(sleepers: list[Path], i: int, target: Path, changes: dict | None = None, **header: dict) -> Path:
    """Night number ``i`` of many: one of the two sleepers, every channel begun some seconds later in a circle."""
    source = sleepers[i % 2]

    def moved(x: np.ndarray, change) -> np.ndarray:
        return np.roll(change(x), i * len(x) // 120)  # 3 s of six minutes

    kept = {s.label: (lambda x: x) for s in read_recording(source).signals} | (changes or {})
    samples = {label: (lambda x, change=change: moved(x, change)) for label, change in kept.items()}
    return plant(source, target, samples, **header)


def test_clean_recordings_have_no_finding(sleepers: list[Path], examine) -> None:
    findings, text = examine(*sleepers)
    assert findings == []
    assert "findings: none" in text


def tone(hz: float, amplitude: float, n: int, fs: float = FS) -> np.ndarray:
    return amplitude * np.sin(2 * np.pi * hz * np.arange(n) / fs)


def third(x: np.ndarray, value: int) -> np.ndarray:
    out = x.copy()
    out[: len(x) // 3] = value
    return out


def unplugged(x: np.ndarray) -> np.ndarray:
    out = x.copy()
    begin = int(0.4 * len(x))
    out[begin:] = 11 + np.random.default_rng(0).integers(-2, 3, len(x) - begin)
    return out


DEFECTS = {
    "flat": ({EEG: lambda x: np.full_like(x, 3)}, ("flat", EEG)),
    "flat in part": ({EEG: lambda x: third(x, 3)}, ("flat", EEG)),
    "flat trend": ({"SpO2": lambda x: np.full_like(x, x[0])}, ("flat", "SpO2")),
    "railed": ({EEG: lambda x: third(x, -32768)}, ("railed", EEG)),
    "cannula unplugged": ({"Flow": unplugged}, ("unplugged", "Flow")),
    "clipped by the amplifier": ({EEG: lambda x: np.clip(x, -900, 900)}, ("clipped", EEG)),
    "clipped breathing": ({"Thor": lambda x: np.clip(x, -4000, 4000)}, ("clipped", "Thor")),
    "mains 50": ({EEG: lambda x: x + tone(50, 5000, len(x))}, ("mains", EEG)),
    "mains 60": ({EEG: lambda x: x + tone(60, 5000, len(x))}, ("mains", EEG)),
    "ECG upside down": ({"ECG": lambda x: -x}, ("polarity", "ECG")),
    "belt upside down": ({"Abdo": lambda x: -x}, ("belts", "Thor")),
    "oximeter off": ({"SpO2": lambda x: third(x, -32768) * 0 - 32000 + (np.arange(len(x)) % 7) * 9}, ("level", "SpO2")),
    "a thousand times too small": ({EEG: lambda x: x // 300}, ("unit", EEG)),
}


@pytest.mark.parametrize("name", DEFECTS)
def test_a_planted_defect_is_found_and_nothing_else(name: str, sleepers: list[Path], tmp_path: Path, examine) -> None:
    samples, (code, channel) = DEFECTS[name]
    findings, text = examine(plant(sleepers[0], tmp_path / "night.edf", samples))
    assert codes(findings) == [("warning", code, channel)]
    assert findings[0]["paths"] == [str(tmp_path / "night.edf")]
    assert findings[0]["action"]
    line = next(line for line in text.splitlines() if line.strip().startswith("warning"))
    assert f"{channel}: {findings[0]['text']} -> " in line


PERCENT = {"digital minimum": 0, "digital maximum": 100, "physical minimum": 0, "physical maximum": 100}
SIGNED = PERCENT | {"digital minimum": -100, "physical minimum": -100}
SATURATIONS = {
    "between two values": (lambda t: 96 + t % 2, PERCENT, None),
    "another value in each window": (lambda t: 95 + t // 60 % 3, PERCENT, None),
    "at 100 % for most of the time": (lambda t: np.where(t % 7 < 5, 100, 99), PERCENT, None),
    "off for a third, at the digital limit": (lambda t: np.where(t < 120, 0, 95 + t % 3), PERCENT, 2),
    "off for a third": (lambda t: np.where(t < 120, 0, 95 + t % 3), SIGNED, 2),
    "off for a sixth": (lambda t: np.where(t < 60, 0, 95 + t % 3), SIGNED, None),
    "off": (lambda t: np.where(t < 355, 0, 95), PERCENT, 6),
}


@pytest.mark.parametrize("name", SATURATIONS)
def test_a_saturation_in_whole_percent(name: str, sleepers: list[Path], tmp_path: Path, examine) -> None:
    values, header, off = SATURATIONS[name]
    night = plant(
        sleepers[0], tmp_path / "n.edf", {"SpO2": lambda x: values(np.arange(len(x)))}, header={"SpO2": header}
    )
    findings, _ = examine(night)
    assert codes(findings) == ([] if off is None else [("warning", "level", "SpO2")])
    assert [f["figures"]["off"] for f in findings] == ([] if off is None else [off])


def test_a_part_of_the_night_at_one_extreme_value_is_not_clipped(sleepers, tmp_path: Path, examine) -> None:
    for label in (EEG, "Thor"):
        night = plant(
            sleepers[0],
            tmp_path / "n.edf",
            {label: lambda x: np.where(np.arange(len(x)) < len(x) // 6, x.min() - 9, x)},
        )
        assert examine(night)[0] == []  # one window of six


@pytest.mark.parametrize(("share", "found"), [(1 / 6, ["polarity"]), (2 / 6, [])])
def test_peaks_that_point_up_in_a_part_of_the_night_count(share, found, sleepers, tmp_path: Path, examine) -> None:
    night = plant(
        sleepers[0], tmp_path / "n.edf", {"ECG": lambda x: np.where(np.arange(len(x)) < share * len(x), x, -x)}
    )
    findings, _ = examine(night)
    assert [f["code"] for f in findings] == found
    assert [f["figures"]["upward"] for f in findings] == [pytest.approx(share, abs=0.02) for _ in found]


def test_markers_of_lights_within_the_night(tmp_path: Path, examine) -> None:
    marks = [(60, "Lights off"), (900, "Lights on"), (960, "Lights off"), (1790, "Lights on")]
    write_night(tmp_path / "n.edf", seconds=1800, stages="W12R" * 15, events=[(t, 1, text) for t, text in marks])
    assert "lights" not in {f["code"] for f in examine(tmp_path / "n.edf")[0]}
    marks = [(300, "Lights off"), (900, "Lights on"), (960, "Lights off"), (1500, "Lights on")]
    write_night(tmp_path / "n.edf", seconds=1800, stages="W12R" * 15, events=[(t, 1, text) for t, text in marks])
    figures = [f["figures"] for f in examine(tmp_path / "n.edf")[0] if f["code"] == "lights"]
    assert figures == [{"onset_s": 300, "seconds": 300}, {"onset_s": 1500, "seconds": 300}]


def test_minutes_that_were_read_twice_count_once(tmp_path: Path, examine) -> None:
    write_night(tmp_path / "n.edf", seconds=150, stages="W12RW")
    examine(tmp_path / "n.edf")
    assert json.loads((tmp_path / "report.json").read_text())["files"][0]["minutes_read"] == 2.5


HEADERS = {
    "uV called mV": (EEG, {"unit": "mV"}, "uV"),
    "uV called V": (EEG, {"unit": "V"}, "uV"),
    "no unit": (EEG, {"unit": ""}, "uV"),
    "an unknown unit": (EEG, {"unit": "bits"}, "uV"),
    "mV called uV": ("ECG", {"unit": "uV"}, "mV"),
    "V called uV": ("ECG", {"unit": "uV", "physical minimum": "-.008", "physical maximum": ".008"}, "V"),
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_wrong_unit_is_found_with_the_one_that_fits(name: str, sleepers, tmp_path: Path, examine) -> None:
    channel, fields, fits = HEADERS[name]
    night = plant(sleepers[0], tmp_path / "night.edf", header={channel: fields})
    findings, _ = examine(night)
    assert codes(findings) == [("warning", "unit", channel)]
    assert findings[0]["figures"]["fits"] == fits
    # what is suggested mends it
    assert json.dumps({"night.edf": {channel: {"unit": fits}}}) in findings[0]["action"]
    (tmp_path / "o.json").write_text(json.dumps({"night.edf": {channel: {"unit": fits}}}))
    assert examine(night, "--overrides", tmp_path / "o.json")[0] == []


def test_a_range_that_contradicts_a_right_unit_is_found(sleepers: list[Path], tmp_path: Path, examine) -> None:
    # the digits of the range are those of the converter, but the samples are plausible in the stated unit
    fields = {"physical minimum": -1200, "physical maximum": 1200}
    night = plant(sleepers[0], tmp_path / "night.edf", {"ECG": lambda x: x / 150}, {"ECG": fields})
    findings, _ = examine(night)
    assert [f["code"] for f in findings] == ["unit"]
    assert "contradicts its unit mV" in findings[0]["text"]


def test_saturation_as_a_fraction(sleepers: list[Path], tmp_path: Path, examine) -> None:
    night = plant(
        sleepers[0], tmp_path / "night.edf", header={"SpO2": {"physical minimum": 0, "physical maximum": 1, "unit": ""}}
    )
    findings, _ = examine(night)
    assert codes(findings) == [("warning", "level", "SpO2")]
    (tmp_path / "o.json").write_text(json.dumps({"night.edf": {"SpO2": {"unit": "%", "scale": 100}}}))
    assert json.loads(findings[0]["action"].partition("--overrides ")[2]) == {
        "night.edf": {"SpO2": {"unit": "%", "scale": 100}}
    }
    assert examine(night, "--overrides", tmp_path / "o.json")[0] == []


def test_channels_under_wrong_names(sleepers: list[Path], tmp_path: Path, examine) -> None:
    ecg = samples_of(sleepers[0], "ECG")
    eeg = samples_of(sleepers[0], EEG)
    night = plant(
        sleepers[0],
        tmp_path / "night.edf",
        {EEG: lambda x: ecg[::2][: len(x)], "ECG": lambda x: 1.3 * np.repeat(eeg, 2)[: len(x)]},
    )
    findings, _ = examine(night)
    assert codes(findings) == [("warning", "wrong_kind", EEG), ("warning", "wrong_kind", "ECG")]
    assert "shows heartbeats" in findings[0]["text"]
    assert "shows no heartbeats" in findings[1]["text"]


def test_the_hearts_artefact_in_the_chin_is_not_taken_for_an_ecg(sleepers: list[Path], tmp_path: Path, examine) -> None:
    label = next(s.label for s in read_recording(sleepers[0]).signals if "chin" in s.label.lower())
    fs_hz = {s.label: s.fs_hz for s in read_recording(sleepers[0]).signals}
    ecg = samples_of(sleepers[0], "ECG")

    def with_artefact(x: np.ndarray) -> np.ndarray:
        at = np.arange(len(x)) / float(fs_hz[label])
        return 0.05 * x + np.interp(at, np.arange(len(ecg)) / float(fs_hz["ECG"]), ecg)

    findings, _ = examine(plant(sleepers[0], tmp_path / "night.edf", {label: with_artefact}))
    assert codes(findings) == [("note", "wrong_kind", label)]
    assert findings[0]["text"].endswith("as ECG does: an artefact of the heart")
    assert findings[0]["action"] == ""
    # Without heartbeats in the ECG the plugs may have been exchanged.
    eeg = samples_of(sleepers[0], EEG)
    exchanged = {label: with_artefact, "ECG": lambda x: 1.3 * np.repeat(eeg, 2)[: len(x)]}
    findings, _ = examine(plant(sleepers[0], tmp_path / "night.edf", exchanged))
    assert ("warning", "wrong_kind", label) in codes(findings)
    assert any('"alias": "ECG"' in f["action"] for f in findings)


@pytest.mark.parametrize("rates_hz", [(10, 32), (32, 10), (25, 16)])
@pytest.mark.parametrize("sign", [1, -1])
def test_belts_at_two_rates_are_compared(rates_hz: tuple[int, int], sign: int, tmp_path: Path, examine) -> None:
    rng = np.random.default_rng(0)
    seconds = 300
    phase = np.cumsum(rng.uniform(0.15, 0.35, seconds * 160)) / 160
    channels = [Channel("C3-M2", rng.integers(-900, 900, (seconds, 100)))]
    for label, fs, way in (("Thor", rates_hz[0], 1), ("Abdo", rates_hz[1], sign)):
        at = np.interp(np.arange(seconds * fs) / fs, np.arange(phase.size) / 160, phase)
        values = way * 8000 * np.sin(2 * np.pi * at) + rng.normal(0, 300, at.size)
        channels.append(Channel(label, np.rint(values).astype(np.int64).reshape(seconds, fs)))
    findings, _ = examine(write_edf(tmp_path / "n.edf", channels))
    assert [f["channel"] for f in findings if f["code"] == "belts"] == ([] if sign == 1 else ["Thor"])


def test_one_channel_twice(sleepers: list[Path], tmp_path: Path, examine) -> None:
    eeg = samples_of(sleepers[0], EEG)
    night = plant(sleepers[0], tmp_path / "night.edf", {"O2-M1": lambda x: eeg})
    findings, _ = examine(night)
    assert codes(findings) == [("warning", "duplicate_channel", EEG)]
    assert findings[0]["figures"]["channels"] == [EEG, "O2-M1"]


def test_one_label_twice(sleepers: list[Path], tmp_path: Path, examine) -> None:
    night = plant(sleepers[0], tmp_path / "night.edf", header={"O2-M1": {"label": EEG}})
    findings, _ = examine(night)
    assert ("note", "duplicate_label", EEG) in codes(findings)
    assert {f["code"] for f in findings} == {"duplicate_label", "remark", "unused_label"}


def test_an_envelope_is_no_waveform(tmp_path: Path, examine) -> None:
    write_night(tmp_path / "night.edf", seconds=240, leads=[*LEADS, Lead("Chin EMG", 1)], stages="W12RW12R")
    findings, _ = examine(tmp_path / "night.edf")
    assert ("warning", "slow", "Chin EMG") in codes(findings)
    assert [f for f in findings if f["code"] == "unit" and f["channel"] == "Chin EMG"] == []


# ------------------------------------------------------------------------------------------------------------- nights


@pytest.mark.parametrize(
    ("code", "severity", "options"),
    [
        ("no_scoring", "warning", {"stages": ""}),
        ("no_stages", "warning", {"stages": "", "events": [(35, 20, "Hypopnea")]}),
        ("unscored_lead_in", "note", {"stages": "W12RW12R", "first_stage_s": 150}),
        ("unscored_tail", "note", {"stages": "W12RWWRR"}),
        ("scoring_beyond", "warning", {"stages": "W12R" * 6}),
        ("mostly_unscored", "warning", {"stages": "-----------WW"}),
        ("lights", "note", {"stages": "W12R" * 4, "events": [(150, 1, "Lights Off")]}),
        ("lights", "note", {"stages": "W12R" * 4, "events": [(300, 0, "lights on")]}),
        ("missing_modality", "warning", {"stages": "W12R" * 4, "leads": LEADS[:4]}),
        ("missing_slot", "note", {"stages": "W12R" * 4}),
        ("remark", "note", {"stages": "W12R" * 4, "events": [(3000, 20, "Hypopnea")]}),
        ("long_events", "warning", {"stages": "W12R" * 4, "events": [(60, 301, "Hypopnea")]}),
    ],
)
def test_what_is_doubtful_about_a_night(code: str, severity: str, options: dict, tmp_path: Path, examine) -> None:
    write_night(tmp_path / "night.edf", seconds=480, **options)
    findings, _ = examine(tmp_path / "night.edf", "--montage", "aasm")
    assert (severity, code) in {(f["severity"], f["code"]) for f in findings}
    # a night without that defect does not have it
    brain = ["F4-M1", "C4-M1", "O2-M1", "F3-M2", "C3-M2", "O1-M2", "E1", "E2", "Chin"]
    leads = [Lead(name) for name in [*brain, "ECG", "Flow", "NPress", "Chest", "Abd"]]
    leads += [Lead("Snore"), Lead("SpO2", 1, "%", 100), Lead("Pulse", 1, "bpm", 100)]
    write_night(tmp_path / "other.edf", seconds=480, stages="W12R" * 4, leads=leads)
    findings, _ = examine(tmp_path / "other.edf", "--montage", "aasm")
    assert code not in {f["code"] for f in findings}


def test_figures_of_the_scoring(tmp_path: Path, examine) -> None:
    write_night(tmp_path / "n.edf", seconds=480, stages="W" * 4, first_stage_s=180, events=[(240, 1, "Lights off")])
    figures = {f["code"]: f["figures"] for f in examine(tmp_path / "n.edf")[0]}
    assert figures["unscored_lead_in"] == {"seconds": 180}
    assert figures["unscored_tail"] == {"seconds": 180}
    assert figures["mostly_unscored"] == {"share": 0.75}
    assert "lights" not in figures  # a minute of stages before lights off is within the tolerance
    write_night(tmp_path / "n.edf", seconds=480, stages="W" * 20)
    figures = {f["code"]: f["figures"] for f in examine(tmp_path / "n.edf")[0]}
    assert figures["scoring_beyond"] == {"seconds": 120, "epochs": 4}
    for first_s in (9000, -9000):  # stages that all lie elsewhere leave no lead-in and no tail
        write_night(tmp_path / "n.edf", seconds=480, stages="")
        rows = [f"{first_s + 30 * i},30,N2" for i in range(20)]
        (tmp_path / "n.csv").write_text("\n".join(["onset_s,duration_s,stage", *rows]))
        figures = {f["code"]: f["figures"] for f in examine(tmp_path / "n.edf")[0]}
        assert figures["scoring_beyond"]["epochs"] == 20
        assert not figures.keys() & {"unscored_lead_in", "unscored_tail"}


def test_a_scoring_with_another_start(tmp_path: Path, examine) -> None:
    write_night(tmp_path / "n.edf", seconds=480, stages="")
    source = write_night
    source(tmp_path / "n-hypnogram.edf", seconds=480, stages="W12R" * 4, leads=[Lead("C3-M2")])
    start = read_recording(tmp_path / "n.edf").start
    content = bytearray((tmp_path / "n-hypnogram.edf").read_bytes())
    content[168:184] = start.strftime("%d.%m.%y%H.%M.%S").encode()
    (tmp_path / "n-hypnogram.edf").write_bytes(content)
    assert "scoring_start" not in {f["code"] for f in examine(tmp_path / "n.edf")[0]}
    from datetime import timedelta

    content[168:184] = (start + timedelta(seconds=60)).strftime("%d.%m.%y%H.%M.%S").encode()
    (tmp_path / "n-hypnogram.edf").write_bytes(content)
    found = [f for f in examine(tmp_path / "n.edf")[0] if f["code"] == "scoring_start"]
    assert [f["figures"] for f in found] == [{"seconds": 60}]


def test_a_copy_that_was_interrupted(tmp_path: Path, examine) -> None:
    path = tmp_path / "n.edf"
    write_night(path, seconds=480, stages="W12R" * 4)
    whole = path.read_bytes()
    recording = read_recording(path)
    kept = recording.header_bytes + recording.record_bytes * recording.n_records * 5 // 8 + 9  # and part of a record
    path.write_bytes(whole[:kept])
    findings, said = examine(path)
    (found,) = (f for f in findings if f["code"] == "incomplete")
    assert found["severity"] == "warning"
    assert found["text"] == "the last 180 s of 480 s are missing: probably an incomplete copy"
    assert found["figures"] == {"seconds": 180, "bytes": len(whole)}
    assert f"whole it has {len(whole)} bytes" in found["action"]
    assert not any("promises" in f["text"] for f in findings), "it is said once"
    assert last_json(said)["clips"] == 10
    # A recorder that was stopped without writing the count is another matter.
    path.write_bytes(whole[:236] + b"-1".ljust(8) + whole[244:kept])
    assert "incomplete" not in {f["code"] for f in examine(path)[0]}


def test_gaps_of_a_discontinuous_file(tmp_path: Path, examine) -> None:
    rng = np.random.default_rng(0)
    onsets = [*range(60), *range(100, 160)]
    more = {0: b"+0\x15120\x14Sleep stage W\x14\0"}
    channels = [
        Channel("C3-M2", rng.integers(-9000, 9000, (120, 100))),
        annotation_channel(starts([str(t) for t in onsets], more), 30),
    ]
    write_edf(tmp_path / "d.edf", channels, reserved="EDF+D")
    findings, _ = examine(tmp_path / "d.edf")
    assert [f["figures"] for f in findings if f["code"] == "gaps"] == [{"gaps": 1, "seconds": 40}]


def test_cuts_for_a_drifting_clock_are_no_gaps(tmp_path: Path, examine) -> None:
    rng = np.random.default_rng(0)
    # Two cuts at half a second each, and one true gap of a minute.
    for name, gap_s, expected in (("drift", 0, []), ("both", 60, [1])):
        onsets = [f"{1.0005 * k + (gap_s if k >= 2200 else 0):.4f}" for k in range(2500)]
        channels = [
            Channel("C3-M2", rng.integers(-9000, 9000, (2500, 10))),
            annotation_channel(starts(onsets, {0: b"+0\x15120\x14Sleep stage W\x14\0"}), 40),
        ]
        path = tmp_path / f"{name}.edf"
        write_edf(path, channels, reserved="EDF+D")
        figures = [f["figures"] for f in examine(path)[0] if f["code"] == "gaps"]
        assert [f["gaps"] for f in figures] == expected
        assert all(59 < f["seconds"] < 61 for f in figures)


def test_what_cannot_be_ingested_is_an_error_and_stands_first(sleepers, tmp_path: Path, examine) -> None:
    plant(sleepers[0], tmp_path / "in" / "b.edf", {"ECG": lambda x: -x})
    (tmp_path / "in" / "c.edf").write_bytes(b"<html>")
    findings, text = examine(tmp_path / "in", status=1)
    assert codes(findings) == [("error", "unreadable", ""), ("warning", "polarity", "ECG")]
    lines = text[text.index("findings:") :].splitlines()
    assert lines[0] == "findings: 1 error, 1 warning"
    assert [line.split()[0] for line in lines[1:3]] == ["error", "warning"]


# ------------------------------------------------------------------------------------------------------------ cohorts


def test_recordings_that_are_one(sleepers: list[Path], tmp_path: Path, examine) -> None:
    plant(sleepers[0], tmp_path / "in" / "a.edf")
    # another name and patient, as after a second anonymisation: the samples tell
    plant(sleepers[0], tmp_path / "in" / "b.edf", file_header={8: b"SOMEBODY ELSE"})
    plant(sleepers[1], tmp_path / "in" / "c.edf")
    findings, _ = examine(tmp_path / "in")
    assert codes(findings) == [("warning", "identical", "")]
    assert [Path(p).name for p in findings[0]["paths"]] == ["a.edf", "b.edf"]
    assert findings[0]["figures"]["subjects"] == ["a", "b"]
    # the same windows, but not the same recording from beginning to end
    plant(sleepers[0], tmp_path / "in" / "b.edf", {EEG: lambda x: np.concatenate([x[:-1], [x[-1] + 1]])})
    assert codes(examine(tmp_path / "in")[0]) == [("warning", "same_night", "")]
    # the copy goes that no table names, whatever it is called
    plant(sleepers[0], tmp_path / "in" / "b.edf")
    (tmp_path / "in" / "participants.csv").write_text("recording,subject\nb.edf,B\nc.edf,C\n")
    assert '"a.edf": "exclude"' in examine(tmp_path / "in")[0][0]["action"]
    (tmp_path / "in" / "participants.csv").unlink()
    # left out as suggested
    plant(sleepers[0], tmp_path / "in" / "b.edf")
    (tmp_path / "o.json").write_text('{"b.edf": "exclude"}')
    assert examine(tmp_path / "in", "--overrides", tmp_path / "o.json")[0] == []


def test_a_copy_that_was_cut_short(sleepers: list[Path], tmp_path: Path, examine) -> None:
    plant(sleepers[0], tmp_path / "in" / "NK_0815.edf")
    plant(sleepers[1], tmp_path / "in" / "other.edf")
    recording, content = read_recording(sleepers[0]), bytearray(sleepers[0].read_bytes())
    n = recording.n_records * 6 // 10
    content[236:244] = str(n).encode().ljust(8)
    part = tmp_path / "in" / "NK_0815 (1).edf"
    part.write_bytes(content[: recording.header_bytes + n * recording.record_bytes])
    (finding,) = (f for f in examine(tmp_path / "in")[0] if f["code"] == "identical")
    assert [Path(p).name for p in finding["paths"]] == ["NK_0815.edf", "NK_0815 (1).edf"]
    assert '"NK_0815 (1).edf": "exclude"' in finding["action"]
    assert finding["figures"]["subjects"] == ["NK_0815", "NK_0815 (1)"]
    # one that begins alike and goes on otherwise is no copy
    content[recording.header_bytes + (n - 1) * recording.record_bytes] ^= 1
    part.write_bytes(content[: recording.header_bytes + n * recording.record_bytes])
    assert [f for f in examine(tmp_path / "in")[0] if f["code"] == "identical"] == []


def as_bdf(
    source: Path, target: Path, finer: int = 1, record_s: int = 10, labels: dict | None = None, **fields
) -> Path:
    """Write a recording as BDF, in records of another length, with steps that are finer and rounded again by an EDF."""
    recording, rng, channels = read_recording(source), np.random.default_rng(0), []
    n = recording.n_records * int(recording.record_s) // record_s
    for signal in recording.signals:
        x = samples_of(source, signal.label)
        x = x * finer + rng.integers(-(finer // 2), finer - finer // 2, x.size)
        ends = {"physical_min": -(2**23), "physical_max": 2**23 - 1}
        limits = {name: end * signal.gain / finer + signal.offset for name, end in ends.items()}
        label = (labels or {}).get(signal.label, signal.label)
        per_record = int(signal.fs_hz * record_s)
        about = {"unit": signal.unit, **{name: f"{value:.8g}"[:8] for name, value in limits.items()}}
        channels.append(Channel(label, x[: n * per_record].reshape(n, -1), about))
    return write_edf(target, channels, bdf=True, record_s=record_s, **fields)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"finer": 8}, "they all start at 2020"),
        ({"finer": 100, "record_s": 1, "patient": "P-4711"}, "they all start at 2020"),
        ({"finer": 100, "date": "01.01.85", "time": "00.00.00", "labels": {EEG: "C4"}}, "their starts are 1985"),
    ],
)
def test_one_night_as_edf_and_as_bdf(options: dict, said: str, sleepers: list[Path], tmp_path: Path, examine) -> None:
    start = {"date": "02.03.20", "time": "22.00.00"}
    header = {8: b"P-4711".ljust(80), 168: b"02.03.2022.00.00"}
    plant(sleepers[0], tmp_path / "in" / "0815.edf", file_header=header)
    plant(sleepers[1], tmp_path / "in" / "other.edf", file_header={168: b"02.03.2022.00.00"})
    as_bdf(sleepers[0], tmp_path / "in" / "export.bdf", **(start | options))
    found = [f for f in examine(tmp_path / "in")[0] if not f["channel"] and f["severity"] == "warning"]
    # the BDF has no annotations; one patient, in the second case, is no finding of its own
    assert codes(found) == [("warning", "no_scoring", ""), ("warning", "same_night", "")]
    found.pop(0)
    assert [Path(p).name for p in found[0]["paths"]] == ["0815.edf", "export.bdf"]
    assert said in found[0]["text"]
    assert '{"export.bdf": "exclude"}' in found[0]["action"]
    assert found[0]["figures"]["subjects"] == ["0815", "export"]
    assert found[0]["figures"]["shared"] > 0.6 * found[0]["figures"]["compared"] > 20


def test_nights_of_a_cohort_whose_headers_state_one_date(tmp_path: Path, examine) -> None:
    """Equal headers, lengths and channels, a common calibration in the first minute, and a sensor's ramp throughout."""
    folder = tmp_path / "edf"
    assert simulate.cli([str(folder), "--subjects", "6", "--hours", "0.1", "--seed", "11", "--workers", "1"]) == 0
    square = tone(0.7, 3000, 60 * FS).round()

    def calibrated(x: np.ndarray) -> np.ndarray:
        out = x.copy()
        out[: 60 * FS] = square
        return out

    eeg = {s.label for s in read_recording(next(folder.glob("*.edf"))).signals if s.label.endswith(("M1", "M2"))}
    changes = {**dict.fromkeys(sorted(eeg), calibrated), "Flow": lambda x: np.arange(len(x)) % 997 * 20}
    paths = [
        plant(
            path,
            tmp_path / "in" / f"n{i}.edf",
            changes,
            file_header={8: b"X X X X".ljust(80), 168: b"01.01.8500.00.00"},
        )
        for i, path in enumerate(sorted(folder.glob("*.edf")))
    ]
    assert len(eeg) >= 4
    findings, _ = examine(*paths)
    assert [f for f in findings if f["code"] in ("same_night", "identical", "perhaps_one_person")] == []


def test_extremes_that_tell_nothing() -> None:
    t = np.arange(7680)
    noise = np.random.default_rng(1).integers(-200, 200, t.size)
    assert extremes_of(0, noise + t, 128) is None, "a drift"
    assert extremes_of(0, noise // 60, 128) is None, "too coarse"
    assert extremes_of(0, noise[:180], 3) is None, "too slow"
    noise[[4000, 900]] = 900, -900
    assert extremes_of(0, noise, 128) == extremes_of(0, -noise, 128) == 900 << 32 | 4000
    assert extremes_of(10, noise, 128) == 910 << 32 | 4010
    assert extremes_of(0, noise[801:5000], 100) is None, "too near the window's beginning"


def test_extremes_that_nights_share() -> None:
    rng = np.random.default_rng(2)
    night = [rng.integers(0, 2**60, 100).tolist() for _ in range(2000)]
    night[7][:30] = night[1500][:30]
    night[8][:24] = night[9][:24]
    few = [*night[3][:6], 5], [*night[3][:6], None, 5]
    packs = [packed(pairs) for pairs in (*night, [], *few, night[3][:4])]
    assert shared_extremes(packs) == {
        (3, 2001): (6, 7), (3, 2002): (6, 7), (2001, 2002): (7, 7), (7, 1500): (30, 100)
    }  # fmt: skip
    assert shared_extremes([]) == shared_extremes([b"", b""]) == {}
    # what a hundred nights share is compared between neighbours only, and copies of one night are all found
    assert list(shared_extremes([packs[0]] * 100)) == [(i, i + 1) for i in range(99)]


def test_nights_whose_headers_name_one_patient(sleepers: list[Path], tmp_path: Path, examine) -> None:
    def cohort(*patients: str) -> list[dict]:
        shutil.rmtree(tmp_path / "in", ignore_errors=True)
        for i, patient in enumerate(patients):
            another_night(sleepers, i, tmp_path / "in" / f"{i}.edf", file_header={8: patient.encode().ljust(80)})
        return examine(tmp_path / "in", *tables)[0]

    tables: tuple[object, ...] = ()
    code = "P-4711 X X X"
    findings = cohort(code, "p-4711 F 02-MAY-1951 Ana", "X X X X")
    assert codes(findings) == [("warning", "perhaps_one_person", "")]
    assert [Path(p).name for p in findings[0]["paths"]] == ["0.edf", "1.edf"]
    assert "4711" not in findings[0]["text"], "codes and names of patients stay in the recordings"
    assert cohort("X X X X", "X X X X", "") == []
    assert cohort("X F X Female_33yr", "X F X Female_33yr") == []
    assert cohort(*[code] * 3, "X X X X", "X X X X") == [], "the code of most is that of the study"
    # a table says whose they are; one that repeats the names does not
    table = tmp_path / "p.csv"
    tables = ("--participants", table)
    table.write_text("recording,subject\n0.edf,Ana\n1.edf,Ana\n")
    assert cohort(code, code) == []
    table.write_text("recording,subject\n0.edf,Ana\n1.edf,Eva\n")
    assert cohort(code, code) == []
    table.write_text("recording,subject\n0.edf,0\n1.edf,1\n")
    assert [f["code"] for f in cohort(code, code)] == ["perhaps_one_person"]


@pytest.mark.parametrize(
    ("file_format", "field", "is_somebody"),
    [
        ("EDF+C", "MCH-0234567 F 02-MAY-1951 Haagse_Harry", True),
        ("EDF+C", "X F 02-MAY-1951 Haagse_Harry", False),  # by the code alone: names are left as they were written
        ("BDF+C", "0000 X X X", False),
        ("EDF", "Ana Maria Beispiel", True),
        ("EDF", "S001", True),
        ("EDF", "", False),
        ("EDF", "anonymous", False),
        ("EDF", "M", False),
        ("EDF", "Female 33 yr", False),
        ("EDF", "psg", False),
    ],
)
def test_which_patient_fields_name_somebody(file_format: str, field: str, is_somebody: bool) -> None:
    assert bool(patient_key(file_format, field)) == is_somebody
    assert patient_key(file_format, field) == patient_key(file_format, f" {field.upper()}  ")


def test_file_names_in_several_folders(sleepers: list[Path], tmp_path: Path, examine) -> None:
    for i, site in enumerate("ab"):
        plant(sleepers[i], tmp_path / "in" / site / "psg.edf")
    findings, text = examine(tmp_path / "in")
    assert codes(findings) == [("warning", "shared_name", "")]
    assert "1 file name occurs in several folders (such as psg, in 2; no table names them)" in text
    table = tmp_path / "p.csv"
    table.write_text("recording,subject\npsg,X\n")
    findings, text = examine(tmp_path / "in", "--participants", table)
    assert codes(findings) == [("warning", "shared_name", "")]
    assert "the table names them by the file name alone" in text
    table.write_text("recording,subject\na/psg,X\nb/psg,Y\n")
    assert examine(tmp_path / "in", "--participants", table)[0] == []


def test_mixed_montages_and_rates(sleepers: list[Path], tmp_path: Path, examine) -> None:
    for i in range(3):
        another_night(sleepers, i, tmp_path / "in" / f"n{i}.edf")
    another_night(sleepers, 9, tmp_path / "in" / "x.edf", header={"O2-M1": {"label": "Light"}})
    findings, text = examine(tmp_path / "in")
    assert codes(findings) == [
        ("note", "missing_slot", "O2-M1"),
        ("note", "mixed_montages", ""),
        ("note", "unused_label", ""),
    ]
    groups = next(f for f in findings if f["code"] == "mixed_montages")["figures"]["groups"]
    assert [group["nights"] for group in groups] == [3, 1]
    assert "1 (x.edf) lack O2-M1" in text
    assert "Light" in next(f for f in findings if f["code"] == "missing_slot")["action"]


@pytest.mark.parametrize(("n_mesa", "code", "said"), [(3, "eeg_apart", "EEG3"), (2, "eeg_lost", "EEG3")])
def test_nights_of_two_laboratories_without_an_eeg_in_common(
    n_mesa, code, said, tmp_path: Path, examine, said_by_preprocess
) -> None:
    (tmp_path / "in").mkdir()
    for i in range(3):
        write_night(tmp_path / "in" / f"s{i}.edf", leads=(Lead("EEG"), Lead("ECG", 200, "mV", 5.0)), seed=i)
    for i in range(n_mesa):
        leads = (Lead("EEG3"), Lead("EEG1"), Lead("ECG", 200, "mV", 5.0))
        write_night(tmp_path / "in" / f"m{i}.edf", leads=leads, seed=10 + i)
    findings, text = examine(tmp_path / "in")
    (found,) = [f for f in findings if f["code"] in ("eeg_apart", "eeg_lost")]
    assert (found["severity"], found["code"]) == ("warning", code)
    assert found["action"].startswith("--montage aasm")
    assert said in found["text"]
    assert "m0.edf" in found["text"]
    assert "--montage aasm" in next(line for line in text.splitlines() if code in line)
    assert not any('{"EEG1": {"alias"' in f["action"] for f in findings)
    if code == "eeg_lost":
        assert any('{"EEG3": {"alias": "EEG"}}' in f["action"] for f in findings)
    findings, _ = examine(tmp_path / "in", "--montage", "aasm")
    assert not [f for f in findings if f["code"] in ("eeg_apart", "eeg_lost")]
    notices = said_by_preprocess(tmp_path / "in", tmp_path / "auto")
    assert any(f"notice: {found['text']}; {found['action']} (with --overwrite" in notice for notice in notices)
    aasm = said_by_preprocess(tmp_path / "in", tmp_path / "aasm", "--montage", "aasm")
    assert not [notice for notice in aasm if "without EEG" in notice or "groups" in notice]


def test_nights_that_are_added_and_whose_eeg_is_lost(tmp_path: Path, said_by_preprocess) -> None:
    for folder, label in (("first", "EEG"), ("second", "EEG3")):
        (tmp_path / folder).mkdir()
        for i in range(2):
            leads = (Lead(label), Lead("ECG", 200, "mV", 5.0))
            write_night(tmp_path / folder / f"{folder}{i}.edf", leads=leads, seed=len(label) + i)
    assert not [n for n in said_by_preprocess(tmp_path / "first", tmp_path / "store") if "without EEG" in n]
    notices = said_by_preprocess(tmp_path / "second", tmp_path / "store")
    assert [n for n in notices if n.startswith("notice: 2 nights go without EEG, though they have EEG3: second0.edf")]
    assert not [n for n in said_by_preprocess(tmp_path / "second", tmp_path / "store") if "without EEG" in n]
    # An electrode that no montage of this kind asks for is lost in all nights.
    paper = said_by_preprocess(tmp_path / "second", tmp_path / "paper", "--montage", "paper")
    (lost,) = [n for n in paper if "without EEG" in n]
    assert "--montage aasm" not in lost


def test_electrodes_against_a_common_reference(tmp_path: Path, examine, said_by_preprocess) -> None:
    leads = [Lead(label) for label in ("C3", "C4", "A1", "A2", "L Chin", "R Chin", "ECG L", "ECG R")]
    write_night(tmp_path / "n.edf", leads=leads)
    findings, text = examine(tmp_path / "n.edf")
    (found,) = [f for f in findings if f["code"] == "common_reference"]
    assert found["severity"] == "warning"
    assert "--montage aasm derives" in found["action"]
    assert "common_reference" in text
    assert not [f for f in examine(tmp_path / "n.edf", "--montage", "aasm")[0] if f["code"] == "common_reference"]
    notices = said_by_preprocess(tmp_path / "n.edf", tmp_path / "auto")
    assert any(f"notice: {found['text']}; {found['action']}" in notice for notice in notices)
    aasm = said_by_preprocess(tmp_path / "n.edf", tmp_path / "aasm", "--montage", "aasm")
    assert not [notice for notice in aasm if "common reference" in notice]
    write_night(tmp_path / "d.edf", leads=[Lead("C3-A2"), Lead("C4-A1"), Lead("ECG")])
    assert not [f for f in examine(tmp_path / "d.edf")[0] if f["code"] == "common_reference"]


def test_a_wrong_unit_of_one_night_has_one_finding_with_the_unit_that_fits(sleepers, tmp_path: Path, examine) -> None:
    for i in range(6):
        header = {"Chin EMG": {"unit": "mV"}} if i == 5 else {}
        plant(sleepers[0], tmp_path / "in" / f"n{i}.edf", {"Chin EMG": lambda x, i=i: np.roll(x, i)}, header=header)
    findings, _ = examine(tmp_path / "in")
    (found,) = [f for f in findings if f["channel"] == "Chin EMG" and f["severity"] == "warning"]
    assert found["code"] == "unit"
    assert '"unit": "uV"' in found["action"]


def test_an_amplitude_that_sticks_out_of_the_cohort(sleepers: list[Path], tmp_path: Path, examine) -> None:
    for i in range(6):
        gain = 1 / 45 if i == 5 else 1.0  # still plausible by itself
        another_night(sleepers, 2 * i, tmp_path / "in" / f"n{i}.edf", {"Chin EMG": lambda x, g=gain: x * g})
    findings, _ = examine(tmp_path / "in")
    assert codes(findings) == [("warning", "outlier", "Chin EMG")]
    assert Path(findings[0]["paths"][0]).name == "n5.edf"
    assert findings[0]["figures"]["ratio"] == pytest.approx(1 / 45, rel=0.05)


def test_a_finding_of_many_nights_takes_one_line(sleepers: list[Path], tmp_path: Path, examine) -> None:
    for i in range(5):
        another_night(sleepers, i, tmp_path / "in" / f"n{i}.edf", {"ECG": lambda x: -x})
    findings, text = examine(tmp_path / "in")
    assert [f["code"] for f in findings] == ["polarity"] * 5
    lines = [line for line in text.splitlines() if line.strip().startswith("warning")]
    assert len(lines) == 1
    assert "5 recordings, such as n0.edf  ECG: " in lines[0]


# -------------------------------------------------------------------------------------------------------- corrections


def test_corrections_are_applied_and_recorded(sleepers: list[Path], tmp_path: Path, capsys) -> None:
    night = plant(sleepers[0], tmp_path / "in" / "night.edf", {"ECG": lambda x: -x}, {EEG: {"label": "Brain 1"}})
    other = plant(sleepers[1], tmp_path / "in" / "other.edf")
    overrides = tmp_path / "o.json"
    overrides.write_text(
        json.dumps(
            {"*.edf": {"snore": {"exclude": True}}, "in/night.edf": {"ECG": {"invert": True}, "#1": {"alias": EEG}}}
        )
    )
    arguments = [str(tmp_path / "in"), str(tmp_path / "store"), "--workers", "1", "--backend", "threading"]
    assert cli([*arguments, "--overrides", str(overrides)]) == 0
    store = ClipStore(tmp_path / "store", verify=True)
    slots = [slot.name for slot in store.slots]
    assert "Snore" not in slots
    assert EEG in slots
    ecg = slots.index("ECG")
    record = store.record(0)
    true = samples_of(sleepers[0], "ECG")
    gain, offset = (record["channels"][ecg][name] for name in ("gain", "offset"))
    clean = 16e3 / 65535 * (true.astype(float) + 32768) - 8000
    np.testing.assert_allclose(gain * store.run(0, ecg, 0) + offset, clean, atol=0.3)  # one step of the integers
    assert {c["label"]: c for c in record["corrections"]} == {
        "Snore": {"index": 11, "label": "Snore", "exclude": True},
        "ECG": {"index": 6, "label": "ECG", "invert": True},
        "Brain 1": {"index": 1, "label": "Brain 1", "alias": EEG},
    }
    assert [c["label"] for c in store.record(1)["corrections"]] == ["Snore"]
    # what no longer agrees is said, and made again when told, that night only
    before = contents(tmp_path / "store")
    overrides.write_text(json.dumps({"*.edf": {"Snore": {"exclude": True}}, "in/night.edf": {"#1": {"alias": EEG}}}))
    capsys.readouterr()
    assert cli([*arguments, "--overrides", str(overrides)]) == 1
    changed = last_json(capsys.readouterr().out)["changed"]
    assert {Path(c["path"]).name for c in changed} == {night.name, other.name}  # 'snore' was written otherwise
    assert contents(tmp_path / "store") == before
    assert cli([*arguments, "--overrides", str(overrides), "--overwrite"]) == 0
    np.testing.assert_array_equal(ClipStore(tmp_path / "store").run(0, ecg, 0), -true)
    gain = ClipStore(tmp_path / "store").record(0)["channels"][ecg]["gain"]
    assert math.copysign(1, gain) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[1]", "holds a list; expected"),
        ('{"a.edf": 3}', "'a.edf' has a number; expected channels"),
        ('{"a.edf": {}}', "expected channels"),
        ('{"": {"ECG": {"invert": true}}}', "is not a pattern of recordings"),
        ('{"a.edf": {"ECG": {"polarity": -1}}}', "has the key 'polarity'; choose from: alias"),
        ('{"a.edf": {"ECG": {}}}', "expected one or more of: alias"),
        ('{"a.edf": {"ECG": {"invert": 1}}}', "'invert' is 1; expected true or false"),
        ('{"a.edf": {"ECG": {"scale": 0}}}', "'scale' is 0; expected a number other than 0"),
        ('{"a.edf": {"ECG": {"unit": ""}}}', "'unit' is \"\"; expected a unit"),
        ('{"a.edf": {"ECG": {"unit": "uV"}, "ECG": {"unit": "mV"}}}', "names 'ECG' twice"),
    ],
)
def test_wrong_corrections_are_a_sentence(content: str, message: str, tmp_path: Path, capsys) -> None:
    write_night(tmp_path / "a.edf")
    (tmp_path / "o.json").write_text(content)
    assert cli([str(tmp_path / "a.edf"), str(tmp_path / "s"), "--overrides", str(tmp_path / "o.json")]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "s").exists()


def test_corrections_that_nothing_needs_are_said(tmp_path: Path, examine) -> None:
    write_night(tmp_path / "a.edf")
    (tmp_path / "o.json").write_text('{"*": {"Nothing": {"invert": true}}, "b.edf": "exclude"}')
    _, text = examine(tmp_path / "a.edf", "--overrides", tmp_path / "o.json")
    assert "--overrides names recordings or channels that no file has: 'b.edf', 'Nothing' of '*'" in text
    assert examine(tmp_path / "a.edf")[0] != []
    assert cli(["--inspect", str(tmp_path / "a.edf"), "--overrides", str(tmp_path / "none.json")]) == 1


def test_corrections_that_leave_a_recording_out_have_found_it(tmp_path: Path, capsys) -> None:
    for name in ("a.edf", "b.edf"):
        write_night(tmp_path / name)
    (tmp_path / "o.json").write_text('{"b.edf": "exclude", "c.edf": "exclude"}')
    for arguments in (
        ["--inspect", str(tmp_path)],
        [str(tmp_path / "a.edf"), str(tmp_path / "b.edf"), str(tmp_path / "s")],
    ):
        assert cli([*arguments, "--overrides", str(tmp_path / "o.json")]) == 0
        captured = capsys.readouterr()
        assert "--overrides names recordings or channels that no file has: 'c.edf'\n" in captured.out + captured.err


def test_corrections_themselves_are_no_name_of_a_file(tmp_path: Path, capsys) -> None:
    """As findings show them behind --overrides; long ones are more than a file's name may have."""
    write_night(tmp_path / "a.edf")
    for text in ('{"*": {"Nothing": {"invert": true}}}', json.dumps({"*": {"x" * 300: {"invert": True}}})):
        assert cli([str(tmp_path / "a.edf"), str(tmp_path / "store"), "--overrides", text]) == 1
        assert "is the corrections themselves; expected the name of a file that holds them" in capsys.readouterr().err
