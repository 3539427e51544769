"""The contrastive loss by the fused tensor-core kernels: allocates memory and passes its addresses to them."""

from __future__ import annotations

import torch
from torch import Tensor

from sleepfm_fast import _C
from sleepfm_fast.ops.contrastive_results import allocate_forward
from sleepfm_fast.ops.registry import DTYPE_CODES

__all__ = ["backward", "forward", "workspace_bytes"]

# Where the compiled functions run (split, begin, end, device, stream), and their leading arguments, as in _C.pyi.
Where = tuple[bool, int, int, int, int]
Leading = tuple[int, int, tuple[int, int, int], tuple[int, int], int, int, tuple[int, int], bool, bool, Where, int]


def workspace_bytes(
    x: Tensor, mode: str, precision: str, *, backward: bool, samples: tuple[int, int] | None = None
) -> int:
    """Size in bytes of the scratch memory on x's device that the op takes for this x."""
    M, N, D = x.shape
    begin, end = (0, N) if samples is None else samples
    where = (precision == "highest", begin, end, _index(x), 0)
    return _C.contrastive_cuda_workspace_bytes((M, N, D), mode == "pairwise", backward, where)


def _index(x: Tensor) -> int:
    return torch.cuda.current_device() if x.device.index is None else x.device.index


def _arguments(
    x: Tensor,
    log_temperature: Tensor,
    mask: Tensor | None,
    mode: str,
    directions: str,
    precision: str,
    begin: int,
    end: int,
    backward: bool,
) -> tuple[Leading, tuple[Tensor, ...]]:
    """Return the leading arguments of the compiled functions, and the tensors that must stay alive during the call."""
    if x.stride(2) != 1:
        x = x.contiguous()
    M, N, D = x.shape
    n_bytes = workspace_bytes(x, mode, precision, backward=backward, samples=(begin, end))
    # Freed when the call returns, perhaps before the kernels have run. That is safe, since the caching allocator hands
    # it only to later work on the same stream.
    workspace = torch.empty(n_bytes, dtype=torch.uint8, device=x.device)
    stream = torch.cuda.current_stream(x.device).cuda_stream
    arguments: Leading = (
        x.data_ptr(),
        DTYPE_CODES[x.dtype],
        (M, N, D),
        (x.stride(0), x.stride(1)),
        log_temperature.data_ptr(),
        0 if mask is None else mask.data_ptr(),
        (0, 0) if mask is None else (mask.stride(0), mask.stride(1)),
        mode == "pairwise",
        directions == "both",
        (precision == "highest", begin, end, _index(x), stream),
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
    """Forward of the op: loss, losses, correct, ranks, n_valid, state. x has at least one sample."""
    arguments, _alive = _arguments(x, log_temperature, mask, mode, directions, precision, begin, end, backward=False)
    results = allocate_forward(x, mode)
    loss, losses, correct, ranks, n_valid, state = results
    _C.contrastive_cuda_forward(
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
    """Backward of the op: gradients of x and of log_temperature. x has at least one sample."""
    arguments, _alive = _arguments(x, log_temperature, mask, mode, directions, precision, begin, end, backward=True)
    allocate = torch.empty_like if (begin, end) == (0, x.shape[1]) else torch.zeros_like
    gradient_x = allocate(x, memory_format=torch.contiguous_format)
    gradient_log_temperature = torch.empty_like(log_temperature)
    n_valid, state = n_valid.contiguous(), state.contiguous()
    _C.contrastive_cuda_backward(
        *arguments,
        gradient_loss.data_ptr(),
        n_valid.data_ptr(),
        state.data_ptr(),
        gradient_x.data_ptr(),
        gradient_log_temperature.data_ptr(),
    )
    return gradient_x, gradient_log_temperature
