"""Training, embedding and the encoders on a CUDA device; on the CPU the same tests compare the CPU with itself.

Nothing here is compared to the bit: convolutions on a device add in another order from run to run.
"""

from __future__ import annotations

import json
import warnings
from copy import deepcopy

import numpy as np
import pytest
import torch

from sleepfm_fast import embed, supervise, train
from sleepfm_fast.embeddings import Embeddings
from sleepfm_fast.encoder import EncoderConfig, SleepModel
from sleepfm_fast.rundir import read_checkpoint

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]
SMALL = ["--preset", "tiny", "--batch-size", "16", "--optimiser", "adamw", "--lr", "0.003", "--patience", "0"]


def metrics(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def training_losses(run):
    """Mean losses of the epochs; those of the one validation subject are as much noise as learning, run by run."""
    return [row["training_loss"] for row in metrics(run) if row["kind"] == "epoch"]


@pytest.fixture
def exact_convolutions():
    """Float32 on a device as on the CPU: torch lets cuDNN round factors to tf32 otherwise."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # from 2.9 on torch would have the setting written otherwise
        before = torch.backends.cudnn.allow_tf32
        torch.backends.cudnn.allow_tf32 = False
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.backends.cudnn.allow_tf32 = before


LOWERED = ["--precision", "bfloat16", "--micro-batch", "8"]


@pytest.mark.parametrize(
    ("device", "options"),
    [
        ("cpu", []),
        pytest.param("cuda", [], marks=pytest.mark.cuda),
        pytest.param("cuda", LOWERED, marks=pytest.mark.cuda),
    ],
)
def test_trains_resumes_and_embeds(cohort_store, tmp_path, device, options):
    run, arguments = tmp_path / "run", [*SMALL, *options, "--device", device]
    assert train.cli([str(cohort_store), str(run), *arguments, "--epochs", "2"]) == 0
    assert train.cli([str(cohort_store), str(run), *arguments, "--epochs", "3", "--resume"]) == 0
    losses = training_losses(run)
    assert len(losses) == 3
    assert losses[-1] < losses[0]
    tensors, state = read_checkpoint(run / "last.safetensors")
    assert state["skipped"] == 0
    assert ("rng/cuda" in tensors) == (device == "cuda")
    found = {}
    for where in {"cpu", device}:
        folder = tmp_path / f"embeddings-{where}"
        assert embed.cli([str(run), str(cohort_store), str(folder), "--device", where]) == 0
        found[where] = Embeddings(folder)
    ours, theirs = found[device], found["cpu"]
    assert np.array_equal(ours.mask, theirs.mask)
    cosines = (np.asarray(ours.vectors, np.float64) * theirs.vectors).sum(-1)[theirs.mask]
    assert cosines.min() > 0.999


@pytest.mark.cuda
def test_the_published_network_trains_with_fused_blocks(cohort_store, tmp_path):
    """And goes on without them: the weights are the same."""
    run, fused = tmp_path / "run", ["--precision", "bfloat16", "--fused-blocks"]
    arguments = [str(cohort_store), str(run), "--batch-size", "8", "--micro-batch", "4", "--device", "cuda"]
    assert train.cli([*arguments, *fused, "--max-steps", "3"]) == 0
    assert train.cli([*arguments, *fused[:2], "--max-steps", "4", "--resume"]) == 0
    tensors, state = read_checkpoint(run / "last.safetensors")
    assert (state["skipped"], state["step"]) == (0, 4)
    assert all(bool(tensor.isfinite().all()) for name, tensor in tensors.items() if tensor.is_floating_point())


@pytest.mark.parametrize("device", DEVICES)
def test_the_first_steps_are_those_of_the_cpu(cohort_store, tmp_path, device, exact_convolutions):
    """Same weights, clips and batches; dropout, which draws other numbers on a device, is off.

    SGD: AdamW's first steps are as long for a gradient of rounding noise as for any other.
    """
    options = ["--preset", "tiny", "--batch-size", "16", "--optimiser", "sgd", "--lr", "0.01", "--patience", "0"]
    losses = []
    for where in ("cpu", device):
        run = tmp_path / f"run-{len(losses)}"
        arguments = [*options, "--dropout", "0", "--max-steps", "10", "--device", where]
        assert train.cli([str(cohort_store), str(run), *arguments]) == 0
        (row,) = [row for row in metrics(run) if row["kind"] == "step"]
        losses.append(row["loss"])
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


@pytest.mark.parametrize("device", DEVICES)
def test_a_classifier_trains(cohort_store, tmp_path, device):
    run = tmp_path / "run"
    arguments = ["--task", "stage", "--preset", "tiny", "--epochs", "1", "--batch-size", "16", "--device", device]
    assert supervise.cli([str(cohort_store), str(run), *arguments]) == 0
    assert (run / "results" / "stage" / "result.json").is_file()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("training", [True, False])
def test_encoders_agree_with_float64(device, training, exact_convolutions):
    """Forward and backward of the published design with absent channels and clips, against float64 on the CPU."""
    torch.manual_seed(0)
    config = EncoderConfig(dim=64, channels=(8, 8, 12, 16, 24), depth=(1, 2, 2), dropout=0.0)
    model = SleepModel({"brain": 3, "ecg": 1}, config).train(training)
    x = {"brain": torch.randn(6, 3, 512), "ecg": torch.randn(6, 1, 512)}
    present = {"brain": torch.rand(6, 3) > 0.3, "ecg": torch.ones(6, 1, dtype=torch.bool)}
    present["brain"][:, 0] = True
    present["ecg"][2] = False
    upstream = torch.randn(2, 6, 64)
    results = {}
    for name, where, dtype in (("truth", "cpu", torch.float64), ("ours", device, torch.float32)):
        copy = deepcopy(model).to(where, dtype)
        embeddings, mask = copy({k: v.to(where, dtype) for k, v in x.items()}, present)
        if training:
            (embeddings * upstream.to(where, dtype)).sum().backward()
        gradients = {k: p.grad.cpu().double() for k, p in copy.named_parameters() if p.grad is not None}
        results[name] = embeddings.detach().cpu().double(), mask.cpu(), gradients
    (truth, mask, d_truth), (ours, our_mask, d_ours) = results["truth"], results["ours"]
    assert torch.equal(mask, our_mask)
    assert float((ours - truth).norm() / truth.norm()) < 1e-4
    assert set(d_ours) == set(d_truth)
    # Biases before a batch norm have the gradient 0 and get rounding noise: the sum of squares of all is compared.
    difference = sum(float((d_ours[k] - d_truth[k]).square().sum()) for k in d_truth)
    assert difference <= 1e-4 * sum(float(d.square().sum()) for d in d_truth.values())
