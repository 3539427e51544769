"""Tables for filtering 32 periods of outputs at a time by their spectrum: two real matrices for each frequency.

A *period* is ``U`` outputs that span ``D`` samples, after which taps and relative places recur. Over the periods, each
sample place ``r`` and each output place ``n`` is a sequence of one number per period, and output sequence ``n`` is the
sum over ``r`` of sample sequence ``r`` convolved with the taps that lie ``D`` samples apart. Over a block of 32 periods
that convolution is a product at each frequency ``w`` of a discrete Fourier transform,

    y_n(w) = sum_r A_nr(w) x_r(w),   A_nr(w) = sum_k h(n M / L - r + k D) exp(-i w k).

where ``L / M`` is the output rate over the native rate. Outputs and samples are counted from a sample on which an
output lies, so that a symmetric ``h`` makes ``A_(-n, -r)`` the conjugate of ``A_nr``. Then, with
``s_r = x_r + x_-r`` and ``d_r = x_r - x_-r``,

    (y_n + y_-n) / 2 = sum_r  g s_r + i e d_r        g, e = (Re A_nr + Re A_(n,-r)) / 2, (Im A_nr - Im A_(n,-r)) / 2
    (y_n - y_-n) / 2 = sum_r  a d_r + i b s_r        a, b = (Re A_nr - Re A_(n,-r)) / 2, (Im A_nr + Im A_(n,-r)) / 2

with real g, e, a, b, which halves the multiplications. The mirror image of the output (or the sample) half a period
away is that of the period before; multiplied by half a step of phase, ``exp(i w / 2)``, it is its own mirror image.

The frequencies are ``w = 2 pi (2 l + 1/2) / 32``, ``l = 0 .. 15``. At half-integer frequencies the transform of 32 real
numbers is exactly a complex transform of 16, without the purely real bins of integer frequencies, which would need a
path of their own.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["BLOCK_PERIODS", "FREQUENCIES", "block_cost", "block_table", "choose_repeats", "reach_of"]

FloatArray = npt.NDArray[np.float64]

BLOCK_PERIODS = 32  # block_periods in csrc/params.h
FREQUENCIES = BLOCK_PERIODS // 2
GROUP = 16  # filter_group in csrc/params.h
_LARGEST_MATRIX = 8192  # entries D U of a frequency's matrices; sixteen of them are 512 KiB
_LONGEST_REACH = 10  # periods: 12 of 32 are then left


def reach_of(n_main: int, up: int, down: int, repeats: int) -> int:
    """Return how many periods before and after its own hold samples that an output needs.

    Parameters
    ----------
    n_main
        Taps of the filter on the ``up``-fold grid; odd.
    up, down
        Output rate over native rate in lowest terms.
    repeats
        How many times ``up`` outputs make a period: ``U = repeats * up`` and ``D = repeats * down``.
    """
    n_outputs, n_samples = repeats * up, repeats * down
    farthest = (n_outputs // 2) * down + (n_samples // 2) * up  # an output's first tap from its last sample
    return ((n_main - 1) // 2 + farthest) // (n_samples * up)


def block_cost(n_main: int, up: int, down: int, repeats: int) -> float:
    """Return the cost of an output, in units of a multiply-add of the direct sum."""
    left = BLOCK_PERIODS - 2 * reach_of(n_main, up, down, repeats)
    # A block yields `left` periods. Its three costs: the matrices, 32 D multiply-adds for each of its U output
    # sequences; the transforms of the U output and D sample sequences, each of 224 additions or multiplications, which
    # count as 170 since a processor runs them at a higher rate than the direct sum; and folding and unfolding, 6.
    return 2.0 * FREQUENCIES * repeats * down / left + 170.0 * (1.0 + down / up) / left + 6.0


def choose_repeats(n_main: int, up: int, down: int) -> int:
    """Return the ``repeats`` of least cost; 0 where the matrices would be too large or the filter is too long.

    ``U`` must be a multiple of 32, so that each half of the lanes fills whole vectors of 16.
    """
    best, least = 0, np.inf
    step = 2 * GROUP // int(np.gcd(up, 2 * GROUP))
    for repeats in range(step, _LARGEST_MATRIX // max(1, up * down) + 1, step):
        if repeats * repeats * up * down > _LARGEST_MATRIX:
            break
        if reach_of(n_main, up, down, repeats) <= _LONGEST_REACH:
            cost = block_cost(n_main, up, down, repeats)
            if cost < least:
                best, least = repeats, cost
    return best


def block_table(main: FloatArray, up: int, down: int, repeats: int) -> FloatArray:
    """Return the real matrices of all frequencies, as the kernels read them.

    Parameters
    ----------
    main : ndarray, shape (odd,)
        Symmetric impulse response on the ``up``-fold grid.
    up, down, repeats
        As in `reach_of`; ``repeats * up`` is a multiple of 32.

    Returns
    -------
    ndarray, shape (16, U / 16, D, 16)
        Weights for each frequency and group of 16 lanes. A matrix is applied to two columns of ``D`` numbers,
        ``(Re s, Im d)`` and ``(Im s, -Re d)``; a column lists the sample half a period away if ``D`` is even, then
        ``.. s_1, s_0``, then ``d_1, d_2 ..``. The first ``U / 2`` lanes turn the two columns into the real and the
        imaginary part of ``(y_n + y_-n) / 2``, ``n = 0, 1 ..``; the others into those of ``(y_n - y_-n) / 2i``, except
        that their lane 0 gives the output half a period away, half a step of phase early. All weights are divided by
        16, which normalises the transforms.
    """
    lanes, n_samples = repeats * up // 2, repeats * down
    half, reach = (len(main) - 1) // 2, reach_of(len(main), up, down, repeats)
    w = 2.0 * np.pi * (2.0 * np.arange(FREQUENCIES) + 0.5) / BLOCK_PERIODS
    half_step = np.exp(0.5j * w)[:, None]
    zero = (n_samples - 1) // 2  # sample r is number zero + r
    n = np.arange(lanes + 1)[:, None]
    r = np.arange(-zero, n_samples // 2 + 1)[None, :]
    place = n * down - r * up + half
    a = np.zeros((FREQUENCIES, lanes + 1, n_samples), complex)
    for k in range(-reach, reach + 1):
        index = place + k * n_samples * up
        inside = (index >= 0) & (index < len(main))
        taps = np.where(inside, main[np.clip(index, 0, len(main) - 1)], 0.0)
        a += np.exp(-1j * w * k)[:, None, None] * taps
    a[:, :, zero] /= 2.0  # s_0 is twice x_0
    a[:, :, 2 * zero + 1 :] *= half_step[:, :, None]  # the sample half a period away, if there is one

    def weights(sums: FloatArray, differences: FloatArray) -> FloatArray:
        middle, after, before = sums[:, :, zero : zero + 1], sums[:, :, zero + 1 :], sums[:, :, :zero][:, :, ::-1]
        both = [after[:, :, zero:], ((after[:, :, :zero] + before) / 2.0)[:, :, ::-1], middle]
        after, before = differences[:, :, zero + 1 : 2 * zero + 1], differences[:, :, :zero][:, :, ::-1]
        return np.concatenate([*both, (after - before) / 2.0], axis=2)

    table = np.stack([weights(a.real, -a.imag), weights(a.imag, a.real)], axis=1)[:, :, :lanes]
    far = a[:, lanes:] * half_step.conj()[:, :, None]
    table[:, 1, 0] = weights(far.real, -far.imag)[:, 0]
    groups = table.reshape(FREQUENCIES, 2 * lanes // GROUP, GROUP, n_samples) / FREQUENCIES
    return np.ascontiguousarray(groups.transpose(0, 1, 3, 2))
