"""Standard streams that are closed or full: the work is done, and files stay what they are."""

import os
import subprocess
import sys
from io import StringIO
from pathlib import Path

import pytest

from sleepfm_fast.cli import bars
from sleepfm_fast.cli.standard_streams import Unbroken

ROOT = Path(__file__).resolve().parents[1]

CLOSED = """
import os, sys
from sleepfm_fast.cli.standard_streams import occupy
occupy()
with open(sys.argv[1], "w") as file:
    assert file.fileno() > 2, file.fileno()
    print("printed")
    print("said", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    assert sys.stdin.read() == ""
    assert all(os.get_inheritable(number) for number in range(3))
    file.write("data")
"""


@pytest.mark.parametrize("closed", ["", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_what_is_closed_takes_no_data_and_gives_no_number(tmp_path, closed):
    command = f'"$0" -c "$1" "$2" </dev/null {closed}'
    done = subprocess.run(
        ["/bin/sh", "-c", command, sys.executable, CLOSED, str(tmp_path / "data")],
        capture_output=True, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "data").read_text() == "data"
    assert (done.stdout, done.stderr) == (
        "" if ">&-" in closed.replace("2>&-", "") else "printed\n",
        "" if "2>&-" in closed else "said\n",
    )


class Full(StringIO):
    """A log on a disk that is full."""

    def write(self, text):
        raise OSError(28, "No space left on device")

    flush = close = lambda self: self.write("")


def test_a_bar_in_a_full_log_stops_nothing(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Full())
    monkeypatch.setattr(bars, "LOG_EVERY_S", 0.0)
    with bars.progress_bar(range(100), desc="work") as bar:
        assert list(bar) == list(range(100))
        bar.set_postfix_str("done")
    stream = Unbroken(StringIO())
    assert (stream.write("abc"), stream.getvalue(), stream.isatty()) == (3, "abc", False)
