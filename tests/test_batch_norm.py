"""The batch norm's op against its definition in float64: values, statistics, every gradient; where stages use it."""

from __future__ import annotations

import copy

import pytest
import torch
from closeness import assert_close, assert_norm_close, assert_seen_where_planted
from instruction_sets import results_with
from torch import nn

import sleepfm_fast
from sleepfm_fast import ops, reference
from sleepfm_fast.model.mbconv_blocks import normalise

NAMES = ("x", "gamma", "beta")
# clips, channels, samples: two values a channel, one sample a clip, one clip, less than a vector, a vector and pairs of
# them, one more, the lengths of the published stages, more clips than channels.
DIMS = [
    (2, 1, 1),
    (1, 1, 2),
    (33, 5, 1),
    (1, 3, 50),
    (2, 7, 15),
    (3, 2, 16),
    (3, 2, 32),
    (2, 5, 33),
    (2, 16, 1920),
    (3, 24, 961),
    (5, 320, 30),
    (37, 3, 65),
]


def arguments(dims, seed=0):
    n_channels = dims[1]
    generator = torch.Generator().manual_seed(seed)
    x = 2.0 * torch.randn(dims, generator=generator) + torch.randn(n_channels, 1, generator=generator)
    gamma = 1 + 0.3 * torch.randn(n_channels, generator=generator)
    return x, gamma, 0.5 * torch.randn(n_channels, generator=generator)


def evaluate(function, x, gamma, beta, dtype=torch.float32):
    """y, statistics and the gradients of all arguments for one upstream gradient."""
    leaves = [value.detach().to(dtype).requires_grad_() for value in (x, gamma, beta)]
    y, used = function(*leaves)
    upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(9)).to(dtype)
    return [y.detach(), used.to(dtype), *torch.autograd.grad((y * upstream).sum(), leaves)]


def by_torch(x, gamma, beta):
    """Its own batch norm, and the statistics it is told to keep."""
    mean, variance = torch.zeros_like(gamma), torch.zeros_like(gamma)
    y = torch.nn.functional.batch_norm(x, mean, variance, gamma, beta, training=True, momentum=1.0)
    n = x.shape[0] * x.shape[2]
    return y, torch.stack([mean, variance * ((n - 1) / n)]).detach()


def norms_agree(found, values):
    """Every result's error in the norm, and the same check of what is wrong by 3e-5 as a whole."""
    same = evaluate(by_torch, *values)
    truth = evaluate(reference.batch_norm, *values, torch.float64)
    few = values[0].shape[0] * values[0].shape[2] <= 2
    for name, a, b, c in zip(("y", "statistics", *NAMES), found, same, truth, strict=True):
        if not (few and name == "x"):  # the small rest of large terms
            assert_seen_where_planted(lambda r, b=b, c=c, n=name: assert_norm_close(r, b, c, 1e-5 * c.norm(), n), a)


def check(values, loose=1e-5):
    ours = evaluate(ops.batch_norm, *values)
    same = evaluate(by_torch, *values)
    truth = evaluate(reference.batch_norm, *values, torch.float64)
    for name, a, b, c in zip(("y", "statistics", *NAMES), ours, same, truth, strict=True):
        assert_close(a, b, c, loose * c.abs().max().clamp_min(1.0), name)


@pytest.mark.parametrize("dims", DIMS, ids=str)
def test_agrees_with_the_definition(dims):
    # With two values a channel the gradient is the small rest of large terms.
    check(arguments(dims), loose=1e-5 if dims[0] * dims[2] > 2 else 1e-2)


@pytest.mark.parametrize("kind", ["far from zero", "a loud clip", "a loud second half", "silent", "gains of zero"])
def test_awkward_inputs(kind):
    x, gamma, beta = arguments((4, 6, 500))
    if kind == "far from zero":
        x += 1000.0  # float32 holds the deviations of 2 to 3e-5 of themselves, which the truth is given as well
    elif kind == "a loud clip":
        x[2] *= 1000.0
    elif kind == "a loud second half":
        x[:, :, :250] = 0.0
        x[:, :, 250:] *= 40.0
    elif kind == "silent":
        x[:, ::2] = 3.7
    else:
        gamma[::2] = 0.0
    # In a channel without variance everything is divided by sqrt(eps).
    check((x, gamma, beta), loose={"silent": 1e-3, "far from zero": 1e-4}.get(kind, 2e-5))


@pytest.mark.parametrize("far", [0.0, 1e3, 1e6])
@pytest.mark.parametrize("dims", [(4, 6, 500), (3, 2, 16), (5, 7, 30)], ids=str)
def test_statistics_keep_their_digits_far_from_zero(dims, far):
    """To a millionth of the deviation, though float32 rounds numbers around a million to sixteenths."""
    x, gamma, beta = arguments(dims)
    x += far
    mean, variance = ops.batch_norm(x, gamma, beta)[1]
    expected = x.double().var((0, 2), correction=0)
    assert ((mean - x.double().mean((0, 2))).abs() <= 1e-6 * expected.sqrt()).all()
    assert ((variance - expected).abs() <= 1e-6 * expected).all()


def test_a_constant_channel_has_no_variance_and_gives_the_shift():
    x, gamma, beta = arguments((3, 4, 77))
    x[:, 1] = 0.1  # not a float32 number: its sum rounds
    y, statistics = ops.batch_norm(x, gamma, beta)
    assert 0.0 <= statistics[1, 1] < 1e-15
    torch.testing.assert_close(y[:, 1], beta[1].expand(3, 77), rtol=0, atol=1e-5)


def test_rounding_makes_no_variance_negative():
    """Sums of this many equal numbers round so far that the square of their rest exceeds the rest's square sum."""
    x = torch.randn(50, generator=torch.Generator().manual_seed(0))[:, None].expand(1, 50, 100_000)
    variance = ops.batch_norm(x, torch.ones(50), torch.zeros(50))[1][1]
    assert variance.min() >= 0.0
    assert variance.max() < 1e-12


def test_the_reference_is_what_torch_computes():
    x, gamma, beta = (value.double() for value in arguments((3, 6, 101)))
    for a, b in zip(reference.batch_norm(x, gamma, beta), by_torch(x, gamma, beta), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_eps_is_used_in_both_directions():
    x, gamma, beta = arguments((3, 4, 20))
    results = [
        evaluate(lambda *values, module=module: module.batch_norm(*values, eps=0.5), x, gamma, beta)
        for module in (ops, reference)
    ]
    for a, b, plain in zip(*results, evaluate(ops.batch_norm, x, gamma, beta), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
        assert a is results[0][1] or a is results[0][4] or not torch.allclose(a, plain)  # but statistics and shift


@pytest.mark.parametrize("momentum", [0.1, None])
def test_the_layer_with_and_without_the_op(momentum):
    """Value, gradients and running statistics over three steps."""
    results = []
    for layer in (normalise, lambda norm, x: norm(x)):
        torch.manual_seed(0)
        norm = nn.BatchNorm1d(6, momentum=momentum)
        with torch.no_grad():
            norm.weight.copy_(torch.randn(6))
        x = torch.randn(3, 6, 100, requires_grad=True)
        for step in range(3):
            y = layer(norm, x + step)
        (y * torch.arange(100)).sum().backward()
        results.append((y.detach(), x.grad, norm.weight.grad, norm.bias.grad, *norm.buffers()))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-3)


CHANGES = ["frozen", "hook", "float64", "one value", "no running statistics", "not affine", "synchronised", "float16"]


@pytest.mark.parametrize("change", CHANGES)
def test_what_the_op_does_not_cover_goes_the_long_way(change, monkeypatch):
    monkeypatch.setattr("sleepfm_fast.model.mbconv_blocks.batch_norm", None)  # a call would fail
    torch.manual_seed(0)
    norm: nn.Module = nn.BatchNorm1d(6)
    x = torch.randn(3, 6, 20)
    seen = []
    if change == "synchronised":
        norm = nn.SyncBatchNorm(6).eval()  # in training it is on GPUs only
    elif change == "no running statistics":
        norm = nn.BatchNorm1d(6, track_running_stats=False)
    elif change == "not affine":
        norm = nn.BatchNorm1d(6, affine=False)
    elif change == "frozen":
        norm.eval()
    elif change == "hook":
        norm.register_forward_hook(lambda *_: seen.append(1))
    elif change == "float64":
        norm, x = norm.double(), x.double()
    elif change == "float16":
        x = x.half()
    else:
        x = x[:1, :, :1]
        with pytest.raises(ValueError, match="more than 1 value"):
            normalise(norm, x)
        return
    x.requires_grad_()
    expected = copy.deepcopy(norm)(x.detach())
    y = normalise(norm, x)
    torch.testing.assert_close(y, expected)
    y.float().square().sum().backward()
    assert x.grad is not None
    assert len(seen) == (2 if change == "hook" else 0)


@pytest.mark.parametrize("n_samples", [1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 64, 100])
def test_results_do_not_depend_on_memory_that_nobody_has_written(n_samples, poisoned):
    values = arguments((3, 5, n_samples))
    pairs = zip(evaluate(ops.batch_norm, *values), poisoned(lambda: evaluate(ops.batch_norm, *values)), strict=True)
    for a, b in pairs:
        assert torch.equal(a, b)
        assert a.isfinite().all()


def test_nan_stays_in_its_channel_and_reaches_all_of_it():
    x, gamma, beta = arguments((3, 5, 40))
    x[1, 2, 20] = torch.nan
    y, statistics, dx, dgamma, dbeta = evaluate(ops.batch_norm, x, gamma, beta)
    others = torch.arange(5) != 2
    for values in (y.movedim(1, 0), dx.movedim(1, 0), statistics.movedim(1, 0), dgamma[:, None]):
        assert values[2].isnan().all()
        assert values[others].isfinite().all()
    assert dbeta.isfinite().all()  # the sum of what comes from above


def test_same_bits_for_any_number_of_threads():
    values = arguments((37, 9, 75))
    before = torch.get_num_threads()
    try:
        results = []
        for n_threads in (1, 2, 5, 1):
            torch.set_num_threads(n_threads)
            results.append(evaluate(ops.batch_norm, *values))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_strided_arguments():
    values = arguments((3, 5, 50))
    strided = [torch.stack([value, value], dim=-1)[..., 0] for value in values]
    assert not strided[0].is_contiguous()
    pairs = zip(evaluate(ops.batch_norm, *strided), evaluate(ops.batch_norm, *values), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    # A gradient from above that one number was spread to.
    x = values[0].clone().requires_grad_()
    ops.batch_norm(x, *values[1:])[0].sum().backward()
    torch.testing.assert_close(x.grad, torch.zeros_like(x), rtol=0, atol=1e-5)


def test_refusals():
    x, gamma, beta = arguments((2, 3, 40))
    with pytest.raises(ValueError, match=r"x has shape \(3, 40\); batch_norm takes \[B, C, T\]"):
        ops.batch_norm(x[0], gamma, beta)
    with pytest.raises(ValueError, match="at least one channel"):
        ops.batch_norm(x[:, :0], gamma[:0], beta[:0])
    with pytest.raises(ValueError, match=r"beta has shape \(2,\)"):
        ops.batch_norm(x, gamma, beta[:2])
    with pytest.raises(TypeError, match=r"gamma is torch\.float64"):
        ops.batch_norm(x, gamma.double(), beta)
    for empty in (x[:1, :, :1], x[:0], x[:, :, :0]):
        with pytest.raises(ValueError, match="more than one value"):
            ops.batch_norm(empty, gamma, beta)


def test_opcheck():
    x, gamma, beta = arguments((2, 5, 41))
    namespace = torch.ops.sleepfm_fast
    torch.library.opcheck(namespace.batch_norm_forward.default, (x, gamma, beta, 1e-5))
    y, statistics = namespace.batch_norm_forward(x, gamma, beta, 1e-5)
    torch.library.opcheck(namespace.batch_norm_backward.default, (y, x, gamma, statistics, 1e-5))


ISA_SCRIPT = """
import sys, torch, test_batch_norm as t
from sleepfm_fast import ops
torch.save([t.evaluate(ops.batch_norm, *t.arguments(dims)) for dims in t.DIMS], sys.argv[1])
"""


@pytest.mark.parametrize("isa", sleepfm_fast.build_info()["cpu_instruction_sets"])
def test_every_instruction_set_agrees(isa, tmp_path):
    for dims, found in zip(DIMS, results_with(isa, ISA_SCRIPT, tmp_path), strict=True):
        norms_agree(found, arguments(dims))
        truth = evaluate(reference.batch_norm, *arguments(dims), torch.float64)
        for name, a, c in zip(("y", "statistics", *NAMES), found, truth, strict=True):
            allowed = (1e-5 if dims[0] * dims[2] > 2 else 1e-2) * c.abs().max().clamp_min(1.0)
            assert (a.double() - c).abs().max() <= allowed, (dims, name)
