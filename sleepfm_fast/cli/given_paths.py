"""Paths as people give them: text or a path, with ``~`` for the home folder."""

from __future__ import annotations

import dataclasses
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

__all__ = ["TakesPaths", "as_path"]


def as_path(given: str | os.PathLike[str]) -> Path:
    """Return a path, a leading ``~`` replaced by the home folder.

    A shell replaces it in a word of its own, but neither in ``--out=~/report.html`` nor in quotes, and Python never
    does: a command would write into a folder named ``~``, which nobody can safely remove.
    """
    path = Path(given)
    if path.parts[:1] == ("~",):
        with suppress(RuntimeError):  # of a user without a home
            return path.expanduser()
    return path


class TakesPaths:
    """A command's ``Config``, whose paths may be given as text, from a notebook as from a shell."""

    def __post_init__(self) -> None:
        """Make paths of what was given for fields that are paths; one path stands for a tuple of one.

        Raises
        ------
        TypeError
            When it is neither text nor a path.
        """
        for field in dataclasses.fields(self):  # type: ignore[arg-type]  # every Config is a dataclass
            kind, value = str(field.type), getattr(self, field.name)
            if "Path" not in kind or value is None:
                continue
            taken: Any
            if "tuple[Path" in kind:
                one = isinstance(value, str | os.PathLike) or not hasattr(value, "__iter__")
                taken = tuple(self._path(field.name, entry) for entry in ((value,) if one else value))
            else:
                taken = self._path(field.name, value)
            object.__setattr__(self, field.name, taken)

    def _path(self, name: str, value: Any) -> Path:
        if not isinstance(value, str | os.PathLike):
            raise TypeError(f"{name} is {value!r}; expected a path, as text or pathlib.Path.")
        return as_path(value)
