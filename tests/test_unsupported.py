"""What the ops cannot differentiate is said where it is asked; what they can they do, under torch.compile too."""

import pytest
import torch
from filter_batch import mixed_batch
from test_encoder_evaluate import NETWORKS, network, registered
from test_mbconv import arguments as block_of
from test_mbconv_evaluate import Case
from test_stem import arguments as stem_of
from torch import func
from torch.autograd import forward_ad

from sleepfm_fast import ops, reference
from sleepfm_fast.ops.registry import LIBRARY

OPS = torch.ops.sleepfm_fast
TAU = torch.tensor(1.0)
# Forward-mode derivatives let torch itself compile its decompositions.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")


def calls():
    """Arguments of every registered op; the first floating-point tensor is what may require grad."""
    x = torch.randn(3, 9, 8)
    loss = (x, TAU, None, "leave_one_out", "both")
    *_, n_valid, state = OPS.contrastive_loss_forward(*loss, "highest", 0, 9)
    *_, kept = OPS.contrastive_loss_forward_keeping(*loss)
    block, *weights = block_of((2, 3, 8, 4, 40, 1))
    running = [torch.rand(8) + 0.5 for _ in range(4)]
    options = (1, 1e-5, False, 0.0, False)
    y, *moments = OPS.mbconv_forward(block, weights, torch.tensor(1), *options, True)
    clips, (weight, bias, gamma, beta) = stem_of((2, 3, 8, 41))
    z, c, statistics = OPS.stem_forward(clips, weight, bias, gamma, beta, 1e-5)
    batch = mixed_batch()
    raw, table, calibration = batch.tensors(5)
    bank = batch.bank.tensors()
    case = Case(16, 16, 1, 40, B=1)
    packed = case.block
    half = torch.randn(2, 40, 8, dtype=torch.bfloat16)
    train = [torch.randn(shape) for shape in ((8, 8), *[(8,)] * 3, (8, 3), *[(8,)] * 3, (8, 8), (8,))]
    return {
        "contrastive_loss_forward": (*loss, "highest", 0, 9),
        "contrastive_loss_backward": (TAU, x, TAU, None, n_valid, state, "leave_one_out", "both", "highest", 0, 9),
        "contrastive_loss_forward_keeping": loss,
        "contrastive_loss_backward_kept": (TAU, x, TAU, None, n_valid, state, kept, "leave_one_out", "both"),
        "mbconv_forward": (block, weights, torch.tensor(1), *options, True),
        "mbconv_evaluate": (block, weights, running, 1, 1e-5, False, False),
        "mbconv_backward": (y, block, weights, torch.tensor(1), *moments, *options),
        "mbconv_evaluate_packed": (case.x, packed.packed, packed.bias, packed.width, packed.n_out, 1, False),
        "mbconv_train_forward": (half, train, 1, 1e-5),
        "mbconv_train_backward": (half, half, [half] * 7, train, 1, 1e-5),
        "encoder_evaluate": registered(*network(*NETWORKS[3])),
        "stem_forward": (clips, weight, bias, gamma, beta, 1e-5),
        "stem_backward": (z, clips, c, gamma, statistics, 1e-5),
        "batch_norm_forward": (z, gamma, beta, 1e-5),
        "batch_norm_backward": (z, z, gamma, statistics, 1e-5),
        "max_pool_forward": (x,),
        "max_pool_backward": (x, x),
        "filter_resample": (raw, table, calibration, *bank, 96, torch.float32, "none"),
        "filter_resample_out": (raw, table, calibration, *bank, "zscore", torch.empty(3, 5, 96)),
    }


def marked(arguments, mark):
    """The arguments with the first floating-point tensor, or the first in a list, replaced."""
    changed = list(arguments)
    place = next(i for i, v in enumerate(changed) if isinstance(v, torch.Tensor) and v.is_floating_point())
    changed[place] = mark(changed[place].detach().clone())
    return changed


def test_every_registered_op_is_tried():
    assert {name.partition("::")[2].partition(".")[0] for name in LIBRARY._op_defs} == set(calls())


@pytest.mark.parametrize("name", list(calls()))
def test_a_registered_op_never_drops_a_gradient_in_silence(name):
    op, arguments = getattr(OPS, name), calls()[name]
    sentence = rf"torch\.ops\.sleepfm_fast\.{name} has no gradient, and an argument requires one\. .* or use "
    leaf = marked(arguments, torch.Tensor.requires_grad_)
    with pytest.raises(NotImplementedError, match=sentence):
        op(*leaf)
    with pytest.raises(NotImplementedError, match=sentence), forward_ad.dual_level():
        op(*marked(arguments, lambda value: forward_ad.make_dual(value, value)))
    if name.startswith(("mbconv_evaluate_packed", "mbconv_train")):  # run on CUDA only
        with pytest.raises(ValueError, match="it runs on CUDA"), torch.no_grad():
            op(*leaf)
        return
    with torch.no_grad():
        found = op(*leaf)
    plain = op(*arguments)
    for value, expected in zip(*[(v if isinstance(v, tuple) else (v,)) for v in (found, plain)], strict=True):
        if expected is not None and name != "contrastive_loss_forward_keeping":  # whose kept has padding
            assert torch.equal(value, expected)
            assert not value.requires_grad


def test_a_tensor_in_a_list_counts():
    x, weights, *rest = calls()["mbconv_evaluate"]
    weights[3].requires_grad_()
    with pytest.raises(NotImplementedError, match="mbconv_evaluate has no gradient"):
        OPS.mbconv_evaluate(x, weights, *rest)


def functions():
    """The differentiable ops and their twins as functions of one tensor to a number, and the tensor."""
    x = torch.randn(3, 6, 5)
    mask = torch.rand(3, 6, generator=torch.Generator().manual_seed(0)) > 0.3
    block, *weights = block_of((2, 3, 8, 4, 12, 1))
    clips, stem = stem_of((2, 3, 8, 13))
    gain, shift, upstream = torch.randn(6), torch.randn(6), torch.randn(3, 6, 5)
    return {
        "contrastive_loss": (lambda m, x: m.contrastive_loss(x, TAU)[0], x),
        "contrastive_loss, masked": (lambda m, x: m.contrastive_loss(x, TAU, "pairwise", mask=mask)[0], x),
        "mbconv": (lambda m, x: m.mbconv(x, *weights)[0].square().sum(), block),
        "stem": (lambda m, weight: m.stem(clips, weight, *stem[1:])[0].square().sum(), stem[0]),
        "batch_norm": (lambda m, x: (m.batch_norm(x, gain, shift)[0] * upstream).sum(), x),
        "max_pool": (lambda m, x: m.max_pool(x).square().sum(), x),
    }


def dual(f, x):
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(f(forward_ad.make_dual(x, torch.ones_like(x)))).tangent


TRANSFORMS = {
    "grad": lambda f, x: func.grad(f)(x),
    "vjp": lambda f, x: func.vjp(f, x)[1](torch.ones(()))[0],
    "vmap": lambda f, x: func.vmap(f)(torch.stack([x, 2 * x])),
    "vmap of grad": lambda f, x: func.vmap(func.grad(f))(torch.stack([x, 2 * x])),
    "jvp": lambda f, x: func.jvp(f, (x,), (torch.ones_like(x),))[1],
    "hessian": lambda f, x: func.hessian(f)(x),
    "forward_ad": dual,
}


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("name", list(functions()))
def test_transforms_are_refused_with_what_works(name, transform):
    function, x = functions()[name]
    op = name.partition(",")[0]
    kind = "has no forward-mode derivative" if transform == "forward_ad" else "does not work inside the transforms"
    with pytest.raises(NotImplementedError, match=rf"^{op} {kind}.* Use sleepfm_fast\.reference\.{op}, "):
        TRANSFORMS[transform](lambda x: function(ops, x), x)
    # The twin that the sentence names does it, and agrees with what the op can do.
    found = TRANSFORMS[transform](lambda x: function(reference, x), x)
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(function(ops, leaf), leaf)
    both = torch.stack([x, 2 * x])
    if transform in ("grad", "vjp"):
        torch.testing.assert_close(found, gradient, atol=2e-4, rtol=2e-4)
    elif transform == "vmap":
        torch.testing.assert_close(found, torch.stack([function(ops, v) for v in both]), atol=2e-4, rtol=2e-4)
    elif transform in ("jvp", "forward_ad"):
        torch.testing.assert_close(found, gradient.sum(), atol=2e-3, rtol=2e-3)
    else:
        assert found.isfinite().all()


@pytest.mark.parametrize("transform", [name for name in TRANSFORMS if name != "forward_ad"])
@pytest.mark.parametrize("name", list(functions()))
def test_compiled_transforms_are_refused_too(name, transform):
    """Dynamo differentiates no autograd.Function whose inputs require grad by a transform alone: zeros, in silence."""
    torch._dynamo.reset()
    function, x = functions()[name]
    op = name.partition(",")[0]
    compiled = torch.compile(lambda x: TRANSFORMS[transform](lambda x: function(ops, x), x), backend="eager")
    with pytest.raises(NotImplementedError, match=rf"^{op} does not work inside the transforms"):
        compiled(x)


@pytest.mark.parametrize("name", list(functions()))
def test_a_compiled_function_refuses_forward_derivatives(name):
    torch._dynamo.reset()
    function, x = functions()[name]
    compiled = torch.compile(lambda x: function(ops, x), backend="eager")
    op = name.partition(",")[0]
    with pytest.raises(NotImplementedError, match=rf"^{op} has no forward-mode derivative"):
        dual(compiled, x)


def test_evaluation_blocks_refuse_transforms():
    case = Case(16, 16, 1, 40, B=2)
    with pytest.raises(NotImplementedError, match="mbconv_evaluate does not work inside the transforms"):
        func.vmap(lambda x: ops.mbconv_evaluate(x, case.block))(case.x[None])


@pytest.mark.parametrize("name", list(functions()))
def test_second_derivatives_are_refused_with_what_works(name):
    function, x = functions()[name]
    op = name.partition(",")[0]
    leaf = x.clone().requires_grad_()
    sentence = rf"^{op} has no second derivative\. Use sleepfm_fast\.reference\.{op}, "

    def twice(leaf):
        (gradient,) = torch.autograd.grad(function(ops, leaf), leaf, create_graph=True)
        return torch.autograd.grad(gradient.sum(), leaf)

    with pytest.raises(NotImplementedError, match=sentence):
        twice(leaf)
    with pytest.raises(NotImplementedError, match=sentence):
        torch.autograd.functional.hessian(lambda x: function(ops, x), x)
    (gradient,) = torch.autograd.grad(function(reference, leaf), leaf, create_graph=True)
    assert torch.autograd.grad(gradient.sum(), leaf)[0].isfinite().all()


@pytest.mark.parametrize("name", [*functions(), "contrastive_loss, large"])
def test_several_gradients_at_once_are_those_one_by_one_or_refused_with_what_works(name):
    """torch.autograd.grad(..., is_grads_batched=True), as torch.autograd.functional.jacobian(vectorize=True) does."""
    function, x = (
        functions()[name] if name in functions() else (functions()["contrastive_loss"][0], torch.randn(3, 300, 8))
    )
    leaf = x.clone().requires_grad_()
    several = torch.tensor([1.0, -2.0, 0.5])

    def batched(module):
        return torch.autograd.grad(function(module, leaf), leaf, several, is_grads_batched=True)[0]

    one_by_one = torch.stack([torch.autograd.grad(function(ops, leaf), leaf, g)[0] for g in several])
    if name == "mbconv":
        sentence = (
            r"^mbconv takes one gradient at a time, not is_grads_batched=True.* use sleepfm_fast\.reference\.mbconv"
        )
        with pytest.raises(NotImplementedError, match=sentence):
            batched(ops)
    else:
        torch.testing.assert_close(batched(ops), one_by_one, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(batched(reference), one_by_one, atol=2e-3, rtol=2e-3)


# Dynamo itself instantiates torch.autograd.Function while it traces one.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("name", list(functions()))
def test_a_training_step_compiles_into_one_graph(name):
    torch._dynamo.reset()
    function, x = functions()[name]
    compiled = torch.compile(lambda x: function(ops, x), fullgraph=True, backend="aot_eager")
    gradients = []
    for step in (compiled, lambda x: function(ops, x)):
        leaf = x.clone().requires_grad_()
        value = step(leaf)
        gradients += [value, *torch.autograd.grad(value, leaf)]
    torch.testing.assert_close(gradients[:2], gradients[2:])


@pytest.mark.parametrize("name", ["max_pool_forward", "mbconv_evaluate", "stem_forward", "contrastive_loss_forward"])
def test_a_registered_op_compiles_without_gradients(name):
    torch._dynamo.reset()
    op, arguments = getattr(OPS, name), calls()[name]
    compiled = torch.compile(lambda x: op(x, *arguments[1:]), fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        found, expected = compiled(arguments[0]), op(*arguments)
    first = [v[0] if isinstance(v, tuple) else v for v in (found, expected)]
    assert torch.equal(*first)
