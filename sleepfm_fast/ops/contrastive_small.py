"""The contrastive loss of a small batch on CUDA in one launch, together with its gradients where they are wanted."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sleepfm_fast import _C
from sleepfm_fast.ops.contrastive_results import allocate_forward
from sleepfm_fast.ops.registry import DTYPE_CODES

__all__ = ["LARGEST_N", "MOST_MULTIPLY_ADDS", "backward", "backward_kept", "forward", "forward_keeping"]

# The multiply-adds (of all three products) that float32 units do in about 35 microseconds on an H200, which is what the
# launches of the other paths take: 132 multiprocessors x 128 a clock x 1.7 GHz x 40 % of that peak. N = 295 for three
# modalities of 512 dimensions. Computed, not measured.
MOST_MULTIPLY_ADDS = 400_000_000
LARGEST_N = 1024  # 2 P N^2 cosines are in memory

# State of the grid barrier for each (device, stream). Launches on one stream do not overlap, and each leaves the state
# as the next one needs it.
_barriers: dict[tuple[int, int], Tensor] = {}
STREAM_OF_THREAD = 2  # cudaStreamPerThread: the same number means another stream in each thread, and those do overlap


def _kept_barrier(device: torch.device, stream: int) -> Tensor:
    """The barrier state that launches on this stream share, made once; for calls that no CUDA graph records.

    A graph may be replayed while anything else runs, so that a launch inside one gets a state of its own, zeroed within
    the graph. So does every launch of a registered op: torch.compile may run it once in the memory pool of a graph that
    it is about to record, where it refuses memory that outlives the call (``torch._inductor.cudagraph_trees``).
    """
    if stream == STREAM_OF_THREAD or torch.cuda.is_current_stream_capturing():
        return _fresh_barrier(device)
    key = (device.index, stream)
    if key not in _barriers:
        _barriers[key] = _fresh_barrier(device)
    return _barriers[key]


def _fresh_barrier(device: torch.device) -> Tensor:
    return torch.zeros(1, dtype=torch.int32, device=device)


def _launch(
    x: Tensor,
    log_temperature: Tensor,
    mask: Tensor | None,
    mode: str,
    directions: str,
    begin: int,
    end: int,
    *,
    given_state: bool,
    results: tuple[Tensor | None, ...],
    gradient_loss: Tensor | None = None,
    gradients: tuple[Tensor, Tensor] | None = None,
    keeps_barrier: bool = False,
) -> None:
    if x.stride(2) != 1:
        x = x.contiguous()
    M, N, D = x.shape
    pairwise = mode == "pairwise"
    n_bytes = _C.contrastive_small_workspace_bytes(M, N, D, pairwise, gradients is not None)
    workspace = torch.empty(n_bytes, dtype=torch.uint8, device=x.device)
    stream = torch.cuda.current_stream(x.device).cuda_stream
    barrier = _kept_barrier(x.device, stream) if keeps_barrier else _fresh_barrier(x.device)
    _C.contrastive_small(
        x.data_ptr(),
        DTYPE_CODES[x.dtype],
        (M, N, D),
        (x.stride(0), x.stride(1)),
        log_temperature.data_ptr(),
        0 if mask is None else mask.data_ptr(),
        (0, 0) if mask is None else (mask.stride(0), mask.stride(1)),
        pairwise,
        directions == "both",
        workspace.data_ptr(),
        (begin, end),
        given_state,
        tuple(0 if result is None else result.data_ptr() for result in results),
        0 if gradient_loss is None else gradient_loss.data_ptr(),
        0 if gradients is None else gradients[0].data_ptr(),
        0 if gradients is None else DTYPE_CODES[gradients[0].dtype],
        0 if gradients is None else gradients[1].data_ptr(),
        barrier.data_ptr(),
        x.device.index,
        stream,
    )


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
    """Forward of the op on a CUDA device: loss, losses, correct, ranks, n_valid, state.

    ``precision`` has no effect: products are float32 throughout.
    """
    results = allocate_forward(x, mode)
    _launch(x, log_temperature, mask, mode, directions, begin, end, given_state=False, results=results)
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
    """Backward of the op on a CUDA device, from the state: gradients of x and of log_temperature."""
    gradients = torch.empty_like(x, memory_format=torch.contiguous_format), torch.empty_like(log_temperature)
    results: Any = (None, None, None, None, n_valid.contiguous(), state.contiguous())
    _launch(
        *(x, log_temperature, mask, mode, directions, begin, end),
        given_state=True,
        results=results,
        gradient_loss=gradient_loss,
        gradients=gradients,
    )
    return gradients


def forward_keeping(
    x: Tensor, log_temperature: Tensor, mask: Tensor | None, mode: str, directions: str
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Forward of all samples and, in the same launch, the gradients for an upstream gradient of 1.

    The seventh result ``kept`` has them for :func:`backward_kept`: float32 ``[M N D + 1]``, x's and then the
    temperature's, as bytes. Not to be traced by torch.compile: see :func:`_kept_barrier`.
    """
    results = allocate_forward(x, mode)
    kept = torch.empty(x.numel() + 1, dtype=torch.float32, device=x.device)
    gradients = kept[:-1], kept[-1]
    _launch(
        *(x, log_temperature, mask, mode, directions, 0, x.shape[1]),
        given_state=False,
        results=results,
        gradients=gradients,
        keeps_barrier=True,
    )
    return *results, kept.view(torch.uint8)


def backward_kept(
    gradient_loss: Tensor,
    x: Tensor,
    log_temperature: Tensor,
    mask: Tensor | None,
    n_valid: Tensor,
    state: Tensor,
    kept: Tensor,
    mode: str,
    directions: str,
) -> tuple[Tensor, Tensor]:
    """Backward of :func:`forward_keeping`: the kept gradients times the loss's gradient, on the device."""
    gradients = kept.view(torch.float32)
    gradient_x = (gradients[:-1] * gradient_loss).view(x.shape)
    return gradient_x.to(x.dtype), gradients[-1] * gradient_loss
