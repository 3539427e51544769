"""Files, folders and arrays: what is on the disk, and when; what is swept, and what is not."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import threading
from pathlib import Path

import numpy as np
import pytest
from nights import preprocess, write_night

from sleepfm_fast.errors import refused_by_system
from sleepfm_fast.storage import array_file, atomic
from sleepfm_fast.storage.array_file import ArrayFile, map_array
from sleepfm_fast.storage.atomic import (
    named_errors,
    remove_leftovers,
    remove_leftovers_of,
    replace_file,
    replace_folder,
    synchronise,
    write_json,
)


@pytest.fixture
def done(monkeypatch):
    """What was synchronised and renamed, in order: ``sync NAME SIZE`` and ``rename NAME``."""
    seen = []
    replace, rename = Path.replace, Path.rename

    def synchronised(descriptor):
        place = Path(f"/proc/self/fd/{descriptor}").readlink()
        size = "" if place.is_dir() else f" {place.stat().st_size}"
        seen.append(f"sync {place.name.split('.')[0]}{size}")

    def renamed(call):
        return lambda self, target: (seen.append(f"rename {Path(target).name.split('.')[0]}"), call(self, target))[1]

    monkeypatch.setattr(atomic, "synchronise_descriptor", synchronised)
    monkeypatch.setattr(Path, "replace", renamed(replace))
    monkeypatch.setattr(Path, "rename", renamed(rename))
    return seen


def test_a_file_is_on_the_disk_before_it_has_its_name_and_the_name_before_it_is_said(tmp_path, done):
    with replace_file(tmp_path / "x") as file:
        file.write(b"12345")
        assert not (tmp_path / "x").exists()
    assert done == ["sync x 5", "rename x", f"sync {tmp_path.name}"]
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_folder_is_on_the_disk_before_it_has_its_name(tmp_path, done):
    for content, moved in (("old", []), ("new", ["rename old-x"])):
        done.clear()
        with replace_folder(tmp_path / "deep" / "x") as folder:
            (folder / "content").write_text(content)
        assert done == ["sync x", *moved, "rename x", "sync deep"]
        assert (tmp_path / "deep" / "x" / "content").read_text() == content
        assert [path.name for path in (tmp_path / "deep").iterdir()] == ["x"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("broken")])
def test_a_block_that_fails_leaves_the_old_and_nothing_else(tmp_path, error):
    (tmp_path / "file").write_text("old")

    def write(file):
        file.write(b"new")
        raise error

    def fill(folder):
        (folder / "content").write_text("new")
        raise error

    with pytest.raises(type(error)), replace_file(tmp_path / "file") as file:
        write(file)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "content").write_text("old")
    with pytest.raises(type(error)), replace_folder(tmp_path / "folder") as folder:
        fill(folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]
    assert (tmp_path / "file").read_text() == (tmp_path / "folder" / "content").read_text() == "old"


def test_a_folder_that_a_killed_writer_of_the_same_number_left_is_not_mixed_in(tmp_path):
    left = atomic.temporary_name(tmp_path / "x")
    left.mkdir()
    (left / "stray").write_text("half")
    with replace_folder(tmp_path / "x") as folder:
        (folder / "content").write_text("new")
    assert [path.name for path in (tmp_path / "x").iterdir()] == ["content"]


def test_the_target_of_a_link_is_replaced(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "x").symlink_to(tmp_path / "disk" / "x")
    for _ in range(2):
        with replace_folder(tmp_path / "x") as folder:
            (folder / "content").write_text("new")
        assert (tmp_path / "x").is_symlink()
        assert (tmp_path / "disk" / "x" / "content").read_text() == "new"


def test_two_threads_write_one_file_by_turns(tmp_path):
    inside, go = threading.Barrier(2), []

    def write(content):
        with replace_file(tmp_path / "x") as file:
            inside.wait(10)
            file.write(content)
        go.append(content)

    threads = [threading.Thread(target=write, args=(bytes([k]) * 1000,)) for k in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(go) == 2
    assert (tmp_path / "x").read_bytes() in (b"\1" * 1000, b"\2" * 1000)


def test_only_errors_that_name_no_file_get_a_name(tmp_path):
    for error, name in (
        (OSError(errno.ENOSPC, "No space left on device"), str(tmp_path)),
        (OSError(errno.ENOENT, "No such file", "other"), "other"),
        (OSError("a sentence of a library"), None),
        (OSError("1920 requested and 1264 written"), str(tmp_path)),
    ):
        with pytest.raises(OSError, match=str(error.args[-1])[:4]) as caught, named_errors(tmp_path):
            raise error
        assert caught.value.filename == name
    assert refused_by_system(caught.value) == (
        f"{tmp_path}: not all of it could be written (1920 requested and 1264 written); the disk may be full, or a "
        "limit reached"
    )


def test_a_folder_that_cannot_be_synchronised_is_no_failure_but_a_file_is(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x")
    opened = len(list(Path("/proc/self/fd").iterdir()))
    for number, place, fails in (
        (errno.EINVAL, tmp_path, False),
        (errno.ENOTSUP, tmp_path, False),
        (errno.EIO, tmp_path, True),
        (errno.EINVAL, tmp_path / "file", True),
    ):

        def refuse(_, number=number):
            raise OSError(number, "refused")

        monkeypatch.setattr(atomic, "synchronise_descriptor", refuse)
        if fails:
            with pytest.raises(OSError, match="refused"):
                synchronise(place)
        else:
            synchronise(place)
    assert len(list(Path("/proc/self/fd").iterdir())) == opened


def test_json_is_strict_and_holds_names_that_are_no_utf_8(tmp_path):
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "x.json", {"loss": float("nan")})
    assert not any(tmp_path.iterdir())
    value = {"names": ["Jürgen", "caf\udce9"]}
    assert json.loads(write_json(tmp_path / "x.json", value)) == value
    assert "ü".encode() in write_json(tmp_path / "x.json", "ü")


def test_an_array_goes_on_after_the_rows_that_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(array_file, "BLOCK_BYTES", 20)
    path, rows = tmp_path / "x.npy", np.arange(20, dtype="<i4").reshape(10, 2)

    def digest_of(rows):
        return hashlib.blake2b(np.ascontiguousarray(rows).data, digest_size=16).hexdigest()

    first = ArrayFile(path, "<i4", rows.shape)
    first.write(rows[:7])
    with monkeypatch.context() as patched:
        synchronised = []
        patched.setattr(
            array_file, "synchronise_descriptor", lambda number: synchronised.append(os.fstat(number).st_size)
        )
        assert first.close() == digest_of(rows[:7])
    assert synchronised == [path.stat().st_size]
    assert first.file.closed
    n_header = path.stat().st_size - 7 * 8
    kept = ArrayFile(path, "<i4", rows.shape, n_kept=4)
    assert path.stat().st_size == n_header + 4 * 8
    assert kept.digest() == digest_of(rows[:4])
    kept.write(rows[4:4])
    kept.write(rows[4:8].astype(np.int64))
    kept.synchronise()
    assert path.stat().st_size == n_header + 8 * 8
    kept.write(np.stack([rows[8:, 1], rows[8:, 0]])[::-1].T)
    assert kept.close() == digest_of(rows)
    found = map_array(path)
    np.testing.assert_array_equal(found, rows)
    assert not found.flags.writeable
    n_open = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(OSError, match=r"x\.npy is shorter than the 11 rows that were written"):
        ArrayFile(path, "<i4", (12, 2), n_kept=11)
    assert len(list(Path("/proc/self/fd").iterdir())) == n_open
    ArrayFile(path, "<i4", (3, 2)).close()
    assert path.stat().st_size == n_header


def test_an_array_on_a_full_disk_is_given_up_without_another_error():
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    file = ArrayFile(Path("/dev/full"), "<i4", (3,))
    file.write(np.arange(3))
    with pytest.raises(OSError, match="No space left"):
        file.synchronise()
    file.abandon()
    assert file.file.closed


def test_leftovers_of_one_name_are_those_of_no_other(tmp_path):
    ours = ["a.b.12-34.tmp", "old-a.b.12-34.tmp"]
    others = ["a.b", "axb.12-34.tmp", "a.b.12-34.tmp.txt", "a.b.2.12-34.tmp", "a.b.tmp"]
    for name in ours + others:
        (tmp_path / name).write_text("x")
    remove_leftovers_of(tmp_path / "a.b")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(others)
    remove_leftovers_of(tmp_path / "nowhere" / "a.b")


def test_what_is_swept_has_a_writers_name(tmp_path):
    ours = [
        "x.json.12-34.tmp",
        "old-x.12-34.tmp",
        ".sim-5-0005.edf.1.tmp",
        ".lock.ab_c1.clock.tmp",
        ".lock.1-2.new.tmp",
    ]
    others = ["notes.tmp", "x.json", "2024-01.tmp", "night.7.tmp", "x.12-34.tmp.txt"]
    for name in ours[:-1] + others:
        (tmp_path / name).write_text("x")
    (tmp_path / ours[-1]).mkdir()
    (tmp_path / ours[-1] / "content").write_text("x")
    remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(others)
    remove_leftovers(tmp_path / "nowhere")


def test_preprocess_leaves_a_users_temporary_file(tmp_path, capsys):
    write_night(tmp_path / "night.edf")
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "notes.tmp").write_text("mine")
    capsys.readouterr()
    assert preprocess(capsys, tmp_path / "night.edf", tmp_path / "store")[0] == 1
    (tmp_path / "store" / "notes.tmp").rename(tmp_path / "notes.tmp")
    assert preprocess(capsys, tmp_path / "night.edf", tmp_path / "store")[0] == 0
    (tmp_path / "notes.tmp").rename(tmp_path / "store" / "notes.tmp")
    assert preprocess(capsys, tmp_path / "night.edf", tmp_path / "store")[0] == 0
    assert (tmp_path / "store" / "notes.tmp").read_text() == "mine"


def test_all_below_a_folder_is_synchronised(tmp_path, monkeypatch):
    (tmp_path / "a" / "deep").mkdir(parents=True)
    files = [tmp_path / "a" / "deep" / f"{i}.csv" for i in range(30)] + [tmp_path / "a" / "x.json"]
    for file in files:
        file.write_bytes(b"0")
    done: list[Path] = []
    monkeypatch.setattr(atomic, "synchronise", done.append)
    atomic.synchronise_below(tmp_path / "a")
    assert sorted(done[:31]) == sorted(files)
    assert sorted(done[31:]) == [tmp_path / "a", tmp_path / "a" / "deep"]

    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(atomic, "synchronise", full)
    with pytest.raises(OSError, match="No space"):
        atomic.synchronise_below(tmp_path / "a")
