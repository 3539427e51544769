"""Scoring as delimited text: columns, encodings, clock times, refusals."""

from __future__ import annotations

import itertools
from datetime import datetime
from pathlib import Path

import pytest

from sleepfm_fast.annotations import Event, ScoringError, read_scoring


def write(tmp_path: Path, text: str | bytes, name: str = "a.csv", encoding: str = "utf-8") -> Path:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
    return path


ROWS = [(0.0, 30.0, "Wake"), (30.0, 30.0, "Sleep stage 4"), (41.5, 12.5, "Hypopnea"), (60.0, 30.0, "REM")]
EXPECTED = tuple(Event(*row) for row in ROWS)


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "latin-1"])
@pytest.mark.parametrize(
    "header",
    [
        ("onset", "duration", "description"),
        ("onset_s", "duration_s", "stage"),
        ("Start", "Duration", "Event"),
        ("Start (sec)", "Duration [s]", "Event name"),
        ("Heure de début", "Durée", "Événement"),
        ("onset", "duration", "trial_type"),
        None,
    ],
)
def test_csv_headers_delimiters_encodings(tmp_path, delimiter, encoding, header):
    lines = ([header] if header else []) + [(f"{a}", f"{b}", c) for a, b, c in ROWS]
    path = write(tmp_path, "\r\n".join(delimiter.join(line) for line in lines), encoding=encoding)
    assert read_scoring(path).events == EXPECTED


def test_csv_columns_in_another_order_with_quotes_comments_and_blank_lines(tmp_path):
    text = '# scored by hand\nEvent,Channel,Start,Duration\n"Wake, eyes open",C3,30,30\n\n"Sleep stage 2",C3,0,30\n'
    scoring = read_scoring(write(tmp_path, text))
    assert scoring.events == (Event(0, 30, "Sleep stage 2"), Event(30, 30, "Wake, eyes open"))
    assert scoring.issues == ()
    assert scoring.events_scored is None


def test_csv_decimal_commas_and_clock_durations(tmp_path):
    scoring = read_scoring(write(tmp_path, "onset;duration;stage\n0,5;00:00:30;N2\n30,5;1:00;N3\n"))
    assert scoring.events[0] == Event(0.5, 30.0, "N2")
    assert scoring.events[1].onset_s == 30.5


def test_csv_with_ends_instead_of_durations(tmp_path):
    assert read_scoring(write(tmp_path, "start,end,stage\n0,30,N2\n30,90,N3\n")).events[1] == Event(30, 60, "N3")
    text = "start time,end time,stage\n23:59:30,00:00:00,N2\n00:00:00,00:00:30,R\n"
    scoring = read_scoring(write(tmp_path, text), start=datetime(2020, 1, 1, 23, 59))
    assert scoring.events == (Event(30, 30, "N2"), Event(60, 30, "R"))


@pytest.mark.parametrize(
    ("start", "first", "second"),
    [
        (datetime(2020, 3, 1, 22, 0, 0), "22:30:00", "01:00:30"),
        (datetime(2020, 3, 1, 22, 0, 0), "10:30:00 PM", "1:00:30 am"),
        (datetime(2020, 3, 1, 22, 0, 0), "01/03/2020 22:30:00", "02/03/2020 01:00:30"),
        (datetime(2020, 3, 1, 22, 0, 0), "3/1/2020 22:30:00", "3/2/2020 01:00:30"),
        (datetime(2020, 3, 1, 22, 0, 0), "2020-03-01T22:30:00", "2020-03-02T01:00:30.000"),
        (datetime(2020, 3, 1, 22, 0, 0), "01.03.2020 22:30:00", "02.03.20 01:00:30".replace(".20 ", ".2020 ")),
        (datetime(2020, 3, 31, 22, 0, 0), "31/03/2020 22:30:00", "01/04/2020 01:00:30"),
        (datetime(2020, 3, 31, 22, 0, 0), "03/31/2020 22:30:00", "04/01/2020 01:00:30"),
    ],
)
def test_clock_times(tmp_path, start, first, second):
    path = write(tmp_path, f"onset,duration,stage\n{first},30,N2\n{second},30,R\n")
    assert read_scoring(path, start=start).events == (Event(1800, 30, "N2"), Event(10_830, 30, "R"))
    with pytest.raises(ScoringError, match="start"):
        read_scoring(path)


def test_clock_times_before_the_recording_started(tmp_path):
    path = write(tmp_path, "onset,duration,stage\n21:59:45,30,N2\n22:00:15,30,R\n")
    scoring = read_scoring(path, start=datetime(2020, 3, 1, 22, 0, 0, 500_000))
    assert [event.onset_s for event in scoring.events] == [-15.5, 14.5]


def test_times_that_count_from_zero_are_elapsed(tmp_path):
    path = write(tmp_path, "onset,duration,stage\n00:00:00,30,N2\n00:00:30,30,R\n26:00:00,30,W\n")
    for start in (None, datetime(2020, 3, 1, 22, 0)):
        scoring = read_scoring(path, start=start)
        assert [event.onset_s for event in scoring.events] == [0, 30, 93_600]
        assert "since the recording's start" in scoring.issues[0]


def test_a_night_that_passes_midnight_is_not_elapsed_time(tmp_path):
    rows = "".join(f"{h:02}:{m:02}:00,30,N2\n" for h in (22, 23, 0, 1) for m in range(0, 60, 10))
    scoring = read_scoring(write(tmp_path, "onset,duration,stage\n" + rows), start=datetime(2020, 3, 1, 21, 50))
    assert [event.onset_s for event in scoring.events] == [600.0 * i for i in range(1, 25)]


def test_dates_far_from_the_recording_are_reported(tmp_path):
    path = write(tmp_path, "onset,duration,stage\n2019-03-01 22:00:00,30,N2\n")
    (issue,) = read_scoring(path, start=datetime(2020, 3, 1, 22, 0)).issues
    assert "-366 days" in issue


def test_rows_that_cannot_be_read_are_counted(tmp_path):
    text = "onset,duration,stage\n0,30,N2\nx,30,N2\n60,30,\n90,30,R\n120,30,R\n"
    scoring = read_scoring(write(tmp_path, text))
    assert len(scoring.events) == 3
    assert "2 rows" in scoring.issues[0]
    assert "line 3" in scoring.issues[0]


def test_stage_numbers_of_another_convention_are_remarked(tmp_path):
    assert "REM" in read_scoring(write(tmp_path, "onset,duration,stage\n0,30,2\n30,30,4\n")).issues[0]
    assert read_scoring(write(tmp_path, "onset,duration,stage\n0,30,5\n30,30,4\n")).issues == ()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "is empty"),
        ("\n\n", "is empty"),
        (',,,\n"#,",\n', "no row"),
        ("onset,duration\n0,30\n", "stage or event"),
        ("epoch,stage\n1,N2\n", "onset"),
        ("W\nW\nN1\n", "separator"),
        ("onset,duration,stage\n", "none of its 0 rows"),
        ("onset,duration,stage\nx,y,z\n", "none of its 1 rows"),
        ("onset,duration,stage\n0,30,N1\nx,y,z\nx,y,z\n", "2 of 3 rows"),
        ("onset,duration,stage\n0,30,N1\n00:00:30,30,N1\n", "mixes"),
        ("onset,duration,stage\n22:00:00,30,N1\n2020-01-01 22:00:30,30,N1\n", "carry a date"),
        ("onset,duration,stage\n32/13/2020 22:00:00,30,N1\n", "does not exist"),
        ("0,N2,30\n30,N2,30\n", "not a duration"),
        (bytes(range(256)), "neither text"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    ],
)
def test_refusals_are_sentences(tmp_path, text, said):
    with pytest.raises(ScoringError, match=said):
        read_scoring(write(tmp_path, text), start=datetime(2020, 1, 1))


def test_events_are_sorted_whatever_the_file_order(tmp_path):
    rows = [
        f"{onset},30,{stage}" for onset, stage in zip(range(0, 300, 30), itertools.cycle(["N2", "R"]), strict=False)
    ]
    text = "onset,duration,stage\n"
    upward = read_scoring(write(tmp_path, text + "\n".join(rows), "a.csv"))
    downward = read_scoring(write(tmp_path, text + "\n".join(reversed(rows)), "b.csv"))
    assert upward.events == downward.events
