"""Buffers of a model, kept through a step and given back."""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sleepfm_fast.encoder import PRESETS, SleepModel
from sleepfm_fast.training.kept_buffers import KeptBuffers

aten = torch.ops.aten


class Copies(TorchDispatchMode):
    """Counts the operations that copy, each a launch at least on a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.n = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.n += func.overloadpacket in (aten.cat, aten.clone, aten.copy_, aten._to_copy)
        return func(*args, **(kwargs or {}))


def test_every_value_comes_back():
    buffers = [torch.arange(6.0).view(2, 3), torch.tensor(7), torch.empty(0), torch.tensor([True, False])]
    before = [buffer.clone() for buffer in buffers]
    kept = KeptBuffers(iter(buffers))
    for buffer in buffers:
        buffer.fill_(1)
    kept.restore()
    for buffer, value in zip(buffers, before, strict=True):
        assert buffer.dtype == value.dtype
        assert torch.equal(buffer, value)
    KeptBuffers([]).restore()


def test_a_network_is_kept_in_few_operations():
    model = SleepModel({"respiratory": 7, "ecg": 2}, PRESETS["seed"])
    buffers = list(model.buffers())
    assert len(buffers) > 200
    with Copies() as copies:
        KeptBuffers(buffers)
    assert copies.n == 2  # of float32 and of int64
