"""A random batch from the clip store, filtered on the way, against reading what was filtered and written beforehand."""

from __future__ import annotations

import numpy as np
import torch

from sleepfm_fast.batches import ClipInput, InputConfig
from sleepfm_fast.clips import ClipStore


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

    def ours():
        batch = source(clips)
        return torch.cat([batch.x[name] for name in source.modalities], dim=1)

    def files(dtype):
        return torch.from_numpy(
            np.stack([np.load(tmp_path / f"{clip}-{dtype}.npy").astype(np.float32, copy=False) for clip in clips])
        )

    def agree(results):
        for arm, values in results.items():
            assert torch.equal(values, results["ours"]), arm

    sizes = f"{stored_bytes / 1e6:.0f} MB stored, {whole.nbytes / 1e6:.0f} MB as float32"
    versus(
        f"batch of 32 random clips, {whole.shape[1]} channels, filtered ({sizes})",
        {
            "ours": ours,
            "np.load, filtered float32 a clip": lambda: files("float32"),
            "np.load, filtered float64 a clip": lambda: files("float64"),
        },
        agree=agree,
        rounds=20,
    )
