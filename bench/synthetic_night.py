"""A night of polysomnography as an EDF+ file: the rates and the size of a real one, random samples."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyedflib

EEG = ("F3-M2", "F4-M1", "C3-M2", "C4-M1", "O1-M2", "O2-M1", "E1-M2", "E2-M2", "Chin EMG")
SIGNALS = {
    **dict.fromkeys(EEG, 200),
    "ECG": 256,
    **dict.fromkeys(("Airflow", "Thorax", "Abdomen"), 32),
    **dict.fromkeys(("SpO2", "Pulse"), 1),
}
"""Rate of each signal [Hz]."""


def write(path: Path, seconds: int) -> None:
    """Write 15 signals in records of 1 s, with a stage every 30 s."""
    rng = np.random.default_rng(0)
    writer = pyedflib.EdfWriter(str(path), len(SIGNALS), file_type=pyedflib.FILETYPE_EDFPLUS)
    try:
        writer.setSignalHeaders(
            [
                {
                    "label": label,
                    "dimension": "uV",
                    "sample_frequency": fs_hz,
                    "physical_min": -3276.8,
                    "physical_max": 3276.7,
                    "digital_min": -32768,
                    "digital_max": 32767,
                    "transducer": "",
                    "prefilter": "",
                }
                for label, fs_hz in SIGNALS.items()
            ]
        )
        per_record = sum(SIGNALS.values())
        for _ in range(0, seconds, 600):
            for record in rng.integers(-32768, 32768, (600, per_record), dtype=np.int16):
                writer.blockWriteDigitalShortSamples(record)
        for onset_s in range(0, seconds, 30):
            writer.writeAnnotation(onset_s, 30, "Sleep stage N2")
    finally:
        writer.close()
