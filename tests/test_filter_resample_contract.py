"""What filter_resample promises around its arithmetic: types, shapes, refusals, torch, processors, forks, GPUs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from filter_batch import N_OUT, NORMALISATIONS, Batch, mixed_batch, noise, snr_db
from instruction_sets import results_with

import sleepfm_fast
from sleepfm_fast import ops
from sleepfm_fast.filters import FilterBank

ROOT = Path(__file__).resolve().parents[1]


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


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("calibration", [(float("nan"), 0.0, 0.0, 1.0), (1.0, 0.0, 0.0, float("nan"))])
def test_a_calibration_that_is_no_number_gives_nan_and_no_infinity(dtype: torch.dtype, calibration) -> None:
    bank = FilterBank("aasm", 256)
    batch = Batch(bank)
    for rate in (200, 256):
        batch.add(noise(np.random.default_rng(3), 4000, 3000), bank.index("eeg", rate), calibration=calibration)
    assert batch.run(dtype=dtype).isnan().all()


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


BLOCKS, GROUPS = (22, 23, 24), (18, 19, 20)  # columns of FilterRow


@pytest.mark.parametrize("without", [(), GROUPS, BLOCKS, (*GROUPS, *BLOCKS)], ids=str)
@pytest.mark.parametrize(
    ("preset", "fs_hz"), [("aasm", 1), ("aasm", 100), ("aasm", 200), ("none", 200), ("clinical", 512)], ids=str
)
def test_results_do_not_depend_on_memory_that_nobody_has_written(preset, fs_hz, without, spoilt_heap):
    """Scratch is never cleared as a whole: what taps of zero meet beyond the samples in use must be numbers."""
    bank = FilterBank(preset, 256)
    f = bank.index("eeg" if fs_hz > 1 else "step", fs_hz)
    filters, taps = bank.tensors()
    filters = filters.clone()
    filters[:, list(without)] = 0
    batch = Batch(bank)
    for n, first in ((30 * fs_hz + 40, 20), (3, 1)):
        for phase in {0, bank.up(f) // 2, bank.up(f) - 1}:
            batch.add(noise(np.random.default_rng(13), n), f, first=first, phase=phase)
    for n_out in (1, 77, 2001):
        arguments = (*batch.tensors(), filters, taps, n_out, torch.float32, "none")
        y = torch.ops.sleepfm_fast.filter_resample(*arguments)
        spoilt_heap()
        assert torch.equal(torch.ops.sleepfm_fast.filter_resample(*arguments), y), n_out
        assert y.isfinite().all()


@pytest.mark.parametrize("fs_hz", [100, 200, 250, 512])
def test_every_way_to_the_outputs_agrees(fs_hz: int) -> None:
    """Blocks of periods, groups and single outputs: what the filter's row offers decides."""
    bank = FilterBank("aasm", 256)
    f = bank.index("eeg", fs_hz)
    batch = Batch(bank)
    for phase in (0, bank.up(f) - 1):
        batch.add(noise(np.random.default_rng(13), 40 * fs_hz), f, first=5 * fs_hz, phase=phase)
    filters, taps = bank.tensors()
    truth = batch.truth(2001)
    for without in ((), GROUPS, BLOCKS, (*GROUPS, *BLOCKS)):
        row = filters.clone()
        row[:, list(without)] = 0
        y = torch.ops.sleepfm_fast.filter_resample(*batch.tensors(), row, taps, 2001, torch.float32, "none")
        assert snr_db(y, truth) > 120.0


def test_long_rows_are_cut_into_tiles() -> None:
    """More outputs than a tile: kept in `out` (float32) or beside it (half precision) until the scale is known."""
    bank = FilterBank("aasm", 256)
    batch = Batch(bank)
    rng = np.random.default_rng(14)
    n_out = 2 * 32768 + 77
    for kind, fs_hz in (("eeg", 100), ("snore", 200), ("step", 1)):
        f = bank.index(kind, fs_hz)
        batch.add(noise(rng, int(n_out / 256 * fs_hz) + 1), f, calibration=(0.5, 1.0, 2.0, 0.25))
    for normalise in NORMALISATIONS:
        y = batch.run(n_out, normalise=normalise)
        truth = batch.truth(n_out, normalise=normalise)
        for i in range(3):
            assert snr_db(y[i], truth[i]) > 100.0, (normalise, i)
        assert torch.equal(batch.run(n_out, normalise=normalise, dtype=torch.bfloat16), y.bfloat16())


@pytest.mark.parametrize("normalise", ["zscore", "robust"])
def test_long_rows_of_several_threads_are_kept_apart(normalise: str) -> None:
    bank = FilterBank("none", 256)
    batch = Batch(bank)
    rng = np.random.default_rng(14)
    n_rows, n_out = 60, 32768 + 77
    for i in range(n_rows):
        batch.add(noise(rng, n_out, 10 + i), bank.index("eeg", 256))
    rows = {}
    for n_threads in (1, 5):
        torch.set_num_threads(n_threads)
        rows[n_threads] = batch.run(n_out, normalise=normalise, dtype=torch.bfloat16)
    assert torch.equal(rows[1], rows[5])


def test_results_too_large_for_the_caches_are_the_same() -> None:
    """Above 64 MiB they are written past the caches, from where a row begins, which is no vector's place."""
    bank = FilterBank("none", 256)
    batch = Batch(bank)
    batch.add(noise(np.random.default_rng(15), 7700), bank.index("eeg", 256), calibration=(0.5, 1.0, 2.0, 0.25))
    raw, table, calibration = batch.tensors()
    n_out, n_clips = 7681, 2190
    assert 4 * n_out * n_clips > 64 << 20
    one = ops.filter_resample(raw, table, calibration, bank, n_out)
    many = ops.filter_resample(raw, table.repeat(n_clips, 1, 1), calibration.repeat(n_clips, 1, 1), bank, n_out)
    assert torch.equal(many, one.expand_as(many))


@pytest.mark.parametrize("normalise", NORMALISATIONS)
def test_large_results_of_mixed_rows_are_the_same(normalise: str) -> None:
    """Above 64 MiB a row may be written while the thread's next one is computed, whatever filter and length that has.

    Rows in blocks, in groups, one by one and of a step channel, empty rows, and rows of several tiles follow each other
    in any order, and one of each kind is the last. Rows of 300 outputs are too short for a block.
    """
    bank = FilterBank("aasm", 256)
    rng = np.random.default_rng(16)
    for n_out, n_kinds, n_repeats in ((7681, 6, 370), (2 * 32768 + 77, 4, 70), (300, 6, 9400)):
        batch = Batch(bank)
        for kind, fs_hz in (("eeg", 200), ("eeg", 204.85), ("step", 1), ("ecg", 256), ("eeg", 100), ("snore", 200)):
            samples = noise(rng, min(int(n_out / 256 * fs_hz) + 1, 9000))
            batch.add(samples, bank.index(kind, fs_hz), calibration=(0.5, 1.0, 2.0, 0.25))
        raw, table, calibration = batch.tensors()
        table, calibration = table[:n_kinds], calibration[:n_kinds]
        one = ops.filter_resample(raw, table, calibration, bank, n_out, normalise=normalise)
        assert 4 * n_out * n_kinds * n_repeats > 64 << 20
        order = torch.from_numpy(rng.integers(0, n_kinds, n_kinds * n_repeats))
        order[-n_kinds:] = torch.arange(n_kinds)
        table, calibration, expected = table[order], calibration[order], one[order]
        empty = torch.from_numpy(rng.random(len(order)) < 0.1)
        table[empty, :, 1] = 0
        expected[empty] = 0
        for n_threads in (1, 3):
            torch.set_num_threads(n_threads)
            out = torch.full_like(expected, torch.nan)
            ops.filter_resample(raw, table, calibration, bank, n_out, normalise=normalise, out=out)
            assert torch.equal(out, expected), (n_out, n_threads)


def test_strided_arguments() -> None:
    batch = mixed_batch()
    raw, table, calibration = batch.tensors(5)
    wide = torch.stack([raw, raw], dim=1)[:, 0]
    assert not wide.is_contiguous()
    turned = calibration.transpose(0, 1).contiguous().transpose(0, 1)
    got = ops.filter_resample(wide, table, turned, batch.bank, 100)
    assert torch.equal(got, batch.run(100, 5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_buffer_of_the_caller_takes_the_result(dtype: torch.dtype) -> None:
    batch = mixed_batch()
    tensors = batch.tensors(5)
    expected = batch.run(n_channels=5, dtype=dtype, normalise="zscore")
    pool = torch.full((3 * 5 * N_OUT + 2,), -3.0, dtype=dtype)
    out = pool[1:-1].view(3, 5, N_OUT)  # not aligned to anything but its elements
    for _ in range(2):
        got = ops.filter_resample(*tensors, batch.bank, N_OUT, dtype=dtype, normalise="zscore", out=out)
        assert got is out
        assert torch.equal(out, expected)
    assert pool[0] == pool[-1] == -3.0


@pytest.mark.parametrize("compiled", [False, True])
def test_a_backward_that_needs_what_a_buffer_held_is_refused(compiled: bool) -> None:
    """Else it would take the second batch for the first one, in silence."""
    torch._dynamo.reset()
    batch = mixed_batch()
    tensors, out = batch.tensors(5), torch.empty(3, 5, N_OUT)
    call = torch.compile(ops.filter_resample, backend="aot_eager") if compiled else ops.filter_resample
    weight = torch.randn(N_OUT, 2, requires_grad=True)
    losses = []
    for _ in range(2):
        call(*tensors, batch.bank, N_OUT, normalise="zscore", out=out)
        losses.append((out @ weight).square().sum())
    losses[1].backward()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        losses[0].backward()
    with torch.inference_mode():
        kept = torch.empty(3, 5, N_OUT)
        assert torch.equal(ops.filter_resample(*tensors, batch.bank, N_OUT, normalise="zscore", out=kept), out)


def test_a_buffer_that_is_also_an_argument_is_refused() -> None:
    batch = mixed_batch()
    raw, table, calibration = batch.tensors(5)
    memory = torch.zeros(3 * 5 * (N_OUT + 4))
    out = memory[: 3 * 5 * N_OUT].view(3, 5, N_OUT)
    beside = memory[3 * 5 * N_OUT :].view(3, 5, 4).copy_(calibration)
    expected = batch.run(n_channels=5)
    assert torch.equal(ops.filter_resample(raw, table, beside, batch.bank, N_OUT, out=out), expected)
    for place in (0, 3 * 5 * N_OUT - 1):
        within = memory[place : place + 60].view(3, 5, 4)
        with pytest.raises(ValueError, match="out shares memory with calibration; expected a tensor of its own"):
            ops.filter_resample(raw, table, within, batch.bank, N_OUT, out=out)
    samples = memory.view(torch.int16)[: raw.numel()]
    with pytest.raises(ValueError, match="out shares memory with raw"):
        ops.filter_resample(samples, table, calibration, batch.bank, N_OUT, out=out)


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
    with pytest.raises(ValueError, match="normalise is 'minmax'; choose one of: none, zscore, robust"):
        ops.filter_resample(raw, table, calibration, bank, 10, normalise="minmax")
    for n_out in (8.5, "10", None, True):
        with pytest.raises(TypeError, match=rf"n_out is {n_out!r}; expected an integer"):
            ops.filter_resample(raw, table, calibration, bank, n_out)
    assert ops.filter_resample(raw, table, calibration, bank, np.int64(10)).shape == (3, 5, 10)
    with pytest.raises(ValueError, match="n_out is -1; expected the number of output samples"):
        ops.filter_resample(raw, table, calibration, bank, -1)
    with pytest.raises(
        TypeError, match=r"out is torch.float16 of shape \(3, 5, 10\); expected torch.float32 \[B, C, 10\]"
    ):
        ops.filter_resample(raw, table, calibration, bank, 10, out=torch.empty(3, 5, 10, dtype=torch.float16))
    with pytest.raises(TypeError, match=r"out is torch.float32 of shape \(3, 5, 9\); expected"):
        ops.filter_resample(raw, table, calibration, bank, 10, out=torch.empty(3, 5, 9))
    with pytest.raises(ValueError, match=r"out is of shape \(3, 4, 10\), table for \(3, 5\) clips and channels"):
        ops.filter_resample(raw, table, calibration, bank, 10, out=torch.empty(3, 4, 10))
    with pytest.raises(ValueError, match=r"out has strides \(1, 3, 15\); expected a contiguous tensor"):
        ops.filter_resample(raw, table, calibration, bank, 10, out=torch.empty(10, 5, 3).permute(2, 1, 0))
    with pytest.raises(ValueError, match="raw is on cpu, out on meta; move them to one device"):
        ops.filter_resample(raw, table, calibration, bank, 10, out=torch.empty(3, 5, 10, device="meta"))
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
        (18, 17),
        (18, -1),
        (19, 1 << 40),
        (20, 100),
        (20, 1000),
        (21, 1 << 40),
        (22, -1),
        (22, 0),
        (22, 17),
        (22, 1 << 40),
        (23, 0),
        (23, -1),
        (23, 1 << 40),
        (24, -1),
        (24, 16),
    ],
)
def test_tables_that_are_no_filters_are_refused(column: int, value: int) -> None:
    check_that_a_table_is_refused(0, column, value)


@pytest.mark.parametrize(
    ("row", "column", "value"),
    [(0, 1, 24), (1, 22, 16), (3, 2, 255)],
    ids=["rates not in lowest terms", "blocks of half a vector", "groups of a table with few phases"],
)
def test_tables_that_groups_and_blocks_cannot_use_are_refused(row: int, column: int, value: int) -> None:
    check_that_a_table_is_refused(row, column, value)


def check_that_a_table_is_refused(row: int, column: int, value: int) -> None:
    batch = mixed_batch()
    raw, table, calibration = batch.tensors(5)
    filters, taps = batch.bank.tensors()
    filters = filters.clone()
    filters[row, column] = value
    with pytest.raises(ValueError, match=f"row {row} of filters does not describe tables inside taps"):
        torch.ops.sleepfm_fast.filter_resample(raw, table, calibration, filters, taps, 10, torch.float32, "none")


# ---- torch ----------------------------------------------------------------------------------------------------------


def test_opcheck() -> None:
    batch = mixed_batch()
    raw, table, calibration = batch.tensors(5)
    filters, taps = batch.bank.tensors()
    op = torch.ops.sleepfm_fast.filter_resample.default
    for dtype, normalise in ((torch.float32, "none"), (torch.bfloat16, "zscore"), (torch.float16, "robust")):
        torch.library.opcheck(op, (raw, table, calibration, filters, taps, 96, dtype, normalise))
    op = torch.ops.sleepfm_fast.filter_resample_out.default
    torch.library.opcheck(op, (raw, table, calibration, filters, taps, "zscore", torch.empty(3, 5, 96)))


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
@pytest.mark.parametrize("normalise", ["none", "zscore", "robust"])
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
import sys, torch, filter_batch as t
batch = t.mixed_batch()
torch.save(torch.stack([batch.run(n_channels=5, normalise=m) for m in t.NORMALISATIONS]), sys.argv[1])
"""


@pytest.mark.parametrize("isa", sleepfm_fast.build_info()["cpu_instruction_sets"])
def test_every_instruction_set_agrees(isa: str, tmp_path: Path) -> None:
    got = results_with(isa, ISA_SCRIPT, tmp_path)
    batch = mixed_batch()
    for i, normalise in enumerate(NORMALISATIONS):
        truth = batch.truth(n_channels=5, normalise=normalise)
        for b in range(3):
            for c in range(5):
                if truth[b, c].any():
                    assert snr_db(got[i, b, c], truth[b, c]) > 100.0


FORK_SCRIPT = """
import os, sys
sys.path.insert(0, sys.argv[1])
import torch, filter_batch as t
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
