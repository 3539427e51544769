"""The contrastive loss over the samples of all processes of a ``torch.distributed`` group.

Each rank computes the rows and the columns of its own samples against the samples of all ranks. The forward pass
gathers the embeddings (M N D numbers) and the op's state (7 P N); a rank then holds everything that the gradient of its
own samples depends on, so the backward pass communicates nothing. The arithmetic is shared evenly: a rank with n of N
samples does n/N of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from sleepfm_fast.ops import contrastive_loss as local_contrastive_loss
from sleepfm_fast.ops.contrastive_arguments import DIRECTIONS, MODES, Precision, validate
from sleepfm_fast.ops.contrastive_loss import ContrastiveStatistics, Directions, Mode
from sleepfm_fast.ops.registry import DTYPE_CODES
from sleepfm_fast.ops.unsupported import no_second_derivative, refuse_transforms
from sleepfm_fast.plurals import counted

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
    """:func:`sleepfm_fast.ops.contrastive_loss` over the samples of all ranks, each rank passing its own.

    Without an initialised process group, or in a group of one, it is that op. Otherwise it is a collective call: all
    ranks of the group make it with the same M, D, dtype, options and temperature, and either all or none of them pass
    a mask.

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
        The default group if None. Both gloo and NCCL work.
    counts : sequence of int, optional
        n of every rank. With them, the host does not wait for the device. Without them the ranks exchange their counts
        and arguments first, which does wait; arguments that differ between ranks then raise on every rank.
    gradient : {"mean", "sum"}
        How the caller combines the ranks' parameter gradients. ``"mean"``, as DistributedDataParallel does: every
        rank's gradients are multiplied by the number of ranks, so that their mean over ranks is exactly the gradient
        of the single-process loss over all N samples. ``"sum"``: x receives the gradient of the loss by its samples,
        the temperature this rank's share of its gradient, and the caller adds the ranks up.

    Returns
    -------
    loss : Tensor
        0-d, over all N samples; bitwise equal on all ranks.
    statistics : ContrastiveStatistics
        ``losses``, ``correct`` and ``n_valid`` over all N samples; ``ranks`` ``[P, 2, n]`` for this process's samples
        only, each ranked among all N.

    Raises
    ------
    TypeError, ValueError
        As the op, and where ``counts`` does not fit the group or x. An exception that is raised on only some of the
        ranks leaves the others waiting until the process group's timeout.
    NotImplementedError
        As the op, on every rank: for second derivatives, forward-mode derivatives and torch.func.

    Notes
    -----
    The gradient needs no scaling by the caller. Two common constructions do not give it when their parameter gradients
    are averaged: losses over each rank's local negatives are another objective, not a multiple of this one; and the
    whole loss on embeddings gathered without a gradient (``torch.distributed.all_gather``, the rank's own slice put
    back) gives 1 / ranks of it. With ``torch.distributed.nn.all_gather``, whose backward pass adds up the ranks'
    gradients, the mean is right and the sum is ranks times too large.
    """
    validate(x, log_temperature, mode, mask, directions, precision)
    if gradient not in ("mean", "sum"):
        raise ValueError(f"gradient is {gradient!r}; choose 'mean' or 'sum'.")
    n_ranks = dist.get_world_size(group) if dist.is_available() and dist.is_initialized() else 1
    if n_ranks == 1:
        if counts is not None and list(counts) != [x.shape[1]]:
            raise ValueError(
                f"counts is {list(counts)}; one process with {counted(x.shape[1], 'sample')} needs [{x.shape[1]}]."
            )
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
    """Gather every rank's number of samples; raise on all ranks where their other arguments differ.

    Reading the numbers waits for the device.
    """
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
    """Gather 1-D tensors of n elements, the same n on every rank, into ``[n_ranks, n]``."""
    every = mine.new_empty(n_ranks * len(mine))
    # torch 2.13 renamed the function.
    gather = dist.all_gather_single if hasattr(dist, "all_gather_single") else dist.all_gather_into_tensor
    gather(every, mine, group=group)
    return every.view(n_ranks, -1)


def gather_rows(rows: Tensor, counts: Sequence[int], group: dist.ProcessGroup | None) -> Tensor:
    """Concatenate the ranks' ``[n, ...]`` tensors along the first dimension; ``counts`` holds every rank's n.

    One collective, each rank's rows padded with zeros to the largest n. The rows travel as bytes (uint8), because a
    backend may lack the tensors' dtype, whereas every one has uint8.
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
        # Samples are gathered as [N, M, D] and seen as [M, N, D] through strides, which the op accepts without a copy.
        x_all = gather_rows(x.detach().transpose(0, 1), counts, group).transpose(0, 1)
        mask_all = None if mask is None else gather_rows(mask.T, counts, group).T
        options = (mode, directions, precision, begin, end)
        loss, losses, correct, ranks, n_valid, state = torch.ops.sleepfm_fast.contrastive_loss_forward(
            x_all, log_temperature, mask_all, *options
        )
        # Counts and losses in one float64 message: integers up to 2^53 survive it exactly.
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
    """The backward op as a node of the graph, whose only purpose is that its own backward refuses.

    ``x`` is unused in the forward; it ties the node to this rank's x. The op itself reads ``x_all``, a detached copy,
    so that a second derivative by x would otherwise be lost without an error.
    """

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
    """Sum all ranks' shares and gather the state of all samples, in one collective.

    A rank's message is its shares [K], its state as [n, P, S] and zeros up to the length that the largest n needs.

    Parameters
    ----------
    shares : Tensor
        float64 ``[K]``: this rank's share of the loss, the losses and the correct counts.
    state : Tensor
        float64 ``[P, S, n]``: S numbers for each of this rank's samples in each pair of modalities.

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
    for other in every[1:, :K]:  # in the order of the ranks, so that all of them round alike and get the same bits
        total = total + other
    gathered = torch.cat([every[r, K : K + P * S * n] for r, n in enumerate(counts)])
    return total, gathered.view(-1, P, S).permute(1, 2, 0).contiguous()
