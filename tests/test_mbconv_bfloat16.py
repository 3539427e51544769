"""The fused MBConv block with bfloat16 factors, against its definition with the same roundings, and autocast."""

from __future__ import annotations

import statistics
from functools import partial
from pathlib import Path

import pytest
import torch
from instruction_sets import results_with
from test_encoder_evaluate import NETWORKS, network, to
from test_mbconv import DIMS, NAMES, arguments, upstream_of

import sleepfm_fast
from sleepfm_fast import _C, ops, reference
from sleepfm_fast.encoder import PRESETS, build_encoder
from sleepfm_fast.model.mbconv_blocks import MBConvBlock

# What the processor offers by itself, and every set of instructions by name, none of which has products of bfloat16.
VARIANTS = ["", *sleepfm_fast.build_info()["cpu_instruction_sets"]]
# A value that rounding moves across a kink of ReLU6, or a factor that it moves to the next bfloat16 number, decides one
# draw in forty (of 288), other draws on other processors: the middle one of three 1 time in 500. Compared with another
# implementation, whose kinks are elsewhere, one in fourteen (of 3,080): the middle one of fifteen one time in 200,000.
# No draw may be off by ten times the bound, which was 4.1 at most: a column in the wrong place is thirty times.
DRAWS, DRAWS_COMPARED, FARTHEST = 3, 15, 10
in_bfloat16 = partial(ops.mbconv, precision="bfloat16")
definition = partial(reference.mbconv, precision="bfloat16")


def evaluate(function, values, dims, dtype=torch.float32):
    """y, statistics and all gradients for one upstream gradient."""
    leaves = [value.to(dtype).requires_grad_() for value in values]
    y, used = function(*leaves, stride=dims[5])
    gradients = torch.autograd.grad((y.to(dtype) * upstream_of(y).to(dtype)).sum(), leaves)
    return [y.detach(), used.to(dtype), *gradients]


def running_of(width, dtype=torch.float32):
    generator = torch.Generator().manual_seed(5)
    return tuple((torch.rand(width, generator=generator) + 0.2).to(dtype) for _ in range(4))


def beyond(shares):
    """Results of which the middle draw is beyond its bound, or any draw far beyond it or NaN."""
    return {
        name: of
        for name, of in shares.items()
        if not (all(share <= FARTHEST for share in of) and statistics.median(of) <= 1)
    }


def assert_trains_as_defined(draws, dims):
    """Results of trainings against the definition in float64 with the same roundings: distance over length.

    Where a value lies between two bfloat16 numbers, float32 and float64 may round it to different ones, 2**-8 of one
    factor of many, and then on either side of a kink of ReLU6: a thousandth of the whole allows for a few, and not for
    one column in the wrong place (3e-2 of a thousand). The share of dx that comes with the mean of x is not rounded.
    """
    shares = {}
    for seed, found in enumerate(draws):
        truth = evaluate(definition, arguments(dims, seed), dims, torch.float64)
        for name, a, c in zip(("y", "statistics", *NAMES), found, truth, strict=True):
            if name in ("b1", "bd"):  # a batch norm takes them away
                assert not a.any()
                continue
            # With two values a channel the batch norm's gradient is the small rest of large terms.
            term = 1e-2 if dims[0] * dims[4] <= 4 and name in ("x", "w1", "wd", "gamma0") else 0.0
            allowed = 1e-3 * float(c.norm()) + term * max(1.0, float(c.abs().max())) + 1e-7
            shares.setdefault(name, []).append(float((a.double() - c).norm()) / allowed)
    assert all(len(of) == DRAWS for of in shares.values())
    assert beyond(shares) == {}, dims


def assert_evaluates_as_defined(found, dims):
    x, *weights = (value.double() for value in arguments(dims))
    truth, _ = definition(x, *weights, stride=dims[5], running=running_of(dims[2], torch.float64))
    assert float((found.double() - truth).norm()) <= 1e-3 * float(truth.norm()), dims


def results(dims):
    """What :data:`VARIANT_SCRIPT` computes for one block: results of a training a draw, and an evaluation."""
    x, *weights = arguments(dims)
    with torch.no_grad():
        evaluation, _ = in_bfloat16(x, *weights, stride=dims[5], running=running_of(dims[2]))
    return [evaluate(in_bfloat16, arguments(dims, seed), dims) for seed in range(DRAWS)], evaluation


def spoilt():
    """Evaluations of a block whose first clip holds NaN of the largest payload, which rounding would carry over."""
    found = []
    for bits in (-1, 0x7FFFFFFF):
        x, *weights = arguments((2, 3, 9, 5, 40, 1))
        x[0] = torch.tensor(bits, dtype=torch.int32).view(torch.float32)
        with torch.no_grad():
            found.append(in_bfloat16(x, *weights, running=running_of(9))[0])
    return found


VARIANT_SCRIPT = """
import sys, torch, test_mbconv_bfloat16 as t
from sleepfm_fast import ops
blocks = [t.results(dims) for dims in t.DIMS]
with torch.no_grad():
    networks = [ops.encoder_evaluate(*t.network(*case), precision="bfloat16") for case in t.NETWORKS]
torch.save((blocks, networks, t.spoilt()), sys.argv[1])
"""


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_computes_what_is_defined(variant, tmp_path):
    blocks, networks, spoilt_ones = results_with(variant, VARIANT_SCRIPT, tmp_path)
    for y in spoilt_ones:
        assert y[0].isnan().all()
        assert y[1].isfinite().all()
    for dims, (trainings, evaluation) in zip(DIMS, blocks, strict=True):
        assert_trains_as_defined(trainings, dims)
        assert_evaluates_as_defined(evaluation, dims)
    for case, found in zip(NETWORKS, networks, strict=True):
        truth = reference.encoder_evaluate(*to(torch.float64, network(*case)), precision="bfloat16")
        # A layer's factors that were rounded the other way, and through the rest of the network.
        assert float((found.double() - truth).norm()) <= 5e-3 * float(truth.norm()), case


# Of few channels, one value that is rounded across a kink decides most draws.
@pytest.mark.parametrize("dims", [dims for dims in DIMS if dims[2] > 16], ids=str)
def test_errors_are_below_those_of_autocast(dims):
    shares = {}
    for seed in range(DRAWS_COMPARED):
        values = arguments(dims, seed)
        truth = evaluate(reference.mbconv, values, dims, torch.float64)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            theirs = evaluate(reference.mbconv, values, dims)
        ours = evaluate(in_bfloat16, values, dims)
        for name, a, b, c in zip(("y", "statistics", *NAMES), ours, theirs, truth, strict=True):
            if name in ("b1", "bd"):
                continue
            # Both meet values at a kink of ReLU6 that rounding moves across: their gradients' errors are noise.
            term = 0.0 if name in ("y", "statistics", "b3") else 0.02
            allowed = float((b - c).norm()) + term * float(c.norm())
            shares.setdefault(name, []).append(float((a - c).norm()) / allowed)
    assert beyond(shares) == {}


@pytest.mark.parametrize("dims", DIMS, ids=str)
def test_no_dimensions_read_unwritten_memory(dims, poisoned):
    values = arguments(dims)
    _, n_in, width, n_out, _, stride = dims
    residual = stride == 1 and n_in == n_out
    training = partial(in_bfloat16, residual=residual, dropout=0.3 * residual, seed=torch.tensor(5))

    def every():
        with torch.no_grad():
            evaluation, _ = in_bfloat16(*values, stride=stride, running=running_of(width), residual=residual)
        return [*evaluate(training, values, dims), evaluation]

    for name, a, b in zip(("y", "statistics", *NAMES, "evaluation"), every(), poisoned(every), strict=True):
        assert torch.equal(a, b), name


def test_dropout_and_residual_are_those_of_float32():
    x, *weights = arguments((3, 8, 48, 8, 100, 1))
    seed = torch.tensor(7)
    options = {"residual": True, "dropout": 0.5, "seed": seed}
    (ours, _), (same, _) = in_bfloat16(x, *weights, **options), ops.mbconv(x, *weights, **options)
    assert torch.equal(ours == x, same == x)  # dropped
    assert (ours == x).float().mean() > 0.4
    assert float((ours - same).norm()) < 0.02 * float((same - x).norm())


def test_evaluation_of_a_clip_does_not_depend_on_its_batch():
    x, *weights = arguments((5, 9, 54, 16, 700, 2))
    with torch.no_grad():
        together, _ = in_bfloat16(x, *weights, stride=2, running=running_of(54))
        alone, _ = in_bfloat16(x[3:4], *weights, stride=2, running=running_of(54))
    assert torch.equal(together[3:4], alone)


def test_nan_is_not_hidden():
    x, *weights = arguments((2, 3, 9, 4, 40, 1))
    x[1, 0, 20] = torch.nan
    with torch.no_grad():
        y, _ = in_bfloat16(x, *weights, running=running_of(9))
        expected, _ = reference.mbconv(x, *weights, running=running_of(9))
        assert torch.equal(y.isnan(), expected.isnan())
        assert y.isnan().any()
        assert in_bfloat16(x, *weights)[0].isnan().all()


def test_infinity_and_numbers_beyond_bfloat16s_largest_do_not_become_finite():
    x, *weights = arguments((1, 2, 4, 2, 33, 1))
    with torch.no_grad():
        for value in (torch.inf, 3.4e38):  # the latter rounds to infinity
            x[0, 0, 5] = value
            ours, _ = in_bfloat16(x, *weights, running=running_of(4))
            expected, _ = definition(x, *weights, running=running_of(4))
            assert torch.equal(ours.isfinite(), expected.isfinite()), value


def test_no_clips_and_an_unknown_precision():
    x, *weights = arguments((2, 3, 8, 4, 40, 1))
    with torch.no_grad():
        assert in_bfloat16(x[:0], *weights, running=running_of(8))[0].shape == (0, 4, 40)
    with pytest.raises(ValueError, match="precision is 'float16'; choose float32 or bfloat16"):
        ops.mbconv(x, *weights, precision="float16")


@pytest.mark.parametrize("stride", [1, 2])
def test_opcheck(stride):
    x, *weights = arguments((2, 33, 8, 4, 40, stride))
    namespace = torch.ops.sleepfm_fast
    options = (stride, 1e-5, False, 0.0, True)
    seed = torch.tensor(1)
    running = list(running_of(8))
    torch.library.opcheck(namespace.mbconv_evaluate.default, (x, weights, running, stride, 1e-5, False, True))
    y, *kept = namespace.mbconv_forward(x, weights, seed, *options, True)
    assert [k.dtype for k in kept[:2]] == [torch.bfloat16] * 2
    torch.library.opcheck(namespace.mbconv_forward.default, (x, weights, seed, *options, True))
    torch.library.opcheck(namespace.mbconv_backward.default, (y, x, weights, seed, *kept, *options))


# ---- in the encoder --------------------------------------------------------------------------------------------------


def test_autocast_to_bfloat16_is_the_ops_precision_and_float16_is_none():
    block, x = MBConvBlock(4, 4, 2, 1, 0.0).train(), torch.randn(2, 4, 50)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert block.can_fuse(x)
        y = block(x)
        assert y.dtype == torch.float32
        expected, _ = in_bfloat16(x, *block.weights(), residual=True)
    assert torch.equal(y, expected)
    assert not torch.equal(y, block(x))
    with torch.autocast("cpu", dtype=torch.float16):
        assert not block.can_fuse(x)


def encoder_errors(training, seed):
    """Relative errors of the published network's embeddings, then gradients, of our blocks and of torch's layers."""
    found = {}
    for name, dtype, fuse, enabled in (
        ("ours", torch.float32, True, True),
        ("layers", torch.float32, False, True),
        ("truth", torch.float64, False, False),
    ):
        torch.manual_seed(seed)
        encoder = build_encoder(3, PRESETS["seed"]).to(dtype).train(training)
        for module in encoder.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
            if isinstance(module, MBConvBlock):
                module.fuse = fuse
        x = torch.randn(4, 3, 1920, generator=torch.Generator().manual_seed(seed + 1)).to(dtype)
        with torch.set_grad_enabled(training), torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            y = encoder(x)
        if training:
            (y.to(dtype) * torch.arange(y.numel()).view_as(y).sin()).sum().backward()
        found[name] = {"y": y.detach(), **{n: p.grad for n, p in encoder.named_parameters() if p.grad is not None}}
    truth = found.pop("truth")
    return [
        [float((those[n].double() - c).norm() / c.norm()) for n, c in truth.items() if c.abs().max() > 1e-9]
        for those in (found["ours"], found["layers"])
    ]


@pytest.mark.parametrize("training", [True, False])
def test_the_encoder_is_nearer_to_float64_than_layer_by_layer(training):
    """Under autocast; on the mean of six draws, as of twelve ours had 0.82 to 0.999 times the error of the layers."""
    errors = [encoder_errors(training, seed) for seed in range(6)]
    mean, median = statistics.geometric_mean, statistics.median
    assert mean(ours[0] / layers[0] for ours, layers in errors) < 1  # embeddings
    assert mean(median(ours) / median(layers) for ours, layers in errors) < 1.1


def test_build_info_says_whether_the_processor_multiplies_bfloat16(monkeypatch):
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    monkeypatch.delenv("SLEEPFM_CPU", raising=False)  # which may choose one set for all tests
    found = _C.build_info()
    assert found["cpu_multiplies_bfloat16"] == ("avx512_bf16" in flags and "avx512" in found["cpu_instruction_sets"])
    monkeypatch.setenv("SLEEPFM_CPU", "portable")
    assert not _C.build_info()["cpu_multiplies_bfloat16"]
