"""The contrastive loss on the CPU: allocates memory and passes its addresses to the compiled kernels.

Small batches go to :mod:`sleepfm_fast.ops.contrastive_joint`. For larger ones, if a gradient is wanted and
``kept_bytes`` allows it, forward keeps the unit rows and all cosines for backward, which then computes two products
instead of three.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor

from sleepfm_fast import _C
from sleepfm_fast.ops import contrastive_joint, pages
from sleepfm_fast.ops.arguments import refuse_unlike
from sleepfm_fast.ops.contrastive_arguments import check_kept, check_loss
from sleepfm_fast.ops.contrastive_results import allocate_forward, n_problems
from sleepfm_fast.ops.dispatch import is_plain
from sleepfm_fast.ops.registry import DTYPE_CODES, LIBRARY

__all__ = [
    "KEEP_AT_MOST_BYTES",
    "backward",
    "backward_kept",
    "forward",
    "forward_keeping",
    "is_direct",
    "keep_at_most",
    "kept_bytes",
    "workspace_bytes",
]

KEEP_AT_MOST_BYTES = 256 << 20
"""With M = 3, D = 512 and float32, N up to 4,100."""

INSTRUCTION_SETS = ("", "portable", "avx2", "avx512", "avx512_bf16", "amx")

BYTE = torch.empty(0, dtype=torch.uint8, device="cpu")

# The leading arguments of the compiled forward and backward, as in _C.pyi.
Leading = tuple[int, int, tuple[int, int, int], tuple[int, int], int, int, tuple[int, int], bool, bool, int, int]


def keep_at_most(n_bytes: int) -> int:
    """Let :func:`~sleepfm_fast.ops.contrastive_loss` on the CPU keep more of forward for backward, or less.

    Forward makes the cosines of all pairs of clips, and backward needs them again. Where they fit in these bytes they
    are kept, else backward makes them anew: memory is then linear in the number of clips, and a step takes longer by a
    product in four. The results are the same to the bit. Small batches, of which the gradients themselves are kept,
    do not need it. Call it before ``torch.compile`` sees the loss, which fixes the sizes of its tensors.

    Parameters
    ----------
    n_bytes : int
        0 keeps nothing. 256 MiB, as from the start, suffice for three modalities of 4,100 clips; the need grows with
        the square of the clips.

    Returns
    -------
    int
        The limit before.
    """
    global KEEP_AT_MOST_BYTES
    if type(n_bytes) is not int:
        raise TypeError(f"keep_at_most: n_bytes is {n_bytes!r}; expected an int, a number of bytes.")
    if n_bytes < 0:
        raise ValueError(f"keep_at_most: n_bytes is {n_bytes}; expected 0 or more.")
    before, KEEP_AT_MOST_BYTES = KEEP_AT_MOST_BYTES, n_bytes
    return before


def kept_bytes(x: Tensor, mode: str) -> int:
    """Size in bytes of what forward keeps for backward; 0 where it would exceed ``KEEP_AT_MOST_BYTES``."""
    n_bytes = _needed_bytes(x, mode)
    return n_bytes if n_bytes <= KEEP_AT_MOST_BYTES else 0


def _needed_bytes(x: Tensor, mode: str) -> int:
    """Size in bytes of what forward would keep for backward."""
    M, N, D = x.shape
    item = 8 if x.dtype == torch.float64 else 4
    # An upper bound of contrastive_bytes(...).kept for every instruction set, by operations that symbolic sizes
    # support.
    samples, in_panels, dimensions = (N + 15) // 16 * 16, N + 63, (D + 63) // 64 * 64
    P = n_problems(M, mode)
    # Numbers, or three bytes each, as both factors of a product.
    operands = (M * max(item, 6) if mode == "pairwise" else 2 * M * item) * in_panels * dimensions
    tiles = P * samples * (in_panels + 192)
    return operands + (tiles + P * samples) * item + (M + 1) * samples * 8 + 6 * 64 + 1  # written_by's


def workspace_bytes(
    x: Tensor, mode: str, *, backward: bool, n_threads: int | None = None, kept: bool | None = None
) -> int:
    """Size in bytes of the scratch memory that the CPU op takes for this x, without what forward keeps for backward.

    By default for torch's number of threads, and for a call whose gradient is wanted.
    """
    M, N, D = x.shape
    n_threads = torch.get_num_threads() if n_threads is None else n_threads
    kept = kept_bytes(x, mode) > 0 if kept is None else kept
    return _C.contrastive_bytes(M, N, D, mode == "pairwise", x.dtype == torch.float64, backward, kept, n_threads)[0]


def is_direct(x: Tensor, *others: Tensor | None) -> bool:
    """Whether the functions here may be called directly with these tensors, which are on one device.

    Not while torch's profiler runs, which lists what passes through the dispatcher.
    """
    return x.device.type == "cpu" and is_plain(x, *others) and not torch._C._autograd._profiler_enabled()


def _arguments(
    x: Tensor, log_temperature: Tensor, mask: Tensor | None, mode: str, directions: str, backward: bool, kept: bool
) -> tuple[Leading, tuple[Tensor, ...]]:
    """Return the leading arguments of the compiled functions, and the tensors that must stay alive during the call."""
    if x.stride(2) != 1:
        x = x.contiguous()
    n_threads = torch.get_num_threads()
    n_bytes = workspace_bytes(x, mode, backward=backward, n_threads=n_threads, kept=kept)
    workspace = pages.empty(BYTE, (n_bytes,))
    M, N, D = x.shape
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
        n_threads,
        workspace.data_ptr(),
    )
    return arguments, (x, workspace)


def _forward(
    x: Tensor,
    log_temperature: Tensor,
    mask: Tensor | None,
    mode: str,
    directions: str,
    begin: int,
    end: int,
    kept: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    arguments, _alive = _arguments(x, log_temperature, mask, mode, directions, False, kept is not None)
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
        (begin, end),
        0 if kept is None else kept.data_ptr(),
    )
    return results


def _backward(
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
    kept: Tensor | None,
) -> tuple[Tensor, Tensor]:
    arguments, _alive = _arguments(x, log_temperature, mask, mode, directions, True, kept is not None)
    gradient_x = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    gradient_log_temperature = torch.empty((), dtype=log_temperature.dtype, device=x.device)
    n_valid, state = n_valid.contiguous(), state.contiguous()
    _C.contrastive_backward(
        *arguments,
        gradient_loss.data_ptr(),
        n_valid.data_ptr(),
        state.data_ptr(),
        gradient_x.data_ptr(),
        gradient_log_temperature.data_ptr(),
        (begin, end),
        0 if kept is None else kept.data_ptr(),
    )
    return gradient_x, gradient_log_temperature


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
    if (begin, end) == (0, x.shape[1]) and contrastive_joint.is_joint(x.shape, mode):
        return contrastive_joint.forward(x, log_temperature, mask, mode, directions)
    return _forward(x, log_temperature, mask, mode, directions, begin, end, None)


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
    return _backward(gradient_loss, x, log_temperature, mask, n_valid, state, mode, directions, begin, end, None)


# ---- the pair of ops of a training step: all samples, and what forward leaves to backward ----------------------------


def forward_keeping(
    x: Tensor, log_temperature: Tensor, mask: Tensor | None, mode: str, directions: str
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Forward of all samples, with a seventh result ``kept`` for :func:`backward_kept`; empty above the budget."""
    if contrastive_joint.is_joint(x.shape, mode):
        return contrastive_joint.forward_keeping(x, log_temperature, mask, mode, directions)
    kept = pages.empty(BYTE, (kept_bytes(x, mode),))
    results = _forward(x, log_temperature, mask, mode, directions, 0, x.shape[1], kept if kept.numel() else None)
    kept[-1:] = written_by()
    return *results, kept


def written_by() -> int:
    """Return what tells one choice of ``SLEEPFM_CPU`` from another; each has a layout of its own of what is kept."""
    chosen = os.environ.get("SLEEPFM_CPU", "")
    return INSTRUCTION_SETS.index(chosen) if chosen in INSTRUCTION_SETS else 255


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
    """Backward of :func:`forward_keeping`."""
    # Hooks on saved tensors may have replaced what forward kept.
    op, is_joint = "contrastive_loss_backward_kept", contrastive_joint.is_joint(x.shape, mode)
    # The limit may have changed since forward.
    n_bytes = contrastive_joint.kept_bytes(x) if is_joint else _needed_bytes(x, mode) if kept.numel() else 0
    check_kept(op, gradient_loss, x, n_valid, state, mode)
    refuse_unlike(op, x.device, [("kept", kept, (n_bytes,), torch.uint8)])
    if is_joint:
        return contrastive_joint.backward_kept(gradient_loss, x, log_temperature, mask, kept, mode, directions)
    if kept.data_ptr() % 64 != 0:  # a hook on saved tensors has moved it, and the kernels need alignment
        kept = kept.clone()
    arguments = (gradient_loss, x, log_temperature, mask, n_valid, state, mode, directions, 0, x.shape[1])
    is_ours = kept.numel() > 0 and int(kept[-1]) == written_by()  # else backward makes it anew
    return _backward(*arguments, kept if is_ours else None)


LIBRARY.define(
    "contrastive_loss_forward_keeping(Tensor x, Tensor log_temperature, Tensor? mask, str mode, str directions) -> "
    "(Tensor loss, Tensor losses, Tensor correct, Tensor ranks, Tensor n_valid, Tensor state, Tensor kept)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
LIBRARY.define(
    "contrastive_loss_backward_kept(Tensor gradient_loss, Tensor x, Tensor log_temperature, Tensor? mask, "
    "Tensor n_valid, Tensor state, Tensor kept, str mode, str directions) -> "
    "(Tensor gradient_x, Tensor gradient_log_temperature)",
    tags=(torch.Tag.pt2_compliant_tag,),
)


@torch.library.register_fake("sleepfm_fast::contrastive_loss_forward_keeping", lib=LIBRARY)  # type: ignore[untyped-decorator]
def _fake_forward_keeping(
    x: Tensor, log_temperature: Tensor, mask: Tensor | None, mode: str, directions: str
) -> tuple[Tensor, ...]:
    is_joint = contrastive_joint.is_joint(x.shape, mode)
    n_bytes = contrastive_joint.kept_bytes(x) if is_joint else kept_bytes(x, mode)
    return *allocate_forward(x, mode), x.new_empty(n_bytes, dtype=torch.uint8)


@torch.library.register_fake("sleepfm_fast::contrastive_loss_backward_kept", lib=LIBRARY)  # type: ignore[untyped-decorator]
def _fake_backward_kept(
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
    return torch.empty_like(x, memory_format=torch.contiguous_format), torch.empty_like(log_temperature)


def _checked_forward_keeping(*arguments: Any) -> tuple[Tensor, ...]:
    check_loss("contrastive_loss_forward_keeping", *arguments)
    return forward_keeping(*arguments)


def _checked_backward_kept(*arguments: Any) -> tuple[Tensor, Tensor]:
    _, x, log_temperature, mask, _, _, _, mode, directions = arguments
    check_loss("contrastive_loss_backward_kept", x, log_temperature, mask, mode, directions)
    return backward_kept(*arguments)


LIBRARY.impl("contrastive_loss_forward_keeping", _checked_forward_keeping, "CPU")
LIBRARY.impl("contrastive_loss_backward_kept", _checked_backward_kept, "CPU")
