"""What systems offer under different names: processors, read-ahead, durable files, and the identity of a process.

The project has been run on Linux only. macOS has no processor affinity, no posix_fadvise and no ``/proc``; what
replaces them was checked against its headers. On any other system the functions return what is always safe.
"""

from __future__ import annotations

import ctypes
import errno
import math
import os
import resource
import struct
import sys
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

__all__ = [
    "files_allowed",
    "is_hidden",
    "is_remote",
    "process_start",
    "processors",
    "read_no_more_than_asked",
    "return_freed_memory",
    "synchronise_descriptor",
    "system_identity",
]

# From macOS's sys/fcntl.h, sys/sysctl.h and sys/proc.h; tests/test_macos.py compiles against those headers.
F_RDAHEAD, F_FULLFSYNC = 45, 51
CTL_KERN, KERN_PROC, KERN_PROC_PID = 1, 14, 1
KINFO_PROC_BYTES = 648
START_AT, STATE_AT = 0, 36
"""Offsets in ``kinfo_proc``, in bytes, of the process's start (seconds int64, microseconds int32) and state (int8)."""
ZOMBIE = 5
PROC = Path("/proc")
CONTROL_GROUPS = Path("/sys/fs/cgroup")
NETWORK = (
    "nfs", "nfs4", "lustre", "beegfs", "gpfs", "ceph", "cifs", "smb3", "afs", "9p", "virtiofs", "panfs", "pvfs2",
    "wekafs",
)  # fmt: skip
"""File systems of other machines, by their names in /proc/self/mountinfo; so are those that begin with ``fuse.``."""
DARWIN_FILES = 4096  # open files that are asked for, of the 10,240 that macOS allows a process


def processors() -> int:
    """Return the number of processors that this process may use; all of the machine's where the system cannot tell.

    A container that may use the time of 2.5 processors (``docker run --cpus``, a limit of Kubernetes) has three. It
    sees all of the machine's, but more threads or processes than three only take the time from each other.
    """
    n = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(n, math.ceil(quota))) if (quota := processor_quota()) < n else n


def processor_quota() -> float:
    """Return how many processors' time the control groups of this process grant it; infinite where they do not say."""
    quota = math.inf
    try:
        lines = (PROC / "self/cgroup").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return quota
    for line in lines:
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if controllers and "cpu" not in controllers.split(","):
            continue
        # Version 2 has one tree and no name of a controller here, version 1 one for each. In a container the path may
        # be that outside of it, and its own group is then the top of the tree.
        top = CONTROL_GROUPS / "cpu" if controllers else CONTROL_GROUPS
        group = top / path.lstrip("/")
        for folder in (group, *group.parents):
            quota = min(quota, group_quota(folder))
            if folder == top:
                break
    return quota


def group_quota(folder: Path) -> float:
    """Return how many processors' time one control group may use."""
    for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        try:
            words = " ".join((folder / name).read_text(encoding="ascii") for name in names).split()
            granted_us, period_us = (int(word) for word in words)
        except (OSError, ValueError):  # also "max", which is no number
            continue
        if granted_us > 0 and period_us > 0:  # -1: no limit
            return granted_us / period_us
    return math.inf


def read_no_more_than_asked(descriptor: int) -> None:
    """Tell the system that an open file is read at random places, so that it does not read ahead."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
    elif sys.platform == "darwin":
        control(descriptor, F_RDAHEAD)


def read_whole_soon(path: Path) -> None:
    """Ask the system to read a whole file into its cache, one piece after the other; does not wait for the last of it.

    Where it cannot be opened or the system has no such call nothing happens: who needs the file will read it, or say
    what is wrong with it.
    """
    if not hasattr(os, "posix_fadvise"):
        return
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_WILLNEED)
        finally:
            os.close(descriptor)


def files_allowed() -> int | None:
    """Return how many files this process may have open, None for any number; raise the 256 of macOS to 4096 first."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wish = DARWIN_FILES if hard == resource.RLIM_INFINITY else min(hard, DARWIN_FILES)
    if sys.platform == "darwin" and soft != resource.RLIM_INFINITY and soft < wish:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wish, hard))
            soft = wish
    return None if soft == resource.RLIM_INFINITY else soft


def return_freed_memory() -> None:
    """Have malloc give the system the memory that was freed: glibc by itself gives only the end of its heap.

    Once a program has freed a block of some size, up to 32 MiB, glibc takes blocks of that size from its heap, where a
    single small one behind them keeps them all. Other systems' malloc has no such call and needs none.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def synchronise_descriptor(descriptor: int) -> None:
    """Wait until what was written to an open file or folder would survive a power failure.

    On macOS fsync(2) may leave it in the drive's cache. F_FULLFSYNC flushes that too, but some network file systems do
    not support it; they get fsync(2).
    """
    if sys.platform != "darwin" or not control(descriptor, F_FULLFSYNC):
        os.fsync(descriptor)


def control(descriptor: int, command: int) -> bool:
    """Issue a command of fcntl(2); return False where the file system does not support it, raise where a disk fails."""
    import fcntl

    try:
        fcntl.fcntl(descriptor, command, 0)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EIO, errno.EDQUOT):
            raise
        return False
    return True


def is_remote(path: Path) -> bool:
    """Whether a file or folder lies on a file system of other machines; False where the system cannot tell."""
    try:
        device = path.stat().st_dev
        mounts = (PROC / "self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return False
    # Field 3 is the device's number, and the first one behind the lone dash the file system's name (proc(5)).
    number = f"{os.major(device)}:{os.minor(device)}"
    names = [line.partition(" - ")[2].split(" ")[0] for line in mounts if line.split(" ")[2:3] == [number]]
    return any(name in NETWORK or name.startswith("fuse.") for name in names)


@lru_cache(maxsize=1)
def system_identity() -> str:
    """Identify the running kernel and the process namespace, within which a process number has one meaning.

    Empty where that cannot be told.
    """
    try:
        if sys.platform == "darwin":
            boot = sysctl("kern.bootsessionuuid").rstrip(b"\0").decode("ascii")
            # Where the start of a process cannot be read, its number does not identify it: count as unknown.
            return boot if process_start(os.getpid()) else ""
        boot = (PROC / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {(PROC / 'self/ns/pid').readlink()}"
    except OSError:
        return ""


def process_start(pid: int) -> str | None:
    """Return when a process started, in a form that only serves for comparison; None where no such process runs.

    With the process number it tells a process from a later one that was given the same number.
    """
    try:
        if sys.platform == "darwin":
            return darwin_process_start(pid)
        status = (PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # The process's name, in parentheses, may hold spaces and parentheses itself. Behind it come fields 3 (the state)
    # and on; the start is field 22 of proc(5).
    fields = status.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else fields[19]


def is_hidden(pid: int) -> bool:
    """Whether a process runs of which this one may not know more, as another user's where /proc has ``hidepid``."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return not os.access(PROC / str(pid) / "stat", os.R_OK)
    except (OSError, OverflowError, TypeError):  # gone, or no number: of a claim that something else wrote
        return False
    return False


def darwin_process_start(pid: int) -> str | None:
    found = sysctl((CTL_KERN, KERN_PROC, KERN_PROC_PID, pid))
    if len(found) != KINFO_PROC_BYTES or found[STATE_AT] == ZOMBIE:  # nothing is found where no such process is
        return None
    seconds, microseconds = struct.unpack_from("=qi", found, START_AT)
    return f"{seconds}.{microseconds:06}"


def sysctl(name: str | tuple[int, ...]) -> bytes:
    """Return a variable of the macOS kernel, named by a string or by numbers, of at most 1023 bytes."""
    value = ctypes.create_string_buffer(1024)
    size = ctypes.c_size_t(len(value) - 1)
    library = darwin_library()
    if isinstance(name, str):
        failed = library.sysctlbyname(name.encode(), value, ctypes.byref(size), None, 0)
    else:
        numbers = (ctypes.c_int * len(name))(*name)
        failed = library.sysctl(numbers, len(name), value, ctypes.byref(size), None, 0)
    if failed:
        raise OSError(ctypes.get_errno(), f"sysctl {name} failed")
    return value.raw[: size.value]


@lru_cache(maxsize=1)
def darwin_library() -> Any:
    library = ctypes.CDLL(None, use_errno=True)
    rest: list[Any] = [ctypes.c_void_p, ctypes.POINTER(ctypes.c_size_t), ctypes.c_void_p, ctypes.c_size_t]
    library.sysctl.argtypes = [ctypes.POINTER(ctypes.c_int), ctypes.c_uint, *rest]
    library.sysctlbyname.argtypes = [ctypes.c_char_p, *rest]
    return library
