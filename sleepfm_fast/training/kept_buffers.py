"""Copies of a model's buffers, the running statistics of batch norm, which a step may have to restore."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

__all__ = ["KeptBuffers"]


class KeptBuffers:
    """Copies of tensors; those of one type and device are concatenated into one.

    The published network has 378 buffers. Copied one by one, they would cost as many launches in every step on a GPU, a
    millisecond or two of the host's time; together they are a few.
    """

    def __init__(self, buffers: Iterable[Tensor]) -> None:
        groups: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
        for buffer in buffers:
            groups.setdefault((buffer.dtype, buffer.device), []).append(buffer)
        self._kept = [
            (group, torch.cat([buffer.detach().reshape(-1) for buffer in group])) for group in groups.values()
        ]

    def restore(self) -> None:
        """Give every tensor the values that it had when it was copied."""
        for group, values in self._kept:
            for buffer, before in zip(group, values.split([buffer.numel() for buffer in group]), strict=True):
                buffer.copy_(before.view(buffer.shape))
