"""Claims of a process on another machine, which this one can only watch."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path

from sleepfm_fast.storage.claims import Holder


def foreign_claim(path: Path) -> Path:
    """Write the claim of a process that is not here."""
    path.write_text(json.dumps(Holder("elsewhere", "another kernel", 1, "1").__dict__))
    return path


@contextlib.contextmanager
def renewed_elsewhere(path: Path) -> Iterator[None]:
    """Renew a claim every tenth of a second, as its holder does, whenever it is looked at."""
    ended = threading.Event()

    def renew() -> None:
        while not ended.wait(0.1):
            os.utime(path)

    thread = threading.Thread(target=renew)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
