"""A store of which one file has changed: it is refused by the file's name, or the night is made again."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nights import contents, preprocess, write_cohort
from synthetic_embeddings import columns_of, write_folder

from sleepfm_fast.clips import ClipStore, ClipStoreError
from sleepfm_fast.embeddings import Embeddings
from sleepfm_fast.errors import SleepfmError
from sleepfm_fast.filters import FilterBank
from sleepfm_fast.results import read_result, write_result
from sleepfm_fast.rundir import read_checkpoint, write_checkpoint
from sleepfm_fast.scoring.respiratory_counts import KINDS
from sleepfm_fast.storage.array_file import map_array
from sleepfm_fast.storage.columns import file_digest, read_columns, write_columns
from sleepfm_fast.store.clip_layout import read_store_file
from sleepfm_fast.store.feed import Feed
from sleepfm_fast.store.record_check import is_whole_record


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``edf`` and its ``store``."""
    from sleepfm_fast.preprocess import cli

    folder = tmp_path_factory.mktemp("made")
    write_cohort(folder / "edf")
    assert cli([str(folder / "edf"), str(folder / "store"), "--backend", "threading", "--workers", "1"]) == 0
    return folder


@pytest.fixture
def store(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made / "store", tmp_path / "store"))


def test_the_command_that_makes_a_store_again_can_be_pasted(store: Path, tmp_path: Path) -> None:
    odd = store.rename(tmp_path / "mein {store} 1")
    next((odd / "recordings").glob("*.bin")).unlink()
    with pytest.raises(ClipStoreError) as damaged:
        ClipStore(odd, verify=True)
    words = shlex.split(str(damaged.value).split("`")[1])
    assert (words[2], Path(words[3]).suffix, words[4:]) == ("sleepfm_fast.preprocess", ".edf", [str(odd)])
    record = json.loads((odd / "store.json").read_text())
    (odd / "store.json").write_text(json.dumps({**record, "index": None}))
    for path in (odd, tmp_path / "no store"):
        with pytest.raises(ClipStoreError) as refused:
            ClipStore(path)
        assert shlex.split(str(refused.value).split("`")[1])[3:] == ["FILES-OR-FOLDER", str(path)]
    with pytest.raises(SleepfmError) as missing:
        Embeddings(tmp_path / "no embeddings")
    assert shlex.split(str(missing.value).split("`")[1])[3:] == ["RUN", "STORE", str(tmp_path / "no embeddings")]


@pytest.mark.parametrize(
    ("column", "place", "value"),
    [
        ("recording", 0, 1),
        ("recording", 3, 1_000_000),
        ("clip", 1, -1),
        ("segment", 0, 7),
        ("segment", 0, -1),
        ("onset_s", 2, np.nan),
        ("onset_s", 2, 1e9),
        ("onset_s", 0, -30.0),
        ("segment_onset_num", 1, -(1 << 63)),
        ("stage", 0, 9),
        ("sdb", 0, -2),
        ("recording_first_clip", 1, 1 << 40),
        ("recording_first_clip", -1, 0),
        ("recording_first_segment", 1, -1),
        ("recording_subject", 0, 1_000_000),
        ("channel_fs_num", 0, 0),
        ("channel_fs_den", 0, 0),
        ("channel_gain", 0, np.inf),
        ("channel_itemsize", 0, 3),
        ("channel_present", 0, False),
        ("channel_unit", 0, 99),
        ("segment_onset_den", 0, 0),
        ("run_offset", 0, 1),
        ("run_offset", 0, 1 << 40),
        ("run_n_samples", 0, 1 << 61),
        ("run_n_samples", 0, -1),
        # One beyond what there is.
        ("segment", 0, 1),
        ("stage", 0, 5),
        ("stage", 0, -2),
        ("sdb", 0, 2),
        ("recording_subject", 0, 4),
        ("recording_subject", 0, -1),
        ("recording_first_clip", 0, 1),
        ("channel_unit", 0, -1),
        ("channel_offset", 0, np.nan),
        ("run_offset", 0, -64),
        ("onset_s", 0, -0.1),
    ],
)
def test_an_index_that_contradicts_itself_is_named(store, column, place, value):
    (file,) = store.glob(f"index-*/{column}.npy")
    values = np.load(file)
    values[place] = value
    np.save(file, values)
    with pytest.raises(ClipStoreError, match=r"index-\w+/.*\.npy is damaged: .* Delete the folder"):
        ClipStore(store)


@pytest.mark.parametrize("column", ["clip", "channel_gain", "run_offset", "recording_subject"])
@pytest.mark.parametrize("reshape", [lambda a: a[:-1], lambda a: a[None], lambda a: np.concatenate([a, a])])
def test_an_index_of_other_lengths_is_named(store, column, reshape):
    (file,) = store.glob(f"index-*/{column}.npy")
    np.save(file, reshape(np.load(file)))
    catalogue = json.loads((file.parent / "columns.json").read_text())
    catalogue[file.name]["n_bytes"] = file.stat().st_size
    (file.parent / "columns.json").write_text(json.dumps(catalogue))
    with pytest.raises(ClipStoreError, match=r"\.npy is damaged"):
        ClipStore(store)


def change_catalogue(file: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    catalogue = json.loads((file.parent / "columns.json").read_text())
    change(catalogue)
    (file.parent / "columns.json").write_text(json.dumps(catalogue))


def test_a_column_of_an_index_that_is_not_the_written_one_is_named(store):
    (file,) = store.glob("index-*/onset_s.npy")
    whole, catalogue = file.read_bytes(), (file.parent / "columns.json").read_bytes()
    np.save(file, np.load(file).astype(np.float32))
    n_bytes = file.stat().st_size
    with pytest.raises(SleepfmError, match=rf"onset_s\.npy is damaged: it has {n_bytes} bytes, {len(whole)} were"):
        ClipStore(store)
    change_catalogue(file, lambda c: c[file.name].update(n_bytes=n_bytes))
    with pytest.raises(SleepfmError, match=r"onset_s\.npy is damaged: its type is float32, float64 was expected"):
        ClipStore(store)
    file.write_bytes(whole)
    (file.parent / "columns.json").write_bytes(catalogue)
    change_catalogue(file, lambda c: c.pop(file.name))
    with pytest.raises(SleepfmError, match=r"onset_s\.npy is damaged: it is not listed in columns\.json"):
        ClipStore(store)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("columns.json", []),
        ("columns.json", {"clip.npy": 3}),
        ("recordings.json", {}),
        ("recordings.json", [{}]),
        ("subjects.json", [3]),
        ("units.json", [None]),
    ],
)
def test_texts_of_an_index_of_another_kind_are_named(store, name, value):
    (file,) = store.glob(f"index-*/{name}")
    text = json.dumps(value)
    if name != "columns.json":
        text = text.ljust(file.stat().st_size)
    file.write_text(text)
    if name != "columns.json":
        catalogue = json.loads((file.parent / "columns.json").read_text())
        catalogue[name]["n_bytes"] = file.stat().st_size
        (file.parent / "columns.json").write_text(json.dumps(catalogue))
    with pytest.raises(SleepfmError, match=rf"{name} is damaged"):
        ClipStore(store)


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s.pop("configuration"),
        lambda s: s.update(configuration=[]),
        lambda s: s["configuration"].pop("digest"),
        lambda s: s["configuration"].update(montage=3),
        lambda s: s["configuration"].update(events_scored="no"),
        lambda s: s["configuration"].update(inputs=1),
        lambda s: s["configuration"].update(meanings=[]),
        lambda s: s["configuration"].update({"from": 3}),
        lambda s: s.pop("index"),
        lambda s: s.update(index="../elsewhere"),
        lambda s: s.update(index=s["index"] + "/../../elsewhere"),
        lambda s: s.update(index=3),
        lambda s: s.update(montage=None),
        lambda s: s["montage"].pop("modalities"),
        lambda s: s["montage"]["modalities"][0].pop("slots"),
    ],
)
def test_a_store_file_of_another_kind_is_named(store, change):
    content = json.loads((store / "store.json").read_text())
    change(content)
    (store / "store.json").write_text(json.dumps(content))
    for read in (read_store_file, ClipStore):
        with pytest.raises(ClipStoreError, match=r"store\.json is damaged"):
            read(store)


def set_in(record: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = path.split(".")
    at: Any = record
    for name in parents:
        at = at[int(name) if isinstance(at, list) else name]
    if value is KeyError:
        del at[last]
    else:
        at[int(last) if isinstance(at, list) else last] = value


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("source", None),
        ("source.path", 3),
        ("source.size", KeyError),
        ("source.mtime_ns", "x"),
        ("source.sha256", None),
        ("scoring", {}),
        ("scoring.named", 3),
        ("clips", []),
        ("clips.onset_s", KeyError),
        ("clips.onset_s.0", None),
        ("clips.stage", [1]),
        ("clips.segment.0", 10**6),
        ("segments", {}),
        ("segments.0.runs", [[0, 0]]),
        ("segments.0.runs.0", 3),
        ("segments.0.onset_s", [0, 0]),
        ("segments.0.duration_s", KeyError),
        ("segments.0.duration_s", [1, 0]),
        ("clips.stage.0", 5),
        ("clips.sdb.0", 2),
        ("respiratory_events", 3),
        ("respiratory_events", {"hypopnea": 1}),
        ("channels.0.fs_hz", [0, 1]),
        ("channels.0.gain", None),
        ("channels.0.dtype", "O"),
        ("channels.0.present", 2),
        ("subject", None),
        ("age", "old"),
        ("issues", None),
        ("n_bytes", 1.0),
        ("configuration_digest", KeyError),
    ],
)
def test_a_night_whose_description_is_damaged_is_made_again(made, store, capsys, path, value):
    file = store / "recordings" / "a1.json"
    record = json.loads(file.read_text())
    set_in(record, path, value)
    file.write_text(json.dumps(record))
    before = contents(made / "store")
    status, result = preprocess(capsys, made / "edf", store)
    assert (status, result["added"], result["kept"]) == (0, 1, 3)
    assert contents(store) == before


FILE = {"path": "x.edf", "size": 1, "mtime_ns": 1}
WRONG: dict[str, list[Any]] = {
    "id": [None, KeyError],
    "subject": [3],
    "sha256": [None],
    "configuration_digest": [1],
    "n_bytes": [-1, 1 << 62, True, "1"],
    "age": [float("nan"), float("inf"), 1e301, True, "61"],
    "sex": [3],
    "start": [3],
    "issues": ["text", [3], {}],
    "source.path": [None],
    "source.size": [-1],
    "source.mtime_ns": [1.5, None],
    "source.sha256": [3],
    "source.others": [3, [FILE], [{"sha256": "0"}], [{**FILE, "sha256": 3}]],
    "scoring.path": [3],
    "scoring.passed_over": [3],
    "scoring.named": [[3], "x"],
    "scoring.also": [[{}], 3],
    "respiratory_events": [dict.fromkeys(KINDS, 1), {**dict.fromkeys(KINDS, 1), "outside_sleep": -1}, []],
    "channels": [{}, [], ""],
    "channels.0": [None],
    "channels.0.present": [None, 1],
    "channels.0.fs_hz": [[0, 1], [-1, 1], [1, 0], [1, -1], [1.0, 1], [1 << 62, 1], [1, 1 << 62], [1], 3, None],
    "channels.0.gain": [None, float("nan"), "1"],
    "channels.0.offset": [None, float("inf")],
    "channels.0.unit": [None, 3],
    "channels.0.dtype": ["<i8", None],
    "clips.onset_s.0": [-1.0, float("nan"), "0"],
    "clips.segment.0": [-1, 1, 0.0],
    "clips.stage.0": [-2, 5, 1.0],
    "clips.sdb.0": [-2, 2, None],
    "clips.sdb": [[0, 0, 0], [0] * 5, None],
    "segments.0.onset_s": [[0, 0], [0.5, 1], [1 << 62, 1], None],
    "segments.0.duration_s": [[1, 0], [1]],
    "segments.0.runs": [[], None],
    "segments.0.runs.0": [[0], [0, -1], [0, 1, 2], None],
}


@pytest.mark.parametrize("path", WRONG)
def test_a_description_with_a_wrong_entry_is_not_whole(made, path):
    text = (made / "store" / "recordings" / "a1.json").read_text()
    for value in WRONG[path]:
        record = json.loads(text)
        assert is_whole_record(record)
        set_in(record, path, value)
        assert not is_whole_record(record), value


def test_what_a_description_may_lack_or_have(made):
    text = (made / "store" / "recordings" / "a1.json").read_text()
    for path, value in (
        ("age", None),
        ("sex", None),
        ("start", None),
        ("respiratory_events", {**dict.fromkeys(KINDS, 1), "outside_sleep": 0}),
        ("source.others", [{**FILE, "sha256": "0"}]),
        ("scoring.also", [FILE]),
        ("scoring", {"path": None}),
        ("channels.0", {"present": False}),
        ("clips.stage.0", -1),
        ("clips.stage.0", 4),
        ("clips.sdb.0", -1),
        ("n_bytes", (1 << 62) - 1),
    ):
        record = json.loads(text)
        set_in(record, path, value)
        assert is_whole_record(record), path
    for other in (None, [], "x", {}):
        assert not is_whole_record(other)


def test_whole_records_are_whole(made, store, capsys):
    status, result = preprocess(capsys, made / "edf", store)
    assert (status, result["added"], result["kept"]) == (0, 0, 4)
    assert contents(store) == contents(made / "store")
    assert len(ClipStore(store, verify=True)) == 16


def columns_in(folder: Path, *, verify: bool = False) -> tuple[dict[str, Any], dict[str, Any]]:
    return read_columns(folder, {"a": "<i4"}, ("t",), remedy="Make it again.", verify=verify)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A column of two dimensions, which is not contiguous when it is written, and a text."""
    write_columns(tmp_path / "table", {"a": np.arange(6, dtype="<i4").reshape(2, 3).T}, {"t": ["Jürgen", 7]})
    return tmp_path / "table"


def test_a_table_comes_back(table):
    columns, texts = columns_in(table, verify=True)
    np.testing.assert_array_equal(columns["a"], [[0, 3], [1, 4], [2, 5]])
    assert columns["a"].flags.c_contiguous
    assert texts == {"t": ["Jürgen", 7]}
    assert sorted(path.name for path in table.iterdir()) == ["a.npy", "columns.json", "t.json"]


CATALOGUES: list[Any] = ["{", [], {"a.npy": 3}, {"a.npy": {"n_bytes": 3}}, {"a.npy": {"sha256": "0"}}]


@pytest.mark.parametrize("content", CATALOGUES, ids=str)
def test_a_list_of_columns_of_another_form_is_named(table, content):
    (table / "columns.json").write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(SleepfmError, match=r"columns\.json is damaged: .* Make it again\."):
        columns_in(table)


@pytest.mark.parametrize(
    ("name", "change", "sentence"),
    [
        ("a.npy", lambda c: c + b"x", "it has 153 bytes, 152 were written"),
        ("a.npy", lambda c: c[:-1], "it has 151 bytes, 152 were written"),
        ("a.npy", lambda c: c.replace(b"<i4", b"<u4"), "its type is uint32, int32 was expected"),
        ("a.npy", lambda c: c.replace(b"<i4", b"<i2"), "its type is int16, int32 was expected"),
        ("a.npy", lambda c: c.replace(b"NUMPY", b"NUMPX"), "it is no whole array"),
        ("t.json", lambda c: c.replace(b"]", b","), "is damaged"),
        ("t.json", lambda c: c.replace("ü".encode(), b"\xff\xff"), "is damaged"),
        ("columns.json", lambda c: c.replace(b"t.json", b"s.json"), "t.json is damaged: it is not listed"),
        ("columns.json", lambda c: c.replace(b"a.npy", b"b.npy"), "a.npy is damaged: it is not listed"),
    ],
)
def test_a_column_or_text_that_differs_is_named(table, name, change, sentence):
    changed = change((table / name).read_bytes())
    (table / name).write_bytes(changed)
    with pytest.raises(SleepfmError, match=sentence) as caught:
        columns_in(table)
    assert str(caught.value).endswith("Make it again.")


@pytest.mark.parametrize("name", ["a.npy", "t.json"])
def test_a_changed_byte_of_a_column_is_found_when_asked(table, name):
    content = (table / name).read_bytes()
    (table / name).write_bytes(content[:-1] + b" " if name == "a.npy" else content.replace(b"7", b"8"))
    columns_in(table)
    with pytest.raises(SleepfmError, match=r"its SHA-256 is not the one that was written\. Make it again"):
        columns_in(table, verify=True)
    assert file_digest(table / name) == hashlib.sha256((table / name).read_bytes()).hexdigest()


def test_a_digest_is_of_the_whole_file(tmp_path):
    content = np.random.default_rng(0).bytes((1 << 22) + 1000)
    (tmp_path / "x").write_bytes(content)
    assert file_digest(tmp_path / "x") == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\x03\x04",
        b"\x93NUMPY\x01\x00\x08\x00((((((((",
        b"\x93NUMPY\x01\x00\x02\x00{}",
        b"\x93NUMPY\x09\x00" + bytes(90),
    ],
)
def test_what_is_no_array_is_a_value_error(tmp_path, content):
    (tmp_path / "x.npy").write_bytes(content)
    with pytest.raises(ValueError, match="no whole array"):
        map_array(tmp_path / "x.npy")


REFUSED: dict[str, int] = {}
"""Names of files that the system does not let anybody open, and the error that it gives."""


def refuse(event: str, given: tuple[Any, ...]) -> None:
    if event == "open" and REFUSED and (number := REFUSED.get(Path(os.fsdecode(given[0])).name)) is not None:
        raise OSError(number, os.strerror(number), given[0])


@pytest.fixture(scope="module")
def refusals() -> dict[str, int]:
    sys.addaudithook(refuse)  # for the rest of the process: hooks cannot be removed
    return REFUSED


def open_whole(store: Path, read: Any) -> None:
    opened = ClipStore(store, read=read)
    opened.open_recordings(range(len(opened.recordings)))


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EIO, errno.EACCES, errno.ESTALE])
@pytest.mark.parametrize("read", ["mmap", "pread"])
def test_a_file_that_the_system_does_not_open_is_not_called_damaged(
    store: Path, refusals: dict[str, int], monkeypatch: pytest.MonkeyPatch, read: Any, number: int
) -> None:
    """It may be whole: nobody must be told to delete it."""
    binary = next(iter(sorted((store / "recordings").glob("*.bin"))))
    for name in (binary.name, "store.json", "columns.json", "clip.npy", "units.json"):
        monkeypatch.setitem(refusals, name, number)
        with pytest.raises(SleepfmError, match="cannot be read") as caught:
            open_whole(store, read)
        monkeypatch.delitem(refusals, name)
        sentence = str(caught.value)
        assert name in sentence
        assert os.strerror(number) in sentence
        assert "damaged" not in sentence
        assert "elete" not in sentence
        assert ("ulimit -n" in sentence) == (number == errno.EMFILE)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EIO, errno.EACCES])
def test_embeddings_and_results_that_the_system_does_not_open_are_not_called_damaged(
    tmp_path: Path, refusals: dict[str, int], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Whoever removes them, as is advised of damaged ones, computes for hours what was whole."""
    embeddings = write_folder(tmp_path / "e", np.ones((4, 3, 2)), columns_of([0, 0, 1, 1], [0, 0, 2, 2]))
    result = tmp_path / "r"
    write_result(result, {"command": "probe"}, {"score": np.zeros((4, 2), np.float32)})
    for folder, read, names in (
        (embeddings, Embeddings, ("embeddings.json", "embeddings.npy", "mask.npy", "stage.npy")),
        (result, lambda path: read_result(path).array("score"), ("result.json", "score.npy")),
    ):
        for name in names:
            monkeypatch.setitem(refusals, name, number)
            with pytest.raises(SleepfmError, match=rf"{name} cannot be read: {os.strerror(number)}") as caught:
                read(folder)
            monkeypatch.delitem(refusals, name)
            for word in ("damaged", "emove", "again with", "Run its command"):
                assert word not in str(caught.value)
        read(folder)


def test_a_store_without_its_recordings_is_named(store: Path) -> None:
    shutil.rmtree(store / "recordings")
    with pytest.raises(ClipStoreError, match=r"recordings/a1\.bin is damaged: it is missing"):
        ClipStore(store)


def test_a_file_that_ends_or_goes_while_it_is_read_is_named(store: Path) -> None:
    """Compiled code only sees a short read; what the file is by then decides what the user is told."""
    opened = ClipStore(store, read="pread")
    opened.open_recordings(range(len(opened.recordings)))  # read below by descriptors that are open already
    binary = store / "recordings" / f"{opened.recordings[0].id}.bin"
    clips = np.arange(opened.recordings[0].n_clips)
    slots, bank = range(len(opened.slots)), FilterBank("none", 256)
    feed = Feed(opened, slots, bank)
    feed.gather(clips)
    whole = binary.read_bytes()
    os.truncate(binary, 64)
    with pytest.raises(ClipStoreError, match=rf"{binary.name} is damaged: it has 64 bytes, {len(whole)} were written"):
        feed.gather(clips)
    binary.unlink()
    with pytest.raises(ClipStoreError, match=rf"{binary.name} is damaged: .*No such file"):
        feed.gather(clips)
    binary.write_bytes(bytes(len(whole)))
    with pytest.raises(ClipStoreError, match=rf"{binary.name} is damaged: its SHA-256 is not the one that was written"):
        feed.gather(clips)
    # Another file of this name, as a copy that was put back gives, or a network that was away.
    binary.write_bytes(whole)
    with pytest.raises(ClipStoreError, match=rf"{binary.name} could not be read for a moment, and is whole") as told:
        feed.gather(clips)
    assert "elete" not in str(told.value)
    Feed(ClipStore(store, read="pread"), slots, bank).gather(clips)


def test_a_checkpoint_that_the_system_does_not_open_is_not_to_be_deleted(
    tmp_path: Path, refusals: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = pytest.importorskip("torch")
    file = tmp_path / "last.safetensors"
    write_checkpoint(file, {"x": torch.zeros(3)}, {})
    os.truncate(file, 7)  # safetensors opens files itself; it says little of why it could not
    monkeypatch.setitem(refusals, file.name, errno.EACCES)
    with pytest.raises(SleepfmError, match=r"cannot be read: Permission denied\. Ask its owner"):
        read_checkpoint(file)
