"""The AVX-512 kernels where no processor has AVX-512: the other tests again, their kernels on an emulated processor."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import re
import select
import subprocess
import sys
from pathlib import Path

import pytest

import sleepfm_fast

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent

pytestmark = [
    pytest.mark.skipif(platform.machine() != "x86_64" or sys.platform != "linux", reason="emulates Linux on x86-64"),
    pytest.mark.skipif(
        importlib.util.find_spec("bochscpu") is None, reason="`pip install bochscpu-python` brings the processor"
    ),
]
HAS_AVX512 = "avx512" in sleepfm_fast.build_info()["cpu_instruction_sets"]

# Which tests of a file: an emulated processor does some ten million multiply-adds a second.
SELECTIONS = {
    "test_stem": "not every_instruction_set",
    "test_max_pool": "",
    "test_encoder_evaluate": "agrees_with_the_definition or strided or unwritten or no_clips",
    "test_mbconv": "agrees_with_the_definition or residual or unwritten or awkward or strided or nan_is_not",
    "test_filter_resample": "agrees or robust or desaturation",
    "test_filter_resample_blocks": "",
    "test_contrastive_joint": "not 128",
    "test_contrastive_loss": "agrees_with_float64 and not 257 and not thousand or far_temperatures and random",
    "test_contrastive_loss_contract": "exponential or kept_changes",
    "test_ranks": "ties or nearly or duplicates or cones or constant",
    "test_rank_bounds": "not every_instruction_set and not 100003",
}

SCRIPT = """
import ctypes
import os
import sys
from emulated_avx512.processor import EmulationError, Processor
library = ctypes.CDLL(sys.argv[1])
address = lambda function: ctypes.cast(function, ctypes.c_void_p).value
processor = Processor()
a, b = (ctypes.c_float * 100)(*range(100)), (ctypes.c_float * 100)(*range(100, 200))
for _ in range(2):  # the processor's second call is like its first
    assert processor.call(address(library.dot), ctypes.addressof(a), ctypes.addressof(b), 100) == 823350
assert processor.call(address(library.process)) == library.process() > 0
try:
    processor.call(address(library.first), 8)
except EmulationError as error:
    assert "exception 14" in str(error) and "cr2 0x8" in str(error), error
else:
    raise AssertionError("a read of address 8 went through")
assert processor.call(address(library.process)) == library.process()
sys.stdout.flush()
os._exit(0)
"""

SOURCE = """
#include <unistd.h>
long dot(float const* a, float const* b, long n) {
    float sum = 0;
    for (long i = 0; i < n; ++i) sum += a[i] * b[i];
    return (long)sum;
}
long first(long const* x) { return *x; }
long process(void) { return getpid(); }
"""


def environment(**more: str) -> dict[str, str]:
    path = os.pathsep.join([str(TESTS), *(p for p in sys.path if p)])
    return {
        **os.environ,
        "PYTHONPATH": path,
        "LD_BIND_NOW": "1",
        "OMP_THREAD_LIMIT": "1",
        "OMP_NUM_THREADS": "1",
        **more,
    }


def test_the_processor(tmp_path):
    """Arithmetic of 512 bits, a system call, a fault that ends the call, and life after it."""
    source, library = tmp_path / "functions.c", tmp_path / "functions.so"
    source.write_text(SOURCE)
    compiler = [os.environ.get("CC", "cc"), "-O3", "-ffast-math", "-mavx512f", "-mprefer-vector-width=512"]
    assembly = subprocess.run([*compiler, "-S", "-o", "-", source], check=True, capture_output=True, text=True).stdout
    assert "%zmm" in assembly, "the compiler found no use for AVX-512: the test would show nothing"
    subprocess.run([*compiler, "-shared", "-fPIC", source, "-o", library], check=True)
    subprocess.run([sys.executable, "-c", SCRIPT, library], env=environment(), check=True, timeout=300)


class Server:
    """emulated_avx512/server.py, started where none runs: at first, and after a test that ended it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process: subprocess.Popen[str] | None = None

    def run(self, name: str, *arguments: str, timeout_s: float) -> tuple[str, str]:
        """Return the exit status of pytest, or why there is none, and what was printed."""
        if self.process is None or self.process.poll() is not None:
            self.close()
            self.process = subprocess.Popen(
                [sys.executable, "-m", "emulated_avx512.server"],
                env=environment(SLEEPFM_EMULATED_CPU="avx512"),
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        printed = self.folder / f"{name}.txt"
        print(json.dumps([str(printed), *arguments]), file=self.process.stdin, flush=True)
        if select.select([self.process.stdout], [], [], timeout_s)[0]:
            answer = self.process.stdout.readline().strip() or f"the process ended with status {self.process.wait()}"
        else:
            self.process.kill()
            answer = f"no answer within {timeout_s} s"
        return answer, printed.read_text(errors="replace") if printed.exists() else ""

    def close(self) -> None:
        if self.process is not None:
            self.process.communicate(timeout=60)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("emulated"))
    yield server
    server.close()


@pytest.mark.skipif(HAS_AVX512, reason="this processor has AVX-512: the other tests run these kernels")
@pytest.mark.parametrize("name", SELECTIONS)
def test_kernels(name, server):
    arguments = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", str(TESTS / f"{name}.py"), "-k", SELECTIONS[name]]
    status, printed = server.run(name, *arguments, timeout_s=590)
    assert status == "0", status + printed[-8000:]
    found = re.search(r"on the emulated processor: (\d+) calls", printed)
    assert found, printed[-2000:]
    assert int(found[1]) > 10
