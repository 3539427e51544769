"""An emulated processor with AVX-512 that runs functions of this process, in this process's own memory.

Bochs decodes and executes every instruction; its memory is this process's. A system call is made by this process in
its place, an exception ends the call.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import tempfile
import threading
from pathlib import Path

HERE = Path(__file__).resolve().parent
CODE_64, DATA = 0xA0FB, 0xC0F3  # segment attributes: 64-bit code and data, privilege level 3
USER_CODE, USER_DATA, KERNEL_CODE = 0x33, 0x2B, 0x10  # selectors, as Linux has them
CR0_AM, CR0_MP = 1 << 18, 1 << 1
CR4_OSFXSR, CR4_OSXMMEXCPT, CR4_OSXSAVE = 1 << 9, 1 << 10, 1 << 18
XCR0 = 0xE7  # x87, SSE, AVX and the three parts of AVX-512
FLAGS, MXCSR, X87_CONTROL = 0x2, 0x1F80, 0x37F
ARCH_GET_FS, SYS_ARCH_PRCTL = 0x1003, 158

REGISTERS = ("rdi", "rsi", "rdx", "r10", "r8", "r9")  # of a system call
# bochscpu's C interface, in the order of processor.cpp's struct.
NAMES = [
    "cpu_from",
    "cpu_run",
    "cpu_stop",
    "mem_page_insert",
    "cpu_rip",
    "cpu_rsp",
    "cpu_cr2",
    "cpu_rax",
    "cpu_set_rax",
    *(f"cpu_{register}" for register in REGISTERS),
]


class EmulationError(RuntimeError):
    """The emulated function raised a processor exception."""


def compiled() -> ctypes.CDLL:
    """Compile processor.cpp and load it for all, as bochscpu looks in it for what the C library lacks."""
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "processor.so"
        compiler = os.environ.get("CXX", "c++")
        subprocess.run(
            [compiler, "-std=c++17", "-O2", "-shared", "-fPIC", HERE / "processor.cpp", "-o", library], check=True
        )
        return ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)


class Processor:
    """One for a process; calls from several threads take turns."""

    def __init__(self) -> None:
        self.library = compiled()
        import bochscpu
        import bochscpu.cpu

        self.bochscpu = bochscpu
        self.session = bochscpu.Session()
        shared = ctypes.CDLL(bochscpu._bochscpu.__file__)
        addresses = [ctypes.cast(getattr(shared, f"bochscpu_{name}"), ctypes.c_void_p).value for name in NAMES]
        entry = ctypes.c_uint64()
        self.library.prepare((ctypes.c_void_p * len(addresses))(*addresses), ctypes.byref(entry))
        self.library.top_of_stack.restype = ctypes.c_uint64
        self.system_calls = entry.value
        # The thread's lock is kept: only the emulated function may let it go.
        self.run = ctypes.PyDLL(None, handle=self.library._handle).run
        self.turn = threading.Lock()

    def segment(self, selector: int, attributes: int, base: int = 0):
        segment = self.bochscpu.Segment()
        segment.present, segment.selector, segment.attr = True, selector, attributes
        segment.base, segment.limit = base, 0xFFFFFFFF
        return segment

    def state(self, function: int, arguments: tuple[int, ...]):
        """Return the state of a thread of Linux that enters ``function``."""
        state = self.bochscpu.State()
        self.bochscpu.cpu.set_long_mode(state)
        state.cr0 = state.cr0 & ~CR0_AM | CR0_MP
        state.cr4 |= CR4_OSFXSR | CR4_OSXMMEXCPT | CR4_OSXSAVE
        state.cr3, state.xcr0 = 0, XCR0
        state.cs, state.ss = self.segment(USER_CODE, CODE_64), self.segment(USER_DATA, DATA)
        state.ds = state.es = state.gs = self.segment(USER_DATA, DATA)
        thread = ctypes.c_uint64()
        ctypes.CDLL(None).syscall(SYS_ARCH_PRCTL, ARCH_GET_FS, ctypes.byref(thread))
        state.fs = self.segment(USER_DATA, DATA, thread.value)
        state.star = (USER_CODE - 16) << 48 | KERNEL_CODE << 32
        state.lstar, state.sfmask = self.system_calls, 0
        state.rflags, state.mxcsr, state.mxcsr_mask = FLAGS, MXCSR, 0xFFFF
        state.fpcw, state.fptw = X87_CONTROL, 0xFFFF
        state.rsp, state.rip = self.library.top_of_stack(), function
        for register, argument in zip(("rdi", "rsi", "rdx", "rcx", "r8", "r9"), arguments, strict=False):
            setattr(state, register, argument)
        return state

    def call(self, function: int, *arguments: int) -> int:
        """Call the function at an address with up to six integers or addresses; returns what it leaves in rax."""
        result, failure = ctypes.c_uint64(), (ctypes.c_uint64 * 4)()
        with self.turn:
            self.session.cpu.state = self.state(function, arguments)
            failed = self.run(ctypes.byref(result), failure)
        if failed:
            vector, code, at, address = failure
            raise EmulationError(f"exception {vector - 1} (code {code:#x}) at {at:#x}; cr2 {address:#x}")
        return result.value
