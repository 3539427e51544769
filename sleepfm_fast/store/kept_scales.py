"""Amplitudes of recordings in a file: measuring reads 32 clips of every night, minutes for a cohort of thousands."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sleepfm_fast.errors import refused_by_system
from sleepfm_fast.storage.atomic import replace_file
from sleepfm_fast.store.scales import Scales

__all__ = ["read_scales", "write_scales"]

FORMAT, VERSION = "sleepfm_fast amplitudes", 1
"""The version is also raised where a recording gets other amplitudes than before; earlier files then do not count."""
TYPES = {"centre": np.float32, "scale": np.float32, "measured": np.bool_}


def write_scales(path: Path, scales: Scales, of: Mapping[str, Any]) -> None:
    """Write what was measured as a safetensors file, atomically.

    Parameters
    ----------
    path : Path
    scales : Scales
    of : mapping
        What the amplitudes are of, as JSON: they are read again only for exactly this.
    """
    from safetensors.numpy import save

    text = json.dumps({"format": FORMAT, "version": VERSION, "of": of}, sort_keys=True)
    data = save({name: np.ascontiguousarray(getattr(scales, name)) for name in TYPES}, metadata={"about": text})
    with replace_file(path) as file:
        file.write(data)


def read_scales(path: Path, scales: Scales, of: Mapping[str, Any]) -> str | None:
    """Fill in the recordings of ``scales`` whose amplitudes the file has and that are not measured yet.

    A file that is missing, or whose amplitudes are of something else, changes nothing.

    Parameters
    ----------
    path : Path
    scales : Scales
        Changed in place.
    of : mapping
        As of :func:`write_scales`.

    Returns
    -------
    str or None
        What is wrong with a file that cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with path.open("rb"):  # safetensors says "I/O error" of whatever the system refused
            pass
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        return refused_by_system(error)
    about = json.dumps({"format": FORMAT, "version": VERSION, "of": of}, sort_keys=True)
    try:
        with safe_open(str(path), framework="numpy") as file:
            if (file.metadata() or {}).get("about") != about:
                return None
            kept = Scales(*(file.get_tensor(name) for name in TYPES))
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        return f"{path} is damaged ({error})"
    for name, dtype in TYPES.items():
        value, expected = getattr(kept, name), getattr(scales, name)
        if value.dtype != dtype or value.shape != expected.shape or not np.isfinite(value).all():
            return f"{path} is damaged ({name} is {value.dtype} {value.shape})"
    taken = kept.measured & ~scales.measured
    for name in TYPES:
        getattr(scales, name)[taken] = getattr(kept, name)[taken]
    return None
