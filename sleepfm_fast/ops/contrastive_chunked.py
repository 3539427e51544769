"""The contrastive loss on CUDA where no kernel runs: torch operations over chunks of rows.

At most ``CHUNK_ELEMENTS`` similarities exist at a time, so that memory grows linearly with N. It runs on every device
(the tests run it on the CPU), never waits for the device, and has forward's results in the compiled op's layout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import wraps
from typing import ParamSpec, TypeVar

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own name for it)
from torch import Tensor

__all__ = ["backward", "forward"]

CHUNK_ELEMENTS = 1 << 26  # similarities at a time: 256 MB in float32
NORM_FLOOR = 1e-12
NEVER = -torch.inf
# Exponentials use at least this scale. For a smaller one every logit is 0 to any precision anyway, and 0 * NEVER would
# be NaN.
LEAST_SCALE = 1e-20

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def without_autocast(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Turn autocast off inside ``function``: it would round products' factors to 16 bits, as compiled ops do not."""

    @wraps(function)
    def run(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        first = args[0]
        assert isinstance(first, Tensor)
        with torch.autocast(first.device.type, enabled=False):
            return function(*args, **kwargs)

    return run


@dataclass(frozen=True)
class Operands:
    """Unit rows and what follows from them; zero where the sample lacks the modality or has no other."""

    unit: Tensor  # [M, N, D]
    norm: Tensor  # [M, N]
    shared: Tensor  # [M, N] True where the sample has the modality and at least one other
    n_others: Tensor  # [N] number of modalities that a mean is of, at least 1
    scale: Tensor  # [] exp(log_temperature)
    mean: Tensor | None  # [M, N, D] of the other modalities' unit rows; leave-one-out only


def prepare(x: Tensor, log_temperature: Tensor, mask: Tensor | None, mode: str) -> Operands:
    M, N, _ = x.shape
    dtype = log_temperature.dtype
    present = torch.ones(M, N, dtype=torch.bool, device=x.device) if mask is None else mask
    n_present = present.sum(0)
    shared = present & (n_present > 1)
    values = torch.where(shared[..., None], x.to(dtype), 0)
    norm = torch.linalg.vector_norm(values, dim=-1)
    unit = values / norm.clamp_min(NORM_FLOOR)[..., None]
    n_others = (n_present - 1).clamp_min(1)
    mean = None
    if mode != "pairwise":
        # Stacked; an index that is a list would be copied to the device, and the host would wait for that.
        others = [torch.stack([unit[k] for k in range(M) if k != i]) for i in range(M)]
        mean = torch.stack([of_others.sum(0) for of_others in others]) / n_others[None, :, None]
        mean = torch.where(shared[..., None], mean, 0)
    return Operands(unit, norm, shared, n_others, log_temperature.exp(), mean)


def pairs(operands: Operands) -> Iterator[tuple[int, int, Tensor, Tensor, Tensor]]:
    """For each problem: modality of the rows and of the columns, both operands, and which samples are valid."""
    M = operands.unit.shape[0]
    if operands.mean is not None:
        for i in range(M):
            yield i, i, operands.unit[i], operands.mean[i], operands.shared[i]
        return
    for i in range(M):
        for j in range(i + 1, M):
            yield i, j, operands.unit[i], operands.unit[j], operands.shared[i] & operands.shared[j]


def chunks(n_samples: int, begin: int, end: int) -> Iterator[slice]:
    size = max(1, CHUNK_ELEMENTS // max(n_samples, 1))
    for start in range(begin, end, size):
        yield slice(start, min(start + size, end))


def cosines(rows: Tensor, columns: Tensor, valid: Tensor, at: slice) -> tuple[Tensor, Tensor]:
    """Cosines of the chunk's rows with all columns, -inf where a pair does not count, and those of the own pairs."""
    matrix = rows[at] @ columns.T
    own = matrix.diagonal(at.start)
    counts = valid[at, None] & valid[None, :]
    counts.diagonal(at.start).fill_(False)
    return matrix.masked_fill(~counts, NEVER), own


def one_direction(
    rows: Tensor, columns: Tensor, valid: Tensor, scale: Tensor, begin: int, end: int
) -> tuple[Tensor, ...]:
    """Loss, rank, own cosine, largest other cosine, inverse sum and probability missed, for rows [begin, end)."""
    N = len(valid)
    number = torch.arange(N, device=valid.device)
    results = []
    for at in chunks(N, begin, end):
        matrix, own = cosines(rows, columns, valid, at)
        ahead = (matrix > own[:, None]) | ((matrix == own[:, None]) & (number[None, :] < number[at, None]))
        rank = ahead.sum(1, dtype=torch.int32).masked_fill(~valid[at], -1)
        largest = matrix.amax(1)
        alone = largest == NEVER
        largest = torch.where(alone, 0, largest)
        total = (matrix - largest[:, None]).mul_(scale.clamp_min(LEAST_SCALE)).exp_().sum(1).double()
        own, largest = own.double(), largest.double()
        lead = scale.double() * (own - largest)
        # log(1 + total exp(-lead)) without overflow on either side; above 40 the 1 is below float64's last digit.
        loss = torch.nn.functional.softplus(total.log() - lead, threshold=40.0)
        inverse = 1 / (total + lead.exp())
        missed = torch.sigmoid(total.log() - lead)
        kept = (loss, largest, inverse, missed)
        loss, largest, inverse, missed = (torch.where(alone, 0 * own, value) for value in kept)
        results.append((loss, rank, own, largest, inverse, missed))
    return tuple(torch.cat(column) for column in zip(*results, strict=True))


@without_autocast
def forward(
    x: Tensor, log_temperature: Tensor, mask: Tensor | None, mode: str, directions: str, begin: int, end: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Forward of the op by torch operations: loss, losses, correct, ranks, n_valid, state."""
    operands = prepare(x, log_temperature, mask, mode)
    N = x.shape[1]
    dtype = log_temperature.dtype
    sums, correct, ranks, n_valid, states = [], [], [], [], []
    for _, _, rows, columns, valid in pairs(operands):
        n_valid.append(valid.sum())
        if begin == end:
            sums.append(x.new_zeros(2, dtype=torch.float64))
            correct.append(x.new_zeros(2, dtype=torch.int64))
            ranks.append(x.new_full((2, N), -1, dtype=torch.int32))
            states.append(x.new_zeros((7, N), dtype=torch.float64))
            continue
        by_row = one_direction(rows, columns, valid, operands.scale, begin, end)
        by_column = one_direction(columns, rows, valid, operands.scale, begin, end)
        outside = (begin, N - end)
        sums.append(torch.stack([by_row[0].sum(), by_column[0].sum()]))
        ranks.append(F.pad(torch.stack([by_row[1], by_column[1]]), outside, value=-1))
        correct.append((ranks[-1] == 0).sum(1))
        states.append(F.pad(torch.stack([by_row[2], *by_row[3:], *by_column[3:]]), outside))
    every_sum, every_n = torch.stack(sums), torch.stack(n_valid)
    counted = every_sum if directions == "both" else every_sum[:, :1]
    loss = counted.sum() / (every_n.sum() * counted.shape[1]).clamp_min(1)
    losses = every_sum / every_n.clamp_min(1)[:, None]
    return loss.to(dtype), losses.to(dtype), torch.stack(correct), torch.stack(ranks), every_n, torch.stack(states)


def gradient_rows(
    rows: Tensor,
    columns: Tensor,
    valid: Tensor,
    scale: Tensor,
    own: Tensor,
    by_row: tuple[Tensor, Tensor] | None,
    by_column: tuple[Tensor, Tensor] | None,
    pull: Tensor,
    begin: int,
    end: int,
) -> tuple[Tensor, Tensor]:
    """Gradient of rows [begin, end), and the row softmax's part of d loss / d log_temperature.

    ``by_row`` and ``by_column`` have, for each sample, the largest cosine, which the exponential is relative to, and
    the exponential's weight in s * dloss/dlogit; None for a direction that does not count. ``pull`` is that gradient of
    the own pair.
    """
    gradients = torch.zeros_like(rows)
    scale = scale.clamp_min(LEAST_SCALE)
    slope = torch.zeros((), dtype=torch.float64, device=rows.device)
    for at in chunks(len(valid), begin, end):
        matrix, _ = cosines(rows, columns, valid, at)
        gradient = torch.zeros_like(matrix)
        if by_row is not None:
            largest, weight = by_row
            gradient = (matrix - largest[at, None]).mul_(scale).exp_().mul_(weight[at, None])
            # Each row's gradient sums to 0, so that the own cosine may be subtracted, which cancels less. Pairs that do
            # not count are -inf and have gradient 0; the clamp keeps their product from being NaN.
            slope = slope + (gradient * (matrix.clamp_min(-2.0) - own[at, None])).sum(dtype=torch.float64)
        if by_column is not None:
            largest, weight = by_column
            gradient = gradient + (matrix - largest[None, :]).mul_(scale).exp_().mul_(weight[None, :])
        gradient.diagonal(at.start).copy_(pull[at])
        gradients[at] = gradient @ columns
    return gradients, slope


@without_autocast
def backward(
    gradient_loss: Tensor,
    x: Tensor,
    log_temperature: Tensor,
    mask: Tensor | None,
    n_valid: Tensor,
    state: Tensor,
    mode: str,
    directions: str,
    begin: int,
    end: int,
) -> tuple[Tensor, Tensor]:
    """Backward of the op by torch operations: gradients of x and of log_temperature."""
    operands = prepare(x, log_temperature, mask, mode)
    dtype = log_temperature.dtype
    scale = operands.scale
    n_directions = 2 if directions == "both" else 1
    factor = (scale * gradient_loss).double() / (n_valid.sum() * n_directions).clamp_min(1)
    d_unit = torch.zeros_like(operands.unit)
    slope = torch.zeros((), dtype=torch.float64, device=x.device)
    d_means = []
    for p, (i, j, rows, columns, valid) in enumerate(pairs(operands)):
        own, largest, inverse, missed, largest_c, inverse_c, missed_c = state[p]
        pull = -(factor * missed)
        if directions == "both":
            pull = pull - factor * missed_c
        pull, own = pull.to(dtype), own.to(dtype)
        by_row = largest.to(dtype), (factor * inverse).to(dtype)
        by_column = (largest_c.to(dtype), (factor * inverse_c).to(dtype)) if directions == "both" else None
        d_rows, row_slope = gradient_rows(rows, columns, valid, scale, own, by_row, by_column, pull, begin, end)
        d_columns, column_slope = gradient_rows(columns, rows, valid, scale, own, by_column, by_row, pull, begin, end)
        slope = slope + row_slope + column_slope
        d_unit[i] += d_rows
        if operands.mean is None:
            d_unit[j] += d_columns
        else:
            d_means.append(d_columns / operands.n_others[:, None])
    for i, d_mean in enumerate(d_means):
        for k in range(len(d_means)):
            if k != i:
                d_unit[k] += d_mean
    along = (operands.unit * d_unit).sum(-1, keepdim=True)
    along = torch.where(operands.norm[..., None] < NORM_FLOOR, 0, along)
    gradient_x = (d_unit - operands.unit * along) / operands.norm.clamp_min(NORM_FLOOR)[..., None]
    gradient_x = torch.where(operands.shared[..., None], gradient_x, 0)
    return gradient_x.to(x.dtype).contiguous(), slope.to(dtype)
