"""Inputs, the float64 truth and the stated tolerance of the contrastive loss's tests."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from closeness import assert_close, assert_norm_close
from torch import Tensor

from sleepfm_fast import ops, reference
from sleepfm_fast.ops.contrastive_loss import ContrastiveStatistics

MODES = ("leave_one_out", "pairwise")
DIRECTIONS = ("both", "row")
LOG_TEMPERATURES = (0.0, math.log(14), math.log(100))


class Result(NamedTuple):
    loss: Tensor
    d_x: Tensor
    d_log_temperature: Tensor
    statistics: ContrastiveStatistics


def embeddings(kind: str, M: int, N: int, D: int, seed: int = 0) -> Tensor:
    """[M, N, D] float32 of no unit length: "random", or "aligned" with a small angle between modalities."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(M, N, D, generator=generator)
    if kind == "aligned":
        x = torch.randn(N, D, generator=generator) + 0.1 * x
    return x * (0.5 + torch.rand(M, N, 1, generator=generator))


def exact_rows() -> Tensor:
    """[8, 16] float32, four orthogonal rows and their negatives: their cosines are the same in any order of sums."""
    signs = torch.ones(1, 1)
    for _ in range(4):
        signs = torch.cat([torch.cat([signs, signs], 1), torch.cat([signs, -signs], 1)])  # Hadamard's
    return torch.cat([signs[:4], -signs[:4]])


def wrong_in_one_column() -> Tensor:
    """[2, 5, 8]: every row is nearest to its own column, but one column is nearer to another row."""
    rows, columns = torch.eye(5, 8), torch.eye(5, 8)
    columns[4] = torch.tensor([0.5, 0, 0, 0, 0, 0.75**0.5, 0, 0])
    rows[4] = torch.tensor([0, 0, 0, 0, 0, 0.3, 0.91**0.5, 0])
    return torch.stack([rows, columns])


def certain_and_wrong() -> Tensor:
    """[2, 2, 8]: each sample's partner lies opposite to it, the other sample's beside it."""
    rows = torch.tensor([1.0, -1.0])[:, None] * torch.eye(1, 8)
    return torch.stack([rows, -rows]) + 0.1 * embeddings("random", 2, 2, 8)


def random_mask(M: int, N: int, seed: int = 0) -> Tensor:
    """[M, N] bool; about two thirds present."""
    return torch.rand(M, N, generator=torch.Generator().manual_seed(seed)) > 0.35


def evaluate(function: Callable[..., tuple[Tensor, ContrastiveStatistics]], x: Tensor, tau: Tensor, **kwargs) -> Result:
    """Value, both gradients and statistics."""
    x, tau = x.detach().requires_grad_(), tau.detach().clone().requires_grad_()
    loss, statistics = function(x, tau, **kwargs)
    loss.backward()
    return Result(loss.detach(), x.grad, tau.grad, statistics)


def check_against_truth(x: Tensor, log_temperature: float, **kwargs) -> None:
    """Check ops.contrastive_loss as :func:`check_result` does."""
    check_result(
        lambda *arguments, **options: evaluate(ops.contrastive_loss, *arguments, **options),
        x,
        log_temperature,
        **kwargs,
    )


def check_result(result: Callable[..., Result], x: Tensor, log_temperature: float, **kwargs) -> None:
    """Loss, gradients and statistics that ``result(x, tau, **kwargs)`` gives, against the twin in float64."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    check_values(result(x, torch.tensor(log_temperature, dtype=dtype), **kwargs), x, log_temperature, **kwargs)


class Twins(NamedTuple):
    """Results of the twin in float64, in x's own precision, and on the same numbers in the loss's."""

    truth: Result
    same: Result
    widened: Result


def twins(x: Tensor, log_temperature: float, **kwargs) -> Twins:
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    tau = torch.tensor(log_temperature, dtype=dtype)
    of = [(x.double(), tau.double()), (x, tau), (x.to(dtype), tau)]
    return Twins(*(evaluate(reference.contrastive_loss, *arguments, **kwargs) for arguments in of))


def check_values(ours: Result, x: Tensor, log_temperature: float, of: Twins | None = None, **kwargs) -> None:
    """Check a result against the twin in float64, by element and as :func:`check_norms` does.

    The stated term of an element. A cosine of unit rows is uncertain by about eps, a logit by s eps, so what follows
    from it has a relative error of about (1 + s) eps: 8 (1 + s) eps is allowed for the loss. A gradient is a difference
    of terms whose size is that of the probability missed, at most min(1, loss), times s / (n |x|): the same factor, of
    that and of the row's largest element. float16 and bfloat16 gradients are rounded once more, half a unit in the last
    place. Below the smallest normal number nothing is promised. ``of`` are the twins, if they are known already.
    """
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    of = twins(x, log_temperature, **kwargs) if of is None else of
    truth, same, _ = of
    assert ours.loss.dtype == dtype
    assert ours.d_x.dtype == x.dtype
    s = math.exp(log_temperature)
    factor = 8 * (1 + s) * torch.finfo(dtype).eps
    smallest = torch.finfo(dtype).smallest_normal
    missed = float(truth.loss.clamp_max(1.0))
    what = f"{tuple(x.shape)} {x.dtype} log_temperature {log_temperature:.3g} {sorted(kwargs)}"
    assert_close(ours.loss, same.loss, truth.loss, factor * truth.loss + smallest, f"loss of {what}")
    slope_term = factor * (truth.d_log_temperature.abs() + missed) + smallest
    assert_close(
        ours.d_log_temperature, same.d_log_temperature, truth.d_log_temperature, slope_term, f"slope of {what}"
    )
    if x.numel():
        n_valid = max(int(truth.statistics.n_valid.sum()), 1)
        length = x.double().nan_to_num(1.0).norm(dim=-1, keepdim=True).clamp_min(1e-12)
        term = factor * (truth.d_x.abs().amax(-1, keepdim=True) + s * missed / n_valid / length) + smallest
        if x.dtype in (torch.float16, torch.bfloat16):
            info = torch.finfo(x.dtype)
            term = term + truth.d_x.abs() * info.eps / 2 + info.smallest_normal * info.eps / 2
        assert_close(ours.d_x, same.d_x, truth.d_x, term, f"gradient of {what}")
    statistics_agree(ours.statistics, same.statistics, truth.statistics, factor)
    check_norms(ours, x, of, log_temperature, what=what, **kwargs)


def size_of_logits(x: Tensor, log_temperature: float, mask: Tensor | None = None) -> float:
    """Root mean square of the logits of all pairs of rows of different modalities, plus that of the partners'."""
    present = torch.ones(x.shape[:2], dtype=torch.bool) if mask is None else mask
    e = torch.where(present[..., None], torch.nn.functional.normalize(x.double().nan_to_num(0.0), dim=-1), 0.0)
    n = present.double().sum(-1)
    gram = e.mT @ e  # the sum of squared cosines of two modalities is the inner product of theirs
    squares, pairs = gram.sum(0).square().sum() - gram.square().sum(), n.sum() ** 2 - n.square().sum()
    partners = torch.stack([(e[a] * e[b]).sum(-1) for a in range(len(e)) for b in range(a)])
    both = torch.stack([present[a] & present[b] for a in range(len(e)) for b in range(a)])
    rms = (squares / pairs.clamp_min(1.0)).sqrt() + (partners.square().sum() / both.sum().clamp_min(1)).sqrt()
    return math.exp(log_temperature) * float(rms)


def check_norms(ours: Result, x: Tensor, of: Twins, log_temperature: float, what: str = "", **kwargs) -> list[float]:
    """Loss, slope and the norm of the gradient's error against PyTorch's on the same numbers, and a few eps.

    With u the size of the logits (:func:`size_of_logits`), a logit is uncertain by about u eps and so is a probability,
    relatively; what depends on probabilities depends on the missed ones. With e = 8 eps, of which the truth's own sums
    take their part where that is float64 as well: the loss may be off by e (loss + u missed). The slope is the sum of
    missed probabilities times logits: e (1 + u) (slope + u missed). The gradient is what its terms, s missed / (n |x|),
    leave across the rows: e (1 + u) of its norm and of the terms'.
    Returns the shares of what is allowed.
    """
    dtype = ours.loss.dtype
    truth, same = of.truth, of.widened
    eps, smallest = 8 * torch.finfo(dtype).eps, torch.finfo(dtype).smallest_normal
    u = size_of_logits(x, log_temperature, kwargs.get("mask"))
    loss, slope, missed = float(truth.loss), abs(float(truth.d_log_temperature)), float(truth.loss.clamp_max(1.0))
    size = float(truth.d_x.norm())
    n_valid = max(int(truth.statistics.n_valid.sum()), 1)
    lengths = x.double().nan_to_num(1.0).norm(dim=-1).clamp_min(1e-12)
    terms = math.exp(log_temperature) * missed / n_valid * float(lengths.reciprocal().norm())
    term = eps * (1 + u) * (size + terms) + smallest * x.numel() ** 0.5
    if x.dtype in (torch.float16, torch.bfloat16):
        info = torch.finfo(x.dtype)
        term += info.eps / 2 * (size + info.smallest_normal * x.numel() ** 0.5)
    allowed = (eps * (loss + u * missed) + smallest, eps * (1 + u) * (slope + u * missed) + smallest, term)
    names = ("loss", "d_log_temperature", "d_x")
    return [
        assert_norm_close(getattr(ours, k), getattr(same, k), getattr(truth, k), most, f"norm of {k} of {what}")
        for k, most in zip(names, allowed, strict=True)
    ]


def statistics_agree(
    ours: ContrastiveStatistics, same: ContrastiveStatistics, truth: ContrastiveStatistics, factor: float
) -> None:
    """Compare counts exactly, losses to the stated term, ranks but for neighbours that rounding may swap."""
    assert_close(
        ours.losses,
        same.losses,
        truth.losses,
        factor * truth.losses + torch.finfo(ours.losses.dtype).smallest_normal,
        "losses",
    )
    assert torch.equal(ours.n_valid, truth.n_valid)
    assert ours.ranks.dtype == torch.int32
    assert torch.equal(ours.ranks < 0, truth.ranks < 0)
    N = max(ours.ranks.shape[-1], 1)
    # Two of N cosines spread over [-1, 1] lie within rounding of each other with probability ~ N eps: a few swaps.
    moved = (ours.ranks - truth.ranks).abs()
    assert int(moved.sum()) <= 2 + ours.ranks.numel() * N * 1e-6
    assert torch.equal(ours.correct, (ours.ranks == 0).sum(-1))
