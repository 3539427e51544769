"""Commands given again: what they have finished is said and left as it is; what would differ is refused by name."""

from __future__ import annotations

import importlib
import json
import shutil

import numpy as np
import pytest
from synthetic_embeddings import columns_of, write_folder

from sleepfm_fast import compare, few_shot, predict, probe, retrieve, transfer
from sleepfm_fast.embeddings import Embeddings
from sleepfm_fast.evaluation import embedding_writer
from sleepfm_fast.storage.standing import difference

SPLIT_OF = np.array([0] * 6 + [1] + [2] * 4)
WEIGHTS = {"weights": {"sha256": "a"}}


def planted(path, *, seed=0, **more):
    rng = np.random.default_rng(seed)
    subject = np.repeat(np.arange(len(SPLIT_OF)), 20)
    stage = rng.integers(0, 5, subject.size)
    x = rng.standard_normal((subject.size, 3, 12))
    x[np.arange(subject.size), :, stage] += 2.0
    columns = columns_of(subject, SPLIT_OF[subject], stage=stage)
    return write_folder(path, x, columns, presets=WEIGHTS, **more)


def change_ages(folder):
    """Other people under the same vectors."""
    record = json.loads((folder / "embeddings.json").read_text())
    (folder / "embeddings.json").write_text(json.dumps({**record, "ages": [40.0] * len(record["ages"])}))


@pytest.fixture
def place(tmp_path):
    """Embeddings of two cohorts, and two probes of the first."""
    planted(tmp_path / "emb", store=str(tmp_path / "store"))
    planted(tmp_path / "other", seed=1, store=str(tmp_path / "store2"))
    for name, c in (("first", 1.0), ("second", 0.01)):
        probe.main(probe.Config(tmp_path / "emb", "stage", tmp_path / name, c=c, bootstraps=0))
    return tmp_path


# What is given, without the folder to write; another option and how a refusal names it; the work that must not be done
# again; and a change of the input with its name.
CALLS = {
    "probe": (
        ("emb", "OUT", "--task", "stage", "--bootstraps", "20"),
        ("--c", "2", "c (1.0 there, 2.0 now)"),
        (probe, "_probed"),
        (lambda place: change_ages(place / "emb"), "the embeddings"),
    ),
    "few_shot": (
        ("emb", "OUT", "--task", "stage", "--subjects", "1", "--replicates", "1"),
        ("--subjects", "2", "subjects (1 there, 2 now)"),
        (few_shot, "_drawn"),
        (lambda place: change_ages(place / "emb"), "the embeddings"),
    ),
    "retrieve": (
        ("emb", "OUT", "--bootstraps", "20"),
        ("--seed", "3", "seed (0 there, 3 now)"),
        (retrieve, "_retrieved"),
        (lambda place: change_ages(place / "emb"), "the embeddings"),
    ),
    "compare": (
        ("first", "second", "OUT", "--bootstraps", "20"),
        ("--bootstraps", "30", "bootstraps (20 there, 30 now)"),
        (compare, "_compared"),
        (lambda place: change_scores(place / "second"), "the second"),
    ),
    "predict": (
        ("first", "other", "OUT"),
        ("--correct-prior", "", "correct-prior (False there, True now)"),
        (predict, "_predicted"),
        (lambda place: begin(place / "store2"), "the store"),
    ),
    "transfer": (
        ("emb", "other", "OUT"),
        ("--subjects", "all", "subjects (test there, all now), shape (220 3 12 there, 360 3 12 now)"),
        (embedding_writer.EmbeddingWriter, "append"),
        (lambda place: change_ages(place / "other"), "the testing"),
    ),
}


def change_scores(folder):
    """The figures are computed from the arrays, not from what the record says."""
    np.save(folder / "score.npy", -np.load(folder / "score.npy"))


def begin(store):
    """Let a store say when a night started."""
    (store / "recordings").mkdir(parents=True)
    (store / "recordings" / "s000_night1.json").write_text('{"start": "2024-02-28T23:00:00"}')


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", CALLS)
def test_a_command_given_again(name, place, capsys, monkeypatch):
    given, (option, value, differs), (owner, work), (change, changed) = CALLS[name]
    command, out = importlib.import_module(f"sleepfm_fast.{name}"), place / "made" / "out"

    def call(*more):
        words = [
            str(out if word == "OUT" else place / word) if word in ("OUT", "emb", "other", "first", "second") else word
            for word in given
        ]
        status = command.cli([*words, *(word for word in more if word)])
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    status, first, err = call()
    assert status == 0, err
    whole = files_of(out)
    with monkeypatch.context() as patch:
        patch.setattr(owner, work, None)  # it is not done again
        status, again, err = call()
    assert status == 0, err
    assert f"{out} is already finished: this same command wrote it. To make it again, add --overwrite." in err
    first, again = json.loads(first), json.loads(again)
    for record in (first, again):
        record.pop("seconds", None)  # of predict: this call's
    assert again == first
    refusal = f"error: {out} exists and is not overwritten: the existing one differs in "
    status, _, err = call(option, value)
    assert (status, f"{refusal}{differs}. Give another folder, or add --overwrite." in err) == (1, True), err
    change(place)
    status, _, err = call()
    assert (status, f"{refusal}{changed}. Give another folder, or add --overwrite." in err) == (1, True), err
    assert files_of(out) == whole
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    status, _, err = call("--overwrite")
    assert status == 0, err


def test_the_result_of_another_command_is_named(place, capsys):
    assert probe.cli([str(place / "emb"), str(place / "out"), "--task", "stage", "--bootstraps", "0"]) == 0
    assert retrieve.cli([str(place / "emb"), str(place / "out")]) == 1
    assert "the existing one differs in command (probe there, retrieve now). Give" in capsys.readouterr().err


def test_a_result_that_lacks_a_file_is_not_finished(place, capsys):
    """`predict` then says: Run its probe again."""
    given = [str(place / "emb"), str(place / "first"), "--task", "stage", "--bootstraps", "0"]
    assert probe.cli(given) == 0
    (place / "first" / "coef.npy").unlink()
    assert probe.cli(given) == 1
    assert "differs in its files. Give another folder, or add --overwrite." in capsys.readouterr().err
    assert probe.cli([*given, "--overwrite"]) == 0


def test_people_and_splits_count_beside_what_embeddings_are_made_of(place, capsys):
    given = [str(place / "emb"), str(place / "other"), str(place / "both")]
    assert transfer.cli(given) == 0
    change_ages(place / "both")
    assert transfer.cli(given) == 1
    assert "differs in the labels, people or split of its clips. Give" in capsys.readouterr().err


def test_a_stopped_transfer_goes_on(place, capsys, monkeypatch):
    given = [str(place / "emb"), str(place / "other")]
    assert transfer.cli([*given, str(place / "whole")]) == 0
    append, calls = embedding_writer.EmbeddingWriter.append, []

    def stop_in_the_second_cohort(self, x, mask):
        calls.append(len(x))
        if len(calls) == 5:
            raise KeyboardInterrupt
        append(self, x, mask)

    monkeypatch.setattr(transfer, "BLOCK", 50)
    monkeypatch.setattr(embedding_writer.EmbeddingWriter, "append", stop_in_the_second_cohort)
    assert transfer.cli([*given, str(place / "out")]) == 130
    assert "the same command continues from there" in capsys.readouterr().err
    monkeypatch.setattr(embedding_writer.EmbeddingWriter, "append", append)
    assert transfer.cli([*given, str(place / "out")]) == 0
    assert (
        f"continuing: {sum(calls[:4])} of {len(Embeddings(place / 'out'))} clips were finished"
        in capsys.readouterr().err
    )
    assert files_of(place / "out") == files_of(place / "whole")
    shutil.rmtree(place / "out")
    assert not list(place.glob(".out*"))


def test_differences_show_values_that_are_short():
    there = {
        "command": "probe",
        "c": 1.0,
        "k": [1, 10],
        "weights": "0" * 64,
        "input": {"filters": "aasm"},
        "fit_on": "train",
    }
    assert difference(there, there) == ""
    now = {**there, "c": 2.0, "k": [1], "weights": "1" * 64, "input": {}, "fit_on": "train+validation"}
    assert difference(there, now) == (
        "c (1.0 there, 2.0 now), k (1 10 there, 1 now), the weights, the input, "
        "fit-on (train there, train+validation now)"
    )
    assert difference(there, {**now, "command": "retrieve"}) == "command (probe there, retrieve now)"
