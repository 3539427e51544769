"""The encoder's op in evaluation against its definition in float64, and in the encoder against its layers."""

from __future__ import annotations

import copy
import dataclasses
import resource

import pytest
import torch
from closeness import assert_close, assert_norm_close, assert_seen_where_planted
from instruction_sets import results_with

import sleepfm_fast
from sleepfm_fast import encoder as encoder_module
from sleepfm_fast import ops, reference
from sleepfm_fast.encoder import PRESETS, build_encoder
from sleepfm_fast.model import mbconv_blocks
from sleepfm_fast.model.mbconv_blocks import has_global_hooks
from sleepfm_fast.ops.encoder_evaluate import Block, Norm, Stem

# clips, channels in, channels of the stem, samples; blocks: width, channels out, stride, batch norm after, maximum.
NETWORKS = [
    ((2, 1, 1, 1), []),
    ((1, 1, 1, 1), [(1, 1, 1, False, False)]),
    ((3, 2, 5, 7), [(7, 5, 1, False, True), (9, 3, 2, False, True)]),
    ((2, 3, 6, 385), [(12, 6, 1, False, False), (36, 10, 2, True, False), (60, 10, 1, True, True)]),
    ((2, 7, 32, 1001), [(192, 16, 2, True, False), (96, 16, 1, False, False), (96, 24, 2, True, True)]),
    ((19, 2, 4, 66), [(24, 34, 2, True, False), (70, 34, 1, False, True)]),
    ((1, 1, 48, 780), [(288, 48, 1, False, False), (288, 9, 2, True, False), (54, 33, 2, True, False)]),
]


def network(dims, layout, seed=0):
    """x, stem and blocks of random numbers; a block without a batch norm after it is residual where it can be."""
    n_clips, n_in, n_stem, n_samples = dims
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    def norm(n, eps):
        return Norm(1 + 0.3 * normal(n), 0.5 * normal(n), 0.5 * normal(n), 0.5 + normal(n).square(), eps)

    stem = Stem(normal(n_stem, n_in, 3) / (3 * n_in) ** 0.5, normal(n_stem), norm(n_stem, 1e-5))
    blocks, n = [], n_stem
    for width, n_out, stride, has_norm, pool in layout:
        inside = [norm(width, 1e-5), norm(width, 1e-5)]
        weights = (normal(width, n) / n**0.5, normal(width), inside[0].gamma, inside[0].beta)
        weights += (normal(width, 3) / 2, normal(width), inside[1].gamma, inside[1].beta)
        weights += (normal(n_out, width) / width**0.5, normal(n_out))
        running = (inside[0].mean, inside[0].variance, inside[1].mean, inside[1].variance)
        after = norm(n_out, 1e-2) if has_norm else None
        blocks.append(Block(weights, running, stride, 1e-3, stride == 1 and n == n_out and after is None, after, pool))
        n = n_out
    return normal(n_clips, n_in, n_samples), stem, blocks


def to(dtype, value):
    """The same with every tensor converted."""
    if isinstance(value, torch.Tensor):
        return value.to(dtype)
    if dataclasses.is_dataclass(value):
        fields = {f.name: to(dtype, getattr(value, f.name)) for f in dataclasses.fields(value)}
        return type(value)(**fields)
    return type(value)(to(dtype, v) for v in value) if isinstance(value, (list, tuple)) else value


@pytest.mark.parametrize("case", NETWORKS, ids=lambda case: str(case[0]))
def test_agrees_with_the_definition(case):
    values = network(*case)
    with torch.no_grad():
        ours, same = ops.encoder_evaluate(*values), reference.encoder_evaluate(*values)
        truth = reference.encoder_evaluate(*to(torch.float64, values))
    assert truth.shape[0] < 2 or truth.std() > 1e-3
    assert_close(ours, same, truth, 1e-5 * truth.abs().max().clamp_min(1.0))


@pytest.mark.parametrize("case", NETWORKS, ids=lambda case: str(case[0]))
def test_results_do_not_depend_on_memory_that_nobody_has_written(case, poisoned):
    values = network(*case)

    def run():
        with torch.no_grad():
            return ops.encoder_evaluate(*values)

    assert torch.equal(run(), poisoned(run))


def test_same_bits_for_any_number_of_threads_and_any_batch():
    (*dims, _), layout = NETWORKS[5]
    x, stem, blocks = network((*dims, 20_000), layout)  # work enough that threads run at the same time
    before = torch.get_num_threads()
    results = []
    try:
        with torch.no_grad():
            for n_threads in (1, 2, 5, 8, 5):
                torch.set_num_threads(n_threads)
                results.append(ops.encoder_evaluate(x, stem, blocks))
            alone = ops.encoder_evaluate(x[7:8], stem, blocks)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(results[0], other) for other in results[1:])
    assert torch.equal(results[0][7:8], alone)


def test_strided_arguments():
    values = network(*NETWORKS[3])

    def stride(value):
        if isinstance(value, torch.Tensor):
            return torch.stack([value, value], dim=-1)[..., 0]
        if dataclasses.is_dataclass(value):
            return type(value)(**{f.name: stride(getattr(value, f.name)) for f in dataclasses.fields(value)})
        return type(value)(stride(v) for v in value) if isinstance(value, (list, tuple)) else value

    strided = stride(values)
    assert not strided[0].is_contiguous()
    with torch.no_grad():
        assert torch.equal(ops.encoder_evaluate(*strided), ops.encoder_evaluate(*values))


def test_nan_of_one_clip_stays_there():
    x, stem, blocks = network(*NETWORKS[4])
    with torch.no_grad():
        clean = ops.encoder_evaluate(x, stem, blocks)
        x[1, 3, 500] = torch.nan
        y = ops.encoder_evaluate(x, stem, blocks)
    assert torch.equal(y[0], clean[0])
    assert y[1].isnan().all()


def test_no_clips():
    x, stem, blocks = network(*NETWORKS[3])
    with torch.no_grad():
        assert ops.encoder_evaluate(x[:0], stem, blocks).shape == (0, 10)


def test_refusals():
    x, stem, blocks = network(*NETWORKS[3])
    with torch.no_grad():
        with pytest.raises(ValueError, match=r"x has shape \(3, 385\)"):
            ops.encoder_evaluate(x[0], stem, blocks)
        with pytest.raises(ValueError, match=r"stem\.weight has shape"):
            ops.encoder_evaluate(x[:, :2], stem, blocks)
        with pytest.raises(ValueError, match="w1 has shape"):
            ops.encoder_evaluate(x, stem, blocks[1:] + blocks[:1])
        with pytest.raises(ValueError, match="block 1 has stride 2"):
            ops.encoder_evaluate(x, stem, [blocks[0], dataclasses.replace(blocks[1], residual=True)])
        with pytest.raises(ValueError, match="block 0 adds its input"):
            ops.encoder_evaluate(x, stem, [dataclasses.replace(blocks[0], after=stem.norm), *blocks[1:]])
        with pytest.raises(ValueError, match=r"blocks\[1\]\.after\.gamma has shape"):
            ops.encoder_evaluate(x, stem, [blocks[0], dataclasses.replace(blocks[1], after=stem.norm)])
        with pytest.raises(TypeError, match=r"x is torch\.float64"):
            ops.encoder_evaluate(x.double(), stem, blocks)
    with pytest.raises(NotImplementedError, match="no gradient"):
        ops.encoder_evaluate(x.requires_grad_(), stem, blocks)


def registered(x, stem, blocks):
    """Arguments of the registered op."""
    tensors = [stem.weight, stem.bias, *stem.norm.tensors()]
    for block in blocks:
        tensors += [*block.weights, *block.running, *(block.after.tensors() if block.after else [])]
    kinds = [4 * b.residual + 2 * (b.after is not None) + b.pool for b in blocks]
    eps = [1e-5, *[e for b in blocks for e in (b.eps, 1e-2)]]
    return x, tensors, [b.stride for b in blocks], kinds, eps, False


def test_opcheck():
    values = network(*NETWORKS[3])
    op, arguments = torch.ops.sleepfm_fast.encoder_evaluate.default, registered(*values)
    with torch.no_grad():
        assert torch.equal(op(*arguments), ops.encoder_evaluate(*values))
    torch.library.opcheck(op, arguments)


@pytest.fixture
def published():
    """The published network with statistics and gains unlike those it starts with."""
    torch.manual_seed(0)
    encoder = build_encoder(3, PRESETS["seed"]).eval()
    with torch.no_grad():
        for name, tensor in encoder.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 2)
            elif tensor.is_floating_point() and tensor.dim() == 1:
                tensor.add_(0.2 * torch.randn_like(tensor))
    return encoder


def count_calls(monkeypatch):
    calls = []
    average = encoder_module.average_over_time
    monkeypatch.setattr(encoder_module, "average_over_time", lambda encoder, x: calls.append(1) or average(encoder, x))
    return calls


def test_the_encoder_embeds_as_layer_by_layer(published, monkeypatch):
    calls = count_calls(monkeypatch)
    x = torch.randn(3, 3, 7680)
    with torch.no_grad():
        ours = published(x)
        assert calls == [1]
        assert torch.equal(published(x, torch.ones(3, 3, dtype=torch.bool)), ours)
        monkeypatch.setattr(encoder_module, "covers", lambda *_: False)
        layers = published(x)
        truth = copy.deepcopy(published).double()(x.double())
    assert_close(ours, layers, truth, 1e-5 * truth.abs().max())


CHANGES = {
    "hook of a block": lambda e: e.stage4.stack[0].register_forward_hook(lambda *_: None),
    "hook of a stage": lambda e: e.stage4.register_forward_hook(lambda *_: None),
    "hook of a convolution": lambda e: e.stage4.stack[0].conv2.register_forward_hook(lambda *_: None),
    "hook of the maximum": lambda e: e.pool.register_forward_hook(lambda *_: None),
    "hook of the stem": lambda e: e.stage1.register_forward_hook(lambda *_: None),
    "hook of the last convolution": lambda e: e.stage9.register_forward_hook(lambda *_: None),
    "statistics of the batch": lambda e: e.stage5.bn.train(),
    "dropout": lambda e: e.stage5.stack[0].drop.train(),
    "operation by operation": lambda e: setattr(e.stage6.stack[1], "fuse", False),
    "maximum of five": lambda e: setattr(e, "pool", torch.nn.MaxPool1d(5, 1, 2)),
    "stem padded by reflection": lambda e: setattr(e.stage1, "padding_mode", "reflect"),
    "float64": lambda e: e.double(),
    "training": lambda e: e.train(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_the_op_does_not_cover_goes_layer_by_layer(published, monkeypatch, change):
    calls = count_calls(monkeypatch)
    CHANGES[change](published)
    x = torch.randn(2, 3, 1920, dtype=published.fc.weight.dtype)
    with torch.no_grad():
        assert published(x).isfinite().all()
    assert calls == []


def test_gradients_float16_and_hooks_of_every_module_go_layer_by_layer(published, monkeypatch):
    calls = count_calls(monkeypatch)
    x = torch.randn(2, 3, 1920)
    published(x).sum().backward()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.float16):
        published(x)
    assert calls == []
    handle = torch.nn.modules.module.register_module_forward_hook(lambda *_: None)
    with torch.no_grad():
        published(x)
    handle.remove()
    assert calls == []


@pytest.mark.parametrize(
    "register", ["forward_pre_hook", "forward_hook", "full_backward_hook", "full_backward_pre_hook"]
)
def test_a_hook_of_every_module_is_seen(register):
    module = torch.nn.modules.module
    assert not has_global_hooks()
    handle = getattr(module, f"register_module_{register}")(lambda *_: None)
    try:
        assert has_global_hooks()
    finally:
        handle.remove()
    assert not has_global_hooks()


def test_a_torch_that_does_not_tell_of_global_hooks_goes_layer_by_layer(published, monkeypatch):
    calls = count_calls(monkeypatch)
    x = torch.randn(2, 3, 1920)
    with torch.no_grad():
        ours = published(x)
        assert calls == [1]
        monkeypatch.setattr(mbconv_blocks, "GLOBAL_HOOKS", ("_hooks_under_another_name",))
        layers = published(x)
    assert calls == [1]
    assert torch.allclose(ours, layers, atol=1e-4)


def test_embedding_again_touches_no_fresh_memory(published):
    """Between calls the memory stays in the pool: 16 clips of all layers are 50 MB, 12,000 pages."""
    x = torch.randn(16, 3, 7680)

    def fresh_pages():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        with torch.inference_mode():
            published(x)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    ops.release_pages()
    fresh_pages()
    assert min(fresh_pages() for _ in range(5)) < 500
    assert 0 < ops.release_pages() < 64 << 20


ISA_SCRIPT = """
import sys, torch, test_encoder_evaluate as t
from sleepfm_fast import ops
with torch.no_grad():
    torch.save([ops.encoder_evaluate(*t.network(*case)) for case in t.NETWORKS], sys.argv[1])
"""


@pytest.mark.parametrize("isa", sleepfm_fast.build_info()["cpu_instruction_sets"])
def test_every_instruction_set_agrees(isa, tmp_path):
    for case, found in zip(NETWORKS, results_with(isa, ISA_SCRIPT, tmp_path), strict=True):
        truth = reference.encoder_evaluate(*to(torch.float64, network(*case)))
        same = reference.encoder_evaluate(*network(*case))
        assert_seen_where_planted(lambda y, b=same, c=truth: assert_norm_close(y, b, c, 1e-5 * c.norm(), "y"), found)
        assert (found.double() - truth).abs().max() <= 1e-4 * truth.abs().max().clamp_min(1.0), case
