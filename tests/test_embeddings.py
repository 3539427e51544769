"""The embeddings folder: what is written is read back, what is not whole or not sound is refused by name."""

from __future__ import annotations

import copy
import json
import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from synthetic_embeddings import MODALITIES, columns_of, description_of, unit, write_folder

from sleepfm_fast.embeddings import COLUMNS, Embeddings, ModalityRows
from sleepfm_fast.errors import SleepfmError
from sleepfm_fast.evaluation.embedding_writer import EmbeddingWriter

N, DIM = 103, 16


@pytest.fixture
def parts():
    rng = np.random.default_rng(3)
    subject = np.sort(rng.integers(0, 7, N))
    subject[:7] = np.arange(7)
    subject.sort()
    columns = columns_of(
        subject, np.array([0, 0, 0, 1, 1, 2, 2])[subject], stage=rng.integers(-1, 5, N), sdb=rng.integers(-1, 2, N)
    )
    mask = rng.random((N, 3)) < 0.8
    return rng.standard_normal((N, 3, DIM)) * 5, columns, mask


@pytest.fixture
def folder(tmp_path, parts):
    x, columns, mask = parts
    return write_folder(tmp_path / "emb", x, columns, mask=mask, batch=10)


def test_what_is_written_is_read_back(folder, parts):
    x, columns, mask = parts
    e = Embeddings(folder)
    assert (len(e), e.dim, e.modalities) == (N, DIM, MODALITIES)
    np.testing.assert_array_equal(e.mask, mask)
    np.testing.assert_array_equal(np.isnan(e.vectors).all(2), ~mask)
    np.testing.assert_array_equal(np.isnan(e.vectors).any(2), ~mask)
    np.testing.assert_array_equal(e.vectors[mask], unit(x)[mask].astype(np.float32))
    for name, dtype in COLUMNS.items():
        assert getattr(e, name).dtype == dtype
        np.testing.assert_array_equal(getattr(e, name), columns[name])
    assert e.description == description_of(7)
    assert e.overlap_note == ""
    e.verify()


def test_only_the_named_files_are_left(folder):
    names = {p.name for p in folder.iterdir()}
    assert names == {"embeddings.json", "embeddings.npy", "mask.npy", *(f"{c}.npy" for c in COLUMNS)}
    assert [p.name for p in folder.parent.iterdir()] == ["emb"]


def test_batch_size_changes_no_byte(tmp_path, parts):
    x, columns, mask = parts
    one = write_folder(tmp_path / "one", x, columns, mask=mask, batch=1)
    all_ = write_folder(tmp_path / "all", x, columns, mask=mask, batch=N)
    for file in one.iterdir():
        assert file.read_bytes() == (all_ / file.name).read_bytes(), file.name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
def test_tensors_of_any_float_type_are_taken(tmp_path, dtype):
    torch = pytest.importorskip("torch")
    x = torch.randn(5, 3, DIM, generator=torch.Generator().manual_seed(0)).to(getattr(torch, dtype)).requires_grad_()
    mask = torch.ones(5, 3, dtype=torch.bool)
    with EmbeddingWriter(tmp_path / "e", 5, MODALITIES, DIM) as writer:
        writer.append(x, mask)
        writer.finish(columns_of([0] * 5, [0] * 5), description_of(1))
    expected = unit(x.detach().double().numpy()).astype(np.float32)
    np.testing.assert_array_equal(Embeddings(tmp_path / "e").vectors, expected)


def test_read_gives_the_modalities_in_the_order_asked(folder, parts):
    x, _, mask = parts
    e = Embeddings(folder)
    clips = np.flatnonzero(mask.all(1))[::-3]
    np.testing.assert_allclose(e.read(clips, ("ecg", "respiratory")), unit(x)[clips][:, [2, 0]], atol=1e-7)


@pytest.mark.parametrize("how", [np.asarray, list, tuple, np.int32, np.uint8])
def test_clips_are_chosen_by_numbers_of_any_kind(folder, parts, how):
    x, _, mask = parts
    clips = np.flatnonzero(mask.all(1))[:20]
    given = clips.astype(how) if isinstance(how, type) and issubclass(how, np.generic) else how(clips)
    np.testing.assert_allclose(Embeddings(folder).read(given), unit(x)[clips], atol=1e-7)


def test_clips_are_chosen_by_a_truth_value_for_each(folder, parts):
    """As NumPy's arrays are; taken for numbers they were the vectors of clips 0 and 1, again and again."""
    x, columns, mask = parts
    e = Embeddings(folder)
    chosen = mask.all(1) & (columns["stage"] == 2)
    assert 1 < chosen.sum() < N
    expected = unit(x)[chosen]
    np.testing.assert_allclose(e.read(chosen), expected, atol=1e-7)
    np.testing.assert_allclose(e.copy(chosen, MODALITIES), expected, atol=1e-7)
    np.testing.assert_allclose(e.matrix(list(chosen), MODALITIES), expected.reshape(len(expected), -1), atol=1e-7)
    assert e.matrix(np.zeros(N, bool), MODALITIES).shape == e.matrix([], MODALITIES).shape == (0, 3 * DIM)


@pytest.mark.parametrize(
    ("clips", "error", "said"),
    [
        (np.ones(7, bool), IndexError, r"clips is bool \[7\]; expected one value for each of the 103"),
        (np.array([1.0, 2.0]), TypeError, r"clips is float64 of shape \(2,\); expected their numbers"),
        (5, TypeError, r"clips is int64 of shape \(\); .* such as \[0, 5\], or bool \[103\]"),
        (np.array([[0, 1]]), TypeError, r"shape \(1, 2\)"),
        (slice(0, 5), TypeError, "clips is a slice"),
    ],
)
def test_what_chooses_no_clips_is_refused(folder, clips, error, said):
    for method in ("read", "copy", "matrix"):
        with pytest.raises(error, match=said):
            getattr(Embeddings(folder), method)(clips, MODALITIES)


def test_modalities_that_are_none_are_refused(folder):
    e = Embeddings(folder)
    for call in (lambda names: e.matrix([0], names), lambda names: e.copy([0], names), e.width):
        with pytest.raises(ValueError, match=r"the text 'ecg'; expected a sequence of names: \('ecg',\)"):
            call("ecg")
        with pytest.raises(ValueError, match=f"no modality 'heart' in .*; it has {', '.join(MODALITIES)}"):
            call(("ecg", "heart"))


def test_open_embeddings_are_sent_as_their_path(folder):
    """To the processes of a grid search, for example."""
    e = Embeddings(folder)
    sent = pickle.dumps(e)
    assert len(sent) < 1000
    for again in (pickle.loads(sent), copy.deepcopy(e)):
        np.testing.assert_array_equal(again.vectors, e.vectors)
        assert again.description == e.description


def test_a_clip_that_lacks_a_modality_is_no_damage(folder, parts):
    """Who deletes the folder, as is advised of a damaged one, loses it for nothing."""
    embeddings = Embeddings(folder)
    mask = np.asarray(embeddings.mask)
    lacking = np.flatnonzero(~mask.all(axis=1))
    with pytest.raises(SleepfmError) as refused:
        embeddings.matrix(np.arange(N), embeddings.modalities)
    assert f"{lacking.size} of the {N} clips asked for lack a modality (the first: clip {lacking[0]} of" in str(
        refused.value
    )
    assert "damaged" not in str(refused.value)
    assert embeddings.matrix(np.flatnonzero(mask[:, 1]), [MODALITIES[1]]).shape == (mask[:, 1].sum(), DIM)


def test_clips_of_splits(folder, parts):
    _, columns, _ = parts
    e = Embeddings(folder)
    np.testing.assert_array_equal(e.clips_of("test"), np.flatnonzero(columns["split"] == 2))
    np.testing.assert_array_equal(e.clips_of("train", "validation"), np.flatnonzero(columns["split"] <= 1))
    with pytest.raises(ValueError, match="no split 'dev'"):
        e.clips_of("dev")


def test_overlap_without_own_test_clips_means_all_clips(tmp_path):
    x = np.random.default_rng(0).standard_normal((9, 3, DIM))
    columns = columns_of([0] * 9, [0] * 8 + [1])
    e = Embeddings(write_folder(tmp_path / "e", x, columns, overlap=True))
    assert "same subjects" in e.overlap_note
    np.testing.assert_array_equal(e.clips_of("test"), np.arange(9))
    np.testing.assert_array_equal(e.clips_of("train"), np.arange(8))
    f = Embeddings(write_folder(tmp_path / "f", x, columns_of([0] * 9, [0] * 9)))
    assert f.clips_of("test").size == 0


def test_a_subject_in_two_splits_must_be_declared(tmp_path):
    x = np.ones((4, 3, DIM))
    columns = columns_of([0, 0, 1, 1], [0, 0, 0, 2])
    with pytest.raises(ValueError, match="s001 is in more than one split"):
        write_folder(tmp_path / "e", x, columns)
    assert not any(tmp_path.iterdir())
    assert Embeddings(write_folder(tmp_path / "e", x, columns, overlap=True, overlap_note="It overlaps.")).overlap_note


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_an_embedding_that_has_no_direction_is_refused(tmp_path, parts, value):
    x, columns, mask = parts
    mask[50, 1] = True
    x[50, 1] = value
    with pytest.raises(SleepfmError, match="the brain embedding of clip 50 has length"):
        write_folder(tmp_path / "e", x, columns, mask=mask, batch=7)
    assert not any(tmp_path.iterdir())
    mask[50, 1] = False  # what stands where the modality is missing does not matter
    write_folder(tmp_path / "e", x, columns, mask=mask, batch=7)


def test_an_existing_folder_is_not_overwritten(folder, parts):
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    with pytest.raises(SleepfmError, match="exists and is not overwritten"):
        write_folder(folder, parts[0], parts[1])
    assert before == {p.name: p.read_bytes() for p in folder.iterdir()}


def test_overwriting_keeps_the_old_folder_until_the_new_one_is_whole(folder, parts):
    x, columns, _ = parts
    old = (folder / "embeddings.npy").read_bytes()
    writer = EmbeddingWriter(folder, N, MODALITIES, DIM, overwrite=True)
    writer.append(x[:10])
    writer.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert (folder / "embeddings.npy").read_bytes() == old
    link = folder.with_name("link")
    link.symlink_to(folder)
    with EmbeddingWriter(link, N, MODALITIES, DIM, overwrite=True) as writer:
        writer.append(-x)
        writer.finish(columns, description_of(7))
    np.testing.assert_array_equal(Embeddings(link).vectors, unit(-x).astype(np.float32))
    assert sorted(p.name for p in folder.parent.iterdir()) == [folder.name, "link"]
    assert link.is_symlink()


def test_overwriting_spares_a_folder_of_other_things(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(SleepfmError, match="not an embeddings folder"):
        EmbeddingWriter(tmp_path, N, MODALITIES, DIM, overwrite=True)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_run_in_place_of_its_embeddings_is_answered_with_their_folder(tmp_path):
    (tmp_path / "run").mkdir()
    with pytest.raises(SleepfmError, match="run is not a finished embeddings folder"):
        Embeddings(tmp_path / "run")
    rng = np.random.default_rng(0)
    write_folder(tmp_path / "run" / "embeddings", rng.standard_normal((6, 3, 4)), columns_of(np.arange(6), np.zeros(6)))
    with pytest.raises(SleepfmError, match=r"run is a run, not its embeddings folder; give .*run/embeddings"):
        Embeddings(tmp_path / "run")
    assert len(Embeddings(tmp_path / "run" / "embeddings")) == 6


def test_an_empty_folder_is_taken(tmp_path, parts):
    (tmp_path / "e").mkdir()
    Embeddings(write_folder(tmp_path / "e", parts[0], parts[1]))


def test_leaving_before_finish_keeps_nothing(tmp_path):
    with (
        pytest.raises(ValueError, match=r"closed before finish\(\)"),
        EmbeddingWriter(tmp_path / "e", 2, MODALITIES, DIM) as writer,
    ):
        writer.append(np.ones((2, 3, DIM)))
    assert not any(tmp_path.iterdir())


def test_two_writers_of_one_folder(tmp_path):
    with EmbeddingWriter(tmp_path / "e", 2, MODALITIES, DIM) as first:
        first.append(np.ones((1, 3, DIM)))
        with pytest.raises(SleepfmError, match=r"another process \(.*\) is writing"):
            EmbeddingWriter(tmp_path / "e", 2, MODALITIES, DIM)
        first.append(np.ones((1, 3, DIM)))
        first.finish(columns_of([0, 0], [0, 0]), description_of(1))
    assert len(Embeddings(tmp_path / "e")) == 2


def _write_and_hang(path: str) -> None:
    writer = EmbeddingWriter(path, 2, MODALITIES, DIM)
    writer.append(np.ones((1, 3, DIM)))
    writer._vectors.file.flush()
    time.sleep(600)


def test_a_killed_writer_leaves_no_folder_and_no_obstacle(tmp_path):
    process = multiprocessing.get_context("spawn").Process(target=_write_and_hang, args=(str(tmp_path / "e"),))
    process.start()
    file = tmp_path / ".e.partial" / "embeddings.npy"
    deadline = time.monotonic() + 300
    while not (file.exists() and file.stat().st_size > 128) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert file.stat().st_size > 128
    with pytest.raises(SleepfmError, match="no embeddings folder"):
        Embeddings(tmp_path / "e")
    with EmbeddingWriter(tmp_path / "e", 1, MODALITIES, DIM) as writer:
        writer.append(np.ones((1, 3, DIM)))
        writer.finish(columns_of([0], [2]), description_of(1))
    Embeddings(tmp_path / "e").verify()


def _stopped_after(path, parts, n, key, error=KeyboardInterrupt):
    x, _, mask = parts
    writer = EmbeddingWriter(path, N, MODALITIES, DIM, key=key)
    for i in range(writer.n_written, n, 10):
        writer.append(x[i : i + 10], mask[i : i + 10])
    writer.__exit__(error, error(), None)


def _gone_on(path, parts, key):
    x, columns, mask = parts
    with EmbeddingWriter(path, N, MODALITIES, DIM, key=key) as writer:
        begun = writer.n_written
        for i in range(begun, N, 10):
            writer.append(x[i : i + 10], mask[i : i + 10])
        writer.finish(columns, description_of(7))
    return begun


def test_a_stopped_writer_goes_on_to_the_same_bytes(tmp_path, parts, capsys):
    path, whole = tmp_path / "stopped", tmp_path / "whole"
    assert _gone_on(whole, parts, {"weights": "a"}) == 0
    _stopped_after(path, parts, 30, {"weights": "a"})
    _stopped_after(path, parts, 60, {"weights": "a"}, SleepfmError)
    # What a kill leaves behind the last checkpoint is cut off.
    with (tmp_path / ".stopped.partial" / "embeddings.npy").open("ab") as file:
        file.write(b"torn")
    (tmp_path / ".stopped.partial" / "progress.json.12-34.tmp").write_text("{")
    assert _gone_on(path, parts, {"weights": "a"}) == 60
    assert "continuing: 60 of 103 clips were finished before" in capsys.readouterr().err
    assert {f.name: f.read_bytes() for f in path.iterdir()} == {f.name: f.read_bytes() for f in whole.iterdir()}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["stopped", "whole"]


def test_what_was_made_otherwise_is_not_gone_on_with(tmp_path, folder, parts, capsys):
    path = tmp_path / "stopped"
    _stopped_after(path, parts, 30, {"weights": "a", "store": "s"})
    assert _gone_on(path, parts, {"weights": "b", "store": "s"}) == 0
    assert "30 clips that an unfinished run left" in (err := capsys.readouterr().err)
    assert "were made with other inputs and differ in weights (a there, b now); starting from the beginning" in err
    assert (path / "embeddings.npy").read_bytes() == (folder / "embeddings.npy").read_bytes()


def test_an_unfinished_part_that_was_changed_is_refused(tmp_path, parts):
    path = tmp_path / "stopped"
    _stopped_after(path, parts, 30, {"weights": "a"})
    file = tmp_path / ".stopped.partial" / "embeddings.npy"
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    with pytest.raises(SleepfmError, match=r"stopped.partial is damaged"):
        _gone_on(path, parts, {"weights": "a"})
    file.write_bytes(content[:-40])
    with pytest.raises(SleepfmError, match="shorter than the 30 rows"):
        _gone_on(path, parts, {"weights": "a"})
    assert not (tmp_path / ".stopped.claim").exists()


def test_checkpoints_are_written_while_it_works(tmp_path, parts, monkeypatch):
    monkeypatch.setattr("sleepfm_fast.evaluation.embedding_writer.CHECKPOINT_S", 0)
    writer = EmbeddingWriter(tmp_path / "e", N, MODALITIES, DIM, key={})
    writer.append(parts[0][:10])
    assert json.loads((writer.partial / "progress.json").read_text())["clips"] == 10
    writer._release()  # as if killed
    writer = EmbeddingWriter(tmp_path / "e", N, MODALITIES, DIM, key={})
    assert writer.n_written == 10
    writer._release()


@pytest.mark.parametrize(
    ("embeddings", "mask", "match"),
    [
        (np.ones((2, 2, DIM)), None, "expected"),
        (np.ones((2, 3, DIM + 1)), None, "expected"),
        (np.ones((2, 3, DIM)), np.ones((3, 3), bool), "mask of shape"),
        (np.ones((4, 3, DIM)), None, "clip 4 of 3 announced"),
        (np.array(1.0), None, "expected"),
    ],
)
def test_append_checks_shapes(tmp_path, embeddings, mask, match):
    with pytest.raises(ValueError, match=match), EmbeddingWriter(tmp_path / "e", 3, MODALITIES, DIM) as writer:
        writer.append(embeddings, mask)


def _write(path, x, n_clips, columns):
    with EmbeddingWriter(path, n_clips, MODALITIES, DIM) as writer:
        writer.append(x)
        writer.finish(columns, description_of(1))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda c: c.pop("sdb"), "columns are"),
        (lambda c: c.update(stage=np.array([0, 5])), "stage holds values from 0 to 5; expected -1 to 4"),
        (lambda c: c.update(subject=np.array([0, 1])), "subject holds values"),
        (lambda c: c.update(split=np.array([0, 3])), "split holds values"),
        (lambda c: c.update(onset_s=np.array([0.0, np.nan])), "onset_s holds values"),
        (lambda c: c.update(clip=np.array([0, 1, 2])), "clip has shape"),
    ],
)
def test_finish_checks_columns(tmp_path, change, match):
    columns = columns_of([0, 0], [0, 0])
    change(columns)
    with pytest.raises(ValueError, match=match):
        _write(tmp_path / "e", np.ones((2, 3, DIM)), 2, columns)


def test_finish_counts_clips(tmp_path):
    with pytest.raises(ValueError, match="1 clip was appended; 2 were announced"):
        _write(tmp_path / "e", np.ones((1, 3, DIM)), 2, columns_of([0, 0], [0, 0]))


def _rewrite(name, change):
    def act(folder: Path) -> None:
        record = json.loads((folder / name).read_text())
        change(record)
        (folder / name).write_text(json.dumps(record))

    return act


def _flip_byte(folder: Path) -> None:
    data = bytearray((folder / "stage.npy").read_bytes())
    data[-1] = 77
    (folder / "stage.npy").write_bytes(data)


DAMAGES = {
    "file gone": (lambda f: (f / "sdb.npy").unlink(), r"sdb\.npy is damaged: the file is missing"),
    "cut short": (lambda f: os.truncate(f / "embeddings.npy", 4000), r"embeddings\.npy is damaged"),
    "empty": (lambda f: os.truncate(f / "mask.npy", 0), r"mask\.npy is damaged"),
    "not npy": (lambda f: (f / "clip.npy").write_text("hello"), r"clip\.npy is damaged"),
    "pickled": (
        lambda f: np.save(f / "clip.npy", np.array([{}] * N, dtype=object), allow_pickle=True),
        r"clip\.npy is damaged",
    ),
    "other type": (lambda f: np.save(f / "split.npy", np.zeros(N, np.int64)), r"split\.npy is damaged.*int64"),
    "other length": (lambda f: np.save(f / "split.npy", np.zeros(N + 1, np.int8)), r"split\.npy is damaged"),
    "value out of range": (_flip_byte, r"stage\.npy is damaged: column stage holds values"),
    "no json": (lambda f: (f / "embeddings.json").unlink(), "not a finished embeddings folder"),
    "half a json": (lambda f: os.truncate(f / "embeddings.json", 40), r"embeddings\.json cannot be read"),
    "entry gone": (_rewrite("embeddings.json", lambda r: r.pop("subjects")), r"embeddings\.json is damaged.*subjects"),
    "later version": (_rewrite("embeddings.json", lambda r: r.update(version=9)), "this version reads"),
    "other json": (lambda f: (f / "embeddings.json").write_text("[1]"), "this version reads"),
    "deep json": (lambda f: (f / "embeddings.json").write_text("[" * 100_000), r"embeddings\.json cannot be read"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_named(folder, name):
    act, match = DAMAGES[name]
    act(folder)
    with pytest.raises(SleepfmError, match=match):
        Embeddings(folder)


def test_damage_inside_the_vectors_is_named_when_they_are_read(folder, parts):
    clip = int(np.flatnonzero(parts[2][:, 1])[4])
    with (folder / "embeddings.npy").open("r+b") as file:
        file.seek(-(N * 3 - clip * 3 - 1) * DIM * 4, os.SEEK_END)
        file.write(np.full(DIM, 0.01, np.float32).tobytes())
    e = Embeddings(folder)
    e.read(np.flatnonzero(parts[2][:, 1])[:4], ("brain",))
    with pytest.raises(SleepfmError, match=rf"embeddings\.npy is damaged: the brain vector of clip {clip} "):
        e.read(np.flatnonzero(parts[2][:, 1])[:5], ("brain",))
    with pytest.raises(SleepfmError, match=r"embeddings\.npy is damaged: its digest"):
        e.verify()


def test_a_folder_of_version_1_is_read(folder):
    _rewrite("embeddings.json", lambda r: (r.update(version=1), r.pop("kind"), r.pop("features")))(folder)
    e = Embeddings(folder)
    assert (e.kind, e.features, e.widths) == ("embedding", {}, dict.fromkeys(MODALITIES, DIM))
    assert e.read(np.arange(0)).shape == (0, 3, DIM)


NAMES = {"respiratory": ("rate_per_min", "sd_uv", "spo2_mean_percent"), "ecg": ("hr_per_min",)}


def write_features(path, x, mask=None):
    with EmbeddingWriter(path, len(x), tuple(NAMES), 3, features=NAMES) as writer:
        writer.append(x, mask)
        writer.finish(columns_of([0] * len(x), [0] * len(x)), description_of(1))
    return Embeddings(path)


def test_features_keep_their_values_and_their_names(tmp_path):
    x = np.arange(12.0).reshape(2, 2, 3) * 100
    x[1, 0, 1] = np.nan  # a channel that this clip lacks
    e = write_features(tmp_path / "f", x)
    assert (e.kind, e.features, e.widths, e.dim) == ("feature", NAMES, {"respiratory": 3, "ecg": 1}, 3)
    assert np.isnan(e.read(np.arange(2))[:, 1, 1:]).all(), "beyond a modality's own features stands nothing"
    both = e.matrix(np.arange(2), ("ecg", "respiratory"))
    assert e.width(("ecg", "respiratory")) == 4
    np.testing.assert_array_equal(both, [[300, 0, 100, 200], [900, 600, np.nan, 800]])
    e.verify()


def test_embeddings_side_by_side(folder, parts):
    e, clips = Embeddings(folder), np.flatnonzero(parts[2].all(1))
    np.testing.assert_array_equal(e.matrix(clips, MODALITIES), e.read(clips).reshape(len(clips), -1))
    assert e.width(("brain",)) == DIM


def test_an_infinite_feature_is_refused_by_name(tmp_path):
    x = np.zeros((5, 2, 3))
    x[3, 0, 1] = np.inf
    with pytest.raises(SleepfmError, match="the feature 'sd_uv' of clip 3 is inf"):
        write_features(tmp_path / "f", x)
    mask = np.ones((5, 2), bool)
    mask[3, 0] = False
    assert np.isnan(write_features(tmp_path / "f", x, mask).vectors[3, 0]).all()


def test_the_names_must_fit_the_width(tmp_path):
    with pytest.raises(ValueError, match="the largest must be dim = 4"):
        EmbeddingWriter(tmp_path / "f", 1, tuple(NAMES), 4, features=NAMES)
    with pytest.raises(ValueError, match="the largest must be dim = 3"):
        EmbeddingWriter(tmp_path / "f", 1, ("ecg", "brain"), 3, features={"ecg": ("a", "b", "c"), "brain": ()})


def test_features_cannot_be_compared_across_modalities(tmp_path):
    e = write_features(tmp_path / "f", np.zeros((2, 2, 3)))
    with pytest.raises(SleepfmError, match="share no space"):
        ModalityRows(e, np.arange(2), "ecg")


def test_a_kind_or_names_that_do_not_fit_are_damage(tmp_path):
    for change in (
        lambda r: r.update(kind="picture"),
        lambda r: r["features"].update(ecg=["a", "b", "c", "d"]),
        lambda r: r["features"].pop("ecg"),
    ):
        path = tmp_path / "f"
        shutil.rmtree(path, ignore_errors=True)
        write_features(path, np.zeros((2, 2, 3)))
        _rewrite("embeddings.json", change)(path)
        with pytest.raises(SleepfmError, match=r"embeddings\.json is damaged"):
            Embeddings(path)


def test_missing_folder_and_file(tmp_path):
    with pytest.raises(SleepfmError, match="no embeddings folder"):
        Embeddings(tmp_path / "nothing")
    (tmp_path / "file").write_text("")
    with pytest.raises(SleepfmError, match="a file, not a folder"):
        Embeddings(tmp_path / "file")


def test_a_full_disk_is_a_sentence(tmp_path):
    # RLIMIT_FSIZE stands for the full disk: the write fails with EFBIG where it would with ENOSPC.
    code = f"""
import resource, signal, sys
import numpy as np
from sleepfm_fast.evaluation.embedding_writer import EmbeddingWriter
from sleepfm_fast.errors import SleepfmError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    with EmbeddingWriter({str(tmp_path / "e")!r}, 1000, ("brain",), 512) as w:
        for _ in range(10):
            w.append(np.ones((100, 1, 512)))
except SleepfmError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "failed" in done.stdout, done.stderr
    assert "Free space" in done.stdout
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("ages", [50.0], "it has 7 subjects and 1 ages"),
        ("ages", ["x"] * 7, "one of its ages is 'x'"),
        ("sexes", [1] * 7, "one of its sexes is 1"),
        ("ages", [10**400] * 7, "one of its ages is 1000"),
        ("ages", [float("nan")] * 7, "one of its ages is nan"),
        ("modalities", "abc", "the entry 'modalities'"),
        ("modalities", ["brain", "brain"], "the entry 'modalities'"),
        ("dim", float("inf"), "the entry 'dim'"),
        ("n_clips", -1, "the entry 'n_clips'"),
        ("features", 1, "the entry 'features'"),
        ("presets", "x", "the entry 'presets'"),
        ("presets", {"weights": "x"}, "the entry 'presets'"),
        ("store", 1, "the entry 'store'"),
        ("recordings", [["a"]] * 7, "the entry 'recordings'"),
        ("recordings", ["../a"] * 7, "the entry 'recordings'"),  # predict would write files of these names
        ("recordings", ["/tmp/a"] * 7, "the entry 'recordings'"),
        ("recordings", [".."] * 7, "the entry 'recordings'"),
        ("blake2b_128", [1], "the entry 'blake2b_128'"),
        ("made_of", [], "the entry 'made_of'"),
    ],
)
def test_people_changed_by_hand_are_damage(folder, name, value, sentence):
    file = folder / "embeddings.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), name: value}))
    with pytest.raises(SleepfmError, match=f"embeddings.json is damaged: {sentence}"):
        Embeddings(folder)
