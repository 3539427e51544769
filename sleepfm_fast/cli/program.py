"""What Python was started for: one of this package's commands, or a program that imports it."""

from __future__ import annotations

import sys
from pathlib import Path

__all__ = ["is_a_command"]


def is_a_command() -> bool:
    """Whether one of this package's commands is starting; asked while the package is imported.

    While ``python -m MODULE`` looks for its module, the program's name is ``-m``. Another program started with ``-m``
    may import the package too.
    """
    name = sys.argv[0] if sys.argv else ""
    _, _, module = " ".join(sys.orig_argv).partition(" -m ")
    return module.startswith("sleepfm_fast") if name == "-m" else Path(name).name == "sleepfm-fast"
