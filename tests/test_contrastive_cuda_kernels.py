"""The tensor-core kernels of the contrastive loss, run on the host against the float64 truth; no GPU is needed."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from closeness import assert_close
from contrastive_cases import (
    certain_and_wrong,
    embeddings,
    evaluate,
    exact_rows,
    random_mask,
    wrong_in_one_column,
)
from emulated_contrastive import Device, backward, forward
from emulated_cuda import ADVERSARIAL, Counts, Run, unnoticed

from sleepfm_fast import reference
from sleepfm_fast.ops import contrastive_chunked

UPSTREAM = torch.tensor(0.7)
# Relative error of a cosine: float32's, and two factors of 11 bits.
COSINE_ERROR = {"highest": 2.0**-23, "high": 2.0**-11}


def check(
    x: torch.Tensor,
    scale: float,
    mask: torch.Tensor | None = None,
    mode: str = "leave_one_out",
    directions: str = "both",
    precision: str = "highest",
    device: Device = Device(),  # noqa: B008 (frozen)
    run: Run = Run(),  # noqa: B008
) -> None:
    """Loss, gradients and statistics against the twin in float64.

    The stated term is that of `contrastive_cases.check_against_truth`: a cosine uncertain by e makes a logit uncertain
    by s e, and what follows from it relatively so; 8 (1 + s) e is allowed. e is float32's epsilon for "highest", and
    for "high" that of two factors of 11 bits, reached only if all their errors have one sign: 2 (1 + s) e.
    """
    tau = torch.tensor(math.log(scale))
    kwargs = {"mode": mode, "mask": mask, "directions": directions}
    same = evaluate(reference.contrastive_loss, x, tau, **kwargs)
    truth = evaluate(reference.contrastive_loss, x.double(), tau.double(), **kwargs)
    options, here = (mask, mode, directions, precision), {"device": device, "run": run}
    loss, losses, correct, ranks, n_valid, state = forward(x, tau, *options, **here)
    d_x, slope = backward(torch.tensor(1.0), x, tau, n_valid, state, *options, **here)
    factor = (8 if precision == "highest" else 2) * (1 + scale) * COSINE_ERROR[precision]
    smallest = torch.finfo(torch.float32).smallest_normal
    missed = float(truth.loss.clamp_max(1.0))
    assert_close(loss, same.loss, truth.loss, factor * truth.loss + smallest, "loss")
    assert_close(losses, same.statistics.losses, truth.statistics.losses, factor * truth.statistics.losses + smallest)
    slope_term = factor * (truth.d_log_temperature.abs() + missed) + smallest
    assert_close(slope, same.d_log_temperature, truth.d_log_temperature, slope_term, "slope")
    length = x.double().nan_to_num(1.0).norm(dim=-1, keepdim=True).clamp_min(1e-12)
    n = max(int(n_valid.sum()), 1)
    term = factor * (truth.d_x.abs().amax(-1, keepdim=True) + scale * missed / n / length) + smallest
    if x.dtype != torch.float32:
        info = torch.finfo(x.dtype)
        term = term + truth.d_x.abs() * info.eps / 2 + info.smallest_normal * info.eps / 2
    assert d_x.dtype == x.dtype
    assert_close(d_x, same.d_x, truth.d_x, term, "gradient")
    assert torch.equal(n_valid, truth.statistics.n_valid)
    assert torch.equal(ranks < 0, truth.statistics.ranks < 0)
    assert torch.equal(correct, (ranks == 0).sum(-1))
    # Two of N cosines spread over [-1, 1] lie within e of each other with probability ~ N e.
    moved = (ranks - truth.statistics.ranks).abs()
    assert int(moved.sum()) <= 2 + ranks.numel() * x.shape[1] * 4 * COSINE_ERROR[precision]


# ---- every size of tile, precision, device -------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["highest", "high"])
@pytest.mark.parametrize("N", [1, 2, 63, 64, 65, 127, 128, 129, 257])
def test_at_the_edges_of_tiles(N, precision):
    kind, mode = ("random", "leave_one_out") if N % 2 else ("aligned", "pairwise")
    check(embeddings(kind, 3, N, 64), 14.0, mode=mode, precision=precision)


@pytest.mark.parametrize("precision", ["highest", "high"])
@pytest.mark.parametrize(
    ("D", "capability"),
    [(1, "8.0"), (65, "8.6"), (128, "9.0"), (200, "8.6"), (256, "8.0"), (300, "8.6"), (512, "8.0"), (512, "9.0")],
)
def test_every_dimension_on_every_device(D, precision, capability):
    N = 70 if D > 128 else 130
    check(embeddings("random", 2, N, D), 20.0, mode="pairwise", precision=precision, device=Device(3, capability))


@pytest.mark.parametrize(
    ("kind", "log_temperature", "precision"),
    [
        ("random", -200.0, "highest"),
        ("random", -60.0, "high"),
        ("random", -5.0, "highest"),
        ("aligned", 0.0, "high"),
        ("aligned", math.log(31.9), "highest"),
        ("random", math.log(31.9), "high"),
        ("random", math.log(32.1), "highest"),
        ("aligned", math.log(100), "highest"),
        ("aligned", math.log(100), "high"),
        ("random", 5.5, "highest"),
    ],
)
def test_every_temperature(kind, log_temperature, precision):
    """From 32 on maxima run along; opposite rows have cosines of -1, the furthest from a fixed maximum.

    Where every logit is 0 in float32, what does not count still does not.
    """
    x = embeddings(kind, 3, 66, 64)
    x[0, 1] = -x[1, 0]
    check(x, math.exp(log_temperature), precision=precision)


@pytest.mark.parametrize("precision", ["highest", "high"])
@pytest.mark.parametrize(
    ("sums", "kind", "D", "scale"),
    [("hopper", "random", 512, 14.0), ("hopper", "aligned", 200, 100.0), ("ampere", "aligned", 512, 1.0)],
)
def test_sums_that_tensor_cores_truncate(sums, kind, D, scale, precision):
    """Within the same limits as sums that are rounded."""
    device = Device(capability="9.0" if sums == "hopper" else "8.0")
    check(embeddings(kind, 2, 100, D), scale, mode="pairwise", precision=precision, device=device, run=Run(sums=sums))


@pytest.mark.parametrize(
    ("M", "mode", "directions", "scale"),
    [
        (2, "leave_one_out", "row", 14.0),
        (3, "leave_one_out", "both", 100.0),
        (3, "pairwise", "row", 100.0),
        (4, "leave_one_out", "row", 100.0),
        (4, "pairwise", "both", 14.0),
        (8, "leave_one_out", "both", 14.0),
        (8, "pairwise", "both", 14.0),
    ],
)
def test_masks(M, mode, directions, scale):
    N = 66
    mask = random_mask(M, N)
    mask[:, 5] = False
    mask[0, 7], mask[1:, 7] = True, False
    x = torch.where(mask[..., None], embeddings("random", M, N, 64), torch.nan)
    check(x, scale, mask, mode, directions)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("precision", ["highest", "high"])
def test_half_precision_and_strides(dtype, precision):
    x = embeddings("random", 3, 50, 80).to(dtype)
    check(x.transpose(0, 1).contiguous().transpose(0, 1)[:, 1::2, 3:77], 14.0, precision=precision)


def test_zero_rows_and_large_rows():
    x = embeddings("random", 3, 40, 64)
    x[1, 3] = 0.0
    x[0, 4] = x[0, 4] * 1e25
    x[2, 5] = x[2, 5] * 1e-20
    x[1, 7] = x[1, 7] * 1e-13  # a length just below the floor, by which it is divided
    tau = torch.tensor(2.0)
    loss, _, _, _, n_valid, state = forward(x, tau)
    truth = evaluate(reference.contrastive_loss, x.double(), tau.double())
    torch.testing.assert_close(loss.double(), truth.loss, rtol=1e-6, atol=0)
    gradient, _ = backward(torch.tensor(1.0), x, tau, n_valid, state)
    # One length a row: its gradient is as large as the row is small.
    length = x.norm(dim=-1, keepdim=True).clamp_min(1e-12).double()
    torch.testing.assert_close(gradient * length, truth.d_x * length, rtol=1e-5, atol=1e-8)


def test_alone_or_absent_everywhere():
    x, tau = embeddings("random", 3, 9, 64), torch.tensor(2.0)
    for mask in (torch.zeros(3, 9).bool(), torch.eye(3, 9).bool()):
        loss, losses, correct, ranks, n_valid, state = forward(torch.where(mask[..., None], x, torch.nan), tau, mask)
        assert float(loss) == 0.0
        assert not losses.any()
        assert not correct.any()
        assert not n_valid.any()
        assert not state.any()
        assert (ranks == -1).all()
        gradient, slope = backward(torch.tensor(1.0), x, tau, n_valid, state, mask)
        assert not gradient.any()
        assert float(slope) == 0.0


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("scale", [1.0, 50.0])
def test_what_is_not_finite_is_not_hidden(scale, value):
    x = embeddings("random", 3, 70, 64)
    x[1, 69, 3] = value
    tau = torch.tensor(math.log(scale))
    loss, *_, n_valid, state = forward(x, tau)
    assert torch.isnan(loss)
    gradient, slope = backward(torch.tensor(1.0), x, tau, n_valid, state)
    assert torch.isnan(gradient[1, 69]).all()
    assert torch.isnan(slope)


@pytest.mark.parametrize("precision", ["highest", "high"])
@pytest.mark.parametrize(("x", "scale"), [(wrong_in_one_column(), 100.0), (certain_and_wrong(), 30.0)])
def test_coefficients_fit_into_float16_whichever_side_is_wrong(x, scale, precision):
    check(x, scale, mode="pairwise", precision=precision)


# ---- ranks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["highest", "high"])
@pytest.mark.parametrize(("capability", "sums"), [("8.0", "rounded"), ("8.6", "ampere"), ("9.0", "hopper")])
def test_equal_rows_tie_exactly_and_the_first_wins(capability, sums, precision):
    """Seven different samples, repeated: those of one kind have the same numbers and are told apart by their index."""
    N, run = 150, Run(sums=sums)
    kinds = torch.arange(N) % 7
    x = embeddings("aligned", 3, 7, 128)[:, kinds]
    here = {"device": Device(2, capability), "run": run}
    _, _, correct, ranks, _, _ = forward(x, torch.tensor(3.0), precision=precision, **here)
    before = torch.arange(N) // 7
    assert torch.equal(ranks, before.int().expand(3, 2, N))
    assert (correct == 7).all()


@pytest.mark.parametrize("own", [-1, 0])
def test_cosines_that_are_not_positive_tie_as_well(own):
    N, kinds = 300, exact_rows()
    partners = -kinds if own < 0 else kinds.roll(1, 0)
    x, tau = torch.stack([kinds, partners])[:, torch.arange(N) % 8], torch.tensor(1.0)
    truth = contrastive_chunked.forward(x.double(), tau.double(), None, "pairwise", "both", 0, N)
    assert torch.equal(forward(x, tau, None, "pairwise")[3], truth[3])


# ---- how the work is cut ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n_multiprocessors", "capability"), [(1, "8.0"), (3, "8.6"), (7, "8.6"), (132, "8.0")])
def test_any_number_of_multiprocessors(n_multiprocessors, capability):
    """Rows and columns are cut into other groups; only the rounding of sums may notice."""
    x, tau, mask = embeddings("random", 3, 330, 64), torch.tensor(4.0), random_mask(3, 330)
    truth = contrastive_chunked.forward(x.double(), tau.double(), mask, "leave_one_out", "both", 0, 330)
    results = forward(x, tau, mask, device=Device(n_multiprocessors, capability))
    torch.testing.assert_close(results[0].double(), truth[0], rtol=1e-6, atol=0)
    torch.testing.assert_close(results[5][:, [3, 6]], truth[5][:, [3, 6]], rtol=1e-4, atol=1e-12)
    assert int((results[3] - truth[3]).abs().sum()) <= 2


@pytest.mark.parametrize("absent", [167, 180, 299])
def test_one_absent_sample_far_from_the_diagonal(absent):
    """Of a tile without the diagonal that absent sample alone says that not every pair counts."""
    x, tau, mask = embeddings("random", 2, 300, 64), torch.tensor(1.0), torch.ones(2, 300, dtype=torch.bool)
    mask[:, absent] = False
    truth = contrastive_chunked.forward(x.double(), tau.double(), mask, "pairwise", "both", 0, 300)
    results = forward(x, tau, mask, "pairwise")
    torch.testing.assert_close(results[0].double(), truth[0], rtol=1e-6, atol=0)
    torch.testing.assert_close(results[5][:, [3, 6]], truth[5][:, [3, 6]], rtol=1e-5, atol=1e-12)


def test_ranges_begin_anywhere_beside_the_tiles_of_columns():
    """Ten rows of the first tile have their own columns in the second one, which is not the tile's of that number."""
    x, tau, samples = embeddings("random", 2, 170, 64), torch.tensor(1.0), (10, 170)
    whole = forward(x, tau, None, "pairwise")
    share = forward(x, tau, None, "pairwise", samples=samples)
    assert torch.equal(share[3][..., 10:], whole[3][..., 10:])
    torch.testing.assert_close(share[5][..., 10:], whole[5][..., 10:], rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("mode", ["leave_one_out", "pairwise"])
@pytest.mark.parametrize("directions", ["both", "row"])
@pytest.mark.parametrize("cuts", [(0, 0, 150), (0, 1, 37, 128, 150)])
def test_ranges_of_samples_add_up(cuts, directions, mode):
    N = 150
    mask = random_mask(3, N)
    x, tau = torch.where(mask[..., None], embeddings("random", 3, N, 64), torch.nan), torch.tensor(3.0)
    arguments = (mask, mode, directions, "highest")
    whole = forward(x, tau, *arguments)
    shares = [forward(x, tau, *arguments, samples) for samples in itertools.pairwise(cuts)]
    for k in (0, 1):  # loss, losses
        torch.testing.assert_close(sum(share[k] for share in shares), whole[k], rtol=1e-6, atol=1e-9)
    assert torch.equal(sum(share[2] for share in shares), whole[2])
    for begin, end, (_, _, _, ranks, n_valid, state) in zip(cuts, cuts[1:], shares, strict=False):
        assert torch.equal(ranks[..., begin:end], whole[3][..., begin:end])
        assert (ranks[..., :begin] == -1).all()
        assert (ranks[..., end:] == -1).all()
        assert torch.equal(n_valid, whole[4])
        torch.testing.assert_close(state[..., begin:end], whole[5][..., begin:end], rtol=1e-5, atol=1e-12)
        assert not state[..., :begin].any()
        assert not state[..., end:].any()
    gradient, slope = backward(UPSTREAM, x, tau, whole[4], whole[5], *arguments)
    slopes = 0.0
    for samples in itertools.pairwise(cuts):
        if samples[0] < samples[1]:
            share, share_slope = backward(UPSTREAM, x, tau, whole[4], whole[5], *arguments, samples)
            rows = slice(*samples)
            torch.testing.assert_close(share[:, rows], gradient[:, rows], rtol=1e-5, atol=1e-9)
            slopes = slopes + share_slope
    torch.testing.assert_close(slopes, slope, rtol=1e-5, atol=1e-8)


def test_backward_a_few_rows_at_a_time():
    """As for an N whose gradients of both sides exceed the workspace's bound; the same bits."""
    x, tau = embeddings("random", 3, 300, 64), torch.tensor(3.0)
    *_, n_valid, state = forward(x, tau)
    at_once = backward(UPSTREAM, x, tau, n_valid, state)
    in_chunks = backward(UPSTREAM, x, tau, n_valid, state, device=Device(chunk_bytes=1 << 16))
    assert torch.equal(at_once[0], in_chunks[0])
    assert torch.equal(at_once[1], in_chunks[1])


@pytest.mark.parametrize("scale", [14.0, 100.0])
def test_state_of_another_path_is_read(scale):
    """The cosine that exponentials are relative to stands in the state; torch's operations keep the largest one."""
    x, tau, mask = embeddings("random", 3, 66, 64), torch.tensor(math.log(scale)), random_mask(3, 66)
    arguments = (mask, "leave_one_out", "both")
    ours = forward(x, tau, *arguments)
    theirs = contrastive_chunked.forward(x, tau, *arguments, 0, 66)
    expected = backward(UPSTREAM, x, tau, ours[4], ours[5], *arguments)
    got = backward(UPSTREAM, x, tau, theirs[4], theirs[5], *arguments)
    allowed = 1e-5 * float(expected[0].abs().max())
    torch.testing.assert_close(got[0], expected[0], rtol=1e-4, atol=allowed)
    chunked = contrastive_chunked.backward(UPSTREAM, x, tau, mask, ours[4], ours[5], *arguments[1:], 0, 66)
    torch.testing.assert_close(chunked[0], expected[0], rtol=1e-4, atol=allowed)


# ---- order, barriers, memory -----------------------------------------------------------------------------------------


def bits(run: Run, precision: str, scale: float, device: Device = Device(2, "8.6"), N: int = 100) -> bytes:  # noqa: B008
    """Everything that forward and backward return."""
    x, tau, mask = embeddings("random", 2, N, 64), torch.tensor(math.log(scale)), random_mask(2, N)
    results = forward(x, tau, mask, "pairwise", precision=precision, run=run, device=replace(device, planted=-1))
    gradients = backward(
        UPSTREAM, x, tau, results[4], results[5], mask, "pairwise", precision=precision, run=run,
        device=replace(device, planted=-1),
    )  # fmt: skip
    return b"".join(tensor.numpy().tobytes() for tensor in (*results, *gradients))


@pytest.mark.parametrize("precision", ["highest", "high"])
@pytest.mark.parametrize("scale", [14.0, 100.0])
def test_the_same_bits_in_every_order(scale, precision):
    """Warps ahead of each other, copies late or early, blocks in any order; buffers against a fence on either side."""
    runs = {bits(run, precision, scale) for run in ADVERSARIAL}
    assert len(runs) == 1


FORWARD_TILES, BACKWARD_TILES = 2, 3  # numbers of the launches


@pytest.mark.parametrize("kind", ["barrier", "wait"])
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_every_barrier_and_wait_counts(direction, kind):
    """Left out one at a time, in the kernel of the tiles alone, each changes the result in some order."""
    x, tau = embeddings("random", 2, 90, 128), torch.tensor(2.0)
    device = Device(1, "8.6", planted=FORWARD_TILES if direction == "forward" else BACKWARD_TILES)
    whole = forward(x, tau, None, "pairwise")

    def run_once(run: Run, counts: list[Counts] | None = None) -> bytes:
        options = {"device": device, "run": run, "counts": counts}
        if direction == "forward":
            results = forward(x, tau, None, "pairwise", **options)
        else:
            results = backward(UPSTREAM, x, tau, whole[4], whole[5], None, "pairwise", **options)
        return b"".join(tensor.numpy().tobytes() for tensor in results)

    counts: list[Counts] = []
    run_once(Run(), counts)
    n = counts[0].barriers if kind == "barrier" else counts[0].waits
    assert n > 3
    assert unnoticed(n, kind, run_once) == []


@pytest.mark.parametrize("precision", ["highest", "high"])
@pytest.mark.parametrize("capability", ["8.0", "8.6", "9.0"])
def test_no_bank_conflicts_and_no_needless_products(capability, precision):
    for D in (64, 512):
        N, M, parts = 128, 2, 3 if precision == "highest" else 1
        x, tau = embeddings("random", M, N, D), torch.tensor(2.0)
        counts: list[Counts] = []
        device = Device(3, capability)
        *_, n_valid, state = forward(x, tau, None, "pairwise", precision=precision, device=device, counts=counts)
        backward(UPSTREAM, x, tau, n_valid, state, None, "pairwise", precision=precision, device=device, counts=counts)
        for seen in counts:
            assert seen.ldmatrix_wavefronts == seen.ldmatrix_matrices
        product = N * N * D // (16 * 8 * 16) * parts
        own = N // 16 * 2 * (D // 16) * parts
        assert counts[0].mma == product + own
        assert counts[1].mma == 4 * product
