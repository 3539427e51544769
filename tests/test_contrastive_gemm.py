"""The path of large batches (products by torch, the CUDA kernels around them on the host) against the float64 truth."""

from __future__ import annotations

import ctypes
import itertools
import math
import os
import re
import threading
from dataclasses import dataclass, field

import pytest
import torch
from contrastive_cases import (
    DIRECTIONS,
    LOG_TEMPERATURES,
    MODES,
    Result,
    certain_and_wrong,
    check_result,
    embeddings,
    evaluate,
    exact_rows,
    random_mask,
    wrong_in_one_column,
)
from emulated_cuda import ADVERSARIAL, ROOT, Run, compile_kernels, unnoticed
from torch import Tensor

from sleepfm_fast import reference
from sleepfm_fast.ops import contrastive_chunked, contrastive_gemm
from sleepfm_fast.ops.contrastive_gemm import FIELDS, STEPS, Bound, Fields
from sleepfm_fast.ops.contrastive_loss import ContrastiveStatistics
from sleepfm_fast.ops.process_settings import float32_sums

WRITTEN = {
    "operands": {"a", "b", "own", "valid", "rows", "columns"},
    "statistics": {"row_partials", "column_partials"},
    "merge": {"rows", "columns"},
    "finish": {"state", "ranks", "partial_losses", "partial_correct", "partial_valid"},
    "total": {"loss", "losses", "correct", "n_valid"},
    "weights": {"own_scaled", "row_largest", "row_weight", "column_largest", "column_weight", "unscale", "slopes"},
    "gradient": {"gradient_high", "gradient_low", "slopes"},
    "accumulate": {"gradient_unit"},
    "finish_gradient": {"gradient_x", "gradient_log_temperature"},
}


@dataclass
class Emulator:
    """Runs a step in fenced memory: every tensor is copied there, and back where the step writes it."""

    run: Run = field(default_factory=Run)
    faulty: str = ""  # the step that `run`'s planted fault is for; all by default
    barriers: dict[str, int] = field(default_factory=dict)

    def bind(self, fields: Fields) -> Bound:
        fields = dict(fields)

        def launch(step: str, changed: Fields) -> None:
            fields.update(changed)
            self.launch(step, fields)

        return launch

    def launch(self, step: str, fields: Fields) -> None:
        run = self.run if self.faulty in ("", step) else Run(self.run.schedule, self.run.seed)
        kernels = compile_kernels("contrastive_epilogue.cpp")
        assert kernels.library.contrastive_gemm_bytes() == 8 * len(FIELDS)
        written = {
            value.data_ptr() for name, value in fields.items() if name in WRITTEN[step] and torch.is_tensor(value)
        }
        addresses: dict[int, int] = {}
        with kernels.call(run) as (memory, call):
            values = []
            for name in FIELDS:
                value = fields.get(name, 0)
                if not torch.is_tensor(value):
                    values.append(value)
                    continue
                if value.data_ptr() not in addresses:
                    flat, offset = value, 0
                    if not value.is_contiguous():
                        flat = torch.empty(0, dtype=value.dtype).set_(value.untyped_storage())
                        offset = value.storage_offset() * value.element_size()
                    copy = memory.update if value.data_ptr() in written else memory.read
                    addresses[value.data_ptr()] = (copy(name, flat, alignment=16).value or 0) + offset
                values.append(addresses[value.data_ptr()])
            counts = call("contrastive_gemm", STEPS.index(step), (ctypes.c_int64 * len(FIELDS))(*values))
        self.barriers[step] = max(self.barriers.get(step, 0), counts.barriers)


@pytest.fixture(autouse=True)
def poisoned_memory():
    """What torch.empty gives holds NaN: a result that depends on memory nobody has written shows."""
    torch._C._set_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch._C._set_deterministic_algorithms(False)


@dataclass
class Path:
    """contrastive_gemm as :func:`check_result` calls it."""

    precision: str = "highest"
    launcher: Emulator = field(default_factory=Emulator)

    def __call__(self, x: Tensor, tau: Tensor, mode="leave_one_out", mask=None, directions="both") -> Result:
        options = (mode, directions, self.precision, 0, x.shape[1])
        loss, losses, correct, ranks, n_valid, state = contrastive_gemm.forward(
            x, tau, mask, *options, launcher=self.launcher
        )
        gradient, slope = contrastive_gemm.backward(
            torch.tensor(1.0), x, tau, mask, n_valid, state, *options, launcher=self.launcher
        )
        return Result(loss, gradient, slope, ContrastiveStatistics(losses, correct, ranks, n_valid))


COLD, WARM, HOT = LOG_TEMPERATURES

# M, N, D, mode, kind, log temperature, directions, edge of the tiles: sizes around strips, warps and tiles, and 1
CASES = [
    (3, 1, 5, "leave_one_out", "random", WARM, "both", 8192),
    (2, 2, 1, "pairwise", "random", COLD, "both", 8192),
    (3, 129, 40, "leave_one_out", "aligned", HOT, "both", 8192),
    (2, 131, 24, "pairwise", "random", HOT, "row", 72),
    (3, 33, 16, "pairwise", "aligned", WARM, "both", 8192),
    (5, 9, 8, "leave_one_out", "aligned", WARM, "row", 8192),
    (2, 30, 8, "leave_one_out", "random", WARM, "both", 16),
    (2, 300, 33, "pairwise", "random", WARM, "both", 304),
    # On a device no other path takes more than 512 dimensions.
    (2, 20, 513, "pairwise", "aligned", HOT, "both", 8192),
    (3, 18, 768, "leave_one_out", "random", WARM, "both", 8192),
    (8, 9, 1024, "leave_one_out", "aligned", WARM, "row", 8192),
    (8, 7, 128, "pairwise", "random", HOT, "both", 8192),
    (2, 5, 1500, "pairwise", "random", WARM, "both", 8192),
]


@pytest.mark.parametrize(("M", "N", "D", "mode", "kind", "log_temperature", "directions", "edge"), CASES)
def test_highest_is_as_good_as_float32(M, N, D, mode, kind, log_temperature, directions, edge, monkeypatch):
    monkeypatch.setattr(contrastive_gemm, "TILE_EDGE", edge)
    check_result(Path(), embeddings(kind, M, N, D), log_temperature, mode=mode, directions=directions)


@pytest.mark.parametrize(("dtype", "mode"), [(torch.bfloat16, "leave_one_out"), (torch.float16, "pairwise")])
def test_masks_strides_and_types(dtype, mode):
    """What the mask hides is not read; x may be any view whose last dimension is dense."""
    mask = random_mask(3, 40)
    mask[:, 3] = False
    mask[1:, 4] = False
    x = embeddings("random", 3, 40, 24).to(dtype)
    wide = torch.full((40, 3, 29), torch.nan, dtype=dtype)
    view = wide[:, :, :24].transpose(0, 1)
    view.copy_(torch.where(mask[..., None], x, torch.nan))
    check_result(Path(), view, WARM, mode=mode, mask=mask)


def test_nothing_present_is_a_loss_of_zero():
    x = torch.full((2, 9, 8), torch.nan)
    got = Path()(x, torch.tensor(WARM), mode="pairwise", mask=torch.zeros(2, 9, dtype=torch.bool))
    assert got.loss == 0
    assert not got.d_x.any()
    assert not got.d_log_temperature


# Relative norm of the gradient's error: docs/kernels/contrastive-loss-cuda.md has it for larger N and D, where it is
# smaller.
@pytest.mark.parametrize(
    ("kind", "log_temperature", "allowed"), [("random", WARM, 6e-4), ("random", HOT, 3e-3), ("aligned", HOT, 2e-2)]
)
def test_high_is_good_to_a_thousandth(kind, log_temperature, allowed):
    x, tau = embeddings(kind, 2, 96, 64), torch.tensor(log_temperature)
    got = Path("high")(x, tau)
    truth = evaluate(reference.contrastive_loss, x.double(), tau.double())
    torch.testing.assert_close(got.loss.double(), truth.loss, rtol=allowed, atol=0)
    torch.testing.assert_close(got.d_log_temperature.double(), truth.d_log_temperature, rtol=allowed, atol=1e-6)
    error = (got.d_x - truth.d_x).norm() / truth.d_x.norm()
    assert error < allowed


@pytest.mark.parametrize(
    ("log_temperature", "kind"),
    [(-200.0, "random"), (-90.0, "random"), (-3.0, "random"), (math.log(41), "aligned"), (7.0, "random")],
)
def test_extreme_temperatures(log_temperature, kind):
    check_result(Path(), embeddings(kind, 2, 50, 16), log_temperature, mode="pairwise")


@pytest.mark.parametrize(("x", "scale"), [(wrong_in_one_column(), 100.0), (certain_and_wrong(), 30.0)])
def test_gradients_fit_into_float16_whichever_side_is_wrong(x, scale):
    check_result(Path(), x, math.log(scale), mode="pairwise")


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_is_not_hidden(value):
    x = embeddings("random", 2, 20, 16)
    x[1, 4, 7] = value
    got = Path()(x, torch.tensor(1.0), mode="pairwise")
    assert got.loss.isnan()
    assert got.d_log_temperature.isnan()
    assert got.d_x.isnan().any(-1).all()


def test_what_is_not_finite_is_not_hidden_where_a_sample_is_alone():
    x = embeddings("random", 2, 1, 16)
    x[1, 0, 7] = torch.nan
    got = Path()(x, torch.tensor(1.0), mode="pairwise")
    assert got.loss.isnan()
    assert got.d_x.isnan().all()


def test_zero_rows_have_the_gradient_of_a_division_by_the_floor():
    x = embeddings("random", 3, 9, 16)
    x[0, 2] = 0
    x[1, 5] *= 1e-14
    check_result(Path(), x, WARM)


def test_a_sample_alone_leaves_a_state_that_is_finite():
    """Other paths' backward reads it, and weighs exponentials relative to it with zero."""
    x, mask = embeddings("random", 2, 9, 16), torch.zeros(2, 9, dtype=torch.bool)
    mask[:, 4] = True
    options = ("pairwise", "both")
    state = contrastive_gemm.forward(x, torch.tensor(1.0), mask, *options, "highest", 0, 9, launcher=Emulator())[5]
    truth = contrastive_chunked.forward(x.double(), torch.tensor(1.0).double(), mask, *options, 0, 9)[5]
    torch.testing.assert_close(state.double(), truth, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("begin", "end", "mode"), [(0, 13, "pairwise"), (13, 37, "leave_one_out"), (5, 5, "pairwise")])
def test_ranges_are_their_share_of_the_whole(begin, end, mode, monkeypatch):
    monkeypatch.setattr(contrastive_gemm, "TILE_EDGE", 24)
    x, tau, mask, upstream = embeddings("aligned", 2, 37, 20), torch.tensor(2.5), random_mask(2, 37), torch.tensor(0.7)
    emulator, options = Emulator(), (mode, "both", "highest", begin, end)
    share = contrastive_gemm.forward(x, tau, mask, *options, launcher=emulator)
    truth = contrastive_chunked.forward(x.double(), tau.double(), mask, mode, "both", begin, end)
    for k in (0, 1, 5):  # loss, losses, state
        torch.testing.assert_close(share[k].double(), truth[k], rtol=1e-4, atol=1e-6)
    for k in (2, 3, 4):  # correct, ranks, n_valid
        assert torch.equal(share[k], truth[k])
    state = contrastive_chunked.forward(x.double(), tau.double(), mask, mode, "both", 0, 37)[5]
    arguments = upstream, x, tau, mask, share[4], state
    gradient, slope = contrastive_gemm.backward(*arguments, *options, launcher=emulator)
    arguments = upstream.double(), x.double(), tau.double(), mask, truth[4], state
    wanted = contrastive_chunked.backward(*arguments, mode, "both", begin, end)
    torch.testing.assert_close(gradient.double(), wanted[0], rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(slope.double(), wanted[1], rtol=1e-4, atol=1e-7)
    assert not gradient[:, :begin].any()
    assert not gradient[:, end:].any()


@pytest.mark.parametrize("edge", [8192, 72])
@pytest.mark.parametrize("mode", MODES)
def test_equal_rows_tie_exactly_and_the_first_wins(mode, edge, monkeypatch):
    monkeypatch.setattr(contrastive_gemm, "TILE_EDGE", edge)
    N = 160
    x = (exact_rows()[torch.arange(N) % 8] * torch.tensor([1.0, 2.0, 0.5])[:, None, None]).contiguous()
    got = Path()(x, torch.tensor(3.0), mode=mode)
    before = torch.arange(N, dtype=torch.int32) // 8
    assert torch.equal(got.statistics.ranks, before.expand(3, 2, N))
    assert (got.statistics.correct == 8).all()


def test_backward_takes_exponentials_relative_to_anything():
    """The state says what they are relative to; other paths take a cosine of 1 where this one takes the largest."""
    x, tau = embeddings("random", 2, 40, 16), torch.tensor(math.log(60))
    emulator, options = Emulator(), ("pairwise", "both", "highest", 0, 40)
    *_, n_valid, state = contrastive_gemm.forward(x, tau, None, *options, launcher=emulator)
    moved = state.clone()
    for largest in (1, 4):
        moved[:, largest] = 1
        moved[:, largest + 1] *= (60 * (1 - state[:, largest])).exp()
    upstream = torch.tensor(1.0)
    expected = contrastive_gemm.backward(upstream, x, tau, None, n_valid, state, *options, launcher=emulator)
    got = contrastive_gemm.backward(upstream, x, tau, None, n_valid, moved, *options, launcher=emulator)
    for a, b in zip(got, expected, strict=True):
        # a cosine less 1 is rounded to 6e-8, times 60
        torch.testing.assert_close(a, b, rtol=0, atol=1e-4 * float(b.abs().max()))


# ---- determinism and synchronisation ---------------------------------------------------------------------------------


def everything(emulator: Emulator) -> list[bytes]:
    got = Path(launcher=emulator)(embeddings("random", 2, 140, 8), torch.tensor(2.0), mode="pairwise")
    return [bytes(tensor.numpy().tobytes()) for tensor in (*got[:3], *got.statistics)]


def test_the_same_bits_for_every_schedule():
    expected = everything(Emulator())
    for run in ADVERSARIAL[1:]:
        assert everything(Emulator(run)) == expected


def test_a_missing_barrier_between_the_warps_of_a_tile_is_noticed():
    emulator = Emulator()
    everything(emulator)
    assert emulator.barriers["statistics"] == 1
    assert unnoticed(1, "barrier", lambda run: everything(Emulator(run, faulty="statistics"))) == []


# ---- tiles and memory ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("N", "begin", "end", "edge"), [(100, 0, 100, 32), (100, 17, 63, 24), (7, 0, 7, 8), (9, 3, 3, 8)]
)
def test_tiles_cover_every_pair_once_and_the_diagonal_first(N, begin, end, edge):
    seen = torch.zeros(N, N, dtype=torch.int32)
    beyond = False
    for t in contrastive_gemm.tiles(N, begin, end, edge):
        assert 0 < t.n_rows <= edge
        assert 0 < t.n_columns <= edge
        has_diagonal = t.row == t.column
        assert not (beyond and has_diagonal)
        beyond = not has_diagonal
        seen[t.row : t.row + t.n_rows, t.column : t.column + t.n_columns] += 1
    assert (seen[begin:end] == 1).all()
    assert int(seen.sum()) == (end - begin) * N


@pytest.mark.parametrize("N", [1, 8, 4096, 8192, 8193, 32768, 131072])
def test_tiles_fit_their_budget(N):
    edge = contrastive_gemm.tile_edge(N)
    assert edge % 8 == 0
    assert edge <= contrastive_gemm.TILE_EDGE
    assert edge >= min(N, contrastive_gemm.TILE_EDGE // 2)


def test_the_small_products_come_first(monkeypatch):
    """What tensor cores truncate is of the size of the sum so far: two thirds of it is summed while it is small."""
    seen = []
    multiply = contrastive_gemm.multiply

    def noted(a, b, out):
        seen.append((a.float(), b.float()))
        multiply(a, b, out)

    monkeypatch.setattr(contrastive_gemm, "multiply", noted)
    x = embeddings("random", 2, 33, 24)
    contrastive_gemm.forward(x, torch.tensor(1.0), None, "pairwise", "both", "highest", 0, 33, launcher=Emulator())
    ((a, b),) = seen
    assert a.shape == (33, 3 * 24)
    small, all_of_it = a[:, :48] @ b[:48], a @ b
    assert float(small.norm()) < 2.0**-10 * float(all_of_it.norm())
    assert float((all_of_it - a[:, 48:] @ b[48:] - small).norm()) <= 1e-6 * float(all_of_it.norm())


def truncated_product(a: Tensor, b: Tensor) -> Tensor:
    """A product as tensor cores of compute capability 9.0 sum it: see tests/cuda_on_cpu/instructions.h."""

    def exponent(x: Tensor) -> Tensor:
        return torch.where(x == 0, -1000, torch.frexp(x).exponent - 1)

    def power(exponents: Tensor) -> Tensor:
        return torch.ldexp(torch.ones_like(exponents, dtype=torch.float64), exponents)

    a, b = a.double(), b.double()
    of_a, of_b = exponent(a), exponent(b)
    total = torch.zeros(len(a), b.shape[1], dtype=torch.float64)
    for first in range(0, len(b), 16):
        block = range(first, min(first + 16, len(b)))
        largest = exponent(total)
        for k in block:
            largest = torch.maximum(largest, of_a[:, k, None] + of_b[None, k])
        step = power(largest.clamp_min(-900) - 25)
        total = torch.trunc(total / step)
        for k in block:
            total += torch.trunc(a[:, k, None] * b[None, k] / step)
        bits = power((exponent(total) - 23).clamp_min(0))
        total = torch.trunc(total / bits) * bits * step
    return total.float()


def test_the_product_truncates():
    a, b = torch.full((1, 32), 1.0).half(), torch.full((32, 1), 1.0).half()
    assert truncated_product(a, b) == 32
    b[1:] = 2.0**-14  # 16 of them are a quarter of the last bit of 2^14 and of all that follows
    assert truncated_product(2.0**14 * a, 2.0**10 * b) == 2.0**24 + 31 * 2.0**10
    assert truncated_product(a, torch.cat([2.0**14 + 0 * b[:1], b[1:]])) == 2.0**14


@pytest.fixture
def truncating(monkeypatch):
    """Products as tensor cores sum them."""

    def multiply_add(a: Tensor, b: Tensor, out: Tensor, scale: float = 1.0) -> None:
        out.add_(truncated_product(a, b), alpha=scale)

    monkeypatch.setattr(contrastive_gemm, "multiply", lambda a, b, out: out.copy_(truncated_product(a, b)))
    monkeypatch.setattr(contrastive_gemm, "multiply_add", multiply_add)


def alike(N: int, D: int) -> Tensor:
    """Embeddings of an untrained encoder point in about one direction."""
    generator = torch.Generator().manual_seed(0)
    return 3 * torch.randn(D, generator=generator) + torch.randn(2, N, D, generator=generator)


def test_gradients_of_rows_with_much_in_common_lose_nothing_to_truncation(truncating):
    """They are what is left of a sum over many rows when the common direction is taken away."""
    x, tau = alike(512, 8), torch.tensor(WARM)
    truth = evaluate(reference.contrastive_loss, x.double(), tau.double(), mode="pairwise")
    theirs = evaluate(reference.contrastive_loss, x, tau, mode="pairwise")
    ours = Path()(x, tau, mode="pairwise")

    def error(result: Result) -> float:
        return float((result.d_x - truth.d_x).norm() / truth.d_x.norm())

    assert error(ours) < error(theirs)


@pytest.mark.parametrize("ranges", [(0, 96), (0, 40, 96)])
def test_similarities_of_rows_with_much_in_common_lose_nothing_to_truncation(truncating, ranges):
    """Own cosines come from float32 rows: similarities that came out short would move loss and slope."""
    x, tau = alike(96, 512), torch.tensor(WARM)
    truth = evaluate(reference.contrastive_loss, x.double(), tau.double(), mode="pairwise")
    loss, slope, emulator = torch.zeros(()), torch.zeros(()), Emulator()
    *_, n_valid, state = contrastive_gemm.forward(x, tau, None, "pairwise", "both", "highest", 0, 96, launcher=emulator)
    for at in itertools.pairwise(ranges):
        options = ("pairwise", "both", "highest", *at)
        loss += contrastive_gemm.forward(x, tau, None, *options, launcher=emulator)[0]
        arguments = (torch.tensor(1.0), x, tau, None, n_valid, state)
        slope += contrastive_gemm.backward(*arguments, *options, launcher=emulator)[1]
    assert abs(float(loss - truth.loss)) < 2e-6
    assert abs(float(slope - truth.d_log_temperature)) < 2e-6


def test_products_that_torch_gets_wrong_are_not_used():
    cpu = torch.device("cpu")

    def product(*matrices, out_dtype, out):
        return out.copy_(matrices[-2].float() @ matrices[-1].float() + (matrices[0] if len(matrices) == 3 else 0))

    def without_addition(self, a, b, *, out_dtype, out):
        return out.copy_(a.float() @ b.float())

    def wrong_in_one_row(self, a, b, *, out_dtype, out):
        return product(self, a, b, out_dtype=out_dtype, out=out) if len(a) > 1 else out

    assert contrastive_gemm.gives_float32(product, cpu, added=False)
    assert contrastive_gemm.gives_float32(product, cpu, added=True)
    assert not contrastive_gemm.gives_float32(without_addition, cpu, added=True)
    assert not contrastive_gemm.gives_float32(wrong_in_one_row, cpu, added=True)
    assert not contrastive_gemm.gives_float32(torch.mm, cpu, added=False)  # of CUDA only


def test_products_are_tried_in_float32_whatever_the_default():
    """The answer is kept: a wrong one would take all later products through float32 copies."""
    found = []

    def product(a, b, *, out_dtype, out):
        found.append(out.dtype)
        return out.copy_(a.float() @ b.float())

    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        assert contrastive_gemm.gives_float32(product, torch.device("cpu"), added=False)
    finally:
        torch.set_default_dtype(before)
    assert found == [torch.float32, torch.float32]


@pytest.fixture
def matmul():
    """Settings of the process; what a test allows is taken back."""
    before = torch.backends.cuda.matmul.allow_fp16_accumulation
    yield torch.backends.cuda.matmul
    torch.backends.cuda.matmul.allow_fp16_accumulation = before


def test_sums_in_float16_that_the_process_allows_are_not_ours(matmul, monkeypatch):
    """Float16 factors with float32 results are what torch refuses while `allow_fp16_accumulation` is on."""

    def as_torch(product):
        def multiply(*matrices, out_dtype, out=None, alpha=1.0):
            if matmul.allow_fp16_accumulation:
                raise RuntimeError("output type float is not supported with allowFP16AccumulationCuBLAS")
            *added, a, b = (matrix.to(out_dtype) for matrix in matrices)
            return product(*added, a, b, out=out, **({"alpha": alpha} if added else {}))

        return multiply

    x, tau = embeddings("random", 2, 33, 24), torch.tensor(WARM)
    expected = Path()(x, tau)
    monkeypatch.setattr(contrastive_gemm, "_mixed_products", lambda device: (True, True))
    monkeypatch.setattr(torch, "mm", as_torch(torch.mm))
    monkeypatch.setattr(torch, "addmm", as_torch(torch.addmm))
    for allowed in (True, False):
        matmul.allow_fp16_accumulation = allowed
        got = Path()(x, tau)
        assert matmul.allow_fp16_accumulation == allowed
        for a, b in zip(got[:3], expected[:3], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)


def test_the_setting_comes_back_when_the_last_thread_leaves(matmul):
    matmul.allow_fp16_accumulation = True
    inside, leave = threading.Event(), threading.Event()

    def other() -> None:
        with float32_sums():
            inside.set()
            leave.wait(60)

    thread = threading.Thread(target=other)
    with float32_sums():
        thread.start()
        assert inside.wait(60)
    assert not matmul.allow_fp16_accumulation
    leave.set()
    thread.join()
    assert matmul.allow_fp16_accumulation
    with pytest.raises(ZeroDivisionError), float32_sums():
        1 / 0  # noqa: B018
    assert matmul.allow_fp16_accumulation


def test_steps_and_members_are_those_of_the_header():
    header = (ROOT / "csrc" / "cuda" / "contrastive_epilogue.h").read_text()
    enumerators = re.search(r"enum class GemmStep.*?\{(.*?)\};", header, re.DOTALL)
    assert enumerators is not None
    assert tuple(re.findall(r"^ +(\w+),", enumerators[1], re.MULTILINE)) == STEPS
    structure = re.search(r"struct ContrastiveGemm \{(.*?)\n\};", header, re.DOTALL)
    assert structure is not None
    lines = re.sub(r"//.*", "", structure[1])
    members = [re.sub(r".*[ *]", "", name.strip()) for line in lines.split(";") for name in line.split(",")]
    assert tuple(name for name in members if name) == FIELDS


# ---- on a device -----------------------------------------------------------------------------------------------------

needs_cuda = pytest.mark.skipif(
    not torch.cuda.is_available() and os.environ.get("SLEEPFM_REQUIRE_CUDA") != "1", reason="no CUDA device"
)


def on_device(
    x: Tensor, tau: Tensor, mask=None, mode="leave_one_out", directions="both", precision="highest"
) -> Result:
    torch._C._set_deterministic_algorithms(
        False
    )  # cuBLAS is deterministic in one stream; torch would ask for a setting
    x, tau, mask = x.detach().cuda(), tau.detach().cuda(), None if mask is None else mask.cuda()
    options = (mode, directions, precision, 0, x.shape[1])
    *results, state = contrastive_gemm.forward(x, tau, mask, *options)
    upstream = torch.tensor(1.0, device="cuda")
    gradient, slope = contrastive_gemm.backward(upstream, x, tau, mask, results[4], state, *options)
    loss, *statistics = (result.cpu() for result in results)
    return Result(loss, gradient.cpu(), slope.cpu(), ContrastiveStatistics(*statistics))


@pytest.mark.cuda
@needs_cuda
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("N", [1, 127, 300, 1025])
def test_device_agrees_with_float64(N, mode, monkeypatch):
    monkeypatch.setattr(contrastive_gemm, "TILE_EDGE", 512)
    for directions in DIRECTIONS:
        for log_temperature in LOG_TEMPERATURES:
            x = embeddings("aligned", 3, N, 200)
            check_result(on_device, x, log_temperature, mode=mode, directions=directions, mask=random_mask(3, N))
            check_result(on_device, x.half(), log_temperature, mode=mode, directions=directions)


@pytest.mark.cuda
@needs_cuda
def test_device_repeats_itself():
    x, tau = embeddings("random", 3, 3000, 256), torch.tensor(2.0)
    first, second = on_device(x, tau), on_device(x, tau)
    for a, b in zip((*first[:3], *first.statistics), (*second[:3], *second.statistics), strict=True):
        assert torch.equal(a, b)
