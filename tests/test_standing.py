"""What stands where a command is to write: keys of what it was made of, their differences, refusals, claims."""

import dataclasses
import json
from pathlib import Path

import pytest

from sleepfm_fast import __version__
from sleepfm_fast.errors import SleepfmError
from sleepfm_fast.storage.claims import claim_to_write
from sleepfm_fast.storage.standing import (
    FolderKind,
    claimed_folder,
    difference,
    digest_of_files,
    digest_of_value,
    finished_record,
    key_of,
    refuse_standing,
)  # fmt: skip

KIND = FolderKind("a result", "result.json", "its figures")


@dataclasses.dataclass
class Config:
    embeddings: Path = Path("emb")
    result: Path = Path("out")
    overwrite: bool = True
    workers: int = 4
    labels: Path = Path("labels.csv")
    c: float = 1.0


def finished(folder, made_of):
    folder.mkdir()
    (folder / "result.json").write_text(json.dumps({"made_of": made_of, "figure": 0.5}))
    return folder


def test_a_key_has_the_options_that_influence_what_is_computed_and_digests_in_place_of_paths():
    key = key_of("predict", Config(), {"labels": "d1", "weights": ("d2",)}, leave_out=("workers",))
    assert key == {"command": "predict", "version": __version__, "labels": "d1", "c": 1.0, "weights": ["d2"]}


def test_a_folder_of_files_is_known_by_their_names_and_contents(tmp_path):
    folder = tmp_path / "tables"
    assert digest_of_files(folder) == ""
    folder.mkdir()
    assert digest_of_files(folder) == ""
    (folder / "a.csv").write_text("1")
    (folder / "b.csv").write_text("2")
    before = digest_of_files(folder)
    (folder / "deeper").mkdir()
    assert digest_of_files(folder) == before
    (folder / "b.csv").rename(folder / "c.csv")
    assert digest_of_files(folder) != before
    (folder / "c.csv").rename(folder / "b.csv")
    (folder / "b.csv").write_text("3")
    assert digest_of_files(folder) != before


def test_a_value_has_one_digest_whatever_the_order_of_its_names():
    assert digest_of_value({"a": 1, "b": 2}) == digest_of_value({"b": 2, "a": 1}) != digest_of_value({"a": 2, "b": 1})


@pytest.mark.parametrize(
    ("there", "now", "expected"),
    [
        ({"c": 1}, {"c": 1}, ""),
        ({"c": 1, "old": 2}, {"c": 1}, ""),
        ({}, {"n_bins": 3}, "n-bins (None there, 3 now)"),
        ({"slots": [1, 2]}, {"slots": [3]}, "slots (1 2 there, 3 now)"),
        ({"note": "x" * 40}, {"note": "b"}, f"note ({'x' * 40} there, b now)"),
        ({"the_note": "x" * 41}, {"the_note": "b"}, "the the note"),
        ({"of": {"a": 1}}, {"of": {"a": 2}}, "the of"),
        ({"weights": "0" * 32}, {"weights": "1" * 32}, "the weights"),
        ({"weights": "0" * 31}, {"weights": "1" * 31}, f"weights ({'0' * 31} there, {'1' * 31} now)"),
        ({"command": "probe", "c": 1}, {"command": "retrieve", "c": 2}, "command (probe there, retrieve now)"),
    ],
)
def test_differences_show_short_values_and_name_long_ones(there, now, expected):
    assert difference(there, now) == expected


@pytest.mark.parametrize("content", ["", "[1]", "{", '{"made_of": 3}'])
def test_a_record_that_says_nothing_is_no_finished_folder_and_names_no_difference(tmp_path, content):
    folder = finished(tmp_path / "out", None)
    (folder / "result.json").write_text(content)
    assert finished_record(folder, KIND, {"c": 1}) is None
    with pytest.raises(SleepfmError) as refusal:
        refuse_standing(folder, KIND, made_of={"c": 1})
    assert str(refusal.value) == f"{folder} exists and is not overwritten. Give another folder, or add --overwrite."


def test_only_a_folder_made_of_the_same_is_finished(tmp_path):
    folder = finished(tmp_path / "out", {"c": 1})
    assert finished_record(folder, KIND, {"c": 1}) == {"made_of": {"c": 1}, "figure": 0.5}
    assert finished_record(folder, KIND, {"c": 2}) is None
    assert finished_record(folder, KIND, None) is None


def test_a_refusal_names_what_differs_or_what_is_not_whole(tmp_path):
    folder = finished(tmp_path / "out", {"c": 1})
    with pytest.raises(SleepfmError, match=r"not overwritten: the existing one differs in c \(1 there, 2 now\)\. Give"):
        refuse_standing(folder, KIND, made_of={"c": 2})
    with pytest.raises(SleepfmError, match="differs in its figures"):
        refuse_standing(folder, KIND, made_of={"c": 1})


def test_nothing_and_an_empty_folder_are_written_to_and_only_its_own_kind_is_replaced(tmp_path):
    refuse_standing(tmp_path / "new", KIND)
    (tmp_path / "empty").mkdir()
    refuse_standing(tmp_path / "empty", KIND)
    refuse_standing(finished(tmp_path / "out", {}), KIND, overwrite=True)
    (tmp_path / "photographs").mkdir()
    (tmp_path / "photographs" / "1.jpg").touch()
    (tmp_path / "file").touch()
    for name in ("photographs", "file"):
        with pytest.raises(SleepfmError, match="is not a result and is not overwritten"):
            refuse_standing(tmp_path / name, KIND, overwrite=True)
        with pytest.raises(SleepfmError, match="exists and is not overwritten"):
            refuse_standing(tmp_path / name, KIND)


def test_what_is_finished_is_handed_over_and_said(tmp_path, capsys):
    folder = finished(tmp_path / "out", {"c": 1})
    with claimed_folder(folder, KIND, made_of={"c": 1}) as record:
        assert record == {"made_of": {"c": 1}, "figure": 0.5}
    assert "already finished" in capsys.readouterr().err
    with claimed_folder(folder, KIND, made_of={"c": 1}, overwrite=True) as record:
        assert record is None
    with (
        pytest.raises(SleepfmError, match="differs in its figures"),
        claimed_folder(folder, KIND, made_of={"c": 1}, is_whole=lambda record: record["figure"] > 1),
    ):
        raise AssertionError("not whole")
    with claimed_folder(None, KIND) as record:
        assert record is None


def test_a_folder_that_another_process_finishes_meanwhile_is_not_computed_again(tmp_path, monkeypatch):
    folder = tmp_path / "out"

    def claimed(path):
        finished(folder, {"c": 1})
        return claim_to_write(path)

    monkeypatch.setattr("sleepfm_fast.storage.standing.claim_to_write", claimed)
    with claimed_folder(folder, KIND, made_of={"c": 1}) as record:
        assert record["figure"] == 0.5


def test_a_claim_leaves_nothing_behind_and_takes_away_what_a_killed_command_left(tmp_path):
    (tmp_path / "deep").mkdir()
    left = tmp_path / "deep" / "out.123-456.tmp"
    left.mkdir()
    with claimed_folder(tmp_path / "deep" / "out", KIND):
        assert not left.exists()
        with pytest.raises(SleepfmError), claimed_folder(tmp_path / "deep" / "out", KIND):
            raise AssertionError("claimed")
    with pytest.raises(ZeroDivisionError), claimed_folder(tmp_path / "new" / "folder" / "out", KIND):
        raise ZeroDivisionError
    assert [*tmp_path.rglob("*")] == [tmp_path / "deep"]
