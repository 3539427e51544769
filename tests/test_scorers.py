"""Tables of several scorers: one of them is chosen by name, and a table that has not got it is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from nights import preprocess, write_night

from sleepfm_fast.annotations import read_scoring
from sleepfm_fast.clips import ClipStore
from sleepfm_fast.scoring.labels import clip_labels
from sleepfm_fast.scoring.scorers import UnknownScorerError, of_scorer
from sleepfm_fast.scoring.stages import STAGES
from sleepfm_fast.scoring.timed_texts import ScoringError

ANNA, BEN = ["W", "N1", "N2", "N2", "N3", "R"] * 4, ["W", "W", "N2", "N3", "N3", "R"] * 4
SECONDS = 30 * len(ANNA)
IN_ROWS = "onset,duration,stage,Scorer\n" + "".join(
    f"{30 * i},30,{stage},{name}\n" for i, pair in enumerate(zip(ANNA, BEN, strict=True))
    for name, stage in zip(("Anna", "Ben"), pair, strict=True)
)  # fmt: skip
IN_COLUMNS = "Epoch;stage_scorer1;stage_scorer2\n" + "".join(
    f"{i + 1};{a};{b}\n" for i, (a, b) in enumerate(zip(ANNA, BEN, strict=True))
)


def stages(path: Path, scorer: str = "") -> list[str]:
    grid = clip_labels(read_scoring(path, length_s=SECONDS, scorer=scorer), SECONDS)
    return ["" if code < 0 else STAGES[code] for code in grid.stage.tolist()]


@pytest.mark.parametrize(
    ("text", "first", "second"),
    [
        (IN_ROWS, "Anna", "ben "),
        (IN_ROWS.replace(",", "\t").replace("Scorer", "rater_ID"), "ANNA", "Ben"),
        ("Hospital\n\n" + IN_ROWS, "Anna", "Ben"),
        (IN_ROWS.replace("Anna", '"Dr. Anna, head"'), "dr. anna, head", "Ben"),
        (IN_COLUMNS, "stage_scorer1", "Stage_Scorer2"),
        (IN_COLUMNS.replace("stage_scorer1", "stage").replace(";", ","), "stage", "stage_scorer2"),
        ("Start;Anna;Ben\n" + IN_COLUMNS.partition("\n")[2], "Anna", "Ben"),
    ],
    ids=["rows", "tabs", "preamble", "quoted", "columns", "one called stage", "names as columns"],
)
def test_the_stages_of_one(text, first, second, tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(text)
    assert stages(path, first) == ANNA
    assert stages(path, second) == BEN


def test_a_scorer_who_is_not_there_is_refused_with_those_who_are(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(IN_ROWS)
    with pytest.raises(ScoringError, match=r"the column 'Scorer' names no scorer 'Cleo' \(--scorer\).* Anna, Ben\."):
        stages(path, "Cleo")
    path.write_text(IN_COLUMNS)
    with pytest.raises(ScoringError, match=r"no column of stages is named 'Cleo' .* stage_scorer1, stage_scorer2"):
        stages(path, "Cleo")


def test_a_table_of_one_scorer_is_left_as_it_is(tmp_path):
    """Also where a row names somebody: only above a column of stages is that a header."""
    one = "onset,duration,stage,comment\n" + "".join(f"{30 * i},30,{s},Anna\n" for i, s in enumerate(ANNA))
    assert of_scorer(one, "a.csv", "Anna") == one
    path = tmp_path / "a.csv"
    path.write_text(one)
    assert stages(path, "Anna") == ANNA
    for text in ("\n".join(ANNA) + "\n", "", "one cell\n", 'a,"b\n'):
        assert of_scorer(text, "a.csv", "Anna") == text


def test_remarks_name_the_line_of_the_file(tmp_path):
    path = tmp_path / "a.csv"
    lines = IN_ROWS.splitlines()
    lines[9] = lines[9].replace("120,30", "soon,30")
    path.write_text("\n".join(lines))
    (issue,) = read_scoring(path, length_s=SECONDS, scorer="Anna").issues
    assert issue.endswith("the first in line 10.")


def test_a_cohort(tmp_path, capsys):
    nights, store = tmp_path / "nights", tmp_path / "store"
    nights.mkdir()
    for name, text in (("a", IN_ROWS), ("b", IN_ROWS.replace("Scorer", "annotator")), ("c", "\n".join(BEN) + "\n")):
        write_night(nights / f"{name}.edf", seconds=SECONDS, stages="", seed=ord(name))
        (nights / f"{name}.csv").write_text(text)
    status, said = preprocess(capsys, nights, store)[:2]
    assert status == 0
    assert "name one with --scorer" in str(said)
    status = preprocess(capsys, nights, store, "--scorer", "Ben")[0]
    assert status == 1, "a store of other labels"
    assert preprocess(capsys, nights, store, "--scorer", "Ben", "--overwrite")[0] == 0
    assert [STAGES[code] for code in ClipStore(store).stage] == BEN * 3
    assert json.loads((store / "store.json").read_text())["configuration"]["scorer"] == "Ben"
    assert preprocess(capsys, nights, store, "--scorer", "Ben")[0] == 0
    assert preprocess(capsys, nights, store)[0] == 1
    status, said = preprocess(capsys, nights, store, "--scorer", "Cleo", "--overwrite")
    assert (status, len(said["failed"])) == (1, 2), "the third night has no choice to make"
    assert "it names Anna, Ben. Give one of them." in said["failed"][0]["reason"]


@pytest.mark.parametrize(("header", "cells", "refused"), [
    ("stage_scorer1,stage_scorer2", ("W,N1", "N2,N2"), "stage_scorer1, stage_scorer2"),
    ("stage,stage_scorer2", ("W,N1", "N2,N2"), "stage, stage_scorer2"),
    ("stage,stage_code", ("W,0", "N2,2"), None),  # the same stages in two ways
    ("stage,confidence", ("W,0.9", "N2,0.8"), None),
])  # fmt: skip
def test_a_wrong_name_of_a_column_of_stages_is_refused(header, cells, refused):
    text = f"onset,duration,{header}\n" + "".join(f"{30 * i},30,{row}\n" for i, row in enumerate(cells * 20))
    if refused is None:
        assert of_scorer(text, "a.csv", "Smith") == text
    else:
        said = rf"named 'Smith' \(--scorer\); those that differ are {refused}\. Give"
        with pytest.raises(UnknownScorerError, match=said):
            of_scorer(text, "a.csv", "Smith")
