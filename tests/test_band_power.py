"""Band powers against signals of known power; what is flat or incomplete has no features."""

import numpy as np
import pytest
import scipy.signal

from sleepfm_fast.baselines.band_power import (
    EEG_BANDS_HZ,
    EEG_NAMES,
    EMG_NAMES,
    EOG_NAMES,
    eeg_features,
    emg_features,
    eog_correlation,
    eog_features,
)

CENTRES_HZ = {"delta": 2.0, "theta": 6.0, "alpha": 10.0, "sigma": 14.0, "beta": 22.0}
AMPLITUDES_UV = {"delta": 60.0, "theta": 20.0, "alpha": 30.0, "sigma": 10.0, "beta": 5.0}


def time_s(fs_hz):
    return np.arange(int(30 * fs_hz)) / fs_hz


def by_name(names, row):
    return dict(zip(names, row, strict=True))


def eeg(x, fs_hz):
    return by_name(EEG_NAMES, eeg_features(np.atleast_2d(x), fs_hz)[0])


@pytest.mark.parametrize("fs_hz", [100, 128, 204.85, 256, 512])
def test_a_sine_in_every_band_has_the_power_of_half_its_squared_amplitude(fs_hz):
    t = time_s(fs_hz)
    x = 1000 + sum(a * np.sin(2 * np.pi * CENTRES_HZ[b] * t + i) for i, (b, a) in enumerate(AMPLITUDES_UV.items()))
    found = eeg(x, fs_hz)
    power = {b: a**2 / 2 for b, a in AMPLITUDES_UV.items()}
    for b in EEG_BANDS_HZ:
        assert found[f"{b}_log10_uv2"] == pytest.approx(np.log10(power[b]), abs=0.01), b
        assert found[f"{b}_share"] == pytest.approx(power[b] / sum(power.values()), abs=0.01)
    assert found["delta_to_beta_log10"] == pytest.approx(np.log10(power["delta"] / power["beta"]), abs=0.01)
    assert found["theta_to_alpha_log10"] == pytest.approx(np.log10(power["theta"] / power["alpha"]), abs=0.01)
    slow, fast = power["delta"] + power["theta"], power["alpha"] + power["beta"]
    assert found["slowing_log10"] == pytest.approx(np.log10(slow / fast), abs=0.01)
    assert found["edge50_hz"] == pytest.approx(2, abs=0.5)
    assert found["delta_burst_log10"] == pytest.approx(0, abs=0.02)


def test_white_noise_has_power_in_proportion_to_the_width_of_a_band():
    x = 7 * np.random.default_rng(0).standard_normal((40, 6000))
    features = eeg_features(x, 200)
    edges = [features[:, EEG_NAMES.index(name)].mean() for name in ("edge50_hz", "edge95_hz")]
    assert edges == pytest.approx([0.5 + 0.5 * 29.5, 0.5 + 0.95 * 29.5], abs=0.3), "of 0.5 to 30 Hz alone"
    found = 10 ** features[:, :5].mean(axis=0)
    width = np.array([high - low for low, high in EEG_BANDS_HZ.values()])
    # The two bins next to a window's mean lose some of their power to it.
    np.testing.assert_allclose(found, 49 / 100 * width, rtol=0.08)


def test_powers_are_the_integral_of_scipys_welch():
    x = np.random.default_rng(1).standard_normal((3, 7680)).cumsum(axis=1)
    f, density = scipy.signal.welch(x, 256, nperseg=1024, detrend="constant")
    for k, (low, high) in enumerate(EEG_BANDS_HZ.values()):
        expected = np.log10(density[:, (f >= low) & (f < high)].sum(axis=1) * 0.25)
        np.testing.assert_allclose(eeg_features(x, 256)[:, k], expected, rtol=1e-10)


def test_the_spectral_edge_stands_where_the_power_ends():
    x = scipy.signal.sosfiltfilt(
        scipy.signal.butter(8, 20, fs=256, output="sos"), np.random.default_rng(2).standard_normal((8, 7680))
    )
    # The power response is 1 / (1 + (f / 20)^16)^2: 18.4 Hz wide above 0.5 Hz.
    found = eeg_features(x, 256).mean(axis=0)
    assert found[EEG_NAMES.index("edge95_hz")] == pytest.approx(0.5 + 0.95 * 18.4, abs=0.7)
    assert found[EEG_NAMES.index("edge50_hz")] == pytest.approx(0.5 + 0.5 * 18.4, abs=0.5)


def test_a_spindle_is_a_burst_of_sigma():
    rng = np.random.default_rng(3)
    x = 5 * rng.standard_normal((2, 3840))
    x[1, 1280:1400] += 40 * np.sin(2 * np.pi * 13 * np.arange(120) / 128)
    burst = eeg_features(x, 128)[:, EEG_NAMES.index("sigma_burst_log10")]
    assert burst[1] > burst[0] + 0.8


def test_flat_and_incomplete_clips_have_no_features_and_spare_the_others():
    x = np.random.default_rng(4).standard_normal((4, 3000))
    x[1] = 3.0
    x[2, 100] = np.nan
    for features in (eeg_features, eog_features, emg_features):
        y = features(x, 100)
        assert np.isnan(y[[1, 2]]).all()
        assert np.isfinite(y[[0, 3]]).all()
        np.testing.assert_allclose(y[[0, 3]], features(x[[0, 3]], 100), rtol=1e-12)
        assert np.isnan(features(x[1:2], 100)).all()
        assert features(x[:0], 100).shape == (0, y.shape[1])


def test_a_band_beyond_the_rate_is_empty_and_the_rest_is_not():
    found = eeg(20 * np.sin(2 * np.pi * 10 * time_s(50)), 50)
    empty = {name for name, value in found.items() if np.isnan(value)}
    assert empty == {"beta_log10_uv2", "beta_share", "delta_to_beta_log10", "slowing_log10"}
    assert found["alpha_share"] == pytest.approx(1, abs=0.01)


def test_a_silent_band_is_finite():
    assert np.isfinite(eeg_features(np.sin(2 * np.pi * 2 * time_s(256))[None], 256)).all()


@pytest.mark.parametrize("fs_hz", [100, 256])
def test_eye_movements(fs_hz):
    t = time_s(fs_hz)
    x = 100 * np.sin(2 * np.pi * 0.5 * t)
    found = by_name(EOG_NAMES, eog_features(x[None], fs_hz)[0])
    assert found["0.25-1hz_log10_uv2"] == pytest.approx(np.log10(5000), abs=0.02)
    assert found["rms_log10_uv"] == pytest.approx(np.log10(100 / np.sqrt(2)), abs=0.001)
    assert found["peak_to_peak_log10_uv"] == pytest.approx(np.log10(200), abs=0.001)
    step = np.where(t < 15, -80.0, 80.0)
    found = by_name(EOG_NAMES, eog_features(step[None], fs_hz)[0])
    assert found["steepest_log10_uv_per_s"] == pytest.approx(np.log10(1600), abs=0.03)


def test_eyes_that_move_apart_are_told_from_eeg_in_both():
    t = time_s(100)
    rng = np.random.default_rng(5)
    movement, noise = 80 * np.sin(2 * np.pi * 1.5 * t), rng.standard_normal((2, 3000))
    fast = 300 * np.sin(2 * np.pi * 20 * t)  # outside the band that counts
    left, right = movement + noise[0] + fast, -movement + noise[1] + fast
    pairs = eog_correlation(np.stack([left, left, left]), np.stack([right, left, np.zeros(3000)]), 100)
    np.testing.assert_allclose(pairs[:2], [-1, 1], atol=0.01)
    assert np.isnan(pairs[2])


def test_muscle_tone_and_twitches_without_the_mains():
    rng = np.random.default_rng(6)
    t = time_s(256)
    x = 5 * rng.standard_normal((2, 7680)) + 50 * np.sin(2 * np.pi * 50 * t) + 30 * np.sin(2 * np.pi * t)
    x[1, 2560:2816] += 40 * rng.standard_normal(256)
    quiet, twitch = (by_name(EMG_NAMES, row) for row in emg_features(x, 256))
    kept_hz = 90 - 5 - 5  # of 128: 1-Hz bins from 10 to 99 without 48-52 and 58-62
    assert quiet["rms_log10_uv"] == pytest.approx(np.log10(5 * np.sqrt(kept_hz / 128)), abs=0.02)
    assert quiet["tone_log10_uv"] == pytest.approx(quiet["rms_log10_uv"], abs=0.02)
    assert quiet["burst_log10"] < 0.15
    assert twitch["burst_log10"] == pytest.approx(np.log10(np.hypot(40, 5) / 5), abs=0.12)
    assert twitch["tone_log10_uv"] == pytest.approx(quiet["tone_log10_uv"], abs=0.03)
    assert np.isnan(emg_features(x[:, :900], 30)).all()
