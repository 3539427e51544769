"""The index of a clip store, made of the descriptions of its recordings and put in force at once."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sleepfm_fast.atomic import write_json
from sleepfm_fast.channels import Montage
from sleepfm_fast.clip_layout import FORMAT, INDEX_SCHEMA, INDEX_TEXTS, VERSION, sdb_counts, stage_counts
from sleepfm_fast.columns import read_columns, write_columns
from sleepfm_fast.errors import SleepfmError
from sleepfm_fast.stages import EPOCH_S

__all__ = ["commit", "write_store_file"]

Array = npt.NDArray[Any]


def write_store_file(
    path: Path, montage: Montage, configuration: dict[str, Any], index: str | None, totals: dict[str, Any] | None
) -> None:
    """Replace ``store.json``: with an index this is the commit; without one the store counts as unfinished."""
    write_json(
        path / "store.json",
        {
            "format": FORMAT,
            "version": VERSION,
            "montage": montage.to_dict(),
            "configuration": configuration,
            "index": index,
            "totals": totals,
        },
        indent=1,
    )


def commit(path: Path, montage: Montage, configuration: dict[str, Any], records: Sequence[Path]) -> dict[str, Any]:
    """Make the index of ``records`` and put it in force.

    Parameters
    ----------
    path : Path
        The store.
    montage : Montage
    configuration : dict
        What every recording was made with; JSON values.
    records : sequence of Path
        The ``recordings/<id>.json`` that belong to the store, in the order of their ids.

    Returns
    -------
    dict
        Totals: recordings, subjects, clips, hours, stages, sdb.
    """
    columns, texts, digest = gather_columns(records, len(montage.slots))
    name = f"index-{digest}"
    totals = {
        "recordings": len(records),
        "subjects": len(texts["subjects"]),
        "clips": len(columns["clip"]),
        "hours": len(columns["clip"]) * EPOCH_S / 3600,
        "stages": stage_counts(columns["stage"]),
        "sdb": sdb_counts(columns["sdb"]),
        "channels_missing": int(np.sum(~columns["channel_present"])),
    }
    try:
        read_columns(path / name, INDEX_SCHEMA, INDEX_TEXTS, remedy="")
    except SleepfmError:
        write_columns(path / name, columns, texts)
    write_store_file(path, montage, configuration, name, totals)
    for old in path.glob("index-*"):
        if old.name != name:
            shutil.rmtree(old, ignore_errors=True)
    return totals


def gather_columns(records: Sequence[Path], n_slots: int) -> tuple[dict[str, Array], dict[str, Any], str]:
    """Columns and texts of the index, and the digest that names it. One record is held at a time."""
    parts: dict[str, list[Array]] = {name: [] for name in INDEX_SCHEMA}
    recordings: list[dict[str, Any]] = []
    participants: dict[str, dict[str, Any]] = {}
    units: dict[str, int] = {}
    digest = hashlib.sha256()
    n_clips = n_segments = 0

    def add(name: str, values: Any) -> None:
        parts[name].append(np.atleast_1d(np.asarray(values, dtype=INDEX_SCHEMA[name])))

    for i, file in enumerate(records):
        content = file.read_bytes()
        digest.update(hashlib.sha256(content).digest())
        record = json.loads(content)
        channels, segments, clips = record["channels"], record["segments"], record["clips"]
        if len(channels) != n_slots:
            raise SleepfmError(
                f"{file} has {len(channels)} slots, the store's montage has {n_slots}. Delete {file} and its .bin, and "
                "run preprocess again."
            )
        n = len(clips["onset_s"])
        add("recording", np.full(n, i))
        add("clip", np.arange(n))
        for name in ("segment", "onset_s", "stage", "sdb"):
            add(name, clips[name])
        add("recording_first_clip", n_clips)
        add("recording_first_segment", n_segments)
        add("recording_subject", participant(participants, record))
        present = np.array([c["present"] for c in channels])
        runs = np.array([s["runs"] for s in segments], dtype=np.int64).reshape(len(segments), n_slots, 2)
        add("channel_present", present)
        add("channel_fs_num", [c["fs_hz"][0] if c["present"] else 0 for c in channels])
        add("channel_fs_den", [c["fs_hz"][1] if c["present"] else 1 for c in channels])
        add("channel_gain", [c["gain"] if c["present"] else 0.0 for c in channels])
        add("channel_offset", [c["offset"] if c["present"] else 0.0 for c in channels])
        add("channel_itemsize", [np.dtype(c["dtype"]).itemsize if c["present"] else 0 for c in channels])
        add("channel_unit", [units.setdefault(c["unit"] if c["present"] else "", len(units)) for c in channels])
        add("channel_n_samples", runs[:, :, 1].sum(axis=0))
        add("segment_onset_num", [s["onset_s"][0] for s in segments])
        add("segment_onset_den", [s["onset_s"][1] for s in segments])
        add("run_offset", runs[:, :, 0].ravel())
        add("run_n_samples", runs[:, :, 1].ravel())
        recordings.append(
            {
                "id": record["id"],
                "source": record["source"]["path"],
                "start": record["start"],
                "n_bytes": record["n_bytes"],
                "sha256": record["sha256"],
            }
        )
        n_clips += n
        n_segments += len(segments)
    add("recording_first_clip", n_clips)
    add("recording_first_segment", n_segments)
    columns = {name: np.concatenate(chunks) for name, chunks in parts.items()}
    texts = {
        "recordings": recordings,
        "subjects": [{"subject": s, "age": f["age"], "sex": f["sex"]} for s, f in participants.items()],
        "units": list(units),
    }
    return columns, texts, digest.hexdigest()[:16]


def participant(participants: dict[str, dict[str, Any]], record: dict[str, Any]) -> int:
    """Position of the record's subject; facts that one recording lacks are taken from another of the subject."""
    facts = participants.setdefault(record["subject"], {"position": len(participants), "age": None, "sex": None})
    for name in ("age", "sex"):
        if facts[name] is None:
            facts[name] = record[name]
    position: int = facts["position"]
    return position
