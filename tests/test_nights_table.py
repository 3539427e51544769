"""The table of a store's nights: the scorer's sleep figures, respiratory events and their index."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from nights import preprocess, write_night

from sleepfm_fast.scoring.labels import clip_labels
from sleepfm_fast.scoring.respiratory_counts import respiratory_counts
from sleepfm_fast.scoring.timed_texts import Event, Scoring
from sleepfm_fast.storage.csv_table import csv_table

STAGES = [(0.0, "W"), (30.0, "N2"), (60.0, "N2"), (90.0, "W"), (120.0, "R"), (150.0, "N3")]


def test_a_table_has_its_columns_in_order_and_numbers_as_a_reader_expects_them() -> None:
    row = {"night": "a,b", "hours": 1 / 3, "epochs": 1_234_567_890, "age": None, "more": "not asked for"}
    text = csv_table(("age", "night", "epochs", "hours"), [row])
    assert text == 'age,night,epochs,hours\n,"a,b",1234567890,0.333333\n'


def counted(*events: tuple[float, float | None, str], events_scored: bool | None = None) -> dict[str, int] | None:
    stages = [Event(onset_s, 30.0, text) for onset_s, text in STAGES]
    scoring = Scoring((*stages, *(Event(*event) for event in events)), "test", (), events_scored)
    return respiratory_counts(scoring, clip_labels(scoring, 300))


@pytest.mark.parametrize(
    ("event", "sleeps"),
    [
        ((35.0, 12.0, "Hypopnea"), True),
        ((18.0, 12.0, "Hypopnea"), False),
        ((18.0, 12.5, "Hypopnea"), True),
        ((90.0, 30.0, "Hypopnea"), False),
        ((89.9, 15.0, "Hypopnea"), True),
        ((95.0, None, "Hypopnea"), False),
        ((120.0, None, "Hypopnea"), True),
        ((120.0, 0.0, "Hypopnea"), True),
        ((180.0, 20.0, "Hypopnea"), False),
        ((95.0, 15_000.0, "Hypopnea"), False),
        ((61.0, 15_000.0, "Hypopnea"), True),
        ((-50.0, 20.0, "Hypopnea"), False),
    ],
)
def test_an_event_counts_where_it_shares_time_with_sleep(event, sleeps):
    counts = counted((130.0, 11.0, "Obstructive apnea"), event)
    assert counts == {
        "obstructive_apnea": 1, "central_apnea": 0, "mixed_apnea": 0, "hypopnea": int(sleeps),
        "outside_sleep": int(not sleeps), "under_10_s": 0,
    }  # fmt: skip


def test_events_that_overlap_are_two_and_one_given_twice_is_one():
    hypopnea, apnea = (35.0, 20.0, "Hypopnea"), (40.0, 20.0, "Central apnea")
    assert counted(hypopnea, hypopnea, apnea)["hypopnea"] == 1
    assert counted(hypopnea, (36.0, 20.0, "Hypopnea"), apnea) == {
        "obstructive_apnea": 0, "central_apnea": 1, "mixed_apnea": 0, "hypopnea": 2, "outside_sleep": 0,
        "under_10_s": 0,
    }  # fmt: skip


def test_events_in_sleep_that_are_too_short_for_the_manual_are_counted_apart():
    events = [(35.0, d, "Hypopnea") for d in (9.9, 10.0, 0.0, None, 20.0)] + [(0.0, 5.0, "Hypopnea")]
    counts = counted(*events)
    assert (counts["hypopnea"], counts["outside_sleep"], counts["under_10_s"]) == (5, 1, 1)


def test_without_a_scoring_of_events_nothing_is_counted():
    assert counted() is None
    assert counted(events_scored=True)["hypopnea"] == 0
    assert respiratory_counts(None, clip_labels(None, 300)) is None


def test_the_table_of_a_store(tmp_path: Path, capsys) -> None:
    nights, store = tmp_path / "nights", tmp_path / "store"
    nights.mkdir()
    events = [(95, 20, "Hypopnea"), (130, 15, "Obstructive apnea"), (65, 10, "Hypopnea"), (400, 20, "Apnea")]
    write_night(nights / "a.edf", seconds=480, stages="W12R?3W", first_stage_s=60, events=events)
    write_night(nights / "b.edf", seconds=480, stages="WWWW")
    write_night(nights / "c.edf", seconds=480, stages="")
    (nights / "participants.csv").write_text("recording,subject,age,sex\na,S1,61,F\nb,S2,,M\n")
    assert preprocess(capsys, nights, store)[0] == 0
    with (store / "nights.csv").open(newline="") as file:
        a, b, c = csv.DictReader(file)
    assert (a["recording"], a["subject"], a["age"], a["sex"]) == ("a", "S1", "61", "F")
    assert (a["recorded_min"], a["clips"], a["scored_clips"], a["scored_min"]) == ("8", "16", "6", "3.5")
    assert (a["total_sleep_time_min"], a["sleep_latency_min"], a["rem_latency_min"]) == ("2", "0.5", "1")
    assert float(a["sleep_efficiency_percent"]) == pytest.approx(100 * 2 / 3.5, rel=1e-5)
    assert sum(float(a[f"{stage}_percent"]) for stage in ("n1", "n2", "n3", "r")) == pytest.approx(100, rel=1e-5)
    assert (a["hypopneas"], a["obstructive_apneas"], a["events_outside_sleep"]) == ("1", "1", "2")
    assert a["apnea_hypopnea_index"] == "60", "two in two minutes"
    assert (b["total_sleep_time_min"], b["sleep_efficiency_percent"], b["sleep_latency_min"]) == ("0", "0", "")
    assert b["apnea_hypopnea_index"] == b["hypopneas"] == c["scored_min"] == c["total_sleep_time_min"] == ""
    table = (store / "nights.csv").read_bytes()

    (nights / "participants.csv").write_text("recording,subject,age,sex\na,S1,62,F\nb,S2,,M\n")
    assert preprocess(capsys, nights, store)[0] == 0
    assert (store / "nights.csv").read_bytes() == table.replace(b",61,F", b",62,F")
    preprocess(capsys, nights, store, "--events-scored", "--overwrite")
    with (store / "nights.csv").open(newline="") as file:
        a, b, c = csv.DictReader(file)
    assert (b["hypopneas"], b["apnea_hypopnea_index"], c["hypopneas"]) == ("0", "", "")


def test_lights_off_and_on_are_in_the_table(tmp_path: Path, capsys) -> None:
    nights, store = tmp_path / "nights", tmp_path / "store"
    nights.mkdir()
    lights = [(45, 1, "Lights Off"), (150, 1, "lights on"), (180, 1, "LIGHTS OUT"), (420, 1, "Lights_On")]
    lights += [(60, 1, "light sleep")]
    write_night(nights / "a.edf", seconds=480, stages="W12R", first_stage_s=60, events=lights)
    write_night(nights / "b.edf", seconds=480, stages="W12R", events=[(90, 1, "Lights out")])
    write_night(nights / "c.edf", seconds=480, stages="W12R")
    assert preprocess(capsys, nights, store)[0] == 0
    with (store / "nights.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["lights_off_min"], row["lights_on_min"]) for row in rows] == [("0.75", "7"), ("1.5", ""), ("", "")]
    a, b, c = ({name: x for name, x in row.items() if name.endswith("_between_lights")} for row in rows)
    assert a["time_in_bed_min_between_lights"] == "6.25"
    assert (a["total_sleep_time_min_between_lights"], a["sleep_latency_min_between_lights"]) == ("1.5", "0.75")
    assert a["sleep_efficiency_percent_between_lights"] == "24"
    assert set(b.values()) == set(c.values()) == {""}
