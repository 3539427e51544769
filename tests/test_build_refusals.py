"""What a build says where it cannot be: on Windows, without a compiler, without OpenMP. Compiles nothing of ours."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TOOLS = ("make", "ninja", "sh", "uname")

pytestmark = pytest.mark.skipif(shutil.which("cmake") is None, reason="needs cmake on the PATH")


def refusal(folder: Path, *options: str, path: str | None = None) -> str:
    environment = {name: value for name, value in os.environ.items() if name not in ("CXX", "CXXFLAGS", "CMAKE_ARGS")}
    if path is not None:
        environment["PATH"] = path
    command = [str(shutil.which("cmake")), "-S", str(ROOT), "-B", str(folder), "-DSLEEPFM_CUDA=OFF", *options]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode != 0
    return " ".join(done.stderr.split())


def test_windows_is_told_of_its_linux(tmp_path):
    said = refusal(tmp_path, "-DCMAKE_HOST_WIN32=1")
    assert "sleepfm_fast needs Linux or macOS. Windows brings a Linux, WSL2: run `wsl --install -d Ubuntu`" in said
    assert "compiler" not in said


def test_a_machine_without_a_compiler_is_told_what_to_install(tmp_path):
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in TOOLS:
        if found := shutil.which(tool):
            (tools / tool).symlink_to(found)
    said = refusal(tmp_path / "build", path=str(tools))
    assert "no C++ compiler that works was found" in said
    for command in ("apt install g++ python3-dev", "dnf install gcc-c++ python3-devel", "xcode-select --install"):
        assert command in said


def test_openmp_that_was_asked_for_and_is_not_there_is_no_silent_one_thread(tmp_path):
    said = refusal(tmp_path, "-DSLEEPFM_OPENMP=ON", "-DCMAKE_DISABLE_FIND_PACKAGE_OpenMP=ON")
    assert "SLEEPFM_OPENMP=ON, but" in said
    assert "use SLEEPFM_OPENMP=AUTO or OFF" in said
