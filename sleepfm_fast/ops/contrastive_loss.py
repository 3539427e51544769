"""Contrastive loss over modalities: normalisation, similarity softmax and backward in one compiled op.

The N x N similarity matrices are computed tile by tile and never stored; memory grows with N. Derivation and figures:
``docs/kernels.md``.
"""

from __future__ import annotations

from typing import Any, get_args

import torch
from torch import Tensor

from sleepfm_fast import _C
from sleepfm_fast.ops import contrastive_chunked
from sleepfm_fast.ops.registry import DTYPE_CODES, LIBRARY
from sleepfm_fast.reference.contrastive_loss import ContrastiveStatistics, Directions, Mode, problems

__all__ = ["ContrastiveStatistics", "Directions", "Mode", "contrastive_loss", "problems"]

MODES = get_args(Mode)
DIRECTIONS = get_args(Directions)
N_MODALITIES = range(2, 9)

# The leading arguments of the compiled functions, as in _C.pyi.
Leading = tuple[int, int, tuple[int, int, int], tuple[int, int], int, int, tuple[int, int], bool, bool, int, int]


def contrastive_loss(
    x: Tensor,
    log_temperature: Tensor,
    mode: Mode = "leave_one_out",
    *,
    mask: Tensor | None = None,
    directions: Directions = "both",
) -> tuple[Tensor, ContrastiveStatistics]:
    """Similarity softmax between modalities (Thapa et al. 2024, SleepFM, equations 1 and 2), fused.

    With unit rows ``e_i = x_i / max(|x_i|, 1e-12)`` and ``s = exp(log_temperature)``, each problem has the logits
    ``S_rc = s <a_r, b_c>``. Leave-one-out, problem i: ``a = e_i`` and ``b`` the mean of the other modalities' unit
    rows, not normalised again, with gradient through both sides. Pairwise, problem (i < j): ``a = e_i, b = e_j``. The
    loss is the cross-entropy of finding row r among the columns, and with ``directions="both"`` column c among the
    rows, averaged over all valid samples, directions and problems together.

    Parameters
    ----------
    x : Tensor
        ``[M, N, D]`` embeddings, not normalised; M modalities (2 to 8), N samples, D dimensions. float16, bfloat16 and
        float32 are computed in float32, float64 in float64. Any strides.
    log_temperature : Tensor
        0-d, floating point, on x's device; the logits' scale is its exponential.
    mode : {"leave_one_out", "pairwise"}
        Which problems.
    mask : Tensor, optional
        ``[M, N]`` bool, True where the sample has the modality; all True by default. A sample takes part in a problem
        where all that the problem compares is there (leave-one-out: the modality and at least one other; the mean is
        over the others present). Elsewhere it is neither row nor column, whatever x holds there is not read, and
        the gradient there is exactly 0.
    directions : {"both", "row"}
        ``"both"`` is the published code's symmetric loss, ``"row"`` the paper's equation. Statistics cover both.

    Returns
    -------
    loss : Tensor
        0-d, float32 (float64 for float64 x); 0 with zero gradients when no sample is valid, or N is 0.
    statistics : ContrastiveStatistics
        Per problem and direction; see there. They stay on the device and nothing waits for them.

    Raises
    ------
    TypeError, ValueError
        For arguments of the wrong type, dtype, device, shape or value.
    NotImplementedError
        When the gradient itself is to be differentiated.

    Notes
    -----
    On the CPU the same arguments give the same bits, for every number of threads. On CUDA the interim path of
    :mod:`sleepfm_fast.ops.contrastive_chunked` runs: torch operations over chunks of rows,
    linear memory, no kernel yet.
    """
    validate(x, log_temperature, mode, mask, directions)
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    results = _Loss.apply(x, log_temperature.to(dtype), mask, mode, directions)  # type: ignore[no-untyped-call]
    loss, losses, correct, ranks, n_valid = results
    return loss, ContrastiveStatistics(losses, correct, ranks, n_valid)


def validate(x: Tensor, log_temperature: Tensor, mode: str, mask: Tensor | None, directions: str) -> None:
    """Refuse what :func:`contrastive_loss` does not take, in a sentence."""
    if not isinstance(x, Tensor):
        raise TypeError(f"x is a {type(x).__name__}; contrastive_loss takes a tensor [M, N, D].")
    if x.ndim != 3:
        raise ValueError(
            f"x has shape {tuple(x.shape)}; contrastive_loss takes [M, N, D]: modalities, samples, dimensions."
        )
    if x.dtype not in DTYPE_CODES:
        raise TypeError(f"x is {x.dtype}; contrastive_loss takes float32, bfloat16, float16 or float64.")
    if x.device.type not in ("cpu", "cuda", "meta"):
        raise ValueError(f"x is on {x.device}; contrastive_loss runs on cpu and cuda. Move it there with x.to(...).")
    if x.layout != torch.strided:
        raise TypeError(f"x has the layout {x.layout}; contrastive_loss takes dense tensors: x.to_dense().")
    M, N, D = x.shape
    if M not in N_MODALITIES:
        raise ValueError(f"x has {M} modalities (shape {tuple(x.shape)}); contrastive_loss takes 2 to 8.")
    if D < 1:
        raise ValueError(f"x has shape {tuple(x.shape)}; contrastive_loss needs at least one dimension, D >= 1.")
    if not isinstance(log_temperature, Tensor):
        raise TypeError(
            f"log_temperature is a {type(log_temperature).__name__}; contrastive_loss takes a tensor, "
            "for example torch.tensor(0.0) or an nn.Parameter."
        )
    if log_temperature.ndim != 0 or not log_temperature.dtype.is_floating_point:
        raise ValueError(
            f"log_temperature has shape {tuple(log_temperature.shape)} and dtype {log_temperature.dtype}; "
            "contrastive_loss takes a floating-point tensor without dimensions, shape ()."
        )
    if log_temperature.device != x.device:
        raise ValueError(f"log_temperature is on {log_temperature.device}, x on {x.device}; move both to one device.")
    if mode not in MODES:
        raise ValueError(f"mode is {mode!r}; choose 'leave_one_out' or 'pairwise'.")
    if directions not in DIRECTIONS:
        raise ValueError(f"directions is {directions!r}; choose 'both' or 'row'.")
    if mask is None:
        return
    if not isinstance(mask, Tensor):
        raise TypeError(f"mask is a {type(mask).__name__}; contrastive_loss takes a bool tensor [M, N] or None.")
    if mask.dtype != torch.bool:
        raise TypeError(
            f"mask is {mask.dtype}; contrastive_loss takes bool, True where the modality is present: mask > 0."
        )
    if mask.shape != (M, N):
        raise ValueError(
            f"mask has shape {tuple(mask.shape)}; x with shape {tuple(x.shape)} needs [M, N] = ({M}, {N})."
        )
    if mask.device != x.device:
        raise ValueError(f"mask is on {mask.device}, x on {x.device}; move both to one device.")


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, log_temperature: Tensor, mask: Tensor | None, mode: str, directions: str
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        loss, losses, correct, ranks, n_valid, state = torch.ops.sleepfm_fast.contrastive_loss_forward(
            x, log_temperature, mask, mode, directions
        )
        ctx.save_for_backward(x, log_temperature, mask, n_valid, state)
        ctx.mode = mode
        ctx.directions = directions
        ctx.mark_non_differentiable(losses, correct, ranks, n_valid)
        ctx.set_materialize_grads(False)
        return loss, losses, correct, ranks, n_valid

    @staticmethod
    def backward(
        ctx: Any, gradient_loss: Tensor | None, *_: None
    ) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        if gradient_loss is None:
            return None, None, None, None, None
        x, log_temperature, mask, n_valid, state = ctx.saved_tensors
        arguments = (gradient_loss, x, log_temperature, mask, n_valid, state, ctx.mode, ctx.directions)
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # create_graph=True
            gradient_x, gradient_log_temperature = _Gradient.apply(*arguments)  # type: ignore[no-untyped-call]
        else:
            gradient_x, gradient_log_temperature = torch.ops.sleepfm_fast.contrastive_loss_backward(*arguments)
        return gradient_x, gradient_log_temperature, None, None, None


class _Gradient(torch.autograd.Function):
    """Stands where a second derivative would be asked for."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor]:
        gradient_x, gradient_log_temperature = torch.ops.sleepfm_fast.contrastive_loss_backward(*arguments)
        return gradient_x, gradient_log_temperature

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise NotImplementedError(
            "contrastive_loss has no second derivative. Use sleepfm_fast.reference.contrastive_loss, which is made of "
            "differentiable torch operations, where one is needed."
        )


# ---- registration ----------------------------------------------------------------------------------------------------

LIBRARY.define(  # type: ignore[no-untyped-call]
    "contrastive_loss_forward(Tensor x, Tensor log_temperature, Tensor? mask, str mode, str directions) -> "
    "(Tensor loss, Tensor losses, Tensor correct, Tensor ranks, Tensor n_valid, Tensor state)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
LIBRARY.define(  # type: ignore[no-untyped-call]
    "contrastive_loss_backward(Tensor gradient_loss, Tensor x, Tensor log_temperature, Tensor? mask, Tensor n_valid, "
    "Tensor state, str mode, str directions) -> (Tensor gradient_x, Tensor gradient_log_temperature)",
    tags=(torch.Tag.pt2_compliant_tag,),
)

STATE_ROWS = 7  # CONTRASTIVE_STATE_ROWS in csrc/params.h


def n_problems(n_modalities: int, mode: str) -> int:
    """P of :func:`problems`."""
    return n_modalities * (n_modalities - 1) // 2 if mode == "pairwise" else n_modalities


def allocate_forward(x: Tensor, mode: str) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Uninitialised results of forward: loss, losses, correct, ranks, n_valid, state."""
    P, N = n_problems(x.shape[0], mode), x.shape[1]
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    new = x.new_empty
    return (
        new((), dtype=dtype),
        new((P, 2), dtype=dtype),
        new((P, 2), dtype=torch.int64),
        new((P, 2, N), dtype=torch.int32),
        new((P,), dtype=torch.int64),
        new((P, STATE_ROWS, N), dtype=torch.float64),
    )


@torch.library.register_fake("sleepfm_fast::contrastive_loss_forward", lib=LIBRARY)  # type: ignore[untyped-decorator]
def _fake_forward(
    x: Tensor, log_temperature: Tensor, mask: Tensor | None, mode: str, directions: str
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    return allocate_forward(x, mode)


@torch.library.register_fake("sleepfm_fast::contrastive_loss_backward", lib=LIBRARY)  # type: ignore[untyped-decorator]
def _fake_backward(
    gradient_loss: Tensor,
    x: Tensor,
    log_temperature: Tensor,
    mask: Tensor | None,
    n_valid: Tensor,
    state: Tensor,
    mode: str,
    directions: str,
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x, memory_format=torch.contiguous_format), torch.empty_like(log_temperature)


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


def _forward_cpu(
    x: Tensor, log_temperature: Tensor, mask: Tensor | None, mode: str, directions: str
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
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


def _backward_cpu(
    gradient_loss: Tensor,
    x: Tensor,
    log_temperature: Tensor,
    mask: Tensor | None,
    n_valid: Tensor,
    state: Tensor,
    mode: str,
    directions: str,
) -> tuple[Tensor, Tensor]:
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


LIBRARY.impl("contrastive_loss_forward", _forward_cpu, "CPU")  # type: ignore[no-untyped-call]
LIBRARY.impl("contrastive_loss_backward", _backward_cpu, "CPU")  # type: ignore[no-untyped-call]
LIBRARY.impl("contrastive_loss_forward", contrastive_chunked.forward, "CUDA")  # type: ignore[no-untyped-call]
LIBRARY.impl("contrastive_loss_backward", contrastive_chunked.backward, "CUDA")  # type: ignore[no-untyped-call]
