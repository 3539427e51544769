"""The ops as programs meet them: tensors that are not what their memory says, other defaults, hooks on what is saved,
recomputation, other processes, export.
"""  # noqa: D205

import copy
import os
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from filter_batch import mixed_batch
from test_encoder_evaluate import NETWORKS, network
from test_mbconv import arguments as block_of
from test_stem import arguments as stem_of
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint

import sleepfm_fast
from sleepfm_fast import ops
from sleepfm_fast.ops import contrastive_cpu
from sleepfm_fast.ranks import pair_ranks

ROOT = Path(__file__).resolve().parent.parent
TAU = torch.tensor(1.0)
# Loss and gradients in one call, and forward and backward in turn.
SIZES = [(3, 20, 12), (3, 150, 12)]


def loss_and_gradients(x, log_temperature=TAU, mask=None, loss_of=ops.contrastive_loss):
    x, log_temperature = (tensor.detach().requires_grad_() for tensor in (x, log_temperature))
    loss, statistics = loss_of(x, log_temperature, mask=mask)
    loss.backward()
    return loss.detach(), x.grad, log_temperature.grad, *statistics


def all_equal(found, expected):
    return all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def all_close(found, expected):
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


def negative_view(x):
    """A tensor worth x whose memory holds -x."""
    view = torch.complex(torch.zeros_like(x), -x).conj().imag
    assert view.is_neg()
    return view


@pytest.mark.parametrize("size", SIZES)
def test_the_negative_bit_counts(size):
    x = torch.randn(size)
    expected = loss_and_gradients(x)
    all_close(loss_and_gradients(negative_view(x)), expected)
    all_close(loss_and_gradients(x, negative_view(TAU)), expected)
    loss, statistics = ops.contrastive_loss(x, negative_view(TAU))
    all_close((loss, *statistics), (expected[0], *expected[3:]))


@pytest.mark.parametrize("size", SIZES)
def test_the_negative_bit_of_what_comes_from_above(size):
    x = torch.randn(size, requires_grad=True)
    loss, _ = ops.contrastive_loss(x, TAU)
    half = torch.tensor(0.5)
    found = [torch.autograd.grad(loss, x, above, retain_graph=True)[0] for above in (negative_view(half), half)]
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("size", SIZES)
def test_tensors_without_memory_are_zeros(size):
    """Derivatives in forward mode bring them about."""
    all_close(loss_and_gradients(torch._efficientzerotensor(size)), loss_and_gradients(torch.zeros(size)))
    nobody = torch._efficientzerotensor(size[:2], dtype=torch.bool)
    loss, *_, n_valid = loss_and_gradients(torch.randn(size), mask=nobody)
    assert float(loss) == 0.0
    assert not n_valid.any()


def everything(results):
    """Call every op on the CPU with the same arguments, made under the default device of torch itself."""
    generator = torch.Generator().manual_seed(0)
    losses = [torch.randn(size, generator=generator) for size in SIZES]
    block, *weights = block_of((2, 3, 8, 3, 40, 1))
    weights = [weight.requires_grad_() for weight in weights]
    clips, parameters = stem_of((2, 3, 8, 41))
    encoder = network(*NETWORKS[3])
    batch = mixed_batch()
    windows = batch.tensors(5)
    a = torch.randn(50, 16, generator=generator).numpy()

    def call():
        torch.manual_seed(1)
        for x in losses:
            results.extend(loss_and_gradients(x))
            results.extend(ops.contrastive_loss(x, TAU, mode="pairwise"))
        y, statistics = ops.mbconv(block, *weights, residual=True, dropout=0.5)
        results.extend((y, statistics, *torch.autograd.grad(y.square().sum(), weights)))
        results.extend(ops.stem(clips, *parameters))
        results.append(ops.max_pool(clips))
        with torch.no_grad():
            results.append(ops.encoder_evaluate(*encoder))
        batch.bank._tensors.clear()
        results.append(ops.filter_resample(*windows, batch.bank, 96, normalise="zscore"))
        results.extend(torch.from_numpy(ranks) for ranks in pair_ranks(a, np.roll(a, 1, axis=0)))

    return call


def flat(results):
    return [tensor for each in results for tensor in ([each] if isinstance(each, torch.Tensor) else list(each))]


DEFAULTS = """
import sys
sys.path.insert(0, {tests!r})
import torch
torch.set_default_device("meta")
import sleepfm_fast.ops
torch.set_default_device(None)
from test_ops_in_torch import all_equal, everything, flat
expected, found = [], []
everything(expected)()
call = everything(found)
torch.set_default_device("meta")
call()
torch.set_default_device(None)
assert len(found) > 30 and all_equal(flat(found), flat(expected))
"""


def test_the_default_device_changes_nothing():
    """A program may make its tensors on another device by default, from before the import on."""
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", DEFAULTS.format(tests=str(ROOT / "tests"))],
        check=True,
        env={**os.environ, "PYTHONPATH": str(Path(sleepfm_fast.__file__).parent.parent)},
    )


@pytest.fixture
def flushed():
    """Subnormal numbers count as zero in this thread."""
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor does not flush subnormal numbers")
    yield
    torch.set_flush_denormal(False)


@pytest.mark.parametrize("size", SIZES)
def test_small_float16_is_not_flushed(size, flushed):
    """Float16's subnormal numbers, up to 6e-5, are no subnormal float32, on the way to it neither."""
    x = (3e-5 * torch.ones(size).cumsum(1).sin()).half()
    all_close(loss_and_gradients(x)[:1], loss_and_gradients(x.float())[:1])
    assert all_equal(loss_and_gradients(x)[3:], loss_and_gradients(x.float())[3:])


def strided(tensor):
    """The same values with the strides of another order of dimensions."""
    n = tensor.dim()
    turned = torch.empty(tensor.shape[::-1], dtype=tensor.dtype).permute(tuple(range(n - 1, -1, -1)))
    return turned.copy_(tensor)


def elsewhere(tensor):
    """The same values at an address that fits its elements and nothing more."""
    memory = torch.empty(tensor.numel() + 1, dtype=tensor.dtype)[1:]
    return memory.view(tensor.shape).copy_(tensor)


@pytest.mark.parametrize("unpack", [strided, elsewhere])
def test_hooks_on_saved_tensors_may_give_other_strides_and_addresses(unpack):
    """As one that keeps them on disk or in another type does."""
    clips, parameters = stem_of((2, 3, 8, 41))
    block, *weights = block_of((3, 40, 60, 40, 51, 2))  # the expansion is kept
    leaves = [tensor.requires_grad_() for tensor in (block, *weights, *parameters)]

    def gradients():
        found = [tensor for size in SIZES for tensor in loss_and_gradients(torch.ones(size).cumsum(1).sin())]
        y, _ = ops.mbconv(block, *weights, stride=2)
        z, _ = ops.stem(clips, *parameters)
        (y.square().sum() + ops.max_pool(z).square().sum()).backward()
        found += [leaf.grad for leaf in leaves]
        for leaf in leaves:
            leaf.grad = None
        return found

    expected = gradients()
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, unpack):
        found = gradients()
    all_close(found, expected)


@pytest.mark.parametrize("size", SIZES)
def test_what_is_saved_is_unpacked_once(size):
    counts = [0, 0]

    def count(which):
        def hook(tensor):
            counts[which] += 1
            return tensor

        return hook

    with torch.autograd.graph.saved_tensors_hooks(count(0), count(1)):
        loss_and_gradients(torch.randn(size))
    assert counts[0] == counts[1] > 0


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("size", SIZES)
def test_a_checkpoint_gives_the_same_bits(size, use_reentrant):
    x = torch.randn(size)

    def again(x, log_temperature, mask):
        return checkpoint(ops.contrastive_loss, x, log_temperature, use_reentrant=use_reentrant)

    assert all_equal(loss_and_gradients(x, loss_of=again), loss_and_gradients(x))


@pytest.mark.parametrize("size", SIZES)
def test_without_gradients_nothing_is_kept_for_them(size, monkeypatch):
    """In validation the temperature is a parameter all the same."""
    temperature = torch.nn.Parameter(TAU.clone())
    x = torch.randn(size)
    expected = ops.contrastive_loss(x, temperature)
    monkeypatch.setattr(contrastive_cpu, "forward_keeping", lambda *_: pytest.fail("a gradient was prepared"))
    with torch.no_grad():
        loss, statistics = ops.contrastive_loss(x, temperature)
    assert not loss.requires_grad
    assert all_equal((loss, *statistics), (expected[0], *expected[1]))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_trace_computes(size):
    """torch.jit.trace sees the registered op, not its numbers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(lambda x: ops.contrastive_loss(x, TAU)[0], torch.randn(size), check_trace=False)
    x = torch.randn(size)
    assert torch.equal(traced(x), ops.contrastive_loss(x, TAU)[0])


class Loss(torch.nn.Module):
    def forward(self, x):
        return ops.contrastive_loss(x, TAU)[0]


def test_an_exported_program_takes_batches_of_any_size():
    """Small ones and others run different kernels; the sizes that are exported must not decide."""
    n = torch.export.Dim("n", min=2, max=4096)
    program = torch.export.export(Loss(), (torch.randn(SIZES[1]),), dynamic_shapes={"x": {1: n}})
    for size in SIZES:
        x = torch.randn(size)
        assert torch.equal(program.module()(x), Loss()(x))


@pytest.mark.parametrize("trace", ["export", "make_fx", "fake"])
def test_tracing_the_filter_leaves_no_trace_in_the_bank(trace):
    """Tensors without values, which a trace computes with, must not be kept for later calls."""
    batch = mixed_batch()
    tensors = batch.tensors(5)
    expected = batch.run(96, 5)
    bank = copy.deepcopy(batch.bank)  # without tensors yet

    raw, *others = tensors

    def call(raw):
        return ops.filter_resample(raw, *others, bank, 96)

    if trace == "export":
        program = torch.export.export(Call(call), (raw,))
        assert torch.equal(program.module()(raw), expected)
    elif trace == "make_fx":
        make_fx(lambda *tensors: ops.filter_resample(*tensors, bank, 96), tracing_mode="fake")(*tensors)
    else:
        with FakeTensorMode(allow_non_fake_inputs=True):
            assert isinstance(call(raw), FakeTensor)
    assert [type(tensor) for tensor in bank.tensors()] == [torch.Tensor, torch.Tensor]
    assert torch.equal(call(raw), expected)


@pytest.mark.parametrize("size", SIZES)
def test_the_profiler_sees_the_op(size):
    x = torch.randn(size)
    expected = loss_and_gradients(x)
    with torch.profiler.profile(acc_events=True) as profile:  # without, torch 2.11 warns
        found = loss_and_gradients(x)
    assert all_equal(found, expected)
    seen = {event.key for event in profile.key_averages()}
    names = {"contrastive_loss_forward_keeping", "contrastive_loss_backward_kept"}
    assert {f"sleepfm_fast::{name}" for name in names} <= seen


@pytest.mark.parametrize("size", SIZES)
def test_another_instruction_set_in_backward_computes_anew(size, monkeypatch):
    """Each has a layout of its own of what forward keeps."""
    x = torch.randn(size)
    sets = sleepfm_fast.build_info()["cpu_instruction_sets"]
    gradients = []
    for forward in sets:
        for backward in sets:
            leaf = x.clone().requires_grad_()
            monkeypatch.setenv("SLEEPFM_CPU", forward)
            loss = ops.contrastive_loss(leaf, TAU)[0]
            monkeypatch.setenv("SLEEPFM_CPU", backward)
            loss.backward()
            gradients.append(leaf.grad)
    for gradient in gradients:
        assert torch.linalg.norm(gradient - gradients[0]) < 1e-6 * torch.linalg.norm(gradients[0])


class Call(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def encoder_calls():
    """Calls of the encoder's ops as functions of clips [B, 3, T]."""
    _, *weights = block_of((2, 3, 8, 3, 40, 1))
    _, parameters = stem_of((2, 3, 8, 41))
    _, *encoder = network(*NETWORKS[3])
    running = (torch.zeros(8), torch.ones(8)) * 2
    return {
        "mbconv": lambda x: ops.mbconv(x, *weights)[0],
        "mbconv, evaluated": lambda x: ops.mbconv(x, *weights, running=running)[0],
        "stem": lambda x: ops.stem(x, *parameters)[0],
        "max_pool": ops.max_pool,
        "encoder_evaluate": lambda x: ops.encoder_evaluate(x, *encoder),
    }


@pytest.mark.parametrize("name", list(encoder_calls()))
def test_exported_layers_take_batches_and_clips_of_any_size(name):
    """What is traced must not be asked how much memory a result takes, nor its length by `len`, which is a number."""
    call = encoder_calls()[name]
    n_in = 3 if name != "encoder_evaluate" else network(*NETWORKS[3])[0].shape[1]
    sizes = {0: torch.export.Dim("b", min=1, max=512), 2: torch.export.Dim("t", min=8, max=8192)}
    with torch.no_grad():
        program = torch.export.export(Call(call), (torch.randn(2, n_in, 64),), dynamic_shapes={"x": sizes}).module()
        for B, T in ((2, 64), (1, 9), (40, 500)):  # the last one's memory comes from the pool of pages
            x = torch.randn(B, n_in, T)
            assert torch.equal(program(x), call(x))


@pytest.mark.parametrize("mode", ["leave_one_out", "pairwise"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own tracing
def test_compiled_for_sizes_of_every_kind(mode):
    """No size is known while it is traced, the number of modalities neither."""

    def step(x):
        return ops.contrastive_loss(x, TAU, mode)[0]

    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    try:
        for M, N, D in ((3, 20, 12), (3, 150, 12), (2, 150, 40), (5, 20, 12)):
            found, expected = (torch.ones(M, N, D).cumsum(1).sin().requires_grad_() for _ in range(2))
            loss = compiled(found)
            loss.backward()
            truth = step(expected)
            truth.backward()
            assert torch.equal(loss, truth)
            torch.testing.assert_close(found.grad, expected.grad)
        with pytest.raises(ValueError, match="9 modalities"):
            step(torch.randn(9, 4, 4))
    finally:
        torch._dynamo.reset()


FORK = """
import os, signal, sys, threading, torch
from sleepfm_fast import ops
torch.set_num_threads(1)
small, large = (torch.randn(8, n, 1, requires_grad=True) for n in (16, 128))
tau, stop = torch.tensor(1.0), threading.Event()
def work():
    while not stop.is_set():
        for x in (small, large):
            ops.contrastive_loss(x, tau, "pairwise")
threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads:
    thread.start()
for _ in range(60):
    child = os.fork()
    if child == 0:
        signal.alarm(20)  # kills who waits for a lock that nobody holds
        ops.contrastive_loss(small, tau, "pairwise")
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    if status != 0:
        break
stop.set()
for thread in threads:
    thread.join()
sys.exit(status != 0)
"""


def test_a_fork_never_finds_the_pool_of_pages_locked():
    """While other threads take memory and give it back; data loaders and job queues fork whenever they like."""
    root = str(Path(sleepfm_fast.__file__).parent.parent)
    subprocess.run([sys.executable, "-W", "ignore", "-c", FORK], check=True, env={**os.environ, "PYTHONPATH": root})


def test_threads_of_python_share_the_ops():
    x = [torch.randn(size) for size in SIZES]
    expected = [loss_and_gradients(each) for each in x]
    wrong = []

    def work():
        for _ in range(10):
            for each, truth in zip(x, expected, strict=True):
                if not all_equal(loss_and_gradients(each), truth):
                    wrong.append(each)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
