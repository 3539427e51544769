"""The amplitude of every channel of a recording, by which recordings of different amplifiers become comparable.

A z-score of each clip would erase what tells N3 from wake: how large the waves are compared with the rest of the night.
So there is one scale for each channel of each recording: the median, over clips spread evenly through the night, of the
standard deviation within a clip. (A few clips of artefact do not move a median, and within a clip rare sharp waves such
as QRS complexes still count.) Flat clips are passed over, so that a sensor that fell off in the night is scaled by the
hours before, and so are clips of a respiratory sensor that was unplugged and recorded noise. Step-like channels keep
their absolute meaning instead: saturation and pulse rate are mapped by fixed constants.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt
import torch

from sleepfm_fast.filters import FilterBank
from sleepfm_fast.ops import filter_resample
from sleepfm_fast.store.feed import Feed
from sleepfm_fast.store.unplugged import plugged_in

__all__ = ["NOMINAL", "Scales", "measure_scales", "nominal_scales"]

N_CLIPS = 32  # gives the median a standard error of about 1.25/sqrt(32) = 22 % of the spread between clips

# (centre, scale) of step-like channels by unit: a saturation of 95 % and a pulse of 60 a minute map to 0, a
# desaturation of 5 % and a surge of 20 a minute to 1.
NOMINAL = {"%": (95.0, 5.0), "bpm": (60.0, 20.0), "/min": (60.0, 20.0), "1/min": (60.0, 20.0), "bt/min": (60.0, 20.0)}


@dataclasses.dataclass
class Scales:
    """Centre and scale of each channel of each recording: the op writes (filtered - centre) * scale.

    Attributes
    ----------
    centre, scale : float32 arrays [n_recordings, n_slots]
        A scale of 0 marks a channel that is flat throughout its recording: an electrode that was never connected. It is
        treated as not present.
    measured : bool array [n_recordings]
        The recordings whose amplitudes are known.
    """

    centre: npt.NDArray[np.float32]
    scale: npt.NDArray[np.float32]
    measured: npt.NDArray[np.bool_]

    @classmethod
    def identity(cls, n_recordings: int, n_slots: int) -> Scales:
        """Centre 0 and scale 1 everywhere: the op's output stays in physical units."""
        shape = (n_recordings, n_slots)
        return cls(np.zeros(shape, np.float32), np.ones(shape, np.float32), np.zeros(n_recordings, np.bool_))

    def apply(
        self, calibration: npt.NDArray[np.float32], table: npt.NDArray[np.int64], recordings: npt.NDArray[np.int64]
    ) -> None:
        """Write centre and scale into a batch's ``calibration``, and mark flat channels missing in its ``table``.

        Both arrays are changed in place; ``recordings`` [B] is each clip's recording. A window of length 0 is a missing
        channel to the op.
        """
        calibration[:, :, 2] = self.centre[recordings]
        calibration[:, :, 3] = self.scale[recordings]
        table[:, :, 1][self.scale[recordings] == 0] = 0


def nominal_scales(feed: Feed, scales: Scales) -> None:
    """Fill ``scales`` for the step-like channels whose unit has a fixed mapping."""
    for column, slot in enumerate(feed.slots):
        if feed.store.slots[slot].kind != "step":
            continue
        for recording in np.flatnonzero(feed.present[:, column]):
            unit = feed.store.units[feed.store.channels.unit[recording, slot]]
            if unit in NOMINAL:
                scales.centre[recording, column], width = NOMINAL[unit]
                scales.scale[recording, column] = 1.0 / width


def measure_scales(
    feed: Feed,
    bank: FilterBank,
    recordings: npt.NDArray[np.int64],
    scales: Scales,
    n_out: int,
    progress: Callable[[Iterable[int]], Iterable[int]],
) -> None:
    """Fill ``scales`` for the given recordings; step-like channels with a fixed mapping keep it.

    The result for a recording depends on that recording alone, whichever others are measured with it.
    """
    store = feed.store
    for recording in progress([int(r) for r in recordings]):
        entry = store.recordings[recording]
        scales.measured[recording] = True
        if entry.n_clips == 0:
            continue
        n = min(N_CLIPS, entry.n_clips)
        clips = entry.first_clip + np.linspace(0, entry.n_clips - 1, n).round().astype(np.int64)
        raw, table, calibration = (torch.from_numpy(part) for part in feed.gather(clips))
        x = filter_resample(raw, table, calibration, bank, n_out, normalise="none")
        deviation, mean = (part.numpy() for part in torch.std_mean(x.double(), dim=2, correction=0))
        # Below a millionth of the mean the deviation is the rounding of the filter, not a signal.
        alive = deviation > 1e-6 * np.abs(mean)
        for column, slot in enumerate(feed.slots):
            if store.slots[slot].kind == "respiration":
                alive[:, column] &= plugged_in(deviation[:, column])
        centre, spread = np.median(mean, axis=0), np.zeros(mean.shape[1])
        for living in np.flatnonzero(alive.any(axis=0)):
            centre[living] = np.median(mean[alive[:, living], living])
            spread[living] = np.median(deviation[alive[:, living], living])
        for column, slot in enumerate(feed.slots):
            if not feed.present[recording, column]:
                continue
            if store.slots[slot].kind == "step":
                if store.units[store.channels.unit[recording, slot]] not in NOMINAL:
                    scales.centre[recording, column] = centre[column]
                    scales.scale[recording, column] = 1.0 / max(float(spread[column]), 1.0)
            else:
                scales.centre[recording, column] = centre[column]
                scales.scale[recording, column] = 1.0 / spread[column] if alive[:, column].any() else 0.0
