"""The CUDA kernel of small batches, run on the host, against the float64 truth; and on a device where there is one."""

from __future__ import annotations

import ctypes
import math
import os
from dataclasses import dataclass

import pytest
import torch
from contrastive_cases import DIRECTIONS, MODES, Result, check_result, embeddings, evaluate, random_mask
from emulated_cuda import ADVERSARIAL, Run, compile_kernels, unnoticed
from torch import Tensor

from sleepfm_fast import reference
from sleepfm_fast.ops import contrastive_chunked, contrastive_small
from sleepfm_fast.ops.contrastive_loss import ContrastiveStatistics
from sleepfm_fast.ops.contrastive_results import STATE_ROWS, allocate_forward, n_problems
from sleepfm_fast.ops.registry import DTYPE_CODES

NOTHING = ctypes.c_void_p(0)


@dataclass
class Kernel:
    """The kernel on the host: ``run`` chooses the schedule, ``blocks`` 0 as many as a device would run."""

    run: Run = Run()
    tile: int = 16
    blocks: int = 3
    counts: object = None

    def __call__(
        self,
        x: Tensor,
        tau: Tensor,
        mask: Tensor | None = None,
        mode: str = "leave_one_out",
        directions: str = "both",
        *,
        upstream: Tensor | None = None,
        given: tuple[Tensor, Tensor] | None = None,
        gradient: bool = True,
        begin: int = 0,
        end: int | None = None,
    ) -> tuple[tuple[Tensor, ...], Tensor, Tensor]:
        M, N, D = x.shape
        results = allocate_forward(x, mode)
        gradient_x, slope = torch.empty_like(x, memory_format=torch.contiguous_format), torch.empty(())
        kernels = compile_kernels("contrastive_small.cpp")
        pairwise = int(mode == "pairwise")
        size = kernels.library.workspace_bytes
        size.restype = ctypes.c_int64
        workspace = torch.empty(size(*(ctypes.c_int64(v) for v in (M, N, D, pairwise, gradient))), dtype=torch.uint8)
        barrier = torch.zeros(1, dtype=torch.int32)
        with kernels.call(self.run) as (memory, call):
            if given is None:
                outputs = [memory.write(f"output {k}", result) for k, result in enumerate(results)]
            else:
                outputs = [NOTHING] * 4 + [memory.read("n_valid", given[0]), memory.read("state", given[1])]
            self.counts = call(
                "contrastive_small",
                *(memory.read("x", x, alignment=x.element_size()), DTYPE_CODES[x.dtype], M, N, D, N * D, D),
                *(memory.read("log_temperature", tau), NOTHING if mask is None else memory.read("mask", mask)),
                *(pairwise, int(directions == "both"), memory.write("workspace", workspace)),
                *(begin, N if end is None else end, int(given is not None), *outputs),
                NOTHING if upstream is None else memory.read("gradient_loss", upstream),
                memory.write("gradient_x", gradient_x, alignment=x.element_size()) if gradient else NOTHING,
                memory.write("gradient_log_temperature", slope) if gradient else NOTHING,
                *(memory.update("barrier", barrier), self.tile, self.blocks),
            )
        assert int(barrier) & 0x7FFFFFFF == 0
        return results, gradient_x, slope

    def result(self, x: Tensor, tau: Tensor, **kwargs) -> Result:
        (loss, *statistics, _), gradient_x, slope = self(x.detach(), tau.detach(), **kwargs)
        return Result(loss, gradient_x, slope, ContrastiveStatistics(*statistics))


def check(x: Tensor, log_temperature: float, kernel: Kernel, **kwargs) -> None:
    check_result(kernel.result, x, log_temperature, **kwargs)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("M", "N", "D"), [(3, 1, 5), (2, 2, 1), (3, 15, 63), (3, 16, 64), (4, 17, 65), (8, 5, 33)])
def test_agrees_with_float64(M, N, D, mode):
    for kind in ("random", "aligned"):
        for log_temperature in (0.0, math.log(14), math.log(100)):
            check(embeddings(kind, M, N, D), log_temperature, Kernel(), mode=mode)
