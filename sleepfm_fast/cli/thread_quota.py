"""How many threads a command's torch and kernels use, where a control group grants less time than there are processors.

OpenMP counts the processors that a process may run on, not the time that it may spend there. In a container with two
processors' time on a machine of 64, a step's 64 threads use up that time at once, and all then stand still until the
next period of 0.1 s.
"""

from __future__ import annotations

import os

from sleepfm_fast.cli.program import is_a_command
from sleepfm_fast.system import processor_quota, processors

__all__ = ["keep_to_quota"]


def keep_to_quota() -> None:
    """Set ``OMP_NUM_THREADS`` of a command, unless its user has; before torch is imported, which reads it then.

    A program that imports the package keeps its own.
    """
    if is_a_command() and "OMP_NUM_THREADS" not in os.environ and processor_quota() < (os.cpu_count() or 1):
        os.environ["OMP_NUM_THREADS"] = str(processors())
