"""Preprocess again: what is kept, what is added, what has changed; runs that are killed."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from called import last_json
from foreign_claims import foreign_claim
from nights import LEADS, Lead, contents, preprocess, run_preprocess, state, write_cohort, write_night
from process_trees import marked, stop
from report_runs import start

import sleepfm_fast.cohorts.ingest
import sleepfm_fast.cohorts.night
import sleepfm_fast.storage.columns
import sleepfm_fast.store.clip_writer
from sleepfm_fast.channels import with_stand_ins
from sleepfm_fast.clips import ClipStore, ClipStoreError
from sleepfm_fast.cohorts.ingest import Request, settle_montage
from sleepfm_fast.preprocess import cli
from sleepfm_fast.storage.claims import Claim

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    return write_cohort(tmp_path / "cohort")


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


def test_a_cohort_without_scoring_is_told_what_to_do_and_many_changes_are_a_few_lines(tmp_path: Path, capsys) -> None:
    nights, labels, store = tmp_path / "nights", tmp_path / "labels", tmp_path / "store"
    nights.mkdir()
    labels.mkdir()
    for i in range(12):
        write_night(nights / f"n{i:02d}.edf", stages="----", seed=i)
        (labels / f"n{i:02d}.csv").write_text("onset,duration,description\n0,30,N3\n30,30,N3\n")
    command = [str(nights), str(store), "--workers", "1", "--backend", "threading"]
    assert cli(command) == 0
    assert "notice: no night has a sleep stage" in capsys.readouterr().err
    assert cli([*command, "--labels", str(labels)]) == 1
    said = capsys.readouterr().err
    assert said.count("changed: ") == 10
    assert "and 2 more have changed; --overwrite processes all of them again" in said
    assert "tries again what failed" not in said
    assert cli([*command, "--labels", str(labels), "--overwrite"]) == 0
    said = capsys.readouterr().err
    assert "N3 24" in said
    assert "no night has a sleep stage" not in said


def test_auto_is_resolved_once(cohort: Path, tmp_path: Path, capsys) -> None:
    store = tmp_path / "store"
    preprocess(capsys, cohort, store)
    montage = ClipStore(store).montage
    for i in range(8):
        write_night(cohort / f"n{i}.edf", leads=[Lead("C3-M2"), Lead("O1-M2")], seed=i)
    preprocess(capsys, cohort, store)
    assert ClipStore(store).montage == montage
    assert len(ClipStore(store).recordings) == 12


def test_a_second_cohort_takes_the_channels_of_a_store_or_a_run(cohort: Path, tmp_path: Path, capsys) -> None:
    """By itself it would leave out what few of its nights have, and take what the first has not."""
    store, second = tmp_path / "store", tmp_path / "second"
    second.mkdir()
    for i in range(3):
        leads = LEADS[:4] if i == 0 else [Lead("C3"), Lead("M2"), Lead("O1-M2")]
        write_night(second / f"n{i}.edf", leads=leads, seed=i)
    preprocess(capsys, cohort, store)
    montage = ClipStore(store).montage
    run = tmp_path / "run"
    start(run)
    record = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**record, "montage": montage.to_dict()}))
    preprocess(capsys, second, tmp_path / "auto")
    assert ClipStore(tmp_path / "auto").montage != montage
    for like in (store, run):
        made = tmp_path / f"like-{like.name}"
        assert preprocess(capsys, "--inspect", second, "--like", like)[1]["montage"]["ecg"] == ["ECG"]
        assert cli([str(second), str(made), "--like", str(like)]) == 0
        shown = capsys.readouterr()
        assert "ecg: ECG (1 of 3 nights)" in shown.err
        assert "notice: no night has Thermal Flow, SpO2, which --like asks for" in shown.err
        n_filled = last_json(shown.out)["nights_by_channel"]
        assert (n_filled["ECG"], n_filled["SpO2"]) == (1, 0)
        assert ClipStore(made).montage == with_stand_ins(montage)
        assert ClipStore(made).store["configuration"]["inputs"][0]["like"] == str(like)
        before = contents(made)
        for again in (["--like", like], []):  # and later runs need not say it
            assert preprocess(capsys, second, made, *again)[0] == 0
            assert contents(made) == before


def test_a_slot_of_like_takes_the_stand_ins_of_aasm(tmp_path: Path, capsys) -> None:
    """SHHS' EEG and MESA's EEG3 are both C4-M1; a candidate is named where the table knows none."""
    first, second = tmp_path / "first", tmp_path / "second"
    for folder, leads in (
        (first, (Lead("C4-M1"), Lead("F3-M2"), Lead("ECG"), Lead("Chest", 25))),
        (second, (Lead("EEG"), Lead("Pz"), Lead("Gurke"), Lead("Thor", 25))),
    ):
        folder.mkdir()
        write_night(folder / f"{folder.name}.edf", leads=leads)
    preprocess(capsys, first, tmp_path / "A")
    assert cli([str(second), str(tmp_path / "B"), "--like", str(tmp_path / "A")]) == 0
    shown = capsys.readouterr()
    by_channel = last_json(shown.out)["nights_by_channel"]
    assert by_channel == {"Chest": 1, "C4-M1": 1, "F3-M2": 0, "ECG": 0}
    assert "signal 'EEG' stands in for C4-M1" in shown.err
    assert "notice: no night has F3-M2 (not used: Pz), ECG (not used: Gurke), which --like asks for" in shown.err
    assert 'if Pz is F3-M2, {"*": {"Pz": {"alias": "F3-M2"}}}, and --overwrite' in shown.err
    # nights without their own names of the first are no less at home: MESA by SHHS
    (third := tmp_path / "third").mkdir()
    write_night(third / "third.edf", leads=(Lead("EEG3"), Lead("EEG1")))
    preprocess(capsys, second, tmp_path / "C", "--montage", "auto")
    _, found = preprocess(capsys, third, tmp_path / "D", "--like", tmp_path / "C")
    assert found["nights_by_channel"]["EEG"] == 1
    # a store of an earlier version, without stand-ins, stays as it is
    record = json.loads((tmp_path / "B" / "store.json").read_text())
    montage = ClipStore(tmp_path / "A").montage
    settled = settle_montage(
        Request("auto", None, False, False, like=with_stand_ins(montage)), tmp_path / "B",
        {**record, "montage": montage.to_dict()},
    )  # fmt: skip
    assert settled == montage


def test_what_fills_no_slot_of_like_is_not_told_to_choose_a_montage(cohort: Path, tmp_path: Path, capsys) -> None:
    """--montage does not go with --like."""
    store, stranger = tmp_path / "store", tmp_path / "stranger"
    preprocess(capsys, cohort, store)
    stranger.mkdir()
    write_night(stranger / "n.edf", leads=[Lead("Aux 1")])
    for more in (["--inspect"], []):
        made = [] if more else [str(tmp_path / "new")]
        assert cli([*more, str(stranger), *made, "--like", str(store)]) == 1
        assert "leave --like out: other channels need a network trained on them" in (shown := capsys.readouterr()).out
        assert "--montage" not in shown.out + shown.err
        made = [] if more else [str(tmp_path / "other")]
        assert cli([*more, str(stranger), *made, "--montage", "aasm"]) == 1
        assert "or choose another --montage" in capsys.readouterr().out


def test_other_channels_than_those_of_like_are_refused(cohort: Path, tmp_path: Path, capsys) -> None:
    store, other = tmp_path / "store", tmp_path / "other"
    preprocess(capsys, cohort, store)
    preprocess(capsys, cohort, other, "--montage", "aasm")
    for arguments, sentence in (
        ([cohort, other, "--like", store], "was made with other channels than those of --like"),
        ([cohort, tmp_path / "new", "--like", tmp_path / "none"], f"--like: {tmp_path / 'none'} does not exist"),
        ([cohort, tmp_path / "new", "--like", cohort], f"--like: {cohort} is a folder of recordings"),
        ([cohort, tmp_path / "new", "--like", store, "--montage", "aasm"], "--montage aasm has no effect with --like"),
    ):
        assert cli([*map(str, arguments)]) != 0
        assert sentence in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
    assert preprocess(capsys, cohort, other, "--like", store, "--overwrite")[0] == 0
    assert ClipStore(other).montage == with_stand_ins(ClipStore(store).montage)


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
    original = sleepfm_fast.cohorts.night.write_recording

    def stop_at_the_third(*arguments):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(original(*arguments))
        return done[-1]

    monkeypatch.setattr(sleepfm_fast.cohorts.night, "write_recording", stop_at_the_third)
    assert preprocess(capsys, cohort, store, "--montage", "paper", "--overwrite") == (130, {})
    monkeypatch.undo()
    with pytest.raises(ClipStoreError, match="is unfinished"):
        ClipStore(store)
    status, result = preprocess(capsys, cohort, store, "--montage", "paper")
    assert (status, result["added"], result["kept"]) == (0, 2, 2)
    preprocess(capsys, cohort, tmp_path / "fresh", "--montage", "paper")
    assert contents(store) == contents(tmp_path / "fresh")


def test_two_at_once_are_refused(cohort: Path, tmp_path: Path, capsys) -> None:
    store = tmp_path / "store"
    preprocess(capsys, cohort, store)
    claim = Claim(store / "running" / "all.claim")
    assert preprocess(capsys, cohort, store)[0] == 1
    assert preprocess(capsys, cohort, store, "--shard", "1/2")[0] == 1
    claim.release()
    claim = Claim(store / "running" / "shard-1-of-2.claim")
    assert preprocess(capsys, cohort, store)[0] == 1
    assert preprocess(capsys, cohort, store, "--shard", "1/2")[0] == 1
    assert preprocess(capsys, cohort, store, "--shard", "1/3")[0] == 1
    assert preprocess(capsys, cohort, store, "--shard", "2/2")[0] == 0
    claim.release()
    assert preprocess(capsys, cohort, store)[0] == 0


@pytest.mark.slow
def test_kill_9_loses_and_repeats_nothing(tmp_path: Path) -> None:
    folder, store = tmp_path / "nights", tmp_path / "store"
    folder.mkdir()
    n_nights = 80
    for i in range(n_nights):
        write_night(folder / f"n{i:02d}.edf", seed=i)
    environment = marked(os.environ)
    process = subprocess.Popen(
        [sys.executable, "-m", "sleepfm_fast.preprocess", str(folder), str(store), "--workers", "2"],
        cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment,
    )  # fmt: skip
    while len(list((store / "recordings").glob("*.json"))) < 2:
        assert process.poll() is None
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    time.sleep(2)  # workers whose parent is gone finish what they hold, and would wait minutes for more
    stop(environment)
    with pytest.raises(ClipStoreError, match="is unfinished"):
        ClipStore(store)
    survivors = {name: s for name, s in state(store).items() if name.endswith(".json")}
    assert 2 <= len(survivors) < n_nights
    done = last_json(run_preprocess(folder, store, "--workers", 2).stdout)
    assert (done["nights"], done["kept"]) == (n_nights, len(survivors))
    assert {name: state(store)[name] for name in survivors} == survivors
    run_preprocess(folder, tmp_path / "uninterrupted", "--workers", 2)
    assert contents(store) == contents(tmp_path / "uninterrupted")
    ClipStore(store, verify=True)


def test_a_night_that_fails_while_it_is_replaced_is_left_out(cohort: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    store = tmp_path / "store"
    preprocess(capsys, cohort, store)
    write_night(cohort / "b1.edf", seed=34)
    original = sleepfm_fast.store.clip_writer.write_samples

    def no_space(path, *arguments):
        if path.stem == "b1":
            raise OSError(28, "No space left on device")
        return original(path, *arguments)

    monkeypatch.setattr(sleepfm_fast.store.clip_writer, "write_samples", no_space)
    status, result = preprocess(capsys, cohort, store, "--overwrite")
    assert (status, result["nights"]) == (1, 3)
    assert "No space left on device" in result["failed"][0]["reason"]
    assert [r.id for r in ClipStore(store, verify=True).recordings] == ["a1", "a2", "b2"]
    monkeypatch.undo()
    status, result = preprocess(capsys, cohort, store)
    assert (status, result["added"], result["nights"]) == (0, 1, 4)


def test_a_store_whose_lock_was_taken_over_is_left_to_the_other(
    cohort: Path, tmp_path: Path, capsys, monkeypatch
) -> None:
    """As of a process that was suspended for minutes: two writers of one index would undo each other."""
    store = tmp_path / "store"
    preprocess(capsys, cohort / "a1.edf", store)
    before = (store / "store.json").read_bytes()
    lock, said = store / "running" / "lock", []

    def taken(sentence: str) -> None:
        said.append(sentence)
        if sentence.startswith("writing the index"):
            lock.unlink()
            foreign_claim(lock)

    monkeypatch.setattr(sleepfm_fast.cohorts.ingest, "say", taken)
    assert cli([str(cohort), str(store), "--backend", "threading", "--workers", "1"]) == 1
    assert "was taken over while this process was suspended or cut off. The nights are kept" in capsys.readouterr().err
    assert "writing the index of 4 nights" in said
    assert (store / "store.json").read_bytes() == before
    assert lock.is_file(), "it is the other's"
    monkeypatch.undo()
    lock.unlink()
    status, result = preprocess(capsys, cohort, store)
    assert (status, result["kept"], result["added"]) == (0, 4, 0)
    ClipStore(store, verify=True)


def test_a_refused_run_leaves_the_store_as_it_is(cohort: Path, tmp_path: Path, capsys) -> None:
    store = tmp_path / "store"
    preprocess(capsys, cohort, store)
    before = contents(store)
    (tmp_path / "one.csv").write_text("onset,duration,description\n0,30,W\n")
    for arguments, sentence in (
        ((cohort, store, "--labels", tmp_path / "one.csv"), "is one file, but 4 recordings were given; it cannot be"),
        (
            (cohort / "a1.edf", store, "--events-scored", "--overwrite"),
            r"3 recordings of .* were made with another configuration and cannot be processed again .*a2\.edf\)\. Give",
        ),
        ((cohort, store, "--workers", "-1"), "--workers -1 is negative"),
    ):
        assert cli([*map(str, arguments), "--backend", "threading"]) in (1, 2)
        assert re.search(sentence, capsys.readouterr().err), sentence
        # Headers that were read are remembered for the next run.
        assert {name: found for name, found in contents(store).items() if not name.startswith("running")} == before
    ClipStore(store, verify=True)


def test_an_index_that_cannot_be_written_is_a_sentence(cohort: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    def no_space(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sleepfm_fast.storage.columns, "replace_folder", no_space)
    assert preprocess(capsys, cohort, tmp_path / "store")[0] == 1
    monkeypatch.undo()
    status, result = preprocess(capsys, cohort, tmp_path / "store")
    assert (status, result["kept"], result["added"]) == (0, 4, 0)
    ClipStore(tmp_path / "store", verify=True)


@pytest.mark.parametrize("suffix", [".json", ".bin"])
def test_a_damaged_night_is_made_again_or_reported(cohort: Path, tmp_path: Path, capsys, suffix: str) -> None:
    store = tmp_path / "store"
    preprocess(capsys, cohort, store)
    wanted = contents(store)
    (store / "recordings" / f"b1{suffix}").write_bytes(b"{")
    status, result = preprocess(capsys, cohort / "a1.edf", store)
    assert (status, result["nights"]) == (1, 3)
    assert "b1.json or the .bin beside it is damaged" in result["failed"][0]["reason"]
    assert len(ClipStore(store, verify=True).recordings) == 3
    status, result = preprocess(capsys, cohort, store)
    assert (status, result["added"], result["kept"]) == (0, 1, 3)
    assert contents(store) == wanted


def test_unknown_channel_names_are_answered_with_a_correction_that_works(tmp_path: Path, capsys) -> None:
    nights, overrides = tmp_path / "nights", tmp_path / "overrides.json"
    nights.mkdir()
    write_night(nights / "x.edf", leads=[Lead("Ch 1"), Lead("Ch 2")])
    assert cli([str(nights), str(tmp_path / "alone")]) == 1
    assert '--overrides, such as {"*": {"EEG 1": {"alias": "C3-M2"}}}' in capsys.readouterr().err
    for i in range(3):
        write_night(nights / f"known{i}.edf", seed=i)
    assert cli([str(nights), str(tmp_path / "store")]) == 1
    said = capsys.readouterr().err
    (correction,) = re.findall(r"--overrides (\{.*\}) \(the slots: ", said)
    assert json.loads(correction) == {"x.edf": {"Ch 1": {"alias": "C3-M2"}}}
    overrides.write_text(correction)
    assert preprocess(capsys, nights, tmp_path / "store", "--overrides", overrides)[0] == 0
    assert "x" in [r.id for r in ClipStore(tmp_path / "store").recordings]


def test_a_scoring_that_was_taken_away_is_noticed(tmp_path: Path, capsys) -> None:
    """But one that --labels named may lie on a disk that is not there now."""
    (nights := tmp_path / "nights").mkdir()
    (labels := tmp_path / "labels").mkdir()
    write_night(nights / "a.edf", stages="----")
    scoring = "onset,duration,stage\n0,30,N2\n30,30,N3\n60,30,N3\n90,30,R\n"
    for folder, more in ((nights, ()), (labels, ("--labels", str(labels)))):
        (folder / "a.csv").write_text(scoring)
        store = tmp_path / f"store-of-{folder.name}"
        common = [str(nights), str(store), "--workers", "1", "--backend", "threading"]
        assert cli([*common, *more]) == 0
        (folder / "a.csv").unlink()
        capsys.readouterr()
        if more:
            assert cli(common) == 0, "what --labels gave is not withdrawn by leaving the option out"
            continue
        assert cli(common) == 1
        assert (
            f"its scoring {folder / 'a.csv'} no longer exists; the store keeps what it has" in capsys.readouterr().err
        )
        assert cli([*common, "--overwrite"]) == 0
        assert last_json(capsys.readouterr().out)["nights_scored"] == 0
