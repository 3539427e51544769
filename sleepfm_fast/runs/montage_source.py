"""The montage of a store, or of a run, taken for other recordings."""

from __future__ import annotations

from pathlib import Path

from sleepfm_fast.channels import Montage
from sleepfm_fast.cli.misplaced import mistaken
from sleepfm_fast.cli.path_kinds import Kind, kind_of
from sleepfm_fast.errors import SleepfmError
from sleepfm_fast.rundir import RunDirectory
from sleepfm_fast.runs.run_config import damaged_entry
from sleepfm_fast.store.clip_layout import read_store_file

__all__ = ["montage_like"]


def montage_like(path: Path) -> Montage:
    """Return the montage that a store was made with, or that a network was trained on.

    Parameters
    ----------
    path : Path
        A clip store, or a run folder of ``train``, ``supervise`` or ``import_checkpoint``.

    Raises
    ------
    SleepfmError
        When it is neither, or its record is damaged.
    """
    kind = kind_of(path)
    if kind is Kind.STORE:
        return Montage.from_dict(read_store_file(path)["montage"])
    if kind in (Kind.RUN, Kind.SUPERVISED):
        run = RunDirectory(path)
        found = run.config().get("montage")
        if not isinstance(found, dict):
            raise damaged_entry(run.config_path, "montage", found)
        return Montage.from_dict(found)
    what = mistaken(path, Kind.RUN, Kind.STORE) or (
        f"{path} {'does not exist' if kind is Kind.NOTHING else 'is neither'}; expected a store that preprocess wrote, "
        "or a run that train wrote."
    )
    raise SleepfmError(f"--like: {what}")
