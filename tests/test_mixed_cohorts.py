"""Cohorts whose nights do not all have the same channels, and stores that grow, through train and embed."""

import json

import numpy as np
import pytest
from called import last_json
from nights import LEADS, write_night

from sleepfm_fast import embed, preprocess, train
from sleepfm_fast.clips import ClipStore
from sleepfm_fast.embeddings import Embeddings
from sleepfm_fast.runs.splits import Split, assign_subjects
from sleepfm_fast.training.contrastive import Trainer

FAST = ["--preset", "tiny", "--batch-size", "4", "--epochs", "1", "--max-steps", "2"]
BRAIN = tuple(lead for lead in LEADS if lead.label in ("C3-M2", "C4-M1", "E1-M2"))


@pytest.fixture
def make_store(tmp_path):
    def make(nights):
        folder = tmp_path / "nights é"
        folder.mkdir(exist_ok=True)
        for seed, (name, leads) in enumerate(nights.items()):
            write_night(folder / f"{name}.edf", leads=leads, seed=seed)
        assert preprocess.cli([str(folder), str(tmp_path / "store"), "--montage", "aasm"]) == 0
        return tmp_path / "store"

    return make


def test_nights_of_one_modality_cannot_be_trained_on_whatever_the_montage(make_store, tmp_path, capsys):
    store = make_store({f"n{i}": BRAIN for i in range(4)})
    assert train.cli([str(store), str(tmp_path / "run"), *FAST]) == 1
    assert "leaves 0 clips with two modalities or more" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_where_the_clips_are_that_training_lacks(make_store, tmp_path, capsys):
    names = [f"n{i}" for i in range(12)]
    codes, _ = assign_subjects(names, Split("sleepfm_fast", 0.1, 0.2))
    tested = names[codes.tolist().index(2)]
    store = make_store({name: LEADS if name == tested else BRAIN for name in names})
    assert train.cli([str(store), str(tmp_path / "run"), *FAST]) == 1
    sentence = f"The other 4 are of 1 subject held out for validation or testing (such as {tested})."
    assert sentence in capsys.readouterr().err


def test_nights_of_one_modality_are_left_out_of_training_and_embedded(make_store, tmp_path, capsys):
    store = make_store({**{f"n{i}": LEADS for i in range(8)}, **{f"brain{i}": BRAIN for i in range(4)}})
    assert train.cli([str(store), str(tmp_path / "run"), *FAST]) == 0
    captured = capsys.readouterr()
    assert "4 of 12 recordings have channels of only one modality" in captured.err
    subjects = json.loads((tmp_path / "run" / "config.json").read_text())["subjects"]
    whole = [code for subject, code in subjects.items() if subject.startswith("n")]
    assert last_json(captured.out)["training_clips"] == 4 * whole.count(0)
    assert embed.cli([str(tmp_path / "run"), str(store), str(tmp_path / "emb")]) == 0
    e = Embeddings(tmp_path / "emb")
    lacking = np.array([r.startswith("brain") for r in e.description.recordings])[e.recording]
    np.testing.assert_array_equal(e.mask, np.where(lacking[:, None], [False, True, False], True))
    np.testing.assert_array_equal(np.isnan(e.vectors).all(2), ~e.mask)


def test_a_run_keeps_its_subjects_apart_in_a_store_that_grew(make_store, tmp_path):
    store = make_store({f"n{i}": LEADS for i in range(3)})
    assert train.cli([str(store), str(tmp_path / "run"), *FAST]) == 0
    then = json.loads((tmp_path / "run" / "config.json").read_text())["subjects"]
    assert sorted(then.values()) == [0, 1, 2]
    # the run's subjects as they would be hashed count for nothing: turn them round
    path = tmp_path / "run" / "config.json"
    config = json.loads(path.read_text())
    config["subjects"] = {subject: (code + 1) % 3 for subject, code in then.items()}
    for row in config["recordings"]:
        row["split"] = config["subjects"][row["subject"]]
    path.write_text(json.dumps(config))
    store = make_store({f"m{i}": LEADS for i in range(4)})
    assert embed.cli([str(tmp_path / "run"), str(store), str(tmp_path / "emb")]) == 0
    e = Embeddings(tmp_path / "emb")
    split = {e.description.subjects[s]: int(c) for s, c in zip(e.subject, e.split, strict=True)}
    assert {s: c for s, c in split.items() if s in then} == config["subjects"]
    assert len(ClipStore(store).subjects) == 7


def test_paths_that_cannot_be_written_or_read_are_sentences(make_store, tmp_path, capsys):
    store = make_store({f"n{i}": LEADS for i in range(3)})
    file = tmp_path / "file"
    file.touch()
    assert train.cli([str(store), str(file), *FAST]) == 1
    assert train.cli([str(store), str(file / "run"), *FAST]) == 1
    assert embed.cli([str(file), str(store), str(tmp_path / "emb")]) == 1
    assert capsys.readouterr().err.count(f"error: {file}") == 3
    assert embed.cli([str(file), str(store), str(tmp_path / "emb"), "--batch-size", "0"]) == 1
    assert "--batch-size is 0" in capsys.readouterr().err


def test_ctrl_c_says_how_to_go_on(make_store, tmp_path, capsys, monkeypatch):
    store = make_store({f"n{i}": LEADS for i in range(3)})

    def interrupt(self, *arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "update", interrupt)
    assert train.cli([str(store), str(tmp_path / "run"), *FAST]) == 130
    assert "--resume" in capsys.readouterr().err
    monkeypatch.undo()
    assert train.cli([str(store), str(tmp_path / "run"), *FAST, "--resume"]) == 0


@pytest.mark.parametrize(
    ("option", "value"), [("batch-size", "1"), ("validation-block", "1"), ("lr", "nan"), ("validation-share", "nan")]
)
def test_options_that_would_train_on_nothing_are_refused(tmp_path, capsys, option, value):
    assert train.cli([str(tmp_path / "store"), str(tmp_path / "run"), *FAST, f"--{option}", value]) == 1
    assert f"--{option} is {value}; expected" in capsys.readouterr().err


def test_a_training_that_diverged_fails_instead_of_ending_without_a_model(make_store, tmp_path, capsys):
    store = make_store({f"n{i}": LEADS for i in range(3)})
    arguments = [*FAST, "--max-steps", "1", "--lr", "1e38", "--optimiser", "sgd"]
    assert train.cli([str(store), str(tmp_path / "run"), *arguments]) == 1
    assert "diverged" in capsys.readouterr().err
