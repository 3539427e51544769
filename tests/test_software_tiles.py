"""The kernels on Intel's tiles (AMX) where no processor has them: other tests again, on csrc/cpu/tiles_in_software.h.

SLEEPFM_TEST_SOFTWARE_TILES, a processor that the compiler knows (native, x86-64-v3), has them run on any x86-64.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import sleepfm_fast

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
WANTED = os.environ.get("SLEEPFM_TEST_SOFTWARE_TILES", "")
HAS_TILES = "amx" in sleepfm_fast.build_info()["cpu_instruction_sets"]

# Files, and which of their tests: those that compare instruction sets, and those of the encoder's errors, do so without
# tiles.
SELECTIONS = {
    "test_mbconv_bfloat16.py test_encoder_evaluate.py": (
        "not nearer and not build_info and not instruction_set and not variant or variant and amx"
    ),
    "test_ranks.py test_rank_bounds.py": (
        "(ties or nearly or duplicates or cones or constant or 300) and not instruction_set"
    ),
    "test_contrastive_tiles.py": "not instruction_set and not 257 and not 51 and not many and not 1025 and not 4.0-",
}

pytestmark = [
    pytest.mark.skipif(platform.machine() != "x86_64" or sys.platform != "linux", reason="needs Linux on x86-64"),
    pytest.mark.skipif(HAS_TILES and not WANTED, reason="this processor has tiles: the other tests run these kernels"),
    pytest.mark.skipif(
        shutil.which("cmake") is None or importlib.util.find_spec("pybind11") is None,
        reason="needs cmake, and `pip install pybind11`",
    ),
]


def environment(folder: Path) -> dict[str, str]:
    path = os.pathsep.join([str(folder), *(p for p in sys.path if p)])
    return {**os.environ, "PYTHONPATH": path, "SLEEPFM_CPU": "amx"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The package and its tests beside a compiled module of portable kernels and those on tiles."""
    import pybind11

    folder = tmp_path_factory.mktemp("software_tiles")
    build = folder / "build"
    options = {
        "CMAKE_BUILD_TYPE": "None",
        "SLEEPFM_CUDA": "OFF",
        "SLEEPFM_OPTIMIZATION": "-O1",
        "SLEEPFM_TILES_IN_SOFTWARE": WANTED or "native",
        "Python_EXECUTABLE": sys.executable,
        "pybind11_DIR": pybind11.get_cmake_dir(),
    }
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    build = folder / "build"
    configure = ["cmake", "-S", ROOT, "-B", build, *generator]
    configure += [f"-D{name}={value}" for name, value in options.items()]
    for command in (configure, ["cmake", "--build", build, "--parallel", "4"]):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    ignored = shutil.ignore_patterns("_C*.so", "__pycache__")
    shutil.copytree(ROOT / "sleepfm_fast", folder / "sleepfm_fast", ignore=ignored)
    shutil.copytree(TESTS, folder / "tests", ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", folder)
    (module,) = build.glob("_C*.so")
    shutil.move(module, folder / "sleepfm_fast")
    shutil.rmtree(build)
    code = "import sleepfm_fast; print(*sleepfm_fast.build_info()['cpu_instruction_sets'], sleepfm_fast.__file__)"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=folder, env=environment(folder), capture_output=True, text=True, check=False)
    assert done.stdout == f"portable amx {folder / 'sleepfm_fast' / '__init__.py'}\n", done.stderr
    return folder


@pytest.mark.parametrize("files", SELECTIONS)
def test_kernels(files, folder):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    command += ["-k", SELECTIONS[files], *(str(folder / "tests" / name) for name in files.split())]
    done = subprocess.run(command, cwd=folder, env=environment(folder), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]  # also of a thread that keeps its tiles
    found = re.search(r"(\d+) passed", done.stdout)
    assert found, done.stdout
    assert int(found[1]) > 20
