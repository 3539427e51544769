"""The supervised baseline in two processes against one: figures, scores, resumption, who writes, what is refused."""

import json

import numpy as np
import pytest
import torch
from supervised_ranks import N_REFUSED, RUNS, SYNCHRONISED
from two_ranks import launch

from sleepfm_fast import supervise
from sleepfm_fast.results import read_result
from sleepfm_fast.rundir import RunDirectory, read_checkpoint

# Of figures and weights after 10 steps, relative and absolute, as in tests/test_distributed_training.py.
BOUND = 1e-5


@pytest.fixture(scope="module")
def two(cohort_store, tmp_path_factory):
    """Folder of the trainings of two processes."""
    folder = tmp_path_factory.mktemp("two")
    launch("supervised_ranks.py", RUNS, cohort_store, folder, timeout_s=200)
    return folder


@pytest.fixture(scope="module")
def one(cohort_store, tmp_path_factory):
    """The run ``whole`` of one process."""
    run = tmp_path_factory.mktemp("one") / "whole"
    assert supervise.cli([str(cohort_store), str(run), *SYNCHRONISED, "--max-steps", "10"]) == 0
    return run


def metrics(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def tensors(run, name="last"):
    return read_checkpoint(run / f"{name}.safetensors")[0]


def assert_equal_to_rounding(run, single):
    ours, theirs = metrics(run), metrics(single)
    last = slice(-min(2, len(theirs)), None)
    assert [(row["kind"], row["step"]) for row in ours[last]] == [(row["kind"], row["step"]) for row in theirs[last]]
    for name in ("validation_loss", "validation_accuracy"):
        assert ours[-1][name] == pytest.approx(theirs[-1][name], rel=BOUND), name
    for kind in ("last", "best"):
        found, expected = tensors(run, kind), tensors(single, kind)
        names = [name for name in expected if name.startswith("model/")]
        assert names
        for name in names:
            # Where a gradient is nearly zero, AdamW's steps follow its rounding.
            torch.testing.assert_close(found[name], expected[name], rtol=BOUND, atol=3 * BOUND, msg=name)
    a, b = (read_result(folder / "results" / "stage") for folder in (run, single))
    np.testing.assert_array_equal(a.array("clip"), b.array("clip"))
    np.testing.assert_allclose(a.array("score"), b.array("score"), rtol=0, atol=1e-4)
    assert a.record["accuracy"] == b.record["accuracy"]


def test_two_ranks_with_synchronised_batch_norm_train_and_test_as_one_does(two, one):
    assert_equal_to_rounding(two / "whole", one)
    ours, theirs = metrics(two / "whole"), metrics(one)
    assert ours[0]["loss"] == pytest.approx(theirs[0]["loss"], rel=BOUND)
    assert ours[-1]["training_loss"] == pytest.approx(theirs[-1]["training_loss"], rel=BOUND)
    assert RunDirectory(two / "whole").config()["ranks"] == 2
    assert read_result(two / "whole" / "results" / "stage").record["fit"]["ranks"] == 2


def test_one_process_goes_on_where_two_stopped(two, cohort_store, tmp_path, capsys):
    # For one step: with torch 2.11 rounding moves an activation across the kink of a ReLU, and ten steps end apart.
    run, single = two / "copy", tmp_path / "single"
    assert supervise.cli([str(cohort_store), str(single), *SYNCHRONISED, "--max-steps", "5"]) == 0
    capsys.readouterr()
    assert supervise.cli([str(cohort_store), str(run), *SYNCHRONISED, "--max-steps", "5", "--resume"]) == 0
    assert "the number of processes is 1, was 2" in capsys.readouterr().err
    assert [(c["option"], c["was"], c["is"]) for c in RunDirectory(run).config()["changes"]] == [
        ("--max-steps", 4, 5), ("the number of processes", 2, 1)
    ]  # fmt: skip
    assert tensors(run)["model/fc.weight"].equal(tensors(two / "stopped")["model/fc.weight"]) is False
    assert_equal_to_rounding(run, single)


def test_two_ranks_with_local_batch_norm_resume_bit_for_bit(two):
    whole, resumed = tensors(two / "local"), tensors(two / "resumed")
    assert {"rng/cpu", "rng/cpu/1"} <= whole.keys() == resumed.keys()
    assert not torch.equal(whole["rng/cpu"], whole["rng/cpu/1"])  # ranks drop out other clips' features
    assert [name for name in whole if not torch.equal(whole[name], resumed[name])] == []
    a, b = (read_result(two / name / "results" / "stage").array("score") for name in ("local", "resumed"))
    np.testing.assert_array_equal(a, b)


def test_the_first_rank_alone_writes_and_speaks(two):
    n_good = len(RUNS) - N_REFUSED
    for rank in range(2):
        assert json.loads((two / f"status-{rank}.json").read_text()) == [0] * n_good + [1] * N_REFUSED
    for number in range(n_good):
        assert json.loads((two / f"{number}-0.out").read_text())["task"] == "stage"
        assert "2 processes of 8 clips" in (two / f"{number}-0.err").read_text()
        assert (two / f"{number}-1.out").read_text() == ""
        assert (two / f"{number}-1.err").read_text() == ""
    files = {path.name for path in (two / "whole").iterdir()}
    weights = {"last.safetensors", "best.safetensors", "amplitudes.safetensors"}
    assert files == {"config.json", "metrics.jsonl", *weights, "results"}


def test_refusals_and_failures_are_said_by_every_rank_alike(two):
    exists, few, diverged = range(len(RUNS) - N_REFUSED, len(RUNS))
    for rank, who in enumerate(("error: ", "process 1: error: ")):
        said = {number: (two / f"{number}-{rank}.err").read_text() for number in (exists, few, diverged)}
        assert f"{who}{two / 'whole'} exists already" in said[exists]
        assert f"{who}a batch of 3 clips over 2 processes leaves fewer than two clips to one" in said[few]
        assert "makes 3 in a row (--skip-limit 2)" in said[diverged]
    assert not (two / "few").exists()
    rows = [row for row in metrics(two / "diverged") if row["kind"] == "skipped"]
    assert all(len(row["clips"]) == 15 for row in rows)
    assert len(rows) >= 2
