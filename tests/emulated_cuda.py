"""Kernels of csrc/cuda compiled for the host and run by tests/cuda_on_cpu: see the README there."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from functools import cache
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ROOT / "tests" / "cuda_on_cpu"
SCHEDULES = {"run_ahead": 0, "reversed": 1, "round_robin": 2, "shuffled": 3}
COPIES = {"eager": 0, "deferred": 1}
TIME_LIMIT_S = 120


class KernelError(AssertionError):
    """What the emulator found wrong, in a sentence."""


class _Options(ctypes.Structure):
    _fields_ = [
        ("schedule", ctypes.c_int),
        ("copies", ctypes.c_int),
        ("seed", ctypes.c_uint32),
        ("time_limit_s", ctypes.c_int32),
        *((f"skipped_{name}", ctypes.c_int64) for name in ("barrier", "wait", "warp_sync", "grid_barrier")),
        *((name, ctypes.c_int64) for name in ("barriers", "waits", "warp_syncs", "grid_barriers")),
        *((name, ctypes.c_int64) for name in ("mma", "ldmatrix_matrices", "ldmatrix_wavefronts", "copies_issued")),
        ("message", ctypes.c_char * 1024),
    ]


@dataclass(frozen=True)
class Run:
    """How a launch is scheduled, and which fault is planted in it: every thread runs through its n-th barrier, ..."""

    schedule: str = "run_ahead"
    seed: int = 0
    copies: str = "deferred"
    side: str = "end"  # of the pages between the fences that buffers lie at: "end" or "start"
    skipped_barrier: int = -1
    skipped_wait: int = -1
    skipped_warp_sync: int = -1
    skipped_grid_barrier: int = -1


ADVERSARIAL = (
    Run("run_ahead"),
    Run("run_ahead", seed=1, side="start"),
    Run("reversed", copies="eager"),
    Run("round_robin", seed=2),
    Run("shuffled", seed=3),
)


@dataclass
class Counts:
    """Largest counts of a thread (barriers, waits, warp_syncs, grid_barriers) and sums over all warps."""

    barriers: int = 0
    waits: int = 0
    warp_syncs: int = 0
    grid_barriers: int = 0
    mma: int = 0
    ldmatrix_matrices: int = 0
    ldmatrix_wavefronts: int = 0
    copies_issued: int = 0


@dataclass
class Memory:
    """Fenced global memory of one call; the kernel cannot write what `read` gave it."""

    library: ctypes.CDLL
    side: str
    _arrays: list[tuple[int, torch.Tensor]] = field(default_factory=list)

    def _allocate(self, name: str, n_bytes: int, alignment: int, writable: bool) -> int:
        address = self.library.emulator_allocate(name.encode(), n_bytes, alignment, self.side == "end", writable)
        if not address:
            raise MemoryError(f"no memory for {n_bytes} bytes of {name}")
        return int(address)

    def _view(self, address: int, n_bytes: int) -> torch.Tensor:
        if n_bytes == 0:
            return torch.zeros(0, dtype=torch.uint8)
        return torch.frombuffer((ctypes.c_uint8 * n_bytes).from_address(address), dtype=torch.uint8)

    def read(self, name: str, tensor: torch.Tensor, alignment: int = 16) -> ctypes.c_void_p:
        """Address of a copy of `tensor` (contiguous) that the kernel may only read."""
        data = tensor.contiguous().flatten().view(torch.uint8) if tensor.numel() else torch.zeros(0, dtype=torch.uint8)
        address = self._allocate(name, data.numel(), alignment, writable=False)
        self._view(address, data.numel()).copy_(data)
        return ctypes.c_void_p(address)

    def write(self, name: str, tensor: torch.Tensor, alignment: int = 16) -> ctypes.c_void_p:
        """Address of memory for `tensor` (contiguous), poisoned; `tensor` gets what the kernel wrote there."""
        assert tensor.is_contiguous()
        n_bytes = tensor.numel() * tensor.element_size()
        address = self._allocate(name, n_bytes, alignment, writable=True)
        self._arrays.append((address, tensor))
        return ctypes.c_void_p(address)

    def update(self, name: str, tensor: torch.Tensor, alignment: int = 16) -> ctypes.c_void_p:
        """As `write`, but the kernel finds what `tensor` holds: accumulators, barrier states."""
        address = self.write(name, tensor, alignment)
        if tensor.numel():
            assert address.value is not None
            self._view(address.value, tensor.numel() * tensor.element_size()).copy_(tensor.flatten().view(torch.uint8))
        return address

    def collect(self) -> None:
        for address, tensor in self._arrays:
            if tensor.numel():
                data = self._view(address, tensor.numel() * tensor.element_size())
                tensor.flatten().view(torch.uint8).copy_(data)


class Kernels:
    """A source of tests/cuda_on_cpu, compiled: `with kernels.call(run) as (memory, call): call("name", ...)`."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library
        library.emulator_allocate.restype = ctypes.c_void_p
        library.emulator_allocate.argtypes = [ctypes.c_char_p, *[ctypes.c_size_t] * 2, *[ctypes.c_int] * 2]

    @contextmanager
    def call(self, run: Run = Run()) -> Iterator[tuple[Memory, Callable[..., Counts]]]:
        memory = Memory(self.library, run.side)

        def call(name: str, *arguments: object) -> Counts:
            options = _Options(SCHEDULES[run.schedule], COPIES[run.copies], run.seed, TIME_LIMIT_S)
            for kind in ("barrier", "wait", "warp_sync", "grid_barrier"):
                setattr(options, f"skipped_{kind}", getattr(run, f"skipped_{kind}"))
            given = [
                ctypes.c_int64(a) if isinstance(a, int) else ctypes.c_float(a) if isinstance(a, float) else a
                for a in arguments
            ]
            status = getattr(self.library, name)(ctypes.byref(options), *given)
            if status != 0:
                raise KernelError(options.message.decode(errors="replace"))
            memory.collect()
            return Counts(**{name: getattr(options, name) for name in (f.name for f in fields(Counts))})

        try:
            yield memory, call
        finally:
            self.library.emulator_free_all()


@cache
def compile_kernels(source: str, *defines: str) -> Kernels:
    """Compiles tests/cuda_on_cpu/`source` once a session; skips the test where there is no C++ compiler."""
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler is here to compile the CUDA kernels for the host")
    path = Path(tempfile.mkdtemp(prefix="cuda_on_cpu_")) / f"{Path(source).stem}.so"
    flags = ["-std=c++17", "-O2", "-fPIC", "-shared", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
    flags += ["-U_FORTIFY_SOURCE", "-fsanitize=undefined", "-fsanitize-undefined-trap-on-error"]
    flags += ["-DSLEEPFM_ON_HOST", *(f"-D{define}" for define in defines), f"-I{ROOT / 'csrc'}", f"-I{SOURCES}"]
    done = subprocess.run(
        [compiler, *flags, str(SOURCES / source), "-o", str(path)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return Kernels(ctypes.CDLL(str(path)))


def unnoticed(count: int, kind: str, run: Callable[[Run], object]) -> list[int]:
    """Which of `count` barriers (or "wait", "warp_sync", "grid_barrier") may be left out and no schedule notices.

    `run` returns something comparable, and raises KernelError where the emulator finds the fault itself.
    """
    expected = run(Run())
    missed = []
    for n in range(count):
        for schedule in ADVERSARIAL:
            planted = replace(schedule, **{f"skipped_{kind}": n})  # type: ignore[arg-type]
            try:
                if run(planted) != expected:
                    break
            except KernelError:
                break
        else:
            missed.append(n)
    return missed
