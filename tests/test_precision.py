"""bfloat16 in the encoders: what stays float32, and a loss curve within the noise of seeds."""

import json

import numpy as np
import pytest
import torch

from sleepfm_fast import embed, train
from sleepfm_fast.batches import Batch
from sleepfm_fast.encoder import PRESETS, SleepModel
from sleepfm_fast.model.precision import arithmetic, cpu_precision
from sleepfm_fast.rundir import read_checkpoint
from sleepfm_fast.training.contrastive import Trainer
from sleepfm_fast.training.objective import Objective, backward
from sleepfm_fast.training.settings import resolve

OPTIONS = {
    "preset": "tiny", "batch_size": 16, "optimiser": "adamw", "lr": 2e-3, "log_temperature": 2.0, "threads": 1,
    "patience": 0, "device": "cpu", "max_steps": 36, "validation_block": 64,
}  # fmt: skip


def test_what_autocast_asks_of_the_compiled_ops():
    cpu = torch.device("cpu")
    assert cpu_precision() == "float32"
    with arithmetic("bfloat16", cpu):
        assert cpu_precision() == "bfloat16"
        assert torch.get_autocast_dtype("cpu") == torch.bfloat16
        with arithmetic("float32", cpu):
            assert cpu_precision() == "float32"
    with torch.autocast("cpu", torch.float16):
        assert cpu_precision() is None
    assert arithmetic("float32", torch.device("cuda")).device == "cuda"


def curve(store, run, precision, seed):
    """Mean losses of six consecutive steps, and the trainer."""
    trainer = Trainer.prepare(resolve(train.Config(store, run, precision=precision, seed=seed, **OPTIONS)))
    losses = [row["loss"] for row in trainer.steps()]
    return np.array(losses).reshape(-1, 6).mean(axis=1), trainer


def test_the_loss_curve_lies_within_the_noise_of_seeds_and_the_state_is_float32(cohort_store, tmp_path):
    """Criterion: nowhere further from its float32 twin than float32 runs of three seeds are from each other, at most.

    The twin has the same seed, so the same weights, clips and dropout; a fifth of the seeds' spread was seen.
    """
    single = [curve(cohort_store, tmp_path / f"f{seed}", "float32", seed)[0] for seed in range(3)]
    half, trainer = curve(cohort_store, tmp_path / "b0", "bfloat16", 0)
    spread = max(np.abs(a - b).max() for a in single for b in single)
    assert np.abs(half - single[0]).max() < spread
    assert half[-1] < half[0]
    assert not np.array_equal(half, single[0])
    assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}
    assert {b.dtype for b in trainer.model.buffers()} <= {torch.float32, torch.int64}
    tensors, _ = read_checkpoint(tmp_path / "b0" / "last.safetensors")
    kinds = {t.dtype for name, t in tensors.items() if not name.startswith("rng/")}
    assert kinds <= {torch.float32, torch.int64}
    run = tmp_path / "emb"
    for precision in ("float32", "bfloat16"):
        arguments = [str(tmp_path / "f0"), str(cohort_store), str(run / precision), "--precision", precision]
        assert embed.cli(arguments) == 0
    a, b = (np.load(run / precision / "embeddings.npy") for precision in ("float32", "bfloat16"))
    assert a.dtype == b.dtype == np.float32
    cosine = (a * b).sum(axis=-1)
    assert cosine.min() > 0.999
    assert not np.array_equal(a, b)
    record = json.loads((run / "bfloat16" / "embeddings.json").read_text())
    assert record["presets"]["precision"] == "bfloat16"


@pytest.mark.parametrize("n_parts", [1, 2])
def test_the_published_encoder_runs_in_bfloat16_with_missing_modalities(n_parts):
    torch.manual_seed(0)
    model = SleepModel({"respiratory": 2, "brain": 1, "ecg": 1}, PRESETS["seed"]).train()
    x = {name: torch.randn(6, n, 1024) for name, n in model.modalities.items()}
    present = {name: torch.ones(values.shape[:2], dtype=torch.bool) for name, values in x.items()}
    present["ecg"][2:] = False
    present["brain"][0] = False
    objective = Objective(model, "leave_one_out", "both", precision="bfloat16")
    outcome = backward(objective, objective, Batch(x, present), n_parts=n_parts)
    assert outcome.loss.dtype == torch.float32
    assert outcome.loss.isfinite()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert {g.dtype for g in gradients} == {torch.float32}
    assert all(g.isfinite().all() for g in gradients)
    assert model.log_temperature.grad is not None
