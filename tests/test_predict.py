"""A probe applied to other nights: the same scores, tables, hypnograms that other readers read, sleep figures."""

from __future__ import annotations

import csv
import json
from datetime import datetime

import numpy as np
import pytest
from synthetic_embeddings import columns_of, description_of, write_folder

from sleepfm_fast import few_shot, predict, probe, retrieve, transfer
from sleepfm_fast.annotations import read_scoring
from sleepfm_fast.channels import Modality, Montage, Slot
from sleepfm_fast.embeddings import Embeddings
from sleepfm_fast.errors import SleepfmError
from sleepfm_fast.evaluation import changed_store
from sleepfm_fast.evaluation.embedding_writer import EmbeddingWriter
from sleepfm_fast.evaluation.predicted_nights import agreement, beside_scorer
from sleepfm_fast.evaluation.predictions import edf_annotations, file_stems, stage_spans
from sleepfm_fast.results import read_result
from sleepfm_fast.scoring.labels import clip_labels
from sleepfm_fast.scoring.sleep_figures import BED_COLUMNS, figures_between_lights, night_figures
from sleepfm_fast.scoring.stages import STAGES

SPLIT_OF = np.array([0] * 6 + [1] + [2] * 3)


def planted(path, *, seed=0, split_of=SPLIT_OF, n_each=20, labelled=True, drop=0.0, **description):
    """Embeddings whose first coordinates tell the stage; ``drop`` of the clips lack a modality."""
    rng = np.random.default_rng(seed)
    subject = np.repeat(np.arange(len(split_of)), n_each)
    label = rng.integers(0, 5, subject.size)
    x = rng.standard_normal((subject.size, 3, 12))
    x[np.arange(subject.size), :, label] += 2.5
    columns = columns_of(subject, split_of[subject], stage=label if labelled else None)
    mask = np.ones((subject.size, 3), bool)
    mask[:, 1] = rng.random(subject.size) >= drop
    return write_folder(path, x, columns, mask=mask, **description)


def rows_of(path):
    return list(csv.DictReader(path.read_text().splitlines()))


@pytest.fixture
def fitted(tmp_path):
    folder = planted(tmp_path / "emb", presets={"weights": {"sha256": "a"}})
    probe.main(probe.Config(folder, "stage", tmp_path / "result", bootstraps=0))
    return folder, tmp_path / "result"


def test_test_clips_get_the_probes_own_probabilities(fitted, tmp_path, capsys):
    folder, result = fitted
    done = predict.main(predict.Config(result, folder, tmp_path / "out"))
    assert "predictions for them do not test it" in capsys.readouterr().err
    own, rows = read_result(result), rows_of(tmp_path / "out" / "predictions.csv")
    assert len(rows) == done["clips"] == len(Embeddings(folder))
    expected = own.array("probability")
    for clip, label, p in zip(own.array("clip"), own.array("label"), expected, strict=True):
        row = rows[clip]
        assert [float(row[f"p_{name}"]) for name in STAGES] == pytest.approx(p.tolist(), abs=2e-5)
        assert (row["predicted"], row["scored"]) == (STAGES[p.argmax()], STAGES[label])
        assert (row["subject"], row["recording"]) == (f"s{clip // 20:03d}", f"s{clip // 20:03d}_night1")
        assert float(row["onset_s"]) == 30 * (clip % 20)
    assert sum(done["predicted"].values()) == len(rows)


def test_what_is_finished_says_that_the_store_has_changed_since(fitted, tmp_path, monkeypatch, capsys):
    """Who repeats a command after adding nights expects them in its figures."""
    folder, _ = fitted
    commands = (
        lambda: probe.main(probe.Config(folder, "stage", tmp_path / "result", bootstraps=0)),
        lambda: predict.main(predict.Config(tmp_path / "result", folder, tmp_path / "out")),
        lambda: retrieve.main(retrieve.Config(folder, tmp_path / "retrieval", bootstraps=0)),
        lambda: few_shot.main(few_shot.Config(folder, tmp_path / "curve", "stage", subjects=(2,), replicates=1)),
    )
    for command in commands:
        command()
    monkeypatch.setattr(changed_store, "store_note", lambda embeddings: "the store has 2 clips more.")
    for command in commands:
        capsys.readouterr()
        command()
        said = capsys.readouterr().err
        assert "already finished" in said
        assert "notice: the store has 2 clips more." in said


def test_every_recording_has_files_of_its_own():
    """Joined stores put a slash into names; another recording may have the name that is left without it."""
    assert file_stems(["b", "a/b", "a/c"]) == {"b": "b", "a/b": "a-b", "a/c": "a-c"}
    for names in (["a/b-2", "a/b", "a-b", "a-b-2"], ["a-b-2", "a-b", "a/b", "a/b-2"]):
        assert file_stems(names) == {"a-b": "a-b", "a-b-2": "a-b-2", "a/b": "a-b-3", "a/b-2": "a-b-2-2"}
    assert file_stems(["a/b-c", "a-b/c"]) == {"a-b/c": "a-b-c", "a/b-c": "a-b-c-2"}


def test_people_of_another_store_whom_the_probe_knows_are_said(fitted, tmp_path, capsys):
    """A second visit of the same people is another store and no test."""
    _, result = fitted
    names = [f"s{i:03d}" for i in (0, 6, 7)]
    for i, name in enumerate(("stranger", *names)):
        assert (i == 0) == (name not in read_result(result).record["subjects"])
    new = planted(
        tmp_path / "visit2", seed=5, split_of=np.array([2, 0, 1, 2]), store=str(tmp_path / "store2"),
        presets={"weights": {"sha256": "a"}}, subjects=("stranger", *names),
    )  # fmt: skip
    predict.main(predict.Config(result, new, tmp_path / "out"))
    said = capsys.readouterr().err
    assert "notice: 2 of the 4 subjects have the names of training or validation subjects (s000, s006)." in said
    nights = {night["subject"]: night["split"] for night in rows_of(tmp_path / "out" / "nights.csv")}
    assert nights == {"stranger": "", "s000": "train", "s006": "validation", "s007": "test"}


def splits_in(folder):
    return {night["subject"]: night["split"] for night in rows_of(folder / "nights.csv")}


def test_a_probe_of_two_stores_knows_the_subjects_of_each(fitted, tmp_path):
    """Joined, they have other names than in the folders that they came from."""
    own, _ = fitted
    names = tuple(f"t{i:03d}" for i in range(4))
    there = planted(
        tmp_path / "there", seed=7, split_of=np.array([0, 1, 2, 2]), store="there",
        presets={"weights": {"sha256": "a"}}, subjects=names,
    )  # fmt: skip
    transfer.main(transfer.Config(own, there, tmp_path / "joined"))
    probe.main(probe.Config(tmp_path / "joined", "stage", tmp_path / "external", bootstraps=0))
    for folder in (own, there, tmp_path / "joined"):
        predict.main(predict.Config(tmp_path / "external", folder, tmp_path / f"of-{folder.name}"))
    assert splits_in(tmp_path / "of-emb") == {
        f"s{i:03d}": "train" if i < 6 else "validation" if i == 6 else "" for i in range(10)
    }
    assert splits_in(tmp_path / "of-there") == {"t000": "", "t001": "", "t002": "test", "t003": "test"}
    joined = {f"training/s{i:03d}": "train" if i < 6 else "validation" for i in range(7)}
    assert splits_in(tmp_path / "of-joined") == {**joined, "external/t002": "test", "external/t003": "test"}
    compared = rows_of(tmp_path / "of-there" / "agreement.csv")
    assert {row["nights"] for row in compared} == {"4"}, "strangers and tested ones"


@pytest.mark.parametrize("earlier", [False, True])
def test_a_folder_that_is_split_otherwise_makes_no_test_subject_of_a_fitted_one(fitted, tmp_path, earlier):
    _, result = fitted
    if earlier:  # an earlier version did not keep the splits
        record = json.loads((result / "result.json").read_text())
        assert record.pop("subject_splits") == ["train"] * 6 + ["validation"] + ["test"] * 3
        (result / "result.json").write_text(json.dumps(record))
    other = planted(
        tmp_path / "other", seed=5, split_of=np.array([2, 2, 0, 1, 1, 0, 2, 0, 2, 1]), store="another",
        presets={"weights": {"sha256": "a"}},
    )  # fmt: skip
    predict.main(predict.Config(result, other, tmp_path / "out"))
    found = splits_in(tmp_path / "out")
    assert [found[f"s{i:03d}"] for i in (7, 8, 9)] == ["test"] * 3
    assert {found[f"s{i:03d}"] for i in range(7)} <= {"train", "validation"}
    assert {row["nights"] for row in rows_of(tmp_path / "out" / "agreement.csv")} == {"3"}


def test_splits_of_fewer_subjects_than_are_named_are_damage(fitted, tmp_path):
    folder, result = fitted
    record = json.loads((result / "result.json").read_text())
    record["subject_splits"].pop()
    (result / "result.json").write_text(json.dumps(record))
    with pytest.raises(SleepfmError, match=r"result.json is damaged: it names 10 subjects and the splits of 9\."):
        predict.main(predict.Config(result, folder, tmp_path / "out"))


def test_a_night_that_the_encoder_has_seen_is_no_stranger(fitted, tmp_path, capsys):
    """A probe of another laboratory, applied to the store that the encoder was trained on."""
    _, result = fitted
    names = ("a", "b", "c", "d")
    new = planted(
        tmp_path / "run-embeddings", seed=5, split_of=np.array([0, 1, 2, 2]), store="of the run", subjects=names,
        presets={"weights": {"sha256": "a"}, "subjects_seen": {"a": "train", "b": "validation"}},
    )  # fmt: skip
    predict.main(predict.Config(result, new, tmp_path / "out"))
    said = capsys.readouterr().err
    assert "notice: the encoder of these embeddings was trained or validated on 2 subjects of them (a, b)" in said
    assert splits_in(tmp_path / "out") == {"a": "train", "b": "validation", "c": "", "d": ""}


def test_a_night_without_the_networks_eeg_is_said_and_written(fitted, tmp_path, capsys):
    """Only the store says which channels a night had: its brain may be an EOG alone."""
    (recordings := tmp_path / "store2" / "recordings").mkdir(parents=True)
    (run := tmp_path / "run").mkdir()
    slots = [Slot("C4-M1", "eeg", ("C4-M1",)), Slot("E1", "eog", ("E1",))]
    montage = Montage("auto", (Modality("respiratory", (Slot("Chest", "respiration", ("Chest",)),)),
                               Modality("brain", tuple(slots))))  # fmt: skip
    (run / "config.json").write_text(json.dumps({"montage": montage.to_dict()}))
    for i in range(3):  # the last night's record is lost
        present = {"Chest": i == 0, "C4-M1": i == 0, "E1": True}
        channels = [{"slot": slot, "present": there} for slot, there in present.items()]
        (recordings / f"s{i:03d}_night1.json").write_text(json.dumps({"channels": channels}))
    new = planted(
        tmp_path / "new", seed=5, split_of=np.array([2, 0, 1, 2]), store=str(tmp_path / "store2"), run=str(run),
        presets={"weights": {"sha256": "a"}},
    )  # fmt: skip
    predict.main(predict.Config(tmp_path / "result", new, tmp_path / "out"))
    said = capsys.readouterr().err
    assert "notice: 2 nights have no EEG (C4-M1), which" in said
    assert "may be far off (s001_night1, s002_night1)" in said
    assert "no EOG" not in said
    nights = {night["recording"]: night["missing_channels"] for night in rows_of(tmp_path / "out" / "nights.csv")}
    assert nights == {"s000_night1": "", "s001_night1": "Chest; C4-M1", "s002_night1": "Chest; C4-M1",
                      "s003_night1": ""}  # fmt: skip
    record = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert record["missing_channels"] == {f"s00{i}_night1": ["Chest", "C4-M1"] for i in (1, 2)}


def test_correcting_the_prior_multiplies_by_the_training_frequencies(fitted, tmp_path):
    folder, result = fitted
    for name, more in (("plain", {}), ("corrected", {"correct_prior": True})):
        predict.main(predict.Config(result, folder, tmp_path / name, **more))
    plain, corrected = (rows_of(tmp_path / name / "predictions.csv") for name in ("plain", "corrected"))
    prior = np.array([read_result(result).record["calibration"]["prior"][name] for name in STAGES])
    for a, b in zip(plain[::17], corrected[::17], strict=True):
        p = np.array([float(a[f"p_{name}"]) for name in STAGES]) * prior
        assert [float(b[f"p_{name}"]) for name in STAGES] == pytest.approx((p / p.sum()).tolist(), abs=1e-4)


def test_unscored_nights_get_hypnograms_that_are_read_back(fitted, tmp_path, capsys):
    _, result = fitted
    store = tmp_path / "store"
    (store / "recordings").mkdir(parents=True)
    start = datetime(2024, 2, 28, 23, 59, 30, 250000)
    for i in range(2):
        text = json.dumps({"start": start.isoformat() if i == 0 else None})
        (store / "recordings" / f"s{i:03d}_night1.json").write_text(text)
    new = planted(
        tmp_path / "new", seed=5, split_of=np.array([0, 2]), labelled=False, drop=0.3, store=str(store),
        presets={"weights": {"sha256": "a"}}, run="elsewhere/x",
    )  # fmt: skip
    done = predict.main(predict.Config(result, new, tmp_path / "out"))
    assert "s001_night1" in capsys.readouterr().err, "whose start is not known"
    rows = rows_of(tmp_path / "out" / "predictions.csv")
    lacking = ~np.asarray(Embeddings(new).mask)[:, 1]
    assert [row["predicted"] == "" for row in rows] == lacking.tolist()
    assert done["clips_without_prediction"] == lacking.sum() > 0
    assert done["recordings_without_prediction"] == []
    assert {row["scored"] for row in rows} == {""}
    hypnograms = tmp_path / "out" / "hypnograms"
    assert sorted(p.name for p in hypnograms.iterdir()) == [
        "s000_night1-Hypnogram.edf", "s000_night1-hypnogram.csv", "s001_night1-hypnogram.csv",
    ]  # fmt: skip
    for i, names in ((0, ("-Hypnogram.edf", "-hypnogram.csv")), (1, ("-hypnogram.csv",))):
        expected = [STAGES.index(row["predicted"]) if row["predicted"] else -1 for row in rows[20 * i : 20 * i + 20]]
        for name in names:
            scoring = read_scoring(hypnograms / f"s{i:03d}_night1{name}", start=start)
            assert clip_labels(scoring, 600.5).stage.tolist() == expected
    nights = rows_of(tmp_path / "out" / "nights.csv")
    assert [night["subject"] for night in nights] == ["s000", "s001"]
    asleep = sum(row["predicted"] not in ("", "W") for row in rows[:20])
    assert float(nights[0]["total_sleep_time_min"]) == asleep / 2
    with pytest.raises(SleepfmError, match="not overwritten: the existing one differs in correct-prior "):
        predict.main(predict.Config(result, new, tmp_path / "out", correct_prior=True))
    predict.main(predict.Config(result, new, tmp_path / "out", overwrite=True))


def test_nights_that_lack_a_modality_are_named(fitted, tmp_path, capsys):
    _, result = fitted
    options = {"seed": 5, "labelled": False, "presets": {"weights": {"sha256": "a"}}, "run": "elsewhere/x"}
    new = planted(tmp_path / "new", split_of=np.array([0, 2, 2]), **options)
    mask = np.load(new / "mask.npy")
    mask[np.isin(np.load(new / "recording.npy"), (0, 2)), 1] = False
    np.save(new / "mask.npy", mask)
    done = predict.main(predict.Config(result, new, tmp_path / "out"))
    assert "2 recordings (s000_night1, s002_night1) have no prediction: no clip of them" in capsys.readouterr().err
    assert done["recordings_without_prediction"] == ["s000_night1", "s002_night1"]
    nights = rows_of(tmp_path / "out" / "nights.csv")
    assert [night["epochs"] == night["epochs_without_prediction"] for night in nights] == [True, False, True]


def test_hand_made_features_keep_their_medians_and_marks(tmp_path):
    rng = np.random.default_rng(1)
    label = np.repeat(np.arange(5), 40)
    subject = np.tile(np.arange(10), 20)
    x = rng.standard_normal((200, 1, 4)).astype(np.float32)
    x[:, 0, 0] += label
    x[rng.random(200) < 0.2, 0, 2:] = np.nan
    columns = columns_of(subject, SPLIT_OF[subject], stage=label)
    names = {"brain": ("a_uv", "b_uv", "c_uv", "d_uv")}
    with EmbeddingWriter(tmp_path / "features", 200, ("brain",), 4, features=names) as writer:
        writer.append(x, None)
        writer.finish(columns, description_of(10))
    probe.main(probe.Config(tmp_path / "features", "stage", tmp_path / "result", bootstraps=0))
    predict.main(predict.Config(tmp_path / "result", tmp_path / "features", tmp_path / "out"))
    own, rows = read_result(tmp_path / "result"), rows_of(tmp_path / "out" / "predictions.csv")
    for clip, p in zip(own.array("clip"), own.array("probability"), strict=True):
        assert [float(rows[clip][f"p_{name}"]) for name in STAGES] == pytest.approx(p.tolist(), abs=2e-5)
    with pytest.raises(SleepfmError, match="was fitted on features"):
        predict.main(predict.Config(tmp_path / "result", planted(tmp_path / "emb"), tmp_path / "no"))
    others = {"brain": ("a_uv", "b_uv", "c_uv", "e_uv")}
    with EmbeddingWriter(tmp_path / "others", 200, ("brain",), 4, features=others) as writer:
        writer.append(x, None)
        writer.finish(columns, description_of(10))
    with pytest.raises(SleepfmError, match=r"other features\. It lacks brain d_uv\. .*preprocess .* --like store`"):
        predict.main(predict.Config(tmp_path / "result", tmp_path / "others", tmp_path / "no"))


def test_what_cannot_be_is_refused(fitted, tmp_path):
    folder, result = fitted
    other = planted(tmp_path / "other", presets={"weights": {"sha256": "b"}})
    with pytest.raises(SleepfmError, match="other weights"):
        predict.main(predict.Config(result, other, tmp_path / "out"))
    with pytest.raises(SleepfmError, match="weights have changed"):
        transfer.main(
            transfer.Config(
                folder, planted(tmp_path / "o2", store="t", presets={"weights": {"sha256": "b"}}), tmp_path / "t"
            )
        )
    alone = planted(tmp_path / "alone", drop=1.1, store="t", presets={"weights": {"sha256": "a"}})
    with pytest.raises(
        SleepfmError, match=r"it has respiratory and ecg\. Fit one on what there is.*--modality respiratory"
    ):
        predict.main(predict.Config(result, alone, tmp_path / "out"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a").write_text("a")
    with pytest.raises(SleepfmError, match="not a folder of predictions"):
        predict.main(predict.Config(result, folder, tmp_path / "mine", overwrite=True))
    (result / "coef.npy").unlink()
    record = json.loads((result / "result.json").read_text())
    del record["arrays"]["coef"]
    (result / "result.json").write_text(json.dumps(record))
    with pytest.raises(SleepfmError, match="Run its probe again"):
        predict.main(predict.Config(result, folder, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_no_file_is_written_outside_of_the_folder(fitted, tmp_path):
    folder, result = fitted
    file = folder / "embeddings.json"
    record = json.loads(file.read_text())
    first, second, *others = record["recordings"]
    file.write_text(json.dumps({**record, "recordings": [f"training/{first}", second, *others]}))
    predict.main(predict.Config(result, folder, tmp_path / "deep" / "out"))
    names = {path.name for path in (tmp_path / "deep" / "out" / "hypnograms").iterdir()}
    assert {f"training-{first}-hypnogram.csv", f"{second}-hypnogram.csv"} <= names
    for name in ("../../../evil", str(tmp_path / "evil"), ".."):
        file.write_text(json.dumps({**record, "recordings": [name, second, *others]}))
        with pytest.raises(SleepfmError, match="the entry 'recordings'"):
            predict.main(predict.Config(result, folder, tmp_path / "deep" / "again"))
    assert not [*tmp_path.rglob("*evil*")]


@pytest.mark.parametrize(
    ("array", "change", "said"),
    [
        ("coef", lambda a: a[:, :-1], "takes 35 numbers a clip, .* has 36 of respiratory, brain, ecg"),
        ("coef", lambda a: a[:-1], "do not fit each other"),
        ("intercept", lambda a: a[:-1], "do not fit each other"),
        ("subject", lambda a: a + 1000, r"subject\.npy is damaged"),
    ],
)
def test_a_classifier_that_was_changed_is_named(fitted, tmp_path, array, change, said):
    folder, result = fitted
    values = change(np.load(result / f"{array}.npy"))
    np.save(result / f"{array}.npy", values)
    record = json.loads((result / "result.json").read_text())
    record["arrays"][array] = [str(values.dtype), *values.shape]
    (result / "result.json").write_text(json.dumps(record))
    with pytest.raises(SleepfmError, match=said):
        predict.main(predict.Config(result, folder, tmp_path / "out"))


def test_what_cannot_be_is_said_before_the_folder_that_stands(fitted, tmp_path, capsys):
    folder, result = fitted
    predict.main(predict.Config(result, folder, tmp_path / "out"))
    other = planted(tmp_path / "other", presets={"weights": {"sha256": "b"}})
    with pytest.raises(SleepfmError, match="other weights"):
        predict.main(predict.Config(result, other, tmp_path / "out"))
    few_shot.main(few_shot.Config(folder, tmp_path / "curve", "stage", subjects=(2,), replicates=1))
    for unsuitable, sentence in ((tmp_path / "curve", "a result of few_shot; a probe's is expected"),
                                 (tmp_path / "nowhere", "nowhere")):  # fmt: skip
        with pytest.raises(SleepfmError, match=sentence):
            predict.main(predict.Config(unsuitable, folder, tmp_path / "out"))
    # What goes together is still not written over other predictions.
    with pytest.raises(SleepfmError, match="exists and is not overwritten: the existing one differs in correct-prior"):
        predict.main(predict.Config(result, folder, tmp_path / "out", correct_prior=True))


def test_every_night_says_how_far_it_agrees_with_the_scorer(fitted, tmp_path):
    from sklearn.metrics import cohen_kappa_score

    folder, result = fitted
    predict.main(predict.Config(result, folder, tmp_path / "out"))
    rows, nights = (rows_of(tmp_path / "out" / name) for name in ("predictions.csv", "nights.csv"))
    assert len(nights) == 10
    for night in nights:
        own = [row for row in rows if row["recording"] == night["recording"]]
        truth, answer = [row["scored"] for row in own], [row["predicted"] for row in own]
        assert night["epochs_compared"] == "20"
        assert float(night["kappa"]) == pytest.approx(cohen_kappa_score(truth, answer), abs=1e-5)
        equal = sum(a == b for a, b in zip(truth, answer, strict=True))
        assert float(night["agreement_percent"]) == pytest.approx(5 * equal)
    assert [night["split"] for night in nights] == ["train"] * 6 + ["validation"] + ["test"] * 3


def test_agreement_where_there_is_little_to_compare():
    assert agreement(["W", ""], ["", "N2"]) == {"epochs_compared": 0, "agreement_percent": None, "kappa": None}
    assert agreement(["W", "W"], ["W", "W"]) == {"epochs_compared": 2, "agreement_percent": 100, "kappa": None}
    assert agreement(["W", "W", ""], ["W", "R", "R"]) == {"epochs_compared": 2, "agreement_percent": 50, "kappa": 0}


def test_sleep_beside_the_scorers_is_of_the_same_epochs():
    scored = ["", "", "W", "N2", "", "R", ""]
    words = ["N2", "W", "N1", "N2", "N3", "", "R"]
    onsets_s = [0.0, 30.0, 60.0, 90.0, 120.0, 720.0, 750.0]
    row = beside_scorer(words, scored, onsets_s)
    assert (row["scored_epochs"], row["scored_min"]) == (3, 11.5)
    assert (row["scored_total_sleep_time_min"], row["total_sleep_time_min_within_scored"]) == (1, 1)
    assert (row["scored_sleep_latency_min"], row["sleep_latency_min_within_scored"]) == (0.5, 0)
    assert (row["scored_rem_latency_min"], row["rem_latency_min_within_scored"]) == (10.5, None)
    assert row["n3_min_within_scored"] == 0, "the scorer left that epoch out"
    assert row["sleep_efficiency_percent_within_scored"] == pytest.approx(100 / 11.5)
    nothing = beside_scorer(words, [""] * 7, onsets_s)
    assert nothing.pop("scored_epochs") == 0
    assert set(nothing.values()) == {None}
    unpredicted = beside_scorer([""] * 7, scored, onsets_s)
    assert (unpredicted["scored_total_sleep_time_min"], unpredicted["total_sleep_time_min_within_scored"]) == (1, None)
    assert list(row) == list(unpredicted)


def test_breathing_is_annotated_and_counted_by_night(tmp_path):
    rng = np.random.default_rng(2)
    subject, label = np.repeat(np.arange(10), 20), rng.integers(0, 2, 200)
    x = rng.standard_normal((200, 3, 12))
    x[:, :, 0] += 4 * label[:, None]
    store = tmp_path / "store"
    (store / "recordings").mkdir(parents=True)
    start = datetime(2024, 2, 28, 23, 59, 30)
    for i in range(10):
        (store / "recordings" / f"s{i:03d}_night1.json").write_text(json.dumps({"start": start.isoformat()}))
    scored = np.where(np.tile(np.arange(20), 10) < 15, label, -1)  # nobody scored the last five epochs of a night
    columns = columns_of(subject, SPLIT_OF[subject], sdb=scored)
    folder = write_folder(tmp_path / "emb", x, columns, store=str(store), presets={"weights": {"sha256": "a"}})
    probe.main(probe.Config(folder, "sdb", tmp_path / "result", bootstraps=0))
    predict.main(predict.Config(tmp_path / "result", folder, tmp_path / "out"))
    rows, nights = (rows_of(tmp_path / "out" / name) for name in ("predictions.csv", "nights.csv"))
    for i, night in enumerate(nights):
        found = np.array([row["predicted"] == "event" for row in rows[20 * i : 20 * i + 20]])
        assert int(night["event_epochs"]) == found.sum()
        assert float(night["event_epochs_per_h"]) == pytest.approx(found.sum() * 6)
        assert float(night["scored_event_epochs_per_h"]) == pytest.approx(label[20 * i : 20 * i + 15].sum() * 8)
        assert float(night["event_epochs_per_h_within_scored"]) == pytest.approx(found[:15].sum() * 8)
        name = tmp_path / "out" / "breathing" / f"{night['recording']}-"
        for path in (f"{name}Breathing.edf", f"{name}breathing.csv"):
            covered = np.zeros(20, bool)
            for event in read_scoring(path, start=start).events:
                covered[int(event.onset_s / 30) : int((event.onset_s + event.duration_s) / 30)] = True
            assert covered.tolist() == found.tolist()
    assert not (tmp_path / "out" / "hypnograms").exists()


def test_of_age_and_sex_a_night_has_one_class(tmp_path):
    rng = np.random.default_rng(3)
    subject = np.repeat(np.arange(10), 20)
    sexes = list(description_of(10).sexes)
    x = rng.standard_normal((200, 3, 12))
    x[:, :, 0] += 2 * (subject % 2)[:, None]
    folder = write_folder(tmp_path / "emb", x, columns_of(subject, SPLIT_OF[subject]))
    probe.main(probe.Config(folder, "sex", tmp_path / "result", bootstraps=0))
    predict.main(predict.Config(tmp_path / "result", folder, tmp_path / "out"))
    rows, nights = (rows_of(tmp_path / "out" / name) for name in ("predictions.csv", "nights.csv"))
    assert [night["known"] for night in nights] == [night["predicted"] for night in nights] == sexes
    for i, night in enumerate(nights):
        mean = np.mean([float(row["p_F"]) for row in rows[20 * i : 20 * i + 20]])
        assert float(night["p_F"]) == pytest.approx(mean, abs=1e-4)
        assert float(night["p_M"]) + float(night["p_F"]) == pytest.approx(1, abs=1e-5)


def test_sleep_figures():
    stages = ["W", "", "W", "N1", "N2", "W", "N3", "R", "R", "W"]
    figures = night_figures(stages)
    assert figures["time_in_bed_min"] == 5
    assert figures["total_sleep_time_min"] == 2.5
    assert figures["sleep_efficiency_percent"] == 50
    assert figures["sleep_latency_min"] == 1.5
    assert figures["rem_latency_min"] == 2
    assert figures["wake_after_sleep_onset_min"] == 1
    assert (figures["w_min"], figures["r_min"], figures["r_percent"]) == (2, 1, 40)
    assert night_figures(["W", "W"])["rem_latency_min"] is None
    nothing = night_figures(["", ""])
    assert (nothing["epochs"], nothing["epochs_without_prediction"]) == (2, 2)
    assert nothing["total_sleep_time_min"] is nothing["sleep_efficiency_percent"] is nothing["w_min"] is None
    assert list(nothing) == list(figures)
    assert night_figures([])["sleep_efficiency_percent"] is None


def test_sleep_figures_of_an_interrupted_night():
    stages = ["W", "N1", "W", "N2", "R"]
    onsets_s = [15.0, 45.0, 75.0, 3705.0, 3735.0]  # an hour lies between the third epoch and the fourth
    figures = night_figures(stages, onsets_s)
    assert figures["epochs"] == 5
    assert figures["time_in_bed_min"] == 62.5
    assert figures["total_sleep_time_min"] == 1.5
    assert figures["sleep_efficiency_percent"] == pytest.approx(100 * 1.5 / 62.5)
    assert figures["sleep_latency_min"] == 0.5
    assert figures["rem_latency_min"] == 61.5, "by the clock, not by counting epochs"
    assert figures["wake_after_sleep_onset_min"] == 0.5
    assert night_figures(stages, [30.0 * i for i in range(5)]) == night_figures(stages)


def test_sleep_figures_between_lights():
    stages = ["N1", "W", "W", "N2", "", "R", "W", "N2"]
    onsets_s = [30.0 * i for i in range(8)]
    figures = figures_between_lights(
        stages, onsets_s, 40.0, 200.0
    )  # off within the second epoch, on within the seventh
    assert tuple(figures) == BED_COLUMNS
    assert figures["time_in_bed_min"] == pytest.approx(160 / 60)
    assert figures["total_sleep_time_min"] == 1, "sleep before and after does not count"
    assert figures["sleep_efficiency_percent"] == pytest.approx(100 * 60 / 160)
    assert figures["sleep_latency_min"] == pytest.approx(50 / 60)
    # Of an epoch that is partly inside, that part counts: 20 s of the second epoch and of the seventh.
    assert (figures["rem_latency_min"], figures["wake_after_sleep_onset_min"]) == pytest.approx((1, 20 / 60))
    assert figures["w_min"] == pytest.approx(70 / 60)
    assert figures_between_lights(stages, onsets_s, 59.0, 200.0)["w_min"] == pytest.approx(51 / 60)
    partly = figures_between_lights(["N1", "N1", "R"], onsets_s[:3], 29.0, 61.0)
    assert (partly["sleep_latency_min"], partly["rem_latency_min"]) == pytest.approx((0, 31 / 60))
    assert partly["sleep_efficiency_percent"] == 100, "three epochs whole would be 281 %"
    assert (partly["n1_min"], partly["n1_percent"]) == pytest.approx((31 / 60, 100 * 31 / 32))
    whole = night_figures(stages, onsets_s)
    assert figures_between_lights(stages, onsets_s, 0.0, 240.0) == {name: whole[name] for name in BED_COLUMNS}
    for off_s, on_s in ((None, 200.0), (40.0, None), (200.0, 40.0), (40.0, 40.0), (1000.0, 2000.0)):
        assert set(figures_between_lights(stages, onsets_s, off_s, on_s).values()) == {None}
    assert set(figures_between_lights([], [], 0.0, 9.0).values()) == {None}


@pytest.mark.parametrize("n", [0, 1, 5000])
def test_an_edf_hypnogram_of_any_length_is_read_by_pyedflib_and_by_us(tmp_path, n):
    pyedflib = pytest.importorskip("pyedflib")
    start = datetime(2084, 12, 31, 23, 59, 59, 500000)
    onsets = [7.5 + 30 * i for i in range(n)]
    stages = [("W", "N1", "R", "", "N3", "N3")[i % 6] for i in range(n)]
    path = tmp_path / "h.edf"
    path.write_bytes(edf_annotations(start, stage_spans(onsets, stages)))
    with pyedflib.EdfReader(str(path)) as file:
        assert file.getStartdatetime() == start.replace(microsecond=0)
        found, _, texts = file.readAnnotations()
    spans = [i for i in range(n) if i == 0 or stages[i] != stages[i - 1]]
    assert found.tolist() == [onsets[i] + 0.5 for i in spans]
    assert texts.tolist() == [f"Sleep stage {stages[i] or '?'}" for i in spans]
    if n:
        grid = clip_labels(read_scoring(path, start=start), 7.5 + 30 * n)
        assert grid.stage.tolist() == [STAGES.index(s) if s else -1 for s in stages]
