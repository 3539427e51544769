"""pytest plugin: every call into the compiled module runs on the emulated processor.

``pytest -p emulated_avx512.plugin`` with tests/ on PYTHONPATH, SLEEPFM_EMULATED_CPU=avx512, OMP_THREAD_LIMIT=1 (the
emulated processor has no second thread to start) and LD_BIND_NOW=1 (binding a symbol late saves registers in a
layout of the real processor). server.py runs many sessions in one process.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import sysconfig
import tempfile
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from emulated_avx512.processor import Processor

calls: Counter[str] = Counter()  # of a session
leaves_at_the_end = True
status = pytest.StashKey[int]()


def compiled() -> ctypes.PyDLL:
    """Compile call.c and load it."""
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "call.so"
        source = Path(__file__).with_name("call.c")
        include = f"-I{sysconfig.get_paths()['include']}"
        subprocess.run(
            [os.environ.get("CC", "cc"), "-O2", "-shared", "-fPIC", include, source, "-o", library], check=True
        )
        return ctypes.PyDLL(str(library))


def emulated(processor: Processor, call: int, function: Callable) -> Callable:
    """Return a function that has the processor call ``function``."""
    release = ctypes.pythonapi.Py_DecRef
    release.argtypes = [ctypes.c_void_p]

    def taken(address: int):
        found = ctypes.cast(address, ctypes.py_object).value
        release(address)  # `found` holds one of its own
        return found

    def run(*args, **kwargs):
        error = (ctypes.c_void_p * 3)()
        result = processor.call(call, id(function), id(args), id(kwargs), ctypes.addressof(error))
        calls[function.__name__] += 1
        if result:
            return taken(result)
        kind, value = taken(error[0]), taken(error[1]) if error[1] else None
        raise value if isinstance(value, BaseException) else kind(value)

    run.__name__ = run.__qualname__ = function.__name__
    run.__doc__ = function.__doc__
    return run


def pytest_configure(config: pytest.Config) -> None:
    calls.clear()
    emulate()


@cache
def emulate() -> None:
    """Put the emulated functions in place of those of the compiled module, once a process."""
    import sleepfm_fast
    from sleepfm_fast import _C

    in_use = sleepfm_fast.build_info()["cpu_instruction_set_in_use"]
    assert in_use == "avx512", f"the kernels in use are those for {in_use}; set SLEEPFM_EMULATED_CPU=avx512"
    processor = Processor()
    call = ctypes.cast(compiled().call, ctypes.c_void_p).value
    for name, function in vars(_C).copy().items():
        if type(function).__name__ == "builtin_function_or_method" and name != "build_info":
            setattr(_C, name, emulated(processor, call, function))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.write_line(f"on the emulated processor: {calls.total()} calls, {dict(calls)}")


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    session.config.stash[status] = int(exitstatus)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Leave at once: bochscpu asks for the interpreter after its end."""
    if leaves_at_the_end:
        leave(config.stash.get(status, 3))


def leave(status: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
