"""The supervised baseline: it learns what is planted, resumes exactly, leaves out what it must and says so."""

import dataclasses
import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from called import last_json
from forked_commands import start
from known_nights import EEG, FLOW, staged_night

from sleepfm_fast import embed, preprocess, supervise, train
from sleepfm_fast.baselines import supervised_training
from sleepfm_fast.baselines.supervised_network import blocks_of, scored
from sleepfm_fast.baselines.supervised_training import SupervisedTrainer
from sleepfm_fast.batches import ClipInput, InputConfig
from sleepfm_fast.clips import ClipStore
from sleepfm_fast.encoder import PRESETS, EfficientNet1d, build_encoder
from sleepfm_fast.results import find_results, read_result
from sleepfm_fast.rundir import RunDirectory, read_checkpoint
from sleepfm_fast.runs.splits import Split, assign_subjects, draw_subjects

SMALL = [
    "--task", "stage", "--preset", "tiny", "--batch-size", "16", "--epochs", "3", "--optimiser", "adamw",
    "--checkpoint-steps", "3", "--patience", "0", "--threads", "1", "--bootstraps", "20",
]  # fmt: skip
LEARN = [*SMALL, "--epochs", "8", "--lr", "3e-3"]


def metrics(run, *, drop=("clips_per_s",)):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in drop} for row in rows]


def call(capsys, *arguments):
    status = supervise.cli([str(a) for a in arguments])
    captured = capsys.readouterr()
    assert status == 0, captured.err
    return last_json(captured.out), captured.err


def refused(capsys, *arguments):
    assert supervise.cli([str(a) for a in arguments]) == 1
    return capsys.readouterr().err


@pytest.fixture(scope="module")
def learnt(planted, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "all"
    assert supervise.cli([str(planted), str(run), *LEARN]) == 0
    return run


def test_it_learns_a_planted_signal_with_modalities_missing(planted, learnt):
    result = read_result(learnt / "results" / "stage")
    record = result.record
    assert record["macro"]["auroc"]["value"] > 0.99
    assert record["accuracy"]["value"] > 0.95
    store = ClipStore(planted)
    codes, _ = assign_subjects(store.subjects, Split())
    labelled = np.asarray(store.stage) >= 0
    for side, code in (("train", 0), ("validation", 1), ("test", 2)):
        mine = codes[store.recording_subject[store.recording]] == code
        assert record[side]["n_clips"] == (mine & labelled).sum(), "a missing modality drops no clip"
        assert record[side]["n_dropped_unlabelled"] == (mine & ~labelled).sum() > 0
        assert record[side]["n_dropped_lacking_modality"] == 0


def test_the_result_has_the_schema_of_probe(planted, learnt):
    (result,) = find_results(learnt)
    record, store = result.record, ClipStore(planted)
    assert (result.command, record["task"], record["trained_classes"]) == ("supervise", "stage", [0, 2])
    assert record["class_names"] == ["W", "N1", "N2", "N3", "R"]
    assert record["classes"]["N1"]["note"].startswith("absent from the training clips")
    clip, label = np.array(result.array("clip")), np.array(result.array("label"))
    np.testing.assert_array_equal(label, np.asarray(store.stage)[clip])
    np.testing.assert_array_equal(result.array("recording"), np.asarray(store.recording)[clip])
    np.testing.assert_array_equal(result.array("onset_s"), np.asarray(store.onset_s)[clip])
    assert [record["subjects"][s] for s in result.array("subject")] == [store.subject(int(c)) for c in clip]
    score, probability = result.array("score"), result.array("probability")
    assert score.shape == probability.shape == (len(clip), 2)
    np.testing.assert_allclose(probability.sum(1), 1, atol=1e-5)
    predicted = np.array(record["trained_classes"])[score.argmax(1)]
    assert (predicted == label).mean() == pytest.approx(record["accuracy"]["value"])


def test_one_modality_sees_its_own_channels_only(planted, tmp_path, capsys):
    brain, _ = call(capsys, planted, tmp_path / "brain", *LEARN, "--modality", "brain")
    assert brain["modalities"] == ["brain"]
    assert brain["macro"]["auroc"]["value"] > 0.99
    ecg, err = call(capsys, planted, tmp_path / "ecg", *LEARN, "--modality", "ecg")
    assert ecg["macro"]["auroc"]["value"] < 0.75, "there is nothing to learn in the ECG"
    store = ClipStore(planted)
    lacking = ~store.channels.present[:, store.slots_of("ecg")].any(1)
    codes, _ = assign_subjects(store.subjects, Split())
    mine = (codes[store.recording_subject[store.recording]] == 0) & (np.asarray(store.stage) >= 0)
    assert ecg["train"]["n_dropped_lacking_modality"] == (mine & lacking[store.recording]).sum() > 0
    assert "left out for want of a channel" in err
    tensors, _ = read_checkpoint(tmp_path / "ecg" / "best.safetensors")
    assert tensors["model/layers.0.weight"].shape[1] == 1


def test_a_modality_that_the_montage_lacks_is_refused_with_those_it_has(tmp_path, capsys):
    (tmp_path / "edf").mkdir()
    for i in range(3):
        staged_night(tmp_path / "edf" / f"{i}.edf", ["W", "2", "W", "2"], seed=i, leads=[EEG, FLOW])
    assert preprocess.cli([str(tmp_path / "edf"), str(tmp_path / "store"), "--workers", "1"]) == 0
    err = refused(capsys, tmp_path / "store", tmp_path / "run", *SMALL, "--modality", "ecg")
    assert "has no channel of it; it has respiratory, brain" in err
    assert not (tmp_path / "run").exists()


def assert_same_run(one, other):
    a, state_a = read_checkpoint(one / "last.safetensors")
    b, state_b = read_checkpoint(other / "last.safetensors")
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []
    assert {k: v for k, v in state_a.items() if k != "metrics_bytes"} == {
        k: v for k, v in state_b.items() if k != "metrics_bytes"
    }
    assert metrics(one) == metrics(other)
    x, y = (read_result(run / "results" / "stage") for run in (one, other))
    np.testing.assert_array_equal(x.array("score"), y.array("score"))


@pytest.fixture(scope="module")
def whole(cohort_store, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "whole"
    assert supervise.cli([str(cohort_store), str(run), *SMALL]) == 0
    return run


@pytest.mark.parametrize("checkpoint", [1, 2], ids=["after-the-first-checkpoint", "after-an-epoch"])
def test_kill_and_resume_reproduce_the_uninterrupted_run_bit_for_bit(whole, cohort_store, tmp_path, checkpoint):
    run = tmp_path / "killed"
    arguments = [str(cohort_store), str(run), *SMALL]
    process = start("sleepfm_fast.supervise", arguments, tmp_path / "killed.log")
    wanted = [run / "config.json", run / "last.safetensors", run / "best.safetensors"][checkpoint]
    deadline = time.monotonic() + 120
    while not wanted.exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    process.kill()
    process.join()
    assert wanted.exists(), (tmp_path / "killed.log").read_text()
    assert not (run / "results").exists(), "the run had ended before it was killed"
    resumed = start("sleepfm_fast.supervise", [*arguments, "--resume"], tmp_path / "resumed.log")
    resumed.join()
    assert resumed.exitcode == 0, (tmp_path / "resumed.log").read_text()
    assert_same_run(whole, run)


def test_a_run_that_was_killed_before_its_result_gets_it_on_resume(whole, cohort_store, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    shutil.rmtree(run / "results")
    result, _ = call(capsys, cohort_store, run, *SMALL, "--resume", "--bootstraps", "5")
    assert result["n_bootstraps"] == 5
    assert_same_run(whole, run)


def test_a_finished_run_given_again_is_tested_and_not_trained(whole, cohort_store, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    fit = json.loads((run / "results" / "stage" / "result.json").read_text())["fit"]
    result, err = call(capsys, cohort_store, run, *SMALL)
    assert f"{run} is finished: it has trained" in err
    assert result["fit"] == fit, "with its speed: compare and classify find the result that they have read"
    assert fit["clips_per_s"] > 0
    assert before == {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    assert_same_run(whole, run)


def test_nothing_to_resume_is_said(cohort_store, tmp_path, capsys):
    arguments = [str(cohort_store), str(tmp_path / "misspelt"), *SMALL, "--max-steps", "2", "--resume"]
    assert supervise.cli(arguments) == 0
    assert f"there is no run in {tmp_path / 'misspelt'} to continue; the training starts" in capsys.readouterr().err
    assert supervise.cli(arguments) == 0
    assert "there is no run" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([*SMALL, "--lr", "0.5"], "add --resume"),
        ([*SMALL, "--resume", "--lr", "0.5"], "--lr was 0.001, is 0.5"),
        ([*SMALL, "--resume", "--task", "sdb"], "--task was stage, is sdb"),
        ([*SMALL, "--resume", "--train-subjects", "2"], "--train-subjects was 0, is 2"),
    ],
)
def test_a_run_is_neither_overwritten_nor_resumed_otherwise(whole, cohort_store, capsys, arguments, sentence):
    assert sentence in refused(capsys, cohort_store, whole, *arguments)


def test_recordings_are_mixed_a_few_at_a_time(whole, cohort_store, tmp_path, capsys):
    mixed = ("--shuffle-recordings", "2")
    assert "--shuffle-recordings was 0, is 2" in refused(capsys, cohort_store, whole, *SMALL, "--resume", *mixed)
    assert call(capsys, cohort_store, tmp_path / "run", *SMALL, "--max-steps", "2", *mixed)[0]["fit"]["steps"] == 2
    options = {"task": "stage", "preset": "tiny", "batch_size": 16}
    recording = np.asarray(ClipStore(cohort_store).recording)
    n_of = {}
    for in_play in (0, 2):
        config = supervise.Config(cohort_store, tmp_path / f"{in_play}", **options, shuffle_recordings=in_play)
        first = next(iter(SupervisedTrainer.prepare(config).sampler))[2]
        n_of[in_play] = len(np.unique(recording[first]))
    assert n_of[2] <= 4 < n_of[0]


def test_a_run_of_train_is_not_resumed(cohort_store, tmp_path, capsys):
    assert train.cli([str(cohort_store), str(tmp_path / "run"), "--preset", "tiny", "--max-steps", "1"]) == 0
    capsys.readouterr()
    assert "holds a run of train" in refused(capsys, cohort_store, tmp_path / "run", *SMALL, "--resume")


@pytest.mark.parametrize("task", ["sdb", "age", "sex"])
def test_the_other_tasks_train(cohort_store, tmp_path, capsys, task):
    options = [*SMALL, "--task", task, "--max-steps", "2", "--class-weights", "balanced"]
    result, _ = call(capsys, cohort_store, tmp_path / "run", *options)
    assert result["task"] == task
    assert (tmp_path / "run" / "results" / task / "result.json").is_file()
    assert result["fit"]["steps"] == 2


def test_balanced_weights_average_to_1_over_the_training_clips(cohort_store, tmp_path):
    config = supervise.Config(cohort_store, tmp_path / "run", "stage", preset="tiny", class_weights="balanced")
    trainer = SupervisedTrainer.prepare(config)
    counts = np.bincount(trainer.column[trainer.clips.train.clips])
    weights = trainer.weights.numpy()
    np.testing.assert_allclose(weights * counts, counts.sum() / len(counts), rtol=1e-5)
    logits = torch.zeros(4, len(counts))
    clips = trainer.clips.train.clips[:4]
    expected = weights[trainer.column[clips]] * np.log(len(counts))
    np.testing.assert_allclose(trainer.losses(logits, clips).numpy(), expected, rtol=1e-5)


def test_draws_of_subjects_are_nested_and_the_validation_stays(planted, tmp_path):
    def subjects(k, replicate=0):
        run = tmp_path / f"{k}-{replicate}"
        config = supervise.Config(planted, run, "stage", preset="tiny", train_subjects=k, replicate=replicate)
        trainer = SupervisedTrainer.prepare(config)
        names = {trainer.store.subjects[s] for s in trainer.clips.train.subject}
        assert names == set(trainer.clips.drawn)
        assert RunDirectory(run).config()["training_subjects"] == list(trainer.clips.drawn)
        return trainer.clips.drawn, trainer.clips.validation.clips.tolist()

    one, validation = subjects(1)
    three, same = subjects(3)
    assert (len(one), len(three)) == (1, 3)
    assert three[:1] == one
    assert validation == same
    store = ClipStore(planted)
    codes, _ = assign_subjects(store.subjects, Split())
    everybody = [s for s, code in zip(store.subjects, codes, strict=True) if code == 0]
    assert three == draw_subjects(everybody, 3)
    assert subjects(3, replicate=1)[0] != three


def test_it_gives_no_embeddings(learnt, planted, tmp_path, capsys):
    assert embed.cli([str(learnt), str(planted), str(tmp_path / "embeddings")]) == 1
    assert "holds a run of supervise" in capsys.readouterr().err


def test_more_subjects_than_there_are_is_a_notice(planted, tmp_path, capsys):
    _, err = call(capsys, planted, tmp_path / "run", *SMALL, "--train-subjects", "99", "--max-steps", "1")
    assert "--train-subjects 99: only" in err


def test_validation_clips_of_a_class_never_trained_are_counted(tmp_path, capsys):
    (tmp_path / "edf").mkdir()
    names = [f"night{i}" for i in range(10)]
    codes, _ = assign_subjects(names, Split())
    for i, (name, code) in enumerate(zip(names, codes, strict=True)):
        stages = ["W", "2", "R", "R"] if code == 1 else ["W", "2", "W", "2"]
        staged_night(tmp_path / "edf" / f"{name}.edf", stages, seed=i)
    assert preprocess.cli([str(tmp_path / "edf"), str(tmp_path / "store"), "--workers", "1"]) == 0
    capsys.readouterr()
    n = 2 * int((codes == 1).sum())
    result, err = call(capsys, tmp_path / "store", tmp_path / "run", *SMALL, "--max-steps", "1")
    assert result["validation"]["n_clips"] == n
    assert f"{n} validation clips of R, which no training clip is, are left out of the validation loss" in err


def test_one_subject_serves_all_sides_and_says_so(tmp_path, capsys):
    (tmp_path / "edf").mkdir()
    staged_night(tmp_path / "edf" / "only.edf", ["W", "2"] * 4, seed=0)
    assert preprocess.cli([str(tmp_path / "edf"), str(tmp_path / "store"), "--workers", "1"]) == 0
    capsys.readouterr()
    result, err = call(capsys, tmp_path / "store", tmp_path / "run", *SMALL)
    assert result["overlap"]
    assert "memorisation" in err
    assert "memorisation" in result["overlap_note"]


def test_unlabelled_and_one_class_stores_are_refused(tmp_path, capsys):
    for name, stages in (("none", ["?"] * 6), ("one", ["W"] * 6)):
        (tmp_path / name).mkdir()
        for i in range(4):
            staged_night(tmp_path / name / f"{i}.edf", stages, seed=i)
        assert preprocess.cli([str(tmp_path / name), str(tmp_path / f"{name}-store"), "--workers", "1"]) == 0
    capsys.readouterr()
    err = refused(capsys, tmp_path / "none-store", tmp_path / "run", *SMALL)
    assert "has a label for --task stage" in err
    assert "--labels" in err
    assert "a classifier needs two classes" in refused(capsys, tmp_path / "one-store", tmp_path / "run", *SMALL)
    assert "the subject's age" in refused(capsys, tmp_path / "one-store", tmp_path / "run", *SMALL, "--task", "age")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--epochs", "0"], "--epochs is 0"),
        (["--batch-size", "1"], "--batch-size is 1"),
        (["--lr", "nan"], "--lr is nan"),
        (["--train-subjects", "-1"], "--train-subjects is -1"),
        (["--shuffle-recordings", "-1"], "--shuffle-recordings is -1"),
        (["--test-share", "0"], "expected a test share above 0"),
        (["--dropout", "1"], "--dropout is 1"),
    ],
)
def test_impossible_options_are_refused_by_name(cohort_store, tmp_path, capsys, arguments, sentence):
    assert sentence in refused(capsys, cohort_store, tmp_path / "run", *SMALL, *arguments)
    assert not (tmp_path / "run").exists()


def test_a_step_that_is_not_finite_is_left_out(cohort_store, tmp_path, capsys, monkeypatch):
    plain = supervised_training.logits_of
    calls = []

    def broken(network, batch, precision):
        calls.append(0)
        return plain(network, batch, precision) * (float("nan") if len(calls) == 2 else 1)

    monkeypatch.setattr(supervised_training, "logits_of", broken)
    result, err = call(capsys, cohort_store, tmp_path / "run", *SMALL, "--max-steps", "4")
    assert result["fit"]["skipped_steps"] == 1
    assert "step 2 is skipped: the loss is nan" in err
    assert [row["step"] for row in metrics(tmp_path / "run") if row["kind"] == "skipped"] == [2]
    tensors, _ = read_checkpoint(tmp_path / "run" / "last.safetensors")
    assert all(bool(t.isfinite().all()) for t in tensors.values())


def test_too_many_of_them_end_the_training(cohort_store, tmp_path, capsys, monkeypatch):
    plain = supervised_training.logits_of
    monkeypatch.setattr(supervised_training, "logits_of", lambda *a: plain(*a) * float("inf"))
    err = refused(capsys, cohort_store, tmp_path / "run", *SMALL, "--skip-limit", "2")
    assert "3 in a row (--skip-limit 2)" in err


def test_the_best_epoch_is_the_one_that_is_tested(learnt, planted):
    rows = [row for row in metrics(learnt) if row["kind"] == "epoch"]
    best = min(rows, key=lambda row: row["validation_loss"])
    record = read_result(learnt / "results" / "stage").record
    assert record["fit"]["best_epoch"] == best["epoch"] + 1
    assert record["fit"]["best_validation_loss"] == best["validation_loss"]
    assert rows[-1]["validation_balanced_accuracy"] > 0.95


def test_the_seed_preset_is_the_published_network_with_an_output_a_class(cohort_store, tmp_path):
    config = supervise.Config(cohort_store, tmp_path / "run", "stage")
    trainer = SupervisedTrainer.prepare(config)
    assert isinstance(trainer.model, EfficientNet1d)
    assert len(trainer.model.state_dict()) == 318
    assert trainer.model.stage1.weight.shape[1] == len(trainer.store.slots)
    assert trainer.model.fc.weight.shape == (5, 1280)
    assert (config.optimiser, config.momentum, config.schedule, config.batch_size) == ("sgd", 0.9, "step", 32)


def test_bfloat16_trains_with_float32_weights(cohort_store, tmp_path, capsys):
    options = [*SMALL, "--max-steps", "2", "--precision", "bfloat16"]
    result, _ = call(capsys, cohort_store, tmp_path / "run", *options)
    assert 0 <= result["macro"]["auroc"]["value"] <= 1
    tensors, _ = read_checkpoint(tmp_path / "run" / "best.safetensors")
    assert {t.dtype for t in tensors.values()} <= {torch.float32, torch.int64}


def test_the_seed_preset_trains_and_tests(planted, tmp_path, capsys):
    options = ["--task", "stage", "--modality", "brain", "--max-steps", "2", "--batch-size", "4", "--bootstraps", "0"]
    result, _ = call(capsys, planted, tmp_path / "run", *options)
    assert result["preset"] == "seed"
    assert result["fit"]["steps"] == 2
    tensors, _ = read_checkpoint(tmp_path / "run" / "best.safetensors")
    assert len(tensors) == 318


def test_every_option_has_a_help_text():
    source = Path(supervise.__file__).read_text()
    for field in dataclasses.fields(supervise.Config):
        position = source.index(f"    {field.name}:")
        assert source[position:].split("\n")[1].strip().startswith('"""'), field.name


def test_scores_leave_no_thread_in_inference_mode(cohort_store):
    """Neither between blocks nor when they are abandoned, as by an error in a notebook, which keeps the generator."""
    store = ClipStore(cohort_store)
    clip_input = ClipInput(store, store.montage, InputConfig(normalise="clip"), "cpu")
    network = build_encoder(clip_input.n_columns, PRESETS["tiny"])
    scores = scored(network, clip_input, blocks_of(np.arange(4)), "float32")
    logits = next(scores)
    assert not torch.is_inference_mode_enabled()
    assert not logits.requires_grad
