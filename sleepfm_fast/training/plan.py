"""Which clips are compared with each other, in every step, on every rank, and in the validation loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sleepfm_fast.clips import ClipStore
from sleepfm_fast.errors import SleepfmError
from sleepfm_fast.plurals import counted
from sleepfm_fast.training.neighbours import NeighbourSampler, Stretches, stretch_numbers
from sleepfm_fast.training.sampler import ClipSampler, fixed_blocks, shard_sizes
from sleepfm_fast.training.selection import Selection

if TYPE_CHECKING:
    from sleepfm_fast.training.settings import Settings

__all__ = ["Plan", "make_plan"]


@dataclass(frozen=True)
class Plan:
    """Batches and blocks of one training. An item is a clip or, if one modality trains alone, a pair of neighbours.

    Attributes
    ----------
    sampler : ClipSampler
        Draws the batches; its place is the training's.
    blocks : list of int64 arrays [n] or [n, 2]
        Items that are compared with each other in the validation loss.
    n_parts : int
        Number of parts in which a rank embeds its clips, one after the other.
    """

    sampler: ClipSampler
    blocks: list[npt.NDArray[np.int64]]
    n_parts: int


def make_plan(settings: Settings, store: ClipStore, selection: Selection, n_modalities: int, n_ranks: int) -> Plan:
    """Make the plan of a training.

    Raises
    ------
    SleepfmError
        If a batch leaves a rank or a part fewer than two clips, which batch norm needs.
    """
    order: dict[str, Any] = {"keep_last": settings.last_batch == "keep"}
    if settings.shuffle_recordings:
        order |= {"recordings": np.asarray(store.recording), "in_play": settings.shuffle_recordings}
    sampler: ClipSampler
    if n_modalities == 1:
        numbers = stretch_numbers(store)
        train, validation = (Stretches(clips, numbers[clips]) for clips in (selection.train, selection.validation))
        clips_an_item = 2
        sampler = NeighbourSampler(train.clips, settings.batch_size, settings.seed, stretches=train, **order)
        held_out = validation.pairs(np.zeros(len(validation.lengths), np.int64))
    else:
        clips_an_item = 1
        sampler = ClipSampler(selection.train, settings.batch_size, settings.seed, **order)
        held_out = selection.validation
    sizes = sampler.batch_sizes
    largest = clips_an_item * max(shard_sizes(sizes[0], n_ranks))
    n_parts = -(-largest // settings.micro_batch) if settings.micro_batch else 1
    for n in sizes:
        if clips_an_item * min(shard_sizes(n, n_ranks)) // n_parts < 2:
            what = "batch" if n == sizes[0] else "last batch (--last-batch keep)"
            raise SleepfmError(
                f"a {what} of {counted(n * clips_an_item, 'clip')} over {counted(n_ranks, 'process', 'processes')} in "
                f"{counted(n_parts, 'part')} leaves fewer than two clips to a part; batch norm needs two. Raise "
                "--batch-size or --micro-batch, or use fewer processes."
            )
    return Plan(sampler, fixed_blocks(held_out, settings.validation_block), n_parts)
