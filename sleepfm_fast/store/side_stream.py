"""Batches that a thread prepares on a CUDA device, on a stream of its own, and how the consumer's stream takes them.

Nothing orders the work of two streams of a device by itself. An event makes the consumer's stream wait for what the
thread's stream wrote before it. Torch's allocator keeps memory for the stream it was allocated on, and gives it to that
stream's next batch as soon as no tensor refers to it: ``record_stream`` holds it back until the consumer's stream has
used it. A copy from the host runs later than the call that asks for it, so its source is pinned memory of torch's,
which torch does not reuse before the copy has run.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import torch

from sleepfm_fast.store.feed import Buffer

__all__ = ["PinnedBuffer", "SideStream", "upload"]


class SideStream:
    """A stream of ``device`` for one or more threads that prepare what another stream uses."""

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device)

    @contextmanager
    def work(self) -> Iterator[None]:
        """Launch the block's work on this stream. For threads of one's own only: the current device stays changed."""
        # A new thread's current device is device 0, and leaving the stream's block there would create a context on it.
        torch.cuda.set_device(self.stream.device)
        with torch.cuda.stream(self.stream):
            yield

    def mark(self) -> torch.cuda.Event:
        """Return an event that completes when all work launched on this stream so far has."""
        event = torch.cuda.Event()
        event.record(self.stream)
        return event

    def receive(self, event: torch.cuda.Event, tensors: Iterable[torch.Tensor]) -> None:
        """Let the caller's current stream use ``tensors``, made on it before ``event``; the host never waits."""
        current = torch.cuda.current_stream(self.stream.device)
        current.wait_event(event)
        for tensor in tensors:
            if tensor.is_cuda:
                tensor.record_stream(current)


class PinnedBuffer(Buffer):
    """Pinned memory, fresh for each batch, that an asynchronous copy to a device may still read when it is dropped."""

    def __init__(self) -> None:
        super().__init__()
        self.tensor = torch.empty(0, dtype=torch.uint8)

    def take(self, n_bytes: int) -> npt.NDArray[np.uint8]:
        """Return pinned memory; torch's allocator reuses it for other batches once the copies from it have run."""
        self.tensor = torch.empty(n_bytes, dtype=torch.uint8, pin_memory=True)
        memory: npt.NDArray[np.uint8] = self.tensor.numpy()
        return memory


def upload(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy a CPU tensor to ``device`` in the current stream, through pinned memory; nothing waits for the device."""
    if device.type != "cuda":
        return tensor.to(device)
    return (tensor if tensor.is_pinned() else tensor.pin_memory()).to(device, non_blocking=True)
