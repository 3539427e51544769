"""JSON nested without end, which no writer leaves: refused by the name of its file or passed over, and no traceback."""

from __future__ import annotations

from pathlib import Path

import pytest

from sleepfm_fast.cli.json_text import from_json
from sleepfm_fast.cli.path_kinds import RECORDS, Kind, kind_of
from sleepfm_fast.clips import ClipStore
from sleepfm_fast.embeddings import Embeddings
from sleepfm_fast.errors import SleepfmError
from sleepfm_fast.results import read_result
from sleepfm_fast.rundir import RunDirectory
from sleepfm_fast.storage.claims import holder_of
from sleepfm_fast.storage.columns import read_columns

DEEP = '{"a":' * 100_000


@pytest.mark.parametrize("text", ["[" * 100_000, DEEP, DEEP.encode()])
def test_nesting_is_a_fault_like_any_other(text):
    with pytest.raises(ValueError, match="nested too deeply"):
        from_json(text)
    assert from_json('{"a": [1]}') == {"a": [1]}


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("store.json", ClipStore),
        ("embeddings.json", Embeddings),
        ("result.json", read_result),
        ("config.json", lambda folder: RunDirectory(folder).config()),
        ("columns.json", lambda folder: read_columns(folder, {}, (), remedy="Make it again.")),
    ],
)
def test_a_record_nested_without_end_is_named(tmp_path: Path, name, read):
    (tmp_path / name).write_text(DEEP)
    with pytest.raises(SleepfmError, match=rf"{name}.*nested too deeply"):
        read(tmp_path)


def test_folders_are_recognised_beside_such_records(tmp_path):
    for name in RECORDS:
        (tmp_path / name).write_text(DEEP)
    assert kind_of(tmp_path) is Kind.OTHER
    assert holder_of(tmp_path / "store.json") is None


def test_a_line_of_metrics_nested_without_end_is_passed_over(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"loss": 1}\n' + DEEP + "\n")
    assert RunDirectory(tmp_path).last_metric("loss") == 1
