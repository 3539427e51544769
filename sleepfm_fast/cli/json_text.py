"""JSON out of files that somebody may have changed."""

from __future__ import annotations

import json
from typing import Any

__all__ = ["from_json"]


def from_json(text: str | bytes) -> Any:
    """Read a JSON text.

    Raises
    ------
    ValueError
        When it is no JSON, or nested so deeply that Python gives up, which it says by an error of another kind.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
