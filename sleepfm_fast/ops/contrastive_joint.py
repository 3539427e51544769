"""The contrastive loss of a small batch on the CPU: loss, statistics and gradients in one compiled call.

The loss is one number, so that its gradients are those for an upstream gradient of 1 times the actual one. They are
computed in the forward pass, while everything they need is still in the caches, and returned by the backward pass.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sleepfm_fast import _C
from sleepfm_fast.ops.contrastive_results import allocate_forward, n_problems
from sleepfm_fast.ops.registry import DTYPE_CODES

__all__ = [
    "LARGEST_UPSTREAM",
    "backward_kept",
    "can_be_scaled",
    "forward",
    "forward_keeping",
    "gradients",
    "is_joint",
    "kept_bytes",
    "loss_and_gradients",
]

LARGEST_UPSTREAM = 2.0**20  # JOINT_UPSTREAM in csrc/params.h

# Up to these sizes one call is faster than two; measured on a Zen 3 core with D = 512
# (docs/kernels/contrastive-loss.md). With more samples the other kernels win, whose blocks stay in the caches. With
# more modalities they do because the joint kernel multiplies all M (M - 1) / 2 pairs of modalities, which from four on
# is more than the M leave-one-out problems.
LARGEST_N = 128
LARGEST_D = 1024
MOST_WORK_FOR_PAIRS = 24

# Addresses of the results loss, losses, correct, ranks, n_valid and state; 0 for one that is not wanted.
Addresses = tuple[int, int, int, int, int, int]


def is_joint(shape: tuple[int, ...], mode: str) -> bool:
    """Whether one call is faster than forward and backward in turn, for x of shape ``[M, N, D]``.

    It depends on nothing else, so that backward, which asks again, interprets what forward kept in the same way.
    """
    M, N, D = shape
    more_pairs = M * (M - 1) // 2 - n_problems(M, mode)
    return N <= LARGEST_N and D <= LARGEST_D and N * more_pairs <= MOST_WORK_FOR_PAIRS * M


def can_be_scaled(dtype: torch.dtype, upstream: float) -> bool:
    """Whether gradients for an upstream gradient of 1, rounded to x's ``dtype``, may be multiplied by ``upstream``.

    They may not where the result would differ from gradients computed for ``upstream``: a 16-bit result would be
    rounded twice, a large factor would magnify what was lost below the smallest normal number, and a factor that is not
    finite would turn the zeros of masked embeddings into NaN.
    """
    return upstream == 1.0 or (abs(upstream) <= LARGEST_UPSTREAM and dtype in (torch.float32, torch.float64))


def addresses(results: tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]) -> Addresses:
    """Addresses at which the kernel writes the results."""
    loss, losses, correct, ranks, n_valid, state = (result.data_ptr() for result in results)
    return loss, losses, correct, ranks, n_valid, state


def _run(
    x: Tensor,
    log_temperature: Tensor,
    mask: Tensor | None,
    mode: str,
    directions: str,
    results: Addresses,
    upstream: float,
    gradient_x: int,
    gradient_log_temperature: int,
) -> None:
    """Call the kernel; the gradients are addresses, 0 for one that is not wanted."""
    if x.stride(2) != 1:
        x = x.contiguous()
    stride = x.stride()
    _C.contrastive_joint(
        x.data_ptr(),
        DTYPE_CODES[x.dtype],
        x.shape,
        stride[:2],
        log_temperature.data_ptr(),
        0 if mask is None else mask.data_ptr(),
        (0, 0) if mask is None else mask.stride(),
        mode == "pairwise",
        directions == "both",
        torch.get_num_threads(),
        results,
        upstream,
        gradient_x,
        gradient_log_temperature,
    )


# ---- past the dispatcher ---------------------------------------------------------------------------------------------


def loss_and_gradients(
    x: Tensor, log_temperature: Tensor, mask: Tensor | None, mode: str, directions: str, *, wants_x: bool
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor, Tensor], tuple[Tensor | None, Tensor]]:
    """Return the loss; losses, correct, ranks, n_valid; the gradients of x and log_temperature for an upstream of 1."""
    M, N, _ = x.shape
    P, dtype, device = n_problems(M, mode), log_temperature.dtype, x.device
    # empty_like takes half the time of torch.empty(()).
    loss, slope = torch.empty_like(log_temperature), torch.empty_like(log_temperature)
    losses = torch.empty((P, 2), dtype=dtype, device=device)
    correct = torch.empty((P, 2), dtype=torch.int64, device=device)
    ranks = torch.empty((P, 2, N), dtype=torch.int32, device=device)
    n_valid = torch.empty((P,), dtype=torch.int64, device=device)
    gradient_x = torch.empty_like(x, memory_format=torch.contiguous_format) if wants_x else None
    results = loss.data_ptr(), losses.data_ptr(), correct.data_ptr(), ranks.data_ptr(), n_valid.data_ptr(), 0
    at = 0 if gradient_x is None else gradient_x.data_ptr(), slope.data_ptr()
    _run(x, log_temperature, mask, mode, directions, results, 1.0, *at)
    return loss, (losses, correct, ranks, n_valid), (gradient_x, slope)


def gradients(
    x: Tensor, log_temperature: Tensor, mask: Tensor | None, mode: str, directions: str, upstream: float
) -> tuple[Tensor, Tensor]:
    """Compute the gradients of x and log_temperature for any upstream gradient, from x anew."""
    results = allocate_forward(x, mode)  # the kernel writes them too; not used
    gradient_x = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    slope = torch.empty((), dtype=log_temperature.dtype, device=x.device)
    at = gradient_x.data_ptr(), slope.data_ptr()
    _run(x, log_temperature, mask, mode, directions, addresses(results), upstream, *at)
    return gradient_x, slope


# ---- behind the dispatcher: what is kept are the gradients for an upstream gradient of 1, as bytes -------------------


def _place_of_slope(x: Tensor) -> int:
    """Offset in bytes of the slope behind x's gradient, aligned for an element of any type."""
    return (x.numel() * x.element_size() + 7) // 8 * 8


def kept_bytes(x: Tensor) -> int:
    """Size of what :func:`forward_keeping` keeps for :func:`backward_kept`."""
    return _place_of_slope(x) + 8


def forward(
    x: Tensor, log_temperature: Tensor, mask: Tensor | None, mode: str, directions: str
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Forward of all samples: loss, losses, correct, ranks, n_valid, state."""
    results = allocate_forward(x, mode)
    _run(x, log_temperature, mask, mode, directions, addresses(results), 1.0, 0, 0)
    return results


def forward_keeping(
    x: Tensor, log_temperature: Tensor, mask: Tensor | None, mode: str, directions: str
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Forward of all samples, with the gradients as bytes in a seventh result ``kept``."""
    results = allocate_forward(x, mode)
    kept = torch.empty(kept_bytes(x), dtype=torch.uint8, device=x.device)
    at = kept.data_ptr()
    _run(x, log_temperature, mask, mode, directions, addresses(results), 1.0, at, at + _place_of_slope(x))
    return *results, kept


def backward_kept(
    gradient_loss: Tensor,
    x: Tensor,
    log_temperature: Tensor,
    mask: Tensor | None,
    kept: Tensor,
    mode: str,
    directions: str,
) -> tuple[Tensor, Tensor]:
    """Backward of :func:`forward_keeping`."""
    upstream = gradient_loss.item()
    if not can_be_scaled(x.dtype, upstream):
        return gradients(x, log_temperature, mask, mode, directions, upstream)
    dtype, place = log_temperature.dtype, _place_of_slope(x)
    gradient_x = kept[: x.numel() * x.element_size()].view(x.dtype).view(x.shape)
    slope = kept[place : place + dtype.itemsize].view(dtype).view(())
    return gradient_x * upstream, slope * upstream
