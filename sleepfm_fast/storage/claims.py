"""Claims on files and folders that several processes and machines share: a claim is a file that its holder keeps fresh.

A claim is created as a hard link to a file that is already written, or, where there are no hard links, with ``O_EXCL``.
NFS (version 3 and later), Lustre and BeeGFS do both atomically, whether or not they were mounted with locks, whereas
``flock`` is refused by some of them, or holds on one machine only. A claim whose holder is gone is taken over. Whether
it is gone is looked up in the process table for a holder of the same machine, and told from the claim's modification
time, which the holder renews, for a holder of another one, and for another user's that the process table hides.
"""

from __future__ import annotations

import errno
import glob
import json
import os
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from sleepfm_fast.cli.command import say
from sleepfm_fast.cli.json_text import is_encodable, read_object
from sleepfm_fast.errors import SleepfmError
from sleepfm_fast.system import is_hidden, process_start, system_identity

__all__ = [
    "STALE_S",
    "Claim",
    "Claimed",
    "Holder",
    "beats",
    "claim_to_write",
    "file_system_time",
    "holder_of",
    "is_live",
    "waited",
    "watch",
]

HEARTBEAT_S = 10.0
"""How often a holder renews its claim."""
STALE_S = 180.0
"""A claim from another machine that was not renewed for this long is void. An NFS client may show times that are 60 s
old (its acregmax); the rest allows for a holder that the system suspends or that waits for a slow disk."""

NEW_SUFFIX, CLOCK_SUFFIX = ".new.tmp", ".clock.tmp"
"""Suffixes of a claim's temporary files: the claim before it has its name, and the file that tells the file system's
time."""
NO_LINKS = (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EMLINK, errno.EACCES)
"""Errors by which file systems refuse a hard link."""


@dataclass(frozen=True)
class Holder:
    """The process that holds a claim; ``started`` tells it from a later process with the same number."""

    host: str
    system: str
    pid: int
    started: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


class Claimed(Exception):  # noqa: N818 - it is no error: somebody else was first
    """The claim is held by a living process."""

    def __init__(self, holder: Holder | None) -> None:
        super().__init__(str(holder or "a process that cannot be named"))
        self.holder = holder


def this_process() -> Holder:
    return Holder(socket.gethostname(), system_identity(), os.getpid(), process_start(os.getpid()) or "")


def holder_of(path: Path) -> Holder | None:
    """Return who holds the claim ``path``; None where the file is gone, or not yet completely written."""
    try:
        return Holder(**read_object(path))
    except TypeError:
        return None


def is_visible(holder: Holder | None) -> bool:
    """Whether the process table says if the holder lives: it is, or was, of this machine, and is not hidden."""
    if holder is None or not holder.system or holder.system != system_identity():
        return False
    return not is_hidden(holder.pid)


def renewed(path: Path) -> float:
    """Return when a claim was last renewed, in seconds of the file system's clock.

    Opening the file makes an NFS client ask the server for its times, where ``stat`` may answer from its cache.
    """
    with path.open("rb") as file:
        return os.fstat(file.fileno()).st_mtime


def file_system_time(path: Path) -> int:
    """Return the time, in ns, by the clock of the file system that holds ``path``; this machine's clock may differ.

    It is read off a temporary file. A process that is killed meanwhile leaves that file behind, and the next claim of
    the same name deletes it.
    """
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=CLOCK_SUFFIX)
    try:
        return os.fstat(descriptor).st_mtime_ns
    finally:
        os.close(descriptor)
        Path(name).unlink(missing_ok=True)


def is_live(path: Path, claim: Path | None = None) -> bool:
    """Whether the claim ``path`` exists and its holder lives.

    A claim that :func:`discard` has put aside is checked with its original name as ``claim``.
    """
    holder = holder_of(path)
    if holder is not None and is_visible(holder):
        return process_start(holder.pid) == holder.started
    now_s = file_system_time(claim or path) / 1e9
    try:
        return now_s - renewed(path) < STALE_S
    except FileNotFoundError:
        return False


def beats(path: Path) -> bool:
    """Whether the holder of the claim ``path`` lives; one that cannot be looked up must be observed to renew it.

    This takes up to :data:`STALE_S`, but is right also just after a job on another machine was killed, when
    :func:`is_live` still takes its claim for fresh.
    """
    if not is_live(path):
        return False
    if is_visible(holder_of(path)):
        return True
    try:
        before_s, until_s = renewed(path), time.monotonic() + STALE_S
        while time.monotonic() < until_s:
            if renewed(path) != before_s:
                return True
            time.sleep(1.0)
    except FileNotFoundError:
        pass
    return False


def write_holder(path: Path, holder: Holder, flag: int) -> None:
    """Write a claim's content into a new file; an error of the disk leaves none, but a kill may leave part of it."""
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY | flag, 0o666)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(json.dumps(asdict(holder)))
            file.flush()
            os.fsync(file.fileno())
    except OSError:  # such as a full disk: an empty claim would count as live until it is stale
        path.unlink(missing_ok=True)
        raise


class Claim:
    """A claim that this process holds; a thread renews it until :meth:`release`.

    Parameters
    ----------
    path : Path
        The claim's file; its folder exists.

    Raises
    ------
    Claimed
        When a living process holds it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.holder = this_process()
        for _ in range(3):
            try:
                self.create()
                break
            except FileExistsError:
                holder = holder_of(path)
                if is_live(path):
                    raise Claimed(holder_of(path)) from None
                discard(path, holder)
        else:
            raise Claimed(holder_of(path))
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self.renew, name=f"claim {path.name}", daemon=True)
        self.thread.start()

    def create(self) -> None:
        """Create the file, which must not exist, with its content at once, so that a kill leaves no partial claim."""
        whole = self.path.with_name(f".{self.path.name}.{os.getpid()}-{threading.get_ident()}{NEW_SUFFIX}")
        write_holder(whole, self.holder, os.O_TRUNC)
        try:
            os.link(whole, self.path)
        except FileExistsError:
            if whole.stat().st_nlink != 2:  # over NFS the link may have been made although the answer was lost
                raise
        except OSError as error:
            # Either the file system has no hard links, or (ENOENT) another process deleted `whole`, below, as one that
            # a killed process had left.
            if error.errno not in (*NO_LINKS, errno.ENOENT):
                raise
            write_holder(self.path, self.holder, os.O_EXCL)
        finally:
            whole.unlink(missing_ok=True)
        for left in self.path.parent.glob(f".{glob.escape(self.path.name)}.*.tmp"):
            # A claim that was put aside may belong to a living holder, to which `discard` is just giving it back.
            if left.name.endswith((NEW_SUFFIX, CLOCK_SUFFIX)) or not is_live(left, self.path):
                left.unlink(missing_ok=True)

    def renew(self) -> None:
        """Set the file's time again and again until the claim is released."""
        while not self.ended.wait(HEARTBEAT_S):
            try:
                os.utime(self.path)
            except OSError:  # the next beat may succeed; `holds` tells whether it was taken over
                continue

    def holds(self) -> bool:
        """Whether this process still holds the claim; another may have taken it over if this one was suspended."""
        return holder_of(self.path) == self.holder

    def is_lost(self) -> bool:
        """Whether the claim is gone or another process's; not where it cannot be read, which may pass."""
        if self.holds():
            return False
        try:
            self.path.lstat()
        except FileNotFoundError:
            return True
        except OSError:
            return False
        return holder_of(self.path) is not None

    def release(self) -> None:
        """Give the claim up."""
        self.ended.set()
        self.thread.join()
        if self.holds():
            self.path.unlink(missing_ok=True)


def claim_to_write(path: Path) -> Claim:
    """Claim the file or folder ``path`` for this process, by a hidden file beside it; ``path`` need not exist.

    Where a process of another machine (or a hidden one of another user) holds it, this waits until that process is seen
    to renew its claim, or long enough to know that it does not, so that a job that was killed can be started again on
    another node.

    Raises
    ------
    SleepfmError
        When another living process is writing it, the folder around it cannot be written, or a name is not UTF-8.
    """
    path = path.resolve()
    if not is_encodable(os.fsencode(path).decode("utf-8", "surrogateescape"), "utf-8"):
        raise SleepfmError(
            f"the name {os.fsencode(path)!r} is not valid UTF-8, so that no record of it can be read again. Give "
            "another, or rename the folder it lies in."
        )
    if os.fsencode(path).decode() != str(path):
        raise SleepfmError(
            f"the name {os.fsencode(path)!r} is read as {sys.getfilesystemencoding()} here, and not as UTF-8, so that "
            "no record of it can be read again elsewhere. Set PYTHONUTF8=1 or a UTF-8 locale (LC_ALL=C.UTF-8), or "
            "give another name."
        )
    file = path.with_name(f".{path.name}.claim")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            return Claim(file)
        except Claimed:
            watch(file, path)
            return Claim(file)
    except Claimed as busy:
        raise SleepfmError(
            f"another process ({busy.holder or 'which cannot be named'}) is writing {path}. Wait for it, or give "
            "another folder."
        ) from None
    except OSError as error:
        raise SleepfmError(
            f"{path} cannot be written ({error.filename or file}: {error.strerror or error}). Give another folder."
        ) from None


def watch(path: Path, what: Path) -> None:
    """Remove the claim ``path`` on ``what`` if a process that cannot be looked up holds it and is not seen to renew it.

    Its time alone may not tell for long: it lies in the future if a clock was set back.
    """
    holder = holder_of(path)
    if is_visible(holder) or not is_live(path):
        return
    say(f"checking whether {holder or 'another process'} is still writing {what}; this takes at most {STALE_S:.0f} s")
    if not beats(path):
        discard(path, holder)


def discard(path: Path, void: Holder | None) -> None:
    """Remove the claim of ``void``; of several processes that found it void, one succeeds and the others do nothing."""
    aside = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        path.rename(aside)
    except FileNotFoundError:
        return
    if holder_of(aside) != void:
        # Another process replaced the claim between the look and the rename: give it back.
        with suppress(OSError):
            os.link(aside, path)
    aside.unlink(missing_ok=True)


@contextmanager
def waited(path: Path, say: Callable[[str], None], what: str) -> Iterator[Claim]:
    """Hold the claim ``path`` during the block, after waiting for any other holder; ``what`` names it in a message."""
    pause_s, told = 0.02, False
    seen: tuple[Holder | None, float] | None = None
    while True:
        try:
            claim = Claim(path)
            break
        except Claimed as busy:
            with suppress(FileNotFoundError):
                if seen != (now := (busy.holder, renewed(path))):
                    seen, since_s = now, time.monotonic()
                elif time.monotonic() - since_s > STALE_S and not is_visible(busy.holder):
                    discard(path, busy.holder)
            if pause_s >= 1.0 and not told:
                say(f"waiting for {what}, which {busy.holder or 'another process'} holds")
                told = True
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, 1.0)
    try:
        yield claim
    finally:
        claim.release()
