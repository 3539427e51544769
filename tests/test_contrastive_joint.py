"""Small batches on the CPU: loss and gradients in one call, and what autograd may do with gradients made in advance."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from contrastive_cases import MODES, check_against_truth, embeddings, evaluate, random_mask
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from sleepfm_fast import ops
from sleepfm_fast.ops import contrastive_joint
from sleepfm_fast.ops.contrastive_joint import LARGEST_D, LARGEST_N, LARGEST_UPSTREAM, can_be_scaled, is_joint

TAU = torch.tensor(1.5)
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def problem(N: int = 21, dtype: torch.dtype = torch.float32, D: int = 24) -> tuple[Tensor, Tensor]:
    """Return x and log_temperature, which want gradients; the kernel under test takes them."""
    x = embeddings("random", 3, N, D).to(dtype).requires_grad_()
    assert is_joint(x.shape, "leave_one_out")
    return x, TAU.to(torch.float64 if dtype == torch.float64 else torch.float32).clone().requires_grad_()


def gradients(upstream: float, mask: Tensor | None = None, dtype=torch.float32) -> tuple[Tensor, Tensor]:
    x, tau = problem(dtype=dtype)
    loss, _ = ops.contrastive_loss(x, tau, mask=mask)
    return torch.autograd.grad(loss, (x, tau), torch.tensor(upstream, dtype=loss.dtype))


# ---- which batches are small -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "mode", "joint"),
    [
        ((3, 32, 512), "leave_one_out", True),
        ((3, 0, 512), "leave_one_out", True),
        ((3, LARGEST_N, LARGEST_D), "leave_one_out", True),
        ((3, LARGEST_N + 1, 64), "leave_one_out", False),
        ((3, 4, LARGEST_D + 1), "leave_one_out", False),
        ((2, LARGEST_N, 512), "leave_one_out", True),
        ((4, 48, 512), "leave_one_out", True),
        ((4, 49, 512), "leave_one_out", False),
        ((8, 9, 512), "leave_one_out", True),
        ((8, 10, 512), "leave_one_out", False),
        ((8, LARGEST_N, 512), "pairwise", True),
    ],
)
def test_the_sizes_decide(shape, mode, joint):
    assert is_joint(shape, mode) is joint


def test_what_is_kept_may_be_scaled():
    for dtype in DTYPES:
        assert can_be_scaled(dtype, 1.0)
        for upstream in (0.0, -1.0, 1e-30, LARGEST_UPSTREAM, -LARGEST_UPSTREAM):
            assert can_be_scaled(dtype, upstream) is (dtype in (torch.float32, torch.float64))
        for upstream in (2 * LARGEST_UPSTREAM, math.inf, -math.inf, math.nan):
            assert not can_be_scaled(dtype, upstream)


# ---- values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("N", [1, 3, 4, 5, 15, 16, 17, 47, 48, 49, LARGEST_N])
def test_agrees_with_float64(N, mode):
    for M, D in ((2, 7), (3, 33), (4, 16)):
        for log_temperature in (1.0, math.log(100)):
            x = embeddings("aligned", M, N, D)
            check_against_truth(x, log_temperature, mode=mode, mask=random_mask(M, N, seed=N))
            check_against_truth(x, log_temperature, mode=mode, directions="row")


@pytest.mark.parametrize("mode", MODES)
def test_many_modalities_and_dimensions(mode):
    check_against_truth(embeddings("aligned", 8, 9, 20), math.log(14), mode=mode, mask=random_mask(8, 9))
    check_against_truth(embeddings("random", 3, 20, LARGEST_D), math.log(14), mode=mode)
    check_against_truth(embeddings("random", 3, 20, LARGEST_D - 1).double(), math.log(14), mode=mode)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("N", [1, 16, 17, 24, 25, 32, 33, 48, 49, 60, 97])
def test_the_other_kernels_agree_at_these_sizes_too(N, mode, monkeypatch):
    """They take small batches where there are many modalities or dimensions, and ranges of samples.

    A panel of theirs has 24 or 48 samples, and a block of a batch that fits in one panel 16.
    """
    monkeypatch.setattr(contrastive_joint, "is_joint", lambda *_: False)
    for log_temperature, kind in ((0.0, "random"), (math.log(100), "aligned")):
        check_against_truth(embeddings(kind, 3, N, 33), log_temperature, mode=mode, mask=random_mask(3, N))
        check_against_truth(embeddings(kind, 3, N, 33).half(), log_temperature, mode=mode)
        check_against_truth(embeddings(kind, 3, N, 5).double(), log_temperature, mode=mode)


@pytest.mark.parametrize("length", [1e-25, 1e25, 3e38 / 24])
def test_lengths_far_from_one(length):
    """Their reciprocals leave the range in which a pair of floats holds them."""
    x = embeddings("random", 3, 9, 24)
    x = x / x.abs().max()
    near, far = (evaluate(ops.contrastive_loss, x * factor, TAU) for factor in (1.0, length))
    if length < 1e-12:  # below the floor of normalize: no direction is left
        torch.testing.assert_close(far.loss, torch.tensor(math.log(9.0)))
        return
    torch.testing.assert_close(far.loss, near.loss, rtol=1e-5, atol=0)
    assert torch.equal(far.statistics.ranks, near.statistics.ranks)
    assert torch.isfinite(far.d_x).all()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("N", [31, LARGEST_N])
def test_the_same_bits_each_time_and_for_every_number_of_threads(N, mode):
    x, mask, before = embeddings("random", 3, N, 130), random_mask(3, N), torch.get_num_threads()
    results = []
    try:
        for n_threads in (1, 2, 3, 5, 2, 1):
            torch.set_num_threads(n_threads)
            result = evaluate(ops.contrastive_loss, x, TAU, mode=mode, mask=mask)
            results.append([*result[:3], *result.statistics])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_the_same_bits_whatever_wants_a_gradient():
    x, tau = problem()
    plain, statistics = ops.contrastive_loss(x.detach(), tau.detach())
    both = torch.autograd.grad(ops.contrastive_loss(x, tau)[0], (x, tau))
    for wanted in ([0], [1]):
        arguments = [value.detach().requires_grad_(k in wanted) for k, value in enumerate((x, tau))]
        loss, others = ops.contrastive_loss(*arguments)
        assert torch.equal(loss, plain)
        assert all(torch.equal(a, b) for a, b in zip(statistics, others, strict=True))
        (found,) = torch.autograd.grad(loss, [arguments[k] for k in wanted])
        assert torch.equal(found, both[wanted[0]])
        assert not any(value.requires_grad for value in others)


def test_any_strides():
    x, tau = problem()
    expected = torch.autograd.grad(ops.contrastive_loss(x, tau)[0], x)[0]
    mask = torch.ones(21, 3, dtype=torch.bool).T
    for view in (x.detach().permute(2, 0, 1).contiguous().permute(1, 2, 0), torch.stack([x.detach()] * 2, 2)[:, :, 1]):
        assert not view.is_contiguous()
        view.requires_grad_()
        found = torch.autograd.grad(ops.contrastive_loss(view, tau, mask=mask)[0], view)[0]
        assert torch.equal(found, expected)


# ---- gradients made in advance ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("upstream", [0.0, 1.0, -1.0, 0.3, 1e-20, 2.0**20, 2.0**21, -1e30])
def test_any_upstream_gradient(upstream, dtype):
    found = gradients(upstream, dtype=dtype)
    single = gradients(1.0, dtype=torch.float64)
    x = problem()[0].to(dtype).double().requires_grad_()
    truth = torch.autograd.grad(ops.contrastive_loss(x, TAU.double())[0], x)[0] * upstream
    largest = torch.finfo(dtype).max
    eps = torch.finfo(dtype).eps
    assert found[0].dtype == dtype
    far = truth.abs() > largest
    relative = 1e-13 if dtype == torch.float64 else 1e-5
    assert torch.isinf(found[0][far]).all()
    torch.testing.assert_close(
        found[0].double()[~far],
        truth[~far],
        rtol=max(eps, 1e-12),
        atol=max(relative * float(truth.abs().max()), torch.finfo(dtype).smallest_normal),
    )
    torch.testing.assert_close(found[1].double(), single[1] * upstream, rtol=1e-2 if eps > 1e-4 else 1e-4, atol=1e-30)


@pytest.mark.parametrize("upstream", [math.inf, -math.inf, math.nan])
def test_what_is_missing_keeps_a_zero_gradient_whatever_comes_from_above(upstream):
    mask = random_mask(3, 21)
    lonely = mask & (mask.sum(0) < 2)
    gradient, slope = gradients(upstream, mask)
    assert (gradient[~mask] == 0).all()
    assert (gradient[lonely] == 0).all()
    assert not torch.isfinite(gradient[mask & ~lonely]).any()
    assert not torch.isfinite(slope)


def test_16_bit_gradients_are_rounded_once():
    """For an upstream gradient of 1 they would be below float16's range."""
    x, tau = (1000 * embeddings("random", 3, 21, 24)).half().requires_grad_(), TAU.clone()
    loss, _ = ops.contrastive_loss(x, tau)
    upstream = 4096.0
    (found,) = torch.autograd.grad(loss * upstream, x)
    y = x.detach().float().requires_grad_()
    (expected,) = torch.autograd.grad(ops.contrastive_loss(y, tau)[0], y)
    assert torch.equal(found, (expected * upstream).half())
    assert not torch.equal(found, expected.half() * upstream)


@pytest.mark.parametrize("upstream", [1.0, 0.7, 1e30])
def test_backward_twice(upstream):
    x, tau = problem()
    loss, _ = ops.contrastive_loss(x, tau)
    above = torch.tensor(upstream)
    first = torch.autograd.grad(loss, (x, tau), above, retain_graph=True)
    copies = [value.clone() for value in first]
    for value in first:  # what was handed out is the caller's
        value.zero_()
    second = torch.autograd.grad(loss, (x, tau), above, retain_graph=True)
    third = torch.autograd.grad(loss, (x, tau), above)
    for a, b, c in zip(copies, second, third, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        loss.backward()


def test_gradients_add_up_over_steps():
    x, tau = problem()
    single = torch.autograd.grad(ops.contrastive_loss(x, tau)[0], x)[0]
    for _ in range(3):
        ops.contrastive_loss(x, tau)[0].backward()
    torch.testing.assert_close(x.grad, 3 * single)
    a, b = ops.contrastive_loss(x, tau)[0], ops.contrastive_loss(x, tau)[0]
    x.grad = None
    (a + b).backward()
    torch.testing.assert_close(x.grad, 2 * single)


@pytest.mark.parametrize("what", ["x", "log_temperature", "mask"])
def test_what_was_changed_in_place_is_refused(what):
    x, tau = problem()
    y, s, mask = x * 1, tau * 1, random_mask(3, 21)
    loss, _ = ops.contrastive_loss(y, s, mask=mask)
    with torch.no_grad():
        {"x": y, "log_temperature": s, "mask": mask}[what].zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_statistics_may_be_changed():
    x, tau = problem()
    expected = torch.autograd.grad(ops.contrastive_loss(x, tau)[0], x, torch.tensor(1e30))[0]
    loss, statistics = ops.contrastive_loss(x, tau)
    for value in statistics:
        value.zero_()
    assert torch.equal(torch.autograd.grad(loss, x, torch.tensor(1e30))[0], expected)


def test_a_loss_that_is_not_used_has_no_gradient():
    x, tau = problem()
    loss, _ = ops.contrastive_loss(x, tau)
    (gradient,) = torch.autograd.grad(tau * 2, x, allow_unused=True)
    assert gradient is None
    assert loss.requires_grad


def test_many_threads_at_once():
    x, tau = problem()
    (expected,) = torch.autograd.grad(ops.contrastive_loss(x, tau)[0], x)

    def agrees(_: int) -> bool:
        own = x.detach().clone().requires_grad_()
        ops.contrastive_loss(own, tau.detach())[0].backward()
        return torch.equal(own.grad, expected)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(agrees, range(100)))


def test_where_forward_runs_again_for_backward():
    x, tau = problem()
    expected = torch.autograd.grad(ops.contrastive_loss(x, tau)[0], (x, tau))
    loss = checkpoint(lambda *arguments: ops.contrastive_loss(*arguments)[0], x, tau, use_reentrant=False)
    assert all(torch.equal(a, b) for a, b in zip(torch.autograd.grad(loss, (x, tau)), expected, strict=True))


def test_second_derivatives_are_refused():
    x, tau = problem()
    loss, _ = ops.contrastive_loss(x, tau)
    first = torch.autograd.grad(loss, (x, tau), create_graph=True)
    expected = torch.autograd.grad(ops.contrastive_loss(x, tau)[0], (x, tau))
    for a, b in zip(first, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    with pytest.raises(NotImplementedError, match="no second derivative"):
        first[1].backward()


def test_gradient_under_autocast():
    x, tau = problem(dtype=torch.bfloat16)
    expected = torch.autograd.grad(ops.contrastive_loss(x, tau)[0], (x, tau))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _ = ops.contrastive_loss(x, tau)
        found = torch.autograd.grad(loss, (x, tau))
    assert loss.dtype == torch.float32
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


# ---- traced ----------------------------------------------------------------------------------------------------------


# Dynamo itself instantiates torch.autograd.Function while it traces one.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_the_registered_ops_give_the_same_bits(dtype):
    torch._dynamo.reset()
    mask = random_mask(3, 21)

    def loss_of(x, tau):
        return ops.contrastive_loss(x, tau, mask=mask)[0]

    compiled = torch.compile(loss_of, fullgraph=True, backend="aot_eager")
    for upstream in (1.0, 0.7, 1e30, math.nan):
        results = []
        for function in (loss_of, compiled):
            x, tau = problem(dtype=dtype)
            loss = function(x, tau)
            above = torch.tensor(upstream, dtype=loss.dtype)
            results.append((loss.detach(), *torch.autograd.grad(loss, (x, tau), above)))
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("mode", MODES)
def test_opcheck_beyond_small_batches(mode):
    """As in test_contrastive_loss_contract.py, where the batch is small."""
    x, mask = embeddings("random", 3, LARGEST_N + 3, 8), random_mask(3, LARGEST_N + 3)
    arguments = (x, TAU, mask, mode, "both")
    torch.library.opcheck(
        torch.ops.sleepfm_fast.contrastive_loss_forward_keeping.default,
        arguments,
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
    )
    *_, n_valid, state, kept = torch.ops.sleepfm_fast.contrastive_loss_forward_keeping(*arguments)
    torch.library.opcheck(
        torch.ops.sleepfm_fast.contrastive_loss_backward_kept.default,
        (torch.tensor(0.3), x, TAU, mask, n_valid, state, kept, mode, "both"),
    )


def test_fake_tensors_take_the_registered_ops():
    real = problem()
    with FakeTensorMode() as mode:
        x, tau = (mode.from_tensor(value) for value in real)
        loss, statistics = ops.contrastive_loss(x, tau)
        (gradient,) = torch.autograd.grad(loss, x)
    assert gradient.shape == (3, 21, 24)
    assert statistics.ranks.shape == (3, 2, 21)
