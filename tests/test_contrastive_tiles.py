"""What the loss's tiles have edges for, in float32 and beyond the batches that one call takes: sizes around blocks and
panels, masks, ranges, numbers far from 1, rows whose cosines are exact. The processor's best variant computes it; the
last test repeats the file with AVX-512 where AMX is the best.
"""  # noqa: D205

from __future__ import annotations

import itertools
import math

import pytest
import torch
from contrastive_cases import (
    MODES,
    check_against_truth,
    embeddings,
    evaluate,
    exact_rows,
    random_mask,
)
from instruction_sets import passed_with

import sleepfm_fast
from sleepfm_fast import ops, reference
from sleepfm_fast.ops import contrastive_cpu, contrastive_joint

FORWARD = torch.ops.sleepfm_fast.contrastive_loss_forward
BACKWARD = torch.ops.sleepfm_fast.contrastive_loss_backward


@pytest.fixture(autouse=True)
def _no_batch_is_small(monkeypatch):
    monkeypatch.setattr(contrastive_joint, "is_joint", lambda *_arguments, **_options: False)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "N", [1, 17, 33, 47, 49, 63, 64, 65, 127, 129, 191, 192, 193, 255, 257, 385, 511, 512, 513, 1025]
)
def test_samples_around_blocks(N, mode):
    for D, masked in ((17, False), (48, True)):
        mask = random_mask(3, N, seed=N) if masked else None
        for log_temperature in (0.0, math.log(100)):
            check_against_truth(embeddings("random", 3, N, D), log_temperature, mode=mode, mask=mask)


@pytest.mark.parametrize("D", [1, 15, 17, 33, 47, 49, 63, 65, 191, 192, 193, 511, 513, 1025])
def test_dimensions_around_pieces(D):
    check_against_truth(embeddings("random", 3, 150, D), math.log(14))
    check_against_truth(embeddings("aligned", 2, 150, D), math.log(100), mode="pairwise", mask=random_mask(2, 150))


@pytest.mark.parametrize("mode", MODES)
def test_several_blocks_of_many_samples(mode):
    """N = 2200: five blocks of 512, or twelve of 192, the last of which is not full; recomputed and kept."""
    check_against_truth(embeddings("aligned", 3, 2200, 64), math.log(14), mode=mode, mask=random_mask(3, 2200))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("log_temperature", [2.0, 4.0])
def test_what_is_kept_changes_no_bit(log_temperature, mode, monkeypatch):
    x, tau, mask = embeddings("random", 3, 700, 70), torch.tensor(log_temperature), random_mask(3, 700)
    kept = evaluate(ops.contrastive_loss, x, tau, mode=mode, mask=mask)
    monkeypatch.setattr(contrastive_cpu, "KEEP_AT_MOST_BYTES", 1000)
    again = evaluate(ops.contrastive_loss, x, tau, mode=mode, mask=mask)
    assert torch.equal(kept.loss, again.loss)
    assert torch.equal(kept.d_x, again.d_x)
    assert torch.equal(kept.d_log_temperature, again.d_log_temperature)


@pytest.mark.parametrize("mode", MODES)
def test_backward_has_no_room_for_means_that_forward_has_kept(mode):
    """On tiles, where they are 64 samples of each modality for each thread."""
    M, D = 3, 512
    x = torch.empty(M, 1024, D, device="meta")

    def per_thread(kept: bool) -> int:
        one, two = (contrastive_cpu.workspace_bytes(x, mode, backward=True, n_threads=n, kept=kept) for n in (1, 2))
        return two - one

    on_tiles = sleepfm_fast.build_info()["cpu_instruction_set_in_use"] == "amx"
    assert per_thread(False) - per_thread(True) == 4 * M * D * 64 * (on_tiles and mode == "leave_one_out")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("cuts", [(0, 37, 75), (0, 96, 97, 310), (0, 128, 256, 600), (0, 1, 599, 600)])
def test_ranges_add_up_to_the_whole(cuts, mode):
    N = cuts[-1]
    x, tau, mask = embeddings("aligned", 3, N, 33), torch.tensor(3.0), random_mask(3, N)
    whole = FORWARD(x, tau, mask, mode, "both", "highest", 0, N)
    ranges = list(itertools.pairwise(cuts))
    shares = [FORWARD(x, tau, mask, mode, "both", "highest", *range_) for range_ in ranges]
    torch.testing.assert_close(sum(share[0] for share in shares), whole[0], rtol=1e-6, atol=0)
    for (begin, end), share in zip(ranges, shares, strict=True):
        assert torch.equal(share[3][..., begin:end], whole[3][..., begin:end])
    arguments = (torch.tensor(-0.7), x, tau, mask, whole[4], whole[5], mode, "both", "highest")
    gradient, slope = BACKWARD(*arguments, 0, N)
    shares = [BACKWARD(*arguments, *range_) for range_ in ranges]
    limit = 2e-6 * float(gradient.abs().max())
    torch.testing.assert_close(sum(share[0] for share in shares), gradient, rtol=0, atol=limit)
    torch.testing.assert_close(sum(share[1] for share in shares), slope, rtol=1e-5, atol=1e-7)
    for (begin, end), (share, _) in zip(ranges, shares, strict=True):
        assert not share[:, :begin].any()
        assert not share[:, end:].any()


@pytest.mark.parametrize("mode", MODES)
def test_masked_embeddings_do_not_matter(mode):
    x, mask, tau = embeddings("random", 3, 300, 40), random_mask(3, 300), torch.tensor(2.0)
    alone = mask.sum(0, keepdim=True) == 1
    clean = evaluate(ops.contrastive_loss, x, tau, mode=mode, mask=mask)
    for poison in (float("nan"), float("inf"), 1e30):
        dirty = evaluate(
            ops.contrastive_loss, torch.where((mask & ~alone)[..., None], x, poison), tau, mode=mode, mask=mask
        )
        assert torch.equal(dirty.loss, clean.loss)
        assert torch.equal(dirty.d_x, clean.d_x)
        assert torch.equal(dirty.statistics.ranks, clean.statistics.ranks)
    assert bool((clean.d_x[~mask] == 0).all())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("mode", MODES)
def test_what_is_not_finite_is_not_hidden(mode, value):
    x = embeddings("random", 3, 300, 40)
    x[1, 207, 3] = value
    result = evaluate(ops.contrastive_loss, x, torch.tensor(1.0), mode=mode)
    assert bool(result.loss.isnan())
    assert bool(result.d_x[1, 207].isnan().all())
    assert bool(result.d_log_temperature.isnan())


@pytest.mark.parametrize("upstream", [1.0, -3.0, 1e-30, -1e30])
@pytest.mark.parametrize("mode", MODES)
def test_gradients_of_any_size_keep_their_digits(mode, upstream):
    x, tau = embeddings("aligned", 3, 300, 40), torch.tensor(3.0)
    truth = evaluate(reference.contrastive_loss, x.double(), tau.double(), mode=mode)
    y, t = x.clone().requires_grad_(), tau.clone().requires_grad_()
    (ops.contrastive_loss(y, t, mode)[0] * upstream).backward()
    away = (y.grad.double() / upstream - truth.d_x).abs().amax() / truth.d_x.abs().amax()
    assert float(away) < 1e-5
    assert float(t.grad) / upstream == pytest.approx(float(truth.d_log_temperature), rel=1e-5)


def test_gradients_of_tiny_losses_keep_their_digits():
    """Aligned embeddings at s = 100: the loss is about 1e-25, and gradients' products would be far below normal."""
    x = embeddings("aligned", 3, 300, 128)
    tau = torch.tensor(math.log(100))
    truth = evaluate(reference.contrastive_loss, x.double(), tau.double())
    ours = evaluate(ops.contrastive_loss, x, tau)
    assert 0 < float(truth.loss) < 1e-15
    assert float((ours.d_x - truth.d_x).norm() / truth.d_x.norm()) < 5e-5
    torch.testing.assert_close(ours.loss.double(), truth.loss, rtol=5e-5, atol=0)


@pytest.mark.parametrize("mode", MODES)
def test_the_upstream_gradient_scales(mode):
    x = embeddings("random", 3, 200, 40)
    plain = evaluate(ops.contrastive_loss, x, torch.tensor(2.0), mode=mode)
    y, tau = x.clone().requires_grad_(), torch.tensor(2.0, requires_grad=True)
    (ops.contrastive_loss(y, tau, mode)[0] * -8.0).backward()
    assert torch.equal(y.grad, plain.d_x * -8.0)
    assert torch.equal(tau.grad, plain.d_log_temperature * -8.0)


def test_cosines_that_are_exact_tie():
    """Orthogonal rows of signs and their negatives, in an order of their own for each modality, and single ones."""
    generator = torch.Generator().manual_seed(2)
    rows = torch.cat([exact_rows(), torch.eye(16), -0.5 * torch.eye(16)])
    x = torch.stack([rows[torch.randint(len(rows), (300,), generator=generator)] for _ in range(2)])
    ours = evaluate(ops.contrastive_loss, x, torch.tensor(2.0), mode="pairwise")
    truth = evaluate(reference.contrastive_loss, x.double(), torch.tensor(2.0).double(), mode="pairwise")
    assert torch.equal(ours.statistics.ranks, truth.statistics.ranks)
    torch.testing.assert_close(ours.loss.double(), truth.loss, rtol=1e-6, atol=0)


@pytest.mark.parametrize("mode", MODES)
def test_rows_of_one_large_element(mode):
    """What is small beside a row's largest element is rounded to a share of that; torch rounds no less."""
    x = embeddings("random", 3, 200, 64)
    x[..., 5] *= 1e4
    x[1, ::3, 7] *= 1e6
    for log_temperature in (0.0, math.log(14)):
        tau = torch.tensor(log_temperature)
        ours = evaluate(ops.contrastive_loss, x, tau, mode=mode)
        same = evaluate(reference.contrastive_loss, x, tau, mode=mode)
        truth = evaluate(reference.contrastive_loss, x.double(), tau.double(), mode=mode)
        torch.testing.assert_close(ours.loss.double(), truth.loss, rtol=5e-7, atol=0)
        largest = truth.d_x.abs().amax(-1, keepdim=True)
        away, torchs = (float(((result.d_x - truth.d_x).abs() / largest).max()) for result in (ours, same))
        assert away < 1.5 * torchs


@pytest.mark.parametrize("N", [200, 500])
def test_equal_rows_tie_exactly_and_the_first_wins(N):
    x = embeddings("random", 3, 1, 333).expand(3, N, 333)
    ranks = ops.contrastive_loss(x, torch.tensor(3.0))[1].ranks
    assert torch.equal(ranks, torch.arange(N, dtype=torch.int32).expand(3, 2, N))


@pytest.mark.parametrize("name", ["avx512", "amx"])
def test_every_instruction_set(name):
    if name == sleepfm_fast.build_info()["cpu_instruction_set_in_use"]:
        pytest.skip(f"all tests of this file run with {name} in this process")
    others = "not every_instruction_set and not many_samples"
    assert passed_with(name, __file__, "-k", others) > 60
