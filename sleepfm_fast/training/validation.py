"""The validation loss, over fixed blocks of clips; the same for every number of processes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from sleepfm_fast.batches import ClipInput
from sleepfm_fast.encoder import SleepModel
from sleepfm_fast.model.precision import Precision, arithmetic
from sleepfm_fast.ops import contrastive_loss
from sleepfm_fast.ops.contrastive_loss import Directions, Mode
from sleepfm_fast.training.neighbours import clips_of
from sleepfm_fast.training.objective import as_pairs
from sleepfm_fast.training.world import World

__all__ = ["validate"]


def validate(
    model: SleepModel,
    clip_input: ClipInput,
    blocks: list[npt.NDArray[np.int64]],
    mode: Mode,
    directions: Directions,
    world: World,
    precision: Precision = "float32",
) -> dict[str, float]:
    """Compute the mean loss over the blocks, and how often the true counterpart is the most similar one.

    Parameters
    ----------
    model : SleepModel
        With the same weights and running statistics on every rank; left in training mode.
    clip_input : ClipInput
        Makes the batches.
    blocks : list of int64 arrays [n] or [n, 2]
        Clips, or pairs of neighbours, that are compared with each other. Rank r of R takes blocks r, r + R, ... whole.
    mode, directions
        As in :func:`sleepfm_fast.ops.contrastive_loss`.
    world : World
        The processes; all of them call together.
    precision : {"float32", "bfloat16"}
        Precision of the encoders.
    """
    model.eval()
    results = torch.zeros(len(blocks), 3, dtype=torch.float64)
    mine = range(world.rank, len(blocks), world.size)
    with torch.inference_mode():
        for number, batch in clip_input.batches(mine, lambda number: clips_of(blocks[number])):
            with arithmetic(precision, model.log_temperature.device):
                embeddings, mask = model(batch.x, batch.present)
            embeddings, mask = as_pairs(embeddings, mask)
            loss, statistics = contrastive_loss(
                embeddings, model.log_temperature, mode, mask=mask, directions=directions
            )
            n = 2.0 * float(statistics.n_valid.sum())
            results[number] = torch.tensor([float(loss) * n, float(statistics.correct.sum()), n])
    model.train()
    for rank, rows in enumerate(world.gather_rows(results[world.rank :: world.size])):
        results[rank :: world.size] = rows
    # Added block by block in order, so that the bits are the same for every number of ranks.
    total = correct = terms = 0.0
    for one_total, one_correct, one_terms in results.tolist():
        total, correct, terms = total + one_total, correct + one_correct, terms + one_terms
    return {"validation_loss": total / max(terms, 1.0), "validation_top1": correct / max(terms, 1.0)}
