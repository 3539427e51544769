"""Writes small nights with pyedflib: known integers, stages as annotations; and compares stores byte for byte."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyedflib

from sleepfm_fast.preprocess import cli

DATA = Path(os.environ.get("SLEEPFM_TEST_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))


@dataclass(frozen=True)
class Lead:
    """A channel to write; ``physical`` is the value of the largest integer, so it decides the gain."""

    label: str
    fs_hz: int = 100
    unit: str = "uV"
    physical: float = 500.0


LEADS = (
    Lead("C3-M2"),
    Lead("C4-M1"),
    Lead("E1-M2"),
    Lead("ECG", 200, "mV", 5.0),
    Lead("Airflow", 25, "", 100.0),
    Lead("SpO2", 1, "%", 100.0),
)


def write_night(
    path: Path,
    *,
    seconds: int = 120,
    leads: Sequence[Lead] = LEADS,
    stages: str = "W12R",
    first_stage_s: float = 0.0,
    events: Sequence[tuple[float, float, str]] = (),
    bdf: bool = False,
    seed: int = 0,
) -> list[np.ndarray]:
    """Write an EDF+ or BDF+ night with one stage per 30 s (``-`` for none); returns the integers of each channel."""
    rng = np.random.default_rng(seed)
    limit = 2**23 if bdf else 2**15
    digital = [rng.integers(-limit, limit, seconds * lead.fs_hz, dtype=np.int32) for lead in leads]
    writer = pyedflib.EdfWriter(
        str(path), len(leads), file_type=pyedflib.FILETYPE_BDFPLUS if bdf else pyedflib.FILETYPE_EDFPLUS
    )
    writer.setSignalHeaders(
        [
            {
                "label": lead.label,
                "dimension": lead.unit,
                "sample_frequency": lead.fs_hz,
                "physical_min": -lead.physical,
                "physical_max": lead.physical,
                "digital_min": -limit,
                "digital_max": limit - 1,
                "transducer": "",
                "prefilter": "",
            }
            for lead in leads
        ]
    )
    for i, stage in enumerate(stages):
        if stage != "-":
            writer.writeAnnotation(first_stage_s + 30 * i, 30, f"Sleep stage {stage}")
    for onset_s, duration_s, text in events:
        writer.writeAnnotation(onset_s, duration_s, text)
    writer.writeSamples(digital, digital=True)
    writer.close()
    return digital


def preprocess(capsys, *arguments: object) -> tuple[int, dict]:
    """Run the command in this process; returns its exit status and its JSON line."""
    capsys.readouterr()
    status = cli([*map(str, arguments), "--backend", "threading", "--workers", "1"])
    lines = capsys.readouterr().out.splitlines()
    return status, json.loads(lines[-1]) if lines else {}


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by relative path, but for a store's manifest, which says when things were done."""
    files = (p for p in sorted(folder.rglob("*")) if p.is_file() and p.name != "manifest.csv")
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def state(folder: Path) -> dict[str, tuple[int, int]]:
    """Inode and modification time of every recording's files: what is rewritten changes them."""
    return {p.name: (p.stat().st_ino, p.stat().st_mtime_ns) for p in sorted((folder / "recordings").iterdir())}


def write_cohort(folder: Path) -> Path:
    """Two subjects with two nights each and a table."""
    folder.mkdir()
    write_night(folder / "a1.edf", seed=1)
    write_night(folder / "a2.edf", seed=2, leads=LEADS[:4], stages="-23?")
    write_night(folder / "b1.edf", seed=3, events=[(35, 20, "Obstructive Apnea")])
    write_night(folder / "b2.bdf", seed=4, bdf=True, stages="W-44")
    (folder / "participants.csv").write_text(
        "Recording,Subject ID,Age,Gender\na1.edf,A,61.5,female\na2,A,61.5,F\nb1.edf,B,,M\nb2,B,47,male\n"
    )
    return folder


def run_preprocess(*arguments: object, check: bool = True) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sleepfm_fast.preprocess", *map(str, arguments)],
        cwd=Path(__file__).resolve().parents[1], capture_output=True, text=True, check=check, timeout=300,
    )  # fmt: skip
