"""Breathing, snoring and the oximeter against signals of known rate, amplitude and falls."""

import numpy as np
import pytest

from sleepfm_fast.baselines.breathing import (
    BREATHING_NAMES,
    Breaths,
    against_median,
    breathing_amplitudes,
    correlation,
    snore_amplitudes,
)
from sleepfm_fast.baselines.oximetry import SPO2_NAMES, pulse_features, spo2_features, trend_features
from sleepfm_fast.store.native_runs import NativeRun


def run_of(x, fs_hz, unit="", gain=1e-3):
    return NativeRun(np.rint(np.asarray(x) / gain).astype(np.int32), gain, 0.0, fs_hz, unit)


def clips(n):
    return 30.0 * np.arange(n)


def breaths(minutes, fs_hz, per_min, amplitude=1.0, noise=0.0, seed=0):
    t = np.arange(int(60 * minutes * fs_hz)) / fs_hz
    return amplitude * np.sin(2 * np.pi * per_min / 60 * t) + noise * np.random.default_rng(seed).standard_normal(
        t.size
    )


def measured(x, fs_hz, n):
    rows = against_median(breathing_amplitudes(run_of(x, fs_hz), clips(n)), 2)
    return {name: rows[:, k] for k, name in enumerate(BREATHING_NAMES)}


@pytest.mark.parametrize("fs_hz", [4, 10, 25, 32, 204.85, 500])
@pytest.mark.parametrize("per_min", [8.0, 15.0, 21.3, 35.0])
def test_the_rate_of_a_sine_is_found_at_every_sampling_rate_up_to_the_edges(fs_hz, per_min):
    found = measured(breaths(5, fs_hz, per_min, noise=0.05), fs_hz, 10)
    np.testing.assert_allclose(found["rate_per_min"], per_min, atol=0.25)
    assert (found["regularity"] > 0.9).all()
    np.testing.assert_allclose(found["amplitude_log2_ratio"], 0, atol=0.1)


@pytest.mark.parametrize("per_min", [8.2, 15.23, 15.47, 21.3])
def test_the_rate_is_found_between_the_bins_of_the_spectrum(per_min):
    found = measured(breaths(5, 25, per_min), 25, 10)  # bins are 0.47 a minute apart
    np.testing.assert_allclose(found["rate_per_min"], per_min, atol=0.05)


def test_noise_is_less_regular_than_breaths():
    rng = np.random.default_rng(1)
    noise = measured(rng.standard_normal(32 * 300), 32, 10)["regularity"]
    assert np.nanmax(noise) < 0.75


def test_half_the_amplitude_is_minus_one_and_an_apnoea_shows_in_its_ten_seconds():
    x = breaths(10, 25, 15, amplitude=2.0)
    t = np.arange(x.size) / 25
    x[(t >= 120) & (t < 150)] *= 0.5  # clip 4
    x[(t >= 245) & (t < 259)] *= 0.02  # 14 s of clip 8
    x[(t >= 259) & (t < 270)] *= 1.5  # and the breaths after it
    found = measured(x, 25, 20)
    assert found["amplitude_log2_ratio"][4] == pytest.approx(-1, abs=0.1)
    assert found["lowest_10s_log2_ratio"][8] < -2.5
    assert found["highest_10s_log2_ratio"][8] > 0.4
    others = np.delete(np.arange(20), [3, 4, 5, 7, 8, 9])
    for name in ("amplitude_log2_ratio", "lowest_10s_log2_ratio", "highest_10s_log2_ratio"):
        np.testing.assert_allclose(found[name][others], 0, atol=0.1)


def test_gain_and_offset_of_the_sensor_do_not_matter():
    x = breaths(5, 25, 15, noise=0.1)
    a, b = measured(x, 25, 10), measured(4000 + 37 * x, 25, 10)
    for name in BREATHING_NAMES:
        np.testing.assert_allclose(a[name], b[name], atol=0.01)


def test_a_dead_sensor_has_no_features():
    for x in (np.zeros(25 * 120), np.full(25 * 120, 7.0), np.zeros(0)):
        assert np.isnan(against_median(breathing_amplitudes(run_of(x, 25), clips(4)), 2)).all()
    slow = run_of(breaths(2, 3, 15), 3)
    assert np.isnan(breathing_amplitudes(slow, clips(4))).all(), "three samples a second are too few"


def test_what_lies_beyond_the_signal_is_not_known():
    windows = Breaths(run_of(breaths(1, 25, 15), 25)).windows(np.array([-5.0, 0.0, 30.0, 40.0]))
    np.testing.assert_array_equal(np.isnan(windows).sum(axis=1), [5 * 8, 0, 0, 10 * 8 - 2])
    assert np.isnan(windows[0, :40]).all()
    assert np.isnan(windows[3, -78:]).all()


def test_chest_and_abdomen():
    belt = Breaths(run_of(breaths(2, 32, 15), 32)).windows(clips(4))
    against = Breaths(run_of(-breaths(2, 10, 15), 10)).windows(clips(4))  # another rate
    np.testing.assert_allclose(correlation(belt, belt), 1)
    np.testing.assert_allclose(correlation(belt, against), -1, atol=0.02)
    assert np.isnan(correlation(belt, np.zeros_like(belt))).all()


def test_snoring_is_loud_against_the_nights_median():
    rng = np.random.default_rng(2)
    x = rng.standard_normal(128 * 300)
    x[128 * 60 : 128 * 90] *= 4  # clip 2
    x[128 * 130 : 128 * 131] *= 8  # a second of clip 4
    found = against_median(snore_amplitudes(run_of(x, 128), clips(10)), 0)
    assert found[2, 0] == pytest.approx(2, abs=0.1)
    assert found[4, 1] == pytest.approx(3, abs=0.3)
    assert abs(found[0, 0]) < 0.1


def test_snoring_at_one_value_a_second_is_as_loud_as_its_loudest_second():
    x = np.tile([3.0, 5.0], 30)
    x[40] = 14.0
    found = snore_amplitudes(run_of(x, 1), clips(2))
    np.testing.assert_allclose(found[0], [1, 1])
    np.testing.assert_allclose(found[1], [x[30:].std(), 14 - x[30:].mean()])


@pytest.mark.parametrize(("n", "off"), [(9, False), (10, True)])
def test_a_sensor_is_off_from_five_minutes_on(n, off):
    amplitude = np.r_[np.full(40, 2.0), np.full(n, 1e-3), np.full(40, 2.0)]
    found = against_median(amplitude[:, None], 0, sensor=True)[40 : 40 + n, 0]
    assert np.isnan(found).all() if off else (found == -10).all()


@pytest.mark.parametrize("share", [0.3, 0.7])
def test_five_minutes_without_a_breath_are_a_sensor_that_is_off_and_a_clip_is_an_apnoea(share):
    amplitude = np.full(100, 2.0)
    amplitude[: int(100 * share)] = 1e-3  # noise
    amplitude[90] = 1e-3  # an apnoea that fills a clip
    found = against_median(np.column_stack([np.ones(100), amplitude]), 1, sensor=True)
    off = np.arange(100) < 100 * share
    np.testing.assert_array_equal(np.isnan(found).all(axis=1), off)
    np.testing.assert_array_equal(np.isnan(found).any(axis=1), off)
    assert found[90, 1] == -10
    np.testing.assert_allclose(np.delete(found[~off, 1], 90 - off.sum()), 0)


def test_a_sensor_that_is_off_every_other_clip_is_not_compared_with_its_noise():
    amplitude = np.where(np.arange(60) % 3 == 0, 2.0, 1e-3)
    found = against_median(amplitude[:, None], 0, sensor=True)[:, 0]
    np.testing.assert_array_equal(np.isnan(found), amplitude < 1)
    np.testing.assert_allclose(found[::3], 0)


def test_a_snoring_sensor_that_shows_nothing_for_most_of_the_night_has_the_rest():
    found = against_median(np.array([0.0, 0, 0, 1, 4])[:, None], 0)[:, 0]
    np.testing.assert_array_equal(np.isnan(found), [True, True, True, False, False])
    np.testing.assert_allclose(found[4] - found[3], 2)


SPO2 = np.full(300, 96.0)
SPO2[160:175] = 90.0  # clip 5


def test_a_fall_of_saturation_within_the_clip_and_against_the_two_minutes_before():
    found = spo2_features(run_of(SPO2, 1, "%"), clips(10))
    rows = {name: found[:, k] for k, name in enumerate(SPO2_NAMES)}
    assert rows["mean_percent"][5] == pytest.approx((15 * 96 + 15 * 90) / 30)
    assert (rows["min_percent"][5], rows["fall_percent"][5]) == (90, 6)
    assert rows["below_120s_before_percent"][5] == 6
    others = [1, 2, 3, 4, 6, 7, 8, 9]
    assert (rows["min_percent"][others] == 96).all()
    assert (rows["fall_percent"][others] == 0).all()
    np.testing.assert_array_equal(rows["below_120s_before_percent"][others], 0)
    assert np.isnan(rows["below_120s_before_percent"][0]), "nothing stands before the first clip"


def test_a_saturation_that_stays_low_has_fallen_once():
    x = np.r_[np.full(155, 96.0), np.full(145, 90.0)]
    found = spo2_features(run_of(x, 1, "%"), clips(10))
    assert found[:, SPO2_NAMES.index("fall_percent")].tolist() == [0] * 5 + [6] + [0] * 4
    # The 90th percentile of the two minutes before: of the last clip's none is from before the fall.
    assert found[1:, SPO2_NAMES.index("below_120s_before_percent")].tolist() == [0] * 4 + [6] * 4 + [0]


@pytest.mark.parametrize(("features", "lowest", "highest"), [(spo2_features, 50, 100), (pulse_features, 20, 250)])
def test_the_limits_of_what_is_plausible_are_plausible(features, lowest, highest):
    x = np.repeat([lowest - 0.1, lowest, highest, highest + 0.1], 30)
    means = features(run_of(x, 1, gain=0.1), clips(4))[:, 0]
    np.testing.assert_allclose(means, [np.nan, lowest, highest, np.nan])


def test_a_rise_is_no_fall():
    found = spo2_features(run_of(np.linspace(85, 97, 30), 1), clips(1))
    assert found[0, SPO2_NAMES.index("fall_percent")] == pytest.approx(0)


def test_a_finger_out_of_the_sensor_is_not_a_desaturation():
    x = SPO2.copy()
    x[62:72] = 0.0  # ten seconds of clip 2
    x[90:120] = 127.0  # all of clip 3
    found = spo2_features(run_of(x, 1), clips(10))
    assert found[2, :3].tolist() == [96, 96, 0]
    assert np.isnan(found[3]).all()
    assert found[4, 3] == 0


@pytest.mark.parametrize("fs_hz", [1, 4, 16, 200])
def test_pulse_and_trends_at_any_rate(fs_hz):
    x = np.repeat(np.repeat([60.0, 70.0, 0.0, 65.0], 30), fs_hz)
    found = pulse_features(run_of(x, fs_hz), clips(4))
    np.testing.assert_allclose(found[[0, 1, 3]], [[60, 0, 0], [70, 0, 0], [65, 0, 0]], atol=1e-9)
    assert np.isnan(found[2]).all()
    trend = against_median(trend_features(run_of(np.repeat([5.0, 5.0, 10.0], 30 * fs_hz), fs_hz), clips(3)), 0)
    np.testing.assert_allclose(trend[:, 0], [0, 0, 1], atol=1e-9)


def test_windows_keep_to_the_run():
    run = run_of(np.arange(100.0), 1)
    np.testing.assert_array_equal(run.windows(np.array([0.0, 70.4]))[:, [0, -1]], [[0, 29], [70, 99]])
    beyond = run.windows(np.array([-5.0, 90.0]))
    assert np.isnan(beyond[0, :5]).all()
    assert beyond[0, 5] == 0
    assert np.isnan(beyond[1, 10:]).all()
    assert run.windows(np.array([5.6]))[0, 0] == 6  # the sample nearest to the onset
    # 30 s at 204.85 Hz are 6145.5 samples: where the run lacks its last one, that of the last clip is one beyond.
    for n in (12291, 12290):
        odd = run_of(np.arange(float(n)), 204.85).windows(np.array([0.0, 30.0]))
        assert odd[:, [0, -1]].tolist() == [[0, 6144], [n - 6145, n - 1]]
    assert run_of(np.zeros(0), 8).windows(np.zeros(2)).shape == (2, 240)
    # 4.1 * 30 is a little less than 123 in floating point.
    assert run_of(np.zeros(246), 4.1).windows(np.array([0.0, 30.0])).shape == (2, 123)


def test_windows_are_in_physical_units():
    run = NativeRun(np.arange(120, dtype=np.int16), 0.5, -3.0, 1.0, "%")
    np.testing.assert_array_equal(run.physical(10, 20), 0.5 * np.arange(10, 20) - 3)
    np.testing.assert_array_equal(run.windows(np.array([60.0])), [0.5 * np.arange(60, 90) - 3])
