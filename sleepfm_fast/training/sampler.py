"""The order of clips in training: shuffled by (seed, epoch), and resumable at any batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TypeVar

import numpy as np
import numpy.typing as npt

__all__ = ["ClipSampler", "fixed_blocks", "shard", "shard_sizes"]

Number = TypeVar("Number", bound=np.generic)


@dataclasses.dataclass
class ClipSampler:
    """An endless sequence of batches of clip numbers.

    Parameters
    ----------
    clips : int64 array [n]
        The clips to draw from.
    batch_size : int
        Clips in a batch. A set smaller than one batch makes one batch of all of it.
    seed : int
        Seeds the order.
    epoch, position : int
        Where to go on: the epoch, and the number of batches already drawn in it.
    keep_last : bool
        Whether the last, shorter batch of an epoch is kept. By default it is dropped, because a contrastive loss over
        fewer clips is another loss. A single clip, which has no negatives, is always dropped.
    """

    clips: npt.NDArray[np.int64]
    batch_size: int
    seed: int
    epoch: int = 0
    position: int = 0
    keep_last: bool = False

    @property
    def n_items(self) -> int:
        """Number of items that an epoch draws from."""
        return len(self.clips)

    @property
    def batches_per_epoch(self) -> int:
        """Number of batches in one epoch."""
        whole, left = divmod(self.n_items, self.batch_size)
        return max(whole + (self.keep_last and left > 1), 1)

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """The sizes of batches that occur: of whole ones, and of the last one if it is shorter and kept."""
        whole, left = divmod(self.n_items, self.batch_size)
        if not whole:
            return (left,)
        return (self.batch_size, left) if self.keep_last and left > 1 else (self.batch_size,)

    def order(self, epoch: int) -> npt.NDArray[np.int64]:
        """Return the clips in the order of one epoch."""
        return np.random.default_rng([self.seed, epoch]).permutation(self.clips)

    def __iter__(self) -> Iterator[tuple[int, int, npt.NDArray[np.int64]]]:
        """Yield (epoch, position, clips) from the current place on; the place itself is advanced by the caller."""
        epoch, position = self.epoch, self.position
        while True:
            order = self.order(epoch)
            for number in range(position, self.batches_per_epoch):
                yield epoch, number, order[number * self.batch_size : (number + 1) * self.batch_size]
            epoch, position = epoch + 1, 0


def shard_sizes(n: int, n_ranks: int) -> tuple[int, ...]:
    """How many of a batch's n clips each rank takes: as equal as possible, larger shards first."""
    return tuple(n // n_ranks + (rank < n % n_ranks) for rank in range(n_ranks))


def shard(clips: npt.NDArray[Number], rank: int, n_ranks: int) -> npt.NDArray[Number]:
    """Return one rank's clips of a batch: consecutive ones, so that the ranks' clips in order are the batch.

    Batches, and with them the loss and the order of clips of a whole run, are the same for every number of ranks.
    """
    sizes = shard_sizes(len(clips), n_ranks)
    begin = sum(sizes[:rank])
    return clips[begin : begin + sizes[rank]]


def fixed_blocks(clips: npt.NDArray[np.int64], block_size: int) -> list[npt.NDArray[np.int64]]:
    """Cut ``clips`` into blocks of nearly equal size, in an order that mixes recordings and never changes.

    A contrastive loss depends on which clips are compared with each other, so that validation losses of different
    epochs are comparable only if the blocks stay the same. Equal sizes give all blocks the same number of negatives.
    """
    if len(clips) == 0:
        return []
    order = np.random.default_rng([0, 0x7A11D]).permutation(clips)
    return list(np.array_split(order, -(-len(clips) // block_size)))
