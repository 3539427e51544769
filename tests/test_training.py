import ast
import dataclasses
import itertools
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from called import last_json
from foreign_claims import foreign_claim
from forked_commands import start

from sleepfm_fast import reference, train
from sleepfm_fast.batches import ClipInput
from sleepfm_fast.rundir import RunDirectory, read_checkpoint, write_checkpoint
from sleepfm_fast.training import contrastive, loop
from sleepfm_fast.training.contrastive import Trainer
from sleepfm_fast.training.neighbours import clips_of
from sleepfm_fast.training.pace import Pace
from sleepfm_fast.training.schedule import learning_rate
from sleepfm_fast.training.settings import resolve

ROOT = Path(__file__).resolve().parents[1]
# Early stopping off; checkpoints within the epoch, so that a resume starts in the middle of one.
SMALL = [
    "--preset", "tiny", "--batch-size", "16", "--epochs", "3", "--optimiser", "adamw", "--checkpoint-steps", "3",
    "--patience", "0", "--threads", "2",
]  # fmt: skip


MIXED = {"preset": "tiny", "batch_size": 16, "shuffle_recordings": 2}


def metrics(run, *, drop=("clips_per_s",)):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in drop} for row in rows]


@pytest.fixture(scope="module")
def trained(cohort_store, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "whole"
    assert train.cli([str(cohort_store), str(run), *SMALL]) == 0
    return run


def test_training_lowers_the_validation_loss(trained):
    losses = [row["validation_loss"] for row in metrics(trained) if row["kind"] == "epoch"]
    assert len(losses) == 3
    assert losses[-1] < losses[0]


def test_the_best_checkpoint_is_the_one_of_the_best_validation_loss(trained):
    epochs = [row for row in metrics(trained) if row["kind"] == "epoch"]
    best = min(epochs, key=lambda row: row["validation_loss"])
    _, state = read_checkpoint(trained / "best.safetensors")
    assert state["best_epoch"] == best["epoch"]
    assert state["best_loss"] == best["validation_loss"]


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(trained, cohort_store, tmp_path):
    assert train.cli([str(cohort_store), str(tmp_path / "same"), *SMALL]) == 0
    assert_same_run(trained, tmp_path / "same")
    assert train.cli([str(cohort_store), str(tmp_path / "other"), *SMALL, "--seed", "1", "--max-steps", "4"]) == 0
    assert metrics(tmp_path / "other")[0] != metrics(trained)[0]


def assert_same_run(one, other):
    a, state_a = read_checkpoint(one / "last.safetensors")
    b, state_b = read_checkpoint(other / "last.safetensors")
    assert a.keys() == b.keys()
    different = [name for name in a if not torch.equal(a[name], b[name])]
    assert different == []
    assert {k: v for k, v in state_a.items() if k != "metrics_bytes"} == {
        k: v for k, v in state_b.items() if k != "metrics_bytes"
    }
    assert metrics(one) == metrics(other)


@pytest.mark.parametrize("checkpoint", [0, 1, 2], ids=["at-once", "after-the-first-checkpoint", "after-an-epoch"])
def test_kill_and_resume_reproduce_the_uninterrupted_run_bit_for_bit(trained, cohort_store, tmp_path, checkpoint):
    run = tmp_path / "killed"
    arguments = [str(cohort_store), str(run), *SMALL]
    process = start("sleepfm_fast.train", arguments, tmp_path / "killed.log")
    wanted = [run / "config.json", run / "last.safetensors", run / "best.safetensors"][checkpoint]
    deadline = time.monotonic() + 120
    while not wanted.exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    process.kill()
    process.join()
    assert wanted.exists(), (tmp_path / "killed.log").read_text()
    done = len(metrics(run)) if (run / "metrics.jsonl").exists() else 0
    assert done < len(metrics(trained)), "the run had ended before it was killed"
    resumed = start("sleepfm_fast.train", [*arguments, "--resume"], tmp_path / "resumed.log")
    resumed.join()
    assert resumed.exitcode == 0, (tmp_path / "resumed.log").read_text()
    assert_same_run(trained, run)


@pytest.mark.parametrize("taken", [True, False], ids=["over", "away"])
def test_a_run_that_was_taken_over_is_left_to_the_other(trained, cohort_store, tmp_path, monkeypatch, capsys, taken):
    """As by a job on another machine, while this process was suspended for longer than its claim holds."""
    run, claim, kept = tmp_path / "run", tmp_path / ".run.claim", {}

    def write_and_lose(path, *content):
        write_checkpoint(path, *content)
        if not kept and path.name == "last.safetensors":
            kept.update((file.name, file.read_bytes()) for file in run.iterdir())
            claim.unlink()
            if taken:
                foreign_claim(claim)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "write_checkpoint", write_and_lose)
        assert train.cli([str(cohort_store), str(run), *SMALL]) == 1
    by = "process 1 on elsewhere" if taken else "nobody that still runs"
    sentence = f"error: {claim}, the claim of this process on the run, was removed or taken over (by {by}), as while"
    assert sentence in capsys.readouterr().err
    assert {file.name: file.read_bytes() for file in run.iterdir()} == kept
    assert claim.exists() is taken
    claim.unlink(missing_ok=True)
    assert train.cli([str(cohort_store), str(run), *SMALL, "--resume"]) == 0
    assert_same_run(trained, run)


def test_the_pace_is_that_of_the_last_ten_steps_together():
    pace = Pace()
    assert pace.clips_per_s is None
    for seconds in (60.0, *[0.1, 0.3] * 5):  # the first step warms up
        pace.add(32, seconds)
    # 320 clips in 2 s; the mean of 320 and 107 clips/s would be a third more.
    assert pace.clips_per_s == 160.0


@pytest.mark.parametrize(
    ("compat", "advice"),
    [
        ("none", "give the same command with --resume and a larger --epochs."),
        ("seed", "--compat seed fixes the epochs; "),
    ],
)
def test_what_a_finished_run_advises_is_possible(compat, advice):
    options = SimpleNamespace(epochs=2, max_steps=None, patience=0, compat=compat)
    progress = SimpleNamespace(step=6, stopped_early=False)
    sampler = SimpleNamespace(batches_per_epoch=3)
    run = SimpleNamespace(
        run=SimpleNamespace(path="RUN"), options=options, progress=progress, sampler=sampler, total_steps=6
    )
    assert advice in loop.TrainingLoop.finished(run)


@pytest.mark.parametrize("more", [["--resume"], [], ["--threads", "1"]], ids=["resumed", "again", "by other threads"])
def test_a_finished_run_resumes_to_nothing_more(trained, cohort_store, capsys, more):
    before = {path.name: path.read_bytes() for path in trained.iterdir()}
    assert train.cli([str(cohort_store), str(trained), *SMALL, *more]) == 0
    assert {path.name: path.read_bytes() for path in trained.iterdir()} == before
    out, err = capsys.readouterr()
    assert last_json(out)["epochs"] == 3
    assert last_json(out)["clips_per_s"] is None, "no step was made, at no speed"
    assert f"{trained} is finished: it has trained" in err
    assert "all that --epochs 3 asks for" in err
    assert "with --resume and a larger --epochs." in err
    assert "epoch 4" not in err


def test_a_run_that_is_not_finished_or_was_made_otherwise_is_refused(trained, cohort_store, tmp_path, capsys):
    for options in ([*SMALL, "--seed", "5"], [*SMALL, "--epochs", "4"], [*SMALL, "--max-steps", "1"]):
        assert train.cli([str(cohort_store), str(trained), *options]) == 1
        assert f"{trained} exists already. To continue its run, add --resume" in capsys.readouterr().err
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    (run / "last.safetensors").unlink()  # as after a kill before the first checkpoint
    assert train.cli([str(cohort_store), str(run), *SMALL]) == 1
    assert f"{run} exists already" in capsys.readouterr().err


def test_the_option_that_ended_a_run_is_the_one_to_raise(cohort_store, tmp_path, capsys):
    arguments = [str(cohort_store), str(tmp_path / "run"), *SMALL, "--resume", "--max-steps"]
    assert train.cli([*arguments, "2"]) == 0
    assert train.cli([*arguments, "2"]) == 0
    assert "trained 2 steps, all that --max-steps 2 asks for" in capsys.readouterr().err
    assert train.cli([*arguments, "3"]) == 0
    assert "resuming" in capsys.readouterr().err


def test_nothing_to_resume_is_said(cohort_store, tmp_path, capsys):
    arguments = [str(cohort_store), str(tmp_path / "misspelt"), *SMALL, "--max-steps", "2", "--resume"]
    assert train.cli(arguments) == 0
    assert f"there is no run in {tmp_path / 'misspelt'} to continue; the training starts" in capsys.readouterr().err
    assert train.cli(arguments) == 0
    assert "there is no run" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([*SMALL, "--lr", "0.5"], "add --resume"),
        ([*SMALL, "--resume", "--lr", "0.5"], "--lr was 0.001, is 0.5"),
        ([*SMALL, "--resume", "--batch-size", "8"], "--batch-size was 16, is 8"),
        ([*SMALL, "--resume", "--shuffle-recordings", "2"], "--shuffle-recordings was 0, is 2"),
    ],
)
def test_a_run_is_neither_overwritten_nor_resumed_otherwise(trained, cohort_store, capsys, arguments, sentence):
    assert train.cli([str(cohort_store), str(trained), *arguments]) == 1
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize("modalities", [(), ("brain",)])
def test_recordings_are_mixed_a_few_at_a_time(cohort_store, tmp_path, capsys, modalities):
    arguments = [*SMALL, "--max-steps", "2", "--shuffle-recordings", "2"]
    arguments += ["--modalities", *modalities] if modalities else []
    assert train.cli([str(cohort_store), str(tmp_path / "run"), *arguments]) == 0
    trainer = Trainer.prepare(resolve(train.Config(cohort_store, tmp_path / "new", **MIXED, modalities=modalities)))
    store = trainer.store
    first = clips_of(next(iter(trainer.sampler))[2])
    assert len(np.unique(np.asarray(store.recording)[first])) <= 4
    plain = Trainer.prepare(resolve(train.Config(cohort_store, tmp_path / "plain", preset="tiny", batch_size=16)))
    assert len(np.unique(np.asarray(store.recording)[next(iter(plain.sampler))[2]])) > 4


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--epochs", "0"], "--epochs is 0"),
        (["--lr", "-1"], "--lr is -1"),
        (["--test-share", "0.9", "--validation-share", "0.1"], "leave no subjects"),
        (["--log-temperature", "9"], "--log-temperature is 9"),
        (["--shuffle-recordings", "-1"], "--shuffle-recordings is -1"),
    ],
)
def test_impossible_options_are_refused_by_name(cohort_store, tmp_path, capsys, arguments, sentence):
    assert train.cli([str(cohort_store), str(tmp_path / "run"), *arguments]) == 1
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_cuda_that_is_not_there_is_refused(cohort_store, tmp_path, capsys):
    assert train.cli([str(cohort_store), str(tmp_path / "run"), "--device", "cuda"]) == 1
    assert "torch sees no CUDA device" in capsys.readouterr().err


def test_wrong_usage_exits_with_2(capsys):
    assert train.cli(["--no-such-option"]) == 2
    assert train.cli(["a", "b", "c"]) == 2


def test_options_of_a_training_without_a_store_are_refused(capsys):
    assert train.cli(["--epochs", "3"]) == 1
    assert "without a STORE" in capsys.readouterr().err


def test_sgd_with_steps_is_the_default():
    config = resolve(train.Config())
    assert (config.preset, config.optimiser, config.schedule) == ("seed", "sgd", "step")
    assert (config.lr, config.step_epochs, config.batch_size, config.epochs) == (1e-3, 5, 32, 20)


def test_early_stopping(cohort_store, tmp_path, capsys):
    arguments = [*SMALL, "--patience", "1", "--epochs", "30", "--lr", "1e-12"]
    assert train.cli([str(cohort_store), str(tmp_path / "run"), *arguments]) == 0
    result = last_json(capsys.readouterr().out)
    assert result["stopped_early"]
    assert result["epochs"] < 30


def with_validation_losses(monkeypatch, losses):
    """Have the epochs' validations find these losses, whatever the model."""
    left = iter(losses)
    monkeypatch.setattr(
        contrastive, "validate", lambda *a, **k: {"validation_loss": next(left), "validation_top1": 0.5}
    )


def test_patience_counts_epochs_since_the_best_and_a_tie_is_no_better(cohort_store, tmp_path, capsys, monkeypatch):
    with_validation_losses(monkeypatch, [3.0, 2.0, 2.0, 1.5, 1.5, 1.6, 0.1])
    run = tmp_path / "run"
    assert train.cli([str(cohort_store), str(run), *SMALL, "--patience", "2", "--epochs", "9"]) == 0
    assert last_json(capsys.readouterr().out)["stopped_early"]
    rows = [row for row in metrics(run) if row["kind"] == "epoch"]
    assert [row["epoch"] for row in rows] == [0, 1, 2, 3, 4, 5]
    _, best = read_checkpoint(run / "best.safetensors")
    assert (best["best_epoch"], best["best_loss"], best["step"]) == (3, 1.5, rows[3]["step"])


def test_a_training_that_diverges_ends_and_keeps_what_it_had(cohort_store, tmp_path, capsys, monkeypatch):
    with_validation_losses(monkeypatch, [3.0, float("nan")])
    run = tmp_path / "run"
    assert train.cli([str(cohort_store), str(run), *SMALL]) == 1
    assert "the validation loss is nan after step" in capsys.readouterr().err
    for name in ("best", "last"):
        assert read_checkpoint(run / f"{name}.safetensors")[1]["best_loss"] == 3.0


def test_rows_hold_the_rate_of_their_step_and_the_mean_of_the_steps_taken(cohort_store, tmp_path, monkeypatch):
    filter_, calls = ClipInput.filter, []

    def poison(self, windows):
        batch = filter_(self, windows)
        calls.append(0)
        if len(calls) in (1, 3):
            next(iter(batch.x.values()))[0, :, 100] = torch.nan
        return batch

    monkeypatch.setattr(loop, "LOG_STEPS", 1)
    monkeypatch.setattr(ClipInput, "filter", poison)
    monkeypatch.setattr(contrastive, "validate", lambda *a, **k: {"validation_loss": 1.0, "validation_top1": 0.5})
    run = tmp_path / "run"
    # Two steps in all are skipped, and never two in a row.
    arguments = [*SMALL, "--epochs", "2", "--skip-limit", "1", "--schedule", "cosine"]
    assert train.cli([str(cohort_store), str(run), *arguments]) == 0
    rows = metrics(run)
    assert [row["step"] for row in rows if row["kind"] == "skipped"] == [1, 3]
    steps = [row for row in rows if row["kind"] == "step"]
    epochs = [row for row in rows if row["kind"] == "epoch"]
    per_epoch, total = epochs[0]["step"], epochs[1]["step"]
    assert [row["step"] for row in steps] == list(range(1, total + 1))
    assert [row["epoch"] for row in steps] == [k // per_epoch for k in range(total)]
    config = resolve(train.Config(schedule="cosine", optimiser="adamw"))
    assert [row["lr"] for row in steps] == [learning_rate(config, k, per_epoch, total) for k in range(total)]
    for epoch in epochs:
        taken = [row["loss"] for row in steps if row["epoch"] == epoch["epoch"] and row["step"] not in (1, 3)]
        assert epoch["training_loss"] == pytest.approx(np.mean(taken))
    skipped = [row for row in rows if row["kind"] == "skipped"]
    assert all(len(row["clips"]) == 16 and row["recordings"] for row in skipped)


def test_a_resumed_run_that_had_stopped_early_stays_stopped(cohort_store, tmp_path, capsys):
    arguments = [str(cohort_store), str(tmp_path / "run"), *SMALL, "--patience", "1", "--epochs", "30", "--lr", "1e-12"]
    assert train.cli(arguments) == 0
    epochs = last_json(capsys.readouterr().out)["epochs"]
    assert train.cli([*arguments, "--resume"]) == 0
    out, err = capsys.readouterr()
    assert last_json(out)["epochs"] == epochs
    assert "is finished: it stopped early" in err
    assert "another folder with a larger --patience" in err


def test_pairwise_and_seed_preset_train(cohort_store, tmp_path):
    arguments = ["--preset", "seed", "--mode", "pairwise", "--max-steps", "2", "--batch-size", "4"]
    run = tmp_path / "run"
    assert train.cli([str(cohort_store), str(run), *arguments, "--validation-block", "8"]) == 0
    tensors, _ = read_checkpoint(run / "best.safetensors")
    names = {k.split("/", 1)[1] for k in tensors if k.startswith("model/")}
    assert sum(name.startswith("encoders.brain.") for name in names) == 318


def test_config_json_holds_what_embed_needs(trained):
    config = RunDirectory(trained).config()
    assert set(config) >= {"config", "model", "montage", "input", "split", "store_digest"}
    assert config["config"]["batch_size"] == 16


def test_help_does_not_import_torch():
    code = (
        "import sys\nfrom sleepfm_fast import train\n"
        "status = train.cli(['--help'])\nassert status == 0\nassert 'torch' not in sys.modules, 'torch was imported'"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "STORE" in result.stdout


def test_every_option_has_a_help_text():
    module = ast.parse(Path(train.__file__).read_text())
    (config,) = [node for node in module.body if isinstance(node, ast.ClassDef) and node.name == "Config"]
    described = {
        field.target.id
        for field, after in itertools.pairwise(config.body)
        if isinstance(field, ast.AnnAssign) and isinstance(after, ast.Expr) and isinstance(after.value.value, str)
    }
    assert described == {field.name for field in dataclasses.fields(train.Config)}


def test_order_of_clips_is_not_touched_by_the_device_or_threads(cohort_store, tmp_path):
    # One thread and two give the same first loss: kernels partition their work independently of the thread count.
    for threads in ("1", "2"):
        arguments = ["--preset", "tiny", "--max-steps", "10", "--batch-size", "8", "--threads", threads]
        assert train.cli([str(cohort_store), str(tmp_path / threads), *arguments]) == 0
    one, two = metrics(tmp_path / "1")[0], metrics(tmp_path / "2")[0]
    np.testing.assert_allclose(one["loss"], two["loss"], rtol=1e-3)


@pytest.mark.parametrize(("mode", "directions"), [("leave_one_out", "both"), ("pairwise", "row")])
def test_the_validation_loss_is_the_mean_over_the_terms_of_all_blocks(planted, tmp_path, mode, directions):
    options = {"mode": mode, "directions": directions, "validation_share": 0.4, "validation_block": 24}
    config = train.Config(planted, tmp_path / "run", preset="tiny", batch_size=8, log_temperature=1.5, **options)
    trainer = contrastive.Trainer.prepare(resolve(config))
    assert len(trainer.blocks) > 1
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    found = trainer.validation()
    assert trainer.model.training
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.state_dict().items())
    trainer.model.eval()
    total = correct = terms = 0.0
    sizes = set()
    for _, batch in trainer.input.batches(trainer.blocks, lambda block: block):
        with torch.no_grad():
            embeddings, mask = trainer.model(batch.x, batch.present)
            loss, statistics = reference.contrastive_loss(
                embeddings.double(), trainer.model.log_temperature.double(), mode, mask=mask, directions=directions
            )
        n = 2 * int(statistics.n_valid.sum())
        sizes.add(n)
        total, correct, terms = total + float(loss) * n, correct + int(statistics.correct.sum()), terms + n
    assert found["validation_loss"] == pytest.approx(total / terms, rel=1e-5)
    assert found["validation_top1"] == pytest.approx(correct / terms, abs=1.5 / terms)
    assert 0 < correct < terms
    assert len(sizes) > 1, "some nights have no ECG, or no flow"
