"""Scoring files of every kind, read and refused, and how they are found."""

from __future__ import annotations

import itertools
import json
import os
import random
import struct
import xml.etree.ElementTree as ET
from collections import Counter
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from nights import preprocess, write_night

from sleepfm_fast.annotations import (
    Event,
    ScoringError,
    clip_labels,
    find_scoring,
    read_scoring,
    respiratory_event_of,
    scoring_of,
    stage_of,
)
from sleepfm_fast.errors import SleepfmError
from sleepfm_fast.preprocess import cli
from sleepfm_fast.scoring.files import (
    files_below,
    files_by_numbers,
    namesakes_of,
    scoring_folder,
    similar_scorings,
)
from sleepfm_fast.scoring.stages import STAGES

DATA = Path(os.environ.get("SLEEPFM_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))


def data(name: str) -> Path:
    if not (DATA / name).is_file():
        pytest.skip(f"{DATA / name} is not there; set SLEEPFM_TEST_DATA")
    return DATA / name


def counts(codes: np.ndarray) -> dict[int, int]:
    return dict(sorted(Counter(codes.tolist()).items()))


def write(tmp_path: Path, text: str | bytes, name: str = "a.csv", encoding: str = "utf-8") -> Path:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
    return path


def test_missing_file_and_folder(tmp_path):
    for path in (tmp_path / "none.csv", tmp_path):
        with pytest.raises(ScoringError, match="cannot be read"):
            read_scoring(path)


# Files: XML

PSG = """<?xml version="1.0" encoding="{encoding}"?><PSGAnnotation><EpochLength>30</EpochLength><ScoredEvents>
<ScoredEvent><EventType/><EventConcept>Recording Start Time</EventConcept><Start>0</Start><Duration>90.0</Duration>
</ScoredEvent>
<ScoredEvent><EventType>Stages|Stages</EventType><EventConcept>Stage 4 sleep|4</EventConcept><Start>30.0</Start>
<Duration>60.0</Duration></ScoredEvent>
<ScoredEvent><EventType>Stages|Stages</EventType><EventConcept>Wake|0</EventConcept><Start>0</Start><Duration>30</Duration></ScoredEvent>
<ScoredEvent><EventType>Respiratory|Respiratory</EventType><EventConcept>Hypopnea|Hypopnea</EventConcept><Start>31</Start>
<Duration>14.5</Duration><Note>à</Note></ScoredEvent>
<ScoredEvent><EventConcept>SpO2 desaturation|SpO2 desaturation</EventConcept><Start>5</Start>
<Duration>20</Duration></ScoredEvent>
</ScoredEvents></PSGAnnotation>"""

PROFUSION = """<?xml version="1.0"?><CMPStudyConfig xmlns="http://www.cmp"><EpochLength>30</EpochLength><ScoredEvents>
<ScoredEvent><Name>Obstructive Apnea</Name><Start>65.2</Start><Duration>11</Duration><Input>FLOW</Input></ScoredEvent>
<ScoredEvent><Name>Arousal (ASDA)</Name><Start>1</Start><Duration>11</Duration></ScoredEvent>
<ScoredEvent><Name>Lost</Name></ScoredEvent></ScoredEvents>
<SleepStages><SleepStage>0</SleepStage><SleepStage>4</SleepStage><SleepStage>5</SleepStage><SleepStage>9</SleepStage>
<SleepStage>77</SleepStage></SleepStages></CMPStudyConfig>"""


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "iso-8859-1"])
def test_nsrr_xml(tmp_path, encoding):
    path = write(tmp_path, PSG.format(encoding=encoding.replace("-sig", "")), "a.xml", encoding)
    scoring = read_scoring(path)
    assert scoring.events_scored is True
    assert len(scoring.events) == 5
    grid = clip_labels(scoring, 90)
    assert grid.stage.tolist() == [0, 3, 3]
    assert grid.sdb.tolist() == [0, 1, 0]


def test_xml_in_another_encoding_than_declared(tmp_path):
    for declared, actual in (("utf-16", "utf-8"), ("utf-8", "iso-8859-1")):
        scoring = read_scoring(write(tmp_path, PSG.format(encoding=declared), "a.xml", actual))
        assert len(scoring.events) == 5
        assert "encoding" in scoring.issues[0]


def test_profusion_xml(tmp_path):
    scoring = read_scoring(write(tmp_path, PROFUSION, "a.anything"))
    grid = clip_labels(scoring, 150)
    assert grid.stage.tolist() == [0, 3, 4, -1, -1]
    assert grid.sdb.tolist() == [0, 0, 1, -1, -1], "after the last stage nobody scored"
    assert any("1 scored event has no name" in issue for issue in scoring.issues)
    assert any(issue.startswith("1 of 5 sleep stage codes is not known") for issue in scoring.issues)


@pytest.mark.parametrize(("stated", "epoch_s"), [("20", 20), ("30", 30), ("0", 30), ("-20", 30), ("", 30)])
def test_epochs_of_profusion_are_as_long_as_stated(tmp_path, stated, epoch_s):
    text = f"<CMPStudyConfig><EpochLength>{stated}</EpochLength><SleepStages>{{}}</SleepStages></CMPStudyConfig>"
    stages = "".join(f"<SleepStage>{code}</SleepStage>" for code in (0, 2, 5))
    scoring = read_scoring(write(tmp_path, text.format(stages), "a.xml"))
    assert [(event.onset_s, event.duration_s) for event in scoring.events] == [(epoch_s * k, epoch_s) for k in range(3)]
    assert any("states no epoch length" in issue for issue in scoring.issues) is (stated not in ("20", "30"))


SLEEPWARE = """<?xml version="1.0" encoding="utf-8"?>
<PatientStudy xmlns="http://www.respironics.com/PatientStudy.xsd"><ScoringData><StagingData>
<MachineStaging><NeuroAdultAASMStaging><Stage Type="NonREM3" Start="0"/></NeuroAdultAASMStaging></MachineStaging>
{user}</StagingData><Events><Event Family="Respiratory" Type="ObstructiveApnea" Start="65.2" Duration="11"/>
<Event Family="Nasal" Type="Snore" Start="3" Duration="2.5"/><Event Family="Respiratory" Type="Hypopnea" Duration="2"/>
</Events></ScoringData></PatientStudy>"""
USER = """<UserStaging><NeuroAdultAASMStaging><Stage Type="NotScored" Start="0" /><Stage Type="Wake" Start="30" />
<Stage Type="NonREM2" Start="60"/><Stage Type="REM" Start="120"/></NeuroAdultAASMStaging></UserStaging>"""


def test_sleepware_xml(tmp_path):
    scoring = read_scoring(write(tmp_path, SLEEPWARE.format(user=USER), "a.rml"))
    grid = clip_labels(scoring, 150)
    assert grid.stage.tolist() == [-1, 0, 2, 2, 4]
    assert grid.sdb.tolist() == [-1, 0, 1, 0, 0]
    assert any("1 scored event has no name" in issue for issue in scoring.issues)
    for user in ("<UserStaging/>", ""):
        scoring = read_scoring(write(tmp_path, SLEEPWARE.format(user=user), "a.rml"))
        assert clip_labels(scoring, 30).stage.tolist() == [3]
        assert any("those of the software were taken" in issue for issue in scoring.issues)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('<!DOCTYPE a [<!ENTITY x "y">]><PSGAnnotation>&x;</PSGAnnotation>', "document type"),
        ('<!DOCTYPE a SYSTEM "file:///etc/passwd"><PSGAnnotation/>', "document type"),
        ("<PSGAnnotation><ScoredEvents>", "not well-formed"),
        ("<html></html>", "<html>"),
        ('<?xml version="1.0" encoding="utf-99"?><PSGAnnotation>', "not well-formed"),
        ("<PSGAnnotation>&x;</PSGAnnotation>", "not well-formed"),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_xml_refused(tmp_path, text, said, encoding):
    with pytest.raises(ScoringError, match=said):
        read_scoring(write(tmp_path, text, "a.xml", encoding))


# Damage


@pytest.mark.parametrize("seed", range(60))
@pytest.mark.parametrize("kind", ["csv", "xml", "profusion", "st"])
def test_damaged_files_are_read_or_refused_by_a_sentence(tmp_path, kind, seed):
    rng = random.Random(seed)
    whole = {
        "csv": "onset;duration;stage\n" + "".join(f"22:{m:02}:00;30,0;N2\n" for m in range(40)),
        "xml": PSG.format(encoding="utf-8"),
        "profusion": PROFUSION,
    }
    notes = [(1, "W"), (3000, "2 H"), (6000, "R")]
    damaged = bytearray(whole[kind].encode() if kind in whole else wfdb_file(tmp_path, notes).read_bytes())
    for _ in range(rng.choice([1, 3, 10])):
        at = rng.randrange(len(damaged))
        change = rng.randrange(4)
        if change == 0:
            damaged[at] = rng.randrange(256)
        elif change == 1:
            del damaged[at : at + rng.randrange(1, 20)]
        elif change == 2:
            damaged[at:at] = rng.choice([b";", b",", b'"', b"\n", b"\0", b"<", b"-1", b"1e999", b"nan", b":", b"/"])
        else:
            del damaged[at + 1 :]
        damaged = damaged or bytearray(b" ")
    path = write(tmp_path, bytes(damaged), "a.st" if kind == "st" else f"{kind}.txt")
    try:
        grid = clip_labels(read_scoring(path, start=datetime(2020, 1, 1, 22, 0)), 600)
    except SleepfmError as error:
        said = str(error)
        assert path.name in said
        assert said.endswith((".", "?"))
    else:
        assert len(grid.stage) in (19, 20)
        assert set(grid.stage) <= {-1, 0, 1, 2, 3, 4}


# Real files


def test_osas2002_stages():
    scoring = read_scoring(data("osas2002-stages.csv"))
    assert scoring.issues == ()
    grid = clip_labels(scoring, 1200)
    lines = data("osas2002-stages.csv").read_text().splitlines()[1:]
    assert [STAGES[code] for code in grid.stage] == [line.split(",")[2] for line in lines]
    assert grid.onsets_s.tolist() == [30.0 * i for i in range(40)]
    assert counts(grid.sdb) == {-1: 40}
    assert grid.issues == ()


def test_nsrr_100022():
    path = data("annotations/nsrr-100022.xml")
    scoring = read_scoring(path)
    assert scoring.events_scored is True
    seconds: Counter[str] = Counter()
    names: Counter[str] = Counter()
    for element in ET.parse(path).iter("ScoredEvent"):
        name = element.findtext("EventConcept").removeprefix("SRO:")
        seconds[name] += float(element.findtext("Duration"))
        names[name] += 1
    grid = clip_labels(scoring, 31_530)
    assert len(grid.stage) == 1051
    assert counts(grid.stage) == {
        -1: (31_530 - 31_110) // 30,
        0: seconds["Wake"] / 30,
        1: seconds["Stage1Sleep"] / 30,
        2: seconds["Stage2Sleep"] / 30,
        3: seconds["Stage3Sleep"] / 30,
        4: seconds["RapidEyeMovement"] / 30,
    }
    events = Counter(respiratory_event_of(event.text) for event in scoring.events)
    assert events["hypopnea"] == names["Hypopnea"] == 175
    assert events["obstructive_apnea"] == names["ObstructiveApnea"] == 23
    assert 198 / 2 < counts(grid.sdb)[1] < 198 * 2


@pytest.mark.parametrize(
    ("record", "seconds", "stages", "n_events"),
    [
        ("slp01a", 7200, {-1: 1, 0: 7, 1: 1, 2: 105, 3: 113, 4: 13}, 37),
        ("slp03", 21_600, {0: 151, 1: 105, 2: 312, 3: 78, 4: 74}, 241),
        ("slp14", 21_600, {-1: 7, 0: 321, 1: 188, 2: 126, 3: 42, 4: 36}, 182),
        ("slp41", 23_400, {0: 229, 1: 230, 2: 218, 3: 13, 4: 90}, 0),
    ],
)
def test_slpdb(record, seconds, stages, n_events):
    """Figures counted from a separate decoding: epochs by first word, epochs with H, HA, X, OA, CA or CAA."""
    scoring = read_scoring(data(f"annotations/{record}.st"))
    assert scoring.issues == ()
    grid = clip_labels(scoring, seconds)
    assert grid.onsets_s[0] == 0
    assert len(grid.stage) == seconds // 30
    assert counts(grid.stage) == stages
    assert np.count_nonzero(grid.sdb == 1) == n_events
    scored = np.flatnonzero(grid.stage >= 0)
    assert np.count_nonzero(grid.sdb == -1) == np.count_nonzero(grid.sdb[: scored[0]] != 1) + np.count_nonzero(
        grid.sdb[scored[-1] + 1 :] != 1
    )
    assert grid.issues == ()


def test_slp14_starts_late():
    grid = clip_labels(read_scoring(data("annotations/slp14.st")), 21_600)
    assert grid.stage[:7].tolist() == [-1] * 6 + [0]


NOX_STAGES = {0: 213, 1: 66, 2: 466, 3: 364, 4: 249}


@pytest.mark.parametrize(("start", "shift"), [(datetime(2016, 1, 15, 22, 30), 0), (datetime(2016, 1, 15, 22, 15), 900)])
def test_noxturnal(start, shift):
    path = data("annotations/noxturnal-events.csv")
    scoring = read_scoring(path, start=start)
    lines = path.read_bytes().decode("utf-16").splitlines()[2:]
    assert len(scoring.events) == len(lines) == 1411
    assert scoring.events[0] == Event(shift, 30, "Éveil")
    assert next(event for event in scoring.events if event.text == "Micro-éveil").duration_s == 4.104
    assert scoring.issues == ()
    grid = clip_labels(scoring, shift + 44_910)
    assert len(grid.stage) == (shift + 44_910) // 30
    assert {code: n for code, n in counts(grid.stage).items() if code >= 0} == NOX_STAGES
    assert counts(grid.sdb) == {-1: len(grid.sdb)}
    free = clip_labels(scoring, shift + 44_910, events_scored=True).sdb
    first, last = np.flatnonzero(grid.stage >= 0)[[0, -1]].tolist()
    assert np.flatnonzero(free == 0).tolist() == list(range(first, last + 1))


def test_noxturnal_needs_a_start():
    with pytest.raises(ScoringError, match="clock times"):
        read_scoring(data("annotations/noxturnal-events.csv"))


@pytest.mark.parametrize(
    ("name", "n_s", "unscored_s"),
    [
        ("annotations/ST7011JP-Hypnogram.edf", 32_760, 0),
        ("SC4001EC-Hypnogram.edf", 86_400, 6900),
        ("ucddb018_eeg.edf", 24_660, 0),
    ],
)
def test_edf_annotations(name, n_s, unscored_s):
    edfio = pytest.importorskip("edfio")
    scoring = read_scoring(data(name))
    oracle = edfio.read_edf(data(name)).annotations
    assert [(e.onset_s, e.duration_s, e.text) for e in scoring.events] == [
        (a.onset, a.duration, a.text) for a in oracle
    ]
    assert scoring.events_scored is None
    seconds: Counter[int] = Counter()
    codes = {"W": 0, "1": 1, "2": 2, "3": 3, "4": 3, "R": 4, "?": -1}
    for annotation in oracle:
        seconds[codes[annotation.text.removeprefix("Sleep stage ")]] += annotation.duration
    grid = clip_labels(scoring, n_s)
    assert counts(grid.stage) == {code: s / 30 for code, s in sorted(seconds.items())}
    assert seconds[-1] == unscored_s
    assert counts(grid.sdb) == {-1: len(grid.sdb)}


def test_edf_hypnogram_of_another_start_is_shifted():
    path = data("SC4001EC-Hypnogram.edf")
    same = read_scoring(path, start=datetime(1989, 4, 24, 16, 13))
    assert same.events == read_scoring(path).events
    earlier = read_scoring(path, start=datetime(1989, 4, 24, 16, 12))
    assert [e.onset_s - 60 for e in earlier.events] == [e.onset_s for e in same.events]
    assert any("60 s after" in issue for issue in earlier.issues)
    elsewhere = read_scoring(path, start=datetime(1999, 1, 1))
    assert elsewhere.events == same.events
    assert any("more than a day" in issue for issue in elsewhere.issues)


def test_edf_without_annotations_is_refused():
    with pytest.raises(ScoringError, match="no annotations"):
        read_scoring(data("short_psg.edf"))


def test_annotations_inside_a_recording():
    from sleepfm_fast.edf import read_recording

    recording = read_recording(data("ucddb018_eeg.edf"))
    grid = clip_labels(scoring_of(recording), recording.duration_s, recording.segments)
    assert counts(grid.stage) == {0: 328, 1: 58, 2: 280, 3: 137, 4: 19}
    hearts = read_recording(data("osas2002.edf"))
    grid = clip_labels(scoring_of(hearts), hearts.duration_s, hearts.segments)
    assert counts(grid.stage) == {-1: 40}
    assert any("names no sleep stage" in issue for issue in grid.issues)


@pytest.mark.parametrize(
    "path", sorted((DATA / "annotations").glob("*")) or [None], ids=lambda p: getattr(p, "name", "none")
)
def test_every_annotation_file_is_read_or_refused_by_a_sentence(path):
    if path is None:
        pytest.skip(f"{DATA / 'annotations'} is not there; set SLEEPFM_TEST_DATA")
    start = datetime(2016, 1, 15, 22, 30)
    if path.suffix == ".hea":
        with pytest.raises(SleepfmError, match=path.name):
            read_scoring(path, start=start)
    else:
        assert any(stage_of(event.text) for event in read_scoring(path, start=start).events)


# Files: WFDB notes


def note(text: str, interval: int) -> bytes:
    """Encode a note after an interval, as SKIP, NOTE, AUX in MIT format."""
    raw = text.encode()
    skip = struct.pack("<HHH", 59 << 10, interval >> 16, interval & 0xFFFF)
    return skip + struct.pack("<HH", 22 << 10, 63 << 10 | len(raw)) + raw + b"\0" * (len(raw) % 2)


def wfdb_file(tmp_path: Path, notes: list[tuple[int, str]], name: str = "a.st") -> Path:
    steps = [notes[0][0], *(b[0] - a[0] for a, b in itertools.pairwise(notes))]
    path = write(
        tmp_path, b"".join(note(text, step) for (_, text), step in zip(notes, steps, strict=True)) + b"\0\0", name
    )
    path.with_suffix(".hea").write_text("a 1 100 30000\n")
    return path


def test_notes_of_one_epoch_each(tmp_path):
    notes = [
        (1, "W LA"),
        (3000, "2 H HA"),
        (6000, "4"),
        (9000, "R CAA X"),
        (12_000, "MT"),
        (15_000, "1 L A QQ"),
        (18_000, "OA"),
    ]
    scoring = read_scoring(wfdb_file(tmp_path, notes))
    grid = clip_labels(scoring, 300)
    assert grid.onsets_s[0] == 0
    assert grid.stage.tolist() == [0, 2, 3, 4, -1, 1, -1, -1, -1, -1]
    assert grid.sdb.tolist() == [0, 1, 0, 1, 0, 0, 1, -1, -1, -1]
    assert scoring.events_scored is True
    (issue,) = scoring.issues
    assert "'QQ' (1)" in issue
    names = Counter(respiratory_event_of(event.text) for event in scoring.events)
    assert (names["hypopnea"], names["central_apnea"], names["obstructive_apnea"]) == (2, 1, 2)


def test_notes_with_brackets(tmp_path):
    notes = [
        (3000, "W"),
        (9000, "N1"),
        (12_000, "(resp_hypopnea"),
        (12_500, "(arousal_rera"),
        (13_500, "resp_hypopnea)"),
    ]
    notes += [(13_600, "arousal_rera)"), (15_000, "R"), (16_000, "resp_centralapnea)"), (17_000, "(resp_mixedapnea")]
    scoring = read_scoring(wfdb_file(tmp_path, notes, "a.arousal"))
    grid = clip_labels(scoring, 300)
    assert grid.issues == ()  # that stages last until the next one is how the format is meant
    assert grid.stage.tolist() == [-1, 0, 0, 1, 1, 4, -1, -1, -1, -1]
    assert grid.sdb.tolist() == [-1, 0, 0, 0, 1, 0, -1, -1, -1, -1]
    assert any("2 events have a beginning without an end" in issue for issue in scoring.issues)


def test_wfdb_without_texts_or_header(tmp_path):
    path = wfdb_file(tmp_path, [(1, "")])
    with pytest.raises(ScoringError, match="without texts"):
        read_scoring(path)
    path.with_suffix(".hea").unlink()
    with pytest.raises(ScoringError, match=r"a\.hea"):
        read_scoring(path)
    write(tmp_path, "a 1 100", "b.hea")
    with pytest.raises(SleepfmError, match="MIT format"):
        read_scoring(write(tmp_path, b"\x01", "b.st"))


# Finding


@pytest.mark.parametrize(
    ("recording", "labels"),
    [
        ("SC4001E0-PSG.edf", "SC4001EC-Hypnogram.edf"),
        ("ST7011J0-PSG.edf", "ST7011JP-Hypnogram.edf"),
        ("shhs1-200001.edf", "shhs1-200001-nsrr.xml"),
        ("shhs1-200001.edf", "shhs1-200001-profusion.xml"),
        ("a.edf", "a.xml"),
        ("a.edf", "a.edf.XML"),
        ("a.edf", "a.rml"),
        ("a.EDF", "A.csv"),
        ("a.edf", "a-Hypnogram.edf"),
        ("osas2002.edf", "osas2002-stages.csv"),
        ("slp01a.edf", "slp01a.st"),
        ("a.edf", "a_events.txt"),
        ("sub-01_task-sleep_eeg.edf", "sub-01_task-sleep_events.tsv"),
        ("wsc-visit1-10119-nsrr.edf", "wsc-visit1-10119-nsrr.allscore.txt"),
        ("wsc-visit1-10119-nsrr.edf", "wsc-visit1-10119-nsrr.stg.txt"),
        ("SN001.edf", "SN001_sleepscoring.edf"),
        ("01-03-0001 PSG.edf", "01-03-0001 Base.edf"),
        ("night7-PSG.edf", "night7-Hypnogram.edf"),
        ("1.rec", "1_1.txt"),
    ],
)
def test_find_scoring(tmp_path, recording, labels):
    folder, elsewhere, foreign = tmp_path / "recordings", tmp_path / "labels" / "deep", tmp_path / "foreign" / "deep"
    for made in (folder, elsewhere, foreign):
        made.mkdir(parents=True)
        write(made, b"0", "SC4002EC-Hypnogram.edf")
    path = write(folder, b"0", recording)
    assert find_scoring(path) is None
    assert find_scoring(path, tmp_path / "foreign") is None
    apart = write(elsewhere, b"0", labels)
    assert find_scoring(path, tmp_path / "labels") == apart
    assert find_scoring(path) is None
    beside = write(folder, b"0", labels)
    assert find_scoring(path) == beside
    assert find_scoring(path, apart) == apart


def test_a_first_scorers_file_is_no_other_recordings(tmp_path):
    path, scored = (write(tmp_path, b"0", name) for name in ("1.rec", "1_1.txt"))
    assert find_scoring(path) == scored
    other = write(tmp_path, b"0", "1_1.rec")
    assert find_scoring(path) is None
    assert find_scoring(other) == scored


def test_find_scoring_prefers_and_refuses(tmp_path):
    path = write(tmp_path, b"0", "a.edf")
    for name in ("a.csv", "a-Hypnogram.edf", "a-profusion.xml", "a-nsrr.xml"):
        written = write(tmp_path, b"0", name)
        assert find_scoring(path) == written
    with pytest.raises(ScoringError, match="no such file"):
        find_scoring(path, tmp_path / "none")


def test_a_folder_of_scorings_beside_the_recordings_is_suggested(tmp_path):
    root = tmp_path / "polysomnography"
    for made in ("edfs/lab/full", "annotations-events-nsrr/lab/full", "annotations-events-profusion", "notes"):
        (root / made).mkdir(parents=True)
    path = write(root / "edfs" / "lab" / "full", b"0", "homepap-lab-full-1.edf")
    assert scoring_folder(path) is None
    write(root / "notes", b"0", "homepap-lab-full-1.csv")
    assert scoring_folder(path) is None, "any folder may hold anything"
    write(root / "annotations-events-nsrr" / "lab" / "full", b"0", "homepap-lab-full-1-nsrr.xml")
    files_below.cache_clear()
    assert scoring_folder(path) == root / "annotations-events-nsrr"
    for number in range(8):
        (root / f"scored_night{number}").mkdir()
    assert scoring_folder(path) is None, "folders of nights are not searched for every night"


def test_a_scoring_that_comes_later_is_found_by_the_same_process(tmp_path, capsys):
    """As a server that takes in nights for months: the folder of labels keeps its time when a subfolder changes."""
    for folder in ("nights", "labels/ward"):
        (tmp_path / folder).mkdir(parents=True)
    command = ("--workers", 1, "--labels", tmp_path / "labels", tmp_path / "nights", tmp_path / "store")
    for number in (1, 2):
        write_night(tmp_path / "nights" / f"n{number}.edf", stages="----", seed=number)
        write(tmp_path / "labels" / "ward", "onset,duration,stage\n0,30,N2\n", f"n{number}.csv")
        status, line = preprocess(capsys, *command)
        assert (status, line["nights_scored"]) == (0, number)


def test_a_folder_of_scorings_is_what_to_give_as_labels(tmp_path, capsys):
    (root := tmp_path / "polysomnography" / "edfs").mkdir(parents=True)
    (tmp_path / "annotations").mkdir()
    write_night(root / "n1.edf", stages="----")
    write(tmp_path / "annotations", "onset,duration,stage\n0,30,N2\n", "n1.csv")
    status, line = preprocess(capsys, "--inspect", tmp_path, "--json", tmp_path / "report.json")
    (finding,) = [f for f in json.loads((tmp_path / "report.json").read_text())["findings"] if "scor" in f["text"]]
    assert (status, finding["code"]) == (0, "no_scoring")
    assert finding["action"].endswith(f"--labels {tmp_path / 'annotations'}")
    assert cli([str(root), str(tmp_path / "store"), "--workers", "1", "--backend", "threading"]) == 0
    notices = [line for line in capsys.readouterr().err.splitlines() if "no night has a sleep stage" in line]
    assert notices[0].endswith(f"--labels {tmp_path / 'annotations'}")
    status, line = preprocess(capsys, root, tmp_path / "other", "--labels", tmp_path / "annotations")
    assert (status, line["stages"]["N2"]) == (0, 1)


def test_a_file_that_cannot_be_read_is_what_no_scoring_is_about(tmp_path, capsys):
    write_night(tmp_path / "n1.edf", stages="----")
    write(tmp_path, "Beginning;What\n0;N2\n", "n1.csv")
    assert preprocess(capsys, "--inspect", tmp_path, "--json", tmp_path / "report.json")[0] == 0
    (finding,) = [f for f in json.loads((tmp_path / "report.json").read_text())["findings"] if "scor" in f["text"]]
    assert (finding["code"], finding["text"]) == ("no_scoring", "no scoring was read")
    assert "n1.csv beside the recording was not used as its scoring" in finding["action"]
    assert "expected a header such as" in finding["action"]


DAMAGED = {
    "zeros": b"onset,duration,stage\n0,30,N2\n" + bytes(40),
    "UTF-32": "onset,duration,stage\n0,30,N2\n30,30,N3\n".encode("utf-32"),
    "bars": b"onset|duration|stage\n0|30|N2\n30|30|N3\n",
    "long": b"onset,duration,stage\n0,30,N2\n30,30," + b"x" * 200_000 + b"\n",
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_scoring_that_was_lost_is_not_replaced_in_silence(tmp_path, capsys, damage):
    for name, stages in (("n1", "W11W"), ("n2", "----"), ("n3", "W11W")):
        write_night(tmp_path / f"{name}.edf", stages=stages)
    for name in ("n1", "n2"):
        write(tmp_path, DAMAGED[damage], f"{name}.csv")
    store = tmp_path / "store"
    arguments = [str(tmp_path), str(store), "--workers", "1", "--backend", "threading"]
    capsys.readouterr()
    assert cli(arguments) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["scoring_not_read"] == ["n1", "n2"]
    (notice,) = [line for line in printed.err.splitlines() if "named like their scoring" in line]
    assert notice.startswith(
        "notice: 2 nights lack the stages of a file that is named like their scoring and cannot be read, as here: n1: "
        "the file n1.csv beside the recording was not used as its scoring: "
    )
    assert ". 1 of them has the stages of its own annotations instead. Repair such a file" in notice
    assert cli(["--inspect", str(tmp_path), "--workers", "1", "--json", str(tmp_path / "report.json")]) == 0
    findings = json.loads((tmp_path / "report.json").read_text())["findings"]
    codes = {code: [f["paths"] for f in findings if f["code"] == code] for code in ("scoring_not_read", "no_scoring")}
    assert codes["scoring_not_read"][0] == [str(tmp_path / "n1.edf")]
    # It is passed over until it is another file.
    capsys.readouterr()
    assert cli(arguments) == 0
    assert json.loads(capsys.readouterr().out)["kept"] == 3
    write(tmp_path, b"onset,duration,stage\n0,30,N2\n30,30,N3\n60,30,N3\n90,30,R\n", "n1.csv")
    assert cli(arguments) == 1
    assert "n1.csv, which could not be read, is another file now" in capsys.readouterr().err
    assert cli([*arguments, "--overwrite"]) == 0
    assert json.loads(capsys.readouterr().out)["stages"]["N3"] == 2


@pytest.mark.parametrize(("inside", "said"), [("W11W", 1), ("----", 0)])
def test_stages_that_were_lost_beside_events_that_were_not(tmp_path, capsys, inside, said):
    write_night(tmp_path / "n1.edf", stages=inside)
    write(tmp_path, b"onset,duration,event\n10,12,Hypopnea\n", "n1.csv")
    write(tmp_path, DAMAGED["zeros"], "n1-hypnogram.csv")
    arguments = [str(tmp_path), str(tmp_path / "store"), "--workers", "1", "--backend", "threading"]
    assert cli(arguments) == 0
    printed = capsys.readouterr()
    result = json.loads(printed.out)
    assert (result["scoring_not_read"], result["nights_scored"]) == (["n1"], said)
    notice = "notice: 1 night lacks the stages of a file that is named like its scoring and cannot be read"
    assert notice in printed.err
    assert f". {said} of them ha" in printed.err
    assert cli(arguments) == 0
    write(tmp_path, b"onset,duration,stage\n0,30,N2\n30,30,N3\n60,30,N3\n90,30,R\n", "n1-hypnogram.csv")
    assert cli(arguments) == 1
    assert "n1-hypnogram.csv, which could not be read, is another file now" in capsys.readouterr().err


def test_the_next_file_that_is_named_like_a_scoring_is_read(tmp_path, capsys):
    """Beside a recording lie exports of other things under its name."""
    write_night(tmp_path / "n1.edf", stages="WWWW")
    write(tmp_path, b"time;SpO2\n0;97\n1;96\n", "n1.csv")
    write(tmp_path, b"onset,duration,stage\n0,30,N2\n30,30,N3\n60,30,N3\n90,30,R\n", "n1-hypnogram.csv")
    arguments = [str(tmp_path), str(tmp_path / "store"), "--workers", "1", "--backend", "threading"]
    for _ in range(2):
        capsys.readouterr()
        assert cli(arguments) == 0
        result = json.loads(capsys.readouterr().out)
        assert (result["stages"]["N3"], result["stages"]["W"], result["scoring_not_read"]) == (2, 0, [])
    assert result["kept"] == 1
    issues = json.loads((tmp_path / "store" / "recordings" / "n1.json").read_text())["issues"]
    assert any("n1.csv beside the recording was not used as its scoring" in issue for issue in issues)
    write(tmp_path, b"time;SpO2\n0;97\n1;96\n2;96\n", "n1.csv")
    assert cli(arguments) == 1, "it may be a scoring now"


def test_a_scoring_named_otherwise_is_suggested(tmp_path):
    nights, labels = tmp_path / "nights", tmp_path / "labels" / "2024"
    for made in (nights, labels):
        made.mkdir(parents=True)
    path, other, plain = (write(nights, b"0", name) for name in ("Night 01.edf", "Night 02.edf", "night.edf"))
    beside = write(nights, b"0", "night-1_final Hypnogram.edf")
    scored = write(labels, b"0", "PSG001 scored.txt")
    write(labels, b"0", "notes.csv")
    write(labels, b"0", "night 1.pdf")
    assert find_scoring(path) is None
    assert similar_scorings(path) == (beside,)
    assert similar_scorings(path, labels.parent) == (scored,)
    assert similar_scorings(other) == similar_scorings(plain) == similar_scorings(path, scored) == ()
    # What has the right name is not used for a reason, which is said elsewhere; what many share says nothing.
    write(labels, b"0", "night 01.csv")
    files_by_numbers.cache_clear()
    assert similar_scorings(path, labels.parent) == (scored,)
    for name in ("1a.csv", "1b.csv"):
        write(labels, b"0", name)
    files_by_numbers.cache_clear()
    assert similar_scorings(path, labels.parent) == ()


def test_scorings_of_one_name_belong_by_their_folders(tmp_path):
    recordings = [
        tmp_path / "edf" / site / subject / "night1.edf" for site, subject in (("a", "1"), ("a", "2"), ("b", "1"))
    ]
    scorings = [tmp_path / "labels" / path.parent.parent.name / path.parent.name / "night1.csv" for path in recordings]
    for path in (*recordings, *scorings):
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path.parent, b"0", path.name)
    others = namesakes_of(recordings)
    assert [find_scoring(path, tmp_path / "labels", others) for path in recordings] == scorings
    # The night whose scoring is missing gets none, and no neighbour's.
    scorings[1].unlink()
    files_below.cache_clear()
    assert [find_scoring(path, tmp_path / "labels", others) for path in recordings] == [scorings[0], None, scorings[2]]
    one = tmp_path / "flat"
    one.mkdir()
    write(one, b"0", "night1.csv")
    with pytest.raises(ScoringError, match="whose scoring"):
        find_scoring(recordings[0], one, others)
    assert find_scoring(recordings[0], one, namesakes_of(recordings[:1])) == one / "night1.csv"
    for name in ("x", "y"):
        (one / name).mkdir()
        write(one / name, b"0", "night1.csv")
    (one / "night1.csv").unlink()
    files_below.cache_clear()
    with pytest.raises(ScoringError, match="do not tell which"):
        find_scoring(recordings[0], one, namesakes_of(recordings[:1]))
