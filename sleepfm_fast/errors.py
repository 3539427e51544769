"""The error that a user can act on: commands print its sentence and exit with status 1, without a traceback."""

from __future__ import annotations

import errno
from pathlib import Path

__all__ = [
    "CompiledModuleError",
    "SleepfmError",
    "UsageError",
    "is_own_source",
    "is_refusal",
    "refused_by_system",
    "unreadable",
]

NO_FILE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP)
READABLE_AFTER = {
    errno.EMFILE: "Raise the limit of open files (`ulimit -n`)",
    errno.ENFILE: "Wait until other programs have closed theirs",
    errno.EACCES: "Ask its owner for the permission to read it",
    errno.EPERM: "Ask its owner for the permission to read it",
    errno.ENOMEM: "Free memory",
}
"""What to do about a file that the system does not let a process read."""


class SleepfmError(Exception):
    """A sentence for the user: what was given, what was expected, the choices, what to do."""


class UsageError(SleepfmError):
    """Arguments that no run of the command could be made of: a command exits with status 2."""


class CompiledModuleError(SleepfmError, ImportError):
    """The compiled module does not load, or is not that of these sources."""


def is_own_source(file: str) -> bool:
    """Whether a traceback's file is of this package; a folder above others' files may have its name too."""
    return Path(file).is_relative_to(Path(__file__).parent)


def is_refusal(error: BaseException) -> bool:
    """Whether the system refused to read a file that is there, which says nothing about what the file holds."""
    return isinstance(error, OSError) and error.errno is not None and error.errno not in NO_FILE


def unreadable(path: Path, error: BaseException) -> str:
    """Sentence about a file of which :func:`is_refusal` holds: it may be whole, and must not be deleted."""
    assert isinstance(error, OSError)
    remedy = READABLE_AFTER.get(error.errno or 0, "Check the disk or the network that it lies on")
    return f"{path} cannot be read: {error.strerror or error}. {remedy}, then give the same command again."


def refused_by_system(error: OSError) -> str:
    """What the system refused, and why, without a full stop."""
    return f"{error.filename or 'reading or writing'}: {error.strerror or error}"
