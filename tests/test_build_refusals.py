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


def refusal(folder: Path, *options: str, path: str | None = None, **variables: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name not in ("CXX", "CXXFLAGS", "CMAKE_ARGS")}
    environment.update(variables)
    if path is not None:
        environment["PATH"] = path
    command = [str(shutil.which("cmake")), "-S", str(ROOT), "-B", str(folder), "-DSLEEPFM_CUDA=OFF", *options]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode != 0
    return " ".join(done.stderr.split())


WITHOUT_OPENMP = ("-DSLEEPFM_OPENMP=ON", "-DCMAKE_DISABLE_FIND_PACKAGE_OpenMP=ON")
"""Options with which a build ends in a refusal after it has looked for compilers."""


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
    said = refusal(tmp_path / "build", *WITHOUT_OPENMP)  # in the same folder, after the compiler was installed
    assert "no C++ compiler" not in said
    assert "has no OpenMP" in said


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc on the PATH")
def test_nvcc_is_looked_for_again_where_an_earlier_build_did_not_find_it(tmp_path):
    options = ("-DSLEEPFM_CUDA=ON", "-DSLEEPFM_CUDA_ARCHITECTURES=75", "-DCMAKE_CUDA_COMPILER:FILEPATH=NOTFOUND")
    assert "SLEEPFM_CUDA_ARCHITECTURES has '75'" in refusal(tmp_path, *options)


def test_openmp_that_was_asked_for_and_is_not_there_is_no_silent_one_thread(tmp_path):
    said = refusal(tmp_path, *WITHOUT_OPENMP)
    assert "SLEEPFM_OPENMP=ON, but" in said
    assert "use SLEEPFM_OPENMP=AUTO or OFF" in said


def test_an_option_that_does_not_exist_is_refused_with_the_choices_and_forgotten(tmp_path):
    said = refusal(tmp_path, "-DSLEEPFM_CUDA_ARCHITECTURE=90")
    assert (
        "SLEEPFM_CUDA_ARCHITECTURE is no option of this build. There are SLEEPFM_CUDA, SLEEPFM_CUDA_ARCHITECTURES,"
        in said
    )
    assert "has no OpenMP" in refusal(tmp_path, *WITHOUT_OPENMP)


@pytest.mark.parametrize("option", ["SLEEPFM_CUDA", "SLEEPFM_OPENMP"])
def test_a_choice_that_does_not_exist_is_refused_and_forgotten(tmp_path, option):
    said = refusal(tmp_path, f"-D{option}=maybe")
    assert f"{option}=maybe: there are AUTO (build it where it is found), ON (fail without it) and OFF." in said
    assert "has no OpenMP" in refusal(tmp_path, *WITHOUT_OPENMP)


@pytest.mark.parametrize("word", ["off", "FALSE", "0"])
def test_every_word_of_cmake_for_off_turns_cuda_off(tmp_path, word):
    """Were it taken for AUTO, `nvcc` would be looked for, and would find this architecture too old."""
    said = refusal(tmp_path, f"-DSLEEPFM_CUDA={word}", "-DSLEEPFM_CUDA_ARCHITECTURES=75", *WITHOUT_OPENMP)
    assert "has no OpenMP" in said


def test_a_build_by_hand_without_pybind11_is_told_how_to_name_it(tmp_path):
    said = refusal(tmp_path, "-DCMAKE_DISABLE_FIND_PACKAGE_pybind11=ON")
    assert "pybind11 2.13 or newer was not found. `pip install .` brings it" in said
    assert "-Dpybind11_DIR=$(python -m pybind11 --cmakedir)" in said


@pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler")
def test_a_wrapper_of_the_compiler_is_not_taken_for_the_compiler(tmp_path):
    """As in `CXX="ccache g++"`; the wrapper alone is none."""
    wrapper = tmp_path / "wrapper"
    wrapper.write_text('#!/bin/sh\nexec "$@"\n')
    wrapper.chmod(0o755)
    assert "has no OpenMP" in refusal(tmp_path / "build", *WITHOUT_OPENMP, CXX=f"{wrapper} c++")


@pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler")
def test_flags_that_the_compiler_does_not_know_are_named(tmp_path):
    said = refusal(tmp_path, CXXFLAGS="-fno-such-flag")
    assert "no C++ compiler that works was found" in said
    assert "The environment asks for CXXFLAGS='-fno-such-flag': try without." in said


@pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler")
def test_flags_with_which_nan_is_not_nan_are_refused(tmp_path):
    said = refusal(tmp_path, CXXFLAGS="-O2 -ffast-math")
    assert (
        "-ffast-math is asked for (in CXXFLAGS, CMAKE_CXX_FLAGS or SLEEPFM_OPTIMIZATION): the kernels rely on NaN"
        in said
    )
