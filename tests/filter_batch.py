"""Batches for the tests of filter_resample, and what is measured on its outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812
from closeness import assert_close

from sleepfm_fast import ops, reference
from sleepfm_fast.filters import FilterBank, FilterDesign
from sleepfm_fast.ops.filter_resample import NORMALISATIONS

__all__ = ["IDENTITY", "NORMALISATIONS", "N_OUT", "Batch", "check_rows", "mixed_batch", "noise", "snr_db"]

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
        self._twins: dict[tuple[object, ...], Any] = {}

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
        def computed() -> torch.Tensor:
            return reference.filter_resample(
                *self.tensors(n_channels),
                self.bank,
                n_out,
                dtype=torch.float64,
                **options,  # type: ignore[arg-type]
            )

        return self._once(("truth", n_out, n_channels, *sorted(options.items())), computed).clone()

    def samples(self, i: int) -> torch.Tensor:
        """The window of row i as it is stored, float64."""
        offset, length = self.rows[i][:2]
        return torch.from_numpy(np.concatenate(self.raw)[offset : offset + length].astype(np.float64))

    def in_float32(self, i: int, n_out: int) -> tuple[torch.Tensor, float]:
        """:func:`filter_in_float32` of row i, counted from the integer nearest to its mean."""

        def computed() -> tuple[torch.Tensor, float]:
            (_, _, *places, f), x = self.rows[i], self.samples(i)
            return filter_in_float32(x - x.mean().round(), self.bank.design(f), *places, n_out)

        return self._once(("float32", i, n_out), computed)

    def _once(self, what: tuple[object, ...], compute: Callable[[], Any]) -> Any:
        """What ``compute`` gives for these rows: every type, and every planted error, is measured against the same."""
        key = (*what, self.n, tuple(self.rows), tuple(self.calibration))
        if key not in self._twins:
            self._twins[key] = compute()
        return self._twins[key]


def filter_in_float32(x: torch.Tensor, design: FilterDesign, start: int, first: int, phase: int, n_out: int):
    """Sums of products in float32 as torch computes them, [n_out]; and by how much eps is multiplied in any order.

    x, float64, counts from an integer near its mean. That factor is the largest sum of magnitudes of what is added.
    """
    table, left = (torch.from_numpy(design.main_table[0]), design.main_table[1])
    place = phase + torch.arange(n_out) * design.down
    row = (place % design.up * design.phases + design.up // 2) // design.up
    q = first + place // design.up + row // design.phases - left
    begin, end = int(q[0]), int(q[-1]) + table.shape[1]

    def samples(begin: int, end: int) -> torch.Tensor:
        return x[(torch.arange(begin, end) - start).clamp(0, len(x) - 1)].float()

    extended, largest = samples(begin, end), float(x.abs().max())
    if design.decimation:
        d, branches = design.decimation, (design.decimator, design.low, design.interpolator)
        taps = [torch.from_numpy(t.astype(np.float32)).view(1, 1, -1) for t in branches]
        half = [(t.shape[-1] - 1) // 2 for t in taps]
        reach = half[0] + d * (half[1] + 2) + half[2]
        grid_begin, grid_end = (begin - reach) // d, -((-end - reach) // d)
        decimated = F.conv1d(
            samples(grid_begin * d - half[0], grid_end * d + half[0] + 1)[None, None], taps[0], stride=d
        )
        back = F.conv_transpose1d(F.conv1d(decimated, taps[1], padding=half[1]), taps[2], stride=d)[0, 0]
        at = begin - grid_begin * d + half[2]
        extended = extended - back[at : at + end - begin]
        # An output of the interpolator meets every d-th of its taps.
        of_low = [float(t.abs().sum()) for t in taps[:2]]
        of_low.append(max(float(taps[2][0, 0, k::d].abs().sum()) for k in range(d)))
        largest *= 1 + of_low[0] * of_low[1] * of_low[2]
    windows = extended[q[:, None] - begin + torch.arange(table.shape[1])]
    rows = table[row % design.phases]
    return (windows * rows.float()).sum(-1), float(rows.abs().sum(-1).max()) * largest


def check_rows(batch: Batch, got: torch.Tensor, n_out: int, normalise: str, n_channels: int = 1) -> float:
    """Every output against float64 as no further from it than torch's float32 sums of products, plus a stated term.

    The term: 3 eps times the largest sum of magnitudes that an output adds up (the taps' L1 norm times the largest
    sample, counted from the mean); blocks of periods take sums and differences of samples before they multiply. A
    normalisation divides by a deviation and takes a centre away that are as uncertain as the outputs they are made of;
    it and the calibration round a few times more. 16-bit outputs are rounded once more, half a unit in the last place.
    Returns the largest share of what is allowed.
    """
    truth = batch.truth(n_out, n_channels, normalise=normalise).reshape(-1, n_out)
    found = got.reshape(-1, n_out)
    info, eps = torch.finfo(got.dtype), torch.finfo(torch.float32).eps
    share = 0.0
    for i, ((_, length, *_, f), numbers) in enumerate(zip(batch.rows, batch.calibration, strict=True)):
        what = f"row {i}, filter {f}, {normalise}"
        if length == 0 or not truth[i].any():
            assert not found[i].any(), what
            continue
        gain, shift, centre, scale = (float(np.float32(v)) for v in numbers)
        design = batch.bank.design(f)
        middle = batch.samples(i).mean().round()
        y, size = batch.in_float32(i, n_out)
        constant = 0.0 if design.decimation else 1.0  # what becomes of a constant
        if normalise != "none" and not design.step:
            if normalise == "zscore":
                deviation, y = y.std(correction=0), y - y.mean()
            else:
                low, median, high = torch.quantile(y, torch.tensor([0.25, 0.5, 0.75]))
                deviation, y = (high - low) / 1.349, y - median
            same = np.sign(gain * scale) * y / deviation
            term = 3 * eps * size / float(deviation) * (1 + truth[i].abs()) + 4 * eps * truth[i].abs()
        else:
            passed = constant * (design.main_table[0].sum(1).mean() if constant else 0.0)
            same = ((gain * y.double() + passed * (gain * middle + shift) - centre) * scale).float()
            term = 3 * eps * size * abs(gain * scale) + 2 * eps * (truth[i].abs() + abs(scale * (shift - centre)))
        if got.dtype != torch.float32:
            term = term + (truth[i].abs() * info.eps + info.smallest_normal * info.eps) / 2
        share = max(share, assert_close(found[i], same, truth[i], term, what))
    return share


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
