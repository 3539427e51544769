"""How a command's threads wait for each other: briefly at work, then asleep.

GNU's OpenMP, which torch and the kernels use on Linux, lets a thread that waits count to 300,000 before it sleeps, some
milliseconds. A training step has hundreds of such waits. Where another program wants the processor too, the counting
takes the time from the very thread that is waited for. ``docs/training.md`` has the figures.
"""

from __future__ import annotations

import os

from sleepfm_fast.cli.program import is_a_command

__all__ = ["wait_briefly"]

SPINS = 1000  # some 20 us, about as long as waking a thread takes


def wait_briefly() -> None:
    """Shorten the wait of a command, unless its user has set one; before torch is imported, which reads it then.

    A program that imports the package keeps its own.
    """
    if is_a_command() and not any(name in os.environ for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")):
        os.environ["GOMP_SPINCOUNT"] = str(SPINS)
