"""Says which implementation of each operation a command runs, before it runs: a slow one is not to go unnoticed."""

from __future__ import annotations

import torch
from torch import nn

from sleepfm_fast import build_info
from sleepfm_fast.encoder import EfficientNet1d
from sleepfm_fast.model.precision import Precision
from sleepfm_fast.ops.contrastive_cuda import path_of
from sleepfm_fast.ops.cuda_kernels import has_kernels
from sleepfm_fast.plurals import counted

__all__ = ["encoder_backend", "filter_backend", "loss_backend", "threads"]

LOSS_PATHS = {
    "small": "one CUDA kernel",
    "mma": "CUDA kernels on tensor cores",
    "gemm": "CUDA kernels around cuBLAS",
    "chunked": "torch operations, in chunks",
}
WITHOUT_KERNELS = "this build has no kernels for this GPU"


def compiled() -> str:
    """C++ and the instruction set in use."""
    return f"C++ ({build_info()['cpu_instruction_set_in_use']})"


def filter_backend(device: torch.device) -> str:
    """Say what filters and resamples the clips."""
    if device.type == "cpu":
        return f"filter: {compiled()}"
    return "filter: one CUDA kernel" if has_kernels(device) else f"filter: {compiled()} on the CPU, {WITHOUT_KERNELS}"


def encoder_backend(
    encoder: nn.Module,
    device: torch.device,
    precision: Precision,
    *,
    through_compile: bool = False,
    fused_blocks: bool = False,
) -> str:
    """Say what runs the encoders, of which ``encoder`` is one."""
    if fused_blocks:
        how = "fused CUDA blocks"
    elif through_compile:
        how = "torch.compile"
    elif device.type == "cpu" and isinstance(encoder, EfficientNet1d):
        how = f"fused {compiled()} blocks"
    else:
        how = "torch"
    slow = ""
    if device.type == "cpu" and precision == "bfloat16" and not build_info()["cpu_multiplies_bfloat16"]:
        slow = ", which this processor does not multiply by itself: not faster than float32"
    return f"encoders: {how} in {precision}{slow}"


def loss_backend(device: torch.device, n_clips: int, dim: int, n_modalities: int, mode: str) -> str:
    """Say what computes the contrastive loss of a batch."""
    if device.type == "cpu":
        return f"loss: {compiled()}"
    path = path_of((n_modalities, n_clips, dim), torch.float32, mode, "highest", device)
    reason = f", {WITHOUT_KERNELS}" if path == "chunked" and not has_kernels(device) else ""
    return f"loss: {LOSS_PATHS[path]} ({path}){reason}"


def threads() -> str:
    """Say how many threads the CPU's operations have."""
    return counted(torch.get_num_threads(), "thread")
