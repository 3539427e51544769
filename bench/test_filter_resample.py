"""Filtering and resampling a night of EEG to float32 at 256 Hz, from integers in memory and from an EDF file."""

from __future__ import annotations

import importlib.util
from functools import partial
from pathlib import Path
from typing import NamedTuple

import filter_rivals
import numpy as np
import pipeline_rivals
import pytest
import torch

SETUP = """
import sys
sys.path.insert(0, {folder!r})
import filter_rivals
filter_rivals.{function}(filter_rivals.recording({channels}, 60))
x = filter_rivals.recording({channels}, {seconds})
"""
PIPELINE_SETUP = """
import sys
sys.path.insert(0, {folder!r})
import pipeline_rivals
pipeline_rivals.{function}({warm!r})
"""
EDGE_S = 60
# How far the difference from the truth is at least below the signal, in dB: 2 to 7 less than what each arm reaches with
# 10 min and with 8 h, which is the same to 0.3 dB. An error of 1 % is 40 dB down.
SAME_FILTER_DB = {  # with all samples of the recording
    "ours": 130,  # 137
    "PyTorch conv1d, same taps": 127,  # 133.5, resampling only 134
    "PyTorch FFT, same response": 99,  # 104.5
    "SciPy FFT, same response": 97,  # 104.5, resampling only 101.5
}
OTHER_FILTER_DB = {  # without the edges
    "SciPy sosfiltfilt + resample_poly": 62,  # 66.7
    "SciPy sosfiltfilt + soxr HQ": 76,  # 81.0: the Butterworth filter's own response
    "MNE FIR + polyphase": 57,  # 61.4
    "SciPy resample_poly": 56,  # 59.7
    "soxr HQ, float32": 98,  # 103.3
}


def rows(result) -> np.ndarray:
    """[channel, sample] of either layout."""
    values = np.asarray(result)
    return values.transpose(1, 0, 2).reshape(values.shape[1], -1) if values.ndim == 3 else values


def snr_db(got: np.ndarray, truth: np.ndarray, edge: int = 0) -> float:
    """Worst channel; ``edge`` samples at both ends are left out."""
    span = slice(edge, got.shape[1] - edge)
    each = []
    for a, b in zip(got[:, span], truth[:, span], strict=True):
        error = (a - b).astype(np.float64)
        each.append(10 * np.log10(float(np.vdot(b, b)) / max(float(error @ error), 1e-300)))
    return min(each)


@pytest.fixture(params=[None, 1], ids=["all_threads", "one_thread"])
def n_threads(request):
    """Threads of every arm; None: as many as there are."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param or before)
    yield request.param
    torch.set_num_threads(before)


def compare(versus, quick, name, functions, truth_of, requirements, seconds, n_threads):
    n_channels = 9
    x = filter_rivals.recording(n_channels, seconds)

    def agree(results):
        # The truth is SciPy's upfirdn with our taps in float64, rounded to float32 at the end. Other designs are
        # compared where all are flat (2-15 Hz), away from the edges, which each extends in its own way.
        truth = truth_of(x)
        for arm, result in results.items():
            values = rows(result)
            assert values.shape == truth.shape
            same = arm in SAME_FILTER_DB
            limit, edge = (SAME_FILTER_DB[arm], 0) if same else (OTHER_FILTER_DB[arm], EDGE_S * filter_rivals.FS_OUT_HZ)
            assert snr_db(values, truth, edge) > limit, arm

    peak = {}
    if not quick and n_threads is None:
        folder = str(Path(__file__).parent)
        for arm, function in functions.items():
            setup = SETUP.format(folder=folder, function=function, channels=n_channels, seconds=seconds)
            peak[arm] = (setup, f"y = filter_rivals.{function}(x)")
    # The arms share one output: each result is copied before the next arm runs.
    checked = {arm: partial(getattr(filter_rivals, function), x) for arm, function in functions.items()}
    first = dict.fromkeys(functions, True)

    def call(arm):
        result = checked[arm]()
        if first[arm]:
            first[arm] = False
            return np.asarray(result).copy()
        return result

    result = versus(
        f"{name}, {n_channels} channels, {seconds / 3600:g} h" + (", one thread" if n_threads == 1 else ""),
        {arm: partial(call, arm) for arm in functions},
        agree=agree,
        rounds=4,
        peak=peak,
    )
    for rival, at_least in requirements.items():
        if rival in functions:
            result.require(rival, at_least=at_least)


def test_filter_resample(versus, quick, n_threads):
    functions = {"ours": "ours", "SciPy sosfiltfilt + resample_poly": "scipy_sosfiltfilt"}
    functions["PyTorch conv1d, same taps"] = "torch_conv1d"
    functions["PyTorch FFT, same response"] = "torch_fft"
    functions["SciPy FFT, same response"] = "scipy_fft"
    if importlib.util.find_spec("soxr"):
        functions["SciPy sosfiltfilt + soxr HQ"] = "soxr_hq"
    if importlib.util.find_spec("mne"):
        functions["MNE FIR + polyphase"] = "mne_fir"
    compare(
        versus,
        quick,
        "filter 0.3-35 Hz, resample 200 to 256 Hz, z-score clips",
        functions,
        filter_rivals.scipy_upfirdn,
        {
            "SciPy sosfiltfilt + resample_poly": 6.0,
            "PyTorch conv1d, same taps": 3.0,
            "PyTorch FFT, same response": 2.0,
            "SciPy FFT, same response": 2.0,
        },
        600 if quick else 8 * 3600,
        n_threads,
    )


def test_resample_only(versus, quick, n_threads):
    functions = {"ours": "ours_resampled", "SciPy resample_poly": "scipy_resampled"}
    functions["PyTorch conv1d, same taps"] = "torch_conv1d_resampled"
    functions["SciPy FFT, same response"] = "scipy_fft_resampled"
    if importlib.util.find_spec("soxr"):
        functions["soxr HQ, float32"] = "soxr_hq_resampled"
    compare(
        versus,
        quick,
        "resample 200 to 256 Hz",
        functions,
        filter_rivals.scipy_upfirdn_resampled,
        {"SciPy resample_poly": 2.0, "soxr HQ, float32": 2.0, "SciPy FFT, same response": 1.5},
        600 if quick else 8 * 3600,
        n_threads,
    )


class FileRival(NamedTuple):
    """A rival's function, how many times as fast ours has to be, and how far it may differ from ours at most."""

    function: str
    at_least: float
    limit_db: float  # 2 to 8 less than what it reaches; an error of 1 % is 40 dB down


def seed_rivals(seconds: int) -> dict[str, FileRival]:
    """MNE's default resampling stretches time a little (it rounds padded lengths), the more the longer the signal."""
    return {
        "MNE, defaults": FileRival("mne_seed", 20.0, 38 if seconds == 600 else 17),  # 41.0; 18.6 with 2 h
        "MNE, polyphase": FileRival("mne_polyphase_seed", 4.0, 56),  # 58.8
        "NumPy by hand + soxr HQ": FileRival("soxr_seed", 1.5, 95),  # 100.4
    }


def clinical_rivals(_seconds: int) -> dict[str, FileRival]:
    """MNE brings all signals to the highest rate first, which the other two leave out."""
    return {
        "pyEDFlib + SciPy": FileRival("pyedflib_clinical", 4.0, 112),  # 120; 135 with 2 h
        "MNE + SciPy": FileRival("mne_clinical", 4.0, 42),  # 43.8
        "NumPy by hand + SciPy, in threads": FileRival("numpy_clinical", 3.0, 112),  # 120; 135 with 2 h
    }


@pytest.mark.parametrize(
    ("name", "rivals_of"),
    [
        ("as the original: 9 channels at 256 Hz", seed_rivals),
        ("as the clinical code: 15 channels at 128 Hz", clinical_rivals),
    ],
    ids=["seed", "clinical"],
)
def test_from_file_to_model_input(versus, quick, tmp_path, name, rivals_of):
    seconds = 600 if quick else 2 * 3600
    missing = [package for package in ("mne", "soxr") if not importlib.util.find_spec(package)]
    rivals = rivals_of(seconds)
    rivals = {arm: rival for arm, rival in rivals.items() if not any(package in arm.lower() for package in missing)}
    functions = {"ours": "ours_clinical" if "clinical" in name else "ours_seed"}
    functions |= {arm: rival.function for arm, rival in rivals.items()}
    path, warm = tmp_path / "night.edf", tmp_path / "warm.edf"
    pipeline_rivals.write_night(path, seconds)
    pipeline_rivals.write_night(warm, 600)

    def agree(results):
        ours = np.asarray(results["ours"])
        n_step = len(pipeline_rivals.STEPS) if "clinical" in name else 0  # ours neither filters nor scales those
        for arm, result in results.items():
            values = np.asarray(result)
            assert np.isfinite(values).all()
            assert values.shape == ours.shape
            if arm != "ours":
                a, b = (v.transpose(1, 0, 2).reshape(v.shape[1], -1) for v in (values, ours))
                n_channels = len(b) - n_step
                edge = EDGE_S * 128
                assert snr_db(a[:n_channels], b[:n_channels].astype(np.float64), edge) > rivals[arm].limit_db, arm

    peak = {}
    if not quick:
        for arm, function in functions.items():
            setup = PIPELINE_SETUP.format(folder=str(Path(__file__).parent), function=function, warm=str(warm))
            peak[arm] = (setup, f"y = pipeline_rivals.{function}({str(path)!r})")
    arms = {arm: partial(getattr(pipeline_rivals, function), path) for arm, function in functions.items()}
    result = versus(f"EDF file to model input {name}, {seconds / 3600:g} h", arms, agree=agree, rounds=8, peak=peak)
    for arm, rival in rivals.items():
        result.require(arm, at_least=rival.at_least)
