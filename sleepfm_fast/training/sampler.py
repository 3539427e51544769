"""The order of clips in training: shuffled by (seed, epoch), and resumable at any batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, TypeVar

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
    recordings : int array [n_clips of the store], optional
        The recording of every clip of the store. Needed with ``in_play``.
    in_play : int
        Recordings whose clips are mixed at a time: an epoch goes through the recordings in a random order, and uses the
        clips of each at random times within those in which the ``in_play`` recordings from it on have their turn. 0
        mixes all clips.
    """

    clips: npt.NDArray[np.int64]
    batch_size: int
    seed: int
    epoch: int = 0
    position: int = 0
    keep_last: bool = False
    recordings: npt.NDArray[np.integer[Any]] | None = None
    in_play: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be mixed."""
        if self.in_play < 0 or (self.in_play and self.recordings is None):
            raise ValueError("in_play is a number of recordings, 0 for all, and needs the recording of every clip")

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
        return self.shuffled(self.clips, np.random.default_rng([self.seed, epoch]))

    def shuffled(self, items: npt.NDArray[np.int64], random: np.random.Generator) -> npt.NDArray[np.int64]:
        """Shuffle clips, or pairs of clips of one recording, with ``in_play`` recordings at a time."""
        if not self.in_play or self.recordings is None or not len(items):
            return random.permutation(items)
        firsts = items if items.ndim == 1 else items[:, 0]
        _, recording = np.unique(self.recordings[firsts], return_inverse=True)
        n = int(recording.max()) + 1
        # A recording has its turn from its place in the random order on, for so many turns. Those of the last ones go
        # on at the beginning, so that as many recordings are in play there as anywhere.
        turn = random.permutation(n)[recording] + min(self.in_play, n) * random.random(len(items))
        return items[np.argsort(turn % n, kind="stable")]

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
