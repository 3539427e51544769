"""Launch geometry of the CUDA kernels, and what a build says where there is no GPU; neither needs one."""

from __future__ import annotations

import pytest
import torch

import sleepfm_fast
from sleepfm_fast import _C

# Largest dynamic shared memory of a block by compute capability, less the kernel's 4 KiB of static shared memory.
SHARED_LIMITS = {"80": 163 * 1024 - 4096, "86": 99 * 1024 - 4096, "89": 99 * 1024 - 4096, "90": 227 * 1024 - 4096}


@pytest.mark.parametrize("architecture", SHARED_LIMITS)
@pytest.mark.parametrize("n_out", [1, 7, 2047, 2048, 2049, 7680, 30000, 7_372_800, 2**31 - 1])
@pytest.mark.parametrize("zscore", [False, True])
def test_every_output_is_covered_once(architecture: str, n_out: int, zscore: bool) -> None:
    limit = SHARED_LIMITS[architecture]
    g = _C.filter_resample_launch(32, 13, n_out, zscore, limit)
    assert g["rows"] == 32 * 13
    assert (g["slices"] - 1) * g["outputs_per_slice"] < n_out <= g["slices"] * g["outputs_per_slice"]
    assert 1 <= g["slices"] <= 65535
    assert g["shared_bytes"] == 4 * (g["workspace_floats"] + g["kept_floats"]) <= limit
    assert g["threads"] & (g["threads"] - 1) == 0
    if zscore:  # statistics need the whole row in one block
        assert g["slices"] == 1
        assert g["kept_floats"] in (0, n_out)
    else:
        assert g["kept_floats"] == 0


def test_clips_of_thirty_seconds_stay_in_shared_memory_on_every_architecture() -> None:
    for limit in SHARED_LIMITS.values():
        assert _C.filter_resample_launch(32, 9, 7680, True, limit)["kept_floats"] == 7680
    assert _C.filter_resample_launch(32, 9, 60000, True, SHARED_LIMITS["86"])["kept_floats"] == 0


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
    if torch.cuda.is_available():
        pytest.skip("a CUDA device is here: tests marked cuda run the kernel itself")
    call = (0, 0, 2, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 10, False, 1, 0, 0)
    if sleepfm_fast.build_info()["cuda_architectures"]:
        with pytest.raises(RuntimeError, match=r"CUDA driver|no CUDA-capable device"):
            _C.filter_resample(*call)
    else:
        with pytest.raises(ValueError, match=r"this build has no CUDA kernels\. Install the CUDA toolkit"):
            _C.filter_resample(*call)
