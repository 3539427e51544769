"""Blocks of periods in the fused op: their edges, what lies beyond them, and how far an artefact is heard."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from filter_batch import N_OUT, Batch, noise, snr_db

from sleepfm_fast.filtering import period_blocks
from sleepfm_fast.filters import FilterBank

# Odd and even numbers of samples a period, one and several groups of lanes, one to several thousand taps.
CASES = [
    ("none", "eeg", Fraction(200)),
    ("aasm", "eeg", Fraction(200)),
    ("seed", "eeg", Fraction(100)),
    ("aasm", "respiration", Fraction(32)),
    ("none", "eeg", Fraction(128)),
    ("aasm", "ecg", Fraction(256)),
    ("aasm", "emg", Fraction(512)),
    ("aasm", "eeg", Fraction(500)),
    ("aasm", "eeg", Fraction(2048)),
]


def block_of(bank: FilterBank, f: int) -> tuple[int, int]:
    """Outputs in a period and periods in a block of filter ``f``."""
    repeats, offset, reach = bank.tensors()[0][f, 22:].tolist()
    assert offset > 0, "this filter has no blocks"
    return repeats * bank.up(f), period_blocks.BLOCK_PERIODS - 2 * reach


@pytest.mark.parametrize(("preset", "kind", "fs_hz"), CASES, ids=str)
def test_rows_that_end_in_any_part_of_a_block(preset: str, kind: str, fs_hz: Fraction) -> None:
    """A row's length decides what is left for groups: none, a period, half a block, all but a period; at any phase.

    The recording begins and ends inside the first and the last block, where its edge samples repeat.
    """
    bank = FilterBank(preset, 256)
    f = bank.index(kind, fs_hz)
    outputs, periods = block_of(bank, f)
    rng = np.random.default_rng(1)
    seconds = 3 * outputs * periods / 256
    x = noise(rng, int(seconds * fs_hz))
    whole = outputs * periods
    for n_out in (
        outputs + 1,
        whole // 2 + 7,
        whole - outputs,
        whole - 1,
        whole,
        whole + 1,
        whole + outputs,
        2 * whole + whole // 2,
    ):
        batch = Batch(bank, np.int32)
        for first in (0, 1, len(x) // 3, len(x) - 1):
            batch.add(x, f, first=first, phase=int(rng.integers(bank.up(f))))
        truth, got = batch.truth(n_out), batch.run(n_out)
        for i in range(3):
            assert snr_db(got[i], truth[i]) > 115.0, (n_out, i)
        # After the end there is a constant, and what the filter makes of the step to it.
        assert (got[3].double() - truth[3]).abs().max() < 1e-5 * np.abs(x).max(), n_out


@pytest.mark.parametrize(("preset", "kind", "fs_hz"), CASES, ids=str)
def test_rows_of_several_strips_and_tiles(preset: str, kind: str, fs_hz: Fraction) -> None:
    bank = FilterBank(preset, 256)
    f = bank.index(kind, fs_hz)
    block_of(bank, f)
    n_out = 47_003
    batch = Batch(bank)
    batch.add(noise(np.random.default_rng(2), int(n_out / 256 * fs_hz) + 2), f, first=1, phase=bank.up(f) // 2)
    assert snr_db(batch.run(n_out), batch.truth(n_out)) > 115.0


@pytest.mark.parametrize(("preset", "kind", "fs_hz"), CASES, ids=str)
def test_no_bit_depends_on_samples_that_no_output_uses(preset: str, kind: str, fs_hz: Fraction) -> None:
    """A block reads samples that only unwanted outputs of its last periods meet: they must count as zeros."""
    bank = FilterBank(preset, 256)
    f = bank.index(kind, fs_hz)
    outputs, periods = block_of(bank, f)
    context = bank.context(f)
    rng = np.random.default_rng(3)
    for n_out in (N_OUT, 2 * outputs * periods - 5 * outputs):
        first = context + 400
        last = first + (n_out - 1) * bank.down(f) // bank.up(f)
        x = noise(rng, last + context + 1000)
        batch = Batch(bank)
        for extra in (0, 1, 400):
            low, high = first - context - extra, last + 1 + context + extra
            other = x.copy()
            other[:low] = other[high:] = 32767
            batch.add(other[low:high], f, start=low, first=first)
        batch.add(x, f, first=first)
        got = batch.run(n_out)
        for i in range(1, 3):
            assert torch.equal(got[i], got[0]), (n_out, i)
        # The reference that is subtracted first is the mean of the samples in use, the same in all four.
        assert torch.equal(got[3], got[0])


def test_an_artefact_is_heard_in_its_block_only() -> None:
    """Rounding of a railed stretch reaches the other outputs of its 32 periods, 4 s; beyond it is as good as silent."""
    bank = FilterBank("none", 256)
    f = bank.index("eeg", 200)
    outputs, _ = block_of(bank, f)
    x = noise(np.random.default_rng(4), 60 * 200, 20)
    x[6000:6100] = 32767
    loud = Batch(bank)
    loud.add(x, f)
    n_out = 60 * 256
    error = (loud.run(n_out).double() - loud.truth(n_out))[0, 0].abs()
    begin, end = 6000 * 256 // 200, 6100 * 256 // 200
    taps = 200  # outputs that an artefact's filtered edge may reach, and more
    block = period_blocks.BLOCK_PERIODS * outputs
    assert error.max() < 32767 * 5e-7
    assert torch.cat([error[: begin - taps], error[end + taps :]]).max() < 32767 * 3e-7
    assert torch.cat([error[: begin - block], error[end + block :]]).max() < 32767 * 2e-8
