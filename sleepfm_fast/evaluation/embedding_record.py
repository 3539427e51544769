"""Checks that ``embeddings.json`` has all entries, each of its type, so that it can be used without more checks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sleepfm_fast.cli.json_text import are_texts, is_count, is_list, is_object, is_text

__all__ = ["wrong_entry"]

Check = Callable[[Any], bool]


def are_recordings(value: Any) -> bool:
    """Whether a value is a list of paths inside a folder, as are names from two joined stores (``training/night1``)."""
    return are_texts(value) and all("\0" not in name and not {"", ".", ".."} & {*name.split("/")} for name in value)


def are_names(value: Any) -> bool:
    """Whether a value is a list of at least one text, all different."""
    return are_texts(value) and 0 < len(value) == len(set(value))


def are_lists_of_texts(value: Any) -> bool:
    return is_object(value) and all(map(are_texts, value.values()))


def are_presets(value: Any) -> bool:
    """Whether a value is an object of options, with the digest of the weights or none."""
    if not is_object(value):
        return False
    weights = value.get("weights")
    return weights is None or (is_object(weights) and (weights.get("sha256") is None or is_text(weights["sha256"])))


NEEDED: Mapping[str, Check] = {
    "modalities": are_names,
    "dim": is_count,
    "n_clips": is_count,
    "blake2b_128": lambda value: is_object(value) and all(map(is_text, value.values())),
    "subjects": are_texts,
    "recordings": are_recordings,
    "ages": is_list,
    "sexes": is_list,
    "run": is_text,
    "store": is_text,
    "split_rule": is_text,
    "presets": are_presets,
    "overlap": lambda value: isinstance(value, bool),
    "overlap_note": is_text,
}
LATER: Mapping[str, Check] = {
    "kind": is_text,
    "features": are_lists_of_texts,
    "recording_ages": is_list,
    "made_of": is_object,
}
"""What folders of an earlier version lack."""


def wrong_entry(record: Mapping[str, Any]) -> str | None:
    """Find the first entry of ``embeddings.json`` that is missing or cannot be as it was written; None: there is none.

    What the lists of ages and sexes hold is left to :func:`sleepfm_fast.evaluation.embedding_format.people_problem`.

    Parameters
    ----------
    record : mapping of str to JSON value
        Of a format and version that are read.
    """
    for name, is_right in (*NEEDED.items(), *LATER.items()):
        if name not in record:
            if name in NEEDED:
                return name
        elif not is_right(record[name]):
            return name
    return None
