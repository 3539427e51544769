"""A participants table that is corrected after a training: what weights have seen is not tested under a new name."""

import csv
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from called import last_json

from sleepfm_fast import classify, embed, features, preprocess, supervise, train
from sleepfm_fast.clips import ClipStore
from sleepfm_fast.embeddings import Embeddings
from sleepfm_fast.results import read_result
from sleepfm_fast.runs.origin import Seen, seen_by
from sleepfm_fast.runs.seen_recordings import SeenRecordings
from sleepfm_fast.store.clip_entries import RecordingEntry

TINY = ("--preset", "tiny", "--epochs", "1", "--batch-size", "32", "--threads", "1", "--device", "cpu")


def entry(name, subject, samples, start="2024-01-01T22:00:00"):
    return RecordingEntry(name, subject, "", start, 0, 1, 0, 1, 1, samples, None)


def store_of(*entries):
    return SimpleNamespace(recordings=list(entries), path="STORE")


NIGHTS = (entry("n1", "a", "1" * 64), entry("n2", "b", "2" * 64), entry("n3", "c", "3" * 64))
SEEN = Seen({"a": 0, "b": 1, "c": 2}, recordings=SeenRecordings.of(NIGHTS, {"a": 0, "b": 1, "c": 2}))


@pytest.mark.parametrize(
    ("now", "known", "renamed"),
    [
        (NIGHTS, {"a": 0, "b": 1, "c": 2}, 0),
        (
            (entry("n1", "new", "1" * 64),),
            {"new": 0, "b": 1, "c": 2},
            1,
        ),  # a's only night is found: the name says no more
        ((entry("n1", "c", "1" * 64), entry("n3", "a", "3" * 64)), {"a": 2, "b": 1, "c": 0}, 2),  # two names exchanged
        ((entry("n1", "x", "1" * 64), entry("n3", "x", "3" * 64)), {"x": 0, "b": 1}, 1),  # two are one person
        ((entry("n3", "a", "3" * 64),), {"a": 0, "b": 1}, 1),  # a's own night may yet be of a
        ((entry("other", "x", "1" * 64),), {"x": 0, "b": 1, "c": 2}, 1),  # another name, the same samples
        ((entry("n1", "x", "9" * 64),), {"x": 0, "b": 1, "c": 2}, 1),  # another montage: name and start
        ((entry("n1", "x", "9" * 64, "2024-01-02T22:00:00"),), {"a": 0, "b": 1, "c": 2}, 0),  # another's first night
        ((entry("n1", "x", "9" * 64, None),), {"a": 0, "b": 1, "c": 2}, 0),
        ((entry("visit2", "a", "8" * 64),), {"a": 0, "b": 1, "c": 2}, 0),  # a name tells of what was not recorded then
    ],
)
def test_recordings_tell_before_names(now, known, renamed):
    found, notices = SEEN.in_store(store_of(*now))
    assert found == known
    said = [f"{renamed} subject" + "s" * (renamed > 1)] if renamed else []
    assert [notice.partition(" of STORE")[0] for notice in notices] == said


def test_a_start_that_was_blanked_tells_nothing():
    """Two laboratories have a file of one name each, from midnight of the same day."""
    start = "2000-01-01T00:00:00"
    seen = Seen({"a": 0}, recordings=SeenRecordings.of([entry("001", "a", "1" * 64, start)], {"a": 0}))
    assert seen.in_store(store_of(entry("001", "b", "2" * 64, start))) == ({"a": 0}, ())
    assert seen.in_store(store_of(entry("001", "b", "1" * 64, start)))[0] == {"b": 0}


def test_a_copy_is_what_its_original_was():
    """One night under two names, in training and in test: under a third name it is what was trained on."""
    twice = (entry("n1", "a", "1" * 64), entry("copy", "c", "1" * 64))
    seen = Seen({"a": 0, "c": 2}, recordings=SeenRecordings.of(twice, {"a": 0, "c": 2}))
    assert seen.in_store(store_of(*twice))[0] == {"a": 0, "c": 2}
    assert seen.in_store(store_of(entry("n1", "a", "9" * 64), entry("third", "x", "1" * 64)))[0] == {
        "a": 0,
        "c": 2,
        "x": 0,
    }


def test_a_training_that_follows_another_knows_the_recordings_of_both():
    second = (entry("n1", "new", "1" * 64), entry("n9", "d", "9" * 64))
    both = SEEN.recordings.followed_by(second, {"new": 0, "d": 2})
    assert [(row["subject"], row["split"]) for row in both.plain()] == [("b", 1), ("c", 2), ("new", 0), ("d", 2)]
    text = json.dumps(both.plain())
    assert SeenRecordings.read(json.loads(text)) == both
    assert not any(word in text for word in ("n1", "2024", "22:00"))


@pytest.fixture(scope="module")
def trained(planted, tmp_path_factory):
    """Runs of train and supervise, and a store of the same nights, each of a subject of another name."""
    folder = tmp_path_factory.mktemp("renamed")
    assert train.cli([str(planted), str(folder / "run"), *TINY]) == 0
    deep = ("--task", "stage", "--preset", "tiny", "--epochs", "1", "--batch-size", "32", "--threads", "1")
    assert supervise.cli([str(planted), str(folder / "deep"), *deep, "--device", "cpu", "--bootstraps", "0"]) == 0
    nights, names = planted.parent / "edf", sorted(path.stem for path in (planted.parent / "edf").glob("*.edf"))
    with (folder / "people.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("recording", "subject"), *((name, f"person-{name}") for name in names)])
    arguments = [str(nights), str(folder / "store"), "--participants", str(folder / "people.csv"), "--workers", "1"]
    assert preprocess.cli(arguments) == 0
    return folder


def splits_of(store, config):
    """Split of each recording, by what the run says of its subject then."""
    return {r.id: config["subjects"][r.subject] for r in ClipStore(store).recordings}


def test_embeddings_of_renamed_nights_keep_their_sides(planted, trained, capsys):
    config = json.loads((trained / "run" / "config.json").read_text())
    then = splits_of(planted, config)
    capsys.readouterr()
    assert (
        embed.cli([str(trained / "run"), str(trained / "store"), str(trained / "embeddings"), "--device", "cpu"]) == 0
    )
    assert "notice: 12 subjects of" in capsys.readouterr().err
    arguments = [
        str(trained / "store"),
        str(trained / "features"),
        "--split-like",
        str(trained / "run"),
        "--workers",
        "1",
    ]
    assert features.cli(arguments) == 0
    for made in ("embeddings", "features"):
        found = Embeddings(trained / made)
        names = [found.description.recordings[i] for i in found.recording]
        assert [then[name] for name in names] == np.asarray(found.split).tolist()
    seen = Embeddings(trained / "embeddings").description.presets["subjects_seen"]
    words = {0: "train", 1: "validation"}
    assert seen == {f"person-{name}": words[code] for name, code in then.items() if code in words}
    assert "subjects_seen" not in Embeddings(trained / "features").description.presets
    # Names alone, as an earlier version kept them, would move people.
    by_name = Seen(config["subjects"]).in_store(ClipStore(trained / "store"))[0]
    assert not by_name.keys() & set(ClipStore(trained / "store").subjects)


def test_a_further_training_keeps_the_sides_of_renamed_nights(planted, trained, capsys):
    then = splits_of(planted, json.loads((trained / "run" / "config.json").read_text()))
    arguments = [str(trained / "store"), str(trained / "further"), *TINY, "--init-from", str(trained / "run")]
    assert train.cli(arguments) == 0
    config = json.loads((trained / "further" / "config.json").read_text())
    assert splits_of(trained / "store", config) == then
    assert len(config["recordings"]) == len(config["initialised_from"]["recordings"]) == 12
    assert seen_by(config).in_store(ClipStore(planted))[0].items() >= then.items()


def test_classify_of_renamed_nights_tests_nobody_seen(planted, trained, capsys):
    config = json.loads((trained / "deep" / "config.json").read_text())
    then = splits_of(planted, config)
    capsys.readouterr()
    arguments = [str(trained / "deep"), str(trained / "store"), str(trained / "result"), "--bootstraps", "0"]
    assert classify.cli([*arguments, "--threads", "1", "--device", "cpu"]) == 0
    said = capsys.readouterr()
    assert "recordings that the run knows as another subject's" in said.err
    assert last_json(said.out)["overlap"] is False
    result = read_result(trained / "result")
    tested = {result.record["recordings"][i] for i in np.unique(result.array("recording"))}
    assert tested
    assert {then[name] for name in tested} == {2}
    arguments = [
        str(trained / "deep"),
        str(trained / "store"),
        "--predictions",
        str(trained / "all"),
        "--subjects",
        "all",
    ]
    assert classify.cli([*arguments, "--threads", "1", "--device", "cpu"]) == 0
    with (trained / "all" / "nights.csv").open() as file:
        assert {row["recording"]: row["split"] for row in csv.DictReader(file)} == {
            name: ("train", "validation", "test")[code] for name, code in then.items()
        }


@pytest.mark.parametrize(
    "damage", [{}, ["a"], [{"subject": "a"}], [{"subject": "a", "split": 3, "samples": "1", "night": None}]]
)
@pytest.mark.parametrize("place", ["recordings", "initialised_from"])
def test_damaged_recordings_are_named(trained, tmp_path, capsys, damage, place):
    run = shutil.copytree(trained / "run", tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    config[place] = damage if place == "recordings" else {"recordings": damage}
    (run / "config.json").write_text(json.dumps(config))
    capsys.readouterr()
    assert embed.cli([str(run), str(trained / "store"), str(tmp_path / "embeddings"), "--device", "cpu"]) == 1
    entry_named = place if place == "recordings" else "initialised_from.recordings"
    assert f"is damaged: the entry '{entry_named}' is" in capsys.readouterr().err
