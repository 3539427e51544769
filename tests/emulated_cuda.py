"""Kernels of csrc/cuda compiled for the host and run by tests/cuda_on_cpu: see the README there."""

from __future__ import annotations

import atexit
import ctypes
import json
import mmap
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ROOT / "tests" / "cuda_on_cpu"
SCHEDULES = {"run_ahead": 0, "reversed": 1, "round_robin": 2, "shuffled": 3}
COPIES = {"eager": 0, "deferred": 1}
SUMS = {"rounded": 0, "ampere": 1, "hopper": 2}  # as in instructions.h
TIME_LIMIT_S = 120
POISON_BYTE = 0xFF  # as in fenced_memory.h: NaN in every type


class KernelError(AssertionError):
    """What the emulator found wrong, in a sentence."""


class _Options(ctypes.Structure):
    _fields_ = [
        ("schedule", ctypes.c_int),
        ("copies", ctypes.c_int),
        ("sums", ctypes.c_int),
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
    sums: str = "rounded"  # of mma: as a device adds, "ampere" or "hopper", takes several times as long
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


ARENA_BYTES = 4 << 30  # of addresses: pages that nobody touches take no memory
KEPT_BYTES = 32 << 20  # of the arena, from call to call; the rest is given back


class Server:
    """The process that calls the functions of a library (cuda_on_cpu/server.py), and the memory it has in common."""

    def __init__(self, path: Path) -> None:
        file = os.memfd_create("arena")
        os.ftruncate(file, ARENA_BYTES)
        self.arena = mmap.mmap(file, ARENA_BYTES)
        command = [sys.executable, "-I", "-S", str(SOURCES / "server.py"), str(path), str(file), str(ARENA_BYTES)]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, pass_fds=[file])
        os.close(file)
        atexit.register(self.process.communicate)
        self.address = int(self._answer())  # of the arena, there
        assert self.address, f"no memory for an arena of {ARENA_BYTES} bytes"

    def _answer(self) -> str:
        assert self.process.stdout is not None
        answer = self.process.stdout.readline()
        assert answer, f"the process that calls the kernels ended with status {self.process.wait()}"
        return answer

    def call(self, function: str, options: _Options, buffers: list[Buffer], arguments: tuple[object, ...]) -> int:
        """Status of the function; `options`, structures and arrays are as it left them."""
        structures: list[ctypes.Structure | ctypes.Array[Any]] = []
        given: list[tuple[str, object]] = []
        for argument in arguments:
            if isinstance(argument, ctypes.c_void_p):
                given.append(("address", argument.value or 0))
            elif isinstance(argument, (int, float)):
                given.append(("integer" if isinstance(argument, int) else "real", argument))
            else:
                structures.append(getattr(argument, "_obj", argument))  # of ctypes.byref
                given.append(("structure", bytes(structures[-1]).hex()))
        called = {"function": function, "options": bytes(options).hex(), "buffers": buffers, "arguments": given}
        assert self.process.stdin is not None
        print(json.dumps(called), file=self.process.stdin, flush=True)
        status, *left = json.loads(self._answer())
        for structure, data in zip((options, *structures), (left[0], *left[1]), strict=True):
            ctypes.memmove(ctypes.byref(structure), bytes.fromhex(data), ctypes.sizeof(structure))
        return int(status)


# Name, where it begins in the arena, bytes, where its pages begin (one before it and one behind among them), their
# bytes, writable.
Buffer = tuple[str, int, int, int, int, bool]


@dataclass
class Memory:
    """Fenced global memory of one call; the kernel cannot write what `read` gave it."""

    library: ctypes.CDLL
    server: Server
    side: str
    _buffers: list[Buffer] = field(default_factory=list)
    _arrays: list[tuple[int, torch.Tensor]] = field(default_factory=list)
    _used: int = 0

    def _allocate(self, name: str, n_bytes: int, alignment: int, writable: bool) -> int:
        """Where the buffer begins in the arena."""
        inner = -(-n_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        place = self._used + mmap.PAGESIZE
        if place + inner + mmap.PAGESIZE > ARENA_BYTES:
            raise MemoryError(f"no memory for {n_bytes} bytes of {name}")
        self._view(place, inner).fill_(POISON_BYTE)
        begin = place + ((inner - n_bytes) // alignment * alignment if self.side == "end" else 0)
        self._buffers.append((name, begin, n_bytes, self._used, inner + 2 * mmap.PAGESIZE, writable))
        self._used = place + inner + mmap.PAGESIZE
        return begin

    def _address(self, begin: int) -> ctypes.c_void_p:
        return ctypes.c_void_p(self.server.address + begin)

    def _view(self, begin: int, n_bytes: int) -> torch.Tensor:
        if n_bytes == 0:
            return torch.zeros(0, dtype=torch.uint8)
        return torch.frombuffer(self.server.arena, dtype=torch.uint8, count=n_bytes, offset=begin)

    def read(self, name: str, tensor: torch.Tensor, alignment: int = 16) -> ctypes.c_void_p:
        """Address of a copy of `tensor` (contiguous) that the kernel may only read."""
        data = tensor.contiguous().flatten().view(torch.uint8) if tensor.numel() else torch.zeros(0, dtype=torch.uint8)
        begin = self._allocate(name, data.numel(), alignment, writable=False)
        self._view(begin, data.numel()).copy_(data)
        return self._address(begin)

    def _write(self, name: str, tensor: torch.Tensor, alignment: int) -> int:
        assert tensor.is_contiguous()
        begin = self._allocate(name, tensor.numel() * tensor.element_size(), alignment, writable=True)
        self._arrays.append((begin, tensor))
        return begin

    def write(self, name: str, tensor: torch.Tensor, alignment: int = 16) -> ctypes.c_void_p:
        """Address of memory for `tensor` (contiguous), poisoned; `tensor` gets what the kernel wrote there."""
        return self._address(self._write(name, tensor, alignment))

    def update(self, name: str, tensor: torch.Tensor, alignment: int = 16) -> ctypes.c_void_p:
        """As `write`, but the kernel finds what `tensor` holds: accumulators, barrier states."""
        begin = self._write(name, tensor, alignment)
        if tensor.numel():
            self._view(begin, tensor.numel() * tensor.element_size()).copy_(tensor.flatten().view(torch.uint8))
        return self._address(begin)

    def call(self, name: str, options: _Options, arguments: tuple[object, ...]) -> int:
        return self.server.call(name, options, self._buffers, arguments)

    def collect(self) -> None:
        for begin, tensor in self._arrays:
            if tensor.numel():
                data = self._view(begin, tensor.numel() * tensor.element_size())
                tensor.flatten().view(torch.uint8).copy_(data)

    def give_back(self) -> None:
        if self._used > KEPT_BYTES:
            self.server.arena.madvise(mmap.MADV_REMOVE, 0, self._used)


class Kernels:
    """A source of tests/cuda_on_cpu, compiled: `with kernels.call(run) as (memory, call): call("name", ...)`."""

    def __init__(self, path: Path) -> None:
        self.library = ctypes.CDLL(str(path))  # for functions without buffers
        self.server = Server(path)

    @contextmanager
    def call(self, run: Run = Run()) -> Iterator[tuple[Memory, Callable[..., Counts]]]:
        memory = Memory(self.library, self.server, run.side)

        def call(name: str, *arguments: object) -> Counts:
            options = _Options(SCHEDULES[run.schedule], COPIES[run.copies], SUMS[run.sums], run.seed, TIME_LIMIT_S)
            for kind in ("barrier", "wait", "warp_sync", "grid_barrier"):
                setattr(options, f"skipped_{kind}", getattr(run, f"skipped_{kind}"))
            if memory.call(name, options, arguments) != 0:
                raise KernelError(options.message.decode(errors="replace"))
            memory.collect()
            return Counts(**{name: getattr(options, name) for name in (f.name for f in fields(Counts))})

        try:
            yield memory, call
        finally:
            memory.give_back()


_looks_for_races = False


@contextmanager
def races_looked_for() -> Iterator[None]:
    """Within it, kernels run with every load and store noted: what no barrier orders is a fault (races.h)."""
    global _looks_for_races
    before, _looks_for_races = _looks_for_races, True
    try:
        yield
    finally:
        _looks_for_races = before


def compile_kernels(source: str, *defines: str) -> Kernels:
    """Compiles tests/cuda_on_cpu/`source` once a session; skips the test where there is no C++ compiler."""
    return _compiled(source, defines, _looks_for_races)


@cache
def _compiled(source: str, defines: tuple[str, ...], watched: bool) -> Kernels:
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler is here to compile the CUDA kernels for the host")
    path = Path(tempfile.mkdtemp(prefix="cuda_on_cpu_")) / f"{Path(source).stem}.so"
    flags = ["-std=c++17", "-fPIC", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-U_FORTIFY_SOURCE"]
    # What is undefined is found in other runs; without that, and less optimised, this compiles in a third of the time.
    checks = ["-O2", "-fsanitize=undefined", "-fsanitize-undefined-trap-on-error"]
    flags += ["-O1", "-fsanitize=thread"] if watched else checks
    flags += ["-DSLEEPFM_ON_HOST", *(f"-D{define}" for define in defines), f"-I{ROOT / 'csrc'}", f"-I{SOURCES}"]
    compiled = path.with_suffix(".o")
    for command in (
        [*flags, "-c", str(SOURCES / source), "-o", str(compiled)],
        ["-shared", str(compiled), "-o", str(path)],  # without any sanitizer's own functions
    ):
        done = subprocess.run([compiler, *command], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
    return Kernels(path)


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
