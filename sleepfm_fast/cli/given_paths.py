"""Options as a program gives them, at which no parser has looked: numbers, choices, paths as text, ``~`` for home."""

from __future__ import annotations

import dataclasses
import numbers
import os
import types
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from sleepfm_fast.errors import SleepfmError

__all__ = ["TakesPaths", "as_path", "choices_of", "plain_kinds_of"]


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


@cache
def choices_of(config: type) -> dict[str, tuple[tuple[Any, ...], bool]]:
    """For every option of a command that has choices: these, and whether it takes several of them."""
    found = {}
    for name, hint in get_type_hints(config, include_extras=True).items():
        kinds = list(kinds_of(hint))
        several = [get_args(kind)[0] for kind in kinds if get_origin(kind) is tuple]
        choices = [kind for kind in (several or kinds) if get_origin(kind) is Literal]
        if choices:
            given = tuple(value for kind in choices for value in get_args(kind))
            found[name] = ((*given, None) if type(None) in kinds else given, bool(several))
    return found


# Of a kind of value: how a refusal calls it, and what else than itself becomes it.
PLAIN: dict[type, tuple[str, type | tuple[type, ...]]] = {
    bool: ("True or False", ()),
    int: ("an integer", numbers.Integral),
    float: ("a number", numbers.Real),
    str: ("text", ()),
}


@cache
def plain_kinds_of(config: type) -> dict[str, tuple[type, bool, bool]]:
    """For every option of a command that is a number, a switch or text: which, if several, and if it may be None."""
    found = {}
    for name, hint in get_type_hints(config, include_extras=True).items():
        kinds = list(kinds_of(hint))
        others = [kind for kind in kinds if kind is not type(None)]
        several = [get_origin(kind) is tuple for kind in others] == [True]
        one = [*get_args(others[0])][:1] if several else others
        if len(one) == 1 and one[0] in PLAIN:
            found[name] = (one[0], several, type(None) in kinds)
    return found


def kinds_of(hint: Any) -> Iterator[Any]:
    """What a hint allows, without what is said beside it."""
    if get_origin(hint) is Annotated:
        yield from kinds_of(get_args(hint)[0])
    elif get_origin(hint) in (Union, types.UnionType):
        for part in get_args(hint):
            yield from kinds_of(part)
    else:
        yield hint


class TakesPaths:
    """A command's ``Config``, from a notebook as from a shell: its paths may be texts, all values are looked at."""

    def __post_init__(self) -> None:
        """Make paths of what was given for fields that are paths; one path stands for a tuple of one.

        Numbers and truth values of NumPy become Python's, and lists tuples.

        Raises
        ------
        TypeError
            When a path is neither text nor a path, or a value not of the option's type.
        SleepfmError
            When a value is none of an option's choices.
        """
        for name, (choices, several) in choices_of(type(self)).items():  # type: ignore[arg-type]  # classes are hashable
            value = getattr(self, name)
            if several and isinstance(value, list):
                object.__setattr__(self, name, value := tuple(value))
            for one in value if several and isinstance(value, tuple) else (value,):
                if (several and not isinstance(value, tuple)) or one not in choices:
                    of = "some of, in a tuple" if several else "one of"
                    said = ", ".join(repr(choice) for choice in choices)
                    raise SleepfmError(f"{name} is {value!r}; expected {of}: {said}.")
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
        for name, (plain, several, optional) in plain_kinds_of(type(self)).items():  # type: ignore[arg-type]
            value = getattr(self, name)
            if optional and value is None:
                continue
            if several and isinstance(value, tuple | list):
                taken = tuple(self._plain(name, entry, plain, value, several, optional) for entry in value)
            else:
                taken = self._plain(name, None if several else value, plain, value, several, optional)
            object.__setattr__(self, name, taken)

    def _plain(self, name: str, value: Any, kind: type, given: Any, several: bool, optional: bool) -> Any:
        called, others = PLAIN[kind]
        if getattr(value, "ndim", None) == 0:  # NumPy's truth values are of no type that Python knows
            value = value.item()
        if (isinstance(value, bool) and kind is not bool) or not isinstance(value, (kind, others)):
            expected = f"{called} each, in a tuple" if several else called
            or_none = (", or None" if several else " or None") if optional else ""
            raise TypeError(f"{name} is {given!r}; expected {expected}{or_none}.")
        return value if type(value) in PLAIN else kind(value)

    def _path(self, name: str, value: Any) -> Path:
        if not isinstance(value, str | os.PathLike):
            raise TypeError(f"{name} is {value!r}; expected a path, as text or pathlib.Path.")
        return as_path(value)
