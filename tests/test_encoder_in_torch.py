"""The encoder as a module of somebody else's program: other layers in it, hooks, torch.func, gradients of gradients."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jacrev, jvp, vmap
from torch.nn.utils import parametrizations
from torch.utils.flop_counter import FlopCounterMode

from sleepfm_fast.encoder import EncoderConfig, SleepModel, build_encoder
from sleepfm_fast.ops import contrastive_loss

CONFIG = EncoderConfig(channels=(8, 8, 12, 16, 24), depth=(1, 2, 2), dim=16, dropout=0.0)
N_SAMPLES = 512


def encoder():
    torch.manual_seed(0)
    made = build_encoder(2, CONFIG)
    for name, buffer in made.named_buffers():
        if name.endswith("running_var"):
            buffer.uniform_(0.5, 2)
        elif name.endswith("running_mean"):
            buffer.normal_()
    return made


@pytest.fixture
def x():
    return torch.randn(5, 2, N_SAMPLES, generator=torch.Generator().manual_seed(1))


def close(found, truth, tolerance=1e-5):
    """Compare with float64, relative to the largest value."""
    found, truth = found.detach().double(), truth.detach()
    assert float((found - truth).abs().max()) <= tolerance * float(truth.abs().max())


@pytest.mark.parametrize("training", [False, True])
def test_saliency_is_the_gradient_in_float64(x, training):
    of_32, of_64 = encoder().train(training), encoder().double().train(training)
    signals = x.clone().requires_grad_(), x.double().requires_grad_()
    for network, signal in zip((of_32, of_64), signals, strict=True):
        network(signal)[:, 3].sum().backward()
    close(signals[0].grad, signals[1].grad)


def test_a_penalty_on_saliency_in_evaluation(x):
    """The fused operations refuse gradients of gradients; in evaluation with gradients none may be in the way."""

    def penalty(network, x):
        signal = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(network(signal).square().sum(), signal, create_graph=True)
        slope.square().sum().backward()
        return signal.grad

    close(penalty(encoder().eval(), x), penalty(encoder().double().eval(), x.double()))


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is:DeprecationWarning")  # of torch's own jvp
def test_transforms_of_torch_func_in_evaluation(x):
    network, truth = encoder().eval(), encoder().double().eval()

    def gradients(network, x):
        parameters, buffers = dict(network.named_parameters()), dict(network.named_buffers())

        def loss(parameters, clip):
            return functional_call(network, (parameters, buffers), (clip[None],)).square().sum()

        return vmap(grad(loss), (None, 0))(parameters, x)

    found, expected = gradients(network, x), gradients(truth, x.double())
    for name in ("fc.weight", "stage1.weight", "stage3.stack.s0.conv2.weight"):
        close(found[name], expected[name])
    close(jacrev(network)(x[:1]), jacrev(truth)(x[:1].double()))
    for gradients_recorded in (True, False):
        with torch.set_grad_enabled(gradients_recorded):
            close(jvp(network, (x,), (x,))[1], jvp(truth, (x.double(),), (x.double(),))[1])
            close(vmap(lambda clip: network(clip[None])[0])(x), truth(x.double()))
            with forward_ad.dual_level():
                found = forward_ad.unpack_dual(network(forward_ad.make_dual(x, x))).tangent
            close(found, jvp(truth, (x.double(),), (x.double(),))[1])


def test_transforms_of_torch_func_in_training(x):
    """What batch norms keep must be arguments of the function there, as torch asks for."""

    def gradients(network, x):
        buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}

        def loss(parameters, buffers):
            return functional_call(network, (parameters, buffers), (x,)).square().sum()

        return grad(loss)(dict(network.named_parameters()), buffers)

    found, expected = (gradients(*of) for of in ((encoder(), x), (encoder().double(), x.double())))
    for name in ("fc.weight", "stage1.weight", "stage3.stack.s0.conv2.weight"):
        close(found[name], expected[name], 1e-4)


def wrapped(layer):
    """A layer in a container without a weight of its own, as adapters put one."""
    return nn.Sequential(layer, nn.Identity())


@pytest.mark.parametrize("name", ["conv1", "conv2", "conv3", "b0", "b1", "act", "drop"])
def test_any_layer_of_a_block_may_be_wrapped(x, name):
    network = encoder()
    block = network.stage3.stack[0]
    setattr(block, name, wrapped(getattr(block, name)))
    truth = copy.deepcopy(network).double()
    close(network(x), truth(x.double()))
    with torch.no_grad():
        close(network.eval()(x), truth.eval()(x.double()))


@pytest.mark.parametrize("name", ["stage1", "b0", "pool", "stage9", "fc", "stage3.bn", "stage3.stack"])
def test_any_layer_of_the_encoder_may_be_wrapped(x, name):
    network = encoder()
    parent, _, last = name.rpartition(".")
    network.get_submodule(parent).register_module(last, wrapped(network.get_submodule(name)))
    plain = encoder()
    for of in (network, plain):
        of.eval()
    with torch.no_grad():
        close(network(x), plain.double()(x.double()))
    network.train()(x).sum().backward()


def test_reparametrised_layers(x):
    network = encoder()
    for layer in list(network.modules()):
        if isinstance(layer, nn.Conv1d):
            parametrizations.weight_norm(layer)
    truth = copy.deepcopy(network).double()
    network(x).square().mean().backward()
    truth(x.double()).square().mean().backward()
    for name in ("stage3.stack.s0.conv1", "stage4.stack.s3.conv3", "stage9"):
        found, expected = (of.get_submodule(name).parametrizations.weight.original1.grad for of in (network, truth))
        close(found, expected, 1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_weights_that_are_partly_frozen(x, seed):
    generator = torch.Generator().manual_seed(seed)
    network, truth = encoder(), encoder().double()
    for ours, theirs in zip(network.parameters(), truth.parameters(), strict=True):
        wanted = bool(torch.rand((), generator=generator) < 0.5)
        ours.requires_grad_(wanted)
        theirs.requires_grad_(wanted)
    network(x).square().mean().backward()
    truth(x.double()).square().mean().backward()
    for ours, theirs in zip(network.parameters(), truth.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None)
        if theirs.grad is not None and float(theirs.grad.abs().max()) > 1e-4:
            close(ours.grad, theirs.grad, 1e-4)


@pytest.mark.parametrize("mode", ["training", "evaluation", "no gradients"])
def test_hooks_of_every_module_are_called(x, mode):
    """A projection without residual has a dropout that nobody calls, in torch as here."""
    network = encoder().train(mode == "training")
    names = {module: name for name, module in network.named_modules()}
    called = set()
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: called.add(names[module]))
    try:
        with torch.set_grad_enabled(mode != "no gradients"):
            network(x)
    finally:
        handle.remove()
    assert {name for name in names.values() if name not in called} == {
        "stage2.stack.s2.drop",
        "stage3.stack.s3.drop",
        "stage4.stack.s3.drop",
    }


@pytest.mark.parametrize("mode", ["training", "evaluation", "no gradients"])
def test_operations_are_counted(x, mode):
    """Torch counts multiplications and additions of its own operations only."""

    def count(network, x):
        with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(mode != "no gradients"):
            network.train(mode == "training")(x)
        return counter.get_total_flops()

    assert count(encoder(), x) == count(encoder().double(), x.double()) > 0


@pytest.mark.parametrize("n_samples", [1, 2, 3, 4, 7, 8, 9, 16])
def test_one_value_per_channel_is_refused_as_torch_refuses_it(n_samples):
    """A block with a stride leaves half of the values, rounded up."""
    x = torch.randn(1, 2, n_samples)
    for network, clip in ((encoder(), x), (encoder().double(), x.double())):
        with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
            network(clip)


@pytest.mark.parametrize("training", [False, True])
def test_shapes_on_the_meta_device(x, training):
    network = encoder().to("meta").train(training)
    for gradients_recorded in (True, False):
        with torch.set_grad_enabled(gradients_recorded):
            y = network(x.to("meta"))
        assert (y.device.type, y.shape) == ("meta", (5, 16))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # of torch's own tracing
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # the same
def test_a_compiled_step_gives_the_same_bits(x):
    """In one graph with every clip; which clips have a modality is data, at which torch breaks the graph."""
    model = SleepModel({"brain": 2, "ecg": 2}, CONFIG)
    present = {"ecg": torch.tensor([True, True, False, True, True])[:, None].expand(5, 2)}

    def step(model, present):
        z, mask = model({"brain": x, "ecg": x + 1}, present)
        return contrastive_loss(z, model.log_temperature, mask=mask)[0]

    for given, fullgraph in ((None, True), (present, False)):
        ours, theirs = copy.deepcopy(model), copy.deepcopy(model)
        try:
            torch.compile(step, backend="aot_eager", fullgraph=fullgraph)(ours, given).backward()
        finally:
            torch._dynamo.reset()
        step(theirs, given).backward()
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert torch.equal(a.grad, b.grad)
        for a, b in zip(ours.buffers(), theirs.buffers(), strict=True):
            assert torch.equal(a, b)


def test_a_pickled_model_and_a_copy_give_the_same_bits(x):
    network = encoder().eval()
    with torch.no_grad():
        expected = network(x)
        assert torch.equal(pickle.loads(pickle.dumps(network))(x), expected)
        assert torch.equal(copy.deepcopy(network)(x), expected)


def test_arrays_and_batches_in_place_of_tensors_are_named(x):
    with pytest.raises(TypeError, match="x is a ndarray; an encoder takes a tensor"):
        encoder()(x.numpy())
    with pytest.raises(TypeError, match=r"batch is a Tensor; .* model\(batch.x, batch.present\)"):
        SleepModel({"ecg": 2}, CONFIG)(x)
