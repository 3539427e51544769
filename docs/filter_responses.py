"""Draw the responses of every filter preset from the designs that the kernels run: ``docs/filters-*.svg``.

``python docs/filter_responses.py [folder]``; needs matplotlib. The files are the same, byte for byte, at every run with
one version of matplotlib.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from sleepfm_fast.filters import FilterBank, FilterDesign
from sleepfm_fast.reference.filter_resample import filter_window

HERE = Path(__file__).resolve().parent
STYLE = {
    "svg.hashsalt": "sleepfm_fast",
    "svg.fonttype": "none",
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "0.9",
    "legend.frameon": False,
    "lines.linewidth": 1.2,
}
# Distinct in greyscale: by lightness and by dashes.
LINES: list[dict[str, Any]] = [
    {"color": "#000000"},
    {"color": "#b2182b", "linestyle": (0, (5, 1.5))},
    {"color": "#2166ac", "linestyle": (0, (1, 1))},
    {"color": "#6a51a3", "linestyle": (0, (6, 1.5, 1, 1.5))},
    {"color": "#8c8c8c"},
    {"color": "#d08000", "linestyle": (0, (2.5, 1))},
]


def design(preset: str, kind: str, fs_hz: int, notch_hz: int | None = None) -> FilterDesign:
    bank = FilterBank(preset, 256, notch_hz)
    return bank.design(bank.index(kind, fs_hz))


def gain_db(filt: FilterDesign, frequency_hz: np.ndarray) -> np.ndarray:
    return 20.0 * np.log10(np.maximum(np.abs(filt.gain(frequency_hz)), 1e-7))


def draw_gain(axes: Any, filt: FilterDesign, frequency_hz: np.ndarray, label: str, line: dict[str, Any]) -> None:
    """Draw the gain up to the Nyquist frequency, cut off below the axes."""
    inside = frequency_hz <= float(filt.fs_hz) / 2.0
    axes.plot(frequency_hz[inside], np.maximum(gain_db(filt, frequency_hz[inside]), -115.0), label=label, **line)


def aasm() -> Figure:
    figure = Figure(figsize=(7.2, 5.2), layout="constrained")
    whole, band, notched = figure.subplot_mosaic([["whole", "whole"], ["band", "notched"]]).values()
    channels = [
        ("EEG, EOG (200 Hz)", "eeg", 200),
        ("EMG (512 Hz)", "emg", 512),
        ("ECG (256 Hz)", "ecg", 256),
        ("respiration (32 Hz)", "respiration", 32),
        ("snore (500 Hz)", "snore", 500),
    ]
    frequency_hz = np.geomspace(0.02, 250.0, 700)
    for (label, kind, fs_hz), line in zip(channels, LINES, strict=False):
        filt = design("aasm", kind, fs_hz)
        draw_gain(whole, filt, frequency_hz, label, line)
        low_hz, high_hz = filt.pass_hz
        inside = np.geomspace(low_hz or 0.02, high_hz or 1.0, 500)
        band.plot(inside, gain_db(filt, inside), **line)
    whole.set(xscale="log", ylim=(-110, 5), ylabel="gain [dB]", xlabel="frequency [Hz]")
    figure.legend(loc="outside upper center", ncols=5, title="preset aasm, output at 256 Hz", handles=whole.lines)
    band.set(xscale="log", ylim=(-0.01, 0.01), ylabel="gain [dB]", xlabel="frequency [Hz]", title="pass bands")
    near_hz = np.linspace(40.0, 130.0, 600)
    for (kind, fs_hz, notch_hz), line in zip([("emg", 512, 50), ("ecg", 256, 60)], LINES, strict=False):
        draw_gain(notched, design("aasm", kind, fs_hz, notch_hz), near_hz, f"{kind} notch", line)
    notched.set(ylim=(-110, 5), xlabel="frequency [Hz]", title="notches: 50 Hz (EMG), 60 Hz (ECG)")
    return figure


def resampling() -> Figure:
    figure = Figure(figsize=(7.2, 2.8), layout="constrained")
    for axes, fs_hz in zip(figure.subplots(1, 2, sharey=True), (200, 512), strict=True):
        frequency_hz = np.linspace(0.0, fs_hz / 2.0, 500)
        for preset, line in zip(("none", "seed", "clinical"), LINES, strict=False):
            draw_gain(axes, design(preset, "eeg", fs_hz), frequency_hz, preset, line)
        axes.set(ylim=(-110, 5), xlabel="frequency [Hz]", title=f"{fs_hz} to 256 Hz")
        if fs_hz > 256:
            axes.axvline(128.0, color="0.6", linewidth=0.8)
            axes.text(258.0, -12.0, "beyond 128 Hz: aliases", color="0.35", ha="right")
    figure.axes[0].set_ylabel("gain [dB]")
    figure.axes[0].legend(loc="lower left")
    return figure


def step() -> Figure:
    """SpO2 from 97 to 85 % and back, 1 Hz, as a `step` channel and as a band-limited one."""
    figure = Figure(figsize=(7.2, 2.4), layout="constrained")
    axes = figure.subplots()
    spo2 = np.full(60, 97.0)
    spo2[20:40] = 85.0
    n_out = 40 * 256
    time_s = 10.0 + np.arange(n_out) / 256
    for label, kind, line in (("step, every preset", "step", LINES[0]), ("band-limited: not used", "eeg", LINES[1])):
        y = filter_window(spo2, design("none", kind, 1), 0, 10, 0, n_out)
        axes.plot(time_s[::32], y[::32], label=label, **line)
    axes.plot(np.arange(10, 50), spo2[10:50], ".", color="0.5", markersize=3, label="samples")
    axes.set(xlabel="time [s]", ylabel="SpO2 [%]", ylim=(82, 100))
    axes.legend(loc="lower left", ncols=3)
    return figure


def main(folder: Path = HERE) -> None:
    with mpl.rc_context(STYLE):
        for name, draw in (("aasm", aasm), ("resampling", resampling), ("step", step)):
            draw().savefig(folder / f"filters-{name}.svg", metadata={"Date": None, "Creator": None})


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:2]))
