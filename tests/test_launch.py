"""Launch geometry of the CUDA kernels, and what a build says where there is no GPU; neither needs one."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from gpu_visibility import gpu_is_here

import sleepfm_fast
from sleepfm_fast import _C

CHECK = Path(__file__).resolve().parents[1] / "csrc" / "check.h"

# Largest shared memory of a block and of a multiprocessor by compute capability, KiB.
SHARED_KIB = {"80": (163, 164), "86": (99, 100), "89": (99, 100), "90": (227, 228)}
STATIC_BYTES = 6 * 1024  # the kernel's own, at most (csrc/launch.h; tests/test_cuda_binary.py)
SHARED_LIMITS = {name: kib[0] * 1024 - STATIC_BYTES - 1024 for name, kib in SHARED_KIB.items()}


@pytest.mark.parametrize("architecture", SHARED_LIMITS)
@pytest.mark.parametrize("n_out", [1, 7, 2047, 2048, 2049, 7680, 30000, 7_372_800, 2**31 - 1])
@pytest.mark.parametrize("statistics", [False, True])
def test_every_output_is_covered_once(architecture: str, n_out: int, statistics: bool) -> None:
    limit = SHARED_LIMITS[architecture]
    g = _C.filter_resample_launch(32, 13, n_out, statistics, limit)
    assert g["rows"] == 32 * 13
    assert (g["slices"] - 1) * g["outputs_per_slice"] < n_out <= g["slices"] * g["outputs_per_slice"]
    assert 1 <= g["slices"] <= 65535
    assert 40 * 1024 <= g["shared_bytes"] == 4 * g["workspace_floats"] <= limit
    assert g["workspace_floats"] % 4 == 0
    assert g["threads"] == 256
    if statistics:  # they need the whole row in one block
        assert g["slices"] == 1


@pytest.mark.parametrize("architecture", SHARED_LIMITS)
def test_two_blocks_share_a_multiprocessor(architecture: str) -> None:
    """With their static memory and the KiB that the system takes of each."""
    g = _C.filter_resample_launch(32, 13, 7680, True, SHARED_LIMITS[architecture])
    assert 2 * (g["shared_bytes"] + STATIC_BYTES + 1024) <= SHARED_KIB[architecture][1] * 1024


def test_rows_of_a_minute_get_a_larger_workspace_for_their_statistics() -> None:
    limit = SHARED_LIMITS["80"]
    usual = _C.filter_resample_launch(32, 13, 7680, True, limit)["workspace_floats"]
    assert _C.filter_resample_launch(32, 13, 15360, True, limit)["workspace_floats"] > usual
    assert _C.filter_resample_launch(32, 13, 15360, False, limit)["workspace_floats"] == usual


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((0, 1, 1, False, 1 << 20), "a batch of 0 clips, 1 channels and 1 outputs is empty"),
        ((1 << 20, 1 << 12, 1, False, 1 << 20), "more blocks than a CUDA grid holds"),
        ((1, 1, 1, False, 1024), "gives a block 1024 bytes of shared memory; 40960 are needed"),
    ],
)
def test_impossible_launches_are_refused(arguments: tuple[int, int, int, bool, int], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        _C.filter_resample_launch(*arguments)


def test_without_a_gpu_the_call_says_what_is_missing() -> None:
    if gpu_is_here():  # the kernel would run, on addresses of nothing
        pytest.skip("a CUDA device is here: tests marked cuda run the kernel itself")
    call = (0, 0, 2, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 10, False, 1, 0, 0)
    if sleepfm_fast.build_info()["cuda_architectures"]:
        with pytest.raises(RuntimeError, match=r"CUDA driver|no CUDA-capable device"):
            _C.filter_resample(*call)
    else:
        with pytest.raises(ValueError, match=r"this build has no CUDA kernels\. Install the CUDA toolkit"):
            _C.filter_resample(*call)


FAILING_CALLS = """
enum cudaError_t { cudaSuccess, cudaErrorNoKernelImageForDevice, cudaErrorInsufficientDriver,
                   cudaErrorUnsupportedPtxVersion, cudaErrorJitCompilerNotFound, cudaErrorUnknown };
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline char const* cudaGetErrorString(cudaError_t) { return "what the runtime says"; }
inline char const* cudaGetErrorName(cudaError_t) { return "its name"; }
#include "check.h"
#include <cstdio>
int main() {
    for (int status = 0; status <= cudaErrorUnknown; ++status) {
        try {
            SLEEPFM_CUDA_CHECK(static_cast<cudaError_t>(status));
            std::puts("fine");
        } catch (std::runtime_error const& error) {
            std::puts(error.what());
        }
    }
}
"""


def test_a_gpu_that_the_build_does_not_suit_is_told_what_to_do(tmp_path: Path) -> None:
    """Of a build without machine code for the GPU, without PTX, with PTX that the driver cannot compile."""
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None or not CHECK.is_file():
        pytest.skip("no C++ compiler, or no sources")
    (tmp_path / "calls.cpp").write_text(FAILING_CALLS)
    command = [compiler, "-std=c++17", f"-I{CHECK.parent}", "-o", str(tmp_path / "calls"), str(tmp_path / "calls.cpp")]
    subprocess.run(command, check=True, timeout=120)
    done = subprocess.run([str(tmp_path / "calls")], check=True, capture_output=True, text=True, timeout=60)
    fine, no_image, old_driver, old_compiler, no_compiler, unknown = done.stdout.splitlines()
    assert fine == "fine"
    assert unknown.endswith("failed: what the runtime says (its name).")
    assert "This build has no kernels for this GPU: build again there" in no_image
    assert "newer than this machine's driver: update the driver" in old_driver
    for line in (old_compiler, no_compiler):
        assert "newer than the machine code of this build, and its driver cannot compile the rest" in line
        assert "SLEEPFM_CUDA_ARCHITECTURES" in line
