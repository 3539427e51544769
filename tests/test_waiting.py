"""Commands shorten OpenMP's wait, and choose its threads by their quota, before torch is there to read that.

Programs that import the package keep their own.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
SHOW = """
import atexit, os, sys
class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            sys.stderr.write(f"torch found {os.environ.get('GOMP_SPINCOUNT')}\\n")
sys.meta_path.insert(0, Watch())
"""


def spins(folder, started, **settings):
    """What torch finds when it is imported."""
    (folder / "sitecustomize.py").write_text(SHOW)
    kept = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    done = subprocess.run(
        [sys.executable, *started],
        env={**kept, **settings, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    found = [line.split()[-1] for line in done.stderr.splitlines() if line.startswith("torch found")]
    assert len(found) == 1, done.stderr
    return found[0]


@pytest.mark.parametrize("started", [["-m", "sleepfm_fast.train"], ["-m", "sleepfm_fast", "train"]])
def test_a_command_waits_briefly(tmp_path, started):
    # The folders do not exist, which the command says after torch is imported.
    assert spins(tmp_path, [*started, "no-store", "run"]) == "1000"


@pytest.mark.parametrize(
    ("name", "value", "found"), [("GOMP_SPINCOUNT", "7", "7"), ("OMP_WAIT_POLICY", "active", "None")]
)
def test_what_the_user_has_set_stays(tmp_path, name, value, found):
    assert spins(tmp_path, ["-m", "sleepfm_fast.train", "no-store", "run"], **{name: value}) == found


def test_a_program_that_imports_the_package_keeps_its_own(tmp_path):
    assert spins(tmp_path, ["-c", "import sleepfm_fast.ops"]) == "None"
    (tmp_path / "tool.py").write_text("import sleepfm_fast.ops")
    assert spins(tmp_path, ["-m", "tool"]) == "None"


QUOTA = """
import os, sys
import sleepfm_fast.system as system
from sleepfm_fast.cli import thread_quota
how = sys.argv[1]
system.processor_quota = lambda: float(os.cpu_count() or 1) if how == "whole" else 0.5
thread_quota.processor_quota = system.processor_quota
thread_quota.is_a_command = lambda: how != "program"
os.environ.pop("OMP_NUM_THREADS", None)
if how == "set":
    os.environ["OMP_NUM_THREADS"] = "2"
thread_quota.keep_to_quota()
import torch
print(os.environ.get("OMP_NUM_THREADS"), torch.get_num_threads() if how in ("quota", "set") else "")
"""


@pytest.mark.parametrize(
    ("how", "expected"), [("quota", "1 1"), ("set", "2 2"), ("program", "None"), ("whole", "None")]
)
def test_a_command_in_a_container_has_as_many_threads_as_its_quota(how, expected):
    done = subprocess.run(
        [sys.executable, "-c", QUOTA, how], cwd=ROOT, capture_output=True, text=True, check=False, timeout=100
    )
    assert done.stdout.strip() == expected, done.stderr
