import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import sleepfm_fast

ROOT = Path(__file__).resolve().parents[1]


def python(code, cwd=ROOT):
    return subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, check=False)


def test_import_does_no_work():
    result = python("import sys, sleepfm_fast; print(sorted({'torch', 'numpy', 'numba', 'scipy'} & set(sys.modules)))")
    assert result.stdout.strip() == "[]", result.stdout + result.stderr


def test_the_loss_does_without_the_design_of_filters():
    result = python("import sys, sleepfm_fast.ops; print('scipy.signal' in sys.modules)")
    assert result.stdout.strip() == "False", result.stdout + result.stderr


def test_build_info_says_what_was_built():
    info = sleepfm_fast.build_info()
    assert info["version"] == sleepfm_fast.__version__
    assert info["architecture"] == platform.machine()
    assert info["cpu_instruction_sets"][0] == "portable"
    assert info["cpu_instruction_set_in_use"] in info["cpu_instruction_sets"]
    assert isinstance(info["cuda_architectures"], list)
    assert bool(info["cuda_architectures"]) == bool(info["cuda_compiler"])


def test_an_instruction_set_that_is_not_there_is_refused_with_the_choices():
    code = (
        "import os; os.environ['SLEEPFM_CPU'] = 'avx1024'\nimport sleepfm_fast\n"
        "try:\n    sleepfm_fast.build_info()\nexcept ValueError as e:\n    print(e)"
    )
    printed = python(code).stdout
    assert "avx1024" in printed
    assert "portable" in printed


def test_versions_agree():
    text = (ROOT / "pyproject.toml").read_text()
    assert f'version = "{sleepfm_fast.__version__}"' in text
    assert f"version: {sleepfm_fast.__version__}" in (ROOT / "CITATION.cff").read_text()


@pytest.mark.skipif(shutil.which("nm") is None or sys.platform != "linux", reason="needs nm, of Linux's binutils")
def test_the_module_exports_no_function_of_ours():
    """Those of the CUDA sources neither; another library's of the same name would take their place."""
    from sleepfm_fast import _C

    command = ["nm", "-D", "--defined-only", str(_C.__file__)]
    listed = subprocess.run(command, capture_output=True, text=True, check=True)
    names = [line.split()[-1] for line in listed.stdout.splitlines()]
    assert "PyInit__C" in names
    assert [name for name in names if "7sleepfm" in name] == []


def test_the_core_knows_neither_python_nor_torch():
    for path in (ROOT / "csrc").rglob("*.*"):
        if path.parent.name != "bindings":
            text = path.read_text()
            for header in ("torch/", "ATen/", "c10/", "pybind11/", "Python.h"):
                assert f"#include <{header}" not in text, f"{path} includes {header}"
                assert f'#include "{header}' not in text, f"{path} includes {header}"
