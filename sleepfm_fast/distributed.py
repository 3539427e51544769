"""The contrastive loss over the samples of all processes of a ``torch.distributed`` group.

Each rank computes the rows and the columns of its own samples against everybody's. Embeddings (M N D) and a few numbers
a sample (7 P N) are gathered in the forward pass; a rank then holds all that the gradient of its own samples needs, so
the backward pass communicates nothing. The arithmetic is shared evenly: a rank with n of N samples does n/N of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from sleepfm_fast.ops import contrastive_loss as local_contrastive_loss
from sleepfm_fast.ops.contrastive_loss import (
    DIRECTIONS,
    MODES,
    ContrastiveStatistics,
    Directions,
    Mode,
    Precision,
    validate,
)
from sleepfm_fast.ops.registry import DTYPE_CODES
from sleepfm_fast.ops.unsupported import no_second_derivative, refuse_transforms

__all__ = ["contrastive_loss", "exchange_counts", "gather_rows"]

Gradient = Literal["mean", "sum"]

NAME = "distributed.contrastive_loss"
TWIN = "sleepfm_fast.reference.contrastive_loss on the embeddings of all ranks"


def contrastive_loss(
    x: Tensor,
    log_temperature: Tensor,
    mode: Mode = "leave_one_out",
    *,
    mask: Tensor | None = None,
    directions: Directions = "both",
    precision: Precision = "highest",
    group: dist.ProcessGroup | None = None,
    counts: Sequence[int] | None = None,
    gradient: Gradient = "mean",
) -> tuple[Tensor, ContrastiveStatistics]:
    """:func:`sleepfm_fast.ops.contrastive_loss` of the samples of all ranks, each rank giving its own.

    Without an initialised process group, or in a group of one, it is that op. Otherwise all ranks of the group call it
    together, with the same M, D, dtype, options and temperature, and with a mask either all or none of them.

    Parameters
    ----------
    x : Tensor
        ``[M, n, D]`` embeddings of this rank's samples; n may differ between ranks and be 0. The loss is over the
        N = sum of n samples in the order of the ranks.
    log_temperature : Tensor
        0-d; the same number on every rank.
    mode, directions, precision
        As in :func:`sleepfm_fast.ops.contrastive_loss`.
    mask : Tensor, optional
        ``[M, n]`` bool, True where the sample has the modality.
    group : ProcessGroup, optional
        The default group if None. gloo and NCCL serve.
    counts : sequence of int, optional
        n of every rank. Where the caller knows them, nothing waits for the device. Without them they are exchanged,
        and a rank whose arguments do not fit the others' is refused on all ranks alike.
    gradient : {"mean", "sum"}
        How the caller combines the ranks' parameter gradients. ``"mean"``, as DistributedDataParallel does: gradients
        are those of the loss times the number of ranks, so that their mean over ranks is exactly the gradient of the
        single-process loss over all N samples. ``"sum"``: x receives its own gradient, the temperature this rank's
        share, and the caller adds up.

    Returns
    -------
    loss : Tensor
        0-d, over all N samples: the same bits on every rank.
    statistics : ContrastiveStatistics
        ``losses``, ``correct`` and ``n_valid`` over all N samples; ``ranks`` ``[P, 2, n]`` of this rank's samples,
        among all N.

    Raises
    ------
    TypeError, ValueError
        As the op; and where ``counts`` does not fit the group or x. An exception on one rank only leaves the others
        waiting until the process group's timeout.
    NotImplementedError
        As the op, on every rank alike: for second derivatives, forward-mode derivatives and torch.func.

    Notes
    -----
    The gradient needs no scaling by the caller. Averaging ranks that each differentiated a loss over local negatives,
    or gathering embeddings with a gradient that is summed over ranks (``torch.distributed.nn.all_gather``) and then
    averaging, gives another number: 1 / ranks, or ranks, times too much.
    """
    validate(x, log_temperature, mode, mask, directions, precision)
    if gradient not in ("mean", "sum"):
        raise ValueError(f"gradient is {gradient!r}; choose 'mean' or 'sum'.")
    n_ranks = dist.get_world_size(group) if dist.is_available() and dist.is_initialized() else 1
    if n_ranks == 1:
        if counts is not None and list(counts) != [x.shape[1]]:
            raise ValueError(f"counts is {list(counts)}; one process with {x.shape[1]} samples needs [{x.shape[1]}].")
        return local_contrastive_loss(x, log_temperature, mode, mask=mask, directions=directions, precision=precision)
    refuse_transforms(NAME, x, log_temperature, twin=TWIN)
    if counts is None:
        counts = exchange_counts(x, mask, mode, directions, group)
    counts = tuple(int(n) for n in counts)
    rank = dist.get_rank(group)
    if len(counts) != n_ranks or min(counts) < 0 or counts[rank] != x.shape[1]:
        raise ValueError(
            f"counts is {list(counts)}; expected the number of samples of each of {n_ranks} ranks, {x.shape[1]} at "
            f"position {rank}."
        )
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    factor = float(n_ranks) if gradient == "mean" else 1.0
    results = _Loss.apply(  # type: ignore[no-untyped-call]
        x, log_temperature.to(dtype), mask, mode, directions, precision, group, counts, factor
    )
    loss, losses, correct, ranks, n_valid = results
    return loss, ContrastiveStatistics(losses, correct, ranks, n_valid)


def exchange_counts(
    x: Tensor, mask: Tensor | None, mode: str, directions: str, group: dist.ProcessGroup | None
) -> tuple[int, ...]:
    """Number of samples of every rank; arguments that differ between ranks are refused on all of them."""
    M, n, D = x.shape
    words = ("modalities", "dimensions", "dtype", "mode", "directions", "mask")
    numbers = (M, D, DTYPE_CODES[x.dtype], MODES.index(mode), DIRECTIONS.index(directions), int(mask is not None))
    mine = torch.tensor([n, *numbers], dtype=torch.int64, device=x.device)
    every = gather_equal(mine, dist.get_world_size(group), group)
    counts, *columns = zip(*every.tolist(), strict=True)
    for word, column in zip(words, columns, strict=True):
        if len(set(column)) > 1:
            raise ValueError(
                f"the ranks call contrastive_loss with different arguments: {word} is {list(column)} by rank "
                "(dtype, mode and directions by number). Give every rank the same."
            )
    return tuple(counts)


def gather_equal(mine: Tensor, n_ranks: int, group: dist.ProcessGroup | None) -> Tensor:
    """``[n_ranks, n]`` from every rank's 1-D tensor of n elements."""
    every = mine.new_empty(n_ranks * len(mine))
    # torch 2.13 renamed the function.
    gather = dist.all_gather_single if hasattr(dist, "all_gather_single") else dist.all_gather_into_tensor
    gather(every, mine, group=group)
    return every.view(n_ranks, -1)


def gather_rows(rows: Tensor, counts: Sequence[int], group: dist.ProcessGroup | None) -> Tensor:
    """Concatenate ``[n, ...]`` of every rank, n by rank in ``counts``, along the first dimension.

    Travels as bytes, which every backend takes, in one collective padded to the largest n.
    """
    n, longest = len(rows), max(counts)
    shape = rows.shape[1:]
    if longest == 0:
        return rows.new_empty((0, *shape))
    n_bytes = shape.numel() * rows.element_size()
    mine = rows.contiguous().view(n, -1) if n else rows.new_empty((0, shape.numel()))
    if n < longest:
        padded = rows.new_zeros((longest, shape.numel()))
        padded[:n] = mine
        mine = padded
    gathered = gather_equal(mine.view(torch.uint8).flatten(), len(counts), group).view(-1, n_bytes).view(rows.dtype)
    if min(counts) < longest:
        gathered = torch.cat([gathered[r * longest : r * longest + n] for r, n in enumerate(counts)])
    return gathered.view(-1, *shape)


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        log_temperature: Tensor,
        mask: Tensor | None,
        mode: str,
        directions: str,
        precision: str,
        group: dist.ProcessGroup | None,
        counts: tuple[int, ...],
        factor: float,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        begin = sum(counts[: dist.get_rank(group)])
        end = begin + x.shape[1]
        # [M, N, D] by strides: the op takes any, so the gathered samples are not copied once more.
        x_all = gather_rows(x.detach().transpose(0, 1), counts, group).transpose(0, 1)
        mask_all = None if mask is None else gather_rows(mask.T, counts, group).T
        options = (mode, directions, precision, begin, end)
        loss, losses, correct, ranks, n_valid, state = torch.ops.sleepfm_fast.contrastive_loss_forward(
            x_all, log_temperature, mask_all, *options
        )
        shares = torch.cat([loss.double().view(1), losses.double().flatten(), correct.double().flatten()])
        total, state = exchange_shares(shares, state[..., begin:end], counts, group)
        n_losses = losses.numel()
        loss = total[0].to(loss.dtype)
        losses = total[1 : 1 + n_losses].to(losses.dtype).view_as(losses)
        correct = total[1 + n_losses :].round().to(correct.dtype).view_as(correct)
        ranks = ranks[..., begin:end].contiguous()
        ctx.save_for_backward(x, x_all, log_temperature, mask_all, n_valid, state)
        ctx.options = options
        ctx.factor = factor
        ctx.mark_non_differentiable(losses, correct, ranks, n_valid)
        ctx.set_materialize_grads(False)
        return loss, losses, correct, ranks, n_valid

    @staticmethod
    def backward(ctx: Any, gradient_loss: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if gradient_loss is None:
            return (None,) * 9
        x, *saved = ctx.saved_tensors
        arguments = (gradient_loss * ctx.factor, *saved, *ctx.options)
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # create_graph=True
            gradient_x, gradient_log_temperature = _Gradient.apply(x, *arguments)  # type: ignore[no-untyped-call]
        else:
            gradient_x, gradient_log_temperature = torch.ops.sleepfm_fast.contrastive_loss_backward(*arguments)
        *_, begin, end = ctx.options
        return gradient_x[:, begin:end].contiguous(), gradient_log_temperature, *(None,) * 7


class _Gradient(torch.autograd.Function):
    """Stands where a second derivative would be asked for, also of this rank's x, of which x_all is a copy."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
        gradient_x, gradient_log_temperature = torch.ops.sleepfm_fast.contrastive_loss_backward(*arguments)
        return gradient_x, gradient_log_temperature

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise no_second_derivative(NAME, TWIN)


def exchange_shares(
    shares: Tensor, state: Tensor, counts: tuple[int, ...], group: dist.ProcessGroup | None
) -> tuple[Tensor, Tensor]:
    """Sum of all ranks' shares, added in the order of the ranks, and the state of all samples; one collective.

    Parameters
    ----------
    shares : Tensor
        float64 ``[K]``.
    state : Tensor
        float64 ``[P, S, n]`` of this rank's samples.

    Returns
    -------
    total : Tensor
        ``[K]``.
    state : Tensor
        ``[P, S, N]``, contiguous.
    """
    P, S, _ = state.shape
    K = len(shares)
    message = torch.cat([shares, state.permute(2, 0, 1).flatten()])
    padded = message.new_zeros(K + P * S * max(counts))
    padded[: len(message)] = message
    every = gather_equal(padded, len(counts), group)
    total = every[0, :K]
    for other in every[1:, :K]:  # a fixed order: all ranks get the same bits
        total = total + other
    gathered = torch.cat([every[r, K : K + P * S * n] for r, n in enumerate(counts)])
    return total, gathered.view(-1, P, S).permute(1, 2, 0).contiguous()
