"""The simulator: files that others read, the same bytes again, and every coupling measured in the channels."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
import os
import signal as os_signal
import subprocess
import sys
import time
from functools import lru_cache
from pathlib import Path

import edfio
import numpy as np
import pyedflib
import pytest
from called import last_json
from scipy import ndimage, signal

from sleepfm_fast import simulate
from sleepfm_fast.errors import SleepfmError
from sleepfm_fast.simulate import Config
from sleepfm_fast.simulator.card import name_prefix
from sleepfm_fast.simulator.physiology import FS_HIDDEN_HZ, Physiology
from sleepfm_fast.simulator.polysomnograph import Polysomnograph
from sleepfm_fast.simulator.sleeper import Couplings, Random, band_noise

RATES = {
    **dict.fromkeys(("F4-M1", "C4-M1", "O2-M1", "E1-M2", "E2-M2", "Chin EMG"), 128),
    "ECG": 256,
    **dict.fromkeys(("Flow", "Nasal Pressure", "Thor", "Abdo"), 32),
    "Snore": 128,
    **dict.fromkeys(("SpO2", "Pulse"), 1),
}
SCALP = {"F4-M1", "C4-M1", "O2-M1"}
ELECTRODES = SCALP | {"E1-M2", "E2-M2"}
BREATH = {"Flow", "Nasal Pressure", "Thor", "Abdo"}
AIR = BREATH | {"Snore"}
#   What a coupling changes directly, or through beats, breaths and arousals.
BEATS = ELECTRODES | BREATH | {"Chin EMG", "ECG", "Pulse"}
REACH = {
    "stage_eeg": ELECTRODES,
    "stage_eye_movements": {"E1-M2", "E2-M2"},
    "stage_muscle_tone": {"Chin EMG"},
    "stage_heart_rate": BEATS,
    "stage_breathing": BEATS | AIR,
    "stage_snoring": {"Snore", "Nasal Pressure", "Chin EMG"},
    "respiratory_sinus_arrhythmia": BEATS,
    "ecg_derived_respiration": {"ECG"},
    "pulse_oximeter": {"Pulse"},
    "cardiac_artefact": ELECTRODES | {"Chin EMG"},
    "cardioballistic": BREATH,
    "respiratory_artefact": ELECTRODES | {"Chin EMG"},
    "desaturation": {"SpO2"},
    "event_arousal": BEATS | AIR,
    "event_heart_rate": BEATS,
    "arousal_heart_rate": BEATS,
    "movement": BEATS | AIR,
    "traits": set(RATES),
}


def record(subject: int = 0, n_epochs: int = 120, seed: int = 0, **off: float):
    """Physiology and channels of one subject, with couplings set as named."""
    body = Physiology(Random(seed, subject), n_epochs, Couplings(**off))
    return body, {channel.label: channel for channel in Polysomnograph(body).channels()}


@lru_cache(maxsize=1)
def subjects_of_an_hour():
    return [record(i) for i in range(4)]


def digests(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    out = tmp_path_factory.mktemp("cohort") / "out"
    return out, simulate.main(Config(out, subjects=3, hours=0.5, seed=7, workers=1))


# ------------------------------------------------------------------------------------------------------------- files


def test_files_are_read_by_pyedflib_and_edfio(cohort):
    out, result = cohort
    assert result["recordings"] == result["written"] == 3
    for path in sorted(out.glob("*.edf")):
        with pyedflib.EdfReader(str(path)) as reader:
            assert dict(zip(reader.getSignalLabels(), reader.getSampleFrequencies(), strict=True)) == RATES
            assert reader.getFileDuration() == 1800
            assert reader.datarecord_duration == 1
            units = {h["label"]: h["dimension"] for h in reader.getSignalHeaders()}
            by_pyedflib = reader.readSignal(6)
        recording = edfio.read_edf(path)
        assert [s.label for s in recording.signals] == list(RATES)
        np.testing.assert_allclose(recording.signals[6].data, by_pyedflib, atol=1e-6)
        assert (units["F4-M1"], units["ECG"], units["SpO2"], units["Pulse"]) == ("uV", "mV", "%", "bpm")


def test_digital_steps_keep_the_simulated_signal(cohort):
    out, _ = cohort
    _, channels = record(1, 60, seed=7)
    with pyedflib.EdfReader(str(out / "sim-7-0001.edf")) as reader:
        for i, (label, channel) in enumerate(channels.items()):
            step = (channel.high - channel.low) / 65535
            clipped = np.clip(channel.samples, channel.low, channel.high)
            assert np.mean(clipped != channel.samples) < 1e-4, label
            np.testing.assert_allclose(reader.readSignal(i), clipped, atol=0.51 * step)


def test_stages_cover_the_night_and_every_subject_has_an_event(cohort):
    out, result = cohort
    n_events = 0
    for path in sorted(out.glob("*.edf")):
        with pyedflib.EdfReader(str(path)) as reader:
            onsets, durations, texts = reader.readAnnotations()
        stage = np.array([text.startswith("Sleep stage ") for text in texts])
        np.testing.assert_allclose(onsets[stage], np.concatenate(([0], np.cumsum(durations[stage])[:-1])))
        assert durations[stage].sum() == 1800
        assert not (durations[stage] % 30).any()
        assert set(texts[stage]) <= set(simulate.STAGE_TEXTS)
        event = np.array([text.endswith(("apnea", "Hypopnea")) for text in texts])
        assert event.sum() >= 1
        assert (durations[event] >= 10).all()
        assert (onsets[event] + durations[event] <= 1800).all()
        assert (np.diff(onsets) >= 0).all()
        n_events += event.sum()
    assert n_events == result["respiratory_events"]


def test_events_exist_even_in_two_minutes():
    for subject in range(40):
        body = Physiology(Random(3, subject), 4, Couplings())
        assert body.events
        assert all(e.onset_s >= 0 and e.onset_s + e.duration_s <= body.duration_s for e in body.events)


def test_participants_are_those_of_the_files(cohort):
    out, _ = cohort
    with (out / "participants.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["recording"] for row in rows] == [p.stem for p in sorted(out.glob("*.edf"))]
    for row in rows:
        with pyedflib.EdfReader(str(out / f"{row['recording']}.edf")) as reader:
            assert reader.getPatientCode() == row["subject"]
            assert reader.getPatientAdditional() == f"age_{row['age']}"
            assert reader.getSex() == {"M": "Male", "F": "Female"}[row["sex"]]
        assert 18 <= float(row["age"]) <= 85


# ---------------------------------------------------------------------------------------------------- reproducibility


def test_same_seed_same_bytes_and_workers_do_not_matter(cohort, tmp_path):
    out, _ = cohort
    simulate.main(Config(tmp_path / "again", subjects=3, hours=0.5, seed=7, workers=2))
    assert digests(out) == digests(tmp_path / "again")


def test_other_seeds_and_subjects_differ(cohort, tmp_path):
    out, _ = cohort
    simulate.main(Config(tmp_path / "other", subjects=1, hours=0.5, seed=8, workers=1))
    files = [digests(out)[f"sim-7-{i:04d}.edf"] for i in range(3)]
    assert len({*files, digests(tmp_path / "other")["sim-8-0000.edf"]}) == 4


def test_a_subject_does_not_depend_on_the_size_of_the_cohort(cohort, tmp_path):
    out, _ = cohort
    simulate.main(Config(tmp_path / "fewer", subjects=2, hours=0.5, seed=7, workers=1))
    assert digests(tmp_path / "fewer")["sim-7-0001.edf"] == digests(out)["sim-7-0001.edf"]


def test_complete_cohort_is_left_alone(cohort, capsys):
    out, first = cohort
    before = {p.name: p.stat().st_mtime_ns for p in out.glob("*.edf")}
    again = simulate.main(Config(out, subjects=3, hours=0.5, seed=7, workers=1))
    assert again["written"] == 0
    assert f"{out} is already finished: this same command wrote it." in capsys.readouterr().err
    assert again["respiratory_events"] == first["respiratory_events"]
    assert before == {p.name: p.stat().st_mtime_ns for p in out.glob("*.edf")}


def test_goes_on_after_a_kill(tmp_path):
    out = tmp_path / "killed"
    options = ["--subjects", "6", "--hours", "0.25", "--seed", "5", "--workers", "1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "sleepfm_fast.simulate", str(out), *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    patience = time.monotonic() + 120
    while not list(out.glob("sim-*.edf")) and process.poll() is None and time.monotonic() < patience:
        time.sleep(0.01)
    os.kill(process.pid, os_signal.SIGKILL)
    process.wait()
    finished = len(list(out.glob("sim-*.edf")))
    assert 1 <= finished < 6
    (out / ".sim-5-0005.edf.1.tmp").write_bytes(b"half a recording")
    resumed = simulate.main(Config(out, subjects=6, hours=0.25, seed=5, workers=1))
    assert resumed["written"] == 6 - finished
    simulate.main(Config(tmp_path / "whole", subjects=6, hours=0.25, seed=5, workers=1))
    assert digests(out) == digests(tmp_path / "whole")


def names_in(out):
    rows = (out / "participants.csv").read_text().splitlines()[1:]
    names = [row.split(",")[1] for row in rows]
    assert sorted(path.stem for path in out.glob("*.edf")) == names == [row.split(",")[0] for row in rows]
    return names


def test_cohorts_of_two_seeds_share_no_name_and_those_of_one_seed_do(tmp_path):
    options = {"subjects": 2, "hours": 0.05, "workers": 1}
    for name, seed in (("zero", 0), ("one", 1), ("ten", 10)):
        simulate.main(Config(tmp_path / name, seed=seed, **options))
    assert names_in(tmp_path / "zero") == ["sim-0000", "sim-0001"]
    assert names_in(tmp_path / "one") == ["sim-1-0000", "sim-1-0001"]
    assert names_in(tmp_path / "ten") == ["sim-10-0000", "sim-10-0001"]
    # The same sleepers with a coupling switched off keep their names, and so their split.
    simulate.main(Config(tmp_path / "off", seed=1, couplings=Couplings(stage_eeg=0), **options))
    assert names_in(tmp_path / "off") == names_in(tmp_path / "one")


@pytest.mark.parametrize("seed", [0, 4])
def test_a_folder_that_an_earlier_version_began_goes_on_with_its_names(tmp_path, capsys, seed):
    out = tmp_path / "edf"
    config = Config(out, subjects=2, hours=0.05, seed=seed, workers=1)
    simulate.main(config)
    card = out / "simulation.json"
    written = json.loads(card.read_text())
    assert written.pop("prefix") == name_prefix(tmp_path / "none", seed)
    card.write_text(
        json.dumps(written, indent=1)
    )  # as it was, of a killed run: sim-0000.edf is whole, sim-0001 missing
    for path in sorted(out.glob("*.edf")):
        path.rename(out / f"sim-{path.stem[-4:]}.edf")
    kept = (out / "sim-0000.edf").read_bytes()
    (out / "sim-0001.edf").unlink()
    capsys.readouterr()
    assert simulate.main(config)["written"] == 1
    assert names_in(out) == ["sim-0000", "sim-0001"]
    assert (out / "sim-0000.edf").read_bytes() == kept
    said = f"{out} was begun by an earlier version and continues with its names, sim-0000"
    assert (said in capsys.readouterr().err) == (seed > 0)
    card.write_text(json.dumps({**written, "prefix": "sim-9-"}))
    with pytest.raises(SleepfmError, match="other options"):
        simulate.main(config)


def test_refuses_what_is_not_its_own(cohort, tmp_path):
    out, _ = cohort
    with pytest.raises(SleepfmError, match="other options"):
        simulate.main(Config(out, subjects=3, hours=0.5, seed=8, workers=1))
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(SleepfmError, match="not empty"):
        simulate.main(Config(tmp_path, subjects=1))
    with pytest.raises(SleepfmError, match="is a file"):
        simulate.main(Config(tmp_path / "notes.txt", subjects=1))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"subjects": 0}, "--subjects is 0"),
        ({"hours": 0.01}, "--hours is 0.01"),
        ({"hours": 1.001}, "multiple of 30 s"),
        ({"hours": 25.0}, "24 hours"),
        ({"hours": float("nan")}, "--hours is nan"),
        ({"seed": -1}, "--seed is -1"),
        ({"couplings": Couplings(cardiac_artefact=2)}, "couplings.cardiac-artefact is 2"),
    ],
)
def test_refuses_options_that_make_no_sense(tmp_path, options, words):
    with pytest.raises(SleepfmError, match=words):
        simulate.main(dataclasses.replace(Config(tmp_path / "out"), **options))
    assert not (tmp_path / "out").exists()


def test_command_line(tmp_path, capsys):
    out = tmp_path / "cli"
    options = ["--subjects", "1", "--hours", "0.05", "--workers", "1", "--couplings.desaturation", "0"]
    assert simulate.cli([str(out), *options]) == 0
    assert last_json(capsys.readouterr().out)["recordings"] == 1
    assert json.loads((out / "simulation.json").read_text())["couplings"]["desaturation"] == 0
    assert simulate.cli([str(out), "--subjects", "2"]) == 1
    assert simulate.cli([]) == 2


def test_help_does_not_import_torch():
    code = "import sys, sleepfm_fast.simulate as s; s.cli(['--help']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, check=False).returncode == 0


# ------------------------------------------------------------------------------------------------------- physiology


def band_power(x: np.ndarray, fs_hz: float, low_hz: float, high_hz: float) -> np.ndarray:
    """Power in a band for each 30-s epoch."""
    f, power = signal.welch(x.reshape(-1, int(30 * fs_hz)), fs_hz, nperseg=int(4 * fs_hz))
    return power[:, (f >= low_hz) & (f <= high_hz)].sum(1)


def per_stage(values_of) -> np.ndarray:
    """Mean over four subjects of the median per stage (W, N1, N2, N3, R)."""
    rows = []
    for body, channels in subjects_of_an_hour():
        values = values_of(body, channels)
        rows.append([np.median(values[body.stages == s]) if (body.stages == s).any() else np.nan for s in range(5)])
    return np.nanmean(rows, axis=0)


def test_band_noise_has_unit_variance_and_its_band():
    x = band_noise(np.random.default_rng(0), 400_000, 128, 4, 8)
    assert x.std() == pytest.approx(1, abs=0.03)
    f, power = signal.welch(x, 128, nperseg=1024)
    assert power[(f > 3) & (f < 10)].sum() / power.sum() > 0.9


def test_amplitudes_are_those_of_recordings():
    for _, channels in subjects_of_an_hour():
        for label in ELECTRODES:
            assert 10 < channels[label].samples.std() < 60, label
        assert 0.1 < channels["ECG"].samples.std() < 0.5
        assert 85 < channels["SpO2"].samples.mean() < 99
        assert 40 < channels["Pulse"].samples.mean() < 100
        beats = np.diff(signal.find_peaks(channels["ECG"].samples, height=0.55, distance=90)[0]) / 256
        assert 0.5 < np.median(beats) < 1.4


def test_stages_have_their_eeg():
    delta = per_stage(lambda b, c: band_power(c["F4-M1"].samples, 128, 0.5, 2))
    alpha = per_stage(lambda b, c: band_power(c["O2-M1"].samples, 128, 8, 12))
    spindle = per_stage(lambda b, c: band_power(c["C4-M1"].samples, 128, 12, 15))
    assert np.nanargmax(delta) == 3
    assert delta[3] > 3 * delta[0]
    assert alpha[0] > 2 * np.nanmax(alpha[1:])
    assert spindle[2] > 1.3 * spindle[0]
    assert spindle[2] > 2 * max(spindle[1], spindle[4])


def test_eeg_is_the_same_in_all_stages_without_the_coupling():
    body, channels = subjects_of_an_hour()[0]
    assert {0, 2} <= set(body.stages)
    _, without = record(0, stage_eeg=0)

    def n2_over_w(channels, low_hz, high_hz):
        power = band_power(channels["C4-M1"].samples, 128, low_hz, high_hz)
        return np.median(power[body.stages == 2]) / np.median(power[body.stages == 0])

    for low_hz, high_hz in ((0.5, 2), (12, 15)):
        assert n2_over_w(channels, low_hz, high_hz) > 1.8
        assert n2_over_w(without, low_hz, high_hz) < 1.4


def test_eyes_and_chin_follow_the_stage():
    rapid = per_stage(lambda b, c: band_power(c["E1-M2"].samples - c["E2-M2"].samples, 128, 0.5, 2))
    tone = per_stage(lambda b, c: band_power(c["Chin EMG"].samples, 128, 25, 60))
    assert rapid[4] > 3 * max(rapid[2], rapid[3])
    assert np.nanargmin(tone) == 4
    assert np.nanargmax(tone) == 0


def coherence_at_breathing(body: Physiology, channels: dict) -> float:
    """Coherence of chest and RR intervals, both measured in the channels, at the breathing frequency."""
    peaks = signal.find_peaks(channels["ECG"].samples, height=0.55, distance=90)[0] / 256
    t = np.arange(0, body.duration_s, 0.25)
    rr = np.interp(t, peaks[1:], np.diff(peaks))
    chest = np.interp(t, np.arange(channels["Thor"].samples.size) / 32, channels["Thor"].samples)
    f, coherence = signal.coherence(rr, chest, 4, nperseg=256)
    rate_hz = (body.breath_phase[-1] - body.breath_phase[0]) / body.duration_s
    near = (f > rate_hz - 0.04) & (f < rate_hz + 0.04)
    return float(coherence[near].max())


def test_heart_follows_the_breath_only_through_sinus_arrhythmia():
    for subject in range(3):
        body, channels = subjects_of_an_hour()[subject]
        assert coherence_at_breathing(body, channels) > 0.7
        assert coherence_at_breathing(*record(subject, respiratory_sinus_arrhythmia=0)) < 0.2


def desaturation_lag(body: Physiology, channels: dict) -> tuple[float, float]:
    """Lag [s] at which the fall of saturation follows the events best, and the correlation there."""
    course = np.zeros(body.duration_s)
    for event in body.events:
        course[int(event.onset_s) : int(event.onset_s + event.duration_s)] = 1
    fall = -np.gradient(ndimage.gaussian_filter1d(channels["SpO2"].samples.astype(float), 2))
    course -= course.mean()
    lags = np.arange(0, 60)
    r = [np.corrcoef(course[: course.size - lag], fall[lag:])[0, 1] for lag in lags]
    return int(lags[np.argmax(r)]), float(np.max(r))


def test_saturation_falls_20_to_30_s_after_events():
    for subject in range(4):
        body, channels = subjects_of_an_hour()[subject]
        lag_s, r = desaturation_lag(body, channels)
        assert 18 <= lag_s <= 32
        assert r > 0.35
        assert lag_s == pytest.approx(body.subject.oximeter_delay_s, abs=4)
    assert desaturation_lag(*record(0, desaturation=0))[1] < 0.2


def test_events_stop_the_flow_and_tell_obstructive_from_central():
    kept = {"Obstructive apnea": [], "Central apnea": [], "Hypopnea": []}
    for subject in range(12):
        body = Physiology(Random(1, subject), 120, Couplings())
        sensors = Polysomnograph(body)
        thermal, chest = sensors.thermocouple(), sensors.belt(0)
        for event in body.events:
            middle = slice(int((event.onset_s + 3) * 32), int((event.onset_s + event.duration_s - 2) * 32))
            if event.name in kept:
                kept[event.name].append([x[middle].std() / np.median(np.abs(x)) for x in (thermal, chest)])
    flow, effort = ({name: np.median(np.array(rows)[:, i]) for name, rows in kept.items()} for i in (0, 1))
    assert max(flow["Obstructive apnea"], flow["Central apnea"]) < 0.5 * flow["Hypopnea"]
    assert effort["Central apnea"] < 0.4 * effort["Obstructive apnea"]


def test_heart_shows_in_eeg_pulse_and_belt():
    body, channels = subjects_of_an_hour()[1]
    silent = record(1, cardiac_artefact=0)[1]

    def at_beats(x: np.ndarray) -> np.ndarray:
        at = (body.beats_s[2:-2] * 128).astype(int)
        return np.mean([x[a - 16 : a + 17] for a in at], axis=0)

    assert np.ptp(at_beats(channels["C4-M1"].samples)) > 2 * np.ptp(at_beats(silent["C4-M1"].samples))
    heart = body.heart_rate_bpm[:-1].reshape(-1, FS_HIDDEN_HZ).mean(1)
    smooth = signal.lfilter(np.ones(4) / 4, [1], heart)
    assert np.corrcoef(smooth[10:], channels["Pulse"].samples[10:])[0, 1] > 0.95
    assert abs(np.corrcoef(smooth[10:], record(1, pulse_oximeter=0)[1]["Pulse"].samples[10:])[0, 1]) < 0.3


def test_arousals_speed_up_the_heart():
    surges = []
    for body, _ in subjects_of_an_hour():
        for arousal in body.arousals:
            a = int(arousal.onset_s * FS_HIDDEN_HZ)
            before, after = body.heart_rate_bpm[max(a - 80, 0) : a], body.heart_rate_bpm[a + 32 : a + 112]
            if before.size and after.size:
                surges.append(after.mean() - before.mean())
    assert np.median(surges) > 4


def test_traits_have_their_direction():
    drawn = [Physiology(Random(2, i), 4, Couplings()).subject for i in range(300)]
    age = np.array([s.age for s in drawn])
    male = np.array([s.sex == "M" for s in drawn])
    for field, sign in (("slow_wave_gain", -1), ("sinus_arrhythmia_bpm", -1), ("events_per_hour", 1)):
        assert sign * np.corrcoef(age, [getattr(s, field) for s in drawn])[0, 1] > 0.2, field
    events = np.array([s.events_per_hour for s in drawn])
    assert np.median(events[male]) > 1.3 * np.median(events[~male])
    without = [Physiology(Random(2, i), 4, Couplings(traits=0)).subject for i in range(300)]
    assert [s.age for s in without] == age.tolist()
    assert abs(np.corrcoef(age, [s.slow_wave_gain for s in without])[0, 1]) < 0.15


def test_half_the_traits_are_half_of_what_sex_does_to_the_r_wave():
    woman = next(i for i in range(20) if record(i, 4)[0].subject.sex == "F")
    alone = dict.fromkeys(("ecg_derived_respiration", "movement"), 0.0)
    heights = [np.percentile(record(woman, 20, traits=t, **alone)[1]["ECG"].samples, 99.9) for t in (0.0, 0.5, 1.0)]
    assert heights[0] - heights[1] == pytest.approx(heights[1] - heights[2], rel=0.2)


def test_every_coupling_is_listed():
    assert set(REACH) == {field.name for field in dataclasses.fields(Couplings)}


@pytest.mark.parametrize("coupling", sorted(REACH))
def test_coupling_changes_what_it_reaches_and_nothing_else(coupling):
    body, channels = record(2, 40)
    changed_body, changed = record(2, 40, **{coupling: 0.0})
    different = {label for label in channels if not np.array_equal(channels[label].samples, changed[label].samples)}
    assert different == REACH[coupling]
    if coupling != "traits":
        assert np.array_equal(body.stages, changed_body.stages)
        assert body.events == changed_body.events
