"""Labels of an embeddings folder against those of a store that has changed since."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from nights import write_night

from sleepfm_fast.clips import ClipStore
from sleepfm_fast.embeddings import Description, Embeddings
from sleepfm_fast.evaluation.changed_store import keys, rows_of, store_note
from sleepfm_fast.evaluation.embedding_writer import EmbeddingWriter
from sleepfm_fast.preprocess import cli
from sleepfm_fast.store.clip_facts import columns_of, people_of


def ingest(nights: Path, *options: str) -> Path:
    store = nights.parent / "store"
    assert cli([str(nights), str(store), "--backend", "threading", "--workers", "1", *options]) == 0
    return store


@pytest.fixture
def nights(tmp_path: Path) -> Path:
    folder = tmp_path / "nights"
    folder.mkdir()
    for i in range(3):
        write_night(folder / f"s{i}.edf", seed=i, stages="W12R", events=[(35, 20, "Hypopnea")])
    (folder / "participants.csv").write_text("subject,age,sex\ns0,30,F\ns1,40,M\ns2,50,F\n")
    return folder


@pytest.fixture
def folder(nights: Path) -> Path:
    return embedded_of(ingest(nights), nights.parent / "embeddings")


def embedded_of(folder: Path, path: Path) -> Path:
    """Embeddings of a store."""
    store = ClipStore(folder)
    vectors = np.zeros((len(store), 1, 4), np.float32)
    vectors[..., 0] = 1
    with EmbeddingWriter(path, len(store), ("brain",), 4) as writer:
        writer.append(vectors)
        writer.finish(
            columns_of(store, np.zeros(len(store.subjects), np.int8)),
            Description(**people_of(store), run="run", store=str(store.path), split_rule="all"),
        )
    return path


def test_an_unchanged_store_is_not_mentioned(nights: Path, folder: Path) -> None:
    assert store_note(Embeddings(folder)) == ""
    ingest(nights)
    assert store_note(Embeddings(folder)) == ""
    shutil.rmtree(nights.parent / "store")
    assert store_note(Embeddings(folder)) == "", "nothing can be said of a store that is elsewhere"


def test_added_and_removed_nights(nights: Path, folder: Path) -> None:
    write_night(nights / "a-first-one.edf", seed=9, seconds=60, stages="W1")
    ingest(nights)
    assert "it has 2 clips more. The" in store_note(Embeddings(folder)), "the rows of the others have moved, no more"
    (nights.parent / "overrides.json").write_text('{"s1.edf": "exclude"}')
    ingest(nights, "--overwrite", "--overrides", str(nights.parent / "overrides.json"))
    assert "it has 2 clips more, 4 clips fewer. The" in store_note(Embeddings(folder))


def test_another_scoring_and_another_table(nights: Path, folder: Path) -> None:
    write_night(nights / "s1.edf", seed=1, stages="W13R")
    (nights / "participants.csv").write_text("subject,age,sex\ns0,31,M\ns1,40,M\ns2,50,F\n")
    ingest(nights, "--overwrite")
    note = store_note(Embeddings(folder))
    assert "1 clip with another stage, 4 clips with another label of breathing events" in note
    assert "1 recording at another age, 1 subject of another sex" in note
    assert "--overwrite" in note
    (nights / "participants.csv").write_text("recording,subject\ns0.edf,x\ns1.edf,s1\ns2.edf,s2\n")
    ingest(nights, "--overwrite")
    assert "4 clips of another subject" in store_note(Embeddings(folder))


def test_another_age_in_the_table_is_said(nights: Path, folder: Path, capsys) -> None:
    capsys.readouterr()
    ingest(nights)
    assert "another subject, age or sex" not in capsys.readouterr().err
    (nights / "participants.csv").write_text("subject,age,sex\ns0,30,F\ns1,41,M\ns2,50,F\n")
    ingest(nights)
    assert "gives 1 night of the store another subject, age or sex than before" in capsys.readouterr().err
    assert "1 recording at another age" in store_note(Embeddings(folder))


def test_another_age_at_a_later_visit_is_said(nights: Path, tmp_path: Path) -> None:
    """The subject's own age is that of the first visit, and stays."""
    table = "recording,subject,age\ns0,a,30\ns1,a,{}\ns2,b,50\n"
    (nights / "participants.csv").write_text(table.format(35))
    embedded = embedded_of(ingest(nights), tmp_path / "later")
    assert store_note(Embeddings(embedded)) == ""
    (nights / "participants.csv").write_text(table.format(70))
    ingest(nights)
    assert "it has 1 recording at another age. The" in store_note(Embeddings(embedded))


def test_rows_are_found_by_recording_and_time() -> None:
    recording, onset_s = np.array([0, 0, 1, 2, 2]), np.array([0.25, 30.25, 0, 0, 86_400.0])
    there = keys(recording, onset_s)
    assert rows_of(there, there).tolist() == [0, 1, 2, 3, 4]
    assert rows_of(keys(np.array([2, 0, 3, 0]), np.array([86_400.0, 30.25, 0, 0])), there).tolist() == [4, 1, -1, -1]
    assert rows_of(there, there[:0]).tolist() == [-1] * 5
