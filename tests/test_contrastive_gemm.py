"""The path of large batches (products by torch, the CUDA kernels around them on the host) against the float64 truth."""

from __future__ import annotations

import ctypes
import math
import os
from dataclasses import dataclass, field

import pytest
import torch
from contrastive_cases import DIRECTIONS, MODES, Result, check_result, embeddings, evaluate, random_mask
from emulated_cuda import ADVERSARIAL, Run, compile_kernels, unnoticed
from torch import Tensor

from sleepfm_fast import reference
from sleepfm_fast.ops import contrastive_chunked, contrastive_gemm
from sleepfm_fast.ops.contrastive_gemm import FIELDS, STEPS
from sleepfm_fast.ops.contrastive_loss import ContrastiveStatistics

WRITTEN = {
    "operands": {"a", "b", "own", "valid", "rows", "columns"},
    "diagonal": {"own_product"},
    "statistics": {"row_partials", "column_partials"},
    "merge": {"rows", "columns"},
    "finish": {"state", "ranks", "partial_losses", "partial_correct", "partial_valid"},
    "total": {"loss", "losses", "correct", "n_valid"},
    "weights": {"own_scaled", "row_largest", "row_weight", "column_largest", "column_weight", "unscale", "slopes"},
    "gradient": {"gradient_high", "gradient_low", "slopes"},
    "accumulate": {"gradient_unit"},
    "finish_gradient": {"gradient_x", "gradient_log_temperature"},
}


@dataclass
class Emulator:
    """Runs a step in fenced memory: every tensor is copied there, and back where the step writes it."""

    run: Run = Run()
    faulty: str = ""  # the step that `run`'s planted fault is for; all by default
    steps: list[str] = field(default_factory=list)
    barriers: dict[str, int] = field(default_factory=dict)

    def __call__(self, step: str, fields: dict[str, Tensor | int]) -> None:
        self.steps.append(step)
        run = self.run if self.faulty in ("", step) else Run(self.run.schedule, self.run.seed)
        kernels = compile_kernels("contrastive_epilogue.cpp")
        assert kernels.library.contrastive_gemm_bytes() == 8 * len(FIELDS)
        written = {
            value.data_ptr() for name, value in fields.items() if name in WRITTEN[step] and torch.is_tensor(value)
        }
        addresses: dict[int, int] = {}
        with kernels.call(run) as (memory, call):
            values = []
            for name in FIELDS:
                value = fields.get(name, 0)
                if not torch.is_tensor(value):
                    values.append(value)
                    continue
                if value.data_ptr() not in addresses:
                    flat, offset = value, 0
                    if not value.is_contiguous():
                        flat = torch.empty(0, dtype=value.dtype).set_(value.untyped_storage())
                        offset = value.storage_offset() * value.element_size()
                    copy = memory.update if value.data_ptr() in written else memory.read
                    addresses[value.data_ptr()] = (copy(name, flat, alignment=16).value or 0) + offset
                values.append(addresses[value.data_ptr()])
            counts = call("contrastive_gemm", STEPS.index(step), (ctypes.c_int64 * len(FIELDS))(*values))
        self.barriers[step] = max(self.barriers.get(step, 0), counts.barriers)


@pytest.fixture(autouse=True)
def poisoned_memory():
    """What torch.empty gives holds NaN: a result that depends on memory nobody has written shows."""
    torch._C._set_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch._C._set_deterministic_algorithms(False)


@dataclass
class Path:
    """contrastive_gemm as :func:`check_result` calls it."""

    precision: str = "highest"
    launcher: Emulator = field(default_factory=Emulator)

    def __call__(self, x: Tensor, tau: Tensor, mode="leave_one_out", mask=None, directions="both") -> Result:
        options = (mode, directions, self.precision, 0, x.shape[1])
        loss, losses, correct, ranks, n_valid, state = contrastive_gemm.forward(
            x, tau, mask, *options, launcher=self.launcher
        )
        gradient, slope = contrastive_gemm.backward(
            torch.tensor(1.0), x, tau, mask, n_valid, state, *options, launcher=self.launcher
        )
        return Result(loss, gradient, slope, ContrastiveStatistics(losses, correct, ranks, n_valid))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("M", "N", "D"), [(3, 1, 5), (2, 2, 1), (3, 31, 32), (4, 129, 40)])
def test_agrees_with_float64(M, N, D, mode):
    for kind in ("random", "aligned"):
        for log_temperature in (0.0, math.log(14), math.log(100)):
            check_result(Path(), embeddings(kind, M, N, D), log_temperature, mode=mode)
