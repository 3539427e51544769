"""MBConv blocks in evaluation on CUDA: the kernel's own source run on the host, against float64, and on a device."""

from __future__ import annotations

import pytest
import torch
from closeness import assert_close
from emulated_cuda import ADVERSARIAL, Counts, KernelError, Run, unnoticed
from emulated_mbconv import emulate, kernels, random_weights, unpack
from torch import Tensor

from sleepfm_fast import reference
from sleepfm_fast.encoder import PRESETS
from sleepfm_fast.ops.mbconv_evaluate import PackedMBConv, covers, mbconv_evaluate, pack

# Channels in, out, stride: the published network's that the kernel takes, and channels that fill half a step of 16.
SHAPES = (
    *((32, 16, 2), (16, 16, 1), (16, 24, 2), (24, 24, 1), (24, 40, 2), (40, 40, 1), (40, 80, 2), (80, 80, 1)),
    *((80, 112, 2), (112, 112, 1), (112, 192, 2), (8, 8, 1), (8, 24, 2)),
)
OUTPUTS = {(k, s): 30 if k > 48 and s == 1 else 15 if k > 48 else 62 if s == 1 else 31 for k, _, s in SHAPES}
HALVES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])


class Case:
    """A block and a batch with the truth and the twin that rounds."""

    def __init__(
        self,
        n_in: int,
        n_out: int,
        stride: int,
        T: int,
        *,
        B: int = 2,
        width: int = 96,
        residual: bool | None = None,
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        self.weights = random_weights(n_in, width, n_out)
        self.options = {"stride": stride, "residual": n_in == n_out and stride == 1 if residual is None else residual}
        self.block = pack(*self.weights, **self.options, dtype=dtype)
        self.x = torch.randn(B, T, n_in).to(dtype)

    def twin(self, rounded: torch.dtype | None = None) -> Tensor:
        return reference.mbconv_evaluate(self.x.double(), *self.weights, **self.options, rounded=rounded)

    def check(self, y: Tensor) -> None:
        """As close to the truth as the twin that rounds where the kernel does, which float32 sums rarely move."""
        truth, twin = self.twin(), self.twin(self.block.dtype)
        # Sums in another order: the factors of the projection, and the result, are rounded to the other side of a tie.
        eps = torch.finfo(self.block.dtype).eps
        flipped = eps * self.weights[4].abs().amax() * 6
        assert_close(y, twin, truth, eps * truth.abs() + flipped, "y")
        # One factor on the other side of a tie moves the last bit of up to a quarter of its sample's results (seen in
        # 150 draws), which in a clip of one or two samples is far more than the share that long clips keep to.
        assert int((y.double() != twin).sum()) <= 0.02 * y.numel() + y.shape[-1] // 2
        assert float((y.double() - truth).norm()) < 0.7 * eps * float(truth.norm())


@HALVES
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_agrees_with_float64(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    case = Case(*shape, 133, dtype=dtype)
    case.check(emulate(case.x, case.block))


@HALVES
@pytest.mark.parametrize("sums", ["ampere", "hopper"])
def test_sums_that_tensor_cores_truncate(sums: str, dtype: torch.dtype) -> None:
    """Within the same limits, for as many channels inside as the published network has."""
    case = Case(80, 112, 2, 133, width=480, dtype=dtype)
    case.check(emulate(case.x, case.block, Run(sums=sums)))


@pytest.mark.parametrize("run", ADVERSARIAL, ids=lambda run: f"{run.schedule}-{run.side}")
@pytest.mark.parametrize("shape", [(32, 16, 2), (24, 24, 1), (40, 80, 2), (80, 80, 1)], ids=str)
def test_same_bits_whatever_the_order_of_warps_and_copies(shape: tuple[int, int, int], run: Run) -> None:
    case = Case(*shape, 250, width=144)
    y = emulate(case.x, case.block, run)
    case.check(y)
    assert torch.equal(y, emulate(case.x, case.block))


@pytest.mark.parametrize("shape", [(32, 16, 2), (16, 16, 1), (80, 112, 2), (112, 112, 1), (8, 8, 1)], ids=str)
def test_edges_of_clips_and_stretches(shape: tuple[int, int, int]) -> None:
    n_in, _, stride = shape
    edge = OUTPUTS[n_in, stride]
    for T in (1, 2, 3, 4, *(stride * edge + k for k in range(-2, 3)), 2 * stride * edge + 1):
        for B in (1, 3) if T < 5 else (1,):
            case = Case(*shape, T, B=B)
            case.check(emulate(case.x, case.block))


@pytest.mark.parametrize("width", [48, 144, 672])
@pytest.mark.parametrize("residual", [False, True])
def test_any_width_with_and_without_residual(width: int, residual: bool) -> None:
    case = Case(40, 40, 1, 70, width=width, residual=residual)
    case.check(emulate(case.x, case.block))


def test_no_clips() -> None:
    case = Case(16, 24, 2, 9, B=0)
    assert emulate(case.x, case.block).shape == (0, 5, 24)


def test_a_clip_does_not_depend_on_its_batch_nor_a_sample_on_its_place() -> None:
    case = Case(24, 24, 1, 200, B=5)
    y = emulate(case.x, case.block)
    for b in range(5):
        assert torch.equal(emulate(case.x[b : b + 1], case.block)[0], y[b])
    shifted = emulate(case.x[:, 17:], case.block)
    assert torch.equal(shifted[:, 1:], y[:, 18:])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("shape", [(16, 24, 2), (24, 24, 1), (80, 80, 1)], ids=str)
@HALVES
def test_what_is_not_finite_spoils_what_sees_it_and_nothing_else(
    shape: tuple[int, int, int], value: float, dtype: torch.dtype
) -> None:
    """Saturation alone would turn NaN into 0."""
    n_in, _, stride = shape
    T = 2 * stride * OUTPUTS[n_in, stride]
    case = Case(*shape, T, B=3, dtype=dtype)
    clean = emulate(case.x, case.block)
    # With stride 1 the sample 14 is a lane's last, which only the next lane's first output beside it sees.
    places = [0, 3, 4, 7, 8, 14, stride * OUTPUTS[n_in, stride] - 1, stride * OUTPUTS[n_in, stride], T - 1]
    for k, t in enumerate(places):
        case.x[1, t, (5 * k) % n_in] = value
    y, twin = emulate(case.x, case.block), case.twin()
    assert torch.equal(y.isnan(), twin.isnan())
    assert 0 < int(y[1].isnan().all(dim=1).sum()) < y.shape[1]
    assert torch.equal(y[~y.isnan()], clean[~y.isnan()])


def test_every_barrier_and_wait_counts() -> None:
    case = Case(32, 16, 2, 130, B=3, width=192)
    counts: list[Counts] = []

    def run(planted: Run) -> bytes:
        return emulate(case.x, case.block, planted, counts).view(torch.int16).numpy().tobytes()

    run(Run())
    assert (counts[0].barriers, counts[0].waits) == (4, 4)
    assert unnoticed(4, "barrier", run) == []
    assert unnoticed(4, "wait", run) == []


def test_reads_and_writes_beyond_a_buffer_would_be_caught() -> None:
    case = Case(16, 16, 1, 40, B=1)
    x, y = case.x, torch.zeros(1, 40, 16, dtype=torch.bfloat16)
    for name in ("x", "packed", "y"):
        given = {"x": x.flatten(), "packed": case.block.packed.flatten(), "bias": case.block.bias, "y": y.flatten()}
        given[name] = given[name].view(torch.uint8)[:-16]
        with kernels(torch.bfloat16).call() as (memory, call):
            addresses = [
                (memory.write if key == "y" else memory.read)(key, tensor.clone()) for key, tensor in given.items()
            ]
            with pytest.raises(KernelError, match=rf"out of bounds: (read|write) .* buffer '{name}'"):
                call("mbconv_evaluate", *addresses, 1, 40, 16, 96, 16, 1, 1)


def test_work_is_what_was_counted() -> None:
    """Multiplications by the tensor cores: those of the stretches, and no more."""
    counts: list[Counts] = []
    case = Case(80, 112, 2, 240, B=4, width=96)
    emulate(case.x, case.block, counts=counts)
    warps = 4 * 8  # 120 outputs are 8 stretches of 15; 12 warps a block, and 4 of the last one have nothing to do
    chunks = 6 * (2 * 2 * 5 + 1 * 2 * 7)
    assert counts[0].mma == (warps + 4) * (2 * 5 + chunks)  # the first ones look for what is not finite


def test_the_twin_is_the_block_without_norms() -> None:
    case = Case(24, 24, 1, 31)
    w1, b1, wd, bd, w3, b3 = case.weights
    one, none = torch.ones(96, dtype=torch.float64), torch.zeros(96, dtype=torch.float64)
    norm = (one, none)
    expected, _ = reference.mbconv(
        *(case.x.double().transpose(1, 2), w1, b1, *norm, wd, bd, *norm, w3, b3),
        running=(none, one, none, one),
        eps=0.0,
        residual=True,
    )
    torch.testing.assert_close(case.twin().transpose(1, 2), expected)


def test_covers_the_published_network_up_to_its_last_stage() -> None:
    channels, depth = PRESETS["seed"].channels, PRESETS["seed"].depth
    pairs = list(zip(channels[:-2], channels[1:-1], depth, strict=True))
    for n_in, n_out, n_blocks in pairs:
        assert covers(n_in, 6 * n_in, n_out, 2) == (n_in < 192)
        assert n_blocks == 1 or covers(n_in, 6 * n_in, n_in, 1) == (n_in < 192)
    assert not covers(12, 72, 16, 2)
    assert not covers(16, 80, 16, 1)
    assert not covers(16, 96, 16, 3)
    assert not covers(0, 0, 0, 1)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_packing_loses_nothing_but_digits(shape: tuple[int, int, int]) -> None:
    case = Case(*shape, 1, width=144)
    for ours, given in zip(unpack(case.block), case.weights, strict=True):
        torch.testing.assert_close(ours, given, rtol=2.0**-8, atol=1e-7)


def test_packing_does_not_depend_on_the_default_type() -> None:
    expected = Case(24, 24, 1, 1)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        block = pack(*expected.weights, **expected.options, dtype=torch.bfloat16)
    finally:
        torch.set_default_dtype(before)
    assert block.bias.dtype == torch.float32
    assert torch.equal(block.bias, expected.block.bias)
    assert torch.equal(block.packed, expected.block.packed)


@pytest.mark.parametrize(
    ("shape", "options", "sentence"),
    [
        ((16, 96, 16), {"dtype": torch.float32}, r"dtype is torch\.float32; choose torch\.bfloat16 or torch\.float16"),
        ((192, 1152, 192), {}, r"no kernel is compiled for 192 channels in, 1152 inside, 192 out and stride 1"),
        ((16, 96, 24), {"stride": 2, "residual": True}, r"a residual needs stride 1 .* got stride 2, 16 .* 24 out"),
    ],
)
def test_packing_refuses(shape: tuple[int, int, int], options: dict[str, object], sentence: str) -> None:
    defaults: dict[str, object] = {"stride": 1, "residual": False, "dtype": torch.bfloat16}
    with pytest.raises(ValueError, match=sentence):
        pack(*random_weights(*shape), **{**defaults, **options})  # type: ignore[arg-type]


def test_the_op_refuses_what_it_cannot_run_in_a_sentence() -> None:
    case = Case(16, 24, 2, 9)
    with pytest.raises(ValueError, match=r"x is on cpu; it runs on CUDA\. Use sleepfm_fast\.reference"):
        mbconv_evaluate(case.x, case.block)
    with pytest.raises(TypeError, match=r"x is torch\.float32, the block was packed for torch\.bfloat16"):
        mbconv_evaluate(case.x.float(), case.block)
    with pytest.raises(NotImplementedError, match="has no gradient"):
        mbconv_evaluate(case.x.requires_grad_(), case.block)
    case.x.requires_grad_(False)
    block = on(case.block, "meta")
    assert mbconv_evaluate(case.x.to("meta"), block).shape == (2, 5, 24)
    with pytest.raises(TypeError, match=r"expected bfloat16 or float16 \[B, T, n_in\]"):
        mbconv_evaluate(case.x[0].to("meta"), block)
    with pytest.raises(ValueError, match=r"at least one sample"):
        mbconv_evaluate(case.x[:, :0].to("meta"), block)
    with pytest.raises(ValueError, match=r"x has shape \(2, 9, 8\); the block was packed for 16 channels in"):
        mbconv_evaluate(case.x[..., :8].to("meta"), block)  # 8 and 16 channels are one step of the kernel
    with pytest.raises(ValueError, match=r"were not packed for x \(2, 9, 32\), 96 channels inside and 24 out"):
        torch.ops.sleepfm_fast.mbconv_evaluate_packed(
            torch.empty(2, 9, 32, dtype=torch.bfloat16, device="meta"), block.packed, block.bias, 96, 24, 2, False
        )
    with pytest.raises(ValueError, match=r"packed on cpu; move them to one device"):
        mbconv_evaluate(case.x.to("meta"), case.block)


def on(block: PackedMBConv, device: str) -> PackedMBConv:
    return block.to(torch.device(device))


@pytest.mark.cuda
@HALVES
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_on_a_device(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    """The tensor cores add in another order and truncate; on another stream and in a graph the same bits."""
    n_in = shape[0]
    for T, B in ((1, 1), (241, 33), (7680 // 4, 5)):
        case = Case(*shape, T, B=B, width=6 * n_in, dtype=dtype)
        x, block = case.x.cuda(), on(case.block, "cuda")
        y = mbconv_evaluate(x, block)
        case.check(y.cpu())
        assert torch.equal(mbconv_evaluate(torch.cat((x, x))[B:], block), y)  # a view
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            again = mbconv_evaluate(x, block)
        side.synchronize()
        assert torch.equal(again, y)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = mbconv_evaluate(x, block)
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(captured, y)


@pytest.mark.cuda
def test_op_is_registered_as_torch_wants_it() -> None:
    case = Case(24, 40, 2, 100)
    x, block = case.x.cuda(), on(case.block, "cuda")
    arguments = (x, block.packed, block.bias, block.width, block.n_out, block.stride, block.residual)
    registered = torch.ops.sleepfm_fast.mbconv_evaluate_packed.default
    torch.library.opcheck(registered, arguments)
    assert torch.equal(registered(*arguments), mbconv_evaluate(x, block))
