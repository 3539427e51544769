"""What a test starts ends with it, sessions and orphans included, and its output is in the failure."""

import os
import sys
import time

import process_trees
import pytest
from process_trees import is_running, run_together

# As torchrun does: the launcher waits for ranks that have sessions of their own. One launcher ends before its rank.
LAUNCHER = """
import pathlib, subprocess, sys
mode, folder = sys.argv[1:]
rank = "import os, sys, time; print('the rank speaks', flush=True); sys.stdout.close(); "
rank += "tell = lambda: print(os.getpid(), file=open(sys.argv[1], 'w')); "
rank += "waiting_for_ever = lambda: [tell(), time.sleep(300)]; waiting_for_ever()"
process = subprocess.Popen([sys.executable, "-c", rank, folder + "/pid"], start_new_session=True)
while not pathlib.Path(folder, "pid").exists() or not pathlib.Path(folder, "pid").read_text().endswith("\\n"):
    pass
if mode == "waits":
    process.wait()
sys.exit(3 if mode == "fails" else 0)
"""


class Clock:
    """Runs ahead by an hour as soon as a file holds a line: a limit is over once what it limits has begun."""

    def __init__(self, file):
        self.file = file
        self.sleep = time.sleep

    def monotonic(self):
        return time.monotonic() + 3600 * (self.file.exists() and self.file.read_text().endswith("\n"))


@pytest.mark.parametrize(
    ("mode", "sentence"),
    [
        ("waits", r"not done within 300 s \(exit statuses \[None\]\)"),
        ("fails", r"a process failed \(exit statuses \[3\]"),
    ],
)
def test_no_process_outlives_a_failure_which_shows_its_output(tmp_path, monkeypatch, mode, sentence):
    if mode == "waits":
        monkeypatch.setattr(process_trees, "time", Clock(tmp_path / "pid"))
    (tmp_path / "0-1.err").write_text("what a rank wrote elsewhere\n")
    command = [sys.executable, "-c", LAUNCHER, mode, str(tmp_path)]
    begin = time.monotonic()
    with pytest.raises(AssertionError, match=sentence) as failure:
        run_together([command], os.environ, timeout_s=300, folder=tmp_path)
    assert time.monotonic() - begin < 30
    assert not is_running(int((tmp_path / "pid").read_text()))
    for words in ("the rank speaks", "what a rank wrote elsewhere", "Fatal Python error: Aborted", "<lambda>"):
        assert words in str(failure.value)


def test_a_process_that_fails_ends_the_others_at_once(tmp_path):
    commands = [[sys.executable, "-c", code] for code in ("import time; time.sleep(300)", "exit('no')")]
    begin = time.monotonic()
    with pytest.raises(AssertionError, match=r"a process failed .*\[None, 1\]"):
        run_together(commands, os.environ, timeout_s=300, folder=tmp_path)
    assert time.monotonic() - begin < 60


def test_what_success_leaves_behind_is_stopped_too(tmp_path):
    run_together([[sys.executable, "-c", LAUNCHER, "ends", str(tmp_path)]], os.environ, timeout_s=60, folder=tmp_path)
    assert not is_running(int((tmp_path / "pid").read_text()))
