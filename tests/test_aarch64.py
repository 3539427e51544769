"""The CPU kernels on 64-bit ARM, from a machine that is none: compiled, and run where an emulator is installed.

On Debian, ``apt-get install g++-aarch64-linux-gnu qemu-user`` brings both. CONTRIBUTING.md says how to run the tests
in Python under emulation.
"""

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
COMPILER = shutil.which("aarch64-linux-gnu-g++")
EMULATOR = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
WARNINGS = "-Wall -Wextra -Wshadow -Wconversion -Wno-sign-conversion -Werror"
OTHERS = ("_avx2", "_avx512", "_avx512_bf16", "_amx")  # sources for other processors
OPTIONS = ["-std=c++17", f"-I{ROOT / 'csrc'}", "-fopenmp", "-ffp-contract=fast", "-fno-math-errno"]

pytestmark = [
    pytest.mark.skipif(platform.machine() == "aarch64", reason="this machine is one: every other test runs on it"),
    pytest.mark.skipif(COMPILER is None, reason="needs g++-aarch64-linux-gnu"),
]


def sources():
    """All but those for instruction sets of other processors."""
    paths = [path for path in (ROOT / "csrc" / "cpu").glob("*.cpp") if not path.stem.endswith(OTHERS)]
    assert len(paths) >= 10
    return [str(path) for path in sorted(paths)]


def test_the_kernels_compile_without_warnings():
    command = [COMPILER, "-fsyntax-only", *OPTIONS, *WARNINGS.split(), *sources()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.skipif(EMULATOR is None, reason="needs qemu-user")
def test_every_op_gives_the_bits_of_one_thread_on_several(tmp_path):
    """``tests/races.cpp`` under emulation, which orders memory as this machine does: races of ARM's own do not show."""
    program = tmp_path / "races"
    options = ["-O1", "-static", "-w", *OPTIONS]
    command = [COMPILER, *options, str(ROOT / "tests" / "races.cpp"), *sources(), "-o", str(program)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    done = subprocess.run([EMULATOR, str(program), "3", "1"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "on 3 threads, instruction set portable: 0 with other bits" in done.stdout
