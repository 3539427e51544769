"""The contrastive loss on CUDA: runs the path that shape, type and device choose."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from sleepfm_fast.ops import contrastive_chunked, contrastive_gemm, contrastive_mma, contrastive_small
from sleepfm_fast.ops.contrastive_regime import REGIMES, Regime, regime
from sleepfm_fast.ops.cuda_kernels import has_kernels
from sleepfm_fast.ops.process_settings import float32_factors

__all__ = ["VARIABLE", "backward", "chosen_regime", "forward", "path_of"]

# Environment variable that names a path to run instead, for benchmarks and tests.
VARIABLE = "SLEEPFM_CONTRASTIVE_REGIME"


def chosen_regime(x: Tensor, mode: str, precision: str) -> Regime:
    """Path that the loss of x takes, as :func:`path_of` has it."""
    M, N, D = x.shape
    return path_of((M, N, D), x.dtype, mode, precision, x.device)


def path_of(shape: tuple[int, int, int], dtype: torch.dtype, mode: str, precision: str, device: torch.device) -> Regime:
    """Path of a loss of ``[M, N, D]``: the one that ``SLEEPFM_CONTRASTIVE_REGIME`` names, else that of :func:`regime`.

    Raises
    ------
    ValueError
        If the variable names no path.
    """
    name = os.environ.get(VARIABLE)
    if name:
        for known in REGIMES:
            if name == known:
                return known
        raise ValueError(f"{VARIABLE} is {name!r}; choose one of {', '.join(REGIMES)}, or unset it.")
    M, N, D = shape
    capability = torch.cuda.get_device_capability(device)
    return regime(N, D, M, dtype, precision, capability, mode, kernels=has_kernels(device))


def _factors(precision: str) -> AbstractContextManager[None]:
    """Setting for products of x's own type by torch: "high" may use TF32 if the process allows it, "highest" never."""
    return float32_factors() if precision == "highest" else nullcontext()


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
    """Forward of the op on a CUDA device: loss, losses, correct, ranks, n_valid, state."""
    path = chosen_regime(x, mode, precision)
    if path == "small":
        return contrastive_small.forward(x, log_temperature, mask, mode, directions, precision, begin, end)
    if path == "mma":
        return contrastive_mma.forward(x, log_temperature, mask, mode, directions, precision, begin, end)
    if path == "gemm":
        return contrastive_gemm.forward(x, log_temperature, mask, mode, directions, precision, begin, end)
    with _factors(precision):
        return contrastive_chunked.forward(x, log_temperature, mask, mode, directions, begin, end)


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
    """Backward of the op on a CUDA device: gradients of x and of log_temperature.

    Every path can read the state that any other wrote, since it includes the cosines that sums are relative to.
    """
    arguments = (gradient_loss, x, log_temperature, mask, n_valid, state, mode, directions)
    path = chosen_regime(x, mode, precision)
    if path == "small":
        return contrastive_small.backward(*arguments, precision, begin, end)
    if path == "mma":
        return contrastive_mma.backward(*arguments, precision, begin, end)
    if path == "gemm":
        return contrastive_gemm.backward(*arguments, precision, begin, end)
    with _factors(precision):
        return contrastive_chunked.backward(*arguments, begin, end)
