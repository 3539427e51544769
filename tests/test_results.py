"""Result folders: whole or not at all, never overwritten unasked, damage named."""

import json

import numpy as np
import pytest

from sleepfm_fast.errors import SleepfmError
from sleepfm_fast.results import find_results, read_result, write_result


def test_a_result_comes_back_as_it_was_written(tmp_path):
    path = tmp_path / "results" / "stage"
    arrays = {"clip": np.arange(3), "score": np.eye(3, dtype=np.float32)}
    write_result(path, {"command": "probe", "value": float("nan"), "path": tmp_path}, arrays)
    result = read_result(path)
    assert result.command == "probe"
    assert result.record["value"] is None
    assert result.record["path"] == str(tmp_path)
    for name, values in arrays.items():
        np.testing.assert_array_equal(result.array(name), values)
    assert [r.path for r in find_results(tmp_path)] == [path]


def test_nothing_is_overwritten_unasked(tmp_path):
    write_result(tmp_path / "a", {"command": "probe"}, {})
    with pytest.raises(SleepfmError, match="--overwrite"):
        write_result(tmp_path / "a", {"command": "retrieve"}, {})
    write_result(tmp_path / "a", {"command": "retrieve"}, {}, overwrite=True)
    assert read_result(tmp_path / "a").command == "retrieve"
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.tex").touch()
    with pytest.raises(SleepfmError, match="not a result folder"):
        write_result(tmp_path / "b", {"command": "probe"}, {}, overwrite=True)
    assert (tmp_path / "b" / "thesis.tex").exists()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("arrays", None),
        ("arrays", {"clip": [3]}),
        ("command", 1),
        ("subjects", "abc"),
        ("recordings", [1]),
        ("trained_classes", [0, -1]),
        ("subject_splits", ["train", "tests"]),
        ("subject_splits", {"a": "train"}),
        ("modalities", [["brain"]]),
        ("task", ["stage"]),
    ],
)
def test_an_entry_of_another_kind_is_named(tmp_path, name, value):
    write_result(tmp_path / "a", {"command": "probe"}, {"clip": np.arange(3)})
    file = tmp_path / "a" / "result.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), name: value}))
    with pytest.raises(SleepfmError, match=rf"result\.json is damaged: the entry '{name}'"):
        read_result(tmp_path / "a")


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("subject", np.array([0, 2])),
        ("recording", np.array([-1, 0])),
        ("recording", np.array([0.0, 1.0])),
        ("label", np.array([0, 127], np.int8)),
        ("score", np.array([[0.5, np.nan]])),
        ("coef", np.full((2, 2), np.nan)),
    ],
)
def test_an_array_that_cannot_be_is_named(tmp_path, name, values):
    names = {"subjects": ["a", "b"], "recordings": ["a", "b"], "class_names": ["no", "yes"]}
    write_result(tmp_path / "a", {"command": "probe", **names}, {name: values, "empty": values[:0]})
    result = read_result(tmp_path / "a")
    with pytest.raises(SleepfmError, match=rf"{name}\.npy is damaged"):
        result.array(name)
    assert not result.array("empty").size
    result.require("subjects")
    with pytest.raises(SleepfmError, match="the entry 'task' is missing"):
        result.require("subjects", "task")


def test_damage_is_named(tmp_path):
    with pytest.raises(SleepfmError, match=r"result\.json is missing"):
        read_result(tmp_path)
    write_result(tmp_path / "a", {"command": "probe"}, {"clip": np.arange(3)})
    np.save(tmp_path / "a" / "clip.npy", np.arange(4))
    with pytest.raises(SleepfmError, match=r"clip\.npy holds int64 \(4,\), expected int64 \(3,\)"):
        read_result(tmp_path / "a").array("clip")
    with pytest.raises(SleepfmError, match="no array 'label'; it has clip"):
        read_result(tmp_path / "a").array("label")
    (tmp_path / "a" / "result.json").write_text("{")
    with pytest.raises(SleepfmError, match="cannot be read"):
        read_result(tmp_path / "a")


def test_a_result_that_fails_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="allow_pickle"):
        write_result(tmp_path / "a", {"command": "probe"}, {"clip": np.array([object()])})
    assert list(tmp_path.iterdir()) == []
