"""Well-formed files with values that nothing real has: read without harm, or refused by a sentence that names the file.

No value may end in an exception of Python's, or in memory for what a header only promises.
"""

from __future__ import annotations

import json
import os
import time
import tracemalloc
from collections.abc import Callable
from datetime import datetime
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from edf_files import Channel, annotation_channel, ramp, starts, write_edf
from nights import LEADS, preprocess, write_night
from wfdb_files import write_notes, write_wfdb

from sleepfm_fast.annotations import read_scoring
from sleepfm_fast.channels import MONTAGES
from sleepfm_fast.cohorts.corrections import read_corrections
from sleepfm_fast.cohorts.manifest import Entry, Journal, read_manifest
from sleepfm_fast.cohorts.night import read_night
from sleepfm_fast.cohorts.participants_file import read_participants
from sleepfm_fast.cohorts.sexes import codes_in
from sleepfm_fast.edf import read_recording
from sleepfm_fast.errors import SleepfmError
from sleepfm_fast.formats.edf_fields import parse_decimal
from sleepfm_fast.formats.wfdb_recording import read_wfdb_recording
from sleepfm_fast.montage.channel_names import canonical, kind_of
from sleepfm_fast.scoring.csv_columns import name_and_unit
from sleepfm_fast.scoring.labels import clip_labels
from sleepfm_fast.scoring.stages import perhaps_respiratory, respiratory_event_of, stage_of
from sleepfm_fast.scoring.texts import parse_meanings, translated
from sleepfm_fast.scoring.timed_texts import Event

LONG = "9" * 5000
START = datetime(2024, 3, 5, 22, 30)
PROFILE = "Start Time: 05.03.2024 22:30:00\nSignal Type: Discret\nRate: {rate} s\n\n05.03.2024 22:30:00,000; N2\n"
PROFUSION = (
    "<CMPStudyConfig><EpochLength>{epoch_s}</EpochLength><SleepStages><SleepStage>0</SleepStage>"
    "<SleepStage>2</SleepStage><SleepStage>2</SleepStage></SleepStages></CMPStudyConfig>"
)


def attempted(read: Callable[[], Any], named: object) -> Any:
    """What ``read`` returns, or None where it refuses with a sentence that names the file."""
    try:
        return read()
    except SleepfmError as error:
        sentence = str(error)
    assert str(named) in sentence
    return None


@pytest.mark.parametrize(
    "text",
    [
        f"onset,duration,description\n0,30,Sleep stage W\n30,30,{LONG}\n",
        f"onset,duration,description\n0,30,4\n30,30,{LONG}\n",
        f"{LONG}\nW\nN2\n",
        PROFILE.format(rate=LONG),
        PROFILE.format(rate="."),
        PROFILE.format(rate="1.2.3"),
    ],
)
def test_numbers_without_end_are_no_stages_and_no_lengths(tmp_path, text):
    path = tmp_path / "night.csv"
    path.write_text(text)
    scoring = attempted(lambda: read_scoring(path, start=START, length_s=60), path)
    if scoring is not None:
        grid = clip_labels(translated(scoring, parse_meanings(["4=R"])), Fraction(60))
        assert set(grid.stage.tolist()) <= {-1, 0, 2, 4}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("numbers.csv", f"Epoch,Stage\n1,W\n{LONG},N2\n"),
        ("minutes.csv", "onset (min),duration,description\n0,30,W\n1e308,30,N2\n"),
        ("end.csv", "onset,end,description\n05.03.2024 22:30:00,31.02.2024 22:30:30,Sleep stage W\n"),
        ("far.csv", "onset,duration,description\n31/12/9999 23:00:00,30,W\n31/12/9999 47:59:59,30,N2\n"),
        ("same.csv", "onset,duration,description\n12/12/9999 23:00:00,30,W\n12/12/9999 23:00:30,30,N2\n"),
        ("profusion.xml", PROFUSION.format(epoch_s="1e308")),
    ],
)
def test_times_that_cannot_be_are_refused(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text)
    scoring = attempted(lambda: read_scoring(path, start=START, length_s=60), path)
    if scoring is not None:
        assert name in ("far.csv", "same.csv")  # the date exists, and is reported
        assert any("away from the recording's start" in issue for issue in scoring.issues)


@pytest.mark.parametrize(
    ("read", "text"),
    [
        (respiratory_event_of, "Hypopnea 20240305 223015 20240305 nadir"),  # each digit more doubled the time
        (respiratory_event_of, "Apnea" + " rule1a aasm2012 95percent" * 4 + " x"),
        (respiratory_event_of, "(" * 40_000),
        (stage_of, "N2" + " [x" * 40_000),
        (perhaps_respiratory, "apnea" * 40_000),
        (name_and_unit, "onset" + " " * 40_000 + "x"),
    ],
)
def test_texts_take_no_time_that_grows_without_bound(read, text):
    begun_s = time.process_time()
    assert not read(text) or read is name_and_unit
    assert time.process_time() - begun_s < 1


@pytest.mark.parametrize(
    ("read", "text"),
    [
        (canonical, "ECG" + "-" * 40_000 + "x"),
        (canonical, "ECG" + " " * 40_000 + "x"),
        (kind_of, "ECG" + " -" * 20_000 + "x"),
        (codes_in, "sex" + "f" * 40_000),
        (lambda text: Event(0.0, None, text).with_stated_length(), "Apnea" + " " * 40_000),
        (parse_decimal, "1" * 40_000 + "x"),
    ],
)
def test_names_and_fields_take_no_time_that_grows_with_the_square_of_their_length(read, text):
    """A label of a WFDB header or of HDF5 has no bound: one of 100,000 dashes held a cohort up for minutes."""
    begun_s = time.process_time()
    read(text)
    assert time.process_time() - begun_s < 1


@pytest.mark.parametrize(
    ("text", "event"),
    [
        ("Hypopnea rule1a aasm2012 95 percent, 12 seconds", "hypopnea"),
        ("Apnea rule 4b 5s arousal", "obstructive_apnea"),
        ("Apnea rule12", "obstructive_apnea"),
        ("Apnea rule12a", None),
    ],
)
def test_criteria_behind_an_event_are_still_criteria(text, event):
    assert respiratory_event_of(text) == event


def test_a_file_that_is_quoted_at_length_does_not_block_the_store(tmp_path, capsys):
    """The reason of a failure held the file's header, which the manifest's reader refused in every later run."""
    folder = tmp_path / "edf"
    folder.mkdir()
    write_night(folder / "a.edf", leads=LEADS[:2])
    write_night(folder / "b.edf", leads=LEADS[:2])
    labels = tmp_path / "labels"
    labels.mkdir()
    (labels / "a.csv").write_text(("x" * 70_000 + "," + '"y\ny"' * 35_000 + "\n") * 2)
    for added in (1, 0):
        status, result = preprocess(capsys, folder, tmp_path / "store", "--labels", labels)
        assert (status, result["added"], len(result["failed"])) == (1, added, 1)
        reason = result["failed"][0]["reason"]
        assert str(labels / "a.csv") in reason
        assert len(reason) < 1500
        assert "\n" not in reason


def test_a_manifest_keeps_what_it_can_read(tmp_path):
    journal = Journal(tmp_path, "run")
    journal.add(Entry("a", "a.edf", "failed", "z" * 200_000))
    journal.close()
    (row,) = read_manifest(tmp_path)
    assert (row.id, set(row.reason)) == ("a", {"z"})
    with (tmp_path / "manifest" / "run.csv").open("a") as file:
        file.write('b,"b.ed' + "\n" * 200_000)
    assert [row.id for row in read_manifest(tmp_path)] == ["a"]


@pytest.mark.parametrize(
    "text", ['recording,age\n"a.edf,5\n' + "b.edf,5\n" * 20_000, 'sep="\nrecording"age\n', "sep=\0\nrecording\0age\n"]
)
def test_participants_tables_with_marks_out_of_place_are_read_or_refused(tmp_path, text):
    path = tmp_path / "participants.csv"
    path.write_text(text)
    attempted(lambda: read_participants(path), path)


def test_a_visit_of_many_noughts_takes_no_time(tmp_path):
    path = tmp_path / "participants.csv"
    path.write_text(f"subject,visit\na,{'0' * 20_000}x\na,002.0\na,00\n")
    begun_s = time.process_time()
    assert [row.visit for row in read_participants(path).rows] == ["0" * 20_000 + "x", "2", "0"]
    assert time.process_time() - begun_s < 1


@pytest.mark.parametrize("value", [LONG + "=R", "4=" + LONG, "²=R"])
def test_meanings_of_numbers_without_end(value):
    attempted(lambda: parse_meanings([value]), "--meanings")


@pytest.mark.parametrize("channel", ["#²", "#" + LONG])
def test_channels_are_numbered_with_plain_numbers(tmp_path, channel):
    write_night(tmp_path / "a.edf", leads=LEADS[:2])
    (tmp_path / "o.json").write_text(json.dumps({"*": {channel: {"exclude": True}}}))
    _, corrected = read_corrections(tmp_path / "o.json").apply_to(read_recording(tmp_path / "a.edf"))
    assert len(corrected.signals) == 2


@pytest.mark.parametrize(
    "content", ["[" * 100_000, *(f'{{"*": {{"*": {{"scale": {v}}}}}}}' for v in ("1e308", "1" * 400))]
)
def test_overrides_beyond_all_bounds_are_refused(tmp_path, content):
    (tmp_path / "o.json").write_text(content)
    with pytest.raises(SleepfmError, match=r"o\.json"):
        read_corrections(tmp_path / "o.json")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (" 10 1200 ", " 1e-320 1200 "),
        (" 10 1200 ", " 1e300 1200 "),
        (" 10 1200 ", " 10 -5 "),
        (" 10 1200 ", f" 10 {LONG} "),
        ("a 1 10", "a -1 10"),
        ("22:30:00", "99999999999999999999:30:00"),
        ("a.dat 16", f"a.dat 16x{LONG}"),
        ("a.dat 16", "a.dat 16x00"),
        ("a.dat 16", f"a.dat 16:{LONG}"),
        ("a.dat 16", f"a.dat 16+{LONG}"),
        ("a.dat", "a\0.dat"),
        ("200/mV", "1e-310/mV"),
        ("200/mV", f"200({LONG})/mV"),
        ("/mV 12", "/mV -5"),
        ("/mV 12 0", f"/mV 12 {LONG}"),
    ],
)
def test_wfdb_headers_are_read_or_refused(tmp_path, old, new):
    samples = np.arange(1200) % 300
    path = write_wfdb(
        tmp_path, "a", 10, [("ECG", samples, {"gain": "200/mV", "resolution": 12})], start="22:30:00 5/3/2024"
    )
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))
    night = attempted(lambda: read_night(path, MONTAGES["aasm"], None), tmp_path / "a")
    if night is not None:
        (signal,) = night.recording.signals
        assert np.isfinite([signal.gain, signal.offset, signal.physical_min, signal.physical_max]).all()
        assert night.recording.records().size == 2400
        assert len(night.grid.onsets_s) == 4


def test_wfdb_notes_at_absurd_rates_are_refused(tmp_path):
    path = write_wfdb(tmp_path, "a", 10, [("ECG", np.arange(1200), {})])
    write_notes(tmp_path / "a.st", [(1, "W"), (300, "2"), (600, "R")])
    path.write_text(path.read_text().replace(" 10 ", " 1e-320 "))
    with pytest.raises(SleepfmError, match=r"a\.hea: its sampling frequency"):
        read_scoring(tmp_path / "a.st")


def test_a_header_that_promises_years_takes_no_memory(tmp_path):
    channels = [Channel("C3-M2", ramp(4, 30)), annotation_channel(starts(["0", "1", "2", "3"]), 30)]
    path = write_edf(tmp_path / "a.edf", channels, record_s="99999999")
    tracemalloc.start()
    with pytest.raises(SleepfmError, match=r"a\.edf: its header says that the samples last 4629\.63 days"):
        read_night(path, MONTAGES["aasm"], None)
    assert tracemalloc.get_traced_memory()[1] < 1 << 22
    tracemalloc.stop()
    header = write_wfdb(tmp_path, "b", 1e-5, [("ECG", np.arange(1200), {})])
    assert read_wfdb_recording(header).n_records
    with pytest.raises(SleepfmError, match=r"b\.hea: its header says"):
        read_night(header, MONTAGES["aasm"], None)


def test_such_nights_stop_no_others(tmp_path, capsys):
    folder = tmp_path / "edf"
    folder.mkdir()
    write_night(folder / "good.edf")
    write_edf(folder / "years.edf", [Channel("C3-M2", ramp(4, 30))], record_s="99999999")
    status, result = preprocess(capsys, folder, tmp_path / "store")
    assert (status, result["added"]) == (1, 1)
    assert [failed["path"] for failed in result["failed"]] == [str(folder / "years.edf")]


def test_a_pipe_is_not_waited_for(tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe.edf")
    write_night(tmp_path / "good.edf")
    assert preprocess(capsys, tmp_path, tmp_path / "store")[1]["added"] == 1
    assert preprocess(capsys, tmp_path / "pipe.edf", tmp_path / "good.edf", tmp_path / "other")[0] == 1
