"""Nights whose signals are given in physical units, so that what is measured or learnt from them has a known answer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyedflib
from nights import Lead

EEG = Lead("C3-M2", 100, "uV", 500.0)
ECG = Lead("ECG", 100, "mV", 5.0)
FLOW = Lead("Airflow", 25, "", 100.0)


def write_known_night(
    path: Path,
    signals: Sequence[tuple[Lead, np.ndarray]],
    *,
    stages: Sequence[str] = (),
    events: Sequence[tuple[float, float, str]] = (),
) -> Path:
    """Write an EDF+ night: physical values of each channel, one stage per 30 s (W, 1, 2, 3, R), respiratory events."""
    writer = pyedflib.EdfWriter(str(path), len(signals), file_type=pyedflib.FILETYPE_EDFPLUS)
    writer.setSignalHeaders(
        [
            {
                "label": lead.label,
                "dimension": lead.unit,
                "sample_frequency": lead.fs_hz,
                "physical_min": -lead.physical,
                "physical_max": lead.physical,
                "digital_min": -32768,
                "digital_max": 32767,
                "transducer": "",
                "prefilter": "",
            }
            for lead, _ in signals
        ]
    )
    writer.writeSamples([np.ascontiguousarray(values, np.float64) for _, values in signals])
    for i, stage in enumerate(stages):
        writer.writeAnnotation(30.0 * i, 30.0, f"Sleep stage {stage}")
    for onset_s, duration_s, text in events:
        writer.writeAnnotation(onset_s, duration_s, text)
    writer.close()
    return path


def staged_night(path: Path, stages: Sequence[str], seed: int, leads: Sequence[Lead] = (EEG, ECG, FLOW)) -> Path:
    """A night whose EEG tells the stage (W: 10 Hz, else: large 1 Hz) and whose other channels are noise."""
    rng = np.random.default_rng(seed)
    signals = []
    for lead in leads:
        t = np.arange(30 * lead.fs_hz) / lead.fs_hz
        x = 0.02 * lead.physical * rng.standard_normal((len(stages), t.size))
        if lead is EEG:
            for i, stage in enumerate(stages):
                f_hz, amplitude = (10.0, 25.0) if stage == "W" else (1.0, 75.0)
                x[i] += amplitude * np.sin(2 * np.pi * f_hz * t + rng.uniform(0, 6))
        signals.append((lead, x.reshape(-1)))
    return write_known_night(path, signals, stages=stages)
