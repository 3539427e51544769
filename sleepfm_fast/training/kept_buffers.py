"""A model's buffers as they were: the running statistics of batch norm, which a step may have to take back."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

__all__ = ["KeptBuffers"]


class KeptBuffers:
    """Copies of tensors, those of a type and device in one.

    The published network has 378 buffers. A copy of each would be as many launches in every step on a GPU, a
    millisecond or two of the processor; put together they are a few.
    """

    def __init__(self, buffers: Iterable[Tensor]) -> None:
        groups: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
        for buffer in buffers:
            groups.setdefault((buffer.dtype, buffer.device), []).append(buffer)
        self._kept = [
            (group, torch.cat([buffer.detach().reshape(-1) for buffer in group])) for group in groups.values()
        ]

    def restore(self) -> None:
        """Give every tensor the values that it had."""
        for group, values in self._kept:
            for buffer, before in zip(group, values.split([buffer.numel() for buffer in group]), strict=True):
                buffer.copy_(before.view(buffer.shape))
