"""The compiled core for Apple's ARM processors, from a machine that is none: compiled and linked, never run.

``pip install ziglang`` brings a Clang with the headers of macOS. CONTRIBUTING.md says how to build the whole module.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sleepfm_fast import system

ROOT = Path(__file__).resolve().parents[1]
WARNINGS = "-Wall -Wextra -Wshadow -Wconversion -Wno-sign-conversion -Werror"
OPTIONS = [
    "-Wno-unused-command-line-argument",
    "-std=c++17",
    f"-I{ROOT / 'csrc'}",
    "-ffp-contract=fast",
    "-fno-math-errno",
]
OTHERS = ("_avx2", "_avx512", "_avx512_bf16", "_amx")  # sources for other processors
WITH_THREADS = ["-Xclang", "-fopenmp"]

pytestmark = [
    pytest.mark.skipif(sys.platform == "darwin", reason="this machine is one: every other test runs on it"),
    pytest.mark.skipif(importlib.util.find_spec("ziglang") is None, reason="needs `pip install ziglang`"),
]


@pytest.fixture(scope="module")
def clang():
    cache = str(ROOT / "build" / "zig")  # a first link compiles the C++ library
    environment = {**os.environ, "ZIG_GLOBAL_CACHE_DIR": cache, "ZIG_LOCAL_CACHE_DIR": cache}

    def compile_with(*arguments):
        command = [sys.executable, "-m", "ziglang", "c++", "--target=aarch64-macos.14.0", *OPTIONS, *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    return compile_with


def sources():
    paths = [path for path in (ROOT / "csrc" / "cpu").glob("*.cpp") if not path.stem.endswith(OTHERS)]
    assert len(paths) >= 10
    return [str(path) for path in sorted(paths)]


@pytest.mark.slow
@pytest.mark.parametrize("threads", [False, True])
def test_the_kernels_compile_without_warnings_and_link(clang, tmp_path, threads):
    """A program that calls every op leaves no name open; beside macOS's own library it takes torch's OpenMP or none."""
    options = WITH_THREADS if threads else []
    objects = []
    for source in sources():
        objects.append(str(tmp_path / f"{Path(source).stem}.o"))
        done = clang("-O1", "-c", *options, *WARNINGS.split(), source, "-o", objects[-1])
        assert done.returncode == 0, done.stderr
    stub = [str(ROOT / "csrc" / "libomp.tbd")] if threads else []
    program = tmp_path / "races"
    done = clang("-O1", "-w", *options, str(ROOT / "tests" / "races.cpp"), *objects, *stub, "-o", str(program))
    assert done.returncode == 0, done.stderr
    content = program.read_bytes()
    assert content[:8] == bytes.fromhex("cffaedfe0c000001"), "Mach-O of 64 bits, ARM"
    assert (b"@rpath/libomp.dylib\0" in content) == threads


def test_what_system_py_says_of_macos_is_what_its_headers_say(clang, tmp_path):
    source = tmp_path / "facts.cpp"
    facts = {
        "F_RDAHEAD": system.F_RDAHEAD,
        "F_FULLFSYNC": system.F_FULLFSYNC,
        "CTL_KERN": system.CTL_KERN,
        "KERN_PROC": system.KERN_PROC,
        "KERN_PROC_PID": system.KERN_PROC_PID,
        "SZOMB": system.ZOMBIE,
        "sizeof(kinfo_proc)": system.KINFO_PROC_BYTES,
        "offsetof(kinfo_proc, kp_proc.p_un.__p_starttime.tv_sec)": system.START_AT,
        "offsetof(kinfo_proc, kp_proc.p_un.__p_starttime.tv_usec)": system.START_AT + 8,
        "sizeof(timeval::tv_sec)": 8,
        "sizeof(timeval::tv_usec)": 4,
        "offsetof(kinfo_proc, kp_proc.p_stat)": system.STATE_AT,
        "sizeof(extern_proc::p_stat)": 1,
        "MADV_WILLNEED": 3,
        "sizeof(off_t)": 8,  # what Numba is told of pread(2)
        "sizeof(ssize_t)": 8,
    }
    headers = "cstddef fcntl.h sys/mman.h sys/types.h sys/sysctl.h sys/proc.h"
    lines = [f"#include <{header}>" for header in headers.split()]
    lines += [f'static_assert({name} == {value}, "");' for name, value in facts.items()]
    lines += [
        "int (*a)(int*, u_int, void*, size_t*, void*, size_t) = sysctl;",
        "int (*b)(char const*, void*, size_t*, void*, size_t) = sysctlbyname;",
        "int (*c)(void*, size_t, int) = madvise;",
    ]
    source.write_text("\n".join(lines) + "\n")
    done = clang("-c", "-Wno-invalid-offsetof", str(source), "-o", str(tmp_path / "facts.o"))
    assert done.returncode == 0, done.stderr
    source.write_text(source.read_text().replace("F_FULLFSYNC == 51", "F_FULLFSYNC == 52"))
    assert "F_FULLFSYNC == 52" in clang("-c", str(source), "-o", str(tmp_path / "facts.o")).stderr
