"""The contrastive loss on a CUDA device, every path of it; on the CPU too, where what is allowed is to be tried."""

import math
import re
from pathlib import Path

import pytest
import torch
from contrastive_cases import embeddings, evaluate, random_mask

from sleepfm_fast import ops, reference
from sleepfm_fast.ops import contrastive_cuda

PATHS = ("small", "mma", "gemm", "chunked")
# Relative to the largest element: similarities are uncertain by float32's epsilon, or by two factors of 11 bits.
TOLERANCE = {"highest": 2e-5, "high": 4e-3}


@pytest.mark.parametrize("name", ["forward", "backward"])
@pytest.mark.parametrize("prefix", ["contrastive", "contrastive_cuda"])
def test_bindings_fill_the_structure_in_its_order(prefix, name):
    """Most members are addresses: two of them exchanged would compile, and only a device would tell of CUDA's."""
    csrc = Path(__file__).resolve().parents[1] / "csrc"
    structure = re.search(rf"struct Contrastive{name.title()} {{(.*?)}};", (csrc / "params.h").read_text(), re.DOTALL)
    members = re.findall(r"(\w+);", re.sub(r"//.*", "", structure[1]))
    binding = (csrc / "bindings" / f"{prefix}.cpp").read_text()
    signature, body = re.search(
        rf"^void {prefix}_{name}\((.*?)\) {{\n(.*?)^}}", binding, re.DOTALL | re.MULTILINE
    ).groups()
    given = re.findall(r"pointer<[^>]*>\((\w+)\)", body)
    assert [name for name in given if name != "kept"] == members[1:]  # after the input
    named = re.findall(r"Address (\w+)", signature)
    assert [name for name in named if name in members] == members[1:]  # as the ops give them


@pytest.fixture(params=[pytest.param(name, marks=pytest.mark.cuda) for name in PATHS])
def path(request, monkeypatch):
    monkeypatch.setenv(contrastive_cuda.VARIABLE, request.param)
    return request.param


@pytest.fixture(params=["cpu", *(pytest.param(name, marks=pytest.mark.cuda) for name in PATHS)])
def path_or_cpu(request, monkeypatch):
    """A path on the device; "cpu": a result that is known to be right must pass the same test."""
    if request.param != "cpu":
        monkeypatch.setenv(contrastive_cuda.VARIABLE, request.param)
    return request.param


def moved(path, *tensors):
    """To where the path runs."""
    return tuple(tensor if path == "cpu" else tensor.cuda() for tensor in tensors)


def case(N=300, D=128, M=3, dtype=torch.float32, masked=True, scale=14.0):
    x, tau = embeddings("random", M, N, D).to(dtype), torch.tensor(math.log(scale))
    return x, tau, random_mask(M, N) if masked else None


@pytest.mark.parametrize("precision", ["highest", "high"])
@pytest.mark.parametrize("mode", ["leave_one_out", "pairwise"])
@pytest.mark.parametrize(
    ("N", "D", "dtype", "scale"),
    [
        (1, 64, torch.float32, 14.0),
        (32, 512, torch.float32, 1.0),
        (300, 128, torch.bfloat16, 14.0),
        (513, 512, torch.float16, 14.0),
        (700, 256, torch.float32, 100.0),
        (257, 300, torch.float32, 14.0),
    ],
)
def test_agrees_with_float64(path_or_cpu, N, D, dtype, scale, mode, precision):
    check_agreement(path_or_cpu, case(N, D, dtype=dtype, scale=scale), mode, precision)


@pytest.mark.parametrize("precision", ["highest", "high"])
@pytest.mark.parametrize("mode", ["leave_one_out", "pairwise"])
@pytest.mark.parametrize("name", ["cpu", *(pytest.param(p, marks=pytest.mark.cuda) for p in PATHS if p != "mma")])
def test_more_dimensions_than_the_fused_tiles_hold(name, mode, precision, monkeypatch):
    if name != "cpu":
        monkeypatch.setenv(contrastive_cuda.VARIABLE, name)
    check_agreement(name, case(300, 1000), mode, precision)


def check_agreement(path, inputs, mode, precision):
    """Loss, gradients and ranks of ``x, tau, mask`` on a path against the twin in float64."""
    x, tau, mask = inputs
    N, dtype, scale = x.shape[1], x.dtype, float(tau.exp())
    truth = evaluate(reference.contrastive_loss, x.double(), tau.double(), mode=mode, mask=mask)
    x, tau, mask = moved(path, torch.where(mask[..., None], x, torch.nan), tau, mask)
    ours = evaluate(ops.contrastive_loss, x, tau, mode=mode, mask=mask, precision=precision)
    tolerance = TOLERANCE[precision] if path in ("mma", "gemm") else TOLERANCE["highest"]
    tolerance *= 1 + scale / 14
    torch.testing.assert_close(ours.loss.cpu().double(), truth.loss, rtol=tolerance, atol=1e-9)
    largest = truth.d_x.abs().max()
    allowed = tolerance * largest
    if dtype != torch.float32:
        # Rounded once more, below the smallest normal number (most of a float16 gradient) by a fixed step.
        info = torch.finfo(dtype)
        allowed = allowed + info.eps * truth.d_x.abs().clamp_min(info.smallest_normal)
    error = (ours.d_x.cpu().double() - truth.d_x).abs()
    assert bool((error <= allowed).all()), float(error.max() / largest)
    torch.testing.assert_close(
        ours.d_log_temperature.cpu().double(), truth.d_log_temperature, rtol=tolerance, atol=tolerance
    )
    assert torch.equal(ours.statistics.n_valid.cpu(), truth.statistics.n_valid)
    places = (ours.statistics.ranks.cpu() - truth.statistics.ranks).abs().sum()
    assert int(places) <= 2 + 3 * N * N * tolerance


def test_the_same_bits_every_time(path):
    x, tau, mask = (value.cuda() for value in case())
    results = [evaluate(ops.contrastive_loss, x, tau, mask=mask) for _ in range(3)]
    for other in results[1:]:
        assert torch.equal(results[0].loss, other.loss)
        assert torch.equal(results[0].d_x, other.d_x)
        assert torch.equal(results[0].d_log_temperature, other.d_log_temperature)
        assert torch.equal(results[0].statistics.ranks, other.statistics.ranks)


@pytest.mark.cuda
def test_equal_rows_tie_exactly(monkeypatch):
    """Depends on every element of a product being the same chain of sums wherever it lies in a tile."""
    for name in ("small", "mma"):
        monkeypatch.setenv(contrastive_cuda.VARIABLE, name)
        for precision in ("highest", "high"):
            x = embeddings("aligned", 3, 7, 128)[:, torch.arange(500) % 7].cuda()
            ranks = ops.contrastive_loss(x, torch.tensor(3.0).cuda(), precision=precision)[1].ranks
            assert torch.equal(ranks.cpu(), (torch.arange(500) // 7).int().expand(3, 2, 500)), (name, precision)


# What torch says once in a process, of the mode itself.
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype:UserWarning")
@pytest.mark.cuda
@pytest.mark.parametrize("path", ["small", "mma", "gemm"], indirect=True)
def test_nothing_waits_for_the_device(path):
    x, tau, mask = (value.cuda() for value in case())
    evaluate(ops.contrastive_loss, x, tau, mask=mask)  # what is set up once
    upstream = torch.ones((), device="cuda")
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        leaf = x.clone().requires_grad_()
        loss, _ = ops.contrastive_loss(leaf, tau, mask=mask)
        loss.backward(upstream)
    finally:
        torch.cuda.set_sync_debug_mode(before)


@pytest.mark.cuda
@pytest.mark.parametrize("path", ["small", "mma", "gemm"], indirect=True)
def test_captured_in_a_graph(path):
    x, tau, mask = (value.cuda() for value in case())
    leaf, log_temperature = x.clone().requires_grad_(), tau.clone().requires_grad_()

    def step():
        leaf.grad = log_temperature.grad = None
        loss, statistics = ops.contrastive_loss(leaf, log_temperature, mask=mask)
        loss.backward()
        return loss.detach(), statistics.ranks

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss, ranks = step()
    for seed in (1, 2):
        with torch.no_grad():
            leaf.copy_(embeddings("random", 3, 300, 128, seed))
            log_temperature.fill_(float(seed))
        graph.replay()
        eager = evaluate(ops.contrastive_loss, leaf.detach(), log_temperature.detach(), mask=mask)
        assert torch.equal(loss, eager.loss)
        assert torch.equal(leaf.grad, eager.d_x)
        assert torch.equal(log_temperature.grad, eager.d_log_temperature)
        assert torch.equal(ranks, eager.statistics.ranks)


def test_runs_in_the_current_stream(path):
    """The input is overwritten late in a side stream: whoever reads it in another one sees the old numbers."""
    x, tau, mask = (value.cuda() for value in case())
    expected = evaluate(ops.contrastive_loss, x, tau, mask=mask)
    side = torch.cuda.Stream()
    late = torch.zeros_like(x)
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        torch.cuda._sleep(50_000_000)
        late.copy_(x)
        got = evaluate(ops.contrastive_loss, late, tau, mask=mask)
    torch.cuda.synchronize()
    assert torch.equal(got.loss, expected.loss)
    assert torch.equal(got.d_x, expected.d_x)


def test_any_strides(path_or_cpu):
    """Views of x and of the mask, the last dimension not dense, an address that is no multiple of 16."""
    x, tau, mask = moved(path_or_cpu, *case(N=130))
    expected = evaluate(ops.contrastive_loss, x, tau, mask=mask)
    padded = torch.full((3, 130, 131), torch.nan, device=x.device)
    padded[..., 1:129] = x
    views = (
        x.transpose(0, 1).contiguous().transpose(0, 1),
        x.transpose(1, 2).contiguous().transpose(1, 2),
        padded[..., 1:129],
    )
    for view in views:
        got = evaluate(ops.contrastive_loss, view, tau, mask=mask.T.contiguous().T)
        for a, b in ((got.loss, expected.loss), (got.d_x, expected.d_x)):
            if path_or_cpu == "chunked":  # torch adds in the order of its operands' layout
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)
            else:
                assert torch.equal(a, b)


def shares(x, tau, mask, ranges):
    """What forward and backward give for each range of samples; backward has the state of all of them."""
    ops_ = torch.ops.sleepfm_fast
    N, options = x.shape[1], ("leave_one_out", "both", "highest")
    *_, n_valid, state = ops_.contrastive_loss_forward(x, tau, mask, *options, 0, N)
    upstream = torch.tensor(0.7, device=x.device)
    forward = [ops_.contrastive_loss_forward(x, tau, mask, *options, *at) for at in ranges]
    backward = [ops_.contrastive_loss_backward(upstream, x, tau, mask, n_valid, state, *options, *at) for at in ranges]
    return forward, backward


def check_ranges(x, tau, mask, path):
    N = x.shape[1]
    ranges = [(0, 0), (0, 131), (131, 132), (132, N)]
    (whole,), ((gradient, slope),) = shares(x, tau, mask, [(0, N)])
    forward, backward = shares(x, tau, mask, ranges)
    for k in (0, 1):  # loss, losses
        torch.testing.assert_close(sum(part[k] for part in forward), whole[k], rtol=1e-5, atol=1e-7)
    for (begin, end), (_, _, _, ranks, n_valid, state) in zip(ranges, forward, strict=True):
        assert torch.equal(n_valid, whole[4])
        torch.testing.assert_close(state[..., begin:end], whole[5][..., begin:end], rtol=2e-5, atol=1e-6)
        places = (ranks[..., begin:end] - whole[3][..., begin:end]).abs().sum()
        assert int(places) <= (20 if path == "gemm" else 2)  # a range's columns are the rows of another product
        assert bool((ranks[..., :begin] == -1).all())
        assert bool((ranks[..., end:] == -1).all())
    torch.testing.assert_close(
        sum(d for d, _ in backward), gradient, rtol=1e-4, atol=1e-5 * float(gradient.abs().max())
    )
    torch.testing.assert_close(sum(s for _, s in backward), slope, rtol=1e-4, atol=1e-6)
    for (begin, end), (d, _) in zip(ranges, backward, strict=True):
        assert not d[:, :begin].any()
        assert not d[:, end:].any()


def test_ranges_of_samples_add_up(path_or_cpu):
    """As ranks of a process group share the work."""
    check_ranges(*moved(path_or_cpu, *case()), path_or_cpu)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one CUDA device or none")
def test_on_the_second_device(path):
    x, tau, mask = case()
    first = evaluate(ops.contrastive_loss, x.to("cuda:0"), tau.to("cuda:0"), mask=mask.to("cuda:0"))
    second = evaluate(ops.contrastive_loss, x.to("cuda:1"), tau.to("cuda:1"), mask=mask.to("cuda:1"))
    assert torch.cuda.current_device() == 0
    assert torch.equal(first.loss.cpu(), second.loss.cpu())
    assert torch.equal(first.d_x.cpu(), second.d_x.cpu())


# Dynamo itself instantiates torch.autograd.Function while it traces one.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.cuda
@pytest.mark.parametrize("path", ["mma"], indirect=True)
def test_compiles(path):
    torch._dynamo.reset()
    x, tau, mask = (value.cuda() for value in case())
    compiled = torch.compile(
        lambda x, tau, **kwargs: ops.contrastive_loss(2 * x, tau, **kwargs), fullgraph=True, backend="aot_eager"
    )
    eager = evaluate(lambda x, tau, **kwargs: ops.contrastive_loss(2 * x, tau, **kwargs), x, tau, mask=mask)
    traced = evaluate(compiled, x, tau, mask=mask)
    assert torch.equal(eager.loss, traced.loss)
    assert torch.equal(eager.d_x, traced.d_x)


@pytest.mark.cuda
@pytest.mark.parametrize("path", ["mma", "gemm"], indirect=True)
def test_memory_grows_with_n(path):
    """N = 20,000: one matrix of similarities alone would take 1.6 GB."""
    x = torch.randn(2, 20_000, 64, device="cuda", requires_grad=True)
    tau = torch.tensor(3.0, device="cuda")
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    ops.contrastive_loss(x, tau, "pairwise")[0].backward()
    torch.cuda.synchronize()
    assert torch.cuda.max_memory_allocated() - before < (200e6 if path == "mma" else 900e6)


def test_the_slope_of_a_row_only_loss(path_or_cpu):
    x, tau, mask = case(N=100)
    truth = evaluate(reference.contrastive_loss, x.double(), tau.double(), mask=mask, directions="row")
    x, tau, mask = moved(path_or_cpu, x, tau, mask)
    ours = evaluate(ops.contrastive_loss, x, tau, mask=mask, directions="row")
    torch.testing.assert_close(ours.d_log_temperature.cpu().double(), truth.d_log_temperature, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(ours.d_x.cpu().double(), truth.d_x, rtol=1e-3, atol=1e-8)
