"""Preprocess: cohorts with every flaw, runs that are killed, repeated and changed."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from nights import DATA, LEADS, Lead, contents, preprocess, state, write_night

import sleepfm_fast.night
from sleepfm_fast.clips import ClipStore, ClipStoreError
from sleepfm_fast.preprocess import cli

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    """Two subjects with two nights each and a table."""
    folder = tmp_path / "cohort"
    folder.mkdir()
    write_night(folder / "a1.edf", seed=1)
    write_night(folder / "a2.edf", seed=2, leads=LEADS[:4], stages="-23?")
    write_night(folder / "b1.edf", seed=3, events=[(35, 20, "Obstructive Apnea")])
    write_night(folder / "b2.bdf", seed=4, bdf=True, stages="W-44")
    (folder / "participants.csv").write_text(
        "Recording,Subject ID,Age,Gender\na1.edf,A,61.5,female\na2,A,61.5,F\nb1.edf,B,,M\nb2,B,47,male\n"
    )
    return folder


def run(*arguments: object, check: bool = True) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sleepfm_fast.preprocess", *map(str, arguments)],
        cwd=REPOSITORY, capture_output=True, text=True, check=check, timeout=300,
    )  # fmt: skip


@pytest.mark.skipif(not (DATA / "osas2002.edf").is_file(), reason=f"the real recording is missing: {DATA}")
def test_a_real_polysomnography(tmp_path: Path) -> None:
    done = run(DATA / "osas2002.edf", tmp_path / "store", "--labels", DATA / "osas2002-stages.csv")
    result = json.loads(done.stdout.splitlines()[-1])
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
    # a2 has no respiration and no oximetry: mask bits, not a dropped night
    assert store.modality_present().tolist() == [[True] * 3, [False, True, True], [True] * 3, [True] * 3]
    assert {store.subject(i) for i in range(len(store))} == {"A", "B"}


def test_events_scored_makes_their_absence_known(cohort: Path, tmp_path: Path, capsys) -> None:
    _, result = preprocess(capsys, cohort, tmp_path / "store", "--events-scored")
    assert result["sdb"] == {"event": 1, "none": 15, "unknown": 0}


def test_processes_and_threads_give_the_same_bytes(cohort: Path, tmp_path: Path, capsys) -> None:
    preprocess(capsys, cohort, tmp_path / "threads")
    done = run(cohort, tmp_path / "processes", "--workers", 2, "--backend", "loky")
    assert json.loads(done.stdout.splitlines()[-1])["nights"] == 4
    assert contents(tmp_path / "threads") == contents(tmp_path / "processes")


def test_a_second_run_redoes_nothing_and_adds_what_is_new(cohort: Path, tmp_path: Path, capsys) -> None:
    store = tmp_path / "store"
    preprocess(capsys, cohort, store)
    before, bytes_before = state(store), contents(store)
    status, result = preprocess(capsys, cohort, store)
    assert (status, result["added"], result["kept"]) == (0, 0, 4)
    assert state(store) == before
    assert contents(store) == bytes_before

    write_night(cohort / "c1.edf", seed=9)
    status, result = preprocess(capsys, cohort, store)
    assert (status, result["added"], result["kept"], result["nights"]) == (0, 1, 4, 5)
    after = state(store)
    assert {name: after[name] for name in before} == before
    assert len(ClipStore(store, verify=True)) == 20
    assert len(list(store.glob("index-*"))) == 1

    (cohort / "a1.edf").unlink()
    status, result = preprocess(capsys, cohort, store)
    assert (status, result["nights"]) == (0, 5)
    assert "a1" in [r.id for r in ClipStore(store).recordings]


def test_auto_is_resolved_once(cohort: Path, tmp_path: Path, capsys) -> None:
    store = tmp_path / "store"
    preprocess(capsys, cohort, store)
    montage = ClipStore(store).montage
    for i in range(8):
        write_night(cohort / f"n{i}.edf", leads=[Lead("C3-M2"), Lead("O1-M2")], seed=i)
    preprocess(capsys, cohort, store)
    assert ClipStore(store).montage == montage
    assert len(ClipStore(store).recordings) == 12


def test_a_changed_source_is_noticed(cohort: Path, tmp_path: Path, capsys) -> None:
    store = tmp_path / "store"
    preprocess(capsys, cohort, store)
    before = state(store)
    write_night(cohort / "b1.edf", seed=33)  # as long as it was: only its content and time differ
    os.utime(cohort / "b1.edf", ns=(1, 1))
    status, result = preprocess(capsys, cohort, store)
    assert status == 1
    assert "b1.edf has changed since it was ingested" in result["changed"][0]["reason"]
    assert "--overwrite" in result["changed"][0]["reason"]
    assert state(store) == before
    assert len(ClipStore(store, verify=True)) == 16

    status, result = preprocess(capsys, cohort, store, "--overwrite")
    assert (status, result["added"], result["kept"]) == (0, 1, 3)
    wanted = write_night(tmp_path / "again.edf", seed=33)
    opened = ClipStore(store, verify=True)
    slot = [c["labels"] for c in opened.record(2)["channels"]].index(["C3-M2"])
    np.testing.assert_array_equal(opened.run(2, slot, 0), wanted[0])
    assert {k: v for k, v in state(store).items() if "b1" not in k} == {
        k: v for k, v in before.items() if "b1" not in k
    }


def test_a_touched_source_is_still_the_same(cohort: Path, tmp_path: Path, capsys) -> None:
    store = tmp_path / "store"
    preprocess(capsys, cohort, store)
    os.utime(cohort / "b1.edf")
    status, result = preprocess(capsys, cohort, store)
    assert (status, result["kept"], result["changed"]) == (0, 4, [])


def test_a_moved_cohort_is_not_ingested_twice(cohort: Path, tmp_path: Path, capsys) -> None:
    store = tmp_path / "store"
    preprocess(capsys, cohort, store)
    moved = cohort.rename(tmp_path / "elsewhere")
    status, result = preprocess(capsys, moved, store)
    assert (status, result["added"], result["kept"], result["nights"]) == (0, 0, 4, 4)
    assert ClipStore(store).recordings[0].source == str(moved / "a1.edf")


def test_changed_and_new_scorings_are_noticed(cohort: Path, tmp_path: Path, capsys) -> None:
    store, labels = tmp_path / "store", tmp_path / "labels"
    labels.mkdir()
    (labels / "a1.csv").write_text("onset,duration,description\n0,30,N3\n30,30,N3\n")
    status, result = preprocess(capsys, cohort, store, "--labels", labels)
    assert status == 0
    assert ClipStore(store).stage[:4].tolist() == [3, 3, -1, -1]
    assert any("no scoring for this recording was found" in issue for issue in result["problems"]["a2"])
    # leaving --labels out does not withdraw it
    assert preprocess(capsys, cohort, store)[1]["kept"] == 4
    (labels / "a1.csv").write_text("onset,duration,description\n0,30,N3\n30,30,N2\n60,30,N2\n")
    status, result = preprocess(capsys, cohort, store, "--labels", labels)
    assert (status, len(result["changed"])) == (1, 1)
    assert "a1.csv is not what was ingested" in result["changed"][0]["reason"]
    (labels / "b1.csv").write_text("onset,duration,description\n0,30,R\n")
    status, result = preprocess(capsys, cohort, store, "--labels", labels)
    assert len(result["changed"]) == 2
    status, result = preprocess(capsys, cohort, store, "--labels", labels, "--overwrite")
    assert (status, result["added"]) == (0, 2)
    assert ClipStore(store).stage.reshape(4, 4)[[0, 2]].tolist() == [[3, 2, 2, -1], [4, -1, -1, -1]]


def test_another_configuration_is_refused(cohort: Path, tmp_path: Path, capsys) -> None:
    store = tmp_path / "store"
    preprocess(capsys, cohort, store, "--montage", "aasm")
    before = contents(store)
    assert preprocess(capsys, cohort, store, "--montage", "paper")[0] == 1
    assert preprocess(capsys, cohort, store, "--events-scored")[0] == 1
    assert contents(store) == before
    assert preprocess(capsys, cohort, store)[0] == 0  # auto takes what the store has
    assert contents(store) == before
    status, result = preprocess(capsys, cohort, store, "--montage", "paper", "--overwrite")
    assert (status, result["added"]) == (0, 4)
    assert ClipStore(store, verify=True).montage.name == "paper"
    # recordings that are not given cannot be made again
    assert preprocess(capsys, cohort / "a1.edf", store, "--montage", "aasm", "--overwrite")[0] == 1
    assert ClipStore(store, verify=True).montage.name == "paper"


def test_an_interrupted_overwrite_cannot_be_read_and_goes_on(cohort: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    store = tmp_path / "store"
    preprocess(capsys, cohort, store, "--montage", "aasm")
    done = []
    original = sleepfm_fast.night.write_recording

    def stop_at_the_third(*arguments):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(original(*arguments))
        return done[-1]

    monkeypatch.setattr(sleepfm_fast.night, "write_recording", stop_at_the_third)
    assert preprocess(capsys, cohort, store, "--montage", "paper", "--overwrite") == (130, {})
    monkeypatch.undo()
    with pytest.raises(ClipStoreError, match="is unfinished"):
        ClipStore(store)
    status, result = preprocess(capsys, cohort, store, "--montage", "paper")
    assert (status, result["added"], result["kept"]) == (0, 2, 2)
    preprocess(capsys, cohort, tmp_path / "fresh", "--montage", "paper")
    assert contents(store) == contents(tmp_path / "fresh")


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
    original = sleepfm_fast.night.clip_labels

    def fail_on_b1(scoring, *arguments, **options):
        if "b1" in scoring.source:
            raise ZeroDivisionError("division by zero")
        return original(scoring, *arguments, **options)

    monkeypatch.setattr(sleepfm_fast.night, "clip_labels", fail_on_b1)
    status, result = preprocess(capsys, cohort, tmp_path / "store")
    assert (status, result["nights"]) == (1, 3)
    assert (
        "b1.edf could not be ingested: ZeroDivisionError: division by zero (night.py" in result["failed"][0]["reason"]
    )


def test_a_worker_that_dies_costs_its_night_only(cohort: Path, tmp_path: Path) -> None:
    # A worker killed by the system, as for want of memory: the run ends with a sentence and a store.
    script = f"""
import os, sys
import sleepfm_fast.night as night, sleepfm_fast.preprocess as preprocess
original = night.process_night
def process(path, *rest):
    if path.name == "b2.bdf":
        import time
        time.sleep(3)
        os.kill(os.getpid(), 9)
    return original(path, *rest)
preprocess.process_night = process
sys.exit(preprocess.cli([{str(cohort)!r}, {str(tmp_path / "store")!r}, "--workers", "2"]))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert "b2.bdf was not finished: a worker process died" in result["failed"][-1]["reason"]
    assert len(ClipStore(tmp_path / "store", verify=True).recordings) == result["nights"] >= 1


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
    assert ids == ["a1", "a2", "b1", "b2", "linked", "medilog", "upper"]
    assert result["nights"] == 7


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
    assert preprocess(capsys, "--inspect")[0] == 2
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


def test_two_at_once_are_refused(cohort: Path, tmp_path: Path, capsys) -> None:
    store = tmp_path / "store"
    preprocess(capsys, cohort, store)
    with (store / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert preprocess(capsys, cohort, store)[0] == 1
    assert preprocess(capsys, cohort, store)[0] == 0


def test_help_does_not_import_torch() -> None:
    script = (
        "import sys; from sleepfm_fast.preprocess import cli; s = cli(['--help']); print(s, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 False"
    assert "--events-scored" in done.stdout


@pytest.mark.slow
def test_kill_9_loses_and_repeats_nothing(tmp_path: Path) -> None:
    folder, store = tmp_path / "nights", tmp_path / "store"
    folder.mkdir()
    n_nights = 80
    for i in range(n_nights):
        write_night(folder / f"n{i:02d}.edf", seed=i)
    process = subprocess.Popen(
        [sys.executable, "-m", "sleepfm_fast.preprocess", str(folder), str(store), "--workers", "2"],
        cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    while len(list((store / "recordings").glob("*.json"))) < 2:
        assert process.poll() is None
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    time.sleep(2)  # workers whose parent is gone finish what they hold
    with pytest.raises(ClipStoreError, match="is unfinished"):
        ClipStore(store)
    survivors = {name: s for name, s in state(store).items() if name.endswith(".json")}
    assert 2 <= len(survivors) < n_nights
    done = json.loads(run(folder, store, "--workers", 2).stdout.splitlines()[-1])
    assert (done["nights"], done["kept"]) == (n_nights, len(survivors))
    assert {name: state(store)[name] for name in survivors} == survivors
    run(folder, tmp_path / "uninterrupted", "--workers", 2)
    assert contents(store) == contents(tmp_path / "uninterrupted")
    ClipStore(store, verify=True)


@pytest.mark.slow
def test_memory_is_about_a_night(tmp_path: Path) -> None:
    leads = [Lead(name, 250) for name in ("C3", "C4", "M1", "M2", "E1-M2", "E2-M1", "F3-M2", "O1-M2", "ECG", "Chest")]
    write_night(tmp_path / "long.edf", seconds=4 * 3600, leads=leads, stages="W")
    size = (tmp_path / "long.edf").stat().st_size
    script = f"""
import resource, sys
from pathlib import Path
from sleepfm_fast.channels import MONTAGES
from sleepfm_fast.night import NightConfig, process_night
from sleepfm_fast.participants import Participants
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
