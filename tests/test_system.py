"""Other systems than Linux: what stands in for its calls runs here, with those calls hidden or macOS imitated."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import resource
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from foreign_claims import renewed_elsewhere

from sleepfm_fast import system
from sleepfm_fast.errors import SleepfmError
from sleepfm_fast.storage import atomic, claims
from sleepfm_fast.storage.open_files import open_limit

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="hides what Linux has")

ROOT = Path(__file__).resolve().parents[1]
HIDDEN = """
import os, sys

for name in ("sched_getaffinity", "sched_setaffinity", "posix_fadvise", "POSIX_FADV_RANDOM", "POSIX_FADV_WILLNEED"):
    delattr(os, name)

def without_proc(event, arguments):
    if event == "open" and str(arguments[0]).startswith("/proc/") and arguments[0] != "/proc/self/maps":
        raise FileNotFoundError(2, "hidden", arguments[0])

sys.addaudithook(without_proc)
"""
"""Hides Linux from Python, in every process that finds this as ``sitecustomize``, but for threadpoolctl's way to list
libraries: it has another one for macOS."""


@pytest.fixture
def fresh(monkeypatch):
    """Nothing that was found out of this system is remembered, before and after."""
    for remembered in (system.system_identity, system.darwin_library):
        remembered.cache_clear()
    yield monkeypatch
    monkeypatch.undo()
    for remembered in (system.system_identity, system.darwin_library):
        remembered.cache_clear()


@pytest.fixture
def without_proc(fresh, tmp_path):
    fresh.setattr(system, "PROC", tmp_path / "nowhere")


class Darwin:
    """macOS's sysctl(3), over processes by number: seconds and microseconds of their start, and state (2 runs)."""

    def __init__(self, processes, boot="11111111-2222-3333-4444-555555555555"):
        self.processes, self.boot = processes, boot

    def answer(self, value, size, content):
        target = ctypes.cast(size, ctypes.POINTER(ctypes.c_size_t)).contents
        assert target.value >= len(content)
        ctypes.memmove(value, content, len(content))
        target.value = len(content)
        return 0

    def sysctlbyname(self, name, value, size, new, new_size):
        assert (name, new, new_size) == (b"kern.bootsessionuuid", None, 0)
        return self.answer(value, size, self.boot.encode() + b"\0")

    def sysctl(self, numbers, count, value, size, new, new_size):
        assert (count, list(numbers)[:3], new, new_size) == (4, [1, 14, 1], None, 0)
        process = self.processes.get(numbers[3])
        if process is None:
            return self.answer(value, size, b"")
        seconds, microseconds, state = process
        head = struct.pack("=qi24xb", seconds, microseconds, state)
        assert len(head) == 37
        return self.answer(value, size, head.ljust(648, b"\xff"))


@pytest.fixture
def darwin(fresh):
    imitation = Darwin({os.getpid(): (1_700_000_000, 42, 2)})
    fresh.setattr(sys, "platform", "darwin")
    fresh.setattr(system, "darwin_library", lambda: imitation)
    fresh.setattr(system.darwin_library, "cache_clear", lambda: None, raising=False)
    return imitation


def test_processors(monkeypatch):
    assert system.processors() == len(os.sched_getaffinity(0))
    monkeypatch.delattr(os, "sched_getaffinity")
    for counted, expected in ((3, 3), (None, 1)):
        monkeypatch.setattr(os, "cpu_count", lambda counted=counted: counted)
        assert system.processors() == expected


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        ("0::/\n", {"cpu.max": "250000 100000\n"}, 3),
        ("0::/\n", {"cpu.max": "max 100000\n"}, 64),
        ("0::/\n", {}, 64),
        ("0::/a/b\n", {"cpu.max": "max 100000", "a/cpu.max": "400000 100000", "a/b/cpu.max": "max 100000"}, 4),
        ("0::/a/b\n", {"a/cpu.max": "400000 100000", "a/b/cpu.max": "50000 100000"}, 1),
        ("5:cpu,cpuacct:/x\n", {"cpu/x/cpu.cfs_quota_us": "-1", "cpu/x/cpu.cfs_period_us": "100000"}, 64),
        ("5:cpuacct,cpu:/x\n", {"cpu/x/cpu.cfs_quota_us": "200000", "cpu/x/cpu.cfs_period_us": "100000"}, 2),
        # As in a container, where the path is that outside of it.
        ("5:cpu:/docker/9c\n0::/\n", {"cpu/cpu.cfs_quota_us": "150000", "cpu/cpu.cfs_period_us": "100000"}, 2),
        ("5:cpuset:/x\n", {"cpu/x/cpu.cfs_quota_us": "100000", "cpu/x/cpu.cfs_period_us": "100000"}, 64),
        ("nothing\n\n", {"cpu.max": "100000 100000"}, 1),
        ("0::/../..\n", {"cpu.max": "0 0"}, 64),
        (None, {"cpu.max": "100000 100000"}, 64),
    ],
)
def test_processors_of_a_container(monkeypatch, tmp_path, own, files, expected):
    for name, text in files.items():
        (tmp_path / "groups" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "groups" / name).write_text(text)
    (tmp_path / "proc/self").mkdir(parents=True)
    if own is not None:
        (tmp_path / "proc/self/cgroup").write_text(own)
    monkeypatch.setattr(system, "PROC", tmp_path / "proc")
    monkeypatch.setattr(system, "CONTROL_GROUPS", tmp_path / "groups")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    assert system.processors() == expected


def test_reading_ahead_is_turned_off_where_that_can_be(monkeypatch, tmp_path):
    file = tmp_path / "file"
    file.write_bytes(b"x")
    given = []
    monkeypatch.setattr(fcntl, "fcntl", lambda *arguments: given.append(arguments))
    with file.open("rb") as opened:
        system.read_no_more_than_asked(opened.fileno())
        monkeypatch.delattr(os, "posix_fadvise")
        system.read_no_more_than_asked(opened.fileno())
        assert given == []
        monkeypatch.setattr(sys, "platform", "darwin")
        system.read_no_more_than_asked(opened.fileno())
        assert given == [(opened.fileno(), 45, 0)]


@pytest.mark.parametrize(
    ("platform", "limits", "asked", "expected"),
    [
        ("linux", (256, resource.RLIM_INFINITY), None, 256),
        ("linux", (resource.RLIM_INFINITY, resource.RLIM_INFINITY), None, None),
        ("darwin", (256, resource.RLIM_INFINITY), (4096, resource.RLIM_INFINITY), 4096),
        ("darwin", (256, 1000), (1000, 1000), 1000),
        ("darwin", (8000, 9000), None, 8000),
        ("darwin", (resource.RLIM_INFINITY, resource.RLIM_INFINITY), None, None),
    ],
)
def test_macos_lets_a_process_open_more_files_when_asked(monkeypatch, platform, limits, asked, expected):
    given = []
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits)
    monkeypatch.setattr(resource, "setrlimit", lambda _, both: given.append(both))
    assert system.files_allowed() == expected
    assert given == ([asked] if asked else [])
    assert open_limit() == (16384 if expected is None else expected // 2)

    def refuse(*_):
        raise ValueError("not allowed")

    monkeypatch.setattr(resource, "setrlimit", refuse)
    assert system.files_allowed() == (None if limits[0] == resource.RLIM_INFINITY else limits[0])


def test_macos_is_told_to_write_to_the_medium(monkeypatch, tmp_path):
    done = []
    refusal = None

    def control(descriptor, command, argument):
        if refusal:
            raise OSError(refusal, os.strerror(refusal))
        done.append(("fcntl", command))

    monkeypatch.setattr(fcntl, "fcntl", control)
    monkeypatch.setattr(os, "fsync", lambda descriptor: done.append("fsync"))
    system.synchronise_descriptor(3)
    assert done == ["fsync"]
    monkeypatch.setattr(sys, "platform", "darwin")
    system.synchronise_descriptor(3)
    assert done == ["fsync", ("fcntl", 51)]
    refusal = errno.ENOTSUP
    system.synchronise_descriptor(3)
    assert done == ["fsync", ("fcntl", 51), "fsync"]
    refusal = errno.EIO
    with pytest.raises(OSError, match="Input/output"):
        system.synchronise_descriptor(3)


def test_a_folder_that_cannot_be_synchronised_stops_nothing_and_a_file_does(monkeypatch, tmp_path):
    def refuse(descriptor):
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "fsync", refuse)
    atomic.synchronise(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="Invalid"):
        atomic.synchronise(tmp_path / "file")


def test_what_macos_knows_of_a_process(darwin):
    assert system.system_identity() == darwin.boot
    assert system.process_start(os.getpid()) == "1700000000.000042"
    assert system.process_start(1) is None
    darwin.processes[1] = (1, 999_999, 2)
    assert system.process_start(1) == "1.999999"
    darwin.processes[1] = (1, 999_999, 5)  # a zombie
    assert system.process_start(1) is None


def test_a_macos_that_answers_nothing_is_an_unknown_system(darwin, monkeypatch):
    monkeypatch.setattr(darwin, "sysctl", lambda *_: -1)
    assert system.process_start(os.getpid()) is None
    assert system.system_identity() == ""


def test_a_claim_on_macos_is_kept_from_others_and_taken_when_its_holder_is_gone(darwin, tmp_path):
    file = tmp_path / "claim"
    claim = claims.Claim(file)
    assert json.loads(file.read_text())["system"] == darwin.boot
    with pytest.raises(claims.Claimed, match=f"process {os.getpid()} on "):
        claims.Claim(file)
    os.utime(file, (0, 0))  # as after a night with the lid closed: the process lives, whatever the time
    assert claims.is_live(file)
    claim.release()
    assert not file.exists()
    for gone in (
        {"pid": 77},
        {"started": "1600000000.000000"},  # an earlier process of the same number
    ):
        file.write_text(json.dumps({**claims.this_process().__dict__, **gone}))
        claims.Claim(file).release()


def test_a_claim_without_proc_is_taken_kept_and_broken(without_proc, monkeypatch, tmp_path):
    assert system.system_identity() == ""
    assert claims.this_process().started == ""
    monkeypatch.setattr(claims, "HEARTBEAT_S", 0.05)
    file = tmp_path / ".out.claim"
    claim = claims.claim_to_write(tmp_path / "out")
    # Nobody can look the process up: that the claim is renewed says that it lives.
    before = file.stat().st_mtime_ns
    with pytest.raises(SleepfmError, match=r"another process .* is writing"):
        claims.claim_to_write(tmp_path / "out")
    until = time.monotonic() + 30
    while file.stat().st_mtime_ns == before and time.monotonic() < until:
        time.sleep(0.05)
    assert file.stat().st_mtime_ns > before
    claim.release()
    assert not file.exists()
    # A holder that was killed does not renew it.
    file.write_text(json.dumps({**claims.this_process().__dict__, "pid": 77}))
    monkeypatch.setattr(claims, "STALE_S", 2.5)
    began = time.monotonic()
    claims.claim_to_write(tmp_path / "out").release()
    assert time.monotonic() - began < 60


def test_a_claim_of_another_users_hidden_process_is_not_taken(monkeypatch, tmp_path):
    # On many clusters /proc is mounted with hidepid, so that users do not see each other's processes.
    system.system_identity()
    file = tmp_path / ".out.claim"
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as other:
        try:
            holder = {**claims.this_process().__dict__, "pid": other.pid}
            holder["started"] = system.process_start(other.pid)
            file.write_text(json.dumps(holder))
            monkeypatch.setattr(system, "PROC", tmp_path)
            assert not system.is_hidden(other.pid)  # it may be told to end: this user's own

            def kill(pid, number):
                assert (pid, number) == (other.pid, 0)
                raise PermissionError

            with monkeypatch.context() as patch:
                patch.setattr(os, "kill", kill)
                assert claims.is_live(file)
                with pytest.raises(claims.Claimed, match=f"process {other.pid} on "):
                    claims.Claim(file)
                patch.setattr(claims, "STALE_S", 3.0)
                with renewed_elsewhere(file), pytest.raises(SleepfmError, match=r"another process .* is writing"):
                    claims.claim_to_write(tmp_path / "out")
                patch.setattr(claims, "STALE_S", 0.0)  # it is no longer renewed
                assert not claims.is_live(file)
        finally:
            other.kill()
    assert not system.is_hidden(other.pid)
    assert not claims.is_live(file)


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """Environment of a process that finds no Linux, and whose compiled functions are its own."""
    folder = tmp_path_factory.mktemp("elsewhere")
    (folder / "sitecustomize.py").write_text(HIDDEN)
    paths = os.pathsep.join([str(folder), str(ROOT), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": paths, "NUMBA_CACHE_DIR": str(folder / "numba"), "PYTHONUNBUFFERED": "1"}


def run(code, environment, cwd):
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


GATHER = """
import os, sys
import numpy as np
import sleepfm_fast.execution.addresses as addresses
from sleepfm_fast.clips import ClipStore
from sleepfm_fast.filters import FilterBank
from sleepfm_fast.store.feed import Feed

assert (addresses.advise_file is addresses.advise_nothing) == (not hasattr(os, "posix_fadvise"))
arrays = []
for read in ("mmap", "pread"):
    store = ClipStore(sys.argv[1], read=read)
    store.fits = False
    feed = Feed(store, range(len(store.slots)), FilterBank("aasm", 256))
    clips = np.arange(0, len(store), 7)
    feed.announce(clips)
    arrays += [array for array in feed.gather(clips)]
np.savez(sys.argv[2], *arrays)
"""


def test_clips_are_read_the_same_without_posix_fadvise(cohort_store, elsewhere, tmp_path):
    found = []
    for name, environment in (("here", {**os.environ, "PYTHONPATH": str(ROOT)}), ("there", elsewhere)):
        code = f"import sys; sys.argv[1:] = {[str(cohort_store), str(tmp_path / f'{name}.npz')]!r}\n{GATHER}"
        run(code, environment, tmp_path)
        with np.load(tmp_path / f"{name}.npz") as arrays:
            found.append([arrays[key] for key in arrays])
    assert len(found[0]) == len(found[1]) == 6
    for here, there in zip(*found, strict=True):
        np.testing.assert_array_equal(here, there)
        assert here.size


DEMO = """
import dataclasses, os
from sleepfm_fast import demo, system
from sleepfm_fast.train import Config

assert not hasattr(os, "posix_fadvise") and system.system_identity() == ""
recipe = demo.recipe
demo.SUBJECTS, demo.HOURS = 8, 0.2
demo.recipe = lambda config: dataclasses.replace(recipe(config), epochs=1, batch_size=16)
demo.demo(Config())
"""


@pytest.mark.slow
def test_the_demo_runs_without_what_is_linux(elsewhere, tmp_path):
    run(DEMO, elsewhere, tmp_path)
    run_folder = tmp_path / "sleepfm_demo" / "run"
    assert (run_folder / "report.html").stat().st_size > 10_000
    assert not list(tmp_path.rglob("*.claim")), "claims are given up at the end"
    assert json.loads((run_folder / "results" / "stage" / "result.json").read_text())["task"] == "stage"
