"""Floating-point samples as integers with a gain and an offset, with a stated error."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sleepfm_fast.plurals import agreeing, counted

__all__ = ["Quantised", "quantise"]

STEPS = 256  # a step is at most the spread over this: rounding then adds noise 59 dB below the signal
LIMITS = {"<i2": 2**15 - 1, "<i4": 2**31 - 1}
SAMPLED = 1 << 16  # samples that the spread is measured on
DEVIATION = 1.4826  # standard deviation over median absolute deviation, of a Gaussian


class Quantised(NamedTuple):
    """Integers with ``value = gain * integer + offset``, and what had to be done to get them."""

    integers: npt.NDArray[Any]
    gain: float
    offset: float
    note: str
    issues: tuple[str, ...]


def quantise(values: npt.NDArray[Any], label: str) -> Quantised | None:
    """Find the integers nearest to a channel's samples.

    Whole numbers within the range of 16 bits are kept as they are. Otherwise the range of the values is spread over 16
    bits, or over 32 where a step would be coarser than 1/256 of the values' spread (1.4826 times the median absolute
    deviation), as a few spikes cause.

    Parameters
    ----------
    values : float ndarray [n]
        What is not finite is replaced by the middle of the range, and counted in ``issues``.
    label : str
        The channel, for the sentences.

    Returns
    -------
    Quantised or None
        int16 or int32, little-endian; every finite value is met within half a step (``gain / 2``), but for the
        rounding of float64. None where no value is finite.
    """
    x = np.asarray(values, np.float64)
    issues: tuple[str, ...] = ()
    finite = np.isfinite(x)
    if not finite.all():
        n_lost = int(x.size - finite.sum())
        if n_lost == x.size:
            return None
        known = x[finite]
        x = np.where(finite, x, 0.5 * (known.min() + known.max()))
        issues = (
            f"{label}: {n_lost} of {counted(x.size, 'sample')} {agreeing(n_lost, 'is', 'are')} not finite; the middle "
            "of the range stands for them",
        )
    low, high = (float(x.min()), float(x.max())) if x.size else (0.0, 0.0)
    limit = LIMITS["<i2"]
    if -limit - 1 <= low and high <= limit and not issues and np.array_equal(x, np.rint(x)):
        return Quantised(x.astype("<i2"), 1.0, 0.0, f"{label}: whole numbers, exact", issues)
    offset = 0.5 * low + 0.5 * high
    sampled = x[:: max(1, x.size // SAMPLED)]
    spread = DEVIATION * float(np.median(np.abs(sampled - np.median(sampled))))
    dtype = "<i4" if (high - low) / (2 * limit) > spread / STEPS > 0 else "<i2"
    gain = (high / 2 - low / 2) / LIMITS[dtype]
    if gain == 0.0:  # one value, or a range smaller than what float64 can divide
        return Quantised(np.zeros(x.size, "<i2"), 1.0, offset, f"{label}: constant", issues)
    integers = np.clip(np.rint((x - offset) / gain), -LIMITS[dtype], LIMITS[dtype]).astype(dtype)
    return Quantised(integers, gain, offset, f"{label}: requantised in steps of {gain:.6g}", issues)
