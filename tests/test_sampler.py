from itertools import islice

import numpy as np
import pytest

from sleepfm_fast.training.sampler import ClipSampler, fixed_blocks, shard, shard_sizes

CLIPS = np.arange(100, 203)


def test_an_epoch_sees_each_clip_at_most_once_and_drops_the_short_batch():
    sampler = ClipSampler(CLIPS, 10, seed=3)
    batches = [clips for _, _, clips in islice(sampler, sampler.batches_per_epoch)]
    seen = np.concatenate(batches)
    assert [len(b) for b in batches] == [10] * 10
    assert len(np.unique(seen)) == 100
    assert set(seen) <= set(CLIPS)


def test_resuming_anywhere_continues_the_same_sequence():
    whole = list(islice(ClipSampler(CLIPS, 10, seed=3), 25))
    resumed = list(islice(ClipSampler(CLIPS, 10, seed=3, epoch=1, position=4), 11))
    for (e1, p1, c1), (e2, p2, c2) in zip(whole[14:], resumed, strict=True):
        assert (e1, p1) == (e2, p2)
        np.testing.assert_array_equal(c1, c2)


def test_epochs_and_seeds_differ():
    sampler = ClipSampler(CLIPS, 10, seed=3)
    assert not np.array_equal(sampler.order(0), sampler.order(1))
    assert not np.array_equal(sampler.order(0), ClipSampler(CLIPS, 10, seed=4).order(0))


def test_fewer_clips_than_a_batch():
    sampler = ClipSampler(CLIPS[:4], 10, seed=0)
    assert sampler.batches_per_epoch == 1
    (_, _, clips), (epoch, _, _) = islice(sampler, 2)
    assert sorted(clips) == sorted(CLIPS[:4])
    assert epoch == 1


def spread(order, recordings, recording):
    """First and last place in an epoch of a recording's clips, as a share of it."""
    places = np.flatnonzero(recordings[order] == recording) / len(order)
    return places.min(), places.max()


@pytest.mark.parametrize("in_play", [1, 2, 5, 20])
def test_clips_of_a_few_recordings_at_a_time_are_mixed(in_play):
    recordings = np.repeat(np.arange(20), 50)
    clips = np.flatnonzero(np.arange(1000) % 7)  # as where some are not for training
    sampler = ClipSampler(clips, 10, seed=3, recordings=recordings, in_play=in_play)
    order = sampler.order(0)
    assert sorted(order) == clips.tolist()
    assert not np.array_equal(order, sampler.order(1))
    assert np.array_equal(order, ClipSampler(clips, 10, seed=3, recordings=recordings, in_play=in_play).order(0))
    # Wherever one looks, the clips of about one turn come from the recordings that are in play, at the beginning and
    # at the end of the epoch as well.
    for begin in range(0, len(order) - 20, 20):
        assert len(np.unique(recordings[order[begin : begin + 20]])) <= in_play + 3
        assert len(np.unique(recordings[order[begin : begin + 20]])) >= min(in_play, 10) * 0.6
    # A recording's clips are not in their order, nor all together.
    one = order[recordings[order] == 11]
    assert not np.array_equal(one, np.sort(one))
    if in_play == 20:
        first, last = spread(order, recordings, 11)
        assert first < 0.15
        assert last > 0.85


def test_all_clips_are_mixed_as_ever_where_nothing_is_said():
    recordings = np.repeat(np.arange(21), 10)
    plain = ClipSampler(CLIPS, 10, seed=3).order(2)
    np.testing.assert_array_equal(plain, np.random.default_rng([3, 2]).permutation(CLIPS))
    np.testing.assert_array_equal(ClipSampler(CLIPS, 10, seed=3, recordings=recordings).order(2), plain)


def test_resuming_continues_with_the_recordings_in_play():
    options = {"seed": 3, "recordings": np.arange(210) // 10, "in_play": 3}
    whole = list(islice(ClipSampler(CLIPS, 10, **options), 25))
    resumed = list(islice(ClipSampler(CLIPS, 10, epoch=1, position=4, **options), 11))
    for (e1, p1, c1), (e2, p2, c2) in zip(whole[14:], resumed, strict=True):
        assert (e1, p1) == (e2, p2)
        np.testing.assert_array_equal(c1, c2)


def test_more_recordings_in_play_than_there_are_mix_all_of_them():
    recordings = np.arange(210) // 70
    orders = [ClipSampler(CLIPS, 10, seed=3, recordings=recordings, in_play=n).order(0) for n in (2, 100)]
    np.testing.assert_array_equal(*orders)  # CLIPS are of two


@pytest.mark.parametrize("options", [{"in_play": -1, "recordings": np.arange(210)}, {"in_play": 2}])
def test_recordings_in_play_need_recordings(options):
    with pytest.raises(ValueError, match="in_play"):
        ClipSampler(CLIPS, 10, seed=0, **options)
    assert len(ClipSampler(CLIPS[:0], 10, seed=0, in_play=2, recordings=np.zeros(0, int)).order(0)) == 0


@pytest.mark.parametrize("keep_last", [False, True])
@pytest.mark.parametrize("n", [1, 2, 9, 10, 11, 12, 19, 20, 21, 22, 103])
def test_the_sizes_of_batches_are_those_that_occur_and_no_clip_stands_alone(n, keep_last):
    sampler = ClipSampler(np.arange(n), 10, seed=0, keep_last=keep_last)
    sizes = [len(clips) for _, _, clips in islice(sampler, sampler.batches_per_epoch)]
    assert sorted(set(sizes)) == sorted(sampler.batch_sizes)
    assert n - sum(sizes) == (0 if n < 10 else int(n % 10 == 1) if keep_last else n % 10)


@pytest.mark.parametrize("n_ranks", [1, 2, 3, 7])
@pytest.mark.parametrize("n", [0, 1, 6, 7, 8, 32])
def test_the_shards_of_a_batch_in_order_are_the_batch(n, n_ranks):
    shards = [shard(CLIPS[:n], rank, n_ranks) for rank in range(n_ranks)]
    np.testing.assert_array_equal(np.concatenate(shards), CLIPS[:n])
    sizes = [len(part) for part in shards]
    assert tuple(sizes) == shard_sizes(n, n_ranks)
    assert sizes == sorted(sizes, reverse=True)
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("n", [0, 1, 31, 32, 33, 103])
def test_blocks_cover_everything_once_and_evenly(n):
    blocks = fixed_blocks(np.arange(n), 32)
    assert sorted(np.concatenate([*blocks, np.zeros(0, int)])) == list(range(n))
    sizes = [len(b) for b in blocks]
    assert not sizes or max(sizes) - min(sizes) <= 1
    assert not sizes or max(sizes) <= 32


def test_blocks_are_the_same_every_time_and_mix_the_recordings():
    first, again = fixed_blocks(np.arange(320), 32), fixed_blocks(np.arange(320), 32)
    np.testing.assert_array_equal(first, again)
    for block in first:
        assert block.max() - block.min() > 160
