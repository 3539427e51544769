"""Batches for the tests of filter_resample, and what is measured on its outputs."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from sleepfm_fast import ops, reference
from sleepfm_fast.filters import FilterBank
from sleepfm_fast.ops.filter_resample import NORMALISATIONS

__all__ = ["IDENTITY", "NORMALISATIONS", "N_OUT", "Batch", "mixed_batch", "noise", "snr_db"]

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


def mixed_batch(n_clips: int = 3) -> Batch:
    """Five kinds of channel at five rates per clip, one of them missing."""
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
