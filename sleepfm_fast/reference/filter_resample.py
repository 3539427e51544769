"""``filter_resample`` in float64 with SciPy's ``upfirdn``, one window at a time."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from sleepfm_fast.filters import FilterBank, FilterDesign

__all__ = ["filter_resample", "filter_window"]

FloatArray = npt.NDArray[np.float64]


def filter_resample(
    raw: torch.Tensor,
    table: torch.Tensor,
    calibration: torch.Tensor,
    bank: FilterBank,
    n_out: int,
    *,
    dtype: torch.dtype = torch.float32,
    normalise: str = "none",
) -> torch.Tensor:
    """`sleepfm_fast.ops.filter_resample`, computed in float64; ``dtype`` may also be ``torch.float64``."""
    n_clips, n_channels = table.shape[:2]
    out = np.zeros((n_clips, n_channels, n_out))
    samples = raw.cpu().numpy()
    for b in range(n_clips):
        for c in range(n_channels):
            offset, length, start, first, phase, f = (int(v) for v in table[b, c])
            if length == 0:
                continue
            gain, shift, center, scale = (float(v) for v in calibration[b, c])
            design = bank.design(f)
            digital = samples[offset : offset + length].astype(np.float64)
            if normalise != "none" and not design.step:
                # The normalisation removes the gain. Filtering digital values keeps the unit of the flatness threshold.
                y = filter_window(digital, design, start, first, phase, n_out)
                flat_below = max(1.0 / 1024.0, 1e-6 * float(np.abs(digital - digital.mean()).max()))
                out[b, c] = _NORMALISE[normalise](y, np.sign(gain * scale), flat_below)
            else:
                y = filter_window(gain * digital + shift, design, start, first, phase, n_out)
                out[b, c] = (y - center) * scale
    return torch.from_numpy(out).to(dtype).to(raw.device)


def filter_window(x: FloatArray, design: FilterDesign, start: int, first: int, phase: int, n_out: int) -> FloatArray:
    """Filter and resample one window.

    Parameters
    ----------
    x : ndarray, shape (n,)
        Samples of the window; its edge samples repeat beyond it.
    design
        The filter.
    start, first, phase
        As in the rows of `sleepfm_fast.ops.filter_resample`'s ``table``.
    n_out
        Number of outputs.

    Returns
    -------
    ndarray, shape (n_out,)
    """
    u = phase + np.arange(n_out, dtype=np.int64) * design.down
    half = (len(design.main) - 1) // 2
    reach = design.phases + half // design.phases + 2
    # The range of segment indices that the main filter may need.
    begin = first - reach
    end = first + int(u[-1] // design.up if n_out else 0) + reach + 2
    extended = _extend(x, start, begin, end)
    if design.decimation:
        extended = extended - _low(x, design, start, begin, end)
    if design.phases == design.up:
        return _upfirdn_at(extended, design, int(first - begin) * design.up + phase, n_out)
    # The table has fewer phases than `up`: an output's time is rounded to 1 / phases of a sample.
    row = (u % design.up * design.phases + design.up // 2) // design.up
    q = first - begin + u // design.up + row // design.phases
    table, left = design.main_table
    y = np.zeros(n_out)
    for t in range(table.shape[1]):
        y += table[row % design.phases, t] * extended[q - left + t]
    return y


def _extend(x: FloatArray, start: int, begin: int, end: int) -> FloatArray:
    return np.asarray(x[np.clip(np.arange(begin, end) - start, 0, len(x) - 1)], dtype=np.float64)


def _upfirdn_at(x: FloatArray, design: FilterDesign, u0: int, n_out: int) -> FloatArray:
    import scipy.signal

    # upfirdn keeps every `down`-th output; zeros in front of the taps shift u0 onto that grid.
    half = (len(design.main) - 1) // 2
    lead = -(half + u0) % design.down
    taps = np.concatenate([np.zeros(lead), design.main])
    skip = (half + lead + u0) // design.down
    return np.asarray(scipy.signal.upfirdn(taps, x, design.up, design.down)[skip : skip + n_out])


def _low(x: FloatArray, design: FilterDesign, start: int, begin: int, end: int) -> FloatArray:
    """Return the low branch at segment samples ``begin`` to ``end``; its decimated grid lies on segment sample 0."""
    import scipy.signal

    d = design.decimation
    half = [(len(taps) - 1) // 2 for taps in (design.decimator, design.low, design.interpolator)]
    reach = half[0] + d * (half[1] + 2) + half[2]
    grid_begin, grid_end = (begin - reach) // d, -((-end - reach) // d)
    wide = _extend(x, start, grid_begin * d - half[0], grid_end * d + half[0] + 1)
    decimated = np.convolve(wide, design.decimator, mode="valid")[::d]
    low = np.convolve(decimated, design.low, mode="same")
    back = scipy.signal.upfirdn(design.interpolator, low, d, 1)
    at = begin - grid_begin * d + half[2]
    return np.asarray(back[at : at + end - begin])


def _zscore(y: FloatArray, sign: float, flat_below: float) -> FloatArray:
    deviation = float(y.std())
    return np.asarray(sign * (y - y.mean()) / deviation) if deviation > flat_below else np.zeros_like(y)


def _robust(y: FloatArray, sign: float, flat_below: float) -> FloatArray:
    low, median, high = np.quantile(y, [0.25, 0.5, 0.75])
    deviation = (high - low) / 1.349  # the interquartile range of a standard normal distribution is 1.349
    return np.asarray(sign * (y - median) / deviation) if deviation > flat_below else np.zeros_like(y)


_NORMALISE = {"zscore": _zscore, "robust": _robust}
