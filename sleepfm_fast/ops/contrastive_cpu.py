"""CPU implementation of the contrastive loss: allocates, and passes addresses to the compiled kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from sleepfm_fast import _C
from sleepfm_fast.ops import contrastive_chunked
from sleepfm_fast.ops.contrastive_results import allocate_forward
from sleepfm_fast.ops.registry import DTYPE_CODES

__all__ = ["backward", "forward", "workspace_bytes"]

# The leading arguments of the compiled functions, as in _C.pyi.
Leading = tuple[int, int, tuple[int, int, int], tuple[int, int], int, int, tuple[int, int], bool, bool, int, int]


def workspace_bytes(x: Tensor, mode: str, *, backward: bool, n_threads: int | None = None) -> int:
    """Bytes of scratch memory that the CPU op takes for this x, by default with torch's number of threads."""
    M, N, D = x.shape
    n_threads = torch.get_num_threads() if n_threads is None else n_threads
    return _C.contrastive_workspace_bytes(M, N, D, mode == "pairwise", x.dtype == torch.float64, backward, n_threads)


def _arguments(
    x: Tensor, log_temperature: Tensor, mask: Tensor | None, mode: str, directions: str, backward: bool
) -> tuple[Leading, tuple[Tensor, ...]]:
    """Leading arguments of the compiled functions, and the tensors that must outlive the call."""
    if x.stride(2) != 1:
        x = x.contiguous()
    M, N, D = x.shape
    n_threads = torch.get_num_threads()
    pairwise = mode == "pairwise"
    n_bytes = _C.contrastive_workspace_bytes(M, N, D, pairwise, x.dtype == torch.float64, backward, n_threads)
    workspace = torch.empty(n_bytes, dtype=torch.uint8, device="cpu")
    arguments: Leading = (
        x.data_ptr(),
        DTYPE_CODES[x.dtype],
        (M, N, D),
        (x.stride(0), x.stride(1)),
        log_temperature.data_ptr(),
        0 if mask is None else mask.data_ptr(),
        (0, 0) if mask is None else (mask.stride(0), mask.stride(1)),
        pairwise,
        directions == "both",
        n_threads,
        workspace.data_ptr(),
    )
    return arguments, (x, workspace)


def forward(
    x: Tensor,
    log_temperature: Tensor,
    mask: Tensor | None,
    mode: str,
    directions: str,
    precision: str,
    begin: int,
    end: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Forward of the op on the CPU: loss, losses, correct, ranks, n_valid, state."""
    if (begin, end) != (0, x.shape[1]):
        return contrastive_chunked.forward(x, log_temperature, mask, mode, directions, begin, end)
    arguments, _alive = _arguments(x, log_temperature, mask, mode, directions, backward=False)
    results = allocate_forward(x, mode)
    loss, losses, correct, ranks, n_valid, state = results
    _C.contrastive_forward(
        *arguments,
        loss.data_ptr(),
        losses.data_ptr(),
        correct.data_ptr(),
        ranks.data_ptr(),
        n_valid.data_ptr(),
        state.data_ptr(),
    )
    return results


def backward(
    gradient_loss: Tensor,
    x: Tensor,
    log_temperature: Tensor,
    mask: Tensor | None,
    n_valid: Tensor,
    state: Tensor,
    mode: str,
    directions: str,
    precision: str,
    begin: int,
    end: int,
) -> tuple[Tensor, Tensor]:
    """Backward of the op on the CPU: gradients of x and of log_temperature."""
    if (begin, end) != (0, x.shape[1]):
        return contrastive_chunked.backward(
            gradient_loss, x, log_temperature, mask, n_valid, state, mode, directions, begin, end
        )
    arguments, _alive = _arguments(x, log_temperature, mask, mode, directions, backward=True)
    gradient_x = torch.empty_like(x, memory_format=torch.contiguous_format)
    gradient_log_temperature = torch.empty_like(log_temperature)
    n_valid, state = n_valid.contiguous(), state.contiguous()
    _C.contrastive_backward(
        *arguments,
        gradient_loss.data_ptr(),
        n_valid.data_ptr(),
        state.data_ptr(),
        gradient_x.data_ptr(),
        gradient_log_temperature.data_ptr(),
    )
    return gradient_x, gradient_log_temperature
