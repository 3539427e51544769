"""The choice of the contrastive loss's implementation on a CUDA device."""

from __future__ import annotations

from typing import Literal, get_args

import torch

from sleepfm_fast.ops import contrastive_small
from sleepfm_fast.ops.contrastive_results import n_problems

__all__ = ["REGIMES", "Regime", "regime"]

Regime = Literal["small", "mma", "gemm", "chunked"]
REGIMES: tuple[Regime, ...] = get_args(Regime)

# All bounds follow from the arithmetic in docs/kernels/contrastive-loss-cuda.md ("Which path runs"). None has been
# measured on a device yet.

# Up to this many multiply-adds in the three products, 3 P N^2 D, one launch without tensor cores takes no longer than
# the overhead of the tensor-core path's launches alone. It keeps all similarities in memory, hence the bound on N.
SMALL_WORK = contrastive_small.MOST_MULTIPLY_ADDS
SMALL_SAMPLES = contrastive_small.LARGEST_N
# The tensor-core path pads D to 64, 128, 256 or this (contrastive_largest_dim in csrc/cuda/contrastive.h).
MMA_DIM = 512
MMA_CAPABILITY = (8, 0)
# From capability 9.0 on, the library's products run at about twice the rate that mma.sync reaches. Above this D that
# pays for writing the similarities to memory and reading them, and from this N on for the greater number of launches.
GEMM_CAPABILITY = (9, 0)
GEMM_DIM = 128
GEMM_SAMPLES = 3072
# Where a block may have only 99 KB of shared memory, tiles of split operands with more dimensions than this are so
# small that most of the block's warps have no work.
SMALL_SHARED_CAPABILITIES = ((8, 6), (8, 9), (12, 0), (12, 1))
SMALL_SHARED_SPLIT_DIM = 256


def regime(
    n_samples: int,
    n_dim: int,
    n_modalities: int,
    dtype: torch.dtype,
    precision: str,
    compute_capability: tuple[int, int],
    mode: str = "leave_one_out",
    *,
    kernels: bool = True,
) -> Regime:
    """Choose how the loss is computed; the same arguments always give the same answer.

    Parameters
    ----------
    n_samples, n_dim, n_modalities : int
        N, D and M of x.
    dtype : torch.dtype
        Element type of x.
    precision : {"highest", "high"}
        As in :func:`sleepfm_fast.ops.contrastive_loss`.
    compute_capability : tuple of int
        The device's, as :func:`torch.cuda.get_device_capability` returns it.
    mode : {"leave_one_out", "pairwise"}
        Decides the number of problems.
    kernels : bool
        Whether this build has CUDA kernels for the device.

    Returns
    -------
    {"small", "mma", "gemm", "chunked"}
        ``small``: one launch without tensor cores. ``mma``: fused tiles on tensor cores. ``gemm``: the library's matrix
        products with fused kernels between them. ``chunked``: torch operations, for what no kernel covers: float64, no
        samples, devices older than capability 8.0, and devices that this build has no kernels for.
    """
    if not kernels or dtype == torch.float64 or n_samples == 0 or compute_capability < MMA_CAPABILITY:
        return "chunked"
    work = 3 * n_problems(n_modalities, mode) * n_samples**2 * n_dim
    if work <= SMALL_WORK and n_samples <= SMALL_SAMPLES:
        return "small"
    if n_dim > MMA_DIM:
        return "gemm"
    if compute_capability in SMALL_SHARED_CAPABILITIES:
        split = precision == "highest" and n_dim > SMALL_SHARED_SPLIT_DIM
        return "gemm" if split and n_samples >= GEMM_SAMPLES else "mma"
    if compute_capability < GEMM_CAPABILITY or n_dim <= GEMM_DIM:
        return "mma"
    return "gemm" if n_samples >= GEMM_SAMPLES else "mma"
