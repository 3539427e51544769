"""Scoring as delimited text: columns, encodings, clock times, refusals."""

from __future__ import annotations

import itertools
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from sleepfm_fast.annotations import Event, Scoring, ScoringError, clip_labels, find_scoring, read_scoring
from sleepfm_fast.errors import SleepfmError
from sleepfm_fast.scoring.csv_files import parse_csv
from sleepfm_fast.scoring.files import find_scorings
from sleepfm_fast.scoring.grouped_thousands import without_groups
from sleepfm_fast.scoring.stages import STAGES, fold, respiratory_event_of
from sleepfm_fast.scoring.texts import asks_meaning, parse_meanings, stated, translated, unlike_a_night


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
    assert scoring.events[1] == Event(30.5, 60.0, "N3"), "a duration of two parts is minutes and seconds"
    short = read_scoring(write(tmp_path, "onset;duration;event\n0;0:25,5;Hypopnea\n"))
    assert short.events == (Event(0, 25.5, "Hypopnea"),)


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
        (datetime(2020, 3, 1, 22, 0, 0), "01.03.2020 22:30:00", "02.03.2020 01:00:30"),
        (datetime(1999, 12, 31, 22, 0, 0), "31.12.99 22:30:00", "01.01.00 01:00:30"),
        (datetime(2084, 12, 31, 22, 0, 0), "12/31/84 22:30:00", "1/1/2085 01:00:30"),
        (datetime(2020, 3, 31, 22, 0, 0), "31/03/2020 22:30:00", "01/04/2020 01:00:30"),
        (datetime(2020, 3, 31, 22, 0, 0), "03/31/2020 22:30:00", "04/01/2020 01:00:30"),
    ],
)
def test_clock_times(tmp_path, start, first, second):
    path = write(tmp_path, f"onset,duration,stage\n{first},30,N2\n{second},30,R\n")
    assert read_scoring(path, start=start).events == (Event(1800, 30, "N2"), Event(10_830, 30, "R"))
    with pytest.raises(ScoringError, match="start"):
        read_scoring(path)


def test_clock_times_that_lost_their_seconds_are_refused(tmp_path):
    """A spreadsheet that shows hours and minutes saves what it shows: two epochs a minute have one time."""
    start = datetime(2020, 3, 1, 23, 50, 7)
    rows = [
        f"{(23 * 60 + 50 + i // 2) // 60 % 24}:{(50 + i // 2) % 60:02},30,{'N2' if i % 3 else 'W'}" for i in range(60)
    ]
    path = write(tmp_path, "\n".join(["time,duration,stage", *rows]))
    with pytest.raises(ScoringError, match=r"30 of its 60 stages the time of the stage before.*with seconds"):
        read_scoring(path, start=start)
    whole = write(tmp_path, "\n".join(["time,duration,stage", *(row.replace(",30,", ",60,") for row in rows[::2])]))
    assert read_scoring(whole, start=start).events[1] == Event(53, 60, "N2")


@pytest.mark.parametrize("dated", [False, True])
@pytest.mark.parametrize(
    ("start", "hours"),
    [(datetime(2020, 3, 1, 22, 30), 8), (datetime(2020, 3, 2, 0, 30), 6), (datetime(2020, 3, 1, 13, 0), 2)],
)
def test_a_12_hour_clock_without_am_and_pm_is_named(tmp_path, start, hours, dated):
    times = [start + timedelta(seconds=30 * i) for i in range(120 * hours)]
    day = "%Y-%m-%d " if dated else ""
    twelve = [f"{time:{day}%I:%M:%S}{{}},30,{'N2' if i % 7 else 'W'}" for i, time in enumerate(times)]
    text = "\n".join(["time,duration,stage", *(row.format("") for row in twelve)])
    with pytest.raises(ScoringError, match=r"of its \d+ clock times lie outside.*12-hour clock without am and pm"):
        read_scoring(write(tmp_path, text), start=start, length_s=3600 * hours)
    whole = [row.format(f" {time:%p}") for row, time in zip(twelve, times, strict=True)]
    path = write(tmp_path, "\n".join(["time,duration,stage", *whole]))
    assert read_scoring(path, start=start, length_s=3600 * hours).events[-1].onset_s == 3600 * hours - 30


@pytest.mark.parametrize("length_s", [24 * 3600, None])
@pytest.mark.parametrize("dated", [False, True])
def test_a_12_hour_clock_of_a_recording_as_long_as_the_day_is_named(tmp_path, dated, length_s):
    """None of its times lies outside; but behind 12:59:30 comes 1:00."""
    start = datetime(2020, 3, 1, 20, 0, 10)
    times = [start + timedelta(seconds=30 * i) for i in range(120 * 9)]
    day = "%Y-%m-%d " if dated else ""
    rows = [f"{time:{day}%I:%M:%S},30,{'N2' if i % 7 else 'W'}" for i, time in enumerate(times)]
    path = write(tmp_path, "\n".join(["time,duration,stage", *rows]))
    sign = "lie outside" if dated and length_s else "behind 12:59:40 comes 01:00:10"  # a date is of one day only
    with pytest.raises(ScoringError, match=f"{sign}.*12-hour clock without am and pm"):
        read_scoring(path, start=start, length_s=length_s)
    # By a clock of 24 hours 13:00:10 comes next, or, of what is not in order, whatever else.
    rows = [f"{time:{day}%H:%M:%S},30,{'N2' if i % 7 else 'W'}" for i, time in enumerate(times)]
    path = write(tmp_path, "\n".join(["time,duration,stage", *rows]))
    assert len(read_scoring(path, start=start, length_s=length_s).events) == len(times)
    path = write(tmp_path, "time,duration,event\n12:59:40,15,Hypopnea\n01:10:00,15,Obstructive apnea\n")
    assert len(read_scoring(path, start=start, length_s=length_s).events) == 2


def test_times_just_outside_the_recording_are_no_12_hour_clock(tmp_path):
    """A long recording would hold them twelve hours earlier too."""
    path = write(tmp_path, "time,duration,event\n01:10:00,15,Hypopnea\n10:05:00,15,Hypopnea\n")
    start = datetime(2020, 3, 1, 20, 0)
    assert [e.onset_s for e in read_scoring(path, start=start, length_s=14 * 3600).events] == [18_600, 50_700]


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


def epochs_from(first_s, n=120, header="Time,Duration,Stage"):
    """Epochs by a clock, N1 in the first one and N2 in the others, so that a shift is seen."""
    times = ((first_s + 30 * i) % 86_400 for i in range(n))
    rows = (f"{t // 3600:02}:{t // 60 % 60:02}:{t % 60:02},30,{'N2' if i else 'N1'}" for i, t in enumerate(times))
    return "\n".join((header, *rows))


@pytest.mark.parametrize(
    ("header", "factor", "hint"),
    [
        ("onset,duration,stage", (1000, 1000), r"would fit milliseconds: .* Onset \(ms\) and Duration \(ms\)"),
        ("onset,duration,stage", (1000, 1), r"would fit milliseconds: .* names, Onset \(ms\)\."),
        ("onset,duration,stage", (1, 1000), r"stages last 8\.3 hours .* milliseconds: .* Duration \(ms\)"),
        ("onset,stage", (1000, None), r"119 of the 120 times .* 60\.0 minutes\. .* would fit milliseconds"),
        ("onset,stage", (256, None), r"would fit samples at 256 Hz"),
        ("onset,stage", (10, None), r"would fit samples at 10 Hz"),
        ("onset (min),stage", (1, None), r"correct them, or give seconds"),
    ],
)
def test_stages_in_another_unit_are_refused(tmp_path, header, factor, hint):
    def rows(*factors):
        given = [[i * 30 * factors[0], *([30 * f] for f in factors[1:] if f)] for i in range(120)]
        return [",".join(str(v[0] if isinstance(v, list) else v) for v in (*row, ["N2"])) for row in given]

    path = write(tmp_path, "\n".join((header, *rows(*factor))))
    with pytest.raises(ScoringError, match=hint):
        read_scoring(path, start=datetime(2021, 3, 5, 22, 30), length_s=3600)
    if "milliseconds" in hint:
        names = header.split(",")
        units = [*(f"{n} (ms)" if f == 1000 else n for n, f in zip(names, factor, strict=False) if f), "stage"]
        path = write(tmp_path, "\n".join((",".join(units), *rows(*factor))))
        scoring = read_scoring(path, start=datetime(2021, 3, 5, 22, 30), length_s=3600)
        assert [event.onset_s for event in scoring.events] == [30 * i for i in range(120)]


@pytest.mark.parametrize(
    "header", ["Epoch,Clock,Stage", "Epoch,Epoch time,Sleep Stage", "Epoch,Recording time,Stage", "#,Time,Event"]
)
@pytest.mark.parametrize("separator", [",", "\t"])
def test_clock_times_of_a_column_without_a_known_name_are_used(tmp_path, header, separator):
    """Rows that would fill the recording from its start, and begin ten minutes later by their clock."""
    times = (f"{22 + m // 60}:{m % 60:02}:{s}" for m in range(40, 100) for s in ("00", "30"))
    rows = [header, *(f"{i + 1},{at},N2" for i, at in enumerate(times))]
    path = write(tmp_path, "\n".join(rows).replace(",", separator))
    scoring = read_scoring(path, start=datetime(2021, 3, 5, 22, 30), length_s=3600)
    assert [event.onset_s for event in scoring.events] == [600 + 30 * i for i in range(120)]
    assert any("the clock times of column 2 ('22:40:00' in the first row)" in issue for issue in scoring.issues)
    ends = path.read_text().replace(header.replace(",", separator), separator.join(("Epoch", "End", "Stage")))
    assert read_scoring(write(tmp_path, ends), length_s=3600).events[0].onset_s == 0


@pytest.mark.parametrize("header", ["Época,Estágio", "Época;Fase", "epoca;etapa"])
def test_lists_of_epochs_in_portuguese_and_spanish(tmp_path, header):
    rows = [f"{i + 1}{';' if ';' in header else ','}{'R' if i == 7 else 'N2'}" for i in range(120)]
    scoring = read_scoring(write(tmp_path, "\n".join((header, *rows))), length_s=3600)
    assert [event.onset_s for event in scoring.events if event.text == "R"] == [210]


def numbered(first: int, last: int) -> str:
    return "\n".join(("Epoch,Stage", *(f"{i},{'R' if i % 7 == 0 else 'N2'}" for i in range(first, last + 1))))


@pytest.mark.parametrize("form", ["{}.0", "{},0", "{}.000"])
def test_numbers_of_epochs_may_have_decimals_that_are_zero(tmp_path, form):
    lines = [f"{form.format(i)};{'R' if i % 7 == 0 else 'N2'}" for i in range(1, 121)]
    expected = read_scoring(write(tmp_path, numbered(1, 120)), length_s=3600).events
    assert read_scoring(write(tmp_path, "\n".join(["Epoch;Stage", *lines])), length_s=3600).events == expected
    assert read_scoring(write(tmp_path, "\n".join(lines)), length_s=3600).events == expected
    lines[5] = lines[5].replace(form.format(6), "6.5")
    with pytest.raises(ScoringError, match=r"5 is followed by '6.5'"):
        read_scoring(write(tmp_path, "\n".join(["Epoch;Stage", *lines])), length_s=3600)


def test_numbered_epochs_that_end_in_the_last_third_lie_where_their_numbers_say(tmp_path):
    scoring = read_scoring(write(tmp_path, numbered(21, 110)), length_s=3600)
    assert [event.onset_s for event in scoring.events] == [30.0 * i for i in range(20, 110)]
    assert [event.onset_s for event in scoring.events if event.text == "R"][:2] == [600, 810]  # numbers 21 and 28
    assert {event.duration_s for event in scoring.events} == {30.0}
    (issue,) = scoring.issues
    assert issue.endswith("epochs from the recording's epoch 21 on; the last 5.0 minutes are not scored.")
    assert len(read_scoring(write(tmp_path, numbered(21, 80)), length_s=3600).events) == 60


def test_numbered_epochs_that_end_long_before_the_recording_say_what_to_add(tmp_path):
    path = write(tmp_path, numbered(21, 79))
    with pytest.raises(
        ScoringError, match=r"epochs 21 to 79 .* 20\.5 minutes before .* 30 \* \(number of the epoch - 1"
    ):
        read_scoring(path, length_s=3600)


@pytest.mark.parametrize("epoch_s", [10, 15, 20, 60])
def test_numbered_epochs_of_another_length_are_not_taken_for_30_s(tmp_path, epoch_s):
    """A scoring that ends anywhere in the last third of a night of eight hours, up to its end."""
    for last in range(2 * 9600 // epoch_s + 2, 3 * 9600 // epoch_s + 1, 60 // epoch_s * 3):
        with pytest.raises(ScoringError, match=rf"the epochs 31 to {last} without times.*not known where they lie"):
            read_scoring(write(tmp_path, numbered(31, last)), length_s=3 * 9600)


def test_epochs_numbered_from_one_may_count_from_where_scoring_began(tmp_path):
    with pytest.raises(ScoringError, match=r"the epochs 1 to 110 without times: 55 minutes .* not known where"):
        read_scoring(write(tmp_path, numbered(1, 110)), length_s=3600)


@pytest.mark.parametrize(("day", "said"), [(4, "-1 days away"), (5, ""), (6, "1 day away")])
def test_a_date_wrong_by_one_day_is_reported(tmp_path, day, said):
    path = write(tmp_path, f"onset,duration,stage\n2021-03-{day:02} 22:30:00,30,N2\n2021-03-{day:02} 22:30:30,30,N2\n")
    issues = read_scoring(path, start=datetime(2021, 3, 5, 22, 30), length_s=3600).issues
    assert [said in issue for issue in issues] == [True] * bool(said)


def test_clock_times_of_another_night_are_refused_and_those_of_a_longer_one_are_not(tmp_path):
    path = write(tmp_path, epochs_from(23 * 3600, 960))
    with pytest.raises(ScoringError, match="599 of the 960 times of its stages lie outside the recording"):
        read_scoring(path, start=datetime(2021, 3, 5, 18, 0, 30), length_s=8 * 3600)
    whole = read_scoring(path, start=datetime(2021, 3, 5, 22, 55), length_s=3600)
    assert [event.onset_s for event in whole.events] == [300 + 30 * i for i in range(960)]
    changes = "onset,stage\n" + "\n".join(
        f"{at},{'N2' if at % 4 else 'W'}" for at in range(0, 28_000, 30) if at % 7 < 2
    )
    assert len(read_scoring(write(tmp_path, changes), length_s=3600).events) == 267


@pytest.mark.parametrize("at", [(22, 30), (23, 5), (23, 20), (23, 45), (23, 58, 50), (0, 2), (0, 10), (0, 40)])
def test_elapsed_times_beside_a_recording_that_starts_near_midnight(tmp_path, at):
    start = datetime(2021, 3, 5, *at)
    scoring = read_scoring(write(tmp_path, epochs_from(0)), start=start, length_s=3600)
    assert [event.onset_s for event in scoring.events] == [30.0 * i for i in range(120)]
    assert ["read as time since the recording's start" in issue for issue in scoring.issues] == [True]


@pytest.mark.parametrize("at", [(23, 20), (23, 45), (0, 0), (0, 0, 20), (0, 2), (0, 40)])
def test_clock_times_beside_a_recording_that_starts_near_midnight(tmp_path, at):
    start = datetime(2021, 3, 5, *at)
    first_s = (start - datetime(2021, 3, 5)).seconds
    scoring = read_scoring(write(tmp_path, epochs_from(first_s)), start=start, length_s=3600)
    assert [event.onset_s for event in scoring.events] == [30.0 * i for i in range(120)]


@pytest.mark.parametrize(
    ("at", "minutes", "how"),
    [
        ((23, 45), 90, "either way"),
        ((23, 45), None, "either way"),
        ((0, 0, 20), 60, "either way"),
        ((23, 45), 30, "neither way"),
        ((0, 10), 30, "neither way"),
    ],
)
def test_times_near_midnight_that_may_be_both_are_refused(tmp_path, at, minutes, how):
    path = write(tmp_path, epochs_from(0))
    length_s = None if minutes is None else 60 * minutes
    with pytest.raises(ScoringError, match=f"inside it {how}. Give them as seconds from the recording's start"):
        read_scoring(path, start=datetime(2021, 3, 5, *at), length_s=length_s)


def test_elapsed_times_that_begin_later_are_not_taken_for_clock_times(tmp_path):
    """Scored from lights off on, 20 minutes into the recording: 00:20:00 to 05:59:30."""
    path = write(tmp_path, epochs_from(1200, 680))
    with pytest.raises(ScoringError, match=r"lie up to 1\.5 hours outside the recording.* they lie inside"):
        read_scoring(path, start=datetime(2021, 3, 5, 22, 30), length_s=6 * 3600)
    inside = read_scoring(path, start=datetime(2021, 3, 5, 22, 30), length_s=8 * 3600)
    assert inside.events[0].onset_s == 6600


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
    assert [event.text for event in scoring.events] == ["N2", "unscored", "R", "R"]
    assert "1 row without" in scoring.issues[0]
    assert "line 3" in scoring.issues[0]
    assert "not scored" in scoring.issues[1]


def test_an_epoch_without_a_stage_ends_the_stage_before_it(tmp_path):
    scoring = read_scoring(write(tmp_path, "onset\tstage\n0\tW\n30\tN2\n60\t\n90\tR\n"))
    assert clip_labels(scoring, 120).stage.tolist() == [0, 2, -1, 4]
    events = read_scoring(write(tmp_path, "onset,event\n0,W\n30,N2\n60,\n90,R\n"))
    assert clip_labels(events, 120).stage.tolist() == [0, 2, 2, 4], "a row without an event says nothing"


def labelled(tmp_path, text, length_s=300, **options):
    return clip_labels(read_scoring(write(tmp_path, text), length_s=length_s, **options), length_s)


def test_a_four_without_a_five_has_no_stage_until_its_meaning_is_stated(tmp_path):
    text = "onset,duration,stage\n0,30,2\n30,30,4\n60,30,0\n"
    grid = labelled(tmp_path, text, 90)
    assert grid.stage.tolist() == [2, -1, 0]
    assert "--meanings 4=R" in grid.issues[0]
    assert parse_meanings(["4=R"]) == parse_meanings(["4=REM"])
    told = translated(read_scoring(write(tmp_path, text)), parse_meanings(["4=R"]))
    assert clip_labels(told, 90).stage.tolist() == [2, 4, 0]
    assert clip_labels(told, 90).issues == ()
    kales = labelled(tmp_path, text + "90,30,5\n", 120)
    assert (kales.stage.tolist(), kales.issues) == ([2, 3, 0, 4], ())


def test_texts_that_are_not_known_are_said_and_can_be_told(tmp_path):
    text = "Beginn;Dauer;Ereignis\n0;30;Wach\n30;30;Leichtschlaf\n60;30;Lumme\n65;12;Ap. mit Apnoeverdacht\n90;30;N3\n"
    grid = labelled(tmp_path, text, 120)
    assert grid.stage.tolist() == [0, -1, -1, 3]
    assert "'Leichtschlaf' (1), 'Lumme' (1)" in grid.issues[0]
    assert "'Ap. mit Apnoeverdacht' (1)" in grid.issues[1]
    meanings = parse_meanings(["leichtschlaf=N1", "Lumme = none", "ap mit apnoeverdacht=apnea"])
    told = clip_labels(translated(read_scoring(write(tmp_path, text)), meanings), 120)
    assert (told.stage.tolist(), told.sdb.tolist(), told.issues) == ([0, 1, -1, 3], [0, 0, 1, 0], ())


def test_meanings_can_be_stated_again():
    given = ["4=R", "lightsleep=N2", "apobs=apnea", "x=none", "y=ignore", "z=hypopnea"]
    assert stated(parse_meanings(given)) == given


@pytest.mark.parametrize("wrong", [["4"], ["=R"], ["4=5"], ["4=x"], ["4=R", "4.0=N3"]])
def test_meanings_that_say_nothing_are_refused(wrong):
    with pytest.raises(SleepfmError, match="meanings"):
        parse_meanings(wrong)


@pytest.mark.parametrize(
    "text",
    ["W\nN1\nN2\nR\n", "stage\r\nW\r\nN1\r\nN2\r\nR\r\n", "Epoch,Stage\n1,W\n2,N1\n3,N2\n4,R\n",
     "Epoche;Schlafstadium\n0;Wach\n1;S1\n2;Stadium 2\n3;REM\n", "epoch\tsleep stage\n1\tW\n2\tN1\n3\tN2\n4\tR\n"],
)  # fmt: skip
def test_stages_without_times_are_epochs_from_the_start_of_a_recording_of_that_length(tmp_path, text):
    grid = labelled(tmp_path, text, 145)
    assert (grid.onsets_s.tolist(), grid.stage.tolist()) == ([0, 30, 60, 90], [0, 1, 2, 4])
    for other_s in (80, 180, 3600):  # 20-s epochs, or a list that begins with lights off
        with pytest.raises(ScoringError, match="not known where they lie"):
            labelled(tmp_path, text, other_s)
    with pytest.raises(ScoringError, match="onset"):
        read_scoring(write(tmp_path, text))


def test_numbered_epochs_begin_where_their_number_says(tmp_path):
    grid = labelled(tmp_path, "epoch,stage\n3,N1\n4,R\n", 120)
    assert grid.stage.tolist() == [-1, -1, 1, 4]
    with pytest.raises(ScoringError, match=r"not numbered one after the other \(3 is followed by '5'\)"):
        labelled(tmp_path, "epoch,stage\n3,N1\n5,R\n", 150)


@pytest.mark.parametrize(
    ("header", "per_second"),
    [("onset_ms,duration_ms,stage", 1000), ("Start (ms),Duration [ms],Stage", 1000),
     ("Onset (min),Dur (minutes),Stage", 1 / 60),
     ("Start [hh:mm:ss],Duration (s),Stage", 1), ("Start (milliseconds),Duration (Milliseconds),Stage", 1000)],
)  # fmt: skip
def test_units_in_the_names_of_columns_count(tmp_path, header, per_second):
    rows = "".join(f"{at * per_second},{30 * per_second},{stage}\n" for at, stage in ((0, "W"), (30, "N2")))
    assert read_scoring(write(tmp_path, f"{header}\n{rows}")).events == (Event(0, 30, "W"), Event(30, 30, "N2"))


@pytest.mark.parametrize(
    ("header", "row", "onset_s", "duration_s"),
    [
        ("Onset (min),Duration (s),Stage", "1,30,W", 60, 30),
        ("Onset (s),Duration (min),Stage", "60,0.5,W", 60, 30),
        ("Start (h),End (min),Stage", "0.5,31,W", 1800, 60),
        ("Start (s),End (ms),Stage", "60,90000,W", 60, 30),
        ("Start (min),End,Stage", "1,90,W", 60, 30),
        ("Start (ms),End (ms),Stage", "1 min,90000,W", 60, 30),  # a cell's own unit goes first
        ("Start,Duration (ms),Stage", '"0,5 h",30 s,W', 1800, 30),
    ],
)
def test_each_column_has_its_own_unit(tmp_path, header, row, onset_s, duration_s):
    (event,) = read_scoring(write(tmp_path, f"{header}\n{row}\n")).events
    assert event == Event(onset_s, duration_s, "W")


def test_times_in_samples_are_refused(tmp_path):
    with pytest.raises(ScoringError, match="samples"):
        read_scoring(write(tmp_path, "onset_samples,stage\n0,W\n7680,N2\n"))


def test_exports_with_lines_before_the_table(tmp_path):
    head = "RemLogic Event Export\nPatient:\tX\nRecording Date:\t05/03/2024\nEvents Included:\nSLEEP-S0\nHYPOPNEA\n\n"
    table = (
        "Sleep Stage\tPosition\tTime [hh:mm:ss]\tEvent\tDuration[s]\nS0\tSupine\t22:30:10\tSLEEP-S0\t30\n"
        "S2\tSupine\t00:31:10\tHYPOPNEA\t20\nS2\tSupine\t00:31:10\tSLEEP-REM\t30\n"
    )
    scoring = read_scoring(write(tmp_path, head + table, "a.txt"), start=datetime(2024, 3, 5, 22, 30))
    assert scoring.events == (Event(10, 30, "SLEEP-S0"), Event(7270, 20, "HYPOPNEA"), Event(7270, 30, "SLEEP-REM"))


def test_profiles_of_stages_and_lists_of_events(tmp_path):
    head = "Patient: M\xfcller\r\nStart Time: 05.03.2024 22:30:00\r\nSignal Type: {}\r\n{}\r\n"
    stages = head.format("Discret", "Rate: 20 s\r\n") + (
        "05.03.2024 22:30:00,000; Wake\r\n05.03.2024 22:30:20,000; N4\r\n06.03.2024 00:00:00,000; Rem\r\n"
    )
    start = datetime(2024, 3, 5, 22, 30)
    scoring = read_scoring(write(tmp_path, stages, "p.txt", "cp1252"), start=start)
    assert scoring.events == (Event(0, 20, "Wake"), Event(20, 20, "N4"), Event(5400, 20, "Rem"))
    flow = head.format("Impuls", "") + (
        "05.03.2024 23:59:50,500-00:00:12,500; 22;Hypopnea; N2\r\n"
        "06.03.2024 01:00:00,000-01:00:15,000; ;Obstructive Apnea; R\r\n"
    )
    assert read_scoring(write(tmp_path, flow, "f.txt"), start=start).events[0] == Event(5390.5, 22, "Hypopnea")
    with pytest.raises(ScoringError, match="no row such as"):
        read_scoring(write(tmp_path, head.format("Discret", ""), "e.txt"), start=start)


@pytest.mark.parametrize("times", [("10:40:00 PM", "12:00:20 AM"), ("22:40:00", "00:00:20")])
def test_a_few_events_about_midnight_are_clock_times(tmp_path, times):
    rows = "".join(f"{time},15,Hypopnea\n" for time in times)
    scoring = read_scoring(write(tmp_path, "time,duration,event\n" + rows), start=datetime(2020, 3, 1, 22, 30))
    assert [event.onset_s for event in scoring.events] == [600, 5420]


def test_ends_are_read_as_the_onsets_are(tmp_path):
    text = "Start Time,End Time,Event\n23:59:30,00:00:00,N2\n00:00:00,00:00:30,R\n23:59:50,00:00:12,Obstructive Apnea\n"
    scoring = read_scoring(write(tmp_path, text), start=datetime(2020, 1, 1, 22, 30))
    assert [event.duration_s for event in scoring.events] == [30, 22, 30]
    wrong = read_scoring(
        write(tmp_path, "start time,end time,event\n23:59:30,23:59:20,Hypopnea\n"), start=datetime(2020, 1, 1, 22, 30)
    )
    assert wrong.events[0].duration_s == -10, "a mistake, and no event of a day"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "is empty"),
        ("\n\n", "is empty"),
        (',,,\n"#,",\n', "no row"),
        ("onset,duration\n0,30\n", "stage or event"),
        ("epoch,stage\n1,N2\n", "onset"),
        ("Wach auf\nund geh\n", "separator"),
        ("onset,duration,stage\n", "none of its 0 rows"),
        ("onset,duration,stage\nx,y,z\n", "none of its 1 row"),
        ("onset,duration,stage\n0,30,N1\nx,y,z\nx,y,z\n", "2 of 3 rows"),
        ("onset,duration,stage\n0,30,N1\n00:00:30,30,N1\n", "mixes"),
        ("onset,duration,stage\n22:00:00,30,N1\n2020-01-01 22:00:30,30,N1\n", "carries a date"),
        ("onset,duration,stage\n32/13/2020 22:00:00,30,N1\n", "does not exist"),
        ("0,N2,30\n30,N2,30\n", "not a duration"),
        (";\n" * 20 + "30\n", "not a duration"),
        ("stage;epoch\n" + ";\n" * 20 + "N2\n", "not numbered"),
        ('"a","b\nc,"\n' * 2, "among 'a, b c,'"),
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


# The night on which clocks change


def stages_by_the_clock(start: datetime, jump: datetime, hours: float, *, n: int = 960) -> list[tuple[str, str]]:
    """Every epoch of a night as a clock shows it that is moved by ``hours`` at ``jump``."""
    words = ["W", "N1", "N2", "N3", "R"]
    times = [start + timedelta(seconds=30 * i) for i in range(n)]
    shown = [time + timedelta(hours=hours) if time >= jump else time for time in times]
    return [(f"{time:%H:%M:%S}", words[(7 * i * i) % 5]) for i, time in enumerate(shown)]


@pytest.mark.parametrize("seconds", [0, 17])
@pytest.mark.parametrize(
    ("jump", "hours", "said"),
    [
        (datetime(2024, 10, 27, 3), -1, "put back by an hour at 03:00"),
        (datetime(2024, 3, 31, 2), 1, "put forward by an hour at 02:00"),
        (datetime(2024, 10, 27, 2), -1, "put back by an hour at 02:00"),
        (datetime(2024, 3, 31, 1), 1, "put forward by an hour at 01:00"),
    ],
)
@pytest.mark.parametrize("columns", ["Time,Stage", "Time,Duration,Stage"])
def test_a_clock_that_changes_in_the_night(tmp_path, jump, hours, said, seconds, columns):
    start = jump.replace(hour=22, second=seconds) - timedelta(days=1)
    rows = stages_by_the_clock(start, jump, hours)
    middle = ",30," if "Duration" in columns else ","
    path = write(tmp_path, f"{columns}\n" + "".join(f"{time}{middle}{stage}\n" for time, stage in rows))
    scoring = read_scoring(path, start=start)
    assert [event.onset_s for event in scoring.events] == [30.0 * i for i in range(960)]
    assert [event.text for event in scoring.events] == [stage for _, stage in rows]
    assert any(said in issue and "Clock times in other files" in issue for issue in scoring.issues)


@pytest.mark.parametrize("ordered", [True, False])
def test_events_of_the_hour_that_a_clock_shows_twice(tmp_path, ordered):
    start, jump = datetime(2024, 10, 26, 22), datetime(2024, 10, 27, 3)
    stages = [(30.0 * i, time, stage) for i, (time, stage) in enumerate(stages_by_the_clock(start, jump, -1))]
    onsets = [3 * 3600, 4.5 * 3600, 5.5 * 3600, 7 * 3600]
    shown = ["01:00:00", "02:30:00", "02:30:00", "04:00:00"]
    events = [(at + 0.5, time, "Hypopnea") for at, time in zip(onsets, shown, strict=True)]
    rows = sorted([*stages, *events]) if ordered else [*stages, *events]
    text = "Time,Duration,Event\n" + "".join(f"{time},{30 if len(e) < 3 else 20},{e}\n" for _, time, e in rows)
    scoring = read_scoring(write(tmp_path, text), start=start)
    found = [event.onset_s for event in scoring.events if event.text == "Hypopnea"]
    assert [e.onset_s for e in scoring.events if e.text != "Hypopnea"] == [30.0 * i for i in range(960)]
    if ordered:
        assert found == onsets
    else:
        assert found == [onsets[0], onsets[1], onsets[1], onsets[3]]
    assert any("2 events lie in the hour that the clock shows twice" in i for i in scoring.issues) is not ordered


def test_a_clock_that_changes_among_stages_and_as_many_events(tmp_path):
    start, jump = datetime(2024, 10, 26, 22), datetime(2024, 10, 27, 3)
    stages = stages_by_the_clock(start, jump, -1)
    rows = [f"{time},30,{stage}\n{time[:-1]}7,3,Arousal\n" for time, stage in stages]
    scoring = read_scoring(write(tmp_path, "Time,Duration,Event\n" + "".join(rows)), start=start)
    assert [event.onset_s for event in scoring.events] == [30.0 * i + s for i in range(960) for s in (0, 7)]


@pytest.mark.parametrize(("hours", "minutes"), [(4, 60), (2.5, 30), (1.5, 90)])
def test_a_gap_in_the_scoring_is_no_change_of_the_clock(tmp_path, hours, minutes):
    begins = datetime(2024, 3, 31) + timedelta(hours=hours)
    rows = stages_by_the_clock(datetime(2024, 3, 30, 22), begins, minutes / 60)
    path = write(tmp_path, "Time,Stage\n" + "".join(f"{time},{stage}\n" for time, stage in rows))
    scoring = read_scoring(path, start=datetime(2024, 3, 30, 22))
    assert scoring.events[-1].onset_s == 30.0 * 959 + 60 * minutes
    assert not any("clock" in issue for issue in scoring.issues)


# Words that only the user can explain


def test_abbreviations_of_events_are_asked_for_and_never_guessed():
    words = ["OA", "CA", "MA", "H", "Central", "CAP", "Ap. X"]
    events = [Event(100.0 * i, 20.0, text) for i, text in enumerate(words)]
    grid = clip_labels(Scoring(tuple(events), "a.csv"), 900)
    assert np.flatnonzero(grid.sdb == 1).tolist() == [0], "OA is no other thing; CAP may be a pattern of the EEG"
    (issue,) = (issue for issue in grid.issues if "seem to be respiratory events" in issue)
    assert all(f"'{word}' (1)" in issue for word in words[1:6])
    assert "Ap. X" not in issue
    said = translated(Scoring(tuple(events), "a.csv"), parse_meanings(["CA=apnea", "H=hypopnea", "CAP=ignore"]))
    assert np.flatnonzero(clip_labels(said, 900).sdb == 1).tolist() == [0, 3, 10]


@pytest.mark.parametrize(
    ("text", "meaning"), [("Gem. Apnoe", "apnea"), ("Hypopnoe gem", "hypopnea"), ("CA", "hypopnea")]
)
def test_the_example_of_a_meaning_fits_the_text(text, meaning):
    (issue,) = said_of(*[(40.0 * i, 20.0, text) for i in range(5)])
    assert f"--meanings '{text}={meaning}'" in issue


def said_of(*events: tuple[float, float | None, str]) -> list[str]:
    stages = [Event(30.0 * i, 30.0, "N2") for i in range(10)]
    grid = clip_labels(Scoring((*stages, *(Event(*event) for event in events)), "a.csv"), 300)
    return [issue for issue in grid.issues if "texts" in issue]


@pytest.mark.parametrize("duration_s", [None, 0.0, -1.0, float("inf"), float("nan")])
def test_events_without_a_duration_are_asked_for_too(duration_s):
    """Of a scoring that lists onsets only, every event would be lost unasked."""
    moments = [(20.0 * i, duration_s, "Hypo") for i in range(5)] + [(7.0, duration_s, "CA"), (9.0, duration_s, "Leg")]
    (issue,) = said_of(*moments)
    assert "seem to be respiratory events without a duration" in issue
    assert "'Hypo' (5), 'CA' (1). Say what they mean, as with --meanings 'Hypo=hypopnea'." in issue
    (issue,) = said_of(*moments, (100.0, None, "Hypopnea"))
    assert "--meanings" in issue, "no event of this scoring has a duration"
    both = said_of(*moments, (100.0, 12.0, "Ap."), (130.0, 12.0, "Ap."))
    assert ["without a duration" in issue for issue in both] == [False, True]
    assert "'Ap.' (2)" not in both[1]


def test_a_remark_on_breathing_beside_events_that_last_is_named_and_not_asked_for():
    (issue,) = said_of((100.0, 12.0, "Hypopnea"), (113.0, None, "post apnea arousal"), (150.0, 0.0, "resp."))
    assert issue == (
        "texts about breathing without a duration, beside respiratory events that have one: 'post apnea arousal' (1), "
        "'resp.' (1). They were taken for remarks; if they are events, give them a meaning."
    )
    assert not asks_meaning(issue)
    assert said_of((100.0, 12.0, "Hypopnea"), (113.0, None, "Lights off"), (120.0, 5.0, "Hypo")) == []


# Cells and columns as laboratories write them


def test_a_unit_behind_a_number_counts(tmp_path):
    text = "Time;Duration;Event\n0 s;30,0 s;N2\n30 s;0.5 min;N3\n40,5 sec;12500 ms;Hypopnea\n"
    assert read_scoring(write(tmp_path, text)).events == (
        Event(0.0, 30.0, "N2"), Event(30.0, 30.0, "N3"), Event(40.5, 12.5, "Hypopnea")
    )  # fmt: skip
    stated = "onset,duration (ms),event\n0,30000,N2\n31,12 s,Hypopnea\n"
    assert [e.duration_s for e in read_scoring(write(tmp_path, stated)).events] == [30.0, 12.0]


@pytest.mark.parametrize("date", ["", "04.03.2021 ", "2021-03-04 "])
def test_clock_times_with_dots(tmp_path, date):
    text = f"Time;Duration;Event\n{date}22.14.17;30;N2\n{date}22.14.47;30;N3\n{date}22.14.50,5;12;Hypopnea\n"
    events = read_scoring(write(tmp_path, text), start=datetime(2021, 3, 4, 22, 13, 47)).events
    assert [event.onset_s for event in events] == [30.0, 60.0, 63.5]


def test_a_column_of_stages_beside_one_of_events_is_not_lost(tmp_path):
    text = "Time,Duration,Stage,Event\n0,30,N2,\n30,30,N3,\n33,14,,Hypopnea\n60,30,R,\n65,11,R,Central apnea\n"
    scoring = read_scoring(write(tmp_path, text))
    assert [event.text for event in scoring.events] == ["N2", "N3", "Hypopnea", "R", "Central apnea"]
    assert scoring.issues == ()
    assert clip_labels(scoring, 90).stage.tolist() == [2, 3, 4]


@pytest.mark.parametrize(
    "header",
    ["Schlafphase,Lage,Zeit,Ereignis,Dauer", "Sleep Stage,Position,Time,Event,Duration",
     "Stade,Position,Heure,Événement,Durée", "stage,position,onset,Annotation,duration",
     "分期,体位,开始时间,事件,持续时间"],
)  # fmt: skip
def test_a_column_of_events_is_read_and_not_the_stage_at_that_time(tmp_path, header):
    text = f"{header}\nN2,L,0,N2,30\nN2,L,30,N2,30\nN2,L,33,Hypopnea,14\nR,L,60,R,30\nR,L,65,Central apnea,11\n"
    scoring = read_scoring(write(tmp_path, text))
    assert [event.text for event in scoring.events] == ["N2", "N2", "Hypopnea", "R", "Central apnea"]
    assert clip_labels(scoring, 90).sdb.tolist() == [0, 1, 1]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "gb18030"])
def test_a_table_in_chinese(tmp_path, encoding):
    text = "开始时间,持续时间,事件\n0,30,清醒\n30,30,N2期\n60,30,快速眼动期\n65,12,低通气\n70,20,体位 1\n"
    scoring = read_scoring(write(tmp_path, text, encoding=encoding))
    grid = clip_labels(scoring, 90)
    assert (grid.stage.tolist(), grid.sdb.tolist()) == ([0, 2, 4], [0, 0, 1])
    assert bool(scoring.issues) == (encoding == "gb18030")


def test_a_table_in_cyrillic_of_windows(tmp_path):
    text = "onset,duration,stage\n0,30,Бодрствование\n30,30,Стадия 2\n60,30,Позиция 1\n"
    assert clip_labels(read_scoring(write(tmp_path, text, encoding="cp1251")), 90).stage.tolist() == [0, 2, -1]


def test_of_two_columns_of_texts_that_is_read_which_says_something(tmp_path):
    text = "onset\tduration\ttrial_type\tvalue\n0\t30\tsleep_stage\tN2\n30\t30\tsleep_stage\tR\n"
    assert labelled(tmp_path, text, 60).stage.tolist() == [2, 4]
    arousals = "onset,duration,event,stage\n0,3,Arousal,N2\n33,4,Arousal,R\n"
    assert [e.text for e in read_scoring(write(tmp_path, arousals)).events] == ["Arousal", "Arousal"]


def test_lunas_annotations(tmp_path):
    write(tmp_path, b"0", "n1.edf")
    text = (
        "# N2 | stage\nclass\tinstance\tchannel\tstart\tstop\tmeta\nW\t.\t.\t0\t30\t.\nHypopnea\t.\tFlow\t40\t55\tx=1\n"
    )
    path = write(tmp_path, text + "N2\t.\t.\t30\t90\t.\n", "n1.annot")
    assert find_scoring(tmp_path / "n1.edf") == path
    grid = clip_labels(read_scoring(path), 90)
    assert (grid.stage.tolist(), grid.sdb.tolist()) == ([0, 2, 2], [0, 1, 0])
    path.unlink()
    path = write(tmp_path, "W\nNREM2\nREM\n", "n1.eannot")
    assert clip_labels(read_scoring(find_scoring(tmp_path / "n1.edf"), length_s=90), 90).stage.tolist() == [0, 2, 4]


def test_a_four_beside_the_word_rem_is_s4(tmp_path):
    grid = labelled(tmp_path, "0,30,2\n30,30,4\n60,30,REM\n", 90)
    assert grid.stage.tolist() == [2, 3, 4]
    assert not any(map(asks_meaning, grid.issues))
    burst = labelled(tmp_path, "0,30,2\n30,30,4\n61,1.5,REM\n", 90)
    assert burst.stage.tolist() == [2, -1, -1]


@pytest.mark.parametrize("head", ["Sleep Stage,Time,Event,Duration", "Schlafphase,Zeit,Ereignis,Dauer"])
def test_a_few_events_among_listed_epochs_keep_their_durations(tmp_path, head):
    rows = sorted([*((30 * k, 30, "N2") for k in range(100)), (85, 25, "Hypopnea"), (1200.5, 33, "Central apnea")])
    scoring = read_scoring(write(tmp_path, head + "\n" + "".join(f"N2,{at},{text},{s}\n" for at, s, text in rows)))
    assert [e for e in scoring.events if e.text != "N2"] == [
        Event(85, 25, "Hypopnea"), Event(1200.5, 33, "Central apnea")
    ]  # fmt: skip
    grid = clip_labels(scoring, 3000)
    assert (np.flatnonzero(grid.sdb == 1).tolist(), grid.issues, scoring.issues) == ([3, 40], (), ())


def test_a_remark_beside_a_stage_does_not_take_its_place(tmp_path):
    text = "onset,duration,stage,annotation\n0,90,W,\n90,120,N2,snoring\n210,60,R,\n"
    scoring = read_scoring(write(tmp_path, text))
    assert clip_labels(scoring, 270).stage.tolist() == [0] * 3 + [2] * 4 + [4] * 2
    assert "snoring" in [event.text for event in scoring.events]


def test_a_row_an_epoch_with_its_stage_and_its_events(tmp_path):
    rows = [f"{30 * k},{'R' if k > 20 else 'N2'},{'Hypopnea; Arousal' if k in (3, 4, 22) else ''}" for k in range(30)]
    scoring = read_scoring(write(tmp_path, "Onset,Stage,Events\n" + "\n".join(rows)))
    grid = clip_labels(scoring, 900)
    assert grid.stage.tolist() == [2] * 21 + [4] * 9
    assert np.flatnonzero(grid.sdb == 1).tolist() == [3, 4, 22]
    assert "of 6 events only the epoch is known" in scoring.issues[0]


CODES = [0] * 4 + [1, 2, 2, 3, 3, 2, 5, 5] * 4 + [0] * 4
STAGES_OF_CODES = [{5: 4}.get(code, code) for code in CODES]


@pytest.mark.parametrize("delimiter", [";", ","])
@pytest.mark.parametrize(
    ("form", "group", "decimal"),
    [
        ("{:,}", ",", "."),
        ("{:,}", ".", ","),
        ("{:,.1f}", ",", "."),
        ("{:,.2f}", ".", ","),
        ("{:,.1f}", "'", "."),
        ("{:,.1f}", "\u202f", ","),
        ("{:,.1f}", " ", ","),
    ],
)
def test_thousands_may_be_grouped(form, group, decimal, delimiter):
    """As spreadsheets of several countries write them."""
    lines = [delimiter.join(["onset", "duration", "stage"])]
    for i in range(960):
        time = form.format(30 * i).translate({ord(","): group, ord("."): decimal})
        lines.append(delimiter.join([f'"{time}"', "30", "W123R"[i // 7 % 5]]))
    scoring = parse_csv("\n".join(lines).encode(), "a.csv", None, 28_830.0)
    assert [event.onset_s for event in scoring.events] == [30.0 * i for i in range(960)]
    assert scoring.issues == ()


def test_three_decimals_are_no_thousands():
    onsets = [f"{1.5 + 30 * i:.3f}".replace(".", ",") for i in range(30)]
    text = "onset;duration;stage\n" + "".join(f"{onset};30;2\n" for onset in onsets)
    assert parse_csv(text.encode(), "a.csv", None, 1000.0).events[-1].onset_s == 871.5
    assert without_groups(["990", "1,020", "1,050"]) == ["990", "1020", "1050"]
    assert without_groups(["990", "1.020", "", "?", "1.050.000"]) == ["990", "1020", "", "?", "1050000"]
    for unchanged in (["0,500", "1,000", "2,000"], ["1,000", "1,500"], ["12,5", "1,000"], ["5", "1,000", "0,9"], []):
        assert without_groups(unchanged) == unchanged


@pytest.mark.parametrize(
    "row",
    [
        "{epoch}\t{code}",
        "{epoch}\t{code}\t{other}",  # the Wisconsin Sleep Cohort's .stg.txt, some of which lack the header
        "{epoch},30,{code}",
        "time,stage\n{zero},{code}",
        "Epoch\tUser-Defined Stage\tCAST-Defined Stage\n{epoch}\t{code}\t{other}",
    ],
)
def test_numbers_of_epochs_are_no_seconds(tmp_path, row):
    head, _, row = row.rpartition("\n")
    lines = [row.format(epoch=i + 1, zero=i, code=code, other=0) for i, code in enumerate(CODES)]
    text = "\n".join([head, *lines] if head else lines)
    assert labelled(tmp_path, text, 1200).stage.tolist() == STAGES_OF_CODES
    with pytest.raises(ScoringError, match="not known where they lie"):
        labelled(tmp_path, text, 2400)


def test_a_stage_a_second_stays_one(tmp_path):
    text = "".join(f"{second}\t{CODES[second // 30]}\n" for second in range(1200))
    assert labelled(tmp_path, text, 1200).stage.tolist() == STAGES_OF_CODES


@pytest.mark.parametrize("row", ["{a},{b},{stage}", "{stage}\t{a}\t{b}"])
@pytest.mark.parametrize("clock", [False, True])
def test_without_a_header_the_second_time_may_be_the_end(tmp_path, row, clock):
    start = datetime(2021, 3, 4, 23, 58, 0)

    def time(at_s):
        return f"{start + timedelta(seconds=at_s):%H:%M:%S}" if clock else at_s

    runs = [(0, 90, "L"), (90, 210, "N2"), (210, 240, "R"), (240, 300, "W")]
    text = "\n".join(row.format(a=time(a), b=time(b), stage=stage) for a, b, stage in runs)
    events = read_scoring(write(tmp_path, text), start=start).events
    assert [(e.onset_s, e.duration_s, e.text) for e in events] == [(a, b - a, stage) for a, b, stage in runs]
    text = "\n".join(row.format(a=time(a), b=b - a, stage=stage) for a, b, stage in runs)
    assert read_scoring(write(tmp_path, text), start=start).events == events


def test_a_length_in_the_text_of_an_event_is_its_duration(tmp_path):
    text = (
        "22:13:47.00\tSTART RECORDING\n22:13:47.00\tSTAGE - W\n22:14:20.50\tRESPIRATORY EVENT - DUR: 24.5 SEC. - "
        "HYPOPNEA - DESAT 91.6 %\n22:14:41.00\tDESATURATION - DUR: 55.8 SEC. - MIN 91.6 % - DROP 3.1 %\n22:14:47.00\t"
        "STAGE - N2\n22:15:20.00\tRespiratory Event - Dur:  9,9 sec. - Obstructive Apnea\n22:15:47.00\tSTAGE - NO STAGE"
    )
    start = datetime(2021, 3, 4, 22, 13, 47)
    grid = labelled(tmp_path, text, 150, start=start)
    assert (grid.stage.tolist(), grid.sdb.tolist()) == ([0, 0, 2, 2, -1], [0, 1, 0, 1, -1])
    events = [e for e in read_scoring(write(tmp_path, text), start=start).events if e.duration_s]
    assert [e.duration_s for e in events] == [24.5, 55.8, 9.9]
    assert events[0].text == "RESPIRATORY EVENT - HYPOPNEA - DESAT 91.6 %"


@pytest.mark.parametrize(
    ("codes", "said"),
    [
        ([0] * 4 + [2, 3, 3, 4, 5, 4, 5, 4, 3, 1, 1] * 3, "5 comes behind 3 or 4 in 6 of 6 places"),  # UCDDB: 5 is S4
        ([0] * 4 + [2, 3, 3, 4, 3, 2, 1, 1, 1, 1] * 15, "1 lasts 4 epochs at a time and 2 lasts 1"),  # ... without S4
        ([1] * 10 + [2, 3, 4, 3, 2, 5] * 25, "none of 160 is a 0"),  # counted from 1
        ([5] * 10 + [3, 2, 1, 2, 4, 2, 0] * 20, "the first is a 5"),  # DREAMS: 5 is wake, 4 REM
    ],
)
def test_numbers_that_no_night_has_get_no_stage_until_their_meaning_is_stated(tmp_path, codes, said):
    text = "".join(f"{30 * k},30,{code}\n" for k, code in enumerate(codes))
    grid = labelled(tmp_path, text, 30 * len(codes))
    assert {*grid.stage.tolist()} == {-1}
    assert said in grid.issues[0]
    assert asks_meaning(grid.issues[0])
    meanings = {code: STAGES[code % 5] for code in {*codes}}
    told = parse_meanings([f"{code}={stage}" for code, stage in meanings.items()])
    grid = clip_labels(translated(read_scoring(write(tmp_path, text)), told), 30 * len(codes))
    assert grid.stage.tolist() == [code % 5 for code in codes]
    assert not any(map(asks_meaning, grid.issues))


def test_numbers_that_a_night_has_are_taken():
    for rem in (4, 5):
        codes = ([0] * 10 + [1, 2, 2, 2, 3, 3, 2, 2, 1, rem, rem, rem, 2, 2, 1, 1, 0] * 20)[:300]
        assert unlike_a_night(codes, 30.0 * len(codes)) == ""


@pytest.mark.parametrize("codes", [[5] * 40 + [2] * 20, [2] * 60 + [3] * 40, [2, 3, 2, 5] * 10])
def test_a_piece_of_a_night_may_have_any_stages(tmp_path, codes):
    text = "".join(f"{30 * k},30,{code}\n" for k, code in enumerate(codes))
    assert labelled(tmp_path, text, 30 * len(codes)).stage.tolist() == [{5: 4}.get(code, code) for code in codes]


@pytest.mark.parametrize(
    ("recording", "name"),
    [("ucddb002.rec", "ucddb002_stage.txt"), ("UCDDB002.REC", "UCDDB002_STAGE.TXT")],
)
def test_the_numbers_of_ucddb_are_its_own(tmp_path, recording, name):
    text = "0\n2\n3\n4\n5\n1\n6\n7\n"
    found = find_scoring(write(tmp_path, b"0", recording))
    assert found is None
    write(tmp_path, text, name)
    found = find_scoring(tmp_path / recording)
    assert found == tmp_path / name
    scoring = read_scoring(found, length_s=240)
    assert clip_labels(scoring, 240).stage.tolist() == [0, 1, 2, 3, 3, 4, -1, -1]
    assert any("UCDDB" in issue for issue in scoring.issues)
    in_words = read_scoring(write(tmp_path, "onset,duration,stage\n0,30,W\n30,30,2\n", "ucddb002.csv"))
    assert clip_labels(in_words, 60).stage.tolist() == [0, 2]


# ---- the Human Sleep Project's sites: one table, or stages and events apart ------------------------------------------

HSP_S0001 = """epoch,time,duration,event
-3,22:10:00,,Montage:_HSP
1,22:13:00,30,Sleep_stage_W
1,22:13:10,,Lights_Off
2,22:13:30,30,Sleep_stage_N1
3,22:14:00,30,Sleep_stage_N2
3,22:14:05,14.2,Respiratory Event - Dur: 14.2 sec. - Hypopnea - Desat 91.6 %
4,22:14:30,30,Sleep_stage_R
4,22:14:31,20,Obstructive_Apnea
4,22:14:32,8,Oxygen_Desaturation
"""
HSP_I0002 = """Epoch,Stage,Type,Time,Record Time,Length,Description
1,L,Note,22:13:00,00:00:00,,Lights Off
3,N2,Hypopnea,22:14:05,00:01:05,14.2,Hypopnea with MA Desat to 91
4,R,Apnea,22:14:31,00:01:31,20,Central Apnea
4,R,MA,22:14:40,00:01:40,5,Microarousal [Apnea]
4,R,RERA,22:14:45,00:01:45,11,RERA
"""
HSP_I0003 = """Text,Standardised Event,DataIndex,Duration,StampTimeUtc,StampTimeLocal
Lights Off,x,100,0,2015-03-05T03:13:10,2015-03-04T22:13:10
Obstr. hyp. desat,hypopneaobstructive,2000,14.2,2015-03-05T03:14:05,2015-03-04T22:14:05
Central,centralapnea,3000,20,2015-03-05T03:14:31,2015-03-04T22:14:31
"""
HSP_STAGES = {
    "sub-I1_ses-2_task-psg_sleep_annotations.csv": "Epoch,Stage\n1,W\n2,N1\n3,N2\n4,R\n",
    "sub-I1_ses-2_sleepannotations.csv": "epoch,sleep_stage,sample_stamp_start,local_time_start\n"
    "1,WAKE,0,2015-03-04T22:13:00\n2,N1,7680,2015-03-04T22:13:30\n"
    "3,N2,15360,2015-03-04T22:14:00\n4,REM,23040,2015-03-04T22:14:30\n",
}


@pytest.mark.parametrize(
    ("name", "text", "n_events"),
    [
        ("sub-S1_ses-2_task-psg_annotations.csv", HSP_S0001, 9),
        ("sub-I1_ses-2_task-psg_events_annotations.csv", HSP_I0002, 5),
        ("sub-I1_ses-2_eventannotations.csv", HSP_I0003, 3),
    ],
)
def test_tables_of_the_human_sleep_project(tmp_path, name, text, n_events):
    path = write(tmp_path, text, name)
    recording = write(tmp_path, b"0", f"{name.partition('_')[0]}_ses-2_task-PSG_eeg.edf")
    write(tmp_path, "0,1\n", f"{name.partition('_')[0]}_ses-2_task-psg_caisr_annotations.csv")
    assert find_scoring(recording) == path
    scoring = read_scoring(path, start=datetime(2015, 3, 4, 22, 13), length_s=120)
    assert len(scoring.events) == n_events
    found = {(e.onset_s, e.duration_s): respiratory_event_of(e.text) for e in scoring.events}
    assert found[65, 14.2] == "hypopnea"
    assert found[91, 20] == ("obstructive_apnea" if name.startswith("sub-S1") else "central_apnea")
    assert sum(event is not None for event in found.values()) == 2, (
        "neither an arousal with an apnoea nor a RERA is one"
    )
    assert "lightsoff" in {fold(event.text) for event in scoring.events}
    if name.startswith("sub-S1"):
        assert clip_labels(scoring, 120).stage.tolist() == [0, 1, 2, 4]


@pytest.mark.parametrize("name", HSP_STAGES)
def test_stages_of_the_human_sleep_project_stand_apart(tmp_path, name):
    recording = write(tmp_path, b"0", "sub-I1_ses-2_task-PSG_eeg.edf")
    path = write(tmp_path, HSP_STAGES[name], name)
    events = write(tmp_path, HSP_I0003, name.replace("sleep_", "events_").replace("sleepa", "eventa"))
    assert find_scorings(recording) == (path, events)
    scoring = read_scoring(path, start=datetime(2015, 3, 4, 22, 13), length_s=120)
    assert clip_labels(scoring, 120).stage.tolist() == [0, 1, 2, 4]


def test_a_column_that_describes_an_event_gives_way_to_one_that_names_it(tmp_path):
    rows = ("0,20,hypopnea after turning,Hypopnea", "30,10,arousal,Hypopnea", "60,9,,Apnea", "90,9,Mixed apnea,Apnea")
    scoring = read_scoring(write(tmp_path, "\n".join(("onset,duration,description,type", *rows))))
    assert [event.text for event in scoring.events] == ["Hypopnea", "arousal", "Apnea", "Mixed apnea"]


@pytest.mark.parametrize(
    "dates", [("04/03/2015", "05/03/2015"), ("2015-03-04", "2015-03-05"), ("04.03.2015", "05.03.2015")]
)
def test_dates_beside_a_recording_whose_date_was_left_out(tmp_path, dates):
    """EDF+ writes 01.01.85 for a date that is not told; the NSRR anonymises so."""
    rows = ((f"{dates[0]} 23:59:30", "N1"), (f"{dates[1]} 00:00:00", "N2"), (f"{dates[1]} 00:00:30", "R"))
    path = write(tmp_path, "onset,duration,stage\n" + "".join(f"{at},30,{stage}\n" for at, stage in rows))
    scoring = read_scoring(path, start=datetime(1985, 1, 1, 23, 59), length_s=120)
    assert [event.onset_s for event in scoring.events] == [30, 60, 90]
    assert ["the recording has none (01.01.1985 stands for it)" in issue for issue in scoring.issues] == [True]
    # Before midnight, of a recording that began after it, and the other way round.
    assert [e.onset_s for e in read_scoring(path, start=datetime(1985, 1, 1, 0, 0)).events] == [-30, 0, 30]
    # A recording with a date is another night's.
    other = read_scoring(path, start=datetime(2015, 3, 2, 23, 59), length_s=120)
    assert other.events[0].onset_s > 86_400
    assert any("away from the recording's start" in issue for issue in other.issues)
