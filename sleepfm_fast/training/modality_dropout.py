"""Leave a whole modality of a clip out of a training step at random, as a missing sensor would."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from sleepfm_fast.batches import Batch
from sleepfm_fast.training.sampler import shard

__all__ = ["draw", "drop", "without"]

STREAM = 0x0D0D  # keeps these numbers apart from the order of clips, which is seeded by (seed, epoch) too
N_LEAST = 3  # of what is left, a modality needs another to be contrasted with


def draw(seed: int, epoch: int, position: int, n: int) -> npt.NDArray[np.float64]:
    """Two numbers in [0, 1) for each clip of one batch of all ranks, whether and which: float64 [n, 2].

    They depend on the arguments alone, so that a resumed run and any number of ranks leave out the same.
    """
    return np.random.default_rng([seed, epoch, position, STREAM]).random((n, 2))


def drop(present: npt.NDArray[np.bool_], numbers: npt.NDArray[np.float64], probability: float) -> npt.NDArray[np.bool_]:
    """Which modality of which clips is left out: where a clip has three or more, one of them, chosen evenly.

    Parameters
    ----------
    present : bool array [n, M]
        Modalities that each clip has.
    numbers : float64 array [n, 2]
        Of :func:`draw`.
    probability : float
        That a clip with three modalities or more loses one.

    Returns
    -------
    bool array [n, M]
        At most one a row.
    """
    n_present = present.sum(axis=1)
    loses = (n_present >= N_LEAST) & (numbers[:, 0] < probability)
    which = (numbers[:, 1] * n_present).astype(np.int64)  # its place among those that the clip has
    left_out: npt.NDArray[np.bool_] = present & loses[:, None] & (present.cumsum(axis=1) - 1 == which[:, None])
    return left_out


def without(batch: Batch, numbers: npt.NDArray[np.float64], probability: float, rank: int, n_ranks: int) -> Batch:
    """A rank's batch with modalities left out of clips: their channels are absent, as if they had not been recorded."""
    present = np.stack([p.any(dim=1).cpu().numpy() for p in batch.present.values()], axis=1)
    stays = torch.from_numpy(~drop(present, shard(numbers, rank, n_ranks), probability))
    kept = {name: p & stays[:, column, None].to(p.device) for column, (name, p) in enumerate(batch.present.items())}
    return Batch(batch.x, kept)
