"""The finished points of a few-shot curve, in a file beside the result, so that a killed run can be continued."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sleepfm_fast.cli.command import plain, to_json
from sleepfm_fast.cli.json_text import from_json
from sleepfm_fast.errors import SleepfmError
from sleepfm_fast.storage.atomic import named_errors
from sleepfm_fast.storage.standing import difference
from sleepfm_fast.system import synchronise_descriptor

__all__ = ["Points", "partial_path"]

FORMAT = "sleepfm_fast few-shot points 1"


def partial_path(result: Path) -> Path:
    """Return the file that keeps the points of a result until it is finished."""
    result = result.resolve()
    return result.with_name(f"{result.name}.partial.jsonl")


class Points:
    """Points by (subjects, replicate): a JSON line for each, after a first line that holds the key.

    Parameters
    ----------
    path : Path
        The file, which the first point creates.
    key : mapping
        Everything that a point depends on except its own place in the curve.

    Raises
    ------
    SleepfmError
        When the file holds points of something else, or is not such a file.
    """

    def __init__(self, path: Path, key: Mapping[str, Any]) -> None:
        self.path, self.key = path, plain(dict(key))
        self._points: dict[tuple[int, int], dict[str, Any]] = {}
        if path.exists():
            self._read()

    def _read(self) -> None:
        remedy = "Remove it to start from the beginning, or add --overwrite."
        whole, _, torn = self.path.read_bytes().rpartition(b"\n")
        try:
            head, *points = [from_json(line) for line in whole.decode().splitlines()] or [None]
            if head is not None and not (isinstance(head, dict) and isinstance(head.get("key"), dict)):
                raise ValueError("it does not say what its points were made of")
            if head is not None and head["format"] != FORMAT:
                raise ValueError(f"its format is '{head['format']}', expected '{FORMAT}'")
            self._points = {(p["subjects"], p["replicate"]): p for p in points}
        except (ValueError, KeyError, TypeError) as error:
            what = f"the entry {error} is missing" if isinstance(error, KeyError) else str(error)
            raise SleepfmError(f"{self.path} does not hold the points of a few-shot curve ({what}). {remedy}") from None
        if head is not None and head["key"] != self.key:
            raise SleepfmError(
                f"{self.path} holds points of another experiment; it differs in {difference(head['key'], self.key)}. "
                f"{remedy}"
            )
        if torn or head is None:
            # A run was killed while it wrote: remove the incomplete last line.
            with self.path.open("r+b") as file:
                file.truncate(len(whole) + 1 if head is not None else 0)

    def __len__(self) -> int:
        """Return the number of finished points."""
        return len(self._points)

    def get(self, subjects: int, replicate: int) -> dict[str, Any] | None:
        """Return a point if it is finished; else None."""
        return self._points.get((subjects, replicate))

    def add(self, point: Mapping[str, Any]) -> dict[str, Any]:
        """Append a point, which is on the disk when this returns, and return it as a later run will read it."""
        kept: dict[str, Any] = json.loads(to_json(dict(point)))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with named_errors(self.path), self.path.open("ab") as file:
            if file.tell() == 0:
                file.write((to_json({"format": FORMAT, "key": self.key}) + "\n").encode())
            file.write((to_json(kept) + "\n").encode())
            file.flush()
            synchronise_descriptor(file.fileno())
        self._points[kept["subjects"], kept["replicate"]] = kept
        return kept
