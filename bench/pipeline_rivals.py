"""From an EDF file to model input: the two published pipelines, restated with their own libraries, and ours.

Beside each pipeline stands what one would write to have the same clips sooner: records read by NumPy, channels in
threads. Charitable to them: no files are written (the original writes 940 arrays a night, the clinical one compresses
to HDF5), and no labels are read.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import numpy as np
import pyedflib
import scipy.signal
import torch

from sleepfm_fast import ops
from sleepfm_fast.edf import read_recording
from sleepfm_fast.epochs import read_digital
from sleepfm_fast.filters import FilterBank

EEG = ("F3-M2", "F4-M1", "C3-M2", "C4-M1", "O1-M2", "O2-M1", "E1-M2", "E2-M2", "Chin")
SIGNALS_HZ = {
    **dict.fromkeys(EEG, 200),
    "ECG": 256,
    **dict.fromkeys(("Airflow", "Thorax", "Abdomen"), 32),
    **dict.fromkeys(("SpO2", "Pulse"), 1),
}
STEPS = ("SpO2", "Pulse")
BLOCK_S = 600
SEED_HZ, CLINICAL_HZ, CLIP_S = 256, 128, 30
BANKS = {"seed": FilterBank("seed", SEED_HZ), "clinical": FilterBank("clinical", CLINICAL_HZ)}
KEPT: dict[tuple, np.ndarray] = {}


def write_night(path: Path, seconds: int) -> None:
    """Write 15 signals of noise between 2 % and 7 % of their rates; blocks of 10 min are periodic and repeat."""
    rng = np.random.default_rng(0)
    block = np.empty((BLOCK_S, sum(SIGNALS_HZ.values())), np.int16)
    place = 0
    for fs_hz in SIGNALS_HZ.values():
        frequency = np.fft.rfftfreq(BLOCK_S * fs_hz)
        spectrum = rng.standard_normal((frequency.size, 2)).view(complex)[:, 0]
        spectrum[(frequency < 0.02) | (frequency > 0.07)] = 0
        x = np.fft.irfft(spectrum, BLOCK_S * fs_hz)
        block[:, place : place + fs_hz] = np.rint(x * (3000 / x.std())).reshape(BLOCK_S, fs_hz)
        place += fs_hz
    limits = {"physical_min": -3276.8, "physical_max": 3276.7, "digital_min": -32768, "digital_max": 32767}
    with pyedflib.EdfWriter(str(path), len(SIGNALS_HZ), file_type=pyedflib.FILETYPE_EDFPLUS) as writer:
        writer.setSignalHeaders(
            [
                {
                    "label": label,
                    "dimension": "uV",
                    "sample_frequency": fs_hz,
                    **limits,
                    "transducer": "",
                    "prefilter": "",
                }
                for label, fs_hz in SIGNALS_HZ.items()
            ]
        )
        for second in range(seconds):
            writer.blockWriteDigitalShortSamples(block[second % BLOCK_S])


def ours(path: Path, preset: str, labels: tuple[str, ...], fs_out_hz: int, clip_s: int | None) -> torch.Tensor:
    """Filtered channels, ``[clip, channel, sample]``; ``clip_s`` None: the recording is the clip, z-scored."""
    recording = read_recording(path)
    signals = [recording.signal(label) for label in labels]
    segment = recording.segments[0]
    lengths = [segment.n_records * s.samples_per_record for s in signals]
    bounds = np.cumsum([0, *lengths])
    raw = kept("raw", (int(bounds[-1]),), np.int16)
    read_digital(recording, signals, segment, [raw[a:b] for a, b in itertools.pairwise(bounds)])
    seconds = int(segment.n_records * recording.record_s)
    bank, span_s = BANKS[preset], clip_s or seconds
    table = torch.zeros(seconds // span_s, len(signals), 6, dtype=torch.int64)
    for c, signal in enumerate(signals):
        f = bank.index("step" if signal.label in STEPS else "eeg", signal.fs_hz)
        first = torch.arange(len(table)) * int(span_s * signal.fs_hz)
        start = (first - bank.context(f)).clamp(min=0)
        stop = (first + int(span_s * signal.fs_hz) + bank.context(f)).clamp(max=lengths[c])
        columns = (
            int(bounds[c]) + start,
            stop - start,
            start,
            first,
            torch.zeros_like(first),
            torch.full_like(first, f),
        )
        table[:, c] = torch.stack(columns, dim=1)
    calibration = torch.tensor([[s.gain, s.offset, 0.0, 1.0] for s in signals], dtype=torch.float32)
    out = torch.from_numpy(kept("ours", (len(table), len(signals), span_s * fs_out_hz), np.float32))
    normalise = "none" if clip_s else "zscore"
    calibration = calibration.expand(len(table), -1, -1).contiguous()
    return ops.filter_resample(
        torch.from_numpy(raw), table, calibration, bank, out.shape[2], normalise=normalise, out=out
    )


def kept(what: str, shape: tuple[int, ...], dtype: type) -> np.ndarray:
    if (what, shape) not in KEPT:
        KEPT[what, shape] = np.empty(shape, dtype)
    return KEPT[what, shape]


def ours_seed(path: Path) -> torch.Tensor:
    return ours(path, "seed", EEG, SEED_HZ, CLIP_S)


def mne_seed(path: Path, **options: str) -> np.ndarray:
    """The original's way: MNE reads and resamples by Fourier transform, with its defaults; then clips."""
    import mne

    raw = mne.io.read_raw_edf(path, include=EEG, preload=True, verbose="error")
    raw.resample(SEED_HZ, verbose="error", **options)
    clips = raw.get_data() * 1e6
    n = clips.shape[1] // (CLIP_S * SEED_HZ)
    return clips[:, : n * CLIP_S * SEED_HZ].reshape(len(EEG), n, -1).transpose(1, 0, 2)


def mne_polyphase_seed(path: Path) -> np.ndarray:
    """The same with the other method that MNE has."""
    return mne_seed(path, method="polyphase")


def soxr_seed(path: Path) -> np.ndarray:
    import soxr

    n_clip = CLIP_S * SEED_HZ
    digital = by_hand(path)
    n = len(digital) // CLIP_S
    out = kept("soxr", (n, len(EEG), n_clip), np.float32)

    def one(c: int, x: np.ndarray, fs_hz: int) -> None:
        out[:, c] = soxr.resample(x, fs_hz, SEED_HZ, quality="HQ")[: n * n_clip].reshape(n, n_clip)

    in_threads(digital, len(EEG), np.float32, one)
    return out


def by_hand(path: Path | str) -> np.ndarray:
    """Digital samples [record, sample of all signals]; nothing is checked, annotations are not looked at."""
    header = 256 * (len(SIGNALS_HZ) + 2)
    with Path(path).open("rb") as file:
        text = file.read(header)
    at = 256 + 216 * (len(SIGNALS_HZ) + 1) + 8 * len(SIGNALS_HZ)
    return np.memmap(path, "<i2", "r", offset=header).reshape(-1, sum(SIGNALS_HZ.values()) + int(text[at : at + 8]))


def in_threads(digital: np.ndarray, n: int, dtype: type, one: Callable[[int, np.ndarray, int], None]) -> None:
    """Call ``one`` with the number, the microvolts and the rate of each of the first n signals."""
    rates = list(SIGNALS_HZ.values())
    bounds = np.cumsum([0, *rates])

    def run(c: int) -> None:
        one(c, np.multiply(digital[:, bounds[c] : bounds[c + 1]], dtype(0.1), dtype=dtype).ravel(), rates[c])

    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        list(threads.map(run, range(n)))


def ours_clinical(path: Path) -> torch.Tensor:
    return ours(path, "clinical", tuple(SIGNALS_HZ), CLINICAL_HZ, None)


def mne_clinical(path: Path) -> np.ndarray:
    """The clinical way: MNE reads all channels; Butterworth low-pass both ways, linear interpolation, z-score."""
    import mne

    raw = mne.io.read_raw_edf(path, preload=True, verbose="error")
    fs_hz = float(raw.info["sfreq"])
    seconds = raw.n_times / fs_hz
    at = np.arange(int(seconds * CLINICAL_HZ)) / CLINICAL_HZ
    out = np.empty((len(raw.ch_names), at.size))
    for c, x in enumerate(raw.get_data()):
        b, a = scipy.signal.butter(4, CLINICAL_HZ / 2, "low", fs=fs_hz)
        y = np.interp(at, np.arange(x.size) / fs_hz, scipy.signal.filtfilt(b, a, x))
        out[c] = (y - y.mean()) / y.std()
    return out[None]


def pyedflib_clinical(path: Path) -> np.ndarray:
    """The same filters on every channel's own rate, read by pyEDFlib: what one would write to be quicker."""
    out = None
    with pyedflib.EdfReader(str(path)) as reader:
        for c in range(reader.signals_in_file):
            x, fs_hz = reader.readSignal(c), Fraction(reader.getSampleFrequency(c))
            at = np.arange(int(x.size / fs_hz * CLINICAL_HZ)) / CLINICAL_HZ
            out = np.empty((reader.signals_in_file, at.size)) if out is None else out
            if fs_hz > CLINICAL_HZ:
                x = scipy.signal.filtfilt(*scipy.signal.butter(4, CLINICAL_HZ / 2, "low", fs=float(fs_hz)), x)
            y = np.interp(at, np.arange(x.size) / float(fs_hz), x)
            out[c] = (y - y.mean()) / y.std()
    return out[None]


def numpy_clinical(path: Path) -> np.ndarray:
    """As `pyedflib_clinical`, from records read by hand, channels in threads."""
    digital = by_hand(path)
    at = np.arange(len(digital) * CLINICAL_HZ) / CLINICAL_HZ
    out = kept("numpy clinical", (len(SIGNALS_HZ), at.size), np.float64)

    def one(c: int, x: np.ndarray, fs_hz: int) -> None:
        if fs_hz > CLINICAL_HZ:
            x = scipy.signal.filtfilt(*scipy.signal.butter(4, CLINICAL_HZ / 2, "low", fs=fs_hz), x)
        y = np.interp(at, np.arange(x.size) / fs_hz, x)
        np.subtract(y, y.mean(), out=out[c])
        out[c] /= y.std()

    in_threads(digital, len(SIGNALS_HZ), np.float64, one)
    return out[None]
