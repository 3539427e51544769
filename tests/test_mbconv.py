"""The fused MBConv block against its definition in float64: training, evaluation, gradients, and in the encoder."""

from __future__ import annotations

import statistics
from functools import partial

import pytest
import torch
from closeness import assert_close, assert_norm_close, assert_seen_where_planted
from instruction_sets import results_with
from torch.nn.utils import prune

import sleepfm_fast
from sleepfm_fast import _C, ops, reference
from sleepfm_fast.encoder import PRESETS, build_encoder
from sleepfm_fast.model.mbconv_blocks import MBConvBlock, convolve_and_normalise

NAMES = ("x", "w1", "b1", "gamma0", "beta0", "wd", "bd", "gamma1", "beta1", "w3", "b3")
# clips, channels in, width, channels out, samples, stride: one value a channel and clip, less than a vector, one more
# than a panel, rows that are no multiple of a register block, a stage of the network, several tiles with the expansion
# kept and computed again, one more sample than two tiles, more channels than a tile of the weights' products.
DIMS = [
    (2, 3, 4, 2, 1, 1),
    (2, 3, 4, 2, 2, 2),
    (1, 1, 1, 1, 2, 1),
    (3, 5, 7, 6, 50, 1),
    (3, 5, 7, 6, 51, 2),
    (2, 4, 17, 33, 97, 2),
    (17, 2, 9, 3, 129, 1),
    (2, 16, 96, 24, 193, 2),
    (5, 40, 240, 80, 30, 1),
    (2, 34, 70, 9, 1001, 1),
    (2, 34, 70, 9, 1001, 2),
    (3, 5, 30, 5, 385, 1),
    (2, 300, 33, 20, 70, 1),
]


def arguments(dims, seed=0):
    n_clips, n_in, width, n_out, n_samples, _ = dims
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    return [
        normal(n_clips, n_in, n_samples),
        normal(width, n_in) / n_in**0.5,
        normal(width),
        1 + 0.3 * normal(width),
        0.5 * normal(width),
        normal(width, 3) / 2,
        normal(width),
        1 + 0.3 * normal(width),
        0.5 * normal(width),
        normal(n_out, width) / width**0.5,
        normal(n_out),
    ]


def upstream_of(y):
    return torch.randn(y.shape, generator=torch.Generator().manual_seed(9))


def evaluate(function, values, dims, dtype=torch.float32):
    """y, statistics and all gradients for one upstream gradient."""
    leaves = [value.to(dtype).requires_grad_() for value in values]
    y, used = function(*leaves, stride=dims[5])
    gradients = torch.autograd.grad((y * upstream_of(y).to(dtype)).sum(), leaves)
    return [y.detach(), used.to(dtype), *gradients]


def rounding(values, used, n_values):
    """What rounding to float32 (u = 2**-24) makes of the second batch norm's result, to first order, [width].

    gamma1 / deviation1 times what c2 is off: 4 u max |c2| of its own three multiply-adds and of the batch norm's shift,
    and sum |wd| times what rounding c1 gave, u gamma0 / deviation0 |w1| max |x - mean(x)|. |c2| is at most
    |bd| + 6 sum |wd| and at most |mean1| + sqrt(n) deviation1. Where ReLU6 leaves a channel constant, deviation1 is
    sqrt(eps), and everything is multiplied by 316; torch's order of additions can meet the constant exactly.
    """
    x, w1, _, gamma0, _, wd, bd, gamma1, _, _, _ = (value.detach().double() for value in values)
    used = used.detach()
    deviation0, deviation1 = (used[1] + 1e-5).sqrt(), (used[3] + 1e-5).sqrt()
    taps = wd.abs().sum(1)
    of_c1 = gamma0.abs() / deviation0 * (w1.abs() @ (x - x.mean((0, 2), keepdim=True)).abs().amax((0, 2)))
    largest = torch.minimum(bd.abs() + 6 * taps, used[2].abs() + (n_values * used[3]).sqrt())
    return 2.0**-24 * gamma1.abs() / deviation1 * (4 * largest + taps * of_c1)


def norms_agree(found, dims, **options):
    """Every result's error in the norm, and the same check of what is wrong by 3e-5 as a whole."""
    truth = evaluate(partial(reference.mbconv, **options), arguments(dims), dims, torch.float64)
    names = ("y", "statistics", *NAMES)
    # With two values a channel the gradients behind a batch norm are the small rest of large terms.
    checked = ("y", "statistics", "gamma1", "beta1", "b3") if dims[0] * dims[4] <= 4 else set(names) - {"b1", "bd"}
    for name, a, c in zip(names, found, truth, strict=True):
        if name in checked and c.any():
            # Torch's own error, up to 6e-5, excuses nothing here.
            assert_seen_where_planted(lambda r, c=c, n=name: assert_norm_close(r, c, c, 1e-5 * c.norm(), n), a)


@pytest.mark.parametrize("dims", DIMS, ids=str)
def test_training_agrees_with_the_definition(dims):
    values = arguments(dims)
    ours = evaluate(ops.mbconv, values, dims)
    same = evaluate(reference.mbconv, values, dims)
    truth = evaluate(reference.mbconv, values, dims, torch.float64)
    c_y, used = truth[:2]
    rounded = rounding(values, used, c_y.shape[0] * c_y.shape[2])
    # With two values a channel the batch norm's gradient is the small rest of large terms; what counts as large is seen
    # in what torch itself makes of it.
    for name, a, b, c in zip(("y", "statistics", *NAMES), ours, same, truth, strict=True):
        scale = c.abs().max().clamp_min(1.0)
        if name in ("b1", "bd"):  # a batch norm takes them away: exactly zero here, rounding noise in the others
            assert not a.any()
            assert c.abs().max() < 1e-9
            continue
        loose = 1e-2 if dims[0] * dims[4] <= 4 else 3e-5
        term = (loose if name in ("w1", "wd", "gamma0", "x") else 1e-5) * scale
        if name == "y":
            term = term + (values[9].detach().double().abs() @ rounded)[:, None]
        elif name == "w3":
            term = term + upstream_of(c_y).double().abs().sum((0, 2))[:, None] * rounded
        assert_close(a, b, c, term, name)


@pytest.mark.parametrize("dims", DIMS, ids=str)
def test_evaluation_agrees_with_the_definition(dims):
    x, *weights = arguments(dims)
    generator = torch.Generator().manual_seed(5)
    running = [torch.rand(dims[2], generator=generator) + 0.2 for _ in range(4)]
    with torch.no_grad():
        ours, used = ops.mbconv(x, *weights, stride=dims[5], running=tuple(running))
        same, _ = reference.mbconv(x, *weights, stride=dims[5], running=tuple(running))
        doubles = [value.double() for value in (x, *weights)]
        truth, _ = reference.mbconv(*doubles, stride=dims[5], running=tuple(value.double() for value in running))
    assert_close(ours, same, truth, 3e-6 * truth.abs().max().clamp_min(1.0))
    torch.testing.assert_close(used.float(), torch.stack(running))


# Samples out that end a vector of 4, 8 or 16 lanes, and that do not, in the only tile and in the last of several.
@pytest.mark.parametrize("n_samples", [1, 2, 7, 8, 15, 16, 17, 30, 33, 60, 64, 120, 193, 385])
@pytest.mark.parametrize("channels", [(3, 5, 7, 5), (2, 40, 24, 40), (17, 3, 9, 2)], ids=str)
@pytest.mark.parametrize("stride", [1, 2])
def test_results_do_not_depend_on_memory_that_nobody_has_written(channels, n_samples, stride, poisoned):
    check_poisoned((*channels, n_samples, stride), poisoned)


@pytest.mark.parametrize("dims", DIMS, ids=str)
def test_no_dimensions_read_unwritten_memory(dims, poisoned):
    check_poisoned(dims, poisoned)


def check_poisoned(dims, poisoned):
    values = arguments(dims)
    _, n_in, width, n_out, _, stride = dims
    residual = stride == 1 and n_in == n_out
    training = partial(ops.mbconv, residual=residual, dropout=0.3 * residual, seed=torch.tensor(5))
    running = tuple(torch.rand(width, generator=torch.Generator().manual_seed(5)) + 0.5 for _ in range(4))

    def every():
        with torch.no_grad():
            evaluation, _ = ops.mbconv(*values, stride=stride, running=running, residual=residual)
        return [*evaluate(training, values, dims), evaluation]

    for name, a, b in zip(("y", "statistics", *NAMES, "evaluation"), every(), poisoned(every), strict=True):
        assert torch.equal(a, b), name


def test_the_encoder_trains_where_memory_holds_nan(poisoned):
    torch.manual_seed(0)
    encoder = build_encoder(3, PRESETS["seed"]).train()
    poisoned(lambda: encoder(torch.randn(2, 3, 7680)).square().mean().backward())
    assert [name for name, p in encoder.named_parameters() if not p.grad.isfinite().all()] == []


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kind", ["far from zero", "silent, then loud", "gains of zero"])
def test_statistics_of_awkward_inputs(kind, stride):
    """Means much larger than deviations, a first tile unlike the rest, channels that a batch norm switches off."""
    dims = (3, 6, 30, 6, 1000, stride)
    values = arguments(dims)
    if kind == "far from zero":
        values[0] += 30.0
    elif kind == "silent, then loud":
        values[0][:, :, :500] = 0.0
        values[0][:, :, 500:] = 40.0 + 0.1 * values[0][:, :, 500:]
    else:
        values[3][::2] = 0.0
        values[7][::3] = 0.0
    ours = evaluate(ops.mbconv, values, dims)
    same = evaluate(reference.mbconv, values, dims)
    truth = evaluate(reference.mbconv, values, dims, torch.float64)
    # Moments in float32 would be off by 5e-3.
    n_values = truth[0].shape[0] * truth[0].shape[2]
    of_y = (values[9].detach().double().abs() @ rounding(values, truth[1], n_values))[:, None]
    for name, a, b, c in zip(("y", "statistics"), ours, same, truth, strict=False):
        assert_close(a, b, c, 1e-5 * c.abs().max().clamp_min(1.0) + (of_y if name == "y" else 0.0), name)
    assert all(bool(value.isfinite().all()) for value in ours)


def test_the_reference_is_what_torch_computes():
    dims = (3, 5, 7, 6, 50, 2)
    block = MBConvBlock(5, 6, 1, 2, 0.0)
    block.conv1 = torch.nn.Conv1d(5, 7, 1)
    block.conv2 = torch.nn.Conv1d(7, 7, 3, stride=2, padding=1, groups=7)
    block.conv3 = torch.nn.Conv1d(7, 6, 1)
    block.b0, block.b1 = torch.nn.BatchNorm1d(7), torch.nn.BatchNorm1d(7)
    x, *weights = (value.double() for value in arguments(dims))
    block = block.double().train()
    places = [block.conv1.weight, block.conv1.bias, block.b0.weight, block.b0.bias, block.conv2.weight]
    places += [block.conv2.bias, block.b1.weight, block.b1.bias, block.conv3.weight, block.conv3.bias]
    with torch.no_grad():
        for place, value in zip(places, weights, strict=True):
            place.copy_(value.reshape(place.shape))
        y, _ = reference.mbconv(x, *weights, stride=2)
        torch.testing.assert_close(block.conv3(block.wide(x)), y, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("training", [True, False])
def test_the_encoder_gives_what_it_gives_operation_by_operation(training):
    """Embeddings, every parameter's gradient and the running statistics of the published network."""
    # A rounding error that moves one activation across a kink of ReLU6, or a maximum of the pooling, moves the
    # gradients of everything before it by a percent: in float32 each implementation meets its own few, other ones on
    # other processors. Of four networks and batches at least one comes through with few.
    errors = [errors_of_encoder(seed, training) for seed in range(4 if training else 1)]
    if training:
        ours, same = (min((of[k] for of in errors), key=statistics.median) for k in (0, 1))
        assert max(ours) < 0.05
        assert statistics.median(ours) < statistics.median(same) + 0.003


def errors_of_encoder(seed, training):
    """Relative errors of our gradients and of those operation by operation, once everything else agrees."""
    results = {}
    for dtype, fuse in ((torch.float32, True), (torch.float32, False), (torch.float64, False)):
        torch.manual_seed(seed)
        encoder = build_encoder(3, PRESETS["seed"]).to(dtype).train(training)
        for module in encoder.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
            if isinstance(module, MBConvBlock):
                module.fuse = fuse
        x = torch.randn(4, 3, 1920, generator=torch.Generator().manual_seed(seed + 1)).to(dtype)
        with torch.set_grad_enabled(training):
            y = encoder(x)
        if training:
            (y * torch.arange(y.numel()).view_as(y).sin()).sum().backward()
        state = {f"gradient {n}": p.grad for n, p in encoder.named_parameters()} if training else {}
        state |= {n: b for n, b in encoder.named_buffers() if b.is_floating_point()}
        results[dtype, fuse] = {"y": y.detach(), **state}
    ours, same, truth = results.values()
    errors, torch_errors = [], []
    for name, value in truth.items():
        if not name.startswith("gradient"):
            assert_close(ours[name], same[name], value, 3e-5 * value.abs().max(), name)
        elif value.abs().max() < 1e-9:
            assert ours[name].abs().max() < 1e-3, name  # of a bias that a batch norm takes away
        else:
            errors.append(float((ours[name] - value).norm() / value.norm()))
            torch_errors.append(float((same[name] - value).norm() / value.norm()))
    return errors, torch_errors


@pytest.mark.parametrize("dropout", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("dims", [(2, 5, 7, 5, 1, 1), (3, 16, 96, 16, 45, 1), (2, 40, 240, 40, 203, 1)], ids=str)
def test_residual_and_dropout_agree_with_the_definition(dims, dropout):
    values = arguments(dims)
    seed = torch.tensor(1 << 61 | 12345)

    def both(function, dtype):
        return evaluate(partial(function, residual=True, dropout=dropout, seed=seed), values, dims, dtype)

    ours, same = both(ops.mbconv, torch.float32), both(reference.mbconv, torch.float32)
    truth = both(reference.mbconv, torch.float64)
    norms_agree(ours, dims, residual=True, dropout=dropout, seed=seed)
    for name, a, b, c in zip(("y", "statistics", *NAMES), ours, same, truth, strict=True):
        if name not in ("b1", "bd"):
            assert_close(a, b, c, (3e-5 if dims[0] * dims[4] > 4 else 1e-2) * c.abs().max().clamp_min(1.0), name)


def test_dropout_follows_torchs_generator_and_its_probability():
    values = arguments((16, 8, 48, 8, 500, 1))
    kept = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        y, _ = ops.mbconv(*values, residual=True, dropout=0.3)
        plain, _ = ops.mbconv(*values)
        kept.append((y - values[0]).abs() > 1e-6 * plain.abs())
    assert torch.equal(kept[0], kept[1])
    assert not torch.equal(kept[0], kept[2])
    share = kept[0].float()
    # 64,000 draws: four standard deviations; a row, a sample and a lag have their share too.
    assert abs(share.mean() - 0.7) < 4 * (0.21 / 64_000) ** 0.5
    assert (share.mean((0, 2)) - 0.7).abs().max() < 5 * (0.21 / 8_000) ** 0.5
    assert (share.mean((0, 1)) - 0.7).abs().max() < 5 * (0.21 / 128) ** 0.5
    centred = share - 0.7
    for lag in (1, 2, 4, 8, 16):
        assert abs((centred[:, :, lag:] * centred[:, :, :-lag]).mean()) < 5 * 0.21 / 60_000**0.5
    assert abs((centred[1:] * centred[:-1]).mean()) < 5 * 0.21 / 60_000**0.5
    assert abs((centred[:, 1:] * centred[:, :-1]).mean()) < 5 * 0.21 / 56_000**0.5


def test_evaluation_adds_the_residual():
    x, *weights = arguments((3, 8, 48, 8, 300, 1))
    running = tuple(torch.rand(48) + 0.5 for _ in range(4))
    with torch.no_grad():
        y, _ = ops.mbconv(x, *weights, running=running, residual=True)
        plain, _ = ops.mbconv(x, *weights, running=running)
    torch.testing.assert_close(y, x + plain)


def test_memory_is_used_again():
    values = arguments((8, 16, 96, 16, 1000, 1))
    _C.release_pages()
    for _ in range(3):
        y, _ = ops.mbconv(*[value.requires_grad_() for value in values])
        y.sum().backward()
    wide = 8 * 96 * 1000 * 4
    del y
    held = _C.release_pages()
    assert 2 * wide <= held <= 2 * wide + (4 << 20)  # c2 and g1, each rounded up to whole pages of 2 MiB
    assert _C.release_pages() == 0


@pytest.mark.parametrize("n_in", [16, 34])
def test_without_a_backward_the_expansion_is_not_kept(n_in):
    """Statistics are made from many batches in training mode without gradients, as torch's update_bn does."""
    values = arguments((8, n_in, 96, 16, 1000, 2))
    expected = [value.detach() for value in ops.mbconv(*[value.requires_grad_() for value in values], stride=2)]
    ops.release_pages()
    with torch.no_grad():
        found = ops.mbconv(*values, stride=2)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert not found[0].requires_grad
    # c2, 8 x 96 x 500 float32, takes a page of 2 MiB, what is smaller under half of one; c1 would take two.
    assert 2 << 20 <= ops.release_pages() < 3 << 20


def test_blocks_that_the_op_does_not_cover_go_the_long_way(monkeypatch):
    block = MBConvBlock(4, 4, 2, 1, 0.0)
    x = torch.randn(2, 4, 20)
    assert block.can_fuse(x)
    assert not block.can_fuse(x.double())
    assert not MBConvBlock(4, 4, 2, 1, 0.0).double().can_fuse(x.double())
    assert not block.eval().can_fuse(x)  # gradients through running statistics
    with torch.no_grad():
        assert block.can_fuse(x)
    block.train()
    block.b0.eval()  # frozen statistics
    assert not block.can_fuse(x)
    block = torch.nn.SyncBatchNorm.convert_sync_batchnorm(MBConvBlock(4, 4, 2, 1, 0.0))
    assert not block.can_fuse(x)
    with torch.autocast("cpu", dtype=torch.float16):
        assert not MBConvBlock(4, 4, 2, 1, 0.0).can_fuse(x)


@pytest.mark.parametrize("momentum", [None, 0.1, 1.0])
def test_running_statistics_follow_as_torchs_own(momentum):
    """``momentum=None``, which torch's update_bn sets, is the plain average of all batches."""
    found = []
    for fuse in (True, False):
        torch.manual_seed(0)
        block = MBConvBlock(4, 4, 2, 1, 0.0).train()
        block.fuse = fuse
        block.b0.momentum = block.b1.momentum = momentum
        for k in range(3):
            block(3 + k + torch.randn(8, 4, 100, generator=torch.Generator().manual_seed(k)))
        found.append([buffer.clone() for buffer in block.buffers()])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_batch_norms_with_different_eps_both_count(training):
    block = MBConvBlock(4, 4, 2, 1, 0.0).train(training)
    block.b1.eps = 0.1
    x = torch.randn(8, 4, 100)
    with torch.no_grad():
        together = block(x)
        block.fuse = False
        torch.testing.assert_close(together, block(x))


@pytest.mark.parametrize("training", [True, False])
def test_hooks_of_every_layer_are_called(training):
    torch.manual_seed(0)
    encoder = build_encoder(2, PRESETS["seed"]).train(training)
    x = torch.randn(2, 2, 1920, generator=torch.Generator().manual_seed(1))
    seed = 3  # of dropout
    with torch.no_grad():
        torch.manual_seed(seed)
        expected = encoder(x)
        for name, layer in encoder.named_modules():
            # A block without residual has a dropout that it does not use.
            if name.endswith("drop") and not getattr(encoder.get_submodule(name.rpartition(".")[0]), "residual", True):
                continue
            seen = []
            hook = layer.register_forward_hook(lambda *arguments, seen=seen: seen.append(arguments))
            torch.manual_seed(seed)
            y = encoder(x)
            hook.remove()
            assert seen, name
            if not training:  # other bits of a dropout in a block that goes the long way
                torch.testing.assert_close(y, expected, rtol=1e-3, atol=1e-4)


def test_pruned_layers_train():
    """Pruning makes the weight anew in a hook before every forward."""
    torch.manual_seed(0)
    encoder = build_encoder(2, PRESETS["seed"]).train()
    for layer in encoder.modules():
        if isinstance(layer, torch.nn.Conv1d):
            prune.l1_unstructured(layer, "weight", amount=0.3)
    optimiser = torch.optim.SGD(encoder.parameters(), lr=0.1)
    for _ in range(2):
        optimiser.zero_grad()
        encoder(torch.randn(2, 2, 960)).square().mean().backward()
        optimiser.step()
    assert encoder.stage9.weight_orig.grad.any()


# Of bfloat16 odd numbers of channels, which leave half a pair, and the expansion kept. Work enough that threads run at
# the same time.
@pytest.mark.parametrize(
    ("precision", "dims"), [("float32", (19, 8, 48, 16, 4000, 2)), ("bfloat16", (19, 34, 49, 17, 3001, 2))]
)
def test_same_bits_for_any_number_of_threads_and_every_run(precision, dims):
    values = arguments(dims)
    results = []
    for n_threads in (1, 2, 5, 8, 5):
        torch.set_num_threads(n_threads)
        results.append(evaluate(partial(ops.mbconv, precision=precision), values, dims))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_evaluation_of_a_clip_does_not_depend_on_its_batch():
    x, *weights = arguments((5, 8, 48, 16, 700, 2))
    running = tuple(torch.rand(48) + 0.5 for _ in range(4))
    with torch.no_grad():
        together, _ = ops.mbconv(x, *weights, stride=2, running=running)
        alone, _ = ops.mbconv(x[3:4], *weights, stride=2, running=running)
    assert torch.equal(together[3:4], alone)


def test_strided_arguments():
    dims = (3, 5, 7, 6, 50, 1)
    values = arguments(dims)
    strided = [torch.stack([value, value], dim=-1)[..., 0] for value in values]
    assert not strided[0].is_contiguous()
    for a, b in zip(evaluate(ops.mbconv, strided, dims), evaluate(ops.mbconv, values, dims), strict=True):
        assert torch.equal(a, b)


def test_nan_is_not_hidden_by_relu6():
    x, *weights = arguments((2, 3, 8, 4, 40, 1))
    x[1, 0, 20] = torch.nan
    running = tuple(torch.rand(8) + 0.5 for _ in range(4))
    with torch.no_grad():
        y, _ = ops.mbconv(x, *weights, running=running)
        expected, _ = reference.mbconv(x, *weights, running=running)
        assert torch.equal(y.isnan(), expected.isnan())
        assert y.isnan().any()
        assert ops.mbconv(x, *weights)[0].isnan().all()


def at_kinks(norm, dims):
    """Arguments of a block whose batch norm sets every channel to 0 or to 6."""
    values = arguments(dims)
    gamma, beta = values[3 + 4 * norm], values[4 + 4 * norm]
    gamma.zero_()
    beta[0::2], beta[1::2] = 0.0, 6.0
    return values


KINKS = [(norm, (2, 3, 9, 4, 50, stride)) for norm in (0, 1) for stride in (1, 2)]


def assert_flat_at_kinks(results):
    """As in torch: a channel that a batch norm sets to 0 or to 6 has no gradient."""
    for (norm, _), found in zip(KINKS, results, strict=True):
        gradients = dict(zip(NAMES, found[2:], strict=True))
        for name in ("x", "w1", f"gamma{norm}", f"beta{norm}"):
            assert not gradients[name].any(), (norm, name)
        assert gradients["w3"].any()


def test_relu6_is_flat_at_both_of_its_kinks():
    assert_flat_at_kinks([evaluate(ops.mbconv, at_kinks(*case), case[1]) for case in KINKS])


def test_no_clips():
    _, *weights = arguments((2, 3, 8, 4, 40, 1))
    running = tuple(torch.rand(8) + 0.5 for _ in range(4))
    with torch.no_grad():
        assert ops.mbconv(torch.empty(0, 3, 40), *weights, running=running)[0].shape == (0, 4, 40)
    with pytest.raises(ValueError, match="more than one value"):
        ops.mbconv(torch.empty(0, 3, 40), *weights)


def test_refusals():
    x, *weights = arguments((2, 3, 8, 4, 40, 1))
    with pytest.raises(ValueError, match=r"x has shape \(3, 40\)"):
        ops.mbconv(x[0], *weights)
    with pytest.raises(ValueError, match="stride is 3"):
        ops.mbconv(x, *weights, stride=3)
    with pytest.raises(ValueError, match=r"wd has shape \(8,\)"):
        ops.mbconv(x, *weights[:4], weights[5], *weights[5:])
    with pytest.raises(TypeError, match=r"x is torch\.float64"):
        ops.mbconv(x.double(), *weights)
    with pytest.raises(ValueError, match="more than one value"):
        ops.mbconv(x[:1, :, :1], *weights)
    with pytest.raises(ValueError, match="the stride is 2; a batch norm needs more than one value"):
        ops.mbconv(x[:1, :, :2], *weights, stride=2)
    with pytest.raises(ValueError, match="as many channels out as in"):
        ops.mbconv(x, *weights, residual=True)
    with pytest.raises(ValueError, match=r"dropout is 0\.5"):
        ops.mbconv(x, *weights, dropout=0.5)
    running = tuple(torch.rand(8) for _ in range(4))
    with pytest.raises(NotImplementedError, match="no gradient"):
        ops.mbconv(x.requires_grad_(), *weights, running=running)
    with pytest.raises(NotImplementedError, match="second derivative"):
        torch.autograd.grad(ops.mbconv(x, *weights)[0].sum(), x, create_graph=True)


@pytest.mark.parametrize("stride", [1, 2])
def test_opcheck(stride):
    x, *weights = arguments((2, 3, 8, 4, 40, stride))
    running = [torch.rand(8) + 0.5 for _ in range(4)]
    namespace = torch.ops.sleepfm_fast
    options = (stride, 1e-5, False, 0.0, False)
    seed = torch.tensor(1)
    torch.library.opcheck(namespace.mbconv_evaluate.default, (x, weights, running, stride, 1e-5, False, False))
    for for_backward in (True, False):
        torch.library.opcheck(namespace.mbconv_forward.default, (x, weights, seed, *options, for_backward))
    y, *kept = namespace.mbconv_forward(x, weights, seed, *options, True)
    torch.library.opcheck(namespace.mbconv_backward.default, (y, x, weights, seed, *kept, *options))


ISA_SCRIPT = """
import sys, torch, test_mbconv as t
from sleepfm_fast import ops
agreeing = [t.evaluate(ops.mbconv, t.arguments(dims), dims) for dims in t.DIMS]
torch.save([agreeing, [t.evaluate(ops.mbconv, t.at_kinks(*case), case[1]) for case in t.KINKS]], sys.argv[1])
"""


@pytest.mark.parametrize("isa", sleepfm_fast.build_info()["cpu_instruction_sets"])
def test_every_instruction_set_agrees(isa, tmp_path):
    agreeing, flat = results_with(isa, ISA_SCRIPT, tmp_path)
    assert_flat_at_kinks(flat)
    for dims, found in zip(DIMS, agreeing, strict=True):
        norms_agree(found, dims)
        truth = evaluate(reference.mbconv, arguments(dims), dims, torch.float64)
        for name, a, c in zip(("y", "statistics", *NAMES), found, truth, strict=True):
            allowed = (1e-4 if dims[0] * dims[4] > 4 else 2e-2) * c.abs().max().clamp_min(1.0)
            assert (a.double() - c).abs().max() <= allowed, (dims, name)


class Adapted(torch.nn.Module):
    """A convolution with a low-rank addition, which shows the weights of what it wraps."""

    def __init__(self, layer):
        super().__init__()
        self.layer, self.addition = layer, torch.nn.Conv1d(layer.in_channels, layer.out_channels, 1)
        self.weight, self.bias = layer.weight, layer.bias

    def forward(self, x):
        return self.layer(x) + self.addition(x)


def adapt(module, name):
    setattr(module, name, Adapted(getattr(module, name)))


REPLACEMENTS = {
    "activation": lambda block: setattr(block, "act", torch.nn.SiLU()),
    "adapter of the expansion": lambda block: adapt(block, "conv1"),
    "adapter of the projection": lambda block: adapt(block, "conv3"),
    "padding": lambda block: setattr(block.conv2, "padding_mode", "circular"),
    "dilation": lambda block: (setattr(block.conv2, "dilation", (2,)), setattr(block.conv2, "padding", (2,))),
    "dropout": lambda block: setattr(block, "drop", torch.nn.AlphaDropout(0.5)),
    "no dropout": lambda block: setattr(block, "drop", torch.nn.Identity()),
    "no bias of the expansion": lambda block: setattr(block.conv1, "bias", None),
    "no bias of the convolution": lambda block: setattr(block.conv2, "bias", None),
    "no bias of the projection": lambda block: setattr(block.conv3, "bias", None),
    "batch norm without weights": lambda block: setattr(block, "b0", torch.nn.BatchNorm1d(8, affine=False)),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("replacement", REPLACEMENTS)
def test_layers_that_somebody_put_there_are_used(replacement, training):
    """The op computes what the network is built of, from the weights; an adapter or another activation is not there."""
    block = MBConvBlock(4, 4, 2, 1, 0.0).train(training)
    REPLACEMENTS[replacement](block)
    x = torch.randn(3, 4, 40)
    found = []
    for fuse in (True, False):
        block.fuse = fuse
        torch.manual_seed(0)
        with torch.no_grad():
            found.append(block(x))
    assert torch.equal(*found)


@pytest.mark.parametrize("training", [True, False])
def test_a_stem_with_another_padding_is_used(training):
    conv = torch.nn.Conv1d(2, 4, 3, stride=2, padding=1, padding_mode="circular")
    norm = torch.nn.BatchNorm1d(4).train(training)
    x = torch.randn(3, 2, 20)
    with torch.no_grad():
        torch.testing.assert_close(convolve_and_normalise(conv, norm, x), norm(conv(x)))


@pytest.mark.parametrize("training", [True, False])
def test_an_adapter_of_the_last_convolution_is_used(training):
    encoder = build_encoder(2, PRESETS["seed"]).train(training)
    x = torch.randn(4, 2, 960)
    before = torch.get_rng_state()
    with torch.no_grad():
        plain = encoder(x)
        adapt(encoder, "stage9")
        torch.set_rng_state(before)
        assert not torch.allclose(encoder(x), plain, rtol=0.1)


def test_a_negative_seed_is_a_number_of_64_bits():
    x, *weights = arguments((2, 4, 8, 4, 20, 1))
    options = {"residual": True, "dropout": 0.5}
    y, _ = ops.mbconv(x, *weights, **options, seed=torch.tensor(-3))
    again, _ = reference.mbconv(x, *weights, **options, seed=torch.tensor(-3))
    torch.testing.assert_close(y, again, rtol=1e-4, atol=1e-4)
