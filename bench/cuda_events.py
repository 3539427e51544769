"""Time and memory of work on a CUDA device, and of the same calls on the CPU where a run only rehearses.

Nothing is flushed from the second-level cache between calls. In a training step the loss reads embeddings that the
encoders have just written, and a block what the block before it wrote: small operands are in that cache there too, and
a flush would time another case. Operands that do not fit (172 MB of integers for 1,024 clips of nine channels) push
each other out from call to call.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")

SPAN_S = 0.02  # one reading lasts about this long, so that events resolve it and launches overlap as in use


def device() -> torch.device:
    """Return the CUDA device, or the CPU to rehearse on."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def synchronise() -> None:
    """Wait for the device."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def captured(call: Callable[[], Result]) -> Callable[[], Result]:
    """Capture the call as a CUDA graph: the kernels without the launches; every replay fills the same result."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = call()

    def replay() -> Result:
        graph.replay()
        return result

    return replay


def seconds_of(call: Callable[[], Any], calls: int) -> float:
    """Seconds of one of ``calls`` calls in a row, host work included where the device waits for it."""
    if not torch.cuda.is_available():
        start = time.perf_counter()
        for _ in range(calls):
            call()
        return (time.perf_counter() - start) / calls
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    begin.record()
    for _ in range(calls):
        call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3 / calls


def warmed_up(call: Callable[[], Any]) -> float:
    """Call until compilation and allocation are over; seconds of the last call."""
    for _ in range(2):
        call()
    return seconds_of(call, 1)


def measure(call: Callable[[], Any]) -> float:
    """Seconds of one call, from as many in a row as fill ``SPAN_S``."""
    once = seconds_of(call, 1)
    return once if once > SPAN_S / 2 else seconds_of(call, min(int(SPAN_S / max(once, 1e-7)) + 1, 1000))


def peak_mib(call: Callable[[], Any]) -> float | None:
    """Device memory that a call needs above what is there before it; None on the CPU."""
    if not torch.cuda.is_available():
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20
