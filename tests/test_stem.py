"""The stem's op against its definition in float64: values, statistics, gradients of the weights."""

from __future__ import annotations

import copy

import pytest
import torch
from closeness import assert_close, assert_norm_close, assert_seen_where_planted
from instruction_sets import results_with
from torch import nn

import sleepfm_fast
from sleepfm_fast import ops, reference
from sleepfm_fast.model.mbconv_blocks import convolve_and_normalise

NAMES = ("weight", "bias", "gamma", "beta")
# clips, channels in, channels out, samples: one value in all but one clip's channel, odd and even lengths, less than a
# vector, one more than a tile of 192, several tiles, rows that are no multiple of a register block, more taps than a
# tile of the weights' products, more clips than groups of sums.
DIMS = [
    (1, 1, 1, 3),
    (2, 1, 1, 1),
    (2, 3, 5, 2),
    (3, 2, 7, 15),
    (2, 7, 32, 384),
    (2, 7, 32, 385),
    (2, 10, 32, 1001),
    (5, 30, 9, 130),
    (37, 2, 3, 66),
]


def arguments(dims, seed=0):
    n_clips, n_in, n_out, n_samples = dims
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    scale = 1 / (3 * n_in) ** 0.5
    weights = [normal(n_out, n_in, 3) * scale, normal(n_out), 1 + 0.3 * normal(n_out), 0.5 * normal(n_out)]
    return normal(n_clips, n_in, n_samples), weights


def evaluate(function, x, weights, dtype=torch.float32):
    """y, statistics and the weights' gradients for one upstream gradient."""
    leaves = [value.detach().to(dtype).requires_grad_() for value in weights]
    y, used = function(x.to(dtype), *leaves)
    upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(9)).to(dtype)
    return [y.detach(), used.to(dtype), *torch.autograd.grad((y * upstream).sum(), leaves)]


def norms_agree(found, x, weights):
    """Every result's error in the norm, and the same check of what is wrong by 3e-5 as a whole."""
    same = evaluate(reference.stem, x, weights)
    truth = evaluate(reference.stem, x, weights, torch.float64)
    few = x.shape[0] * x.shape[2] <= 4
    for name, a, b, c in zip(("y", "statistics", *NAMES), found, same, truth, strict=True):
        if name != "bias" and not (few and name == "weight"):  # then it is the small rest of large terms
            assert_seen_where_planted(lambda r, b=b, c=c, n=name: assert_norm_close(r, b, c, 1e-5 * c.norm(), n), a)


def check(x, weights, loose=1e-5):
    ours = evaluate(ops.stem, x, weights)
    same = evaluate(reference.stem, x, weights)
    truth = evaluate(reference.stem, x, weights, torch.float64)
    for name, a, b, c in zip(("y", "statistics", *NAMES), ours, same, truth, strict=True):
        if name == "bias":  # the batch norm takes it away
            assert not a.any()
            continue
        assert_close(a, b, c, loose * c.abs().max().clamp_min(1.0), name)


@pytest.mark.parametrize("dims", DIMS, ids=str)
def test_agrees_with_the_definition(dims):
    # With two or three values a channel the batch norm's gradient is the small rest of large terms.
    check(*arguments(dims), loose=1e-5 if dims[0] * dims[3] > 4 else 1e-2)


@pytest.mark.parametrize("kind", ["far from zero", "silent, then loud", "silent", "gains of zero"])
def test_awkward_inputs(kind):
    x, weights = arguments((3, 4, 6, 1000))
    if kind == "far from zero":
        x += 30.0
    elif kind == "silent, then loud":
        x[:, :, :500] = 0.0
        x[:, :, 500:] *= 40.0
    elif kind == "silent":
        x[:, 1:] = 0.0
        weights[0][:, 0] = 0.0
    else:
        weights[2][::2] = 0.0
    # A shift of 30 in a sum of 12 products of which 1 is left; without variance everything is divided by sqrt(eps).
    check(x, weights, loose={"far from zero": 1e-4, "silent": 1e-3}.get(kind, 2e-5))


def test_the_reference_is_what_torch_computes():
    x, weights = arguments((3, 4, 6, 101))
    conv, norm = nn.Conv1d(4, 6, 3, stride=2, padding=1).double(), nn.BatchNorm1d(6).double()
    with torch.no_grad():
        for place, value in zip((conv.weight, conv.bias, norm.weight, norm.bias), weights, strict=True):
            place.copy_(value)
        y, _ = reference.stem(x.double(), *(value.double() for value in weights))
        torch.testing.assert_close(norm(conv(x.double())), y, rtol=1e-12, atol=1e-12)


def test_the_layers_with_and_without_the_op(monkeypatch):
    """Value, gradients and running statistics of convolution and batch norm."""
    results = []
    for covered in (True, False):
        torch.manual_seed(0)
        conv, norm = nn.Conv1d(4, 6, 3, stride=2, padding=1), nn.BatchNorm1d(6)
        x = torch.randn(3, 4, 100)
        if not covered:
            monkeypatch.setattr("sleepfm_fast.model.mbconv_blocks.is_stem", lambda *_: False)
        for _ in range(2):
            y = convolve_and_normalise(conv, norm, x)
        (y * torch.arange(50)).sum().backward()
        results.append((y.detach(), conv.weight.grad, norm.weight.grad, norm.bias.grad, *norm.buffers()))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("change", ["input with gradient", "synchronised", "frozen", "hook", "float64", "one value"])
def test_what_the_op_does_not_cover_goes_the_long_way(change):
    torch.manual_seed(0)
    conv, norm = nn.Conv1d(4, 6, 3, stride=2, padding=1), nn.BatchNorm1d(6)
    x = torch.randn(3, 4, 100)
    seen = []
    if change == "input with gradient":
        x.requires_grad_()
    elif change == "synchronised":
        norm = nn.SyncBatchNorm(6).eval()
    elif change == "frozen":
        norm.eval()
    elif change == "hook":
        norm.register_forward_hook(lambda *_: seen.append(1))
    elif change == "float64":
        conv, norm, x = conv.double(), norm.double(), x.double()
    else:
        x = x[:, :, :1]
    expected = copy.deepcopy(norm)(conv(x))
    y = convolve_and_normalise(conv, norm, x)
    torch.testing.assert_close(y, expected)
    y.sum().backward()
    assert x.grad is not None or change != "input with gradient"
    assert len(seen) == (2 if change == "hook" else 0)


@pytest.mark.parametrize("n_samples", [1, 2, 7, 8, 31, 32, 33, 64, 383, 384, 385, 400])
@pytest.mark.parametrize("n_in", [1, 3, 11])
def test_results_do_not_depend_on_memory_that_nobody_has_written(n_in, n_samples, poisoned):
    x, weights = arguments((2, n_in, 5, n_samples))
    for a, b in zip(evaluate(ops.stem, x, weights), poisoned(lambda: evaluate(ops.stem, x, weights)), strict=True):
        assert torch.equal(a, b)
        assert a.isfinite().all()


def test_nan_reaches_every_value_of_the_batch_norm():
    x, weights = arguments((2, 3, 5, 40))
    x[1, 0, 20] = torch.nan
    with torch.no_grad():
        y, statistics = ops.stem(x, *weights)
    assert y.isnan().all()
    assert statistics.isnan().all()


def test_same_bits_for_any_number_of_threads():
    x, weights = arguments((37, 5, 9, 12_000))  # work enough that threads run at the same time
    before = torch.get_num_threads()
    try:
        results = []
        for n_threads in (1, 2, 5, 8, 5):
            torch.set_num_threads(n_threads)
            results.append(evaluate(ops.stem, x, weights))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_strided_arguments():
    x, weights = arguments((3, 5, 7, 50))
    strided = [torch.stack([value, value], dim=-1)[..., 0] for value in (x, *weights)]
    assert not strided[0].is_contiguous()
    pairs = zip(evaluate(ops.stem, strided[0], strided[1:]), evaluate(ops.stem, x, weights), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_refusals():
    x, weights = arguments((2, 3, 5, 40))
    with pytest.raises(ValueError, match=r"x has shape \(3, 40\)"):
        ops.stem(x[0], *weights)
    with pytest.raises(ValueError, match=r"weight has shape \(5, 2, 3\)"):
        ops.stem(x, weights[0][:, :2], *weights[1:])
    with pytest.raises(ValueError, match=r"gamma has shape \(4,\)"):
        ops.stem(x, *weights[:2], weights[2][:4], weights[3])
    with pytest.raises(TypeError, match=r"x is torch\.float64"):
        ops.stem(x.double(), *weights)
    with pytest.raises(ValueError, match="more than one value"):
        ops.stem(x[:1, :, :2], *weights)
    with pytest.raises(ValueError, match="more than one value"):
        ops.stem(x[:0], *weights)
    with pytest.raises(NotImplementedError, match="no gradient for its input"):
        ops.stem(x.clone().requires_grad_(), *weights)
    leaf = weights[0].requires_grad_()
    with pytest.raises(NotImplementedError, match="second derivative"):
        torch.autograd.grad(ops.stem(x, *weights)[0].sum(), leaf, create_graph=True)


def test_opcheck():
    x, weights = arguments((2, 3, 8, 41))
    namespace = torch.ops.sleepfm_fast
    torch.library.opcheck(namespace.stem_forward.default, (x, *weights, 1e-5))
    y, c, statistics = namespace.stem_forward(x, *weights, 1e-5)
    torch.library.opcheck(namespace.stem_backward.default, (y, x, c, weights[2], statistics, 1e-5))


ISA_SCRIPT = """
import sys, torch, test_stem as t, test_max_pool as m
from sleepfm_fast import ops
stems = [t.evaluate(ops.stem, *t.arguments(dims)) for dims in t.DIMS]
pools = [m.both(ops.max_pool, m.rows(n)) for n in m.LENGTHS]
torch.save([stems, pools], sys.argv[1])
"""


@pytest.mark.parametrize("isa", sleepfm_fast.build_info()["cpu_instruction_sets"])
def test_every_instruction_set_agrees(isa, tmp_path):
    from test_max_pool import LENGTHS, both, rows

    stems, pools = results_with(isa, ISA_SCRIPT, tmp_path)
    for dims, found in zip(DIMS, stems, strict=True):
        norms_agree(found, *arguments(dims))
        truth = evaluate(reference.stem, *arguments(dims), torch.float64)
        for name, a, c in zip(("y", "statistics", *NAMES), found, truth, strict=True):
            allowed = (1e-4 if dims[0] * dims[3] > 4 else 2e-2) * c.abs().max().clamp_min(1.0)
            assert name == "bias" or (a.double() - c).abs().max() <= allowed, (dims, name)
    for n, found in zip(LENGTHS, pools, strict=True):
        for a, b in zip(found, both(reference.max_pool, rows(n)), strict=True):
            assert torch.equal(a, b)
