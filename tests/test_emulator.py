"""The emulator of tests/cuda_on_cpu: PTX's fragment tables restated in NumPy, and planted faults it must catch."""

from __future__ import annotations

import math
from enum import IntEnum
from fractions import Fraction

import numpy as np
import pytest
import torch
from emulated_cuda import ADVERSARIAL, Counts, KernelError, Run, compile_kernels, unnoticed

SOURCE = "instructions.cpp"


class Fault(IntEnum):
    """As in tests/cuda_on_cpu/instructions.cpp."""

    none = 0
    no_barrier = 1
    no_wait = 2
    wrong_fragment = 3
    out_of_bounds_read = 4
    out_of_bounds_write = 5
    write_to_input = 6
    divergent_shuffle = 7
    lanes_apart = 8
    ended_lanes = 9
    barrier_in_branch = 10
    streaming_from_output = 11
    unaligned = 12
    unaligned_word = 13
    word_from_output = 14
    overrun_shared = 15
    no_warp_sync = 16
    early_overwrite = 17
    no_grid_barrier = 18
    wrong_mask = 19
    endless = 20
    wide_shared = 21
    large_shared = 22


# ---- instructions, against the tables of the PTX ISA ----------------------------------------------------------------


def registers(elements: np.ndarray) -> torch.Tensor:
    """Pairs of 16-bit elements [32, 2 r] as the registers [32, r] of 32 lanes, the first one in the lower half."""
    return torch.from_numpy(np.ascontiguousarray(elements).view(np.int32))


def lane_tables() -> tuple[np.ndarray, ...]:
    """Row and column of element i of fragments a (8 elements), b (4) and c (4) of each lane, for m16n8k16."""
    group, within = np.arange(32)[:, None] // 4, np.arange(32)[:, None] % 4
    i = np.arange(8)[None]
    a_row = np.where((i < 2) | ((i >= 4) & (i < 6)), group, group + 8)
    a_column = within * 2 + (i & 1) + np.where(i >= 4, 8, 0)
    i = np.arange(4)[None]
    b_row = within * 2 + (i & 1) + np.where(i >= 2, 8, 0)
    b_column = group + 0 * i
    c_row = np.where(i < 2, group, group + 8)
    c_column = within * 2 + (i & 1)
    return a_row, a_column, b_row, b_column, c_row, c_column


def test_the_ptx_tables_are_those_of_cute() -> None:
    """A second source: strides of a lane's and an element's bits in MMA_Traits<SM80_16x8x16_F32F16F16F32_TN> of CuTe,
    whose places count down the columns.
    """  # noqa: D205
    group, within = np.arange(32)[:, None] // 4, np.arange(32)[:, None] % 4

    def places(of_within: int, *of_bits: int) -> np.ndarray:
        i = np.arange(2 ** len(of_bits))[None]
        return of_within * within + group + sum(stride * (i >> bit & 1) for bit, stride in enumerate(of_bits))

    a_row, a_column, b_row, b_column, c_row, c_column = lane_tables()
    assert np.array_equal(a_row + 16 * a_column, places(32, 16, 8, 128))
    assert np.array_equal(b_column + 8 * b_row, places(16, 8, 64))
    assert np.array_equal(c_row + 16 * c_column, places(32, 16, 8))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("run", ADVERSARIAL, ids=lambda run: run.schedule)
def test_mma_has_the_layout_of_the_ptx_tables(dtype: torch.dtype, run: Run) -> None:
    rng = torch.Generator().manual_seed(1)
    a, b = torch.randn(16, 16, generator=rng).to(dtype), torch.randn(16, 8, generator=rng).to(dtype)
    a[3, 5], b[5, 2] = 2.0**-24 if dtype == torch.float16 else 2.0**-133, 0.5  # subnormal numbers count
    c = torch.randn(16, 8, generator=rng)
    a_row, a_column, b_row, b_column, c_row, c_column = lane_tables()
    d = torch.zeros(32, 4)
    with compile_kernels(SOURCE).call(run) as (memory, call):
        counts = call(
            "mma",
            memory.read("a", registers(a.view(torch.int16).numpy()[a_row, a_column])),
            memory.read("b", registers(b.view(torch.int16).numpy()[b_row, b_column])),
            memory.read("c", c[c_row, c_column]),
            memory.write("d", d),
            int(dtype == torch.bfloat16),
        )
    assert counts.mma == 1
    truth = (a.double() @ b.double() + c.double())[c_row, c_column]
    assert (d.double() - truth).abs().max() < 4e-6


def cut(x: Fraction, step: Fraction) -> Fraction:
    """The multiple of step next to x on the side of 0."""
    return int(x / step) * step


def power_of_two(x: Fraction) -> Fraction:
    """The largest one that is not above |x|, which is a float."""
    return Fraction(2) ** (math.frexp(float(x))[1] - 1)


@pytest.mark.parametrize(("sums", "block", "bits"), [("ampere", 8, 24), ("hopper", 16, 25)])
def test_mma_truncates_as_devices_do(sums: str, block: int, bits: int) -> None:
    """In exact arithmetic; products and sums of all sizes, so that some vanish beside others."""
    rng = torch.Generator().manual_seed(4)

    def factors(*shape: int) -> torch.Tensor:
        powers = torch.ldexp(torch.tensor(1.0), torch.randint(-9, 9, shape, generator=rng).float())
        return (torch.randn(shape, generator=rng) * powers).half()

    a, b, c = factors(16, 16), factors(16, 8), factors(16, 8).float() / 3
    a[1], c[2] = 0.0, 0.0
    a_row, a_column, b_row, b_column, c_row, c_column = lane_tables()
    d = torch.zeros(32, 4)
    with compile_kernels(SOURCE).call(Run(sums=sums)) as (memory, call):
        call(
            "mma",
            memory.read("a", registers(a.view(torch.int16).numpy()[a_row, a_column])),
            memory.read("b", registers(b.view(torch.int16).numpy()[b_row, b_column])),
            memory.read("c", c[c_row, c_column]),
            memory.write("d", d),
            0,
        )
    expected = torch.empty(16, 8)
    for row in range(16):
        for column in range(8):
            total = Fraction(float(c[row, column]))
            for first in range(0, 16, block):
                at = range(first, first + block)
                pairs = [(Fraction(float(a[row, k])), Fraction(float(b[k, column]))) for k in at]
                powers = [power_of_two(x) * power_of_two(y) for x, y in pairs if x * y != 0]
                powers += [power_of_two(total)] if total else []
                if powers:
                    step = max(powers) / 2**bits
                    total = cut(total, step) + sum(cut(x * y, step) for x, y in pairs)
                    total = cut(total, power_of_two(total) / 2**23) if total else total
            expected[row, column] = float(total)
    assert torch.equal(d, expected[c_row, c_column])
    nearest = (a.double() @ b.double() + c.double()).float()
    assert not torch.equal(expected, nearest)


@pytest.mark.parametrize(("number", "expected"), [(np.inf, np.inf), (np.nan, np.nan), (65504.0, 4 * 65504.0)])
def test_mma_keeps_infinity_and_nan(number: float, expected: float) -> None:
    a, b = np.zeros((32, 8), np.float16), np.zeros((32, 4), np.float16)
    a[:, 0], b[:, 0] = number, 1.0
    d = torch.zeros(32, 4)
    with compile_kernels(SOURCE).call() as (memory, call):
        call("mma", memory.read("a", registers(a)), memory.read("b", registers(b)),
             memory.read("c", torch.zeros(32, 4)), memory.write("d", d), 0)  # fmt: skip
    np.testing.assert_equal(d.numpy().max(), expected)


@pytest.mark.parametrize("n", [2, 4])
@pytest.mark.parametrize("transposed", [False, True])
def test_ldmatrix_has_the_layout_of_the_ptx_tables(n: int, transposed: bool) -> None:
    matrices = np.arange(n * 64, dtype=np.int16).reshape(n, 8, 8)
    # The ISA's figure: in row r, elements 0 and 1 belong to thread 4 r, elements 2 and 3 to thread 4 r + 1, ...
    owner = np.repeat(np.arange(32), 2).reshape(8, 8)
    given = np.swapaxes(matrices, 1, 2) if transposed else matrices
    expected = np.stack([[given[m][owner == lane] for m in range(n)] for lane in range(32)]).reshape(32, 2 * n)
    got = torch.zeros(32, n, dtype=torch.int32)
    with compile_kernels(SOURCE).call() as (memory, call):
        counts = call("ldmatrix", memory.read("matrices", torch.from_numpy(matrices)), memory.write("registers", got),
                      n, int(transposed))  # fmt: skip
    assert torch.equal(got, registers(expected))
    assert counts.ldmatrix_wavefronts == counts.ldmatrix_matrices == n  # rows of 16 bytes end to end: no bank conflict


def test_shuffles_and_votes() -> None:
    x = torch.randn(32, dtype=torch.float64)
    y, votes = torch.zeros(96, dtype=torch.float64), torch.zeros(32, dtype=torch.int64).int()
    with compile_kernels(SOURCE).call() as (memory, call):
        call("exchange", memory.read("x", x), memory.write("y", y), memory.write("votes", votes))
    lane = torch.arange(32)
    assert torch.equal(y[:32], x[lane ^ 5])
    assert torch.equal(y[32:64], x[torch.where(lane + 7 < 32, lane + 7, lane)])
    assert torch.equal(y[64:], x[lane // 8])
    expected = sum((1 << i) for i in range(32) if x[i] > 0)
    assert {int(v) & 0xFFFFFFFF for v in votes} == {expected}


# ---- kernels, right and with a planted fault ------------------------------------------------------------------------


def product(run: Run, fault: Fault = Fault.none, k: int = 80) -> tuple[torch.Tensor, torch.Tensor, Counts]:
    rng = torch.Generator().manual_seed(2)
    a, b = torch.randn(16, k, generator=rng).half(), torch.randn(8, k, generator=rng).half()
    c = torch.zeros(16, 8)
    with compile_kernels(SOURCE).call(run) as (memory, call):
        counts = call("product", memory.read("a", a), memory.read("b", b), memory.write("c", c), k, int(fault))
    return c, a.double() @ b.double().T, counts


def product_is_right(run: Run, fault: Fault = Fault.none) -> bool:
    c, truth, _ = product(run, fault)
    return bool((c.double() - truth).abs().max() < 1e-5)


def block_sum(run: Run, fault: Fault = Fault.none, n: int = 300) -> bool:
    x, y = torch.arange(n, dtype=torch.float32), torch.zeros(1)
    with compile_kernels(SOURCE).call(run) as (memory, call):
        call(
            "sum",
            memory.read("x", x, alignment=4),
            n,
            memory.write("y", y, alignment=4 if fault == Fault.out_of_bounds_write else 16),
            int(fault),
        )
    return bool(y[0] == x.sum())


def reversed_row(run: Run, fault: Fault = Fault.none) -> bool:
    x, y = torch.arange(32, dtype=torch.float32), torch.zeros(32)
    with compile_kernels(SOURCE).call(run) as (memory, call):
        call("reverse", memory.read("x", x), memory.write("y", y), int(fault))
    return torch.equal(y, x.flip(0))


def grid_sums(run: Run, fault: Fault = Fault.none, n_blocks: int = 5, n_threads: int = 64) -> bool:
    x, y = torch.arange(n_blocks, dtype=torch.float32), torch.zeros(3, n_blocks)
    partial, state = torch.zeros(n_blocks), torch.zeros(1, dtype=torch.int32)
    with compile_kernels(SOURCE).call(run) as (memory, call):
        call("grid_sum", memory.read("x", x), memory.write("partial", partial), memory.write("y", y),
             memory.update("state", state), n_blocks, n_threads, int(fault))  # fmt: skip
    assert int(state) & 0x7FFFFFFF == 0
    return torch.equal(y, x.sum() * torch.arange(1, 4)[:, None].expand(3, n_blocks))


def handed_over(run: Run, fault: Fault = Fault.none) -> bool:
    x, y = torch.randn(7, 32), torch.zeros(7, 32)
    with compile_kernels(SOURCE).call(run) as (memory, call):
        call("hand_over", memory.read("x", x), memory.write("y", y), 7, int(fault))
    return torch.equal(y, 2 * x)


@pytest.mark.parametrize("run", ADVERSARIAL, ids=lambda run: f"{run.schedule}-{run.copies}")
def test_right_kernels_pass_in_every_schedule(run: Run) -> None:
    assert product_is_right(run)
    assert block_sum(run)
    assert reversed_row(run)
    assert grid_sums(run)
    assert handed_over(run)


@pytest.mark.parametrize(("n_blocks", "n_threads"), [(1, 32), (2, 1), (33, 96)])
def test_grid_barrier_of_any_size(n_blocks: int, n_threads: int) -> None:
    assert grid_sums(Run("shuffled", seed=5), n_blocks=n_blocks, n_threads=n_threads)


@pytest.mark.parametrize(
    ("kernel", "fault"),
    [
        (product_is_right, Fault.no_barrier),
        (product_is_right, Fault.no_wait),
        (product_is_right, Fault.early_overwrite),
        (reversed_row, Fault.no_warp_sync),
        (grid_sums, Fault.no_grid_barrier),
        (handed_over, Fault.no_barrier),
    ],
)
def test_a_planted_race_gives_a_wrong_result(kernel, fault: Fault) -> None:  # type: ignore[no-untyped-def]
    def caught(run: Run) -> bool:
        try:
            return not kernel(run, fault)
        except KernelError:
            return True

    assert any(caught(run) for run in ADVERSARIAL)


def test_a_planted_wrong_fragment_layout_gives_a_wrong_product() -> None:
    assert not product_is_right(Run(), Fault.wrong_fragment)


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        (Fault.out_of_bounds_read, r"out of bounds: read 0 bytes behind the end of buffer 'x' \(1200 bytes\)"),
        (Fault.out_of_bounds_write, r"out of bounds: write 0 bytes behind the end of buffer 'y' \(4 bytes\)"),
        (Fault.write_to_input, "out of bounds: write byte [0-9]+ of buffer 'x', which the kernel may only read"),
        (Fault.divergent_shuffle, "lanes 0-15 wait at shuffle_xor; lanes 16-31 wait at barrier 0"),
        (Fault.lanes_apart, "lanes 4-31 wait at shuffle_xor; lanes 0-3 wait at shuffle_down"),
        (Fault.wrong_mask, "shuffle_xor has .* expected the same in all lanes"),
        (Fault.ended_lanes, "lanes 0-6, 8-31 wait at shuffle_xor; lanes 7 have ended"),
        (Fault.barrier_in_branch, "no thread can go on.*wait at barrier 0"),
        (Fault.streaming_from_output, "the read-only path reads buffer 'y', which this kernel may write"),
        (Fault.unaligned, "load_16: the address in global memory is not a multiple of 16"),
        (Fault.unaligned_word, "load_4: the address in global memory is not a multiple of 4"),
        (Fault.word_from_output, "the read-only path reads buffer 'y', which this kernel may write"),
        (Fault.overrun_shared, "out of bounds: .*shared memory of 400 bytes"),
        (
            Fault.large_shared,
            "49168 bytes of shared arrays beside 400 bytes of dynamic .* the launch leaves them 48752",
        ),
    ],
)
def test_a_planted_fault_becomes_a_sentence(fault: Fault, sentence: str) -> None:
    with pytest.raises(KernelError, match=sentence):
        block_sum(Run("run_ahead"), fault)


def test_shared_arrays_are_aligned_as_their_type_asks_and_no_further() -> None:
    with pytest.raises(KernelError, match="misaligned access"):
        block_sum(Run(seed=1), Fault.wide_shared)


@pytest.mark.parametrize(
    ("n_blocks", "rows", "n_threads", "shared_bytes", "more_shared", "sentence"),
    [
        (0, 1, 32, 0, 1, "a grid of 0 x 1 x 1 blocks"),
        (1, 65536, 32, 0, 1, "a grid of 1 x 65536 x 1 blocks"),
        (1, 1, 1056, 0, 1, "a block of 1056 threads"),
        (1, 1, 32, 227 * 1024 + 16, 1, "232464 bytes of dynamic shared memory"),
        (1, 1, 32, 48 * 1024 + 16, 0, "more than 49152 must be asked for"),
    ],
)
def test_a_launch_that_a_device_refuses_is_refused(  # type: ignore[no-untyped-def]
    n_blocks, rows, n_threads, shared_bytes, more_shared, sentence
) -> None:
    with compile_kernels(SOURCE).call() as (_, call):
        call("launch_of", 1, 1, 1024, 227 * 1024, 1)
        call("launch_of", 1, 1, 1024, 48 * 1024, 0)
        with pytest.raises(KernelError, match=sentence):
            call("launch_of", n_blocks, rows, n_threads, shared_bytes, more_shared)


def test_a_read_before_a_buffer_is_caught_on_its_other_side() -> None:
    with compile_kernels(SOURCE).call(Run(side="start")) as (memory, call):
        x = memory.read("x", torch.zeros(64))
        assert x.value is not None
        x.value -= 16
        with pytest.raises(KernelError, match="read 16 bytes before buffer 'x'"):
            call("reverse", x, memory.write("y", torch.zeros(32)), 0)


def test_waiting_for_a_block_that_never_comes_ends() -> None:
    with pytest.raises(KernelError, match=r"no thread can go on.*wait for another block"):
        grid_sums(Run(), Fault.endless)


def test_every_barrier_wait_and_warp_barrier_that_is_left_out_is_noticed() -> None:
    """The search that other tests apply to the kernels of the project finds every fault in these."""
    counts = product(Run())[2]
    assert (counts.barriers, counts.waits) == (11, 6)
    assert unnoticed(counts.waits - 1, "wait", product_is_right) == []
    # After the two last slabs no copy follows that could overwrite what is read.
    assert unnoticed(counts.barriers, "barrier", product_is_right) == [7, 9]
    assert unnoticed(1, "warp_sync", reversed_row) == []
    assert unnoticed(6, "grid_barrier", grid_sums) == [5]  # nothing comes after the last one


def test_a_product_takes_microseconds() -> None:
    """No timing decides here: half a million lane-steps must merely end within the emulator's own time limit."""
    y = torch.zeros(32)
    with compile_kernels(SOURCE).call() as (memory, call):
        assert call("many_products", 16384, memory.write("y", y)).mma == 16384
    assert torch.equal(y, torch.full((32,), 16.0 * 16384))
