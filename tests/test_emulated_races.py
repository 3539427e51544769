"""Every access of the emulated CUDA kernels that no barrier orders is found, whatever the order it was emulated in.

The other tests of the kernels see a missing barrier only where some schedule makes it give another result. Here every
load and store is noted (tests/cuda_on_cpu/races.h), as compute-sanitizer's racecheck does on a device; unlike it, this
sees global memory, several blocks and asynchronous copies too.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

import numpy as np
import pytest
import torch
from contrastive_cases import embeddings, random_mask
from emulated_contrastive import Device, backward, forward
from emulated_cuda import KernelError, Run, compile_kernels, races_looked_for
from emulated_mbconv import emulate, random_weights
from emulated_mbconv_train import emulate_training
from test_contrastive_gemm import Emulator
from test_contrastive_small import Kernel as SmallKernel
from test_cuda_on_cpu import Kernel as FilterKernel
from test_cuda_on_cpu import mixed
from test_emulator import Fault, block_sum, grid_sums, handed_over, product_is_right, reversed_row

from sleepfm_fast.filters import FilterBank
from sleepfm_fast.ops import contrastive_gemm, mbconv_train
from sleepfm_fast.ops.filter_resample import NORMALISATIONS
from sleepfm_fast.ops.mbconv_evaluate import pack

MODES = ("leave_one_out", "pairwise")


@pytest.fixture(autouse=True)
def watched() -> Iterator[None]:
    with races_looked_for():
        yield


# ---- what is found ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kernel", "fault", "sentence"),
    [
        (product_is_right, Fault.no_barrier, "begins a copy to byte .* of the block's dynamic shared memory, which"),
        (product_is_right, Fault.early_overwrite, "begins a copy to byte .*, which thread [0-9]+ of block .* read"),
        (product_is_right, Fault.no_wait, "reads byte .* while an asynchronous copy to it is under way"),
        (reversed_row, Fault.no_warp_sync, "byte .* of a shared array, which thread [0-9]+ of block number 0 read"),
        (grid_sums, Fault.no_grid_barrier, "reads byte 0 of a shared array, which thread 0 of block number 0 wrote"),
    ],
)
def test_what_no_barrier_orders_is_a_sentence(kernel, fault: Fault, sentence: str) -> None:  # type: ignore[no-untyped-def]
    """In a single schedule, and even where the result is right in it."""
    assert kernel(Run())
    with pytest.raises(KernelError, match="a race: .*" + sentence):
        kernel(Run(), fault)


@pytest.mark.parametrize(
    ("kernel", "kind", "count", "needless"),
    [
        (product_is_right, "barrier", 11, {7, 9}),  # after the two last slabs no copy follows
        (product_is_right, "wait", 5, set()),  # without the last one a thread ends too early, which is another fault
        (block_sum, "barrier", 1, set()),
        (reversed_row, "warp_sync", 1, set()),
        (grid_sums, "grid_barrier", 6, {5}),  # nothing comes after the last one
    ],
)
def test_every_barrier_and_wait_that_is_left_out_is_found(  # type: ignore[no-untyped-def]
    kernel, kind: str, count: int, needless: set[int]
) -> None:
    for n in set(range(count)) - needless:
        with pytest.raises(KernelError, match="a race: "):
            kernel(Run(**{f"skipped_{kind}": n}))
    for n in needless:
        assert kernel(Run(**{f"skipped_{kind}": n}))


def test_a_barrier_for_a_part_of_the_block_is_refused_here() -> None:
    with pytest.raises(KernelError, match="barrier 1 is not for all threads to wait at"):
        handed_over(Run())


# ---- the kernels -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("normalise", NORMALISATIONS)
def test_the_filter(normalise: str) -> None:
    kernels = compile_kernels("filter_resample.cpp")
    mixed(kernels).run(2301, normalise=normalise)
    mixed(kernels, np.int32).run(2301, normalise=normalise, workspace_floats=4400)


@pytest.mark.parametrize("normalise", NORMALISATIONS)
def test_barriers_of_the_filter(normalise: str) -> None:
    """One that is left out is a race, or has another right before or behind it that does its work."""
    kernel = FilterKernel(compile_kernels("filter_resample.cpp"), FilterBank("aasm", 256))
    kernel.add(np.random.default_rng(3).integers(-3000, 3000, 4000), kernel.bank.index("eeg", 200), first=900)

    def is_found(n: int) -> bool:
        try:
            kernel.run(1200, Run(skipped_barrier=n), normalise=normalise, threads=64)
        except KernelError as error:
            return "a race: " in str(error)
        return False

    kernel.run(1200, normalise=normalise, threads=64)
    found = [is_found(n) for n in range(kernel.barriers)]
    assert sum(found) > len(found) // 2
    # Neighbours: the two of every reduction over the block, and those around each digit of the quartiles.
    assert max(len(list(run)) for missed, run in groupby(not f for f in found) if missed) <= 3


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("tile", "blocks"), [(16, 3), (32, 2), (16, 1)])
def test_the_loss_in_one_launch(mode: str, tile: int, blocks: int) -> None:
    x, tau, mask = embeddings("random", 3, 37, 50), torch.tensor(2.0), random_mask(3, 37)
    (*_, n_valid, state), _, _ = SmallKernel(tile=tile, blocks=blocks)(x, tau, mask, mode)
    SmallKernel(tile=tile, blocks=blocks)(
        x, tau, mask, mode, upstream=torch.tensor(0.5), given=(n_valid, state), begin=5, end=30
    )


def test_barriers_between_blocks_of_the_loss_in_one_launch() -> None:
    x, tau = embeddings("random", 2, 20, 40), torch.tensor(2.0)
    for n in range(4):
        with pytest.raises(KernelError, match=r"a race: .* of buffer 'workspace'"):
            SmallKernel(Run(skipped_grid_barrier=n), blocks=3)(x, tau, mode="pairwise")


@pytest.mark.parametrize("precision", ["highest", "high"])
@pytest.mark.parametrize(
    ("N", "D", "capability", "samples"),
    [(150, 64, "8.0", None), (150, 100, "8.6", (7, 120)), (70, 256, "8.6", None), (70, 512, "8.6", (3, 60)),
     (70, 512, "9.0", None)],
)  # fmt: skip
def test_the_loss_on_tensor_cores(
    N: int, D: int, capability: str, samples: tuple[int, int] | None, precision: str
) -> None:
    x, tau, mask = embeddings("random", 2, N, D), torch.tensor(2.0), random_mask(2, N)
    options = {"precision": precision, "samples": samples, "device": Device(2, capability)}
    *_, n_valid, state = forward(x, tau, mask, "pairwise", **options)
    backward(torch.tensor(1.0), x, tau, n_valid, state, mask, "pairwise", **options)


@pytest.mark.parametrize("precision", ["highest", "high"])
@pytest.mark.parametrize("mode", MODES)
def test_the_loss_around_products_of_the_library(mode: str, precision: str) -> None:
    x, tau, mask = embeddings("random", 3, 140, 20), torch.tensor(2.0), random_mask(3, 140)
    options = (mask, mode, "both", precision, 0, 140)
    *_, n_valid, state = contrastive_gemm.forward(x, tau, *options, launcher=Emulator())
    contrastive_gemm.backward(torch.tensor(1.0), x, tau, mask, n_valid, state, *options[1:], launcher=Emulator())


@pytest.mark.parametrize("shape", [(32, 16, 2), (24, 24, 1), (40, 80, 2), (112, 192, 2)], ids=str)
def test_blocks_in_evaluation(shape: tuple[int, int, int]) -> None:
    n_in, n_out, stride = shape
    options = {"stride": stride, "residual": stride == 1, "dtype": torch.bfloat16}
    emulate(torch.randn(3, 135, n_in, dtype=torch.bfloat16), pack(*random_weights(n_in, 96, n_out), **options))


@pytest.mark.parametrize("stride", [1, 2])
def test_blocks_in_training(stride: int, monkeypatch: pytest.MonkeyPatch) -> None:
    emulate_training(monkeypatch, n_partials=3)
    g = torch.Generator().manual_seed(0)
    n_in, width, n_out = 16, 96, 24
    shapes = ((width, n_in), (width,), (width,), (width,), (width, 3), (width,), (width,), (width,))
    weights = [torch.randn(shape, generator=g).requires_grad_() for shape in (*shapes, (n_out, width), (n_out,))]
    x = torch.randn(3, 75, n_in, generator=g).to(torch.bfloat16).requires_grad_()
    y, _ = mbconv_train(x, *weights, stride=stride)
    y.sum().backward()
