"""Leaves a whole modality of a clip out of a training step at random, as if its sensor were missing."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from sleepfm_fast.batches import Batch
from sleepfm_fast.training.sampler import shard

__all__ = ["draw", "drop", "without"]

STREAM = 0x0D0D  # in the seed, so that these numbers differ from the order of clips, whose seed is (seed, epoch)
N_LEAST = 3  # modalities that a clip must have, so that two are left to be contrasted with each other


def draw(seed: int, epoch: int, position: int, n: int) -> npt.NDArray[np.float64]:
    """Draw two numbers in [0, 1) for each clip of one batch of all ranks, float64 [n, 2]: whether, and which.

    They depend on the arguments alone, so that a resumed run, and any number of ranks, leave out the same.
    """
    return np.random.default_rng([seed, epoch, position, STREAM]).random((n, 2))


def drop(present: npt.NDArray[np.bool_], numbers: npt.NDArray[np.float64], probability: float) -> npt.NDArray[np.bool_]:
    """Decide which modalities to leave out: of a clip that has three or more, at most one, chosen uniformly.

    Parameters
    ----------
    present : bool array [n, M]
        Modalities that each clip has.
    numbers : float64 array [n, 2]
        From :func:`draw`.
    probability : float
        Probability that a clip with three modalities or more loses one.

    Returns
    -------
    bool array [n, M]
        True for a modality that is left out, at most one in a row.
    """
    n_present = present.sum(axis=1)
    loses = (n_present >= N_LEAST) & (numbers[:, 0] < probability)
    which = (numbers[:, 1] * n_present).astype(np.int64)  # its place among those that the clip has
    left_out: npt.NDArray[np.bool_] = present & loses[:, None] & (present.cumsum(axis=1) - 1 == which[:, None])
    return left_out


def without(batch: Batch, numbers: npt.NDArray[np.float64], probability: float, rank: int, n_ranks: int) -> Batch:
    """Return a rank's batch with modalities left out: their channels are absent, as if never recorded."""
    present = np.stack([p.any(dim=1).cpu().numpy() for p in batch.present.values()], axis=1)
    stays = torch.from_numpy(~drop(present, shard(numbers, rank, n_ranks), probability))
    kept = {name: p & stays[:, column, None].to(p.device) for column, (name, p) in enumerate(batch.present.items())}
    return Batch(batch.x, kept)
