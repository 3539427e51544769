"""Beats and their intervals in synthetic ECGs whose intervals are known."""

import itertools
import math
import statistics

import numpy as np
import pytest

from sleepfm_fast.baselines import heart_rate
from sleepfm_fast.baselines.heart_rate import ECG_NAMES, ecg_features, find_beats
from sleepfm_fast.store.native_runs import NativeRun

GAIN = 1 / 4096  # mV


def ecg_of(beats_s, duration_s, fs_hz, *, noise_mv=0.02, seed=0, height_mv=1.0):
    """P, QRS and T waves at given times, baseline wander and noise, in mV."""
    t = np.arange(int(duration_s * fs_hz)) / fs_hz
    x = noise_mv * np.random.default_rng(seed).standard_normal(t.size) + 0.2 * np.sin(2 * np.pi * 0.25 * t)
    for place, width, height in ((0.0, 0.012, 1.0), (-0.16, 0.022, 0.12), (0.28, 0.045, 0.3)):
        for beat in beats_s:
            near = slice(max(int((beat + place - 0.3) * fs_hz), 0), int((beat + place + 0.3) * fs_hz))
            x[near] += height_mv * height * np.exp(-0.5 * ((t[near] - beat - place) / width) ** 2)
    return x


def run_of(x, fs_hz, unit="mV"):
    return NativeRun(np.rint(x / GAIN).astype(np.int32), GAIN, 0.0, fs_hz, unit)


def rhythm(duration_s, mean_s=0.9, depth_s=0.04, f_hz=0.25):
    """Beats whose intervals swing with the breath."""
    beats = [0.5]
    while beats[-1] < duration_s - 1.5:
        beats.append(beats[-1] + mean_s + depth_s * np.sin(2 * np.pi * f_hz * beats[-1]))
    return np.array(beats)


def clips(n):
    return 30.0 * np.arange(n)


@pytest.mark.parametrize(("fs_hz", "sign"), [(100, 1), (128, -1), (200, 1), (256, -1), (500, 1)])
def test_beats_are_found_where_they_are(fs_hz, sign):
    beats = rhythm(300)
    found = find_beats(run_of(sign * ecg_of(beats, 300, fs_hz), fs_hz))
    assert len(found.time_s) == len(beats)
    np.testing.assert_allclose(found.time_s, beats, atol=0.006)
    assert np.abs(np.diff(found.time_s) - np.diff(beats)).mean() < 0.002
    np.testing.assert_allclose(found.amplitude, 1.0, atol=0.35)


@pytest.mark.parametrize("fs_hz", [128, 256])
def test_rate_and_variability_are_those_of_the_known_intervals(fs_hz):
    beats = rhythm(300)
    found = ecg_features(run_of(ecg_of(beats, 300, fs_hz, noise_mv=0.005), fs_hz), clips(10))
    for i, row in enumerate(found):
        own = beats[(beats >= 30 * i) & (beats < 30 * i + 30)]
        rr_ms = 1000 * np.diff(own)
        values = dict(zip(ECG_NAMES, row, strict=True))
        assert values["heart_rate_per_min"] == pytest.approx(60000 / rr_ms.mean(), abs=0.15)
        assert values["sdnn_ms"] == pytest.approx(rr_ms.std(ddof=1), abs=1.5)
        assert values["rmssd_ms"] == pytest.approx(np.sqrt(np.mean(np.diff(rr_ms) ** 2)), abs=2.5)
        assert values["rejected_percent"] == 0
        # A swing of 40 ms has a power of 800 ms2, all of it at 0.25 Hz.
        assert values["hf_120s_log10_ms2"] == pytest.approx(np.log10(800), abs=0.15)
        assert values["lf_to_hf_120s_log10"] < -1
        assert values["qrs_peak_to_peak_mv"] == pytest.approx(1.0, abs=0.12)
        assert values["qrs_variation_percent"] < 5


@pytest.mark.parametrize("fs_hz", [100, 128, 256])
def test_the_sampling_grid_adds_no_variability(fs_hz):
    found = ecg_features(run_of(ecg_of(np.arange(0.5, 298, 0.9137), 300, fs_hz, noise_mv=0.0), fs_hz), clips(10))
    assert found[:, [ECG_NAMES.index("sdnn_ms"), ECG_NAMES.index("rmssd_ms")]].max() < 0.5


def test_the_figures_of_known_beats_are_their_definitions():
    rng = np.random.default_rng(1)
    times_s = np.cumsum(rng.uniform(0.85, 0.95, 40))
    times_s[12] -= 0.4  # a premature beat, and the pause behind it
    beats = heart_rate.Beats(times_s, rng.uniform(0.8, 1.2, 40))
    row = dict(zip(ECG_NAMES, heart_rate.beat_features(beats, np.array([0.0]), 60.0, 0.001)[0], strict=True))
    n = int((times_s < 30).sum())
    rr_ms = [1000 * (b - a) for a, b in itertools.pairwise(times_s[:n].tolist())]
    pairs = [(a, b) for i, (a, b) in enumerate(itertools.pairwise(rr_ms)) if not {i, i + 1} & {11, 12}]
    nn_ms = [rr for i, rr in enumerate(rr_ms) if i not in (11, 12)]
    heights = beats.amplitude[:n].tolist()
    assert row["heart_rate_per_min"] == pytest.approx(60_000 / statistics.mean(nn_ms), rel=1e-9)
    assert row["sdnn_ms"] == pytest.approx(statistics.stdev(nn_ms), rel=1e-9)
    assert row["rmssd_ms"] == pytest.approx(math.sqrt(statistics.mean((b - a) ** 2 for a, b in pairs)), rel=1e-9)
    assert row["rejected_percent"] == pytest.approx(100 * 2 / len(rr_ms), rel=1e-9)
    assert row["qrs_peak_to_peak_mv"] == pytest.approx(0.001 * statistics.median(heights), rel=1e-9)
    variation = 100 * statistics.pstdev(heights) / statistics.mean(heights)
    assert row["qrs_variation_percent"] == pytest.approx(variation, rel=1e-9)


def test_slow_features_are_of_the_120_s_around_a_clip_moved_inwards_at_the_ends():
    beats = np.cumsum(np.random.default_rng(2).uniform(0.8, 1.0, 340))
    onsets_s = np.array([0.0, 45.0, 46.0, 224.0, 225.0, 270.0])  # the windows begin at 0, 0, 1, 179, 180, 180 s
    found = heart_rate.frequency_features(beats[1:], np.diff(beats), onsets_s, 300.0)
    assert [np.array_equal(a, b) for a, b in itertools.pairwise(found)] == [True, False, False, False, True]
    # More clips than are computed at once, as of a long night.
    many = heart_rate.frequency_features(beats[1:], np.diff(beats), np.tile(onsets_s, 350), 300.0)
    np.testing.assert_array_equal(many, np.tile(found, (350, 1)))


def test_slow_features_need_beats_in_four_fifths_of_the_120_s():
    beats = rhythm(600)
    use = (beats[1:] <= 250) | (beats[:-1] >= 290)
    end_s, nn_s = beats[1:][use], np.diff(beats)[use]
    onsets_s = np.arange(0.0, 571.0)
    found = heart_rate.frequency_features(end_s, nn_s, onsets_s, 600.0)
    starts_s = np.minimum(np.maximum(onsets_s - 45, 0), 480)
    known_s = np.array([nn_s[(end_s >= start) & (end_s < start + 120)].sum() for start in starts_s])
    assert 0 < (known_s < 96).sum() < 571
    np.testing.assert_array_equal(np.isnan(found).all(axis=1), known_s < 96)
    np.testing.assert_array_equal(np.isnan(found).any(axis=1), known_s < 96)


def test_slow_swings_are_low_frequency():
    found = ecg_features(run_of(ecg_of(rhythm(300, f_hz=0.1), 300, 256), 256), clips(10))
    assert (found[:, ECG_NAMES.index("lf_to_hf_120s_log10")] > 1).all()
    np.testing.assert_allclose(found[:, ECG_NAMES.index("lf_120s_log10_ms2")], np.log10(800), atol=0.2)


# The spline's own response at 70 beats a minute; straight lines keep 0.95, 0.73 and 0.54 of the power.
@pytest.mark.parametrize(("f_hz", "kept"), [(0.1, 1.0), (0.25, 0.986), (0.35, 0.929)])
@pytest.mark.parametrize("depth_ms", [10.0, 30.0])
def test_the_power_of_a_known_modulation_is_found(f_hz, kept, depth_ms):
    beats = rhythm(300, mean_s=60 / 70, depth_s=depth_ms / 1000, f_hz=f_hz)
    found = heart_rate.frequency_features(beats[1:], np.diff(beats), clips(10), 300.0)
    in_band, other = (found[:, column] for column in ((0, 1) if f_hz < 0.15 else (1, 0)))
    np.testing.assert_allclose(10**in_band / (depth_ms**2 / 2), kept, atol=0.01)
    assert (other < in_band - 3).all()
    # With the noise of an ECG, and beats that are found in it.
    found = ecg_features(run_of(ecg_of(beats, 300, 256, noise_mv=0.01), 256), clips(10))
    np.testing.assert_allclose(10 ** found[:, 5 if f_hz > 0.15 else 4] / (depth_ms**2 / 2), kept, atol=0.05)


@pytest.mark.parametrize("end_s", [101.5, 105, 110, 120])
def test_a_gap_between_beats_makes_no_slow_swing(end_s):
    beats = rhythm(300, mean_s=60 / 70, depth_s=0.04, f_hz=0.25)
    rr = np.diff(beats)
    use = (beats[1:] <= 100) | (beats[:-1] >= end_s)
    found = heart_rate.frequency_features(beats[1:][use], rr[use], clips(10), 300.0)
    # A spline over 20 s without beats would swing with 310 ms2 in LF, where there is nothing.
    assert 10 ** found[3, 0] < 40
    assert 0.7 < 10 ** found[3, 1] / 800 < 1


def test_clips_at_the_edges_have_all_features_and_a_short_run_no_slow_ones():
    found = ecg_features(run_of(ecg_of(rhythm(120), 120, 256), 256), clips(4))
    assert np.isfinite(found).all()
    found = ecg_features(run_of(ecg_of(rhythm(60), 60, 256), 256), clips(2))
    assert np.isnan(found[:, 4:7]).all()
    assert np.isfinite(found[:, :4]).all()


def test_a_premature_beat_is_left_out_and_counted():
    beats = rhythm(90, depth_s=0.0)
    early = beats.copy()
    early[50] -= 0.35  # at 45 s: one short and one long interval
    found = ecg_features(run_of(ecg_of(early, 90, 256), 256), clips(3))
    rejected = found[:, ECG_NAMES.index("rejected_percent")]
    assert rejected[1] > 4
    assert rejected[[0, 2]].tolist() == [0, 0]
    assert found[1, ECG_NAMES.index("rmssd_ms")] < 5
    assert found[1, 0] == pytest.approx(60 / 0.9, abs=0.2)


def test_an_electrode_that_falls_off_leaves_its_own_clips_empty():
    x = ecg_of(rhythm(150), 150, 256)
    x[60 * 256 : 90 * 256] = 0.0
    found = ecg_features(run_of(x, 256), clips(5))
    assert np.isnan(found[2, :4]).all()
    assert np.isfinite(found[[0, 1, 3, 4], :4]).all()


def test_units():
    x = ecg_of(rhythm(120), 120, 256)
    column = ECG_NAMES.index("qrs_peak_to_peak_mv")
    mv = ecg_features(run_of(x, 256), clips(4))
    uv = ecg_features(NativeRun(np.rint(1000 * x).astype(np.int32), 1.0, 0.0, 256, "uV"), clips(4))
    np.testing.assert_allclose(uv[:, column], mv[:, column], rtol=0.01)
    unknown = ecg_features(run_of(x, 256, unit=""), clips(4))
    assert np.isnan(unknown[:, column]).all()
    np.testing.assert_array_equal(np.delete(unknown, column, 1), np.delete(mv, column, 1))


def test_long_recordings_are_read_in_pieces_without_a_seam(monkeypatch):
    run = run_of(ecg_of(rhythm(180), 180, 256), 256)
    whole = find_beats(run)
    monkeypatch.setattr(heart_rate, "PIECE_S", 40.0)
    pieces = find_beats(run)
    assert len(pieces.time_s) == len(whole.time_s)
    np.testing.assert_allclose(pieces.time_s, whole.time_s, atol=1e-3)


@pytest.mark.parametrize("x", [np.zeros(30 * 256), np.full(30 * 256, 3.0), np.zeros(0), np.ones(100)])
def test_nothing_there(x):
    run = run_of(x, 256)
    assert len(find_beats(run).time_s) == 0
    assert np.isnan(ecg_features(run, clips(1))).all()


def test_a_rate_too_low_for_beats():
    assert np.isnan(ecg_features(run_of(np.random.default_rng(0).standard_normal(1200), 40), clips(1))).all()


def test_noise_alone_does_not_fail():
    found = ecg_features(run_of(np.random.default_rng(0).standard_normal(256 * 150), 256), clips(5))
    assert not np.isinf(found).any()
