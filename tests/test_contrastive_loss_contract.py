"""What contrastive_loss refuses, what it registers, what memory it takes, and every instruction set it has."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from contrastive_cases import DIRECTIONS, MODES, embeddings, evaluate, random_mask
from instruction_sets import passed_with
from torch._subclasses import FakeTensorMode

from sleepfm_fast import _C, ops, reference
from sleepfm_fast.ops import contrastive_chunked, contrastive_cpu
from sleepfm_fast.ops.contrastive_cpu import workspace_bytes

X = torch.zeros(3, 4, 8)
TAU = torch.tensor(0.0)


@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (TypeError, r"x is a list; contrastive_loss takes a tensor", ([1.0], TAU)),
        (ValueError, r"x has shape \(4, 8\); .* \[M, N, D\]", (X[0], TAU)),
        (TypeError, r"x is torch.int64; .* float32, bfloat16, float16 or float64", (X.long(), TAU)),
        (TypeError, r"x has the layout torch.sparse_coo; .*to_dense", (X.to_sparse(), TAU)),
        (ValueError, r"x has 1 modalities .* takes 2 to 8", (X[:1], TAU)),
        (ValueError, r"x has 9 modalities .* takes 2 to 8", (X.repeat(3, 1, 1), TAU)),
        (ValueError, r"x has shape \(3, 4, 0\); .* D >= 1", (X[..., :0], TAU)),
        (TypeError, r"log_temperature is a float; .* torch.tensor\(0.0\)", (X, 0.0)),
        (ValueError, r"log_temperature has shape \(1,\) .* shape \(\)", (X, TAU[None])),
        (ValueError, r"log_temperature has shape \(\) and dtype torch.int64", (X, TAU.long())),
        (ValueError, r"log_temperature is on meta, x on cpu; move both", (X, TAU.to("meta"))),
        (ValueError, r"mode is 'loo'; choose 'leave_one_out' or 'pairwise'", (X, TAU, "loo")),
        (ValueError, r"directions is 'column'; choose 'both' or 'row'", (X, TAU, "pairwise", None, "column")),
        (TypeError, r"mask is a list; .* bool tensor \[M, N\]", (X, TAU, "pairwise", [True])),
        (TypeError, r"mask is torch.float32; .* mask > 0", (X, TAU, "pairwise", torch.ones(3, 4))),
        (
            ValueError,
            r"mask has shape \(4, 3\); x with shape \(3, 4, 8\) needs \[M, N\] = \(3, 4\)",
            (X, TAU, "pairwise", torch.ones(4, 3).bool()),
        ),
        (ValueError, r"mask is on meta, x on cpu", (X, TAU, "pairwise", torch.ones(3, 4, device="meta").bool())),
    ],
)
def test_refusals_are_sentences(error, message, arguments):
    x, tau, mode, mask, directions = (*arguments, *("pairwise", None, "both")[len(arguments) - 2 :])
    with pytest.raises(error, match=message):
        ops.contrastive_loss(x, tau, mode, mask=mask, directions=directions)


def test_devices_that_there_is_no_kernel_for_are_refused_and_meta_is_shape_only():
    with FakeTensorMode():
        x, tau = torch.empty(3, 4, 8, device="mps"), torch.empty((), device="mps")
    with pytest.raises(ValueError, match=r"x is on mps:0; contrastive_loss runs on cpu and cuda"):
        ops.contrastive_loss(x, tau)
    loss, statistics = ops.contrastive_loss(X.to("meta"), TAU.to("meta"))
    assert (loss.shape, loss.device.type) == ((), "meta")
    assert statistics.ranks.device.type == "meta"


def test_second_derivative_is_refused():
    x = embeddings("random", 3, 6, 8).requires_grad_()
    loss, _ = ops.contrastive_loss(x, TAU)
    (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
    with pytest.raises(NotImplementedError, match=r"no second derivative\. Use sleepfm_fast\.reference"):
        gradient.sum().backward()


def test_gradient_only_where_asked():
    x, tau = embeddings("random", 3, 6, 8), torch.tensor(1.0)
    assert not ops.contrastive_loss(x, tau)[0].requires_grad
    y = x.clone().requires_grad_()
    ops.contrastive_loss(y, tau)[0].backward()
    assert y.grad is not None
    statistics = ops.contrastive_loss(y, tau.clone().requires_grad_())[1]
    assert not any(value.requires_grad for value in statistics)


def test_problems_are_named_in_order():
    assert ops.problems(3) == ((0, None), (1, None), (2, None))
    assert ops.problems(3, "pairwise") == ((0, 1), (0, 2), (1, 2))


# ---- registration --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("masked", [False, True])
def test_opcheck(mode, masked):
    x, tau = embeddings("random", 3, 9, 8), torch.tensor(1.0)
    mask = random_mask(3, 9) if masked else None
    arguments = (x, tau, mask, mode, "both", "highest", 0, 9)
    torch.library.opcheck(torch.ops.sleepfm_fast.contrastive_loss_forward.default, arguments)
    *_, n_valid, state = torch.ops.sleepfm_fast.contrastive_loss_forward(*arguments)
    torch.library.opcheck(
        torch.ops.sleepfm_fast.contrastive_loss_backward.default,
        (torch.tensor(0.3), x, tau, mask, n_valid, state, mode, "both", "highest", 0, 9),
    )
    # Without the comparison of two calls: where kept holds padding, it holds whatever was there.
    torch.library.opcheck(
        torch.ops.sleepfm_fast.contrastive_loss_forward_keeping.default,
        arguments[:5],
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
    )
    *_, n_valid, state, kept = torch.ops.sleepfm_fast.contrastive_loss_forward_keeping(*arguments[:5])
    torch.library.opcheck(
        torch.ops.sleepfm_fast.contrastive_loss_backward_kept.default,
        (torch.tensor(0.3), x, tau, mask, n_valid, state, kept, mode, "both"),
    )


# Dynamo itself instantiates torch.autograd.Function while it traces one.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_compiles_without_graph_breaks():
    torch._dynamo.reset()
    mask = random_mask(3, 33)

    def step(x, tau):
        loss, statistics = ops.contrastive_loss(2 * x, tau, "leave_one_out", mask=mask)
        return loss * 3, statistics

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    x = embeddings("random", 3, 33, 16)
    eager, traced = (evaluate(function, x, torch.tensor(1.5)) for function in (step, compiled))
    assert torch.equal(eager.loss, traced.loss)
    assert torch.equal(eager.d_x, traced.d_x)
    assert torch.equal(eager.d_log_temperature, traced.d_log_temperature)
    assert torch.equal(eager.statistics.ranks, traced.statistics.ranks)


def test_under_autocast():
    x = embeddings("random", 3, 33, 16).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _ = ops.contrastive_loss(x, torch.tensor(1.5))
    assert torch.equal(loss, ops.contrastive_loss(x, torch.tensor(1.5))[0])
    assert loss.dtype == torch.float32


# ---- memory --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_workspace_grows_with_n(mode):
    sizes = [
        workspace_bytes(torch.empty(3, n, 64, device="meta"), mode, backward=True, n_threads=2)
        for n in (10_000, 20_000, 40_000)
    ]
    assert sizes[2] - sizes[1] == pytest.approx(2 * (sizes[1] - sizes[0]), rel=0.01)
    assert sizes[1] < 8 * 3 * 20_000 * 64 * 4


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("log_temperature", [2.0, 4.0])
@pytest.mark.parametrize("N", [20, 300])
def test_what_is_kept_changes_no_bit(N, log_temperature, mode, monkeypatch):
    x, tau, mask = embeddings("random", 3, N, 40), torch.tensor(log_temperature), random_mask(3, N)
    kept = evaluate(ops.contrastive_loss, x, tau, mode=mode, mask=mask)
    assert contrastive_cpu.kept_bytes(x, mode) > 0
    monkeypatch.setattr(contrastive_cpu, "KEEP_AT_MOST_BYTES", 1000)
    assert contrastive_cpu.kept_bytes(x, mode) == 0
    again = evaluate(ops.contrastive_loss, x, tau, mode=mode, mask=mask)
    assert torch.equal(kept.loss, again.loss)
    assert torch.equal(kept.d_x, again.d_x)
    assert torch.equal(kept.d_log_temperature, again.d_log_temperature)


@pytest.fixture
def limit():
    before = ops.keep_at_most(256 << 20)
    assert before == 256 << 20, "what it is from the start"
    yield before
    ops.keep_at_most(before)


def test_the_limit_may_change_between_forward_and_backward(limit):
    x, tau = embeddings("random", 3, 300, 40).requires_grad_(), torch.tensor(2.0, requires_grad=True)
    expected = torch.autograd.grad(ops.contrastive_loss(x, tau)[0], (x, tau))
    for forward, backward in ((0, limit), (limit, 0), (0, 0), (limit, limit)):
        ops.keep_at_most(forward)
        loss, _ = ops.contrastive_loss(x, tau)
        assert ops.keep_at_most(backward) == forward
        found = torch.autograd.grad(loss, (x, tau))
        assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


def test_more_may_be_kept_than_from_the_start(limit):
    x = torch.empty(3, 8192, 512, device="meta")
    assert contrastive_cpu.kept_bytes(x, "leave_one_out") == 0
    ops.keep_at_most(1 << 30)
    assert 256 << 20 < contrastive_cpu.kept_bytes(x, "leave_one_out") <= 1 << 30
    for wrong, error in ((-1, ValueError), (1e9, TypeError), (True, TypeError), ("1 GiB", TypeError)):
        with pytest.raises(error, match="keep_at_most: n_bytes is"):
            ops.keep_at_most(wrong)
    assert ops.keep_at_most(1 << 30) == 1 << 30, "what was refused changed nothing"


def test_the_graph_can_be_walked_twice():
    x, tau = embeddings("random", 3, 60, 16).requires_grad_(), torch.tensor(1.5, requires_grad=True)
    loss, _ = ops.contrastive_loss(x, tau)
    first = torch.autograd.grad(loss, (x, tau), retain_graph=True)
    second = torch.autograd.grad(loss, (x, tau))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_kept_bytes_are_enough_and_bounded(dtype, mode):
    for M, N, D in itertools.product((2, 3, 8), (0, 1, 16, 32, 47, 48, 49, 150, 385, 1000, 1537), (1, 8, 509, 512)):
        n_bytes = contrastive_cpu.kept_bytes(torch.empty(M, N, D, dtype=dtype, device="meta"), mode)
        is_double = dtype == torch.float64
        needed = _C.contrastive_bytes(M, N, D, mode == "pairwise", is_double, False, True, 2)[1]
        assert needed <= (n_bytes or needed)
        assert n_bytes == 0 or n_bytes <= contrastive_cpu.KEEP_AT_MOST_BYTES
        assert n_bytes > 0 or needed > 0.75 * contrastive_cpu.KEEP_AT_MOST_BYTES
    assert contrastive_cpu.kept_bytes(torch.empty(3, 4096, 512, device="meta"), "leave_one_out") > 0
    assert contrastive_cpu.kept_bytes(torch.empty(3, 8192, 512, device="meta"), "leave_one_out") == 0


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status, which is Linux's")
def test_peak_memory_is_linear():
    """N = 20,000: one matrix of similarities alone would take 1.6 GB."""
    script = """
import torch
from pathlib import Path
from sleepfm_fast import ops
def peak_mb():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024
def step(n):
    x = torch.randn(2, n, 64).requires_grad_()
    loss, statistics = ops.contrastive_loss(x, torch.tensor(3.0), "pairwise")
    loss.backward()
    return float(loss)
step(100)
before = peak_mb()
assert step(20_000) > 0
print(peak_mb() - before)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=False)
    assert run.returncode == 0, run.stderr
    extra_mb = float(run.stdout)
    assert 5 < extra_mb < 150, f"{extra_mb:.0f} MB at N = 20,000; x and its gradient take 20 MB"


# ---- every instruction set -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_exponential_is_good_to_about_one_unit(dtype):
    lowest = -64.0 if dtype is np.float32 else -700.0
    x = np.concatenate([np.linspace(lowest, 0, 400_001), -np.geomspace(1e-30, 1, 1000), [0.0]]).astype(dtype)
    y = np.empty_like(x)
    _C.contrastive_exponential(x.ctypes.data, y.ctypes.data, x.size, dtype is np.float64)
    truth = np.exp(x.astype(np.longdouble))
    unit = np.spacing(truth.astype(dtype)).astype(np.longdouble)
    error = np.abs(y - truth) / unit
    assert float(error.max()) < 1.5, f"{error.max()} units at {x[error.argmax()]}"
    assert y[-1] == 1.0


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_exponential_at_its_ends(dtype):
    x = np.array([-1e30, -np.inf, -1000.0, np.nan, -0.0], dtype=dtype)
    y = np.empty_like(x)
    _C.contrastive_exponential(x.ctypes.data, y.ctypes.data, x.size, dtype is np.float64)
    np.testing.assert_array_equal(y, [0.0, 0.0, 0.0, np.nan, 1.0])


INSTRUCTION_SETS = ("portable", "avx2", "avx512", "amx")


@pytest.mark.parametrize("name", INSTRUCTION_SETS)
def test_every_instruction_set(name):
    """The tests of values again, in a process that is told which variant to use."""
    cases = [
        "test_contrastive_loss.py::test_agrees_with_float64[33-3-leave_one_out]",
        "test_contrastive_loss.py::test_agrees_with_float64[31-4-pairwise]",
        "test_contrastive_loss.py::test_every_dimension[65-leave_one_out]",
        "test_contrastive_loss.py::test_every_dimension[1000-pairwise]",
        "test_contrastive_loss.py::test_every_dtype",
        "test_contrastive_loss.py::test_equal_rows_tie_exactly_and_the_first_wins[200]",
        "test_contrastive_loss.py::test_the_same_bits_for_every_number_of_threads[257-leave_one_out]",
        "test_contrastive_loss.py::test_not_a_number_is_not_hidden",
        f"{Path(__file__).name}::test_exponential_is_good_to_about_one_unit",
    ]
    assert passed_with(name, *cases) == 25


# ---- a range of samples at a time ------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("directions", DIRECTIONS)
@pytest.mark.parametrize("log_temperature", [3.0, 4.0])
@pytest.mark.parametrize("cuts", [(0, 75), (0, 0, 75), (0, 1, 75), (0, 16, 48, 75), (0, 37, 75), (0, 96, 97, 310)])
def test_ranges_add_up_to_the_whole(cuts, log_temperature, directions, mode):
    N = cuts[-1]
    x, tau = embeddings("aligned", 3, N, 32).double(), torch.tensor(log_temperature).double()
    mask = random_mask(3, N)
    x = torch.where(mask[..., None], x, torch.nan)
    forward, backward = (
        torch.ops.sleepfm_fast.contrastive_loss_forward,
        torch.ops.sleepfm_fast.contrastive_loss_backward,
    )
    whole = forward(x, tau, mask, mode, directions, "highest", 0, N)
    ranges = list(itertools.pairwise(cuts))
    shares = [forward(x, tau, mask, mode, directions, "highest", *range_) for range_ in ranges]
    for k in (0, 1, 2):  # loss, losses, correct
        torch.testing.assert_close(sum(share[k] for share in shares), whole[k], rtol=1e-12, atol=1e-15)
    for (begin, end), (_, _, _, ranks, n_valid, state) in zip(ranges, shares, strict=True):
        torch.testing.assert_close(ranks[..., begin:end], whole[3][..., begin:end])
        assert (ranks[..., :begin] == -1).all()
        assert (ranks[..., end:] == -1).all()
        torch.testing.assert_close(n_valid, whole[4])
        torch.testing.assert_close(state[..., begin:end], whole[5][..., begin:end], rtol=1e-12, atol=1e-15)
        assert not state[..., :begin].any()
        assert not state[..., end:].any()
    arguments = (torch.tensor(0.7).double(), x, tau, mask, whole[4], whole[5], mode, directions, "highest")
    gradient, slope = backward(*arguments, 0, N)
    shares = [backward(*arguments, *range_) for range_ in ranges]
    torch.testing.assert_close(sum(share[0] for share in shares), gradient, rtol=1e-11, atol=1e-16)
    torch.testing.assert_close(sum(share[1] for share in shares), slope, rtol=1e-11, atol=1e-15)
    for (begin, end), (share, _) in zip(ranges, shares, strict=True):
        assert not share[:, :begin].any()
        assert not share[:, end:].any()


# ---- the path where no CUDA kernel runs ----------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("directions", DIRECTIONS)
@pytest.mark.parametrize("N", [0, 1, 75])
def test_chunked_path_agrees_with_the_compiled_one(N, directions, mode, monkeypatch):
    monkeypatch.setattr(contrastive_chunked, "CHUNK_ELEMENTS", 1000)  # chunks of 13 rows, the last of 10
    x, tau = embeddings("aligned", 3, N, 32).double(), torch.tensor(3.0).double()
    upstream = torch.tensor(0.7).double()
    for mask in (None, random_mask(3, N)):
        if mask is not None:
            x = torch.where(mask[..., None], x, torch.nan)
        compiled = torch.ops.sleepfm_fast.contrastive_loss_forward(x, tau, mask, mode, directions, "highest", 0, N)
        chunked = contrastive_chunked.forward(x, tau, mask, mode, directions, 0, N)
        for ours, theirs in zip(chunked, compiled, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-14)
        arguments = (upstream, x, tau, mask, compiled[4], compiled[5], mode, directions)
        compiled = torch.ops.sleepfm_fast.contrastive_loss_backward(*arguments, "highest", 0, N)
        chunked = contrastive_chunked.backward(*arguments, 0, N)
        for ours, theirs in zip(chunked, compiled, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-16)


@pytest.mark.parametrize("log_temperature", [-200.0, -110.0, -60.0])
def test_chunked_path_where_every_logit_is_zero(log_temperature):
    """A scale of 0 times the -inf of what does not count would be NaN."""
    x, tau, mask = embeddings("random", 3, 60, 32), torch.tensor(log_temperature), random_mask(3, 60)
    loss, *_, n_valid, state = contrastive_chunked.forward(x, tau, mask, "leave_one_out", "both", 0, 60)
    gradients = contrastive_chunked.backward(
        torch.tensor(1.0), x, tau, mask, n_valid, state, "leave_one_out", "both", 0, 60
    )
    truth = evaluate(reference.contrastive_loss, x.double(), tau.double(), mask=mask)
    torch.testing.assert_close(loss.double(), truth.loss, rtol=1e-6, atol=0)
    for ours, theirs in zip(gradients, (truth.d_x, truth.d_log_temperature), strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-30)


@pytest.mark.parametrize("mode", MODES)
def test_chunked_path_under_autocast(mode):
    """Its products are of torch, which autocast would round to 16 bits."""
    x, tau, upstream = embeddings("random", 3, 60, 32), torch.tensor(2.0), torch.tensor(1.0)
    expected = contrastive_chunked.forward(x, tau, None, mode, "both", 0, 60)
    arguments = (upstream, x, tau, None, expected[4], expected[5], mode, "both", 0, 60)
    gradients = contrastive_chunked.backward(*arguments)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        lowered = contrastive_chunked.forward(x, tau, None, mode, "both", 0, 60)
        lowered_gradients = contrastive_chunked.backward(*arguments)
    for ours, theirs in zip((*lowered, *lowered_gradients), (*expected, *gradients), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_chunked_path_in_lower_precision(dtype):
    x, tau = embeddings("random", 3, 60, 32).to(dtype), torch.tensor(2.0)
    loss, *_, n_valid, state = contrastive_chunked.forward(x, tau, None, "leave_one_out", "both", 0, 60)
    gradient, slope = contrastive_chunked.backward(
        torch.tensor(1.0), x, tau, None, n_valid, state, "leave_one_out", "both", 0, 60
    )
    truth = evaluate(reference.contrastive_loss, x.double(), tau.double())
    assert loss.dtype == torch.float32
    assert gradient.dtype == dtype
    torch.testing.assert_close(loss.double(), truth.loss, rtol=1e-6, atol=0)
    torch.testing.assert_close(slope.double(), truth.d_log_temperature, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(gradient.double(), truth.d_x, rtol=torch.finfo(dtype).eps, atol=2e-7)


@pytest.mark.cuda
@pytest.mark.parametrize("mode", MODES)
def test_cuda_agrees_with_the_cpu(mode):
    if not torch.cuda.is_available() and os.environ.get("SLEEPFM_REQUIRE_CUDA") != "1":
        pytest.skip("no CUDA device")
    x, tau, mask = embeddings("random", 3, 500, 128), torch.tensor(2.0), random_mask(3, 500)
    cpu = evaluate(ops.contrastive_loss, x, tau, mode=mode, mask=mask)
    cuda = evaluate(ops.contrastive_loss, x.cuda(), tau.cuda(), mode=mode, mask=mask.cuda())
    torch.testing.assert_close(cuda.loss.cpu(), cpu.loss, rtol=1e-5, atol=0)
    torch.testing.assert_close(cuda.d_x.cpu(), cpu.d_x, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(cuda.d_log_temperature.cpu(), cpu.d_log_temperature, rtol=1e-4, atol=1e-6)
