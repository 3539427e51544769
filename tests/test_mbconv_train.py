"""MBConv blocks in training on CUDA: the kernels' own source run on the host, against float64, and on a device."""

from __future__ import annotations

import importlib
import itertools
import math
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (torch's own name for it)
from emulated_cuda import ADVERSARIAL, KernelError, Run, compile_kernels, unnoticed
from emulated_mbconv_train import BUFFERS, emulate_training
from torch import Tensor

from sleepfm_fast import ops, reference
from sleepfm_fast.ops import mbconv_between
from sleepfm_fast.ops.dispatch import is_plain
from sleepfm_fast.ops.mbconv import WEIGHTS

OP = importlib.import_module("sleepfm_fast.ops.mbconv_train")
NAMES = ("y", "statistics", "x", *WEIGHTS)
WITHOUT_GRADIENT = ("b1", "bd")  # a batch norm takes constants away

# Channels in, inside, out, stride, clips, samples: the published network's kinds of blocks; one lane, several tiles of
# lanes the last of which is not full, odd lengths, one and two samples.
SHAPES = (
    *((32, 192, 16, 2, 2, 130), (16, 96, 16, 1, 3, 77), (24, 144, 40, 2, 1, 133), (8, 8, 8, 1, 1, 40)),
    *((8, 520, 8, 2, 1, 67), (8, 264, 16, 1, 2, 33), (8, 16, 8, 2, 5, 1), (8, 16, 8, 1, 6, 1), (16, 96, 8, 2, 5, 2)),
)


class Case:
    """A block, a batch and a gradient."""

    def __init__(self, n_in: int, width: int, n_out: int, stride: int, B: int, T: int, seed: int = 0) -> None:
        g = torch.Generator().manual_seed(seed)

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=g)

        self.stride = stride
        self.weights = [
            *(draw(width, n_in) / n_in**0.5, draw(width), 1 + 0.2 * draw(width), 1 + draw(width)),
            *(0.7 * draw(width, 3), draw(width), 1 + 0.2 * draw(width), 1 + draw(width)),
            *(draw(n_out, width) / width**0.5, draw(n_out)),
        ]
        self.x = (draw(B, T, n_in) + draw(n_in)).bfloat16()
        self.dy = draw(B, (T - 1) // stride + 1, n_out).bfloat16()

    def run(self, block: Callable[..., tuple[Tensor, Tensor]], dtype: torch.dtype | None) -> dict[str, Tensor]:
        """y, statistics and all gradients, float64; dtype None: bfloat16 with float32 weights."""
        x = self.x.detach().to(dtype or torch.bfloat16).requires_grad_()
        weights = [w.detach().to(dtype or torch.float32).requires_grad_() for w in self.weights]
        y, statistics = block(x, *weights, stride=self.stride)
        y.backward(self.dy.to(y.dtype))
        values = (y, statistics, x.grad, *(w.grad for w in weights))
        return {name: v.detach().double() for name, v in zip(NAMES, values, strict=True) if v is not None}

    def ours(self) -> dict[str, Tensor]:
        return self.run(ops.mbconv_train, None)

    def truth(self) -> dict[str, Tensor]:
        return self.run(reference.mbconv_train, torch.float64)

    def twin(self) -> dict[str, Tensor]:
        return self.run(lambda *a, **k: reference.mbconv_train(*a, **k, rounded=True), torch.float64)

    def layers(self) -> dict[str, Tensor]:
        return self.run(layers, None)


def layers(x: Tensor, *weights: Tensor, stride: int) -> tuple[Tensor, Tensor]:
    """Torch's own under autocast to bfloat16."""
    w1, b1, gamma0, beta0, wd, bd, gamma1, beta1, w3, b3 = weights
    y = x.transpose(1, 2)
    with torch.autocast(x.device.type, dtype=torch.bfloat16):
        y = F.relu6(F.batch_norm(F.conv1d(y, w1[:, :, None], b1), None, None, gamma0, beta0, True))
        y = F.conv1d(y, wd[:, None], bd, stride=stride, padding=1, groups=len(wd))
        y = F.relu6(F.batch_norm(y, None, None, gamma1, beta1, True))
        y = F.conv1d(y, w3[:, :, None], b3)
    return y.transpose(1, 2), torch.zeros(4, len(w1), dtype=torch.float64, device=x.device)


def distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm().clamp_min(1e-30))


def check(case: Case, ours: dict[str, Tensor]) -> None:
    """As the twin that rounds in the same places; another order of sums moves what lies at a tie of bfloat16."""
    twin, half = case.twin(), 2.0**-8
    for name, value in ours.items():
        if name in WITHOUT_GRADIENT:
            assert not bool(value.any()), name
            continue
        assert value.shape == twin[name].shape, name
        if name == "statistics":
            assert distance(value, twin[name]) < 1e-4, name
        else:
            # The gradient of x is rounded twice on its way, which the twin's is not.
            limit = {"x": 1.5 * half, "y": 0.3 * half}.get(name, 2e-3)
            assert distance(value, twin[name]) < limit, name


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_agrees_with_the_twin(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    emulate_training(monkeypatch)
    case = Case(*shape)
    check(case, case.ours())


@pytest.mark.parametrize("shape", SHAPES[:3], ids=str)
def test_is_as_close_to_the_truth_as_torch_is(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Bfloat16's own noise, most of it from samples that rounding moves over a kink of ReLU6: medians of nine draws."""
    emulate_training(monkeypatch)
    ratios: dict[str, list[float]] = {}
    for seed in range(9):
        case = Case(*shape, seed=seed)
        truth, ours, theirs = case.truth(), case.ours(), case.layers()
        for name in set(NAMES) - {"statistics", "b3", *WITHOUT_GRADIENT}:  # b3: the sum of dy, exact
            ratios.setdefault(name, []).append(distance(ours[name], truth[name]) / distance(theirs[name], truth[name]))
    medians = {name: sorted(values)[4] for name, values in ratios.items()}
    assert max(medians.values()) < 1.25, medians
    assert medians["y"] < 0.97, medians
    assert math.prod(medians.values()) ** (1 / len(medians)) < 0.95, medians


@pytest.mark.parametrize("run", ADVERSARIAL, ids=lambda run: f"{run.schedule}-{run.side}")
@pytest.mark.parametrize("shape", [(16, 48, 16, 1, 2, 70), (16, 264, 8, 2, 1, 70)], ids=str)
def test_same_bits_whatever_the_order_of_warps(
    shape: tuple[int, ...], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case(*shape)
    emulate_training(monkeypatch, n_partials=3)
    expected = case.ours()
    emulate_training(monkeypatch, run, n_partials=3)
    for name, value in case.ours().items():
        assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize("n_partials", [1, 2, 7, 40])
@pytest.mark.parametrize("stride", [1, 2])
def test_any_number_of_blocks(stride: int, n_partials: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """More blocks than there is work for, and several runs a walker."""
    emulate_training(monkeypatch, n_partials=n_partials)
    case = Case(8, 248, 16, stride, 3, 250)
    check(case, case.ours())


@pytest.mark.parametrize("stride", [1, 2])
def test_edges_of_clips_and_runs(stride: int, monkeypatch: pytest.MonkeyPatch) -> None:
    emulate_training(monkeypatch)
    for T in (2, 3, 31, 32, 33, 63, 64, 65, 66, 129):
        case = Case(8, 16, 8, stride, 3, T)
        check(case, case.ours())


def test_autocast_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The op is called under it, and in it some products are of float32."""
    emulate_training(monkeypatch)
    case = Case(16, 48, 16, 1, 2, 50)
    expected = case.ours()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = case.ours()
    for name, value in expected.items():
        assert torch.equal(ours[name], value), name


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_so(value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step with it is to be noticed and left out; ReLU6 by comparisons alone would make a number of NaN."""
    emulate_training(monkeypatch)
    case = Case(8, 16, 8, 1, 2, 50)
    case.x[1, 20, 3] = value
    spoilt = case.ours()
    assert bool(spoilt["y"].isnan().all())
    assert not bool(spoilt["statistics"].isfinite().any())
    assert bool(spoilt["beta1"].all())  # as in torch, a gradient passes where ReLU6's input is not a number
    case = Case(8, 16, 8, 2, 2, 50)
    case.dy[0, 3, 2] = value
    spoilt = case.ours()
    assert bool(spoilt["y"].isfinite().all())
    assert not any(bool(spoilt[name].isfinite().all()) for name in ("x", "w1", "gamma0", "wd", "gamma1"))


@pytest.mark.parametrize("norm", [0, 1])
@pytest.mark.parametrize("stride", [1, 2])
def test_relu6_is_flat_at_both_of_its_kinks(stride: int, norm: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in torch: a channel that a batch norm sets to 0 or to 6 has no gradient."""
    emulate_training(monkeypatch)
    case = Case(8, 16, 8, stride, 2, 50)
    gamma, beta = case.weights[2 + 4 * norm], case.weights[3 + 4 * norm]
    gamma.zero_()
    beta[0::2], beta[1::2] = 0.0, 6.0
    ours = case.ours()
    for name in ("x", "w1", f"gamma{norm}", f"beta{norm}"):
        assert not bool(ours[name].any()), name
    assert bool(ours["w3"].any())


def test_constant_inputs_offsets_and_a_common_artefact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Variances near zero; means far above deviations; channels whose weights cancel what all inputs have in common."""
    emulate_training(monkeypatch)
    case = Case(8, 16, 8, 1, 2, 64)
    case.x.fill_(3.0)
    ours, twin = case.ours(), case.twin()
    assert all(bool(value.isfinite().all()) for value in ours.values())
    assert float(ours["statistics"][1].max()) < 1e-5
    assert distance(ours["y"], twin["y"]) < 2.0**-8
    case = Case(8, 16, 8, 1, 2, 64)
    case.x = (case.x.float() + 30.0).bfloat16()
    check(case, case.ours())
    case = Case(8, 16, 8, 1, 16, 1024)
    case.x = (case.x.float() + 100.0 * torch.randn(16, 1024, 1)).bfloat16()
    case.weights[0][:, 1::2] = -case.weights[0][:, ::2]
    truth, ours, theirs = case.truth(), case.ours(), case.layers()
    assert distance(ours["y"], truth["y"]) < distance(theirs["y"], truth["y"])
    for name in set(NAMES) - {"statistics", "b3", *WITHOUT_GRADIENT}:
        assert distance(ours[name], truth[name]) < 1.5 * distance(theirs[name], truth[name]), name


def test_every_barrier_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(8, 48, 8, 1, 2, 200)

    def run(planted: Run) -> bytes:
        emulated = emulate_training(monkeypatch, planted, n_partials=20)
        values = case.ours()
        assert {name: emulated.counts[name].barriers for name in emulated.counts} == {
            **{"expansion_sums": 1, "depthwise": 1, "activate": 0, "gradient_sums": 1, "depthwise_backward": 1}
        }
        return b"".join(value.numpy().tobytes() for value in values.values())

    assert unnoticed(1, "barrier", run) == []


@pytest.mark.parametrize("short", range(9))
def test_reads_and_writes_beyond_a_buffer_would_be_caught(short: int) -> None:
    """Of the forward kernel's buffers, each shorter by its last 16 bytes."""
    B, T, width = 2, 40, 16
    half, float32, float64 = torch.bfloat16, torch.float32, torch.float64
    given = [
        *(torch.zeros(B, T, width, dtype=half), torch.zeros(7, width), torch.zeros(B, T, width, dtype=half)),
        *(torch.zeros(1, 2, width), torch.zeros(width), torch.zeros(width), torch.zeros(width)),
        *(torch.zeros(2, width, dtype=float64), torch.zeros(3, width, dtype=float32)),
    ]
    given[short] = given[short].flatten().view(torch.uint8)[:-16]
    with compile_kernels("mbconv_train.cpp").call() as (memory, call):
        addresses = [
            (memory.write if k in (2, 3, 7, 8) else memory.read)(f"buffer {k}", tensor)
            for k, tensor in enumerate(given)
        ]
        with pytest.raises(KernelError, match=rf"out of bounds: (read|write) .* buffer 'buffer {short}'"):
            call("depthwise", B, T, width, 1, 1, 1e-5, *addresses)


def test_what_hooks_on_saved_tensors_put_at_an_odd_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """A load of 8 bytes from there would end the process's use of the device."""
    emulate_training(monkeypatch)
    case = Case(8, 16, 8, 2, 2, 31)
    expected = case.ours()
    given: list[Tensor] = []

    def noted(*tensors: Tensor) -> tuple[Tensor, ...]:
        given.extend(tensors)
        return tensors

    def move(tensor: Tensor) -> Tensor:
        """To one element behind where it was: contiguous all the same."""
        return torch.cat((tensor.new_zeros(1), tensor.detach().flatten()))[1:].view(tensor.shape)

    monkeypatch.setattr(mbconv_between, "addresses", noted)
    with torch.autograd.graph.saved_tensors_hooks(move, lambda tensor: tensor):
        ours = case.ours()
    wide = [tensor for tensor in given if tensor.dtype == torch.bfloat16 and tensor.ndim == 3]
    assert len(wide) == 2 + 2 + 1 + 2 + 4  # of the five kernels, read and written
    assert all(tensor.data_ptr() % 8 == 0 for tensor in wide)
    for name, value in expected.items():
        assert torch.equal(ours[name], value), name


def blocks_of(kernel: str) -> str:
    """Blocks of a kernel that a multiprocessor holds, as its __launch_bounds__ have it; of the first of two strides."""
    source = (Path(__file__).parents[1] / "csrc" / "cuda" / "mbconv_train.cuh").read_text()
    found = re.search(rf"__launch_bounds__\(between_threads, ([^)]*)\)\s+{kernel}\(", source)
    assert found is not None, kernel
    return found.group(1)


def test_blocks_are_as_many_as_the_device_holds_at_once() -> None:
    """132 multiprocessors. The numbers of the kernels' own source."""
    device = torch.device("cpu")
    rows = [blocks_of(f"mbconv_{name}_kernel") for name in ("expansion_sums", "activate", "gradient_sums")]
    assert rows == [str(mbconv_between.OF_ROWS)] * 3
    depthwise = mbconv_between.OF_DEPTHWISE
    assert blocks_of("mbconv_depthwise_kernel") == f"STRIDE == 1 ? {depthwise[1]} : {depthwise[2]}"
    assert blocks_of("mbconv_depthwise_backward_kernel") == str(mbconv_between.OF_DEPTHWISE_BACKWARD)
    # Little work: a block for what its walkers take, no block without any.
    assert [mbconv_between.for_rows(n, 96, device) for n in (1, 80, 81, 800)] == [1, 1, 2, 10]
    for n_in, n_out in ((32, 1920), (16, 1920), (24, 960), (40, 480), (80, 240), (112, 120), (192, 60), (192, 30)):
        width, tiles = 6 * n_in, -(-6 * n_in // 256)
        lanes = {192: 48, 96: 24, 144: 36, 240: 60, 480: 60, 672: 56, 1152: 60}[width]
        for n_clips, resident in itertools.product((1, 64, 256, 4096), (2, 3)):
            n = mbconv_between.for_runs(n_clips, n_out, width, resident, device)
            runs, of_block = n_clips * math.ceil(n_out / 32), 256 // lanes
            assert n * tiles <= 132 * resident
            # As few rounds as the device allows, and no more blocks than these take: all walkers have as many runs.
            rounds = math.ceil(math.ceil(runs / of_block) / (132 * resident // tiles))
            assert math.ceil(runs / (n * of_block)) == rounds
            assert n == 1 or math.ceil(runs / ((n - 1) * of_block)) > rounds


def test_the_twin_is_the_block() -> None:
    case = Case(16, 48, 24, 2, 2, 31)
    x, weights = case.x.double(), [w.double() for w in case.weights]
    y, statistics = reference.mbconv_train(x, *weights, stride=2)
    expected, of_block = reference.mbconv(x.transpose(1, 2), *weights, stride=2)
    torch.testing.assert_close(y.transpose(1, 2), expected)
    assert torch.equal(statistics, of_block)


def meta(tensors: Iterable[Tensor]) -> list[Tensor]:
    return [tensor.to("meta") for tensor in tensors]


def test_several_gradients_at_once_are_refused() -> None:
    """They have no memory of their own, which the way past torch's dispatcher would hand to a kernel."""
    plain: list[bool] = []

    class Noted(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: object, dy: Tensor) -> Tensor:
            plain.append(is_plain(dy))
            return dy.clone()

    x = torch.zeros(3, requires_grad=True)
    y = Noted.apply(x)
    torch.autograd.grad(y, x, torch.ones(3), retain_graph=True)
    torch.autograd.grad(y, x, torch.eye(3), is_grads_batched=True)
    assert plain == [True, False]
    case = Case(16, 48, 24, 2, 2, 31)
    x, *weights = meta((case.x, *case.weights))
    y, _ = ops.mbconv_train(x.requires_grad_(), *weights, stride=2)
    with pytest.raises(NotImplementedError, match=r"^mbconv_train takes one gradient at a time"):
        torch.autograd.grad(y, x, torch.empty((3, *y.shape), device="meta", dtype=y.dtype), is_grads_batched=True)


def test_shapes_without_a_device() -> None:
    case = Case(16, 48, 24, 2, 2, 31)
    x, *weights = meta((case.x, *case.weights))
    x.requires_grad_()
    y, statistics = ops.mbconv_train(x, *weights, stride=2)
    assert (y.shape, y.dtype) == ((2, 16, 24), torch.bfloat16)
    assert (statistics.shape, statistics.dtype) == ((4, 48), torch.float64)
    y.backward(torch.empty_like(y))
    assert x.grad is not None
    assert x.grad.shape == x.shape


def test_results_are_as_registered_and_share_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch's checks of an op ask on a device, where alone the op runs."""
    emulate_training(monkeypatch)
    case = Case(16, 32, 24, 2, 2, 21)
    forward = OP.forward(case.x, case.weights, 2, 1e-5)
    _, _, *kept = forward
    backward = OP.backward(case.dy, case.x, kept, case.weights, 2, 1e-5)
    OP.check_backward(case.dy, case.x, kept, case.weights, 2)
    for wrong in ([*kept[:6], kept[6].float(), *kept[7:]], kept[:-1], [*kept[:-1], kept[-1][:, :-1]]):
        with pytest.raises(ValueError, match=r"mbconv_train_backward: .* expected"):
            OP.check_backward(case.dy, case.x, wrong, case.weights, 2)
    with pytest.raises(ValueError, match="expected 10"):
        OP.check_backward(case.dy, case.x, kept, case.weights[:9], 2)
    registered = torch.ops.sleepfm_fast
    on_meta = [tensor.to("meta") for tensor in case.weights]
    fakes = registered.mbconv_train_forward(case.x.to("meta"), on_meta, 2, 1e-5)
    gradients = registered.mbconv_train_backward(case.dy.to("meta"), case.x.to("meta"), fakes[2:], on_meta, 2, 1e-5)
    for results, expected in ((forward, fakes), (backward, gradients)):
        assert [(t.shape, t.dtype) for t in results] == [(t.shape, t.dtype) for t in expected]
        memory = {t.untyped_storage().data_ptr() for t in (*results, case.x, case.dy, *case.weights)}
        assert len(memory) == len(results) + 2 + len(case.weights)


def test_refusals_are_sentences() -> None:
    case = Case(16, 48, 24, 2, 2, 31)
    x, weights = case.x, case.weights
    with pytest.raises(ValueError, match=r"x is on cpu; it runs on CUDA\. Use sleepfm_fast\.ops\.mbconv or"):
        ops.mbconv_train(x, *weights)
    with pytest.raises(
        TypeError, match=r"x is torch\.float32 of shape \(2, 31, 16\); expected bfloat16 \[B, T, n_in\]"
    ):
        ops.mbconv_train(x.float(), *weights)
    with pytest.raises(ValueError, match="stride is 3; choose 1 or 2"):
        ops.mbconv_train(x, *weights, stride=3)
    with pytest.raises(ValueError, match=r"b1 has shape \(47,\); with x \(2, 31, 16\), width 48 and 24 channels out"):
        ops.mbconv_train(x, weights[0], weights[1][1:], *weights[2:])
    with pytest.raises(TypeError, match=r"w1 is torch\.float64; weights are float32"):
        ops.mbconv_train(x, weights[0].double(), *weights[1:])
    with pytest.raises(ValueError, match="x is on meta, w1 on cpu; move them to one device"):
        ops.mbconv_train(x.to("meta"), *weights)
    odd = Case(12, 72, 24, 1, 2, 31)
    with pytest.raises(ValueError, match="12 channels in, 72 inside and 24 out; each must be a multiple of 8"):
        ops.mbconv_train(odd.x, *odd.weights)
    with pytest.raises(ValueError, match="needs more than one value a channel to train"):
        ops.mbconv_train(x[:1, :1], *weights)
    with pytest.raises(NotImplementedError, match="does not work inside the transforms"):
        torch.func.vmap(lambda x: ops.mbconv_train(x, *weights)[0])(x[None])


def test_no_second_derivative(monkeypatch: pytest.MonkeyPatch) -> None:
    emulate_training(monkeypatch)
    case = Case(8, 16, 8, 1, 2, 20)
    x = case.x.requires_grad_()
    y, _ = ops.mbconv_train(x, *case.weights)
    with pytest.raises(NotImplementedError, match="mbconv_train has no second derivative"):
        torch.autograd.grad(y, x, torch.ones_like(y), create_graph=True)


def test_bindings_take_addresses_in_the_order_that_was_emulated() -> None:
    """The emulator stands in for them, so that only a device would tell two of one type from each other."""
    source = (Path(__file__).resolve().parents[1] / "csrc" / "bindings" / "mbconv_train.cpp").read_text()
    for name, (buffers, _) in BUFFERS.items():
        body = re.search(rf"^void {name}\(.*?^}}", source, re.DOTALL | re.MULTILINE)
        assert body is not None, name
        members = re.findall(r"(?:call|finish)\.(\w+) = of\.next<", body[0])
        emulated = [re.sub(r"(?<=parameters)\d", "", buffer) for buffer in buffers.split()]
        assert [re.sub(r"(?<=parameters)\d", "", member) for member in members] == emulated, name


# ---- on a device ----------------------------------------------------------------------------------------------------


def on_device(case: Case) -> Case:
    case.x, case.dy, case.weights = case.x.cuda(), case.dy.cuda(), [w.cuda() for w in case.weights]
    return case


@pytest.mark.cuda
@pytest.mark.parametrize("shape", [*SHAPES, (32, 192, 16, 2, 8, 3840), (192, 1152, 320, 2, 16, 60)], ids=str)
def test_on_a_device(shape: tuple[int, ...]) -> None:
    """As the twin, which the device computes too; repeated, on another stream and from a view the same bits."""
    case = on_device(Case(*shape))
    ours = case.ours()
    check(case, ours)
    again = case.ours()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        beside = case.ours()
    side.synchronize()
    for name, value in ours.items():
        assert torch.equal(value, again[name]), name
        assert torch.equal(value, beside[name]), name
    case.x = torch.cat((case.x, case.x), dim=2)[:, :, : shape[0]]
    torch.testing.assert_close(case.ours()["y"], ours["y"], rtol=0, atol=0)


@pytest.mark.cuda
def test_in_a_graph() -> None:
    case = on_device(Case(16, 96, 16, 1, 4, 200))
    x = case.x.requires_grad_()
    weights = [w.requires_grad_() for w in case.weights]

    def step() -> tuple[Tensor, ...]:
        y, _ = ops.mbconv_train(x, *weights)
        gradients = torch.autograd.grad(y, (x, *weights), case.dy)
        # Detached: a y with its graph would keep the leaves' autograd nodes, and with them the stream of the first
        # step, which the captured one would then wait for.
        return (y.detach(), *gradients)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        expected = step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    graph.replay()
    torch.cuda.synchronize()
    for ours, plain in zip(captured, expected, strict=True):
        assert torch.equal(ours, plain)


@pytest.mark.cuda
def test_ops_are_registered_as_torch_wants_them() -> None:
    case = on_device(Case(16, 96, 24, 2, 3, 100))
    forward = torch.ops.sleepfm_fast.mbconv_train_forward.default
    y, _, *kept = forward(case.x, case.weights, 2, 1e-5)
    torch.library.opcheck(forward, (case.x, case.weights, 2, 1e-5))
    torch.library.opcheck(
        torch.ops.sleepfm_fast.mbconv_train_backward.default, (case.dy, case.x, kept, case.weights, 2, 1e-5)
    )
    assert torch.equal(y.double(), case.ours()["y"])
