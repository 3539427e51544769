"""The matrices by which the spectra of 32 periods are filtered, against the sums that they stand for."""

from __future__ import annotations

import numpy as np
import pytest

from sleepfm_fast.filtering import fir, period_blocks
from sleepfm_fast.filtering.period_blocks import BLOCK_PERIODS, FREQUENCIES


def filter_block(x: np.ndarray, table: np.ndarray, reach: int) -> np.ndarray:
    """Outputs ``[period, place]`` of samples ``[32 periods, D]``, the middle of a period at ``D // 2``; float64.

    What the C++ does: sums and differences about the middle, transforms, two products a frequency, and back.
    """
    half, d = table.shape[1] * table.shape[3] // 2, table.shape[2]
    middle, n_differences, even = d // 2, (d - 1) // 2, d % 2 == 0
    after, before = x[:, middle + 1 :], x[:, :middle][:, ::-1][:, :n_differences]
    edge = [x[:, :1]] if even else []
    if even:  # the sample half a period before a middle is the last one of the period before
        after, before = x[:, middle + 1 :], x[:, 1:middle][:, ::-1]
    sums = [2.0 * x[:, middle : middle + 1], after + before]
    j = np.arange(FREQUENCIES)[:, None]
    w = 2.0 * np.pi * (2.0 * j + 0.5) / BLOCK_PERIODS

    def transform(values: np.ndarray) -> np.ndarray:
        return np.fft.fft((values[:FREQUENCIES] - 1j * values[FREQUENCIES:]) * np.exp(-1j * np.pi * j / 32), axis=0)

    def back(values: np.ndarray) -> np.ndarray:
        z = FREQUENCIES * np.fft.ifft(values, axis=0) * np.exp(1j * np.pi * j / 32)
        return np.concatenate([z.real, -z.imag])

    # x_(-D / 2) is half a period early, so its own mirror image lies half a step later.
    spectra = [transform(part) for part in sums] + [transform(part) * np.exp(0.5j * w) for part in edge]
    s, difference = np.concatenate(spectra, axis=1)[:, ::-1], transform(after - before)
    columns = np.concatenate([s.real, difference.imag], axis=1), np.concatenate([s.imag, -difference.real], axis=1)
    weights = table.transpose(0, 1, 3, 2).reshape(FREQUENCIES, 2 * half, d)
    re, im = (np.einsum("wld,wd->wl", weights, column) for column in columns)
    both = re + 1j * im
    differences = 1j * both[:, half:]
    far = back(both[:, half : half + 1] * np.exp(0.5j * w))
    plus, minus = back(both[:, :half] + differences), back(both[:, :half] - differences)
    y = np.empty((BLOCK_PERIODS, 2 * half))
    y[:, : half - 1] = minus[:, 1:][:, ::-1]
    y[:, half - 1] = back(both[:, :1])[:, 0]
    y[:, half : 2 * half - 1] = plus[:, 1:]
    y[:, -1] = far[:, 0]
    return y[reach : BLOCK_PERIODS - reach]


@pytest.mark.parametrize(
    ("up", "down", "repeats"),
    [(32, 25, 1), (64, 25, 1), (2, 1, 16), (1, 2, 32), (8, 1, 4), (16, 25, 2), (1, 1, 32), (32, 3, 2)],
)
@pytest.mark.parametrize("n_taps", [1, 2, 37, 110])
def test_a_block_is_the_sum_over_the_taps(up: int, down: int, repeats: int, n_taps: int) -> None:
    """Symmetric taps of no other structure; odd and even periods of samples; filters shorter than a sample too."""
    rng = np.random.default_rng(up * 100 + down + n_taps)
    one_side = rng.standard_normal(n_taps * up // 2)
    main = np.concatenate([one_side[::-1], rng.standard_normal(1), one_side])
    n_outputs, n_samples = repeats * up, repeats * down
    reach = period_blocks.reach_of(len(main), up, down, repeats)
    if 2 * reach >= BLOCK_PERIODS:
        pytest.skip("longer than a block")
    table = period_blocks.block_table(main, up, down, repeats)
    assert table.shape == (FREQUENCIES, n_outputs // 16, n_samples, 16)
    x = rng.standard_normal((BLOCK_PERIODS, n_samples))
    got = filter_block(x, table, reach)
    polyphase, left = fir.polyphase(main, up)
    samples = np.pad(x.reshape(-1), polyphase.shape[1])
    for period in range(got.shape[0]):
        for place in range(n_outputs):
            u = ((period + reach) * n_samples + n_samples // 2) * up + (place - n_outputs // 2 + 1) * down
            begin = u // up - left + polyphase.shape[1]
            expected = samples[begin : begin + polyphase.shape[1]] @ polyphase[u % up]
            assert got[period, place] == pytest.approx(expected, abs=1e-11)


def test_the_reach_is_the_least_that_holds_all_taps() -> None:
    """A tap more than fits takes a period more."""
    for up, down, repeats in ((32, 25, 1), (1, 2, 32), (64, 25, 1)):
        lengths = np.arange(1, 2 * repeats * down * up * 4, 2)
        reaches = [period_blocks.reach_of(n, up, down, repeats) for n in lengths]
        assert reaches == sorted(reaches)
        n = np.arange(-(repeats * up // 2) + 1, repeats * up // 2 + 1)[:, None] * down
        r = np.arange(-((repeats * down - 1) // 2), repeats * down // 2 + 1)[None, :] * up
        for n_taps, reach in zip(lengths[::37], reaches[::37], strict=True):
            beyond = (
                np.abs(n - r + (reach + 1) * repeats * down * up),
                np.abs(n - r - (reach + 1) * repeats * down * up),
            )
            assert min(part.min() for part in beyond) > (n_taps - 1) // 2
        # The least: a period less, and the taps of an output half a period away would not all be held.
        farthest = (repeats * up // 2) * down + (repeats * down // 2) * up
        for n_taps, reach in zip(lengths, reaches, strict=True):
            assert not reach or reach * repeats * down * up - farthest <= (n_taps - 1) // 2


@pytest.mark.parametrize(
    ("n_taps", "up", "down", "repeats"),
    [
        (110, 32, 25, 1),
        (126, 32, 25, 1),
        (64, 64, 25, 1),
        (110, 8, 1, 8),
        (321, 1, 2, 32),
        (162, 5120, 4097, 0),
        (126, 4, 1, 8),
        (400, 4, 1, 32),
        (640, 4, 1, 40),
        (800, 4, 1, 0),  # no period is short enough for the matrices and long enough for the taps
        (400, 16, 1, 22),
    ],
)
def test_the_cheapest_period_is_chosen(n_taps: int, up: int, down: int, repeats: int) -> None:
    assert period_blocks.choose_repeats(n_taps * up | 1, up, down) == repeats
