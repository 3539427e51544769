"""A build without nvcc: csrc/without_cuda.cpp stands in for the .cu files, and refuses."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

CSRC = Path(__file__).resolve().parents[1] / "csrc"
SOURCE = CSRC / "without_cuda.cpp"

pytestmark = pytest.mark.skipif(
    shutil.which("g++") is None or shutil.which("nm") is None or not SOURCE.is_file(),
    reason="needs g++, nm and the sources",
)


def called_by_the_bindings() -> set[str]:
    """Functions for a device that the bindings call, which is what a module without them could not resolve."""
    code = "".join(path.read_text() for path in (CSRC / "bindings").glob("*.cpp"))
    declared = "".join(path.read_text() for path in (CSRC / "cuda").glob("*.h"))
    names = set(re.findall(r"\b(?:void|std::int64_t) (\w+_cuda\w*)\(", declared))
    return {name for name in names if re.search(rf"sleepfm::{name}\b|\b{name}\(", code)}


def test_everything_that_the_bindings_call_is_there_and_refuses(tmp_path):
    names = called_by_the_bindings()
    assert len(names) >= 14
    binary = tmp_path / "without_cuda.o"
    subprocess.run(
        ["g++", "-std=c++17", "-Wall", "-Wextra", "-Werror", f"-I{CSRC}", "-c", str(SOURCE), "-o", str(binary)],
        check=True,
        timeout=120,
    )
    symbols = subprocess.run(["nm", "-C", str(binary)], check=True, capture_output=True, text=True, timeout=60).stdout
    defined = {found.group(1) for found in re.finditer(r" T sleepfm::(\w+)\(", symbols)}
    assert names == defined

    calls = {
        "filter_resample": "filter_resample_cuda({}, 0, nullptr)",
        "contrastive_loss": "contrastive_small_cuda({}, 0, nullptr)",
        "mbconv_evaluate": "mbconv_evaluate_cuda_bf16({}, 0, nullptr)",
        "mbconv_train": "mbconv_activate_cuda({}, 1, 0, nullptr)",
    }
    headers = ("contrastive_small", "filter_resample", "mbconv_evaluate", "mbconv_train")
    program = [f'#include "cuda/{header}.h"' for header in headers] + [
        "#include <cstdio>",
        "#include <stdexcept>",
        "int main() {",
        *(
            f"try {{ sleepfm::{call}; }} catch (std::invalid_argument const& e) {{ std::puts(e.what()); }}"
            for call in calls.values()
        ),
        "}",
    ]
    (tmp_path / "calls.cpp").write_text("\n".join(program) + "\n")
    command = [
        "g++",
        "-std=c++17",
        f"-I{CSRC}",
        str(tmp_path / "calls.cpp"),
        str(binary),
        "-o",
        str(tmp_path / "calls"),
    ]
    subprocess.run(command, check=True, timeout=120)
    said = subprocess.run([str(tmp_path / "calls")], check=True, capture_output=True, text=True, timeout=60).stdout
    lines = said.splitlines()
    for op, line in zip(calls, lines, strict=True):
        assert line.startswith(f"{op}: this build has no CUDA kernels. Install the CUDA toolkit (nvcc) and run")
        assert line.endswith(("or move the tensors to the CPU.", "or leave the blocks to torch."))
