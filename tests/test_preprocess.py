"""Preprocess: cohorts with every flaw, runs that are killed, repeated and changed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from called import last_json
from nights import DATA, Lead, contents, preprocess, run_preprocess, state, write_cohort, write_night

import sleepfm_fast.cohorts.night
from sleepfm_fast.clips import ClipStore, ClipStoreError
from sleepfm_fast.cohorts.manifest import read_manifest
from sleepfm_fast.edf import read_recording
from sleepfm_fast.errors import UsageError
from sleepfm_fast.preprocess import Config, cli, main

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    return write_cohort(tmp_path / "cohort")


@pytest.mark.skipif(not (DATA / "osas2002.edf").is_file(), reason=f"the real recording is missing: {DATA}")
def test_a_real_polysomnography(tmp_path: Path) -> None:
    done = run_preprocess(DATA / "osas2002.edf", tmp_path / "store", "--labels", DATA / "osas2002-stages.csv")
    result = last_json(done.stdout)
    assert (result["nights"], result["clips"], result["failed"]) == (1, 40, [])
    assert result["stages"] == {"W": 0, "N1": 0, "N2": 14, "N3": 12, "R": 14, "none": 0}
    assert "40 clips" in done.stderr
    store = ClipStore(tmp_path / "store", verify=True)
    assert store.modality_present().tolist() == [[True, True, True]]
    assert store.onset_s.tolist() == list(range(0, 1200, 30))
    import pyedflib

    reader = pyedflib.EdfReader(str(DATA / "osas2002.edf"))
    labels = reader.getSignalLabels()
    for slot, facts in enumerate(store.record(0)["channels"]):
        digital = reader.readSignal(labels.index(facts["labels"][0]), digital=True)
        np.testing.assert_array_equal(store.run(0, slot, 0), digital)
    reader.close()


def test_events_that_cannot_be_are_said_of_the_cohort(tmp_path: Path, capsys) -> None:
    (tmp_path / "nights").mkdir()
    write_night(tmp_path / "nights" / "a.edf", seconds=480, stages="W12R" * 4, events=[(60, 15_000, "Hypopnea")])
    assert cli([str(tmp_path / "nights"), str(tmp_path / "store"), "--workers", "1"]) == 0
    (said,) = (
        line for line in capsys.readouterr().err.splitlines() if line.startswith("notice: the scoring of 1 night")
    )
    assert "longer than any apnoea or hypopnoea lasts, the longest of 15000 s" in said


def test_a_cohort(cohort: Path, tmp_path: Path, capsys) -> None:
    status, result = preprocess(capsys, cohort, tmp_path / "store")
    assert status == 0
    assert (result["nights"], result["subjects"], result["clips"]) == (4, 2, 16)
    assert result["hours"] == pytest.approx(16 / 120)
    assert result["stages"] == {"W": 3, "N1": 2, "N2": 3, "N3": 3, "R": 2, "none": 3}
    assert result["sdb"] == {"event": 1, "none": 3, "unknown": 12}
    store = ClipStore(tmp_path / "store", verify=True)
    assert [r.id for r in store.recordings] == ["a1", "a2", "b1", "b2"]
    assert [r.subject for r in store.recordings] == ["A", "A", "B", "B"]
    assert store.participants == {"A": {"age": 61.5, "sex": "F"}, "B": {"age": 47.0, "sex": "M"}}
    assert store.stage.reshape(4, 4).tolist() == [[0, 1, 2, 4], [-1, 2, 3, -1], [0, 1, 2, 4], [0, -1, 3, 3]]
    assert store.sdb.reshape(4, 4).tolist() == [[-1] * 4, [-1] * 4, [0, 1, 0, 0], [-1] * 4]
    totals = json.loads((tmp_path / "store" / "store.json").read_text())["totals"]
    assert totals["channels_missing"] == (~store.channels.present).sum() > 0
    # a2 has no respiration and no oximetry: mask bits, not a dropped night
    assert store.modality_present().tolist() == [[True] * 3, [False, True, True], [True] * 3, [True] * 3]
    assert {store.subject(i) for i in range(len(store))} == {"A", "B"}


def test_events_scored_makes_their_absence_known(cohort: Path, tmp_path: Path, capsys) -> None:
    _, result = preprocess(capsys, cohort, tmp_path / "store", "--events-scored")
    assert result["sdb"] == {"event": 1, "none": 13, "unknown": 2}, "a2 is scored in its second and third clip only"


def notices(capsys, *arguments: object) -> tuple[list[str], dict]:
    capsys.readouterr()
    assert cli([*map(str, arguments), "--backend", "threading", "--workers", "1"]) == 0
    out, err = capsys.readouterr()
    said = [line for line in err.splitlines() if "no respiratory event" in line]
    return said, last_json(out)


def test_nights_with_labels_by_other_rules_are_made_again(cohort: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    with monkeypatch.context() as earlier:
        earlier.setattr("sleepfm_fast.scoring.labels.LABEL_RULES", 1)
        preprocess(capsys, cohort, tmp_path / "store")
    status, result = preprocess(capsys, cohort, tmp_path / "store")
    assert (status, result["added"], result["kept"]) == (0, 4, 0)
    _, result = preprocess(capsys, cohort, tmp_path / "store")
    assert (result["added"], result["kept"]) == (0, 4)


def test_nights_without_an_event_are_said_at_every_run(cohort: Path, tmp_path: Path, capsys) -> None:
    write_night(cohort / "unscored.edf", stages="", seed=9)
    said, result = notices(capsys, cohort, tmp_path / "store")
    assert len(said) == 1
    assert said[0].startswith("notice: 3 of 4 scored nights have no respiratory event; they are taken as not scored")
    assert "--events-scored" in said[0]
    assert (result["nights_without_events"], result["nights_scored"]) == (3, 4)
    again, result = notices(capsys, cohort, tmp_path / "store")
    assert (again, result["kept"]) == (said, 5)
    none, result = notices(capsys, cohort, tmp_path / "store", "--events-scored", "--overwrite")
    assert (none, result["nights_without_events"], result["nights_scored"]) == ([], 0, 4)


def test_nobody_scored_events_in_a_night_without_scoring(cohort: Path, tmp_path: Path, capsys) -> None:
    write_night(cohort / "unscored.edf", stages="", seed=9)
    write_night(cohort / "lights.edf", stages="", seed=9, events=[(10, 0, "Lights off")])
    _, result = preprocess(capsys, cohort, tmp_path / "store", "--events-scored")
    assert result["sdb"] == {"event": 1, "none": 13, "unknown": 10}


def test_a_scoring_that_is_named_otherwise_is_named(tmp_path: Path, capsys) -> None:
    (tmp_path / "nights").mkdir()
    write_night(tmp_path / "nights" / "night07.edf", stages="")
    (tmp_path / "nights" / "night07.edf").with_name("p-7 scored.csv").write_text("onset,duration,stage\n0,30,W\n")
    _, result = preprocess(capsys, tmp_path / "nights", tmp_path / "store")
    assert result["nights_scored"] == 0
    (described,) = (tmp_path / "store" / "recordings").glob("*.json")
    issues = json.loads(described.read_text())["issues"]
    assert any("p-7 scored.csv may be its scoring" in issue and "night07.csv" in issue for issue in issues)


def test_a_night_that_is_there_twice_is_said_at_every_run(tmp_path: Path, capsys) -> None:
    nights = tmp_path / "nights"
    nights.mkdir()
    for i in range(2):
        write_night(nights / f"s{i}.edf", seed=i)

    def said(*options: str) -> list[str]:
        capsys.readouterr()
        cli([str(nights), str(tmp_path / "store"), "--backend", "threading", "--workers", "1", *options])
        return [line for line in capsys.readouterr().err.splitlines() if "more than once" in line]

    assert said() == []
    (nights / "copy of s1.edf").write_bytes((nights / "s1.edf").read_bytes())
    (notice,) = said()
    assert notice.startswith("notice: 1 night is in the store more than once, with the same samples (such as ")
    assert "of 1 of them the subjects differ, so that one person may be in both training and test" in notice
    assert said() == [notice], "the night was not ingested again, and the notice is said again"
    (nights / "participants.csv").write_text("recording,subject\ns0.edf,s0\ns1.edf,s1\ncopy of s1.edf,s1\n")
    (notice,) = said()
    assert "subjects differ" not in notice
    (tmp_path / "o.json").write_text('{"copy of*": "exclude"}')
    assert said("--overrides", str(tmp_path / "o.json"), "--overwrite") == []


def test_overrides_that_leave_out_every_recording_are_named(tmp_path: Path, capsys) -> None:
    write_night(tmp_path / "n1.edf")
    (tmp_path / "o.json").write_text('{"*": "exclude"}')
    arguments = [str(tmp_path), str(tmp_path / "store"), "--overrides", str(tmp_path / "o.json"), "--workers", "1"]
    assert cli(arguments) == 1
    assert "error: --overrides leaves out all of 1 recording, so there is none to choose" in capsys.readouterr().err


def test_hidden_recordings_are_passed_over_with_a_word(tmp_path: Path, capsys) -> None:
    for name in ("n1.edf", ".n2.edf", "..edf", "._n1.edf", ".n3.csv"):
        write_night(tmp_path / name)
    capsys.readouterr()
    assert cli([str(tmp_path), str(tmp_path / "store"), "--workers", "1", "--backend", "threading"]) == 0
    printed = capsys.readouterr()
    assert last_json(printed.out)["nights"] == 1
    (notice,) = [line for line in printed.err.splitlines() if "with a dot" in line]
    assert notice.startswith(f"notice: 2 files in {tmp_path} are passed over, as the names begin with a dot: ")
    assert cli([str(tmp_path / ".n2.edf"), str(tmp_path / "named"), "--workers", "1", "--backend", "threading"]) == 0


def test_processes_and_threads_give_the_same_bytes(cohort: Path, tmp_path: Path, capsys) -> None:
    preprocess(capsys, cohort, tmp_path / "threads")
    done = run_preprocess(cohort, tmp_path / "processes", "--workers", 2, "--backend", "loky")
    assert last_json(done.stdout)["nights"] == 4
    assert contents(tmp_path / "threads") == contents(tmp_path / "processes")


def test_one_bad_night_does_not_stop_the_others(cohort: Path, tmp_path: Path, capsys) -> None:
    (cohort / "broken.edf").write_bytes(b"0       " + bytes(100))
    write_night(cohort / "short.edf", seconds=20, stages="")
    write_night(cohort / "other.edf", leads=[Lead("Accelerometer")])
    (cohort / "empty.edf").touch()
    status, result = preprocess(capsys, cohort, tmp_path / "store")
    assert (status, result["nights"]) == (1, 4)
    reasons = {Path(f["path"]).name: f["reason"] for f in result["failed"]}
    assert set(reasons) == {"broken.edf", "short.edf", "other.edf", "empty.edf"}
    assert "no whole clip of 30 s fits; it holds 20 s" in reasons["short.edf"]
    assert "Accelerometer" in reasons["other.edf"]
    noted = json.loads((tmp_path / "store" / "failures" / "broken.json").read_text())
    assert noted["sentence"] == reasons["broken.edf"]
    assert len(ClipStore(tmp_path / "store", verify=True)) == 16
    # a failed night is tried again, and its note goes when it works
    write_night(cohort / "broken.edf", seed=8)
    status, result = preprocess(capsys, cohort, tmp_path / "store")
    assert (status, result["added"], len(result["failed"])) == (1, 1, 3)
    assert not (tmp_path / "store" / "failures" / "broken.json").exists()


def test_nothing_to_ingest_is_a_failure(tmp_path: Path, capsys) -> None:
    write_night(tmp_path / "short.edf", seconds=20, stages="")
    status, result = preprocess(capsys, tmp_path / "short.edf", tmp_path / "store")
    assert (status, result["nights"], result["clips"]) == (1, 0, 0)
    with pytest.raises(ClipStoreError, match="could not ingest any"):
        ClipStore(tmp_path / "store")


def test_an_unexpected_exception_is_a_sentence(cohort: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    original = sleepfm_fast.cohorts.night.clip_labels

    def fail_on_b1(scoring, *arguments, **options):
        if "b1" in scoring.source:
            raise ZeroDivisionError("division by zero")
        return original(scoring, *arguments, **options)

    monkeypatch.setattr(sleepfm_fast.cohorts.night, "clip_labels", fail_on_b1)
    status, result = preprocess(capsys, cohort, tmp_path / "store")
    assert (status, result["nights"]) == (1, 3)
    assert (
        "b1.edf could not be ingested: ZeroDivisionError: division by zero (night.py" in result["failed"][0]["reason"]
    )


def test_same_names_in_two_folders(tmp_path: Path, capsys) -> None:
    for i, site in enumerate(("one", "two", "three")):
        (tmp_path / "in" / site).mkdir(parents=True)
        write_night(tmp_path / "in" / site / ("N.edf" if i < 2 else "n.EDF"), seed=i)
    status, _ = preprocess(capsys, tmp_path / "in" / "one", tmp_path / "store")
    status, result = preprocess(capsys, tmp_path / "in", tmp_path / "store")
    assert (status, result["added"], result["nights"]) == (0, 2, 3)
    store = ClipStore(tmp_path / "store", verify=True)
    ids = [r.id for r in store.recordings]
    assert ids[0] == "N"
    assert len({i.casefold() for i in ids}) == 3
    assert [r.subject for r in store.recordings].count("N") == 2
    before = state(tmp_path / "store")
    preprocess(capsys, tmp_path / "in", tmp_path / "store")
    assert state(tmp_path / "store") == before


def test_awkward_file_names(tmp_path: Path, capsys) -> None:
    folder = tmp_path / "Nächte 2021"
    folder.mkdir()
    write_night(tmp_path / "x.edf")
    (tmp_path / "x.edf").rename(folder / "Müller, Jörg (1).edf")
    status, _ = preprocess(capsys, folder, tmp_path / "store")
    assert status == 0
    entry = ClipStore(tmp_path / "store", verify=True).recordings[0]
    assert entry.subject == "Müller, Jörg (1)"
    assert entry.id.isascii()
    assert " " not in entry.id


def test_a_night_whose_name_is_not_utf8_has_failed_and_the_others_are_ingested(
    cohort: Path, tmp_path: Path, capsys
) -> None:
    os.rename(cohort / "a1.edf", os.fsencode(cohort) + b"/N\xe4chte.edf")  # noqa: PTH104 - bytes
    escaped = f"{cohort}/N\\xe4chte.edf"
    status, result = preprocess(capsys, cohort, tmp_path / "store")
    assert status == 1
    assert [r.id for r in ClipStore(tmp_path / "store", verify=True).recordings] == ["a2", "b1", "b2"]
    (reason,) = (night["reason"] for night in result["failed"])
    assert reason.startswith(f"the name of {escaped} is not valid UTF-8")
    rows = {e.path: e for e in read_manifest(tmp_path / "store")}
    assert rows[escaped].status == "failed"
    assert rows[escaped].reason == reason
    # Again: the same; renamed: whole.
    assert preprocess(capsys, cohort, tmp_path / "store")[0] == 1
    os.rename(os.fsencode(cohort) + b"/N\xe4chte.edf", cohort / "Nächte.edf")  # noqa: PTH104 - bytes
    status, result = preprocess(capsys, cohort, tmp_path / "store")
    assert status == 0
    assert result["nights"] == 4


def test_a_name_that_is_not_utf8_is_a_finding(cohort: Path, tmp_path: Path, capsys) -> None:
    os.rename(cohort / "a1.edf", os.fsencode(cohort) + b"/N\xe4chte.edf")  # noqa: PTH104 - bytes
    assert cli([str(cohort), "--inspect", "--json", str(tmp_path / "report.json")]) == 1
    assert "N\\xe4chte.edf is not valid UTF-8" in capsys.readouterr().out
    assert "is not valid UTF-8" in (tmp_path / "report.json").read_text()


def test_folders_are_searched_to_the_bottom(cohort: Path, tmp_path: Path, capsys) -> None:
    deep = cohort / "x" / "y"
    deep.mkdir(parents=True)
    write_night(deep / "upper.EDF", seed=5)
    write_night(deep / "medilog.rec", seed=6)
    write_night(cohort / "._a1.edf", seed=7)
    write_night(deep / "upper-Hypnogram.edf", stages="WWWW", leads=[Lead("C3-M2")])
    (deep / "loop").symlink_to(cohort)
    (tmp_path / "linked.edf").write_bytes((cohort / "a1.edf").read_bytes())
    (deep / "link.edf").symlink_to(tmp_path / "linked.edf")
    status, result = preprocess(capsys, cohort, tmp_path / "store")
    assert status == 0
    ids = [r.id for r in ClipStore(tmp_path / "store").recordings]
    assert ids == ["a1", "a2", "b1", "b2", "link", "medilog", "upper"]
    assert result["nights"] == 7


def test_a_link_to_a_file_keeps_its_own_name(cohort: Path, tmp_path: Path, capsys) -> None:
    objects = cohort / ".git" / "annex"
    objects.mkdir(parents=True)
    (cohort / "b1.edf").rename(objects / "MD5E-s1--0f.edf")
    (cohort / "b1.edf").symlink_to(objects / "MD5E-s1--0f.edf")
    (objects / "MD5E-s2--1e.csv").write_text("onset,duration,stage\n0,120,N3\n")
    (cohort / "b1.csv").symlink_to(objects / "MD5E-s2--1e.csv")
    status, result = preprocess(capsys, cohort, tmp_path / "store")
    assert (status, result["nights"], result["subjects"]) == (0, 4, 2)
    store = ClipStore(tmp_path / "store")
    assert [r.id for r in store.recordings] == ["a1", "a2", "b1", "b2"]
    assert store.recordings[2].subject == "B"
    assert np.asarray(store.stage)[np.asarray(store.recording) == 2].tolist() == [3] * 4
    # Two names of one file are one recording; a store that knew it by its target keeps it.
    (cohort / "c.edf").symlink_to(cohort / "a1.edf")
    before = state(tmp_path / "store")
    status, result = preprocess(capsys, cohort, tmp_path / "store")
    assert (status, result["nights"], result["kept"]) == (0, 4, 4)
    record = tmp_path / "store" / "recordings" / "b1.json"
    facts = json.loads(record.read_text())
    facts["source"]["path"] = str(objects / "MD5E-s1--0f.edf")
    record.write_text(json.dumps(facts))
    status, result = preprocess(capsys, cohort, tmp_path / "store")
    assert (status, result["nights"], result["kept"]) == (0, 4, 4)
    assert json.loads(record.read_text())["source"]["path"] == str(cohort / "b1.edf")
    assert {k: v for k, v in state(tmp_path / "store").items() if k != "b1.json"} == {
        k: v for k, v in before.items() if k != "b1.json"
    }


def test_a_link_to_nothing_is_a_night_that_failed(cohort: Path, tmp_path: Path, capsys) -> None:
    (cohort / "gone.edf").symlink_to("annex/SHA256-gone.edf")
    (cohort / "round.edf").symlink_to("round.edf")
    status, result = preprocess(capsys, cohort, tmp_path / "store")
    assert (status, result["nights"], len(result["failed"])) == (1, 4, 2)
    assert "gone.edf: the file cannot be read (No such file or directory)" in result["failed"][0]["reason"]
    (cohort / "annex").mkdir()
    write_night(cohort / "annex" / "SHA256-gone.edf", seed=9)
    (cohort / "round.edf").unlink()
    status, result = preprocess(capsys, cohort, tmp_path / "store")
    assert (status, result["nights"]) == (0, 5)


@pytest.mark.skipif(not (DATA / "SC4001EC-Hypnogram.edf").is_file(), reason=f"the real hypnogram is missing: {DATA}")
def test_files_of_annotations_only_are_not_recordings(cohort: Path, tmp_path: Path, capsys) -> None:
    content = (DATA / "SC4001EC-Hypnogram.edf").read_bytes()
    (cohort / "SC4001EC-Hypnogram.edf").write_bytes(content)
    (cohort / "scored.edf").write_bytes(content)
    status, result = preprocess(capsys, cohort, tmp_path / "store")
    assert (status, result["nights"]) == (0, 4)
    assert [Path(p).name for p in result["annotations_only"]] == ["scored.edf"]
    # but one that is named is not passed over in silence
    status, result = preprocess(capsys, cohort / "scored.edf", tmp_path / "store")
    assert status == 1
    assert "holds no signals" in result["failed"][0]["reason"]


def test_participants(cohort: Path, tmp_path: Path, capsys) -> None:
    table = tmp_path / "table.tsv"
    table.write_text("participant_id\tfile\tage\tsex\nP1\tcohort/a1.edf\t50\tm\nP9\tzz.edf\tabc\t\n")
    status, result = preprocess(capsys, cohort, tmp_path / "store", "--participants", table)
    assert status == 0
    assert result["participants_unknown"] == ["zz.edf"]
    store = ClipStore(tmp_path / "store")
    assert store.subjects == ["P1", "a2", "b1", "b2"]
    assert store.participants["P1"] == {"age": 50.0, "sex": "M"}
    assert store.participants["a2"] == {"age": None, "sex": None}
    # a corrected table is taken over without redoing a night
    before = state(tmp_path / "store")
    status, result = preprocess(capsys, cohort, tmp_path / "store")
    assert (status, result["kept"], result["subjects"]) == (0, 4, 2)
    assert ClipStore(tmp_path / "store", verify=True).subjects == ["A", "B"]
    after = state(tmp_path / "store")
    assert {k: v for k, v in after.items() if k.endswith(".bin")} == {
        k: v for k, v in before.items() if k.endswith(".bin")
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ("age,sex\n1,m\n", "a column named recording"),
        ("recording,age\na1.edf,1\nA1.edf,2\n", "in rows 2 and 3"),
    ],
)
def test_a_useless_participants_table_is_refused(
    cohort: Path, tmp_path: Path, capsys, content: str, message: str
) -> None:
    table = tmp_path / "t.csv"
    table.write_text(content)
    assert cli([str(cohort), str(tmp_path / "store"), "--participants", str(table)]) == 1
    assert message in capsys.readouterr().err


def test_wrong_usage(cohort: Path, tmp_path: Path, capsys) -> None:
    assert preprocess(capsys, cohort)[0] == 2
    assert preprocess(capsys)[0] == 2
    assert preprocess(capsys, cohort / "a1.edf", cohort / "a2.edf")[0] == 2
    assert cli([str(cohort / "a1.edf"), str(cohort / "a2.edf")]) == 2  # as of NIGHTS/*.edf
    assert "a2.edf is a file. Put the store's name behind the recordings, or --inspect" in capsys.readouterr().err
    assert preprocess(capsys, "--inspect")[0] == 2
    with pytest.raises(UsageError, match=r"a2\.edf is a file"):
        main(Config((cohort / "a1.edf", cohort / "a2.edf")))
    with pytest.raises(UsageError, match=r"--json .* has no effect without --inspect"):
        main(Config((cohort, tmp_path / "s"), json=tmp_path / "j"))
    assert preprocess(capsys, cohort, tmp_path / "s", "--montage", "none-such")[0] == 2
    assert preprocess(capsys, tmp_path / "nowhere", tmp_path / "s")[0] == 1
    assert preprocess(capsys, cohort, tmp_path / "s", "--labels", tmp_path / "nowhere")[0] == 1
    (tmp_path / "empty").mkdir()
    assert preprocess(capsys, tmp_path / "empty", tmp_path / "s")[0] == 1
    # one scoring cannot be that of four nights
    (tmp_path / "one.csv").write_text("onset,duration,description\n0,30,N3\n")
    assert preprocess(capsys, cohort, tmp_path / "s", "--labels", tmp_path / "one.csv")[0] == 1


def test_a_folder_with_other_things_is_not_written_to(cohort: Path, capsys) -> None:
    before = contents(cohort)
    assert preprocess(capsys, cohort / "a1.edf", cohort)[0] == 1
    assert contents(cohort) == before


def test_help_does_not_import_torch() -> None:
    script = (
        "import sys; from sleepfm_fast.preprocess import cli; s = cli(['--help']); print(s, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 False"
    assert "--events-scored" in done.stdout


@pytest.mark.slow
def test_memory_is_about_a_night(tmp_path: Path) -> None:
    leads = [Lead(name, 250) for name in ("C3", "C4", "M1", "M2", "E1-M2", "E2-M1", "F3-M2", "O1-M2", "ECG", "Chest")]
    write_night(tmp_path / "long.edf", seconds=4 * 3600, leads=leads, stages="W")
    size = (tmp_path / "long.edf").stat().st_size
    script = f"""
import resource, sys
from pathlib import Path
from sleepfm_fast.channels import MONTAGES
from sleepfm_fast.cohorts.night import NightConfig, process_night
from sleepfm_fast.cohorts.participants import Participants
def peak():
    return [int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("VmHWM")][0] * 1024
def ingest(path, name):
    config = NightConfig(Path({str(tmp_path)!r}), MONTAGES["aasm"], None, False, "x")
    row = process_night(path, name, Participants().of(path), config)
    assert row.failure is None, row.failure
ingest(Path({str(tmp_path / "small.edf")!r}), "small")
before = peak()
ingest(Path({str(tmp_path / "long.edf")!r}), "long")
print(peak() - before)
"""
    (tmp_path / "recordings").mkdir()
    write_night(tmp_path / "small.edf", leads=leads)
    done = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    # The night's integers once, and once more as mapped pages of the file, which the system may take back.
    print(f"peak {int(done.stdout) / size:.2f} times the file of {size / 1e6:.0f} MB")
    assert int(done.stdout) < 2.4 * size


def test_stages_and_events_in_files_of_their_own_are_joined(tmp_path: Path, capsys) -> None:
    nights = tmp_path / "nights"
    nights.mkdir()
    write_night(nights / "a.edf", stages="----")
    (nights / "a-stages.csv").write_text("onset,duration,stage\n0,30,W\n30,90,N2\n")
    (nights / "a-events.csv").write_text("start,end,event\n35,55,Hypopnea\n40,70,N3\n")
    write_night(nights / "b.edf", stages="----", events=[(95, 20, "Obstructive apnea")])
    (nights / "b.csv").write_text("onset,duration,stage\n0,30,W\n30,90,N3\n")
    status, _ = preprocess(capsys, nights, tmp_path / "store")
    assert status == 0
    store = ClipStore(tmp_path / "store")
    assert np.asarray(store.stage).tolist() == [0, 2, 2, 2, 0, 3, 3, 3], "the events' file adds events only"
    assert np.asarray(store.sdb).tolist() == [0, 1, 0, 0, 0, 0, 0, 1]
    record = json.loads((tmp_path / "store" / "recordings" / "a.json").read_text())
    assert [Path(facts["path"]).name for facts in record["scoring"]["also"]] == ["a-events.csv"]
    assert any("1 annotation of a-events.csv was joined" in issue for issue in record["issues"])
    status, result = preprocess(capsys, nights, tmp_path / "store")
    assert (status, result["kept"]) == (0, 2)
    (nights / "b-events.csv").write_text("start,end,event\n5,25,Hypopnea\n")
    status, result = preprocess(capsys, nights, tmp_path / "store")
    assert (status, result["kept"]) == (1, 1)
    assert "b-events.csv is a new scoring" in result["changed"][0]["reason"]
    (nights / "b-events.csv").unlink()
    (nights / "a-events.csv").write_text("start,end,event\n65,85,Hypopnea\n")
    status, result = preprocess(capsys, nights, tmp_path / "store", "--overwrite")
    assert (status, result["added"], result["kept"]) == (0, 1, 1)
    assert np.asarray(ClipStore(tmp_path / "store").sdb).tolist()[:4] == [0, 0, 1, 0]


def cut(path: Path, n_records: int) -> None:
    recording = read_recording(path)
    os.truncate(path, recording.header_bytes + n_records * recording.record_bytes)


def test_interrupted_copies_are_named_and_used_as_far_as_they_go(tmp_path: Path, capsys) -> None:
    (nights := tmp_path / "nights").mkdir()
    for name in ("whole", "cut", "empty"):
        write_night(nights / f"{name}.edf", stages="----")
        (nights / f"{name}.txt").write_text("W\nN1\nN2\nR\n")  # a list without times fills the whole recording
    cut(nights / "cut.edf", 70)
    cut(nights / "empty.edf", 0)
    status = cli([str(nights), str(tmp_path / "store"), "--workers", "1"])
    out, said = capsys.readouterr()
    result = last_json(out)
    assert (status, result["nights"]) == (1, 2)
    assert result["stages"] == {"W": 2, "N1": 2, "N2": 1, "N3": 0, "R": 1, "none": 0}
    assert result["incomplete"] == ["cut"]
    assert "notice: the file of 1 night is shorter than the header says, probably an incomplete copy: cut." in said
    assert "the last 50 s of 120 s are missing" in said
    assert "It is probably an incomplete copy" in result["failed"][0]["reason"]


def test_a_night_that_cannot_be_described_has_failed_and_is_not_lost_without_a_word(
    cohort: Path, tmp_path: Path, capsys
) -> None:
    content = bytearray((cohort / "a1.edf").read_bytes())
    n_signals = int(content[252:256])
    at = 256 + n_signals * (16 + 80 + 8)  # physical minimum and maximum of the first signal
    content[at : at + 8], content[at + 8 * n_signals : at + 8 * n_signals + 8] = b"-1E+306 ", b"1E+306  "
    (cohort / "c1.edf").write_bytes(content)
    _, result = preprocess(capsys, cohort, tmp_path / "store")
    assert [Path(night["path"]).name for night in result["failed"]] == ["c1.edf"]
    assert "cannot be kept in a store" in result["failed"][-1]["reason"]
    assert result["nights"] == result["added"]
    assert not list((tmp_path / "store" / "recordings").glob("c1*"))


def test_what_failed_and_no_longer_exists_is_no_failure(cohort: Path, tmp_path: Path, capsys) -> None:
    """As after a rename: the methods of a paper would count a night that was never left out."""
    store = tmp_path / "store"
    (cohort / "c.edf").write_bytes(b"<html>")
    (cohort / "link.edf").symlink_to(tmp_path / "not fetched.edf")
    assert preprocess(capsys, cohort, store)[0] == 1
    statuses = {Path(e.path).name: e.status for e in read_manifest(store)}
    assert (statuses["c.edf"], statuses["link.edf"]) == ("failed", "failed")
    (cohort / "c.edf").unlink()
    preprocess(capsys, cohort, store)
    rows = {Path(e.path).name: e for e in read_manifest(store)}
    assert (rows["c.edf"].status, rows["link.edf"].status) == ("gone", "failed"), "a link to nothing is a night"
    assert rows["c.edf"].reason.startswith("the file no longer exists; before: ")
    for name in ("link.edf", "c.edf"):
        (cohort / name).unlink(missing_ok=True)
    write_night(cohort / "c.edf", seed=8)
    assert preprocess(capsys, cohort, store)[0] == 0
    statuses = {Path(e.path).name: e.status for e in read_manifest(store)}
    assert (statuses["c.edf"], statuses["link.edf"]) == ("ingested", "gone")
