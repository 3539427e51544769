"""Progress bars on standard error, which a log of a batch job does not fill."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from sleepfm_fast.cli.standard_streams import Unbroken

__all__ = ["LOG_EVERY_S", "SLOW_S", "progress_bar"]

LOG_EVERY_S = 30.0
"""How often progress is written where standard error is not a terminal, as in a batch job."""

SLOW_S = 5.0
"""``delay`` of a bar for what takes no time in most cohorts: it is drawn only if the work takes longer."""


def progress_bar(items: Iterable[Any] | None = None, **options: Any) -> Any:
    """Make a bar of tqdm on standard error; its ``options`` are tqdm's.

    In a log, where a bar is not redrawn but repeated, it is written every :data:`LOG_EVERY_S`: ten times a second, an
    embedding that takes a day would fill it with 80 MB.
    """
    from tqdm import tqdm

    if not sys.stderr.isatty():
        options |= {"mininterval": LOG_EVERY_S, "maxinterval": LOG_EVERY_S}
    return tqdm(items, file=Unbroken(sys.stderr), **options)
