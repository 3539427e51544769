"""The tensor-core path of the contrastive loss, run by the emulator of tests/cuda_on_cpu on torch tensors."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch
from emulated_cuda import Counts, Memory, Run, compile_kernels
from torch import Tensor

from sleepfm_fast.ops.contrastive_results import allocate_forward
from sleepfm_fast.ops.registry import DTYPE_CODES

SOURCE = "contrastive_tiles.cpp"
# The most shared memory of a block, by compute capability.
SHARED_BYTES = {"8.0": 163 * 1024, "8.6": 99 * 1024, "9.0": 227 * 1024}


class _Problem(ctypes.Structure):
    """``Problem`` of tests/cuda_on_cpu/contrastive_tiles.cpp."""

    _fields_ = [
        ("x", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("dtype", "stride_modality", "stride_sample", "M", "N", "D")),
        ("log_temperature", ctypes.c_void_p),
        ("mask", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("mask_stride_modality", "mask_stride_sample")),
        *((name, ctypes.c_int64) for name in ("pairwise", "both_directions")),
        ("workspace", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("split", "begin", "end", "n_multiprocessors", "shared_bytes")),
        *((name, ctypes.c_int64) for name in ("chunk_bytes", "planted")),
    ]


@dataclass(frozen=True)
class Device:
    """What the kernels ask of a device; few multiprocessors make a small problem be cut as a large one is.

    ``planted``: the launch that a `Run`'s faults are planted in, and whose barriers and waits are counted.
    """

    n_multiprocessors: int = 4
    capability: str = "8.0"
    chunk_bytes: int = 256 << 20
    planted: int = -1


DEVICE, RUN = Device(), Run()


def _problem(
    memory: Memory,
    x: Tensor,
    log_temperature: Tensor,
    mask: Tensor | None,
    mode: str,
    directions: str,
    precision: str,
    samples: tuple[int, int] | None,
    device: Device,
    bytes_function: str,
) -> _Problem:
    M, N, D = x.shape
    begin, end = (0, N) if samples is None else samples
    stored = torch.empty(x.untyped_storage().nbytes() // x.element_size(), dtype=x.dtype)
    stored.set_(x.untyped_storage())  # type: ignore[no-untyped-call]
    base = memory.read("x", stored).value or 0
    given = _Problem()
    given.x = base + x.storage_offset() * x.element_size()
    given.dtype = DTYPE_CODES[x.dtype]
    given.stride_modality, given.stride_sample = x.stride(0), x.stride(1)
    given.M, given.N, given.D = M, N, D
    given.log_temperature = memory.read("log_temperature", log_temperature.float()).value
    if mask is not None:
        given.mask = memory.read("mask", mask).value
        given.mask_stride_modality, given.mask_stride_sample = mask.contiguous().stride()
    given.pairwise, given.both_directions = mode == "pairwise", directions == "both"
    given.split, given.begin, given.end = precision == "highest", begin, end
    given.n_multiprocessors, given.shared_bytes = device.n_multiprocessors, SHARED_BYTES[device.capability]
    given.chunk_bytes, given.planted = device.chunk_bytes, device.planted
    function = getattr(memory.library, bytes_function)
    function.restype = ctypes.c_int64
    workspace = torch.empty(function(ctypes.byref(given)), dtype=torch.uint8)
    given.workspace = memory.write("workspace", workspace, alignment=256).value
    return given


Forward = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def forward(
    x: Tensor,
    log_temperature: Tensor,
    mask: Tensor | None = None,
    mode: str = "leave_one_out",
    directions: str = "both",
    precision: str = "highest",
    samples: tuple[int, int] | None = None,
    *,
    device: Device = DEVICE,
    run: Run = RUN,
    counts: list[Counts] | None = None,
) -> Forward:
    """Forward of the op: loss, losses, correct, ranks, n_valid, state."""
    results = allocate_forward(x, mode)
    with compile_kernels(SOURCE).call(run) as (memory, call):
        problem = _problem(
            memory, x, log_temperature, mask, mode, directions, precision, samples, device, "forward_bytes"
        )
        names = ("loss", "losses", "correct", "ranks", "n_valid", "state")
        seen = call(
            "forward",
            ctypes.byref(problem),
            *(memory.write(name, result) for name, result in zip(names, results, strict=True)),
        )
    if counts is not None:
        counts.append(seen)
    return results


def backward(
    gradient_loss: Tensor,
    x: Tensor,
    log_temperature: Tensor,
    n_valid: Tensor,
    state: Tensor,
    mask: Tensor | None = None,
    mode: str = "leave_one_out",
    directions: str = "both",
    precision: str = "highest",
    samples: tuple[int, int] | None = None,
    *,
    device: Device = DEVICE,
    run: Run = RUN,
    counts: list[Counts] | None = None,
) -> tuple[Tensor, Tensor]:
    """Backward of the op: gradients of x (outside ``samples`` not written) and of log_temperature."""
    gradient_x = torch.empty_like(x, memory_format=torch.contiguous_format)
    gradient_log_temperature = torch.empty(())
    with compile_kernels(SOURCE).call(run) as (memory, call):
        problem = _problem(
            memory, x, log_temperature, mask, mode, directions, precision, samples, device, "backward_bytes"
        )
        seen = call(
            "backward",
            ctypes.byref(problem),
            memory.read("gradient_loss", gradient_loss.float()),
            memory.read("n_valid", n_valid),
            memory.read("state", state),
            memory.write("gradient_x", gradient_x),
            memory.write("gradient_log_temperature", gradient_log_temperature),
        )
    if counts is not None:
        counts.append(seen)
    return gradient_x, gradient_log_temperature
