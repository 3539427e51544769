"""The fused op against float64 SciPy, on random and on real recordings: filters, clips, normalisation."""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import scipy.signal
import torch
from filter_batch import N_OUT, NORMALISATIONS, Batch, mixed_batch, noise, snr_db

from sleepfm_fast import ops
from sleepfm_fast.filters import FilterBank

DATA = Path(os.environ.get("SLEEPFM_TEST_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
RATES_HZ = [Fraction(r) for r in ("1", "8", "10", "25", "32", "64", "100", "125", "128", "200", "204.85")]
RATES_HZ += [Fraction(r) for r in (250, 256, 500, 512, 1000, 2048)]


# ---- against float64 ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fs_hz", RATES_HZ, ids=lambda r: f"{float(r):g}Hz")
@pytest.mark.parametrize(
    ("preset", "kind", "notch_hz"),
    [
        ("aasm", "eeg", None),
        ("aasm", "emg", None),
        ("aasm", "emg", 50),
        ("aasm", "ecg", 60),
        ("aasm", "respiration", None),
        ("aasm", "snore", 50),
        ("aasm", "step", None),
        ("none", "eeg", None),
        ("seed", "eeg", None),
        ("clinical", "eeg", None),
    ],
)
def test_agrees_with_float64_scipy(preset: str, kind: str, notch_hz: int | None, fs_hz: Fraction) -> None:
    """First clip, an inner clip at a fractional place, last clip; int16 and int32; at least 100 dB."""
    check_against_float64(preset, kind, notch_hz, fs_hz)


@pytest.mark.parametrize(("preset", "kind"), [("aasm", "step"), ("clinical", "eeg")])
def test_agrees_at_one_sample_in_ten_seconds(preset: str, kind: str) -> None:
    check_against_float64(preset, kind, None, Fraction(1, 10))


def check_against_float64(preset: str, kind: str, notch_hz: int | None, fs_hz: Fraction) -> None:
    bank = FilterBank(preset, 256, notch_hz)
    f = bank.index(kind, fs_hz)
    rng = np.random.default_rng(1)
    n_out = 1283
    n = int(40 * fs_hz) + 2
    x = noise(rng, n)
    for dtype, normalise in ((np.int16, "zscore"), (np.int32, "none")):
        batch = Batch(bank, dtype)
        for first in (0, n // 2, max(0, n - 1 - int(5 * fs_hz))):
            batch.add(x, f, start=17, first=17 + first, phase=int(rng.integers(bank.up(f))))
        truth = batch.truth(n_out, normalise=normalise)
        got = batch.run(n_out, normalise=normalise)
        for i in range(3):
            assert snr_db(got[i], truth[i]) > 100.0, (dtype, i, normalise)


def test_agrees_where_the_table_has_fewer_phases_than_the_ratio() -> None:
    fs_hz = Fraction(1000 * 10**6, 9_997_558)
    bank = FilterBank("aasm", 256)
    f = bank.index("eeg", fs_hz)
    x = noise(np.random.default_rng(2), 6000)
    batch = Batch(bank)
    for phase in (0, 1, bank.up(f) // 3, bank.up(f) - 1):
        batch.add(x, f, start=-5, first=2000, phase=phase)
    assert snr_db(batch.run(), batch.truth()) > 100.0
    # What the rounding of the time costs, against a tone in exact time.
    tone_hz = 20.0
    x = np.round(20000 * np.cos(2 * np.pi * tone_hz * np.arange(6000) / float(fs_hz)))
    batch = Batch(bank)
    batch.add(x, f, first=1500, phase=bank.up(f) // 3)
    place = 1500 + (bank.up(f) // 3 + np.arange(N_OUT, dtype=np.int64) * bank.down(f)) / bank.up(f)
    expected = 20000 * np.cos(2 * np.pi * tone_hz * place / float(fs_hz))
    assert snr_db(batch.run()[0, 0], torch.from_numpy(expected)) > 75.0


@pytest.mark.parametrize("preset", ["aasm", "none", "clinical"])
def test_large_offset_in_24_bit_data(preset: str) -> None:
    """A few digital steps on top of an electrode offset of 7 million: the offset costs no accuracy."""
    bank = FilterBank(preset, 256)
    f = bank.index("eeg", 512)
    rng = np.random.default_rng(3)
    x = 7_000_000 + noise(rng, 40 * 512, 300)
    batch = Batch(bank, np.int32)
    batch.add(x, f, first=4 * 512, calibration=(0.25, 100.0, 0.25 * 7_000_000 + 100.0, 1.0))
    truth = batch.truth()
    if preset == "aasm":  # the centre belongs to what passes a constant
        batch.calibration[0] = (0.25, 100.0, 0.0, 1.0)
        truth = batch.truth()
    assert truth.std() > 1.0
    assert snr_db(batch.run(), truth) > 100.0
    assert snr_db(batch.run(normalise="zscore"), batch.truth(normalise="zscore")) > 100.0


def test_extremes_of_int32_and_int16() -> None:
    bank = FilterBank("aasm", 256)
    rng = np.random.default_rng(4)
    for dtype in (np.int16, np.int32):
        limits = np.iinfo(dtype)
        for kind in ("eeg", "snore", "step", "emg"):
            f = bank.index(kind, 200)
            batch = Batch(bank, dtype, guard=limits.max)
            batch.add(rng.choice([limits.min, limits.max], 8000), f, first=1000)
            batch.add(np.full(8000, limits.min), f, first=1000)
            batch.add(np.full(8000, limits.max), f, first=1000)
            got, truth = batch.run(), batch.truth()
            assert torch.isfinite(got).all()
            assert snr_db(got[0], truth[0]) > 100.0
            expected = 0.0 if kind in ("eeg", "emg") else 1.0
            assert torch.equal(got[1], torch.full_like(got[1], expected * float(limits.min)))
            assert torch.equal(got[2], torch.full_like(got[2], expected * float(limits.max)))


# ---- what filters do ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "fs_hz", "tone_hz", "gain"),
    [
        ("eeg", 200, 0.05, 0.0),
        ("eeg", 200, 1.0, 1.0),
        ("eeg", 200, 34.0, 1.0),
        ("eeg", 200, 50.0, 0.0),
        ("eeg", 100, 10.0, 1.0),
        ("eeg", 512, 130.0, 0.0),
        ("emg", 512, 4.0, 0.0),
        ("emg", 512, 99.0, 1.0),
        ("ecg", 256, 69.0, 1.0),
        ("respiration", 25, 0.25, 1.0),
        ("respiration", 64, 20.0, 0.0),
        ("snore", 1000, 110.0, 1.0),
        ("snore", 1000, 130.0, 0.0),
    ],
)
def test_tones_keep_their_place_or_go(kind: str, fs_hz: int, tone_hz: float, gain: float) -> None:
    """Zero phase: a kept tone lies where it lay, to one part in a thousand; a removed one leaves less than that."""
    bank = FilterBank("aasm", 256)
    f = bank.index(kind, fs_hz)
    seconds = 120
    x = np.round(30000 * np.sin(2 * np.pi * tone_hz * np.arange(seconds * fs_hz) / fs_hz))
    batch = Batch(bank)
    batch.add(x, f, first=45 * fs_hz)
    t = 45 + np.arange(N_OUT) / 256
    expected = 30000 * gain * np.sin(2 * np.pi * tone_hz * t)
    tolerance = 1300 if tone_hz == 0.05 else 30  # -28 dB one octave and a half below the corner
    assert np.abs(batch.run()[0, 0].numpy() - expected).max() < tolerance


@pytest.mark.parametrize("preset", ["seed", "clinical", "aasm", "none"])
@pytest.mark.parametrize("fs_hz", [Fraction(1), Fraction(3), Fraction("204.85"), Fraction(512)], ids=str)
@pytest.mark.parametrize("normalise", NORMALISATIONS)
def test_desaturation_never_overshoots(normalise: str, preset: str, fs_hz: Fraction) -> None:
    """SpO2 from 97 to 85 % and back stays between 85 and 97 %: no filter rings there, nothing scales it."""
    bank = FilterBank(preset, 256)
    f = bank.index("step", fs_hz)
    n = int(60 * fs_hz)
    x = np.full(n, 970)
    x[n // 3 : n // 2] = 850
    batch = Batch(bank)
    batch.add(x, f, first=int(15 * fs_hz), calibration=(0.1, 0.0, 0.0, 1.0))
    y = batch.run(normalise=normalise)
    assert y.max() == pytest.approx(97.0, abs=1e-4)
    assert y.min() == pytest.approx(85.0, abs=1e-4)
    assert y.max() < 97.0 + 1e-4
    assert y.min() > 85.0 - 1e-4


@pytest.mark.parametrize(("fs_hz", "start"), [(512, 0), (500, 3), (1000, 250)])
def test_clinical_is_sosfiltfilt_and_linear_interpolation(fs_hz: int, start: int) -> None:
    bank = FilterBank("clinical", 128)
    f = bank.index("eeg", fs_hz)
    x = noise(np.random.default_rng(5), 40 * fs_hz)
    smooth = scipy.signal.sosfiltfilt(scipy.signal.butter(4, 128 / fs_hz, output="sos"), x.astype(float))
    batch = Batch(bank)
    batch.add(x, f, start=start, first=start + 4 * fs_hz)
    expected = np.interp(4 + np.arange(30 * 128) / 128, np.arange(len(x)) / fs_hz, smooth)
    assert snr_db(batch.run(30 * 128)[0, 0], torch.from_numpy(expected)) > 100.0


def test_seed_differs_from_fourier_resampling_at_the_band_edge_only() -> None:
    """The original resamples by Fourier transform; this agrees below 0.95 of the Nyquist frequency to 80 dB."""
    rng = np.random.default_rng(6)
    band = scipy.signal.firwin(801, 90.0, fs=200)
    x = np.round(np.convolve(rng.normal(0, 6000, 60 * 200), band, mode="same"))
    bank = FilterBank("seed", 256)
    batch = Batch(bank)
    batch.add(x, bank.index("eeg", 200), first=15 * 200)
    fourier = scipy.signal.resample(x, 60 * 256)[15 * 256 : 45 * 256]
    assert snr_db(batch.run()[0, 0], torch.from_numpy(fourier)) > 60.0


# ---- clips and recordings -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["eeg", "respiration", "emg", "step"])
@pytest.mark.parametrize("fs_hz", [Fraction(25), Fraction(100), Fraction("204.85"), Fraction(512)], ids=str)
def test_clips_are_the_whole_recording(kind: str, fs_hz: Fraction) -> None:
    """Windows of exactly `context` samples on either side, cut at the recording's ends, give what the whole gives."""
    bank = FilterBank("aasm", 256)
    f = bank.index(kind, fs_hz)
    up, context = bank.up(f), bank.context(f)
    n = int(150 * fs_hz)
    rng = np.random.default_rng(7)
    x = noise(rng, n) + np.cumsum(noise(rng, n, 40)).astype(np.int32) // 8
    start = 1000  # the segment's first sample need not be index 0 of the recording's grid
    whole = Batch(bank, np.int32)
    whole.add(x, f, start=start, first=start)
    full = whole.run(5 * N_OUT)[0, 0]
    exact, wide = Batch(bank, np.int32), Batch(bank, np.int32)
    for clip in range(5):
        u = clip * N_OUT * bank.down(f)
        first, phase = start + u // up, u % up
        last = start + (u + (N_OUT - 1) * bank.down(f)) // up
        for batch, extra in ((exact, 0), (wide, 333)):
            low = max(start, first - context - extra)
            high = min(start + n, last + 1 + context + extra)
            batch.add(x[low - start : high - start], f, start=low, first=first, phase=phase)
    clips = exact.run().reshape(-1)
    assert torch.equal(wide.run().reshape(-1), clips)
    assert snr_db(clips, full.double()) > 110.0
    assert snr_db(clips, whole.truth(5 * N_OUT)[0, 0]) > 100.0


def test_what_lies_outside_the_windows_is_not_read() -> None:
    bank = FilterBank("aasm", 256)
    results = []
    for guard in (32767, -32768, 0):
        batch = Batch(bank, np.int16, guard)
        rng = np.random.default_rng(8)
        for kind, fs_hz, n in (("eeg", 200, 6000), ("respiration", 25, 700), ("step", 1, 30), ("emg", 512, 15361)):
            batch.add(noise(rng, n), bank.index(kind, fs_hz), first=3)
        batch.add(np.array([5]), bank.index("eeg", 200))
        results.append(batch.run(n_channels=5))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("normalise", NORMALISATIONS)
def test_a_clip_does_not_depend_on_its_batch_mates(dtype: torch.dtype, normalise: str) -> None:
    batch = mixed_batch()
    raw, table, calibration = batch.tensors(5)
    together = batch.run(n_channels=5, dtype=dtype, normalise=normalise)
    for b in range(3):
        for c in range(5):
            alone = ops.filter_resample(
                raw, table[b : b + 1, c : c + 1], calibration[b : b + 1, c : c + 1], batch.bank, N_OUT,
                dtype=dtype, normalise=normalise,
            )  # fmt: skip
            assert torch.equal(alone[0, 0], together[b, c])
    assert torch.equal(together[1, 2], torch.zeros(N_OUT, dtype=dtype))
    order = torch.tensor([2, 0, 1])
    shuffled = ops.filter_resample(
        raw, table[order], calibration[order], batch.bank, N_OUT, dtype=dtype, normalise=normalise
    )
    assert torch.equal(shuffled, together[order])


def test_the_number_of_threads_changes_no_bit() -> None:
    batch = mixed_batch(7)
    before = torch.get_num_threads()
    try:
        results = []
        for n_threads in (1, 2, 3, 8):
            torch.set_num_threads(n_threads)
            results.append(torch.stack([batch.run(n_channels=5, normalise=m) for m in NORMALISATIONS]))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert torch.equal(results[0], other)


def test_zscore() -> None:
    batch = mixed_batch()
    y = batch.run(n_channels=5, normalise="zscore").double()
    for c in (0, 1, 2, 4):
        for b in range(3):
            if (b, c) != (1, 2):
                assert abs(float(y[b, c].mean())) < 1e-5
                assert float(y[b, c].std(correction=0)) == pytest.approx(1.0, abs=1e-5)
    assert torch.equal(y[:, 3], batch.run(n_channels=5, normalise="none").double()[:, 3])
    # A negative gain turns the signal over.
    turned = mixed_batch()
    turned.calibration = [(-c[0], *c[1:]) for c in turned.calibration]
    assert torch.equal(turned.run(n_channels=5, normalise="zscore")[:, :3].double(), -y[:, :3])


@pytest.mark.parametrize(("level", "at_least_db"), [(0, 110.0), (100, 110.0), (2000, 90.0)])
def test_zscore_of_a_clip_far_from_the_mean_of_its_samples(level: int, at_least_db: float) -> None:
    """The kernel counts from the mean of all samples that a clip needs; here the signal was higher before the clip.

    At 2,000 the clip lies a hundred deviations away: single precision leaves 93 dB, and 78 if variances were not of
    what is left without the mean.
    """
    bank = FilterBank("none", 256)
    f, n_out = bank.index("eeg", 512), 384
    context = bank.context(f)
    x = np.random.default_rng(5).integers(-2, 3, 2 * (context + n_out))
    x[: context // 2] += level
    batch = Batch(bank)
    batch.add(x, f, first=context)
    assert snr_db(batch.run(n_out, normalise="zscore"), batch.truth(n_out, normalise="zscore")) > at_least_db


@pytest.mark.parametrize("n_out", [1, 2, 3, 4, 5, 6, 1001, N_OUT])
def test_robust_is_median_and_interquartile_range_as_numpy_has_them(n_out: int) -> None:
    """On Gaussian, heavy-tailed, tied and one-sided values, of either sign; the identity filter keeps them exact."""
    bank = FilterBank("none", 256)
    f = bank.index("eeg", 256)
    rng = np.random.default_rng(11)
    batch = Batch(bank, np.int32)
    for x in (
        rng.normal(0, 900, n_out),
        1e5 * rng.standard_cauchy(n_out).clip(-9, 9),
        rng.integers(-1, 2, n_out),
        np.exp(rng.normal(0, 3, n_out)),
        -1e6 - np.exp2(rng.uniform(0, 19, n_out)),
        np.arange(n_out) % 7 * 1000,
    ):
        for gain in (0.5, -2.0):
            batch.add(x, f, calibration=(gain, 7.0, 1.0, 3.0))
    filtered = batch.run(n_out)[:, 0].numpy().astype(np.float64)
    low, median, high = np.quantile(filtered, [0.25, 0.5, 0.75], axis=1, keepdims=True)
    deviation = (high - low) / 1.349
    flat = deviation == 0
    expected = np.where(flat, 0.0, (filtered - median) / np.where(flat, 1.0, deviation))
    got = batch.run(n_out, normalise="robust")[:, 0].numpy()
    np.testing.assert_allclose(got, expected, rtol=2e-6, atol=2e-6 * max(1.0, np.abs(expected).max()))
    if n_out > 3:
        assert not flat.all()


def test_robust() -> None:
    batch = mixed_batch()
    y = batch.run(n_channels=5, normalise="robust").double()
    for b in range(3):
        for c in (0, 1, 2, 4):
            if (b, c) != (1, 2):
                low, median, high = np.quantile(y[b, c].numpy(), [0.25, 0.5, 0.75])
                assert abs(median) < 1e-5
                assert high - low == pytest.approx(1.349, abs=1e-5)
    assert torch.equal(y[:, 3], batch.run(n_channels=5, normalise="none").double()[:, 3])
    truth = batch.truth(n_channels=5, normalise="robust")
    for b in range(3):
        for c in range(5):
            if truth[b, c].any():
                assert snr_db(y[b, c].float(), truth[b, c]) > 100.0


def test_an_artefact_changes_the_standard_deviation_and_not_the_robust_scale() -> None:
    bank = FilterBank("none", 256)
    f = bank.index("eeg", 200)
    rng = np.random.default_rng(12)
    x = noise(rng, 8000, 300)
    railed = x.copy()
    railed[3000:3600] = 32767  # 3 of 30 s
    results = {}
    for normalise in ("zscore", "robust"):
        batch = Batch(bank)
        batch.add(x, f, first=1000)
        batch.add(railed, f, first=1000)
        y = batch.run(normalise=normalise)[:, 0, :2000]  # before the artefact
        results[normalise] = float(y[1].std() / y[0].std())
    assert results["zscore"] < 0.1
    assert 0.8 < results["robust"] < 1.1


def test_flat_channels_are_zero_not_amplified_rounding() -> None:
    bank = FilterBank("aasm", 256)
    batch = Batch(bank)
    rng = np.random.default_rng(10)
    for kind in ("eeg", "snore"):
        f = bank.index(kind, 200)
        batch.add(np.full(9000, -1234), f, first=1500)
        came_loose = np.full(60 * 200, 17)
        came_loose[: 15 * 200] = noise(rng, 15 * 200, 30000)  # a signal that ends long before the clip
        batch.add(came_loose, f, first=29 * 200)
        batch.add(noise(rng, 9000, 100), f, first=1500, calibration=(0.0, 5.0, 0.0, 1.0))
    for normalise in ("zscore", "robust"):
        assert torch.equal(batch.run(normalise=normalise), torch.zeros(6, 1, N_OUT))


@pytest.mark.parametrize("sign", [-1, 1])
def test_what_counts_as_flat_follows_from_the_largest_deviation_of_either_sign(sign: int) -> None:
    bank = FilterBank("none", 256)
    batch = Batch(bank, np.int32)
    for spike in (10_000_000, 100_000_000):  # a millionth of it, 10 and 100, lies on either side of the deviation
        x = noise(np.random.default_rng(11), N_OUT, 50)
        x[1000] = sign * spike
        batch.add(x, bank.index("eeg", 256))
    y, truth = batch.run(normalise="robust"), batch.truth(normalise="robust")
    assert snr_db(y[0], truth[0]) > 100.0
    assert torch.equal(y[1], torch.zeros(1, N_OUT))
    assert not truth[1].any()


def test_a_gain_that_is_no_number_gives_none() -> None:
    """Of the gain a normalisation keeps the sign, and NaN has none."""
    bank = FilterBank("aasm", 256)
    batch = Batch(bank)
    for gain in (np.nan, -1.0):
        batch.add(
            noise(np.random.default_rng(11), 9000, 100), bank.index("eeg", 200), first=1500, calibration=(gain, 0, 0, 1)
        )
    for normalise in ("zscore", "robust"):
        y = batch.run(normalise=normalise)
        assert bool(y[0].isnan().all())
        assert bool(y[1].isfinite().all())


# ---- a real recording -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("preset", "notch_hz"), [("aasm", None), ("aasm", 50), ("none", None), ("clinical", None)])
def test_real_polysomnography(preset: str, notch_hz: int | None) -> None:
    """Every signal of a real night, first and last clip included, with the gains of its header."""
    path = DATA / "osas2002.edf"
    if not path.exists():
        pytest.skip(f"{path} is not here; set SLEEPFM_TEST_DATA to the folder of test recordings")
    import pyedflib

    bank = FilterBank(preset, 256, notch_hz)
    batch = Batch(bank)
    kinds = {"EEG": "eeg", "EOG": "eog", "EMG": "emg", "ECG": "ecg", "Res": "respiration", "SaO": "step"}
    with pyedflib.EdfReader(str(path)) as reader:
        for i, label in enumerate(reader.getSignalLabels()):
            fs_hz = Fraction(reader.getSampleFrequency(i)).limit_denominator(1000)
            f = bank.index(kinds.get(label[:3], "step"), fs_hz)
            x = reader.readSignal(i, digital=True)
            span = reader.getDigitalMaximum(i) - reader.getDigitalMinimum(i)
            gain = (reader.getPhysicalMaximum(i) - reader.getPhysicalMinimum(i)) / span
            shift = reader.getPhysicalMinimum(i) - gain * reader.getDigitalMinimum(i)
            for clip in (0, 17, int(len(x) / fs_hz) // 30 - 1):
                batch.add(x, f, first=int(clip * 30 * fs_hz), calibration=(gain, shift, 0.0, 1.0))
    for normalise in NORMALISATIONS:
        truth, got = batch.truth(normalise=normalise), batch.run(normalise=normalise)
        assert len(got) >= 42
        for i in range(len(got)):
            if truth[i].any():
                assert snr_db(got[i], truth[i]) > 100.0, (i, normalise)
            else:
                assert not got[i].any()
