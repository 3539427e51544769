"""contrastive_loss against the float64 truth, the published loop, and its own invariances."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from closeness import assert_close
from contrastive_cases import (
    DIRECTIONS,
    LOG_TEMPERATURES,
    MODES,
    Result,
    check_against_truth,
    embeddings,
    evaluate,
    random_mask,
)
from torch import Tensor

from sleepfm_fast import _C, ops, reference
from sleepfm_fast.ops import pages

KINDS = ("random", "aligned")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("M", [2, 3, 4])
@pytest.mark.parametrize("N", [1, 2, 31, 32, 33, 257])
def test_agrees_with_float64(N, M, mode):
    cases = itertools.product(LOG_TEMPERATURES, KINDS, DIRECTIONS, (False, True))
    for log_temperature, kind, directions, masked in cases:
        mask = random_mask(M, N, seed=N) if masked else None
        check_against_truth(embeddings(kind, M, N, 64), log_temperature, mode=mode, directions=directions, mask=mask)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("M", [2, 3, 4])
def test_agrees_with_float64_at_a_thousand(M, mode):
    for log_temperature, kind in ((0.0, "random"), (math.log(14), "aligned"), (math.log(100), "random")):
        check_against_truth(embeddings(kind, M, 1000, 64), log_temperature, mode=mode)
    check_against_truth(embeddings("aligned", M, 1000, 64), math.log(100), mode=mode, mask=random_mask(M, 1000))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("D", [1, 3, 16, 65, 128, 512, 1000, 1024])
def test_every_dimension(D, mode):
    check_against_truth(embeddings("random", 3, 50, D), math.log(14), mode=mode)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("M", [5, 8])
def test_many_modalities(M, mode):
    check_against_truth(embeddings("aligned", M, 70, 64), math.log(14), mode=mode, mask=random_mask(M, 70))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_dtype(kind, mode, dtype):
    for log_temperature in LOG_TEMPERATURES:
        check_against_truth(embeddings(kind, 3, 100, 96).to(dtype), log_temperature, mode=mode)


def test_float16_gradients_below_the_normal_range_are_rounded_once():
    x = embeddings("random", 3, 200, 64).mul(40).half()  # gradients about 1e-6: subnormal in float16
    gradient = evaluate(ops.contrastive_loss, x, torch.tensor(1.0)).d_x
    wide = evaluate(ops.contrastive_loss, x.float(), torch.tensor(1.0)).d_x
    assert 0 < int((gradient != 0).sum()) < gradient.numel()
    assert torch.equal(gradient, wide.half())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_16_bit_number_is_read_as_torch_reads_it(dtype):
    """One number beside a 1 in a row of two: its unit row shows what was read, subnormals included."""
    numbers = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    numbers = numbers[numbers.isfinite()][::16]
    x = torch.stack([numbers, torch.ones_like(numbers)], -1).expand(2, -1, -1)
    tau = torch.tensor(0.0)
    narrow, wide = (evaluate(ops.contrastive_loss, x.to(d), tau) for d in (dtype, torch.float32))
    assert torch.equal(narrow.loss, wide.loss)
    assert torch.equal(narrow.d_x, wide.d_x.to(dtype))
    assert torch.equal(narrow.statistics.ranks, wide.statistics.ranks)


# ---- the published code --------------------------------------------------------------------------------------------


def published_loss(x: Tensor, log_temperature: Tensor, mode: str) -> Tensor:
    """Restate what the published training loop minimises: cross-entropies summed, then divided as it divides."""
    e = [F.normalize(x[i], dim=-1) for i in range(len(x))]
    M, N = len(e), x.shape[1]
    labels = torch.arange(N)
    if mode == "pairwise":
        sides = [(e[i], e[j]) for i in range(M) for j in range(i + 1, M)]
        divisor = M * (M - 1)
    else:
        sides = [(e[i], torch.stack([e[j] for j in range(M) if j != i]).sum(0) / (M - 1)) for i in range(M)]
        divisor = 2 * M
    total = x.new_zeros(())
    for a, b in sides:
        logits = torch.matmul(a, b.T) * torch.exp(log_temperature)
        total = total + F.cross_entropy(logits, labels, reduction="sum")
        total = total + F.cross_entropy(logits.T, labels, reduction="sum")
    return total / divisor / N


@pytest.mark.parametrize("function", [ops.contrastive_loss, reference.contrastive_loss])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("M", [2, 3, 4])
def test_is_the_published_loss(M, mode, function):
    x = embeddings("random", M, 45, 32).double().requires_grad_()
    tau = torch.tensor(1.7, dtype=torch.float64, requires_grad=True)
    published = published_loss(x, tau, mode)
    loss, _ = function(x, tau, mode)
    torch.testing.assert_close(loss, published, rtol=1e-13, atol=0)
    for ours, theirs in zip(torch.autograd.grad(loss, (x, tau)), torch.autograd.grad(published, (x, tau)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-16)


def test_one_direction_is_the_papers():
    x = embeddings("random", 3, 20, 16).double()
    e = F.normalize(x, dim=-1)
    expected = [
        F.cross_entropy(e[i] @ (e[[j for j in range(3) if j != i]].mean(0)).T * 5, torch.arange(20)) for i in range(3)
    ]
    loss, statistics = ops.contrastive_loss(x, torch.tensor(5.0).double().log(), directions="row")
    torch.testing.assert_close(loss, torch.stack(expected).mean(), rtol=1e-12, atol=0)
    torch.testing.assert_close(statistics.losses[:, 0], torch.stack(expected), rtol=1e-12, atol=0)
    assert bool((statistics.losses[:, 1] > 0).all())


def test_two_modalities_leave_one_out_is_pairwise():
    x = embeddings("aligned", 2, 77, 48)
    mask = random_mask(2, 77)
    one = evaluate(ops.contrastive_loss, x, torch.tensor(2.0), mode="leave_one_out", mask=mask)
    two = evaluate(ops.contrastive_loss, x, torch.tensor(2.0), mode="pairwise", mask=mask)
    torch.testing.assert_close(one.loss, two.loss, rtol=1e-6, atol=0)
    torch.testing.assert_close(one.d_x, two.d_x, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(one.d_log_temperature, two.d_log_temperature, rtol=1e-5, atol=0)
    assert torch.equal(one.statistics.ranks[0], two.statistics.ranks[0])
    assert torch.equal(one.statistics.ranks[1].flip(0), two.statistics.ranks[0])


# ---- temperature ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("log_temperature", [-100.0, -5.0, 6.0, 9.0])
@pytest.mark.parametrize("kind", KINDS)
def test_far_temperatures(kind, log_temperature):
    """S from 0 to 8,000: no overflow, no underflow to a wrong zero; float64, where the truth can follow."""
    check_against_truth(embeddings(kind, 3, 60, 32).double(), log_temperature)
    result = evaluate(ops.contrastive_loss, embeddings(kind, 3, 60, 32), torch.tensor(log_temperature))
    assert bool(result.loss.isfinite())
    assert bool(result.d_x.isfinite().all())


@pytest.mark.parametrize("s", [31.4, 31.6])
@pytest.mark.parametrize("mode", MODES)
def test_where_the_maximum_begins_to_run(mode, s):
    """Up to s = 31.5 exponentials are taken relative to 1; cosines of -1 are then furthest from it."""
    x = embeddings("aligned", 3, 100, 32)
    opposite = x * torch.tensor([1.0, -1.0, -1.0])[:, None, None]
    for y in (x, opposite, embeddings("random", 3, 100, 32)):
        check_against_truth(y, math.log(s), mode=mode)
        check_against_truth(y.double(), math.log(s), mode=mode)


def test_small_losses_keep_their_digits():
    """Aligned embeddings at s = 100: the loss is ~1e-20, where log-sum-exp less the diagonal gives 0."""
    x = embeddings("aligned", 3, 128, 64)
    tau = torch.tensor(math.log(100))
    truth = evaluate(reference.contrastive_loss, x.double(), tau.double())
    ours = evaluate(ops.contrastive_loss, x, tau)
    assert 0 < float(truth.loss) < 1e-7
    assert float(published_loss(x, tau, "leave_one_out")) == 0.0
    torch.testing.assert_close(ours.loss.double(), truth.loss, rtol=5e-5, atol=0)
    assert float((ours.d_x - truth.d_x).norm() / truth.d_x.norm()) < 5e-5
    torch.testing.assert_close(ours.d_log_temperature.double(), truth.d_log_temperature, rtol=5e-5, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("N", [2, 150])
def test_opposite_embeddings_where_the_reference_of_exponentials_changes(N, dtype):
    """Relative to a cosine of 1, exp(-2 s) is zero in float32 from 32 on: all cosines are -1, and the loss is log N."""
    v = F.normalize(torch.arange(1.0, 9.0, dtype=dtype), dim=0)
    x = torch.stack([v.expand(N, 8), -v.expand(N, 8)])
    for scale in (1.0, 31.0, 31.5, 31.51, 33.0, 45.0, 60.0, 345.0, 351.0, 400.0):
        tau = torch.tensor(math.log(scale), dtype=dtype)
        result = evaluate(ops.contrastive_loss, x, tau)
        forward, _ = ops.contrastive_loss(x, tau)
        for loss in (result.loss, forward):
            assert abs(float(loss) - math.log(N)) < 1e-4, scale
        assert result.d_x.isfinite().all()
        assert abs(float(result.d_log_temperature)) < 1e-3, scale


# ---- memory --------------------------------------------------------------------------------------------------------


def spoilt(monkeypatch: pytest.MonkeyPatch, function: Callable[[], Result]) -> Result:
    """What a function gives whose workspaces hold NaN: those that Python makes, and those of the compiled pool."""
    held = [_C.Pages(n << 16) for n in range(1, 25)]  # up to 1.5 MB, whole pages: the pool hands them out next
    for pages_of in held:
        np.asarray(pages_of).fill(0xFF)
    del held, pages_of
    with monkeypatch.context() as patch:
        patch.setattr(pages, "empty", lambda like, shape: torch.full(shape, 0xFF, dtype=like.dtype))
        return function()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("N", "D"), [(1, 5), (3, 40), (19, 33), (32, 64), (70, 33), (230, 10)])
def test_results_do_not_depend_on_memory_that_nobody_has_written(N, D, mode, dtype, monkeypatch):
    x, mask = embeddings("random", 3, N, D).to(dtype), random_mask(3, N)
    for log_temperature in (2.0, 4.5):  # exponentials relative to 1, and to the largest of a row or column
        tau = torch.tensor(log_temperature, dtype=dtype)
        for kwargs in ({"mode": mode}, {"mode": mode, "mask": mask}):
            clean = evaluate(ops.contrastive_loss, x, tau, **kwargs)
            dirty = spoilt(monkeypatch, partial(evaluate, ops.contrastive_loss, x, tau, **kwargs))
            for ours, theirs in zip((*dirty[:3], *dirty.statistics), (*clean[:3], *clean.statistics), strict=True):
                assert torch.equal(ours, theirs)


# ---- masks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("directions", DIRECTIONS)
def test_masked_embeddings_do_not_matter(mode, directions):
    x = embeddings("random", 3, 70, 32)
    mask = random_mask(3, 70)
    alone = mask.sum(0, keepdim=True) == 1
    clean = evaluate(ops.contrastive_loss, x, torch.tensor(2.0), mode=mode, mask=mask, directions=directions)
    for poison in (float("nan"), float("inf"), 1e30):
        y = torch.where((mask & ~alone)[..., None], x, poison)
        dirty = evaluate(ops.contrastive_loss, y, torch.tensor(2.0), mode=mode, mask=mask, directions=directions)
        assert torch.equal(dirty.loss, clean.loss)
        assert torch.equal(dirty.d_x, clean.d_x)
        assert torch.equal(dirty.d_log_temperature, clean.d_log_temperature)
        assert torch.equal(dirty.statistics.ranks, clean.statistics.ranks)
    assert bool((clean.d_x[~mask] == 0).all())
    assert bool((clean.d_x[mask & ~alone].abs().amax(-1) > 0).all())


@pytest.mark.parametrize("mode", MODES)
def test_masked_samples_are_as_if_removed(mode):
    x = embeddings("random", 3, 90, 32).double()
    keep = torch.rand(90, generator=torch.Generator().manual_seed(3)) > 0.4
    tau = torch.tensor(2.0).double()
    masked = evaluate(ops.contrastive_loss, x, tau, mode=mode, mask=keep.expand(3, 90))
    removed = evaluate(ops.contrastive_loss, x[:, keep], tau, mode=mode)
    torch.testing.assert_close(masked.loss, removed.loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(masked.d_x[:, keep], removed.d_x, rtol=1e-9, atol=1e-15)
    assert torch.equal(masked.statistics.ranks[..., keep], removed.statistics.ranks)
    assert bool((masked.statistics.ranks[..., ~keep] == -1).all())


@pytest.mark.parametrize("mode", MODES)
def test_a_modality_missing_everywhere_is_as_if_not_there(mode):
    x = embeddings("random", 4, 40, 32).double()
    x[2] = float("nan")
    mask = torch.ones(4, 40, dtype=torch.bool)
    mask[2] = False
    tau = torch.tensor(2.0).double()
    four = evaluate(ops.contrastive_loss, x, tau, mode=mode, mask=mask)
    three = evaluate(ops.contrastive_loss, x[[0, 1, 3]], tau, mode=mode)
    torch.testing.assert_close(four.loss, three.loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(four.d_x[[0, 1, 3]], three.d_x, rtol=1e-9, atol=1e-15)
    assert bool((four.d_x[2] == 0).all())
    assert bool(
        (
            four.statistics.n_valid
            == torch.tensor([0 if 2 in p or p == (2, None) else 40 for p in ops.problems(4, mode)])
        ).all()
    )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("N", "mask"), [(0, None), (5, False), (5, "one")])
def test_nothing_valid_gives_zero(N, mask, mode):
    x = torch.full((3, N, 8), float("nan")) if mask is not None else torch.empty(3, N, 8)
    if mask is not None:
        present = torch.zeros(3, N, dtype=torch.bool)
        present[0] = mask == "one"  # one modality and no other
        mask = present
    result = evaluate(ops.contrastive_loss, x, torch.tensor(1.0), mode=mode, mask=mask)
    assert float(result.loss) == 0.0
    assert result.d_x.shape == x.shape
    assert bool((result.d_x == 0).all())
    assert float(result.d_log_temperature) == 0.0
    assert bool((result.statistics.losses == 0).all())
    assert bool((result.statistics.ranks == -1).all())
    assert bool((result.statistics.n_valid == 0).all())
    assert bool((result.statistics.correct == 0).all())


def test_one_sample_has_no_rival():
    result = evaluate(ops.contrastive_loss, embeddings("random", 3, 1, 8), torch.tensor(3.0))
    assert float(result.loss) == 0.0
    assert bool((result.d_x == 0).all())
    assert bool((result.statistics.correct == 1).all())


# ---- rows without length, values without meaning -------------------------------------------------------------------


def test_rows_of_no_length_follow_normalize():
    x = embeddings("random", 3, 20, 16).double()
    x[0, 3] = 0
    x[1, 4] = 0
    x[:, 5] = 0
    x[2, 6] *= 1e-14
    x[2, 7] *= 1e-9
    tau = torch.tensor(1.0).double()
    ours = evaluate(ops.contrastive_loss, x, tau)
    y = x.clone().requires_grad_()
    published = published_loss(y, tau, "leave_one_out")
    published.backward()
    torch.testing.assert_close(ours.loss, published.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(ours.d_x, y.grad, rtol=1e-8, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("N", [40, 300])
@pytest.mark.parametrize("mode", MODES)
def test_rows_below_the_floor_of_lengths_are_divided_by_it(mode, N, dtype):
    """Their gradient keeps its share along the row: the divisor does not depend on the row there."""
    x = embeddings("random", 3, N, 16)
    for m, r, length in ((0, 7, 4e-13), (2, 8, 9e-13), (1, 9, 1.1e-12)):
        x[m, r] *= length / x[m, r].norm()
    got, truth = (
        evaluate(function, x.to(d), torch.tensor(1.0, dtype=d), mode=mode)
        for function, d in ((ops.contrastive_loss, dtype), (reference.contrastive_loss, torch.float64))
    )
    limit = 3e-6 if dtype == torch.float32 else 1e-13
    for m, r in ((0, 7), (2, 8), (1, 9), (1, 3)):
        away = (got.d_x[m, r].double() - truth.d_x[m, r]).norm() / truth.d_x[m, r].norm()
        assert away < limit, (m, r)


def test_not_a_number_is_not_hidden():
    x = embeddings("random", 3, 40, 16)
    x[1, 7, 3] = float("nan")
    result = evaluate(ops.contrastive_loss, x, torch.tensor(1.0))
    assert bool(result.loss.isnan())
    assert bool(result.d_x[1, 7].isnan().all())


# ---- statistics ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_ranks_and_counts_are_exact_in_float64(mode):
    x = embeddings("random", 3, 300, 12, seed=4).double()
    mask = random_mask(3, 300, seed=5)
    ours = ops.contrastive_loss(x, torch.tensor(1.0).double(), mode, mask=mask)[1]
    truth = reference.contrastive_loss(x, torch.tensor(1.0).double(), mode, mask=mask)[1]
    assert torch.equal(ours.ranks, truth.ranks)
    assert torch.equal(ours.correct, truth.correct)
    assert len(set(truth.ranks.flatten().tolist())) > 100


@pytest.mark.parametrize("N", [7, 40, 200, 500])
def test_equal_rows_tie_exactly_and_the_first_wins(N):
    """Rows that are the same numbers must not be told apart by rounding, wherever they lie."""
    row = embeddings("random", 3, 1, 77)
    x = row.expand(3, N, 77)
    ranks = ops.contrastive_loss(x, torch.tensor(3.0))[1].ranks
    assert torch.equal(ranks, torch.arange(N, dtype=torch.int32).expand(3, 2, N))
    # In float64, where no two different rows tie by chance.
    twins = embeddings("random", 3, N, 77).repeat(1, 2, 1).double()
    alone = ops.contrastive_loss(twins[:, :N], torch.tensor(3.0))[1].ranks
    ranks = ops.contrastive_loss(twins, torch.tensor(3.0))[1].ranks
    assert torch.equal(ranks[..., :N], 2 * alone)
    assert torch.equal(ranks[..., N:], 2 * alone + 1)


# ---- invariances ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_order_of_samples_does_not_matter(mode):
    x = embeddings("random", 3, 130, 32).double()
    mask = random_mask(3, 130)
    order = torch.randperm(130, generator=torch.Generator().manual_seed(1))
    tau = torch.tensor(2.0).double()
    plain = evaluate(ops.contrastive_loss, x, tau, mode=mode, mask=mask)
    moved = evaluate(ops.contrastive_loss, x[:, order], tau, mode=mode, mask=mask[:, order])
    torch.testing.assert_close(moved.loss, plain.loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(moved.d_x, plain.d_x[:, order], rtol=1e-9, atol=1e-15)
    assert torch.equal(moved.statistics.ranks, plain.statistics.ranks[..., order])


def test_order_of_modalities_does_not_matter():
    x = embeddings("random", 4, 50, 32).double()
    tau = torch.tensor(2.0).double()
    for mode in MODES:
        plain = evaluate(ops.contrastive_loss, x, tau, mode=mode)
        moved = evaluate(ops.contrastive_loss, x.flip(0), tau, mode=mode)
        torch.testing.assert_close(moved.loss, plain.loss, rtol=1e-12, atol=0)
        torch.testing.assert_close(moved.d_x, plain.d_x.flip(0), rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("mode", MODES)
def test_gradcheck(mode):
    x = embeddings("random", 3, 6, 5).double().requires_grad_()
    tau = torch.tensor(1.2, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[1, 1, 0, 1, 1, 0], [1, 0, 1, 1, 1, 0], [0, 1, 1, 1, 1, 1]]).bool()
    for directions, present in itertools.product(DIRECTIONS, (None, mask)):
        assert torch.autograd.gradcheck(
            lambda y, t, d=directions, m=present: ops.contrastive_loss(y, t, mode, mask=m, directions=d)[0], (x, tau)
        )


def test_upstream_gradient_scales():
    x = embeddings("random", 3, 40, 32)
    plain = evaluate(ops.contrastive_loss, x, torch.tensor(2.0))
    y, tau = x.clone().requires_grad_(), torch.tensor(2.0, requires_grad=True)
    (ops.contrastive_loss(y, tau)[0] * -8.0).backward()
    assert torch.equal(y.grad, plain.d_x * -8.0)
    assert torch.equal(tau.grad, plain.d_log_temperature * -8.0)


def test_strides_do_not_matter():
    base = embeddings("random", 3, 64, 40)
    tau = torch.tensor(2.0)
    plain = evaluate(ops.contrastive_loss, base, tau)
    views = {
        "samples first": base.transpose(0, 1).contiguous().transpose(0, 1),
        "dimensions first": base.permute(2, 0, 1).contiguous().permute(1, 2, 0),
        "every second": torch.stack([base, torch.zeros_like(base)], 2).flatten(1, 2)[:, ::2],
        "a slice": F.pad(base, (3, 5))[..., 3:-5],
        "every second dimension": torch.stack([base, torch.zeros_like(base)], -1).flatten(2)[..., ::2],
        "modalities reversed twice": base.flip(0).flip(0),
    }
    for name, view in views.items():
        assert torch.equal(view, base), name
        result = evaluate(ops.contrastive_loss, view, tau)
        assert torch.equal(result.loss, plain.loss), name
        assert torch.equal(result.d_x, plain.d_x), name
    mask = random_mask(64, 3).T
    assert mask.stride() != mask.contiguous().stride()
    masked, dense = (evaluate(ops.contrastive_loss, base, tau, mask=m) for m in (mask, mask.contiguous()))
    assert torch.equal(masked.d_x, dense.d_x)
    expanded = base[:, :1].expand(3, 64, 40)
    assert_close(
        evaluate(ops.contrastive_loss, expanded, tau).loss,
        torch.tensor(math.log(64)),
        torch.tensor(math.log(64), dtype=torch.float64),
        1e-6,
        "log N of equal rows",
    )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("N", [40, 257, 700])
def test_the_same_bits_for_every_number_of_threads(N, mode):
    x = embeddings("random", 3, N, 48)
    mask = random_mask(3, N)
    before = torch.get_num_threads()
    results = []
    try:
        for n_threads in (1, 2, 3, 5, 2):
            torch.set_num_threads(n_threads)
            results.append(evaluate(ops.contrastive_loss, x, torch.tensor(2.5), mode=mode, mask=mask))
            loss, statistics = ops.contrastive_loss(x, torch.tensor(2.5), mode=mode, mask=mask)  # keeps no cosines
            assert torch.equal(loss, results[0].loss)
            assert torch.equal(statistics.ranks, results[0].statistics.ranks)
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        assert torch.equal(result.loss, results[0].loss)
        assert torch.equal(result.d_x, results[0].d_x)
        assert torch.equal(result.d_log_temperature, results[0].d_log_temperature)
        for ours, first in zip(result.statistics, results[0].statistics, strict=True):
            assert torch.equal(ours, first)
