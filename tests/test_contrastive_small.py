"""The CUDA kernel of small batches, run on the host, against the float64 truth; and on a device where there is one."""

from __future__ import annotations

import ctypes
import importlib
import math
import os
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import torch
from contrastive_cases import (
    DIRECTIONS,
    LOG_TEMPERATURES,
    MODES,
    Result,
    check_result,
    embeddings,
    evaluate,
    random_mask,
)
from emulated_cuda import ADVERSARIAL, Run, compile_kernels, unnoticed
from torch import Tensor

from sleepfm_fast import ops, reference
from sleepfm_fast.ops import contrastive_chunked, contrastive_small
from sleepfm_fast.ops.contrastive_loss import ContrastiveStatistics
from sleepfm_fast.ops.contrastive_results import allocate_forward
from sleepfm_fast.ops.registry import DTYPE_CODES

# the module, whose name in the package is the function
contrastive_loss = importlib.import_module("sleepfm_fast.ops.contrastive_loss")

NOTHING = ctypes.c_void_p(0)


def extent(x: Tensor) -> int:
    """Elements of memory from the first to the last of a view."""
    return 1 + sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))


@dataclass
class Kernel:
    """The kernel on the host: ``run`` chooses the schedule, ``blocks`` 0 as many as a device would run."""

    run: Run = field(default_factory=Run)
    tile: int = 16
    blocks: int = 3
    counts: object = None

    def __call__(
        self,
        x: Tensor,
        tau: Tensor,
        mask: Tensor | None = None,
        mode: str = "leave_one_out",
        directions: str = "both",
        *,
        upstream: Tensor | None = None,
        given: tuple[Tensor, Tensor] | None = None,
        gradient: bool = True,
        begin: int = 0,
        end: int | None = None,
    ) -> tuple[tuple[Tensor, ...], Tensor, Tensor]:
        M, N, D = x.shape
        strides = x.stride()
        assert strides[2] == 1
        results = allocate_forward(x, mode)
        gradient_x, slope = torch.empty_like(x, memory_format=torch.contiguous_format), torch.empty(())
        kernels = compile_kernels("contrastive_small.cpp")
        pairwise = int(mode == "pairwise")
        size = kernels.library.workspace_bytes
        size.restype = ctypes.c_int64
        workspace = torch.empty(size(*(ctypes.c_int64(v) for v in (M, N, D, pairwise, gradient))), dtype=torch.uint8)
        barrier = torch.zeros(1, dtype=torch.int32)
        with kernels.call(self.run) as (memory, call):
            if given is None:
                outputs = [memory.write(f"output {k}", result) for k, result in enumerate(results)]
            else:
                outputs = [NOTHING] * 4 + [memory.read("n_valid", given[0]), memory.read("state", given[1])]
            self.counts = call(
                "contrastive_small",
                *(
                    memory.read("x", x.as_strided((extent(x),), (1,)), alignment=x.element_size()),
                    DTYPE_CODES[x.dtype],
                    M,
                    N,
                    D,
                ),
                *strides[:2],
                *(memory.read("log_temperature", tau), NOTHING if mask is None else memory.read("mask", mask)),
                *(pairwise, int(directions == "both"), memory.write("workspace", workspace)),
                *(begin, N if end is None else end, int(given is not None), *outputs),
                NOTHING if upstream is None else memory.read("gradient_loss", upstream),
                memory.write("gradient_x", gradient_x, alignment=x.element_size()) if gradient else NOTHING,
                DTYPE_CODES[gradient_x.dtype],
                memory.write("gradient_log_temperature", slope) if gradient else NOTHING,
                *(memory.update("barrier", barrier), self.tile, self.blocks),
            )
        assert int(barrier) & 0x7FFFFFFF == 0
        return results, gradient_x, slope

    def result(self, x: Tensor, tau: Tensor, **kwargs) -> Result:
        (loss, *statistics, _), gradient_x, slope = self(x.detach(), tau.detach(), **kwargs)
        return Result(loss, gradient_x, slope, ContrastiveStatistics(*statistics))


def check(x: Tensor, log_temperature: float, kernel: Kernel, **kwargs) -> None:
    check_result(kernel.result, x, log_temperature, **kwargs)


COLD, WARM, HOT = LOG_TEMPERATURES

# M, N, D, mode, kind, log temperature, directions, tile, blocks: sizes around the tiles, and 1
CASES = [
    (3, 1, 5, "leave_one_out", "random", WARM, "both", 16, 2),
    (2, 2, 1, "pairwise", "random", COLD, "both", 16, 1),
    (3, 15, 63, "leave_one_out", "aligned", HOT, "both", 16, 3),
    (3, 16, 64, "pairwise", "aligned", WARM, "row", 16, 4),
    (4, 17, 65, "leave_one_out", "random", HOT, "row", 16, 3),
    (8, 5, 33, "pairwise", "random", WARM, "both", 32, 2),
    (8, 5, 40, "leave_one_out", "aligned", COLD, "both", 16, 5),
    (2, 33, 31, "leave_one_out", "aligned", WARM, "both", 32, 1),
    (3, 65, 130, "leave_one_out", "random", HOT, "both", 32, 0),
    (2, 3, 1000, "pairwise", "random", HOT, "both", 16, 2),
]


@pytest.mark.parametrize(("M", "N", "D", "mode", "kind", "log_temperature", "directions", "tile", "blocks"), CASES)
def test_agrees_with_float64(M, N, D, mode, kind, log_temperature, directions, tile, blocks):
    kernel = Kernel(tile=tile, blocks=blocks)
    check(embeddings(kind, M, N, D), log_temperature, kernel, mode=mode, directions=directions)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_masks_strides_and_types(dtype, mode):
    """What the mask hides is not read; x may be any view whose last dimension is dense."""
    mask = random_mask(3, 20)
    mask[:, 3] = False
    mask[1:, 4] = False
    x = embeddings("random", 3, 20, 24).to(dtype)
    wide = torch.full((20, 4, 29), torch.nan, dtype=dtype)
    view = wide[:, :3, :24].transpose(0, 1)
    view.copy_(torch.where(mask[..., None], x, torch.nan))
    for given in (mask, torch.zeros_like(mask)):
        check(view, WARM, Kernel(), mode=mode, mask=given)
    got = Kernel().result(view, torch.tensor(WARM), mode=mode, mask=mask)
    assert (got.d_x[~mask] == 0).all()


@pytest.mark.parametrize("log_temperature", [-200.0, -60.0, -3.0, math.log(40), math.log(41), math.log(1000)])
def test_extreme_temperatures(log_temperature):
    check(embeddings("random", 3, 18, 16), log_temperature, Kernel())


def test_equal_rows_tie_exactly_and_the_first_wins():
    x = embeddings("random", 2, 40, 70)
    x[:, 17] = x[:, 3]
    x[:, 38] = x[:, 3]
    (_, _, _, ranks, _, _), *_ = Kernel(tile=16)(x, torch.tensor(2.0), gradient=False)
    truth = reference.contrastive_loss(x.double(), torch.tensor(2.0).double())[1]
    assert (ranks[:, :, 17] == truth.ranks[:, :, 3] + 1).all()
    assert (ranks[:, :, 38] == truth.ranks[:, :, 3] + 2).all()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_is_not_hidden(value):
    """An infinite row has an infinite length: its unit row is NaN, not the zeros of an absent one."""
    x = embeddings("random", 3, 9, 16)
    x[1, 4, 7] = value
    got = Kernel().result(x, torch.tensor(1.0))
    assert got.loss.isnan()
    assert got.d_log_temperature.isnan()
    assert got.d_x.isnan().any(-1).all()


def test_what_is_not_finite_is_not_hidden_where_a_sample_is_alone():
    x = embeddings("random", 2, 1, 16)
    x[1, 0, 7] = torch.nan
    for value in Kernel().result(x, torch.tensor(1.0), mode="pairwise")[:3]:
        assert value.isnan().all()


def test_zero_rows_have_the_gradient_of_a_division_by_the_floor():
    x = embeddings("random", 3, 9, 16)
    x[0, 2] = 0
    x[1, 5] *= 1e-14
    check(x, WARM, Kernel())


# ---- forward alone, backward from the state, ranges ------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "directions"), [("leave_one_out", "both"), ("pairwise", "row")])
def test_backward_from_the_state_gives_the_same_gradients(mode, directions):
    x, tau, mask = embeddings("aligned", 3, 18, 20), torch.tensor(2.5), random_mask(3, 18)
    options = (mask, mode, directions)
    fused, gradient, slope = Kernel()(x, tau, *options, upstream=torch.tensor(0.7))
    forward, *_ = Kernel(blocks=2)(x, tau, *options, gradient=False)
    for a, b in zip(fused, forward, strict=True):
        assert torch.equal(a, b)
    _, again, slope_again = Kernel(blocks=1)(x, tau, *options, upstream=torch.tensor(0.7), given=forward[4:])
    torch.testing.assert_close(again, gradient, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(slope_again, slope, rtol=1e-6, atol=1e-9)
    kept = torch.cat([gradient.flatten(), slope[None]]).view(torch.uint8)
    scaled = contrastive_small.backward_kept(torch.tensor(2.0), x, tau, mask, *forward[4:], kept, mode, directions)
    assert torch.equal(scaled[0], 2 * gradient)
    assert torch.equal(scaled[1], 2 * slope)


def test_the_op_keeps_the_gradients_of_the_forward_pass(monkeypatch):
    """Through autograd, with the kernel on the host where the device would run it."""

    def forward_keeping(x, tau, mask, mode, directions):
        results, gradient, slope = Kernel()(x.detach(), tau.detach(), mask, mode, directions)
        return *results, torch.cat([gradient.flatten(), slope[None]]).view(torch.uint8)

    monkeypatch.setattr(contrastive_loss, "_keeps_gradients", lambda *_: True)
    monkeypatch.setattr(contrastive_small, "forward_keeping", forward_keeping)
    x = embeddings("random", 3, 12, 20)

    def doubled(x: Tensor, tau: Tensor):
        loss, statistics = ops.contrastive_loss(x, tau)
        return 2 * loss, statistics

    ours = evaluate(doubled, x, torch.tensor(WARM))
    monkeypatch.undo()
    truth = evaluate(doubled, x.double(), torch.tensor(WARM).double())
    for a, b in zip(ours[:3], truth[:3], strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("begin", "end"), [(0, 0), (0, 7), (7, 20), (16, 37), (36, 37)])
def test_ranges_are_their_share_of_the_whole(begin, end, mode):
    x, tau, mask, upstream = embeddings("aligned", 3, 37, 20), torch.tensor(2.5), random_mask(3, 37), torch.tensor(0.7)
    share, *_ = Kernel()(x, tau, mask, mode, begin=begin, end=end, gradient=False)
    truth = contrastive_chunked.forward(x.double(), tau.double(), mask, mode, "both", begin, end)
    for k in (0, 1, 5):  # loss, losses, state
        torch.testing.assert_close(share[k].double(), truth[k], rtol=1e-4, atol=1e-6)
    for k in (2, 3, 4):  # correct, ranks, n_valid
        assert torch.equal(share[k], truth[k])
    state = contrastive_chunked.forward(x.double(), tau.double(), mask, mode, "both", 0, 37)[5]
    given = share[4], state
    _, gradient, slope = Kernel()(x, tau, mask, mode, begin=begin, end=end, upstream=upstream, given=given)
    wanted = contrastive_chunked.backward(
        *(upstream.double(), x.double(), tau.double(), mask, truth[4], state, mode, "both", begin, end)
    )
    torch.testing.assert_close(gradient.double(), wanted[0], rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(slope.double(), wanted[1], rtol=1e-4, atol=1e-7)
    assert not gradient[:, :begin].any()
    assert not gradient[:, end:].any()


# ---- determinism and synchronisation ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "fit", "launched"), [(264, 264, 264), (264, 263, 132), (264, 131, 66), (7, 2, 1), (1, 1, 1), (5, 0, 0)]
)
def test_a_refused_launch_is_tried_with_fewer_blocks(wanted, fit, launched):
    """Their number changes nothing in the results: see the test of the bits."""
    launches = compile_kernels("contrastive_small.cpp").library.blocks_launched
    launches.argtypes, launches.restype = [ctypes.c_int64] * 2, ctypes.c_int64
    assert launches(wanted, fit) == launched


def everything(kernel: Kernel) -> list[bytes]:
    results, gradient, slope = kernel(embeddings("random", 2, 18, 24), torch.tensor(2.0))
    return [bytes(tensor.numpy().tobytes()) for tensor in (*results, gradient, slope)]


def test_the_same_bits_for_every_schedule_and_number_of_blocks():
    expected = everything(Kernel())
    for run in ADVERSARIAL:
        assert everything(Kernel(run, blocks=4)) == expected
    assert everything(Kernel(blocks=1)) == expected


def test_every_barrier_between_blocks_counts():
    kernel = Kernel(blocks=3)
    everything(kernel)
    assert kernel.counts.grid_barriers == 4
    assert unnoticed(4, "grid_barrier", lambda run: everything(Kernel(run, blocks=3))) == []


def test_a_missing_barrier_of_the_block_is_noticed():
    """Of those around the preparation of two samples only the first two, which follow on each other, can be one."""
    x, tau = embeddings("random", 2, 2, 40), torch.tensor(2.0)

    def result(run: Run) -> list[bytes]:
        results, gradient, slope = Kernel(run, blocks=1)(x, tau, mode="pairwise")
        return [bytes(tensor.numpy().tobytes()) for tensor in (*results, gradient, slope)]

    assert set(unnoticed(8, "barrier", result)) <= {0, 1}


# ---- the barrier's state, with the calls of a device written down ----------------------------------------------------


@pytest.fixture
def launched_barriers(monkeypatch):
    """Addresses of the barriers that launches are given; tensors stay on the CPU and nothing runs."""
    seen, kept = [], []
    monkeypatch.setattr(contrastive_small, "_barriers", {})
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=77))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    zeros = torch.zeros

    def allocate(*size, **options):
        kept.append(zeros(*size, **options))  # an address is not given out twice
        return kept[-1]

    monkeypatch.setattr(torch, "zeros", allocate)
    monkeypatch.setattr(contrastive_small._C, "contrastive_small", lambda *arguments: seen.append(arguments[17]))
    return seen


def test_launches_of_a_stream_share_the_barrier_outside_of_graphs_alone(launched_barriers, monkeypatch):
    """torch.compile refuses what an op keeps of the memory of a graph to come."""
    x, tau = embeddings("random", 3, 5, 8), torch.tensor(1.0)
    arguments = (x, tau, None, "leave_one_out", "both")
    for _ in range(2):
        results = contrastive_small.forward(*arguments, "highest", 0, 5)
        contrastive_small.backward(tau, x, tau, None, *results[4:], *arguments[3:], "highest", 0, 5)
    assert len(set(launched_barriers)) == 4
    assert contrastive_small._barriers == {}
    launched_barriers.clear()
    for _ in range(3):
        contrastive_small.forward_keeping(*arguments)
    assert len(set(launched_barriers)) == 1
    assert [key[1] for key in contrastive_small._barriers] == [77]
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    contrastive_small.forward_keeping(*arguments)
    assert launched_barriers[-1] not in launched_barriers[:-1]
    # One number stands for the streams of all threads.
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=2))
    for _ in range(2):
        contrastive_small.forward_keeping(*arguments)
        assert launched_barriers[-1] not in launched_barriers[:-1]


def test_the_chunked_loss_of_steep_temperatures_is_finite():
    """Opposite pairs among equal ones: the excess of the sum over the own exponential passes exp's range."""
    x = torch.zeros(2, 4, 8)
    x[:, :, 0] = 1
    x[1, 1:, 0] = -1
    for log_temperature in (5.5, 6.0, 7.0):
        tau = torch.tensor(log_temperature)
        truth = reference.contrastive_loss(x.double(), tau.double(), "pairwise")[0]
        loss = contrastive_chunked.forward(x, tau, None, "pairwise", "both", 0, 4)[0]
        torch.testing.assert_close(loss.double(), truth, rtol=1e-6, atol=0)


# ---- on a device -----------------------------------------------------------------------------------------------------

needs_cuda = pytest.mark.skipif(
    not torch.cuda.is_available() and os.environ.get("SLEEPFM_REQUIRE_CUDA") != "1", reason="no CUDA device"
)


def on_device(x: Tensor, tau: Tensor, mask: Tensor | None = None, mode="leave_one_out", directions="both") -> Result:
    x, tau, mask = x.detach().cuda(), tau.detach().cuda(), None if mask is None else mask.cuda()
    *results, kept = contrastive_small.forward_keeping(x, tau, mask, mode, directions)
    gradient, slope = contrastive_small.backward_kept(
        torch.tensor(1.0, device="cuda"), x, tau, mask, *results[4:], kept, mode, directions
    )
    loss, *statistics = (result.cpu() for result in results[:5])
    return Result(loss, gradient.cpu(), slope.cpu(), ContrastiveStatistics(*statistics))


@pytest.mark.cuda
@needs_cuda
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("N", [1, 2, 31, 32, 33, 100, 256, 500])
def test_device_agrees_with_float64(N, mode):
    for directions in DIRECTIONS:
        for log_temperature in LOG_TEMPERATURES:
            x = embeddings("aligned", 3, N, 512)
            check_result(on_device, x, log_temperature, mode=mode, directions=directions, mask=random_mask(3, N))
            check_result(on_device, x.half(), log_temperature, mode=mode, directions=directions)


@pytest.mark.cuda
@needs_cuda
def test_device_repeats_itself_and_replays_in_a_graph():
    x, tau = embeddings("random", 3, 64, 256).cuda(), torch.tensor(2.0).cuda()
    arguments = (x, tau, None, "leave_one_out", "both")
    expected = contrastive_small.forward_keeping(*arguments)
    for _ in range(20):
        for a, b in zip(contrastive_small.forward_keeping(*arguments), expected, strict=True):
            assert torch.equal(a, b)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = contrastive_small.forward_keeping(*arguments)
    for _ in range(3):
        graph.replay()
    torch.cuda.synchronize()
    for a, b in zip(captured, expected, strict=True):
        assert torch.equal(a, b)
