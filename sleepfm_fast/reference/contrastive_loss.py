"""Contrastive loss over modalities, written as its definition: every N x N similarity matrix in full."""

from __future__ import annotations

import itertools
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own name for it)
from torch import Tensor

__all__ = ["ContrastiveStatistics", "Directions", "Mode", "contrastive_loss", "problems"]

Mode = Literal["leave_one_out", "pairwise"]
Directions = Literal["both", "row"]


class ContrastiveStatistics(NamedTuple):
    """How well each sample finds its own counterpart, for P problems; direction 0 is by row and 1 by column.

    Attributes
    ----------
    losses : Tensor
        ``[P, 2]`` mean cross-entropy over the valid samples, 0 where there are none.
    correct : Tensor
        ``[P, 2]`` int64, number of valid samples of rank 0.
    ranks : Tensor
        ``[P, 2, N]`` int32, how many others are more similar than the sample's own counterpart; -1 where not valid. An
        equally similar other counts if its index is smaller.
    n_valid : Tensor
        ``[P]`` int64, number of valid samples.
    """

    losses: Tensor
    correct: Tensor
    ranks: Tensor
    n_valid: Tensor


def problems(n_modalities: int, mode: Mode = "leave_one_out") -> tuple[tuple[int, int | None], ...]:
    """Which modalities each problem compares: rows, and columns (None: the mean of all others).

    Parameters
    ----------
    n_modalities : int
        M, at least 2.
    mode : {"leave_one_out", "pairwise"}
        M problems (i, None), or the M(M-1)/2 problems (i, j) with i < j in lexicographic order.
    """
    if mode == "pairwise":
        return tuple(itertools.combinations(range(n_modalities), 2))
    return tuple((i, None) for i in range(n_modalities))


def cross_entropy_of_diagonal(logits: Tensor) -> Tensor:
    """Cross-entropy of row r for class r, as log(1 + sum over c != r of exp(S_rc - S_rr)).

    The same number as ``cross_entropy(logits, arange(n))``, but accurate to the last digits where S_rr dominates, where
    log-sum-exp minus S_rr would leave rounding noise in the value and in the gradient.
    """
    n = len(logits)
    if n < 2:
        return logits.new_zeros(n)
    diagonal = torch.eye(n, dtype=torch.bool, device=logits.device)
    excess = (logits - logits.diagonal()[:, None]).masked_fill(diagonal, -torch.inf)
    # Above the threshold softplus(z) is z, which at 40 is right to 1e-17.
    return F.softplus(excess.logsumexp(1), threshold=40.0)


def contrastive_loss(
    x: Tensor,
    log_temperature: Tensor,
    mode: Mode = "leave_one_out",
    *,
    mask: Tensor | None = None,
    directions: Directions = "both",
) -> tuple[Tensor, ContrastiveStatistics]:
    """Similarity softmax between modalities (Thapa et al. 2024, SleepFM, equations 1 and 2), by its definition.

    With unit rows ``e_i = x_i / max(|x_i|, 1e-12)`` and ``s = exp(log_temperature)``, a problem's logits are
    ``S_rc = s <a_r, b_c>``; ``a = e_i``, and ``b`` is the mean of the other present modalities' unit rows (not
    normalised again) or, pairwise, ``e_j``. Arguments and results as in
    :func:`sleepfm_fast.ops.contrastive_loss`; memory grows with N squared.
    """
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    M, N, _ = x.shape
    present = torch.ones(M, N, dtype=torch.bool, device=x.device) if mask is None else mask
    shared = present & (present.sum(0) > 1)  # a modality that is alone has nothing to be compared with
    # Values of absent modalities must have no effect, not even if they are NaN.
    e = F.normalize(torch.where(shared[..., None], x.to(dtype), 0), dim=-1, eps=1e-12)
    s = log_temperature.to(dtype).exp()

    total = e.sum() * 0 + s * 0
    n_terms = 0
    losses, correct, ranks, n_valid = [], [], [], []
    for i, j in problems(M, mode):
        if j is None:
            others = [k for k in range(M) if k != i]
            valid = shared[i]
            rows, columns = e[i], e[others].sum(0) / shared[others].sum(0).clamp_min(1)[:, None]
        else:
            valid = shared[i] & shared[j]
            rows, columns = e[i], e[j]
        index = valid.nonzero()[:, 0]
        cosine = rows[index] @ columns[index].T
        target = torch.arange(len(index), device=x.device)
        for direction, matrix in enumerate((cosine, cosine.T)):
            each = cross_entropy_of_diagonal(s * matrix)
            if direction == 0 or directions == "both":
                total = total + each.sum()
                n_terms += len(index)
            own = matrix.diagonal()[:, None]
            ahead = (matrix > own) | ((matrix == own) & (target[None] < target[:, None]))
            rank = torch.full((N,), -1, dtype=torch.int32, device=x.device)
            rank = rank.index_copy(0, index, ahead.sum(1, dtype=torch.int32))  # not in place, so that vmap can run it
            losses.append(each.detach().sum() / max(len(index), 1))
            correct.append((rank == 0).sum())
            ranks.append(rank)
        n_valid.append(valid.sum())
    P = len(n_valid)
    return total / max(n_terms, 1), ContrastiveStatistics(
        torch.stack(losses).view(P, 2),
        torch.stack(correct).view(P, 2),
        torch.stack(ranks).view(P, 2, N),
        torch.stack(n_valid),
    )
