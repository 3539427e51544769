"""Random clips from the clip store against the layouts that other code reads them from.

The clips are those of one cohort in every arm: whole numbers that float64, float16 and int16 hold exactly. Ours come
with the context that their filters need on both sides, the rivals' without. Cold arms never ask for a clip twice after
the files were dropped from the page cache (the host below a virtual machine may still hold them).
"""

from __future__ import annotations

import importlib.util
import itertools
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from sleepfm_fast import convert
from sleepfm_fast.batches import ClipInput, InputConfig
from sleepfm_fast.clips import ClipStore
from sleepfm_fast.cohorts.import_seed import CHANNELS
from sleepfm_fast.filters import FilterBank
from sleepfm_fast.store.feed import Buffer, Feed

N_SAMPLES = 7680
N_CHANNELS = len(CHANNELS)


def test_batches(versus, quick, clip_store, tmp_path):
    store = ClipStore(clip_store)
    source = ClipInput(store, store.montage, InputConfig(normalise="none"), torch.device("cpu"))
    clips = np.random.default_rng(0).permutation(len(store))[:32]
    batch = source(np.arange(len(store)))
    whole = torch.cat([batch.x[name] for name in source.modalities], dim=1).numpy()
    for clip, values in enumerate(whole):
        np.save(tmp_path / f"{clip}-float32.npy", values)
        np.save(tmp_path / f"{clip}-float64.npy", values.astype(np.float64))
    stored_bytes = sum(entry.n_bytes for entry in store.recordings)

    def files(dtype):
        x = torch.from_numpy(
            np.stack([np.load(tmp_path / f"{clip}-{dtype}.npy").astype(np.float32, copy=False) for clip in clips])
        )
        return {name: x[:, span] for name, span in source.spans.items()}

    def agree(results):
        for arm, modalities in results.items():
            for name in source.modalities:
                assert torch.equal(modalities[name], results["ours"][name]), (arm, name)

    sizes = f"{stored_bytes / 1e6:.0f} MB stored, {whole.nbytes / 1e6:.0f} MB as float32"
    versus(
        f"batch of 32 random clips, {whole.shape[1]} channels, filtered ({sizes})",
        {
            "ours": lambda: source(clips).x,
            "np.load, filtered float32 a clip": lambda: files("float32"),
            "np.load, filtered float64 a clip": lambda: files("float64"),
        },
        agree=agree,
        rounds=20,
    )


class Cohort:
    """The same clips as a clip store, as .npy files, as one flat file and, with h5py, as HDF5."""

    def __init__(self, folder: Path, n_nights: int, n_clips: int) -> None:
        self.folder, self.n_nights, self.n_clips = folder, n_nights, n_clips
        rng = np.random.default_rng(0)
        with (folder / "flat.bin").open("wb") as flat:
            for night in range(n_nights):
                clips = rng.integers(-2000, 2001, (n_clips, N_CHANNELS, N_SAMPLES), dtype=np.int16)
                flat.write(clips.tobytes())
                (folder / "seed" / "X" / f"n{night:03}").mkdir(parents=True)
                for i, clip in enumerate(clips):
                    np.save(self.npy(night * n_clips + i), clip.astype(np.float64))
                if importlib.util.find_spec("h5py"):
                    self.write_hdf5(night, clips)
        assert convert.cli([str(folder / "seed"), str(folder / "store"), "--from", "seed", "--joined"]) == 0
        self.files = [folder / "flat.bin", *(self.npy(i) for i in range(len(self))), *folder.glob("*.hdf5")]
        shutil.copytree(folder / "store", folder / "pread")  # what one arm has read must not be warm for another
        self.files += folder.glob("*/recordings/*.bin")
        self.slots = [CHANNELS.index(c["labels"][0]) for c in ClipStore(folder / "store").record(0)["channels"]]
        for file in self.files:  # what is dirty cannot be dropped
            descriptor = os.open(file, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)

    def __len__(self) -> int:
        return self.n_nights * self.n_clips

    def npy(self, clip: int) -> Path:
        night, number = divmod(clip, self.n_clips)
        return self.folder / "seed" / "X" / f"n{night:03}" / f"n{night:03}_{number}.npy"

    def write_hdf5(self, night: int, clips: np.ndarray) -> None:
        """As the clinical code does: float16, gzip, chunks of 5 min."""
        import h5py

        with h5py.File(self.folder / f"n{night:03}.hdf5", "w") as file:
            for c, name in enumerate(CHANNELS):
                values = clips[:, c].reshape(-1).astype(np.float16)
                chunks = (min(values.size, 300 * 256),)
                file.create_dataset(name, data=values, chunks=chunks, compression="gzip")

    def drop(self) -> None:
        for file in self.files:
            descriptor = os.open(file, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)

    def feed(self, *, first_channels: int = N_CHANNELS, **options) -> Feed:
        store = ClipStore(self.folder / ("pread" if options["read"] == "pread" else "store"), **options)
        return Feed(store, [self.slots.index(c) for c in range(first_channels)], FilterBank("aasm"))

    def inner(self, batch) -> np.ndarray:
        """A gathered batch without its context: [clip, channel, sample]."""
        begins = batch.table[:, :, 0] + batch.table[:, :, 3] - batch.table[:, :, 2]
        return batch.raw[begins[:, :, None] + np.arange(N_SAMPLES)]

    def flat(self, clips: np.ndarray, out: np.ndarray) -> np.ndarray:
        """One pread a clip, into memory that is used again."""
        n_bytes = 2 * N_SAMPLES * out.shape[1]
        descriptor = os.open(self.folder / "flat.bin", os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
        for clip, row in zip(clips, out, strict=True):
            assert os.preadv(descriptor, [row], int(clip) * 2 * N_SAMPLES * N_CHANNELS) == n_bytes
        os.close(descriptor)
        return out

    def npy_files(self, clips: np.ndarray, n_channels: int) -> np.ndarray:
        return np.stack([np.load(self.npy(int(clip)))[:n_channels] for clip in clips])

    def hdf5_files(self, clips: np.ndarray, n_channels: int) -> np.ndarray:
        import h5py

        out = np.empty((len(clips), n_channels, N_SAMPLES), np.float16)
        for clip, row in zip(clips, out, strict=True):
            night, number = divmod(int(clip), self.n_clips)
            with h5py.File(self.folder / f"n{night:03}.hdf5", "r") as file:
                for c in range(n_channels):
                    row[c] = file[CHANNELS[c]][number * N_SAMPLES : (number + 1) * N_SAMPLES]
        return out


@pytest.fixture(scope="session")
def cohort(request, tmp_path_factory) -> Cohort:
    return Cohort(tmp_path_factory.mktemp("clips"), 2, 12 if request.config.getoption("quick") else 240)


@pytest.mark.parametrize("n_channels", [13, 5, 1])
@pytest.mark.parametrize("cold", [False, True], ids=["warm", "cold"])
def test_random_clips(versus, quick, cohort, cold, n_channels):
    n = 8 if quick else 64
    rounds = 6
    order = np.random.default_rng(n_channels).permutation(len(cohort))[: len(cohort) // n * n].reshape(-1, n)
    by_way = {way: cohort.feed(first_channels=n_channels, read=way) for way in ("mmap", "pread")}
    buffer, out = Buffer(), np.empty((n, n_channels, N_SAMPLES), np.int16)
    if cold:
        cohort.drop()
    else:
        for feed in by_way.values():
            feed.gather(np.arange(len(cohort)))

    def turns(read):
        # Cold: other clips in every call. Warm: always the same ones.
        batches = itertools.cycle(order if cold else order[:1])
        return lambda: read(next(batches))

    arms = {
        "ours, mmap": turns(lambda clips: by_way["mmap"].gather(clips, buffer)),
        "ours, pread": turns(lambda clips: by_way["pread"].gather(clips)),
        "flat int16 file, pread": turns(lambda clips: cohort.flat(clips, out)),
        "np.load, float64 a clip": turns(lambda clips: cohort.npy_files(clips, n_channels)),
    }
    if importlib.util.find_spec("h5py"):
        arms["HDF5, float16, gzip"] = turns(lambda clips: cohort.hdf5_files(clips, n_channels))

    def agree(results):
        expected = results["np.load, float64 a clip"]
        for arm, found in results.items():
            values = cohort.inner(found) if arm.startswith("ours") else found
            np.testing.assert_array_equal(values, expected, err_msg=arm)

    if cold and not quick:
        assert len(order) > rounds
    state = "cold" if cold else "warm"
    result = versus(f"{n} random clips of {n_channels} channels, {state}", arms, agree=agree, rounds=rounds)
    if not cold:
        result.require("np.load, float64 a clip", at_least=3.0)


def test_many_recordings(versus, quick, tmp_path):
    """A batch whose clips all lie in different recordings, which are open or must be opened again."""
    n = 4 if quick else 64
    cohort = Cohort(tmp_path, n, 2)
    clips = 2 * np.random.default_rng(0).permutation(n)
    feeds = {
        f"{way}, {'all open' if limit > 1 else 'one open at a time'}": cohort.feed(read=way, max_mapped=limit)
        for way in ("mmap", "pread")
        for limit in (256, 1)
    }
    for feed in feeds.values():
        feed.gather(clips)

    def agree(results):
        for batch in results.values():
            np.testing.assert_array_equal(batch.raw, next(iter(results.values())).raw)

    versus(
        f"{n} clips of as many recordings, 13 channels, warm",
        {arm: (lambda feed=feed: feed.gather(clips)) for arm, feed in feeds.items()},
        agree=agree,
        rounds=20,
    )
