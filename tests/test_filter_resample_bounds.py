"""Every output of filter_resample against float64 and torch's float32 sums; what the bound lets pass and what not."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from filter_batch import NORMALISATIONS, Batch, check_rows, noise

from sleepfm_fast.filters import FilterBank

N_OUT = 1283
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
WAYS = [
    ("aasm", "eeg", None), ("aasm", "emg", 50), ("aasm", "ecg", 60), ("aasm", "respiration", None),
    ("aasm", "snore", None), ("aasm", "step", None), ("none", "eeg", None), ("seed", "eeg", None),
    ("clinical", "eeg", None),
]  # fmt: skip
RATES_HZ = [Fraction(r) for r in ("1", "25", "100", "200", "204.85", "256", "512", "2048")]


def batch_of(preset: str, kind: str, notch_hz: int | None, fs_hz: Fraction, dtype: type = np.int16) -> Batch:
    """Clips inside a recording, at its beginning, over its end, at a gap's two sides; a channel that is not there."""
    bank = FilterBank(preset, 256, notch_hz)
    f = bank.index(kind, fs_hz)
    rng = np.random.default_rng(1)
    n = int(40 * fs_hz) + 2
    x = noise(rng, n) + 500
    batch = Batch(bank, dtype)
    for first in (0, n // 2, n - 1 - int(2 * fs_hz), n - 1):
        batch.add(x, f, start=17, first=17 + first, phase=int(rng.integers(bank.up(f))), calibration=(0.25, 3, 2, -1.5))
    batch.add(np.zeros(0), 0)
    # A segment that ends at a gap a second after the clip's start, and one that begins at the gap's other side.
    batch.add(x[: int(fs_hz) + 1], f, calibration=(-0.5, 0, 0, 1))
    batch.add(x[n // 2 :], f, start=n // 2, first=n // 2)
    return batch


@pytest.mark.parametrize("fs_hz", RATES_HZ, ids=lambda r: f"{float(r):g}Hz")
@pytest.mark.parametrize(("preset", "kind", "notch_hz"), WAYS)
def test_every_output_is_as_close_as_torchs(preset: str, kind: str, notch_hz: int | None, fs_hz: Fraction) -> None:
    for samples in (np.int16, np.int32):
        batch = batch_of(preset, kind, notch_hz, fs_hz, samples)
        for normalise in NORMALISATIONS:
            for dtype in DTYPES if samples is np.int16 else DTYPES[:1]:
                check_rows(batch, batch.run(N_OUT, normalise=normalise, dtype=dtype), N_OUT, normalise)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("normalise", NORMALISATIONS)
@pytest.mark.parametrize(("preset", "kind", "notch_hz"), [way for way in WAYS if way[1] != "step"])
def test_one_wrong_sample_is_seen(
    preset: str, kind: str, notch_hz: int | None, normalise: str, dtype: torch.dtype
) -> None:
    """One of 1,283, wrong by 3.6e-4 of the clip's root mean square, which leaves a signal 100 dB above the error.

    In a 16-bit output: by two units in the last place of a number of that size.
    """
    batch = batch_of(preset, kind, notch_hz, Fraction(200))
    truth, got = batch.truth(N_OUT, normalise=normalise), batch.run(N_OUT, normalise=normalise, dtype=dtype)
    check_rows(batch, got, N_OUT, normalise)
    for i in (0, 1):  # not the clip over the end: the quartiles of what is mostly constant are nearly equal
        for place in (0, 700, N_OUT - 1):
            rms = float(truth[i].square().mean().sqrt())
            size = 3.6e-4 * rms
            if dtype != torch.float32:
                size = 2 * torch.finfo(dtype).eps * max(rms, float(truth[i, 0, place].abs()))
            wrong = got.clone()
            wrong[i, 0, place] += size
            with pytest.raises(AssertionError, match=f"row {i}, .* 1 of {N_OUT} elements"):
                check_rows(batch, wrong, N_OUT, normalise)
