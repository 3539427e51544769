"""A recording of any of the formats that are read: EDF and BDF with their successors, or WFDB."""

from __future__ import annotations

import os
from pathlib import Path

from sleepfm_fast.cli.given_paths import as_path
from sleepfm_fast.edf import Recording, read_recording
from sleepfm_fast.formats.edf_fields import EdfError
from sleepfm_fast.formats.wfdb_recording import read_wfdb_recording

__all__ = ["WFDB_SUFFIX", "open_recording", "wfdb_hint"]

WFDB_SUFFIX = ".hea"


def open_recording(path: str | Path) -> Recording:
    """Read the header of a recording, and the annotations in it.

    Parameters
    ----------
    path : str or Path
        An EDF or BDF file, told by its content, or the header ``.hea`` of a WFDB record, told by its suffix.

    Returns
    -------
    Recording

    Raises
    ------
    SleepfmError
        When it cannot be read; see :func:`sleepfm_fast.edf.read_recording` and
        :func:`sleepfm_fast.formats.wfdb_recording.read_wfdb_recording`.
    """
    path = as_path(path)
    if path.suffix.lower() == WFDB_SUFFIX:
        return read_wfdb_recording(path)
    try:
        return read_recording(path)
    except EdfError as error:
        raise EdfError(f"{error}{wfdb_hint(path)}") from error


def wfdb_hint(path: Path) -> str:
    """What to add to the refusal of a file that is a WFDB record's signal file; empty where it is none."""
    header = path.with_suffix(WFDB_SUFFIX)
    is_there = os.path.isfile(header)  # noqa: PTH113 - Path's raises in closed folders
    return f" Give {header}, the header of the WFDB record." if is_there else ""
