"""Leave whole modalities of clips out of a training step at random, as a missing sensor would."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from sleepfm_fast.batches import Batch
from sleepfm_fast.sampler import shard

__all__ = ["draw", "drop", "without"]

STREAM = 0x0D0D  # keeps these numbers apart from the order of clips, which is seeded by (seed, epoch) too
N_LEAST = 2  # a modality needs another to be contrasted with


def draw(seed: int, epoch: int, position: int, n: int, n_modalities: int) -> npt.NDArray[np.float64]:
    """Numbers in [0, 1) for each clip and modality of one batch of all ranks: float64 [n, n_modalities].

    They depend on the arguments alone, so that a resumed run and any number of ranks leave out the same.
    """
    return np.random.default_rng([seed, epoch, position, STREAM]).random((n, n_modalities))


def drop(present: npt.NDArray[np.bool_], numbers: npt.NDArray[np.float64], probability: float) -> npt.NDArray[np.bool_]:
    """Which modalities of which clips are left out.

    Parameters
    ----------
    present : bool array [n, M]
        Modalities that each clip has.
    numbers : float64 array [n, M]
        Of :func:`draw`.
    probability : float
        Of leaving out each present modality. Where that would leave a clip fewer than two, those with the largest
        numbers stay.

    Returns
    -------
    bool array [n, M]
    """
    candidates = present & (numbers < probability)
    spare = np.maximum(present.sum(axis=1) - N_LEAST, 0)
    before = np.argsort(np.argsort(np.where(candidates, numbers, np.inf), axis=1, kind="stable"), axis=1)
    left_out: npt.NDArray[np.bool_] = candidates & (before < spare[:, None])
    return left_out


def without(batch: Batch, numbers: npt.NDArray[np.float64], probability: float, rank: int, n_ranks: int) -> Batch:
    """A rank's batch with modalities left out: their channels are absent, as if they had not been recorded."""
    present = np.stack([p.any(dim=1).cpu().numpy() for p in batch.present.values()], axis=1)
    stays = torch.from_numpy(~drop(present, shard(numbers, rank, n_ranks), probability))
    kept = {name: p & stays[:, column, None].to(p.device) for column, (name, p) in enumerate(batch.present.items())}
    return Batch(batch.x, kept)
