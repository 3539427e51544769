"""Tables with a row for every visit of a subject: which row a recording is of, its age, and one person on one side."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from nights import preprocess, write_night
from synthetic_embeddings import columns_of, description_of, write_folder

from sleepfm_fast.baselines.supervised_clips import StoreFacts
from sleepfm_fast.clips import ClipStore
from sleepfm_fast.cohorts.participant_tables import read_tables
from sleepfm_fast.cohorts.participants import Participants
from sleepfm_fast.cohorts.participants_file import read_participants
from sleepfm_fast.cohorts.visits import told_visit, visit_of
from sleepfm_fast.embeddings import Embeddings
from sleepfm_fast.errors import SleepfmError
from sleepfm_fast.evaluation.classification import HeldOut
from sleepfm_fast.evaluation.tasks import labels_of
from sleepfm_fast.runs.splits import Split, assign_subjects
from sleepfm_fast.store.clip_facts import columns_of as store_columns
from sleepfm_fast.store.clip_facts import people_of
from sleepfm_fast.transfer import _recording_ages

SHHS = (
    "nsrrid,visitnumber,nsrr_age,nsrr_age_gt89,nsrr_sex\n"
    "200077,1,41,no,male\n200077,2,46,no,male\n200078,1,54,no,male\n200078,2,59,no,male\n200001,1,55,no,male\n"
)


def table(tmp_path: Path, content: str) -> Participants:
    (tmp_path / "table.csv").write_text(content)
    return read_participants(tmp_path / "table.csv")


@pytest.mark.parametrize(
    ("path", "visit"),
    [
        ("edfs/shhs1/shhs1-200001.edf", "1"),
        ("shhs2-200001.edf", "2"),
        ("edfs/shhs2/200001.edf", "2"),
        ("mros-visit1-aa0001.edf", "1"),
        ("mros/visit2/aa0001.edf", "2"),
        ("sof-visit-8-00107.edf", "8"),
        ("WSC-Visit03-10119-nsrr.edf", "3"),
        ("sub-01_ses-02_eeg.edf", "2"),
        ("chat-baseline-300001.edf", "baseline"),
        ("visit1/shhs2-200001.edf", "2"),  # the name before the folder
        ("visit1/session2/n.edf", "2"),  # the nearest folder before others
        ("visit1-visit2-n.edf", None),  # two are none
        ("aa0001.edf", None),
        ("n2.edf", None),
        ("revisit1.edf", None),
        ("visits/shhs-200001.edf", None),
        ("mesa-sleep-0001.edf", None),
    ],
)
def test_a_name_or_a_folder_tells_the_visit(path: str, visit: str | None) -> None:
    assert told_visit(Path(path), {"1", "2", "baseline"}) == visit


@pytest.mark.parametrize(
    ("path", "visit"),
    [
        ("baseline/abc-baseline-900001.edf", "0"),
        ("month09/abc-month09-900001.edf", "9"),
        ("month18/900001.edf", "18"),
        ("abc-900001.edf", None),
    ],
)
def test_visits_that_count_months(path: str, visit: str | None) -> None:
    assert told_visit(Path(path), {"0", "9", "18"}) == visit
    assert told_visit(Path("abc-baseline-1.edf"), {"1", "2"}) is None
    assert told_visit(Path("abc-baseline-1.edf"), set()) is None


def test_a_visit_is_written_in_many_ways() -> None:
    assert [visit_of(cell) for cell in ("2", "02", "2.0", "Visit 2", "ses-2", "visit2")] == ["2"] * 6
    assert [visit_of(cell) for cell in ("Baseline", "month 9", "10")] == ["baseline", "month9", "10"]
    assert [visit_of(cell) for cell in ("Follow-up", "follow up", "Followup", "FOLLOW_UP")] == ["followup"] * 4
    assert visit_of("?!") == "?!"


def test_every_visit_has_its_row_and_both_are_one_person(tmp_path: Path) -> None:
    rows = table(tmp_path, SHHS)
    found = [rows.of(Path(f"/d/shhs{v}-{n}.edf")) for n in (200077, 200078) for v in (1, 2)]
    assert [(p.subject, p.age, p.sex, p.visit) for p in found] == [
        ("200077", 41, "M", "1"),
        ("200077", 46, "M", "2"),
        ("200078", 54, "M", "1"),
        ("200078", 59, "M", "2"),
    ]
    assert rows.unknown_recordings([Path("shhs1-200077.edf"), Path("shhs2-200078.edf"), Path("shhs1-200001.edf")]) == [
        "200077 (visit 2)",
        "200078 (visit 1)",
    ]


def test_a_visit_without_a_row_has_no_age_and_that_is_said(tmp_path: Path) -> None:
    table(tmp_path, SHHS)
    tables = read_tables(tmp_path / "table.csv", [])
    paths = [Path("shhs1-200001.edf"), Path("shhs2-200001.edf")]
    assert [(tables.of(p).subject, tables.of(p).age, tables.of(p).sex) for p in paths] == [
        ("200001", 55, "M"),
        ("200001", None, "M"),
    ]
    (said,) = tables.notices(paths)
    assert "1 recording is of a visit of which the participants table has no row (such as shhs2-200001.edf)" in said
    # The same where the whole table is of one visit, as MrOS's.
    mros = table(tmp_path, "nsrrid,visit,nsrr_age,nsrr_sex\nAA0001,1,70,male\n")
    assert [mros.of(Path(f"mros-visit{v}-aa0001.edf")).age for v in (1, 2)] == [70, None]
    assert mros.of(Path("aa0001.edf")).age == 70, "nothing says that it is another visit"


def test_one_person_however_the_visits_write_the_id(tmp_path: Path) -> None:
    rows = table(tmp_path, "nsrrid,visit,age\nAA0001,1,70\naa0001,2,75\n")
    people = [rows.of(Path(f"mros-visit{v}-aa0001.edf")) for v in (1, 2)]
    assert [(p.subject, p.age) for p in people] == [("AA0001", 70), ("AA0001", 75)]


def test_words_and_other_cohorts(tmp_path: Path) -> None:
    chat = table(tmp_path, "nsrrid,timepoint,nsrr_age\n300001,baseline,7\n300001,followup,7.6\n")
    assert [chat.of(Path(f"chat-{v}-300001.edf")).age for v in ("baseline", "followup")] == [7, 7.6]
    mesa = table(tmp_path, "mesaid,nsrr_age,nsrr_sex\n1,60,female\n5805,61,not reported\n")
    assert mesa.of(Path("mesa-sleep-0001.edf")).age == 60
    assert mesa.of(Path("mesa-sleep-5805.edf")).sex is None
    wsc = table(tmp_path, "wsc_id,wsc_vst,age\n10119,1,50\n10119,3,58\n")
    assert [wsc.of(Path(f"wsc-visit{v}-10119-nsrr.edf")).age for v in (1, 3)] == [50, 58]
    bids = table(tmp_path, "participant_id,session,age\nsub-1,1,30\nsub-1,2,31\n")
    assert [bids.of(Path(f"sub-1_ses-{v}_eeg.edf")).age for v in (1, 2)] == [30, 31]


CHAT = "nsrrid,vnum,nsrr_age,nsrr_sex\n300001,3,7.0,male\n300002,3,8.0,female\n300001,10,7.6,male\n"
"""As the National Sleep Research Resource makes it: 3 is baseline, 10 follow-up."""


def test_the_human_sleep_project_s_table(tmp_path: Path) -> None:
    rows = table(
        tmp_path,
        "SiteID,BDSPPatientID,SessionID,BidsFolder,AgeAtVisit,SexDSC,StudyType\n"
        "S0001,111189075,1,sub-S0001111189075,61,Female,Diagnostic\n"
        "S0001,111189075,2,sub-S0001111189075,63,Female,Split\nI0002,15,1,sub-I000215,45,Male,Diagnostic\n",
    )
    assert rows.issues == ()
    for name, number, age, sex in (
        ("S0001111189075", 1, 61, "F"),
        ("S0001111189075", 2, 63, "F"),
        ("I000215", 1, 45, "M"),
    ):
        path = Path(f"bids/sub-{name}/ses-{number}/eeg/sub-{name}_ses-{number}_task-psg_eeg.edf")
        found = rows.rows[rows.find(path)]
        assert (found.subject, found.age, found.sex, found.visit) == (f"sub-{name}", age, sex, str(number))


@pytest.mark.parametrize("visits", ["3 10", "Baseline Follow-up", "baseline followup"])
def test_chat_s_words_and_numbers(tmp_path: Path, visits: str) -> None:
    first, second = visits.split()
    chat = table(tmp_path, CHAT.replace(",3,", f",{first},").replace(",10,", f",{second},"))
    paths = [Path(f"edfs/{v}/chat-{v}-{n}.edf") for n in (300001, 300002) for v in ("baseline", "followup")]
    assert [(p.subject, p.age, p.sex) for p in map(chat.of, paths)] == [
        ("300001", 7.0, "M"),
        ("300001", 7.6, "M"),
        ("300002", 8.0, "F"),
        ("300002", None, "F"),  # it has no row of the second visit, and is older there
    ]
    assert [chat.of(path).visit for path in paths] == [visit_of(first), visit_of(second)] * 2
    assert chat.of(Path("chat-nonrandomized-300004.edf")).age is None


def test_chat_s_numbers_are_no_other_cohort_s(tmp_path: Path) -> None:
    # 1 and 2 may be anything, and 3 and 10 under other names too
    table(tmp_path, CHAT.replace(",3,", ",1,").replace(",10,", ",2,"))
    tables = read_tables(tmp_path / "table.csv", [])
    with pytest.raises(SleepfmError, match="a column visit, such as baseline and followup"):
        tables.refuse_untold_visits([Path("chat-baseline-300001.edf")])
    table(tmp_path, CHAT)
    tables = read_tables(tmp_path / "table.csv", [])
    with pytest.raises(SleepfmError, match="visits 10, 3"):
        tables.refuse_untold_visits([Path("site-baseline-300001.edf")])


def test_a_column_of_words_beside_the_numbers(tmp_path: Path) -> None:
    rows = table(tmp_path, "nsrrid,visitnumber,visit,age\n7,1,pre treatment,40\n7,2,post-treatment,41\n")
    names = ("study_pre-treatment_7.edf", "post treatment/7.edf", "Posttreatment/x/7.edf")
    assert [rows.of(Path(name)).age for name in names] == [40, 41, 41]


@pytest.mark.parametrize("name", ["200077.edf", "chat-baseline-200077.edf", "visit1-visit2-200077.edf"])
def test_a_recording_of_an_untold_visit_is_refused_with_what_to_do(tmp_path: Path, name: str) -> None:
    table(tmp_path, SHHS)
    tables = read_tables(tmp_path / "table.csv", [])
    with pytest.raises(SleepfmError, match=r"2 rows of subject 200077 \(visits 1, 2\)") as refusal:
        tables.refuse_untold_visits([Path("shhs1-200078.edf"), Path(name)])
    for part in (name, "shhs2-200077.edf, mros-visit1-aa0001.edf, or a folder visit2", "a row a recording"):
        assert part in str(refusal.value)
    tables.refuse_untold_visits([Path("shhs1-200078.edf"), Path("other.edf"), Path("200001.edf")])


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (
            "nsrrid,age\n1,40\n1,45\n",
            "names '1' in rows 2 and 3; keep one row each. A subject may have a row",
        ),
        ("nsrrid,visit,age\n1,1,40\n1,01,45\n", r"names '1 \(visit 1\)' in rows 2 and 3; keep one row each\.$"),
        ("nsrrid,visit,age\n1,,40\n1,,45\n", "column visit .or visitnumber. tells them apart"),
        ("recording,visit,age\nn1,1,40\nn1,2,45\n", r"names 'n1' in rows 2 and 3; keep one row each\.$"),
    ],
)
def test_two_rows_that_nothing_tells_apart_are_refused(tmp_path: Path, content: str, sentence: str) -> None:
    with pytest.raises(SleepfmError, match=sentence):
        table(tmp_path, content)


@pytest.fixture
def visits(tmp_path: Path) -> Path:
    """Two subjects with two visits, one on either side of 50 years at its second."""
    for visit in (1, 2):
        for number in (200077, 200078):
            path = tmp_path / "edfs" / f"shhs{visit}" / f"shhs{visit}-{number}.edf"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_night(path, seed=number + visit)
    (tmp_path / "shhs.csv").write_text(SHHS.replace("46,no", "51,no"))
    return tmp_path


def test_from_a_harmonised_table_to_labels(visits: Path, capsys) -> None:
    folder = visits / "store"
    asked = (visits / "edfs", folder, "--participants", visits / "shhs.csv")
    assert preprocess(capsys, *asked)[0] == 0
    store = ClipStore(folder)
    assert sorted(store.subjects) == ["200077", "200078"]
    ages = {entry.id: entry.age for entry in store.recordings}
    assert ages == {"shhs1-200077": 41, "shhs2-200077": 51, "shhs1-200078": 54, "shhs2-200078": 59}
    codes, _ = assign_subjects(store.subjects, Split())
    columns = store_columns(store, codes)
    for subject in range(2):
        assert len(set(columns["split"][columns["subject"] == subject])) == 1, "both visits stand on one side"
        assert len(set(columns["recording"][columns["subject"] == subject])) == 2
    labels = labels_of(StoreFacts(store), "age", np.arange(len(store)))
    by_night = {store.recordings[r].id: set(labels[store.recording == r].tolist()) for r in range(4)}
    assert by_night == {"shhs1-200077": {2}, "shhs2-200077": {3}, "shhs1-200078": {3}, "shhs2-200078": {3}}
    # Another table changes what is known, and nothing else; the same table changes nothing.
    before = {p.name: p.stat().st_mtime_ns for p in (folder / "recordings").iterdir()}
    assert preprocess(capsys, *asked)[0] == 0
    assert {p.name: p.stat().st_mtime_ns for p in (folder / "recordings").iterdir()} == before
    (visits / "shhs.csv").write_text("recording,subject,age\n" + "".join(f"{r},S,30\n" for r in ages))
    assert preprocess(capsys, *asked)[0] == 0
    assert ClipStore(folder).subjects == ["S"]
    assert "visit" not in json.loads((folder / "recordings" / "shhs1-200077.json").read_text())


def test_a_visit_without_a_row_takes_no_age_from_the_other(visits: Path, capsys) -> None:
    (visits / "shhs.csv").write_text(SHHS.replace("200077,2,46,no,male\n", ""))
    assert preprocess(capsys, visits / "edfs", visits / "store", "--participants", visits / "shhs.csv")[0] == 0
    store = ClipStore(visits / "store")
    assert {e.id: e.age for e in store.recordings}["shhs2-200077"] is None
    labels = labels_of(StoreFacts(store), "age", np.arange(len(store)))
    assert set(labels[[store.recordings[r].id == "shhs2-200077" for r in store.recording]]) == {-1}


def test_an_untold_visit_stops_preprocess_before_any_work(visits: Path, capsys) -> None:
    (visits / "edfs" / "shhs1" / "shhs1-200077.edf").rename(visits / "edfs" / "200077.edf")
    for more in ((visits / "store",), ("--inspect",)):
        assert preprocess(capsys, visits / "edfs", *more, "--participants", visits / "shhs.csv")[0] == 1
    assert not (visits / "store").exists()


def test_an_index_of_an_earlier_version_has_the_subjects_ages(visits: Path, capsys) -> None:
    assert preprocess(capsys, visits / "edfs", visits / "store", "--participants", visits / "shhs.csv")[0] == 0
    (index,) = (visits / "store").glob("index-*")
    assert people_of(ClipStore(visits / "store"))["recording_ages"] == (41, 54, 51, 59)
    texts = index / "recordings.json"
    rows = json.loads(texts.read_text())
    texts.write_text(json.dumps([{k: v for k, v in row.items() if k != "age"} for row in rows]))
    (sums,) = (p for p in index.iterdir() if p.suffix == ".json" and '"sha256": "' in p.read_text() and p != texts)
    content = json.loads(sums.read_text())
    content[texts.name] = {"n_bytes": texts.stat().st_size, "sha256": hashlib.sha256(texts.read_bytes()).hexdigest()}
    sums.write_text(json.dumps(content))
    assert people_of(ClipStore(visits / "store", verify=True))["recording_ages"] == (41, 54, 41, 54)


def test_embeddings_keep_the_ages_of_recordings(tmp_path: Path) -> None:
    x = np.ones((6, 3, 4), np.float32) / 2
    columns = {
        **columns_of([0, 0, 0, 0, 1, 1], [0, 0, 0, 0, 2, 2]),
        "recording": np.array([0, 0, 1, 1, 2, 2], np.int32),
    }
    names = ("a", "b", "c")
    ages = (None, 49.0, 60.0)
    path = write_folder(tmp_path / "e", x, columns, recordings=names, recording_ages=ages)
    found = Embeddings(path)
    assert found.description.recording_ages == ages
    assert labels_of(found, "age", np.arange(6)).tolist() == [-1, -1, 2, 2, 3, 3]
    assert HeldOut.of(found, np.arange(6), np.zeros(6, np.int8)).recording_ages == ages
    assert _recording_ages(found) == ages
    older = Embeddings(write_folder(tmp_path / "older", x, columns, recordings=names, ages=(40.0, 20.0)))
    assert labels_of(older, "age", np.arange(6)).tolist() == [2, 2, 2, 2, 1, 1]
    assert _recording_ages(older) == (40.0, 40.0, 20.0)
    with pytest.raises(ValueError, match="3 recordings have 2 ages"):
        write_folder(tmp_path / "wrong", x, columns, recordings=names, recording_ages=(1.0, 2.0))
    assert description_of(2).recording_ages == ()
