"""One training step of the tiny preset, from the clip store to the optimiser: our ops against their plain twins."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sleepfm_fast import ops, reference
from sleepfm_fast.batches import N_OUT, ClipInput, InputConfig
from sleepfm_fast.clips import ClipStore
from sleepfm_fast.encoder import PRESETS, SleepModel


class Step:
    """A model, its optimiser and the two ops under test; the same seeds for every instance."""

    def __init__(self, source: ClipInput, clips: np.ndarray, filter_resample, contrastive_loss) -> None:
        self.source, self.clips = source, clips
        self.filter_resample, self.contrastive_loss = filter_resample, contrastive_loss
        torch.manual_seed(0)
        self.model = SleepModel({k: v.stop - v.start for k, v in source.spans.items()}, PRESETS["tiny"])
        self.optimiser = torch.optim.SGD(self.model.parameters(), lr=1e-3, momentum=0.9)

    def __call__(self) -> tuple[float, float]:
        """Return the loss and its gradient with respect to the temperature."""
        torch.manual_seed(1)  # dropout
        raw, table, calibration = self.source.feed.gather(self.clips)
        self.source.scales.apply(calibration, table, np.asarray(self.source.store.recording[self.clips], np.int64))
        raw, table, calibration = (torch.from_numpy(part) for part in (raw, table, calibration))
        x = self.filter_resample(raw, table, calibration, self.source.bank, N_OUT)
        present = table[:, :, 1] > 0
        spans = self.source.spans
        embeddings, mask = self.model(
            {name: x[:, span] for name, span in spans.items()}, {name: present[:, span] for name, span in spans.items()}
        )
        loss, _ = self.contrastive_loss(embeddings, self.model.log_temperature, mask=mask)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        gradient = float(self.model.log_temperature.grad)
        self.optimiser.step()
        return float(loss.detach()), gradient


def test_training_step(versus, quick, clip_store):
    store = ClipStore(clip_store)
    source = ClipInput(store, store.montage, InputConfig(), torch.device("cpu"))
    source.measure(np.arange(len(store.recordings)), lambda recordings: recordings)
    clips = np.random.default_rng(0).permutation(len(store))[: 8 if quick else 32]

    def agree(results):
        # Float32 through four convolutions and batch normalisation.
        for arm, values in results.items():
            assert values == pytest.approx(results["ours"], rel=1e-3, abs=1e-5), arm

    n_channels = source.n_columns
    versus(
        f"training step, preset tiny, {len(clips)} clips of {n_channels} channels",
        {
            "ours": Step(source, clips, ops.filter_resample, ops.contrastive_loss),
            "reference ops (SciPy, PyTorch)": Step(
                source, clips, reference.filter_resample, reference.contrastive_loss
            ),
        },
        agree=agree,
        rounds=10,
    ).require("reference ops (SciPy, PyTorch)", at_least=1.5)
