"""Reading a night from EDF+, as the integers recorded; the file is in the page cache for every arm.

Whole-night arms open the file, header and annotations included; random epochs are read from a file that is open.
"""

from __future__ import annotations

import importlib.util
import itertools
from pathlib import Path

import numpy as np
import pyedflib
import pytest
import synthetic_night

from sleepfm_fast.edf import read_recording
from sleepfm_fast.epochs import read_digital, read_epochs

SETUP = """
import sys
sys.path.insert(0, {folder!r})
import synthetic_night, test_bench_edf
test_bench_edf.{function}({warm!r})
"""


@pytest.fixture(scope="session")
def night(request, tmp_path_factory) -> tuple[Path, int]:
    seconds = 1800 if request.config.getoption("quick") else 8 * 3600
    path = tmp_path_factory.mktemp("night") / "night.edf"
    synthetic_night.write(path, seconds)
    synthetic_night.write(path.with_name("warm.edf"), 600)
    return path, seconds


def ours(path) -> list[np.ndarray]:
    recording = read_recording(path)
    return read_digital(recording, recording.signals, recording.segments[0])


def numpy_memmap(path) -> list[np.ndarray]:
    """By hand, with nothing checked: the header's places are known to the caller, annotations are not looked at."""
    lengths = list(synthetic_night.SIGNALS.values())
    header = 256 * (len(lengths) + 2)
    with open(path, "rb") as file:  # noqa: PTH123 (this is what one writes by hand)
        text = file.read(header)
    samples_at = 256 + 216 * (len(lengths) + 1)
    n_annotation = int(text[samples_at + 8 * len(lengths) : samples_at + 8 * len(lengths) + 8])
    records = np.memmap(path, "<i2", "r", offset=header).reshape(-1, sum(lengths) + n_annotation)
    bounds = np.cumsum([0, *lengths])
    return [records[:, a:b].ravel() for a, b in itertools.pairwise(bounds)]


def pyedflib_digital(path) -> list[np.ndarray]:
    with pyedflib.EdfReader(str(path)) as reader:
        reader.readAnnotations()
        return [reader.readSignal(i, digital=True) for i in range(len(synthetic_night.SIGNALS))]


def edfio_digital(path) -> list[np.ndarray]:
    import edfio

    edf = edfio.read_edf(path)
    assert edf.annotations
    return [np.array(signal.digital) for signal in edf.signals]


def mne_physical(path) -> list[np.ndarray]:
    """MNE decodes to volts in float64; one Raw a rate, for it would resample the slow signals to the fastest rate."""
    import mne

    signals = {}
    for fs_hz in set(synthetic_night.SIGNALS.values()):
        labels = [label for label, rate in synthetic_night.SIGNALS.items() if rate == fs_hz]
        raw = mne.io.read_raw_edf(path, include=labels, preload=True, verbose="error")
        signals |= dict(zip(raw.ch_names, raw.get_data(), strict=True))
    return [signals[label] for label in synthetic_night.SIGNALS]


def test_whole_night(versus, quick, night):
    path, seconds = night
    functions = {"ours": ours, "NumPy memmap, by hand": numpy_memmap, "pyedflib": pyedflib_digital}
    if importlib.util.find_spec("edfio"):
        functions["edfio"] = edfio_digital
    if importlib.util.find_spec("mne"):
        functions["MNE, to float64"] = mne_physical

    def agree(results):
        for arm, signals in results.items():
            for i, (expected, found) in enumerate(zip(results["ours"], signals, strict=True)):
                if arm == "MNE, to float64":
                    step = 1e-7  # volts a digital unit
                    assert np.abs(found / step - expected).max() < 0.01, (arm, i)
                else:
                    np.testing.assert_array_equal(found, expected, err_msg=f"{arm}, signal {i}")

    peak = {}
    if not quick:
        folder, warm = str(Path(__file__).parent), str(path.with_name("warm.edf"))
        for arm, function in functions.items():
            setup = SETUP.format(folder=folder, function=function.__name__, warm=warm)
            peak[arm] = (setup, f"x = test_bench_edf.{function.__name__}({str(path)!r})")
    megabytes = path.stat().st_size / 1e6
    result = versus(
        f"read {seconds / 3600:g} h of EDF+, {len(synthetic_night.SIGNALS)} signals, {megabytes:.0f} MB",
        {arm: (lambda function=function: function(path)) for arm, function in functions.items()},
        agree=agree,
        rounds=6,
        peak=peak,
    )
    result.require("pyedflib", at_least=4.0)


def test_random_epochs(versus, night):
    path, seconds = night
    n, fs_hz, n_samples = 256, 200, 30 * 200
    onsets_s = 30 * np.random.default_rng(1).integers(0, seconds // 30, n)
    recording = read_recording(path)
    signals = recording.signals[: len(synthetic_night.EEG)]
    channels = range(len(signals))
    reader = pyedflib.EdfReader(str(path))

    def with_pyedflib():
        out = np.empty((n, len(signals), n_samples), np.int16)
        for i, onset_s in enumerate(onsets_s):
            for c in channels:
                out[i, c] = reader.readSignal(c, int(onset_s) * fs_hz, n_samples, digital=True)
        return out

    def with_memmap():
        records = recording.records().view("<i2")
        out = np.empty((n, len(signals), n_samples), np.int16)
        for i, onset_s in enumerate(onsets_s):
            rows = records[onset_s : onset_s + 30, : len(signals) * fs_hz]
            out[i] = rows.reshape(30, len(signals), fs_hz).transpose(1, 0, 2).reshape(len(signals), n_samples)
        return out

    arms = {
        "ours": lambda: read_epochs(recording, signals, onsets_s),
        "NumPy memmap, by hand": with_memmap,
        "pyedflib": with_pyedflib,
    }
    if importlib.util.find_spec("edfio"):
        import edfio

        edf = edfio.read_edf(path)

        def with_edfio():
            out = np.empty((n, len(signals), n_samples), np.int16)
            for i, onset_s in enumerate(onsets_s):
                for c in channels:
                    out[i, c] = edf.signals[c].get_digital_slice(float(onset_s), float(onset_s + 30))
            return out

        arms["edfio"] = with_edfio

    def agree(results):
        for arm, epochs in results.items():
            np.testing.assert_array_equal(epochs, results["ours"], err_msg=arm)

    result = versus(f"{n} random 30-s epochs of {len(signals)} channels", arms, agree=agree, rounds=10)
    reader.close()
    result.require("pyedflib", at_least=5.0)
