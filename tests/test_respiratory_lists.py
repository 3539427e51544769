"""UCDDB's and WSC's lists of respiratory events, beside their lists of stages."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from nights import preprocess, write_night

from sleepfm_fast.annotations import Event, ScoringError, clip_labels, read_scoring
from sleepfm_fast.clips import ClipStore
from sleepfm_fast.edf import read_recording
from sleepfm_fast.scoring.files import find_scorings

START = datetime(2002, 9, 1, 23, 30)
UCDDB = """
Time      Type      PB/CS  Duration  Desaturation     Snore Arousal  B/T
                                     Low     %Drop                   Rate  Change
{rows}
"""
UCDDB_ROWS = """\
23:30:10  HYP-C                13      91.4     3.1   -     +
23:59:50  APNEA-O              25      88       6.5   +     -        B     48    9
00:10:05  APNEA-M  PB          31.5                   -     -
00:20:00  HYP-O    CS          12      90       4     +
00:30:00  POSSIBLE             20
00:40:00  PB                   64
"""


def ucddb(folder: Path, rows: str = UCDDB_ROWS, name: str = "ucddb002_respevt.txt") -> Path:
    (folder / name).write_text(UCDDB.format(rows=rows))
    return folder / name


def gamma(folder: Path, *rows: tuple[object, ...], head: str = "Epoch\tScan\tScan\tLength\tEvent\tNo\tTime\n") -> Path:
    path = folder / "wsc-visit1-10119-nsrr.sco.txt"
    path.write_text(head + "".join("\t".join(map(str, row)) + "\n" for row in rows))
    return path


def test_ucddb_events_by_the_clock_across_midnight(tmp_path):
    scoring = read_scoring(ucddb(tmp_path), start=START, length_s=4 * 3600)
    assert scoring.events == (
        Event(10, 13, "Central hypopnea"),
        Event(1790, 25, "Obstructive apnea"),
        Event(2405, 31.5, "Mixed apnea"),
        Event(3000, 12, "Obstructive hypopnea"),
        Event(3600, 20, "POSSIBLE"),
        Event(4200, 64, "PB"),
    )
    assert scoring.events_scored is True
    assert scoring.issues == ()
    # A possible event is none, and periodic breathing is none.
    assert clip_labels(scoring, 5400).sdb.nonzero()[0].tolist() == [0, 59, 60, 80, 100]


def test_ucddb_refuses_what_is_no_such_list(tmp_path):
    with pytest.raises(ScoringError, match="recording's start is not known"):
        read_scoring(ucddb(tmp_path))
    with pytest.raises(ScoringError, match="the line '23:31:07 13'"):
        read_scoring(ucddb(tmp_path, "23:31:00  HYP-C  12\n23:31:07 13"), start=START)
    with pytest.raises(ScoringError, match="the line '23:75:00  HYP-C  12'"):
        read_scoring(ucddb(tmp_path, "23:31:00  HYP-C  12\n23:75:00  HYP-C  12"), start=START)
    # A table of events of another layout must not count as a night without events.
    other = tmp_path / "a_respevt.txt"
    other.write_text("Onset,Duration,Event\n12.5,20,Hypopnea\n")
    with pytest.raises(ScoringError, match="no line that begins with a clock time"):
        read_scoring(other, start=START)


def test_ucddb_events_in_small_letters_and_without_a_duration(tmp_path):
    scoring = read_scoring(ucddb(tmp_path, "23:31:00  hyp-c\n23:32:00  Apnea-O  -  15\n"), start=START)
    assert scoring.events == (Event(60, None, "Central hypopnea"), Event(120, 15, "Obstructive apnea"))


def test_ucddb_times_of_a_twelve_hour_clock_are_refused(tmp_path):
    rows = "11:31:00  HYP-C  12\n12:59:40  HYP-C  12\n1:00:20  HYP-C  12\n"
    with pytest.raises(ScoringError, match="12-hour clock without am and pm"):
        read_scoring(ucddb(tmp_path, rows), start=datetime(2002, 9, 1, 23, 30), length_s=4 * 3600)


def test_ucddb_stages_and_events_are_joined(tmp_path, capsys):
    (nights := tmp_path / "nights").mkdir()
    for name in ("ucddb002", "ucddb003"):
        write_night(nights / f"{name}.edf", stages="----")
        recording = (nights / f"{name}.edf").rename(nights / f"{name}.rec")
        (nights / f"{name}_stage.txt").write_text("0\n2\n3\n1\n")
    start = read_recording(recording).start
    ucddb(nights, f"{start + timedelta(seconds=62):%H:%M:%S}  HYP-O      15\n{start:%H:%M:%S}  PB   120\n")
    ucddb(nights, "", "ucddb003_respevt.txt")
    assert [path.name for path in find_scorings(recording)] == ["ucddb003_stage.txt", "ucddb003_respevt.txt"]
    assert preprocess(capsys, nights, tmp_path / "store")[0] == 0
    store = ClipStore(tmp_path / "store")
    assert np.asarray(store.stage).tolist() == [0, 1, 2, 4] * 2
    assert np.asarray(store.sdb).tolist() == [0, 0, 1, 0] + [0] * 4, "the second night was scored and has no event"
    issues = json.loads((tmp_path / "store" / "recordings" / "ucddb003.json").read_text())["issues"]
    assert "ucddb003_respevt.txt lists no respiratory event; the night counts as scored for them." in issues


def test_gamma_events_by_the_clock(tmp_path):
    path = gamma(
        tmp_path,
        (1, 200, 900, 700, "OA", 1, "23:30:12", 94, 88.5, 22.4),
        (2, 200, 900, 700, "Arousal", 2, "23:30:40"),
        (63, 200, 900, 700, " Hypopnea ", 1, "0:01:10", 94, 90, 31),
        (64, 200, 900, 700, "Desaturation", 3, "0:01:40", 94, 90, 12),
    )
    scoring = read_scoring(path, start=START)
    assert scoring.events == (
        Event(12, 22.4, "OA"),
        Event(40, None, "Arousal"),
        Event(1870, 31, "Hypopnea"),
        Event(1900, 12, "Desaturation"),
    )
    assert scoring.events_scored is True
    assert scoring.issues == ()
    assert clip_labels(scoring, 1920).sdb.nonzero()[0].tolist() == [0, 62, 63]


def test_gamma_half_days_missing_times_and_durations(tmp_path):
    path = gamma(
        tmp_path,
        (1, 200, 900, 700, "Hypopnea", 1, "11:30:12", 94, 90, -3),
        (63, 200, 900, 700, "Apnea", 1, "12:01:10", 94, 90, 0.22),
        (121, 200, 900, 700, "Hypopnea", 1, "", 94, 90, 15),
        (123, 200, 900, 700, "Hypopnea", 1, "12:31:12"),
        head="",
    )
    scoring = read_scoring(path, start=START)
    assert scoring.events == (
        Event(12, 10, "Hypopnea"),
        Event(1870, 10, "Apnea"),
        Event(3600, 15, "Hypopnea"),
        Event(3672, 10, "Hypopnea"),
    )
    said = " ".join(scoring.issues)
    assert "3 clock times were moved by twelve hours" in said
    assert "of 3 respiratory events the duration is missing" in said
    assert "1 event has an epoch and no clock time" in said


def test_gamma_durations_and_values(tmp_path):
    path = gamma(
        tmp_path,
        (1, 0, 9, 9, "Hypopnea", 1, "23:30:01", 94, 90, 5),
        (1, 0, 9, 9, "Hypopnea", 1, "23:30:02", 94, 90, 4.9),
        (1, 0, 9, 9, "Hypopnea", 1, "23:30:03", 94, 15),
        (1, 0, 9, 9, "Arousal", 1, "23:30:04", 3),
        (1, 0, 9, 9, "Arousal", 1, "23:30:05", 3, 4),
        (" ",),
        head="EPOCH\tScan\n",
    )
    scoring = read_scoring(path, start=START)
    assert [event.duration_s for event in scoring.events] == [5, 10, 15, None, 4]
    assert len(scoring.issues) == 1
    assert "of 1 respiratory event the duration is missing" in scoring.issues[0]


def test_gamma_clock_by_and_large_in_its_epochs(tmp_path):
    """One event far away and all others a minute behind: nothing to say; a clock half a day ahead: moved back."""
    rows = [(k, 0, 9, 9, "Hypopnea", 1, f"23:{30 + k // 2}:{30 * (k % 2) + 22}", 9, 9, 20) for k in range(1, 20)]
    scoring = read_scoring(gamma(tmp_path, *rows, (9, 0, 9, 9, "Hypopnea", 1, "1:30:00", 9, 9, 20)), start=START)
    assert scoring.issues == ()
    ahead = [(k, 0, 9, 9, "Hypopnea", 1, f"22:0{k // 2}:00", 9, 9, 20) for k in range(1, 9)]
    scoring = read_scoring(gamma(tmp_path, *ahead), start=datetime(2002, 9, 1, 10, 0))
    assert [event.onset_s for event in scoring.events] == [60.0 * (k // 2) for k in range(1, 9)]
    assert "8 clock times were moved by twelve hours" in scoring.issues[0]


def test_gamma_lines_that_are_no_events_are_counted(tmp_path):
    good = [(k, 0, 9, 9, "Hypopnea", 1, f"23:30:{10 + k}", 9, 9, 20) for k in range(1, 9)]
    bad = [
        (1, 0, 9, 9, "Hypopnea", 1),
        (1, 0, 9, 9, "", 1, "23:30:50", 9, 9, 20),
        (1, 0, 9, 9, "12", 1, "23:30:50", 9, 9, 20),
        (1, 0, 9, 9, "Hypopnea", 1, "soon", 9, 9, 20),
        ("one", 0, 9, 9, "Hypopnea", 1, "23:30:50", 9, 9, 20),
    ]
    scoring = read_scoring(gamma(tmp_path, *good, *bad), start=START)
    assert len(scoring.events) == 8
    assert any("5 lines without an epoch" in issue for issue in scoring.issues)


def test_gamma_clock_far_from_its_epochs(tmp_path):
    path = gamma(tmp_path, *((k, 0, 9, 9, "Hypopnea", 1, f"23:{40 + k // 2}:00", 9, 9, 20) for k in range(1, 20)))
    scoring = read_scoring(path, start=START)
    assert scoring.events[0].onset_s == 600
    assert any("9.8 minutes (median) from their epochs" in issue for issue in scoring.issues)


def test_gamma_lists_nothing_or_something_else(tmp_path):
    assert read_scoring(gamma(tmp_path), start=START).events == ()
    assert read_scoring(gamma(tmp_path), start=START).events_scored is True
    row = (1, 0, 9, 9, "Hypopnea", 1, "23:30:12", 9, 9, 20)
    left = read_scoring(gamma(tmp_path, row, ("", "", "", "", "?")), start=START)
    assert len(left.events) == 1
    assert any("1 line without an epoch" in issue for issue in left.issues)
    for rows in ([(" ",)], [("onset", "duration")], [row, (1, "Hypopnea"), (2, "Hypopnea")]):
        with pytest.raises(ScoringError, match="named like WSC's lists"):
            read_scoring(gamma(tmp_path, *rows, head=""), start=START)
