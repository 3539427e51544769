"""The fused op against float64 SciPy, on random and on real recordings, and the promises around it."""

from __future__ import annotations

import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import scipy.signal
import torch

import sleepfm_fast
from sleepfm_fast import ops, reference
from sleepfm_fast.filters import FilterBank

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("SLEEPFM_TEST_DATA", ROOT.parent / "shared" / "data"))
RATES_HZ = [Fraction(r) for r in ("1", "8", "10", "25", "32", "64", "100", "125", "128", "200", "204.85")]
RATES_HZ += [Fraction(r) for r in (250, 256, 500, 512, 1000, 2048)]
N_OUT = 7680
IDENTITY = (1.0, 0.0, 0.0, 1.0)


class Batch:
    """Windows of several channels, laid end to end with hostile guard samples between them."""

    def __init__(self, bank: FilterBank, dtype: npt.DTypeLike = np.int16, guard: int = 32767) -> None:
        self.bank = bank
        self.dtype = np.dtype(dtype)
        self.guard = guard
        self.raw: list[np.ndarray] = [np.full(7, guard, self.dtype)]
        self.n = 7
        self.rows: list[tuple[int, ...]] = []
        self.calibration: list[tuple[float, ...]] = []

    def add(
        self,
        x: np.ndarray,
        f: int,
        *,
        start: int = 0,
        first: int = 0,
        phase: int = 0,
        calibration: tuple[float, ...] = IDENTITY,
    ) -> None:
        self.rows.append((self.n, len(x), start, first, phase, f))
        self.calibration.append(calibration)
        self.raw += [np.asarray(x, self.dtype), np.full(5, self.guard, self.dtype)]
        self.n += len(x) + 5

    def tensors(self, n_channels: int = 1) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        table = torch.tensor(self.rows, dtype=torch.int64).reshape(-1, n_channels, 6)
        calibration = torch.tensor(self.calibration, dtype=torch.float32).reshape(-1, n_channels, 4)
        return torch.from_numpy(np.concatenate(self.raw)), table, calibration

    def run(self, n_out: int = N_OUT, n_channels: int = 1, **options: object) -> torch.Tensor:
        return ops.filter_resample(*self.tensors(n_channels), self.bank, n_out, **options)  # type: ignore[arg-type]

    def truth(self, n_out: int = N_OUT, n_channels: int = 1, **options: object) -> torch.Tensor:
        return reference.filter_resample(
            *self.tensors(n_channels),
            self.bank,
            n_out,
            dtype=torch.float64,
            **options,  # type: ignore[arg-type]
        )


def snr_db(got: torch.Tensor, truth: torch.Tensor) -> float:
    error = (got.double() - truth).square().sum()
    return float(10.0 * torch.log10(truth.square().sum() / error)) if error > 0 else np.inf


def noise(rng: np.random.Generator, n: int, amplitude: int = 2000) -> np.ndarray:
    return rng.integers(-amplitude, amplitude, n).astype(np.int32)


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
def test_desaturation_never_overshoots(preset: str, fs_hz: Fraction) -> None:
    """SpO2 from 97 to 85 % and back stays between 85 and 97 %, and is not z-scored."""
    bank = FilterBank(preset, 256)
    f = bank.index("step", fs_hz)
    n = int(60 * fs_hz)
    x = np.full(n, 970)
    x[n // 3 : n // 2] = 850
    batch = Batch(bank)
    batch.add(x, f, first=int(15 * fs_hz), calibration=(0.1, 0.0, 0.0, 1.0))
    y = batch.run(normalise="zscore")
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


def mixed_batch(n_clips: int = 3) -> Batch:
    bank = FilterBank("aasm", 256)
    batch = Batch(bank)
    rng = np.random.default_rng(9)
    for clip in range(n_clips):
        for kind, fs_hz in (("eeg", 200), ("ecg", 256), ("respiration", 32), ("step", 1), ("emg", 500)):
            if kind == "respiration" and clip == 1:
                batch.add(np.zeros(0), 0)
                continue
            f = bank.index(kind, fs_hz)
            calibration = (0.1 + clip, 3.0, 2.0, 0.5)
            batch.add(noise(rng, 45 * fs_hz), f, first=5 * fs_hz, calibration=calibration)
    return batch


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("normalise", ["none", "zscore"])
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
            results.append(batch.run(n_channels=5, normalise="zscore"))
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
    assert torch.equal(batch.run(normalise="zscore"), torch.zeros(6, 1, N_OUT))


# ---- types, shapes, edges -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("gain", [1e-9, 1e-7, 3e-6, 1e-3, 1.0, 4.0, 60.0])
def test_half_precision_is_rounded_to_nearest_even(dtype: torch.dtype, gain: float) -> None:
    """Bit for bit as torch rounds, from subnormal numbers to overflow."""
    bank = FilterBank("none", 256)
    batch = Batch(bank)
    rng = np.random.default_rng(11)
    f = bank.index("eeg", 256)  # the identity: values at and near rounding boundaries are easy to hit
    batch.add(np.concatenate([np.arange(-4000, 3680)]), f, calibration=(gain, 0.0, 0.0, 1.0))
    batch.add(noise(rng, N_OUT, 30000), f, calibration=(gain, gain / 3, 0.0, 1.0))
    batch.add(noise(rng, 6000, 30000), bank.index("eeg", 200), calibration=(gain, 0.0, 0.0, 1.0))
    assert torch.equal(batch.run(dtype=dtype), batch.run().to(dtype))


@pytest.mark.parametrize("n_out", [0, 1, 2, 7, 31, 33, 255, 257, 1001])
def test_any_number_of_outputs(n_out: int) -> None:
    bank = FilterBank("aasm", 256)
    batch = Batch(bank)
    for fs_hz in (100, 200, 256, 512):
        batch.add(noise(np.random.default_rng(12), 3000), bank.index("eeg", fs_hz), first=700)
    got = batch.run(n_out)
    assert got.shape == (4, 1, n_out)
    if n_out:
        assert snr_db(got, batch.truth(n_out)) > 100.0


@pytest.mark.parametrize("shape", [(0, 3), (4, 0), (0, 0)])
def test_empty_batches(shape: tuple[int, int]) -> None:
    bank = FilterBank("aasm", 256)
    y = ops.filter_resample(
        torch.zeros(0, dtype=torch.int16),
        torch.zeros(*shape, 6, dtype=torch.int64),
        torch.zeros(*shape, 4),
        bank,
        N_OUT,
    )
    assert y.shape == (*shape, N_OUT)


def test_missing_channels_need_no_filter() -> None:
    raw, bank = torch.zeros(0, dtype=torch.int16), FilterBank("aasm", 256)
    calibration = torch.full((2, 3, 4), float("nan"))
    y = ops.filter_resample(raw, torch.zeros(2, 3, 6, dtype=torch.int64), calibration, bank, 5, normalise="zscore")
    assert torch.equal(y, torch.zeros(2, 3, 5))


def test_strided_arguments() -> None:
    batch = mixed_batch()
    raw, table, calibration = batch.tensors(5)
    wide = torch.stack([raw, raw], dim=1)[:, 0]
    assert not wide.is_contiguous()
    turned = calibration.transpose(0, 1).contiguous().transpose(0, 1)
    got = ops.filter_resample(wide, table, turned, batch.bank, 100)
    assert torch.equal(got, batch.run(100, 5))


# ---- refusals -------------------------------------------------------------------------------------------------------


def refused(column: int, value: int) -> str:
    batch = mixed_batch()
    raw, table, calibration = batch.tensors(5)
    table[1, 4, column] = value
    with pytest.raises(ValueError) as error:
        ops.filter_resample(raw, table, calibration, batch.bank, N_OUT)
    return str(error.value)


@pytest.mark.parametrize(
    ("column", "value", "sentence"),
    [
        (0, -1, "table[1, 4] is a window of 22500 samples at offset -1, which does not lie inside raw"),
        (0, 1 << 62, "does not lie inside raw"),
        (1, -3, "is a window of -3 samples"),
        (1, 1 << 62, "does not lie inside raw"),
        (2, 1 << 50, "does not lie inside its window"),
        (
            3,
            -1,
            "table[1, 4] starts its clip at sample -1, which does not lie inside its window (22500 samples from 0)",
        ),
        (3, 22500, "starts its clip at sample 22500"),
        (4, -1, "has phase -1; filter 4 has phases 0 to 63"),
        (4, 64, "has phase 64; filter 4 has phases 0 to 63"),
        (5, -1, "names filter -1; the bank holds filters 0 to 4"),
        (5, 5, "names filter 5; the bank holds filters 0 to 4"),
    ],
)
def test_bad_rows_are_refused(column: int, value: int, sentence: str) -> None:
    assert sentence in refused(column, value)


def test_bad_arguments_are_refused() -> None:
    batch = mixed_batch()
    raw, table, calibration = batch.tensors(5)
    bank = batch.bank
    with pytest.raises(TypeError, match=r"raw is torch.float32 .*; expected int16 or int32, 1-D"):
        ops.filter_resample(raw.float(), table, calibration, bank, 10)
    with pytest.raises(TypeError, match=r"raw is torch.int16 of shape \(1, .*expected int16 or int32, 1-D"):
        ops.filter_resample(raw[None], table, calibration, bank, 10)
    with pytest.raises(TypeError, match=r"table is torch.int32 .*; expected int64 \[B, C, 6\]"):
        ops.filter_resample(raw, table.int(), calibration, bank, 10)
    with pytest.raises(TypeError, match=r"table is torch.int64 of shape \(3, 5, 5\)"):
        ops.filter_resample(raw, table[:, :, :5], calibration, bank, 10)
    with pytest.raises(TypeError, match=r"calibration is torch.float64 .*gain, offset, center, scale"):
        ops.filter_resample(raw, table, calibration.double(), bank, 10)
    with pytest.raises(ValueError, match=r"table is for \(3, 5\) clips and channels, calibration for \(2, 5\)"):
        ops.filter_resample(raw, table, calibration[:2], bank, 10)
    with pytest.raises(TypeError, match=r"dtype is torch.float64; choose torch.float32, torch.bfloat16"):
        ops.filter_resample(raw, table, calibration, bank, 10, dtype=torch.float64)
    with pytest.raises(ValueError, match="normalise is 'minmax'; choose one of: none, zscore"):
        ops.filter_resample(raw, table, calibration, bank, 10, normalise="minmax")
    with pytest.raises(ValueError, match="n_out is -1; expected the number of output samples"):
        ops.filter_resample(raw, table, calibration, bank, -1)
    with pytest.raises(ValueError, match="raw is on cpu, table on meta; move them to one device"):
        ops.filter_resample(raw, table.to("meta"), calibration, bank, 10)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        (0, 0),
        (2, 0),
        (2, 65),
        (3, -16),
        (3, 1 << 40),
        (4, 0),
        (5, 15),
        (6, -1),
        (10, 1 << 40),
        (13, 1 << 40),
        (14, -1),
    ],
)
def test_tables_that_are_no_filters_are_refused(column: int, value: int) -> None:
    batch = mixed_batch()
    raw, table, calibration = batch.tensors(5)
    filters, taps = batch.bank.tensors()
    filters = filters.clone()
    filters[0, column] = value
    with pytest.raises(ValueError, match="row 0 of filters does not describe tables inside taps"):
        torch.ops.sleepfm_fast.filter_resample(raw, table, calibration, filters, taps, 10, torch.float32, "none")


# ---- torch ----------------------------------------------------------------------------------------------------------


def test_opcheck() -> None:
    batch = mixed_batch()
    raw, table, calibration = batch.tensors(5)
    filters, taps = batch.bank.tensors()
    op = torch.ops.sleepfm_fast.filter_resample.default
    for dtype, normalise in ((torch.float32, "none"), (torch.bfloat16, "zscore")):
        torch.library.opcheck(op, (raw, table, calibration, filters, taps, 96, dtype, normalise))


def test_traces_under_compile() -> None:
    batch = mixed_batch()
    raw, table, calibration = batch.tensors(5)
    batch.bank.tensors()

    def step(raw: torch.Tensor, table: torch.Tensor, calibration: torch.Tensor) -> torch.Tensor:
        return ops.filter_resample(raw, table, calibration, batch.bank, 512, normalise="zscore").square().sum(dim=2)

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(raw, table, calibration), step(raw, table, calibration))


@pytest.fixture
def cuda() -> torch.device:
    if not torch.cuda.is_available() or not sleepfm_fast.build_info()["cuda_architectures"]:
        message = "no CUDA device, or a build without CUDA kernels"
        if os.environ.get("SLEEPFM_REQUIRE_CUDA") == "1":
            pytest.fail(message)
        pytest.skip(message)
    return torch.device("cuda")


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("normalise", ["none", "zscore"])
def test_on_the_gpu(cuda: torch.device, dtype: torch.dtype, normalise: str) -> None:
    """The CUDA kernel against float64 and against itself, on the current stream."""
    batch = mixed_batch()
    tensors = [t.to(cuda) for t in batch.tensors(5)]
    truth = batch.truth(n_channels=5, normalise=normalise)
    full = ops.filter_resample(*tensors, batch.bank, N_OUT, normalise=normalise)
    for b in range(3):
        for c in range(5):
            if truth[b, c].any():
                assert snr_db(full[b, c].cpu(), truth[b, c]) > 100.0
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        again = ops.filter_resample(*tensors, batch.bank, N_OUT, dtype=dtype, normalise=normalise)
    stream.synchronize()
    assert torch.equal(again, full.to(dtype))


@pytest.mark.cuda
def test_impossible_rows_give_nan_on_the_gpu(cuda: torch.device) -> None:
    batch = mixed_batch()
    raw, table, calibration = (t.to(cuda) for t in batch.tensors(5))
    table[0, 0, 0] = 1 << 60
    y = ops.filter_resample(raw, table, calibration, batch.bank, N_OUT)
    assert torch.isnan(y[0, 0]).all()
    assert torch.isfinite(y[0, 1:]).all()


ISA_SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1])
import numpy as np, test_filter_resample as t
batch = t.mixed_batch()
np.save(sys.argv[2], np.stack([batch.run(n_channels=5, normalise=m).numpy() for m in ("none", "zscore")]))
"""


@pytest.mark.parametrize("isa", sleepfm_fast.build_info()["cpu_instruction_sets"])
def test_every_instruction_set_agrees(isa: str, tmp_path: Path) -> None:
    path = tmp_path / "out.npy"
    environment = {**os.environ, "SLEEPFM_CPU": isa, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", ISA_SCRIPT, str(Path(__file__).parent), str(path)]
    subprocess.run(command, env=environment, check=True, cwd=ROOT, timeout=300)
    got = torch.from_numpy(np.load(path))
    batch = mixed_batch()
    for i, normalise in enumerate(("none", "zscore")):
        truth = batch.truth(n_channels=5, normalise=normalise)
        for b in range(3):
            for c in range(5):
                if truth[b, c].any():
                    assert snr_db(got[i, b, c], truth[b, c]) > 100.0


FORK_SCRIPT = """
import os, sys
sys.path.insert(0, sys.argv[1])
import torch, test_filter_resample as t
torch.set_num_threads(2)
batch = t.mixed_batch()
expected = batch.run(n_channels=5)
child = os.fork()
if child == 0:
    torch.set_num_threads(1)
    os._exit(0 if torch.equal(batch.run(n_channels=5), expected) else 3)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_forked_workers_with_one_thread() -> None:
    """As data loader workers run it: forked from a process whose thread pool is in use, one thread each."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-c", FORK_SCRIPT, str(Path(__file__).parent)]
    subprocess.run(command, env=environment, check=True, cwd=ROOT, timeout=120)


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
    for normalise in ("none", "zscore"):
        truth, got = batch.truth(normalise=normalise), batch.run(normalise=normalise)
        assert len(got) >= 42
        for i in range(len(got)):
            if truth[i].any():
                assert snr_db(got[i], truth[i]) > 100.0, (i, normalise)
            else:
                assert not got[i].any()
