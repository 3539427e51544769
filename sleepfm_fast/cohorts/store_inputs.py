"""Which files the nights of a store came from, and with what beside them: what its commands are told by."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

__all__ = ["INPUTS", "inputs_of", "with_inputs"]

INPUTS = "inputs"
"""Key of ``store.json``'s configuration: a list of what :func:`inputs_of` gave, in the order in which it was used."""


def inputs_of(paths: Iterable[Path], **options: Path | float | bool | None) -> dict[str, Any]:
    """Files and folders that a run took nights from, and the options that decide what is stored of them.

    Paths become absolute; options that are None or False are left out.
    """
    given = {name: value for name, value in options.items() if value is not None and value is not False}
    return {
        "paths": sorted(str(path.resolve()) for path in paths),
        **{name: str(value.resolve()) if isinstance(value, Path) else value for name, value in given.items()},
    }


def with_inputs(
    configuration: Mapping[str, Any], given: Mapping[str, Any], *, overwrite: bool = False
) -> dict[str, Any]:
    """A configuration that says that nights came from ``given`` too.

    Parameters
    ----------
    configuration : mapping
        As ``store.json`` has it, or a new one.
    given : mapping
        From :func:`inputs_of`.
    overwrite : bool
        What nights were made from before no longer counts where it was the same paths.
    """
    known = [other for other in configuration.get(INPUTS, ()) if isinstance(other, dict)]
    before = [other for other in known if other != given]
    if overwrite:
        before = [other for other in before if other.get("paths") != given["paths"]]
    elif len(before) < len(known):
        return dict(configuration)
    return {**configuration, INPUTS: [*before, dict(given)]}
