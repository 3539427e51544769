"""Modalities left out of a step, and clips that lack some: what is drawn, what is trained, what is embedded."""

import numpy as np
import pytest
import torch

from sleepfm_fast import reference, train
from sleepfm_fast.batches import Batch
from sleepfm_fast.encoder import EncoderConfig, SleepModel
from sleepfm_fast.rundir import read_checkpoint
from sleepfm_fast.training.modality_dropout import draw, drop, without
from sleepfm_fast.training.objective import Objective, backward

CONFIGS = {
    "efficientnet": EncoderConfig(channels=(4, 4, 6, 8, 16), depth=(1, 2, 1), expansion=2, dim=8, dropout=0.0),
    "strided": EncoderConfig(
        design="strided", channels=(4, 6), kernels=(8, 5), strides=(4, 4), segments=3, dim=8, dropout=0.0
    ),
}
CHANNELS = {"respiratory": 3, "brain": 2, "ecg": 1}


def model(design):
    torch.manual_seed(0)
    return SleepModel(CHANNELS, CONFIGS[design], log_temperature=1.0).double()


def clips(n, seed=1):
    generator = torch.Generator().manual_seed(seed)
    x = {name: torch.randn(n, c, 384, generator=generator, dtype=torch.float64) for name, c in CHANNELS.items()}
    return Batch(x, {name: torch.ones(values.shape[:2], dtype=torch.bool) for name, values in x.items()})


# ---- what is left out ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("probability", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("n_modalities", [3, 4])
def test_a_clip_loses_one_of_three_or_more_with_the_probability_asked_for(probability, n_modalities):
    n = 40_000
    present = np.ones((n, 4), bool)
    present[:, 0] = n_modalities == 4  # the chosen one is counted among those that are there
    left_out = drop(present, draw(0, 0, 0, n), probability)
    assert not (left_out & ~present).any()
    assert left_out.sum(axis=1).max() == (probability > 0)
    five_sigma = 5 * (probability * (1 - probability) / n) ** 0.5
    assert left_out.any(axis=1).mean() == pytest.approx(probability, abs=five_sigma)
    share = probability / n_modalities
    for each in left_out[:, -n_modalities:].mean(axis=0):
        assert each == pytest.approx(share, abs=5 * (share * (1 - share) / n) ** 0.5)


def test_which_one_is_lost_is_exact():
    present = np.ones((6, 3), bool)
    numbers = np.array([[0.2, 0.0], [0.2, 0.34], [0.2, 1 - 2**-53], [0.3, 0.0], [0.0, 0.5], [0.0, 0.5]])
    present[4, 1] = False
    present[5] = False
    expected = np.zeros((6, 3), bool)
    expected[range(3), range(3)] = True  # 0.3 is not below 0.3; a clip with two keeps both
    np.testing.assert_array_equal(drop(present, numbers, 0.3), expected)
    assert drop(present[:0], numbers[:0], 0.3).shape == (0, 3)


def test_the_draw_depends_on_the_place_alone_and_ranks_share_it():
    np.testing.assert_array_equal(draw(1, 2, 3, 7), draw(1, 2, 3, 7))
    others = [draw(0, 2, 3, 7), draw(1, 0, 3, 7), draw(1, 2, 0, 7)]
    assert all(not np.array_equal(other, draw(1, 2, 3, 7)) for other in others)
    batch, numbers = clips(7), draw(1, 2, 3, 7)
    whole = without(batch, numbers, 0.5, 0, 1)
    for name in CHANNELS:
        parts = []
        for rank, span in ((0, slice(0, 4)), (1, slice(4, 7))):
            own = Batch({k: v[span] for k, v in batch.x.items()}, {k: v[span] for k, v in batch.present.items()})
            parts.append(without(own, numbers, 0.5, rank, 2).present[name])
        assert torch.equal(torch.cat(parts), whole.present[name])
    assert all(p.all() for p in batch.present.values()), "the batch itself is as it was"


# ---- training and embedding with modalities missing ----------------------------------------------------------------


@pytest.mark.parametrize("design", CONFIGS)
@pytest.mark.parametrize("mode", ["leave_one_out", "pairwise"])
def test_a_step_is_that_of_encoders_which_see_only_the_clips_they_have(design, mode):
    whole = model(design).train()
    batch = without(clips(9), draw(0, 0, 1, 9), 1.0, 0, 1)
    lacking = torch.stack([~p.any(dim=1) for p in batch.present.values()])
    assert lacking.any(dim=1).all(), "every modality is left out of some clip"
    for name, x in batch.x.items():  # what is left out is not read
        x[~batch.present[name].any(dim=1)] = torch.nan
    objective = Objective(whole, mode, "both")
    outcome = backward(objective, objective, batch)
    ours = {name: p.grad.clone() for name, p in whole.named_parameters()}
    buffers = {name: b.clone() for name, b in whole.named_buffers()}

    twin = model(design).train()
    rows = []
    for m, (name, x) in enumerate(batch.x.items()):
        have = (~lacking[m]).nonzero()[:, 0]
        embedded = twin.encoders[name](x[have])
        rows.append(torch.zeros(9, 8, dtype=torch.float64).index_copy(0, have, embedded))
    loss, _ = reference.contrastive_loss(torch.stack(rows), twin.log_temperature, mode, mask=~lacking)
    loss.backward()
    torch.testing.assert_close(outcome.loss, loss.detach(), rtol=1e-12, atol=0)
    for name, p in twin.named_parameters():
        torch.testing.assert_close(ours[name], p.grad, rtol=1e-8, atol=1e-12, msg=name)
    for name, b in twin.named_buffers():
        torch.testing.assert_close(buffers[name], b, rtol=1e-12, atol=0, msg=name)


@pytest.mark.parametrize("design", CONFIGS)
def test_an_embedding_never_depends_on_its_batch_mates(design):
    embedder = model(design).eval()
    batch = clips(6)
    batch.present["brain"][1:4] = False
    batch.present["ecg"][0] = False
    batch.present["respiratory"][2, 1] = False
    batch.x["brain"][1] = torch.nan
    with torch.inference_mode():
        together, mask = embedder(batch.x, batch.present)
        for i in range(6):
            alone, own = embedder(
                {k: v[i : i + 1] for k, v in batch.x.items()}, {k: v[i : i + 1] for k, v in batch.present.items()}
            )
            assert torch.equal(own[:, 0], mask[:, i])
            torch.testing.assert_close(alone[:, 0], together[:, i], rtol=1e-12, atol=1e-13)
        # Mates of another kind: louder, with other channels, in another order.
        mates = clips(6, seed=2)
        x = {k: torch.cat([1e3 * mates.x[k], v]).flip(0) for k, v in batch.x.items()}
        present = {k: torch.cat([mates.present[k], v]).flip(0) for k, v in batch.present.items()}
        present["ecg"][7:] = False
        others, _ = embedder(x, present)
        torch.testing.assert_close(others[:, :6].flip(1), together, rtol=1e-12, atol=1e-13)


# ---- the command ---------------------------------------------------------------------------------------------------


def test_a_run_with_modality_dropout_resumes_bit_for_bit(cohort_store, tmp_path, monkeypatch):
    from sleepfm_fast.training import contrastive as training

    seen = []

    def counted(batch, *arguments):
        made = without(batch, *arguments)
        seen.append(sum(int((~p.any(dim=1)).sum()) for p in made.present.values()))
        return made

    monkeypatch.setattr(training, "without", counted)
    options = ["--preset", "tiny", "--batch-size", "16", "--threads", "1", "--modality-dropout", "0.3"]
    options += ["--optimiser", "adamw", "--checkpoint-steps", "2", "--validation-block", "64"]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert train.cli([str(cohort_store), str(whole), *options, "--max-steps", "6"]) == 0
    assert sum(seen) == pytest.approx(6 * 16 * 0.3, abs=5 * (96 * 0.3 * 0.7) ** 0.5)
    assert train.cli([str(cohort_store), str(stopped), *options, "--max-steps", "3"]) == 0
    assert train.cli([str(cohort_store), str(stopped), *options, "--max-steps", "6", "--resume"]) == 0
    assert seen[:6] == seen[6:]
    a, b = (read_checkpoint(run / "last.safetensors")[0] for run in (whole, stopped))
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


def test_a_store_of_two_modalities_cannot_lose_one(cohort_store, tmp_path, capsys, monkeypatch):
    from sleepfm_fast.montage.slots import Montage

    def two(store, names):
        return Montage("two", tuple(m for m in store.montage.modalities if m.name != "ecg"))

    monkeypatch.setattr("sleepfm_fast.training.contrastive.chosen_montage", two)
    arguments = [str(cohort_store), str(tmp_path / "run"), "--preset", "tiny", "--modality-dropout", "0.3"]
    assert train.cli(arguments) == 1
    assert "so it needs three" in capsys.readouterr().err
