"""Reading a night from EDF+; the file is in the page cache for every arm.

Whole-night arms open the file, header and annotations included; decoding alone and random epochs start from an open
file. edfarray, which needs Python 3.12, is not among the rivals.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyedflib
import pytest
import synthetic_night

from sleepfm_fast.edf import read_recording
from sleepfm_fast.epochs import EpochReader, read_digital, read_epochs, read_physical
from sleepfm_fast.execution.threads import thread_limit

SETUP = """
import sys
sys.path.insert(0, {folder!r})
import synthetic_night, test_edf
test_edf.{function}({warm!r})
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


KEPT: dict[tuple[object, type], list[np.ndarray]] = {}


def ours_in_place(path) -> list[np.ndarray]:
    """Into arrays that are used again."""
    recording = read_recording(path)
    out = KEPT.get((path, np.int16))
    KEPT[path, np.int16] = read_digital(recording, recording.signals, recording.segments[0], out)
    return KEPT[path, np.int16]


def ours_physical(path) -> list[np.ndarray]:
    recording = read_recording(path)
    out = KEPT.get((path, np.float32))
    KEPT[path, np.float32] = read_physical(recording, recording.signals, recording.segments[0], out)
    return KEPT[path, np.float32]


def ours_physical_fresh(path) -> list[np.ndarray]:
    recording = read_recording(path)
    return read_physical(recording, recording.signals, recording.segments[0])


def pyedflib_physical(path) -> list[np.ndarray]:
    with pyedflib.EdfReader(str(path)) as reader:
        reader.readAnnotations()
        return [reader.readSignal(i) for i in range(len(synthetic_night.SIGNALS))]


def edfio_physical(path) -> list[np.ndarray]:
    import edfio

    edf = edfio.read_edf(path)
    assert edf.annotations
    return [signal.data for signal in edf.signals]


def numpy_records(path) -> np.ndarray:
    """By hand, with nothing checked: the header's places are known to the caller, annotations are not looked at."""
    lengths = list(synthetic_night.SIGNALS.values())
    header = 256 * (len(lengths) + 2)
    with open(path, "rb") as file:  # noqa: PTH123 (this is what one writes by hand)
        text = file.read(header)
    samples_at = 256 + 216 * (len(lengths) + 1)
    n_annotation = int(text[samples_at + 8 * len(lengths) : samples_at + 8 * len(lengths) + 8])
    return np.memmap(path, "<i2", "r", offset=header).reshape(-1, sum(lengths) + n_annotation)


def numpy_memmap(path) -> list[np.ndarray]:
    records = numpy_records(path)
    bounds = np.cumsum([0, *synthetic_night.SIGNALS.values()])
    return [records[:, a:b].ravel() for a, b in itertools.pairwise(bounds)]


def numpy_physical(path) -> list[np.ndarray]:
    """By hand as above, to float32 in arrays that are used again."""
    digital = numpy_records(path)
    bounds = np.cumsum([0, *synthetic_night.SIGNALS.values()])
    out = KEPT.setdefault(
        (path, np.ndarray), [np.empty(len(digital) * n, np.float32) for n in synthetic_night.SIGNALS.values()]
    )
    for (a, b), values in zip(itertools.pairwise(bounds), out, strict=True):
        np.multiply(digital[:, a:b], np.float32(0.1), out=values.reshape(len(digital), -1))
    return out


BLOCK = 256  # records: 1.1 MB, which stay in the second cache while 15 signals are taken out of them


def in_blocks(path, dtype: type, take: Callable[[np.ndarray, np.ndarray], object]) -> list[np.ndarray]:
    """By hand as above, as it is quickest with NumPy: blocks of records, in as many threads as ours."""
    records = numpy_records(path)
    lengths = list(synthetic_night.SIGNALS.values())
    bounds = np.cumsum([0, *lengths])
    out = KEPT.setdefault((path, take), [np.empty(len(records) * n, dtype) for n in lengths])
    rows = [values.reshape(len(records), -1) for values in out]
    file = os.open(path, os.O_RDONLY)

    def run(begin: int, end: int) -> None:
        buffer = np.empty((BLOCK, records.shape[1]), "<i2")
        for start in range(begin, end, BLOCK):
            block = buffer[: min(BLOCK, end - start)]
            os.preadv(file, [block], records.offset + start * buffer[0].nbytes)
            for (a, b), values in zip(itertools.pairwise(bounds), rows, strict=True):
                take(block[:, a:b], values[start : start + len(block)])

    parts = np.linspace(0, len(records), thread_limit() + 1).astype(int).tolist()
    with ThreadPoolExecutor(thread_limit()) as threads:
        list(threads.map(run, parts[:-1], parts[1:]))
    os.close(file)
    return out


def numpy_blocks(path) -> list[np.ndarray]:
    return in_blocks(path, np.int16, copied)


def numpy_physical_blocks(path) -> list[np.ndarray]:
    return in_blocks(path, np.float32, scaled)


def copied(block: np.ndarray, out: np.ndarray) -> None:
    out[:] = block


def scaled(block: np.ndarray, out: np.ndarray) -> None:
    np.multiply(block, np.float32(0.1), out=out)


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
    functions = {
        "ours": ours_in_place,
        "ours, new arrays": ours,
        "NumPy memmap, by hand": numpy_memmap,
        "NumPy in blocks and threads, annotations unread": numpy_blocks,
        "pyedflib": pyedflib_digital,
    }
    if importlib.util.find_spec("edfio"):
        functions["edfio"] = edfio_digital

    def agree(results):
        for arm, signals in results.items():
            for i, (expected, found) in enumerate(zip(results["ours"], signals, strict=True)):
                np.testing.assert_array_equal(found, expected, err_msg=f"{arm}, signal {i}")

    peak = {}
    if not quick:
        folder, warm = str(Path(__file__).parent), str(path.with_name("warm.edf"))
        for arm, function in functions.items():
            setup = SETUP.format(folder=folder, function=function.__name__, warm=warm)
            peak[arm] = (setup, f"x = test_edf.{function.__name__}({str(path)!r})")
    megabytes = path.stat().st_size / 1e6
    result = versus(
        f"read {seconds / 3600:g} h of EDF+, {len(synthetic_night.SIGNALS)} signals, {megabytes:.0f} MB, as integers",
        {arm: (lambda function=function: function(path)) for arm, function in functions.items()},
        agree=agree,
        rounds=6,
        peak=peak,
    )
    result.require("pyedflib", at_least=6.0)


def test_whole_night_in_physical_units(versus, night):
    path, seconds = night
    functions = {
        "ours, float32": ours_physical,
        "ours, new arrays, float32": ours_physical_fresh,
        "NumPy memmap, by hand, float32": numpy_physical,
        "NumPy in blocks and threads, annotations unread, float32": numpy_physical_blocks,
        "pyedflib, float64": pyedflib_physical,
    }
    if importlib.util.find_spec("edfio"):
        functions["edfio, float64"] = edfio_physical
    if importlib.util.find_spec("mne"):
        functions["MNE, float64"] = mne_physical

    def agree(results):
        for arm, signals in results.items():
            for i, (expected, found) in enumerate(zip(results["ours, float32"], signals, strict=True)):
                # Microvolts; MNE gives volts. A step is 0.1 uV, float32 holds 3277 uV within 2e-4.
                scale = 1e6 if arm.startswith("MNE") else 1.0
                assert np.abs(scale * found - expected).max() < 1e-3, (arm, i)

    versus(
        f"read {seconds / 3600:g} h of EDF+, {len(synthetic_night.SIGNALS)} signals, in microvolts",
        {arm: (lambda function=function: function(path)) for arm, function in functions.items()},
        agree=agree,
        rounds=4,
    ).require("pyedflib, float64", at_least=8.0)


def test_decoding(versus, night):
    """An open recording into memory that is used again, against the bare copy of as many bytes."""
    path, seconds = night
    recording = read_recording(path)
    segment = recording.segments[0]
    out = read_digital(recording, recording.signals, segment)
    physical = read_physical(recording, recording.signals, segment)
    records = recording.records()
    copy = np.empty_like(records)
    halves = np.array_split(np.arange(len(records)), thread_limit())

    def threaded() -> None:
        with ThreadPoolExecutor(len(halves)) as threads:
            list(
                threads.map(
                    lambda part: np.copyto(copy[part[0] : part[-1] + 1], records[part[0] : part[-1] + 1]), halves
                )
            )

    versus(
        f"decode {seconds / 3600:g} h of EDF+, open, memory used again",
        {
            "ours, int16": lambda: read_digital(recording, recording.signals, segment, out),
            "ours, float32": lambda: read_physical(recording, recording.signals, segment, physical),
            "np.copyto of the file's bytes": lambda: np.copyto(copy, records),
            "np.copyto of the file's bytes, in threads": threaded,
        },
        agree=lambda results: [
            np.testing.assert_allclose(s.gain * a + s.offset, b, atol=1e-3)
            for s, a, b in zip(recording.signals, *list(results.values())[:2], strict=True)
        ],
        rounds=10,
    )


def test_one_epoch_of_all_signals(versus, night):
    """Epochs one by one, as a data set's ``__getitem__`` would ask for them; every signal at its own rate."""
    path, seconds = night
    n = 200
    onsets_s = (30 * np.random.default_rng(2).integers(0, seconds // 30, n)).tolist()
    recording = read_recording(path)
    rates = list(synthetic_night.SIGNALS.values())
    bounds = np.cumsum([0, *rates])
    reader = EpochReader(recording, recording.signals)
    row = np.empty(reader.offsets[-1], np.int16)
    records = recording.records().view("<i2")
    edflib = pyedflib.EdfReader(str(path))

    def with_reader(out):
        for onset_s in onsets_s:
            last = reader.read(onset_s, out)
        return reader.split(last)

    def with_memmap():
        for onset_s in onsets_s:
            last = [records[onset_s : onset_s + 30, a:b].ravel() for a, b in itertools.pairwise(bounds)]
        return last

    def with_pyedflib():
        for onset_s in onsets_s:
            last = [edflib.readSignal(c, onset_s * f, 30 * f, digital=True) for c, f in enumerate(rates)]
        return last

    arms = {
        "ours": lambda: with_reader(row),
        "ours, new arrays": lambda: with_reader(None),
        "NumPy memmap, by hand": with_memmap,
        "pyedflib": with_pyedflib,
    }
    if importlib.util.find_spec("edfio"):
        import edfio

        edf = edfio.read_edf(path)

        def with_edfio():
            for onset_s in onsets_s:
                last = [np.array(s.get_digital_slice(float(onset_s), float(onset_s + 30))) for s in edf.signals]
            return last

        arms["edfio"] = with_edfio

    def agree(results):
        for arm, signals in results.items():
            for expected, found in zip(results["ours"], signals, strict=True):
                np.testing.assert_array_equal(found, expected, err_msg=arm)

    result = versus(f"{n} random 30-s epochs of {len(rates)} signals, one by one", arms, agree=agree, rounds=10)
    edflib.close()
    result.require("pyedflib", at_least=10.0)


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
        # One copy an epoch, in the order that is wanted; in threads it takes longer.
        records = recording.records().view("<i2")
        out = np.empty((n, len(signals), n_samples), np.int16)
        places = out.reshape(n, len(signals), 30, fs_hz).transpose(0, 2, 1, 3)
        for i, onset_s in enumerate(onsets_s):
            places[i] = records[onset_s : onset_s + 30, : len(signals) * fs_hz].reshape(30, len(signals), fs_hz)
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
