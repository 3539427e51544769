import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import sleepfm_fast
from sleepfm_fast.cli.command import describe_installation

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


def test_a_source_distribution_holds_what_git_tracks_and_no_recordings():
    """Anything else that lies in a clone, such as the README's `NIGHTS/` and `STORE`, stays out of it."""
    (listed,) = re.findall(
        r"^sdist\.exclude = \[\n(.*?)^\]", (ROOT / "pyproject.toml").read_text(), re.DOTALL | re.MULTILINE
    )
    first, *kept = re.findall(r'"(.*?)"', listed)
    assert first == "/*"
    assert all(name.startswith("!/") and (ROOT / name[2:]).exists() for name in kept)
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("needs git and a clone")
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert {name[2:] for name in kept} == {name.partition("/")[0] for name in tracked.splitlines()} - {".ci"}


def test_a_compiled_module_of_another_version_is_refused(monkeypatch):
    built = sleepfm_fast.__version__
    monkeypatch.setattr(sleepfm_fast, "__version__", "9.9.9")
    with pytest.raises(ImportError, match=rf"is of version {built}, the Python sources are of version 9\.9\.9\. Run"):
        sleepfm_fast.build_info()


def test_a_compiled_module_that_does_not_load_here_is_no_bug(tmp_path):
    """A wheel that was built elsewhere: its system libraries are missing or older here. Commands print the sentence."""
    from sleepfm_fast import _C

    ignored = shutil.ignore_patterns("_C.*", "__pycache__")
    shutil.copytree(ROOT / "sleepfm_fast", tmp_path / "sleepfm_fast", ignore=ignored)
    module = tmp_path / "sleepfm_fast" / Path(str(_C.__file__)).name
    module.write_bytes(b"no library")
    for use in ("from sleepfm_fast import _C", "sleepfm_fast.build_info()"):
        code = f"""
import sleepfm_fast
from sleepfm_fast.errors import SleepfmError
try:
    {use}
except SleepfmError as error:
    print(isinstance(error, ImportError), error)
"""
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert f"True the compiled module {module} does not load here: " in done.stdout, done.stderr
        assert "Build it on this machine (`pip install --force-reinstall --no-deps .`" in done.stdout


def test_a_package_that_is_missing_or_does_not_load_is_no_bug_of_ours():
    def described(code):
        try:
            exec(compile(code, "torch/__init__.py", "exec"), {})
        except Exception as error:
            return describe_installation(error)

    said = (
        "a package that sleepfm_fast needs cannot be imported: No module named 'no_such_package'. `python -m pip check`"
    )
    assert said in described("import no_such_package.part")
    assert "imported: libcudart.so.12: no such file" in described("raise ImportError('libcudart.so.12: no such file')")
    assert described("from math import no_such_function").startswith("a package that")
    assert described("from sleepfm_fast.ops import no_such_function") == ""
    assert described("import sleepfm_fast.no_such_module") == ""
    assert described("1 / 0") == ""


def test_sources_find_the_compiled_module_of_what_is_installed_or_say_what_to_do(tmp_path):
    """A clone's sources come before the installed package where Python is started in the clone."""
    from sleepfm_fast import _C

    ignored = shutil.ignore_patterns("_C.*", "__pycache__")
    shutil.copytree(ROOT / "sleepfm_fast", tmp_path / "sleepfm_fast", ignore=ignored)
    (tmp_path / "empty").mkdir()
    code = """
import sys
from importlib import metadata
from pathlib import Path
class Installed:
    def locate_file(self, name):
        return Path(sys.argv[1])
def distribution(name):
    if not sys.argv[1:]:
        raise metadata.PackageNotFoundError(name)
    return Installed()
metadata.distribution = distribution
import sleepfm_fast
print(sleepfm_fast.__file__, sleepfm_fast.build_info()["version"])
"""
    for installed in ([], [tmp_path / "empty"], [tmp_path / "removed"]):
        command = [sys.executable, "-c", code, *map(str, installed)]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 1
        sentence = f"found neither in {tmp_path / 'sleepfm_fast'} nor in an installed sleepfm_fast. Run `pip install .`"
        assert sentence in done.stderr
    command = [sys.executable, "-c", code, str(Path(_C.__file__).parent)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    found = f"{tmp_path / 'sleepfm_fast' / '__init__.py'} {sleepfm_fast.__version__}"
    assert done.stdout.strip() == found, done.stderr


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
