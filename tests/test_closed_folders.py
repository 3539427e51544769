"""Files and folders that the user may not read: their nights fail or are named, and all others are ingested."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from nights import preprocess, write_night

from sleepfm_fast import convert
from sleepfm_fast.scoring.files import files_below

NOBODY = 65534


@contextmanager
def unprivileged() -> Iterator[None]:
    """Work as a user whom permissions bind."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(before)


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that everybody may enter, with three nights; what is needed to ingest nights is imported."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    nights = folder / "nights"
    for name in ("a.edf", "closed/c.edf", "blind/b.edf"):
        (nights / name).parent.mkdir(exist_ok=True, parents=True)
        write_night(nights / name)
    yield folder
    for closed in ("closed", "blind"):
        (nights / closed).chmod(0o755)
    shutil.rmtree(folder)


def test_a_closed_folder_costs_its_own_nights_only(place, capsys):
    assert preprocess(capsys, place / "nights" / "a.edf", place / "first")[0] == 0
    nights = place / "nights"
    (nights / "closed").chmod(0)  # not even listed
    (nights / "blind").chmod(0o444)  # listed, and no file of it can be looked at
    with unprivileged():
        from sleepfm_fast.preprocess import cli

        status = cli([str(nights), str(place / "store"), "--backend", "threading", "--workers", "1"])
    out, err = capsys.readouterr()
    assert status == 1
    assert '"added": 1' in out
    assert f"{nights / 'blind' / 'b.edf'}: the file cannot be read (Permission denied)" in err
    assert f"the folder {nights / 'closed'} cannot be listed (Permission denied); recordings in it are left out" in err


def test_a_stored_night_whose_folder_was_closed_stays_as_it_is(place, capsys):
    store = place / "store"
    with unprivileged():
        assert preprocess(capsys, place / "nights", store)[1]["added"] == 3
    (place / "nights" / "blind").chmod(0o444)
    with unprivileged():
        status, result = preprocess(capsys, place / "nights", store)
    assert (status, result["nights"], result["kept"]) == (1, 3, 2)


def test_closed_folders_of_scorings(place, capsys):
    labels = place / "labels"
    (labels / "blind").mkdir(parents=True)
    (labels / "a.csv").write_text("onset,duration,description\n0,30,W\n")
    (labels / "blind" / "x.csv").write_text("onset,duration,description\n0,30,W\n")
    (labels / "blind").chmod(0o444)
    night = place / "nights" / "a.edf"
    assert preprocess(capsys, night, place / "first", "--labels", labels)[0] == 0
    with unprivileged():
        _, result = preprocess(capsys, night, place / "second", "--labels", labels)
    assert (result["stages"]["W"], result["failed"]) == (1, [])
    labels.chmod(0o311)
    files_below.cache_clear()  # it does not list a folder again whose time is the same
    with unprivileged():
        _, result = preprocess(capsys, night, place / "third", "--labels", labels)
    labels.chmod(0o755)
    (labels / "blind").chmod(0o755)
    assert "cannot be listed (Permission denied)" in result["failed"][0]["reason"]


@pytest.mark.parametrize("origin", ["seed", "clinical"])
def test_convert_names_closed_folders(place, capsys, origin):
    source = place / origin
    for name in ("a", "closed", "blind"):
        folder = source / name
        folder.mkdir(parents=True)
        if origin == "seed":
            np.save(folder / f"{name}_0.npy", np.random.default_rng(0).normal(size=(13, 7680)))
        else:
            h5py = pytest.importorskip("h5py")
            with h5py.File(folder / f"{name}.h5", "w") as file:
                file["C3"] = np.random.default_rng(0).normal(size=30 * 128)
    arguments = ["--from", origin, "--workers", "1"]
    assert convert.cli([str(source / "a"), str(place / "first"), *arguments]) == 0  # imports what it needs
    capsys.readouterr()
    (source / "closed").chmod(0)
    (source / "blind").chmod(0o444)
    with unprivileged():
        status = convert.cli([str(source), str(place / "store"), *arguments])
    for closed in ("closed", "blind"):
        (source / closed).chmod(0o755)
    out, err = capsys.readouterr()
    assert status == 1
    assert '"added": 1' in out
    assert f"the folder {source / 'closed'} cannot be listed (Permission denied); recordings in it are left out" in err
    assert f"{source / 'blind' / 'blind'}{'_0.npy' if origin == 'seed' else '.h5'} cannot be read (Permission" in err
