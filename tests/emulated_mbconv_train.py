"""MBConv blocks in training: the CUDA kernels run by the emulator of tests/cuda_on_cpu, products by torch."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from emulated_cuda import Counts, Run, compile_kernels
from torch import Tensor

from sleepfm_fast.ops import mbconv_between

__all__ = ["Emulated", "emulate_training"]

AHEAD = Run()

OP = importlib.import_module("sleepfm_fast.ops.mbconv_train")  # the package's attribute of that name is the function

# Names of the buffers in the order of the bindings, and the places of those that the kernels write.
BUFFERS = {
    "expansion_sums": ("c1 partial bias b1 gamma0 beta0 wd bd statistics parameters", {1, 8, 9}),
    "depthwise": ("c1 parameters0 c2 partial pivot gamma1 beta1 statistics parameters", {2, 3, 7, 8}),
    "activate": ("c2 parameters1 a2", {2}),
    "gradient_sums": (
        "c2 da2 parameters1 partial statistics1 parameters0 gamma1 dgamma1 dbeta1 parameters",
        {3, 7, 8, 9},
    ),
    "depthwise_backward": (
        "c1 c2 da2 parameters g0 partial statistics0 gamma0 dgamma0 dbeta0 dwd vectors",
        {4, 5, 8, 9, 10, 11},
    ),
}


@dataclass
class Emulated:
    """Stands in for the compiled module: its functions take tensors where that takes their addresses."""

    run: Run
    counts: dict[str, Counts] = field(default_factory=dict)

    def __getattr__(self, name: str) -> Any:
        kernel = name.removeprefix("mbconv_train_")
        if kernel not in BUFFERS:
            raise AttributeError(name)

        def call_kernel(*arguments: Any) -> None:
            *sizes, tensors, _device, _stream = arguments
            flat = [n for size in sizes for n in (size if isinstance(size, Iterable) else (size,))]
            names, written = BUFFERS[kernel]
            with compile_kernels("mbconv_train.cpp").call(self.run) as (memory, call):
                given = [
                    (memory.write if k in written else memory.read)(buffer, tensor)
                    for k, (buffer, tensor) in enumerate(zip(names.split(), tensors, strict=True))
                ]
                self.counts[kernel] = call(kernel, *flat, *given)

        return call_kernel


def product(a: Tensor, b: Tensor, out: Tensor) -> None:
    """Float32 sums of products of bfloat16."""
    torch.mm(a.float(), b.float(), out=out)


def emulate_training(monkeypatch: pytest.MonkeyPatch, run: Run = AHEAD, n_partials: int = 0) -> Emulated:
    """Let ``ops.mbconv_train`` run on the CPU, its kernels in the emulator."""
    emulated = Emulated(run)
    monkeypatch.setattr(mbconv_between, "_C", emulated)
    monkeypatch.setattr(mbconv_between, "addresses", lambda *tensors: tensors)
    monkeypatch.setattr(mbconv_between, "place", lambda tensor: (0, 0))
    if n_partials:
        monkeypatch.setattr(mbconv_between, "blocks_for", lambda *_: n_partials)
    monkeypatch.setattr(OP, "multiply", product)
    monkeypatch.setattr(OP, "call_forward", OP.forward)
    monkeypatch.setattr(OP, "call_backward", OP.backward)
    return emulated
