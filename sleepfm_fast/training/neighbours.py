"""Pairs of adjacent 30-s clips, the positives of training on one modality alone (Thapa et al. 2024, figure 3).

In each epoch every uninterrupted stretch of clips is cut into pairs, beginning with its first or its second clip at
random. Each clip is then in at most one pair of the epoch (in two, it would be its own negative), and over the epochs
every clip is paired with both of its neighbours.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from sleepfm_fast.clips import ClipStore
from sleepfm_fast.scoring.stages import EPOCH_S
from sleepfm_fast.training.sampler import ClipSampler

__all__ = ["NeighbourSampler", "Stretches", "clips_of", "stretch_numbers"]

Int64 = npt.NDArray[np.int64]
TOLERANCE_S = 1e-3  # onsets are float64 seconds; clips of one stretch lie exactly 30 s apart


def stretch_numbers(store: ClipStore) -> Int64:
    """Return, for each clip of a store, the number of its uninterrupted stretch of clips: int64 [n_clips]."""
    recording, segment, onset_s = (np.asarray(column) for column in (store.recording, store.segment, store.onset_s))
    if not len(recording):
        return np.zeros(0, np.int64)
    apart = np.abs(np.diff(onset_s) - EPOCH_S) > TOLERANCE_S
    begins = (np.diff(recording) != 0) | (np.diff(segment) != 0) | apart
    return np.concatenate([[0], np.cumsum(begins, dtype=np.int64)])


class Stretches:
    """Of a set of clips, those that have a neighbour in the set, as stretches of consecutive clips.

    Parameters
    ----------
    clips : int64 array [n]
        Clip numbers, ascending.
    numbers : int64 array [n]
        The stretch of each clip in the store, of :func:`stretch_numbers`.

    Attributes
    ----------
    clips : int64 array
        Clips of stretches of at least two.
    lengths : int64 array
        Clips of each such stretch.
    n_pairs : int
        The least number of pairs that any choice of beginnings gives.
    """

    def __init__(self, clips: Int64, numbers: Int64) -> None:
        apart = np.diff(clips) != 1
        run = np.concatenate([[0], np.cumsum(apart | (np.diff(numbers) != 0))]) if len(clips) else numbers
        _, which, length = np.unique(run, return_inverse=True, return_counts=True)
        kept = length[which] > 1
        self.clips = clips[kept]
        self.lengths = length[length > 1]
        first = np.cumsum(self.lengths) - self.lengths
        self._stretch = np.repeat(np.arange(len(self.lengths)), self.lengths)
        self._place = np.arange(len(self.clips)) - first[self._stretch]
        self.n_pairs = int(np.maximum((self.lengths - 1) // 2, 1).sum())

    def pairs(self, begins: Int64) -> Int64:
        """Cut every stretch into pairs from clip ``begins`` (0 or 1, [n_stretches]) on: int64 [n, 2]."""
        begins = np.where(self.lengths == 2, 0, begins)[self._stretch]
        leads = ((self._place - begins) % 2 == 0) & (self._place + 1 < self.lengths[self._stretch])
        left = np.flatnonzero(leads)
        return np.stack([self.clips[left], self.clips[left + 1]], axis=1)


@dataclasses.dataclass
class NeighbourSampler(ClipSampler):
    """Batches of pairs of neighbours, int64 [n, 2]; like :class:`ClipSampler`, with pairs in place of clips."""

    stretches: Stretches = dataclasses.field(kw_only=True)

    @property
    def n_items(self) -> int:
        """Number of pairs of an epoch, the same for every epoch."""
        return self.stretches.n_pairs

    def order(self, epoch: int) -> Int64:
        """Return the pairs of one epoch in their order."""
        random = np.random.default_rng([self.seed, epoch])
        pairs = self.stretches.pairs(random.integers(0, 2, len(self.stretches.lengths)))
        drawn = random.permutation(pairs)[: self.n_items]
        return self.shuffled(drawn, random) if self.in_play else drawn


def clips_of(items: Int64) -> Int64:
    """Return the clips of a batch in the order in which they are embedded: all first ones of pairs, then all second."""
    return items if items.ndim == 1 else items.T.reshape(-1)
