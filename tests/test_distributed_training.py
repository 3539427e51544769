"""Training in two processes against one: figures, resumption, what is written by whom, what is refused."""

import itertools
import json
import shutil
import socket

import numpy as np
import pytest
import torch
from training_ranks import LEFT_OUT, NEIGHBOURS, RUNS, SYNCHRONISED
from two_ranks import launch
from unlike_ranks import RUNS as UNLIKE

from sleepfm_fast import preprocess, train
from sleepfm_fast.clips import ClipStore
from sleepfm_fast.rundir import RunDirectory, read_checkpoint
from sleepfm_fast.training.sampler import ClipSampler, shard, shard_sizes

# Of figures and weights, relative and absolute. 2e-7 was seen in weights after 10 steps.
BOUND = 1e-5
# The same after 10 steps, in which rounding may have moved activations across kinks of ReLUs: 1.4e-5 was seen in
# weights and in a loss, in one encoder or two, as the processor has it. Gradients 1 % too large are nine times beyond
# it, batch norms of each rank's clips alone a thousand times.
KINK_BOUND = 1e-4


def metrics(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def tensors(run, prefix=""):
    return {k: v for k, v in read_checkpoint(run / "last.safetensors")[0].items() if k.startswith(prefix)}


def assert_close_but_for_kinks(ours, single):
    assert ours.keys() == single.keys()
    for name, value in single.items():
        torch.testing.assert_close(ours[name], value, rtol=KINK_BOUND, atol=KINK_BOUND, msg=name)


def assert_same_bits(one, other):
    a, b = tensors(one), tensors(other)
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


@pytest.fixture(scope="module")
def two(cohort_store, tmp_path_factory):
    """Folder of the trainings of two processes."""
    folder = tmp_path_factory.mktemp("two")
    launch("training_ranks.py", RUNS, cohort_store, folder, timeout_s=400)
    return folder


@pytest.fixture(scope="module")
def one(cohort_store, tmp_path_factory):
    """The run ``whole`` of one process."""
    run = tmp_path_factory.mktemp("one") / "whole"
    assert train.cli([str(cohort_store), str(run), *SYNCHRONISED, "--max-steps", "10"]) == 0
    return run


def test_two_ranks_train_as_one_does(two, one):
    # Same batches, weights and statistics of batch norm; sums are taken in another order, in float32.
    ours, theirs = metrics(two / "whole"), metrics(one)
    assert [row["kind"] for row in ours] == [row["kind"] for row in theirs] == ["step", "epoch"]
    for a, b in zip(ours, theirs, strict=True):
        for name in ("loss", "temperature", "training_loss", "validation_loss"):
            if name in b:
                assert a[name] == pytest.approx(b[name], rel=KINK_BOUND), name
    assert_close_but_for_kinks(tensors(two / "whole", "model/"), tensors(one, "model/"))
    assert RunDirectory(two / "whole").config()["ranks"] == 2
    assert (two / "whole" / "amplitudes.safetensors").read_bytes() == (one / "amplitudes.safetensors").read_bytes()


@pytest.mark.parametrize(("name", "options"), [("neighbours", NEIGHBOURS), ("left-out", LEFT_OUT)])
def test_two_ranks_share_pairs_of_neighbours_and_modality_dropout(two, cohort_store, tmp_path, name, options):
    assert train.cli([str(cohort_store), str(tmp_path / name), *options]) == 0
    ours, theirs = metrics(two / name)[-1], metrics(tmp_path / name)[-1]
    for key in ("training_loss", "validation_loss"):
        assert ours[key] == pytest.approx(theirs[key], rel=BOUND), key


def test_resuming_with_the_same_ranks_gives_the_same_bits(two):
    assert_same_bits(two / "whole", two / "resumed")
    assert RunDirectory(two / "resumed").config()["changes"] == [
        {"step": 4, "option": "--max-steps", "was": 4, "is": 10}
    ]
    assert RunDirectory(two / "resumed").config()["config"]["max_steps"] == 10


def test_resuming_with_dropout_parts_and_local_batch_norm_gives_the_same_bits(two):
    assert_same_bits(two / "parts", two / "parts-resumed")
    state = tensors(two / "parts", "rng/")
    assert set(state) == {"rng/cpu", "rng/cpu/1"}
    assert not torch.equal(state["rng/cpu"], state["rng/cpu/1"])  # ranks drop out other clips' features


def test_one_process_goes_on_where_two_stopped(two, one, cohort_store, capsys):
    run = two / "stopped"
    assert train.cli([str(cohort_store), str(run), *SYNCHRONISED, "--max-steps", "10", "--resume"]) == 0
    assert "the number of processes is 1, was 2" in capsys.readouterr().err
    changes = RunDirectory(run).config()["changes"]
    assert [(c["option"], c["was"], c["is"]) for c in changes] == [
        ("--max-steps", 4, 10), ("the number of processes", 2, 1)
    ]  # fmt: skip
    ours, theirs = metrics(run)[-1], metrics(one)[-1]
    assert ours["validation_loss"] == pytest.approx(theirs["validation_loss"], rel=KINK_BOUND)
    assert_close_but_for_kinks(tensors(run, "model/"), tensors(one, "model/"))


def test_moments_are_kept_in_single_precision(two):
    moments = tensors(two / "parts", "optimiser/")
    assert moments
    assert {m.dtype for m in moments.values()} == {torch.float32}


def test_the_first_rank_alone_writes_and_speaks(two):
    n_good = len(RUNS) - 2
    for rank in range(2):
        assert json.loads((two / f"status-{rank}.json").read_text()) == [0] * n_good + [1, 1]
    for number in range(n_good):
        assert len((two / f"{number}-0.out").read_text().splitlines()) == 1
        assert json.loads((two / f"{number}-0.out").read_text())["ranks"] == 2
        assert (two / f"{number}-1.out").read_text() == ""
        assert (two / f"{number}-1.err").read_text() == ""
    files = {path.name for path in (two / "whole").iterdir()}
    assert files == {"config.json", "metrics.jsonl", "last.safetensors", "best.safetensors", "amplitudes.safetensors"}


def test_failures_are_said_by_every_rank_alike(two):
    number = len(RUNS) - 2
    for rank, who in enumerate(("error: ", "process 1: error: ")):
        assert f"{who}{two / 'whole'} exists already" in (two / f"{number}-{rank}.err").read_text()
        diverged = (two / f"{number + 1}-{rank}.err").read_text()
        assert f"{who}the loss is nan; not finite: the embeddings of" in diverged
        assert "makes 3 in a row (--skip-limit 2)" in diverged
    rows = [row for row in metrics(two / "diverged") if row["kind"] == "skipped"]
    assert [row["step"] for row in rows] == [rows[0]["step"] + k for k in range(3)]
    assert all(row["recordings"] and len(row["clips"]) == 16 for row in rows)


def test_processes_that_differ_or_are_lost_are_told(cohort, cohort_store, tmp_path):
    nights = tmp_path / "nights"
    shutil.copytree(cohort, nights)
    min(nights.glob("*.edf")).unlink()
    assert preprocess.cli([str(nights), str(tmp_path / "other-nights-store"), "--workers", "1"]) == 0
    shutil.copytree(cohort_store, tmp_path / "lost-store")
    missing = min((tmp_path / "lost-store" / "recordings").glob("*.bin"))
    missing.unlink()
    launch("unlike_ranks.py", UNLIKE, cohort_store, tmp_path, timeout_s=200)
    said = [[(tmp_path / f"{number}-{rank}.err").read_text() for rank in range(2)] for number in range(len(UNLIKE))]
    indices = [ClipStore(store).digest for store in (tmp_path / "other-nights-store", cohort_store)]
    for number, unlike in enumerate((f"the index {indices[0]} instead of {indices[1]}", "--seed 7 instead of 0")):
        for rank, who in enumerate(("\nerror: ", "process 1: error: ")):
            assert f"{who}process 1 (on {socket.gethostname()}) does not train what process 0" in said[number][rank]
            assert f"does: it has {unlike}. Give all processes the same options" in said[number][rank]
    assert f"process 1: error: {missing} is damaged: it is missing." in said[2][1]
    assert "\nerror: the connection to another process of this training was lost: that process has failed" in said[2][0]
    assert not [tmp_path / name for name, _ in UNLIKE if (tmp_path / name).exists()]
    assert not list(tmp_path.glob(".*.claim"))


# ---- the order of clips --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [0, 1, 5, 16, 17])
@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_shards_are_the_batch(n, ranks):
    clips = np.random.default_rng(0).permutation(n)
    parts = [shard(clips, rank, ranks) for rank in range(ranks)]
    np.testing.assert_array_equal(np.concatenate(parts), clips)
    assert tuple(len(part) for part in parts) == shard_sizes(n, ranks)
    assert max(shard_sizes(n, ranks)) - min(shard_sizes(n, ranks)) <= 1


def test_a_run_of_changing_ranks_sees_every_clip_once_an_epoch(cohort_store):
    clips = np.arange(len(ClipStore(cohort_store)))
    seen = []
    n_batches = len(clips) // 16
    place = 0
    for ranks, n in ((2, 3), (3, 2), (1, n_batches - 5)):
        sampler = ClipSampler(clips, 16, seed=5, epoch=0, position=place)
        for _, _, batch in itertools.islice(sampler, n):
            seen.extend(np.concatenate([shard(batch, rank, ranks) for rank in range(ranks)]).tolist())
        place += n
    n_whole = n_batches * 16
    assert seen == ClipSampler(clips, 16, seed=5).order(0)[:n_whole].tolist()
    assert len(set(seen)) == n_whole


# ---- in one process ------------------------------------------------------------------------------------------------


def test_a_step_that_is_not_finite_is_skipped_and_leaves_no_trace(cohort_store, tmp_path, monkeypatch, capsys):
    from sleepfm_fast.batches import ClipInput

    filter_, calls = ClipInput.filter, []

    def poison(self, windows):
        batch = filter_(self, windows)
        calls.append(len(batch.x["brain"]))
        if len(calls) == 3:
            batch.x["brain"][2, :, 100] = torch.inf
        return batch

    monkeypatch.setattr(ClipInput, "filter", poison)
    run = tmp_path / "run"
    arguments = ["--preset", "tiny", "--batch-size", "16", "--max-steps", "5", "--threads", "2"]
    assert train.cli([str(cohort_store), str(run), *arguments]) == 0
    captured = capsys.readouterr()
    assert "step 3 is skipped: the loss is nan; not finite: the input of brain" in captured.err
    result = json.loads(captured.out)
    assert (result["steps"], result["skipped_steps"]) == (5, 1)
    assert all(values.isfinite().all() for values in tensors(run, "model/").values())
    (row,) = [row for row in metrics(run) if row["kind"] == "skipped"]
    assert row["step"] == 3
    counts = [v for k, v in tensors(run, "model/").items() if k.endswith("num_batches_tracked")]
    assert {int(n) for n in counts} == {4}
    assert read_checkpoint(run / "last.safetensors")[1]["skipped"] == 1


def test_epochs_may_be_raised_and_the_change_is_recorded(cohort_store, tmp_path, capsys):
    run, arguments = tmp_path / "run", ["--preset", "tiny", "--test-share", "0.6", "--patience", "0", "--threads", "2"]
    assert train.cli([str(cohort_store), str(run), *arguments, "--epochs", "1"]) == 0
    assert train.cli([str(cohort_store), str(run), *arguments, "--epochs", "2", "--resume"]) == 0
    assert "--epochs is 2, was 1" in capsys.readouterr().err
    assert [row["epoch"] for row in metrics(run) if row["kind"] == "epoch"] == [0, 1]
    whole = tmp_path / "whole"
    assert train.cli([str(cohort_store), str(whole), *arguments, "--epochs", "2"]) == 0
    assert_same_bits(run, whole)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--micro-batch", "1"], "--micro-batch is 1"),
        (["--dropout", "1"], "--dropout is 1"),
        (["--batch-size", "3", "--micro-batch", "2"], "fewer than two clips to a part"),
    ],
)
def test_parts_too_small_for_batch_norm_are_refused(cohort_store, tmp_path, capsys, arguments, sentence):
    assert train.cli([str(cohort_store), str(tmp_path / "run"), "--preset", "tiny", *arguments]) == 1
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
