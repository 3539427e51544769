"""Whether the labels of a store follow the rules by which this version labels clips."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sleepfm_fast.cli.command import say
from sleepfm_fast.cli.json_text import from_json
from sleepfm_fast.errors import SleepfmError
from sleepfm_fast.montage.slots import Montage
from sleepfm_fast.scoring import labels
from sleepfm_fast.storage.standing import digest_of_value
from sleepfm_fast.store.clip_layout import VERSION, read_store_file

__all__ = ["configuration_digest", "label_rules_note", "say_label_rules"]


def configuration_digest(montage: Montage, events_scored: bool, meanings: Mapping[str, str], scorer: str = "") -> str:
    """Digest of everything but a night's own files and corrections that decides what preprocess stores of it."""
    content = {"version": VERSION, "labels": labels.LABEL_RULES, "montage": montage.to_dict()}
    content["events_scored"] = events_scored
    if meanings:
        content["meanings"] = dict(meanings)
    if scorer:
        content["scorer"] = scorer
    return digest_of_value(content)


def label_rules_note(path: Path) -> str:
    """Return that a store was made by other rules than this version's; empty if not, or if it cannot be told."""
    try:
        value = read_store_file(path)
        if is_of_now(path, value):
            return ""
    except (SleepfmError, OSError, ValueError):
        return ""  # a command that needs the store says what is wrong with it
    command = "convert" if value["configuration"].get("from") else "preprocess"
    return (
        f"the store {path} was made by another version of sleepfm_fast, whose rules may give clips other labels "
        f"(CHANGELOG.md). Its labels are used as they are; the {command} command that made it, given again, makes its "
        "nights again by the present rules. What was computed from it is then to be repeated."
    )


def say_label_rules(path: Path) -> None:
    """Print :func:`label_rules_note`."""
    if note := label_rules_note(path):
        say(f"notice: {note}")


def is_of_now(path: Path, value: Mapping[str, Any]) -> bool:
    """Whether the command that made the store would leave its nights as they are, given again with this version."""
    configuration = value["configuration"]
    if configuration.get("from") == "seed":  # whose source has a label for each clip
        return True
    if configuration.get("from") == "clinical":
        # All nights have the rules of the last complete run, so the first tells.
        first = min((path / "recordings").glob("*.json"), default=None)
        record = None if first is None else from_json(first.read_text(encoding="utf-8"))
        return not isinstance(record, dict) or record.get("label_rules") == labels.LABEL_RULES
    montage = Montage.from_dict(value["montage"])
    given = (configuration.get("meanings", {}), configuration.get("scorer", ""))
    now = configuration_digest(montage, configuration["events_scored"], *given)
    return bool(configuration["digest"] == now)
