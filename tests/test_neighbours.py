"""One modality trained alone: adjacent clips as positives, within uninterrupted stretches, each clip once an epoch."""

import json
from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from called import last_json

from sleepfm_fast import embed, probe, reference, retrieve, train
from sleepfm_fast.batches import Batch
from sleepfm_fast.clips import ClipStore
from sleepfm_fast.encoder import EncoderConfig, SleepModel
from sleepfm_fast.rundir import RunDirectory, read_checkpoint
from sleepfm_fast.training.neighbours import NeighbourSampler, Stretches, clips_of, stretch_numbers
from sleepfm_fast.training.objective import Objective, backward

TINY = ["--preset", "tiny", "--batch-size", "8", "--threads", "1", "--validation-block", "32", "--optimiser", "adamw"]


def stretches(*lengths, start=10):
    """Stretches of so many clips, one after the other, from clip number ``start`` on."""
    numbers = np.repeat(np.arange(len(lengths)), lengths)
    return Stretches(np.arange(len(numbers)) + start, numbers)


@pytest.mark.parametrize("lengths", [(), (1,), (1, 1, 1), (2,), (3,), (1, 2, 1, 3, 8, 1), (101, 2, 64)])
@pytest.mark.parametrize("begin", [0, 1])
def test_pairs_are_neighbours_of_one_stretch_and_no_clip_is_in_two(lengths, begin):
    found = stretches(*lengths)
    pairs = found.pairs(np.full(len(found.lengths), begin))
    assert pairs.shape[1] == 2
    numbers = np.repeat(np.arange(len(lengths)), lengths)
    for a, b in pairs.tolist():
        assert b == a + 1
        assert numbers[a - 10] == numbers[b - 10]
    assert len(np.unique(pairs)) == pairs.size
    assert len(pairs) >= found.n_pairs
    longest = sum(n // 2 for n in lengths)
    assert len(pairs) == longest if begin == 0 else len(pairs) <= longest


def test_clips_left_out_by_a_selection_interrupt_a_stretch():
    clips = np.array([0, 1, 3, 4, 5, 9])
    found = Stretches(clips, np.zeros(6, np.int64))
    assert found.clips.tolist() == [0, 1, 3, 4, 5]
    assert found.lengths.tolist() == [2, 3]


def test_stretches_of_a_store_end_at_recordings_segments_and_gaps():
    store = SimpleNamespace(
        recording=np.array([0, 0, 0, 0, 0, 1, 1]),
        segment=np.array([0, 0, 1, 1, 1, 0, 0]),
        onset_s=np.array([0.0, 30.0, 60.0, 90.0, 150.0, 180.0, 210.0]),
    )
    assert stretch_numbers(store).tolist() == [0, 0, 1, 1, 2, 3, 3]


def test_the_first_clip_of_a_night_is_no_neighbour_of_the_last_one_of_the_night_before():
    store = SimpleNamespace(recording=np.array([4, 5]), segment=np.array([0, 0]), onset_s=np.array([60.0, 90.0]))
    assert stretch_numbers(store).tolist() == [0, 1]


def test_rounded_onsets_are_30_s_apart_and_a_store_without_clips_has_no_stretch():
    store = SimpleNamespace(recording=np.zeros(3), segment=np.zeros(3), onset_s=np.array([0.1, 30.1004, 60.09]))
    assert stretch_numbers(store).tolist() == [0, 0, 1]
    nothing = SimpleNamespace(recording=np.zeros(0), segment=np.zeros(0), onset_s=np.zeros(0))
    assert stretch_numbers(nothing).shape == (0,)


def sampler(**place):
    found = stretches(7, 1, 2, 30, 9)
    return NeighbourSampler(found.clips, 4, 3, stretches=found, **place)


def test_epochs_have_equally_many_pairs_and_bring_every_pair_of_neighbours():
    one = sampler()
    seen = set()
    for epoch in range(30):
        order = one.order(epoch)
        assert order.shape == (one.n_items, 2)
        assert len(np.unique(order)) == order.size
        seen |= set(map(tuple, order.tolist()))
    assert len(seen) == 6 + 1 + 29 + 8
    assert not np.array_equal(one.order(0), one.order(1))


def test_pairs_are_shuffled_before_some_are_left_out():
    found = stretches(*[4] * 50)  # an epoch has one pair of each at least, where it cuts one or two from each
    one = NeighbourSampler(found.clips, 4, 3, stretches=found)
    order = one.order(0)[:, 0]
    assert len(order) == 50
    assert order.max() - order.min() > 180  # of 200 clips: not those of the first stretches only
    assert (np.diff(order) < 0).sum() > 10


def test_the_order_resumes_anywhere():
    whole = list(islice(sampler(), 20))
    n = sampler().batches_per_epoch
    resumed = list(islice(sampler(epoch=1, position=2), 20 - n - 2))
    for (e1, p1, a), (e2, p2, b) in zip(whole[n + 2 :], resumed, strict=True):
        assert (e1, p1) == (e2, p2)
        np.testing.assert_array_equal(a, b)


def test_pairs_of_a_few_recordings_at_a_time():
    recordings = np.repeat(np.arange(12), 20)
    found = Stretches(np.arange(240), recordings)
    one = NeighbourSampler(found.clips, 4, 3, stretches=found, recordings=recordings, in_play=2)
    order = one.order(1)
    assert order.shape == (one.n_items, 2)
    assert (order[:, 1] - order[:, 0] == 1).all()
    assert len(np.unique(order)) == order.size
    for begin in range(0, len(order) - 8, 8):
        assert len(np.unique(recordings[order[begin : begin + 8, 0]])) <= 5
    assert not np.array_equal(order, np.sort(order, axis=0))


def test_pairs_are_laid_out_first_ones_first():
    assert clips_of(np.array([[1, 2], [7, 8], [4, 5]])).tolist() == [1, 7, 4, 2, 8, 5]
    assert clips_of(np.array([3, 1, 2])).tolist() == [3, 1, 2]


@pytest.mark.parametrize("n_parts", [1, 2])
def test_the_loss_is_that_of_clip_against_neighbour(n_parts):
    torch.manual_seed(0)
    shape = EncoderConfig(design="strided", channels=(4,), kernels=(8,), strides=(4,), segments=3, dim=8, dropout=0.0)
    model = SleepModel({"ecg": 2}, shape, log_temperature=1.0).double().eval()
    objective = Objective(model, "leave_one_out", "both")
    n = 5
    x = torch.randn(2 * n, 2, 384, dtype=torch.float64)
    present = torch.ones(2 * n, 2, dtype=torch.bool)
    present[7] = False  # the neighbour of clip 2 has no signal: neither has anything to be contrasted with
    outcome = backward(objective, objective, Batch({"ecg": x}, {"ecg": present}), counts=(n,), n_parts=n_parts)
    ours = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    kept = torch.tensor([0, 1, 3, 4])
    pair = torch.stack([model.encoders["ecg"](x[kept]), model.encoders["ecg"](x[kept + n])])
    loss, _ = reference.contrastive_loss(pair, model.log_temperature, "pairwise")
    loss.backward()
    torch.testing.assert_close(outcome.loss, loss.detach(), rtol=1e-12, atol=0)
    for mine, p in zip(ours, model.parameters(), strict=True):
        torch.testing.assert_close(mine, p.grad, rtol=1e-8, atol=1e-12)


def test_a_run_of_one_modality_resumes_embeds_and_probes(cohort_store, tmp_path, capsys):
    options = [*TINY, "--modalities", "brain", "--checkpoint-steps", "2"]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert train.cli([str(cohort_store), str(whole), *options, "--max-steps", "20"]) == 0
    captured = capsys.readouterr()
    assert "steps of 8 pairs of neighbouring clips" in captured.err
    epochs = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    losses = [row["validation_loss"] for row in epochs if row["kind"] == "epoch"]
    assert losses[-1] < np.log(32)  # better than chance among the 32 of a block
    assert train.cli([str(cohort_store), str(stopped), *options, "--max-steps", "5"]) == 0
    assert train.cli([str(cohort_store), str(stopped), *options, "--max-steps", "20", "--resume"]) == 0
    a, b = (read_checkpoint(run / "last.safetensors")[0] for run in (whole, stopped))
    assert [name for name in a if not torch.equal(a[name], b[name])] == []
    assert list(RunDirectory(whole).config()["model"]["modalities"]) == ["brain"]
    capsys.readouterr()
    assert embed.cli([str(whole), str(cohort_store), str(tmp_path / "emb")]) == 0
    assert last_json(capsys.readouterr().out)["modalities"] == ["brain"]
    assert probe.cli([str(tmp_path / "emb"), "--task", "stage", "--bootstraps", "10"]) == 0
    assert last_json(capsys.readouterr().out)["modalities"] == ["brain"]
    assert retrieve.cli([str(tmp_path / "emb")]) == 1
    assert "retrieval is between two" in capsys.readouterr().err


def test_a_run_of_two_modalities_embeds_and_retrieves(cohort_store, tmp_path, capsys):
    run = tmp_path / "run"
    options = [*TINY, "--modalities", "ecg", "respiratory", "--max-steps", "3"]
    assert train.cli([str(cohort_store), str(run), *options]) == 0
    assert embed.cli([str(run), str(cohort_store), str(tmp_path / "emb")]) == 0
    embedded = last_json(capsys.readouterr().out)
    assert embedded["modalities"] == ["respiratory", "ecg"]  # the montage's order, whatever was typed
    assert retrieve.cli([str(tmp_path / "emb")]) == 0
    assert {(d["query"], d["candidates"]) for d in last_json(capsys.readouterr().out)["directions"]} == {
        ("respiratory", "ecg"),
        ("ecg", "respiratory"),
    }


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--modalities", "brain", "brain"], "names one twice"),
        (["--modalities", "brain", "ecg", "--modality-dropout", "0.1"], "--modalities names 2"),
        (["--modality-dropout", "1.5"], "--modality-dropout is 1.5"),
        (["--train-subjects", "99"], "training subjects with clips to contrast"),
        (["--train-subjects", "-1"], "--train-subjects is -1"),
    ],
)
def test_impossible_choices_are_refused(cohort_store, tmp_path, capsys, arguments, sentence):
    assert train.cli([str(cohort_store), str(tmp_path / "run"), *TINY, *arguments]) == 1
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_fewer_training_subjects_are_nested_and_change_no_split(cohort_store, tmp_path, capsys):
    configs = {}
    for n, replicate in ((0, 0), (1, 0), (3, 0), (3, 1)):
        run = tmp_path / f"{n}-{replicate}"
        options = [*TINY, "--max-steps", "1", "--train-subjects", str(n)]
        options += ["--replicate", str(replicate)] if n else []
        assert train.cli([str(cohort_store), str(run), *options]) == 0
        configs[n, replicate] = RunDirectory(run).config()
        result = last_json(capsys.readouterr().out)
        assert result["trained_subjects"] == len(configs[n, replicate]["trained_subjects"])
    everybody = set(configs[0, 0]["trained_subjects"])
    splits = configs[0, 0]["subjects"]
    assert everybody == {name for name, code in splits.items() if code == 0}
    for (n, _), config in configs.items():
        assert config["subjects"] == splits
        assert set(config["trained_subjects"]) <= everybody
        assert len(config["trained_subjects"]) == (n or len(everybody))
    assert set(configs[1, 0]["trained_subjects"]) < set(configs[3, 0]["trained_subjects"])
    assert set(configs[3, 0]["trained_subjects"]) != set(configs[3, 1]["trained_subjects"])
    store = ClipStore(cohort_store)
    names = [store.subjects[s] for s in store.recording_subject]
    only = configs[1, 0]["trained_subjects"][0]
    assert sum(r.n_clips for r, name in zip(store.recordings, names, strict=True) if name == only) == 42
