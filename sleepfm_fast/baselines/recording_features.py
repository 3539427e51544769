"""Which features a montage has, and all of them for one recording of a store.

Where a recording gets other features than before, their number in :mod:`sleepfm_fast.storage.definitions` is raised.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from sleepfm_fast.baselines import band_power, breathing, oximetry
from sleepfm_fast.baselines.heart_rate import ECG_NAMES, ecg_features
from sleepfm_fast.channels import Montage, Slot, canonical
from sleepfm_fast.clips import ClipStore
from sleepfm_fast.montage.montages import CHANNELS
from sleepfm_fast.store.native_runs import NativeRun, native_run

__all__ = ["channel_columns", "feature_names", "measure_recording", "measure_stored"]

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Meter:
    """What is measured of one kind of channel.

    Attributes
    ----------
    names : tuple of str
        With their units.
    measure : callable
        (run, onsets [n] from its start, s) -> float64 [n, len(names)].
    compared : int
        Column from which on values become ratios to the recording's median of that column; -1 for none.
    """

    names: tuple[str, ...]
    measure: Callable[[NativeRun, Array], Array]
    compared: int = -1


def in_blocks(features: Callable[[Array, float], Array], names: tuple[str, ...]) -> Callable[[NativeRun, Array], Array]:
    """Measure potentials block by block; what has a unit is only known where the channel's is (microvolts)."""
    absolute = np.array([name.endswith(("_uv", "_uv2", "_uv_per_s")) for name in names])

    def measure(run: NativeRun, onset_s: Array) -> Array:
        out = np.full((len(onset_s), len(names)), np.nan)
        for rows, x in run.blocks(onset_s):
            out[rows] = features(x, run.fs_hz)
        if run.unit != "uV":
            out[:, absolute] = np.nan
        return out

    return measure


METERS = {
    "eeg": Meter(band_power.EEG_NAMES, in_blocks(band_power.eeg_features, band_power.EEG_NAMES)),
    "eog": Meter(band_power.EOG_NAMES, in_blocks(band_power.eog_features, band_power.EOG_NAMES)),
    "emg": Meter(band_power.EMG_NAMES, in_blocks(band_power.emg_features, band_power.EMG_NAMES)),
    "ecg": Meter(ECG_NAMES, ecg_features),
    "respiration": Meter(breathing.BREATHING_NAMES, breathing.breathing_amplitudes, compared=2),
    "snore": Meter(breathing.SNORE_NAMES, breathing.snore_amplitudes, compared=0),
    "spo2": Meter(oximetry.SPO2_NAMES, oximetry.spo2_features),
    "pulse": Meter(oximetry.PULSE_NAMES, oximetry.pulse_features),
    "trend": Meter(oximetry.TREND_NAMES, oximetry.trend_features, compared=0),
}


def is_channel(slot: Slot, *channels: str) -> bool:
    """Whether a slot, under whatever name, holds one of these of :data:`sleepfm_fast.montage.montages.CHANNELS`."""
    own = {canonical(slot.name)[0].key}
    known = {canonical(label)[0].key for name in channels for label in (name, *CHANNELS[name].aliases)}
    return bool(own & known)


def meter_of(slot: Slot) -> Meter:
    """What is measured of a slot, by its kind; of trends also by its name."""
    if slot.kind != "step":
        return METERS[slot.kind]
    if is_channel(slot, "SpO2"):
        return METERS["spo2"]
    return METERS["pulse" if is_channel(slot, "Pulse Rate") else "trend"]


def pair_of(slots: Sequence[Slot]) -> tuple[int, int, str] | None:
    """Two slots of a modality whose correlation says more than either, and the feature's name."""
    eyes = [i for i, slot in enumerate(slots) if slot.kind == "eog"]
    belts = [[i for i, slot in enumerate(slots) if is_channel(slot, name)] for name in ("Chest", "Abdomen")]
    if len(eyes) >= 2:
        i, j = eyes[:2]
    elif all(belts):
        i, j = belts[0][0], belts[1][0]
    else:
        return None
    return i, j, f"{slots[i].name} with {slots[j].name} correlation"


def feature_names(montage: Montage) -> dict[str, tuple[str, ...]]:
    """Names of every modality's features, ``CHANNEL quantity_unit``, in the order of :func:`measure_recording`."""
    names = {}
    for modality in montage.modalities:
        if not modality.slots:
            continue
        own = [f"{slot.name} {name}" for slot in modality.slots for name in meter_of(slot).names]
        pair = pair_of(modality.slots)
        names[modality.name] = (*own, *(() if pair is None else pair[2:]))
    return names


def channel_columns(montage: Montage) -> list[tuple[int, str, slice, str]]:
    """Columns of every channel's own features: its number among the montage's slots, modality, columns, name."""
    found = []
    number = 0
    for modality in montage.modalities:
        begin = 0
        for slot in modality.slots:
            end = begin + len(meter_of(slot).names)
            found.append((number, modality.name, slice(begin, end), slot.name))
            begin, number = end, number + 1
    return found


def measure_recording(store: ClipStore, recording: int) -> dict[str, Array]:
    """Measure all clips of a recording.

    Parameters
    ----------
    store : ClipStore
    recording : int

    Returns
    -------
    dict of str to float64 [n_clips, width]
        By modality, columns as :func:`feature_names` says; NaN where a feature could not be measured.
    """
    entry = store.recordings[recording]
    rows = slice(entry.first_clip, entry.first_clip + entry.n_clips)
    segment = np.asarray(store.segment[rows], np.int64)
    onset_s = np.asarray(store.onset_s[rows]) - store.segment_onset_s[entry.first_segment + segment]
    stretches = [(int(s), np.flatnonzero(segment == s)) for s in np.unique(segment)]
    out = {}
    for modality in store.montage.modalities:
        if not modality.slots:
            continue
        numbers = store.slots_of(modality.name)
        parts = []
        for slot, number in zip(modality.slots, numbers, strict=True):
            meter = meter_of(slot)
            columns = np.full((entry.n_clips, len(meter.names)), np.nan)
            for s, clips in stretches:
                run = native_run(store, recording, number, s)
                if run is not None:
                    columns[clips] = meter.measure(run, onset_s[clips])
            if meter.compared >= 0:
                columns = breathing.against_median(columns, meter.compared, sensor=slot.kind == "respiration")
            parts.append(columns)
        pair = pair_of(modality.slots)
        if pair is not None:
            column = np.full((entry.n_clips, 1), np.nan)
            for s, clips in stretches:
                a, b = (native_run(store, recording, numbers[i], s) for i in pair[:2])
                if a is not None and b is not None:
                    column[clips, 0] = together(modality.slots[pair[0]].kind, a, b, onset_s[clips])
            parts.append(column)
        out[modality.name] = np.concatenate(parts, axis=1)
    return out


def together(kind: str, a: NativeRun, b: NativeRun, onset_s: Array) -> Array:
    """Correlation of two channels' clips, [n]; NaN for eyes recorded at different rates."""
    if kind != "eog":
        return breathing.correlation(breathing.Breaths(a).windows(onset_s), breathing.Breaths(b).windows(onset_s))
    out = np.full(len(onset_s), np.nan)
    if a.fs_hz == b.fs_hz:
        for (rows, x), (_, y) in zip(a.blocks(onset_s), b.blocks(onset_s), strict=True):
            out[rows] = band_power.eog_correlation(x, y, a.fs_hz)
    return out


# These two cannot stand in the command's module: where a command is the program that was started, its functions go to a
# worker process by value, and one that lru_cache wraps goes by its name, which the worker does not find.
def measure_stored(path: str, digest: str, recording: int) -> tuple[int, dict[str, npt.NDArray[np.float32]]]:
    """Measure one recording of the store at ``path``, in whatever process; returns its number too."""
    columns = measure_recording(opened(path, digest), recording)
    return recording, {name: values.astype(np.float32) for name, values in columns.items()}


@lru_cache(maxsize=1)
def opened(path: str, digest: str) -> ClipStore:
    """Open a store once a process, and again where it has changed since: workers outlive a call."""
    return ClipStore(path)
