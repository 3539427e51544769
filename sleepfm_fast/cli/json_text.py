"""JSON: written strictly, and read out of files that somebody may have changed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = [
    "are", "are_texts", "from_json", "is_count", "is_encodable", "is_list", "is_object", "is_text", "read_object",
    "to_text",
]  # fmt: skip


def is_encodable(text: str, encoding: str) -> bool:
    """Whether an encoding has all characters; UTF-8 lacks those of a file name in another encoding."""
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True


def to_text(value: Any, *, indent: int | None = None) -> str:
    """Serialise a JSON value to strict JSON (no NaN), which UTF-8 can always hold.

    A file name that is no UTF-8 has surrogates, which only escapes can hold.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent)
    return text if is_encodable(text, "utf-8") else json.dumps(value, allow_nan=False, indent=indent)


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


def read_object(file: Path) -> dict[str, Any]:
    """Read the JSON object in a file; empty where there is none that can be read."""
    try:
        found = from_json(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def is_text(value: Any) -> bool:
    """Whether a JSON value is a text."""
    return isinstance(value, str)


def is_count(value: Any) -> bool:
    """Whether a JSON value is a whole number that no size or index exceeds."""
    return type(value) is int and 0 <= value < 1 << 62


def is_list(value: Any) -> bool:
    """Whether a JSON value is a list."""
    return isinstance(value, list)


def is_object(value: Any) -> bool:
    """Whether a JSON value is an object."""
    return isinstance(value, dict)


def are(values: Any, is_kind: Callable[[Any], bool]) -> bool:
    """Whether a JSON value is a list, and each of its elements of a kind."""
    return is_list(values) and all(map(is_kind, values))


def are_texts(value: Any) -> bool:
    """Whether a JSON value is a list of texts."""
    return are(value, is_text)
