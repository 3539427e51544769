"""Which architectures a build is configured for; needs CMake and nvcc, compiles nothing and needs no GPU."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        shutil.which("cmake") is None or shutil.which("nvcc") is None, reason="needs cmake and nvcc on the PATH"
    ),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One build folder: in a second one, CMake would try the compilers once more."""
    return tmp_path_factory.mktemp("build")


def configured(
    folder: Path, architectures: str, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    found = subprocess.run(
        [sys.executable, "-m", "pybind11", "--cmakedir"], capture_output=True, text=True, check=False
    ).stdout.strip()
    if not found:
        pytest.skip("pybind11 is not installed")
    options = {"SLEEPFM_CUDA": "ON", "SLEEPFM_CUDA_ARCHITECTURES": architectures, "pybind11_DIR": found}
    command = ["cmake", "-S", str(ROOT), "-B", str(folder), *(f"-D{name}={value}" for name, value in options.items())]
    command.append(f"-DPython_EXECUTABLE={sys.executable}")
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


def test_a_toolkit_that_is_not_on_the_path_is_found_as_torch_finds_it(tmp_path):
    """CUDA_HOME, which torch's own extensions are built with, comes before everything else."""
    home = tmp_path / "cuda"
    (home / "bin").mkdir(parents=True)
    nvcc = home / "bin" / "nvcc"
    nvcc.write_text(f'#!/bin/sh\nexec {shutil.which("nvcc")} "$@"\n')
    nvcc.chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if name not in ("CUDACXX", "CUDA_PATH")}
    environment["CUDA_HOME"] = str(home)
    done = configured(tmp_path / "build", "90", environment)
    assert done.returncode == 0, done.stderr
    assert "CUDA kernels ON" in done.stdout
    assert f"Looking for a CUDA compiler - {nvcc}" in done.stdout


def test_words_become_numbers_that_the_module_knows(folder):
    done = configured(folder, "all-major")
    assert done.returncode == 0, done.stderr
    (names,) = re.findall(r"CUDA kernels ON, nvcc \S+, architectures (\S+)", done.stdout)
    assert re.fullmatch(r"80-real(;\d+-real)*(;\d+)?", names), names


@pytest.mark.parametrize(
    ("architectures", "sentence"),
    [
        ("75;80", "has '75'. The kernels are for compute capability 8.0 and newer: numbers such as 80, 90 or 120"),
        ("native", "none of compute capability 8.0 or newer. Name the architectures, for example 90 or 120."),
    ],
)
def test_what_the_kernels_cannot_run_on_is_refused(architectures, sentence, folder):
    if architectures == "native" and shutil.which("nvidia-smi"):
        pytest.skip("there is a GPU, which is native")
    done = configured(folder, architectures)
    assert done.returncode != 0
    assert sentence in " ".join(done.stderr.split())
